"""Ctrl-C between any two steps of the main thread: the pipeline ends, and leaves nothing behind."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from types import FrameType
from typing import Any

import pytest

from fstream import Stream, pmap
from fstream._engine.interrupts import Uninterrupted
from tests.gates import PATIENCE
from tests.leaks import Running, check_no_leaks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("waits_in_vain_show")]


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Ctrl-C as in a plain script, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_waits_for_the_end_of_the_block():
    steps = []
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        interrupt()
        steps.append("one")
        with Uninterrupted():
            interrupt()
            steps.append("two")
        steps.append("three")
    assert steps == ["one", "two", "three"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_comes_with_the_error_of_the_block():
    with pytest.raises(KeyboardInterrupt) as caught, Uninterrupted():
        interrupt()
        raise ValueError
    assert isinstance(caught.value.__context__, ValueError)


def test_a_block_without_an_interrupt_changes_nothing():
    with Uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        interrupt()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_where_python_does_not_handle_it_nothing_is_done_about_it(handler: signal.Handlers):
    signal.signal(signal.SIGINT, handler)
    with Uninterrupted():
        assert signal.getsignal(signal.SIGINT) is handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_in_another_thread_nothing_is_done_about_it():
    def block() -> None:
        with Uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[Any] = []
    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Interrupting:
    """A profiler that interrupts the main thread at its nth step of a kind."""

    def __init__(self, nth: int, counts: Callable[[FrameType, str, Any], bool]) -> None:
        self.left = nth
        self.counts = counts

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if self.counts(frame, event, arg):
            self.left -= 1
            if self.left == 0:
                interrupt()


def enters_a_function(_frame: FrameType, event: str, _: Any) -> bool:
    return event == "call"


def has_just_woken_a_thread(frame: FrameType, event: str, arg: Any) -> bool:
    """... that its condition still takes for a waiting one."""
    return event == "c_return" and frame.f_code.co_name == "notify" and arg.__name__ == "release"


def inverse(item: int) -> float:
    return 1 / (5 - item)


async def inverse_async(item: int) -> float:
    return inverse(item)


def to_its_error(stream: Stream[float]) -> None:
    with suppress(ZeroDivisionError):
        list(stream)


def closed_early(stream: Stream[float]) -> None:
    next(stream)
    stream.close()


def interrupt_everywhere(
    make: Callable[[], Stream[float]],
    consume: Callable[[Stream[float]], object],
    before: Running,
    counts: Callable[[FrameType, str, Any], bool],
    stride: int = 1,
) -> int:
    """Interrupt at each step in turn, and see that nothing is left; give how many steps there were, about."""
    for nth in count(1, stride):
        stream = make()
        interrupting = Interrupting(nth, counts)
        began = time.monotonic()
        sys.setprofile(interrupting)
        try:
            consume(stream)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert time.monotonic() - began < PATIENCE
        del stream
        check_no_leaks(before)
        if interrupting.left > 0:
            return nth
    raise AssertionError


# An interrupt that comes while something is collected is printed, and ignored.
ignored = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@ignored
@pytest.mark.timeout(240)  # many runs, of which each starts threads
@pytest.mark.parametrize("consume", [list, to_its_error, closed_early])
@pytest.mark.parametrize(("kind", "stride"), [("thread", 5), ("task", 7), ("process", 17)])
def test_an_interrupt_at_any_step_leaves_nothing_behind(
    kind: str, stride: int, consume: Callable[[Stream[float]], object], no_leaks: Running
):
    def make() -> Stream[float]:
        return pmap(f, iter(items), kind=kind, workers=2, maxsize=2)

    f = inverse_async if kind == "task" else inverse
    items = range(10 if consume is to_its_error else 5)
    assert interrupt_everywhere(make, consume, no_leaks, enters_a_function, stride) > 100


@ignored
def test_an_interrupt_in_the_middle_of_a_wake_up_keeps_nobody_asleep(no_leaks: Running):
    def make() -> Stream[float]:
        return pmap(inverse, iter([0] * 20), kind="thread", workers=1, maxsize=1)

    assert interrupt_everywhere(make, list, no_leaks, has_just_woken_a_thread) > 10


@pytest.mark.parametrize("source", [range, lambda count: iter(range(count))], ids=["range", "iterator"])
@pytest.mark.parametrize("kind", ["thread", "process", "task"])
def test_a_thread_that_cannot_be_started_is_an_error(
    kind: str, source: Callable[[int], Iterable[int]], monkeypatch: pytest.MonkeyPatch
):
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(pmap(inverse, source(3), kind=kind))
    assert time.monotonic() - began < 2.0
