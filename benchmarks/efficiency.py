"""CPU-bound items on two processes: how much of the two cores is left for the work itself.

An item is a number of turns of a loop, calibrated once, so that the work stays the same when cores are
contended: contention shows as lost efficiency. Efficiency is (serial time / 2) / wall, the serial time
measured in the same run.
"""

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.adapters import chunked_imap, fstream, peers
from benchmarks.floors import (
    Pipeline,
    list_schedule,
    map_span,
    pipe_span,
    two_forks,
    two_scheduled_forks,
)
from benchmarks.rows import (
    Adapter,
    Bound,
    ChunkAdapter,
    Mapper,
    Row,
    bare,
    best_chunk,
    mapping,
    serial,
    timed,
)

TURNS = "BENCHMARK_TURNS_PER_US"
FLOOR = "two forks, two spans in flight, best chunk"
SCHEDULED = "two forks that know the schedule"
CHUNKS = (
    1,
    3,
    10,
    30,
    100,
    300,
    1_000,
    3_000,
)  # two spans of 3,000 numbers fit a pipe: the floor cannot block on it


def burn(turns: int) -> int:
    """Work for *turns* turns of a loop."""
    for _ in range(turns):
        pass
    return turns


def burn_and_keep(turns: int) -> bool:
    """Work as long as `burn` and keep three items of four."""
    return burn(turns) % 4 != 0


def calibrate() -> None:
    """Find out how many turns take a microsecond, for this process and the ones it starts."""
    fastest = 1.0
    for _ in range(50):
        start = perf_counter()
        burn(100_000)
        fastest = min(fastest, perf_counter() - start)
    os.environ[TURNS] = str(100_000 / (fastest * 1e6))


def turns(microseconds: float) -> int:
    return round(microseconds * float(os.environ[TURNS]))


def percent_of_two(value: float, reference: float) -> float:
    return reference / 2 / value * 100


def computing_row(
    name: str,
    where: str,
    cost: float,
    ours: Adapter,
    rivals: Mapping[str, ChunkAdapter],
    chunks: Iterable[int],
    bound: Bound,
    peers: Mapping[str, Adapter],
    *,
    quick: Callable[[int], int] = lambda size: max(size // 10, 200),
    needless: str = "",
) -> Row:
    """Items of *cost* microseconds, two seconds of serial work in all; *quick* says how many a quick run has."""

    def items(n: int) -> list[int]:
        return [turns(cost)] * n

    size = round(2e6 / cost)
    return Row(
        f"{name}-{cost:g}us",
        f"CPU-bound items of {cost:g} us on {where}",
        "% of two cores",
        {
            "serial": timed(serial, burn, items),
            "fstream": timed(ours, burn, items),
            **{rival: best_chunk(adapter, burn, items, chunks) for rival, adapter in rivals.items()},
        },
        {"fstream": bound},
        size,
        min(size, quick(size)),
        percent_of_two,
        "serial",
        mapping(peers, burn, items),
        needless=needless,
    )


def efficiency_row(cost: float) -> Row:
    bound = (
        Bound(50, at_least=True) if cost < 10 else Bound(0.95 if cost < 100 else 0.97, FLOOR, at_least=True)
    )
    rivals = {FLOOR: partial(two_forks, map_span)}
    return computing_row(
        "efficiency", "2 processes", cost, fstream("process", 2), rivals, CHUNKS, bound, peers("process")
    )


def _skewed(n: int) -> list[int]:
    """Items of 1 ms; one in a hundred takes a hundred times as long. The same ones in every run."""
    slow = set(random.Random(7).sample(range(n), n // 100))
    return [turns(100_000 if index in slow else 1_000) for index in range(n)]


def _best_schedule(n: int) -> float:
    return max(map(sum, list_schedule(_skewed(n), 2)))


def _skew() -> Row:
    return Row(
        "skew",
        "1% of the items take 100 times as long (1 ms, 100 ms), ordered, processes",
        "of the list-scheduling bound",
        {
            "serial": timed(serial, burn, _skewed, units=lambda n: sum(_skewed(n))),
            "fstream": timed(fstream("process", 2), burn, _skewed, units=_best_schedule),
            SCHEDULED: timed(two_scheduled_forks, burn, _skewed, units=_best_schedule),
        },
        {"fstream": Bound(1.08, SCHEDULED)},
        2_000,
        200,
        lambda value, reference: value / reference,
        "serial",
        mapping(peers("process"), burn, _skewed, units=_best_schedule),
        whole=True,
    )


def _numbers(n: int) -> list[int]:
    return [turns(20) + index % 4 for index in range(n)]


def _serial_pipeline(pipeline: Pipeline, items: Iterable[int]) -> list[Any]:
    return pipe_span(pipeline, list(items))


@contextmanager
def _fstream_pipeline() -> Iterator[Mapper]:
    """`workers` is left at its default, the number of CPUs: the benchmark runs on two."""
    from fstream import pfilter, pmap

    def mapper(pipeline: Pipeline, items: Iterable[int]) -> Iterable[Any]:
        first, keep, last = pipeline
        kept = pfilter(keep, pmap(first, items, kind="process"), kind="process")
        return pmap(last, kept, kind="process")

    yield mapper


@contextmanager
def _pypeln_pipeline() -> Iterator[Mapper]:
    """One worker for each stage: there is no way to have fewer."""
    from pypeln import process

    def mapper(pipeline: Pipeline, items: Iterable[int]) -> Iterable[Any]:
        first, keep, last = pipeline
        kept: Iterable[Any] = process.filter(keep, process.map(first, items))
        outputs: Iterable[Any] = process.map(last, kept)
        return outputs

    yield mapper


def _with_verdict(keep: Callable[[int], bool], item: int) -> tuple[int, bool]:
    return item, keep(item)


@contextmanager
def _pool_pipeline() -> Iterator[Callable[[Pipeline, Iterable[int], int], Iterable[Any]]]:
    """Three stages by hand: one pool, each stage's outputs through the parent."""
    with chunked_imap("process") as imap:

        def mapper(pipeline: Pipeline, items: Iterable[int], chunk: int) -> Iterable[Any]:
            first, keep, last = pipeline
            verdicts = imap(partial(_with_verdict, keep), imap(first, items, chunk), chunk)
            return imap(last, (item for item, kept in verdicts if kept), chunk)

        yield mapper


def _pipeline() -> Row:
    pipeline = burn, burn_and_keep, burn
    return Row(
        "three-stages",
        "map, filter, map of 20 us an item on two processes in all",
        "% of two cores",
        {
            "serial": timed(bare(_serial_pipeline), pipeline, _numbers, expected=_serial_pipeline),
            "fstream": timed(_fstream_pipeline, pipeline, _numbers, expected=_serial_pipeline),
            FLOOR: best_chunk(
                partial(two_forks, pipe_span), pipeline, _numbers, CHUNKS, expected=_serial_pipeline
            ),
            "Pool.imap stage by stage, best chunk": best_chunk(
                _pool_pipeline, pipeline, _numbers, CHUNKS, expected=_serial_pipeline
            ),
        },
        {"fstream": Bound(80, at_least=True)},
        20_000,
        2_500,
        percent_of_two,
        "serial",
        {"pypeln": timed(_pypeln_pipeline, pipeline, _numbers, expected=_serial_pipeline)},
    )


ROWS = (*(efficiency_row(cost) for cost in (1, 10, 100, 1_000)), _skew(), _pipeline())
BETWEEN = tuple(efficiency_row(cost) for cost in (3, 30, 300, 3_000, 10_000))  # more points for the plot
