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

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

__all__ = [
    "CLOSED",
    "LONGEST_SPAN_SECONDS",
    "MAX_CHEAP",
    "MAX_CHEAP_PROCESS",
    "PROCESS_SPAN_SECONDS",
    "SPAN_SECONDS",
    "Closed",
    "Drawn",
    "Failure",
    "Feed",
    "Numbers",
    "Room",
    "Slices",
    "Span",
    "Upstream",
    "Window",
    "sliceable",
]

#: How much work one span should be, in seconds: enough to make its cost of hand-over vanish, too little to notice. That
#: is some 60 microseconds of CPU between threads, 90 between tasks and 370 between processes, in the parent alone.
SPAN_SECONDS: Final = 0.002
PROCESS_SPAN_SECONDS: Final = 0.016

#: The more has been worked, the less it matters when a part of it is ready: spans between processes grow with that, to
#: this part of it for each worker, and no further than to so many seconds.
SPAN_OF_WORK: Final = 0.125
LONGEST_SPAN_SECONDS: Final = 0.064

#: Work of less than this part of a span is not shared out: to hand some of it over would take as long as to do it.
NOT_SHARED: Final = 0.1

#: Outputs of spans shorter than this are joined, so that a taker has one list of them.
SHORT: Final = 64

#: A span never grows beyond this many items.
MAX_SPAN: Final = 4096

#: A worker claims so many items of its span at a time: enough that the lock costs nothing, few enough that nobody waits
#: long for it while a list of them is made.
STRIDE: Final = 1024

#: A window that sizes itself never holds more cheap items than this, or between processes, where a span may be half as
#: much, than so many ...
MAX_CHEAP: Final = 1 << 15
MAX_CHEAP_PROCESS: Final = 1 << 16

#: ... nor, if they are not cheap, more than this many for each worker, unless they are done within MAX_SECONDS.
MAX_SLOW: Final = 64
MAX_SECONDS: Final = 0.25


@dataclass(slots=True)
class Failure:
    """An error as a value: what became of the item at *index*, on its way to the consumer in that item's place."""

    index: int
    item: Any
    error: BaseException | None


class Closed(NamedTuple):
    """The end of what can be taken, for good; *error* is what ended it, None for exhaustion."""

    error: BaseException | None = None


CLOSED: Final = Closed()


#: Outputs for a taker, and how many items' room they give back once they are out of its hands. A plain tuple: one of a
#: class of its own takes as long to make as all the rest of a draw.
Drawn: TypeAlias = tuple[Sequence[Any], int]


class Span:
    """A contiguous run of a stage's inputs in the hands of one worker.

    Its worker claims a stride of the items at a time and runs them; others take from it what it has not started, also
    of the stride that it is at.

    Invariant: ``slots[n]`` is the slot of ``items[n]``; its worker appends them in order, nobody else does.
    Invariant: `claim` and `rest` are called under one lock.
    Invariant: a worker iterates its stride, by an iterator of its own, and appends the slot of each item before it goes
    on to the next. So once `halt` has emptied the stride, it starts none but the one that may be at work already: the
    first that has no slot. That one stays its own, whether it has been started or not.
    """

    __slots__ = (
        "begun", "closed", "filled", "given", "items", "sent", "slots", "start", "stride", "tried", "tries",
    )  # fmt: skip

    def __init__(self, start: int, items: Sequence[Any], tries: int = 0) -> None:
        self.start = start
        #: A slice of the source, perhaps: that of a range makes no items before they are asked for, nor on its way to a
        #: process.
        self.items = items
        self.slots: list[Any] = []
        #: What its worker appends to: its slots, but in a simulated process, which sends them later.
        self.filled = self.slots
        #: What its worker has claimed last; None before it has claimed anything.
        self.stride: list[Any] | None = None
        #: It is in another process, or nothing of it is to be run: nobody here can take anything of it.
        self.sent = False
        #: How many slots the taker downstream has been given.
        self.given = 0
        #: True when the worker will append no more.
        self.closed = False
        #: When the worker got it, if it is of several items, in the caller's time.
        self.begun = 0.0
        #: How often its first item was tried before: by workers that died or ran over their time.
        self.tries = tries
        #: How often the item at work was tried so far and failed; 0 before its worker tries it again.
        self.tried = 0

    def claim(self) -> Iterator[Any] | None:
        """Give the worker its next items, None at the end."""
        first = len(self.filled)
        self.stride = list(self.items[first : first + STRIDE])
        return iter(self.stride) if self.stride else None

    def halt(self) -> None:
        """Have the worker start nothing more before it has claimed it."""
        if self.stride:
            self.stride.clear()

    def rest(self) -> Span | None:
        """Take the items back that the worker has not started, as a span of their own."""
        self.halt()
        kept = 0
        if self.stride is not None:
            # Without the GIL, too, one of two changes of a list is the first. The worker has appended its last slot
            # before this one, and the slot is counted; or after it, and the worker finds its stride empty then.
            self.filled.extend(())
            kept = len(self.filled) + 1
        if self.sent or kept >= len(self.items):
            return None
        rest = Span(self.start + kept, self.items[kept:], 0 if kept else self.tries)
        self.items = self.items[:kept]
        return rest

    def split(self, count: int) -> Span:
        """Keep the first *count* items of a span that no worker has; give the others as a new one."""
        tail = Span(self.start + count, self.items[count:])
        self.items = self.items[:count]
        return tail


