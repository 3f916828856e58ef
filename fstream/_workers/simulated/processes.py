"""Worker processes that are actors. Their pool, the pumps and what a process does for its parent are those that ship.

A simulated process has two actors, as a real one has two threads: one reads what the parent says, one runs f. The
messages are the same; what is left out is the system: sockets, selectors, memory that is shared, how a process starts.
All process stages of a simulation share one pool, and those that name a `Processes` share another one. A process whose
f runs pipelines has pools of its own.
"""

from __future__ import annotations

import reprlib
import selectors
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import Context, ContextVar
from math import inf
from typing import Any, Final

from fstream._flow.window import Window
from fstream._plan.stages import Stage
from fstream._workers.call import Call, FusedCall
from fstream._workers.crew import LONGEST_WAIT
from fstream._workers.opening import OPEN
from fstream._workers.process import child, link, pool, pump, queue
from fstream._workers.process.messages import Items, Message, Open, Ready
from fstream._workers.process.surroundings import Surroundings, inherited
from fstream._workers.process.wire import Packed
from fstream._workers.simulated.faults import Faults, FaultyCall, Lost
from fstream._workers.simulated.schedule import Actor, Simulation, Steps, waiting

__all__ = ["Pump"]


#: The simulated process whose code runs; None is the test's own.
HERE: Final[ContextVar[Process | None]] = ContextVar("HERE", default=None)

Sent = tuple[Message, Packed]


class End:
    """One end of the conversation of a process with its parent: what a socket and a `Wire` are together."""

    outward = None

    def __init__(self, other: End | None = None) -> None:
        self.other = other or End(self)
        self.inbox: deque[Sent] = deque()
        self._out: list[Sent] = []
        self.closed = False

    def push(self, message: Message, body: Packed | None = None) -> None:
        self._out.append((message, body or []))

    def flush(self) -> bool:
        if self.closed or self.other.closed:
            raise BrokenPipeError
        self.other.inbox.extend(self._out)
        self._out.clear()
        return True

    def is_readable(self) -> bool:
        return bool(self.inbox) or self.other.closed

    def receive(self) -> Iterator[Sent]:
        if not self.inbox and self.other.closed:
            raise EOFError
        while self.inbox:
            yield self.inbox.popleft()

    def close(self) -> None:
        self.closed = True


