"""What a run needs of an event loop: the tasks' queue, the loop they run on, async sources, the async consumer."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Coroutine, Sequence
from contextlib import aclosing as closing
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from fstream._queues import Buffer, Credits, ThreadQueue
from fstream._spans import SPAN_SECONDS, Closed
from fstream._workers.private_loop import new_loop
from fstream._workers.sync import aclose

if TYPE_CHECKING:
    from fstream._run import Run

__all__ = [
    "EventLoop",
    "Host",
    "TaskFeeder",
    "TaskQueue",
    "TurnQueue",
    "close",
    "close_soon",
    "closing",
    "consumer_queue",
    "host_of",
    "running",
    "take",
]

EventLoop = asyncio.AbstractEventLoop
running = asyncio.get_running_loop


def soon(loop: EventLoop, f: Callable[..., object], *args: Any) -> None:
    """Call *f* on *loop*, from any thread; not at all if the loop was closed, as nobody waits there any more."""
    try:
        loop.call_soon_threadsafe(f, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise


def is_here(loop: EventLoop) -> bool:
    """Tell whether *loop* runs in this thread."""
    try:
        # Where greenlets stand for threads, as gevent has it, a loop counts as running in each of them.
        return running() is loop and getattr(loop, "_thread_id", None) in (None, threading.get_ident())
    except RuntimeError:
        return False


def call(loop: EventLoop, f: Callable[..., object], *args: Any) -> None:
    """Call *f* on *loop*: at once if this is its thread, else soon."""
    if is_here(loop):
        f(*args)
    else:
        soon(loop, f, *args)


class Cancellable:
    """What a task of a run does for user code, which may be cancelled by anybody."""

    run: Run
    task: asyncio.Task[None] | None = None
    #: It was cancelled by us: once, so that user code can clean up.
    cancelled = False
    #: How often others had cancelled it when user code came back last: that was swallowed, and is no end.
    swallowed = 0

    def came_back(self) -> None:
        if self.task is not None:  # an eager task begins before it is known
            self.swallowed = self.task.cancelling()

    @property
    def is_cancelled(self) -> bool:
        """A cancellation is under way."""
        return self.task is not None and self.task.cancelling() > self.swallowed

    def cancel(self) -> None:
        """Cancel it once. If others just did, it may be cleaning up, or have swallowed that: it is given a moment."""
        if self.task is None or self.cancelled:
            return
        self.cancelled = True
        if self.is_cancelled:
            self.task.get_loop().call_later(self.run.GRACE, self.task.cancel)
        else:
            self.task.cancel()


class LoopMember(Protocol):
    """A task of a run."""

    @property
    def busy(self) -> bool: ...

    @property
    def abandoned(self) -> bool: ...

    def join(self, timeout: float) -> None: ...

    def vanished(self) -> None:
        """Leave for a task that never ran."""
        ...


class TaskQueue(asyncio.Queue[Any]):
    """The queue of takers that are tasks of one loop; any thread may signal it."""

    def __init__(self, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]) -> None:
        super().__init__()
        self.buffer = buffer
        self.lock = lock
        self.settle = settle
        self.takers = 0
        self.signalled = self.watched = False
        self.loop: asyncio.AbstractEventLoop | None = None
        #: Its taker has let others on the loop have a turn since it came here the last time, and when it did before.
        self.waited = False
        self.paused = 0.0
        #: The deadline of all takers.
        self.timer: asyncio.TimerHandle | None = None

    def empty(self) -> bool:
        with self.lock:
            # First, as a feeder that sees the mark settles nothing. If this taker was woken in vain, by what another
            # one was faster to get, it is to be woken again.
            self.signalled = False
            return not self.buffer.ready()

    def _get(self) -> Any:
        with self.lock:
            self.signalled = False
            taken = self.buffer.take()
            self.takers -= 1  # it has what it came for: it does not starve
            self.settle()
            self.takers += 1
            return taken

    def _put(self, item: Any) -> None:
        """Putting wakes a taker; there is nothing to keep."""

    async def get(self) -> Any:
        if not self.takers and self.loop is None:
            self.loop = running()
        with self.lock:
            self.takers += 1
            try:
                if self.buffer.ready():
                    taken = self._get()
                    self.takers -= 1
                    return taken
                self.settle()
            except BaseException:
                self.takers -= 1
                raise
        try:
            taken = await super().get()
            self.waited = True
            return taken
        finally:
            with self.lock:
                self.takers -= 1
                if not self.takers and self.timer is not None:
                    self.timer.cancel()
                    self.timer = None
                    self.watched = False

    def signal(self) -> None:
        self.signalled = True
        assert self.loop is not None
        call(self.loop, self._wake)

    def _wake(self) -> None:
        self.put_nowait(None)

    def watch(self) -> None:
        self.watched = True
        assert self.loop is not None
        call(self.loop, self._start_timer)

    def _start_timer(self) -> None:
        assert self.loop is not None
        self.timer = self.loop.call_later(self.buffer.patience, self._insist)

    def _insist(self) -> None:
        with self.lock:
            self.timer = None
            self.watched = False
            if self.takers:
                self.buffer.insist()
                self.settle()


class TurnQueue(ThreadQueue):
    """The queue of a consumer that is a thread, where tasks make the outputs: woken once for each turn of their loop.

    Were it woken for each output, it would take the interpreter from the loop wherever f lets go of it, and two threads
    that wait for each other in turn cost more than f itself.
    """

    def __init__(self, host: Host, buffer: Buffer, lock: threading.RLock, settle: Callable[[], None]) -> None:
        super().__init__(buffer, lock, settle)
        self.host = host
        #: It has waited for more than a moment: it is woken at once. Invariant: else it waits no longer than that, so
        #: that a turn that lasts, as f blocks the loop, keeps nothing from it.
        self.late = True

    def wait(self, waiter: threading.Lock, patience: float) -> bool:
        if self.late or patience >= 0:
            began = monotonic()
            woken = super().wait(waiter, patience)
            self.late = monotonic() - began > SPAN_SECONDS
        elif not (woken := super().wait(waiter, SPAN_SECONDS)):
            with self.mutex:
                self.late = not self.buffer.ready()
        return woken

    def signal(self) -> None:
        if self.late or not is_here(self.host.loop):
            super().signal()
        else:
            self.signalled = True
            self.host.loop.call_soon(self._end_of_turn)

    def _end_of_turn(self) -> None:
        with self.mutex:
            if self.signalled:
                self.notify()


def kept_by(loop: EventLoop) -> set[Host]:
    """The hosts that *loop* keeps alive: those that have tasks.

    It refers to the tasks themselves but weakly. If nobody else referred to them, as the stream is garbage in a cycle,
    they would be collected together with the stream, in the middle of f, rather than be there to close it.
    """
    hosts: set[Host] = getattr(loop, "__dict__", {}).setdefault("_fstream_hosts", set())
    return hosts


class Host:
    """The loop that a run's tasks live on: the caller's, or a private one in a background thread."""

    busy = abandoned = False

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop | None) -> None:
        self.run = run
        #: Whose tasks are on it.
        self.members: set[LoopMember] = set()
        self.over: asyncio.Event | None = None
        #: The run is still being opened: more tasks may come though there are none.
        self.opening = True
        self.thread: Any = None
        #: A loop runs, or will when its owner has it run.
        self.started = loop is not None
        if loop is not None:
            self.loop = loop

    def start(self) -> None:
        """Start the private loop, if it is one; raise what kept it from starting."""
        if self.started:
            return
        started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._main, args=(started,), name="fstream-loop", daemon=True)
        self.run.launch(self)
        if (error := started.get()) is not None:
            raise error

    def join(self, timeout: float) -> None:
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join(timeout)

    def _main(self, started: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(self._until_over(started))
        except BaseException as error:  # no file is left for a loop, or the policy refuses to make one here
            if self.started:
                raise
            started.put(error)
        finally:
            with self.run.lock:
                self.run.leave(self)

    async def _until_over(self, started: queue.SimpleQueue[BaseException | None]) -> None:
        self.loop = running()
        self.over = asyncio.Event()
        self.started = True
        started.put(None)
        await self.over.wait()

    def call(self, f: Callable[..., object], *args: Any) -> None:
        """Call *f* on the loop: at once if this is its thread, else soon; not at all if there is none."""
        if self.started:
            call(self.loop, f, *args)

    def kept(self) -> Collection[LoopMember]:
        """The members that cannot go on while this thread waits: it runs their loop, or nobody does."""
        if not self.started or (self.loop.is_running() and not is_here(self.loop)):
            return ()
        return self.members

    def consumer_queue(self) -> TurnQueue:
        return TurnQueue(self, self.run.outlet, self.run.lock, self.run.settle)

    def spawn(
        self, member: LoopMember, coroutine: Coroutine[Any, Any, None], name: str
    ) -> asyncio.Task[None]:
        """Start the task of *member*, on the loop."""
        task = self.loop.create_task(coroutine, name=name, context=self.run.context.copy())
        if not self.members:
            kept_by(self.loop).add(self)
        self.members.add(member)
        task.add_done_callback(partial(self._left, member))
        return task

    def opened(self) -> None:
        """All that the run starts with is started: the loop ends with its last task."""
        self.call(self._opened)

    def _opened(self) -> None:
        self.opening = False
        self._end()

    def _left(self, member: LoopMember, _task: asyncio.Task[Any]) -> None:
        self.members.discard(member)
        if member in self.run.members:  # cancelled before its first step
            member.vanished()
        self._end()

    def _end(self) -> None:
        if self.members:
            return
        kept_by(self.loop).discard(self)
        if not self.opening and self.over is not None:
            self.over.set()


def host_of(run: Run) -> Host:
    """The host of a run's tasks, made for the first of them: one thread lays the row, before it is started."""
    if run.host is None:
        run.host = Host(run, run.loop)
    assert isinstance(run.host, Host)
    return run.host


