"""What a stage has finished: slots become outputs, in order or not, and wait for the taker downstream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, count, islice, takewhile
from math import inf
from typing import TypeAlias

from fstream._flow.ledger import Ledger
from fstream._flow.protocols import Drawn
from fstream._flow.room import Room
from fstream._flow.sizing import SHORT
from fstream._flow.span import Item, Slot, Span
from fstream._flow.weight import LIGHT

__all__ = ["Outbox", "Outputs"]

#: Makes outputs of slots.
Outputs: TypeAlias = Callable[[list[Slot]], list[Item]]


class Outbox:
    """The outputs that can be drawn, and what is next to become outputs."""

    def __init__(self, ledger: Ledger, room: Room, outputs: Outputs, ordered: bool, one_each: bool) -> None:
        self.ledger = ledger
        self.room = room
        self.outputs = outputs
        self.ordered = ordered
        #: Each slot is one output, so outputs are made only when a taker asks. Where a slot may give no output, slots
        #: are made into outputs as soon as they are finished, and the room of those that give nothing is free at once.
        self.one_each = one_each
        #: Ordered: index of the next item whose outputs go downstream.
        self.head = 0
        #: Lists of outputs that can be drawn, each with the credits that are to be given back by its end.
        self.entries: deque[tuple[list[Item], int]] = deque()
        #: How many outputs of the first entry were drawn.
        self.drawn = 0
        #: How many outputs can be drawn from `entries`.
        self.ready_count = 0

    def next_out(self, index: int) -> bool:
        """Tell whether the outputs of the item at *index* are the next that the taker can take."""
        return not self.ready_count and (index == self.head or not self.ordered)

    def close(self, span: Span) -> None:
        """The worker of *span* is through with it."""
        if self.ordered:
            if span.start == self.head and not self.one_each:
                self.harvest()
        # Another span is in its place if all of it was stolen.
        elif self.ledger.cutoff == inf and self.ledger.span_at(span.start) is span:
            self.enter(self.ledger.fresh(span))

    def harvest(self) -> None:
        """Make outputs of the finished slots: of those next in order, or of all if the stage is unordered."""
        ledger = self.ledger
        spans, lone = ledger.spans, ledger.lone_slots
        parts: list[list[Slot]] = []
        if ledger.lone:
            # A worker leaves a slot, then looks at `head` and `ready_count`. Here it is the other way round. A change
            # of the same dict puts the two in order, as in `Feed.available`.
            lone.pop(-1, None)
        if self.ordered:
            while self.head < ledger.cutoff:  # else an end that was told of would not be one
                if self.head in lone:
                    parts.append(ledger.fresh_lone(takewhile(lone.__contains__, count(self.head))))
                    self.head += len(parts[-1])
                if (span := ledger.span_at(self.head)) is None:
                    break
                parts.append(ledger.fresh(span))
                if self.head in spans:
                    break
                self.head += span.given
        elif ledger.cutoff == inf:  # without order, what is finished after a failure is dropped
            if lone:
                parts.append(ledger.fresh_lone(list(lone)))
            parts += map(ledger.fresh, list(spans.values()))
        if len(parts) > 1 and self.one_each:
            parts = [list(chain.from_iterable(parts))]
        for slots in parts:
            if slots:
                self.enter(slots)

    def enter(self, slots: list[Slot]) -> None:
        """Make outputs of *slots*, and put them where they can be drawn."""
        outputs, credits = self.outputs(slots), len(slots)
        if not outputs:
            self.room.release(credits)
            return
        self.ready_count += len(outputs)
        if len(outputs) == credits < SHORT:
            if self.entries:
                last, owed = self.entries[-1]
                left = len(last) - (self.drawn if len(self.entries) == 1 else 0)
                if len(last) < SHORT and owed == left:  # one output for each item there, too
                    last += outputs
                    self.entries[-1] = last, owed + credits
                    return
            outputs = [*outputs]  # a copy, because the list of a span must not grow
        self.entries.append((outputs, credits))

    def waiting(self, most: int) -> list[Item]:
        """Give up to *most* of the outputs that wait, to weigh. They come from as many entries as possible."""
        each = -(-most // (min(most, len(self.entries)) or 1))
        found: list[Item] = []
        for place, (outputs, _) in enumerate(islice(reversed(self.entries), most), 1):
            drawn = self.drawn if place == len(self.entries) else 0
            found += outputs[max(drawn, len(outputs) - each) :]
        return found[:most]

    def spread(self, most: int) -> float:
        """How many outputs an item has in the mean, of up to *most* of the last entries; at least 1."""
        entries = list(islice(reversed(self.entries), most))
        outputs, credits = sum(len(outputs) for outputs, _ in entries), sum(owed for _, owed in entries)
        if len(entries) == len(self.entries) and entries:
            first, owed = self.entries[0]
            if owed >= len(first) - self.drawn:  # its room is given back output by output
                outputs -= self.drawn
        return max(1.0, outputs / (credits or 1))

    def draw(self, most: int) -> Drawn:
        """Give up to *most* outputs, and the credits for them."""
        entries = self.entries
        parts: list[list[Item]] = []
        credits = 0
        while most > 0 and entries:
            outputs, owed = entries[0]
            position, left = self.drawn, len(outputs) - self.drawn
            if most >= left:
                part = outputs[position:] if position else outputs
                entries.popleft()
                self.drawn = 0
            else:
                part = outputs[position : position + most]
                # Let go of what was drawn. The length stays: this may be the list of a span's slots. Light outputs may
                # be kept until the list is used up: to let them go takes 10 % of the time of the cheapest items.
                if not 0 < self.room.weight < LIGHT:
                    outputs[position : position + most] = [None] * most
                self.drawn += most
                # One output for each item: its room is free once that output is out.
                paid = most if owed >= left else 0
                entries[0] = outputs, owed - paid
                owed = paid
            credits += owed
            parts.append(part)
            most -= len(part)
        drawn = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        self.ready_count -= len(drawn)
        return drawn, credits

    @property
    def has_more(self) -> bool:
        """There are outputs, or there may be some of the held items."""
        ledger = self.ledger
        if self.ready_count:
            return True
        if ledger.cutoff < inf:
            return self.head < ledger.cutoff
        return bool(ledger.spans or ledger.lone or ledger.requeued or ledger.deferred)

    @property
    def has_partial(self) -> bool:
        """The taker may wait for slots of an unfinished span."""
        stealable = self.ledger.stealable
        return self.ledger.span_at(self.head) in stealable if self.ordered else bool(stealable)

    def flush(self) -> None:
        """Steal what is behind the item at work, so that its worker comes to the end of its span, and closes it."""
        for span in list(self.ledger.stealable):
            if span.start == self.head or not self.ordered:
                self.ledger.steal_from(span)
