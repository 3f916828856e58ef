"""Buffers: each stands between a queue and a window. It says whether a taker can go on, and gives it what is there."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from fstream._flow.known import Known
from fstream._flow.pacing import Clock
from fstream._flow.protocols import Upstream
from fstream._flow.room import Room
from fstream._flow.sizing import MAX_CHEAP
from fstream._flow.sources import Feed, Grant
from fstream._flow.span import Closed, Item, Span
from fstream._flow.tally import Hold
from fstream._flow.weight import is_light
from fstream._flow.window import Window

__all__ = ["OVERDUE", "Credits", "Outlet", "Work"]


#: Items that wait behind one that takes this long, in seconds, are stolen even by workers that have enough to do. An
#: endless source would else keep those workers from them for ever.
OVERDUE: Final = 0.04

#: A consumer that comes back within this time, in seconds, does nothing slow with the outputs.
AT_ONCE: Final = 0.0005

#: Assumed processing time, in seconds, of a consumer that has not had its first output.
UNKNOWN: Final = 0.0002


class Work:
    """A worker's buffer: it gives the next span of the stage, or `Closed`."""

    def __init__(self, window: Window, clock: Clock) -> None:
        self.window = window
        self.clock = clock

    def ready(self) -> bool:
        return self.window.takable() or self.window.exhausted

    def take(self) -> Span | Closed | None:
        """Take the next span; None if what there was needs no worker, or others who share a rate were faster."""
        return self.poll()

    def poll(self) -> Span | Closed | None:
        """Take the next span without waiting; None if there is none now."""
        window, now = self.window, self.clock()
        if window.ledger.stealable:
            window.steal_overdue(now, OVERDUE)
        return window.take(now) or (Closed() if window.exhausted else None)

    def report_starvation(self, starved: bool) -> bool:
        window, tally = self.window, self.window.tally
        ledger, room, upstream = window.ledger, window.room, window.upstream
        idle = max(0, window.workers - ledger.busy)
        if upstream.prepaid:
            blocked = upstream.blocked > 0 or room.held > room.limit
        else:
            blocked = room.held >= room.limit
        hold = self.held_by(idle, blocked)
        if idle != tally.idle or blocked != tally.blocks or hold is not tally.held_by:
            tally.wait(self.clock(), idle, blocked and hold is None, hold)
        if starved and not self.window.upstream.available():
            self.window.upstream.grow()
        return starved

    def held_by(self, idle: int, blocked: bool) -> Hold | None:
        """Tell what keeps so many *idle* workers from items; *blocked* says that they wait for room."""
        window = self.window
        return window.held_by(idle) if window.remote or window.pacing is not None else None

    def can_flush(self) -> bool:
        window = self.window
        return bool(window.ledger.stealable) or window.upstream.has_partial or window.due < inf

    @property
    def flush_delay(self) -> float:
        """How long the takers wait at most: until something can be stolen, upstream flushes, or the window is due."""
        window, upstream = self.window, self.window.upstream
        delay = max(0.0, window.due - self.clock()) if window.pacing is not None else inf
        if window.ledger.stealable:
            delay = min(delay, window.flush_delay)
        return min(delay, upstream.flush_delay) if upstream.has_partial or delay == inf else delay

    def request_flush(self) -> None:
        self.window.upstream.request_flush()
        self.window.steal_overdue(self.clock(), self.window.flush_delay)