class TaskFeeder(Cancellable):
    """The task that iterates an async source, and closes it."""

    abandoned = False

    def __init__(self, run: Run, source: AsyncIterable[Any]) -> None:
        self.run = run
        self.host = host_of(run)
        self.source: AsyncIterable[Any] | None = source
        self.queue = TaskQueue(Credits(run.feed), run.lock, run.settle)
        self.busy = False
        #: It closes the source, which must not be cancelled.
        self.closing = False

    def join(self, timeout: float) -> None:
        """It has left in its loop's thread, which is joined itself."""

    def start(self) -> None:
        self.run.enter(self)
        self.host.call(self._spawn)

    def _spawn(self) -> None:
        self.task = self.host.spawn(self, self.main(), "fstream-feeder")

    def stop(self) -> None:
        """Wake it from a source that blocks."""
        self.host.call(self._cancel)

    def _cancel(self) -> None:
        if not self.closing:
            self.cancel()

    def vanished(self) -> None:
        with self.run.lock:
            self.run.feed.ended(0, asyncio.CancelledError())
            self.run.settle()
            self.run.leave(self)

    async def main(self) -> None:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        items: Any = None
        credits = 0
        try:
            source, self.source = self.source, None
            items = aiter(source)  # type: ignore[arg-type]
            del source
            append = feed.pending.append
            if (credits := await self.grant()) > 0:
                async for item in items:
                    append(item)
                    credits -= 1
                    if len(feed.pending) <= feed.feeders:  # else whoever can take it has been woken
                        with run.lock:
                            run.settle()
                    if feed.stopped or (not credits and not (credits := await self.grant())):
                        break
            item = None
        except BaseException as raised:
            error = raised
        self.closing = True
        try:
            await aclose(items)
        except BaseException as raised:
            error = error or raised
        with run.lock:
            feed.ended(credits, error)
            run.settle()
            run.leave(self)

    async def grant(self) -> int:
        feed = self.run.feed
        self.came_back()
        feed.blocked += 1
        try:
            credits = await self.queue.get()
        finally:
            feed.blocked -= 1
        return 0 if type(credits) is Closed else credits


