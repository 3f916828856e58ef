"""The kinds of workers: all that a run, and the checks of options, know of each.

A kind is a `Backend` in the registry. To add one, write a module with a class of `StageWorkers`, and register a backend
that names it. Nothing else has to be changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from fstream._flow.sizing import (
    DASK_NOT_SHARED,
    DASK_SPAN_SECONDS,
    LONGEST_SPAN_SECONDS,
    LONGEST_THREAD_SPAN_SECONDS,
    MAX_CHEAP_PROCESS,
    PROCESS_SPAN_SECONDS,
    Numbers,
)
from fstream._flow.window import Window
from fstream._plan.stages import Batch, Stage
from fstream._workers.cpus import cpu_count
from fstream._workers.processes import check_processes, is_processes, on_its_pool

if TYPE_CHECKING:
    from fstream._engine.run import Run, StageWorkers

__all__ = [
    "IN_PLACE",
    "Backend",
    "backend_for",
    "backend_of",
    "by_default",
    "can_fuse",
    "is_kind",
    "late",
    "register",
    "runs_in_place",
    "that_await",
]


def late(path: str) -> Callable[..., Any]:
    """Give the function or class "module:name", whose module is imported when it is called for the first time.

    asyncio and multiprocessing take longer to import than all of fstream.
    """
    module, _, name = path.partition(":")

    def call(*arguments: Any) -> Any:
        return getattr(import_module(module), name)(*arguments)

    return call


def _no_object(_kind: object) -> bool:
    return False


def _as_it_is(stage: Stage) -> Stage:
    return stage


def _no_renewal(stage: Stage) -> None:
    if stage.max_items_per_worker is not None:
        raise ValueError(f"max_items_per_worker is for kind='process', got kind={stage.kind!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of workers."""

    #: What messages call it, and what the option ``kind`` says, unless that is to be an object.
    name: str
    #: Makes the workers of a stage; None where there are none, and f runs where the outputs are taken.
    open: Callable[[Run, Stage, Window], StageWorkers] | None
    #: How many workers a stage has where none are given.
    default_workers: Callable[[], int]
    numbers: Numbers
    #: Tells whether a worker of a stage may be lost in the middle of an item, which is then run again.
    loses: Callable[[Stage], bool]
    #: It runs coroutine functions.
    awaits: bool = False
    #: Tells whether a stage is better run as one with a neighbour that is such a stage, too.
    fuses: Callable[[Stage], bool] = lambda _: False
    #: Raises for what a stage asks for and this kind cannot give, when the transformer is built. The message says what
    #: to write.
    check: Callable[[Stage], None] = _no_renewal
    #: What the option may be besides its name, in words, and what tells such an object. It imports nothing.
    objects: str = ""
    #: The option may be its name, too.
    named: bool = True
    accepts: Callable[[object], bool] = _no_object
    #: Makes a stage ready for its run: at the first ``next``, before there is a window.
    prepare: Callable[[Stage], Stage] = _as_it_is


_BACKENDS: Final[dict[str, Backend]] = {}


def register(backend: Backend) -> Backend:
    """Add a kind, or put another in the place of the one of that name."""
    _BACKENDS[backend.name] = backend
    return backend


def backend_of(stage: Stage) -> Backend:
    return _BACKENDS[stage.kind]


def can_fuse(stage: Stage) -> bool:
    """Tell whether *stage* may run as one with a neighbour of which this is true, too."""
    return backend_of(stage).fuses(stage)


def is_kind(kind: object) -> bool:
    """Tell whether *kind* is the name of one."""
    return isinstance(kind, str) and kind in _BACKENDS and _BACKENDS[kind].named


def backend_for(kind: object) -> Backend:
    """Give what the option *kind* stands for, or raise."""
    if is_kind(kind):
        return _BACKENDS[kind]  # type: ignore[index]
    wrong = ValueError if isinstance(kind, str) else TypeError
    for backend in _BACKENDS.values():
        if backend.accepts(kind):
            return backend
    kinds = ", ".join(
        word
        for backend in _BACKENDS.values()
        for word in (repr(backend.name) if backend.named else "", backend.objects)
        if word
    )
    raise wrong(f"kind must be one of {kinds}, got {kind!r}")


def by_default(awaits: bool) -> str:
    """The name of the kind of a stage that has none given."""
    return "task" if awaits else "thread"


def that_await() -> str:
    """The names of the kinds that run coroutine functions, for a message."""
    return " or ".join(repr(backend.name) for backend in _BACKENDS.values() if backend.awaits)


