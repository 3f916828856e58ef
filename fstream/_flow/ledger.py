"""Where each item of a stage is, from the draw upstream until its slot becomes outputs.

upstream --draw--> in a worker's hands --> finished --fresh--> Outbox
                     |             ^
steal, lose, retry   |             | hand_out
                     v             |
        delayed --> requeued, lone
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf

from fstream._flow.pacing import Keys
from fstream._flow.span import Item, Slot, Span

__all__ = ["Ledger"]


class Ledger:
    """Which spans are out, what is to be worked on again, and what nobody wants any more.

    Invariant: an item is in a span of `spans`, or in one of `requeued` or `delayed`, or parked with its key, or lone.
    """

    def __init__(self, *, loses: bool, keys: Keys | None = None) -> None:
        #: Of which keys no more items may start; None where there are no keys.
        self.keys = keys
        #: What a worker has in hand may come back: the worker may be lost, or the item is tried again.
        self.loses = loses
        #: Index of the next item to draw.
        self.next_index = 0
        #: Spans by the index of their first item: those that workers have, and closed ones until their slots are
        #: outputs.
        self.spans: dict[int, Span] = {}
        #: How many spans are in the hands of workers.
        self.open = 0
        #: The open spans of several items that nobody has stolen from yet.
        self.stealable: set[Span] = set()
        #: Spans whose items were stolen or lost, in order. They are worked on before anything new is drawn.
        self.requeued: list[Span] = []
        #: How many items these have.
        self.requeued_items = 0
        #: Spans that may be worked on again from a time on, with that time and their start: a heap.
        self.delayed: list[tuple[float, int, Span]] = []
        #: Lone items, with their indices: drawn ahead for tasks that wait side by side. A task takes one without the
        #: lock, and leaves its slot in `lone_slots`. Invariant: while there are lone items, the window holds nothing
        #: else that is not started.
        self.lone_items: deque[tuple[int, Item]] = deque()
        #: The slots of lone items, by their indices, until they are made into outputs.
        self.lone_slots: dict[int, Slot] = {}
        #: How many lone items have not been made into outputs yet.
        self.lone = 0
        #: How many items needed no worker, as their slots were known.
        self.known = 0
        #: Items that wait for the slot of another one, by their indices. Each is an open span that no worker has.
        self.waiting: dict[int, Span] = {}
        #: Nothing is wanted from this index on: it is not started any more. Infinite before a failure or a stop.
        self.cutoff = inf

    @property
    def busy(self) -> int:
        """How many workers have something in hand. A lone item that nobody has taken yet counts as taken."""
        return self.open + self.lone - len(self.lone_slots) - len(self.waiting)

    @property
    def worked_off(self) -> int:
        """How many items workers have worked off."""
        at_work = sum(len(span.items) - len(span.slots) for span in self.spans.values() if not span.closed)
        return self.next_index - self.known - at_work - self.to_start - self.lone + len(self.lone_slots)

    @property
    def to_start(self) -> int:
        """How many items are not started, and not lone."""
        parked = 0 if self.keys is None else sum(map(len, self.keys.parked.values()))
        return self.requeued_items + len(self.delayed) + parked

    def latest_done(self, most: int) -> list[tuple[Item, Slot]]:
        """Give up to *most* finished items with their slots, to weigh. They come from as many spans as possible."""
        latest = list(islice((span for span in reversed(self.spans.values()) if span.slots), most))
        each = -(-most // (len(latest) or 1))
        places = [(span, at) for span in latest for at in range(len(span.slots))[-each:]]
        return [(span.items[at], span.slots[at]) for span, at in places[:most]]

    @property
    def settled(self) -> bool:
        """Nothing of what workers have in hand can come back."""
        if not (self.stealable or self.loses):
            return True
        return all(span.closed or span.start >= self.cutoff for span in self.spans.values())

    def span_at(self, index: int) -> Span | None:
        """Give the span that begins at *index*, if its slots are not all out.

        Not by `dict.get`. That of the free-threaded 3.13 locks the dict twice for a value that another thread has made,
        and gives the CPU away forty times before it sees that it waits for itself: 15 % of the time of small spans.
        """
        return self.spans[index] if index in self.spans else None  # noqa: SIM401

    def hand_out(self, span: Span) -> None:
        """A worker gets *span*."""
        self.spans[span.start] = span
        self.open += 1
        if len(span.items) > 1:
            self.stealable.add(span)

    def close(self, span: Span) -> None:
        """The worker of *span* is through with it."""
        span.closed = True
        self.stealable.discard(span)
        self.open -= 1
        self.give_up_place(span)

    def give_up_place(self, span: Span) -> None:
        """An item of the key of *span* may start, as that is not at work any more."""
        if self.keys is not None and (after := self.keys.leave(span)) is not None:
            self.put(after)

    @property
    def deferred(self) -> bool:
        """There are items that nobody may take yet: they wait for a time, or for others of their key."""
        return bool(self.delayed or (self.keys is not None and self.keys.parked))

    def fresh(self, span: Span) -> list[Slot]:
        """Take the slots of *span* that are new since the last time; forget the span if it has no more to come."""
        slots, given = span.slots, span.given
        span.given = count = len(slots)
        if span.closed or count == len(span.items):  # its worker may not have closed it yet
            del self.spans[span.start]
        # The list itself only if the worker is through with it, because it becomes the items of a span downstream.
        return slots if span.closed and not given else slots[given:count]

    def add_lone(self, items: Sequence[Item]) -> None:
        self.lone_items.extend(enumerate(items, self.next_index))
        self.next_index += len(items)
        self.lone += len(items)

    def add_known(self, items: Sequence[Item], slots: list[Slot]) -> Span:
        """Take in the next items, whose *slots* are known."""
        span = Span(self.next_index, items)
        self.next_index += len(items)
        self.known += len(items)
        span.slots, span.sent, span.closed = slots, True, True
        self.spans[span.start] = span
        return span

    def next_lone(self) -> Span:
        """Make a span of a lone item. Only the thread of the loop whose tasks take lone items comes here."""
        index, item = self.lone_items.popleft()
        self.lone -= 1
        return Span(index, [item])

    def fresh_lone(self, indices: Iterable[int]) -> list[Slot]:
        """Take the slots of the lone items at *indices*."""
        slots = list(map(self.lone_slots.pop, indices))
        self.lone -= len(slots)
        return slots

    def requeue(self, span: Span) -> None:
        """Have the items of *span* worked on by whoever comes next, if there are any and they are wanted."""
        if span.items and span.start < self.cutoff and (self.keys is None or self.keys.admit(span)):
            self.put(span)

    def put(self, span: Span) -> None:
        insort(self.requeued, span, key=lambda span: span.start)
        self.requeued_items += len(span.items)

    def requeue_at(self, span: Span, when: float) -> None:
        """Requeue *span* at the time *when*."""
        if span.start < self.cutoff:
            heappush(self.delayed, (when, span.start, span))

    def wake(self, now: float) -> None:
        """Requeue what has waited up to *now*."""
        while self.delayed and self.delayed[0][0] <= now:
            self.requeue(heappop(self.delayed)[2])

    def next_requeued(self) -> Span:
        """Take the span of `requeued` that is first in order."""
        span = self.requeued.pop(0)
        self.requeued_items -= len(span.items)
        return span

    def steal_from(self, span: Span) -> None:
        """Take from the worker of *span* the items that it has not started, and requeue them."""
        self.stealable.discard(span)
        rest = span.steal()
        if rest is not None:
            self.requeue(rest)

    def requeue_apart(self, span: Span, size: int) -> None:
        """Requeue the items of *span* that have no slot in spans of *size* items, because one of them is to blame."""
        rest = span.split(len(span.slots))
        for at in range(0, len(rest.items), size):
            suspects = Span(rest.start + at, rest.items[at : at + size], 0 if at else rest.tries)
            suspects.ticket, suspects.progress = rest.ticket, rest.progress
            self.requeue(suspects)

    def lose(self, span: Span, at: int | None) -> Span | None:
        """Take apart *span*, whose worker is gone: give the item at position *at*, where the worker was, if any.

        The finished slots stay. Items that the worker did not start, or whose slots were lost with it, are requeued.
        """
        self.steal_from(span)
        span.slots = list(span.slots)  # a thread that was abandoned may still append to the old list
        position = len(span.slots)
        at = position if at is None else at
        if at >= len(span.items):
            return None
        self.requeue(span.split(at + 1))
        victim = span.split(at)
        victim.tries += 1
        self.requeue(span.split(position))
        return victim

    def cut(self, index: int) -> None:
        """Have nothing started any more from the item at *index* on."""
        self.cutoff = index
        for span in self.spans.values():
            if span.start >= index:
                span.halt()
        self.waiting = {start: span for start, span in self.waiting.items() if start < index}
        dropped = [span for span in self.requeued if span.start >= index]
        self.requeued = [span for span in self.requeued if span.start < index]
        self.requeued_items = sum(len(span.items) for span in self.requeued)
        if self.keys is not None:
            self.keys.cut(index)
            for span in dropped:
                self.give_up_place(span)
        self.delayed = [each for each in self.delayed if each[1] < index]
        heapify(self.delayed)
        self.lone_items.clear()
