"""When tries of a stage's items may start: what waits after a failure, and what holds back the whole stage.

No worker sleeps for any of it. What may not start yet is in the ledger, and whoever waits for the next span wakes when
the window is due.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from numbers import Real
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from fstream._flow.span import Span

__all__ = [
    "LONGEST_BACKOFF",
    "LONGEST_HOLD",
    "Again",
    "Clock",
    "Keys",
    "Limit",
    "Pacing",
    "SharedLimit",
    "Ticket",
    "further_try",
]


#: No wait before a further try is longer than this, in seconds, however often an item has failed.
LONGEST_BACKOFF: Final = 60.0

#: A hook that asks for more than this, in seconds, asks for an item to fail.
LONGEST_HOLD: Final = 300.0

#: After so many doublings each wait is the longest one, and 2.0 to the power of it is still a number.
MOST_DOUBLINGS: Final = 1000


#: A limit's window is longer by this factor than it has to be.
MARGIN: Final = 1.01

#: Until the limit is reached, starts may follow each other faster than it by this factor. It makes up for a busy
#: machine, which wakes waiters late.
FASTER: Final = 1.1

#: What part of a limit may start in one burst.
BURST: Final = 0.05

#: A limit keeps no more than so many times of starts: those that are closer together count as one, at the later time.
KEPT: Final = 1000

#: Sums of costs that differ by less are equal.
ROUNDED: Final = 1e-9


#: Gives the time, in seconds.
Clock: TypeAlias = Callable[[], float]


class Again(NamedTuple):
    """A further try of an item: from so many seconds on, and none of its whole stage before *hold* seconds."""

    after: float
    hold: float = 0.0


def further_try(
    retry_on: Any, backoff: float, error: Exception, tries: int, draw: Callable[[], float]
) -> Again | None:
    """Decide whether an item is tried again that has failed so many times, at last with *error*; None if not.

    *retry_on* is a class of exceptions, a tuple of them, or a hook, which is called. *draw* gives numbers of 0 to 1.
    """
    said: Any
    if isinstance(retry_on, type | tuple):
        said = isinstance(error, retry_on)
    else:
        said = retry_on(error)
    if said is False:
        return None
    if said is True:
        # Full jitter: where many have failed at once, their further tries are spread over all of the time.
        most = min(LONGEST_BACKOFF, backoff * 2.0 ** min(tries - 1, MOST_DOUBLINGS))
        return Again(most * draw() if most > 0 else 0.0)
    if isinstance(said, bool) or not isinstance(said, Real):
        raise TypeError(f"retry_on must give True, False or a number of seconds, got {said!r}")
    seconds: Any = said
    if not seconds >= 0:  # nor is what is not a number
        raise ValueError(f"retry_on must give at least 0 seconds, got {said!r}")
    return None if seconds > LONGEST_HOLD else Again(float(seconds), float(seconds))


class Limit:
    """At most *n* starts in any window of *per* seconds, and no more than a twentieth of them in one burst.

    Two accounts say so. The *log* has what started in the last *per* seconds, so the limit is strict. The *bucket*
    fills a little faster than the limit, and holds a twentieth of *n*: it spreads the starts over the window, and what
    came late is made good. A bucket alone would either exceed the limit by what it holds, or stay as far below it.

    A start may have a cost other than 1. The caller brings the time, and lets one call in at a time.
    """

    def __init__(self, n: float, per: float) -> None:
        #: For less than one start in a window it is one start in a longer window.
        self.n = max(1.0, n)
        #: f begins a little later than it is counted, now more, now less. So the window is longer by a hundredth.
        self.per = per * max(1.0, 1 / n) * MARGIN
        self.speed = FASTER * self.n / self.per
        #: Half a start more than one: what is late by less than half of the time between two starts is made good.
        self.burst = max(1.5, BURST * self.n)
        self.bucket = self.burst
        #: When the bucket was looked at last, in seconds of the caller's clock.
        self.looked = 0.0
        #: Times of starts, and what started then.
        self.log: deque[list[float]] = deque()
        #: What the log has, and what is counted and in no log yet.
        self.used = 0.0

    def look(self, now: float) -> None:
        """Bring the accounts up to the time *now*."""
        if self.looked - now > self.per:  # another clock, of a simulation say
            self.used -= sum(each[1] for each in self.log)
            self.log.clear()
            self.looked, self.bucket = now, self.burst
        elif now > self.looked:
            self.bucket = min(self.burst, self.bucket + (now - self.looked) * self.speed)
            self.looked = now
        while self.log and self.log[0][0] + self.per <= now:
            self.used -= self.log.popleft()[1]

    def grant(self, now: float, most: int, cost: float = 1.0) -> int:
        """Count up to *most* starts of a *cost* each that may begin now; give how many."""
        if most <= 0 or cost <= ROUNDED:
            return most
        self.look(now)
        # What is dearer than the bucket is large starts when that is full, and leaves a debt.
        filled = self.bucket if cost <= self.burst else max(self.bucket, cost * (self.bucket >= self.burst))
        room = min(filled, self.n - self.used)
        count = min(most, int(room / cost + ROUNDED))
        if count <= 0:
            if self.opens(now, cost) > now:
                return 0
            count = 1  # but for rounding
        self.bucket -= count * cost
        self.used += count * cost
        return count

    def start(self, now: float, cost: float) -> None:
        """What was counted begins, all together of that *cost*."""
        if self.log and now - self.log[-1][2] < self.per / KEPT:  # counted as late as the last of them
            self.log[-1][0] = max(now, self.log[-1][0])
            self.log[-1][1] += cost
        else:
            self.log.append([now, cost, now])

    def give_back(self, cost: float, when: float | None = None) -> None:
        """What was counted does not begin; it was said to begin at the time *when*, if at all."""
        self.bucket = min(self.burst, self.bucket + cost)
        if when is None:
            self.used -= cost
            return
        for each in self.log:
            if each[0] >= when:
                part = min(cost, each[1])
                each[1] -= part
                self.used -= part
                return

    def began(self, cost: float, counted: float, began: float) -> None:
        """What was counted at the time *counted* has begun at the time *began*."""
        if began - counted > self.per / KEPT:
            for each in self.log:
                if each[0] >= counted:
                    part = min(cost, each[1])
                    each[1] -= part
                    self.log.append([max(began, self.log[-1][0]), part, began])
                    return

    def opens(self, now: float, cost: float = 1.0) -> float:
        """The time from which a start of that *cost* may begin."""
        if cost <= ROUNDED:
            return now
        self.look(now)
        opens = now + max(0.0, min(cost, self.burst) - self.bucket) / self.speed
        over = self.used + cost - self.n - ROUNDED
        for time, part, _ in self.log:
            if over <= 0:
                return opens
            over -= part
            opens = max(opens, time + self.per)
        # What is left is counted, and begins later: not before now.
        return opens if over <= 0 else now + self.per


class SharedLimit(Protocol):
    """A `Limit` for several users at once, in any threads."""

    def grant(self, now: float, most: int, cost: float = 1.0) -> int: ...

    def start(self, now: float, cost: float) -> None: ...

    def give_back(self, cost: float, when: float | None = None) -> None: ...

    def began(self, cost: float, counted: float, began: float) -> None: ...

    def opens(self, now: float, cost: float = 1.0) -> float: ...


class Ticket(NamedTuple):
    """An item with what its stage looks at before it starts."""

    item: Any
    key: Any = None
    cost: float = 1.0


class Keys:
    """At most *per_key* items of one key at work at once: an item has a place of its key, or is parked until then.

    A span has its place from when it may be taken until its worker is through with it. Each has one item, and a ticket.

    Invariant: a key has an entry only while an item of it has a place.
    """

    def __init__(self, per_key: int) -> None:
        self.per_key = per_key
        #: How many places of a key are taken.
        self.taken: dict[Any, int] = {}
        self.placed: set[Span] = set()
        #: Spans that wait for a place of their key, with their start: heaps. The first in order is the next.
        self.parked: dict[Any, list[tuple[int, Span]]] = {}

    def admit(self, span: Span) -> bool:
        """Give *span* a place, if there is one; else park it."""
        key = span.ticket.key
        if key is None:
            return True
        taken = self.taken.get(key, 0)
        if taken >= self.per_key:
            heappush(self.parked.setdefault(key, []), (span.start, span))
            return False
        self.taken[key] = taken + 1
        self.placed.add(span)
        return True

    def leave(self, span: Span) -> Span | None:
        """Take the place of *span* from it, if it has one; give the span that has that place now, if one was parked."""
        if span not in self.placed:
            return None
        self.placed.remove(span)
        key = span.ticket.key
        if key in self.parked:
            _, after = heappop(self.parked[key])
            if not self.parked[key]:
                del self.parked[key]
            self.placed.add(after)
            return after
        self.taken[key] -= 1
        if not self.taken[key]:
            del self.taken[key]
        return None

    def cut(self, index: int) -> None:
        """Park nothing from *index* on."""
        for key, spans in list(self.parked.items()):
            self.parked[key] = sorted(each for each in spans if each[0] < index)
            if not self.parked[key]:
                del self.parked[key]


class Pacing:
    """Whether tries of a stage may start now, and from when on."""

    def __init__(
        self,
        clock: Clock,
        rate: SharedLimit | None = None,
        keys: Keys | None = None,
        *,
        ticketed: bool = False,
    ) -> None:
        self.clock = clock
        self.rate = rate
        self.keys = keys
        #: What comes to the stage are tickets.
        self.ticketed = ticketed
        #: No try starts before this time, in seconds of the clock.
        self.held_until = 0.0

    def hold(self, until: float) -> None:
        """Let no try start before the time *until*. Of several holds the latest end counts."""
        self.held_until = max(self.held_until, until)

    def opens(self, cost: float) -> float:
        """The time from which a try of that *cost* may start."""
        if self.rate is None:
            return self.held_until
        return max(self.held_until, self.rate.opens(self.clock(), cost))
