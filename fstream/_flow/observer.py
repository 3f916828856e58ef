"""Who is told what a run does: one call for each span, none for each item.

Whatever shows or measures pipelines stands on this seam. Windows, sources and workers call the run's observer where
something happens; where nobody looks there is none, and a span costs one comparison with None. What the run calls is no
observer of the user's: it notes the call, and passes it on when the run's lock is free (`fstream._engine.reports`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

__all__ = ["CALLS", "OBSERVERS", "HowEnded", "Observer", "RunInfo", "StageInfo", "observe"]


#: How a worker ended: it had no more to do, it died, or its item ran over its time; or it was left to itself when its
#: run was closed, as it was busy in f.
HowEnded: TypeAlias = Literal["ended", "died", "timed out", "left"]


@dataclass(frozen=True, slots=True)
class StageInfo:
    """What an observer may know of a stage: its name, its kind, its place in the row, how many workers it may have.

    *run* is the number of its run. Process stages that run as one are one stage here, with the names of all.
    """

    run: int
    index: int
    name: str
    kind: str
    workers: int


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What an observer may know of a run: its number in this process, and its row of stages from the source on.

    A stage of kind ``"sync"`` is a run of its own, and so are the stages behind another iterator. Merged sources are a
    run without stages.
    """

    number: int
    stages: tuple[StageInfo, ...]
    #: Keeps its numbers.
    account: Any = field(default=None, repr=False, compare=False)


class Observer:
    """What is told what runs do; a subclass has the methods that it wants, the others do nothing.

    A call is about a *span*, the items that a worker takes at once: cheap items by the thousand, slow ones alone. So an
    observer costs little. An index is that of an item among those that come to its stage.

    The calls of one run come one at a time, in the order in which things happened, and none after `run_ended`. They
    come in whatever thread has done something: a worker's, the event loop's, the consumer's. Those of several runs may
    come at once. A method may take what time it needs; but the thread that calls it does nothing else meanwhile. It
    must not wait for the run that it is told of, nor take from its stream. It may use other streams; nobody is told of
    those.

    If a method raises an exception, this is logged, with its traceback, by the logger ``fstream``. The run goes on, and
    tells that observer nothing more.
    """

    def run_opened(self, run: RunInfo) -> None:
        """A run starts, as somebody has asked for its first output."""

    def run_ended(self, run: RunInfo, error: BaseException | None) -> None:
        """It is over: with the *error* that its consumer gets, or None."""

    def pulled(self, run: RunInfo, count: int) -> None:
        """So many items of the sources have come to the first stage. The source may be ahead by what it may hold."""

    def taken(self, stage: StageInfo, start: int, count: int, worker: int | None) -> None:
        """A *worker* has taken the *count* items from index *start* on.

        *worker* is None for items that wait in tasks side by side: many are taken at once, and each goes to a task of
        its own. It is None, too, for the item of a worker that is lost, while it is decided what becomes of it; and
        where an executor has taken them, whose workers have no numbers.
        """

    def done(
        self, stage: StageInfo, start: int, count: int, seconds: float | None, worker: int | None
    ) -> None:
        """A *worker* is through with what it took at *start*: with the first *count* of the items.

        What it took beyond these was given back, and is taken again, or comes behind an error. Items that ``on_error``
        answered for count. *seconds* is what the worker has spent on them, None where nobody measures it: by a worker
        that was lost, and in tasks side by side. Of these it is told how many were done in a turn of the event loop,
        and *start* is the first of them.

        There is no such call for what is in the hands of tasks and processes that are stopped with their run.
        """

    def given(self, stage: StageInfo, count: int) -> None:
        """So many outputs were taken by the next stage, or by the consumer. It may come before `done`.

        Nobody counts them on kind ``"sync"``.
        """

    def failed(self, stage: StageInfo, index: int, error: BaseException, tries: int) -> None:
        """An item has failed for good, after so many *tries*, whatever ``on_error`` makes of it."""

    def retried(self, stage: StageInfo, index: int, error: BaseException, tries: int) -> None:
        """An item is tried again: the last one of so many *tries* ended with *error*."""

    def worker_started(self, stage: StageInfo, index: int) -> None:
        """The worker of this *index* has started. Nobody tells when those of an executor start or end."""

    def worker_ended(self, stage: StageInfo, index: int, how: HowEnded) -> None:
        """It has ended; another one may take its place, and its index."""


#: The names of its methods.
CALLS: Final = tuple(name for name in vars(Observer) if not name.startswith("_"))

#: Who observes the runs that are opened in a context.
OBSERVERS: Final[ContextVar[tuple[Observer, ...]]] = ContextVar("OBSERVERS", default=())


@contextmanager
def observe(*observers: Observer) -> Iterator[None]:
    """Tell *observers* what the streams do that start in a ``with`` block.

        >>> from fstream import Observer, pmap
        >>> class Count(Observer):
        ...     items = 0
        ...     def done(self, stage, start, count, seconds, worker):
        ...         self.items += count
        >>> count = Count()
        >>> with observe(count):
        ...     squares = list(pmap(lambda x: x * x, range(10_000)))
        >>> count.items
        10000

    A stream starts when its first output is asked for. Whoever observes it then is told of it to its end, also after
    the block. Blocks add up: in an inner one the observers of both are told. Streams that f iterates are observed, too,
    but for those in worker processes.

    `Observer` says which calls there are, and what an observer may do.
    """
    for observer in observers:
        if not isinstance(observer, Observer):
            raise TypeError(f"observers must be fstream.Observer objects, got {observer!r}")
    token = OBSERVERS.set((*OBSERVERS.get(), *observers))
    try:
        yield
    finally:
        OBSERVERS.reset(token)
