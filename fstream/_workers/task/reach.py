"""How to reach an event loop from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["EventLoop", "call", "is_here", "running", "soon"]


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
