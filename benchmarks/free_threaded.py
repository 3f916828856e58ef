"""CPU-bound items on two threads, where Python has no GIL."""

import sys
from functools import partial

from benchmarks.adapters import chunked_imap, fstream, peers
from benchmarks.efficiency import burn, percent_of_two, turns
from benchmarks.floors import two_threads
from benchmarks.rows import Bound, Row, best_chunk, mapping, serial, timed

POOL = "ThreadPool.imap, best chunk"
FLOOR = "two threads that claim strides, best stride"
CHUNKS = (1, 8, 64, 512, 4_096)


def has_gil() -> bool:
    return getattr(sys, "_is_gil_enabled", lambda: True)()


def _row(cost: float, least: float) -> Row:
    """Items of *cost* microseconds, two seconds of serial work in all; *least* is the part of the floor to be had."""

    def items(n: int) -> list[int]:
        return [turns(cost)] * n

    size = round(2e6 / cost)
    return Row(
        f"free-threaded-{cost:g}us",
        f"CPU-bound items of {cost:g} us on 2 threads without a GIL",
        "% of two cores",
        {
            "serial": timed(serial, burn, items),
            "fstream": timed(fstream("thread", 2), burn, items),
            POOL: best_chunk(partial(chunked_imap, "thread"), burn, items, CHUNKS),
            FLOOR: best_chunk(two_threads, burn, items, CHUNKS),
        },
        {"fstream": Bound(least, FLOOR, at_least=True)},
        size,
        max(size // 10, 200),
        percent_of_two,
        "serial",
        mapping(peers("thread"), burn, items),
        needless="with a GIL two threads are as fast as one" if has_gil() else "",
    )


ROWS = tuple(_row(cost, 0.85 if cost < 10 else 0.95) for cost in (1, 10, 100, 1_000))
