"""What a queue stands before: it says whether a taker can go on, and gives it what it came for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from fstream._flow.protocols import Upstream
from fstream._flow.room import Room
from fstream._flow.sizing import MAX_CHEAP
from fstream._flow.sources import Feed
from fstream._flow.span import Closed, Span
from fstream._flow.window import Window

__all__ = ["OVERDUE", "Clock", "Credits", "Outlet", "Work"]


#: What waits behind an item that takes this long, in seconds, is taken over also by workers that have enough to do:
#: an endless source would keep them from it for ever.
OVERDUE: Final = 0.04

#: A consumer that is away for less than this, in seconds, does nothing with the outputs that takes time.
AT_ONCE: Final = 0.0005

#: How long a consumer is taken to be away that has had nothing yet, and may never have, in seconds.
UNKNOWN: Final = 0.0002


#: Gives the time, in seconds.
Clock: TypeAlias = Callable[[], float]


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
        if window.stealable:
            window.steal_overdue(now, OVERDUE)
        return window.take(now) or (Closed() if window.exhausted else None)

    def report_starvation(self, starved: bool) -> bool:
        if starved and not self.window.upstream.available():
            self.window.upstream.grow()
        return starved

    def can_flush(self) -> bool:
        return bool(self.window.stealable) or self.window.upstream.has_partial

    @property
    def flush_delay(self) -> float:
        return self.window.flush_delay if self.window.stealable else self.window.upstream.flush_delay

    def request_flush(self) -> None:
        self.window.upstream.request_flush()
        self.window.steal_overdue(self.clock(), self.window.flush_delay)


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

    def release_taken(self) -> None:
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

    def report_starvation(self, starved: bool) -> bool:
        # A slow consumer waits now and then, too: more is held for one that waits much longer than it is away, or
        # would be with as many more outputs as it could have by now.
        away = self.came - self.left
        starved = away < AT_ONCE or self.clock() - self.came > 8 * away * self.room.limit / self.limit
        if starved:
            self.upstream.grow()
        return starved

    def can_flush(self) -> bool:
        return self.upstream.has_partial

    @property
    def flush_delay(self) -> float:
        return self.upstream.flush_delay

    def request_flush(self) -> None:
        self.upstream.request_flush()
        self.report_starvation(True)


class Credits:
    """A feeder's buffer: how many items it may pull, or `Closed`."""

    flush_delay = 0.0  # it has nobody to ask

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def ready(self) -> bool:
        return self.feed.stopped or self.feed.room.free > 0

    def take(self) -> int | Closed:
        return Closed() if self.feed.stopped else self.feed.credits()

    def report_starvation(self, starved: bool) -> bool:
        return starved

    def can_flush(self) -> bool:
        return False

    def request_flush(self) -> None:
        pass
