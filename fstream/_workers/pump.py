"""A thread that serves a stage whose workers are somebody else's: it hands spans over, and sees to what comes back.

A *flight* is a span in their hands. What has become of one is brought to the pump's queue by whoever knows first.
"""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from fstream._engine.run import Run
from fstream._flow.buffers import Work
from fstream._flow.window import Window
from fstream._plan.stages import Stage

__all__ = ["FlightPump", "FlightQueue"]


class Pumped(Protocol):
    """The workers of a stage, as a pump sees them."""

    run: Run
    stage: Stage
    window: Window
    queue: FlightQueue
    members: set[Any]
    watch: Any

    def capacity(self) -> bool:
        """One more span may be handed over."""
        ...

    def dispatch(self) -> None:
        """Hand over as many as there are and may be."""
        ...

    def landed(self, flight: Any) -> None:
        """See to what has become of a flight."""
        ...

    def wind_up(self) -> None:
        """Nothing more is to be handed over."""
        ...

    def settle_beside(self) -> None:
        """Wake the takers beside this stage. Under the lock."""
        ...

    def break_down(self, error: BaseException) -> None: ...


class FlightQueue(Work):
    """The queue of a pump and its buffer: flights that have landed, or None, where the pump is to look again."""

    takers = 0
    signalled = False
    until = 0.0
    #: The time, in seconds, at which the pump asks for a flush; None if there is nothing to ask for.
    deadline: float | None = None

    def __init__(self, crew: Pumped) -> None:
        super().__init__(crew.window, crew.run.clock)
        self.buffer = self
        self.crew = crew
        self.news: SimpleQueue[Any] = SimpleQueue()

    def signal(self) -> None:
        self.signalled = True
        self.news.put(None)

    @property
    def watched(self) -> bool:
        return self.deadline is not None

    def watch(self) -> None:
        self.deadline = self.clock() + self.flush_delay
        self.news.put(None)

    def ready(self) -> bool:
        return self.window.exhausted or (self.crew.capacity() and self.window.takable())

    def report_starvation(self, starved: bool) -> bool:
        super().report_starvation(starved and self.crew.capacity())
        return starved

    def can_flush(self) -> bool:
        return self.crew.capacity() and super().can_flush()

    def get(self) -> Any:
        """Wait for news."""
        run = self.crew.run
        with run.lock:
            self.takers, self.signalled = 1, False
            self.crew.settle_beside()
            wait = None if self.deadline is None else max(0.0, self.deadline - self.clock())
        try:
            news = self.news.get(timeout=wait)
        except Empty:
            news = None
        with run.lock:
            self.takers = 0
            if self.deadline is not None and self.clock() >= self.deadline:
                self.deadline = None
                self.request_flush()
                self.crew.settle_beside()
        return news


class FlightPump:
    """The thread."""

    abandoned = busy = False
    begun = None  # there is no time-out for what it does

    def __init__(self, crew: Pumped) -> None:
        self.crew = crew
        self.thread = crew.run.thread(self.main, f"{crew.stage.name}-pump")

    def join(self, timeout: float) -> None:
        if self.thread is not threading.current_thread():
            self.thread.join(timeout)

    def main(self) -> None:
        crew, run = self.crew, self.crew.run
        try:
            while not self.over():
                crew.dispatch()
                if (flight := crew.queue.get()) is not None:
                    crew.landed(flight)
                del flight  # it is not to be kept while the next one is waited for
            with run.lock:
                crew.settle_beside()  # in a long row nobody else tells the next stage of the end
        except BaseException as error:  # a bug of ours: never a hang
            crew.break_down(error)
        self.busy = True  # with what cannot be stopped
        try:
            crew.wind_up()
        finally:
            with run.lock:
                crew.members.discard(self)
                if crew.watch is not None:
                    crew.watch.rouse()
                run.leave(self)

    def over(self) -> bool:
        with self.crew.run.lock:
            return self.crew.window.exhausted
