"""The laws under `async for`: a pipeline equals the built-ins, and ends wherever it is told to without a trace."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from toolz import mapcat, pipe

from fstream import Stream, Transformer, peach, pfilter, pflat_map, pmap
from tests.loops import (
    KINDS,
    AsyncSource,
    Boom,
    SyncSource,
    eventually,
    for_kind,
    is_even,
    nothing_left,
    other_tasks,
    run_strictly,
    turns,
    twice,
)


def triple(x: int) -> int:
    return 3 * x


def and_next(x: int) -> Iterator[int]:
    yield x
    yield x + 1


def up_to(x: int) -> range:
    return range(x % 4)


def each(f: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        f(item)
    return iter(())


@dataclass(frozen=True)
class Step:
    """One stage of a random pipeline, and what it means in plain Python."""

    combinator: Any
    plain: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
    f: Callable[[Any], Any]
    kind: str
    workers: int
    maxsize: int | None
    ordered: bool

    def transformer(self) -> Transformer[Any, Any]:
        options = {
            "kind": self.kind,
            "workers": self.workers,
            "maxsize": self.maxsize,
            "ordered": self.ordered,
        }
        transformer: Transformer[Any, Any] = self.combinator(for_kind(self.f, self.kind), **options)
        return transformer


def steps(*meanings: tuple[Any, Any, Any], maxsizes: tuple[int | None, ...]) -> st.SearchStrategy[Step]:
    return st.builds(
        lambda meaning, *options: Step(*meaning, *options),
        st.sampled_from(meanings),
        st.sampled_from(KINDS),
        st.integers(1, 3),
        st.sampled_from(maxsizes),
        st.booleans(),
    )


#: On endless input any chain of these gives endless output: each lets the even numbers through, or multiplies them.
ENDLESS = (
    (pmap, map, triple),
    (pfilter, filter, is_even),
    (pflat_map, mapcat, twice),
    (pflat_map, mapcat, and_next),
)
ENDLESS_CHAINS = st.lists(steps(*ENDLESS, maxsizes=(None, 1, 4)), min_size=1, max_size=3)
CHAINS = st.lists(
    steps(*ENDLESS, (pflat_map, mapcat, up_to), (peach, each, triple), maxsizes=(None, 1, 4, 0)),
    min_size=1,
    max_size=3,
)
SOURCES = st.sampled_from([list, iter, SyncSource, AsyncSource])


async def drain(stream: Stream[Any], is_awaited: bool = False) -> list[Any]:
    return await stream if is_awaited else [y async for y in stream]


def pipeline(source: Any, chain: list[Step]) -> Stream[Any]:
    stream: Stream[Any] = pipe(source, *(step.transformer() for step in chain))
    return stream


@settings(deadline=None, max_examples=60)
@given(CHAINS, st.lists(st.integers(-20, 20), max_size=40), SOURCES, st.booleans())
def test_a_chain_equals_the_built_ins(
    chain: list[Step], items: list[int], source: Callable[[list[int]], Any], is_awaited: bool
) -> None:
    expected = list(reduce(lambda xs, step: step.plain(step.f, xs), chain, items))
    outputs = run_strictly(lambda: drain(pipeline(source(items), chain), is_awaited))
    if all(step.ordered for step in chain):
        assert outputs == expected
    else:
        assert Counter(outputs) == Counter(expected)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.builds(ValueError, st.integers())
)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.lists(VALUES, max_size=20), SOURCES)
def test_every_value_is_an_item_like_another(
    kind: str, items: list[Any], source: Callable[[list[Any]], Any]
) -> None:
    stream = pmap(for_kind(repr, kind), source(items), kind=kind, workers=2)
    assert run_strictly(lambda: drain(stream)) == list(map(repr, items))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(KINDS), st.integers(0, 30), SOURCES, st.integers(1, 4))
def test_an_error_comes_after_all_the_outputs_before_it(
    kind: str, failing: int, source: Callable[[Iterable[int]], Any], workers: int
) -> None:
    def fail(x: int) -> int:
        if x >= failing:
            raise Boom(x)
        return -x

    outputs = []

    async def main() -> None:
        try:
            async for y in pmap(for_kind(fail, kind), source(range(40)), kind=kind, workers=workers):
                outputs.append(y)
        except Boom as error:
            outputs.append(error.args)

    run_strictly(main)
    assert outputs == [*range(0, -failing, -1), (failing,)]


# Early ends. Each leaves a stream after a random number of outputs or of turns of the loop.


async def take_for_ever(stream: Stream[Any], count: int, reached: asyncio.Event) -> None:
    """Set *reached* after *count* outputs; leave others their turns, as kind "sync" alone would not."""
    async with aclosing(stream):
        for taken in itertools.count():
            if taken == count:
                reached.set()
            await anext(stream)
            await asyncio.sleep(0)


async def cancel(consumer: asyncio.Task[Any]) -> None:
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()


async def cancelled_after_turns(stream: Stream[Any], count: int) -> None:
    consumer = asyncio.create_task(take_for_ever(stream, 0, asyncio.Event()))
    await turns(count)
    await cancel(consumer)


async def cancelled_after_outputs(stream: Stream[Any], count: int) -> None:
    reached = asyncio.Event()
    consumer = asyncio.create_task(take_for_ever(stream, count, reached))
    await reached.wait()
    await cancel(consumer)


async def closed_after_outputs(stream: Stream[Any], count: int) -> None:
    async with aclosing(stream):
        for _ in range(count):
            await anext(stream)


async def timed_out(stream: Stream[Any], count: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(count / 1000):
            await take_for_ever(stream, 0, asyncio.Event())


async def dropped_after_outputs(stream: Stream[Any], count: int) -> None:
    """Nobody closes it: it goes with its last reference."""
    for _ in range(count):
        await anext(stream)


EARLY_ENDS = st.sampled_from(
    [cancelled_after_turns, cancelled_after_outputs, closed_after_outputs, timed_out, dropped_after_outputs]
)
ENDLESS_SOURCES = st.sampled_from([SyncSource, AsyncSource])


@settings(deadline=None, max_examples=40)
@given(ENDLESS_CHAINS, ENDLESS_SOURCES, EARLY_ENDS, st.integers(0, 60))
def test_an_end_anywhere_leaves_nothing_behind(
    chain: list[Step], make_source: Any, end: Any, count: int
) -> None:
    source = make_source(itertools.count())

    async def main() -> None:
        await end(pipeline(source, chain), count)
        gc.collect()
        await eventually(lambda: not other_tasks() and source.closed == source.opened)

    with nothing_left():
        run_strictly(main)


@settings(deadline=None, max_examples=20)
@given(ENDLESS_CHAINS, ENDLESS_SOURCES, st.integers(0, 40))
def test_a_loop_that_ends_anywhere_leaves_nothing_behind(
    chain: list[Step], make_source: Any, count: int
) -> None:
    source = make_source(itertools.count())
    stream = pipeline(source, chain)

    async def main() -> None:
        asyncio.create_task(take_for_ever(stream, 0, asyncio.Event()))  # noqa: RUF006  (the end of the loop cancels it)
        await turns(count)

    with nothing_left():
        run_strictly(main, unfinished=True)
        stream.close()
    assert source.closed == source.opened


@settings(deadline=None, max_examples=20)
@given(ENDLESS_CHAINS, st.integers(0, 40), st.integers(1, 3))
def test_cancelled_streams_do_not_disturb_their_neighbours(
    chain: list[Step], count: int, neighbours: int
) -> None:
    """Several streams of one pipeline on one loop: cancelling one leaves the outputs of the others as they are."""
    one = chain[:1]
    items = range(50)
    expected = Counter(one[0].plain(one[0].f, items))

    async def main() -> list[list[Any]]:
        others = [asyncio.create_task(drain(pipeline(items, one))) for _ in range(neighbours)]
        await cancelled_after_turns(pipeline(itertools.count(), chain), count)
        return await asyncio.gather(*others)

    assert list(map(Counter, run_strictly(main))) == [expected] * neighbours


class Numbers:
    """An async iterator of *stop* numbers that waits between them, at random moments."""

    def __init__(self, waits: list[int]) -> None:
        self.waits = waits

    async def __aiter__(self) -> AsyncIterator[int]:
        for x, wait in enumerate(self.waits):
            await turns(wait)
            yield x


async def after_turns(waits: list[int], x: int) -> int:
    await turns(waits[x])
    return x


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30),
    st.integers(1, 4),
    st.sampled_from([None, 1, 3]),
)
def test_order_does_not_depend_on_who_waits_how_long(
    waits: list[tuple[int, int]], workers: int, maxsize: int | None
) -> None:
    of_source, of_f = [list(column) for column in zip(*waits, strict=True)] or ([], [])
    stream = pmap(
        partial(after_turns, of_f), Numbers(of_source), kind="task", workers=workers, maxsize=maxsize
    )
    assert run_strictly(lambda: drain(stream)) == list(range(len(waits)))
