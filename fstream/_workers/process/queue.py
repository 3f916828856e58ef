"""Where the pump waits."""

from __future__ import annotations

import socket
from math import inf
from time import sleep
from typing import Final, Protocol

from fstream._engine.run import Run
from fstream._flow.buffers import Work
from fstream._flow.tally import Hold
from fstream._flow.window import Window
from fstream._workers.process.link import OURS
from fstream._workers.process.wire import NO_SIGPIPE

__all__ = ["PipeQueue", "PumpWork"]

#: How often the bell is tried, 1 ms apart, while the kernel has no memory for it.
TRIES: Final = 1000


class PipeQueue:
    """The queue of a pump: it waits in its selector, for its workers' sockets and for this queue's bell."""

    def __init__(self, buffer: PumpWork) -> None:
        self.buffer = buffer
        self.takers = 0
        self.signalled = False
        self.until = 0.0
        #: The time, in seconds, at which the pump asks upstream to flush; None if nobody waits for that.
        self.deadline: float | None = None
        self.bell, self._push = socket.socketpair()
        self.bell.setblocking(False)
        self._push.setblocking(False)
        OURS.update((self.bell, self._push))

    def signal(self) -> None:
        self.signalled = True
        self.ring()

    @property
    def watched(self) -> bool:
        return self.deadline is not None

    def watch(self) -> None:
        self.deadline = self.buffer.clock() + self.buffer.flush_delay
        self.ring()

    def ring(self) -> None:
        """Wake the pump, unless the kernel has no memory for that for a whole second."""
        for _ in range(TRIES):
            try:
                self._push.send(b"!", NO_SIGPIPE)
            except OSError:
                if self.settled():
                    return
                sleep(0.001)
            else:
                return

    def settled(self) -> bool:
        """Tell whether a send that failed need not be tried again: the bell rings already, or it is closed."""
        try:
            return bool(self.bell.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        except OSError:
            return True

    def silence(self) -> None:
        try:
            while self.bell.recv(4096):
                pass
        except OSError:
            pass

    def close(self) -> None:
        self._push.close()  # first: there is never one to write to that nobody reads
        self.bell.close()

    def __del__(self) -> None:
        if hasattr(self, "_push"):  # else no socket pair was to be had
            self.close()  # the pump was never started


class QueueOwner(Protocol):
    """Whose queue it is."""

    run: Run
    #: It has seen the window's `flush_requested`, and asks slow workers for what they have finished.
    flush_noticed: bool

    def capacity(self) -> bool:
        """One more span could be sent now, or a worker be started for it."""
        ...

    def in_line(self) -> bool:
        """It has no worker, and waits until others give one back."""
        ...

    def starting(self) -> bool:
        """A worker has items, and has begun none since it got the stage."""
        ...


class PumpWork(Work):
    """A pump's buffer: it can go on if one of its workers can."""

    def __init__(self, crew: QueueOwner, window: Window) -> None:
        super().__init__(window, crew.run.clock)
        self.crew = crew

    def ready(self) -> bool:
        crew, window = self.crew, self.window
        if window.stopped or crew.run.stopped:
            return True
        if window.flush_requested and not crew.flush_noticed:
            return True
        return (window.takable() and crew.capacity()) or window.exhausted

    def report_starvation(self, starved: bool) -> bool:
        in_line = self.crew.in_line()
        super().report_starvation(starved and not in_line and self.crew.capacity())
        if starved and in_line:
            self.window.upstream.grow()
        return starved

    def held_by(self, idle: int, blocked: bool) -> Hold | None:
        """The room may be full because of a worker that starts, and has an item before all others."""
        held = super().held_by(idle, blocked)
        return Hold.WORKERS if held is None and idle and blocked and self.crew.starting() else held

    def can_flush(self) -> bool:  # the pump itself minds the spans of its own workers
        return (self.window.upstream.has_partial or self.window.due < inf) and self.crew.capacity()

    @property
    def flush_delay(self) -> float:
        upstream, left = self.window.upstream, max(0.0, self.window.due - self.clock())
        return min(left, upstream.flush_delay) if upstream.has_partial or left == inf else left

    def request_flush(self) -> None:
        self.window.upstream.request_flush()
