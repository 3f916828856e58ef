"""Threads that are actors: workers, their watch, and what iterates a source. What they do is what ships.

A thread says what it waits for (`fstream._engine.steps`). Here others go on meanwhile; and also between two items, and
while f is at work.
"""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Final

from fstream._engine import steps
from fstream._engine.queues import ThreadQueue
from fstream._engine.run import Run
from fstream._flow.span import Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers import feeder
from fstream._workers import thread as real
from fstream._workers.call import Call, is_failure
from fstream._workers.simulated.faults import Faults, FaultyCall, Lost
from fstream._workers.simulated.loop import CONSUMER
from fstream._workers.simulated.schedule import Actor, Simulation, Steps, waiting
from fstream._workers.task.reach import outside_of_loops

__all__ = ["FEEDER", "ConsumersQueue", "Feeder", "Thread", "Workers"]


#: The feeder that iterates its source, in the context of that.
FEEDER: Final[ContextVar[Any]] = ContextVar("FEEDER", default=None)


def in_turns(whole: Generator[Any, Any, Any], simulation: Simulation) -> Steps:
    """Run the steps of a thread as those of an actor: it can go on once it has what it waits for, or waited too long.

    Where it yields no lock to wait for, it is between two items, or in f.
    """
    acquired = None
    try:
        while True:
            wait = whole.send(acquired)
            if type(wait) is tuple:
                lock, seconds = wait
                acquired = yield from acquiring(lock, seconds, simulation)
            else:
                yield wait
                acquired = None
    except StopIteration as stop:
        return stop.value


def acquiring(lock: threading.Lock, seconds: float, simulation: Simulation) -> Steps:
    """Wait for *lock*, for so many *seconds*; give whether it was acquired."""
    yield from waiting(lambda: not lock.locked(), simulation, seconds if seconds >= 0 else None)
    return lock.acquire(False)


class Thread(Actor):
    """A thread of a run."""

    def __init__(self, run: Any, whole: Callable[[], steps.Steps[None]], name: str) -> None:
        self.simulation = run.simulation
        super().__init__(name, CONSUMER, self.acting(whole), context=run.context.copy(), only_waits=True)

    def acting(self, whole: Callable[[], steps.Steps[None]]) -> Steps:
        return (yield from in_turns(whole(), self.simulation))

    def start(self) -> None:
        self.simulation.add(self)

    def join(self, timeout: float) -> None:
        """It has left: there is no more of it."""


class ConsumersQueue(ThreadQueue):
    """The queue of whoever iterates the outputs: all others go on while it waits."""

    def __init__(self, run: Any) -> None:
        super().__init__(run.outlet, run.lock, run.settle)
        self.simulation = run.simulation

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        with outside_of_loops():
            return self.simulation.finish(Actor("the consumer", CONSUMER, self.acting()))

    def acting(self) -> Steps:
        yield None  # the others may be ahead
        return (yield from in_turns(self.taking(), self.simulation))


class Awaited:
    """A member that is never too busy to be waited for: f takes no time but the simulation's."""

    @property
    def busy(self) -> bool:
        return False

    @busy.setter
    def busy(self, busy: bool) -> None: ...


class Feeder(Awaited, feeder.ThreadFeeder):
    """Iterates one source, an item at a time."""

    run: Any
    thread: Thread  # type: ignore[assignment]

    def __init__(self, run: Any, source: Iterable[Any]) -> None:
        super().__init__(run, source)
        #: In the order in which they came: a set would have another one each time.
        self.inner: list[Any] = []  # type: ignore[assignment]
        self.thread.name, self.thread.only_waits = "the feeder", False
        self.thread.rank = run.feeders_rank
        self.thread.is_barred = self.is_barred

    def be_here(self) -> None:
        FEEDER.set(self)

    def adopt(self, run: Run) -> None:
        self.inner.append(run)

    def is_at_work(self) -> bool:
        """Tell whether it is in user code, or would wait for somebody who is."""
        return self.thread.running or self.is_barred()

    def is_barred(self) -> bool:
        """Tell whether somebody is at work in a run that its source takes from, directly or not."""
        return any(run.is_at_work() for run in self.inner)

    def pull(self, items: Iterator[Any]) -> steps.Steps[None]:
        while self.credits.left:
            yield None  # type: ignore[misc]
            if self.credits.halted:
                return
            try:
                item = next(items)
            except StopIteration:
                return
            self.run.log_pulled(item)
            yield from super().pull(iter([item]))


class Workers(real.Workers):
    """The threads of one stage."""

    run: Any

    def __init__(self, run: Any, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.worker = Worker
        self.rank = next(run.ranks)
        self.faults = Faults(run.simulation, stage)

    def counted(self) -> AbstractContextManager[None]:
        return nullcontext()


class Worker(Awaited, real.Worker):
    """One worker."""

    crew: Workers
    run: Any
    thread: Thread  # type: ignore[assignment]

    def __init__(self, crew: Workers, index: int) -> None:
        #: Since when its item hangs, in the simulation's seconds; None if it does not.
        self.hangs_since: float | None = None
        self.at_work = False
        super().__init__(crew, index)
        self.simulation = crew.run.simulation
        self.thread.name, self.thread.only_waits = f"{crew.stage.name}[{index}]", False
        self.thread.rank = crew.rank

    def make_call(self, crew: real.Workers, index: int) -> Call:
        return FaultyCall(crew.stage, index, self.meet_fault, crew.keep)

    @property
    def begun(self) -> float | None:
        """Its item is begun now, unless it hangs: time runs out where the schedule says so, and nowhere else."""
        if not self.at_work:
            return None
        return self.simulation.now if self.hangs_since is None else self.hangs_since

    @begun.setter
    def begun(self, begun: float | None) -> None:
        self.at_work = begun is not None

    def is_at_work(self) -> bool:
        return self.thread.running

    def meet_fault(self, item: Any) -> None:
        assert self.span is not None
        index = self.span.start + len(self.span.slots)
        self.crew.faults.meet(index, item, self.log)

    def log(self, what: str) -> None:
        self.simulation.log(f"{self.thread.name} {what}")

    def fill(self, span: Span) -> Steps:
        """As it ships, and let others go on before and behind each call of f."""
        step, slots = self.means(span)
        while (todo := self.claim(span)) is not None:
            for item in todo:
                yield None
                index = span.start + len(span.slots)
                error: BaseException | None = None
                try:
                    slot = step(item)
                except BaseException as raised:
                    error = raised
                self.simulation.now += self.simulation.pace
                yield None  # f takes its time
                if type(error) is Lost:
                    yield from self.hang()
                    if not self.abandoned:
                        return
                if error is not None:
                    slot = self.failed(error, item, span)
                    if is_failure(slot):
                        return
                slots.append(slot)
                if not self.abandoned:
                    self.log(f"has item {index}: {reprlib.repr(slot)}")
                yield None

    def hang(self) -> Steps:
        """Hang in f until nobody waits for that any more."""
        self.hangs_since = self.simulation.now
        yield lambda: self.abandoned or self.run.stopped
        self.hangs_since = None
