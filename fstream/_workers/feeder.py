"""The thread that iterates a source: it pulls as far as there is room, and closes the source at the end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from fstream._engine.queues import ThreadQueue
from fstream._engine.run import HERE, Run
from fstream._engine.steps import Steps
from fstream._flow.buffers import Credits
from fstream._flow.span import Closed
from fstream._workers.sync import blame

__all__ = ["ThreadFeeder"]


class ThreadFeeder:
    """The thread that iterates one source, and closes it."""

    #: Its source blocks, and the stream was drained.
    abandoned = False

    def __init__(self, run: Run, source: Iterable[Any]) -> None:
        self.run = run
        self.source: Iterable[Any] | None = source
        self.credits = Credits(run.feed, run.clock)
        self.queue = ThreadQueue(self.credits, run.lock, run.settle)
        self.busy = False
        #: The runs that were started by its source, in its thread: streams that it iterates, however wrapped. Under the
        #: lock.
        self.inner: weakref.WeakSet[Run] = weakref.WeakSet()
        self.thread = run.thread_of(self.steps, "feeder")

    def start(self) -> None:
        self.run.launch(self)

    def adopt(self, run: Run) -> None:
        with self.run.lock:  # `stop` may be looking at them
            self.inner.add(run)

    def stop(self) -> None:
        """Wake it from a source that is a stream; another one that blocks cannot be stopped."""
        self.credits.halted = True
        for run in list(self.inner):
            run.blamed = self.run.error
            run.stop()

    def join(self, timeout: float) -> None:
        if self.thread is not threading.current_thread():
            self.thread.join(timeout)

    def be_here(self) -> None:
        """Runs that start in this thread from now on are the source's."""
        HERE.feeder = self

    def steps(self) -> Steps[None]:
        run, feed = self.run, self.run.feed
        error: BaseException | None = None
        items: Any = None
        self.be_here()
        try:
            self.busy = True
            source, self.source = self.source, None
            items = iter(source)  # type: ignore[arg-type]
            del source
            yield from self.grant()
            if self.credits.left:
                yield from self.pull(items)
        except BaseException as raised:
            error = raised
        try:
            blame(items, run.error)
            if isinstance(items, Generator):
                items.close()
            items = None
        except BaseException as raised:
            error = error or raised
        with run.lock:
            feed.rest(run.clock())
            feed.ended(self.credits.given_up(), error)
            run.leave(self)
            run.settle()

    def pull(self, items: Iterator[Any]) -> Steps[None]:
        """Append *items* to the feed as far as there is room, up to their end or the run's."""
        run, feed, mine = self.run, self.run.feed, self.credits
        room = self.part()
        # What a node draws is looked at as it comes, and by whoever waits behind that.
        taker = None if feed.alone or run.windows[0] in run.sorting else run.crews[0].queue
        pending, append = feed.pending, feed.append
        try:
            for item in items:
                append(item)
                room -= 1
                if mine.halted:
                    break
                # Where more was waiting, whoever can take it has been woken for that.
                if len(pending) <= feed.feeders and (taker is None or (taker.takers and not taker.signalled)):
                    with run.lock:
                        run.settle()
                if not room:
                    with run.lock:
                        room = mine.next_part(item)
                    if not room:
                        yield from self.grant()
                        if not (room := self.part()):
                            break
        finally:
            with run.lock:
                mine.put_back(room)

    def part(self) -> int:
        with self.run.lock:
            return self.credits.part()

    def grant(self) -> Steps[None]:
        """Wait for room; there is none if the run is over."""
        feed, lock = self.run.feed, self.run.lock
        with lock:
            self.busy = False
            feed.blocked += 1
            feed.rest(self.run.clock())
        credits = yield from self.queue.taking()
        with lock:
            feed.blocked -= 1
            feed.go_on(self.run.clock())
            self.busy = True
            self.credits.left = 0 if type(credits) is Closed else credits
