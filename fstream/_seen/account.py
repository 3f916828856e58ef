"""What a stream keeps of its own run, for as long as somebody may ask: numbers alone, no item and no output.

A row of stages with workers has one account, and so has each stage of kind "sync", and what merges sources. An account
knows those of the streams upstream, so that the last one tells of the whole pipeline.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from copy import copy
from operator import length_hint
from time import perf_counter
from typing import Any, Protocol

from fstream._engine.run import Run
from fstream._flow.sources import Feed
from fstream._flow.tally import Hold, Tally
from fstream._flow.window import Window
from fstream._plan.stages import Batch, Stage

__all__ = ["Account", "Entry"]


class Here(Protocol):
    """A stage that runs where its outputs are taken."""

    tally: Tally
    observer: Any

    def count(self) -> int: ...

    def seconds(self, now: float) -> tuple[float, float, float]: ...

    def outputs_of(self, came: int) -> int: ...


class Entry:
    """One stage, with its numbers as they were when somebody looked last."""

    def __init__(self, stage: Stage, workers: int, tally: Tally | None = None) -> None:
        self.names = [part.name for part in stage.parts or (stage,)]
        self.kind = stage.kind
        #: The stage that it looks at items for; what it does is not shown by itself.
        self.serves = stage.serves
        self.maxsize = stage.maxsize
        self.ordered = stage.ordered
        self.has_memo = stage.memo is not None
        self.workers = workers
        self.tally = tally or Tally()
        self.taken = self.given = self.held = 0
        #: How many items it is through with: their outputs are out of its hands.
        self.done = 0
        #: The time of all its workers, in seconds, and what of it they were at work, waited for items, and for room.
        self.whole = self.busy = self.starved = self.blocked = 0.0
        #: The CPU time that its threads of this process have used, in seconds.
        self.cpu = 0.0
        #: What of the time in which they waited for items each has held them up, in seconds.
        self.held_up: dict[Hold, float] = {}

    def look(self, window: Window | None, now: float) -> None:
        """Note what is so *now* of a stage that has workers; it has no window once its run has been forgotten."""
        tally, end = self.tally, now
        self.taken, self.given, self.held, busy = tally.taken, tally.given, 0, tally.busy
        self.cpu, self.done = tally.cpu_seconds(), tally.taken
        if window is not None:
            self.done = window.room.gone
            self.workers = window.workers  # a cluster may have more, or fewer, than it had
            pending = len(window.upstream.pending) if isinstance(window.upstream, Feed) else 0
            self.held = window.ledger.next_index - window.room.gone + pending
            # Processes have spans that wait for their turn: the oldest are those at work.
            at_work = sorted(span.begun for span in window.ledger.spans.values() if not span.closed)[
                : self.workers
            ]
            busy += sum(now - begun for begun in at_work) + tally.lone * now - tally.lone_begun
            if window.exhausted and not at_work and not tally.lone:
                end = tally.latest
        whole = 0.0 if tally.began is None else self.workers * (end - tally.began)
        self.divide(max(whole, busy), busy, *tally.waited(end))

    def look_here(self, here: Here, now: float) -> None:
        """The same of a stage that runs in place."""
        tally = self.tally
        self.taken = here.count()
        self.given = max(0, here.outputs_of(self.taken))
        self.held = max(0, self.taken - tally.taken) and 1
        self.done = self.taken - self.held
        starved, busy, blocked = here.seconds(now)
        starved, busy, blocked = tally.starved + starved, tally.busy + busy, tally.blocked + blocked
        self.divide(starved + busy + blocked, busy, starved, blocked)

    def divide(self, whole: float, busy: float, starved: float, blocked: float) -> None:
        """Of the *whole* time workers were *busy*; divide the rest in the ratio in which they were seen to wait."""
        idle, seen = max(0.0, whole - busy), starved + blocked
        self.whole, self.busy = whole, busy
        share = idle / seen if seen > 0 else 0.0
        self.blocked = share * blocked
        self.starved = idle - self.blocked
        self.held_up = {hold: share * seconds for hold, seconds in self.tally.held_up.items()}


class Account:
    """The numbers of one run, and the accounts of those upstream of it."""

    def __init__(self, stages: Iterable[Stage | Batch | None]) -> None:
        stages = list(stages)
        self.entries = [Entry(stage, stage.workers or 0) for stage in stages if isinstance(stage, Stage)]
        #: Its first stage takes lists of items, and not what the source has.
        self.takes_lists = isinstance(next(iter(stages), None), Batch)
        self.sources: list[Account] = []
        #: It is one of another one's sources.
        self.feeds = False
        #: What is at work, as long as it is.
        self.run: weakref.ref[Run] | None = None
        self.here: Here | None = None
        self.clock = perf_counter
        #: When it began and ended, in seconds of its clock.
        self.began: float | None = None
        self.ended: float | None = None
        #: How long its feeders were at their sources, and how long its consumer was away with outputs, and waited for
        #: them: in seconds, as somebody looked last.
        self.pulling = self.away = self.waited = 0.0
        self.feeders = 0
        #: Its stages have workers.
        self.runs_row = True
        #: How many items there will be, if somebody observes and the source says so.
        self.total: int | None = None

    # ------------------------------------------------------------------------------------------- as it happens

    def opens(self, run: Run, sources: list[Any]) -> None:
        """A row is laid, and about to start."""
        self.run, self.clock, self.feeders = weakref.ref(run), run.clock, len(run.feeders)
        self.entries = [
            Entry(crew.stage, crew.window.workers, crew.window.tally)  # type: ignore[attr-defined]
            for crew in run.crews
        ]
        self.begin(run.observer, sources)

    def runs_here(self, here: Here, source: Any) -> None:
        """A stage of kind "sync" starts."""
        self.here, self.runs_row = here, False
        self.entries[0].tally, self.entries[0].workers = here.tally, 1
        self.begin(here.observer, [source])

    def begin(self, observer: Any, sources: list[Any]) -> None:
        self.began = self.clock()
        if observer is not None:
            self.total = None if self.takes_lists else length_of(sources)
            object.__setattr__(observer.run, "account", self)  # before anybody is told of it

    def is_over(self) -> None:
        """The run has ended: keep the numbers as they are."""
        if self.began is not None and self.ended is None:
            self.look()
            for entry in self.entries:
                entry.held = 0
            self.ended, self.run, self.here = self.clock(), None, None

    # ---------------------------------------------------------------------------------------------- when asked

    def up_to_date(self) -> Account:
        """Give a copy that has the numbers of now. Each who asks has one: several threads may ask at a time."""
        account = copy(self)
        account.entries = [copy(entry) for entry in self.entries]
        account.look()
        return account

    def look(self) -> None:
        """Bring the numbers up to date."""
        if self.began is None or self.ended is not None:
            return
        now = self.clock()
        here, of_run = self.here, self.run  # read once: the run may end meanwhile
        run = None if of_run is None else of_run()
        if run is not None and run.pid == os.getpid():  # in a fork nobody releases a lock of the parent
            with run.lock:
                now = self.clock()
                self.look_outside(run, now)
                for entry, window in zip(self.entries, run.windows):
                    entry.look(window, now)
                if self.entries:
                    self.entries[-1].held -= run.outlet.owed  # the consumer has their outputs
                    self.entries[-1].done += run.outlet.owed
        elif here is not None:
            self.entries[0].look_here(here, now)
        elif self.runs_row:
            for entry in self.entries:
                entry.look(None, entry.tally.latest)

    def look_outside(self, run: Run, now: float) -> None:
        """See to the source and the consumer."""
        outlet = run.outlet
        away = outlet.left > outlet.came
        since = now - (outlet.left if away else outlet.came or now)
        self.away, self.waited = outlet.away + since * away, outlet.waited + since * (not away)
        if run.feeders:
            feed = run.feed
            self.pulling = len(run.feeders) * (now - (self.began or now)) - feed.rested - feed.resting * now

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return 0.0 if self.began is None else (self.ended or self.clock()) - self.began

    def walk(self) -> list[Account]:
        """Give the accounts upstream, and this one, from the sources on."""
        walked, todo = [], [self]  # not a recursion: there may be a thousand
        while todo:
            walked.append(account := todo.pop())
            todo += account.sources
        return walked[::-1]


def length_of(sources: list[Any]) -> int | None:
    """How many items *sources* have, if they say so."""
    try:
        lengths = [length_hint(source, -1) for source in sources]
    except Exception:  # it is what the user's own `__len__` raises
        return None
    return sum(lengths) if min(lengths, default=-1) >= 0 else None
