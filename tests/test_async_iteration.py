"""`async for`, `await` and `aclose`, for every kind and for kinds in a row."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
from toolz import pipe

from fstream import Stream, merge, ordered, pfilter, pflat_map, pmap
from fstream._workers.task.consumer import take as take_outputs
from fstream._workers.task.queues import TaskQueue
from tests.conftest import KINDS
from tests.functions import MEANINGS, Meaning, countdown, is_odd, square, square_async, suited
from tests.gates import Gate, Log, holding
from tests.loops import (
    Boom,
    closed_where_pulled,
    eventually,
    in_every_loop,
    in_loop,
    other_tasks,
    run_strictly,
    turns,
    wait_until,
)
from tests.sources import Source

each_meaning = pytest.mark.parametrize("meaning", MEANINGS, ids=str)


@each_meaning
@in_every_loop
async def test_async_for_gives_the_outputs_in_order(meaning: Meaning, kind: str) -> None:
    stream = meaning.combinator(suited(meaning.f, kind), range(9), kind=kind, workers=2)
    assert [y async for y in stream] == meaning.expected(range(9))


@each_meaning
@in_every_loop
async def test_await_gives_the_list(meaning: Meaning, kind: str) -> None:
    stream = meaning.combinator(suited(meaning.f, kind), range(9), kind=kind, workers=2)
    assert await stream == meaning.expected(range(9))


@in_loop
async def test_unordered_outputs_are_the_same_multiset(kind: str) -> None:
    outputs = await pmap(suited(square, kind), range(50), kind=kind, workers=3, ordered=False)
    assert sorted(outputs) == list(map(square, range(50)))


@pytest.mark.parametrize("taken", [1, 3, 5])
@pytest.mark.parametrize("by", ["async for", "await", "anext and next"])
def test_what_next_has_left_comes_in_a_loop(kind: str, taken: int, by: str) -> None:
    async def rest() -> list[int]:
        if by == "await":
            return await stream
        if by == "async for":
            return [output async for output in stream]
        return [await anext(stream), *stream]

    stream = pmap(suited(square, kind), range(6), kind=kind, workers=2)
    outputs = [next(stream) for _ in range(taken)]
    outputs += asyncio.run(rest())
    assert outputs == [0, 1, 4, 9, 16, 25]


@in_loop
async def test_an_empty_source_gives_nothing(kind: str) -> None:
    assert await pmap(suited(square, kind), [], kind=kind) == []


@pytest.mark.parametrize("first", KINDS)
@in_loop
async def test_every_kind_next_to_every_kind(first: str, kind: str) -> None:
    stream = pipe(
        range(40),
        pmap(suited(square, first), kind=first, workers=2),
        pfilter(suited(is_odd, kind), kind=kind, workers=2),
    )
    assert [y async for y in stream] == [x * x for x in range(1, 40, 2)]


@in_every_loop
async def test_four_kinds_in_a_row() -> None:
    stream = pipe(
        range(9),
        pmap(square, kind="thread"),
        pflat_map(countdown, kind="process", workers=2),
        pmap(square_async),
        pfilter(is_odd, kind="sync"),
    )
    assert await stream == [y * y for x in range(9) for y in countdown(x * x) if is_odd(y)]


@in_loop
async def test_streams_are_awaitables_for_asyncio_too() -> None:
    squares, evens = pmap(square, range(5), kind="thread"), pfilter(suited(is_odd, "task"), range(5))
    assert await asyncio.gather(squares, evens) == [[0, 1, 4, 9, 16], [1, 3]]
    assert await asyncio.wait_for(pmap(square_async, range(3)), 30) == [0, 1, 4]


@in_loop
async def test_streams_interleave_on_one_loop() -> None:
    async def total(kind: str) -> int:
        return sum([y async for y in pmap(suited(square, kind), range(100), kind=kind, workers=2)])

    kinds = [kind for kind in KINDS for _ in range(3)]
    assert await asyncio.gather(*map(total, kinds)) == [sum(map(square, range(100)))] * len(kinds)


@in_loop
async def test_two_streams_taken_in_turns() -> None:
    left = pmap(square_async, itertools.count())
    right = pmap(square, itertools.count(), kind="thread")
    async with aclosing(left), aclosing(right):
        assert [await anext(stream) for _ in range(5) for stream in (left, right)] == [
            0,
            0,
            1,
            1,
            4,
            4,
            9,
            9,
            16,
            16,
        ]


@in_loop
async def test_two_tasks_on_one_stream_lose_nothing() -> None:
    """Each output goes to one of them, or the second is told off; never the same output to both."""
    stream = pmap(square_async, range(200), workers=4)

    async def consume() -> list[int]:
        return [y async for y in stream]

    taken = await asyncio.gather(consume(), consume(), return_exceptions=True)
    outputs = sorted(y for ys in taken if isinstance(ys, list) for y in ys)
    refused = [error for error in taken if isinstance(error, BaseException)]
    assert outputs == [x * x for x in range(200)]
    assert not refused or (len(refused) == 1 and isinstance(refused[0], RuntimeError))


@in_loop
async def test_nothing_starts_before_the_first_output_is_asked_for(kind: str) -> None:
    source = Source(range(3))
    threads = threading.active_count()
    stream = aiter(pmap(suited(square, kind), source, kind=kind))
    await turns(10)
    assert not source.pulled
    assert not other_tasks()
    assert threading.active_count() == threads
    assert await anext(stream) == 0
    await stream.aclose()


@in_loop
async def test_an_output_that_is_waited_for_comes_though_nothing_else_holds_the_stream(kind: str) -> None:
    assert await anext(pmap(suited(square, kind), itertools.count(2), kind=kind, workers=2)) == 4
    await eventually(lambda: not other_tasks())


@in_loop
async def test_a_stream_is_an_async_generator(kind: str) -> None:
    source = Source(itertools.count())
    stream = pmap(suited(square, kind), source, kind=kind, workers=2)
    assert isinstance(stream, Stream)
    assert isinstance(stream, AsyncGenerator)
    assert aiter(stream) is stream
    assert await anext(stream) == 0
    with pytest.raises(Boom, match="thrown in"):
        await stream.athrow(Boom("thrown in"))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await eventually(source.closed.is_set)


@in_every_loop
async def test_aclose_in_the_middle_closes_the_source_where_it_was_iterated(kind: str) -> None:
    source = Source(itertools.count())
    stream = pmap(suited(square, kind), source, kind=kind, workers=2)
    assert [await anext(stream) for _ in range(3)] == [0, 1, 4]
    await stream.aclose()
    assert not other_tasks()
    await eventually(source.closed.is_set)
    assert closed_where_pulled(source)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await stream.aclose()


@in_loop
async def test_aclose_before_the_start_and_after_the_end(kind: str) -> None:
    source = Source(range(3))
    unused = pmap(suited(square, kind), source, kind=kind)
    await unused.aclose()
    assert [y async for y in unused] == []
    assert not source.pulled

    used = pmap(suited(square, kind), source, kind=kind)
    assert await used == [0, 1, 4]
    await used.aclose()
    assert [y async for y in used] == []
    assert closed_where_pulled(source)


@in_loop
async def test_a_plain_with_block_closes_too(kind: str) -> None:
    """It cannot wait for tasks of the loop that it blocks, and does not try."""
    source = Source(itertools.count())
    with pmap(suited(square, kind), source, kind=kind, workers=2) as stream:
        assert await anext(stream) == 0
        begin = time.monotonic()
    assert time.monotonic() - begin < 3
    await eventually(lambda: source.closed.is_set() and not other_tasks())


@in_every_loop
async def test_an_output_does_not_wait_for_the_source(concurrent_kind: str) -> None:
    """The source goes on only when the loop, having seen the output, lets it."""
    seen = [threading.Event() for _ in range(3)]

    def source() -> Iterator[int]:
        for x, event in enumerate(seen):
            yield x
            wait_until(event.is_set)

    async for y in pmap(suited(square, concurrent_kind), source(), kind=concurrent_kind, workers=2):
        seen[[0, 1, 4].index(y)].set()
    assert all(event.is_set() for event in seen)


@pytest.mark.parametrize("maxsize", [1, 3])
@in_loop
async def test_maxsize_is_never_exceeded(concurrent_kind: str, maxsize: int) -> None:
    source = Source(range(30))
    stream = pmap(suited(square, concurrent_kind), source, kind=concurrent_kind, workers=2, maxsize=maxsize)
    given = 0
    async for _ in stream:
        given += 1
        await asyncio.sleep(0.001)
        assert source.pulled - given <= maxsize
    assert given == 30


@in_loop
async def test_a_slow_consumer_does_not_make_the_default_window_grow() -> None:
    source = Source(itertools.count())
    async with aclosing(pmap(square_async, source, workers=2)) as stream:
        for given in range(1, 100):
            await anext(stream)
            await turns(20)
            assert source.pulled - given <= 256


@in_loop
async def test_ordered_restores_the_order_of_the_source(kind: str) -> None:
    stream = pipe(
        range(100),
        pmap(suited(square, kind), kind=kind, workers=3, ordered=False),
        pflat_map(lambda x: [x, -x], kind="thread", ordered=False),
        ordered,
    )
    assert await stream == [y for x in range(100) for y in (x * x, -x * x)]


@in_every_loop
async def test_merge_gives_the_outputs_of_all() -> None:
    async def letters() -> AsyncGenerator[str, None]:
        for letter in "ab":
            yield letter

    merged = merge(letters(), pmap(square, range(3), kind="process"), pmap(square_async, [5]), ["z"])
    assert sorted([y async for y in merged], key=str) == [0, 1, 25, 4, "a", "b", "z"]


@in_loop
async def test_merge_gives_what_is_there_while_another_source_waits() -> None:
    go_on = asyncio.Event()

    async def waiting() -> AsyncGenerator[str, None]:
        await go_on.wait()
        yield "late"

    outputs = []
    async for y in merge(waiting(), pmap(square, range(2), kind="thread")):
        outputs.append(y)
        if len(outputs) == 2:
            go_on.set()
    assert outputs == [0, 1, "late"]


def test_a_stream_that_one_loop_left_does_not_hang_in_another(kind: str) -> None:
    stream = pmap(suited(square, kind), itertools.count(), kind=kind, workers=2)
    assert run_strictly(stream.__anext__, unfinished=True) == 0

    async def go_on() -> None:
        with pytest.raises((StopAsyncIteration, RuntimeError)):
            while True:
                await anext(stream)

    if kind != "task":
        run_strictly(stream.aclose)
    run_strictly(go_on)
    stream.close()


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_close_in_the_body_of_the_loop_ends_it_with_no_more_outputs(kind: str, is_elsewhere: bool) -> None:
    async def main() -> list[int]:
        outputs = []
        stream = pmap(suited(square, kind), range(1000), kind=kind)
        async for output in stream:
            outputs.append(output)
            if len(outputs) < 4:
                await asyncio.sleep(0.01)  # so that more is there, in the hands of the loop and not
            elif is_elsewhere:
                await asyncio.to_thread(stream.close)
            else:
                stream.close()
        return outputs

    assert run_strictly(main) == [0, 1, 4, 9]


# The loop is not blocked.


async def open_after_some_beats(gate: Gate) -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)
    gate.open()


@in_every_loop
async def test_the_loop_runs_while_f_waits(concurrent_kind: str, gate: Gate) -> None:
    """All workers wait at a gate that only a heartbeat of this very loop opens."""
    heartbeat = asyncio.create_task(open_after_some_beats(gate))
    f = holding(concurrent_kind, dict.fromkeys(range(3), gate))
    assert await pmap(f, range(3), kind=concurrent_kind, workers=2) == [0, 1, 2]
    await heartbeat


@in_every_loop
async def test_the_loop_runs_while_the_source_waits(concurrent_kind: str, gate: Gate) -> None:
    heartbeat = asyncio.create_task(open_after_some_beats(gate))
    source = map(holding("sync", {1: gate}), range(3))
    assert await pmap(suited(square, concurrent_kind), source, kind=concurrent_kind, workers=2) == [0, 1, 4]
    await heartbeat


@pytest.mark.parametrize("kind", ["thread", "process"])
@in_loop
async def test_aclose_leaves_busy_workers(kind: str, gate: Gate, log: Log) -> None:
    """It ends although f waits at a gate that is opened only afterwards."""
    stream = pmap(holding(kind, {1: gate}, log), range(3), kind=kind, workers=1)
    assert await anext(stream) == 0
    await asyncio.to_thread(log.wait_for, ("start", 1))
    await stream.aclose()
    assert ("end", 1) not in log.entries()


def spin(x: int) -> int:
    """Keep a processor busy for some milliseconds."""
    return x + 0 * sum(range(200_000))


async def rest(x: int) -> int:
    await asyncio.sleep(0.005)
    return x


async def longest_gap(beside: asyncio.Task[Any]) -> float:
    """The longest time between two beats of a heart that beats every 5 ms until *beside* is done."""
    gaps, last = [0.0], time.monotonic()
    while not beside.done():
        await asyncio.sleep(0.005)
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
    return max(gaps)


@pytest.mark.parametrize(("kind", "f"), [("thread", spin), ("process", spin), ("task", rest)])
@in_every_loop
async def test_a_heartbeat_keeps_its_rhythm(kind: str, f: Callable[[int], Any]) -> None:
    async def consume() -> list[int]:
        return [y async for y in pmap(f, range(100), kind=kind, workers=2)]

    consumer = asyncio.create_task(consume())
    gap = await longest_gap(consumer)
    assert await consumer == list(range(100))
    assert gap < 1.0


class AlwaysReady:
    """The consumer's buffer, which has outputs at once, each time 10 ms later."""

    def __init__(self) -> None:
        self.clock = itertools.count(0.0, 0.01).__next__
        self.came = 0.0

    def release_taken(self) -> None:
        self.came = self.clock()

    def ready(self) -> bool:
        return True

    def take(self) -> list[int]:
        return [1]


