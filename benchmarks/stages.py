"""Rows of many stages: what an item costs in each; and stages that run as one, whatever their options."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.rows import Bound, Mapper, Row, bare, serial, timed
from fstream import pmap

SIZE = 2_000
STAGES = (1, 10, 30, 100)
FEW = "10 stages"


def identity(item: int) -> int:
    return item


def row_of(stages: int) -> Mapper:
    def mapper(job: object, items: Iterable[int]) -> Iterable[int]:
        for _ in range(stages):
            items = pmap(job, items, kind="thread")
        return items

    return mapper


def apart(stages: int) -> Mapper:
    """Process stages that do not run as one, because each has other workers than the one before."""

    def mapper(job: object, items: Iterable[int]) -> Iterable[int]:
        for number in range(stages):
            items = pmap(job, items, kind="process", workers=1 + number % 2)
        return items

    return mapper


def split(line: str) -> list[str]:
    return line.strip().split(",")


def numbers(fields: list[str]) -> list[int]:
    return [int(field) for field in fields]


def parsed(line: str) -> int:
    """What the three process stages do with a line."""
    return sum(numbers(split(line)))


def lines(n: int) -> list[str]:
    return [f"{number},{number + 1},{number + 2}\n" for number in range(n)]


def fused(first: dict[str, Any], others: dict[str, Any]) -> Mapper:
    """Three process stages in a row, the first with options of its own."""

    def mapper(job: object, items: Iterable[str]) -> Iterable[int]:
        fields = pmap(split, items, kind="process", **first)
        return pmap(sum, pmap(numbers, fields, kind="process", **others), kind="process", **others)

    return mapper


def _fused() -> Row:
    retries: dict[str, Any] = {"retries": 2}
    timeout: dict[str, Any] = {"timeout": 60}
    contenders = {
        "fstream": fused({}, {}),
        "fstream, on_error of the first": fused({"on_error": "skip"}, {}),
        "fstream, retries of all": fused(retries, retries),
        "fstream, timeout of all": fused(timeout, timeout),
    }
    return Row(
        "fused",
        "three process stages in a row over 300,000 lines: split, numbers, sum",
        "us a line",
        {name: timed(bare(mapper), parsed, lines) for name, mapper in contenders.items()}
        | {"in process, serial": timed(serial, parsed, lines)},
        {name: Bound(1.15, "fstream") for name in contenders if name != "fstream"},
        300_000,
        30_000,
    )


def _name(stages: int) -> str:
    return f"{stages} stage{'s' if stages > 1 else ''}"


def _many(name: str, work: str, row: Callable[[int], Mapper], numbers: Sequence[int]) -> Row:
    """Compare rows of several *numbers* of stages, by the time for each item and stage."""
    return Row(
        name,
        work,
        "us an item and stage",
        {
            _name(stages): timed(
                bare(row(stages)),
                identity,
                lambda n: iter(range(n)),
                units=lambda n, stages=stages: n * stages,  # type: ignore[misc]
            )
            for stages in numbers
        },
        {_name(stages): Bound(5, FEW) for stages in numbers if stages > 10},
        SIZE,
        SIZE // 4,
    )


ROWS = (
    _many("many-stages", f"thread, identity over an iterator of {SIZE:,} in 1 to 100 stages", row_of, STAGES),
    _many(
        "many-process-stages",
        f"process, identity over an iterator of {SIZE:,} in 10 to 100 stages that do not run as one",
        apart,
        STAGES[1:],
    ),
    _fused(),
)