# ------------------------------------------------------------------------------------------- the async consumer


def consumer_queue(run: Run) -> TaskQueue:
    """The queue of a consumer that is a task."""
    queue = TaskQueue(run.outlet, run.lock, run.settle)
    with run.lock:
        run.queues.insert(0, queue)
    return queue


async def take(run: Run, queue: TaskQueue) -> Sequence[Any] | None:
    """Wait for outputs; at the end close all, and give None or raise the error that ended it."""
    if run.pid != os.getpid():
        raise RuntimeError(
            "this stream runs in the parent process: its outputs cannot be taken in a fork of it"
        )
    outlet = run.outlet
    with run.lock:
        outlet.settle_up()
        # Outputs that are always there leave others on the loop a turn.
        if pausing := not queue.waited and outlet.came - queue.paused > SPAN_SECONDS:
            run.settle()
    if pausing:
        await asyncio.sleep(0)
    if pausing or queue.waited:
        queue.waited, queue.paused = False, run.clock()
    taken = await queue.get()
    if type(taken) is not Closed:
        return taken  # type: ignore[no-any-return]
    if taken.error is None and not run.stopped:
        await _wait(run, lambda: all(member.abandoned for member in run.members), None)
    await close(run, complain=taken.error is None)
    if taken.error is not None:
        raise taken.error
    return None


def close_soon(loop: EventLoop, outputs: AsyncGenerator[Any, None]) -> None:
    """Close an async generator that is iterated on *loop*, from wherever this is."""
    soon(loop, lambda: loop.create_task(outputs.aclose()))


async def close(run: Run, complain: bool = True) -> None:
    """End the run as `Run.close` does, without blocking the loop."""
    if run.pid != os.getpid():
        return
    with run.lock:
        members = list(run.members)
    run.stop()
    if members:
        await _to_its_end(_wait_for_members(run))
    for member in members:
        if member not in run.members:
            member.join(run.LONGEST)  # it has left: what remains of it is a few instructions
    run.closed(complain)


async def _wait_for_members(run: Run) -> None:
    await _wait(run, lambda: not run.members, run.GRACE)
    await _wait(run, lambda: all(member.busy for member in run.members), run.LONGEST)


async def _to_its_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await *coroutine* to its end, however often the caller is cancelled, as scopes of anyio do; then say so."""
    task = asyncio.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


async def _wait(run: Run, condition: Callable[[], bool], timeout: float | None) -> None:
    loop = running()
    try:
        async with asyncio.timeout(timeout):
            while True:
                with run.lock:
                    if condition():
                        return
                    left = asyncio.Event()
                    run.on_leave.append(partial(soon, loop, left.set))
                await left.wait()
    except TimeoutError:
        pass
