"""Stages of kind "sync", and the lock of a stream: in long rows, interrupted."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from fstream import Stream, pmap
from fstream._workers.sync import iterate
from tests.functions import identity
from tests.gates import PATIENCE, Gate, Log, holding
from tests.loops import run_strictly


async def outputs_of(stream: Any) -> list[Any]:
    return [output async for output in stream]


@pytest.mark.parametrize(
    "take", [list, lambda stream: asyncio.run(outputs_of(stream))], ids=["for", "async for"]
)
def test_a_row_of_sync_stages_too_long_for_python_is_an_error_that_names_their_number(take: Any):
    number = sys.getrecursionlimit() + 1
    stream: Any = range(3)
    for _ in range(number):
        stream = pmap(abs, stream, kind="sync")
    with pytest.raises(RecursionError, match=f"^{number} stages of kind 'sync' in a row.* {number - 1};"):
        take(stream)
    del stream


def test_an_endless_recursion_of_the_source_is_said_as_it_is():
    def endless() -> Iterator[int]:
        yield from endless()

    with pytest.raises(RecursionError, match="maximum recursion depth"):
        list(pmap(abs, endless(), kind="sync"))


class Interrupting:
    """A lock, behind whose taking a signal handler raises once, as may happen from Python 3.14 on.

    It raises in the main thread, as handlers do: other threads want the lock, too.
    """

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.armed = True

    def __enter__(self) -> None:
        self.lock.acquire()
        if self.armed and threading.current_thread() is threading.main_thread():
            self.armed = False
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)


@pytest.mark.parametrize("kind", ["sync", "thread", "task"])
def test_an_interrupt_behind_the_taking_of_a_streams_lock_ends_it_and_leaves_the_lock_free(kind: Any):
    stream: Stream[int] = pmap(abs, count(), kind=kind)
    assert next(stream) == 0
    stream._outputs.lock = Interrupting(stream._outputs.lock)  # type: ignore[assignment]
    if kind != "sync":
        with pytest.raises(KeyboardInterrupt):
            while True:
                next(stream)
    ended = []

    def take() -> None:
        stream.close()
        try:
            stream.send(None)
        except (StopIteration, KeyboardInterrupt):
            ended.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert ended


def test_an_interrupt_behind_the_taking_of_the_lock_of_all_streams_leaves_it_free(
    monkeypatch: pytest.MonkeyPatch,
):
    lock = Interrupting(threading.RLock())
    monkeypatch.setattr("fstream.stream._LINKING", lock)
    with pytest.raises(KeyboardInterrupt):
        list(pmap(abs, range(3), kind="thread"))
    outputs: list[int] = []
    thread = threading.Thread(target=lambda: outputs.extend(pmap(abs, range(3), kind="thread")), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert outputs == [0, 1, 2]


# ------------------------------------------------------------------------------------- closed in the middle of f


@pytest.mark.parametrize("under", ["for", "async for"])
@pytest.mark.parametrize("where", ["f", "source"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_stream_that_is_closed_while_f_or_the_source_is_at_work_ends_with_that_item(
    under: str, where: str, behind: bool
):
    def source() -> Iterator[int]:
        try:
            for number in count():
                if (where, number) == ("source", 3):
                    stream.close()
                yield number
        finally:
            closed.append(True)

    def f(number: int) -> int:
        if (where, number) == ("f", 3):
            stream.close()
        return number

    async def taken() -> list[int]:
        return [output async for output in stream]

    closed: list[bool] = []
    stream = pmap(f, source(), kind="sync")
    if behind:
        stream = pmap(identity, stream, kind="sync")
    assert (list(stream) if under == "for" else asyncio.run(taken())) == [0, 1, 2, 3]
    assert closed == [True]


@pytest.mark.parametrize("options", [{"retries": 1, "backoff": 0}, {"on_error": lambda error, item: "again"}])
def test_what_a_signal_handler_raises_behind_an_output_is_no_error_of_f(options: Any):
    def tracer(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is not iterate.__code__:
            return None
        if event == "line" and len(given) == 5:  # it goes on behind the yield
            raise TimeoutError("of an alarm")
        return tracer

    given: list[Any] = []
    stream = pmap(identity, range(8), kind="sync", **options)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.raises(TimeoutError, match="of an alarm"):
            for output in stream:
                given.append(output)
    finally:
        sys.settrace(before)
    assert given == [0, 1, 2, 3, 4]


def test_an_interrupt_behind_the_taking_of_a_runs_lock_leaves_it_free():
    stream: Stream[int] = pmap(abs, count(), kind="thread")
    assert next(stream) == 0
    run = stream._outputs.run
    assert run is not None
    lock, run.lock = run.lock, Interrupting(run.lock)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        run.consumer_queue()
    run.lock = lock
    assert not lock._is_owned()  # type: ignore[attr-defined]
    stream.close()


def test_a_close_meanwhile_does_not_end_twice_what_an_async_for_takes(gate: Gate, log: Log):
    async def main() -> None:
        stream = pmap(identity, pmap(holding("thread", {1: gate}, log), count(), kind="thread"), kind="sync")
        assert await anext(stream) == 0
        task = asyncio.create_task(stream.__anext__())
        await asyncio.sleep(0)
        log.wait_for(("start", 1))
        stream.close()  # the thread at work is waited for, so what wakes the task and what closes it come together
        with pytest.raises(StopAsyncIteration):
            await task

    run_strictly(main)
    gate.open()
