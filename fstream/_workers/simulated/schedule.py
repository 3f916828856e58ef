"""One thread that does what many would: actors, of which a schedule says who goes on.

An *actor* is a generator: a worker, a feeder, or whoever takes outputs. Between two of its yields it runs undisturbed.
At each step the first actor of a list goes on that can; the list begins with the consumer and ends with the feeder, so
that by itself an item is through before the next one is pulled. Time is the last of all.

A *stall* of the schedule puts the actor whose turn it is behind all others, time included: as if the system had left
that thread alone for long, until nobody else can go on. Few stalls reach what takes many choices in a
free interleaving ("delay-bounded scheduling", Emmi, Qadeer and Rakamaric, 2011), and what a failure needs of them
says what matters.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from contextvars import Context, copy_context
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, Final, Literal, TypeAlias

__all__ = ["Actor", "Fault", "Schedule", "SimulatedError", "Simulation", "Steps", "waiting"]


#: What an actor yields: None where others may go on, or what tells whether it can itself.
Steps: TypeAlias = Generator[Callable[[], Any] | None, None, Any]

Fault: TypeAlias = Literal["dies", "times out", "raises"]

#: How long f takes, in the simulation's seconds: enough to travel alone, or so little that spans grow.
SLOW: Final = 0.1
CHEAP: Final = 1e-6

#: After how many steps of others an actor goes on at last that could, stalled or not: those who only wait for it get to
#: an end, also if there is no end of work for others.
LONGEST_WAIT: Final = 1000

#: After how many steps of others an actor goes on before those of its rank, one of which may have no end of work.
LONGEST_TURN: Final = 100

#: After how many steps of time, and of those who wait for it, it is taken for a hang that nobody else goes on. A minute
#: of those who look twice in a second is a few hundred.
LONGEST_SILENCE: Final = 10_000

#: The shortest wait, in the simulation's seconds: less would be lost where it is added to the time.
TICK: Final = 1e-9

#: The rank of time: it stands still while anyone can go on.
LAST: Final = 1 << 30

#: How many lines of its trace a simulation shows at the beginning and at the end.
SHOWN: Final = 40


class SimulatedError(Exception):
    """What f raises where a schedule says so."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Who goes on when, in a `simulated` block, and what goes wrong.

    >>> Schedule()
    Schedule(stalls=(), faults=(), ahead=False, cheap=False, transient=False)

    *stalls*: each says for how many steps all goes in order until the next one to go on stalls. Only steps at which
    somebody else could go on count. A worker that stalls in f finishes last; a feeder that stalls falls behind, and
    the others run ahead of a consumer that does.

    *faults*: each says how many calls of f go well until one meets with that fault: ``"dies"``, ``"times out"`` or
    ``"raises"``. A further try is a further call. A fault that cannot be (only processes die, only a stage with a
    time-out has one) raises instead.

    *ahead*: whether the feeder pulls as far as it may before the workers go on, and not only what they wait for.

    *cheap*: whether f takes so little time that items travel in growing spans.

    *transient*: whether faults spare an item that has no try left, so that a stage's *retries* overcome them all.
    """

    stalls: tuple[int, ...] = ()
    faults: tuple[tuple[int, Fault], ...] = ()
    ahead: bool = False
    cheap: bool = False
    transient: bool = False


class Actor:
    """One who takes part: *steps* are run in *context*, the lower its *rank* the sooner."""

    def __init__(
        self,
        name: str,
        rank: int,
        steps: Steps,
        *,
        context: Context | None = None,
        can_go_on: Callable[[], Any] | None = None,
        only_waits: bool = False,
    ) -> None:
        self.name = name
        self.rank = rank
        self.steps = steps
        self.context = context or copy_context()
        #: What it waits for.
        self.can_go_on = can_go_on
        #: It does nothing by itself. Where only such go on, as time passes, nothing comes of it.
        self.only_waits = only_waits
        #: It is at work: its f takes from a stream of its own.
        self.running = self.over = False
        #: Tells whether it would wait for somebody who is at work. All are on one stack: who waits there holds up those
        #: who came before, while in threads of their own they would go on.
        self.is_barred: Callable[[], bool] = lambda: False
        #: It is not in the middle of something.
        self.may_stall = True
        #: At which step it was stalled; 0 while it is not.
        self.stalled = 0
        #: Since which step it could go on, and others did.
        self.passed_over_since: int | None = None
        self.result: Any = None

    def go_on(self) -> None:
        self.running, self.stalled, self.passed_over_since = True, 0, None
        try:
            self.can_go_on = self.context.run(next, self.steps)
        except StopIteration as stop:
            self.over, self.result = True, stop.value
        except BaseException:
            self.over = True
            raise
        finally:
            self.running = False


def _enabled(actor: Actor) -> bool:
    return (
        not actor.running and (actor.can_go_on is None or bool(actor.can_go_on())) and not actor.is_barred()
    )


class Simulation:
    """Actors, their time, and a trace of what happened."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        #: Seconds, of which none passes by itself.
        self.now = 1.0
        #: How long f takes.
        self.pace = CHEAP if schedule.cheap else SLOW
        self.actors: list[Actor] = []
        self.trace: list[str] = []
        #: The runs that were opened in it.
        self.runs: list[Any] = []
        #: Its processes, the pools that have them, by their places, and the pumps of their stages, by their keys.
        self.processes: list[Any] = []
        self.pools: dict[Any, Any] = {}
        self.crews: dict[int, Any] = {}
        #: Why nobody can go on, once it came to that. It is raised again and again, as f may catch it.
        self.hang: AssertionError | None = None
        self._timers: list[tuple[float, int, Callable[[], object], Callable[[], bool]]] = []
        self._numbers = count()
        self._random = Random(0)
        self._steps = 0
        #: For how many steps only those have gone on that wait.
        self._waited = 0
        self._stalls = iter(schedule.stalls)
        self._to_stall = next(self._stalls, None)
        self._faults = iter(schedule.faults)
        self._next_fault = next(self._faults, None)
        self.add(Actor("time", LAST, self._pass_time(), can_go_on=self._next_timer, only_waits=True))

    def clock(self) -> float:
        return self.now

    def draw(self) -> float:
        """Draw a number from 0 to 1, the same ones in each simulation."""
        return self._random.random()

    def log(self, what: str) -> None:
        self.trace.append(what)

    def add(self, actor: Actor) -> None:
        self.actors.append(actor)

    def call_later(
        self, seconds: float, f: Callable[[], object], is_off: Callable[[], bool] = lambda: False
    ) -> None:
        """Call *f* when nobody can go on before, unless it *is_off* by then."""
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), f, is_off))

    def fault(self, spared: bool) -> Fault | None:
        """What the call of f meets with that is about to be made, if the item is not *spared*."""
        if self._next_fault is None:
            return None
        left, fault = self._next_fault
        if left:
            self._next_fault = left - 1, fault
            return None
        if spared and self.schedule.transient:
            return None
        self._next_fault = next(self._faults, None)
        return fault

    # ------------------------------------------------------------------------------------------------- running

    def finish(self, actor: Actor) -> Any:
        """Let all go on until *actor* is through; give what it returned."""
        self.add(actor)
        try:
            while not actor.over:
                self.step()
        finally:
            if actor in self.actors:
                self.actors.remove(actor)
        return actor.result

    def finish_all(self, unfinished: Callable[[], Any]) -> None:
        while unfinished():
            self.step()

    def step(self) -> None:
        """Let one actor go on."""
        self._steps += 1
        enabled = sorted(filter(_enabled, self.actors), key=self._turn)
        first = enabled[0] if len(enabled) > 1 else None
        if first is not None and first.may_stall and not first.stalled and self.stalls(first):
            del enabled[0]
        if not enabled or self._waited > LONGEST_SILENCE:
            self.hang = self.hang or AssertionError("nobody can go on" + self._nested())
            raise self.hang
        actor = enabled[0]
        self._waited = self._waited + 1 if actor.only_waits else 0
        try:
            actor.go_on()
        finally:
            if actor.over and actor in self.actors:
                self.actors.remove(actor)

    def stalls(self, actor: Actor) -> bool:
        """Have *actor*, whose turn it is, stall if the schedule says so, and tell."""
        if self._to_stall == 0:
            actor.stalled = self._steps
            self.log(f"    {actor.name} stalls")
            self._to_stall = next(self._stalls, None)
            return True
        if self._to_stall is not None:
            self._to_stall -= 1
        return False

    def _turn(self, actor: Actor) -> tuple[bool, int, int, bool]:
        if actor.passed_over_since is None:
            actor.passed_over_since = self._steps
        passed_over = self._steps - actor.passed_over_since
        return passed_over <= LONGEST_WAIT, actor.stalled, actor.rank, passed_over <= LONGEST_TURN

    def _nested(self) -> str:
        names = [actor.name for actor in self.actors if actor.running]
        return f", while {' and '.join(names)} takes from a stream of its own" if names else ""

    def _pass_time(self) -> Steps:
        while True:
            when, _, f, _ = heapq.heappop(self._timers)
            self.now = max(self.now, when)  # f takes time, too
            f()
            yield self._next_timer

    def _next_timer(self) -> bool:
        while self._timers and self._timers[0][3]():
            heapq.heappop(self._timers)
        return bool(self._timers)

    def story(self) -> str:
        """What happened, step by step."""
        lines = self.trace
        if len(lines) > 2 * SHOWN:
            left_out = f"  ... {len(lines) - 2 * SHOWN} more ..."
            lines = [*lines[:SHOWN], left_out, *lines[-SHOWN:]]
        return "\n".join([repr(self.schedule), *lines])


def waiting(is_ready: Callable[[], Any], simulation: Simulation, seconds: float | None) -> Steps:
    """Wait until something *is_ready*, for so many *seconds* at most; None is no limit."""
    wait = Wait(is_ready)
    if seconds is not None:
        simulation.call_later(max(seconds, TICK), wait.time_out, lambda: wait.given_up)
    yield wait.is_over
    wait.given_up = True


class Wait:
    """What somebody waits for, and whether it has taken too long."""

    def __init__(self, is_ready: Callable[[], Any]) -> None:
        self.is_ready = is_ready
        self.given_up = self.timed_out = False

    def time_out(self) -> None:
        self.timed_out = True

    def is_over(self) -> bool:
        return self.timed_out or bool(self.is_ready())
