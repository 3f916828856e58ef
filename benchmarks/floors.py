"""The hand-written rivals: what someone who knows the work and has an afternoon would write instead."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from heapq import heapreplace
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from threading import Condition, Lock, Thread
from typing import Any

from benchmarks.rows import ChunkMapper, Mapper

Pipeline = tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]


def map_span(f: Callable[[Any], Any], span: list[Any]) -> list[Any]:
    return list(map(f, span))


def pipe_span(pipeline: Pipeline, span: list[Any]) -> list[Any]:
    """Three stages as one: map, filter, map."""
    first, keep, last = pipeline
    return list(map(last, filter(keep, map(first, span))))


def _work(pipe: Connection, others: list[Connection]) -> None:
    for other in others:
        other.close()
    work: Callable[[Any], Any] | None = None
    while True:
        try:
            message = pipe.recv()
        except EOFError:
            return
        if work is None or callable(message):
            work = message
        else:
            pipe.send(work(message))


@contextmanager
def two_forks(do_span: Callable[[Any, list[Any]], list[Any]]) -> Iterator[ChunkMapper]:
    """Two forked processes, a private pipe for each, two spans in flight for each, outputs in order."""
    fork = get_context("fork")
    pipes: list[Connection] = []
    processes = []
    for _ in range(2):
        ours, theirs = fork.Pipe()
        pipes.append(ours)
        process = fork.Process(target=_work, args=(theirs, list(pipes)), daemon=True)
        process.start()
        processes.append(process)
        theirs.close()

    def mapper(job: Any, items: Iterable[Any], chunk: int) -> Iterator[Any]:
        source = iter(items)
        spans = enumerate(iter(lambda: list(islice(source, chunk)), []))
        in_flight: dict[Connection, deque[int]] = {pipe: deque() for pipe in pipes}
        done: dict[int, list[Any]] = {}
        following = 0

        def feed(pipe: Connection) -> None:
            for index, span in islice(spans, 1):
                in_flight[pipe].append(index)
                pipe.send(span)

        for pipe in pipes:
            pipe.send(partial(do_span, job))
        for pipe in pipes * 2:
            feed(pipe)
        while busy := [pipe for pipe in pipes if in_flight[pipe]]:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                done[in_flight[ready].popleft()] = ready.recv()
                feed(ready)
            while following in done:
                yield from done.pop(following)
                following += 1

    try:
        yield mapper
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def hundred_threads(f: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """A hundred threads that share one iterator; outputs in order."""
    source, lock, outputs = enumerate(items), Lock(), {}

    def worker() -> None:
        while True:
            with lock:
                index, item = next(source, (-1, None))
            if index < 0:
                return
            outputs[index] = f(item)

    threads = [Thread(target=worker) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outputs[index] for index in range(len(outputs))]


async def share_among_tasks(f: Callable[[Any], Awaitable[Any]], items: Iterable[Any]) -> list[Any]:
    """A hundred tasks that share one iterator; outputs as they complete."""
    source, outputs = iter(items), []

    async def worker() -> None:
        for item in source:
            outputs.append(await f(item))

    await asyncio.gather(*(worker() for _ in range(100)))
    return outputs


def hundred_tasks(f: Callable[[Any], Awaitable[Any]], items: Iterable[Any]) -> list[Any]:
    return asyncio.run(share_among_tasks(f, items))


@contextmanager
def two_threads() -> Iterator[ChunkMapper]:
    """Two threads that claim strides under a lock and leave a list for each; the caller takes them in order."""

    def mapper(f: Callable[[Any], Any], source: Iterable[Any], stride: int) -> Iterator[Any]:
        items = list(source)
        starts, parts, changed = iter(range(0, len(items), stride)), dict[int, list[Any]](), Condition()

        def main() -> None:
            while True:
                with changed:
                    start = next(starts, None)
                if start is None:
                    return
                part = map_span(f, items[start : start + stride])
                with changed:
                    parts[start] = part
                    changed.notify()

        threads = [Thread(target=main) for _ in range(2)]
        for thread in threads:
            thread.start()
        for start in range(0, len(items), stride):
            with changed:
                changed.wait_for(partial(parts.__contains__, start))
                part = parts.pop(start)
            yield from part
        for thread in threads:
            thread.join()

    yield mapper


def list_schedule(costs: Iterable[int], workers: int) -> list[list[int]]:
    """Which costs each of *workers* has if it takes the next one as soon as it is free."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    ends = [(0, worker) for worker in range(workers)]
    for cost in costs:
        end, worker = ends[0]
        shares[worker].append(cost)
        heapreplace(ends, (end + cost, worker))
    return shares


@contextmanager
def two_scheduled_forks() -> Iterator[Mapper]:
    """Two forked processes that know beforehand who does which item, an item being its cost: all that CPUs can do."""
    with two_forks(map_span) as mapper:

        def scheduled(job: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
            return chain.from_iterable(mapper(partial(map_span, job), list_schedule(items, 2), 1))

        yield scheduled
