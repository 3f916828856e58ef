"""How many items a span has, and the numbers by which spans and windows are sized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "DASK_NOT_SHARED",
    "DASK_SPAN_SECONDS",
    "LONGEST_SPAN_SECONDS",
    "LONGEST_THREAD_SPAN_SECONDS",
    "MAX_BYTES",
    "MAX_CHEAP",
    "MAX_CHEAP_PROCESS",
    "MAX_SECONDS",
    "MAX_SLOW",
    "MAX_SPAN",
    "NOT_SHARED",
    "PROCESS_SPAN_SECONDS",
    "SHORT",
    "SPAN_BYTES",
    "SPAN_OF_WORK",
    "SPAN_SECONDS",
    "STRIDE",
    "Numbers",
    "Sizing",
    "stride_length",
]


#: The work that one span should be at first, in seconds. To hand a span over costs the parent some 60 microseconds of
#: CPU between threads, 90 between tasks and 370 between processes. A span this long makes that cost small, and nobody
#: notices the wait for it.
SPAN_SECONDS: Final = 0.002
PROCESS_SPAN_SECONDS: Final = 0.016

#: The same for the tasks of a dask cluster. One costs scheduler and client a millisecond of CPU each, or two; and the
#: way there and back takes 10 ms, as the client sends no more often. Spans of 64 ms reached 90 % of what two CPUs can
#: do, those of 128 ms 95 %.
DASK_SPAN_SECONDS: Final = 0.128

#: Spans grow as a job goes on: up to SPAN_OF_WORK (a fraction) of the work done so far by each worker, and to
#: LONGEST_SPAN_SECONDS between processes, LONGEST_THREAD_SPAN_SECONDS between threads. Early on, latency matters;
#: later, the cost of handing over. Two threads at items of 0.1 ms take 3 to 5 % less time than with spans of 2 ms, and
#: spans of 16 ms gave no more.
SPAN_OF_WORK: Final = 0.125
LONGEST_SPAN_SECONDS: Final = 0.064
LONGEST_THREAD_SPAN_SECONDS: Final = 0.008

#: Work of less than this fraction of a span goes to one worker. To hand a part of it over would take as long as to do
#: it. A cluster is 20 ms away, there and back: its workers would wait for what comes after a shorter piece.
NOT_SHARED: Final = 0.1
DASK_NOT_SHARED: Final = 0.25

#: Lists of fewer outputs than this are joined, so that a taker gets one list instead of many.
SHORT: Final = 64

#: The most items of a span that stays in this process. The pump passes a limit of its own, in bytes.
MAX_SPAN: Final = 4096

#: The most items of its span that a worker claims at a time: enough that the lock costs nothing for each item, few
#: enough that nobody waits long for the lock while their list is made. And the fewest.
STRIDE: Final = 1024
SHORT_STRIDE: Final = 64

#: Between these two, a stride is so much work, in seconds: whether items have become heavy is seen between strides.
STRIDE_SECONDS: Final = 0.00025

#: The most bytes that a span of several items has on its way to another process, or back. Larger items go faster one by
#: one, and the memory for two spans is needed for each worker.
SPAN_BYTES: Final = 1 << 22

#: The most cheap items that a self-sizing window holds: 32,768; and 65,536 for processes, whose spans are longer. That
#: is four process spans of the cheapest items.
MAX_CHEAP: Final = 1 << 15
MAX_CHEAP_PROCESS: Final = 1 << 16

#: The most items for each worker that a self-sizing window holds if they are not cheap; or as many as the workers do in
#: MAX_SECONDS, if that is more; or as many as SPANS_HELD spans for each worker have, if spans are long.
MAX_SLOW: Final = 64
MAX_SECONDS: Final = 0.25
SPANS_HELD: Final = 4


#: The most bytes that a self-sizing window holds, as far as that is known: 64 MiB. It may always hold two items for
#: each worker. Those who want more say so, by ``maxsize``.
MAX_BYTES: Final = 1 << 26


def stride_length(cost: float | None) -> int:
    """How many items a worker claims at a time, if each costs *cost* seconds; None if that is not known."""
    if cost is None:
        return SHORT_STRIDE
    return max(SHORT_STRIDE, min(STRIDE, int(STRIDE_SECONDS / (cost + 1e-9))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What is different about the windows of one kind of workers."""

    #: Gives, for a number of workers, into how many spans the available items are divided.
    shares: Callable[[int], int]
    #: The work that one span should be at first, in seconds.
    span_seconds: float = SPAN_SECONDS
    #: The work that one span may grow to be, in seconds; see `SPAN_OF_WORK`.
    longest_span: float = SPAN_SECONDS
    #: Work of less than this fraction of `span_seconds` goes to one worker whole.
    not_shared: float = NOT_SHARED
    #: The most items that a window holds, however cheap they are.
    most_cheap: int = MAX_CHEAP
    #: Spans are worked on in another process. The finished part of one has to be asked for by a message.
    remote: bool = False
    #: A span has at most so many times the items of the last one, because a handful of cheap items says little of those
    #: that follow. A window that grows becomes so many times as large.
    growth: int = 2


