"""Streams that end early: every task is cancelled and awaited, on_done run, the source closed, and nobody complains."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest
from toolz import pipe

from fstream import StageStatus, Stream, pflat_map, pmap
from tests.functions import countdown, square, square_async, suited
from tests.gates import PATIENCE, Log
from tests.loops import (
    AsyncSource,
    Boom,
    Holding,
    closed_where_pulled,
    eventually,
    in_every_loop,
    in_loop,
    no_complaints,
    other_tasks,
    run_strictly,
    turns,
    wait_until,
)
from tests.scripts import printed, run_python
from tests.sources import Source

# How a consumer ends early. Each takes a stream, what to wait for before the end, and a list for the outputs so far.

End = Callable[[Stream[Any], Callable[[], Awaitable[Any]], list[Any]], Awaitable[None]]


async def consume(stream: Stream[Any], outputs: list[Any]) -> None:
    """Wait for nothing but the stream, so that whoever cancels this cancels it there."""
    async for y in stream:
        outputs.append(y)


async def by_cancel(stream: Stream[Any], ready: Callable[[], Awaitable[Any]], outputs: list[Any]) -> None:
    consumer = asyncio.create_task(consume(stream, outputs))
    await ready()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer


async def by_cancelled_await(
    stream: Stream[Any], ready: Callable[[], Awaitable[Any]], outputs: list[Any]
) -> None:
    async def consume_all() -> None:
        outputs.extend(await stream)

    consumer = asyncio.create_task(consume_all())
    await ready()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer


async def by_timeout(stream: Stream[Any], ready: Callable[[], Awaitable[Any]], outputs: list[Any]) -> None:
    async def expire(scope: asyncio.Timeout) -> None:
        await ready()
        scope.reschedule(0)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as scope:
            expiry = asyncio.create_task(expire(scope))
            await consume(stream, outputs)
    await expiry


async def by_break(stream: Stream[Any], ready: Callable[[], Awaitable[Any]], outputs: list[Any]) -> None:
    async for y in stream:
        outputs.append(y)
        if len(outputs) == 3:
            break
    await ready()
    await stream.aclose()


async def by_error_in_the_body(
    stream: Stream[Any], ready: Callable[[], Awaitable[Any]], outputs: list[Any]
) -> None:
    with pytest.raises(Boom, match="in the body"):
        async with aclosing(stream):
            async for y in stream:
                outputs.append(y)
                if len(outputs) == 3:
                    await ready()
                    raise Boom("in the body")


async def by_task_group(stream: Stream[Any], ready: Callable[[], Awaitable[Any]], outputs: list[Any]) -> None:
    """A failing neighbour in the consumer's task group."""
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(consume(stream, outputs))
            await ready()
            raise Boom("beside")
    assert [type(error) for error in caught.value.exceptions] == [Boom]


ENDS = pytest.mark.parametrize(
    "end", [by_cancel, by_cancelled_await, by_timeout, by_break, by_error_in_the_body, by_task_group]
)


class Workers:
    """Counts the workers of a stage that started and those that were done, through on_start and on_done."""

    def __init__(self) -> None:
        self.started = 0
        self.done = 0

    async def on_start(self) -> None:
        await asyncio.sleep(0)
        self.started += 1

    async def on_done(self, status: StageStatus) -> None:
        await asyncio.sleep(0)
        self.done += 1


def full(holding: Holding, end: End, outputs: list[int]) -> Callable[[], Awaitable[Any]]:
    """Each worker holds an item, and the consumer has got the three before: at once, or a few milliseconds later."""

    async def ready() -> None:
        await holding.full.wait()
        if end is not by_cancelled_await:
            await eventually(lambda: len(outputs) == 3)

    return ready


@ENDS
@in_every_loop
async def test_tasks_are_cancelled_and_awaited(end: End) -> None:
    f, workers, source = Holding(first=3, workers=4), Workers(), AsyncSource(itertools.count())
    stream = pmap(f, source, kind="task", workers=4, on_start=workers.on_start, on_done=workers.on_done)
    outputs: list[int] = []
    await end(stream, full(f, end, outputs), outputs)
    assert outputs == ([] if end is by_cancelled_await else [0, 1, 2])
    f.check()
    assert workers.done == workers.started == 4
    assert source.closed_in is asyncio.get_running_loop()
    assert not other_tasks()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@ENDS