class Room:
    """How many items may be held, and are.

    *maxsize* n is a strict bound, 0 none; with None the limit starts at *least* and may `grow`.
    """

    __slots__ = ("held", "limit", "maxsize")

    def __init__(self, maxsize: int | None, least: int) -> None:
        self.maxsize = maxsize
        #: Invariant: with ``maxsize=n`` this is n for ever.
        self.limit = sys.maxsize if maxsize == 0 else maxsize or least
        #: Invariant: 0 <= held <= limit.
        self.held = 0

    @property
    def free(self) -> int:
        return min(self.limit - self.held, MAX_CHEAP)

    def grow(self, most: int) -> bool:
        if self.maxsize is not None or self.limit >= most:
            return False
        self.limit = min(self.limit * 2, most)
        return True


class Upstream(Protocol):
    """Where a window draws its items from."""

    #: True if what is drawn was counted as held when it was pulled, as the feeder does.
    prepaid: bool

    def available(self) -> int: ...

    def draw(self, most: int) -> Drawn: ...

    def release(self, credits: int) -> None: ...

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        """Let more be held, up to *most*, if that would bring more."""
        ...

    #: Nothing more is to be drawn.
    stopped: bool

    @property
    def has_more(self) -> bool:
        """There is more here, or may be, whatever is further upstream."""
        ...

    @property
    def end(self) -> Closed | None:
        """How it ended, None if more may come. Invariant: an end is one for ever, as takers leave that have seen it."""
        ...

    @property
    def waiting(self) -> bool:
        """There is more than the window that draws from here has room for."""
        ...

    @property
    def withholds(self) -> bool:
        """What is finished of a span may be kept until the span is, as nobody has pressed."""
        ...

    @property
    def patience(self) -> float:
        """How long a taker waits before it presses, in seconds."""
        ...

    def press(self) -> None:
        """The taker has waited long: it is to have what is finished, and what is now at work as soon as that is."""
        ...


