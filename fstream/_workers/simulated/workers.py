"""A run without threads, processes and loops: its workers, feeders and consumers are actors of a simulation.

All that decides is the same as ever: windows, spans, buffers, `Run.settle`, `Crew`, `Call`; of processes the pool and
the pumps, too (`processes.py`). What is replaced is what waits and what works. A simulated thread that runs over its
time is abandoned and goes on for nobody. A simulated task runs on a loop that knows no clock but the simulation's, and
no network.

One thread has one stack. So where f or a source iterates a stream of its own, all others go on meanwhile, but whoever
does the same returns first. What a real run would do at that moment, a simulation does a little later; it only cannot
let the outer one go on *because* the inner one blocks.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from fstream._engine.run import Run, StageWorkers
from fstream._flow.buffers import Credits, Work
from fstream._flow.observer import Observer, StageInfo
from fstream._flow.protocols import Buffer
from fstream._flow.span import Closed, Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Batch, Stage
from fstream._workers import sync
from fstream._workers.call import is_failure
from fstream._workers.crew import Crew
from fstream._workers.opening import lay
from fstream._workers.simulated import threads
from fstream._workers.simulated.faults import Faults, FaultyCall, Lost
from fstream._workers.simulated.loop import CONSUMER, Loop
from fstream._workers.simulated.processes import Pump
from fstream._workers.simulated.schedule import Actor, Simulation, Steps
from fstream._workers.simulated.threads import FEEDER
from fstream._workers.task.reach import outside_of_loops
from fstream._workers.task.workers import AsyncCall

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
    lay(run, sources, stages, open_workers, open_feeder, Story(simulation))
    simulation.runs.append(run)
    return run


def open_workers(run: SimulatedRun, stage: Stage, window: Window) -> StageWorkers:
    if stage.kind == "process":
        return Pump(run, stage, window)  # type: ignore[return-value]  # of its queue, `watched` is not set
    return threads.Workers(run, stage, window) if stage.kind == "thread" else Workers(run, stage, window)


def open_feeder(run: SimulatedRun, source: Any) -> Feeder | threads.Feeder:
    is_async = isinstance(source, AsyncIterable) and not isinstance(source, Iterable)
    return Feeder(run, source) if is_async else threads.Feeder(run, source)


class Story(Observer):
    """Tells the simulation's story, as far as it goes by spans."""

    def __init__(self, simulation: Simulation) -> None:
        self.log = simulation.log

    def taken(self, stage: StageInfo, start: int, count: int, worker: int | None) -> None:
        if worker is not None:
            last = f" to {start + count - 1}" if count > 1 else ""
            self.log(f"{stage.name}[{worker}] takes item {start}{last}")


class SimulatedRun(Run):
    """A row of stages whose members are actors."""

    def __init__(self, simulation: Simulation, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop if isinstance(loop, Loop) else None)
        if self.loop is None:
            self.consumer = StandingConsumer()
        self.simulation = simulation
        self.clock = simulation.clock
        self.draw = simulation.draw
        self.ranks = count(-1, -1)
        self.pulled = count()
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

    @cached_property
    def event_loop(self) -> Loop:
        """The loop of its tasks: that of the task which iterates it, or one of its own."""
        return cast(Loop | None, self.loop) or Loop(self.simulation)  # type: ignore[abstract]  # at run time it is not

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


class Queue:
    """The queue of takers that are actors: one of them can go on once `Run.settle` has signalled it."""

    def __init__(self, run: SimulatedRun, buffer: Buffer) -> None:
        self.run = run
        self.buffer = buffer
        self.takers = 0
        self.signalled = self.watched = False
        self.until = 0.0

    def signal(self) -> None:
        self.signalled = True

    def watch(self) -> None:
        self.watched = True
        self.run.simulation.call_later(self.buffer.flush_delay, self._request_flush)

    def _request_flush(self) -> None:
        self.watched = False
        if self.takers:
            self.buffer.request_flush()
            self.run.settle()

    def taking(self) -> Steps:
        """Wait until there is something to take."""
        self.takers += 1
        while True:
            self.signalled = False
            if self.buffer.ready() and (taken := self.buffer.take()) is not None:
                break
            self.run.settle()
            if not self.signalled:
                yield lambda: self.signalled
        self.takers -= 1
        self.run.settle()
        return taken


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


