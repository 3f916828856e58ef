"""A server with many clients at once, each with a stream of its own that has a process stage, on two CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import psutil

from benchmarks.rows import Bound, Contender, Measure, Row, Sample, own_figure

CLIENTS = 25
LINES = 60  # for each client
STEPS = 20_000  # of a loop, for each line: some 0.5 ms
WORKERS = 2
CHUNK = 8  # lines that the pool by hand is given at a time

Serve = Callable[[Iterable[int]], Iterable[int]]


def shown(line: int) -> int:
    """Stands for what is made of a line."""
    total = line
    for step in range(STEPS):
        total += step
    return total


class Served(NamedTuple):
    """What was seen of one round."""

    first: float  # seconds to a client's first line, the median
    total: float  # seconds until all clients had all lines
    workers: int  # the most worker processes at once
    memory: float  # what these and this process had then, in MiB: shared pages are divided among those that have them


def served(serve: Serve, clients: int) -> Served:
    """Serve all clients, each in a thread of its own, all beginning at once."""
    firsts: list[float] = []
    begin = threading.Barrier(clients + 1)

    def client(number: int) -> None:
        begin.wait()
        start = perf_counter()
        lines = iter(serve(range(number, number + LINES)))
        next(lines)
        firsts.append(perf_counter() - start)
        for _ in lines:
            pass

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    start = perf_counter()
    workers, memory = 0, 0.0
    while any(thread.is_alive() for thread in threads):
        threads[-1].join(0.5)
        workers, memory = max((workers, memory), _processes())
    for thread in threads:
        thread.join()
    return Served(median(firsts), perf_counter() - start, workers, memory)


def _processes() -> tuple[int, float]:
    here = psutil.Process()
    number, total = 0, 0
    for process in (here, *here.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        number += process is not here
    return number, total / 2**20


@contextmanager
def _fstream() -> Iterator[Serve]:
    from fstream import pmap

    yield pmap(shown, kind="process", workers=WORKERS)


@contextmanager
def _by_hand() -> Iterator[Serve]:
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as executor:
        yield lambda lines: executor.map(shown, lines, chunksize=CHUNK)


def _contender(adapter: Callable[[], Any], clients: int, figure: Callable[[Served], float]) -> Contender:
    @contextmanager
    def contender() -> Iterator[Measure]:
        def measure(_: int) -> Sample:
            with adapter() as serve:
                seen = served(serve, clients)
            note = f"first {seen.first:.2f} s, all {seen.total:.2f} s, {seen.workers} workers, {seen.memory:.0f} MiB"
            return Sample(figure(seen), note)

        yield measure

    return contender


def _row(
    clients: int, name: str, what: str, unit: str, figure: Callable[[Served], float], bound: Bound
) -> Row:
    make = partial(_contender, clients=clients, figure=figure)
    return Row(
        f"server-{name}-{clients}", f"{clients} clients at once, each with a process stage: {what}", unit,
        {"fstream": make(_fstream), "pool by hand": make(_by_hand)}, {"fstream": bound}, 1, 1, own_figure,
    )  # fmt: skip


ROWS = tuple(
    row
    for clients in (CLIENTS, 4 * CLIENTS)
    for row in (
        _row(
            clients,
            "first",
            "the first line, median",
            "s",
            lambda seen: seen.first,
            Bound(1.25, "pool by hand"),
        ),
        _row(clients, "total", "all lines", "s", lambda seen: seen.total, Bound(1.1, "pool by hand")),
        _row(clients, "workers", "worker processes", "", lambda seen: seen.workers, Bound(WORKERS + 1)),
        _row(
            clients,
            "memory",
            "memory of all processes",
            "MiB",
            lambda seen: seen.memory,
            Bound(1.5, "pool by hand"),
        ),
    )
)
