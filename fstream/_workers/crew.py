"""What the workers of a stage have in common, whatever their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from fstream._flow.observer import HowEnded
from fstream._flow.span import Closed, Failure, Progress, Span
from fstream._flow.tally import Parts
from fstream._flow.window import Window
from fstream._plan.kernels import DROP
from fstream._plan.stages import Stage, StageStatus
from fstream._workers.call import (
    Call,
    further_try_of,
    handled,
    handler_failed,
    is_failure,
    judged,
    tolerance_of,
    which,
)
from fstream._workers.failed import Failed
from fstream._workers.memory import Memory
from fstream._workers.notes import OptionFailed, annotate
from fstream.errors import NotPicklable

if TYPE_CHECKING:
    from fstream._engine.reports import Reports
    from fstream._engine.run import Run

__all__ = ["LONGEST_WAIT", "Crew"]

#: No wait lasts longer than this many seconds before its condition is looked at again. A lock, a selector and an event
#: loop each have a limit of their own, from 24 days to 292 years.
LONGEST_WAIT: Final = 24 * 3600.0


class Crew:
    """All workers of one stage, of any kind: who takes part, whose turn it is, what becomes of failures."""

    queue: Any  # a TakerQueue, and its `get` as the kind's takers call it
    worker: Any  # the class of the members
    watch: Any = None  # the thread that looks after time-outs, where the workers are threads
    #: Passes on what happens, if somebody observes.
    observer: Reports | None = None

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        self.run = run
        self.stage = stage
        self.window = window
        self.observer = run.observer
        if stage.parts:
            window.tally.parts = Parts(len(stage.parts))
        #: The workers that take part. Abandoned ones do not.
        self.members: set[Any] = set()
        #: How many members have been started, and have not come for their first span yet.
        self.coming = 0
        #: How many workers have run ``on_start``, or are about to, and have not ended yet.
        self.active = 0
        #: How many indexes are given out to workers.
        self._places = 0
        #: What the stage has failed with.
        self.error: BaseException | None = None
        #: How many items may fail, if there is a limit.
        self.tolerance = tolerance_of(stage)
        #: What is known of the stage's memo, if it has one, and what keeps a result there.
        self.memory: Memory | None = run.memory if stage.memo is not None else None
        self.keep = self.remember if self.memory is not None else None

    def launch(self, worker: Any) -> None:
        """Start a worker that `enlist` made."""
        raise NotImplementedError

    def add(self, index: int | None = None) -> None:
        """Start one more worker: under the *index* of one that is gone, or under the next free one."""
        with self.run.lock:
            worker = self.enlist(self.place() if index is None else index)
        self.launch(worker)

    def place(self) -> int:
        """Give the next free index of a worker."""
        self._places += 1
        return self._places - 1

    def enlist(self, index: int) -> Any:
        """Make a worker that takes part. Under the lock; `launch` starts it, without the lock."""
        return self.take_in(self.worker(self, index))

    def take_in(self, worker: Any) -> Any:
        """Have *worker* take part. Under the lock."""
        self.members.add(worker)
        self.run.enter(worker)
        self.coming += 1
        return worker

    def recruit(self, count: int = 1) -> None:
        """Start up to *count* workers, if nobody waits for the next span and there may be one.

        So one worker is always in waiting as long as there may be work for it.
        """
        if self._places >= self.window.workers:
            return
        with self.run.lock:
            if self.coming or self.queue.takers or self.window.exhausted:
                return
            count = min(count, self.window.workers - self._places)
            recruits = [self.enlist(self.place()) for _ in range(count)]
        for worker in recruits:
            self.launch(worker)

    def arrived(self) -> Span | Closed | None:
        """Give a worker that has started its first span; None if it is to wait in the queue.

        If more is there than all members take, as many more workers are started as there are: they double.
        """
        with self.run.lock:
            self.coming -= 1
            taken: Span | Closed | None = self.queue.buffer.poll()
            count = min(len(self.members), self.window.backlog)
            self.settle_beside()
        self.recruit(count)
        return taken

    def next_for(self, span: Span, elapsed: float, wanted: bool = True) -> Span | Closed | None:
        """Close *span*, which took its worker *elapsed* seconds, and give the worker its next span.

        None if there is none now, or if none is *wanted*.
        """
        with self.run.lock:
            self.window.done(span, elapsed)
            taken: Span | Closed | None = self.queue.buffer.poll() if wanted else None
            self.settle_beside()
            return taken

    def settle_beside(self) -> None:
        """Wake the takers beside this stage, because one of its workers took or finished something. Under the lock."""
        self.run.settle(self.queue)

    # ------------------------------------------------------------------------------------------ who is told of it

    def started(self, worker: Any) -> None:
        if self.observer is not None:
            self.observer.started(worker, self.window.info, worker.index)

    def ended(self, worker: Any, how: HowEnded = "ended") -> None:
        if self.observer is not None:
            self.observer.ended(worker, how)

    def taken(self, span: Span, worker: Any) -> None:
        """A worker has *span* in hand. Where somebody observes."""
        assert self.observer is not None
        span.worker = worker.index
        self.observer.taken(self.window.info, span.start, len(span.items), worker.index)

    def failed(self, failure: Failure) -> Failure:
        """An item has failed for good: give the failure that ``on_error`` is to decide about."""
        with self.run.lock:
            self.window.tally.failed += 1
            if self.window.tally.parts is not None:
                self.window.tally.parts.failed[failure.part] += 1
        if self.observer is not None and failure.error is not None:
            self.observer.failed(self.window.info, failure.index, failure.error, failure.tries)
        if self.memory is None and self.tolerance is None:
            return failure
        # The run's lock is not held here: the memory's lock is, while it calls the user's mapping.
        try:
            follower = None if self.memory is None else self.memory.failed(failure.index)
        except OptionFailed as failed:
            return handler_failed(self.stage, failure, failed.error, "memo")
        with self.run.lock:
            if follower is not None:
                self.window.run_alone(*follower)
                self.settle_beside()
            return judged(self.stage, self.tolerance, failure, lambda: self.window.ledger.worked_off + 1)

    def remember(self, index: int, slot: Any) -> None:
        """Keep the slot of the item at *index* in the memo, before it is given out. Not under the lock."""
        assert self.memory is not None
        if followers := self.memory.remember(index, slot):
            with self.run.lock:
                for follower in followers:
                    self.window.bring(*follower)
                self.settle_beside()

    def retried(self, failure: Failure) -> None:
        with self.run.lock:
            self.window.tally.retried += 1
            if self.window.tally.parts is not None:
                self.window.tally.parts.retried[failure.part] += 1
        if self.observer is not None and failure.error is not None:
            self.observer.retried(self.window.info, failure.index, failure.error, failure.tries)

    # ---------------------------------------------------------------------------------------------------- at work

    def claim(self, span: Span) -> Iterator[Any] | None:
        """Give the worker of *span* its next items; None at the end of the span."""
        if len(span.slots) >= len(span.items):
            return None
        with self.run.lock:
            return self.window.claim(span, self.run.clock())

    def status(self) -> StageStatus:
        """Make the status for the worker that ends now. While the stage goes on, its successor counts as active."""
        with self.run.lock:
            self.active -= 1
            is_over = self.window.exhausted and not self.one_may_begin
            active = self.active if is_over else max(1, self.active)
            return StageStatus(active, self.run.error)

    @property
    def one_may_begin(self) -> bool:
        """A worker may have something in hand, and not have begun."""
        return False

    def not_begun(self) -> None:
        """Note that a worker has no ``on_done`` to run, because its ``on_start`` raised."""
        with self.run.lock:
            self.active -= 1

    def finish(self, call: Call) -> None:
        """Run ``on_done`` in a worker that ends."""
        if call.started:
            try:
                call.end(self.status())
            except BaseException as error:
                self.complain(call.named(error))

    def complain(self, error: BaseException) -> None:
        """Keep an error of ``on_done`` for the end of the run."""
        annotate(error, f"in on_done of stage {self.stage.name!r} ({self.stage.kind})")
        with self.run.lock:
            self.run.complaints.append(error)

    def fail(self, failure: Failure) -> None:
        """Put *failure* in its item's place, and stop everything upstream."""
        with self.run.lock:
            if self.window.fail(failure):
                self.error = failure.error
            self.run.halt_before(self)
            self.run.settle()

    def break_down(self, error: BaseException, span: Span | None = None) -> None:
        """Fail the stage with *error*: ``on_start`` raised for *span*, or a worker was stopped from outside."""
        annotate(
            error, f"in on_start of stage {self.stage.name!r} ({self.stage.kind})" if span else "in fstream"
        )
        self.fail(Failure(-1, None, error))

    def overdue(self, now: float) -> tuple[list[Any], float | None]:
        """Give the workers whose item is over its time, and the seconds until the next item could be; None if never."""
        timeout = self.stage.timeout
        assert timeout is not None
        late: list[Any] = []
        wait: float | None = None
        for worker in self.members:
            if (begun := worker.begun) is None:
                continue
            if (left := begun + timeout - now) <= 0:
                late.append(worker)
            else:
                wait = min(left, LONGEST_WAIT if wait is None else wait)
        return late, wait

    def retry(self, span: Span, failure: Failure) -> bool:
        """Have the item behind the slots of *span* tried again, if it is to be.

        True if nobody has to see to that item any more, nor to those behind it in *span*, which is closed: they are the
        window's again. So they are, too, where the hook that is asked fails the stage.
        """
        if span.progress is not None and span.progress.until == failure.part:
            return False  # it was asked before
        try:
            again = further_try_of(
                self.part(failure), failure, self.run.draw
            )  # user code: not under the lock
        except BaseException as raised:
            self.fail(handler_failed(self.part(failure), failure, raised, "retry_on"))
            with self.run.lock:
                self.window.done(span)
                self.settle_beside()
            return True
        if again is None:
            return False
        with self.run.lock:
            if not self.window.stopped:
                self.retried(failure)
                rest = self.window.retry(span, failure.tries, again)
                if self.stage.parts:
                    rest.items, rest.progress = [failure.item], self.progress(rest, failure)
            self.settle_beside()
        if again.hold:
            self.take_back()
        return True

    def gives_back(self, span: Span) -> bool:
        """Have a worker that was just made ready, after it had got *span*, give that back; False if it may begin.

        A try counts for the stage's rate when f begins, not when ``on_start`` does.
        """
        if self.stage.rate is None or self.stage.on_start is None:
            return False
        with self.run.lock:
            self.window.requeue_tail(span, len(span.items))
            self.settle_beside()
        return True

    def take_back(self) -> None:
        """Have workers in other processes give back what they have not begun."""

    def slot_for(self, span: Span, failure: Failure) -> Any:
        """Give the slot that stands for the failed item behind the slots of *span*; or a failure, which ends *span*."""
        if self.retry(span, failure) or self.looks_up(span, failure):
            return failure
        slot = self.stands_for(self.failed(failure))
        if is_failure(slot):
            self.fail(slot)
        return slot

    def stands_for(self, failure: Failure) -> Any:
        """Apply ``on_error``: give the slot, or the failure that stays."""
        slot = handled(self.part(failure), failure)
        if (parts := self.window.tally.parts) is None:
            return slot
        if slot is DROP or is_failure(slot):
            with self.run.lock:
                parts.dropped[failure.part] += 1
        return self.stage.kernel.kept(slot) if type(slot) is Failed else slot

    # ------------------------------------------------------------------------ of a stage that stands for several

    def part(self, failure: Failure) -> Stage:
        """Give the stage at which an item has failed."""
        return self.stage.parts[failure.part] if self.stage.parts else self.stage

    def locate(self, span: Span, failure: Failure, part: int | None = None) -> None:
        """Say in *failure* that it is of the item behind the slots of *span*, and how often that was tried.

        Of a stage that stands for several, *part* failed; None for the one that gets the item next.
        """
        position, progress = len(span.slots), span.progress
        failure.index, failure.item = span.start + position, span.items[position]
        failure.tries = 1 if position else span.tries + 1
        if not self.stage.parts:
            failure.part = 0  # a worker says -1, the last one, of an output that cannot be sent
            return
        failure.given_to = 0 if progress is None else progress.part
        failure.part = failure.given_to if part is None else part % len(self.stage.parts)
        failure.tries = 1 if progress is None else progress.tries[failure.part] + 1

    def progress(self, span: Span, failure: Failure) -> Progress:
        """Note how often the parts have tried the item behind the slots of *span*, *failure* among the tries."""
        progress = span.progress or Progress(0, (0,) * len(self.stage.parts))
        tries = [*progress.tries]
        tries[failure.part] = failure.tries
        return progress._replace(part=failure.given_to, tries=tuple(tries))

    def looks_up(
        self, span: Span, failure: Failure, error_of: Callable[[Failure], BaseException] | None = None
    ) -> bool:
        """Have the parts before the one that failed run once more, where ``on_error`` needs what that was given.

        It was lost with the worker. True if *span* is closed, and nobody has to see to its item any more.
        """
        if failure.part == failure.given_to or failure.final:
            return False
        if self.part(failure).on_error in ("raise", "skip"):
            return False
        error = failure.error
        assert error is not None
        with self.run.lock:
            if not self.window.stopped:
                rest = self.window.resume(span)
                rest.items = [failure.item]
                progress = self.progress(rest, failure)
                rest.progress = progress._replace(until=failure.part, error_of=error_of or (lambda _: error))
            self.window.done(span)
            self.settle_beside()
        return True

    def recall(self, span: Span, failure: Failure) -> None:
        """Say in *failure* what the part has failed with, if only its item was still wanted."""
        progress = span.progress
        if progress is None or progress.until != failure.part or failure.final:
            return
        if progress.error_of is not None:
            failure.error = progress.error_of(failure)
            failure.tries = progress.tries[failure.part]

    def too_late(self, failure: Failure) -> BaseException:
        seconds = self.part(failure).timeout
        return TimeoutError(f"{which(self.stage, failure)}, ran over its {seconds} seconds")

    def lost(
        self,
        span: Span,
        error_of: Callable[[Failure], BaseException],
        at: int | None = None,
        part: int | None = None,
    ) -> None:
        """Have the item tried again at which a worker was lost, position *at* of *span*; or let the item fail.

        *part* is the part of the stage that was at work, None for the one that the item comes to next.
        """
        with self.run.lock:
            self.window.tally.busy += self.run.clock() - span.begun
            victim = self.window.lose(span, at)
            if victim is not None:
                self.window.keep_place(victim)
            self.settle_beside()
        if victim is None:
            return
        failure = Failure(0, None, None)
        self.locate(victim, failure, part)
        if not self.stage.parts:
            failure.tries = victim.tries
        failure.error = error_of(failure)
        if not (self.retry(victim, failure) or self.looks_up(victim, failure, error_of)):
            self.make_good(self.failed(failure), victim)

    def make_good(self, failure: Failure, victim: Span) -> None:
        """Have ``on_error`` decide about an item whose worker was lost. *victim* is the item's span."""
        self.stand_in(victim, self.stands_for(failure))  # on_error is user code: not under the lock

    def stand_in(self, victim: Span, slot: Any) -> None:
        """Close the span *victim* with the *slot* that stands for the lost item, or with the failure that stays."""
        if is_failure(slot):
            self.fail(slot)
        else:
            victim.slots.append(slot)
        with self.run.lock:
            self.window.done(victim)
            self.settle_beside()

    def unfit(self, span: Span, error: BaseException, why: str, part: int | None = None) -> None:
        """Find the item of *span* that cannot travel, by sending its items one by one; a single one fails.

        *part* is the part of the stage whose output cannot travel; None if it is the item, which nobody has tried.
        """
        if len(span.items) > 1:
            with self.run.lock:
                self.window.requeue_apart(span)
                self.settle_beside()
            return
        failure = Failure(0, None, None)
        self.locate(span, failure, part)
        problem = NotPicklable(f"{which(self.stage, failure)}: {why}: {error}")
        problem.__cause__ = error
        span.sent = True
        failure.error = problem
        if part is None:
            failure.tries = 0
        self.put(span, failure)
        with self.run.lock:
            self.window.done(span)
            self.settle_beside()

    def put(self, span: Span, slot: Any) -> bool:
        """Append *slot*, or what stands for a failed item; False if *span* ends there."""
        if is_failure(slot):
            if is_failure(slot := self.slot_for(span, slot)):
                return False
        elif self.keep is not None:
            index = span.start + len(span.slots)
            try:
                self.keep(index, slot)
            except OptionFailed as failed:
                failure = Failure(index, span.items[len(span.slots)], None)
                self.fail(handler_failed(self.stage, failure, failed.error, "memo"))
                return False
        span.slots.append(slot)
        return True
