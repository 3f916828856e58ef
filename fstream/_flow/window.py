"""The decisions of one stage: what to take, how much of it, what is next in order, whether there is room.

Plain classes without locks, threads or clocks: the caller holds the run's lock, brings the time and does the waiting.
The same classes serve threads, tasks and processes, and a test can drive them step by step.

    source --> Feed or Slices --draw--> Window --draw--> Window --draw--> consumer
                                        take, done ...    (a stage's workers)

A `Window` draws items from its upstream, hands them to the stage's workers as spans, and keeps their slots until the
taker downstream draws the outputs. A window *holds* an item from the moment it draws the item until the outputs of that
item are out of the taker's hands. It has four parts:

- `Sizing` says how many items a span has;
- `Room` counts the held items, and says how many there may be;
- `Ledger` knows where each item is until it is finished;
- `Outbox` makes outputs of what is finished, and gives them out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from math import inf

from fstream._flow.known import PENDING, Known, Knowns
from fstream._flow.ledger import Ledger
from fstream._flow.observer import Observer, StageInfo
from fstream._flow.outbox import Outbox, Outputs
from fstream._flow.pacing import Again, Pacing, Ticket
from fstream._flow.protocols import Drawn, Upstream
from fstream._flow.room import Lack, Room
from fstream._flow.sizing import MAX_SPAN, Numbers, Sizing, stride_length
from fstream._flow.span import CLOSED, Closed, Failure, Item, Span
from fstream._flow.tally import Hold, Tally
from fstream._flow.weight import SAMPLES, SELDOM, SELDOM_SECONDS, Weight, weigh

__all__ = ["Window"]


class Window(Upstream):
    """One stage's account of its items, from upstream's hand to downstream's.

    Its workers and takers call the window. They may look into its parts, but change nothing there, but for lone items.
    """

    def __init__(
        self,
        upstream: Upstream,
        room: Room,
        *,
        workers: int,
        ordered: bool,
        outputs: Outputs,
        one_each: bool = False,
        numbers: Numbers,
        loses: bool = True,
        knowns: Knowns | None = None,
        pacing: Pacing | None = None,
    ) -> None:
        self.upstream = upstream
        self.workers = workers
        self.sizing = Sizing(numbers, workers)
        self.room = room
        self.ledger = Ledger(loses=loses, keys=pacing.keys if pacing is not None else None)
        self.outbox = Outbox(self.ledger, room, outputs, ordered, one_each)
        #: Says when tries may start; None if they always may.
        self.pacing = pacing
        #: Spans are worked on in another process. The finished part of one has to be asked for by a message.
        self.remote = numbers.remote
        #: The taker downstream waits, and whoever minds the remote workers is to ask them for finished slots.
        self.flush_requested = False
        self.stopped = False
        #: Which items need no worker, if there may be such; and that some have come, so that all are sorted out now.
        self.knowns = knowns
        self.sorting = False
        #: How the outputs end: by a failure here, by a stop, or as upstream ended. Once it is known, nothing is drawn.
        self.ending: Closed | None = None
        #: The part of the row upstream that had more when `end` looked last. While it goes on, nothing between it and
        #: this window has failed, because everything upstream of a failure is stopped.
        self.giver: Upstream = upstream
        self.tally = Tally()
        #: How many bytes the messages of remote workers have for each item, there and back; 0 without such.
        self.message_bytes = 0.0
        #: Once so many items were drawn, some are weighed again.
        self.weigh_at: float = SELDOM if room.maxsize is None else inf
        #: When `take` or `claim` had some weighed, in seconds of the caller's clock.
        self.weighed = 0.0 if room.maxsize is None else inf
        #: Is told what happens, if somebody observes, with what it may know of the stage.
        self.observer: Observer | None = None
        self.info: StageInfo

    # ------------------------------------------------------------------------------------ the stage's workers

    def resize(self, workers: int) -> None:
        """The stage has so many workers from now on."""
        self.workers = workers
        self.sizing.resize(workers)
        self.room.assure(2 * workers)

    @property
    def backlog(self) -> int:
        """How many items workers could take now. A requeued span counts as one, where nothing is sorted out."""
        if self.pacing is not None and self.due > self.pacing.clock():
            return 0
        ledger, startable = self.ledger, self._startable()
        requeued = startable if self.sorting else min(startable, len(ledger.requeued))
        return requeued + len(ledger.lone_items) + self._drawable()

    def takable(self) -> bool:
        """Tell whether a worker that comes now gets a span."""
        if self.pacing is not None and self.due > self.pacing.clock():
            return False
        return self._ready()

    def _ready(self) -> bool:
        """Tell whether there are items for a worker: at once, or when a rate or a hold lets them start."""
        return bool(self.ledger.lone_items) or self._startable() > 0 or self._drawable() > 0

    def _startable(self) -> int:
        """How many of the requeued items may start.

        All may, unless items have become heavier since they were drawn, so that those that are at work or finished fill
        the room. Then none may while somebody is about to make room: the taker, or a worker who has the first item in
        hand. If nobody is, one may.
        """
        ledger, outbox = self.ledger, self.outbox
        if not ledger.requeued or self._held <= self.room.limit:
            return ledger.requeued_items
        free = self.room.limit - (self._held - ledger.to_start - len(ledger.waiting))
        if free > 0:
            return min(free, ledger.requeued_items)
        if self.available():
            return 0
        is_next = outbox.ordered and ledger.requeued[0].start == outbox.head
        return int(is_next or not ledger.busy)

    def take(self, now: float, most: int = MAX_SPAN) -> Span | None:
        """Give a worker its next span, of *most* items at most; None if there is none now."""
        ledger, sizing = self.ledger, self.sizing
        self.tally.come(now)
        self._weigh_in_time(now)
        most = sizing.fair(most)
        if self.pacing is not None:
            if not (most := self._granted(now, most)):
                return None
        elif self.sorting:
            self.look()
        span: Span | None
        if startable := self._startable():
            span = ledger.next_requeued()
            size = min(startable, sizing.share(len(span.items), most))
            if self.sorting and size < most:
                self._note_lack(0)
            ledger.requeue(span.split(size))
        elif ledger.lone_items:
            span = ledger.next_lone()
        else:
            span = self._draw_span(most)
        if span is None:
            if self.pacing is not None and self.pacing.rate is not None:
                self.pacing.rate.give_back(most)
            return None
        span.begun = now
        if self.pacing is not None:
            self._count(span, most)
        sizing.last_size = len(span.items)
        ledger.hand_out(span)
        return span

    def look(self) -> None:
        """Sort out what may need no worker, as far as there is room for it, and requeue what is due.

        Of tickets, as many items are requeued as there are workers.
        """
        pacing, ledger = self.pacing, self.ledger
        if self.sorting or (self.knowns is not None and self.knowns.may_come()):
            while (count := self._drawable()) > 0:
                self._sort_out(self._draw(count))
        if pacing is None:
            return
        if ledger.delayed:
            ledger.wake(pacing.clock())
        while pacing.ticketed and (most := min(self.workers - len(ledger.requeued), self._drawable())) > 0:
            items = self._draw(most)
            if self.knowns is not None and self.knowns.among(items):  # it has come since
                self._sort_out(items)
                continue
            self._requeue(ledger.next_index, items)
            ledger.next_index += len(items)

    def _requeue(self, index: int, items: Sequence[Item]) -> None:
        """Requeue new *items*, the first of which has this *index*. Tickets are taken apart: each waits for itself."""
        if self.pacing is None or not self.pacing.ticketed:
            self.ledger.requeue(Span(index, items))
            return
        for number, ticket in enumerate(items, index):
            assert isinstance(ticket, Ticket)
            span = Span(number, [ticket.item])
            span.ticket = ticket
            self.ledger.requeue(span)

    @property
    def due(self) -> float:
        """The time from which there is something to take, though nobody brings anything; infinite if never.

        That is as `look` has found it. `Run.settle` looks at each change, and when this time has come.
        """
        pacing, ledger = self.pacing, self.ledger
        if pacing is None:
            return inf
        if self._startable():
            return pacing.opens(_cost_of(ledger.requeued[0]))
        if self._drawable() > 0 and not pacing.ticketed:
            return pacing.opens(1.0)
        return max(ledger.delayed[0][0], pacing.held_until) if ledger.delayed else inf

    def held_by(self, idle: int) -> Hold | None:
        """Tell what keeps so many *idle* workers from items that are there; None if nothing does, or there are none."""
        pacing, ledger = self.pacing, self.ledger
        if idle and self.remote and self.takable():
            return Hold.WORKERS
        if pacing is None:
            return None
        if self.due > (now := pacing.clock()):
            if self._ready():
                return Hold.RETRIES if pacing.held_until > now else Hold.RATE
            if ledger.delayed and (self.upstream.end is not None or self.room.free <= 0):
                return Hold.RETRIES
        return Hold.KEY if pacing.keys is not None and pacing.keys.parked else None

    def _granted(self, now: float, most: int) -> int:
        """How many of the next *most* items may start now. The stage's rate counts them."""
        pacing, ledger = self.pacing, self.ledger
        assert pacing is not None
        self.look()
        startable = self._startable()
        first = ledger.requeued[0] if startable else None
        available = min(startable, len(first.items)) if first else 0 if pacing.ticketed else self._drawable()
        if not available or now < pacing.held_until:
            return 0
        return most if pacing.rate is None else pacing.rate.grant(now, min(most, available), _cost_of(first))

    def _count(self, span: Span, granted: int) -> None:
        """Tell the stage's rate what becomes of the *granted* starts, of which a worker gets *span*.

        A single item begins at once. Of several, the last ones begin later, if at all: so they are counted as one start
        at the end of the span.
        """
        rate = self.pacing.rate if self.pacing is not None else None
        if rate is None:
            return
        cost, count = _cost_of(span), len(span.items)
        if granted > count:
            rate.give_back((granted - count) * cost)
        if count == 1:
            rate.start(span.begun, cost)
        else:
            span.counted = count

    def _count_starts(self, span: Span, count: int) -> None:
        """So many of the items of *span* were begun, and there will be no more."""
        assert self.pacing is not None
        rate = self.pacing.rate
        if rate is not None and span.counted:
            rate.start(self.pacing.clock(), count)
            rate.give_back(max(0, span.counted - count))
            span.counted = 0

    def draw_lone(self, most: int) -> None:
        """Draw up to *most* lone items, unless other items are to be started before them, or could be later."""
        ledger = self.ledger
        if ledger.loses or ledger.requeued or ledger.stealable:
            return
        most = min(self._drawable(), most)
        if most > 0:
            items = self._draw(most)
            if self.knowns is not None and self.knowns.among(items):
                self._sort_out(items)
                return
            if self.observer is not None:
                self.observer.taken(self.info, ledger.next_index, len(items), None)
            self.weigh_at = min(self.weigh_at, self.tally.taken + SELDOM)  # nobody says when this is
            ledger.add_lone(items)
            self.sizing.assume_slow(len(items))  # they are for workers that wait

    def _draw_span(self, most: int) -> Span | None:
        """Make a span of new items, and note why it is small if it is."""
        available = self._drawable()
        if available <= 0:
            return None
        ledger = self.ledger
        size, self.room.lack = most, Lack.NOTHING
        if most > 1 and (size := self.sizing.share(available, most)) < most:
            self._note_lack(available)
        items = self._draw(size)
        if self.knowns is not None and self.knowns.among(items):
            self._sort_out(items)
            return ledger.next_requeued() if ledger.requeued else None
        span = Span(ledger.next_index, items)
        ledger.next_index += len(items)
        return span

    def _note_lack(self, available: int) -> None:
        """Note why a span is small, though it has its share of the *available* items."""
        upstream, room = self.upstream, self.room
        more = upstream.available() > available or (upstream.blocked and room.free <= 0)
        room.lack = Lack.ROOM if more else Lack.ITEMS

    def _sort_out(self, items: Sequence[Item]) -> None:
        """Take in *items*: those that need no worker give their outputs, the others are for whoever comes next."""
        assert self.knowns is not None
        self.sorting = True
        ledger, known = self.ledger, self.ledger.known
        for part, slots in self.knowns.sorted_out(items):
            if slots is not None and slots[0] is not PENDING:
                self.outbox.close(ledger.add_known(part, slots))
                if type(part[0]) is Known:  # and no `Failed`
                    self.tally.known += len(part)
                continue
            if slots is None:
                self._requeue(ledger.next_index, part)
            else:
                ledger.waiting[ledger.next_index] = span = Span(ledger.next_index, part)
                self.keep_place(span)
            ledger.next_index += len(part)
        self.sizing.measure_known(ledger.known - known, len(items))

    def bring(self, index: int, known: Known) -> None:
        """The slot of an item that waits for another one is known now."""
        if (span := self.ledger.waiting.pop(index, None)) is not None:
            span.slots.append(known.slot)
            self.tally.known += 1
            self.done(span)

    def run_alone(self, index: int, known: Known) -> None:
        """An item that waits for another one is to be run now."""
        if self.ledger.waiting.pop(index, None) is not None:
            del self.ledger.spans[index]
            self.ledger.open -= 1
            self._requeue(index, [known.given])

    def _drawable(self) -> int:
        """How many items upstream has that there is room for; none when no more are to be drawn.

        What is prepaid has room already, unless items have become heavier since it was pulled.
        """
        if self.ending is not None:
            return 0
        upstream, room = self.upstream, self.room
        available = upstream.available()
        if upstream.prepaid and room.held <= room.limit:
            return available
        return max(0, min(available, room.limit - self._held))

    @property
    def _held(self) -> int:
        """How many items are held, without those that are prepaid and not drawn yet."""
        return self.tally.taken - self.room.gone if self.upstream.prepaid else self.room.held

    def _draw(self, count: int) -> Sequence[Item]:
        """Take *count* items from upstream, and hold them."""
        upstream = self.upstream
        items, credits = upstream.draw(count)
        self.tally.taken += len(items)
        if credits:
            upstream.release(credits)
        if not upstream.prepaid:
            self.room.held += len(items)
        if self.tally.taken >= self.weigh_at:
            self._weigh()
        return items

    def _weigh_in_time(self, now: float) -> None:
        if now - self.weighed >= SELDOM_SECONDS:
            self.weighed = now
            self._weigh()

    def _weigh(self) -> None:
        """Bound the room by what the items that are held weigh."""
        self.weigh_at = self.tally.taken + max(SELDOM, self.room.limit)
        weight, whole = self._weight()
        if weight is not None:
            self.room.weighs(*weight, whole=whole)

    def _weight(self) -> tuple[Weight | None, bool]:
        """How many bytes an item has that is held, on its way in and out together; None if nobody can say.

        And whether both were seen. Outputs alone say as little as inputs alone: an item may be heavy on its way in.
        """
        if self.message_bytes:
            return Weight(self.message_bytes), True
        ledger = self.ledger
        pairs = ledger.latest_done(SAMPLES)
        if len(pairs) > 1:
            return weigh(pairs), True
        outputs = weigh([ledger.lone_slots[index] for index in list(ledger.lone_slots)[-SAMPLES:]])
        if outputs is None and (outputs := weigh(self.waiting(SAMPLES))) is not None:
            spread = self.outbox.spread(SAMPLES)
            outputs = Weight(outputs.mean * spread, outputs.most * spread)
        inputs = weigh(self.upstream.waiting(SAMPLES))
        if outputs is None or inputs is None:
            return outputs or inputs, False
        return Weight(outputs.mean + inputs.mean, outputs.most + inputs.most), True

    def done(self, span: Span, elapsed: float | None = None) -> None:
        """The worker of *span* is through with it; *elapsed* seconds went into it."""
        if span.closed:
            return
        self.ledger.close(span)
        count = len(span.slots)
        if not span.items:  # all of it was taken back before its worker came to begin it
            elapsed = None
        if span.counted:
            self._count_starts(span, count)
        elif count == 1 and elapsed is not None:
            self.began(span, elapsed)
        if self.observer is not None:
            self.observer.done(self.info, span.start, count, elapsed, span.worker)
        if elapsed is not None and count:
            self.tally.did(count, elapsed)
            self.sizing.measure(elapsed, count)
        self.outbox.close(span)

    def began(self, span: Span, elapsed: float) -> None:
        """The only item of *span* was begun *elapsed* seconds ago: its worker may have been away when it was counted.

        Call it before a failure of the item is handled: if that is tried again, `done` is not told the seconds.
        """
        if self.pacing is None or self.pacing.rate is None:
            return
        if len(span.items) == 1 and not span.counted:
            counted, span.begun = span.begun, self.pacing.clock() - elapsed
            self.pacing.rate.began(_cost_of(span), counted, span.begun)

    def claim(self, span: Span, now: float) -> Iterator[Item] | None:
        """Give the worker of *span* its next items; None if there is nothing more for it to do."""
        if span.start >= self.ledger.cutoff:
            return None
        if span.slots:
            self._weigh_in_time(now)
            if self._held > self.room.limit and span in self.ledger.stealable:  # items have become heavier
                self.requeue_tail(span, len(span.items) - len(span.slots))
                return None
        return span.claim(stride_length(self.sizing.cost))

    def steal_overdue(self, now: float, after: float) -> None:
        """Steal from each worker that has had its span for at least *after* seconds at the time *now*."""
        for span in [span for span in self.ledger.stealable if now - span.begun >= after]:
            self.ledger.steal_from(span)

    def requeue_tail(self, span: Span, count: int) -> None:
        """Requeue the last *count* items of *span*, which its worker has not started and gives up."""
        if count > 0:
            if (
                self.pacing is not None
                and self.pacing.rate is not None
                and len(span.items) == 1 > span.counted
            ):
                self.pacing.rate.give_back(_cost_of(span), span.begun)
            self.ledger.requeue(span.split(len(span.items) - count))
            if not span.items:
                self.done(span)

    def requeue_apart(self, span: Span, size: int = 1) -> None:
        """Close *span*, and requeue its items without a slot in spans of *size*, because one of them is to blame."""
        if span.counted:
            self._count_starts(span, len(span.slots) + 1)
        self.ledger.requeue_apart(span, size)
        self.done(span)

    def lose(self, span: Span, at: int | None = None) -> Span | None:
        """Close *span*, whose worker is gone; give the item at position *at*, where it was, as a span of its own."""
        if span.counted:
            self._count_starts(span, (len(span.slots) if at is None else at) + 1)
        victim = self.ledger.lose(span, at)
        self.done(span)
        return victim

    def retry(self, span: Span, tries: int, again: Again) -> Span:
        """Close *span*, whose next item has failed so many times, and have that item tried *again*; give its span."""
        assert self.pacing is not None
        failed = self.lose(span)
        assert failed is not None
        failed.tries = tries
        now = self.pacing.clock()
        self.ledger.requeue_at(failed, now + again.after)
        if again.hold:
            self.pacing.hold(now + again.hold)
            if not self.remote:
                for span in list(self.ledger.stealable):
                    self.ledger.steal_from(span)
        return failed

    def resume(self, span: Span) -> Span:
        """Close *span*, and have its next item go on where it is, with whoever comes next; give its span."""
        rest = self.lose(span)
        assert rest is not None
        rest.tries = 0
        self.ledger.requeue(rest)
        return rest

    def keep_place(self, span: Span) -> None:
        """Hold *span*, an item that no worker is to run: its slot comes from elsewhere."""
        span.sent = True
        self.ledger.hand_out(span)
        if self.observer is not None:
            self.observer.taken(self.info, span.start, 1, None)

    def fail(self, failure: Failure) -> bool:
        """Put *failure* in its item's place, unless it changes nothing. No item behind it is started any more.

        In order, all items before it are still worked off and go out first, and an earlier failure replaces it. Without
        order, finished slots go out first, and what is finished later is dropped.
        """
        if failure.index >= self.ledger.cutoff:
            return False
        self.outbox.harvest()
        self.ending = Closed(failure.error)
        self.ledger.cut(failure.index if self.outbox.ordered else -1)
        return True

    def stop(self) -> None:
        """Start nothing more and give nothing more."""
        self.stopped = True
        self.ending = CLOSED
        if self.pacing is not None:  # nobody says of all of them that they are done
            for span in self.ledger.spans.values():
                self._count_starts(span, len(span.items))
        self.ledger.cut(-1)

    @property
    def exhausted(self) -> bool:
        """Workers will never get another span."""
        ledger = self.ledger
        if ledger.requeued or ledger.deferred or ledger.lone_items:
            return False
        return (self.ending is not None or self.upstream.end is not None) and ledger.settled

    # ------------------------------------------------------------------------------------ the taker downstream

    def available(self) -> int:
        """Make outputs of finished slots if need be, and tell how many can be drawn."""
        outbox = self.outbox
        if outbox.ordered or not outbox.ready_count:
            outbox.harvest()
        return outbox.ready_count

    def draw(self, most: int) -> Drawn:
        """Give up to *most* outputs, and the credits for them."""
        drawn = self.outbox.draw(most)
        self.tally.given += len(drawn[0])
        if self.observer is not None and drawn[0]:
            self.observer.given(self.info, len(drawn[0]))
        return drawn

    def waiting(self, most: int) -> Sequence[Item]:
        return self.outbox.waiting(most)

    def release(self, credits: int) -> None:
        self.room.release(credits)

    @property
    def end(self) -> Closed | None:
        """How the outputs ended, None if more may come, as they may while anything upstream has more."""
        return None if self.outbox.has_more else self.ending or _end_above(self)

    @property
    def has_partial(self) -> bool:
        return not self.flush_requested and self.outbox.has_partial

    @property
    def flush_delay(self) -> float:
        """Twice the time that a span should take: longer, it may be at a slow item. Then others steal from it, too."""
        return 2 * self.sizing.span_seconds

    def request_flush(self) -> None:
        """Have the span end with its item at work, so that its worker closes it; ask a remote worker by a message."""
        if not self.remote:
            self.outbox.flush()
        elif self.has_partial:
            self.flush_requested = True

    def grow(self, most: int = sys.maxsize) -> bool:
        """Let the stage hold more, up to *most* items, if its workers lack items for want of room.

        Called while the taker downstream starves. If the workers lack items because upstream has none, let upstream
        hold as many as this window does. Whether the workers wait does not matter: small spans keep them as busy as
        large ones do.
        """
        _grow_above(self)
        return self.widen(most)

    def widen(self, most: int) -> bool:
        """Let this window itself hold more, up to *most* items, if its workers lack items for want of room."""
        lacks_room = self.room.lack is Lack.ROOM or (
            self.ledger.busy < self.workers
            and self.room.free <= 0
            and not self._ready()  # what waits for the rate alone would start no sooner in a larger room
            and (self.upstream.blocked > 0 or self.upstream.available() > 0)
        )
        if not lacks_room or not self.room.may_grow(most := min(self.sizing.most_held(), most)):
            return False
        self._weigh()
        return self.room.grow(most, self.sizing.growth)