def runs_in_place(stage: Stage | Batch | None) -> TypeGuard[Stage]:
    """Tell whether this is a stage whose f runs where the outputs are taken, by no worker."""
    return isinstance(stage, Stage) and backend_of(stage).open is None


def _timed(stage: Stage) -> bool:
    return stage.timeout is not None


def _has_all_cpus(stage: Stage) -> bool:
    """Tell whether one stage uses as many CPUs as two would."""
    return stage.workers is None or stage.workers >= cpu_count()


def _fails_as_a_whole(stage: Stage) -> bool:
    """Tell whether any failure ends the stream: a cluster does not say at which of several stages a worker was lost."""
    return stage.workers is None and stage.timeout is None and not stage.retries and stage.on_error == "raise"


def _is_client(kind: object) -> bool:
    """A client of dask; or the class, which is a slip that `check` tells of."""
    client = getattr(sys.modules.get("distributed"), "Client", None)
    return client is not None and (kind is client or isinstance(kind, client))


def _is_executor(kind: object) -> bool:
    """An executor, or any function: its arguments are looked at when the stage is checked."""
    futures = sys.modules.get("concurrent.futures")  # where it is not imported, there is no executor
    return callable(kind) or isinstance(kind, getattr(futures, "Executor", ()))


IN_PLACE: Final = register(
    Backend(
        name="sync",
        open=None,
        default_workers=lambda: 1,
        numbers=Numbers(shares=lambda workers: workers),
        loses=_timed,
    )
)
register(
    Backend(
        name="thread",
        open=late("fstream._workers.thread:Workers"),
        default_workers=lambda: min(32, cpu_count() + 4),
        numbers=Numbers(shares=lambda workers: workers, longest_span=LONGEST_THREAD_SPAN_SECONDS),
        loses=_timed,
    )
)
register(
    Backend(
        name="process",
        objects="a Processes",
        accepts=is_processes,
        check=check_processes,
        prepare=on_its_pool,
        open=late("fstream._workers.process.pump:Pump"),
        default_workers=cpu_count,
        # A span is far away, and costs more to hand over; two are in flight for each process.
        numbers=Numbers(
            shares=lambda workers: 2 * workers,
            span_seconds=PROCESS_SPAN_SECONDS,
            longest_span=LONGEST_SPAN_SECONDS,
            most_cheap=MAX_CHEAP_PROCESS,
            remote=True,
        ),
        loses=lambda _: True,
        fuses=_has_all_cpus,
    )
)
register(
    Backend(
        name="task",
        open=late("fstream._workers.task.workers:Workers"),
        default_workers=lambda: 100,
        # Cheap items on a loop run one after the other however many tasks there are: one task may have them all.
        numbers=Numbers(shares=lambda _: 1),
        loses=_timed,
        awaits=True,
    )
)
register(
    Backend(
        name="dask",
        objects="a distributed.Client",
        accepts=_is_client,
        check=late("fstream._workers.dask:check"),
        prepare=late("fstream._workers.dask:prepare"),
        open=late("fstream._workers.dask:Workers"),
        default_workers=cpu_count,  # `prepare` says how many
        # Each thread has two spans: one at work, one behind it. A span costs 4 ms of CPU in all, and each round trip at
        # the beginning 20 ms. So there are to be few: of two seconds of work there were a third more with pieces of a
        # fourth each, a growth of 8 and smaller pieces at the end.
        numbers=Numbers(
            shares=lambda workers: -(-3 * workers // 2),
            span_seconds=DASK_SPAN_SECONDS,
            longest_span=DASK_SPAN_SECONDS,
            not_shared=DASK_NOT_SHARED,
            most_cheap=MAX_CHEAP_PROCESS,
            growth=64,  # what is too large is given up there in time
        ),
        loses=lambda _: True,
        fuses=_fails_as_a_whole,
    )
)
register(
    Backend(
        name="executor",
        named=False,
        objects="a concurrent.futures.Executor, a function of no arguments that makes one",
        accepts=_is_executor,
        check=late("fstream._workers.executor:check"),
        prepare=late("fstream._workers.executor:prepare"),
        open=late("fstream._workers.executor:Workers"),
        default_workers=cpu_count,  # `prepare` says how many
        # To hand a span over takes as long as with processes; one more than there are workers is in flight.
        numbers=Numbers(
            shares=lambda workers: 2 * workers,
            span_seconds=PROCESS_SPAN_SECONDS,
            longest_span=LONGEST_SPAN_SECONDS,
            most_cheap=MAX_CHEAP_PROCESS,
        ),
        loses=lambda _: True,
    )
)