@in_loop
async def test_tasks_of_every_stage_are_cancelled_and_awaited(end: End) -> None:
    """The last stage is full; the first still works for it; a stage of threads lies between."""
    passing, holding, source = Workers(), Holding(first=3, workers=2), AsyncSource(itertools.count())
    stream = pipe(
        source,
        pmap(square_async, workers=3, on_start=passing.on_start, on_done=passing.on_done),
        pmap(abs, kind="thread", workers=2),
        pmap(lambda x: x if x < 9 else holding(x), kind="task", workers=2),
    )
    outputs: list[int] = []
    await end(stream, full(holding, end, outputs), outputs)
    assert outputs == ([] if end is by_cancelled_await else [0, 1, 4])
    holding.check()
    assert passing.done == passing.started > 0
    assert source.closed_in is asyncio.get_running_loop()


def log_start(log: Log) -> str:
    """Write the start of a worker to *log*, whichever process it lives in."""
    name = f"{os.getpid()} {os.urandom(4).hex()}"
    log.write((name, "started"))
    return name


def log_done(log: Log, status: StageStatus, name: str) -> None:
    log.write((name, "done"))


def named_square(x: int, name: str) -> int:
    return x * x


@ENDS
@pytest.mark.parametrize("source_type", [Source, AsyncSource])
@in_loop
async def test_every_kind_is_closed(end: End, kind: str, source_type: Any, log: Log) -> None:
    source, reached, outputs = source_type(itertools.count()), asyncio.Event(), []

    def reach(y: int) -> int:
        if y == 100:
            reached.set()
        return y

    stream = pipe(
        source,
        pmap(
            suited(named_square, kind),
            kind=kind,
            workers=2,
            on_start=functools.partial(log_start, log),
            on_done=functools.partial(log_done, log),
        ),
        pmap(reach, kind="task", workers=1, maxsize=64),
    )
    await end(stream, reached.wait, outputs)
    assert outputs == [x * x for x in range(len(outputs))]
    assert not other_tasks()
    await eventually(source.closed.is_set)
    assert closed_where_pulled(source)
    started = {name for name, step in log.entries() if step == "started"}
    assert started
    await eventually(lambda: sorted(log.entries()) == sorted(itertools.product(started, ["started", "done"])))


@pytest.mark.parametrize("leave", ["error", "cancel"])
@in_every_loop
async def test_a_stream_dropped_in_the_body_is_closed_soon(kind: str, leave: str) -> None:
    """Without `aclosing` nobody awaits the end, but it comes: at the latest when the stream is collected."""
    source = AsyncSource(itertools.count())

    async def drop() -> None:
        async for _ in pmap(suited(square, kind), source, kind=kind, workers=2):
            if leave == "error":
                raise Boom
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            await asyncio.Event().wait()

    dropping = asyncio.create_task(drop())
    await asyncio.wait([dropping])
    assert dropping.cancelled() if leave == "cancel" else type(dropping.exception()) is Boom
    del dropping
    gc.collect()
    await eventually(lambda: source.closed.is_set() and not other_tasks())


@in_every_loop
async def test_the_held_tasks_of_a_dropped_stream_are_cancelled() -> None:
    f, workers = Holding(first=1, workers=3), Workers()
    stream = pmap(
        f, itertools.count(), kind="task", workers=3, on_start=workers.on_start, on_done=workers.on_done
    )
    assert await anext(stream) == 0
    await f.full.wait()
    del stream
    gc.collect()
    await eventually(lambda: not other_tasks())
    f.check()
    assert workers.done == workers.started


@in_loop
async def test_a_stream_dropped_while_its_loop_is_busy_elsewhere() -> None:
    """Dropped by a thread that has no loop: the end still happens in the loop of the tasks."""
    f = Holding(first=1, workers=2)
    streams = [pmap(f, itertools.count(), kind="task", workers=2)]
    assert await anext(streams[0]) == 0
    await f.full.wait()
    await asyncio.to_thread(streams.clear)
    gc.collect()
    await eventually(lambda: not other_tasks())
    f.check()