class Feed:
    """What feeders have pulled from the sources and no stage has drawn yet."""

    prepaid = True
    withholds = False
    patience = SPAN_SECONDS

    def __init__(self, room: Room, feeders: int) -> None:
        #: The room of the window that draws from here, or the feed's own where the consumer does.
        self.room = room
        #: Feeders append without the lock: an append is atomic, and takers ask `available` again before they wait.
        self.pending: deque[Any] = deque()
        self.feeders = feeders
        #: How many feeders wait for room.
        self.blocked = 0
        self.error: BaseException | None = None
        #: Draws give the room back themselves: there is no window that does.
        self.alone = False
        #: The run is over, or failed downstream of here.
        self.stopped = False

    def credits(self) -> int:
        """Grant a feeder the room that is left, shared with the feeders beside it, ahead of what it pulls."""
        count = max(1, self.room.free // self.feeders)
        self.room.held += count
        return count

    def ended(self, unused: int, error: BaseException | None) -> None:
        """One feeder is through with its source."""
        self.room.held -= unused
        self.feeders -= 1
        if error is not None and self.error is None:
            self.error = error
            self.feeders = 0
            # What other feeders pull from now on goes nowhere: they append to the old one, at any moment.
            old, self.pending = self.pending, deque()
            self.pending.extend(old.popleft() for _ in range(len(old)))

    def available(self) -> int:
        if self.stopped:
            return 0
        # A feeder appends, then looks who waits; a taker says that it waits, then looks here. Without the GIL, too, one
        # of two changes of a deque is the first. So either the item is there, or its feeder will see the taker.
        self.pending.extend(())
        return len(self.pending)

    def draw(self, most: int) -> Drawn:
        pending = self.pending
        if most >= len(pending):
            most = len(pending)
        outputs = [pending.popleft()] if most == 1 else [pending.popleft() for _ in range(most)]
        return outputs, most if self.alone else 0

    def release(self, credits: int) -> None:
        self.room.held -= credits

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        return self.alone and self.waiting and not self.pending and self.room.grow(min(most, MAX_SPAN))

    def press(self) -> None:
        pass

    @property
    def waiting(self) -> bool:
        return self.blocked > 0

    @property
    def has_more(self) -> bool:
        return self.end is None

    @property
    def end(self) -> Closed | None:
        if self.stopped:
            return CLOSED
        return Closed(self.error) if self.feeders <= 0 and not self.pending else None


def sliceable(source: object) -> bool:
    """Tell whether slices of *source* give the same items as iterating it, at once and without side effects."""
    cls: Any = type(source)
    if cls is range:
        return not source[sys.maxsize :]  # type: ignore[index]  # one may be longer than `len` can say
    return cls in (list, tuple, str, bytes) or (cls.__module__ == "array" and cls.__name__ == "array")


class Slices:
    """A sequence as upstream: drawn by slices, in the taker's own thread; it needs no feeder."""

    prepaid = False
    withholds = False
    patience = SPAN_SECONDS

    def __init__(self, source: Sequence[Any]) -> None:
        self.source = source
        #: One that cannot change: a slice of one item costs five times as much, but is empty where that has gone.
        self.is_range = type(source) is range
        self.position = 0
        self.over = self.stopped = False

    def available(self) -> int:
        # Counted anew each time: a list may grow while it is iterated.
        left = len(self.source) - self.position
        return left if left > 0 and not (self.over or self.stopped) else 0

    def draw(self, most: int) -> Drawn:
        position = self.position
        if most == 1 and self.is_range:
            outputs: Sequence[Any] = [self.source[position]]
        else:
            outputs = self.source[position : position + most]
        self.position = position + len(outputs)
        return outputs, 0

    def release(self, credits: int) -> None:
        pass

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        return False

    def press(self) -> None:
        pass

    @property
    def waiting(self) -> bool:
        return self.available() > 0

    @property
    def has_more(self) -> bool:
        return self.end is None

    @property
    def end(self) -> Closed | None:
        self.over = not self.available()
        return CLOSED if self.over else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What is different about the windows of one kind of workers."""

    #: Into how many spans what is there should go, for so many workers, so that each has its fair share.
    shares: Callable[[int], int]
    #: How much work one span should be, in seconds ...
    span_seconds: float = SPAN_SECONDS
    #: ... and how much it may grow to be, for `SPAN_OF_WORK`.
    longest_span: float = SPAN_SECONDS
    #: How many items a window may hold at most, however cheap they are.
    most_cheap: int = MAX_CHEAP
    #: Spans are worked on elsewhere: who minds the workers has to ask for what is finished of one.
    remote: bool = False


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
        self.returned: list[Span] = []
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
        self.divisible: set[Span] = set()
        #: The taker downstream has waited long, perhaps for slots of an unfinished span of a remote worker.
        self.hungry = False
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
        held = len(self.returned) + len(self.lone_items)
        return held if self.failure else held + self._drawable()

    def takable(self) -> bool:
        if self.stopped:
            return False
        if self.returned or self.lone_items:
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
        if self.returned:
            span = self._take_returned(most)
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
            self.divisible.add(span)
        return span

    def draw_lone(self, most: int) -> None:
        """Draw up to *most* lone items, if there is nothing that is to be started before them, nor can be."""
        if self.loses or self.stopped or self.failure is not None or self.returned or self.divisible:
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

    def _take_returned(self, most: int) -> Span:
        first = min(range(len(self.returned)), key=lambda n: self.returned[n].start)
        span = self.returned.pop(first)
        size = self._share(len(span.items), most)
        if size < len(span.items):
            self.returned.append(span.split(size))
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
        self.divisible.discard(span)
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

    def give_back(self, span: Span) -> None:
        """Take from the worker of *span* what it has not started."""
        self.divisible.discard(span)
        rest = span.rest()
        if rest is not None:
            self._return(rest)

    def reclaim(self, now: float, patience: float) -> None:
        """Take back, for other workers, what waits behind an item that takes its time."""
        for span in [span for span in self.divisible if now - span.begun >= patience]:
            self.give_back(span)

    def take_back(self, span: Span, count: int) -> None:
        """The worker of *span* gives back its last *count* items, which it has not started."""
        if count <= 0:
            return
        first = len(span.items) - count
        rest = Span(span.start + first, span.items[first:], 0 if first else span.tries)
        span.items = span.items[:first]
        self._return(rest)
        if not first:
            self.done(span)

    def scatter(self, span: Span, tried: dict[int, int]) -> None:
        """Close *span* and run again what it has no slots for, one item at a time: one of them is to blame.

        *tried* says how often the item of an index has failed before.
        """
        position = len(span.slots)
        for number in range(position, len(span.items)):
            index = span.start + number
            tries = max(tried.get(index, 0), span.tries if number == 0 else 0)
            self._return(Span(index, [span.items[number]], tries))
        span.items = span.items[:position]
        self.done(span)

    def _return(self, span: Span) -> None:
        if self._wanted(span):
            self.returned.append(span)

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
        self.give_back(span)
        span.slots = list(span.slots)  # a thread that was abandoned may still append to the old list
        position = len(span.slots)
        at = position if at is None else at
        if at >= len(span.items):
            self.done(span)
            return None
        item, tries = span.items[at], max(span.tried, span.tries if at == 0 else 0) + 1
        victim = Span(span.start + at, [item], tries)
        self.take_back(span, len(span.items) - at - 1)
        span.items = span.items[:at]
        if at > position:
            self._return(Span(span.start + position, span.items[position:]))
            span.items = span.items[:position]
        self.done(span)
        if tries <= retries:
            self._return(victim)
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
        self.returned = [span for span in self.returned if self._wanted(span)]
        self.lone_items.clear()

    def stop(self) -> None:
        """Start nothing any more, give nothing more."""
        self.stopped = True
        for span in self.spans.values():
            span.halt()
        self.returned.clear()
        self.lone_items.clear()

    @property
    def exhausted(self) -> bool:
        """Workers will never get another span."""
        if self.stopped:
            return True
        if self.returned or self.lone_items:
            return False
        if self.failure is not None:
            return not any(span.start < self.failure.index for span in self.spans.values() if not span.closed)
        if self.upstream.end is None:
            return False
        return not (self.divisible or self.loses) or all(span.closed for span in self.spans.values())

    @property
    def has_more(self) -> bool:
        """There are outputs, or there may be some of what is held."""
        if self.ready_count or self.entries:
            return True
        if self.stopped:
            return False
        if self.failure is not None:
            return self.ordered and self.head < self.failure.index
        return bool(self.spans or self.lone or self.returned or self.lone_items)

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
    def withholds(self) -> bool:
        if self.hungry:
            return False
        return self.spans.get(self.head) in self.divisible if self.ordered else bool(self.divisible)

    @property
    def patience(self) -> float:
        """A span that takes twice as long as it should may be at a slow item: nobody asks for it before."""
        return 2 * self.span_seconds

    def press(self) -> None:
        if not self.withholds:
            return
        if self.remote:
            self.hungry = True
            return
        # The span ends with the item that is at work, and the taker is told of that.
        for span in [self.spans[self.head]] if self.ordered else list(self.divisible):
            self.give_back(span)

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
