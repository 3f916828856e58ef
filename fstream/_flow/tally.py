"""What a stage counts of itself, always: once a span, so that it costs nothing when nobody looks."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from enum import Enum
from math import frexp
from time import clock_gettime
from typing import Final, TypeAlias

__all__ = ["Costs", "Hold", "PartCounts", "Parts", "Tally"]

#: Into how many parts a sketch divides each doubling of a cost: what it gives is less than 4.5 % off.
DIVISIONS: Final = 16


#: No clock tells less than this from nothing, in seconds.
NOTHING: Final = 1e-9


class Hold(Enum):
    """What keeps workers from items that are there."""

    RATE = "rate"
    KEY = "key"
    RETRIES = "retries"
    WORKERS = "workers"


class Costs:
    """A sketch of what items cost: how many there were of each size. It has 50 sizes for each factor of ten."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, cost: float, count: int) -> None:
        """Note *count* items of *cost* seconds each."""
        fraction, exponent = frexp(cost or NOTHING)
        size = exponent * DIVISIONS + int(fraction * 2 * DIVISIONS)
        self.counts[size] += count

    def quantile(self, share: float) -> float | None:
        """Give what this share of the items does not cost more than, in seconds; None if there are no items."""
        counts = self.counts.copy()
        left = share * sum(counts.values())
        for size in sorted(counts):
            left -= counts[size]
            if left <= 0:
                exponent, part = divmod(size - DIVISIONS, DIVISIONS)
                return float((part + DIVISIONS + 0.5) / (2 * DIVISIONS) * 2.0**exponent)
        return None


#: What a worker that is far away counts of `Parts`, as it travels: dropped, seconds.
PartCounts: TypeAlias = tuple[list[int], list[float]]


class Parts:
    """What the parts of a stage that stands for several count, each by itself."""

    __slots__ = ("dropped", "failed", "retried", "seconds")

    def __init__(self, count: int) -> None:
        #: How many items each part has left out, those that failed there among them.
        self.dropped = [0] * count
        #: How many items failed there for good, and how many further tries there were.
        self.failed = [0] * count
        self.retried = [0] * count
        #: What each part took of some items, in seconds.
        self.seconds = [0.0] * count

    def counts(self) -> PartCounts | None:
        """Give them all, if there are any."""
        return (self.dropped, self.seconds) if any(self.dropped) or any(self.seconds) else None

    def add(self, more: PartCounts) -> None:
        dropped, seconds = more
        self.dropped = [one + other for one, other in zip(self.dropped, dropped)]
        self.seconds = [one + other for one, other in zip(self.seconds, seconds)]


class Tally:
    """The numbers of one stage. Under the run's lock, but for items that wait in tasks, which have one thread."""

    __slots__ = (
        "began", "blocked", "blocks", "busy", "clocks", "costs", "cpu", "failed", "given", "held_by", "held_up", "idle",
        "known", "latest", "lone", "lone_begun", "parts", "pumped", "retried", "since", "starved", "taken",
    )  # fmt: skip

    def __init__(self) -> None:
        self.taken = self.given = self.failed = self.retried = 0
        #: How many items the memo has answered, or another item of an equal key.
        self.known = 0
        #: The time that workers have spent on items, in seconds.
        self.busy = 0.0
        #: The time that they had nothing to do for want of items, and for want of room, in seconds. It is noted while
        #: somebody waits, so it is not all of it.
        self.starved = self.blocked = 0.0
        #: When a worker first came or waited, and when one last came: in seconds of the run's clock.
        self.began: float | None = None
        self.latest = 0.0
        #: How many workers have nothing to do since the time *since*, as far as is known, and that they wait for room.
        self.idle = 0
        self.since = 0.0
        self.blocks = False
        #: What lets none of them start, though there are items.
        self.held_by: Hold | None = None
        #: How long each has held workers up, in seconds: part of `starved`.
        self.held_up: dict[Hold, float] = {}
        #: How many workers have lone items in hand, and the sum of the times at which they took them.
        self.lone = 0
        self.lone_begun = 0.0
        #: The CPU time that threads of this process have used for it, in seconds: those that have ended, and the clocks
        #: of those that have not. A thread counts all that it does, and calls nothing for it while it is at work.
        self.cpu = 0.0
        self.clocks: set[int] = set()
        #: How long the thread was at work that pickles what goes to its worker processes, and unpickles what they give.
        self.pumped = 0.0
        self.costs = Costs()
        #: What its parts count, if it stands for several stages.
        self.parts: Parts | None = None

    def come(self, now: float) -> None:
        """A worker comes for items."""
        if self.idle:
            self.end_wait(now)
        elif self.began is None:
            self.began = now
        self.latest = now

    def wait(self, now: float, idle: int, for_room: bool, held_by: Hold | None = None) -> None:
        """From *now* on so many workers have nothing to do: they wait for room, or else for items; or are held up."""
        if self.idle:
            self.end_wait(now)
        elif idle and self.began is None:  # worker processes that start have not come yet
            self.began = now
        self.since, self.idle, self.blocks, self.held_by = now, idle, for_room, held_by

    def end_wait(self, now: float) -> None:
        """Count how long workers have waited."""
        if self.held_by is not None:
            self.hold_up(self.held_by, self.idle * max(0.0, now - self.since))
        self.starved, self.blocked = self.waited(now)
        self.idle = 0

    def hold_up(self, hold: Hold, seconds: float) -> None:
        """Workers were held up for so many *seconds*, all together."""
        self.held_up[hold] = self.held_up.get(hold, 0.0) + seconds

    def waited(self, now: float) -> tuple[float, float]:
        """How long workers have waited for items, and for room, by *now*."""
        seconds = self.idle * max(0.0, now - self.since)
        return (
            (self.starved, self.blocked + seconds) if self.blocks else (self.starved + seconds, self.blocked)
        )

    def begin_lone(self, now: float) -> None:
        """A worker takes a lone item."""
        self.lone += 1
        self.lone_begun += now

    def end_lone(self, begun: float, now: float, count: int) -> None:
        """It has come back with *count* of them, one after the other."""
        self.lone -= 1
        self.lone_begun -= begun
        self.latest = now
        if count:
            self.did(count, now - begun)

    def cpu_seconds(self) -> float:
        """Give the CPU time that its threads have used."""
        seconds = self.cpu
        for clock in self.clocks:
            with suppress(OSError):  # in a fork there are none of them
                seconds += clock_gettime(clock)
        return seconds

    def did(self, count: int, seconds: float) -> None:
        """A worker has spent so many *seconds* on *count* items."""
        self.busy += seconds
        self.costs.add(seconds / count, count)
