"""One run of a row of stages: opens it, keeps its takers awake, closes it.

    source --feeder--> Feed --> [queue] workers --> Window --> [queue] workers --> Window --> [queue] consumer

An item's way: the feeder pulls it from the source into the `Feed`, as far as the first stage has room. (A sequence
needs no feeder: spans are slices of it.) A worker that comes to its stage's queue is given a span: the items, and the
index of the first one. The worker appends one slot for each item to the span. The stage's `Window` makes outputs of the
slots that are next in order. The taker downstream, a worker of the next stage or the consumer, draws these outputs.
Nothing relays: the next taker finds outputs where the worker left their slots. `docs/architecture.md` has one picture
for each kind of workers.

Invariants:
- All of a run's windows, feeds and queues are touched under ``run.lock`` only. Atomic changes are the exception: a
  feeder appends to ``feed.pending``, a worker appends to ``span.slots``, a task takes from ``window.lone_items`` and
  puts into ``lone_slots``. None of these needs the GIL: of two changes of one list, deque or dict one is the first, and
  the thread that makes the second sees everything that was done before the first.
- A flag (``busy``, ``stopped``, ``flush_requested`` ...) may be read without the lock where its reader looks again
  under the lock before it waits.
- f, the source and the handlers never run under the lock.
- Whoever changes anything under the lock calls `Run.settle` before releasing it.
- Every thread, task and process that takes part is a member from before it starts until it has nothing left to do. So a
  run without members has left nothing behind.
- Nobody but the `Stream` refers to the run's consumer side. So dropping the stream closes the run.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from _thread import start_new_thread  # the least there is: `threading` has locks of its own
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from itertools import chain
from math import inf
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING, Any, Final, Protocol

from fstream._engine.interrupts import Uninterrupted, acquire
from fstream._engine.queues import ThreadQueue
from fstream._engine.reports import Reports
from fstream._engine.steps import Steps, through
from fstream._flow.buffers import Credits, Outlet
from fstream._flow.protocols import Node, TakerQueue
from fstream._flow.sources import Feed, Slices
from fstream._flow.span import Closed
from fstream._flow.window import Window

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "HERE",
    "SHORT_ROW",
    "ConsumerQueue",
    "Feeder",
    "Lock",
    "Member",
    "RLock",
    "Run",
    "StageWorkers",
    "close_all",
    "holding",
    "let_go",
]


Lock = threading.Lock
RLock = threading.RLock


class StageWorkers(Protocol):
    """The workers of one stage, of any kind."""

    @property
    def queue(self) -> TakerQueue: ...

    @property
    def window(self) -> Window: ...

    @property
    def error(self) -> BaseException | None:
        """What the stage has failed with."""
        ...

    def start(self) -> None: ...

    def stop(self) -> None:
        """Make the workers end: under the lock, after the window was stopped."""
        ...


class ConsumerQueue(TakerQueue, Protocol):
    """The queue of a consumer that waits in it."""

    def get(self) -> Any: ...


class Member(Protocol):
    """A thread, task or process of a run."""

    @property
    def busy(self) -> bool:
        """It is in user code, where it cannot be stopped."""
        ...

    @property
    def abandoned(self) -> bool:
        """It ran over its time, and was left to itself. Nobody waits for it."""
        ...

    def join(self, timeout: float) -> None: ...


class Feeder(Member, Protocol):
    """The thread or task that iterates a source."""

    abandoned: bool  # its source blocks, and the stream is drained

    @property
    def queue(self) -> TakerQueue: ...

    @property
    def credits(self) -> Credits: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...


class OuterFeeder(Protocol):
    """A feeder whose source, in its thread, iterates streams of its own."""

    @property
    def run(self) -> Run: ...

    def adopt(self, run: Run) -> None:
        """Stop *run*, too, when this is stopped."""
        ...


class Host(Protocol):
    """It keeps the event loop of a run's tasks."""

    def start(self) -> None: ...

    def opened(self) -> None:
        """Everything that the run starts with is started."""
        ...

    def kept(self) -> Collection[Member]:
        """Members that cannot go on while the calling thread waits."""
        ...

    def consumer_queue(self) -> ConsumerQueue:
        """The queue of a consumer that is a thread."""
        ...


class TaskConsumer(Protocol):
    """Takes the outputs of a run for an ``async for``."""

    def queue_of(self, run: Run) -> Any: ...

    async def take(self, run: Run, queue: Any) -> Sequence[Any] | None:
        """Wait for outputs; at the end close all, and give None or raise the error that ended it."""
        ...

    async def close(self, run: Run) -> None:
        """End the run as `Run.close` does, without blocking the loop."""
        ...


