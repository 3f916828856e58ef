"""drain(within=SECONDS): what was begun goes on for so long, and then the stream is closed."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from fstream import Stream, merge, pmap
from fstream._engine.run import Run
from fstream.testing import simulated
from tests.functions import identity, square, suited
from tests.gates import PATIENCE, Clock, Gate, Log, holding

SOON = 0.05  # seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(0.0)
    monkeypatch.setattr(Run, "clock", staticmethod(clock))
    return clock


def run_of(stream: Any) -> Run:
    run = stream._outputs.run
    assert isinstance(run, Run)
    return run


def in_a_thread(stream: Stream[Any], given: list[Any]) -> threading.Thread:
    """A consumer of *stream* that waits already, or will."""
    consumer = threading.Thread(target=lambda: given.extend(stream), daemon=True)
    consumer.start()
    return consumer


def failing(number: int) -> int:
    raise ValueError(number)


# --------------------------------------------------------------------------------------------------- for a while


def test_what_is_at_work_is_cut_off_when_the_time_is_up(concurrent_kind: str, gate: Gate, log: Log):
    stream = pmap(holding(concurrent_kind, {1: gate}, log), count(), kind=concurrent_kind, workers=1)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    stream.drain(within=SOON)
    assert list(stream) == []
    gate.open()


def test_not_before_the_time_is_up_by_the_clock_of_the_run(
    concurrent_kind: str, gate: Gate, log: Log, clock: Clock
):
    stream = pmap(holding(concurrent_kind, {1: gate}, log), count(), kind=concurrent_kind, workers=1)
    assert next(stream) == 0
    given: list[Any] = []
    consumer = in_a_thread(stream, given)
    log.wait_for(("start", 1))
    run = run_of(stream)
    stream.drain(within=1000)
    with run.lock:
        clock.now = 999.0
        run.settle()
        assert not run.outlet.ready()
        clock.now = 1000.0
        run.settle()
    consumer.join(PATIENCE)
    assert not consumer.is_alive()
    assert given == []
    gate.open()


def test_what_is_worked_off_in_time_comes_out(kind: str):
    stream = pmap(suited(square, kind), count(), kind=kind)
    outputs = [next(stream)]
    stream.drain(within=PATIENCE)
    outputs += stream
    assert outputs == [number**2 for number in range(len(outputs))]


def test_a_consumer_that_comes_back_late_gets_nothing_more(concurrent_kind: str, clock: Clock):
    stream = pmap(suited(square, concurrent_kind), range(100), kind=concurrent_kind, maxsize=4)
    assert next(stream) == 0
    stream.drain(within=10)
    clock.now = 11.0
    assert len(list(stream)) <= 3  # what it had in hand


def test_of_several_limits_the_first_counts(concurrent_kind: str, gate: Gate, log: Log):
    stream = pmap(holding(concurrent_kind, {1: gate}, log), count(), kind=concurrent_kind, workers=1)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    for within in (None, 1000, SOON, 2000, None):
        stream.drain(within=within)
    assert list(stream) == []
    gate.open()


def test_it_reaches_the_stages_before(gate: Gate, log: Log):
    first = pmap(holding("thread", {1: gate}, log), count(), kind="thread", workers=1)
    rows = merge(pmap(square, kind="sync")(pmap(identity, first, kind="thread", memo={})), [])
    assert next(rows) == 0
    log.wait_for(("start", 1))
    rows.drain(within=SOON)
    assert list(rows) == []
    gate.open()


def test_on_done_runs_and_its_error_is_raised(gate: Gate, log: Log):
    def done(_: object) -> None:
        raise LookupError("it cannot be put away")

    f = holding("task", {1: gate}, log)
    stream = pmap(f, count(), kind="task", workers=1, on_start=dict, on_done=done)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    stream.drain(within=SOON)
    with pytest.raises(LookupError, match="it cannot be put away"):
        next(stream)
    gate.open()


class HeldAtTheEnd:
    """An on_done that waits for a gate."""

    def __init__(self, kind: str, gate: Gate, log: Log) -> None:
        self.gate, self.log = gate, log
        self.on_done = self.wait_as_a_task if kind == "task" else self.wait

    def wait(self, _: object) -> None:
        self.log.write("on_done")
        self.gate.wait()

    async def wait_as_a_task(self, _: object) -> None:
        self.log.write("on_done")
        await self.gate.passed()


@pytest.mark.parametrize("is_late", [False, True])
def test_an_on_done_that_lasts_is_not_waited_for_any_longer(
    concurrent_kind: str, gate: Gate, log: Log, is_late: bool
):
    on_done = HeldAtTheEnd(concurrent_kind, gate, log).on_done
    stream = pmap(suited(identity, concurrent_kind), iter([7]), kind=concurrent_kind, on_done=on_done)
    assert next(stream) == 7
    if not is_late:
        stream.drain(within=SOON)
    given: list[Any] = []
    consumer = in_a_thread(stream, given)
    log.wait_for("on_done")
    stream.drain(within=SOON)
    consumer.join(PATIENCE)
    assert not consumer.is_alive()
    assert given == []
    gate.open()


def test_nor_by_an_async_for(gate: Gate, log: Log):
    async def main() -> list[int]:
        stream = pmap(identity, iter([7]), kind="thread", on_done=HeldAtTheEnd("thread", gate, log).on_done)
        taking = asyncio.ensure_future(stream)
        while "on_done" not in log.entries():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        stream.drain(within=SOON)
        async with asyncio.timeout(PATIENCE):
            return await taking

    assert asyncio.run(main()) == [7]
    gate.open()


# ----------------------------------------------------------------------------------------------- where nobody works


def test_a_wait_before_a_further_try_ends_too(kind: str):
    began = threading.Event()

    def hook(_: Exception) -> float:
        began.set()
        return 299.0

    stream = pmap(suited(failing, kind), count(), kind=kind, retries=3, retry_on=hook)
    given: list[Any] = []
    consumer = in_a_thread(stream, given)
    assert began.wait(PATIENCE)
    stream.drain(within=SOON)
    consumer.join(PATIENCE)
    assert not consumer.is_alive()
    assert given == []


@pytest.mark.parametrize("end", [lambda stream: stream.drain(within=SOON), lambda stream: stream.close()])
def test_a_wait_before_a_further_try_ends_too_under_async_for(kind: str, end: Callable[[Any], None]):
    async def main() -> list[int]:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hook(_: Exception) -> float:
            loop.call_soon_threadsafe(began.set)
            return 299.0

        stream = pmap(suited(failing, kind), count(), kind=kind, retries=3, retry_on=hook)
        taking = asyncio.ensure_future(stream._list())
        await asyncio.wait_for(began.wait(), PATIENCE)
        end(stream)
        return await asyncio.wait_for(taking, PATIENCE)

    assert asyncio.run(main()) == []


def test_under_async_for(concurrent_kind: str, gate: Gate, log: Log):
    async def main() -> None:
        f = holding(concurrent_kind, {1: gate}, log)
        stream = pmap(f, count(), kind=concurrent_kind, workers=1)
        assert await anext(stream) == 0
        await asyncio.to_thread(log.wait_for, ("start", 1))
        stream.drain(within=SOON)
        assert [output async for output in stream] == []

    asyncio.run(main())
    gate.open()


def test_in_a_signal_handler(kind: str):
    stream: Stream[int]
    before = signal.signal(signal.SIGUSR1, lambda *_: stream.drain(within=SOON))

    def hook(_: Exception) -> float:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # which waits
        return 299.0

    try:
        stream = pmap(suited(failing, kind), count(), kind=kind, retries=3, retry_on=hook)  # type: ignore[call-overload]
        assert list(stream) == []
    finally:
        signal.signal(signal.SIGUSR1, before)


# ----------------------------------------------------------------------------------------------------- the rest


def test_no_time_at_all(concurrent_kind: str):
    with simulated():
        stream = pmap(suited(square, concurrent_kind), count(), kind=concurrent_kind)
        given = [next(stream)]
        stream.drain(within=0)
        given += stream
    assert given == [number**2 for number in range(len(given))]


def test_before_the_first_output_the_stream_is_empty(kind: str):
    def items() -> Iterator[int]:
        raise AssertionError("pulled")
        yield 1

    stream = pmap(suited(square, kind), items(), kind=kind)
    stream.drain(within=0)
    assert list(stream) == []


@pytest.mark.parametrize(
    ("within", "error", "message"),
    [
        (-1, ValueError, "within must be at least 0 seconds, got -1"),
        (float("nan"), ValueError, "within must be at least 0 seconds, got nan"),
        ("25", TypeError, "within must be a number of seconds or None, got '25'"),
        (True, TypeError, "within must be a number of seconds or None, got True"),
    ],
)
def test_what_is_no_time_is_an_error(within: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pmap(abs, count()).drain(within=within)


def test_infinity_is_no_limit(kind: str):
    stream = pmap(suited(square, kind), count(), kind=kind)
    outputs = [next(stream)]
    stream.drain(within=float("inf"))
    outputs += stream
    assert outputs == [number**2 for number in range(len(outputs))]
