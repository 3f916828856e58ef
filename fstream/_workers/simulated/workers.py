"""A run without threads, processes and loops: its workers, feeders and consumers are actors of a simulation.

All that decides is the same as ever: windows, spans, buffers, `Run.settle`, `Crew`, `Call`; of processes the pool and
the pumps, too (`processes.py`), of threads what waits (`threads.py`), and of tasks all (`tasks.py`). A simulated thread
that runs over its time is abandoned and goes on for nobody.

One thread has one stack. So where f or a source iterates a stream of its own, all others go on meanwhile, but whoever
does the same returns first. What a real run would do at that moment, a simulation does a little later; it only cannot
let the outer one go on *because* the inner one blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from fstream._engine.run import Run, StageWorkers
from fstream._flow.observer import Observer, StageInfo
from fstream._flow.window import Window
from fstream._plan.stages import Batch, Stage
from fstream._workers.opening import lay
from fstream._workers.processes import on_its_pool
from fstream._workers.simulated import tasks, threads
from fstream._workers.simulated.loop import CONSUMER, Loop
from fstream._workers.simulated.processes import Pump
from fstream._workers.simulated.schedule import Actor, Simulation, Steps
from fstream._workers.simulated.threads import FEEDER
from fstream._workers.task.host import Cancellable
from fstream._workers.task.reach import outside_of_loops
from fstream._workers.thread import Watch

if TYPE_CHECKING:
    from fstream._engine.run import ConsumerQueue

__all__ = ["open_run"]


def open_run(
    simulation: Simulation,
    sources: list[Any],
    stages: list[Stage | Batch],
    loop: asyncio.AbstractEventLoop | None = None,
) -> SimulatedRun:
    """Make a run whose members are actors of *simulation*."""
    run = SimulatedRun(simulation, loop)
    lay(run, sources, stages, open_workers, open_feeder, Story(simulation), prepare=prepare)
    simulation.runs.append(run)
    return run


def prepare(stage: Stage) -> Stage:
    """Ask a pool how many workers it has. Nothing else is looked for: no executor is opened, no client is needed."""
    return on_its_pool(stage) if stage.kind == "process" else stage


def open_workers(run: SimulatedRun, stage: Stage, window: Window) -> StageWorkers:
    if stage.kind == "process":
        return Pump(run, stage, window)  # type: ignore[return-value]  # of its queue, `watched` is not set
    if stage.kind == "task":
        return tasks.Workers(run, stage, window)
    return threads.Workers(run, stage, window)  # those of executors and clusters, too


def open_feeder(run: SimulatedRun, source: Any) -> tasks.TaskFeeder | threads.Feeder:
    is_async = isinstance(source, AsyncIterable) and not isinstance(source, Iterable)
    return tasks.TaskFeeder(run, source) if is_async else threads.Feeder(run, source)


class Story(Observer):
    """Tells the simulation's story, as far as it goes by spans."""

    def __init__(self, simulation: Simulation) -> None:
        self.log = simulation.log

    def taken(self, stage: StageInfo, start: int, count: int, worker: int | None) -> None:
        if worker is not None:
            last = f" to {start + count - 1}" if count > 1 else ""
            self.log(f"{stage.name}[{worker}] takes item {start}{last}")


class SimulatedRun(tasks.LoopRun):
    """A row of stages whose members are actors."""

    def __init__(self, simulation: Simulation, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(simulation, loop if isinstance(loop, Loop) else None)
        if self.loop is None:
            self.consumer = StandingConsumer()
        self.context.run(FEEDER.set, None)

    @property
    def unordered(self) -> bool:
        """Outputs may come in any order."""
        return len(self.feeders) > 1 or not all(window.outbox.ordered for window in self.windows)

    def thread_of(self, steps: Callable[[], Any], name: str) -> Any:
        return threads.Thread(self, steps, name)

    def consumer_queue(self) -> ConsumerQueue:
        queue = threads.ConsumersQueue(self)
        self.queues.insert(0, queue)
        return queue

    def outer_feeder(self) -> Any:
        return FEEDER.get()

    def is_at_work(self) -> bool:
        """Tell whether one of its members is in user code, or would wait for somebody who is."""
        if self.host is not None and self.event_loop.actor.running:
            return True
        others: Iterable[Any] = (m for m in self.members if not isinstance(m, (Cancellable, Watch)))
        return any(member.is_at_work() for member in others)

    def drop(self) -> None:
        """Stop the run at a step of its own: who collects its stream may be in the middle of anything."""
        self.simulation.add(Actor("the collector of a stream", CONSUMER, self.stopping()))

    def stopping(self) -> Steps:
        self.stop_observed()
        yield None

    def settle_elsewhere(self) -> None:
        self.patient_until = 0.0  # its sources do not block
        self.settle()

    def wait(self, timeout: float | None) -> None:
        """Let all members come to their end, but for those that wait for what others are at."""
        with outside_of_loops():
            self.simulation.finish_all(lambda: any(not member.busy for member in self.members))


class StandingConsumer:
    """An ``async for`` on an event loop of real life. That stands still while the simulation goes on."""

    def queue_of(self, run: Run) -> Any:
        return run.consumer_queue()

    async def take(self, run: Run, queue: Any) -> Any:
        try:
            return run.take(queue)
        except StopIteration:
            return None

    async def close(self, run: Run) -> None:
        run.close()