@pytest.mark.parametrize("last", ["task", "sync"])
@in_every_loop
async def test_a_stream_that_is_collected_in_a_cycle_is_closed_by_its_tasks(last: str) -> None:
    """Nobody else refers to them, as a loop refers to its tasks weakly: they are not to be collected with it."""
    source = AsyncSource(itertools.count())

    async def drop() -> None:
        f = suited(square, last)
        stream = source | pmap(square_async, maxsize=2) | pmap(f, kind=last, maxsize=2)
        for _ in range(4):
            await anext(stream)
        await turns(20)  # all of them wait
        cycle: list[Any] = [stream]
        cycle.append(cycle)

    await drop()
    gc.collect()
    await eventually(lambda: closed_where_pulled(source) and not other_tasks())


@in_every_loop
async def test_cancelled_before_the_first_turn() -> None:
    source = AsyncSource(itertools.count())
    consumer = asyncio.create_task(consume(pmap(square_async, source), []))
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    assert closed_where_pulled(source)


@in_loop
async def test_cancelled_during_on_start() -> None:
    starting, cancelled = asyncio.Event(), []

    async def on_start() -> None:
        starting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cancelled.append(True)

    source = AsyncSource(itertools.count())
    consumer = asyncio.create_task(consume(pmap(square_async, source, workers=1, on_start=on_start), []))
    await starting.wait()
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    assert cancelled == [True]
    assert closed_where_pulled(source)


@in_every_loop
async def test_cancelled_while_the_source_waits() -> None:
    waiting, closed = asyncio.Event(), []

    async def source() -> AsyncIterator[int]:
        try:
            yield 1
            waiting.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    consumer = asyncio.create_task(consume(pmap(square_async, source()), []))
    await waiting.wait()
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    assert closed == [True]


@in_loop
async def test_a_second_cancel_does_not_tear_the_cleaning_up() -> None:
    f, workers, source = Holding(first=0, workers=2), Workers(), AsyncSource(itertools.count())
    stream = pmap(f, source, kind="task", workers=2, on_start=workers.on_start, on_done=workers.on_done)
    consumer = asyncio.create_task(consume(stream, []))
    await f.full.wait()
    consumer.cancel()
    await asyncio.sleep(0)
    consumer.cancel()
    await asyncio.wait([consumer])
    await stream.aclose()
    await eventually(lambda: not other_tasks())
    f.check()
    assert workers.done == workers.started
    assert closed_where_pulled(source)


