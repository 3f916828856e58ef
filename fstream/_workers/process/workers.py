"""The worker processes of one stage: which it has on lease, what they are sent, and how the lease ends.

    window --take--> pump --span--> [socket] reader --> main: f --> [socket] --slots--> pump --> span.slots

The *pump* is the thread of the parent that takes spans for a stage's workers, sends them, and puts the slots that come
back into their spans. Two spans in flight for each worker hide the way there and back. No two workers share a lock, a
semaphore or a queue, so the death of one cannot stop another. The parent keeps no copy of a worker's end of its socket
pair, so a death is the end of the stream, at once.

The processes are the pool's (`pool.py`). What the messages of a worker mean is in `answers.py`, what becomes of the
spans of a dead one in `recovery.py`, how workers leave in `leaving.py`, and the pump's loop in `pump.py`.
"""

from __future__ import annotations

import selectors
import threading
import weakref
from collections import deque
from collections.abc import Generator
from itertools import count
from typing import Any, Final, TypeAlias

from fstream._engine.run import Run
from fstream._flow.span import Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.crew import Crew
from fstream._workers.process import child
from fstream._workers.process.errors import encode_error
from fstream._workers.process.link import Link
from fstream._workers.process.messages import Close, Finish, Items, Open, Stop
from fstream._workers.process.pool import POOL, SLICE, Pool, Worker
from fstream._workers.process.queue import PipeQueue, PumpWork
from fstream._workers.process.surroundings import inherited, surroundings
from fstream._workers.process.warm import WARM
from fstream._workers.process.wire import Packed, dumps

__all__ = ["WARM", "Steps", "Worker", "Workers"]


#: What a pump does, up to each of its waits; it yields how long that is at most, in seconds, None for any time.
Steps: TypeAlias = Generator[float | None, None, None]


#: How many spans a worker has in flight at most: one at work, one waiting behind it.
AHEAD: Final = 2

#: Gives each stage the key by which workers know it.
_KEYS: Final = count()