class Outlet:
    """The consumer's buffer: it gives a list of outputs, or `Closed`."""

    def __init__(self, upstream: Upstream, room: Room, clock: Clock) -> None:
        self.upstream = upstream
        self.room = room
        self.clock = clock
        #: Credits of the outputs in the consumer's hands. Their room is free when it comes for more.
        self.owed = 0
        #: When the consumer last came for outputs, in seconds of the clock.
        self.came = 0.0
        #: When it left with the last outputs, in seconds of the clock, and the limit of the room then, in items.
        self.left, self.limit = -UNKNOWN, room.limit
        #: The time at which a stream that is drained is closed, in seconds of the clock.
        self.until = inf
        #: It has had outputs before.
        self.had = False
        #: How long it has been away with outputs, and how long it has waited for them, in seconds.
        self.away = self.waited = 0.0

    def release_taken(self) -> None:
        """The consumer is back: the room of the outputs that it had is free."""
        self.upstream.release(self.owed)
        self.owed = 0
        self.came = self.clock()
        if self.left < 0:
            self.left += self.came
        else:
            self.away += self.came - self.left

    @property
    def over(self) -> bool:
        """Nothing more is given out: the time of a drained stream is up."""
        return self.left_to_wait <= 0

    @property
    def left_to_wait(self) -> float:
        """How many seconds the consumer may still wait; infinitely many without a limit."""
        return inf if self.until == inf else self.until - self.clock()

    def ready(self) -> bool:
        return self.upstream.available() > 0 or self.upstream.end is not None or self.over

    def take(self) -> Sequence[Item] | Closed:
        if self.over:
            return Closed()
        # The consumer came at once, and found outputs only when its thread had got the interpreter. If workers have run
        # out of room in the meantime, they are to have more.
        if self.had and self.came - self.left < AT_ONCE:
            self.upstream.grow()
        self.had = True
        # Half of the window at most: while the consumer has these, the workers have room for as many again.
        outputs, self.owed = self.upstream.draw(max(1, min(self.room.limit, MAX_CHEAP) // 2))
        self.left, self.limit = self.clock(), self.room.limit
        self.waited += self.left - self.came
        return outputs or self.upstream.end or Closed()

    def report_starvation(self, starved: bool) -> bool:
        # A slow consumer waits now and then, too. It starves only if it came back at once; or if it has waited more
        # than 8 times its processing time. That time is scaled up to the outputs that it could have now, since the
        # room may have grown since it left.
        away = self.came - self.left
        starved = away < AT_ONCE or self.clock() - self.came > 8 * away * self.room.limit / self.limit
        if starved:
            self.upstream.grow()
        return starved

    def can_flush(self) -> bool:
        return self.upstream.has_partial or self.until < inf

    @property
    def flush_delay(self) -> float:
        left = max(0.0, self.left_to_wait)
        return min(left, self.upstream.flush_delay) if self.upstream.has_partial or left == inf else left

    def request_flush(self) -> None:
        self.upstream.request_flush()
        self.report_starvation(True)


#: A feeder looks at one item of so many, whether it is light; and weighs some of so many times as many.
PART: Final = 256
PARTS: Final = 4


class Credits(Grant):
    """A feeder's buffer: it gives the number of items that the feeder may pull, or `Closed`."""

    flush_delay = 0.0  # there is nothing to flush: never used

    def __init__(self, feed: Feed, clock: Clock) -> None:
        self.feed = feed
        self.clock = clock
        #: Its feeder is to pull nothing more.
        self.halted = False
        #: How many parts the feeder has used up.
        self.parts = 0
        feed.grants.append(self)

    def part(self) -> int:
        """Give the feeder a part in hand: how many items it pulls before it comes for the next one. Under the lock."""
        self.hand = min(self.left, PART)
        self.left -= self.hand
        return self.hand

    def next_part(self, item: Item) -> int:
        """The same, once it has pulled the part before: *item* is the latest. Under the lock."""
        if self.looks_heavy(item):
            self.feed.take_back(self)
        return self.part()

    def put_back(self, unused: int) -> None:
        """The feeder has pulled all of its part but so many items. Under the lock."""
        self.left += unused
        self.hand = 0

    def given_up(self) -> int:
        """Give what is left, once and for all: the feeder is through. Under the lock."""
        unused, self.left = self.left, 0
        return unused

    def looks_heavy(self, item: Item) -> bool:
        """Tell whether items are to be weighed: *item* is the latest. It is looked at, or what its memo has of it."""
        self.parts += 1
        try:
            item = self.feed.pending[-1]
        except IndexError:  # somebody has drawn it
            pass
        if type(item) is Known:
            item = item.slot
        return self.left > 0 and (self.parts % PARTS == 0 or not is_light(item))

    def ready(self) -> bool:
        return self.halted or self.feed.stopped or self.feed.has_room(self)

    def take(self) -> int | Closed:
        return Closed() if self.halted or self.feed.stopped else self.feed.credits(self)

    def report_starvation(self, starved: bool) -> bool:
        return starved

    def can_flush(self) -> bool:
        return False

    def request_flush(self) -> None:
        pass
