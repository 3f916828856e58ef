"""One run of a row of stages: opens it, keeps its takers awake, closes it.

    source --feeder--> Feed --> [queue] workers --> Window --> [queue] workers --> Window --> [queue] consumer

An item's way: the feeder pulls it from the source into the `Feed`, as far as the first stage has room (a sequence
needs no feeder: spans are slices of it). A worker that comes to its stage's queue is given a span: the index of its
first item and the items. It fills the span's slots, one for each item. The stage's `Window` makes outputs of the slots
that are next in order, and the taker downstream, a worker of the next stage or the consumer, draws them from there.
Nothing relays: what a worker leaves in its window is where the next taker finds it.

Invariants:
- All of a run's windows, feeds and queues are touched under ``run.lock`` only, but for what is atomic: a feeder appends
  to ``feed.pending``, a worker to ``span.slots``, a task takes from ``window.lone_items`` and puts into ``lone_slots``.
  f, the source and the handlers never run under it.
- Whoever changes anything under the lock calls `Run.settle` before releasing it.
- Every thread, task and process that takes part is a member from before it starts until it has nothing left to do,
  so that a run without members has left nothing behind.
- Nobody but the `Stream` refers to the run's consumer side; so dropping the stream closes the run.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import AsyncIterable, Callable, Generator, Iterable, Sequence
from contextvars import Context, ContextVar, copy_context
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol

from fstream._fusion import fuse
from fstream._interrupts import Uninterrupted
from fstream._queues import Credits, Outlet, TakerQueue, ThreadQueue
from fstream._spans import (
    LONGEST_SPAN_SECONDS,
    MAX_CHEAP_PROCESS,
    PROCESS_SPAN_SECONDS,
    Closed,
    Feed,
    Room,
    Slices,
    Upstream,
    Window,
    sliceable,
)
from fstream._stage import Stage
from fstream._workers import open_workers

if TYPE_CHECKING:
    import asyncio

    from fstream._workers.loop import Host

__all__ = ["RUN", "ConsumerQueue", "Lock", "Run", "StageWorkers", "close_all"]

Lock = threading.Lock


class StageWorkers(Protocol):
    """The workers of one stage, of any kind."""

    queue: TakerQueue
    window: Window

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
        """In user code, where it cannot be stopped."""
        ...

    @property
    def abandoned(self) -> bool:
        """Left to itself, as it ran over its time."""
        ...

    def join(self, timeout: float) -> None: ...


class Feeder(Protocol):
    """What iterates a source, and the streams that the source iterates."""

    @property
    def run(self) -> Run: ...

    def adopt(self, run: Run) -> None:
        """Stop *run*, too, when this is stopped."""
        ...


class ThreadMember(Member, Protocol):
    """One that is a thread."""

    thread: threading.Thread


#: Into how many spans what is there should go: two in flight for each process; but cheap items on a loop are run one
#: after the other however many tasks there are, so that one task may have them all.
_SHARES: Final[dict[str, Callable[[int], int]]] = {
    "thread": lambda workers: workers,
    "process": lambda workers: 2 * workers,
    "task": lambda _: 1,
}

#: What is different about a window whose workers are processes: a span is far away, and costs more to hand over.
_REMOTE: Final[dict[str, Any]] = {
    "remote": True,
    "span_seconds": PROCESS_SPAN_SECONDS,
    "longest_span": LONGEST_SPAN_SECONDS,
    "most_cheap": MAX_CHEAP_PROCESS,
}


def default_workers(kind: str) -> int:
    """The number of workers where none is given."""
    if kind == "task":
        return 100
    from loky import cpu_count

    cpus: int = cpu_count()
    return min(32, cpus + 4) if kind == "thread" else cpus


class Run:
    """A row of stages at work on some sources."""

    #: How long `close` waits for threads that are busy in user code, which nothing can stop, in seconds.
    GRACE: Final = 0.25
    #: How long it waits for the others, which have only to see that it is over.
    LONGEST: Final = 5.0

    #: The time that its queues go by.
    clock = staticmethod(perf_counter)

    def __init__(
        self,
        sources: list[Any],
        stages: list[Stage],
        loop: asyncio.AbstractEventLoop | None = None,
        context: Context | None = None,
    ) -> None:
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.context = context or copy_context()
        self.stopped = False
        self.members: set[Member] = set()
        #: Notified when a member leaves.
        self.left = threading.Condition(self.lock)
        #: Called, on whatever thread, when a member leaves: the same for event loops.
        self.on_leave: list[Callable[[], object]] = []
        #: Errors of ``on_done``, for the consumer when all is over.
        self.complaints: list[BaseException] = []
        self._loop = loop
        self._host: Host | None = None
        #: From the consumer to the feeders: what one makes room for, those after it may take up.
        self.queues: list[TakerQueue] = []

        stages = fuse(stages)
        workers = [stage.workers or default_workers(stage.kind) for stage in stages]
        first = Room(stages[0].maxsize, 2 * workers[0]) if stages else Room(None, 2 * len(sources))
        upstream: Upstream
        if len(sources) == 1 and stages and sliceable(sources[0]):
            upstream, self.feeders = Slices(sources[0]), []
        else:
            upstream = self.feed = Feed(first, len(sources))
            self.feed.alone = not stages
            self.feeders = [self._feeder(source) for source in sources]
        self.windows: list[Window] = []
        self.crews: list[StageWorkers] = []
        room = first
        for stage, count in zip(stages, workers, strict=True):
            if self.windows:
                room = Room(stage.maxsize, 2 * count)
            window = Window(
                upstream,
                room,
                workers=count,
                ordered=stage.ordered,
                outputs=partial(stage.kernel.outputs, skips=stage.on_error != "raise"),
                one_each=stage.kernel.plain and stage.on_error == "raise",
                shares=_SHARES[stage.kind](count),
                loses=stage.kind == "process" or stage.timeout is not None,
                **(_REMOTE if stage.kind == "process" else {}),
            )
            self.windows.append(window)
            self.crews.append(self._workers(stage, window))
            upstream = window
        self.outlet = Outlet(upstream, room, self.clock)
        self.queues += [crew.queue for crew in reversed(self.crews)]
        self.queues += [feeder.queue for feeder in self.feeders]

    # ---------------------------------------------------------------------------------------------- opening

    def start(self) -> None:
        """Start the feeders and the first workers."""
        _RUNS.add(self)
        outer = self.outer_feeder()
        if outer is not None:
            outer.adopt(self)
        try:
            for feeder in self.feeders:
                feeder.start()
            for crew in self.crews:
                crew.start()
            if outer is not None and outer.run.feed.stopped:  # before it had this run to stop
                self.stop()
        except BaseException:
            self.close()
            raise
        finally:
            if self._host is not None:
                self._host.opened()

    def outer_feeder(self) -> Feeder | None:
        """The feeder whose source starts this run, in its thread."""
        feeder: ThreadFeeder | None = getattr(_HERE, "feeder", None)
        return feeder

    def _workers(self, stage: Stage, window: Window) -> StageWorkers:
        return open_workers(self, stage, window)

    def _feeder(self, source: Any) -> Any:
        if isinstance(source, AsyncIterable) and not isinstance(source, Iterable):
            from fstream._workers.loop import TaskFeeder

            return TaskFeeder(self, source)
        return ThreadFeeder(self, source)

    @property
    def host(self) -> Host:
        """The event loop of the run's tasks: the caller's, or one of its own in a thread, started when first asked."""
        if self._host is None:
            from fstream._workers.loop import Host

            self._host = Host(self, self._loop)
        return self._host

    # ------------------------------------------------------------------------------------- keeping it going

    def settle(self) -> None:
        """Wake every taker that waits and can go on now. Under the lock, after each change."""
        # Whether the consumer waits for more than there is room for. Where it does not, stages hold what they hold.
        wanted = False
        for queue in self.queues:
            if queue.takers and not queue.signalled:
                if queue.buffer.ready():
                    queue.signal()
                    continue
                wanted = queue.buffer.starve(wanted)
                if not queue.watched and queue.buffer.impatient():
                    queue.watch()

    def enter(self, member: Member) -> None:
        self.members.add(member)

    def launch(self, member: ThreadMember) -> None:
        """Have a member enter, and start its thread."""
        self.enter(member)
        try:
            member.thread.start()
        except BaseException:  # there are too many: nobody is to wait for it
            with self.lock:
                self.leave(member)
            raise

    def leave(self, member: Member) -> None:
        """A member has nothing left to do. Under the lock. No taker waits for this."""
        self.members.discard(member)
        self.left.notify_all()
        calls, self.on_leave = self.on_leave, []
        for call in calls:
            call()

    def halt_before(self, failed: Any) -> None:
        """Stop what is upstream of a stage that failed. Under the lock."""
        position = next(n for n, crew in enumerate(self.crews) if crew is failed)
        for crew in self.crews[:position]:
            crew.window.stop()
            crew.stop()
        if self.feeders:
            self.feed.stopped = True
        for feeder in self.feeders:
            feeder.stop()

    # ------------------------------------------------------------------------------------------- consuming

    def consumer_queue(self) -> ConsumerQueue:
        """The queue of a consumer that is a thread."""
        queue: ConsumerQueue
        if self._host is None:
            queue = ThreadQueue(self.outlet, self.lock, self.settle)
        else:
            from fstream._workers.loop import TurnQueue

            queue = TurnQueue(self._host, self.outlet, self.lock, self.settle)
        with self.lock:
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
                self.outlet.settle_up()
                taken = queue.get()
            if type(taken) is not Closed:
                return taken  # type: ignore[no-any-return]
            if taken.error is None and not self.stopped:
                self.wait(None)  # for on_done
        except BaseException:
            self.close(complain=False)
            raise
        self.close(complain=taken.error is None)
        raise taken.error or StopIteration

    def stop(self) -> None:
        """Make every member end; wait for none."""
        stopped_before = self.stopped  # as most often, at the end: no need to keep Ctrl-C out
        if stopped_before or self.pid != os.getpid():
            return
        with Uninterrupted(), self.lock:
            if self.stopped:
                return
            self.stopped = True
            for window in self.windows:
                window.stop()
            if self.feeders:
                self.feed.stopped = True
            for part in (*self.feeders, *self.crews):
                part.stop()
            for queue in self.queues:
                # Once more than there are takers: an interrupt in the middle of a wake-up may have left a mark that
                # somebody was woken, or a waiter that is none.
                for _ in range(queue.takers + 1 if queue.takers else 0):
                    queue.signal()

    def wait(self, timeout: float | None) -> None:
        """Wait until all members have left that were not abandoned; for those busy in user code, until *timeout*."""
        host = self._host
        # Tasks of the loop that this thread runs cannot go on while it waits.
        kept = host.members if host is not None and host.is_kept() else ()
        with self.lock:
            self.left.wait_for(lambda: all(m.abandoned or m in kept for m in self.members), timeout)
            self.left.wait_for(
                lambda: all(m.busy or m in kept for m in self.members), 0 if timeout is None else self.LONGEST
            )

    def close(self, complain: bool = True) -> None:
        """End the run: stop what can be stopped, and wait for it, but not for user code."""
        if self.pid != os.getpid():
            return
        with self.lock:
            members = list(self.members)
        self.stop()
        self.wait(self.GRACE)
        for member in members:
            if member not in self.members:
                member.join(self.LONGEST)
        self.closed(complain)

    def closed(self, complain: bool) -> None:
        """Say what ``on_done`` had to say, once."""
        complaints, self.complaints = self.complaints, []
        if complain and complaints:
            raise complaints[0]


class ThreadFeeder:
    """The thread that iterates one source, and closes it."""

    abandoned = False

    def __init__(self, run: Run, source: Iterable[Any]) -> None:
        self.run = run
        self.source: Iterable[Any] | None = source
        self.queue = ThreadQueue(Credits(run.feed), run.lock, run.settle)
        self.busy = False
        #: The runs that were started by its source, in its thread: streams that it iterates, however wrapped.
        self.inner: weakref.WeakSet[Run] = weakref.WeakSet()
        self.thread = threading.Thread(
            target=run.context.copy().run, args=(self.main,), name="fstream-feeder", daemon=True
        )

    def start(self) -> None:
        self.run.launch(self)

    def adopt(self, run: Run) -> None:
        self.inner.add(run)

    def stop(self) -> None:
        """Wake it from a source that is a stream; another one that blocks cannot be stopped."""
        for run in list(self.inner):
            run.stop()

    def join(self, timeout: float) -> None:
        if self.thread is not threading.current_thread():
            self.thread.join(timeout)

    def main(self) -> None:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        items: Any = None
        credits = 0
        _HERE.feeder = self
        try:
            self.busy = True
            source, self.source = self.source, None
            items = iter(source)  # type: ignore[arg-type]
            del source
            taker = run.queues[run.queues.index(self.queue) - 1] if run.crews else None
            pending, append = feed.pending, feed.pending.append
            if (credits := self.grant()) > 0:
                for item in items:
                    append(item)
                    credits -= 1
                    if feed.stopped:
                        break
                    # Where more was waiting, whoever can take it has been woken for that.
                    if len(pending) <= feed.feeders and (
                        taker is None or (taker.takers and not taker.signalled)
                    ):
                        with run.lock:
                            run.settle()
                    if not credits and not (credits := self.grant()):
                        break
            item = None  # not to be kept alive by a source that takes long to close
        except BaseException as raised:
            error = raised
        try:
            if isinstance(items, Generator):
                items.close()
            items = None
        except BaseException as raised:
            error = error or raised
        with run.lock:
            feed.ended(credits, error)
            run.settle()
            run.leave(self)

    def grant(self) -> int:
        """Wait for room; 0 if the run is over."""
        with self.run.lock:
            self.busy = False
            self.run.feed.blocked += 1
            credits = self.queue.get()
            self.run.feed.blocked -= 1
            self.busy = True
            return 0 if type(credits) is Closed else credits


#: What runs the rows of stages that are opened in a context: `fstream.testing` puts its own there.
RUN: Final[ContextVar[Callable[..., Run]]] = ContextVar("RUN", default=Run)

_RUNS: weakref.WeakSet[Run] = weakref.WeakSet()

#: The feeder whose thread this is.
_HERE = threading.local()


def close_all() -> None:
    """End all runs: the interpreter exits."""
    for run in list(_RUNS):
        run.close(complain=False)


atexit.register(close_all)
