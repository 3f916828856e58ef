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
from weakref import ReferenceType, ref

from fstream._flow.span import Span

__all__ = [
    "LONGEST_BACKOFF",
    "LONGEST_HOLD",
    "Again",
    "Clock",
    "Keys",
    "Limit",
    "Pacing",
    "Places",
    "SharedLimit",
    "Ticket",
    "further_try",
]


#: No wait before a further try is longer than this, in seconds, however often an item has failed.
LONGEST_BACKOFF: Final = 60.0

#: A hook that asks for more than this, in seconds, asks for an item to fail.
LONGEST_HOLD: Final = 300.0

#: A wait doubles no more often than this. By then each wait is the longest one, and 2.0 ** 1000 is still a float.
MOST_DOUBLINGS: Final = 1000


#: No window of a limit is longer than this, in seconds: 31 years. No lock can wait for 300 years, and an infinite
#: window would have no speed.
LONGEST_WINDOW: Final = 1e9

#: A limit's window is longer by this factor than was asked for: f begins a little later than its start is counted, now
#: more, now less.
MARGIN: Final = 1.01

#: Starts may follow each other faster than the limit by this factor, while the window has room for them. So what a busy
#: machine started late is made good.
FASTER: Final = 1.1

#: What part of a limit may start in one burst.
BURST: Final = 0.05

#: A limit keeps no more than so many times of starts. Starts that are closer together than ``per / KEPT`` count as one,
#: at the time of the last of them.
KEPT: Final = 1000

#: Keys that no item has any more are forgotten only when there are more keys than this.
FEW_KEYS: Final = 256

#: Sums of costs that differ by less are equal.
ROUNDED: Final = 1e-9


#: Gives the time, in seconds.
Clock: TypeAlias = Callable[[], float]


class Again(NamedTuple):
    """An item is tried again in *after* seconds or later. No try of its stage starts before *hold* seconds are over."""

    after: float
    hold: float = 0.0


def further_try(
    retry_on: Any, backoff: float, error: Exception, tries: int, draw: Callable[[], float]
) -> Again | None:
    """Decide whether an item that has failed *tries* times, the last time with *error*, is tried again; None if not.

    *retry_on* is a class of exceptions, a tuple of them, or a hook, which is called. *draw* gives a number from 0 to 1.
    *backoff* is the longest first wait, in seconds. What a hook gives that is no bool and no number of seconds raises
    `TypeError`; what is below 0, `ValueError`.
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
        first = min(LONGEST_BACKOFF, backoff)  # an int may be larger than any float
        most = min(LONGEST_BACKOFF, first * 2.0 ** min(tries - 1, MOST_DOUBLINGS))
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
        #: The most that may start in a window. Less than one start is one in a longer window.
        self.n = max(1.0, n)
        #: How long the window is, in seconds.
        self.per = min(LONGEST_WINDOW, per * max(1.0, 1 / n)) * MARGIN
        #: How fast the bucket fills, in starts a second.
        self.speed = FASTER * self.n / self.per
        #: What the bucket holds at most: at least one start and a half. The half makes good a start that is late by up
        #: to half of the time between two starts.
        self.burst = max(1.5, BURST * self.n)
        #: What the bucket holds now. It is less than 0 after a start that cost more than *burst*.
        self.bucket = self.burst
        #: When the bucket was looked at last, in seconds of the caller's clock.
        self.looked = 0.0
        #: Of each start, or of those that count as one: from when they count, what they cost together, and when the
        #: first of them began.
        self.log: deque[list[float]] = deque()
        #: The cost of all that is in the log, or is counted and will be there once it begins.
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
    """An item with what its stage looks at before it starts. What stands for its key is compared by identity."""

    item: Any
    key: object | None = None
    cost: float = 1.0


class Place:
    """Stands for a key."""

    __slots__ = ("__weakref__",)


class Places:
    """One `Place` for all equal keys, while anybody has it.

    Keys are the user's, and so is what hashes and compares them. A window, which works under the run's lock, is given
    places alone: equal keys meet here, before.
    """

    def __init__(self) -> None:
        self.places: dict[Any, ReferenceType[Place]] = {}
        #: With so many keys, those that nobody has are forgotten.
        self.most = FEW_KEYS

    def of(self, key: Any) -> Place | None:
        """Give the place of *key*; None is no key."""
        if key is None:
            return None
        known = self.places.get(key)
        if known is not None and (place := known()) is not None:
            return place
        self.places[key] = ref(place := Place())
        if len(self.places) > self.most:
            self.places = {key: each for key, each in self.places.items() if each() is not None}
            self.most = max(FEW_KEYS, 2 * len(self.places))
        return place


class Keys:
    """At most *per_key* items of one key at work at once: an item has a place of its key, or is parked until then.

    A span has its place from when it may be taken until its worker is through with it. Each has one item, and a ticket.

    Invariant: a key has an entry only while an item of it has a place.
    """

    def __init__(self, per_key: int) -> None:
        self.per_key = per_key
        #: How many places of a key are taken.
        self.taken: dict[object, int] = {}
        self.placed: set[Span] = set()
        #: Spans that wait for a place of their key, with their start: heaps. The first in order is the next.
        self.parked: dict[object, list[tuple[int, Span]]] = {}

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
    """Says from when on tries of a stage may start.

    The *clock* gives seconds. *rate* is the limit, None for no limit; *keys* says which items wait for others of their
    key, None where the stage has no key. If it is *ticketed*, its items come as a `Ticket` each.
    """

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