class Selector(selectors.BaseSelector):
    """Tells at once which of its ends can be read from; its pump waits as an actor."""

    def __init__(self) -> None:
        self.keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.keys[fileobj] = key = selectors.SelectorKey(fileobj, -1, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self.keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return [(key, selectors.EVENT_READ) for end, key in self.keys.items() if end.is_readable()]

    def is_ready(self) -> bool:
        return any(end.is_readable() for end in self.keys)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self.keys


class Queue(queue.PipeQueue):
    """The queue of a pump, with a bell that is a flag."""

    def __init__(self, buffer: queue.PumpWork) -> None:
        self.buffer = buffer
        self.takers = 0
        self.signalled = self.rung = False
        self.until = 0.0
        self.deadline: float | None = None
        self.bell: Any = self

    def is_readable(self) -> bool:
        return self.rung

    def ring(self) -> None:
        self.rung = True

    def silence(self) -> None:
        self.rung = False

    def close(self) -> None:
        """There is nothing to close."""


class Process:
    """A process as the system knows it: it is there until it ends or is killed."""

    def __init__(self, end: End, simulation: Simulation) -> None:
        self.end_of_wire = end
        self.simulation = simulation
        self.actors: list[Actor] = []
        self.status: int | None = None

    def is_alive(self) -> bool:
        return self.status is None

    def kill(self) -> None:
        self.end(-9)

    def join(self, timeout: float | None = None) -> None:
        """It has ended when it was killed."""

    def end(self, status: int) -> None:
        if self.status is not None:
            return
        self.status = status
        self.end_of_wire.close()
        for actor in self.actors:
            if actor in self.simulation.actors:
                self.simulation.actors.remove(actor)


class Relayed:
    """What a process prints is printed here, where it is."""

    @staticmethod
    def take(message: Message, body: Packed) -> bool:
        return False


class Link(link.Link):
    """A simulated process as its parent holds it."""

    def __init__(self, simulation: Simulation) -> None:
        self.inherited = inherited()
        self.cell: Any = bytearray(child.CELL_SIZE)
        self.wire: Any = End()
        self.sock: Any = self.wire
        self.process: Any = Process(self.wire.other, simulation)
        self.child = Child(self.process, self.wire.other, memoryview(self.cell).cast("q"))
        self.relayed: Any = Relayed()
        self.ready = self.worn = False
        self.owed: list[int] = []
        self.homes: set[Any] = set()

    def state(self, position: int) -> int:
        """It is in f since now, unless it hangs there: time runs out where the schedule says so, and nowhere else."""
        if position == child.SINCE:
            simulation = self.child.simulation
            return int(1e9 * (simulation.now if self.child.hangs_since is None else self.child.hangs_since))
        return super().state(position)

    def idle(self) -> bool:
        return self.process.is_alive()  # type: ignore[no-any-return]

    def sleeps(self) -> bool:
        return self.child.hangs_since is not None or self.child.main.running

    def kill(self) -> int | None:
        self.process.kill()
        self.wire.close()
        return self.process.status  # type: ignore[no-any-return]

    died = buried = kill


class Child(child.Child):
    """The worker's end: its two threads are actors, which go on between two items, and while f is at work."""

    def __init__(self, process: Process, end: End, cell: memoryview) -> None:
        self.end = end
        super().__init__(None, cell)  # type: ignore[arg-type]  # no socket
        self.process = process
        self.simulation = simulation = process.simulation
        self.clock = simulation.clock
        cell[child.DOING], cell[child.SPAN_START] = child.IDLE, -1
        #: Since when its item hangs, in the simulation's seconds.
        self.hangs_since: float | None = None
        #: It begins with a stage, and goes on to its first item at once: else all could be taken back before, again and
        #: again.
        self.opening = False
        #: What the items of its stage meet with.
        self.faults: Faults | None = None
        context, number = self.new_context(), len(simulation.processes)
        simulation.processes.append(process)
        self.reader = Actor(
            f"the reader of process {number}", 0, self.reading(), context=context, can_go_on=end.is_readable
        )
        self.main = Actor(f"process {number}", 0, self.serving(), context=context.copy())
        process.actors += [self.reader, self.main]
        simulation.actors += process.actors

    def new_context(self) -> Context:
        """That of a process: nothing in it is its parent's but that it is simulated."""
        context = Context()
        context.run(OPEN.set, OPEN.get())
        context.run(HERE.set, self.process)
        return context

    def wire_over(self, sock: Any, arena: int | None) -> Any:
        return self.end

    def interrupt_f(self) -> None:
        """F is not interrupted; the main actor looks whether the stage is stopped when it goes on."""

    def enter(self, stage: child.Loaded, surroundings: Surroundings | None) -> None:
        """All are in one world."""

    def leave(self, stage: child.Loaded) -> None:
        """The same."""

    def log(self, what: str) -> None:
        self.simulation.log(f"{self.main.name} {what}")

    # --------------------------------------------------------------------------------------------------- two threads

    def reading(self) -> Steps:
        try:
            while True:
                for message in self.wire.receive():
                    self.sort(message)
                    yield None  # else items that come together with a `Steal` would never be begun
                yield self.end.is_readable
        except (EOFError, BrokenPipeError):
            self.process.end(1 if self.opened else 0)

    def serving(self) -> Steps:
        try:
            self.say(Ready(has_arena=True))
            while True:
                while self.inbox.empty():
                    yield lambda: not self.inbox.empty()
                message = self.inbox.get()
                assert message is not None
                asked, body = message
                if isinstance(asked, Items):
                    yield from self.in_context(self.working(asked, body))
                    yield None
                else:
                    self.heed(message)
                    if not self.opening:
                        yield None
        except BrokenPipeError:  # it was killed, or the parent has no use for it any more
            self.process.end(0)

    def in_context(self, steps: Steps) -> Steps:
        """Run *steps* in the context of the stage."""
        context = self.context
        while True:
            try:
                can_go_on = context.run(next, steps)
            except StopIteration:
                return
            yield can_go_on

    # ---------------------------------------------------------------------------------------------------------- work

    def open(self, asked: Open, body: Packed) -> None:
        crew: Pump = self.simulation.crews[asked.key]
        self.faults = crew.faults
        self.main.name = f"{crew.stage.name}[{asked.worker}]"
        self.reader.name = f"the reader of {self.main.name}"
        self.main.rank = self.reader.rank = crew.rank
        super().open(asked, body)
        self.opening = True

    def make_call(self, shape: Stage, index: int) -> Call | FusedCall:
        parts = shape.parts or (shape,)
        calls = [FaultyCall(parts[0], index, self.meet_fault), *(Call(part, index) for part in parts[1:])]
        return FusedCall(shape, calls) if shape.parts else calls[0]

    def meet_fault(self, item: Any) -> None:
        index = self.start + len(self.slots)
        assert self.faults is not None
        self.faults.meet(index, item, self.log)

    def working(self, asked: Items, body: Packed) -> Steps:
        """As `work`: run a span, and let others go on before and behind each call of f."""
        call = self.begin(asked, body)
        if call is not None and (yield from self.filling(call, asked.tries)):
            self.conclude()

    def filling(self, call: Call | FusedCall, tries: int) -> Steps:
        """As `fill`; give whether the span is done with, and not stopped in the middle."""
        while (todo := self.claim()) is not None:
            for item in todo:
                if not self.opening:
                    yield None
                self.opening = False
                if self.is_stopped():
                    return False
                index = self.start + len(self.slots)
                self.cell[child.DOING] = index
                try:
                    slot = call.step(item)
                except Lost as lost:
                    yield from self.be_lost(lost)
                    return False
                except BaseException as error:
                    failure = self.failed_with(call, error, item, tries)
                    slot, ends = self.failure(failure), call.ends_span(failure)
                else:
                    ends = False
                self.simulation.now += self.simulation.pace
                yield None  # f takes its time
                if self.is_stopped():
                    return False
                self.slots.append(slot)
                self.log(f"has item {index}: {reprlib.repr(slot)}")
                yield None
                if ends:
                    return True
                if self.flush_requested:
                    self.cell[child.DOING] = child.SENDING
                    self.send_finished()
        return True

    def is_stopped(self) -> bool:
        """The stage was stopped, or the process killed, while others went on."""
        return self.stopping or not self.process.is_alive()

    def be_lost(self, lost: Lost) -> Steps:
        """Die in f, or hang there until somebody ends it."""
        if lost.fault == "dies":
            self.process.end(1)
            return
        self.hangs_since = self.simulation.now
        while not self.stopping:
            yield lambda: self.stopping
        self.hangs_since = None


class Pool(pool.Pool):
    """A pool of simulated processes."""

    def __init__(self, simulation: Simulation, most: int | None) -> None:
        super().__init__(most, clock=simulation.clock)
        self.simulation = simulation

    def start(self) -> Link:
        return Link(self.simulation)


class Pump(pump.Pump):
    """The pump of a stage, as an actor."""

    def __init__(self, run: Any, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.rank: int = next(run.ranks)
        self.faults = Faults(run.simulation, stage)
        self.selector: Selector
        #: However far the schedule lets a worker fall behind, it is no reason to kill it.
        self.leaving.stop_seconds = inf

    def find_pool(self) -> pool.Pool:
        engine, simulation = self.stage.engine, self.run.simulation  # type: ignore[attr-defined]
        if engine is not None:
            engine.check_open()
        place = HERE.get(), engine
        if place not in simulation.pools:
            simulation.pools[place] = Pool(simulation, None if engine is None else engine.workers)
        return simulation.pools[place]  # type: ignore[no-any-return]

    def make_queue(self) -> Queue:
        return Queue(queue.PumpWork(self, self.window))

    def make_selector(self) -> Selector:
        return Selector()

    def take_part(self) -> None:
        simulation: Simulation = self.run.simulation  # type: ignore[attr-defined]
        simulation.crews[self.key] = self
        self.run.enter(self)
        name, context = f"the pump of {self.stage.name}", self.run.context.copy()
        simulation.add(Actor(name, self.rank, self.turns(simulation), context=context, only_waits=True))

    def turns(self, simulation: Simulation) -> Steps:
        """Wait where a real pump waits in its selector."""
        for timeout in self.steps():
            if timeout is None or timeout >= LONGEST_WAIT:
                yield self.selector.is_ready
                continue
            yield from waiting(self.selector.is_ready, simulation, timeout)

    def join(self, timeout: float) -> None:
        """It has left: there is no more of it."""

    def is_at_work(self) -> bool:
        """Tell whether f runs in a process that it may wait for."""
        links: list[Any] = [worker.link for worker in self.pool.leases if not worker.new]
        return any(link.child.main.running for link in links)

    def waits_here(self) -> bool:
        return False

    def ignore_interrupts(self) -> None:
        """Its thread is the test's."""
