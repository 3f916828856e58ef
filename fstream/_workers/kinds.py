"""The kinds of workers: all that a run, and the checks of options, know of each.

A kind is a `Backend` in the registry. To add one, write a module with a class of `StageWorkers`, and register a backend
that names it. Nothing else has to be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from fstream._flow.sizing import LONGEST_SPAN_SECONDS, MAX_CHEAP_PROCESS, PROCESS_SPAN_SECONDS, Numbers
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.cpus import cpu_count

if TYPE_CHECKING:
    from fstream._engine.run import Run, StageWorkers

__all__ = ["Backend", "backend_of", "register"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of workers."""

    #: What `kind` says.
    name: str
    #: "module:class" of its workers, which is imported when a stage of this kind is opened for the first time: asyncio
    #: and multiprocessing take longer to import than all of fstream.
    workers: str
    #: How many workers a stage has where none are given.
    default_workers: Callable[[], int]
    numbers: Numbers
    #: Tells whether a worker of a stage may be lost in the middle of an item, which is then run again.
    loses: Callable[[Stage], bool]

    def open(self, run: Run, stage: Stage, window: Window) -> StageWorkers:
        module, _, name = self.workers.partition(":")
        workers: StageWorkers = getattr(import_module(module), name)(run, stage, window)
        return workers


_BACKENDS: Final[dict[str, Backend]] = {}


def register(backend: Backend) -> None:
    """Add a kind, or put another in the place of the one of that name."""
    _BACKENDS[backend.name] = backend


def backend_of(stage: Stage) -> Backend:
    return _BACKENDS[stage.kind]


def _timed(stage: Stage) -> bool:
    return stage.timeout is not None


register(
    Backend(
        name="thread",
        workers="fstream._workers.thread:Workers",
        default_workers=lambda: min(32, cpu_count() + 4),
        numbers=Numbers(shares=lambda workers: workers),
        loses=_timed,
    )
)
register(
    Backend(
        name="process",
        workers="fstream._workers.process.workers:Workers",
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
    )
)
register(
    Backend(
        name="task",
        workers="fstream._workers.task.workers:Workers",
        default_workers=lambda: 100,
        # Cheap items on a loop run one after the other however many tasks there are: one task may have them all.
        numbers=Numbers(shares=lambda _: 1),
        loses=_timed,
    )
)
