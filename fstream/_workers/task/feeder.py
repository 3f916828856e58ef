"""The task that iterates an async source, and closes it."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any

from fstream._flow.buffers import Credits
from fstream._flow.span import Closed
from fstream._workers.sync import aclose
from fstream._workers.task.host import Cancellable, host_of
from fstream._workers.task.queues import TaskQueue

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["TaskFeeder"]


class TaskFeeder(Cancellable):
    """The task that iterates an async source, and closes it."""

    #: Its source blocks, and the stream was drained.
    abandoned = False

    def __init__(self, run: Run, source: AsyncIterable[Any]) -> None:
        self.run = run
        self.host = host_of(run)
        self.source: AsyncIterable[Any] | None = source
        self.credits = Credits(run.feed, run.clock)
        self.queue = TaskQueue(self.credits, run.lock, run.settle)
        self.busy = False
        #: It closes the source, which must not be cancelled.
        self.closing = False

    def join(self, timeout: float) -> None:
        """It has left in its loop's thread, which is joined itself."""

    def start(self) -> None:
        self.run.enter(self)
        self.host.call(self._spawn)

    def _spawn(self) -> None:
        self.task = self.host.spawn(self, self.main(), "fstream-feeder")

    def stop(self) -> None:
        """Wake it from a source that blocks."""
        self.credits.halted = True
        self.host.call(self._cancel)

    def _cancel(self) -> None:
        if not self.closing:
            self.cancel()

    def vanished(self, error: BaseException) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        run = self.run
        with run.lock:
            if self in run.members:
                run.feed.rest(run.clock())
                run.feed.ended(self.credits.given_up(), error)
                run.leave(self)
                run.settle()

    async def main(self) -> None:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        items: Any = None
        mine, room = self.credits, 0
        try:
            source, self.source = self.source, None
            items = aiter(source)  # type: ignore[arg-type]
            del source
            append = feed.append
            if room := await self.grant():
                async for item in items:
                    append(item)
                    room -= 1
                    if len(feed.pending) <= feed.feeders:  # else whoever can take it has been woken
                        with run.lock:
                            run.settle()
                    if mine.halted:
                        break
                    if not room:
                        with run.lock:
                            room = mine.next_part(item)
                        if not room and not (room := await self.grant()):
                            break
            item = None
        except BaseException as raised:
            error = raised
        self.closing = True
        try:
            await aclose(items)
        except BaseException as raised:
            error = error or raised
        with run.lock:
            mine.put_back(room)
        self.end(error)

    async def grant(self) -> int:
        feed, clock = self.run.feed, self.run.clock
        self.came_back()
        feed.blocked += 1
        with self.run.lock:
            feed.rest(clock())
        try:
            credits = await self.queue.get()
        finally:
            feed.blocked -= 1
            with self.run.lock:
                feed.go_on(clock())
        with self.run.lock:
            self.credits.left = 0 if type(credits) is Closed else credits
            return self.credits.part()
