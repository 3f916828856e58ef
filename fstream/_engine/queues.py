"""Where takers wait: a queue belongs to its taker, and only waiting happens here.

A queue holds no items of its own. It stands before a *buffer*, which says whether its taker can go on, and gives the
taker a worker's next span (`Work`), the consumer's next outputs (`Outlet`) or a feeder's room (`Credits`). All buffers
and queues of a run share the run's one lock. Whoever changes anything calls `Run.settle`, which wakes the takers that
can go on now. So no wake-up is lost, and none is in vain.

Threads wait in a `queue.Queue` (`ThreadQueue`), tasks in an `asyncio.Queue` (`TaskQueue`, in
`_workers/task/queues.py`), and the thread that serves processes in a selector (`PipeQueue`, in
`_workers/process/queue.py`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from fstream._engine.steps import FOREVER, Steps, through
from fstream._flow.protocols import Buffer

__all__ = ["ThreadQueue"]


class ThreadQueue(queue.Queue[Any]):
    """The queue of takers that are threads. One of them minds the deadline for all.

    Each taker waits on a lock of its own, and not in a `threading.Condition`. A taker may be the main thread, where a
    signal handler may raise between any two steps, also within those of a condition. The condition has then released
    the run's lock, and the taker's ``with`` releases it once more. So a taker leaves the block that holds the run's
    lock before it waits, and enters another one when it was woken.
    """

    def __init__(self, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]) -> None:
        super().__init__()
        self.buffer = buffer
        self.settle = settle
        self.takers = 0
        self.signalled = self.watched = False
        self.until = 0.0
        #: What the taker waits for that waits with a time limit, until the deadline, and then requests the flush.
        self.minder: threading.Lock | None = None
        self.mutex = lock  # type: ignore[assignment]
        #: A locked lock for each taker that waits. Whoever wakes the taker releases it, under the run's lock.
        self.waiters: list[threading.Lock] = []

    def _qsize(self) -> int:
        # `signalled` first, because a feeder that sees it set wakes nobody. A taker may have been woken in vain, by
        # something that another taker was faster to get. Then it is to be woken again.
        self.signalled = False
        return int(self.buffer.ready())

    def _get(self) -> Any:
        taken = self.buffer.take()
        self.takers -= 1  # this taker has what it came for: `settle` must not count it as starved
        self.settle()
        self.takers += 1
        return taken

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Wait until there is something to take. Not with the lock held."""
        return through(self.taking())

    def taking(self) -> Steps[Any]:
        """Take what there is, or wait until there is something."""
        waiter = threading.Lock()
        waiter.acquire()
        counted = minding = False
        try:
            while True:
                with self.mutex:
                    if not counted:
                        self.takers += 1
                        counted = True
                    if self._qsize() and (taken := self._get()) is not None:
                        self.takers -= 1
                        counted = False
                        return taken
                    self.settle()
                    if self.signalled:
                        continue
                    seconds = FOREVER
                    if self.watched and self.minder is None:
                        self.minder, minding = waiter, True
                        seconds = self.buffer.flush_delay
                        # `until` may be what an earlier wait has noted, when less time was left.
                        self.until = self.buffer.clock() + seconds
                    self.waiters.append(waiter)
                woken = yield from self.waiting(waiter, seconds)
                with self.mutex:
                    self.waiters.remove(waiter)
                    woken = waiter.acquire(False) or woken  # somebody may have woken it since
                    if minding:
                        self.watched, self.minder, minding = False, None, False
                        if not woken:
                            self.buffer.request_flush()
        finally:
            if counted:  # interrupted: a wake-up that was meant for this taker goes to another one
                with self.mutex:
                    self.signalled = False
                    self.takers -= 1
                    if minding:
                        self.watched, self.minder = False, None
                    if waiter in self.waiters:
                        self.waiters.remove(waiter)

    def waiting(self, waiter: threading.Lock, seconds: float) -> Steps[bool]:
        """Wait to be woken, for so many *seconds*. Tell whether somebody did."""
        return (yield waiter, seconds)

    def notify(self) -> None:
        """Wake one taker that waits."""
        for waiter in self.waiters:
            if waiter.locked():
                waiter.release()
                return

    def signal(self) -> None:
        self.signalled = True
        self.notify()

    def watch(self) -> None:
        self.watched = True
        if self.minder is None:
            self.notify()
        elif self.minder.locked():
            self.minder.release()
