"""What becomes of the spans of a worker that has died: whose fault it was, and what is run again.

A dead worker's *cell*, memory that it shared with the parent, says which item it was busy with. Where the cell cannot
say (the worker may have died while it pickled many), the suspects are run one at a time.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from typing import Final

from fstream._flow.span import Failure, Span
from fstream._workers.call import tells, which
from fstream._workers.notes import describe
from fstream._workers.process import child
from fstream._workers.process.workers import Worker, Workers
from fstream.errors import WorkerDied

__all__ = ["ErrorOf", "Recovery"]


#: How many workers in a row may die before they have done anything. One more, and the stage is taken for one that
#: cannot work. Also how many may die before they begin one span: one more, and its first item is blamed.
MAX_STILLBORN: Final = 3

#: How many workers in a row may be killed from outside (SIGKILL) while their interpreter starts. Such a death says
#: nothing about the stage, so this is many more; but it is bounded, because a stage must not start workers for ever.
MAX_KILLED: Final = 100


ErrorOf = Callable[[Failure], BaseException]


class Recovery:
    """Sees to the deaths among the workers of one stage."""

    def __init__(self, crew: Workers) -> None:
        self.crew = crew
        #: How many workers died in a row before they had done anything.
        self.stillborn = 0
        #: How many workers died that had been sent the span with this start, and had not begun it.
        self.unbegun: Counter[int] = Counter()

    def bury(
        self, worker: Worker, doing: int, status: int | None, error_of: ErrorOf | None = None, part: int = 0
    ) -> None:
        """See to the spans of a dead *worker*. *doing* and *part* are what its cell said, *status* how it ended."""
        crew, window = self.crew, self.crew.window
        left = doing == child.LEFT
        crew.ended(worker, "ended" if left else "died" if error_of is None else "timed out")
        crew.leave_out(worker)
        crew.pool.gone(worker)
        flushing = bool(worker.link.state(child.FLUSHING))
        if worker.finishing:
            crew.complain(self.died(f"a worker {_ended(status)} in on_done", status))
            return
        at_work = worker.opened and not left and doing != child.OPENING
        spans, worker.flight = worker.flight, []
        at = worker.link.state(child.SPAN_START)
        guilty = at_work and not any(
            span.closed for span in spans
        )  # else its item was given to others before
        if guilty and spans and all(span.start != at for span in spans):
            start = spans[0].start
            self.unbegun[start] += 1
            if self.unbegun[start] > MAX_STILLBORN:  # to receive the span is what they die of
                at, doing = start, child.LOADING
        for span in spans:
            if guilty and span.start == at:
                self.recover(span, doing, status, flushing=flushing, error_of=error_of, part=part)
            elif not span.closed:
                self.requeue_unfinished(span)
        if not (at_work or left or window.stopped):
            self.count_stillborn(worker, status)

    def count_stillborn(self, worker: Worker, status: int | None) -> None:
        """End the stage if its workers die one after the other before they can do anything."""
        self.stillborn += 1
        if worker.opened:
            most, when = self.crew.stage.retries, "in on_start"
        elif status == -signal.SIGKILL:
            most, when = MAX_KILLED, "while it started"
        else:
            most, when = max(self.crew.stage.retries, MAX_STILLBORN), "while it started"
        if self.stillborn > most:
            self.crew.fail(Failure(-1, None, self.died(f"a worker {_ended(status)} {when}", status)))

    def died(self, what: str, status: int | None) -> WorkerDied:
        return WorkerDied(f"stage {self.crew.stage.name!r} (process): {what}", status)

    def recover(
        self,
        span: Span,
        doing: int,
        status: int | None,
        *,
        flushing: bool,
        error_of: ErrorOf | None,
        part: int = 0,
    ) -> None:
        """Blame the item that a dead worker was busy with, and requeue the other unfinished ones of its *span*."""

        def died(failure: Failure) -> BaseException:
            stage = self.crew.stage
            where = which(stage, failure) if tells(stage) else describe(stage, failure.index, failure.item)
            return WorkerDied(f"{where}: its worker {_ended(status)}", status, failure.item)

        first, at = len(span.slots), doing - span.start
        moving = flushing or doing in (child.LOADING, child.SENDING)  # it pickled or unpickled
        if moving and len(span.items) - first == 1:
            at = first  # the only item
        elif moving:  # any item may be to blame
            with self.crew.run.lock:
                self.crew.window.requeue_apart(span)
                self.crew.settle_beside()
            return
        if first <= at < len(span.items):
            other = {child.LOADING: None, child.SENDING: -1}  # what is next, and what is last
            self.crew.lost(span, error_of or died, at, other.get(doing, part))
        else:
            self.requeue_unfinished(span)

    def requeue_unfinished(self, span: Span) -> None:
        """Close *span*, and requeue its items that have no slot."""
        with self.crew.run.lock:
            self.crew.window.requeue_tail(span, len(span.items) - len(span.slots))
            self.crew.window.done(span)
            self.crew.settle_beside()


def _ended(status: int | None) -> str:
    if status is None:
        return "ended, exit status unknown: somebody else has waited for it, or SIGCHLD is ignored"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name} (exit status {status})"
        except ValueError:
            pass
    return f"ended with exit status {status}"
