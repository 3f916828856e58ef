"""How far a stage runs ahead of a slow consumer: 1,000,000 items, a consumer that sleeps 10 ms an item.

The first outputs are enough to see it: a stage that runs ahead does so at once. Peers get 2,000 items: most
of them read all of them first.
"""

import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.adapters import fstream, peers, task_peers
from benchmarks.per_item import identity, identity_task
from benchmarks.rows import Adapter, Bound, Contender, Mapper, Measure, Row, Sample, own_figure

NAP = 0.01
SIZE = 1_000_000
PEERS_SIZE = 2_000
MAXSIZE = 5
_left_open: list[Any] = []
FLAT = 2  # MiB: what the allocator itself may take from the system meanwhile


class Counting:
    """A source that counts the items taken from it."""

    def __init__(self, size: int) -> None:
        self.taken = 0
        self._size = size

    def __iter__(self) -> Iterator[int]:
        for item in range(self._size):
            self.taken += 1
            yield item


def _consume(outputs: Any, n: int) -> Iterator[int]:
    """Take n outputs slowly; yield how many were taken after each nap.

    Then close the outputs; but pypeln's stay open while this process lives: closing them can take for ever.
    """
    iterator = iter(outputs)
    for given, _ in enumerate(islice(iterator, n), start=1):
        time.sleep(NAP)
        yield given
    if type(outputs).__module__.startswith("pypeln"):
        _left_open.append(iterator)
    elif isinstance(iterator, Generator):
        iterator.close()


def _ahead(adapter: Adapter, f: Callable[[int], Any], size: int) -> Contender:
    """The most items that were at any time taken from the source and not yet given to the consumer."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        with adapter() as mapper:

            def measure(n: int) -> Sample:
                source = Counting(size)
                outputs = mapper(f, source)
                return Sample(max(source.taken - given for given in _consume(outputs, n)), f"of {size:,}")

            yield measure

    return contender


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _growth(adapter: Adapter, f: Callable[[int], Any], size: int) -> Contender:
    """By how many MiB the peak of this process's memory exceeds what it had before."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        with adapter() as mapper:

            def measure(n: int) -> Sample:
                gc.collect()
                Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is in use now
                before = _peak_kib()
                for _ in _consume(mapper(f, Counting(size)), n):
                    pass
                return Sample((_peak_kib() - before) / 1024, f"of {size:,}")

            yield measure

    return contender


@contextmanager
def _with_maxsize(kind: str, workers: int) -> Iterator[Mapper]:
    from fstream import pmap

    options: Any = {"kind": kind, "workers": workers, "maxsize": MAXSIZE}
    yield lambda f, items: pmap(f, items, **options)


def _rows(kind: str, workers: int, f: Callable[[int], Any], others: Mapping[str, Adapter]) -> tuple[Row, ...]:
    ours = fstream(kind, workers)
    ahead = 4 * workers + 8
    return (
        Row(
            f"memory-ahead-{kind}",
            f"{kind}, items pulled ahead of a consumer that takes 10 ms an item",
            "items",
            {"fstream": _ahead(ours, f, SIZE)},
            {"fstream": Bound(ahead)},
            200,
            20,
            own_figure,
            peers={name: _ahead(adapter, f, PEERS_SIZE) for name, adapter in others.items()},
            whole=True,
        ),
        Row(
            f"memory-maxsize-{kind}",
            f"{kind}, the same with `maxsize={MAXSIZE}`",
            "items",
            {"fstream": _ahead(partial(_with_maxsize, kind, workers), f, SIZE)},
            {"fstream": Bound(MAXSIZE)},
            200,
            20,
            own_figure,
        ),
        Row(
            f"memory-peak-{kind}",
            f"{kind}, growth of the parent's peak memory meanwhile",
            "MiB",
            {"fstream": _growth(ours, f, SIZE)},
            {"fstream": Bound(FLAT)},
            200,
            20,
            own_figure,
        ),
    )


ROWS = (
    *_rows("thread", 2, identity, peers("thread")),
    *_rows("process", 2, identity, peers("process")),
    *_rows("task", 100, identity_task, task_peers(in_loop=False)),
)
