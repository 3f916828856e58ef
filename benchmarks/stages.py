"""Rows of many stages: what an item costs in each."""

from collections.abc import Iterable

from benchmarks.rows import Bound, Mapper, Row, bare, timed
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


def _name(stages: int) -> str:
    return f"{stages} stage{'s' if stages > 1 else ''}"


ROWS = (
    Row(
        "many-stages",
        f"thread, identity over an iterator of {SIZE:,} in 1 to 100 stages",
        "us an item and stage",
        {
            _name(stages): timed(
                bare(row_of(stages)),
                identity,
                lambda n: iter(range(n)),
                units=lambda n, stages=stages: n * stages,  # type: ignore[misc]
            )
            for stages in STAGES
        },
        {_name(stages): Bound(5, FEW) for stages in STAGES if stages > 10},
        SIZE,
        SIZE // 4,
    ),
)
