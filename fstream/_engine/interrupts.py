"""Keep signal handlers out of the few lines that must not be left in the middle: where a run starts, and where it ends.

Ctrl-C is one of them, and so is an alarm that raises an exception, as soft time limits do. And let them in where the
main thread waits (`acquire`).
"""

from __future__ import annotations

# The module in C. The functions of `signal` make an enum member of each handler, and for a handler that is no member a
# message with its repr, which nobody sees. The repr of asyncio's handler has the main task in it, and takes longer than
# a run takes to start.
import _signal as signal  # type: ignore[import-not-found]
import threading
from collections.abc import Callable
from math import inf
from time import monotonic
from types import FrameType
from typing import Any, Final, TypeAlias

__all__ = ["Uninterrupted", "acquire"]


Handler: TypeAlias = Callable[[int, FrameType | None], Any]

SIGNALS: Final = range(1, signal.NSIG)

#: How long the main thread waits at a time, in seconds.
AT_A_TIME: Final = 0.5


def acquire(lock: threading.Lock, seconds: float = -1) -> bool:
    """Acquire *lock* within so many *seconds*, or whenever it can be had if that is -1. Tell whether it was acquired.

    The main thread looks for signals every half a second meanwhile. A signal wakes a thread that waits. But it may have
    come in the moment before the wait, when nothing looks any more; or another thread has received it. Then the handler
    would be called when the wait is over. And that may be never, if the wait is for what the handler does.
    """
    if threading.get_ident() != threading.main_thread().ident:  # handlers are called in the main thread alone
        return lock.acquire(True, seconds)
    end = inf if seconds < 0 else monotonic() + seconds
    while not lock.acquire(True, min(AT_A_TIME, max(0.0, end - monotonic()))):
        if monotonic() >= end:
            return False
    return True


class Uninterrupted:
    """A block in which signals wait for the end of the block.

    Python calls signal handlers between any two steps of the main thread, and a handler may raise there: also between
    the start of a worker and the note that there is one. Nothing in such a block waits for user code, so it lasts for a
    moment. To block the signals instead would not do: any other thread may receive one for the main thread.
    """

    __slots__ = ("handlers", "noted", "raised")

    def __enter__(self) -> None:
        #: The handlers that are put off, by their signals.
        self.handlers: dict[int, Handler] = {}
        #: The signals that came within the block, and the frames in which their handlers would have been called.
        self.noted: dict[int, FrameType | None] = {}
        #: What a handler raised while the handlers were being put off, one after the other.
        self.raised: BaseException | None = None
        while True:
            try:
                self._put_off()
            except BaseException as error:
                self.raised = error
            else:
                return

    def _put_off(self) -> None:
        for number, handler in zip(SIGNALS, map(signal.getsignal, SIGNALS), strict=True):
            if (
                handler.__class__ is int or handler is None
            ):  # ignored, or the end of the process, or none of Python's
                continue
            self.handlers.setdefault(number, handler)
            try:
                signal.signal(number, self._note)
            except ValueError:  # not in the main thread, the only one that handlers are called in
                self.handlers.clear()
                return

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted[number] = frame

    def __exit__(self, *_: object) -> None:
        if self.handlers:
            try:
                self._put_back([*self.handlers])
            finally:
                self._call()

    def _put_back(self, numbers: list[int]) -> None:
        """Put all handlers back, also if one that is already back is called and raises."""
        try:
            while numbers:
                signal.signal(numbers[-1], self.handlers[numbers[-1]])
                numbers.pop()
        finally:
            if numbers:
                self._put_back(numbers)

    def _call(self) -> None:
        """Call the handlers whose signals came, all of them, also if one raises."""
        try:
            while self.noted:
                number = next(iter(self.noted))
                self.handlers[number](number, self.noted.pop(number))
            if self.raised is not None:
                raise self.raised
        finally:
            if self.noted:
                self._call()
