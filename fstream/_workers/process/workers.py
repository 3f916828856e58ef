"""Worker processes: each has a private socket pair to the parent, and one thread of the parent serves them all.

    window --take--> pump --span--> [socket] reader --> main: f --> [socket] --slots--> pump --> span.slots

The *pump* is the thread of the parent that takes spans for a stage's workers, sends them, and puts the slots that come
back into their spans. Two spans in flight for each worker hide the way there and back. No two workers share a lock, a
semaphore or a queue, so the death of one cannot stop another. The parent keeps no copy of a worker's end of its socket
pair, so a death is the end of the stream, at once.

A dead worker's *cell*, memory that it shared with the parent, says which item it was busy with. Where the cell cannot
say (the worker may have died while it pickled many), the suspects are run one at a time.
"""

from __future__ import annotations

import selectors
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from time import monotonic, monotonic_ns, perf_counter
from typing import Any, Final

import cloudpickle

from fstream._engine.run import Run
from fstream._flow.span import Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.crew import LONGEST_WAIT, Crew
from fstream._workers.notes import annotate, describe
from fstream._workers.process import child
from fstream._workers.process.blame import blame
from fstream._workers.process.errors import decode_error
from fstream._workers.process.link import Link
from fstream._workers.process.queue import PipeQueue, PumpWork
from fstream._workers.process.surroundings import surroundings
from fstream._workers.process.warm import WARM
from fstream._workers.process.wire import (
    Packed,
    dumps,
    loads,
    send_by_value_what_is_being_imported,
)
from fstream.errors import NotPicklable, WorkerDied

__all__ = ["Workers"]


#: How many spans a worker has in flight at most: one at work, one waiting behind it.
AHEAD: Final = 2

#: A span of several items has at most this many bytes, there or back. Larger items go faster one by one, and the memory
#: for two spans is needed for each worker.
SPAN_BYTES: Final = 1 << 22

#: Items that wait behind a slow item are stolen even if every worker has enough to do, once the slow worker has been
#: silent for this many times the window's `flush_delay`.
OVERTIME: Final = 1.25

#: How long workers that are stopped in the middle of f have for their ``on_done``, in seconds.
STOP_SECONDS: Final = 0.8

#: How many workers in a row may die before they have done anything. One more, and the stage is taken for one that
#: cannot work. Also how many may die before they begin one span: one more, and its first item is blamed.
MAX_STILLBORN: Final = 3

#: How many workers in a row may be killed from outside (SIGKILL) while their interpreter starts. Such a death says
#: nothing about the stage, so this is many more; but it is bounded, because a stage must not start workers for ever.
MAX_KILLED: Final = 100


ErrorOf = Callable[[Failure], BaseException]


class Worker:
    """One worker process while it works for a stage."""

    def __init__(self, link: Link, index: int) -> None:
        self.link = link
        self.index = index
        #: The spans that it was sent, in the order in which it runs them.
        self.flight: list[Span] = []
        #: It was sent the stage.
        self.opened = False
        #: It has acknowledged the stage: its messages are about this stage, and not about the one before.
        self.heeded = False
        #: It was sent a span, so its ``on_start`` was run or will be.
        self.begun = False
        #: How many items it was sent, less those that it gave back.
        self.items = 0
        #: It was asked for the items that it has not started, and has made no progress since.
        self.steal_requested = False
        #: It is running ``on_done``.
        self.finishing = False
        #: When it last sent anything, or got a span while it had none: in seconds of `perf_counter`.
        self.heard = 0.0

    @property
    def idle(self) -> bool:
        return not self.flight and not self.finishing


