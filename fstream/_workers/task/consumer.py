"""The consumer that is a task: an `async for`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from fstream._flow.sizing import SPAN_SECONDS
from fstream._flow.span import Closed
from fstream._workers.sync import aclose
from fstream._workers.task.queues import TaskQueue
from fstream._workers.task.reach import EventLoop, running, soon

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["close", "close_soon", "queue_of", "take"]


# ------------------------------------------------------------------------------------------- the async consumer


def queue_of(run: Run) -> TaskQueue:
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
        outlet.release_taken()
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
    if taken.error is None and not (run.stopped or outlet.over):
        await _wait(run, lambda: all(member.abandoned for member in run.members), None)
    run.ends_with(taken.error)
    await close(run, complain=taken.error is None)
    if taken.error is not None:
        raise taken.error
    return None


def close_soon(loop: EventLoop, outputs: AsyncGenerator[Any, None]) -> None:
    """Close an async generator that is iterated on *loop*, from wherever this is."""
    soon(loop, lambda: loop.create_task(aclose(outputs)))


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
        async with asyncio.timeout(timeout) as limit:
            while True:
                with run.lock:
                    if condition():
                        return
                    left = asyncio.Event()
                    run.on_leave.append(partial(soon, loop, left.set))
                if timeout is None and (seconds := run.outlet.left_to_wait) < inf:
                    limit.reschedule(loop.time() + seconds)
                await left.wait()
    except TimeoutError:
        pass
