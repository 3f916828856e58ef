"""Where takers wait: a queue belongs to its taker, and only waiting happens here.

A queue holds no items of its own. It stands before a *buffer*, which says whether its taker can go on, and what it
gets: a worker's next span (`Work`), the consumer's next outputs (`Outlet`), a feeder's room (`Credits`). All the
buffers of a run and all its queues share the run's one lock; whoever changes anything calls the run's *settle*, which
wakes the takers that can go on now. So no wake-up is lost, and none is in vain.

Threads wait in a `queue.Queue` (`ThreadQueue`); tasks in an `asyncio.Queue` (``_workers.loop``); the thread that
serves processes in a selector (``_workers.process``).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from fstream._spans import MAX_CHEAP, Closed, Feed, Room, Span, Upstream, Window

__all__ = ["OVERDUE", "Buffer", "Clock", "Credits", "Outlet", "TakerQueue", "ThreadQueue", "Work"]

#: What waits behind an item that takes this long, in seconds, is taken over also by workers that have enough to do:
#: an endless source would keep them from it for ever.
OVERDUE: Final = 0.04

#: A consumer that is away for less than this, in seconds, does nothing with the outputs that takes time.
AT_ONCE: Final = 0.0005

#: How long a consumer is taken to be away that has had nothing yet, and may never have, in seconds.
UNKNOWN: Final = 0.0002


#: Gives the time, in seconds.
Clock: TypeAlias = Callable[[], float]


class Buffer(Protocol):
    """What a queue asks before it lets its taker go on. All of it under the run's lock."""

    def ready(self) -> bool:
        """Tell whether there is something to take, the end included."""
        ...

    def take(self) -> Any:
        """Take it; called only when ready."""
        ...

    def starve(self, wanted: bool) -> bool:
        """Its taker waits: let upstream hold more if that is *wanted* downstream; tell whether it is wanted here."""
        ...

    def impatient(self) -> bool:
        """Tell whether `insist` might bring something to light."""
        ...

    @property
    def patience(self) -> float:
        """How long its takers are impatient before they insist, in seconds."""
        ...

    def insist(self) -> None:
        """Its takers have been impatient for so long."""
        ...


class Work:
    """A worker's buffer: the next span of its stage, or `Closed`."""

    def __init__(self, window: Window, clock: Clock) -> None:
        self.window = window
        self.clock = clock

    def ready(self) -> bool:
        return self.window.takable() or self.window.exhausted

    def take(self) -> Span | Closed:
        return self.poll() or Closed()

    def poll(self) -> Span | Closed | None:
        """The same at any time; None if there is nothing to take."""
        window, now = self.window, self.clock()
        if window.divisible:
            window.reclaim(now, OVERDUE)
        return window.take(now) or (Closed() if window.exhausted else None)

    def starve(self, wanted: bool) -> bool:
        if wanted and not self.window.upstream.available():
            self.window.upstream.grow()
        return wanted

    def impatient(self) -> bool:
        return bool(self.window.divisible) or self.window.upstream.withholds

    @property
    def patience(self) -> float:
        return self.window.patience if self.window.divisible else self.window.upstream.patience

    def insist(self) -> None:
        self.window.upstream.press()
        self.window.reclaim(self.clock(), self.window.patience)