class SlowToLeave:
    """An f for tasks, or an async source, that waits at item 3 for ever, and takes a while to clean up."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.left = False

    async def wait(self) -> None:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.6)
            self.left = True

    async def f(self, x: int) -> int:
        if x == 3:
            await self.wait()
        return x

    async def source(self) -> AsyncIterator[int]:
        for x in range(3):
            yield x
        await self.wait()

    def stream(self, where: str) -> Stream[int]:
        return pmap(self.f, range(4), workers=1) if where == "f" else pmap(square_async, self.source())


SLOW = pytest.mark.parametrize("where", ["f", "source"])


@SLOW
@ENDS
@in_loop
async def test_cleaning_up_is_awaited_however_long_it_takes(end: End, where: str) -> None:
    slow = SlowToLeave()
    await end(slow.stream(where), slow.waiting.wait, [])
    assert slow.left


@SLOW
def test_close_awaits_cleaning_up_too(where: str) -> None:
    slow = SlowToLeave()
    with no_complaints():
        with slow.stream(where) as stream:
            assert len([next(stream) for _ in range(3)]) == 3
            wait_until(slow.waiting.is_set)
        assert slow.left


@in_loop
async def test_f_that_fails_while_it_is_cancelled_does_not_hide_the_cancellation() -> None:
    entered = asyncio.Event()

    async def f(x: int) -> int:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise Boom("while cleaning up")

    consumer = asyncio.create_task(consume(pmap(f, range(3), workers=2), []))
    await entered.wait()
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled() or isinstance(consumer.exception(), Boom)


@in_loop
async def test_asyncio_timeout_inside_f_is_f_s_own() -> None:
    """A time-out within f is an ordinary error of f: nobody else is cancelled by it."""

    async def f(x: int) -> int:
        if x == 1:
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
        return x

    assert await pmap(f, range(5), workers=2) == list(range(5))


@in_loop
async def test_closing_from_another_task_ends_the_consumer() -> None:
    f = Holding(first=2, workers=2)
    stream = pmap(f, itertools.count(), kind="task", workers=2)
    outputs: list[int] = []
    consumer = asyncio.create_task(consume(stream, outputs))
    await f.full.wait()
    with suppress(RuntimeError):  # as a native async generator, it may refuse while someone waits in it
        await stream.aclose()
    consumer.cancel()
    await asyncio.wait([consumer])
    assert outputs == [0, 1]
    f.check()


# Sync iteration of tasks.


@pytest.mark.parametrize("end", ["close", "with", "drop"])
def test_the_tasks_of_a_sync_iteration_are_cancelled_and_awaited(end: str) -> None:
    f, workers, source = Holding(first=3, workers=4), Workers(), AsyncSource(itertools.count())
    with no_complaints():
        stream = pmap(f, source, kind="task", workers=4, on_start=workers.on_start, on_done=workers.on_done)
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
        wait_until(lambda: len(f.entered) == 4)
        if end == "close":
            stream.close()
        elif end == "with":
            with stream:
                pass
        del stream
        wait_until(lambda: source.closed.is_set() and workers.done == 4)
    f.check()
    assert workers.started == 4
    assert closed_where_pulled(source)


# The end of the loop, and of the program.


def test_a_loop_ends_with_an_unfinished_stream(kind: str) -> None:
    source = AsyncSource(itertools.count())
    kept = pmap(suited(square, kind), source, kind=kind, workers=2)

    async def main() -> None:
        assert await anext(kept) == 0

    run_strictly(main, unfinished=True)
    with no_complaints():
        kept.close()
        assert list(kept) == []
    assert closed_where_pulled(source)


@pytest.mark.usefixtures("waits_in_vain_show")
@pytest.mark.parametrize("after", range(5))
def test_a_loop_ends_while_a_consumer_waits(kind: str, after: int) -> None:
    """It ends some turns after the start: before, while, and after the tasks of the stream begin."""
    opened, closed = [], []

    async def waiting() -> AsyncIterator[int]:
        opened.append(asyncio.get_running_loop())
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            await turns(3)
            closed.append(asyncio.get_running_loop())

    kept = pmap(suited(square, kind), waiting(), kind=kind, workers=2)

    async def main() -> None:
        asyncio.create_task(consume(kept, []))  # noqa: RUF006  (the end of the loop cancels it)
        await turns(after)

    begin = time.monotonic()
    run_strictly(main, unfinished=True)
    with no_complaints():
        kept.close()
    assert time.monotonic() - begin < PATIENCE
    assert closed == opened


def test_a_loop_ends_with_a_dropped_stream(kind: str) -> None:
    source = Source(itertools.count())

    async def main() -> None:
        assert await anext(pmap(suited(square, kind), source, kind=kind, workers=2)) == 0

    with no_complaints():
        run_strictly(main, unfinished=True)
        assert source.closed.wait(PATIENCE)
    assert closed_where_pulled(source)


UNFINISHED = """
import asyncio
from itertools import count
from fstream import pflat_map, pmap

def square(x):
    return x * x

async def async_square(x):
    await asyncio.sleep(0)
    return x * x

async def numbers():
    for x in count():
        yield x

async def main():
    global stream
    stream = pmap({f}, {source}, kind={kind!r}, workers=2)
    assert await anext(stream) == 0
    {then}

asyncio.run(main())
print("ended")
"""


@pytest.mark.parametrize("then", ["pass", "asyncio.ensure_future(anext(stream))", "del globals()['stream']"])
def test_a_program_ends_with_an_unfinished_stream(kind: str, then: str) -> None:
    """By itself, in time, and without a word."""
    f = "async_square" if kind == "task" else "square"
    source = "count()" if then == "pass" else "numbers()"
    script = UNFINISHED.format(f=f, kind=kind, source=source, then=then)
    assert printed(run_python("-W", "default", "-c", script)) == "ended"


@in_loop
async def test_a_transformer_works_again_after_an_early_end() -> None:
    transformer = pflat_map(suited(countdown, "task"), workers=2) | pmap(square, kind="thread")
    async with aclosing(transformer(itertools.count())) as stream:
        assert await anext(stream) == 1
    assert await transformer(range(3)) == [1, 4, 1]
