"""Items that wait: 2,000 sleeps of 10 ms, a hundred at a time."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.adapters import fstream, fstream_async, peers, task_peers
from benchmarks.floors import hundred_tasks, hundred_threads
from benchmarks.rows import Adapter, Bound, Row, bare, mapping

WORKERS = 100
NAP = 0.01


def nap(item: int) -> int:
    time.sleep(NAP)
    return item


async def nap_task(item: int) -> int:
    await asyncio.sleep(NAP)
    return item


def percent_of_ideal(value: float, reference: float) -> float:
    return NAP / WORKERS / value * 100


def _row(
    name: str, work: str, f: Callable[[int], Any], ours: Mapping[str, Adapter], peers: Mapping[str, Adapter]
) -> Row:
    return Row(
        f"waiting-{name}",
        f"2,000 sleeps of 10 ms, 100 workers, {work}",
        "% of ideal",
        mapping(ours, f, range),
        {"fstream": Bound(92, at_least=True)},
        2_000,
        2_000,
        percent_of_ideal,
        peers=mapping(peers, f, range),
        whole=True,
    )


THREADS = {"fstream": fstream("thread", WORKERS), "100 threads sharing one iterator": bare(hundred_threads)}
FLOOR = {"100 tasks sharing one iterator": bare(hundred_tasks)}
ROWS = (
    _row("thread", "thread", nap, THREADS, peers("thread", WORKERS)),
    _row(
        "task-for", "task, `for`", nap_task, {"fstream": fstream("task"), **FLOOR}, task_peers(in_loop=False)
    ),
    _row(
        "task-async-for",
        "task, `async for`",
        nap_task,
        {"fstream": fstream_async, **FLOOR},
        task_peers(in_loop=True),
    ),
)
