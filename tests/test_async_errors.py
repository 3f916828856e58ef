"""Errors in async pipelines: structured, with f's line, after the outputs that come first, and never a hang."""

from __future__ import annotations

import asyncio
import functools
import itertools
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from toolz import pipe

from fstream import peach, pfilter, pflat_map, pmap
from tests.functions import square, suited
from tests.loops import (
    AsyncSource,
    Boom,
    Holding,
    eventually,
    in_every_loop,
    in_loop,
    no_complaints,
    other_tasks,
    turns,
    wait_until,
)


def boom_at_three(x: int) -> int:
    if x == 3:
        raise Boom("at", 3)
    return x * x


def lines_of(error: BaseException) -> list[str | None]:
    return [frame.line for frame in traceback.extract_tb(error.__traceback__)]


@in_every_loop
async def test_outputs_before_the_failed_item_come_first(kind: str) -> None:
    source = AsyncSource(itertools.count())
    stream = pmap(suited(boom_at_three, kind), source, kind=kind, workers=2)
    outputs = []
    with pytest.raises(Boom) as caught:
        async for y in stream:
            outputs.append(y)
    assert outputs == [0, 1, 4]
    assert caught.value.args == ("at", 3)
    assert any("boom_at_three" in note and "3" in note for note in caught.value.__notes__)
    assert source.closed_in is asyncio.get_running_loop()
    assert not other_tasks()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


@in_loop
async def test_await_raises_it_too(kind: str) -> None:
    with pytest.raises(Boom, match="3"):
        await pmap(suited(boom_at_three, kind), range(10), kind=kind, workers=2)


class Siblings:
    """A coroutine function for which item 0 fails when all the other workers are held."""

    def __init__(self, workers: int) -> None:
        self.others = Holding(first=1, workers=workers - 1)

    async def __call__(self, x: int) -> int:
        if x == 0:
            await self.others.full.wait()
            raise Boom("first of all")
        return await self.others(x)


@in_every_loop
async def test_an_error_cancels_the_siblings_before_it_reaches_the_consumer() -> None:
    f = Siblings(5)
    stream = pmap(f, itertools.count(), kind="task", workers=5)
    with pytest.raises(Boom) as caught:
        await anext(stream)
    f.others.check()
    assert not other_tasks()
    assert 'raise Boom("first of all")' in lines_of(caught.value)


def test_so_it_does_in_sync_iteration() -> None:
    f = Siblings(5)
    with no_complaints():
        stream = pmap(f, itertools.count(), kind="task", workers=5)
        with pytest.raises(Boom) as caught:
            next(stream)
    f.others.check()
    assert 'raise Boom("first of all")' in lines_of(caught.value)


def boom_behind(gate: Path, x: int) -> int:
    if x == 3:
        wait_until(gate.exists)
    return boom_at_three(x)


async def boom_behind_on_task(gate: Path, x: int) -> int:
    if x == 3:
        await eventually(gate.exists)
    return boom_at_three(x)


@in_loop
async def test_an_error_of_one_stage_cancels_the_tasks_of_the_others(
    concurrent_kind: str, tmp_path: Path
) -> None:
    """Item 3 fails in the second stage once both workers of the first hold an item."""
    holding, gate = Holding(first=4, workers=2), tmp_path / "gate"
    f = functools.partial(boom_behind_on_task if concurrent_kind == "task" else boom_behind, gate)
    stream = pipe(
        AsyncSource(itertools.count()),
        pmap(holding, kind="task", workers=2),
        pmap(f, kind=concurrent_kind, workers=1),
    )

    async def open_gate() -> None:
        await holding.full.wait()
        gate.touch()

    opening = asyncio.create_task(open_gate())
    outputs = []
    with pytest.raises(Boom):
        async for y in stream:
            outputs.append(y)
    await opening
    assert outputs == [0, 1, 4]
    holding.check()
    assert not other_tasks()


@in_every_loop
async def test_when_all_fail_at_once_the_first_in_order_is_raised() -> None:
    gate, inside = asyncio.Event(), itertools.count(1)

    async def f(x: int) -> int:
        if next(inside) == 4:
            gate.set()
        await gate.wait()
        raise Boom(x)

    with pytest.raises(Boom) as caught:
        await pmap(f, range(4), workers=4)
    assert caught.value.args == (0,)


@in_loop
async def test_after_an_error_no_new_item_is_started() -> None:
    started = []

    async def f(x: int) -> int:
        started.append(x)
        await asyncio.sleep(0)
        if x == 3:
            raise Boom(x)
        return x

    with pytest.raises(Boom):
        await pmap(f, itertools.count(), workers=2)
    count = len(started)
    await turns(50)
    assert len(started) == count


@pytest.mark.parametrize("kind", ["sync", "thread", "task"])
@in_every_loop
async def test_the_traceback_shows_f_s_line(kind: str) -> None:
    with pytest.raises(Boom) as caught:
        await pmap(suited(boom_at_three, kind), range(10), kind=kind, workers=2)
    assert 'raise Boom("at", 3)' in lines_of(caught.value)


@in_loop
async def test_the_cause_shows_f_s_line_in_a_process() -> None:
    with pytest.raises(Boom) as caught:
        await pmap(boom_at_three, range(10), kind="process", workers=2)
    assert 'raise Boom("at", 3)' in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("kind", ["thread", "task"])
