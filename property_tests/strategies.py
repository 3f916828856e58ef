"""What the laws are checked on: items, sources, chains of random stages and their plain counterparts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import toolz
from hypothesis import strategies as st

from fstream import Transformer, peach, pfilter, pflat_map, pmap

KINDS = ("sync", "thread", "process", "task")


# Functions: pure, total, importable


def identity(item: Any) -> Any:
    return item


def described(item: Any) -> str:
    return f"{type(item).__name__}:{item!r}"


def paired(item: Any) -> tuple[Any, Any]:
    return item, item


def is_true(item: Any) -> Any:
    return item  # its truth is the verdict


def always(_: Any) -> bool:
    return True


def never(_: Any) -> None:
    return None


def has_even_description(item: Any) -> bool:
    return len(repr(item)) % 2 == 0


def nothing(_: Any) -> tuple[()]:
    return ()


def twice(item: Any) -> Iterator[Any]:
    yield item
    yield item


def as_many_as_described(item: Any) -> list[tuple[Any, int]]:
    return [(item, position) for position in range(len(repr(item)) % 4)]


async def described_async(item: Any) -> str:
    return described(item)


def nothing_at_all(f: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return []


@dataclass(frozen=True)
class Operation:
    """A combinator, its plain counterpart, and functions that both can take."""

    combinator: Callable[..., Any]
    plain: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
    functions: tuple[Callable[[Any], Any], ...]

    def __repr__(self) -> str:
        return str(self.combinator.__name__)


PMAP = Operation(pmap, map, (identity, described, paired))
PFILTER = Operation(pfilter, filter, (is_true, always, never, has_even_description))
PFLAT_MAP = Operation(pflat_map, toolz.mapcat, (nothing, twice, paired, described, as_many_as_described))
PEACH = Operation(peach, nothing_at_all, (identity, described))
OPERATIONS = (PMAP, PFILTER, PFLAT_MAP, PEACH)


@dataclass(frozen=True)
class Step:
    """One stage of a chain."""

    operation: Operation
    f: Callable[[Any], Any]
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def transformer(self) -> Transformer[Any, Any]:
        return self.operation.combinator(self.f, kind=self.kind, **self.options)

    def plain(self, items: Iterable[Any]) -> Iterable[Any]:
        f = described if self.f is described_async else self.f
        return self.operation.plain(f, items)

    def __repr__(self) -> str:
        return repr(self.transformer())


@dataclass(frozen=True)
class Chain:
    """Stages in a row."""

    steps: tuple[Step, ...]

    @property
    def keeps_order(self) -> bool:
        return all(step.options.get("ordered", True) for step in self.steps)

    @property
    def most_held(self) -> int:
        """How many items its stages may hold, if each has its *maxsize*; on "sync" it is the one in f."""
        return sum(1 if step.kind == "sync" else step.options["maxsize"] for step in self.steps)

    def transformer(self) -> Transformer[Any, Any]:
        return reduce(lambda before, after: before | after, (step.transformer() for step in self.steps))

    def plain(self, items: Iterable[Any]) -> list[Any]:
        return list(reduce(lambda before, step: step.plain(before), self.steps, items))

    def __repr__(self) -> str:
        return repr(self.transformer())


# Items and sources: what is equal prints equal, so outputs are compared as they print


def exceptions() -> st.SearchStrategy[BaseException]:
    types = st.sampled_from([ValueError, KeyError, StopIteration, GeneratorExit, KeyboardInterrupt])
    return st.builds(lambda made, args: made(*args), types, st.lists(st.integers(0, 3), max_size=2))


def items() -> st.SearchStrategy[Any]:
    """Few different ones, so that there are duplicates."""
    return st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text("ab", max_size=2), exceptions())


def lists_of_items(max_size: int = 30, longest: int = 300) -> st.SearchStrategy[list[Any]]:
    return st.one_of(
        st.lists(items(), max_size=max_size),
        st.integers(0, longest).map(lambda length: list(range(length))),
    )


SHAPES: tuple[Callable[[list[Any]], Iterable[Any]], ...] = (
    list,
    tuple,
    iter,
    lambda items: (item for item in items),
    lambda items: map(identity, items),
    lambda items: dict(enumerate(items)).values(),
)


def shapes() -> st.SearchStrategy[Callable[[list[Any]], Iterable[Any]]]:
    """Ways to make a source of a list."""
    return st.sampled_from(SHAPES)


# Stages and chains


def options(
    kind: str,
    *,
    ordered: bool | None = None,
    maxsizes: Sequence[int | None] = (None, 0, 1, 2, 5),
    **others: Any,
) -> st.SearchStrategy[dict[str, Any]]:
    """Options of a stage; *others* are taken as they are."""
    return st.fixed_dictionaries(
        {
            "workers": st.integers(1, 2 if kind == "process" else 4),
            "ordered": st.booleans() if ordered is None else st.just(ordered),
            "maxsize": st.sampled_from(maxsizes),
            **{name: st.just(value) for name, value in others.items()},
        }
    )


@st.composite
def steps(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = KINDS,
    operations: tuple[Operation, ...] = (PMAP, PFILTER, PFLAT_MAP),
    **chosen: Any,
) -> Step:
    """A stage; *chosen* are arguments of `options`."""
    operation, kind = draw(st.sampled_from(operations)), draw(st.sampled_from(kinds))
    drawn = draw(options(kind, **chosen))
    f = draw(st.sampled_from(operation.functions))
    if f is described and kind == "task" and operation is PMAP and draw(st.booleans()):
        return Step(operation, described_async, kind, drawn)
    return Step(operation, f, kind, drawn)


def chains(
    kinds: tuple[str, ...] = KINDS, *, max_size: int = 4, spreads: int = 2, **chosen: Any
) -> st.SearchStrategy[Chain]:
    """One to *max_size* stages; *chosen* are arguments of `steps`.

    No more than *spreads* of them are `pflat_map`: each makes up to eight items of one, and ten would take for ever.
    """

    def stays_small(steps: list[Step]) -> bool:
        return sum(step.operation is PFLAT_MAP for step in steps) <= spreads

    several = st.lists(steps(kinds, **chosen), min_size=1, max_size=max_size)
    return several.filter(stays_small).map(tuple).map(Chain)


# Endless chains: whatever row of these takes endless input gives endless output, as each leaves even numbers even.


def triple(x: int) -> int:
    return 3 * x


async def triple_async(x: int) -> int:
    await asyncio.sleep(0)
    return 3 * x


def is_even(x: int) -> bool:
    return x % 2 == 0


def and_next(x: int) -> Iterator[int]:
    yield x
    yield x + 1


ENDLESS = (
    Operation(pmap, map, (triple,)),
    Operation(pfilter, filter, (is_even,)),
    Operation(pflat_map, toolz.mapcat, (twice, and_next)),
)
AWAITING = (Operation(pmap, lambda _, items: map(triple, items), (triple_async,)),)


def endless_chains(kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Chain]:
    bounded = (None, 1, 2, 5)
    any_step = steps(kinds, ENDLESS, maxsizes=bounded)
    if "task" in kinds:
        any_step |= steps(("task",), AWAITING, maxsizes=bounded)
    return st.lists(any_step, min_size=1, max_size=3).map(tuple).map(Chain)


# Streams that run beside others


class Counted:
    """A pipeline of *steps* over *length* numbers that notes how many it holds as each is pulled."""

    length: int
    steps: Sequence[Any]
    held: list[int]
    outputs: list[Any]

    @property
    def bound(self) -> float:
        """How many it may hold."""
        sizes = [step.maxsize for step in self.steps]
        return sum(size or 0 for size in sizes) if all(sizes) else float("inf")

    def source(self) -> Iterator[int]:
        for number in range(self.length):
            self.held.append(number + 1 - len(self.outputs))
            yield number


# Outputs


def printed(outputs: Iterable[Any]) -> list[str]:
    """Outputs as they print, to compare exceptions by what they say."""
    return [repr(output) for output in outputs]


def check_equal(outputs: Iterable[Any], expected: Iterable[Any], in_order: bool = True) -> None:
    if in_order:
        assert printed(outputs) == printed(expected)
    else:
        assert sorted(printed(outputs)) == sorted(printed(expected))