class Workers(Crew):
    """The processes that one stage has on lease.

    It has more attributes than most: those of a `Crew`, those that the pool changes, and the leases' own.
    """

    queue: PipeQueue
    #: The pump's.
    thread: threading.Thread

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.clock = run.clock
        self.pool = self.find_pool()
        self.queue = self.make_queue()
        self.selector = self.make_selector()
        self.key = next(_KEYS)
        self.workers: list[Worker] = []
        self.free_indexes = list(range(window.workers))
        #: A stage with resources has an index for each process that it has begun in, until its end. No other process
        #: than those may work for the stage once all indexes are given out; but one that sleeps in another stage's item
        #: shares its index with a further process, and one of the two works for the stage at a time.
        self.has_resources = any(part.on_start or part.on_done for part in stage.parts or (stage,))
        self.begun_in: dict[Link, int] = {}
        #: How many items those have had that are to have no more than so many.
        self.had: weakref.WeakKeyDictionary[Link, int] = weakref.WeakKeyDictionary()
        #: The processes that have the stage loaded.
        self.loaded_in: weakref.WeakSet[Link] = weakref.WeakSet()
        #: The stage as they get it.
        self.packed: Packed = []
        #: How many bytes an item has on its way there and back, measured: half the last span's mean, half what it was.
        self.bytes = {"there": 0.0, "back": 0.0}
        #: The pump has seen the window's `flush_requested`, and asks slow workers for what they have finished.
        self.flush_noticed = False
        # What the pool changes: see `Tenant`.
        self.granted: deque[Worker] = deque()
        self.mourned: deque[Link] = deque()
        self.poked = False
        #: It waits for a worker, since when, in seconds of the run's clock; None if it does not.
        self.waiting: float | None = None
        #: What a process has from this one for good, when a worker was last asked for.
        self.ours: tuple[Any, ...] = ()
        #: It is in user code, or waits for workers that others have.
        self.busy = self.abandoned = False
        #: Nothing more is to be sent: only processes that have begun are of use, for their ``on_done``.
        self.ending = False

    # What it is made of; in a simulation that is nothing of the system's.

    def find_pool(self) -> Pool:
        return POOL if self.stage.engine is None else self.stage.engine.pool()

    def make_queue(self) -> PipeQueue:
        return PipeQueue(PumpWork(self, self.window))

    def make_selector(self) -> selectors.BaseSelector:
        return selectors.DefaultSelector()

    def exhausted(self) -> bool:
        with self.run.lock:
            return self.window.exhausted

    @property
    def stopped(self) -> bool:
        """Nobody waits for what is at work."""
        return self.window.stopped or self.pool.closed

    # ------------------------------------------------------------------------------------- what the pool asks of it

    @property
    def most(self) -> int:
        return self.window.workers

    def takes(self, link: Link | None) -> bool:
        if link is not None and link in self.begun_in:
            return self.is_free(self.begun_in[link])
        if self.ending or not self.free_indexes:
            return False
        return link is None or not (link.worn or link.inherited != self.ours)

    def prefers(self, link: Link) -> int:
        """Rather one that has the stage, then one that has started."""
        return 4 * (link in self.begun_in) + 2 * (link in self.loaded_in) + link.ready

    def spare_index(self, links: list[Link]) -> int | None:
        indexes = (self.begun_in[link] for link in links if link in self.begun_in)
        return None if self.ending else next(filter(self.is_free, indexes), None)

    def is_free(self, index: int) -> bool:
        """Tell whether no worker that the stage has now has this *index*."""
        return all(worker.index != index for worker in self.workers)

    def ring(self) -> None:
        self.queue.ring()

    def is_here(self) -> bool:
        return self.thread is threading.current_thread()

    def waits_here(self) -> bool:
        # A signal handler may have interrupted a thread that has the lock.
        return self.is_here() or self.run.lock._is_owned()  # type: ignore[attr-defined]

    # ----------------------------------------------------------------------------------------- who takes part

    def capacity(self) -> bool:
        """Tell whether one more span could be sent now, or a worker be asked for.

        Other threads ask, while the pump changes its leases without the lock. Their answer may be out of date. That
        does no harm, because the pump looks again, in `listen`, before it waits.
        """
        return self.may_hire() or bool(self.ready_workers())

    def in_line(self) -> bool:
        return self.waiting is not None and not self.workers

    def starting(self) -> bool:
        """Other threads ask, too: see `capacity`."""
        return any(w.flight and not w.answered and w.link.state(child.DOING) < 0 for w in list(self.workers))

    def ready_workers(self) -> list[Worker]:
        """Give the workers that can be sent a span.

        No prefetch while a worker is starting (it will take that span), nor behind a slow item.
        """
        # Nor with a rate, because a try counts when f begins.
        ahead = AHEAD if self.stage.rate is None and all(worker.opened for worker in self.workers) else 1
        now = self.clock()
        early = now - self.window.flush_delay
        return [
            w for w in self.workers
            if w.opened and len(w.flight) < (ahead if w.heard > early else 1)
            and not self.used_up(w) and not w.finishing and not (w.recalled and self.is_leaving(w, now))
        ]  # fmt: skip

    def may_hire(self) -> bool:
        """Tell whether one more worker may start: it may have more, and those that start leave something to take."""
        if self.waiting is not None or self.ending or len(self.workers) >= self.window.workers:
            return False
        starting = sum(not worker.opened for worker in self.workers)
        with self.run.lock:
            return starting < max(1, self.window.backlog)

    def used_up(self, worker: Worker) -> bool:
        """Tell whether *worker* is to be sent nothing more, and to take no further stage."""
        most = self.stage.max_items_per_worker
        return worker.stale or (most is not None and worker.items >= most)

    def is_leaving(self, worker: Worker, now: float) -> bool:
        """Tell whether *worker*, which was recalled, is to go now: somebody still waits, and its time is over."""
        return now - worker.since >= SLICE and self.pool.wanted(self)

    def hire(self) -> None:
        """Get one more worker, or wait for one."""
        try:
            self.ours = inherited()
            worker = self.pool.hire(self)
        except BaseException as error:
            self.fail(Failure(-1, None, error))
            return
        if worker is None:
            self.waiting = self.clock()
        else:
            self.employ(worker)

    def stop_waiting(self) -> None:
        if self.waiting is not None:
            self.pool.cancel(self)
            self.waiting = None

    def employ(self, worker: Worker) -> None:
        """Begin a lease."""
        if not worker.new and not worker.link.idle():  # it has ended meanwhile
            worker.link.buried()
            self.pool.gone(worker)
            self.mourn()
            if not self.ending:
                self.hire()
            return
        try:
            if worker.new:
                worker.link, worker.new = self.pool.start(), False
        except RuntimeError as error:
            # The interpreter is about to exit: go on with the workers that there are.
            self.pool.gone(worker)
            self.free_indexes.clear()
            if not self.workers:
                self.fail(Failure(-1, None, error))
            return
        except BaseException as error:
            self.pool.gone(worker)
            self.fail(Failure(-1, None, error))
            return
        link = worker.link
        worker.active = link in self.begun_in
        if worker.active:
            worker.index = self.begun_in[link]
        elif worker.index < 0:
            worker.index = self.free_indexes.pop(0)
        worker.items = self.had.get(link, 0)
        self.workers.append(worker)
        self.started(worker)
        self.selector.register(link.sock, selectors.EVENT_READ, worker)
        link.tell_owed()
        if link.ready:
            self.open(worker)

    def open(self, worker: Worker) -> None:
        """Give a worker the stage."""
        link, new = worker.link, worker.link not in self.loaded_in
        worker.opened, worker.since = True, self.clock()
        self.loaded_in.add(link)
        link.forget_span()
        link.wire.push(
            Open(self.key, surroundings() if new else None, worker.index, self.has_resources),
            self.packed if new else None,
        )
        self.flush(worker)
        self.pool.look_again()

    def send(self, worker: Worker, span: Span) -> None:
        """Send *span* to *worker*."""
        try:
            body = dumps(span.items)
        except Exception as error:
            self.unfit(span, error, "item cannot be pickled")
            return
        span.sent = True
        if not worker.flight:
            worker.heard = self.clock()
        worker.flight.append(span)
        worker.items += len(span.items)
        worker.steal_requested = False
        if not worker.active:
            self.begin(worker)
        self.weigh("there", body, len(span.items))
        progress = None if span.progress is None else span.progress._replace(error_of=None)
        worker.link.wire.push(Items(span.start, span.tries, progress), body)
        self.flush(worker)

    def begin(self, worker: Worker) -> None:
        """Note that ``on_start`` is run in *worker*."""
        worker.active = True
        if self.has_resources:
            self.begun_in[worker.link] = worker.index
            worker.link.homes.add(self)
        with self.run.lock:
            self.active += 1

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

    # ------------------------------------------------------------------------------------------ who leaves

    def end_lease(self, worker: Worker) -> None:
        """Have *worker* take part no more. What the stage has loaded and begun there stays."""
        self.workers.remove(worker)
        self.ended(worker)
        self.selector.unregister(worker.link.sock)
        if self.stage.max_items_per_worker is not None:
            self.had[worker.link] = worker.items
        if worker.link not in self.begun_in:
            self.free(worker.index)
            self.not_begun_in(worker)

    def free(self, index: int) -> None:
        """An *index* has lost a process: another one may have it, unless there is one left."""
        if self.is_free(index) and index not in self.begun_in.values():
            self.free_indexes.append(index)

    def leave_out(self, worker: Worker) -> None:
        """Have *worker* take part no more, and never again; its index is free."""
        self.begun_in.pop(worker.link, None)
        worker.link.homes.discard(self)
        self.end_lease(worker)

    def not_begun_in(self, worker: Worker) -> None:
        if worker.active:
            worker.active = False
            with self.run.lock:
                self.active -= 1

    def give_back(self, worker: Worker) -> None:
        """Let others have *worker*, which has nothing to do; the stage stays loaded there."""
        self.end_lease(worker)
        worker.link.tell(Close(self.key, over=False))
        self.pool.release(worker)

    def retire(self, worker: Worker) -> None:
        """The same where the stage is through with the process."""
        self.leave_out(worker)
        self.loaded_in.discard(worker.link)
        if worker.opened:
            worker.link.tell(Close(self.key, over=True))
        self.pool.release(worker)

    def kill(self, worker: Worker) -> int | None:
        """End the process of a worker that has left; tell its exit status."""
        status = worker.link.kill()
        self.pool.gone(worker)
        return status

    def mourn(self) -> None:
        """Note which workers have died while others had them."""
        if not self.mourned:
            return
        while self.mourned:
            index = self.begun_in.pop(self.mourned.popleft(), None)
            if index is not None:
                self.free(index)
                self.not_begun()
        self.pool.look_again()  # there may have been room for this stage since they died, which it could not take then

    def ask_to_finish(self, worker: Worker, how: type[Finish | Stop] = Finish) -> None:
        """Have a worker run its ``on_done``."""
        worker.finishing, worker.active = True, False
        status = self.status()
        error = None if status.error is None else encode_error(status.error)
        worker.link.wire.push(how(status.active_workers, error))
        self.flush(worker)
