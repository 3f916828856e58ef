"""How to reach an event loop from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["EventLoop", "call", "is_here", "outside_of_loops", "running", "soon"]


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


@contextmanager
def outside_of_loops() -> Iterator[None]:
    """Let others go on: they know nothing of the loop that the caller may run on, nor of its task.

    CPython 3.14 keeps one task for a thread, not for a loop: no other could be entered while that one is.
    """
    running = asyncio._get_running_loop()
    task = None if running is None else asyncio.current_task(running)
    if running is not None and task is not None:
        asyncio._leave_task(running, task)
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(running)
        if running is not None and task is not None:
            asyncio._enter_task(running, task)