class Sizing:
    """How many items a span has: as many as one worker works off in good time, by what an item has cost so far."""

    def __init__(self, numbers: Numbers, workers: int) -> None:
        self.shares_of = numbers.shares
        self.growth = numbers.growth
        self.resize(workers)
        self.most_cheap = numbers.most_cheap
        self.span_seconds = numbers.span_seconds
        self.longest_span = numbers.longest_span
        #: Less work than this, in seconds, goes to one worker whole.
        self.undivided = numbers.not_shared * numbers.span_seconds
        #: The work done so far by all workers, in seconds.
        self.worked = 0.0
        #: What an item costs, in seconds, measured: half the last span's mean, half what it was before. None at first.
        self.cost: float | None = None
        #: How many items the last span had.
        self.last_size = 1
        #: What share of the items needs a worker: half of it as drawn last, half what it was before.
        self.needing = 1.0

    def resize(self, workers: int) -> None:
        """The stage has so many workers from now on."""
        self.workers = workers
        self.shares = self.shares_of(workers)

    def fair(self, most: int) -> int:
        """How many items a worker works off in `span_seconds`: *most* at most."""
        if self.cost is None or self.cost >= self.span_seconds:
            return 1
        return max(1, min(int(self.span_seconds / (self.cost + 1e-9)), self.growth * self.last_size, most))

    def share(self, available: int, most: int) -> int:
        """How many of the *available* items one worker gets, so that the others get some: *most* at most."""
        alone = int(self.undivided / ((self.cost or 0.0) + 1e-9))
        return max(1, min(max(-(-available // self.shares), min(available, alone)), most))

    def measure(self, elapsed: float, count: int) -> None:
        """A worker has spent *elapsed* seconds on *count* items."""
        self.needing = (self.needing + 1) / 2
        cost = elapsed / count
        self.cost = cost if self.cost is None else (self.cost + cost) / 2
        if self.span_seconds < self.longest_span:
            self.worked += elapsed
            share = SPAN_OF_WORK * self.worked / self.workers
            self.span_seconds = min(max(self.span_seconds, share), self.longest_span)

    def assume_slow(self, count: int) -> None:
        """Take each of *count* items to last as long as a span, as if that had been measured of one after another."""
        self.needing = 1.0
        seconds = self.span_seconds
        self.cost = seconds + ((self.cost or seconds) - seconds) * 0.5**count

    def measure_known(self, known: int, drawn: int) -> None:
        """So many of the items that were *drawn* last need no worker."""
        self.needing = (self.needing + 1 - known / drawn) / 2

    def most_held(self) -> int:
        """How many items a window that sizes itself may grow to hold."""
        in_time = (
            max(MAX_SECONDS, SPANS_HELD * self.span_seconds)
            * min(self.workers, self.shares)
            / max(1e-9, (self.cost or 1.0) * self.needing)
        )
        return min(max(MAX_SLOW * self.workers, int(in_time)), self.most_cheap)
