"""The pump: the thread that serves the workers of one stage.

It takes spans for them, hears what they say, steals what waits behind slow items, kills those whose item is over its
time, and gives workers back to the pool.
"""

from __future__ import annotations

import selectors
import signal
from collections import deque
from collections.abc import Iterable
from typing import Final

from fstream._engine.run import Run
from fstream._flow.sizing import SPAN_BYTES
from fstream._flow.span import Failure
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.crew import LONGEST_WAIT
from fstream._workers.process import child
from fstream._workers.process.answers import Answers
from fstream._workers.process.leaving import Leaving
from fstream._workers.process.messages import Steal, Stolen
from fstream._workers.process.pool import PATIENCE, SLICE
from fstream._workers.process.recovery import Recovery
from fstream._workers.process.shape import packed_stage
from fstream._workers.process.wire import send_by_value_what_is_being_imported
from fstream._workers.process.workers import Steps, Worker, Workers
from fstream.errors import NotPicklable

__all__ = ["Pump"]


#: Items that wait behind a slow item are stolen even if every worker has enough to do, once the slow worker has been
#: silent for this many times the window's `flush_delay`.
OVERTIME: Final = 1.25


class Pump(Workers):
    """The workers of a stage, and the thread that serves them."""

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.recovery = Recovery(self)
        self.answers = Answers(self, self.recovery)
        self.leaving = Leaving(self, self.listen, self.heed)
        #: When it last had something to do, in seconds of the run's clock.
        self.woke = self.clock()
        #: When it last looked whether workers elsewhere sleep, in seconds of the run's clock.
        self.looked = 0.0

    def start(self) -> None:
        # Not in the pump: a module that this thread is just importing is locked for all other threads.
        send_by_value_what_is_being_imported()
        try:
            self.packed = packed_stage(self.stage, self.run.context)
        except NotPicklable as problem:
            self.fail(Failure(-1, None, problem))
        self.take_part()

    def take_part(self) -> None:
        self.thread = self.run.thread(self.main, f"{self.stage.name}-pump")
        self.run.launch(self)

    def stop(self) -> None:
        self.queue.signal()

    def join(self, timeout: float) -> None:
        if not self.is_here():
            self.thread.join(timeout)

    def main(self) -> None:
        deque(self.steps(), 0)  # each waits for itself, in the selector

    def steps(self) -> Steps:
        try:
            self.ignore_interrupts()
            self.selector.register(self.queue.bell, selectors.EVENT_READ, None)
            self.pool.enter(self)
            while not self.over():
                self.heed()
                self.leaving.retire_used_up()
                self.share()
                self.dispatch()
                yield from self.listen(self.next_check())
            with self.run.lock:
                self.settle_beside()  # in a long row nobody else tells the next stage of the end
            yield from self.leaving.wind_up()
        except GeneratorExit:  # the simulation is given up
            raise
        except BaseException as error:  # a bug of ours: never a hang
            self.break_down(error)
        finally:
            self.waiting = None
            try:
                self.leaving.leave_pool()
            finally:  # whatever it raises, nobody waits for this thread
                self.selector.close()
                with self.run.lock:
                    self.queue.takers = 0
                    self.queue.close()
                    self.run.leave(self)

    def ignore_interrupts(self) -> None:
        """Other threads than the main one have no use for Ctrl-C."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def over(self) -> bool:
        return self.stopped or (self.exhausted() and not any(w.flight for w in self.workers))

    # ------------------------------------------------------------------------------------------- what the pool says

    def heed(self) -> None:
        """See to what the pool has changed."""
        if not self.poked:
            return
        self.poked = False
        self.mourn()
        while self.granted:
            self.waiting = None
            self.employ(self.granted.popleft())
        for worker in self.workers:
            worker.link.tell_owed()

    def share(self) -> None:
        """Give back the workers that others need more; wait for none that is not needed any more."""
        if self.waiting is None and not self.pool.waiting:
            return
        with self.run.lock:
            takable = self.window.takable()
        if self.waiting is not None and not takable:
            self.stop_waiting()
        if not self.pool.wanted(self):
            return
        now = self.clock()
        for worker in list(self.workers):
            if (
                worker.opened
                and worker.idle
                and (not takable or (worker.recalled and self.is_leaving(worker, now)))
            ):
                self.give_back(worker)

    def dispatch(self) -> None:
        """Send spans to the workers that can take one, to those with the fewest first."""
        if self.window.sorting:
            with self.run.lock:  # no worker is to be started for what needs none
                self.window.look()
                self.settle_beside()
        while (worker := self.next_worker()) is not None:
            with self.run.lock:
                size = max(1, int(SPAN_BYTES / max(1, *self.bytes.values())))
                if self.stage.max_items_per_worker is not None:
                    size = min(size, self.stage.max_items_per_worker - worker.items)
                span = self.window.take(self.clock(), size)
                self.settle_beside()
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

    def next_check(self) -> float | None:
        """Give the seconds until `look_after` may have something to do without any message; None if never."""
        waits = []
        now = self.clock()
        if self.pool.wanted(self):
            waits += [
                worker.since + SLICE - now
                for worker in self.workers
                if worker.recalled and not worker.steal_requested
            ]
        if self.waiting is not None:
            waits.append(max(self.waiting, self.looked) + PATIENCE - now)
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
            window = self.window
            return window.upstream.end is not None and not (window.ledger.requeued or window.takable())

    def time_left(self, worker: Worker) -> float:
        """Give the seconds until the item of *worker* is over its time. An item that has not begun has all of it."""
        most = self.stage.timeout
        assert most is not None
        doing, part, since = self.at_work(worker)
        own = self.stage.parts[part].timeout if self.stage.parts else most
        if doing < 0 or own is None:
            return most
        return min(own - (self.clock() - since / 1e9), most)  # the next part may have less

    def at_work(self, worker: Worker) -> tuple[int, int, int]:
        """Give what the cell of *worker* says: its item, the part of the stage that has it, and since when."""
        state = worker.link.state
        return state(child.DOING), state(child.PART), state(child.SINCE)

    def listen(self, timeout: float | None) -> Steps:
        """Wait up to *timeout* seconds for messages, or until there is something to take; see to what came."""
        if not self.ending:
            with self.run.lock:
                self.queue.takers = 1
                self.queue.signalled = False
                if self.queue.buffer.ready():
                    timeout = 0
                else:
                    self.settle_beside()
        self.window.tally.pumped += self.clock() - self.woke
        yield timeout
        events = self.selector.select(timeout)
        self.woke = self.clock()
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
        if not self.ending:
            self.look_after()

    def look_after(self) -> None:
        """Steal what waits behind slow items, ask upstream to flush, and kill workers whose item is over its time."""
        now = self.clock()
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
        if self.pool.waiting:
            self.look_at_the_pool(now)
        if self.queue.deadline is not None and now >= self.queue.deadline:
            with self.run.lock:
                self.queue.deadline = None
                if self.queue.buffer.can_flush():
                    self.queue.buffer.request_flush()
                    self.settle_beside()
        if self.stage.timeout is not None:
            for worker in list(self.workers):
                at = self.at_work(worker)
                if worker.flight and self.time_left(worker) <= 0 and self.at_work(worker) == at:
                    self.recovery.bury(worker, at[0], worker.link.kill(), self.too_late, at[1])

    def look_at_the_pool(self, now: float) -> None:
        """Take from a worker that is to go what it has not started; while this stage waits, see who sleeps."""
        self.request_steal(
            worker for worker in self.workers
            if worker.recalled and worker.flight and not worker.steal_requested and self.is_leaving(worker, now)
        )  # fmt: skip
        if self.waiting is not None and now >= max(self.waiting, self.looked) + PATIENCE:
            self.looked = now
            self.pool.look_for_sleepers(self)

    def request_steal(self, workers: Iterable[Worker]) -> None:
        """Ask *workers* for the items that they have not started, and for the slots that they have finished."""
        for worker in workers:
            worker.steal_requested = True
            worker.link.wire.push(Steal())
            self.flush(worker)

    def take_back(self) -> None:
        self.request_steal([worker for worker in self.workers if self.loaded(worker)])

    def hear(self, worker: Worker) -> None:
        """Read the messages of *worker*; it has died if its stream has ended."""
        try:
            for message, body in worker.link.wire.receive():
                if not worker.link.relayed.take(message, body):  # which is no progress
                    # Nor is what it has not begun: that is not to be sent there again.
                    if not isinstance(message, Stolen):
                        worker.heard = self.clock()
                    self.answers.answer(worker, message, body)
        except (EOFError, OSError):
            doing, part, _ = self.at_work(worker)
            self.recovery.bury(worker, doing, worker.link.died(), part=part)
