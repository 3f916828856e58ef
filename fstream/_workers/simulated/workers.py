"""A run without threads, processes and loops: its workers, feeders and consumers are actors of a simulation.

All that decides is the same as ever: windows, spans, buffers, `Run.settle`, `Crew`, `Call`. What is replaced is what
waits and what works. A simulated process has its own copy of f, as a real one, and sends its slots when its span is
done or the parent asks; it may die. A simulated thread that runs over its time is abandoned and goes on for nobody. A
simulated task runs on a loop that knows no clock but the simulation's, and no network.

One thread has one stack. So where f or a source iterates a stream of its own, all others go on meanwhile, but whoever
does the same returns first. What a real run would do at that moment, a simulation does a little later; it only cannot
let the outer one go on *because* the inner one blocks.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections import Counter
from collections.abc import AsyncIterable, Callable, Coroutine, Generator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from fstream._engine.run import Run
from fstream._flow.buffers import Credits, Work
from fstream._flow.observer import Observer, StageInfo
from fstream._flow.protocols import Buffer
from fstream._flow.span import Closed, Failure, Progress, Span
from fstream._flow.window import Window
from fstream._plan.stages import Batch, Stage
from fstream._workers import sync
from fstream._workers.call import Call, FusedCall, is_failure
from fstream._workers.crew import Crew
from fstream._workers.notes import OptionFailed, describe
from fstream._workers.opening import lay
from fstream._workers.process.blame import blame
from fstream._workers.process.errors import decode_error, encode_error
from fstream._workers.process.shape import shape_of
from fstream._workers.process.wire import dumps, loads
from fstream._workers.simulated.loop import CONSUMER, Loop
from fstream._workers.simulated.schedule import Actor, Fault, SimulatedError, Simulation, Steps
from fstream._workers.task.reach import outside_of_loops
from fstream._workers.task.workers import AsyncCall
from fstream.errors import NotPicklable, WorkerDied

if TYPE_CHECKING:
    from fstream._engine.run import ConsumerQueue

__all__ = ["open_run"]


#: The feeder that iterates its source, in the context of that.
FEEDER: Final[ContextVar[Feeder | None]] = ContextVar("FEEDER", default=None)


def open_run(
    simulation: Simulation,
    sources: list[Any],
    stages: list[Stage | Batch],
    loop: asyncio.AbstractEventLoop | None = None,
) -> SimulatedRun:
    """Make a run whose members are actors of *simulation*."""
    run = SimulatedRun(simulation, loop)
    lay(run, sources, stages, Workers, Feeder, Story(simulation))
    simulation.runs.append(run)
    return run


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

    def consumer_queue(self) -> ConsumerQueue:
        queue = ConsumersQueue(self, self.outlet)
        self.queues.insert(0, queue)
        return queue

    def outer_feeder(self) -> Feeder | None:
        return FEEDER.get()

    @cached_property
    def event_loop(self) -> Loop:
        """The loop of its tasks: that of the task which iterates it, or one of its own."""
        return cast(Loop | None, self.loop) or Loop(self.simulation)  # type: ignore[abstract]  # at run time it is not

    def settle_elsewhere(self) -> None:
        self.patient_until = 0.0  # its sources do not block
        self.settle()

    def wait(self, timeout: float | None) -> None:
        """Let all members come to their end."""
        with outside_of_loops():
            self.simulation.finish_all(lambda: self.members)


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
            for crew in self.run.crews:
                cast(Workers, crew).show_finished()
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


class ConsumersQueue(Queue):
    """The queue of whoever iterates the outputs: all others go on while it waits."""

    def get(self) -> Any:
        with outside_of_loops():
            return self.run.simulation.finish(Actor("the consumer", CONSUMER, self._taking()))

    def _taking(self) -> Steps:
        yield None  # the others may be ahead
        return (yield from self.taking())


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
    """Iterates one source, and closes it."""

    def __init__(self, run: SimulatedRun, source: Iterable[Any] | AsyncIterable[Any]) -> None:
        super().__init__(run, "the feeder", CONSUMER + 1 if run.simulation.schedule.ahead else 0)
        self.source: Any = source
        self.credits = Credits(run.feed, run.clock)
        self.queue = Queue(run, self.credits)
        #: The runs that were started by its source: streams that it iterates, however wrapped.
        self.inner: list[SimulatedRun] = []
        self.closing = False
        self.actor.is_barred = self.is_barred

    def adopt(self, run: Run) -> None:
        self.inner.append(cast(SimulatedRun, run))

    def is_barred(self) -> bool:
        """Tell whether somebody is at work in a run that its source takes from, directly or not."""
        members = [cast(Member, member) for run in self.inner for member in run.members]
        return any(member.actor.running or member.actor.is_barred() for member in members)

    def stop(self) -> None:
        """Wake it from a source that is a stream, or an async one that blocks."""
        self.credits.halted = True
        for run in self.inner:
            run.blamed = self.run.error
            run.stop()
        if not self.closing:
            self.cancel()

    def main(self) -> Steps:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        credits = 0
        items: Any = None
        FEEDER.set(self)
        source, self.source = self.source, None
        is_async = isinstance(source, AsyncIterable) and not isinstance(source, Iterable)
        try:
            items = aiter(source) if is_async else iter(source)
            del source
            while credits or (credits := (yield from self.grant())):
                yield None
                if credits and self.credits.halted:
                    break
                item = (yield from self.awaited(_next(items))) if is_async else next(items)
                self.log(f"pulls item {next(run.pulled)}: {reprlib.repr(item)}")
                feed.append(item)
                credits -= 1
                run.settle()
                if self.credits.halted:
                    break
            item = None
        except (StopIteration, StopAsyncIteration):
            pass
        except GeneratorExit:  # the simulation is given up
            raise
        except BaseException as raised:
            error = raised
        self.closing = True
        try:
            if is_async:
                yield from self.awaited(sync.aclose(items))
            elif isinstance(items, Generator):
                sync.blame(items, run.error)
                items.close()
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
    """The workers of one stage, of any kind."""

    run: SimulatedRun

    def __init__(self, run: SimulatedRun, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.worker = Worker
        self.queue = Queue(run, Work(window, run.clock))
        self.rank = next(run.ranks)
        #: How often the item of an index has met with a fault.
        self.faults: Counter[int] = Counter()
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

    def show_finished(self) -> None:
        """As the reader threads of processes do when they are asked."""
        for worker in self.present():
            worker.send()

    def present(self) -> list[Worker]:
        """The members, in the same order whenever the same happens."""
        return sorted(self.members, key=lambda worker: worker.index)

    def fault(self, index: int) -> Fault | None:
        """What the item of *index* meets with in f."""
        first = self.stage.parts[0] if self.stage.parts else self.stage  # f of no other part meets with any
        fault = self.run.simulation.fault(self.faults[index] >= first.retries)
        if fault is None:
            return None
        self.faults[index] += 1
        if (fault == "dies" and first.kind != "process") or (fault == "times out" and first.timeout is None):
            return "raises"
        return fault


class Lost(BaseException):
    """Stands for a call of f from which nothing came back."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