@in_loop
async def test_the_very_exception_is_raised(kind: str) -> None:
    error = Boom("this one")

    def f(x: int) -> int:
        raise error

    with pytest.raises(Boom) as caught:
        await pmap(suited(f, kind), range(3), kind=kind, workers=2)
    assert caught.value is error


@pytest.mark.parametrize("error", [StopAsyncIteration, StopIteration])
@in_loop
async def test_no_error_of_f_passes_for_the_end(kind: str, error: type[Exception]) -> None:
    """A StopAsyncIteration would end an `async for` as a StopIteration ends a `for`."""

    def stops(x: int) -> int:
        raise error(x)

    with pytest.raises(RuntimeError):
        await pmap(suited(stops, kind), range(3), kind=kind, workers=2)


@pytest.mark.parametrize("verb", [pmap, pfilter, pflat_map, peach])
@pytest.mark.parametrize("is_coroutine_function", [True, False])
@in_loop
async def test_a_stop_iteration_out_of_a_task_names_f(verb: Any, is_coroutine_function: bool) -> None:
    def stops(x: int) -> Any:
        raise StopIteration(x)

    async def stops_too(x: int) -> Any:
        raise StopIteration(x)

    f = stops_too if is_coroutine_function else stops
    with pytest.raises(RuntimeError) as caught:
        await verb(f, range(3), kind="task", workers=2)
    assert str(caught.value) == f"{f.__name__} raised StopIteration"
    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.parametrize("again", ["succeeds", "raises"])
@pytest.mark.parametrize("retries", [1, 2])
@in_loop
async def test_what_f_makes_of_its_time_out_is_nobody_s_failure(again: str, retries: int) -> None:
    """The item is tried on another worker by then."""
    tries: list[int] = []

    async def f(x: int) -> int:
        tries.append(x)
        if tries.count(1) == 1 and x == 1:
            try:
                await asyncio.Event().wait()
            finally:
                raise Boom("closing failed")
        if x == 1 and again == "raises":
            raise Boom("tried again")
        return x

    stream = pmap(f, range(3), kind="task", workers=2, timeout=0.2, retries=retries, backoff=0)
    if again == "raises":
        with pytest.raises(Boom, match="tried again"):
            await stream
        assert tries.count(1) == 1 + retries
    else:
        assert await stream == [0, 1, 2]
        assert tries.count(1) == 2


async def wait_for_cancelled_future(x: int) -> int:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.cancel()
    return await future


def cancels(x: int) -> int:
    raise asyncio.CancelledError(x)


CANCELLED_IN_F = pytest.mark.parametrize(
    ("f", "kind"), [(wait_for_cancelled_future, "task"), (cancels, "thread")]
)


@CANCELLED_IN_F
@in_loop
async def test_a_cancelled_error_of_f_reaches_the_consumer(f: Callable[[int], Any], kind: str) -> None:
    """f awaits what someone else cancelled: that is f's error, not the end of its worker."""
    with pytest.raises(asyncio.CancelledError):
        await pmap(f, range(3), kind=kind, workers=2)
    assert not other_tasks()


@CANCELLED_IN_F
def test_a_cancelled_error_of_f_reaches_a_sync_consumer(f: Callable[[int], Any], kind: str) -> None:
    with no_complaints(), pytest.raises(asyncio.CancelledError):
        list(pmap(f, range(3), kind=kind, workers=2))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exits_of_f_reach_the_caller_of_the_loop(concurrent_kind: str, error: type[BaseException]) -> None:
    def leave(x: int) -> int:
        raise error(3)

    async def main() -> None:
        await pmap(suited(leave, concurrent_kind), range(3), kind=concurrent_kind, workers=2)

    with pytest.raises(error) as caught:
        asyncio.run(main())
    assert caught.value.args == (3,)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exits_of_a_task_reach_a_sync_consumer(error: type[BaseException]) -> None:
    async def leave(x: int) -> int:
        await asyncio.sleep(0)
        raise error(3)

    with no_complaints(), pytest.raises(error) as caught:
        list(pmap(leave, range(3), workers=2))
    assert caught.value.args == (3,)


@in_loop
async def test_an_error_in_an_async_source_closes_everything(kind: str) -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise Boom("source")

    outputs = []
    with pytest.raises(Boom, match="source"):
        async for y in pmap(suited(square, kind), failing(), kind=kind, workers=2):
            outputs.append(y)
    assert outputs == [1, 4]
    assert not other_tasks()


@in_loop
async def test_an_error_in_the_source_cancels_nobody_whose_output_is_due() -> None:
    """Items that were pulled before the source failed are finished and given out first."""
    go_on = asyncio.Event()

    async def failing() -> AsyncIterator[int]:
        yield 1
        yield 2
        go_on.set()
        raise Boom("source")

    async def f(x: int) -> int:
        await go_on.wait()
        await turns(10)
        return x * x

    outputs = []
    with pytest.raises(Boom, match="source"):
        async for y in pmap(f, failing(), workers=2):
            outputs.append(y)
    assert outputs == [1, 4]


@in_loop
async def test_the_next_pipeline_is_not_poisoned() -> None:
    transformer = pmap(suited(boom_at_three, "task"), workers=2)
    for _ in range(3):
        with pytest.raises(Boom):
            await pipe(range(10), transformer, pmap(square, kind="process", workers=1))
        assert await transformer(range(3)) == [0, 1, 4]