class Member:
    """An actor that is a member of its run."""

    def __init__(self, run: SimulatedRun, name: str, rank: int) -> None:
        self.run = run
        self.simulation = run.simulation
        self.busy = self.abandoned = False
        self.context = run.context.copy()
        #: What it waits for on the run's loop.
        self.task: asyncio.Task[Any] | None = None
        self.actor = Actor(name, rank, self.main(), context=self.context)

    def start(self) -> None:
        self.run.enter(self)
        self.simulation.add(self.actor)

    def log(self, what: str) -> None:
        self.simulation.log(f"{self.actor.name} {what}")

    def join(self, timeout: float) -> None:
        """It has left: there is no more of it."""

    def is_at_work(self) -> bool:
        """Tell whether it is in user code, or would wait for somebody who is."""
        return self.actor.running or self.actor.is_barred()

    def main(self) -> Steps:
        raise NotImplementedError

    def awaited(self, coroutine: Coroutine[Any, Any, Any]) -> Steps:
        """Wait for what a task on the run's loop makes of *coroutine*."""
        self.task = self.run.event_loop.create_task(coroutine, context=self.context)
        yield self.task.done
        task, self.task = self.task, None
        return task.result()

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class Feeder(Member):
    """Iterates one async source, and closes it."""

    def __init__(self, run: SimulatedRun, source: AsyncIterable[Any]) -> None:
        super().__init__(run, "the feeder", CONSUMER + 1 if run.simulation.schedule.ahead else 0)
        self.source: Any = source
        self.credits = Credits(run.feed, run.clock)
        self.queue = Queue(run, self.credits)
        self.closing = False

    def stop(self) -> None:
        """Wake it from a source that blocks."""
        self.credits.halted = True
        if not self.closing:
            self.cancel()

    def main(self) -> Steps:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        credits = 0
        items: Any = None
        source, self.source = self.source, None
        try:
            items = aiter(source)
            del source
            while credits or (credits := (yield from self.grant())):
                yield None
                if credits and self.credits.halted:
                    break
                item = yield from self.awaited(_next(items))
                self.log(f"pulls item {next(run.pulled)}: {reprlib.repr(item)}")
                feed.append(item)
                credits -= 1
                run.settle()
                if self.credits.halted:
                    break
            item = None
        except StopAsyncIteration:
            pass
        except GeneratorExit:  # the simulation is given up
            raise
        except BaseException as raised:
            error = raised
        self.closing = True
        try:
            yield from self.awaited(sync.aclose(items))
        except BaseException as raised:
            error = error or raised
        feed.rest(run.clock())
        feed.ended(credits, error)
        with run.lock:
            run.leave(self)
            run.settle()

    def grant(self) -> Steps:
        feed, clock = self.run.feed, self.run.clock
        feed.blocked += 1
        feed.rest(clock())
        credits = yield from self.queue.taking()
        feed.blocked -= 1
        feed.go_on(clock())
        return 0 if type(credits) is Closed else credits


