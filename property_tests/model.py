"""What one stream may do, by the contract alone: a pure model, without threads, clocks or fstream.

What `next` brings is an *event*: ("output", x), ("failed", n) for the error of item n, ("died", n) for the death of the
worker that had it, ("source failed", None), or the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import inf
from typing import Any

Event = tuple[str, Any]
END: Event = ("end", None)
SOURCE_FAILED: Event = ("source failed", None)


@dataclass(frozen=True)
class Made:
    """What f makes of an item: true and iterable as far as it has parts."""

    number: int
    size: int
    answered: bool = False

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Any]:
        return ((self.number, part, self.answered) for part in range(self.size))


@dataclass(frozen=True)
class Item:
    """An item, which says what becomes of it. Numbers rise along the source."""

    number: int
    size: int = 1
    #: On how many tries f raises.
    fails: int = 0
    #: Where f waits, if anywhere.
    gate: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Options:
    """What the stage was told."""

    kind: str
    verb: str
    workers: int
    maxsize: int | None
    ordered: bool
    retries: int
    on_error: str

    @property
    def in_order(self) -> bool:
        return self.ordered or self.kind == "sync"

    @property
    def at_once(self) -> int:
        """How many items may be worked on at least."""
        return min(self.workers, self.maxsize or self.workers)

    @property
    def bound(self) -> float:
        """How many items the stage may hold; by itself as many as it takes a consumer that does not wait for it."""
        if self.kind == "sync":
            return 1
        return 256 * self.workers if self.maxsize is None else self.maxsize or inf

    def tries(self, item: Item) -> int:
        return min(item.fails, self.retries) + 1

    def events(self, item: Item) -> deque[Event]:
        """All that the consumer sees of *item*."""
        made = Made(item.number, item.size)
        if item.fails > self.retries:
            if self.on_error == "raise":
                return deque([("failed", item.number)])
            if self.on_error == "skip":
                return deque()
            made = Made(item.number, 1, answered=True)
        outputs = {"pmap": [made], "pfilter": [item] * bool(made), "pflat_map": made, "peach": []}[self.verb]
        return deque(("output", output) for output in outputs)


class Model:
    """What has been pulled, is held, was given, and how it may go on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.asked = self.over = False
        #: The consumer has come when there was nothing for it.
        self.waited = False
        #: What the source is to yield.
        self.unpulled: deque[Item] = deque()
        #: How it is to end.
        self.ending: Event | None = None
        self.pulled: set[int] = set()
        #: Items that all has come of, if that was anything.
        self.seen: set[int] = set()
        #: What is still to come of each item, pulled or not, that is not done with; in the source's order.
        self.to_come: dict[int, deque[Event]] = {}
        #: Items whose gate is closed.
        self.blocked: set[int] = set()
        #: Items that are tried more than once.
        self.tried_again: set[int] = set()
        #: The item of the output that the consumer has in its hands.
        self.in_hand: int | None = None
        #: Items whose workers may have been killed, for good.
        self.killed: set[int | None] = set()

    def feed(self, item: Item) -> None:
        self.unpulled.append(item)
        events = self.options.events(item)
        if item.gate is not None:
            self.blocked.add(item.number)
        if self.options.tries(item) > 1:
            self.tried_again.add(item.number)
        if events or (self.blocked if self.options.in_order else item.gate):
            self.to_come[item.number] = events

    def pull(self) -> Item:
        item = self.unpulled.popleft()
        self.pulled.add(item.number)
        return item

    def kill(self) -> None:
        """A worker is killed, and there are no retries."""
        self.killed |= self.pulled - self.seen | {None}

    def ask(self) -> None:
        """The consumer comes for an output: it is through with the last one."""
        self.asked, self.in_hand = True, None
        self.waited |= not self.must()
        self._tidy()

    def open(self, number: int) -> None:
        """f of that item waits no more."""
        self.blocked.discard(number)
        self._tidy()

    def must(self) -> set[Event]:
        """What `next` must bring, one of these, whatever else happens; none if it may have to wait."""
        if self.over:
            return {END}
        reached = [events[0] for events in self._reached() if events]
        if reached:
            return set(reached[:1] if self.options.in_order else reached)
        return {self.ending} if self.ending and not self.blocked else set()

    def may(self) -> set[Event]:
        """What else it may bring: the death of a worker, in its item's place, or what came out of turn."""
        free = islice(filter(None, self._before_blocked()), 1) if self.options.in_order else self._free()
        early = {events[0] for events in free if events}
        deaths = self.killed - self.to_come.keys()
        for number, events in self.to_come.items():
            deaths |= self.killed & {number}
            if self.options.in_order and (events or number in self.blocked):
                break
        return early | {("died", number) for number in deaths}

    def give(self, event: Event) -> None:
        """*event* has come: an output, or the end in one of its forms."""
        self.over = event[0] != "output"
        for number, events in self.to_come.items():
            if events and events[0] == event:
                events.popleft()
                self.in_hand = number
                if not events:
                    self.seen.add(number)
                    self.killed.discard(number)
                break
        self._tidy()

    def held(self) -> int:
        """How many items the stage holds at least: pulled, and not out of the consumer's hands."""
        return len(self.to_come.keys() & self.pulled)

    def _tidy(self) -> None:
        """Forget the items that are done with. What waits for its turn behind one in work is not."""
        for number, events in list(self.to_come.items()):
            if number in self.blocked:
                if self.options.in_order:
                    break
            elif not events and number != self.in_hand:
                del self.to_come[number]

    def _reached(self) -> Iterator[deque[Event]]:
        """What comes of the items that blocked ones keep neither from a worker nor from their turn.

        An item may wait behind a blocked one in its worker's hands, until another worker is free. A process has its
        next item at hand while it is at one. So it may be at a blocked one when an item before that is to be tried
        again.
        """
        a_worker_is_free = len(self.blocked) < self.options.at_once
        if a_worker_is_free and not self.options.in_order:
            return self._free()
        is_at_hand = self.options.kind == "process" and not a_worker_is_free
        return self._before_blocked(self.tried_again if is_at_hand else ())

    def _before_blocked(self, others: Collection[int] = ()) -> Iterator[deque[Event]]:
        """What comes of the items before the first one that is blocked, or is one of *others*."""
        return (
            events
            for _, events in takewhile(
                lambda pair: pair[0] not in self.blocked and pair[0] not in others, self.to_come.items()
            )
        )

    def _free(self) -> Iterator[deque[Event]]:
        """What comes of the items that are not blocked."""
        return (events for number, events in self.to_come.items() if number not in self.blocked)
