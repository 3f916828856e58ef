"""A signal handler that raises, as soft time limits do, between any two steps of the main thread: nothing is left."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from types import FrameType
from typing import Any

import pytest

from fstream import Processes, Rate, Stream, pmap, shutdown
from fstream._engine.interrupts import Uninterrupted
from tests.functions import identity, suited
from tests.gates import PATIENCE, Gate
from tests.leaks import Running, check_no_leaks
from tests.test_interrupts import closed_early, inverse, inverse_async, to_its_error

pytestmark = pytest.mark.slow


class SoftLimit(Exception):
    pass


class AnotherLimit(Exception):
    pass


def raise_limit(*_: object) -> None:
    raise SoftLimit


def raise_another(*_: object) -> None:
    raise AnotherLimit


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    before = [signal.signal(signal.SIGALRM, raise_limit), signal.signal(signal.SIGUSR1, raise_another)]
    yield
    signal.signal(signal.SIGALRM, before[0])
    signal.signal(signal.SIGUSR1, before[1])


def handlers() -> list[Any]:
    return [signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGUSR1)]


def test_every_signal_waits_for_the_end_of_the_block():
    steps = []
    with pytest.raises(SoftLimit) as caught, Uninterrupted():
        signal.raise_signal(signal.SIGUSR1)
        steps.append("one")
        with Uninterrupted():
            signal.raise_signal(signal.SIGALRM)
            steps.append("two")
    assert steps == ["one", "two"]
    assert isinstance(caught.value.__context__, AnotherLimit)
    assert handlers() == [raise_limit, raise_another]


def test_handlers_that_return_are_all_called_at_the_end_of_the_block():
    called: list[tuple[int, str]] = []

    def note(number: int, frame: FrameType | None) -> None:
        assert frame is not None
        called.append((number, frame.f_code.co_name))

    signal.signal(signal.SIGALRM, note)
    signal.signal(signal.SIGUSR1, note)
    with Uninterrupted():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGALRM)
        assert not called
    name = test_handlers_that_return_are_all_called_at_the_end_of_the_block.__name__
    assert sorted(called) == sorted([(int(signal.SIGUSR1), name), (int(signal.SIGALRM), name)])


class Raising:
    """A profiler that sends the main thread a signal at its nth step: a call, or a return from one of C's functions.

    These are where Python looks whether a handler is to be called, but for the turns of a loop.
    """

    def __init__(self, nth: int, number: int = signal.SIGALRM) -> None:
        self.left = nth
        self.number = number
        self.inside = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return"):
            self.left -= 1
            if self.left == 0:
                self.inside = frame.f_code.co_qualname
                signal.raise_signal(self.number)


def test_a_signal_in_any_step_of_the_block_itself_puts_the_handlers_back():
    for nth in count(1):
        entered = left = raised = False
        raising = Raising(nth)
        sys.setprofile(raising)
        try:
            with Uninterrupted():
                entered = True
                left = True
        except SoftLimit:
            raised = True
            assert entered == left  # before the block, or at its end: never in the middle
        finally:
            sys.setprofile(None)
        assert handlers() == [raise_limit, raise_another], f"at step {nth}, in {raising.inside}"
        if raising.left > 0:
            break
        assert raised, f"lost at step {nth}, in {raising.inside}"
    assert nth > 10


class OwnedLock:
    """A lock that tells a thread that has it, or is about to, and wants it once more, that this would hang."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: set[int] = set()

    def __enter__(self) -> None:
        assert threading.get_ident() not in self.threads
        self.threads.add(threading.get_ident())
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        self.threads.discard(threading.get_ident())


class Tenant:
    """A stage of which a pool is told that it is at work."""

    poked = False

    def ring(self) -> None:
        pass

    def waits_here(self) -> bool:
        return False


@pytest.mark.parametrize("ends", [Processes.close, lambda _: shutdown()], ids=["close", "shutdown"])
def test_a_handler_in_any_step_of_the_end_of_a_pool_may_end_it_too(ends: Callable[[Processes], None]):
    for nth in count(1):
        with Processes(1) as processes:
            if nth % 8 == 1:  # with a worker now and then
                assert list(pmap(identity, range(3), kind=processes)) == [0, 1, 2]
            pool: Any = processes.pool()
            pool.tenants.add(Tenant())
            processes._lock, pool._lock, pool.warm._lock = OwnedLock(), OwnedLock(), OwnedLock()  # type: ignore[assignment]
            signal.signal(signal.SIGUSR1, lambda *_: ends(processes))
            raising = Raising(nth, signal.SIGUSR1)
            sys.setprofile(raising)
            try:
                ends(processes)
            finally:
                sys.setprofile(None)
        if raising.left > 0:
            break
    assert nth > 10


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


def interrupt_everywhere(
    make: Callable[[], Stream[float]],
    consume: Callable[[Stream[float]], object],
    before: Running,
    stride: int,
) -> int:
    """Send a signal at each step in turn, and see that nothing is left; give how many steps there were, about."""
    consume(make())
    for nth in count(1, stride):
        stream = make()
        raising = Raising(nth)
        began = time.monotonic()
        sys.setprofile(raising)
        try:
            consume(stream)
        except SoftLimit:
            pass
        finally:
            sys.setprofile(None)
        assert time.monotonic() - began < PATIENCE
        del stream
        check_no_leaks(before)
        assert handlers() == [raise_limit, raise_another], f"at step {nth}, in {raising.inside}"
        if raising.left > 0:
            return nth
    raise AssertionError


