"""The CPU time of threads that work for a stage: which of them has the GIL, and which one pickles all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import BuiltinFunctionType
from typing import Any

from fstream._flow.tally import Tally

__all__ = ["counted"]


@contextmanager
def counted(tally: Tally, lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Count the CPU time of the calling thread in *tally*: it calls nothing for that while it is at work."""
    clocks = set()
    # Not on macOS: there threads are counted when they have ended. Nor where greenlets stand for threads: those have
    # numbers of their own, of which the system knows nothing.
    if hasattr(time, "pthread_getcpuclockid") and isinstance(threading.get_ident, BuiltinFunctionType):
        clocks.add(time.pthread_getcpuclockid(threading.get_ident()))
    with lock:
        tally.clocks |= clocks
    try:
        yield
    finally:
        with lock:
            tally.clocks -= clocks
            tally.cpu += time.thread_time()
