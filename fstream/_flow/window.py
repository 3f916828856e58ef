"""The decisions of a row of stages: what to take, how much of it, what is next in order, whether there is room.

Plain classes without locks, threads or clocks: the caller holds the run's lock, brings the time and does the waiting.
The same classes serve threads, tasks and processes, and a test can drive them step by step.

    source --> Feed or Slices --draw--> Window --draw--> Window --draw--> consumer
                                        take, done ...    (a stage's workers)

A `Window` is one stage's account: it draws items from its upstream, hands them to the stage's workers as spans, and
keeps what became of them until the taker downstream draws the outputs. An item is *held* by a window from the moment
that it is drawn until its outputs are, and `Room` counts that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from fstream._flow.protocols import Drawn, Upstream
from fstream._flow.room import Room
from fstream._flow.sizing import (
    MAX_CHEAP_PROCESS,
    MAX_SECONDS,
    MAX_SLOW,
    MAX_SPAN,
    NOT_SHARED,
    SHORT,
    SPAN_OF_WORK,
    Numbers,
)
from fstream._flow.span import CLOSED, Closed, Failure, Span

__all__ = ["Window"]


class Window:
    """One stage's account of its items, from upstream's hand to downstream's."""

    prepaid = False

    def __init__(
        self,
        upstream: Upstream,
        room: Room,
        *,
        workers: int,
        ordered: bool,
        outputs: Callable[[list[Any]], list[Any]],
        one_each: bool = False,
        numbers: Numbers,
        loses: bool = True,
    ) -> None:
        self.upstream = upstream
        self.room = room
        self.workers = workers
        self.ordered = ordered
        self.outputs = outputs
        #: Each slot is one output: none is made before it is asked for. Else the room of those that give nothing is to
        #: be free as soon as they are finished.
        self.one_each = one_each
        self.shares = numbers.shares(workers)
        self.span_seconds = numbers.span_seconds
        self.longest_span = numbers.longest_span
        self.most_cheap = numbers.most_cheap
        #: How much work in seconds is not shared out.
        self.undivided = NOT_SHARED * numbers.span_seconds
        #: Seconds that have been worked.
        self.worked = 0.0
        #: A worker may be lost in the middle of a span, and what it had be run again.
        self.loses = loses
        self.remote = numbers.remote
        #: Index of the next item to draw.
        self.next_index = 0
        #: Ordered: index of the next item whose outputs go downstream.
        self.head = 0
        #: Spans that workers have, or that are closed and not yet given, by the index of their first item.
        self.spans: dict[int, Span] = {}
        #: Spans to be worked on before anything new is drawn, in no order. Their items are held.
        self.requeued: list[Span] = []
        #: Lone items: drawn before anybody asked for them, with their indices, for workers that wait side by side. Such
        #: a worker takes one without the lock, and leaves its slot in `lone_slots`. Invariant: while there are some,
        #: nothing else is held that is not started.
        self.lone_items: deque[tuple[int, Any]] = deque()
        #: The slots of lone items, by their indices, until they go downstream.
        self.lone_slots: dict[int, Any] = {}
        #: How many lone items have not gone downstream yet.
        self.lone = 0
        #: Lists of outputs ready to be drawn, with how many of them have been, and the items whose room is given back
        #: when the last one is.
        self.entries: deque[list[Any]] = deque()
        self.ready_count = 0
        #: How many spans are in the hands of workers.
        self.open = 0
        #: Seconds an item takes, measured; None before the first one.
        self.cost: float | None = None
        self.last_size = 1
        #: The last span was smaller than its worker could have taken, for want of room.
        self.cramped = False
        #: It was so for want of items: upstream had no more.
        self.lean = False
        #: How many items have gone through, and how many must have before it may hold more again: like TCP's slow
        #: start, as a machine that stalls is no reason to hold more.
        self.gone = 0
        self.growable_at = 0.0
        #: The open spans of several items that nobody has taken the rest of.
        self.stealable: set[Span] = set()
        #: The taker downstream has waited long, perhaps for slots of an unfinished span of a remote worker.
        self.flush_requested = False
        self.failure: Failure | None = None
        self.stopped = False
        #: What upstream had more when it was last looked. Nothing between there and here has failed while it goes on:
        #: all that is upstream of a failure is stopped.
        self.giver: Upstream = upstream
        #: How it ended, once it has without a failure of its own.
        self.ended: Closed | None = None

    # ------------------------------------------------------------------------------------ the stage's workers

    @property
    def busy(self) -> int:
        """How many workers have something in hand, or are about to: lone items that nobody has taken count."""
        return self.open + self.lone - len(self.lone_slots)

    @property
    def backlog(self) -> int:
        """How many items there are to be taken."""
        held = len(self.requeued) + len(self.lone_items)
        return held if self.failure else held + self._drawable()

    def takable(self) -> bool:
        if self.stopped:
            return False
        if self.requeued or self.lone_items:
            return True
        if self.failure is not None:
            return False
        return self._drawable() > 0

    def take(self, now: float, most: int | None = None) -> Span | None:
        """Give a worker its next span, of *most* items; None if there is none now."""
        if self.stopped:
            return None
        most = self._fair(MAX_SPAN if most is None else most)
        span: Span | None
        if self.requeued:
            span = self._take_requeued(most)
        elif self.lone_items:
            span = self._take_lone()
        else:
            span = self._draw_span(most)
        if span is None:
            return None
        span.begun = now
        self.last_size = size = len(span.items)
        self.spans[span.start] = span
        self.open += 1
        if size > 1:
            self.stealable.add(span)
        return span

    def draw_lone(self, most: int) -> None:
        """Draw up to *most* lone items, if there is nothing that is to be started before them, nor can be."""
        if self.loses or self.stopped or self.failure is not None or self.requeued or self.stealable:
            return
        most = min(self._drawable(), most)
        if most > 0:
            items = self._draw(most)
            self.lone_items.extend(enumerate(items, self.next_index))
            self.next_index += len(items)
            self.lone += len(items)
            # They are for workers that wait: each is taken to last as long as a span.
            seconds = self.span_seconds
            self.cost = seconds + ((self.cost or seconds) - seconds) * 0.5 ** len(items)

    def _take_lone(self) -> Span:
        """Make a span of a lone item, in the one thread that the tasks who take those live in."""
        index, item = self.lone_items.popleft()
        self.lone -= 1
        return Span(index, [item])

    def _take_requeued(self, most: int) -> Span:
        first = min(range(len(self.requeued)), key=lambda n: self.requeued[n].start)
        span = self.requeued.pop(first)
        size = self._share(len(span.items), most)
        if size < len(span.items):
            self.requeued.append(span.split(size))
        return span

    def _draw_span(self, most: int) -> Span | None:
        if self.failure is not None:
            return None
        available = self._drawable()
        if available <= 0:
            return None
        size = most
        self.cramped = self.lean = False
        if most > 1 and (size := self._share(available, most)) < most:
            upstream = self.upstream
            self.cramped = upstream.available() > available or (
                upstream.prepaid and upstream.waiting and self.room.free <= 0
            )
            self.lean = not self.cramped
        items = self._draw(size)
        span = Span(self.next_index, items)
        self.next_index += len(items)
        return span

    def _drawable(self) -> int:
        """How many items there are that may be drawn."""
        upstream, room = self.upstream, self.room
        available = upstream.available()
        return available if upstream.prepaid else min(available, room.limit - room.held)

    def _draw(self, count: int) -> Sequence[Any]:
        """Take *count* items from upstream, and hold them."""
        upstream = self.upstream
        items, credits = upstream.draw(count)
        if credits:
            upstream.release(credits)
        if not upstream.prepaid:
            self.room.held += len(items)
        return items

    def _fair(self, most: int) -> int:
        """How many items a worker works off in a moment: *most* at most."""
        if self.cost is None or self.cost >= self.span_seconds:
            return 1
        # Twice the last one at most: a handful of cheap items says little of those that follow.
        return max(1, min(int(self.span_seconds / (self.cost + 1e-9)), 2 * self.last_size, most))

    def _share(self, available: int, most: int) -> int:
        """How many of the *available* items one worker gets, so that there are some for the others: *most* at most."""
        alone = int(self.undivided / ((self.cost or 0.0) + 1e-9))
        return max(1, min(max(-(-available // self.shares), min(available, alone)), most))

    def done(self, span: Span, elapsed: float | None = None) -> None:
        """The worker of *span* is through with it; *elapsed* seconds went into it."""
        if span.closed:
            return
        span.closed = True
        self.stealable.discard(span)
        self.open -= 1
        count = len(span.slots)
        if elapsed is not None and count:
            cost = elapsed / count
            self.cost = cost if self.cost is None else (self.cost + cost) / 2
            if self.span_seconds < self.longest_span:
                self.worked += elapsed
                share = SPAN_OF_WORK * self.worked / self.workers
                self.span_seconds = min(max(self.span_seconds, share), self.longest_span)
        if not self.ordered:
            # Another one is in its place if all of it was taken back.
            if self.failure is None and self.spans.get(span.start) is span:
                self._enter(self._fresh(span))
        elif span.start == self.head and not self.one_each:
            self.harvest()

    def claim(self, span: Span) -> Iterator[Any] | None:
        """Give the worker of *span* the next items of it, None if there is nothing more for it to do."""
        return span.claim() if self._wanted(span) else None

    def next_out(self, index: int) -> bool:
        """Tell whether the taker downstream has nothing to take before what becomes of the item at *index*."""
        return not self.ready_count and (index == self.head or not self.ordered)

    def steal_from(self, span: Span) -> None:
        """Take from the worker of *span* what it has not started."""
        self.stealable.discard(span)
        rest = span.steal()
        if rest is not None:
            self._requeue(rest)

    def steal_overdue(self, now: float, after: float) -> None:
        """Take back, for other workers, what waits behind an item that takes its time."""
        for span in [span for span in self.stealable if now - span.begun >= after]:
            self.steal_from(span)

    def requeue_tail(self, span: Span, count: int) -> None:
        """The worker of *span* gives back its last *count* items, which it has not started."""
        if count <= 0:
            return
        first = len(span.items) - count
        rest = Span(span.start + first, span.items[first:], 0 if first else span.tries)
        span.items = span.items[:first]
        self._requeue(rest)
        if not first:
            self.done(span)

    def requeue_singly(self, span: Span, tried: dict[int, int]) -> None:
        """Close *span* and run again what it has no slots for, one item at a time: one of them is to blame.

        *tried* says how often the item of an index has failed before.
        """
        position = len(span.slots)
        for number in range(position, len(span.items)):
            index = span.start + number
            tries = max(tried.get(index, 0), span.tries if number == 0 else 0)
            self._requeue(Span(index, [span.items[number]], tries))
        span.items = span.items[:position]
        self.done(span)

    def _requeue(self, span: Span) -> None:
        if self._wanted(span):
            self.requeued.append(span)

    def _wanted(self, span: Span) -> bool:
        """Whether there is a use for what becomes of it."""
        failure = self.failure
        return not self.stopped and (failure is None or (self.ordered and span.start < failure.index))

    def lose(self, span: Span, retries: int, at: int | None = None) -> tuple[Failure, Span] | None:
        """The worker of *span* is gone in the middle of the item at position *at*: close the span before it.

        What it finished stays; what it did not start, or whose slots were lost with it, is run again. The item itself
        is tried once more; if it has had its *retries*, it is given as a `Failure` that has no error yet, and the span
        that is to have its slot.
        """
        self.steal_from(span)
        span.slots = list(span.slots)  # a thread that was abandoned may still append to the old list
        position = len(span.slots)
        at = position if at is None else at
        if at >= len(span.items):
            self.done(span)
            return None
        item, tries = span.items[at], max(span.tried, span.tries if at == 0 else 0) + 1
        victim = Span(span.start + at, [item], tries)
        self.requeue_tail(span, len(span.items) - at - 1)
        span.items = span.items[:at]
        if at > position:
            self._requeue(Span(span.start + position, span.items[position:]))
            span.items = span.items[:position]
        self.done(span)
        if tries <= retries:
            self._requeue(victim)
            return None
        victim.sent = True
        self.spans[victim.start] = victim
        self.open += 1
        return Failure(victim.start, item, None), victim

    def fail(self, failure: Failure) -> None:
        """Put *failure* in its item's place. Whatever comes after it is not started any more.

        In order, all before it is still worked off and goes out first, and an earlier failure takes its place. Else
        what is finished goes out first, and nothing that is finished later.
        """
        if self.failure is not None and (not self.ordered or self.failure.index <= failure.index):
            return
        self.harvest()
        self.failure = failure
        for span in self.spans.values():
            if not self._wanted(span):
                span.halt()
        self.requeued = [span for span in self.requeued if self._wanted(span)]
        self.lone_items.clear()

    def stop(self) -> None:
        """Start nothing any more, give nothing more."""
        self.stopped = True
        for span in self.spans.values():
            span.halt()
        self.requeued.clear()
        self.lone_items.clear()

    @property
    def exhausted(self) -> bool:
        """Workers will never get another span."""
        if self.stopped:
            return True
        if self.requeued or self.lone_items:
            return False
        if self.failure is not None:
            return not any(span.start < self.failure.index for span in self.spans.values() if not span.closed)
        if self.upstream.end is None:
            return False
        return not (self.stealable or self.loses) or all(span.closed for span in self.spans.values())

    @property
    def has_more(self) -> bool:
        """There are outputs, or there may be some of what is held."""
        if self.ready_count or self.entries:
            return True
        if self.stopped:
            return False
        if self.failure is not None:
            return self.ordered and self.head < self.failure.index
        return bool(self.spans or self.lone or self.requeued or self.lone_items)

    # ------------------------------------------------------------------------------------ the taker downstream

    def harvest(self) -> None:
        """Make outputs of the slots that are there: of the next in order, or of any."""
        spans, lone = self.spans, self.lone_slots
        parts: list[list[Any]] = []
        if self.lone:
            # A worker leaves a slot, then looks at `head` and `ready_count`; here it is the other way round. As in
            # `Feed.available`, a change of the same dict puts the two in order.
            lone.pop(-1, None)
        if self.ordered:
            while True:
                if self.head in lone:
                    parts.append(self._fresh_lone())
                if (span := spans.get(self.head)) is None:
                    break
                parts.append(self._fresh(span))
                if self.head in spans:
                    break
                self.head += span.given
        elif self.failure is None:  # else what comes now is too late
            if lone:
                parts.append([lone.pop(index) for index in list(lone)])
                self.lone -= len(parts[0])
            parts += map(self._fresh, list(spans.values()))
        if len(parts) > 1 and self.one_each:
            parts = [list(chain.from_iterable(parts))]
        for slots in parts:
            if slots:
                self._enter(slots)

    def _fresh(self, span: Span) -> list[Any]:
        """Take what *span* has finished since the last time, and leave the span if that was its end."""
        slots, given = span.slots, span.given
        span.given = count = len(slots)
        if span.closed or count == len(span.items):  # its worker may not have said so yet
            del self.spans[span.start]
        # The list itself only if its worker is through with it: it becomes the items of a span downstream.
        return slots if span.closed and not given else slots[given:count]

    def _fresh_lone(self) -> list[Any]:
        """Take what lone items have become, as far as they are next in order."""
        lone, head = self.lone_slots, self.head
        slots = []
        while head in lone:
            slots.append(lone.pop(head))
            head += 1
        self.lone -= len(slots)
        self.head = head
        return slots

    def _enter(self, slots: list[Any]) -> None:
        """Make outputs of *slots*, ready to be drawn."""
        outputs, credits = self.outputs(slots), len(slots)
        count = len(outputs)
        if not count:
            self.release(credits)
            return
        self.ready_count += count
        if count == credits < SHORT:
            if self.entries:
                last, position, owed = self.entries[-1]
                if len(last) < SHORT and owed == len(last) - position:  # there, too, an output is one item's
                    last += outputs
                    self.entries[-1][2] += credits
                    return
            outputs = [*outputs]  # a list of their own, as that of a span is not to grow
        self.entries.append([outputs, 0, credits])

    def available(self) -> int:
        if self.ordered or not self.ready_count:
            self.harvest()
        return self.ready_count

    def draw(self, most: int) -> Drawn:
        """Give up to *most* outputs."""
        parts: list[list[Any]] = []
        credits = 0
        while most > 0 and self.entries:
            entry = self.entries[0]
            ready, position, owed = entry
            left = len(ready) - position
            if most >= left:
                part = ready[position:] if position else ready
                credits += owed
                self.entries.popleft()
            else:
                part = ready[position : position + most]
                entry[1] = position + most
                if owed >= left:  # one item an output: its room is free as soon as that is out
                    entry[2] -= len(part)
                    credits += len(part)
            parts.append(part)
            most -= len(part)
        outputs = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        self.ready_count -= len(outputs)
        return outputs, credits

    def release(self, credits: int) -> None:
        self.room.held -= credits
        self.gone += credits

    @property
    def end(self) -> Closed | None:
        """How the outputs ended, None if more may come.

        More may come while anything upstream has more. What had it the last time is asked first; else all that is
        between is looked at, once for all of it: so a row costs as much as it has stages, not as much as their square.
        """
        passed: list[Window] = []
        part: Upstream = self
        while isinstance(part, Window):
            if part.has_more:
                end = None
                break
            if part.stopped:
                end = CLOSED
                break
            if part.failure is not None:
                end = Closed(part.failure.error)
                break
            passed.append(part)
            end = part.ended
            if end is not None or (part.giver.has_more and not part.giver.stopped):
                part = part.giver
                break
            part = part.upstream
        else:
            end = part.end
        for window in passed:
            window.giver, window.ended = part, end
        return end

    @property
    def waiting(self) -> bool:
        return self.available() > 0

    @property
    def has_partial(self) -> bool:
        if self.flush_requested:
            return False
        return self.spans.get(self.head) in self.stealable if self.ordered else bool(self.stealable)

    @property
    def flush_delay(self) -> float:
        """A span that takes twice as long as it should may be at a slow item: nobody asks for it before."""
        return 2 * self.span_seconds

    def request_flush(self) -> None:
        if not self.has_partial:
            return
        if self.remote:
            self.flush_requested = True
            return
        # The span ends with the item that is at work, and the taker is told of that.
        for span in [self.spans[self.head]] if self.ordered else list(self.stealable):
            self.steal_from(span)

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        """Let the stage hold more, if its workers lack items for want of room. The taker downstream waits.

        If they lack items for want of what is upstream, let that hold as much as this does. Whether they wait does not
        matter: small spans keep the workers of a stage as busy as large ones do.
        """
        chain = [(self, most)]
        while (window := chain[-1][0]).lean:
            window.lean = False
            if not isinstance(window.upstream, Window):
                window.upstream.grow(window.room.limit)
                break
            chain.append((window.upstream, window.room.limit))
        grown = False
        for window, limit in reversed(chain):
            grown = window.widen(limit)
        return grown

    def widen(self, most: int) -> bool:
        """Let it hold more itself, up to *most*, if its workers lack items for want of room."""
        idle = (
            self.busy < self.workers and self.room.free <= 0 and not self.takable() and self.upstream.waiting
        )
        if self.stopped or self.gone < self.growable_at or not (idle or self.cramped):
            return False
        in_time = MAX_SECONDS * min(self.workers, self.shares) / (self.cost or 1.0)
        if not self.room.grow(min(max(MAX_SLOW * self.workers, int(in_time)), self.most_cheap, most)):
            return False
        self.growable_at = self.gone + self.room.limit / 4
        self.cramped = False
        return True
