"""A run without threads, processes and loops: its workers, feeders and consumers are actors of a simulation.

All that decides is the same as ever: windows, spans, buffers, `Run.settle`, `Crew`, `Call`. What is replaced is what
waits and what works. A simulated process has its own copy of f, as a real one, and sends its slots when its span is
done or the parent asks; it may die. A simulated thread that runs over its time is abandoned and goes on for nobody. A
simulated task runs on a loop that knows no clock but the simulation's, and no network.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine, Generator, Iterable
from contextvars import Context
from dataclasses import dataclass, replace
from inspect import isawaitable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVarTuple, Unpack

from fstream._kernels import DROP
from fstream._queues import PATIENCE, Buffer, Credits, Work
from fstream._run import Run
from fstream._simulation import Actor, Fault, SimulatedError, Simulation, Steps
from fstream._spans import Closed, Failure, Span, Window
from fstream._stage import Stage
from fstream._workers.call import Call, FusedCall, annotate, call_of, describe, handled, is_failure
from fstream._workers.crew import Crew
from fstream._workers.sync import aclose
from fstream._workers.task import AsyncCall
from fstream._workers.wire import dumps, loads
from fstream.errors import NotPicklable, WorkerDied

if TYPE_CHECKING:
    from fstream._run import ConsumerQueue, StageWorkers

__all__ = ["SimulatedRun"]

Ts = TypeVarTuple("Ts")

#: The rank of a consumer; a feeder's is 0, and stages have theirs between.
CONSUMER: Final = -1000


class SimulatedRun(Run):
    """A row of stages whose members are actors."""

    def __init__(self, simulation: Simulation, *arguments: Any) -> None:
        self.simulation = simulation
        self.clock = simulation.clock
        self.ranks = count(-1, -1)
        self.event_loop = Loop(simulation)  # type: ignore[abstract]  # at run time it is not
        self.pulled = count()
        super().__init__(*arguments)
        #: Outputs may come in any order.
        self.unordered = len(self.feeders) > 1 or not all(window.ordered for window in self.windows)
        simulation.runs.append(self)

    def _workers(self, stage: Stage, window: Window) -> StageWorkers:
        return Workers(self, stage, window)

    def _feeder(self, source: Any) -> Any:
        return Feeder(self, source)

    def consumer_queue(self) -> ConsumerQueue:
        queue = ConsumersQueue(self, self.outlet)
        self.queues.insert(0, queue)
        return queue

    def wait(self, timeout: float | None) -> bool:
        """Let all members come to their end."""
        self.simulation.finish_all(lambda: self.members)
        return True


class Queue:
    """The queue of takers that are actors: one of them can go on once `Run.settle` has signalled it."""

    def __init__(self, run: SimulatedRun, buffer: Buffer) -> None:
        self.run = run
        self.buffer = buffer
        self.takers = 0
        self.signalled = self.watched = False

    def signal(self) -> None:
        self.signalled = True

    def watch(self) -> None:
        self.watched = True
        self.run.simulation.call_later(PATIENCE, self._insist)

    def _insist(self) -> None:
        self.watched = False
        if self.takers:
            self.buffer.insist()
            for crew in self.run.crews:
                crew.show_finished()  # type: ignore[attr-defined]
            self.run.settle()

    def taking(self) -> Steps:
        """Wait until there is something to take."""
        self.takers += 1
        while True:
            self.signalled = False
            if self.buffer.ready():
                break
            self.run.settle()
            if not self.signalled:
                yield lambda: self.signalled
        taken = self.buffer.take()
        self.takers -= 1
        self.run.settle()
        return taken


class ConsumersQueue(Queue):
    """The queue of whoever iterates the outputs: all others go on while it waits."""

    def get(self) -> Any:
        simulation = self.run.simulation
        return simulation.finish(Actor("the consumer", CONSUMER, self._taking()))

    def _taking(self) -> Steps:
        yield None  # the others may be ahead
        return (yield from self.taking())


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
        self.queue = Queue(run, Credits(run.feed))

        self.closing = False

    def stop(self) -> None:
        """Wake it from an async source that blocks."""
        if not self.closing:
            self.cancel()

    def main(self) -> Steps:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        credits = 0
        items: Any = None
        source, self.source = self.source, None
        is_async = isinstance(source, AsyncIterable) and not isinstance(source, Iterable)
        try:
            items = aiter(source) if is_async else iter(source)
            del source
            while credits or (credits := (yield from self.grant())):
                yield None
                item = (yield from self.awaited(_next(items))) if is_async else next(items)
                self.log(f"pulls item {next(run.pulled)}: {reprlib.repr(item)}")
                feed.pending.append(item)
                credits -= 1
                run.settle()
                if feed.stopped:
                    break
            item = None
        except (StopIteration, StopAsyncIteration):
            pass
        except BaseException as raised:
            error = raised
        self.closing = True
        try:
            if is_async:
                yield from self.awaited(aclose(items))
            elif isinstance(items, Generator):
                items.close()
        except BaseException as raised:
            error = error or raised
        feed.ended(credits, error)
        with run.lock:
            run.leave(self)

    def grant(self) -> Steps:
        self.run.feed.blocked += 1
        credits = yield from self.queue.taking()
        self.run.feed.blocked -= 1
        return 0 if type(credits) is Closed else credits


class Workers(Crew):
    """The workers of one stage, of any kind."""

    run: SimulatedRun

    def __init__(self, run: SimulatedRun, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.queue = Queue(run, Work(window, run.clock))
        self.rank = next(run.ranks)
        #: How often the item of an index has met with a fault.
        self.faults: dict[int, int] = {}

    def start(self) -> None:
        self.add()

    def add(self, index: int | None = None) -> None:
        """Start a worker, in the place *index* of one that is gone or in the next free one."""
        worker = Worker(self, self.place(index))
        self.members.add(worker)
        worker.start()

    def replace(self, worker: Worker) -> None:
        self.members.discard(worker)
        if not self.window.exhausted:
            self.add(worker.index)

    def stop(self) -> None:
        """Let those that are in f see that it is over."""
        for worker in self.members:
            worker.stop()

    def show_finished(self) -> None:
        """As the reader threads of processes do when they are asked."""
        for worker in self.members:
            worker.send()

    def fault(self, index: int) -> Fault | None:
        """What the item of *index* meets with in f."""
        spared = self.faults.get(index, 0) >= self.stage.retries
        fault = self.run.simulation.fault(spared)
        if fault is None:
            return None
        self.faults[index] = self.faults.get(index, 0) + 1
        if (fault == "dies" and self.stage.kind != "process") or (
            fault == "times out" and self.stage.timeout is None
        ):
            return "raises"
        return fault


@dataclass
class Place:
    """Where a worker is, for ``element_index``."""

    start: int
    slots: list[Any]


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
        if stage.kind == "task":
            self.call = AsyncCall(stage, index)
        elif stage.kind == "thread":
            self.call = Call(stage, index)

    def main(self) -> Steps:
        crew = self.crew
        if self.stage.kind == "process" and not self.load():
            self.leave()
            return
        while not self.used_up() and type(span := (yield from crew.queue.taking())) is not Closed:
            if crew.short_handed():
                crew.add()
            yield from self.work(span)
            if self.gone or self.abandoned:
                break
        if self.used_up():
            crew.replace(self)
        yield from self.end()

    def load(self) -> bool:
        """A process has a stage of its own; handlers stay in the parent."""
        plain = replace(self.stage, on_error="raise")
        try:
            self.call = call_of(loads(dumps(plain)), self.index)
        except Exception as error:
            problem = NotPicklable(
                f"stage {self.stage.name!r} (process): its function cannot be pickled: {error}"
            )
            problem.__cause__ = error
            self.crew.fail(Failure(-1, None, problem))
            return False
        return True

    def is_gone(self) -> bool:
        """It was stopped in f: cancelled, killed, dead."""
        return self.gone

    def used_up(self) -> bool:
        most = self.stage.max_items_per_worker
        return most is not None and self.items >= most

    def work(self, span: Span) -> Steps:
        crew = self.crew
        begun, last = self.simulation.now, span.start + len(span.items) - 1
        self.log(f"takes item {span.start}" + (f" to {last}" if last > span.start else ""))
        self.span, self.slots = span, span.slots if self.stage.kind != "process" else []
        self.call.set_place(Place(span.start, self.slots))
        self.in_f = True
        try:
            if not self.call.started:
                crew.begun += 1
                yield from self.begin()
        except BaseException as error:
            crew.break_down(self.call.named(error), span)
        else:
            yield from self.fill(span)
        self.in_f = False
        if not (self.gone or self.abandoned):
            self.send()
            self.span = None
            crew.window.done(span, self.simulation.now - begun)
            self.run.settle()

    def begin(self) -> Steps:
        if isinstance(self.call, AsyncCall):
            yield from self.awaited(self.call.abegin())
        else:
            self.call.begin()

    def fill(self, span: Span) -> Steps:
        window, stage = self.crew.window, self.stage
        for item in span.todo:
            yield None
            if self.is_gone():
                return
            index = span.start + len(self.slots)
            fault = self.crew.fault(index)
            if fault is None:
                self.log(f"calls f on item {index}: {reprlib.repr(item)}")
            else:
                self.log(f"calls f on item {index}: {reprlib.repr(item)}, which {fault}")
            if fault == "dies":
                self.die(span)
                return
            if fault == "times out":
                assert stage.timeout is not None
                self.simulation.call_later(stage.timeout, lambda: self.run_over(span))
                while not (self.abandoned or self.gone or self.run.stopped):
                    yield lambda: self.abandoned or self.gone or self.run.stopped
                return
            try:
                slot = yield from self.slot_of(item, index, 0 if self.slots else span.tries, fault)
            except asyncio.CancelledError:
                if self.is_gone():
                    return
                raise
            self.simulation.now += self.simulation.pace
            if self.is_gone():
                return
            if is_failure(slot):
                self.send()
                self.crew.fail(slot)
                return
            self.items += 1
            if self.used_up():
                window.give_back(span)
            self.slots.append(slot)
            self.log(f"has item {index}: {reprlib.repr(slot)}")
            yield None
            if self.is_gone():
                return
            if window.hungry and slot is not DROP:
                self.send()
                self.crew.progress()

    def slot_of(self, item: Any, index: int, tries: int, fault: Fault | None) -> Steps:
        """Run f, and what is done about its failure; give the slot, or the failure that stays."""
        call = self.call
        slot: Any
        if isinstance(call, AsyncCall):
            return (yield from self.awaited(self.slot_on_loop(call, item, index, tries, fault)))
        try:
            if fault is not None:
                raise simulated_error(index)
            if self.stage.kind != "process":
                return call.step(item)
            item = loads(dumps(item))
            return loads(dumps(call.step(item)))
        except BaseException as error:
            slot = call.rescue(error, item, index, tries)
        if is_failure(slot):
            if not self.stage.parts:  # else it says so itself
                annotate(slot.error, f"in {describe(self.stage, index, item)}")
            slot = handled(self.stage, slot)
        return slot

    async def slot_on_loop(
        self, call: AsyncCall, item: Any, index: int, tries: int, fault: Fault | None
    ) -> Any:
        try:
            if fault is not None:
                raise simulated_error(index)
            slot = call.step(item)
            return await slot if isawaitable(slot) else slot
        except BaseException as error:
            if self.is_gone():
                raise
            return await call.arescue(error, item, index, tries)

    def send(self) -> None:
        """Give out the slots of a process."""
        span = self.span
        if span is not None and self.slots is not span.slots and not span.closed:
            span.slots.extend(self.slots[len(span.slots) :])

    def end(self) -> Steps:
        """Run ``on_done``, unless there is no process left to run it."""
        crew, call = self.crew, self.call
        if call.started and not self.dead:
            try:
                if isinstance(call, AsyncCall):
                    yield from self.awaited(call.aend(crew.status()))
                else:
                    call.end(crew.status())
            except BaseException as error:
                crew.complain(call.named(error))
        self.leave()

    def leave(self) -> None:
        self.crew.members.discard(self)
        with self.run.lock:
            self.run.leave(self)

    def stop(self) -> None:
        """The stage is stopped: a process in f is killed, a task cancelled; a thread goes on to the end of f."""
        if self.in_f and self.stage.kind != "thread":
            self.gone = True
            self.cancel()

    def die(self, span: Span) -> None:
        self.gone = self.dead = True
        self.crew.begun -= 1
        self.crew.lost(span, self.died, len(self.slots))
        self.crew.replace(self)

    def died(self, failure: Failure) -> BaseException:
        where = describe(self.stage, failure.index, failure.item)
        return WorkerDied(f"{where}: its worker died, as the schedule says", None, failure.item)

    def run_over(self, span: Span) -> None:
        """Its item is over its time."""
        if self.span is not span or self.run.stopped or self.gone:
            return
        self.abandoned = self.stage.kind == "thread"
        self.gone = not self.abandoned
        if self.stage.kind == "process":
            self.dead = True
            self.crew.begun -= 1
        self.crew.lost(span, self.crew.too_late, len(self.slots))
        self.crew.replace(self)


def simulated_error(index: int) -> SimulatedError:
    return SimulatedError(f"f raises at item {index}, as the schedule says")


async def _next(items: Any) -> Any:
    return await anext(items)


class Loop(asyncio.AbstractEventLoop):
    """An event loop that is an actor, and has the simulation's time: enough for tasks, locks, sleeps and time-outs."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.ready: deque[asyncio.Handle] = deque()
        simulation.add(Actor("the event loop", CONSUMER - 1, self.turns(), can_go_on=self.ready.__len__))

    def turns(self) -> Steps:
        while True:
            handle = self.ready.popleft()
            running = asyncio._get_running_loop()
            asyncio._set_running_loop(self)
            try:
                handle._run()
            finally:
                asyncio._set_running_loop(running)
            yield self.ready.__len__

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.simulation.call_later(when - self.time(), lambda: self.ready.append(handle))
        return handle

    def time(self) -> float:
        return self.simulation.now

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays where it is: a cancelled handle does nothing when its time comes."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "handle" in context:
            raise context["exception"]
