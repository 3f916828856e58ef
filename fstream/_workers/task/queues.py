"""Where tasks wait, and the thread that takes what they make."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from fstream._engine.queues import ThreadQueue
from fstream._flow.protocols import Buffer
from fstream._flow.sizing import SPAN_SECONDS
from fstream._workers.task.reach import EventLoop, call, is_here, running

__all__ = ["TaskQueue", "TurnQueue"]


class TaskQueue(asyncio.Queue[Any]):
    """The queue of takers that are tasks of one loop; any thread may signal it."""

    def __init__(self, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]) -> None:
        super().__init__()
        self.buffer = buffer
        self.lock = lock
        self.settle = settle
        self.takers = 0
        self.signalled = self.watched = False
        self.loop: asyncio.AbstractEventLoop | None = None
        #: Its taker has let others on the loop have a turn since it came here the last time, and when it did before.
        self.waited = False
        self.paused = 0.0
        #: The deadline of all takers.
        self.timer: asyncio.TimerHandle | None = None

    def empty(self) -> bool:
        with self.lock:
            # First, as a feeder that sees the mark settles nothing. If this taker was woken in vain, by what another
            # one was faster to get, it is to be woken again.
            self.signalled = False
            return not self.buffer.ready()

    def _get(self) -> Any:
        with self.lock:
            self.signalled = False
            taken = self.buffer.take()
            self.takers -= 1  # it has what it came for: it does not starve
            self.settle()
            self.takers += 1
            return taken

    def _put(self, item: Any) -> None:
        """Putting wakes a taker; there is nothing to keep."""

    async def get(self) -> Any:
        if not self.takers and self.loop is None:
            self.loop = running()
        with self.lock:
            self.takers += 1
            try:
                if self.buffer.ready():
                    taken = self._get()
                    self.takers -= 1
                    return taken
                self.settle()
            except BaseException:
                self.takers -= 1
                raise
        try:
            taken = await super().get()
            self.waited = True
            return taken
        finally:
            with self.lock:
                self.takers -= 1
                if not self.takers and self.timer is not None:
                    self.timer.cancel()
                    self.timer = None
                    self.watched = False

    def signal(self) -> None:
        self.signalled = True
        assert self.loop is not None
        call(self.loop, self._wake)

    def _wake(self) -> None:
        self.put_nowait(None)

    def watch(self) -> None:
        self.watched = True
        assert self.loop is not None
        call(self.loop, self._start_timer)

    def _start_timer(self) -> None:
        assert self.loop is not None
        self.timer = self.loop.call_later(self.buffer.flush_delay, self._request_flush)

    def _request_flush(self) -> None:
        with self.lock:
            self.timer = None
            self.watched = False
            if self.takers:
                self.buffer.request_flush()
                self.settle()


class HasLoop(Protocol):
    """What has the loop whose turns count."""

    loop: EventLoop


class TurnQueue(ThreadQueue):
    """The queue of a consumer that is a thread, where tasks make the outputs: woken once for each turn of their loop.

    Were it woken for each output, it would take the interpreter from the loop wherever f lets go of it, and two threads
    that wait for each other in turn cost more than f itself.
    """

    def __init__(
        self, host: HasLoop, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]
    ) -> None:
        super().__init__(buffer, lock, settle)
        self.host = host
        #: It has waited for more than a moment: it is woken at once. Invariant: else it waits no longer than that, so
        #: that a turn that lasts, as f blocks the loop, keeps nothing from it.
        self.waited_long = True

    def wait(self, waiter: threading.Lock, seconds: float) -> bool:
        if self.waited_long or seconds >= 0:
            began = monotonic()
            woken = super().wait(waiter, seconds)
            self.waited_long = monotonic() - began > SPAN_SECONDS
        elif not (woken := super().wait(waiter, SPAN_SECONDS)):
            with self.mutex:
                self.waited_long = not self.buffer.ready()
        return woken

    def signal(self) -> None:
        if self.waited_long or not is_here(self.host.loop):
            super().signal()
        else:
            self.signalled = True
            self.host.loop.call_soon(self._end_of_turn)

    def _end_of_turn(self) -> None:
        with self.mutex:
            if self.signalled:
                self.notify()
