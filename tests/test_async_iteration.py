"""`async for`, `await` and `aclose`, for every kind and for kinds in a row."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from toolz import pipe

from fstream import Stream, merge, ordered, peach, pfilter, pflat_map, pmap
from tests.loops import (
    CONCURRENT,
    KINDS,
    Boom,
    SyncSource,
    eventually,
    for_kind,
    in_every_loop,
    in_loop,
    is_even,
    other_tasks,
    run_strictly,
    square,
    turns,
    twice,
    wait_until,
)

COMBINATORS = [
    pytest.param(pmap, square, [0, 1, 4, 9, 16], id="pmap"),
    pytest.param(pfilter, is_even, [0, 2, 4], id="pfilter"),
    pytest.param(pflat_map, twice, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], id="pflat_map"),
    pytest.param(peach, square, [], id="peach"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("combinator", "f", "outputs"), COMBINATORS)
@in_every_loop
async def test_async_for_gives_the_outputs_in_order(
    combinator: Any, f: Callable[[int], Any], outputs: list[int], kind: str
) -> None:
    stream = combinator(for_kind(f, kind), range(5), kind=kind, workers=2)
    assert [y async for y in stream] == outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("combinator", "f", "outputs"), COMBINATORS)
@in_every_loop
async def test_await_gives_the_list(
    combinator: Any, f: Callable[[int], Any], outputs: list[int], kind: str
) -> None:
    assert await combinator(for_kind(f, kind), range(5), kind=kind, workers=2) == outputs


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_unordered_outputs_are_the_same_multiset(kind: str) -> None:
    outputs = await pmap(for_kind(square, kind), range(50), kind=kind, workers=3, ordered=False)
    assert sorted(outputs) == list(map(square, range(50)))


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_an_empty_source_gives_nothing(kind: str) -> None:
    assert await pmap(for_kind(square, kind), [], kind=kind) == []


@pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))
@in_loop
async def test_every_kind_next_to_every_kind(first: str, second: str) -> None:
    stream = pipe(
        range(40),
        pmap(for_kind(square, first), kind=first, workers=2),
        pfilter(for_kind(is_even, second), kind=second, workers=2),
    )
    assert [y async for y in stream] == [x * x for x in range(0, 40, 2)]


@in_every_loop
async def test_four_kinds_in_a_row() -> None:
    stream = pipe(
        range(30),
        pmap(square, kind="thread"),
        pflat_map(twice, kind="process", workers=2),
        pmap(for_kind(square, "task")),
        pfilter(is_even, kind="sync"),
    )
    assert await stream == [x**4 for x in range(0, 30, 2) for _ in "ab"]


@in_loop
async def test_streams_are_awaitables_for_asyncio_too() -> None:
    squares, evens = pmap(square, range(5), kind="thread"), pfilter(for_kind(is_even, "task"), range(5))
    assert await asyncio.gather(squares, evens) == [[0, 1, 4, 9, 16], [0, 2, 4]]
    assert await asyncio.wait_for(pmap(for_kind(square, "task"), range(3)), 30) == [0, 1, 4]


@in_loop
async def test_streams_interleave_on_one_loop() -> None:
    async def total(kind: str) -> int:
        return sum([y async for y in pmap(for_kind(square, kind), range(100), kind=kind, workers=2)])

    kinds = [kind for kind in KINDS for _ in range(3)]
    assert await asyncio.gather(*map(total, kinds)) == [sum(map(square, range(100)))] * len(kinds)


@in_loop
async def test_two_streams_taken_in_turns() -> None:
    left = pmap(for_kind(square, "task"), itertools.count())
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
    stream = pmap(for_kind(square, "task"), range(200), workers=4)

    async def consume() -> list[int]:
        return [y async for y in stream]

    taken = await asyncio.gather(consume(), consume(), return_exceptions=True)
    outputs = sorted(y for ys in taken if isinstance(ys, list) for y in ys)
    refused = [error for error in taken if isinstance(error, BaseException)]
    assert outputs == [x * x for x in range(200)]
    assert not refused or (len(refused) == 1 and isinstance(refused[0], RuntimeError))


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_nothing_starts_before_the_first_output_is_asked_for(kind: str) -> None:
    source = SyncSource(range(3))
    threads = threading.active_count()
    stream = aiter(pmap(for_kind(square, kind), source, kind=kind))
    await turns(10)
    assert not source.opened
    assert not other_tasks()
    assert threading.active_count() == threads
    assert await anext(stream) == 0
    await stream.aclose()


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_a_stream_is_an_async_generator(kind: str) -> None:
    source = SyncSource(itertools.count())
    stream = pmap(for_kind(square, kind), source, kind=kind, workers=2)
    assert isinstance(stream, Stream)
    assert isinstance(stream, AsyncGenerator)
    assert aiter(stream) is stream
    assert await anext(stream) == 0
    with pytest.raises(Boom, match="thrown in"):
        await stream.athrow(Boom("thrown in"))
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await eventually(lambda: source.closed)


@pytest.mark.parametrize("kind", KINDS)
@in_every_loop
async def test_aclose_in_the_middle_closes_the_source_where_it_was_iterated(kind: str) -> None:
    source = SyncSource(itertools.count())
    stream = pmap(for_kind(square, kind), source, kind=kind, workers=2)
    assert [await anext(stream) for _ in range(3)] == [0, 1, 4]
    await stream.aclose()
    assert not other_tasks()
    await eventually(lambda: source.closed)
    assert source.closed == source.opened
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await stream.aclose()


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_aclose_before_the_start_and_after_the_end(kind: str) -> None:
    source = SyncSource(range(3))
    unused = pmap(for_kind(square, kind), source, kind=kind)
    await unused.aclose()
    assert [y async for y in unused] == []
    assert not source.opened

    used = pmap(for_kind(square, kind), source, kind=kind)
    assert await used == [0, 1, 4]
    await used.aclose()
    assert [y async for y in used] == []
    assert source.closed == source.opened


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_a_plain_with_block_closes_too(kind: str) -> None:
    source = SyncSource(itertools.count())
    with pmap(for_kind(square, kind), source, kind=kind, workers=2) as stream:
        assert await anext(stream) == 0
    await eventually(lambda: source.closed and not other_tasks())


@pytest.mark.parametrize("kind", CONCURRENT)
@in_every_loop
async def test_an_output_does_not_wait_for_the_source(kind: str) -> None:
    """The source goes on only when the loop, having seen the output, lets it."""
    seen = [threading.Event() for _ in range(3)]

    def source() -> Iterator[int]:
        for x, event in enumerate(seen):
            yield x
            wait_until(event.is_set)

    async for y in pmap(for_kind(square, kind), source(), kind=kind, workers=2):
        seen[[0, 1, 4].index(y)].set()
    assert all(event.is_set() for event in seen)


@pytest.mark.parametrize("kind", CONCURRENT)
@pytest.mark.parametrize("maxsize", [1, 3])
@in_loop
async def test_maxsize_is_never_exceeded(kind: str, maxsize: int) -> None:
    source = SyncSource(range(30))
    stream = pmap(for_kind(square, kind), source, kind=kind, workers=2, maxsize=maxsize)
    given = 0
    async for _ in stream:
        given += 1
        await asyncio.sleep(0.001)
        assert source.pulled - given <= maxsize
    assert given == 30


@in_loop
async def test_a_slow_consumer_does_not_make_the_default_window_grow() -> None:
    source = SyncSource(itertools.count())
    async with aclosing(pmap(for_kind(square, "task"), source, workers=2)) as stream:
        for given in range(1, 100):
            await anext(stream)
            await turns(20)
            assert source.pulled - given <= 256


@pytest.mark.parametrize("kind", KINDS)
@in_loop
async def test_ordered_restores_the_order_of_the_source(kind: str) -> None:
    stream = pipe(
        range(100),
        pmap(for_kind(square, kind), kind=kind, workers=3, ordered=False),
        pflat_map(twice, kind="thread", ordered=False),
        ordered,
    )
    assert await stream == [x * x for x in range(100) for _ in "ab"]


@in_every_loop
async def test_merge_gives_the_outputs_of_all() -> None:
    async def letters() -> AsyncGenerator[str, None]:
        for letter in "ab":
            yield letter

    merged = merge(
        letters(), pmap(square, range(3), kind="process"), pmap(for_kind(square, "task"), [5]), ["z"]
    )
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_one_loop_left_does_not_hang_in_another(kind: str) -> None:
    stream = pmap(for_kind(square, kind), itertools.count(), kind=kind, workers=2)
    assert run_strictly(stream.__anext__, unfinished=True) == 0

    async def go_on() -> None:
        with pytest.raises((StopAsyncIteration, RuntimeError)):
            while True:
                await anext(stream)

    if kind != "task":
        run_strictly(stream.aclose)
    run_strictly(go_on)
    stream.close()


# The loop is not blocked.


def wait_for(gate: Path, x: int) -> int:
    wait_until(gate.exists)
    return x


async def wait_for_on_task(gate: Path, x: int) -> int:
    await eventually(gate.exists)
    return x


async def open_after_some_beats(gate: Path) -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)
    gate.touch()


@pytest.mark.parametrize("kind", CONCURRENT)
@in_every_loop
async def test_the_loop_runs_while_f_waits(kind: str, tmp_path: Path) -> None:
    """All workers wait for a gate that only a heartbeat of this very loop opens."""
    gate = tmp_path / "gate"
    f = functools.partial(wait_for_on_task if kind == "task" else wait_for, gate)
    heartbeat = asyncio.create_task(open_after_some_beats(gate))
    assert await pmap(f, range(3), kind=kind, workers=2) == [0, 1, 2]
    await heartbeat


@pytest.mark.parametrize("kind", CONCURRENT)
@in_every_loop
async def test_the_loop_runs_while_the_source_waits(kind: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    source = (wait_for(gate, x) for x in range(3))
    heartbeat = asyncio.create_task(open_after_some_beats(gate))
    assert await pmap(for_kind(square, kind), source, kind=kind, workers=2) == [0, 1, 4]
    await heartbeat


@pytest.mark.parametrize("kind", ["thread", "process"])
@in_loop
async def test_the_loop_runs_while_aclose_leaves_busy_workers(kind: str, tmp_path: Path) -> None:
    """`aclose` ends although f waits for a gate that is opened only afterwards."""
    gate = tmp_path / "gate"
    stream = pmap(functools.partial(wait_for, gate), range(3), kind=kind, workers=2)
    first = asyncio.create_task(stream.__anext__())
    await turns(20)
    first.cancel()
    await asyncio.wait([first])
    await stream.aclose()
    assert not gate.exists()
    gate.touch()


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


@pytest.mark.parametrize("kind", CONCURRENT)
@in_every_loop
async def test_cheap_outputs_do_not_keep_the_loop_to_themselves(kind: str) -> None:
    """Outputs that are always there, and coroutines that never wait, still leave others their turns."""

    async def at_once(x: int) -> int:
        return x

    async def consume() -> int:
        f = at_once if kind == "task" else abs
        total = 0
        async for y in pmap(f, range(1_000_000), kind=kind, workers=2, maxsize=0):
            total += y
        return total

    begin = time.monotonic()
    consumer = asyncio.create_task(consume())
    gap = await longest_gap(consumer)
    assert await consumer == sum(range(1_000_000))
    assert gap < (time.monotonic() - begin) / 2
