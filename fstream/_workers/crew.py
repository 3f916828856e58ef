"""What the workers of a stage have in common, whatever their kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from fstream._flow.span import Closed, Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage, StageStatus
from fstream._workers.call import Call, handled, is_failure
from fstream._workers.notes import annotate, describe

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["LONGEST_WAIT", "Crew"]

#: No wait lasts longer than this many seconds before it is looked again: a lock, a selector and an event loop each have
#: a limit of their own, from 24 days to 292 years.
LONGEST_WAIT: Final = 24 * 3600.0


class Crew:
    """The workers of one stage and its account."""

    queue: Any  # of the takers that the kind has: a TakerQueue, and its get
    worker: Any  # the class of its members

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        self.run = run
        self.stage = stage
        self.window = window
        #: The workers that take part; abandoned ones do not.
        self.members: set[Any] = set()
        #: How many of them have not come to take their first span yet.
        self.coming = 0
        #: How many have run ``on_start``, or are about to, and not yet ended.
        self.begun = 0
        self._places = 0

    def launch(self, worker: Any) -> None:
        """Start a worker that `enlist` made."""
        raise NotImplementedError

    def add(self, index: int | None = None) -> None:
        """Start a worker, in the place *index* of one that is gone or in the next free one."""
        with self.run.lock:
            worker = self.enlist(self.place() if index is None else index)
        self.launch(worker)

    def place(self) -> int:
        """The index of a worker that takes nobody's place."""
        self._places += 1
        return self._places - 1

    def enlist(self, index: int) -> Any:
        return self.take_in(self.worker(self, index))

    def take_in(self, worker: Any) -> Any:
        self.members.add(worker)
        self.run.enter(worker)
        self.coming += 1
        return worker

    def recruit(self, count: int = 1) -> None:
        """Start *count* workers, if all have something in hand and there may be more: one is to be in waiting."""
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
        """A worker has started: give it its first span, None if it waits.

        While more waits than all take, it starts as many workers as there are.
        """
        with self.run.lock:
            self.coming -= 1
            taken: Span | Closed | None = self.queue.buffer.poll()
            count = min(len(self.members), self.window.backlog)
            self.settle_beside()
        self.recruit(count)
        return taken

    def next_for(self, span: Span, elapsed: float, wanted: bool = True) -> Span | Closed | None:
        """A worker is through with *span*, in *elapsed* seconds: give it its next one if *wanted*, None if it waits."""
        with self.run.lock:
            self.window.done(span, elapsed)
            taken: Span | Closed | None = self.queue.buffer.poll() if wanted else None
            self.settle_beside()
            return taken

    def settle_beside(self) -> None:
        """A worker has taken or finished something. Under the lock."""
        self.run.settle(self.queue)

    def claim(self, span: Span) -> Iterator[Any] | None:
        """Give the worker of *span* its next items, None at its end."""
        if len(span.slots) >= len(span.items):
            return None
        with self.run.lock:
            return self.window.claim(span)

    def status(self) -> StageStatus:
        """What the worker that ends now is told. Who takes its place counts, while the stage goes on."""
        with self.run.lock:
            self.begun -= 1
            return StageStatus(self.begun if self.window.exhausted else max(1, self.begun))

    def not_begun(self) -> None:
        """A worker has no ``on_done`` to run: its ``on_start`` raised."""
        with self.run.lock:
            self.begun -= 1

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
        with self.run.lock:
            self.window.fail(failure)
            self.run.halt_before(self)
            self.run.settle()

    def break_down(self, error: BaseException, span: Span | None = None) -> None:
        """The stage cannot go on: ``on_start`` raised, or a worker was stopped from outside."""
        annotate(
            error, f"in on_start of stage {self.stage.name!r} ({self.stage.kind})" if span else "in fstream"
        )
        self.fail(Failure(-1, None, error))

    def overdue(self, now: float) -> tuple[list[Any], float | None]:
        """The workers whose item is over its time, and the seconds until the next could be."""
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

    def again(self, worker: Any, tries: int) -> bool:
        """One more try of the item of *worker* begins, after *tries*: with a time of its own. False if nobody waits."""
        with self.run.lock:
            if worker.abandoned or self.window.stopped:
                return False
            worker.span.tried = tries
            if worker.begun is not None:
                worker.begun = monotonic()
            return True

    def too_late(self, failure: Failure) -> BaseException:
        seconds = self.stage.timeout
        return TimeoutError(
            f"{describe(self.stage, failure.index, failure.item)}, ran over its {seconds} seconds"
        )

    def lost(self, span: Span, error_of: Callable[[Failure], BaseException], at: int | None = None) -> None:
        """A worker was lost in the middle of *span*, at position *at*: try that item again, or let it fail."""
        with self.run.lock:
            lost = self.window.lose(span, self.stage.retries, at)
            self.run.settle()
        if lost is None:
            return
        failure, victim = lost
        failure.error = error_of(failure)
        self.make_good(failure, victim)

    def make_good(self, failure: Failure, victim: Span) -> None:
        """Have ``on_error`` say what becomes of an item whose worker was lost; *victim* is its span."""
        self.stand_in(victim, handled(self.stage, failure))  # user code: not under the lock

    def stand_in(self, victim: Span, slot: Any) -> None:
        """Give the slot that stands for the lost item, or the failure that stays."""
        if is_failure(slot):
            self.fail(slot)
        else:
            victim.slots.append(slot)
        with self.run.lock:
            self.window.done(victim)
            self.run.settle()
