"""CPU-bound items on two threads, where Python has no GIL."""

import sys
from functools import partial

from benchmarks.adapters import chunked_imap, fstream, peers
from benchmarks.efficiency import computing_row
from benchmarks.floors import two_threads
from benchmarks.rows import Bound, Row

POOL = "ThreadPool.imap, best chunk"
FLOOR = "two threads that claim strides, best stride"
CHUNKS = (1, 8, 64, 512, 4_096)


def has_gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def _row(cost: float, least: float) -> Row:
    """Items of *cost* microseconds; *least* is the part of the floor to be had."""
    return computing_row(
        "free-threaded",
        "2 threads without a GIL",
        cost,
        fstream("thread", 2),
        {POOL: partial(chunked_imap, "thread"), FLOOR: two_threads},
        CHUNKS,
        Bound(least, FLOOR, at_least=True),
        peers("thread"),
        needless="with a GIL two threads are as fast as one" if has_gil() else "",
    )


ROWS = tuple(_row(cost, 0.85 if cost < 10 else 0.95) for cost in (1, 10, 100, 1_000))