def _cost_of(span: Span | None) -> float:
    """What a start of the next item costs, of *span* or of what is new."""
    return 1.0 if span is None or span.ticket is None else span.ticket.cost


def _goes_on(part: Upstream) -> bool:
    """Tell whether *part* itself has more items, or may have, whatever is further upstream."""
    if isinstance(part, Window):
        return part.outbox.has_more and not part.stopped
    return part.end is None


def _end_above(window: Window) -> Closed | None:
    """How what is upstream of *window* ended, None if more may come.

    The part that had more the last time is asked first. If it has none left, the windows between are looked at, and
    each notes what was found. So a row costs as many looks as it has stages, not as many as their square.
    """
    passed = [window]
    while True:
        part = window.giver if _goes_on(window.giver) else window.upstream
        if not isinstance(part, Window) or part.outbox.has_more or part.ending is not None:
            end = part.end
            break
        passed.append(window := part)
    for window in passed:
        window.giver, window.ending = part, end
    return end


def _grow_above(window: Window) -> None:
    """Let what is upstream of *window* hold as much as it does, if its last span was short of items; and so on."""
    above: list[tuple[Upstream, int]] = []
    part: Upstream = window
    while isinstance(part, Window) and part.room.lack is Lack.ITEMS:
        part.room.lack = Lack.NOTHING
        above.append((part.upstream, part.room.limit))
        part = part.upstream
    for part, limit in reversed(above):
        part.widen(limit) if isinstance(part, Window) else part.grow(limit)