class Outlet:
    """The consumer's buffer: some outputs, or `Closed`."""

    def __init__(self, upstream: Upstream, room: Room, clock: Clock) -> None:
        self.upstream = upstream
        self.room = room
        self.clock = clock
        #: Room of the outputs in the consumer's hands, given back when it comes for more.
        self.owed = 0
        #: When it came for outputs.
        self.came = 0.0
        #: When it left with the last ones, and the limit of the room then.
        self.left, self.limit = -UNKNOWN, room.limit
        #: It has had outputs before.
        self.had = False

    def settle_up(self) -> None:
        """The consumer is back."""
        self.upstream.release(self.owed)
        self.owed = 0
        self.came = self.clock()
        if self.left < 0:
            self.left += self.came

    def ready(self) -> bool:
        return self.upstream.available() > 0 or self.upstream.end is not None

    def take(self) -> Sequence[Any] | Closed:
        # It was woken, and had to wait for its turn: workers that have run out of room meanwhile are to have more.
        if self.had and self.came - self.left < AT_ONCE:
            self.upstream.grow()
        self.had = True
        # Half of the window at most: while these are consumed, the workers have room for as many.
        outputs, self.owed = self.upstream.draw(max(1, min(self.room.limit, MAX_CHEAP) // 2))
        self.left, self.limit = self.clock(), self.room.limit
        return outputs or self.upstream.end or Closed()

    def starve(self, wanted: bool) -> bool:
        # A slow consumer waits now and then, too: more is held for one that waits much longer than it is away, or
        # would be with as many more outputs as it could have by now.
        away = self.came - self.left
        wanted = away < AT_ONCE or self.clock() - self.came > 8 * away * self.room.limit / self.limit
        if wanted:
            self.upstream.grow()
        return wanted

    def impatient(self) -> bool:
        return self.upstream.withholds

    @property
    def patience(self) -> float:
        return self.upstream.patience

    def insist(self) -> None:
        self.upstream.press()
        self.starve(True)


class Credits:
    """A feeder's buffer: how many items it may pull, or `Closed`."""

    patience = 0.0  # it has nobody to ask

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def ready(self) -> bool:
        return self.feed.stopped or self.feed.room.free > 0

    def take(self) -> int | Closed:
        return Closed() if self.feed.stopped else self.feed.credits()

    def starve(self, wanted: bool) -> bool:
        return wanted

    def impatient(self) -> bool:
        return False

    def insist(self) -> None:
        pass


class TakerQueue(Protocol):
    """What a run asks of each of its queues, under its lock."""

    buffer: Buffer
    #: How many takers are in `get`.
    takers: int
    #: A taker was woken and has not taken yet.
    signalled: bool
    #: A deadline runs, at which the takers insist.
    watched: bool

    def signal(self) -> None:
        """Wake one taker."""
        ...

    def watch(self) -> None:
        """Start the deadline."""
        ...


class ThreadQueue(queue.Queue[Any]):
    """The queue of takers that are threads. One of them minds the deadline for all.

    A taker may be the main thread, where a signal handler may raise between any two steps, also within those of a
    `threading.Condition`, which then has released a lock that its caller releases once more. So a taker does not hold
    the lock where it waits: it leaves the block that holds it, and enters another one.
    """

    def __init__(self, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]) -> None:
        super().__init__()
        self.buffer = buffer
        self.settle = settle
        self.takers = 0
        self.signalled = self.watched = False
        #: Some taker minds the deadline.
        self.minded = False
        self.mutex = lock  # type: ignore[assignment]
        #: A lock for each taker that waits, which whoever wakes it releases, under the run's lock.
        self.waiters: list[threading.Lock] = []

    def _qsize(self) -> int:
        # First, as a feeder that sees the mark settles nothing. If a taker was woken in vain, by what another one was
        # faster to get, it is to be woken again.
        self.signalled = False
        return int(self.buffer.ready())

    def _get(self) -> Any:
        taken = self.buffer.take()
        self.takers -= 1  # it has what it came for: it does not starve
        self.settle()
        self.takers += 1
        return taken

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Wait until there is something to take. Not with the lock held."""
        waiter = threading.Lock()
        waiter.acquire()
        counted = minding = False
        try:
            while True:
                with self.mutex:
                    if not counted:
                        self.takers += 1
                        counted = True
                    if self._qsize():
                        taken = self._get()
                        self.takers -= 1
                        counted = False
                        return taken
                    self.settle()
                    if self.signalled:
                        continue
                    patience = -1.0
                    if self.watched and not self.minded:
                        self.minded = minding = True
                        patience = self.buffer.patience
                    self.waiters.append(waiter)
                woken = self.wait(waiter, patience)
                with self.mutex:
                    self.waiters.remove(waiter)
                    woken = waiter.acquire(False) or woken  # perhaps it was just now
                    if minding:
                        self.watched = self.minded = minding = False
                        if not woken:
                            self.buffer.insist()
        finally:
            if counted:  # interrupted: a wake-up meant for this taker goes to another
                with self.mutex:
                    self.signalled = False
                    self.takers -= 1
                    if minding:
                        self.watched = self.minded = False
                    if waiter in self.waiters:
                        self.waiters.remove(waiter)

    def wait(self, waiter: threading.Lock, patience: float) -> bool:
        """Wait to be woken, for so many seconds, or for ever if that is -1; False if nobody did."""
        return waiter.acquire(True, patience)

    def notify(self) -> None:
        """Wake one that waits."""
        for waiter in self.waiters:
            if waiter.locked():
                waiter.release()
                return

    def signal(self) -> None:
        self.signalled = True
        self.notify()

    def watch(self) -> None:
        self.watched = True
        self.notify()
