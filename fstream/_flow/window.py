"""The decisions of one stage: what to take, how much of it, what is next in order, whether there is room.

A plain class without locks, threads or clocks: the caller holds the run's lock, brings the time and does the waiting.
The same class serves threads, tasks and processes, and a test can drive it step by step.

    source --> Feed or Slices --draw--> Window --draw--> Window --draw--> consumer
                                        take, done ...    (a stage's workers)

A `Window` draws items from its upstream, hands them to the stage's workers as spans, and keeps their slots until the
taker downstream draws the outputs. A window *holds* an item from the moment it draws the item until the outputs of that
item are out of the taker's hands. `Room` counts the held items.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

from fstream._flow.observer import Observer, StageInfo
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
        #: Each slot is one output, so outputs are made only when a taker asks. Where a slot may give no output, slots
        #: are made into outputs as soon as they are finished, and the room of those that give nothing is free at once.
        self.one_each = one_each
        self.shares = numbers.shares(workers)
        self.span_seconds = numbers.span_seconds
        self.longest_span = numbers.longest_span
        self.most_cheap = numbers.most_cheap
        #: Less work than this, in seconds, goes to one worker whole.
        self.undivided = NOT_SHARED * numbers.span_seconds
        #: The work done so far by all workers, in seconds.
        self.worked = 0.0
        #: A worker may be lost in the middle of a span. Then its items are run again.
        self.loses = loses
        self.remote = numbers.remote
        #: Index of the next item to draw.
        self.next_index = 0
        #: Ordered: index of the next item whose outputs go downstream.
        self.head = 0
        #: Spans by the index of their first item: those that workers have, and closed ones until their slots are
        #: outputs.
        self.spans: dict[int, Span] = {}
        #: Spans whose items were stolen or lost, in no order. They are worked on before anything new is drawn. Their
        #: items are held.
        self.requeued: list[Span] = []
        #: Lone items, with their indices: drawn ahead for tasks that wait side by side. A task takes one without the
        #: lock, and leaves its slot in `lone_slots`. Invariant: while there are lone items, the window holds nothing
        #: else that is not started.
        self.lone_items: deque[tuple[int, Any]] = deque()
        #: The slots of lone items, by their indices, until they are made into outputs.
        self.lone_slots: dict[int, Any] = {}
        #: How many lone items have not been made into outputs yet.
        self.lone = 0
        #: Lists of outputs that can be drawn. Each entry is [outputs, how many of them were drawn, credits to give back
        #: with the last one].
        self.entries: deque[list[Any]] = deque()
        #: How many outputs can be drawn from `entries`.
        self.ready_count = 0
        #: How many spans are in the hands of workers.
        self.open = 0
        #: What an item costs, in seconds, measured: half the last span's mean, half what it was before. None at first.
        self.cost: float | None = None
        #: How many items the last span had.
        self.last_size = 1
        #: The last span was smaller than its worker could have worked off in time, for want of room.
        self.cramped = False
        #: The last span was smaller than that because upstream had no more items.
        self.lean = False
        #: How many items have gone through. The window may grow again once that is `growable_at`. This is like TCP's
        #: slow start: a machine that stalls makes everybody wait, and is no reason to hold more.
        self.gone = 0
        self.growable_at = 0.0
        #: The open spans of several items that nobody has stolen from yet.
        self.stealable: set[Span] = set()
        #: The taker downstream waits, and whoever minds the remote workers is to ask them for finished slots.
        self.flush_requested = False
        self.failure: Failure | None = None
        self.stopped = False
        #: Is told what happens, if somebody observes, with what it may know of the stage.
        self.observer: Observer | None = None
        self.info: StageInfo
        #: The part of the row upstream that had more when `end` looked last. While it goes on, nothing between it and
        #: this window has failed, because everything upstream of a failure is stopped.
        self.giver: Upstream = upstream
        #: How this window ended, once it has ended without a failure of its own.
        self.ended: Closed | None = None

    # ------------------------------------------------------------------------------------ the stage's workers

    @property
    def busy(self) -> int:
        """How many workers have something in hand. A lone item that nobody has taken yet counts as taken."""
        return self.open + self.lone - len(self.lone_slots)

    @property
    def backlog(self) -> int:
        """How many items workers could take now. A requeued span counts as one."""
        held = len(self.requeued) + len(self.lone_items)
        return held if self.failure else held + self._drawable()

    def takable(self) -> bool:
        """Tell whether a worker that comes now gets a span."""
        if self.stopped:
            return False
        if self.requeued or self.lone_items:
            return True
        if self.failure is not None:
            return False
        return self._drawable() > 0

    def take(self, now: float, most: int | None = None) -> Span | None:
        """Give a worker its next span, of *most* items at most; None if there is none now."""
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
        """Draw up to *most* lone items, unless other items are to be started before them, or could be later."""
        if self.loses or self.stopped or self.failure is not None or self.requeued or self.stealable:
            return
        most = min(self._drawable(), most)
        if most > 0:
            items = self._draw(most)
            if self.observer is not None:
                self.observer.taken(self.info, self.next_index, len(items), None)
            self.lone_items.extend(enumerate(items, self.next_index))
            self.next_index += len(items)
            self.lone += len(items)
            # Lone items are for workers that wait. Each is assumed to last as long as a span, and halves the distance
            # of `cost` from that, as its measured time would have done.
            seconds = self.span_seconds
            self.cost = seconds + ((self.cost or seconds) - seconds) * 0.5 ** len(items)

    def _take_lone(self) -> Span:
        """Make a span of a lone item. Only the thread of the loop whose tasks take lone items comes here."""
        index, item = self.lone_items.popleft()
        self.lone -= 1
        return Span(index, [item])

    def _take_requeued(self, most: int) -> Span:
        """Take the requeued span that is next in order, or a fair share of it."""
        first = min(range(len(self.requeued)), key=lambda n: self.requeued[n].start)
        span = self.requeued.pop(first)
        size = self._share(len(span.items), most)
        if size < len(span.items):
            self.requeued.append(span.split(size))
        return span

    def _draw_span(self, most: int) -> Span | None:
        """Make a span of new items, and note why it is small if it is."""
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
        """How many items upstream has that there is room for."""
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
        """How many items a worker works off in `span_seconds`: *most* at most."""
        if self.cost is None or self.cost >= self.span_seconds:
            return 1
        # Twice the last span at most, because a handful of cheap items says little of those that follow.
        return max(1, min(int(self.span_seconds / (self.cost + 1e-9)), 2 * self.last_size, most))

    def _share(self, available: int, most: int) -> int:
        """How many of the *available* items one worker gets, so that the others get some: *most* at most."""
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
        if self.observer is not None:
            self.observer.done(self.info, span.start, count, elapsed, span.worker)
        if elapsed is not None and count:
            cost = elapsed / count
            self.cost = cost if self.cost is None else (self.cost + cost) / 2
            if self.span_seconds < self.longest_span:
                self.worked += elapsed
                share = SPAN_OF_WORK * self.worked / self.workers
                self.span_seconds = min(max(self.span_seconds, share), self.longest_span)
        if not self.ordered:
            # Another span is in its place if all of it was stolen.
            if self.failure is None and self.spans.get(span.start) is span:
                self._enter(self._fresh(span))
        elif span.start == self.head and not self.one_each:
            self.harvest()

    def claim(self, span: Span) -> Iterator[Any] | None:
        """Give the worker of *span* its next items; None if there is nothing more for it to do."""
        return span.claim() if self._wanted(span) else None

    def next_out(self, index: int) -> bool:
        """Tell whether the outputs of the item at *index* are the next that the taker downstream can take."""
        return not self.ready_count and (index == self.head or not self.ordered)

    def steal_from(self, span: Span) -> None:
        """Take from the worker of *span* the items that it has not started, and requeue them."""
        self.stealable.discard(span)
        rest = span.steal()
        if rest is not None:
            self._requeue(rest)

    def steal_overdue(self, now: float, after: float) -> None:
        """Steal from each worker that has had its span for at least *after* seconds at the time *now*."""
        for span in [span for span in self.stealable if now - span.begun >= after]:
            self.steal_from(span)

    def requeue_tail(self, span: Span, count: int) -> None:
        """Requeue the last *count* items of *span*, which its worker has not started and gives up."""
        if count <= 0:
            return
        first = len(span.items) - count
        rest = Span(span.start + first, span.items[first:], 0 if first else span.tries)
        span.items = span.items[:first]
        self._requeue(rest)
        if not first:
            self.done(span)

    def requeue_singly(self, span: Span, tried: dict[int, int]) -> None:
        """Close *span* and requeue the items that have no slot, one by one, because one of them is to blame.

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
        """Whether the slots of *span* can still be given out."""
        failure = self.failure
        return not self.stopped and (failure is None or (self.ordered and span.start < failure.index))

    def lose(
        self, span: Span, retries: int, at: int | None = None, again: Callable[[Failure], None] | None = None
    ) -> tuple[Failure, Span] | None:
        """Close *span*, whose worker is gone, before the item at position *at*, where the worker was.

        The finished slots stay. Items that the worker did not start, or whose slots were lost with it, are requeued.
        The item itself is requeued, too. But if it has had its *retries*, this gives a `Failure` for it that has no
        error yet, and the span that is to have its slot. *again* is told of an item that is tried once more.
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
        failure = Failure(victim.start, item, None, tries)
        if tries <= retries:
            self._requeue(victim)
            if again is not None:
                again(failure)
            return None
        victim.sent = True
        self.spans[victim.start] = victim
        self.open += 1
        if self.observer is not None:
            self.observer.taken(self.info, victim.start, 1, None)
        return failure, victim

    def fail(self, failure: Failure) -> None:
        """Put *failure* in its item's place. No item behind it is started any more.

        In order, all items before it are still worked off and go out first, and an earlier failure replaces it. Without
        order, finished slots go out first, and what is finished later is dropped.
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
        """Start nothing more and give nothing more."""
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
        """There are outputs, or there may be some of the held items."""
        if self.ready_count or self.entries:
            return True
        if self.stopped:
            return False
        if self.failure is not None:
            return self.ordered and self.head < self.failure.index
        return bool(self.spans or self.lone or self.requeued or self.lone_items)

    # ------------------------------------------------------------------------------------ the taker downstream

    def harvest(self) -> None:
        """Make outputs of the finished slots: of those next in order, or of all if the stage is unordered."""
        spans, lone = self.spans, self.lone_slots
        parts: list[list[Any]] = []
        if self.lone:
            # A worker leaves a slot, then looks at `head` and `ready_count`. Here it is the other way round. A change
            # of the same dict puts the two in order, as in `Feed.available`.
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
        elif self.failure is None:  # without order, what is finished after a failure is dropped
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
        """Take the slots of *span* that are new since the last time; forget the span if it has no more to come."""
        slots, given = span.slots, span.given
        span.given = count = len(slots)
        if span.closed or count == len(span.items):  # its worker may not have closed it yet
            del self.spans[span.start]
        # The list itself only if the worker is through with it, because it becomes the items of a span downstream.
        return slots if span.closed and not given else slots[given:count]

    def _fresh_lone(self) -> list[Any]:
        """Take the slots of lone items, as far as they are next in order."""
        lone, head = self.lone_slots, self.head
        slots = []
        while head in lone:
            slots.append(lone.pop(head))
            head += 1
        self.lone -= len(slots)
        self.head = head
        return slots

    def _enter(self, slots: list[Any]) -> None:
        """Make outputs of *slots*, and put them where they can be drawn."""
        outputs, credits = self.outputs(slots), len(slots)
        count = len(outputs)
        if not count:
            self.release(credits)
            return
        self.ready_count += count
        if count == credits < SHORT:
            if self.entries:
                last, position, owed = self.entries[-1]
                if len(last) < SHORT and owed == len(last) - position:  # one output for each item there, too
                    last += outputs
                    self.entries[-1][2] += credits
                    return
            outputs = [*outputs]  # a copy, because the list of a span must not grow
        self.entries.append([outputs, 0, credits])

    def available(self) -> int:
        """Make outputs of finished slots if need be, and tell how many can be drawn."""
        if self.ordered or not self.ready_count:
            self.harvest()
        return self.ready_count

    def draw(self, most: int) -> Drawn:
        """Give up to *most* outputs, and the credits for them."""
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
                if owed >= left:  # one output for each item: its room is free once that output is out
                    entry[2] -= len(part)
                    credits += len(part)
            parts.append(part)
            most -= len(part)
        outputs = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        if self.observer is not None and outputs:
            self.observer.given(self.info, len(outputs))
        self.ready_count -= len(outputs)
        return outputs, credits

    def release(self, credits: int) -> None:
        self.room.held -= credits
        self.gone += credits

    @property
    def end(self) -> Closed | None:
        """How the outputs ended, None if more may come.

        More may come while anything upstream has more. The part that had more the last time is asked first. If it has
        none left, the windows between are looked at, and each notes what was found. So a row costs as many looks as it
        has stages, not as many as their square.
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
        """Twice the time that a span should take, in seconds: a span that takes longer may be at a slow item.

        After the same time other workers steal from it.
        """
        return 2 * self.span_seconds

    def request_flush(self) -> None:
        """Have the span end with its item at work, so that its worker closes it; ask a remote worker by a message."""
        if not self.has_partial:
            return
        if self.remote:
            self.flush_requested = True
            return
        # What is behind the item at work is stolen: the worker comes to the end of its span, and says so.
        for span in [self.spans[self.head]] if self.ordered else list(self.stealable):
            self.steal_from(span)

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        """Let the stage hold more, up to *most* items, if its workers lack items for want of room.

        Called while the taker downstream starves. If the workers lack items because upstream has none, let upstream
        hold as many as this window does. Whether the workers wait does not matter: small spans keep them as busy as
        large ones do.
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
        """Let this window itself hold more, up to *most* items, if its workers lack items for want of room."""
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
