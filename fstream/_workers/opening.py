"""Lay a row of stages: sources, windows, workers and outlet, linked to one another, for a run that starts them."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Final, Protocol

from fstream._engine.rates import rate_of
from fstream._engine.reports import reports_of
from fstream._engine.run import SHORT_ROW, Feeder, Run, StageWorkers
from fstream._flow.batching import Batches
from fstream._flow.buffers import Outlet
from fstream._flow.known import Known, Knowns
from fstream._flow.observer import Observer
from fstream._flow.pacing import Clock, Keys, Pacing
from fstream._flow.protocols import Node, Upstream
from fstream._flow.room import Room
from fstream._flow.sources import Feed, Slices, sliceable
from fstream._flow.window import Window
from fstream._plan.fusion import fuse
from fstream._plan.stages import Batch, Stage, has_memo
from fstream._workers.failed import Failed
from fstream._workers.feeder import ThreadFeeder
from fstream._workers.kinds import backend_of, can_fuse
from fstream._workers.memory import Memory
from fstream._workers.sync import is_stream

if TYPE_CHECKING:
    import asyncio

__all__ = ["OPEN", "lay", "open_run"]


def open_run(
    sources: list[Any], stages: list[Stage | Batch], loop: asyncio.AbstractEventLoop | None = None
) -> Run:
    """Make the run of *stages* over *sources*: with real workers, that nobody has started yet."""
    run = Run(loop)
    lay(run, sources, stages, open_workers, open_feeder)
    return run


#: Makes the runs of a context: `fstream.testing` puts its own there.
OPEN: Final[ContextVar[Callable[..., Run]]] = ContextVar("OPEN", default=open_run)


def open_workers(run: Run, stage: Stage, window: Window) -> StageWorkers:
    backend = backend_of(stage)
    assert backend.open is not None
    return backend.open(run, stage, window)


def open_feeder(run: Run, source: Any) -> Feeder:
    if isinstance(source, AsyncIterable) and not isinstance(source, Iterable):
        from fstream._workers.task.feeder import TaskFeeder

        return TaskFeeder(run, source)
    return ThreadFeeder(run, source)


def prepare(stage: Stage) -> Stage:
    """Find what *stage* needs from outside, an executor or a cluster, and see how many workers that has."""
    return backend_of(stage).prepare(stage)


class OpenWorkers(Protocol):
    """Makes the workers of a stage."""

    def __call__(self, run: Any, stage: Stage, window: Window) -> StageWorkers: ...


class OpenFeeder(Protocol):
    """Makes what iterates a source."""

    def __call__(self, run: Any, source: Any) -> Feeder: ...


def workers_of(stage: Stage) -> int:
    return stage.workers or backend_of(stage).default_workers()


def pacing_of(stage: Stage, clock: Clock) -> Pacing:
    keys = None if stage.key is None else Keys(stage.per_key)
    return Pacing(clock, rate_of(stage.rate), keys, ticketed=stage.ticket is not None)


def room_of(stage: Stage) -> Room:
    return Room(stage.maxsize, 2 * workers_of(stage))


def knowns_of(stage: Stage) -> Knowns:
    """What needs no worker of *stage*: what its memo knows, and each `Failed`, which is given out as it is."""
    memo = stage.memo is not None
    return Knowns({Failed: stage.kernel.kept}, lambda: memo or Failed._made)


def looked_up(
    memory: Memory, append: Callable[[Any], None], handing_on: bool, ticketed: bool
) -> Callable[[Any], None]:
    """Give what a feeder does with an item, or with its ticket, where there is a memo."""
    numbers = count()

    def look_up(given: Any) -> None:
        index = next(numbers)
        if handing_on and type(given) is Failed:
            append(given)
            return
        if not ticketed:
            append(memory.arrived(given, index))
        elif type(found := memory.arrived(given.item, index)) is Known:
            found.given = given
            append(found)
        else:
            append(given)

    return look_up


def lay(
    run: Run,
    sources: list[Any],
    stages: list[Stage | Batch],
    open_workers: OpenWorkers,
    open_feeder: OpenFeeder,
    *observers: Observer,
    prepare: Callable[[Stage], Stage] = prepare,
) -> None:
    """Link sources, stages and consumer: each draws from the one before it.

    *prepare* makes a stage ready, before there are workers. *observers* are told of the run, beside those who observe
    this context. If there is no file or thread left for a worker, what was begun is ended.
    """
    try:
        fused = fuse(stages, can_fuse)
        ready = [prepare(stage) if isinstance(stage, Stage) else stage for stage in fused]
        _link(run, sources, ready, open_workers, open_feeder, observers)
    except BaseException:
        if run.memory is not None:
            run.memory.end()
        raise


def _link(
    run: Run,
    sources: list[Any],
    stages: list[Stage | Batch],
    open_workers: OpenWorkers,
    open_feeder: OpenFeeder,
    observers: Sequence[Observer],
) -> None:
    names = [(stage.name, stage.kind, workers_of(stage)) for stage in stages if isinstance(stage, Stage)]
    if (reports := reports_of(names, *observers)) is not None:
        run.observer, run.lock = reports, reports.lock
    first = stages[0] if stages else None
    room = room_of(first) if isinstance(first, Stage) else Room(None, 2 * len(sources))
    memo = first is not None and has_memo(first)
    handing_on = len(sources) > 1 or any(map(is_stream, sources))
    if len(sources) == 1 and stages and not memo and sliceable(sources[0]):
        origin: Slices | Feed = Slices(sources[0])
    else:
        origin = run.feed = Feed(room, len(sources))
        run.feed.alone = not isinstance(first, Stage)
        if memo:
            assert isinstance(first, Stage)
            run.memory = Memory(first)
            run.feed.append = looked_up(run.memory, run.feed.append, handing_on, first.ticket is not None)
        run.feeders = [open_feeder(run, source) for source in sources]
    if reports is not None:
        origin.pulled = partial(reports.pulled, reports.run)
    upstream: Upstream = origin
    run.origin = origin
    nodes: list[Node] = []  # from which the next stage draws
    for number, stage in enumerate(stages):
        if isinstance(stage, Batch):
            upstream = Batches(
                upstream, stage.n, within=stage.within, weighed=stage.weigh is not None, clock=run.clock
            )
            if stage.within is not None:
                nodes.append(upstream)
            handing_on = False  # lists
            continue
        if number:
            room = room_of(stage)
        backend = backend_of(stage)
        window = Window(
            upstream,
            room,
            workers=workers_of(stage),
            ordered=stage.ordered,
            outputs=partial(stage.kernel.outputs, skips=stage.on_error != "raise"),
            one_each=stage.kernel.plain and stage.on_error == "raise",
            numbers=backend.numbers,
            loses=backend.loses(stage) or stage.paced,
            knowns=knowns_of(stage) if stage.memo is not None or handing_on else None,
            pacing=pacing_of(stage, run.clock) if stage.paced else None,
        )
        window.sorting = has_memo(stage)
        handing_on = True
        if window.pacing is not None:
            nodes.append(window)
        # In a long row that would be looked at too often: there they wait for a worker.
        elif (
            window.knowns is not None
            and not stage.ordered
            and (stage.memo is not None or len(stages) <= SHORT_ROW)
        ):
            run.sorting.append(window)
        if reports is not None:
            window.observer, window.info = reports, reports.run.stages[len(run.windows)]
        run.windows.append(window)
        run.crews.append(open_workers(run, stage, window))
        run.nodes_at.append(nodes)
        upstream, nodes = window, []
    run.nodes_at.append(nodes)
    run.nodes += chain.from_iterable(run.nodes_at)
    run.outlet = Outlet(upstream, room, run.clock)
    run.queues += [crew.queue for crew in reversed(run.crews)]
    run.queues += [feeder.queue for feeder in run.feeders]