class Workers(Crew):
    """The workers of one stage, threads or tasks."""

    run: SimulatedRun

    def __init__(self, run: SimulatedRun, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.worker = Worker
        self.queue = Queue(run, Work(window, run.clock))
        self.rank = next(run.ranks)
        self.faults = Faults(run.simulation, stage)
        #: A worker runs ``on_done``: one at a time, so that the last one to be told so is the last.
        self.ending = False

    def start(self) -> None:
        self.add()

    def launch(self, worker: Worker) -> None:
        self.run.simulation.add(worker.actor)

    def replace(self, worker: Worker) -> None:
        self.members.discard(worker)
        if not self.window.exhausted:
            self.add(worker.index)

    def stop(self) -> None:
        """Let those that are in f see that it is over."""
        for worker in self.present():
            worker.stop()

    def present(self) -> list[Worker]:
        """The members, in the same order whenever the same happens."""
        return sorted(self.members, key=lambda worker: worker.index)


class FaultyAsyncCall(FaultyCall, AsyncCall):
    """The same on an event loop."""


class Worker(Member):
    """One worker."""

    run: SimulatedRun

    def __init__(self, crew: Workers, index: int) -> None:
        stage = self.stage = crew.stage
        super().__init__(crew.run, f"{stage.name}[{index}]", crew.rank)
        self.crew = crew
        self.index = index
        self.span: Span | None = None
        self.gone = False
        self.in_f = False
        make = FaultyAsyncCall if stage.kind == "task" else FaultyCall
        self.call = make(stage, index, self.meet_fault, crew.keep)

    def main(self) -> Steps:
        crew = self.crew
        try:
            crew.started(self)
            span: Any = crew.arrived()
            while type(span := span or (yield from crew.queue.taking())) is not Closed:
                crew.recruit()
                yield from self.work(span)
                if self.gone or self.abandoned:
                    break
                span = None
        except (Exception, asyncio.CancelledError) as error:  # its task was cancelled by somebody else
            crew.break_down(error)
        yield from self.end()
        with self.run.lock:
            crew.ended(self)
            self.run.leave(self)

    def is_gone(self) -> bool:
        """It was stopped in f: cancelled, abandoned."""
        return self.gone or self.abandoned

    def work(self, span: Span) -> Steps:
        crew = self.crew
        begun = self.simulation.now
        crew.taken(span, self)
        self.span = span
        self.call.set_place(span)
        self.in_f = True
        fresh = not self.call.started
        try:
            if fresh:
                crew.active += 1
                yield from self.begin()
        except GeneratorExit:  # the simulation is given up
            raise
        except BaseException as error:
            crew.not_begun()
            if not self.is_gone():
                crew.break_down(self.call.named(error), span)
        else:
            if not (fresh and crew.gives_back(span)):
                yield from self.fill(span)
        self.in_f = False
        if not self.is_gone():
            self.span = None
            crew.window.done(span, self.simulation.now - begun)
            self.run.settle()

    def begin(self) -> Steps:
        if isinstance(self.call, AsyncCall):
            yield from self.awaited(self.call.abegin())
        else:
            self.call.begin()

    def fill(self, span: Span) -> Steps:
        slots = span.slots
        while (todo := self.crew.claim(span)) is not None:
            for item in todo:
                yield None
                if self.is_gone():
                    return
                index = span.start + len(slots)
                slot = yield from self.slot_of(item, index, 1 if slots else span.tries + 1)
                self.simulation.now += self.simulation.pace
                yield None  # f takes its time
                if self.is_gone():
                    return
                if is_failure(slot):
                    if not span.closed:  # else it is tried again
                        yield from self.fail(span, slot)
                    return
                slots.append(slot)
                self.log(f"has item {index}: {reprlib.repr(slot)}")
                yield None
                if self.is_gone():
                    return

    def meet_fault(self, item: Any) -> None:
        assert self.span is not None
        index = self.span.start + len(self.span.slots)
        self.crew.faults.meet(index, f"item {index}: {reprlib.repr(item)}", self.log)

    def slot_of(self, item: Any, index: int, tries: int) -> Steps:
        """Run f, and what is done about its failure; give the slot, or a failure, which ends the span."""
        call = self.call
        if isinstance(call, AsyncCall):
            try:
                return (yield from self.awaited(self.slot_on_loop(call, item, index, tries)))
            except asyncio.CancelledError:
                if not self.is_gone():
                    raise
                return None
        try:
            return call.step(item)
        except BaseException as error:
            failure = call.failure(error, item, index, tries)
        return failure if self.sees_to(failure) else self.crew.stands_for(self.crew.failed(failure))

    def sees_to(self, failure: Failure) -> bool:
        """Tell whether ``on_error`` is not asked: the call was lost, or the item is tried again."""
        if type(failure.error) is Lost:
            return True
        assert self.span is not None
        return self.crew.retry(self.span, failure)

    async def slot_on_loop(self, call: AsyncCall, item: Any, index: int, tries: int) -> Any:
        try:
            return await call.step(item)
        except BaseException as error:
            if self.is_gone():
                raise
            failure = call.failure(error, item, index, tries)
            return failure if self.sees_to(failure) else await call.ahandled(self.crew.failed(failure))

    def fail(self, span: Span, failure: Failure) -> Steps:
        """The span ends with *failure*, or with the worker's end."""
        if not isinstance(failure.error, Lost):
            self.crew.fail(failure)
        else:
            assert self.stage.timeout is not None
            self.simulation.call_later(
                self.stage.timeout, lambda: self.run.context.copy().run(self.run_over, span), self.is_gone
            )
            while not (self.is_gone() or self.run.stopped):
                yield lambda: self.is_gone() or self.run.stopped

    def end(self) -> Steps:
        """Run ``on_done``."""
        crew = self.crew
        if self.call.started:
            while crew.ending:
                yield lambda: not crew.ending
            crew.ending = True
            try:
                if isinstance(self.call, AsyncCall):
                    yield from self.awaited(self.call.aend(crew.status()))
                else:
                    self.call.end(crew.status())
            except BaseException as error:
                crew.complain(self.call.named(error))
            crew.ending = False
        crew.members.discard(self)

    def stop(self) -> None:
        """The stage is stopped: a task is cancelled in f; a thread goes on to the end of it."""
        if self.in_f and self.stage.kind != "thread":
            self.gone = True
            self.cancel()

    def run_over(self, span: Span) -> None:
        """Its item is over its time."""
        if self.span is span and not self.run.stopped:
            self.lose(span)

    def lose(self, span: Span) -> None:
        """It is lost in f, to be replaced: a thread is abandoned, a task cancelled."""
        self.abandoned = self.stage.kind == "thread"
        self.gone = not self.abandoned
        self.crew.ended(self, "timed out")
        self.crew.lost(span, self.crew.too_late, len(span.slots))
        self.crew.replace(self)


async def _next(items: Any) -> Any:
    return await anext(items)
