"""Async iterables as sources of every kind, in sync and in async iteration; async iterables as results of f."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from toolz import pipe

from fstream import merge, peach, pfilter, pflat_map, pmap, run
from tests.functions import countdown, is_odd, square, square_async, suited
from tests.gates import PATIENCE
from tests.loops import (
    AsyncSource,
    Boom,
    closed_where_pulled,
    eventually,
    in_every_loop,
    in_loop,
    no_complaints,
    run_strictly,
    turns,
    wait_until,
)


def synchronously(stream: Any) -> list[Any]:
    with no_complaints():
        return list(stream)


def asynchronously(stream: Any) -> list[Any]:
    async def main() -> list[Any]:
        return [y async for y in stream]

    return run_strictly(main)


ITERATIONS = pytest.mark.parametrize("outputs_of", [synchronously, asynchronously])


class Countdown:
    """An async iterator without generator: nothing to close."""

    def __init__(self, start: int) -> None:
        self.left = start

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


@ITERATIONS
def test_an_async_generator_is_a_source(outputs_of: Callable[[Any], list[Any]], kind: str) -> None:
    source = AsyncSource(range(50))
    assert outputs_of(pmap(suited(square, kind), aiter(source), kind=kind, workers=2)) == list(
        map(square, range(50))
    )
    assert closed_where_pulled(source)


@ITERATIONS
def test_an_async_iterable_is_a_source(outputs_of: Callable[[Any], list[Any]], kind: str) -> None:
    source = AsyncSource(range(5))
    stream = pflat_map(suited(countdown, kind), source, kind=kind, workers=2)
    assert outputs_of(stream) == [1, 2, 1, 3, 2, 1, 4, 3, 2, 1]
    assert closed_where_pulled(source)


@ITERATIONS
def test_an_async_iterator_is_a_source(outputs_of: Callable[[Any], list[Any]], kind: str) -> None:
    assert outputs_of(pfilter(suited(is_odd, kind), Countdown(5), kind=kind, workers=2)) == [3, 1]


@ITERATIONS
def test_the_source_of_a_mixed_pipeline(outputs_of: Callable[[Any], list[Any]]) -> None:
    source = AsyncSource(range(20))
    stream = pipe(
        source,
        pmap(square, kind="process", workers=2),
        pfilter(suited(is_odd, "task")),
        pflat_map(lambda y: [y, -y], kind="thread"),
    )
    assert outputs_of(stream) == [y for x in range(1, 20, 2) for y in (x * x, -x * x)]
    assert closed_where_pulled(source)


@ITERATIONS
def test_a_native_async_generator_between_streams(outputs_of: Callable[[Any], list[Any]]) -> None:
    """A foreign async generator takes one stream and is the source of the next."""

    async def in_pairs(items: Any) -> AsyncIterator[tuple[int, int]]:
        async with aclosing(items):
            async for x in items:
                yield x, await anext(items)

    pairs = in_pairs(pmap(square_async, range(10), workers=3))
    assert outputs_of(pmap(sum, pairs, kind="thread", workers=2)) == [1, 13, 41, 85, 145]


@ITERATIONS
def test_merge_takes_sync_and_async_sources(outputs_of: Callable[[Any], list[Any]]) -> None:
    merged = merge(AsyncSource(range(3)), [3, 4], Countdown(2))
    assert sorted(outputs_of(merged)) == [0, 0, 1, 1, 2, 3, 4]


def test_async_sources_that_end_at_once_do_not_end_each_other() -> None:
    """One of them may be over before the next begins."""

    async def single() -> AsyncIterator[int]:
        yield 1

    for _ in range(200):
        assert list(merge(single(), single(), single())) == [1, 1, 1]


def test_run_consumes_async_sources(kind: str) -> None:
    source = AsyncSource(range(7))
    run(peach(suited(square, kind), source, kind=kind, workers=2))
    assert source.pulled == 7
    assert closed_where_pulled(source)


@in_every_loop
async def test_under_async_for_the_source_runs_on_the_callers_loop(kind: str) -> None:
    source = AsyncSource(range(3))
    assert await pmap(suited(square, kind), source, kind=kind, workers=2) == [0, 1, 4]
    assert source.pulled_in == {source.closed_in} == {asyncio.get_running_loop()}


def test_under_sync_iteration_close_closes_the_source_in_its_loop(kind: str) -> None:
    """Time and again, as the source may be about to end by itself, or be closing already."""
    with no_complaints():
        for _ in range(30):
            source = AsyncSource(itertools.count())
            stream = pmap(suited(square, kind), source, kind=kind, workers=2)
            assert [next(stream) for _ in range(3)] == [0, 1, 4]
            stream.close()
            assert source.closed.wait(PATIENCE)
            assert closed_where_pulled(source)


def test_under_sync_iteration_a_dropped_stream_closes_the_source(kind: str) -> None:
    source = AsyncSource(itertools.count())
    with no_complaints():
        stream = pmap(suited(square, kind), source, kind=kind, workers=2)
        assert next(stream) == 0
        del stream
        assert source.closed.wait(PATIENCE)
    assert closed_where_pulled(source)


@ITERATIONS
def test_an_error_of_the_source_comes_after_the_outputs_of_what_it_gave(
    outputs_of: Callable[[Any], list[Any]], kind: str
) -> None:
    async def failing() -> AsyncIterator[int]:
        for x in range(3):
            yield x
        raise Boom("at 3")

    collected = []

    def collect(y: int) -> int:
        collected.append(y)
        return y

    stream = pmap(collect, pmap(suited(square, kind), failing(), kind=kind, workers=2), kind="sync")
    with pytest.raises(Boom, match="at 3") as caught:
        outputs_of(stream)
    assert collected == [0, 1, 4]
    assert "failing" in [entry.name for entry in caught.traceback]


@in_loop
async def test_an_output_does_not_wait_for_an_async_source(kind: str) -> None:
    seen = [asyncio.Event() for _ in range(3)]

    async def source() -> AsyncIterator[int]:
        for x, event in enumerate(seen):
            yield x
            await event.wait()

    async for y in pmap(suited(square, kind), source(), kind=kind, workers=2):
        seen[[0, 1, 4].index(y)].set()
    assert all(event.is_set() for event in seen)


def test_an_output_does_not_wait_for_an_async_source_in_sync_iteration(kind: str) -> None:
    seen = [threading.Event() for _ in range(3)]

    async def source() -> AsyncIterator[int]:
        for x, event in enumerate(seen):
            yield x
            await eventually(event.is_set)

    for y in pmap(suited(square, kind), source(), kind=kind, workers=2):
        seen[[0, 1, 4].index(y)].set()
    assert all(event.is_set() for event in seen)


@pytest.mark.parametrize("maxsize", [1, 3])
@in_loop
async def test_maxsize_bounds_what_is_pulled_of_an_async_source(concurrent_kind: str, maxsize: int) -> None:
    source = AsyncSource(range(30))
    given = 0
    async for _ in pmap(
        suited(square, concurrent_kind), source, kind=concurrent_kind, workers=2, maxsize=maxsize
    ):
        given += 1
        await asyncio.sleep(0.001)
        assert source.pulled - given <= maxsize
    assert given == 30


@in_loop
async def test_one_async_source_is_shared_by_two_streams_without_loss() -> None:
    """Two streams pull from one async iterator: each item goes to one of them, or one of them gets a clear error."""
    source = Countdown(100)
    streams = [pmap(square_async, source, workers=2) for _ in "ab"]
    taken = await asyncio.gather(*(drain(stream) for stream in streams), return_exceptions=True)
    outputs = sorted(y for ys in taken if isinstance(ys, list) for y in ys)
    assert outputs == [x * x for x in range(100)] or any(isinstance(ys, RuntimeError) for ys in taken)


async def drain(stream: Any) -> list[Any]:
    return [y async for y in stream]


# Async iterables as the results of f.


async def count_up(x: int) -> AsyncIterator[int]:
    for y in range(x):
        await asyncio.sleep(0)
        yield y


async def counted(x: int) -> AsyncIterator[int]:
    """A coroutine function whose result is an async generator."""
    await asyncio.sleep(0)
    return count_up(x)


class CountUp:
    def __init__(self, x: int) -> None:
        self.x = x

    def __aiter__(self) -> AsyncIterator[int]:
        return count_up(self.x)


@ITERATIONS
@pytest.mark.parametrize("f", [count_up, counted, CountUp])
def test_the_async_iterables_of_a_pflat_map_are_flattened(
    outputs_of: Callable[[Any], list[Any]], f: Any
) -> None:
    assert outputs_of(pflat_map(f, [3, 0, 2], kind="task", workers=2)) == [0, 1, 2, 0, 1]


@ITERATIONS
@pytest.mark.parametrize("kind", ["sync", "thread", "process"])
def test_async_iterables_of_another_kind_are_refused(
    outputs_of: Callable[[Any], list[Any]], kind: str
) -> None:
    with pytest.raises(TypeError):
        outputs_of(pflat_map(count_up, [3], kind=kind, workers=1))


@ITERATIONS
def test_an_error_in_the_async_generator_of_f_reaches_the_consumer(
    outputs_of: Callable[[Any], list[Any]],
) -> None:
    async def failing(x: int) -> AsyncIterator[int]:
        yield x
        raise Boom(x)

    with pytest.raises(Boom) as caught:
        outputs_of(pflat_map(failing, [1, 2], kind="task", workers=2))
    assert caught.value.args == (1,)
    assert caught.traceback[-1].name == "failing"


@in_every_loop
async def test_the_async_generators_of_f_are_closed_with_the_stream() -> None:
    entered, left = [], []
    full = asyncio.Event()

    async def held(x: int) -> AsyncIterator[int]:
        entered.append(x)
        if len(entered) == 3:
            full.set()
        try:
            yield x
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            left.append(x)

    stream = pflat_map(held, itertools.count(), kind="task", workers=3)
    consumer = asyncio.create_task(drain(stream))
    await full.wait()
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    assert sorted(entered) == sorted(left) == [0, 1, 2]


@pytest.mark.parametrize("source", [5, None, object()])
def test_what_is_neither_iterable_nor_async_iterable_is_refused_at_once(source: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=type(source).__name__):
        pmap(suited(square, kind), source, kind=kind)


def test_a_coroutine_is_not_a_source() -> None:
    """The likely slip: an async function that returns an iterable, called but not awaited."""

    async def items() -> list[int]:
        return [1, 2]

    with no_complaints(), pytest.raises(TypeError, match="coroutine"):
        coroutine = items()
        try:
            pmap(square, coroutine, kind="thread")
        finally:
            coroutine.close()


@in_loop
async def test_a_blocked_async_source_does_not_hold_up_aclose(kind: str) -> None:
    closed = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 3
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append(asyncio.current_task() is not None)

    stream = pmap(suited(square, kind), source(), kind=kind, workers=2)
    assert await anext(stream) == 9
    await turns(20)
    await stream.aclose()
    assert closed == [True]


def test_a_blocked_async_source_does_not_hold_up_close(kind: str) -> None:
    closed = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 3
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    with no_complaints():
        stream = pmap(suited(square, kind), source(), kind=kind, workers=2)
        assert next(stream) == 9
        stream.close()
        wait_until(lambda: closed)


@in_loop
async def test_a_blocked_sync_source_does_not_hold_up_aclose(concurrent_kind: str) -> None:
    go_on = threading.Event()
    closed = []

    def source() -> Iterator[int]:
        try:
            yield 3
            wait_until(go_on.is_set)
        finally:
            closed.append(True)

    stream = pmap(suited(square, concurrent_kind), source(), kind=concurrent_kind, workers=2)
    assert await anext(stream) == 9
    await stream.aclose()
    assert not closed
    go_on.set()
    await eventually(lambda: closed)