class ThreadMember(Member, Protocol):
    """A member that is a thread."""

    thread: threading.Thread


#: In a row of at most this many queues, `settle` looks at all of them after each change: some two microseconds each.
SHORT_ROW: Final = 8

#: In a longer row `settle` looks at all queues once in this many seconds for each queue of the row: that is a hundredth
#: of the time, at two microseconds a look.
FULL_LOOK_SECONDS: Final = 0.0002


#: A deadline that is sooner than the one that runs by less than this, in seconds, is no other one.
SOONER: Final = 1e-6


def draw() -> float:
    """Draw a number of 0 to 1."""
    from random import random  # late, because few need it

    return random()


class Run:
    """A row of stages at work on some sources."""

    #: How long `close` waits for threads that are busy in user code, in seconds. Nothing can stop those.
    GRACE: Final = 0.25
    #: How long `close` waits for the other members, in seconds. They have only to see that the run is over.
    LONGEST: Final = 5.0

    #: How long a drained stream waits for a pull that is under way, in seconds: a source that does not block is faster.
    PATIENCE: Final = 0.1

    #: The clock that its queues go by, in seconds.
    clock = staticmethod(perf_counter)

    #: Draws numbers of 0 to 1, by which the waits before further tries differ.
    draw = staticmethod(draw)

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None, context: Context | None = None) -> None:
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.context = context or copy_context()
        #: The caller's event loop, if an ``async for`` takes the outputs.
        self.loop = loop
        self.host: Host | None = None
        #: Takes the outputs for an ``async for``, if that is not `fstream._workers.task.consumer`.
        self.consumer: TaskConsumer | None = None
        self.stopped = False
        self.members: set[Member] = set()
        #: Called, on whatever thread, when a member leaves.
        self.on_leave: list[Callable[[], object]] = []
        #: Until when it waits for pulls that are under way, if it is drained: in seconds of the clock.
        self.patient_until = 0.0
        #: What its first stage knows of its memo, if it has one: `fstream._workers.memory`.
        self.memory: Any = None
        #: The error that its consumer ended with, if that is another stage.
        self.blamed: BaseException | None = None
        #: Errors of ``on_done``, raised to the consumer when all is over.
        self.complaints: list[BaseException] = []
        #: Passes on what happens, if somebody observes this run. Its lock is the run's, then.
        self.observer: Reports | None = None
        #: The row, from the source to the consumer: laid by `fstream._workers.opening`.
        self.feeders: list[Feeder] = []
        self.windows: list[Window] = []
        self.crews: list[StageWorkers] = []
        #: What has times of its own: batches, and windows that pace their workers.
        self.nodes: list[Node] = []
        #: The same by whoever draws from them: each stage, from the first one, and then the consumer.
        self.nodes_at: list[list[Node]] = []
        #: The windows that are to give out at once what needs no worker, also while all of their workers are busy.
        self.sorting: list[Window] = []
        self.feed: Feed
        #: What the first stage draws from.
        self.origin: Feed | Slices
        self.outlet: Outlet
        #: The queues of all takers, from the consumer to the feeders. `settle` looks at them in this order, because a
        #: taker that starves lets those further up grow.
        self.queues: list[TakerQueue] = []
        #: Where each of them stands there: made anew when the consumer has come.
        self.places: dict[TakerQueue, int] = {}
        #: The consumer starves, as `settle` has found when it last looked at it. Only then may windows grow.
        self.starved = False
        #: When `settle` is to look at all queues of a long row again, in seconds of the clock.
        self.due = 0.0

    # ---------------------------------------------------------------------------------------------- opening

    def start(self) -> None:
        """Start the feeders and the first workers."""
        _RUNS.add(self)
        if _DROPPED:
            stop_dropped()
        outer = self.outer_feeder()
        if outer is not None:
            outer.adopt(self)
        try:
            if self.host is not None:
                self.host.start()
            for feeder in self.feeders:
                feeder.start()
            for crew in self.crews:
                crew.start()
            if outer is not None and outer.run.feed.stopped:  # it was stopped before it knew this run
                self.stop()
        except BaseException:
            self.close()
            raise
        finally:
            if self.host is not None:
                self.host.opened()

    def outer_feeder(self) -> OuterFeeder | None:
        """The feeder in whose thread this run starts, because its source iterates this run's stream; or None."""
        feeder: OuterFeeder | None = getattr(HERE, "feeder", None)
        return feeder

    # ------------------------------------------------------------------------------------- keeping it going

    def settle(self, taker: TakerQueue | None = None) -> None:
        """Wake every taker that waits and can go on now; let windows grow. Under the lock, after each change.

        *taker* is the queue of the worker that changed something. The change concerns its neighbours only, so in a long
        row only those are looked at. Growth concerns the whole row, so all queues are looked at now and then.
        """
        queues, nodes = self.queues, self.nodes
        if taker is not None and len(queues) > SHORT_ROW:
            if (now := self.clock()) < self.due:
                queues = self.beside(taker)
                if nodes:
                    nodes = self.nodes_beside(taker)
            else:
                self.due = now + FULL_LOOK_SECONDS * len(queues)
        # The time of an open batch begins when its first item is there, also while its taker is busy.
        for node in nodes:
            node.look()
        for window in self.sorting:
            window.look()
        nearest = not queues or queues[0] is self.queues[0]  # none before the row is laid
        starved = self.starved and not nearest
        for queue in queues:
            if queue.takers and not queue.signalled:
                if queue.buffer.ready():
                    queue.signal()
                    continue
                starved = queue.buffer.report_starvation(starved)
                if self.nodes:
                    self.keep_time(queue)
                elif not queue.watched and queue.buffer.can_flush():
                    queue.watch()
        if nearest:
            self.starved = starved

    def keep_time(self, queue: TakerQueue) -> None:
        """Have the takers of *queue* request the flush in time: a node may be due before the deadline that runs."""
        if queue.buffer.can_flush():
            until = self.clock() + queue.buffer.flush_delay
            if not queue.watched or until < queue.until - SOONER:
                queue.until = until
                queue.watch()

    def beside(self, taker: TakerQueue) -> list[TakerQueue]:
        """Give the queue *taker*, the queue downstream of it, and those upstream: one stage's, or all the feeders'."""
        at = self.place(taker)
        feeders = len(self.queues) - len(self.feeders)
        return self.queues[max(0, at - 1) : at + 2 if at + 1 < feeders else None]

    def nodes_beside(self, taker: TakerQueue) -> list[Node]:
        """Give the nodes from which those draw whom `beside` gives."""
        number = len(self.queues) - len(self.feeders) - 1 - self.place(taker)
        return [*chain.from_iterable(self.nodes_at[max(0, number - 1) : number + 2])]

    def place(self, taker: TakerQueue) -> int:
        """Give the position of a queue. It is looked up, because a search would take longer in a longer row."""
        if len(self.places) != len(self.queues):
            self.places = {queue: at for at, queue in enumerate(self.queues)}
        return self.places[taker]

    def enter(self, member: Member) -> None:
        with self.lock:
            self.members.add(member)

    def thread(self, main: Callable[[], object], name: str) -> threading.Thread:
        """Make a thread for a member: it calls *main* in a copy of the run's context."""
        return threading.Thread(
            target=self.context.copy().run, args=(main,), name=f"fstream-{name}", daemon=True
        )

    def thread_of(self, steps: Callable[[], Steps[None]], name: str) -> threading.Thread:
        """Make one that runs steps through."""
        return self.thread(lambda: through(steps()), name)

    def launch(self, member: ThreadMember) -> None:
        """Have a member enter, and start its thread."""
        self.enter(member)
        try:
            member.thread.start()
        except BaseException:  # there are too many threads: nobody is to wait for this one
            with self.lock:
                self.leave(member)
            raise

    def leave(self, member: Member) -> None:
        """A member has nothing left to do. Under the lock. No taker waits for this, so it needs no `settle`."""
        self.members.discard(member)
        if self.observer is not None and self.stopped and not self.members:
            self.observer.end()
        self.rouse()

    def rouse(self) -> None:
        """Have those look again who wait for members to leave. Under the lock."""
        calls, self.on_leave = self.on_leave, []
        for call in calls:
            call()

    def halt_before(self, failed: Any) -> None:
        """Stop everything upstream of the workers *failed*, whose stage failed. Under the lock."""
        position = next(n for n, crew in enumerate(self.crews) if crew is failed)
        for crew in self.crews[:position]:
            crew.window.stop()
            crew.stop()
        self.origin.stopped = True
        for feeder in self.feeders:
            feeder.stop()

    # ------------------------------------------------------------------------------------------- consuming

    def consumer_queue(self) -> ConsumerQueue:
        """The queue of a consumer that is a thread."""
        queue: ConsumerQueue
        if self.host is None:
            queue = ThreadQueue(self.outlet, self.lock, self.settle)
        else:
            queue = self.host.consumer_queue()
        with holding(self.lock):
            self.queues.insert(0, queue)
        return queue

    def take(self, queue: ConsumerQueue) -> Sequence[Any]:
        """Wait for outputs; at the end close all and raise StopIteration, or the error that ended it."""
        if self.pid != os.getpid():
            raise RuntimeError(
                "this stream runs in the parent process: its outputs cannot be taken in a fork of it"
            )
        try:
            with self.lock:
                self.outlet.release_taken()
            taken = queue.get()
            if type(taken) is not Closed:
                return taken  # type: ignore[no-any-return]
            if taken.error is None and not (self.stopped or self.outlet.over):
                self.wait(None)  # for on_done
        except BaseException as error:
            let_go(self.lock)
            self.ends_with(error)
            self.close(complain=False)
            raise
        self.ends_with(taken.error)
        self.close(complain=taken.error is None)
        raise taken.error or StopIteration

    @property
    def error(self) -> BaseException | None:
        """What has ended the row, so far as is known: what the consumer gets in the end. Under the lock."""
        of_source = self.origin.error if isinstance(self.origin, Feed) else None
        errors = (*(crew.error for crew in reversed(self.crews)), of_source, self.blamed)
        return next((error for error in errors if error is not None), None)

    def ends_with(self, error: BaseException | None) -> None:
        """The consumer gets *error*, or the end."""
        if self.observer is not None:
            self.observer.error = error or next(iter(self.complaints), None)

    def stop(self) -> None:
        """Make every member end; wait for none."""
        stopped_before = self.stopped  # most often it is: then there is no need to keep Ctrl-C out
        if stopped_before or self.pid != os.getpid():
            return
        with Uninterrupted(), self.lock:
            if self.stopped:
                return
            self.stopped = True
            for window in self.windows:
                window.stop()
            self.origin.stopped = True
            for feeder in self.feeders:
                feeder.stop()
            for crew in self.crews:
                crew.stop()
            if self.memory is not None:
                self.memory.end()
            for queue in self.queues:
                # Once more than there are takers: an interrupt in the middle of a wake-up may have left `signalled`
                # set, or a waiter in the list that waits no more.
                for _ in range(queue.takers + 1 if queue.takers else 0):
                    queue.signal()

    def drain(self, own: Sequence[bool], within: float | None) -> None:
        """Pull nothing more from the sources of which *own* says so; others are drained by themselves.

        After *within* seconds the consumer gets the end, in place of what is left.

        It is called in any thread, in the middle of anything, as `drop` is, and waits for no lock. An attribute that is
        set needs none; for the rest there is a thread.
        """
        if isinstance(self.origin, Slices):
            self.origin.over = True
        elif self.origin.drained is None:
            self.patient_until = self.clock() + self.PATIENCE
            self.origin.drained = self.is_drained
            for feeder, is_own in zip(self.feeders, own, strict=True):
                feeder.credits.halted |= is_own
        if within is not None:
            self.outlet.until = min(self.outlet.until, self.clock() + within)
        self.settle_elsewhere()

    def settle_elsewhere(self) -> None:
        """Settle in another thread: now, and when a pull under way is not waited for any more."""
        try:
            start_new_thread(self.settle_drained, ())
        except Exception:  # too many threads: whoever settles next sees to it
            self.patient_until = 0.0

    def settle_drained(self) -> None:
        with self.lock:
            self.settle()
            self.rouse()
        sleep(self.PATIENCE)
        with self.lock:
            self.settle()

    def is_drained(self) -> bool:
        """Tell whether nothing is held any more, while the sources that are pulled no more block. Under the lock.

        Then nobody waits for these: what they bring is dropped.
        """
        blocked = [feeder for feeder in self.feeders if feeder in self.members]
        if (
            self.clock() < self.patient_until
            or not all(feeder.credits.halted for feeder in blocked)
            or any(window.outbox.has_more for window in self.windows)
        ):
            return False
        self.origin.stopped = True
        for feeder in blocked:
            feeder.abandoned = True
            feeder.stop()
        return True

    def drop(self) -> None:
        """Stop the run, because its stream was collected: in any thread, in the middle of anything.

        So this waits for no lock. Two threads may collect each other's streams, each with the lock of its own run, and
        would wait for ever. Nor does it go on if this thread holds the run's lock: it is in the middle of a change.
        Then another thread stops the run.
        """
        owned: bool = self.lock._is_owned()  # type: ignore[attr-defined]  # as `threading.Condition` asks
        # An observer may be at work in this very thread.
        if self.observer is None and not owned and self.lock.acquire(blocking=False):
            try:
                self.stop()
            finally:
                self.lock.release()
        elif not (self.stopped if self.observer is None else self.observer.over):
            try:
                start_new_thread(self.stop if self.observer is None else self.stop_observed, ())
            except (
                Exception
            ):  # too many threads, or no memory: the next run that starts sees to it, or the exit
                _DROPPED.append(self)

    def stop_observed(self) -> None:
        """Stop it, and say that it is over if nobody is left to do so."""
        self.stop()
        if self.observer is not None and not self.members:
            self.observer.close()

    def wait(self, timeout: float | None) -> None:
        """Wait until all members but abandoned ones have left: *timeout* seconds for those that are in user code.

        None is no limit but that of a stream that is drained.
        """
        # Tasks cannot go on while this thread waits, if it is the one that runs their loop.
        kept = self.host.kept() if self.host is not None else ()
        self.wait_for(lambda: all(m.abandoned or m in kept for m in self.members), timeout)
        self.wait_for(
            lambda: all(m.busy or m in kept for m in self.members), 0 if timeout is None else self.LONGEST
        )

    def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> None:
        """Wait for *condition*, which members change when they leave. Not with the lock held: see `ThreadQueue`."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            left = Lock()
            left.acquire()
            with self.lock:
                if condition():
                    return
                self.on_leave.append(left.release)
            seconds = self.outlet.left_to_wait if deadline is None else deadline - monotonic()
            if not acquire(left, -1 if seconds == inf else max(0.0, seconds)):
                return

    def close(self, complain: bool = True) -> None:
        """End the run: stop its members and wait for them, but for `GRACE` only if they are in user code."""
        if self.pid != os.getpid():
            return
        # This is a signal handler, in the middle of what this thread does under the lock: nobody can leave meanwhile.
        held: bool = self.lock._is_owned()  # type: ignore[attr-defined]
        try:
            with self.lock:
                members = list(self.members)
            self.stop()
            here = threading.current_thread()
            if held or any(getattr(member, "thread", None) is here for member in members):
                return  # this thread would wait for itself
            self.wait(self.GRACE)
        except BaseException:
            let_go(self.lock)
            raise
        with Uninterrupted():  # a join that is interrupted takes the thread for ended, on Python 3.11
            for member in members:
                if member not in self.members:
                    member.join(self.LONGEST)
        self.closed(complain)

    def closed(self, complain: bool) -> None:
        """Raise the first error of ``on_done``, once, if this is the place to *complain* and no other came before."""
        if self.observer is not None:
            self.observer.close()
        complaints, self.complaints = self.complaints, []
        if complain and complaints and self.blamed is None:
            raise complaints[0]


_RUNS: weakref.WeakSet[Run] = weakref.WeakSet()

#: Those whose streams were dropped, and that could not be stopped then.
_DROPPED: list[Run] = []

#: `HERE.feeder` is the feeder whose thread this is.
HERE = threading.local()


def let_go(lock: threading.RLock) -> None:
    """Release *lock* if this thread has it, where it should not.

    From Python 3.14 on a signal handler may raise behind the call with which a ``with`` takes a lock, before the block
    begins that gives it back.
    """
    while lock._is_owned():  # type: ignore[attr-defined]  # as `threading.Condition` asks
        lock.release()


@contextmanager
def holding(lock: threading.RLock) -> Iterator[None]:
    """Hold *lock* in a ``with`` block of the consumer, and not beyond it: see `let_go`."""
    try:
        with lock:
            yield
    except BaseException:
        let_go(lock)
        raise


def stop_dropped() -> None:
    """Stop the runs that could not be stopped when their streams were dropped."""
    with suppress(IndexError):  # other threads do so, too
        while True:
            _DROPPED.pop().stop()


def close_all() -> None:
    """End all runs: the interpreter exits. What is collected from now on may find all modules cleared."""
    for run in list(_RUNS):
        if run.pid == os.getpid():
            run.close(complain=False)
        else:  # the parent's, of which this is a fork: there is nothing to stop, and nobody to tell
            run.stopped, run.observer = True, None


atexit.register(close_all)