def test_a_consumer_that_finds_outputs_at_once_leaves_others_their_turns():
    async def main() -> int:
        count = 0

        async def other() -> None:
            nonlocal count
            while True:
                count += 1
                await asyncio.sleep(0)

        outlet: Any = AlwaysReady()
        run: Any = SimpleNamespace(
            pid=os.getpid(), lock=threading.RLock(), clock=outlet.clock, settle=lambda: None, outlet=outlet
        )
        queue = TaskQueue(outlet, run.lock, run.settle)
        beside = asyncio.create_task(other())
        for _ in range(10):
            assert await take_outputs(run, queue) == [1]
        beside.cancel()
        return count

    assert asyncio.run(main()) >= 5


@in_every_loop
async def test_cheap_outputs_do_not_keep_the_loop_to_themselves(concurrent_kind: str) -> None:
    """Outputs that are always there, and coroutines that never wait, still leave others their turns."""

    async def at_once(x: int) -> int:
        return x

    async def consume() -> int:
        f = at_once if concurrent_kind == "task" else abs
        total = 0
        async for y in pmap(f, range(3_000_000), kind=concurrent_kind, workers=2, maxsize=0):
            total += y
        return total

    begin = time.monotonic()
    consumer = asyncio.create_task(consume())
    gap = await longest_gap(consumer)
    assert await consumer == sum(range(3_000_000))
    assert gap < (time.monotonic() - begin) / 2
