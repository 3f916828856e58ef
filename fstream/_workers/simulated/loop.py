"""An event loop without a clock of its own, and without a network: an actor of a simulation."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, TypeVarTuple, Unpack

from fstream._workers.simulated.schedule import Actor, Simulation, Steps

Ts = TypeVarTuple("Ts")

#: The rank of a consumer; a feeder's is 0, and stages have theirs between.
CONSUMER: Final = -1000


class Loop(asyncio.AbstractEventLoop):
    """An event loop that is an actor, and has the simulation's time: enough for tasks, locks, sleeps and time-outs."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.ready: deque[asyncio.Handle] = deque()
        self.actor = Actor("the event loop", CONSUMER + 2, self.turns(), can_go_on=self.ready.__len__)
        simulation.add(self.actor)

    def turns(self) -> Steps:
        while True:
            for _ in range(len(self.ready)):  # what comes meanwhile is for the next turn
                handle = self.ready.popleft()
                if not handle.cancelled():
                    asyncio._set_running_loop(self)  # nested steps are `outside_of_loops`
                    try:
                        handle._run()
                    finally:
                        asyncio._set_running_loop(None)
            self.actor.may_stall = not self.ready
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
        self.simulation.call_later(when - self.time(), lambda: self.ready.append(handle), handle.cancelled)
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
        """It is off: nobody waits for its time."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "handle" in context:
            raise context["exception"]
