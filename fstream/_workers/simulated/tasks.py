"""Worker tasks, and feeders that are tasks, on the loop of a simulation: those that ship, and nothing else.

What is added is the turn. A worker waits for it before and after each call of f, a feeder before each item: for an
actor of its name, so that a schedule can stall it while the others on the loop go on.
"""

from __future__ import annotations

import reprlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from functools import cached_property, partial
from itertools import count
from typing import Any, NoReturn, cast

from fstream._engine.run import Run
from fstream._flow.span import Failure
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.call import is_failure
from fstream._workers.simulated.faults import Faults, Lost
from fstream._workers.simulated.loop import CONSUMER, Loop
from fstream._workers.simulated.schedule import Actor, Simulation, Steps
from fstream._workers.sync import aclose
from fstream._workers.task import feeder, workers
from fstream._workers.task.host import Host

__all__ = ["LoopRun", "TaskFeeder", "Workers"]


class LoopRun(Run):
    """A run whose tasks live on a simulated loop."""

    def __init__(self, simulation: Simulation, loop: Loop | None) -> None:
        super().__init__(loop)
        self.simulation = simulation
        self.clock = simulation.clock
        self.draw = simulation.draw
        self.ranks = count(-1, -1)
        #: Feeders come last, or first.
        self.feeders_rank = CONSUMER + 1 if simulation.schedule.ahead else 0
        self.pulled = count()

    @cached_property
    def event_loop(self) -> Loop:
        """The loop of its tasks: that of the task which iterates it, or one of its own."""
        return cast(Loop | None, self.loop) or Loop(self.simulation)  # type: ignore[abstract]  # at run time it is not

    def have_host(self) -> None:
        """Have the tasks live there."""
        if self.host is None:
            self.host = Host(self, self.event_loop)

    def log_pulled(self, item: Any) -> None:
        self.simulation.log(f"the feeder pulls item {next(self.pulled)}: {reprlib.repr(item)}")


class Turn(Actor):
    """An actor that goes on once, for a task that waits until then."""

    def __init__(self, run: LoopRun, name: str, rank: int) -> None:
        super().__init__(name, rank, self.only_step())
        self.simulation = run.simulation
        self.come = run.event_loop.create_future()

    def only_step(self) -> Steps:
        if not self.come.done():  # else the task was cancelled just now
            self.come.set_result(None)
        yield from ()

    async def wait(self) -> None:
        self.simulation.add(self)
        try:
            await self.come
        finally:
            if not self.over:
                self.simulation.actors.remove(self)


class Members(dict[Any, None]):
    """A set that is iterated in the order in which they have come: the same whenever the same happens."""

    def add(self, member: Any) -> None:
        self[member] = None

    def discard(self, member: Any) -> None:
        self.pop(member, None)


class Workers(workers.Workers):
    """The tasks of one stage."""

    run: LoopRun

    def __init__(self, run: LoopRun, stage: Stage, window: Window) -> None:
        run.have_host()
        super().__init__(run, stage, window)
        self.members = Members()  # type: ignore[assignment]  # of a set, this is all that is wanted
        self.worker = Worker
        self.rank = next(run.ranks)
        self.faults = Faults(run.simulation, stage)


class Worker(workers.Worker):
    """One task, which waits for its turns."""

    crew: Workers
    run: LoopRun

    def __init__(self, crew: Workers, index: int) -> None:
        #: F does not come back, as the schedule says.
        self.hangs = False
        super().__init__(crew, index)
        self.call = AsyncCall(self)
        self.simulation = crew.run.simulation
        self.name = f"{crew.stage.name}[{index}]"

    @property
    def busy(self) -> bool:
        """It ends, however late."""
        return False

    @property
    def begun(self) -> float | None:
        """When its item was begun, if that is ever to be over its time: where it hangs, and nowhere else."""
        return self._begun if self.hangs else None

    @begun.setter
    def begun(self, begun: float | None) -> None:
        self._begun = begun

    def log(self, what: str) -> None:
        self.simulation.log(f"{self.name} {what}")

    def log_slot(self, index: int, slot: Any) -> None:
        self.log(f"has item {index}: {reprlib.repr(slot)}")

    async def turn(self) -> None:
        """Wait for its turn. Where f is cheap, it does not wait, and only a stall lets others on the loop go on."""
        turn = Turn(self.run, self.name, self.crew.rank)
        if not self.simulation.schedule.cheap or self.simulation.stalls(turn):
            await turn.wait()

    async def at_work(self, step: Callable[[Any], Any], item: Any) -> Any:
        """Run f on *item*, or fail in its place."""
        place: Any = self.call.place
        index = place.start + len(place.slots)
        if not place.items:  # it is a lone one
            self.log(f"takes item {index}")
        await self.turn()
        try:
            self.crew.faults.meet(index, item, self.log)
            slot = await step(item)
        except Lost:
            await self.hang()
        except Exception:
            await self.take_time()
            raise
        await self.take_time()
        self.log_slot(index, slot)
        return slot

    async def take_time(self) -> None:
        self.simulation.now += self.simulation.pace
        await self.turn()

    async def hang(self) -> NoReturn:
        """Never come back."""
        self.hangs = True
        if self.crew.timer is None:  # it has been over all, and found nobody late
            self.crew.expect()
        while True:
            await self.run.event_loop.create_future()


class AsyncCall(workers.AsyncCall):
    """The f of a worker, which has its turns beside it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        super().__init__(worker.crew.stage, worker.index, worker.crew.keep)

    def wrap(self, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return partial(self.worker.at_work, super().wrap(bound))

    async def ahandled(self, failure: Failure) -> Any:
        slot = await super().ahandled(failure)
        if not is_failure(slot):
            self.worker.log_slot(failure.index, slot)
        return slot


class TaskFeeder(feeder.TaskFeeder):
    """The task that iterates an async source."""

    run: LoopRun

    def __init__(self, run: LoopRun, source: AsyncIterable[Any]) -> None:
        run.have_host()
        super().__init__(run, Pulled(run, source))


class Pulled(AsyncIterator[Any]):
    """An async source: each item is pulled when it is the feeder's turn."""

    def __init__(self, run: LoopRun, source: AsyncIterable[Any]) -> None:
        self.run = run
        self.source: AsyncIterable[Any] | None = source
        self.items: AsyncIterator[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        if self.source is not None:
            self.items, self.source = aiter(self.source), None
        return self

    async def __anext__(self) -> Any:
        assert self.items is not None
        await Turn(self.run, "the feeder", self.run.feeders_rank).wait()
        item = await anext(self.items)
        self.run.log_pulled(item)
        return item

    async def aclose(self) -> None:
        await aclose(self.items)