class Workers(Crew):
    """The processes of one stage, and the pump that serves them."""

    queue: PipeQueue

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.queue = PipeQueue(PumpWork(self, window))
        self.workers: list[Worker] = []
        self.free_indexes = list(range(window.workers))
        self.selector = selectors.DefaultSelector()
        #: The stage as its workers get it.
        self.packed: Packed = []
        #: How many bytes an item has on its way there and back, measured: half the last span's mean, half what it was.
        self.bytes = {"there": 0.0, "back": 0.0}
        #: The pump has seen the window's `flush_requested`, and asks slow workers for what they have finished.
        self.flush_noticed = False
        #: How many workers died in a row before they had done anything.
        self.stillborn = 0
        #: How many workers died that had been sent the span with this start, and had not begun it.
        self.unbegun: Counter[int] = Counter()
        #: Workers that have had their last item (`max_items_per_worker`), and are ending.
        self.retired: list[Link] = []
        self.busy = self.abandoned = False
        self.thread = threading.Thread(
            target=run.context.copy().run, args=(self.main,), name=f"fstream-{stage.name}-pump", daemon=True
        )

    def start(self) -> None:
        # Not in the pump: a module that this thread is just importing is locked for all other threads.
        send_by_value_what_is_being_imported()
        self.pack()
        self.run.launch(self)

    def stop(self) -> None:
        self.queue.signal()

    def join(self, timeout: float) -> None:
        if self.thread is not threading.current_thread():
            self.thread.join(timeout)

    def capacity(self) -> bool:
        """Tell whether one more span could be sent now, or a worker be started for it.

        Other threads ask, while the pump changes `workers` and `free_indexes` without the lock. Their answer may be out
        of date. That does no harm, because the pump looks again, in `listen`, before it waits.
        """
        return self.may_hire() or bool(self.ready_workers())

    def ready_workers(self) -> list[Worker]:
        """Give the workers that can be sent a span.

        No prefetch while a worker is starting (it will take that span), nor behind a slow item.
        """
        # Nor with a rate, because a try counts when f begins.
        ahead = AHEAD if self.stage.rate is None and all(worker.opened for worker in self.workers) else 1
        early = perf_counter() - self.window.flush_delay
        return [
            w for w in self.workers
            if w.opened and len(w.flight) < (ahead if w.heard > early else 1)
            and not self.used_up(w) and not w.finishing
        ]  # fmt: skip

    def may_hire(self) -> bool:
        """Tell whether one more worker may start: an index is free, and those that start leave something to take."""
        if not self.free_indexes:
            return False
        starting = sum(not worker.opened for worker in self.workers)
        with self.run.lock:
            return starting < max(1, self.window.backlog)

    def used_up(self, worker: Worker) -> bool:
        most = self.stage.max_items_per_worker
        return most is not None and worker.items >= most

    # ------------------------------------------------------------------------------------------- the pump's loop

    def main(self) -> None:
        try:
            # Other threads than the main one have no use for Ctrl-C.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self.selector.register(self.queue.bell, selectors.EVENT_READ, None)
            while not self.over():
                self.retire()
                self.dispatch()
                self.listen(self.next_check())
            self.wind_up()
        except BaseException as error:  # a bug of ours: never a hang
            self.break_down(error)
        finally:
            for worker in list(self.workers):
                worker.link.kill()
            self.selector.close()
            with self.run.lock:
                self.queue.takers = 0
                self.queue.close()
                self.run.leave(self)

    def pack(self) -> None:
        stage = self.stage
        # Handlers (`on_error`) run in the parent, and need not be picklable.
        shape = Stage(
            stage.kernel, stage.f, stage.kind, timeout=stage.timeout, retries=stage.retries, on_start=stage.on_start,
            on_error="raise" if stage.on_error == "raise" else "skip", on_done=stage.on_done, name=stage.name,
            parts=stage.parts, rate=None if stage.rate is None else 1.0,
        )  # fmt: skip
        main = sys.modules["__main__"]
        if main.__name__ == "__mp_main__":  # a child of multiprocessing has the script under another name
            cloudpickle.register_pickle_by_value(main)
        try:
            self.packed = dumps(shape)
        except Exception as error:
            problem = NotPicklable(blame(shape, error))
            problem.__cause__ = error
            self.fail(Failure(-1, None, problem))

    def over(self) -> bool:
        with self.run.lock:
            return self.window.stopped or (self.window.exhausted and not any(w.flight for w in self.workers))

    def dispatch(self) -> None:
        """Send spans to the workers that can take one, to those with the fewest first."""
        while (worker := self.next_worker()) is not None:
            with self.run.lock:
                size = max(1, int(SPAN_BYTES / max(1, *self.bytes.values())))
                if self.stage.max_items_per_worker is not None:
                    size = min(size, self.stage.max_items_per_worker - worker.items)
                span = self.window.take(perf_counter(), size)
                self.run.settle()
            if span is None:
                break
            if self.observer is not None:
                self.taken(span, worker)
            self.send(worker, span)

    def next_worker(self) -> Worker | None:
        if self.may_hire() and not any(worker.idle for worker in self.ready_workers()):
            with self.run.lock:
                wanted = self.window.takable()
            if wanted:
                self.hire()
        return min(self.ready_workers(), key=lambda w: len(w.flight), default=None)

    def hire(self) -> None:
        """Get one more worker, a warm one if there is one."""
        try:
            link = WARM.take() or Link()
        except RuntimeError as error:
            # The interpreter is about to exit: go on with the workers that there are.
            self.free_indexes.clear()
            if not self.workers:
                self.fail(Failure(-1, None, error))
            return
        except BaseException as error:
            self.fail(Failure(-1, None, error))
            return
        worker = Worker(link, self.free_indexes.pop(0))
        self.workers.append(worker)
        self.started(worker)
        self.selector.register(link.sock, selectors.EVENT_READ, worker)
        if link.ready:
            self.open(worker)

    def open(self, worker: Worker) -> None:
        """Give a worker the stage."""
        worker.opened = True
        worker.link.forget_span()
        worker.link.wire.push((child.OPEN, surroundings(), worker.index), self.packed)
        self.flush(worker)

    def send(self, worker: Worker, span: Span) -> None:
        """Send *span* to *worker*."""
        try:
            body = dumps(span.items)
        except Exception as error:
            self.unfit(span, error, "item cannot be pickled")
            return
        span.sent = True
        if not worker.flight:
            worker.heard = perf_counter()
        worker.flight.append(span)
        worker.items += len(span.items)
        worker.steal_requested = False
        if not worker.begun:
            worker.begun = True
            with self.run.lock:
                self.begun += 1
        self.weigh("there", body, len(span.items))
        worker.link.wire.push((child.SPAN, span.start, span.tries), body)
        self.flush(worker)

    def weigh(self, way: str, body: Packed, count: int) -> None:
        """Measure how many bytes an item has, by a message of *count* items that goes this *way*."""
        if count > 0:
            self.bytes[way] = (self.bytes[way] + sum(map(len, body)) / count) / 2

    def flush(self, worker: Worker) -> None:
        """Write as much as the socket takes; wait for room, in the selector, if more is left."""
        try:
            done = worker.link.wire.flush()
        except OSError as error:
            # The worker has died: the end of its stream will tell. Without memory, say, the pump would wait for ever.
            if isinstance(error, ConnectionError) or not worker.link.process.is_alive():
                return
            raise
        events = selectors.EVENT_READ if done else selectors.EVENT_READ | selectors.EVENT_WRITE
        if self.selector.get_key(worker.link.sock).events != events:
            self.selector.modify(worker.link.sock, events, worker)

    # ----------------------------------------------------------------------------------------------- what comes

    def next_check(self) -> float | None:
        """Give the seconds until `look_after` may have something to do without any message; None if never."""
        waits = []
        now = perf_counter()
        self.flush_noticed = self.window.flush_requested
        if self.flush_noticed or self.spare():
            waits += [
                worker.heard + self.window.flush_delay - now for worker in self.workers if self.loaded(worker)
            ]
        if self.stage.timeout is not None:
            waits += [self.time_left(worker) for worker in self.workers if worker.flight]
        if self.queue.deadline is not None:
            waits.append(self.queue.deadline - now)
        return max(0.0, min(*waits, LONGEST_WAIT)) if waits else None

    def spare(self) -> bool:
        """Tell whether a worker has nothing to do, or one more could be started."""
        return any(worker.opened and worker.idle for worker in self.workers) or (self.may_hire())

    def loaded(self, worker: Worker, work: float = 0.0) -> bool:
        """Tell whether *worker* may have unstarted items, and at least so many seconds of *work* left.

        False if it was asked for them already.
        """
        if worker.steal_requested:
            return False
        count = sum(len(span.items) - len(span.slots) for span in worker.flight)
        return count > 1 and count * (self.window.sizing.cost or 0.0) >= work

    def at_the_end(self) -> bool:
        """Tell whether a worker has nothing to do, and will never have any but what is stolen from others."""
        if not any(worker.idle for worker in self.ready_workers()):
            return False
        with self.run.lock:
            return self.window.upstream.end is not None and not self.window.takable()

    def time_left(self, worker: Worker) -> float:
        """Give the seconds until the item of *worker* is over its time. An item that has not begun has all of it."""
        assert self.stage.timeout is not None
        if worker.link.state(child.DOING) < 0:
            return self.stage.timeout
        return self.stage.timeout - (monotonic_ns() - worker.link.state(child.SINCE)) / 1e9

    def listen(self, timeout: float | None) -> None:
        """Wait up to *timeout* seconds for messages, or until there is something to take; see to what came."""
        with self.run.lock:
            self.queue.takers = 1
            self.queue.signalled = False
            if self.queue.buffer.ready():
                timeout = 0
            else:
                self.run.settle()
        events = self.selector.select(timeout)
        with self.run.lock:
            self.queue.takers = 0
        for key, mask in events:
            worker = key.data
            if worker is None:
                self.queue.silence()
            elif worker in self.workers:
                if mask & selectors.EVENT_WRITE:
                    self.flush(worker)
                if mask & selectors.EVENT_READ:
                    self.hear(worker)
        self.look_after()

    def look_after(self) -> None:
        """Steal what waits behind slow items, ask upstream to flush, and kill workers whose item is over its time."""
        now = perf_counter()
        delay = self.window.flush_delay
        slow = [worker for worker in self.workers if self.loaded(worker) and now - worker.heard >= delay]
        if not slow and self.at_the_end():
            slow = [worker for worker in self.workers if self.loaded(worker, self.window.sizing.undivided)]
        if slow:
            with self.run.lock:
                spare = self.spare() and not self.window.takable()
            if spare and not any(worker.opened and worker.idle for worker in self.workers):
                self.hire()
            if not (spare or self.window.flush_requested):
                slow = [worker for worker in slow if now - worker.heard >= OVERTIME * delay]
            self.request_steal(slow)
        if self.queue.deadline is not None and now >= self.queue.deadline:
            with self.run.lock:
                self.queue.deadline = None
                if self.queue.buffer.can_flush():
                    self.queue.buffer.request_flush()
                    self.run.settle()
        if self.stage.timeout is not None:
            for worker in list(self.workers):
                doing, since = worker.link.state(child.DOING), worker.link.state(child.SINCE)
                if (
                    worker.flight
                    and self.time_left(worker) <= 0
                    and (worker.link.state(child.DOING), worker.link.state(child.SINCE)) == (doing, since)
                ):
                    self.bury(worker, doing, worker.link.kill(), self.too_late)

    def request_steal(self, workers: Iterable[Worker]) -> None:
        """Ask *workers* for the items that they have not started, and for the slots that they have finished."""
        for worker in workers:
            worker.steal_requested = True
            worker.link.wire.push((child.STEAL,))
            self.flush(worker)

    def take_back(self) -> None:
        self.request_steal([worker for worker in self.workers if self.loaded(worker)])

    def hear(self, worker: Worker) -> None:
        """Read the messages of *worker*; it has died if its stream has ended."""
        try:
            for header, body in worker.link.wire.receive():
                worker.heard = perf_counter()
                self.answer(worker, header, body)
        except (EOFError, OSError):
            self.bury(worker, worker.link.state(child.DOING), worker.link.died())

    def answer(self, worker: Worker, header: tuple[Any, ...], body: Packed) -> None:
        """Do what a message of *worker* asks for."""
        what = header[0]
        if what == child.OPENED:
            worker.heeded = True
        elif what != child.READY and not worker.heeded:
            pass  # a late answer to the stage that this worker had before
        elif what == child.SLOTS:
            self.stillborn = 0
            self.receive(worker, header[1:], body)
        elif what == child.STOLEN:
            self.requeue_tail(worker, header[1], header[2])
        elif what == child.READY:
            worker.link.ready = True
            if not header[1]:  # it has no room for the arena
                worker.link.wire.outward = None
            self.open(worker)
        elif what == child.UNLOADABLE:
            span = self.span_of(worker, header[1], closed=True)
            if span is not None:
                error = decode_error(header[2])
                self.unfit(span, error, f"item cannot be unpickled in the worker{_way_out(error)}")
        elif what == child.BROKEN:
            error = decode_error(header[2])
            if header[1] == "load":
                problem = NotPicklable(
                    f"stage {self.stage.name!r} (process) cannot be loaded in a worker{_way_out(error)}: {error}"
                )
                problem.__cause__ = error
                error = problem
            else:
                annotate(error, f"in on_start of stage {self.stage.name!r} (process)")
            worker.begun = False
            with self.run.lock:
                self.begun = max(0, self.begun - 1)
            self.fail(Failure(-1, None, error))
        elif what == child.FINISHED:
            self.finished(worker, header[1])

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

    def receive(self, worker: Worker, header: tuple[Any, ...], body: Packed) -> None:
        """Append the slots of a message to their span."""
        start, count, failed, closed, seconds = header
        span = self.span_of(worker, start, closed)
        if span is None:
            return
        position = len(span.slots)
        self.weigh("back", body, count - position)
        try:
            slots = loads(body)
        except BaseException as error:
            self.unloadable(span, count, closed, error)
            return
        if failed:
            self.put_all(span, slots, failed)
        else:
            span.slots.extend(slots)
        worker.steal_requested = False
        with self.run.lock:
            if closed:
                self.window.requeue_tail(span, len(span.items) - len(span.slots))  # behind a failure
                self.window.done(span, seconds)
            if len(span.slots) > position and self.window.available():
                self.window.flush_requested = False
            self.run.settle()

    def put_all(self, span: Span, slots: list[Any], failed: list[int]) -> None:
        """Append *slots*, some of which are failures, up to one that ends *span*."""
        for number, slot in enumerate(slots):
            if number in failed:
                position = len(span.slots)
                slot.index, slot.item = span.start + position, span.items[position]
                slot.tries = 1 if position else span.tries + 1
                slot.error = decode_error(slot.error)
            if not self.put(span, slot):
                return

    def unloadable(self, span: Span, count: int, closed: bool, error: BaseException) -> None:
        """Find the output that cannot be unpickled here: run the items of *span* one by one. A single item fails."""
        first = len(span.slots)
        if count - first == 1:
            position, item = first, span.items[first]
            what = f"{describe(self.stage, span.start + position, item)}: its output cannot be unpickled: {error}"
            problem = NotPicklable(what)
            problem.__cause__ = error
            self.put(span, Failure(span.start + position, item, problem))
            if closed:
                with self.run.lock:
                    self.window.done(span)
                    self.run.settle()
            return
        with self.run.lock:
            self.window.requeue_singly(span)
            self.run.settle()

    def requeue_tail(self, worker: Worker, start: int, count: int | None) -> None:
        """Requeue the last *count* items of a span (None: all), which *worker* has not started and gives up."""
        span = self.span_of(worker, start, closed=count is None)
        if span is None:
            return
        if count is None:
            count = len(span.items)
        worker.items -= count
        with self.run.lock:
            self.window.requeue_tail(span, count)
            self.run.settle()

    # ---------------------------------------------------------------------------------------------- what ends

    def leave_out(self, worker: Worker) -> None:
        """Have *worker* take part no more; its index is free."""
        self.workers.remove(worker)
        self.ended(worker)
        self.free_indexes.append(worker.index)
        self.selector.unregister(worker.link.sock)
        if worker.begun:
            worker.begun = False
            with self.run.lock:
                self.begun -= 1

    def bury(self, worker: Worker, doing: int, status: int | None, error_of: ErrorOf | None = None) -> None:
        """See to the spans of a dead *worker*. *doing* is what its cell said, *status* how its process ended."""
        self.ended(worker, "died" if error_of is None else "timed out")
        self.leave_out(worker)
        flushing = bool(worker.link.state(child.FLUSHING))
        if worker.finishing:
            self.complain(self.died(f"a worker {_ended(status)} in on_done", status))
            return
        at_work = worker.opened and doing != child.OPENING
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
                self.recover(span, doing, status, flushing=flushing, error_of=error_of)
            elif not span.closed:
                self.requeue_unfinished(span)
        if not at_work and not self.window.stopped:
            self.count_stillborn(worker, status)

    def count_stillborn(self, worker: Worker, status: int | None) -> None:
        """End the stage if its workers die one after the other before they can do anything."""
        self.stillborn += 1
        if worker.opened:
            most, when = self.stage.retries, "in on_start"
        elif status == -signal.SIGKILL:
            most, when = MAX_KILLED, "while it started"
        else:
            most, when = max(self.stage.retries, MAX_STILLBORN), "while it started"
        if self.stillborn > most:
            self.fail(Failure(-1, None, self.died(f"a worker {_ended(status)} {when}", status)))

    def died(self, what: str, status: int | None) -> WorkerDied:
        return WorkerDied(f"stage {self.stage.name!r} (process): {what}", status)

    def recover(
        self,
        span: Span,
        doing: int,
        status: int | None,
        *,
        flushing: bool,
        error_of: ErrorOf | None,
    ) -> None:
        """Blame the item that a dead worker was busy with, and requeue the other unfinished ones of its *span*."""

        def died(failure: Failure) -> BaseException:
            where = describe(self.stage, failure.index, failure.item)
            return WorkerDied(f"{where}: its worker {_ended(status)}", status, failure.item)

        first, at = len(span.slots), doing - span.start
        moving = flushing or doing in (child.LOADING, child.SENDING)  # it pickled or unpickled
        if moving and len(span.items) - first == 1:
            at = first  # the only item
        elif moving:  # any item may be to blame
            with self.run.lock:
                self.window.requeue_singly(span)
                self.run.settle()
            return
        if first <= at < len(span.items):
            self.lost(span, error_of or died, at)
        else:
            self.requeue_unfinished(span)

    def requeue_unfinished(self, span: Span) -> None:
        """Close *span*, and requeue its items that have no slot."""
        with self.run.lock:
            self.window.requeue_tail(span, len(span.items) - len(span.slots))
            self.window.done(span)
            self.run.settle()

    def finished(self, worker: Worker, error: tuple[Any, ...] | None) -> None:
        """Note that *worker* has run ``on_done``, and its *error*."""
        worker.finishing = False
        if error is not None:
            self.complain(decode_error(error))

    def retire(self) -> None:
        """End the workers that have had their last item, as soon as their ``on_done`` has run."""
        for worker in [w for w in self.workers if self.used_up(w) and w.idle]:
            if worker.begun and self.stage.on_done is not None:
                self.ask_to_finish(worker, child.FINISH)
                continue
            self.leave_out(worker)
            worker.link.close()
            worker.link.dismiss()
            self.retired = [link for link in self.retired if link.process.is_alive()]
            self.retired.append(worker.link)

    def ask_to_finish(self, worker: Worker, what: str) -> None:
        """Have a worker run its ``on_done``."""
        worker.finishing, worker.begun = True, False
        worker.link.wire.push((what, self.status().active_workers))
        self.flush(worker)

    def wind_up(self) -> None:
        """End the workers: idle ones stay warm, those in f are killed, or stopped if they have an ``on_done``."""
        for worker in list(self.workers):
            if not worker.opened:  # it is still starting: the next stage may use it
                self.leave_out(worker)
                WARM.put(worker.link)
            elif worker.flight and (self.stage.on_done is None or not worker.begun):
                self.leave_out(worker)
                worker.link.kill()
        stopped = self.window.stopped
        self.dismiss(
            list(self.workers), child.STOP if stopped else child.FINISH, STOP_SECONDS if stopped else None
        )
        for worker in list(self.workers):
            self.leave_out(worker)
            if worker.finishing or worker.flight:
                worker.link.kill()
            elif worker.link.close() and not self.used_up(worker):
                WARM.put(worker.link)
            else:
                worker.link.buried()
        for link in self.retired:
            link.buried()

    def dismiss(self, workers: list[Worker], what: str, seconds: float | None) -> None:
        """Have *workers* run ``on_done``, one after the other, so that the last one knows that it is the last.

        *seconds* is how long all of them have; None is no limit.
        """
        if self.stage.on_done is None:
            return
        deadline = None if seconds is None else monotonic() + seconds
        for worker in sorted(workers, key=lambda worker: len(worker.flight)):
            if worker.begun and worker in self.workers and not worker.finishing:
                self.ask_to_finish(worker, what)
            while worker.finishing and worker in self.workers:
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    break
                self.listen(left)
                if deadline is None and self.run.stopped:
                    deadline = monotonic() + STOP_SECONDS


def _way_out(error: BaseException) -> str:
    """Say what to do about a module that is here, and that a worker cannot import."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name not in sys.modules:
        return ""
    return (
        f", which cannot import the module {name!r} (was it loaded from a path?); put its folder into sys.path, or call"
        f" cloudpickle.register_pickle_by_value(sys.modules[{name!r}]) before"
    )


def _ended(status: int | None) -> str:
    if status is None:
        return "ended, exit status unknown: somebody else has waited for it, or SIGCHLD is ignored"
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name} (exit status {status})"
        except ValueError:
            pass
    return f"ended with exit status {status}"
