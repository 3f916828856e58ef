"""What the messages of a worker mean: slots that go into their spans, items that come back, errors."""

from __future__ import annotations

import pickle
import sys
from typing import Any

from fstream._flow.span import Failure, Span
from fstream._workers.call import which
from fstream._workers.notes import annotate
from fstream._workers.process.errors import decode_error
from fstream._workers.process.messages import (
    Broken,
    Counted,
    Finished,
    Message,
    Opened,
    Ready,
    Slots,
    Stale,
    Stolen,
    Unloadable,
)
from fstream._workers.process.recovery import Recovery
from fstream._workers.process.wire import Packed, loads
from fstream._workers.process.workers import Worker, Workers
from fstream.errors import NotPicklable

__all__ = ["Answers"]


class Answers:
    """Does what the workers of one stage say."""

    def __init__(self, crew: Workers, recovery: Recovery) -> None:
        self.crew = crew
        self.recovery = recovery

    def answer(self, worker: Worker, message: Message, body: Packed) -> None:
        """Do what a *message* of *worker* asks for."""
        if isinstance(message, Opened):
            worker.heeded = True
            return
        if not (worker.heeded or isinstance(message, Ready)):
            return  # a late answer to the stage that this worker had before
        match message:
            case Slots():
                self.recovery.stillborn = 0
                worker.answered = True
                self.receive(worker, message, body)
            case Counted():
                with self.crew.run.lock:
                    tally = self.crew.window.tally
                    assert tally.parts is not None
                    tally.parts.add(message.parts)
            case Stolen():
                self.requeue_tail(worker, message)
            case Ready():
                worker.link.ready = True
                if not message.has_arena:
                    worker.link.wire.outward = None
                self.crew.open(worker)
            case Stale():
                self.decline(worker)
            case Unloadable():
                self.unfit(worker, message)
            case Broken():
                self.broken(worker, message)
            case Finished():
                self.finished(worker, message)

    def unfit(self, worker: Worker, message: Unloadable) -> None:
        """Note that *worker* cannot unpickle the items of a span."""
        span = self.span_of(worker, message.start, closed=True)
        if span is not None:
            error = decode_error(message.error)
            self.crew.unfit(span, error, f"item cannot be unpickled in the worker{_way_out(error)}")

    def broken(self, worker: Worker, message: Broken) -> None:
        """End the stage, as *worker* cannot load or begin it."""
        error = decode_error(message.error)
        if message.where == "load":
            problem = NotPicklable(
                f"stage {self.crew.stage.name!r} (process) cannot be loaded in a worker{_way_out(error)}: {error}"
            )
            problem.__cause__ = error
            error = problem
        else:
            annotate(error, f"in on_start of stage {self.crew.stage.name!r} (process)")
        worker.active = False
        self.crew.begun_in.pop(worker.link, None)
        worker.link.homes.discard(self.crew)
        with self.crew.run.lock:
            self.crew.active = max(0, self.crew.active - 1)
        self.crew.fail(Failure(-1, None, error))

    def span_of(self, worker: Worker, start: int, closed: bool) -> Span | None:
        """Find the span that a message refers to; None if it was given to others since.

        *closed* says that this is the worker's last message about it.

        Invariant: `flight` keeps a span until the worker's last message about it, in sending order, because a requeued
        span can return to this worker under the same start.
        """
        span = next((span for span in worker.flight if span.start == start), None)
        if span is not None and closed:
            worker.flight.remove(span)
        return None if span is None or span.closed else span

    def receive(self, worker: Worker, message: Slots, body: Packed) -> None:
        """Append the slots of a message to their span."""
        start, count, failed, closed, seconds = message
        span = self.span_of(worker, start, closed)
        if span is None:
            return
        position = len(span.slots)
        self.crew.weigh("back", body, count - position)
        if failed:
            with self.crew.run.lock:
                self.crew.window.began(span, seconds)
        try:
            slots = loads(body)
        except BaseException as error:
            self.unloadable(span, count, closed, error)
            return
        if failed or self.crew.keep is not None:
            self.put_all(span, slots, failed)
        else:
            span.slots.extend(slots)
        worker.steal_requested = False
        with self.crew.run.lock:
            self.crew.window.message_bytes = sum(self.crew.bytes.values())
            if closed:
                self.crew.window.requeue_tail(span, len(span.items) - len(span.slots))  # behind a failure
                self.crew.window.done(span, seconds)
            if len(span.slots) > position and self.crew.window.available():
                self.crew.window.flush_requested = False
            self.crew.settle_beside()

    def put_all(self, span: Span, slots: list[Any], failed: list[int]) -> None:
        """Append *slots*, some of which are failures, up to one that ends *span*."""
        for number, slot in enumerate(slots):
            if number in failed:
                item = slot.item
                self.crew.locate(span, slot, slot.part)
                slot.error = decode_error(slot.error)
                if item is not None:
                    self.unpack_item(slot, item)
                self.crew.recall(span, slot)
            if not self.crew.put(span, slot):
                return

    def unpack_item(self, failure: Failure, item: bytes) -> None:
        """Note the *item* that one part of the stage has given to the next, which has failed."""
        try:
            failure.item, failure.given_to = pickle.loads(item), failure.part
        except BaseException as error:
            where = which(self.crew.stage, failure)
            problem = NotPicklable(f"{where}: it failed, and its item cannot be unpickled: {error}")
            problem.__cause__ = failure.error
            failure.error, failure.tries, failure.final = problem, 0, True

    def unloadable(self, span: Span, count: int, closed: bool, error: BaseException) -> None:
        """Find the output that cannot be unpickled here: run the items of *span* one by one. A single item fails."""
        first = len(span.slots)
        if count - first == 1:
            failure = Failure(0, None, None)
            self.crew.locate(span, failure, -1)
            problem = NotPicklable(
                f"{which(self.crew.stage, failure)}: its output cannot be unpickled: {error}"
            )
            problem.__cause__ = error
            failure.error = problem
            self.crew.put(span, failure)
            if closed:
                with self.crew.run.lock:
                    self.crew.window.done(span)
                    self.crew.settle_beside()
            return
        with self.crew.run.lock:
            self.crew.window.requeue_apart(span)
            self.crew.settle_beside()

    def requeue_tail(self, worker: Worker, message: Stolen) -> None:
        """Requeue the items of a span that *worker* has not started and gives up."""
        start, count = message
        span = self.span_of(worker, start, closed=count is None)
        if span is None:
            return
        if count is None:
            count = len(span.items)
        worker.items -= count
        with self.crew.run.lock:
            self.crew.window.requeue_tail(span, count)
            self.crew.settle_beside()

    def decline(self, worker: Worker) -> None:
        """Requeue all that *worker* was sent: it has begun nothing, and leaves."""
        spans, worker.flight = worker.flight, []
        for span in spans:
            if not span.closed:
                self.recovery.requeue_unfinished(span)
        self.crew.not_begun_in(worker)
        worker.stale = True

    def finished(self, worker: Worker, message: Finished) -> None:
        """Note that *worker* has run ``on_done``, and its error."""
        worker.finishing = False
        if message.error is not None:
            self.crew.complain(decode_error(message.error))


def _way_out(error: BaseException) -> str:
    """Say what to do about a module that is here, and that a worker cannot import."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name not in sys.modules:
        return ""
    return (
        f", which cannot import the module {name!r} (was it loaded from a path?); put its folder into sys.path, or call"
        f" cloudpickle.register_pickle_by_value(sys.modules[{name!r}]) before"
    )
