"""A row of the table: its contenders, its figure, its targets; and how a contender's work is timed."""

import asyncio
import gc
import inspect
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import Any, NamedTuple

#: Items done just before the clock starts: rounds may be further apart than idle workers are kept for.
WARM_UP = 20

Outputs = Iterable[Any] | AsyncIterable[Any]
Mapper = Callable[[Any, Iterable[Any]], Outputs]
Adapter = Callable[[], AbstractContextManager[Mapper]]
ChunkMapper = Callable[[Any, Iterable[Any], int], Iterable[Any]]
ChunkAdapter = Callable[[], AbstractContextManager[ChunkMapper]]


class Sample(NamedTuple):
    """One measurement of one contender: seconds an item, or whatever the row measures; and a remark."""

    value: float
    note: str = ""


@dataclass(frozen=True)
class Opened:
    """A contender has opened what it needs and gives the right outputs."""


@dataclass(frozen=True)
class Ready:
    """A contender is warm and will do so many items at a time."""

    items: int


@dataclass(frozen=True)
class Failed:
    """A contender cannot run: what it needs is not installed, it raised, or it hangs."""

    why: str
    missing: bool = False


Measure = Callable[[int], Sample]  # given how many items
Contender = Callable[[], AbstractContextManager[Measure]]


@dataclass(frozen=True)
class Bound:
    """What a contender's figure has to reach: *limit* itself, or *limit* times the figure of *rival*."""

    limit: float
    rival: str | None = None
    at_least: bool = False

    def met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.at_least else ratio <= self.limit


def own_figure(value: float, reference: float) -> float:
    """The measured value as it is."""
    return value


def microseconds(value: float, reference: float) -> float:
    return value * 1e6


@dataclass(frozen=True)
class Row:
    """One piece of work, done by several contenders.

    *figure* turns what a contender measured, and *reference* in the same round, into the table's figure in *unit*.
    *size* is the number of items, *quick* that of a quick run. *peers* do as many as fit a time limit, or all
    if *whole*.
    """

    name: str
    work: str
    unit: str
    contenders: Mapping[str, Contender]
    bounds: Mapping[str, Bound]
    size: int
    quick: int
    figure: Callable[[float, float], float] = microseconds
    reference: str | None = None
    peers: Mapping[str, Contender] = field(default_factory=dict)
    whole: bool = False
    #: Why it says nothing on this Python, and is skipped.
    needless: str = ""


class OnlyAsync:
    """Hides that a stream can be iterated with `for` too, so that it is drained with `async for`."""

    def __init__(self, stream: AsyncIterable[Any]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[Any]:
        return aiter(self._stream)


async def _drain(outputs: AsyncIterable[Any]) -> None:
    async for _ in outputs:
        pass


async def _collect(outputs: AsyncIterable[Any]) -> list[Any]:
    return [output async for output in outputs]


def consume(outputs: Outputs) -> None:
    """Take all outputs, as cheaply as can be."""
    if isinstance(outputs, Iterable):
        deque(outputs, maxlen=0)
    else:
        asyncio.run(_drain(outputs))


def _seconds(mapper: Mapper, job: Any, items: Callable[[int], Iterable[Any]], n: int) -> float:
    consume(mapper(job, items(min(n, WARM_UP))))
    work = items(n)
    gc.collect()
    start = perf_counter()
    consume(mapper(job, work))
    return perf_counter() - start


def _expected(job: Any, items: Iterable[Any]) -> list[Any]:
    if not inspect.iscoroutinefunction(job):
        return list(map(job, items))

    async def one_by_one() -> list[Any]:
        return [await job(item) for item in items]

    return asyncio.run(one_by_one())


def _check(mapper: Mapper, job: Any, items: Callable[[int], Iterable[Any]], expected: Any) -> None:
    outputs = mapper(job, items(WARM_UP))
    got = list(outputs) if isinstance(outputs, Iterable) else asyncio.run(_collect(outputs))
    if Counter(got) != Counter(expected(job, items(WARM_UP))):
        raise AssertionError(f"wrong outputs: {got[:5]}...")


def timed(
    adapter: Adapter,
    job: Any,
    items: Callable[[int], Iterable[Any]],
    *,
    units: Callable[[int], float] = float,
    expected: Callable[[Any, Iterable[Any]], list[Any]] | None = _expected,
) -> Contender:
    """A contender that maps *job* over `items(n)`: wall seconds divided by `units(n)`."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        with adapter() as mapper:
            if expected is not None:
                _check(mapper, job, items, expected)
            yield lambda n: Sample(_seconds(mapper, job, items, n) / units(n))

    return contender


def best_chunk(
    adapter: ChunkAdapter,
    job: Any,
    items: Callable[[int], Iterable[Any]],
    chunks: Iterable[int],
    *,
    expected: Callable[[Any, Iterable[Any]], list[Any]] = _expected,
) -> Contender:
    """The contender that a patient user gets by trying every one of *chunks* and keeping the best."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        with adapter() as mapper:

            def with_chunk(chunk: int) -> Mapper:
                return lambda job, items: mapper(job, items, chunk)

            @cache
            def best(n: int) -> int:
                walls: dict[int, float] = {}
                for chunk in sorted((chunk for chunk in chunks if chunk <= n // 4), reverse=True):
                    walls[chunk] = _seconds(with_chunk(chunk), job, items, n)
                    if walls[chunk] > 1.5 * min(walls.values()):
                        break  # still smaller ones only take longer still
                return min(walls, key=walls.__getitem__)

            def measure(n: int) -> Sample:
                return Sample(_seconds(with_chunk(best(n)), job, items, n) / n, f"chunk {best(n):,}")

            _check(with_chunk(3), job, items, expected)
            yield measure

    return contender


def mapping(
    adapters: Mapping[str, Adapter], job: Any, items: Callable[[int], Iterable[Any]], **options: Any
) -> dict[str, Contender]:
    """The contenders that differ only in their adapter."""
    return {name: timed(adapter, job, items, **options) for name, adapter in adapters.items()}


def bare(mapper: Mapper) -> Adapter:
    """The adapter of something that has nothing to open or close."""

    @contextmanager
    def adapter() -> Iterator[Mapper]:
        yield mapper

    return adapter


serial = bare(map)
