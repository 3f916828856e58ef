"""The event loop that a run's tasks live on."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from fstream._workers.task.private_loop import new_loop
from fstream._workers.task.queues import TurnQueue
from fstream._workers.task.reach import EventLoop, call, is_here, running

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["Cancellable", "Host", "host_of"]


class Cancellable:
    """A task of a run that runs user code, and that anybody may cancel."""

    run: Run
    task: asyncio.Task[None] | None = None
    #: fstream has cancelled it. It does so once, so that user code can clean up.
    cancelled = False
    #: How often others had cancelled it when user code came back last. User code has swallowed those cancellations, so
    #: they do not end the task.
    swallowed = 0

    def came_back(self) -> None:
        """Note that user code is not running, and which cancellations it has swallowed."""
        if self.task is not None:  # an eager task begins before `task` is set
            self.swallowed = self.task.cancelling()

    @property
    def is_cancelled(self) -> bool:
        """A cancellation is under way."""
        return self.task is not None and self.task.cancelling() > self.swallowed

    def cancel(self) -> None:
        """Cancel it once. If others have just done so, it may be cleaning up: it has `Run.GRACE` seconds for that."""
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

    def vanished(self, error: BaseException) -> None:
        """Leave for a task that never ran, or whose loop has broken down with *error*."""
        ...


def kept_by(loop: EventLoop) -> set[Host]:
    """Give the hosts that *loop* keeps alive: those that have tasks.

    A loop refers to its tasks weakly only. If the stream is garbage in a cycle, nobody else refers to the tasks. They
    would be collected together with the stream, in the middle of f, and could not close it.
    """
    hosts: set[Host] = getattr(loop, "__dict__", {}).setdefault("_fstream_hosts", set())
    return hosts


class Host:
    """The loop that a run's tasks live on: the caller's, or a private one in a background thread."""

    def __init__(self, run: Run, loop: asyncio.AbstractEventLoop | None) -> None:
        self.run = run
        #: The members whose tasks are on the loop.
        self.members: set[LoopMember] = set()
        #: Set when a private loop is to end.
        self.over: asyncio.Event | None = None
        #: The run is still being opened: more tasks may come, though there are none.
        self.opening = True
        self.thread: Any = None
        #: The loop runs, or its owner will run it.
        self.started = loop is not None
        if loop is not None:
            self.loop = loop

    @property
    def abandoned(self) -> bool:
        """Of its tasks only such are left as ran over their time, and swallowed their cancellation. Under the lock."""
        left = self.run.members.intersection([*self.members])
        return bool(left) and all(member.abandoned for member in left)

    busy = abandoned

    def start(self) -> None:
        """Start the loop, if it is a private one; raise the error that kept it from starting."""
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
                try:
                    runner.run(self._until_over(started))
                except BaseException as error:
                    for member in [*self.members]:  # the loop has broken down, and what lives on it
                        member.vanished(error)
                    raise
        except BaseException as error:  # no file is left for a loop, or the policy refuses to make one here
            if not self.started:
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
        """Call *f* on the loop: at once if this is its thread, else soon. Do nothing if there is no loop."""
        if self.started:
            call(self.loop, f, *args)

    def kept(self) -> Collection[LoopMember]:
        """Give the members that cannot go on while this thread waits, because it runs their loop, or nobody does."""
        if not self.started or (self.loop.is_running() and not is_here(self.loop)):
            return ()
        return self.members

    def consumer_queue(self) -> TurnQueue:
        """Make the queue of a consumer that is a thread."""
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
        """Note that all is started that the run starts with: a private loop ends with its last task from now on."""
        self.call(self._opened)

    def _opened(self) -> None:
        self.opening = False
        self._end()

    def _left(self, member: LoopMember, _task: asyncio.Task[Any]) -> None:
        self.members.discard(member)
        if member in self.run.members:  # cancelled before its first step
            member.vanished(asyncio.CancelledError())
        self._end()

    def _end(self) -> None:
        if self.members:
            return
        kept_by(self.loop).discard(self)
        if not self.opening and self.over is not None:
            self.over.set()


def host_of(run: Run) -> Host:
    """Give the host of the tasks of *run*, made for the first of them. No lock: one thread lays the row."""
    if run.host is None:
        run.host = Host(run, run.loop)
    assert isinstance(run.host, Host)
    return run.host