# A handler that raises while something is collected is printed, and ignored.
ignored = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@ignored
@pytest.mark.timeout(240)  # many runs, of which each starts threads
@pytest.mark.usefixtures("waits_in_vain_show")
@pytest.mark.parametrize("consume", [list, to_its_error, closed_early])
@pytest.mark.parametrize(("kind", "stride"), [("sync", 1), ("thread", 7), ("task", 11), ("process", 23)])
def test_a_signal_at_any_step_leaves_nothing_behind(
    kind: str, stride: int, consume: Callable[[Stream[float]], object], no_leaks: Running
):
    def make() -> Stream[float]:
        return pmap(f, iter(items), kind=kind, workers=2, maxsize=2)  # type: ignore[arg-type]

    f = inverse_async if kind == "task" else inverse
    items = range(10 if consume is to_its_error else 5)
    if kind == "sync":
        f = inverse
    files = open_files()
    assert interrupt_everywhere(make, consume, no_leaks, stride) > (20 if kind == "sync" else 100)
    gc.collect()
    if kind != "process":  # warm ones have some
        assert open_files() <= files


def test_a_signal_at_any_step_of_what_makes_a_stream_leaves_nothing_to_complain_of(
    monkeypatch: pytest.MonkeyPatch,
):
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda each: complaints.append(each.exc_value))
    for nth in count(1):
        raising = Raising(nth)
        sys.setprofile(raising)
        try:
            pmap(inverse, iter([1]), kind="thread")
        except SoftLimit:
            pass
        finally:
            sys.setprofile(None)
        if raising.left > 0:
            break
    assert nth > 20
    # A handler that raises while something is collected is printed, and ignored.
    assert not [each for each in complaints if not isinstance(each, SoftLimit)]


def test_a_signal_while_the_consumer_waits_is_raised_there(
    gate: Gate, concurrent_kind: str, no_leaks: Running
):
    async def hold_task(item: int) -> int:
        await gate.passed()
        return item

    def hold(item: int) -> int:
        gate.wait()
        return item

    main = threading.main_thread().ident
    assert main is not None
    for make in (
        lambda: pmap(hold_task if concurrent_kind == "task" else hold, [1, 2], kind=concurrent_kind),
    ) * 3:
        stream = make()
        alarm = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGALRM))
        alarm.start()
        began = time.monotonic()
        with pytest.raises(SoftLimit):
            next(stream)
        assert time.monotonic() - began < 2.0
        alarm.join()
        assert list(stream) == []
    gate.open()
    check_no_leaks(no_leaks)


def test_a_handler_that_closes_the_stream_in_the_middle_of_what_its_consumer_does_does_not_wait(
    concurrent_kind: str,
):
    stream = pmap(suited(identity, concurrent_kind), count(), kind=concurrent_kind, workers=2)
    next(stream)
    run = stream._outputs.run
    assert run is not None
    begun = time.perf_counter()
    with run.lock:  # a signal comes now: its handler runs in this thread
        stream.close()
    assert time.perf_counter() - begun < run.LONGEST / 2
    assert list(stream) == []


@pytest.fixture
def seen() -> Iterator[threading.Event]:
    """A handler has seen SIGUSR2, which the main thread and the threads that it starts do not receive."""
    seen = threading.Event()
    before = signal.signal(signal.SIGUSR2, lambda *_: seen.set())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    yield seen
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    signal.signal(signal.SIGUSR2, before)


def receive_while_main_waits() -> None:
    """In another thread: the signal comes here, as it may anyway, when the main thread has begun to wait."""
    main = threading.main_thread().ident
    assert main is not None
    while not (code := sys._current_frames()[main].f_code).co_filename.endswith("interrupts.py") or (
        code.co_name != "acquire"
    ):
        time.sleep(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    os.kill(os.getpid(), signal.SIGUSR2)


def test_a_handler_is_called_though_nothing_wakes_the_consumer(concurrent_kind: str, seen: threading.Event):
    def source() -> Iterator[int]:
        receive_while_main_waits()
        yield int(seen.wait(PATIENCE))

    assert list(pmap(suited(identity, concurrent_kind), source(), kind=concurrent_kind)) == [1]


def test_a_handler_is_called_though_nothing_wakes_who_waits_for_on_done(seen: threading.Event):
    ends: list[bool] = []

    def end() -> None:
        receive_while_main_waits()
        ends.append(seen.wait(PATIENCE))

    assert list(pmap(identity, [1], kind="thread", on_done=end)) == [1]
    assert ends == [True]


def test_a_handler_is_called_though_nothing_wakes_who_waits_for_a_rate_in_place(seen: threading.Event):
    stream = pmap(identity, count(), kind="sync", rate=Rate(1, per=1000))
    signal.signal(signal.SIGUSR2, lambda *_: stream.close())
    assert next(stream) == 0
    other = threading.Thread(target=receive_while_main_waits)
    other.start()
    assert next(stream, None) is None
    other.join()
