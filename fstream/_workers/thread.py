"""Worker threads: they take from a `queue.Queue` and run f beside the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from fstream._engine.queues import ThreadQueue
from fstream._engine.steps import FOREVER, Steps
from fstream._flow.buffers import Work
from fstream._flow.span import Closed, Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.call import Call, is_failure
from fstream._workers.cpu_time import counted
from fstream._workers.crew import Crew

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["Workers"]


class Workers(Crew):
    """The threads of one stage, started one by one while there is more than they can take."""

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.worker = Worker
        self.queue = ThreadQueue(Work(window, run.clock), run.lock, self.settle_beside)
        #: One worker ends at a time, so that the last one to be told so is the last.
        self.ending = threading.Lock()
        self.watch = Watch(self) if stage.timeout is not None else None

    def start(self) -> None:
        self.add()
        if self.watch is not None:
            self.run.launch(self.watch)

    def counted(self) -> AbstractContextManager[None]:
        """Count the CPU time of the calling thread, which is a worker."""
        return counted(self.window.tally, self.run.lock)

    def launch(self, worker: Worker) -> None:
        try:
            worker.thread.start()
        except Exception as error:  # too many threads, no memory, or the interpreter is about to exit
            with self.run.lock:
                self.coming -= 1
                self.members.discard(worker)
                self.run.leave(worker)
                if not self.members:  # else those that there are do the work
                    self.fail(Failure(-1, None, error))

    @property
    def one_may_begin(self) -> bool:
        # A thread gets its span, and begins afterwards. One that has begun is active anyway.
        return self.window.ledger.open > len(self.window.ledger.waiting)

    def stop(self) -> None:
        """Nothing more to do than what the queue says: a thread cannot be stopped."""
        if self.watch is not None:
            self.watch.rouse()


class Hand:
    """What works off spans in a thread of this process, whosever that is."""

    def __init__(self, crew: Crew, index: int | None, call: Call) -> None:
        self.crew = crew
        self.run = crew.run
        self.clock = crew.run.clock
        self.stage = crew.stage
        self.index = index
        self.call = call
        #: It is in user code, where it cannot be stopped.
        self.busy = False
        #: The span in hand.
        self.span: Span | None = None
        #: How long it has taken to claim the items of that, in seconds.
        self.claiming = 0.0
        #: When the item at work was begun, in seconds of the run's clock, if the stage has a time-out: for the watch.
        #: None between items.
        self.begun: float | None = None
        #: The watch has given this thread up, because its item ran over its time. Nobody reads what it does from then
        #: on.
        self.abandoned = False

    def work(self, span: Span) -> Steps[float]:
        """Do what there is to do for *span*; give the seconds that went into it."""
        self.busy, self.claiming = True, 0.0
        begun = self.clock()
        self.span = span
        self.call.set_place(span)
        fresh = not self.call.started
        try:
            if fresh:
                with self.run.lock:
                    self.crew.active += 1
                self.call.begin()
        except BaseException as error:
            self.crew.not_begun()
            self.crew.break_down(self.call.named(error), span)
        else:
            if not (fresh and self.crew.gives_back(span)):
                yield from self.fill(span)
        self.busy = False
        del span  # see `fill`
        return self.clock() - begun - self.claiming

    def fill(self, span: Span) -> Iterable[Any]:
        """Append the slots of *span*, up to its end or to an item that is tried again or has failed for good.

        Give what it waits for meanwhile: nothing here, but in a simulation others go on between two items.
        """
        step, slots = self.means(span)
        todo = self.claim(span)
        while todo is not None:
            try:
                for item in todo:
                    slots.append(step(item))
            except BaseException as error:
                slot = self.failed(error, item, span)
                if is_failure(slot):
                    break
                slots.append(slot)
                slot = None  # it must not be kept alive while the next item is at work
            else:
                todo = self.claim(span)
        # The traceback of an error of f has this frame. What the error is part of would keep it alive, and so itself.
        item = slot = None
        del span, slots, step, todo
        return ()

    def means(self, span: Span) -> tuple[Callable[[Any], Any], list[Any] | TimedSlots]:
        """Give what runs f on an item, and what its slot is appended to."""
        if self.crew.watch is None:
            return self.call.step, span.slots
        return self.watched(self.call.step), TimedSlots(self, span)

    def claim(self, span: Span) -> Iterator[Any] | None:
        """Claim items of *span*, and note how long that took: where many threads wait for the lock, longer than f."""
        begun = self.clock()
        todo = self.crew.claim(span)
        self.claiming += self.clock() - begun
        return todo

    def watched(self, step: Any) -> Any:
        """Give *step*, preceded by a note for the watch that an item is begun."""
        watch, clock = self.crew.watch, self.clock
        assert watch is not None

        def timed(item: Any) -> Any:
            self.begun = clock()
            if watch.asleep:
                watch.rouse()
            return step(item)

        return timed

    def failed(self, error: BaseException, item: Any, span: Span) -> Any:
        """Give the slot that stands for a failed item; a failure if *span* ends there."""
        tries = 1 if span.slots else span.tries + 1
        failure = self.call.failure(error, item, span.start + len(span.slots), tries)
        return failure if self.left_alone() else self.crew.slot_for(span, failure)

    def left_alone(self) -> bool:
        """Tell whether the watch has abandoned this thread. If not, the item at work has no time-out from now on."""
        with self.run.lock:
            self.begun = None
            return self.abandoned


class Worker(Hand):
    """One thread."""

    crew: Workers

    def __init__(self, crew: Workers, index: int) -> None:
        super().__init__(crew, index, self.make_call(crew, index))
        self.thread = crew.run.thread_of(self.steps, f"{crew.stage.name}-{index}")

    def make_call(self, crew: Workers, index: int) -> Call:
        return Call(crew.stage, index, crew.keep)

    def join(self, timeout: float) -> None:
        self.thread.join(timeout)

    def steps(self) -> Steps[None]:
        crew = self.crew
        try:
            try:
                crew.started(self)
                with crew.counted():
                    span: Any = crew.arrived()
                    while type(span := span or (yield from crew.queue.taking())) is not Closed:
                        crew.recruit()
                        if crew.observer is not None:
                            self.busy = True  # it may call observers
                            crew.taken(span, self)
                        elapsed = yield from self.work(span)
                        if self.abandoned:
                            break
                        self.span = None
                        if (span := crew.next_for(span, elapsed)) is None:
                            self.call.set_place(None)
            except GeneratorExit:  # the simulation is given up
                raise
            except BaseException as error:  # a bug of ours, or an interrupt from outside: never a hang
                crew.break_down(error)
            self.busy = True
            self.call.set_place(None)
            yield crew.ending, FOREVER
            try:
                crew.finish(self.call)
            finally:
                crew.ending.release()
        finally:
            with self.run.lock:
                crew.members.discard(self)
                if crew.watch is not None:
                    crew.watch.rouse()
                crew.ended(self)
                self.run.leave(self)


class TimedSlots:
    """The slots of a span whose items have a time-out.

    An append and the end of the item's time are one change under the lock. So the watch sees an item either at work or
    done.
    """

    def __init__(self, worker: Hand, span: Span) -> None:
        self.worker = worker
        self.span = span

    def append(self, slot: Any) -> None:
        worker, span = self.worker, self.span
        with worker.run.lock:
            if not worker.abandoned:  # else the item, and all behind it, were given to others
                worker.begun = None
                span.slots.append(slot)


class Watch:
    """The thread that looks after the time-outs of a stage: it sleeps until the next item could be over its time."""

    abandoned = False

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        #: Locked, unless the watch is to look: whoever wakes it releases this, under the run's lock.
        self.wake = threading.Lock()
        self.wake.acquire()
        #: A worker that begins an item has to wake the watch. Invariant: the watch sets this before it looks at the
        #: items at work, and a worker notes that it begins its item before it looks at this. So one of the two sees the
        #: other.
        self.asleep = False
        self.busy = False
        self.thread = crew.run.thread_of(self.steps, f"{crew.stage.name}-watch")

    def join(self, timeout: float) -> None:
        self.thread.join(timeout)

    def rouse(self) -> None:
        with self.crew.run.lock:
            if self.wake.locked():
                self.wake.release()

    def steps(self) -> Steps[None]:
        run, crew = self.crew.run, self.crew
        while True:
            with run.lock:
                self.asleep = True
                late, wait = crew.overdue(run.clock())
                if run.stopped or not crew.members:
                    run.leave(self)
                    return
                self.asleep = (
                    wait is None
                )  # else the watch wakes in time: an item begun later is over its time later
                for worker in late:
                    worker.abandoned = True
                    crew.members.discard(worker)
            for worker in late:
                crew.ended(worker, "timed out")
                crew.lost(worker.span, crew.too_late)
                with run.lock:
                    if not crew.window.exhausted:
                        crew.add(worker.index)
            if not late:
                yield self.wake, FOREVER if wait is None else wait
                self.asleep = False