@dataclass
class Place:
    """Where a worker is, for ``element_index`` and ``attempt``."""

    start: int
    slots: list[Any]
    tries: int
    progress: Progress | None


class FaultyCall(Call):
    """One worker's f, which fails where the schedule says so."""

    def __init__(self, stage: Stage, worker: Worker) -> None:
        self.worker = worker
        super().__init__(stage, worker.index, None if stage.kind == "process" else worker.crew.keep)

    def wrap(self, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
        step, worker = super().wrap(bound), self.worker

        def faulty(item: Any) -> Any:
            worker.meet_fault(item)
            return step(item)

        return faulty


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
        #: A process's slots, until they are sent; others append to the span itself.
        self.slots: list[Any] = []
        self.items = 0
        self.gone = False
        #: It has no ``on_done``: it died in f.
        self.dead = False
        self.in_f = False
        self.call: Call | FusedCall
        self.call = FaultyAsyncCall(stage, self) if stage.kind == "task" else FaultyCall(stage, self)

    def main(self) -> Steps:
        crew = self.crew
        try:
            if self.stage.kind == "process":
                self.load()
            crew.started(self)
            span: Any = crew.arrived()
            while not self.used_up() and type(span := span or (yield from crew.queue.taking())) is not Closed:
                crew.recruit()
                yield from self.work(span)
                if self.gone or self.abandoned:
                    break
                span = None
        except (Exception, asyncio.CancelledError) as error:  # its task was cancelled by somebody else
            crew.break_down(error)
        replaced = self.gone or self.abandoned
        yield from self.end()
        if self.used_up() and not replaced:
            crew.replace(self)
        with self.run.lock:
            crew.ended(self)
            self.run.leave(self)

    def load(self) -> None:
        """A process has a stage of its own; handlers stay in the parent."""
        shape = shape_of(self.stage)
        try:
            stage: Stage = loads(dumps(shape))
        except Exception as error:
            problem = NotPicklable(blame(shape, error))
            problem.__cause__ = error
            self.crew.fail(Failure(-1, None, problem))
            return
        parts = stage.parts or (stage,)
        calls = [FaultyCall(parts[0], self), *(Call(part, self.index) for part in parts[1:])]
        self.call = FusedCall(stage, calls) if stage.parts else calls[0]

    def not_picklable(self, what: str, error: Exception) -> NotPicklable:
        problem = NotPicklable(f"{what} cannot be pickled: {error}")
        problem.__cause__ = error
        return problem

    def is_gone(self) -> bool:
        """It was stopped in f: cancelled, killed, dead, abandoned."""
        return self.gone or self.abandoned

    def used_up(self) -> bool:
        most = self.stage.max_items_per_worker
        return most is not None and self.items >= most

    def work(self, span: Span) -> Steps:
        crew = self.crew
        begun = self.simulation.now
        crew.taken(span, self)
        self.span, self.slots = span, span.slots if self.stage.kind != "process" else []
        span.filled = self.slots
        self.call.set_place(Place(span.start, self.slots, span.tries, span.progress))
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
            self.send()
            self.span = None
            if isinstance(self.call, FusedCall) and (parts := self.call.counted()):
                assert crew.window.tally.parts is not None
                crew.window.tally.parts.add(parts)
            crew.window.done(span, self.simulation.now - begun)
            self.run.settle()

    def begin(self) -> Steps:
        if isinstance(self.call, AsyncCall):
            yield from self.awaited(self.call.abegin())
        else:
            self.call.begin()

    def fill(self, span: Span) -> Steps:
        window = self.crew.window
        while len(self.slots) < len(span.items) and (todo := window.claim(span)):
            for item in todo:
                yield None
                if self.is_gone():
                    return
                index = span.start + len(self.slots)
                slot = yield from self.slot_of(item, index, 1 if self.slots else span.tries + 1)
                self.simulation.now += self.simulation.pace
                yield None  # f takes its time
                if self.is_gone():
                    return
                if is_failure(slot):
                    if not span.closed:  # else it is tried again
                        yield from self.fail(span, slot)
                    return
                self.items += 1
                if self.used_up():
                    window.ledger.steal_from(span)
                self.slots.append(slot)
                self.log(f"has item {index}: {reprlib.repr(slot)}")
                yield None
                if self.is_gone():
                    return
                if window.flush_requested:  # a process is asked
                    self.send()
                    if window.available():
                        window.flush_requested = False
                    self.run.settle()

    def meet_fault(self, item: Any) -> None:
        """Fail in the place of f, if the schedule says so."""
        assert self.span is not None
        index = self.span.start + len(self.slots)
        fault = self.crew.fault(index)
        what = f"calls f on item {index}: {reprlib.repr(item)}"
        self.log(what if fault is None else f"{what}, which {fault}")
        if fault == "raises":
            raise SimulatedError(f"f raises at item {index}, as the schedule says")
        if fault is not None:
            raise Lost(fault)

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
        slot: Any
        if self.stage.kind == "process":
            slot = self.slot_of_process(call, item, index, tries)
        else:
            try:
                return call.step(item)
            except BaseException as error:
                slot = call.failure(error, item, index, tries)
        if is_failure(slot) and not self.sees_to(slot):
            slot = self.crew.stands_for(self.crew.failed(slot))
        return slot

    def sees_to(self, failure: Failure) -> bool:
        """Tell whether ``on_error`` is not asked: the call was lost, or the item is tried again."""
        if type(failure.error) is Lost:
            return True
        self.send()
        assert self.span is not None
        return self.crew.retry(self.span, failure) or self.crew.looks_up(self.span, failure)

    def slot_of_process(self, call: Call | FusedCall, item: Any, index: int, tries: int) -> Any:
        """The same of copies, as what a process gets and gives is pickled."""
        where = describe(self.stage, index, item)
        try:
            own = loads(dumps(item))
        except Exception as error:
            return Failure(index, item, self.not_picklable(f"{where}: item", error))
        try:
            slot = call.step(own)
        except BaseException as error:
            slot = call.failure(error, own, index, tries)
        if is_failure(slot):
            if type(slot.error) is not Lost:
                slot.error = decode_error(encode_error(slot.error))
            slot.item = loads(dumps(slot.item)) if slot.part else item
            assert self.span is not None
            self.crew.recall(self.span, slot)
            return slot
        try:
            came = loads(dumps(slot))
        except Exception as error:
            problem = self.not_picklable(f"{where}: its output, of type {type(slot).__name__},", error)
            failure = Failure(0, None, problem)
            self.send()
            assert self.span is not None
            self.crew.locate(self.span, failure, -1)
            return failure
        try:
            if self.crew.keep is not None:
                self.crew.keep(index, came)
        except OptionFailed as failed:
            return call.failure(failed, item, index, tries)
        return came

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
        lost = failure.error
        if not isinstance(lost, Lost):
            self.send()
            self.crew.fail(failure)
        elif lost.fault == "dies":
            self.lose(span, self.died)
        else:
            assert self.stage.timeout is not None
            self.simulation.call_later(
                self.stage.timeout, lambda: self.run.context.copy().run(self.run_over, span), self.is_gone
            )
            while not (self.is_gone() or self.run.stopped):
                yield lambda: self.is_gone() or self.run.stopped

    def send(self) -> None:
        """Give out the slots of a process."""
        span = self.span
        if span is not None and self.slots is not span.slots and not span.closed:
            span.slots.extend(self.slots[len(span.slots) :])

    def end(self) -> Steps:
        """Run ``on_done``, unless there is no process left to run it."""
        crew = self.crew
        if self.call.started and not self.dead:
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
        """The stage is stopped: a process in f is killed, a task cancelled; a thread goes on to the end of f."""
        if self.in_f and self.stage.kind != "thread":
            self.gone = True
            self.cancel()

    def run_over(self, span: Span) -> None:
        """Its item is over its time."""
        if self.span is span and not self.run.stopped:
            self.lose(span, self.crew.too_late)

    def lose(self, span: Span, error_of: Callable[[Failure], BaseException]) -> None:
        """It is lost in f, to be replaced: a thread is abandoned, a process dead."""
        self.abandoned = self.stage.kind == "thread"
        self.gone = not self.abandoned
        if self.stage.kind == "process":
            self.dead = True
            self.crew.not_begun()
        self.crew.ended(self, "died" if self.dead and error_of == self.died else "timed out")
        self.crew.lost(span, error_of, len(self.slots))
        self.crew.replace(self)

    def died(self, failure: Failure) -> BaseException:
        where = describe(self.stage, failure.index, failure.item)
        return WorkerDied(f"{where}: its worker died, as the schedule says", None, failure.item)


async def _next(items: Any) -> Any:
    return await anext(items)
