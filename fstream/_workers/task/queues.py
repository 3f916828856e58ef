"""Where tasks wait, and where a thread waits for what tasks make."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

from fstream._engine.queues import ThreadQueue
from fstream._engine.steps import Steps
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
        self.until = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        #: The taker has waited here since it last noted a pause, so others on the loop have had a turn.
        self.waited = False
        #: When others on the loop last had a turn, in seconds of the run's clock.
        self.paused = 0.0
        #: The deadline of all takers.
        self.timer: asyncio.TimerHandle | None = None

    def empty(self) -> bool:
        with self.lock:
            # `signalled` first, because a feeder that sees it set wakes nobody. This taker may have been woken in vain,
            # by something that another taker was faster to get. Then it is to be woken again.
            self.signalled = False
            if not self.buffer.ready():
                # While it was signalled, nobody kept the time for it.
                self.settle()
                return not self.signalled
            return False

    def _get(self) -> Any:
        with self.lock:
            self.signalled = False
            taken = self.buffer.take()
            self.takers -= 1  # this taker has what it came for: `settle` must not count it as starved
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
        except asyncio.QueueEmpty:  # others were faster, in another thread, who share a rate with this stage
            return None
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
        if self.timer is not None:
            self.timer.cancel()
        with self.lock:
            delay = self.buffer.flush_delay
            # `until` may be what an earlier wait has noted, when less time was left.
            self.until = self.buffer.clock() + delay
        self.timer = self.loop.call_later(delay, self._request_flush)

    def _request_flush(self) -> None:
        with self.lock:
            self.timer = None
            self.watched = False
            if self.takers:
                self.buffer.request_flush()
                self.settle()


class HasLoop(Protocol):
    """It has the loop whose turns count."""

    loop: EventLoop


class TurnQueue(ThreadQueue):
    """The queue of a consumer that is a thread, where tasks make the outputs: it is woken once a turn of their loop.

    If it were woken for each output, it would take the interpreter from the loop wherever f lets go of it. Two threads
    that wait for each other by turns cost more than f itself.
    """

    def __init__(
        self, host: HasLoop, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]
    ) -> None:
        super().__init__(buffer, lock, settle)
        self.host = host
        #: The consumer has waited longer than SPAN_SECONDS, so wake it at once rather than at the end of the turn.
        #: Invariant: otherwise it waits that long at most, so an f that blocks the loop delays nothing for longer.
        self.waited_long = True

    def waiting(self, waiter: threading.Lock, seconds: float) -> Steps[bool]:
        if self.waited_long or seconds >= 0:
            began = monotonic()
            woken = yield waiter, seconds
            self.waited_long = monotonic() - began > SPAN_SECONDS
        elif not (woken := (yield waiter, SPAN_SECONDS)):
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
