"""What a run tells its observers: noted where it happens, passed on while the run's lock is free.

An observer is user code. Under the run's lock it would stop all workers for as long as it takes, and for ever if it
takes from a stream whose workers need that lock. So what happens is noted in a queue. Whoever has noted something
passes on what is there once it has released the lock; one thread at a time, so that an observer needs no lock and
hears everything in order. Others that come meanwhile leave their notes to that thread, and go on.

Invariant: only who has noted something itself passes on anything. `Run.stop` and `Run.drop` note nothing: they are
called with the lock of another run held, or by the garbage collector in the middle of anything.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from itertools import count
from typing import Any, Final

from fstream._flow.observer import CALLS, OBSERVERS, HowEnded, Observer, RunInfo, StageInfo

__all__ = ["Reports", "reports_of"]


_NUMBERS: Final = count()


class Reports(Observer):
    """The observer that a run calls: it passes on each call to *observers*."""

    #: How long the end of a run waits for a call that is under way in another thread, in seconds.
    GRACE: Final = 0.25

    def __init__(self, observers: tuple[Observer, ...], stages: Iterable[tuple[str, str, int]]) -> None:
        number = next(_NUMBERS)
        self.run = RunInfo(number, tuple(StageInfo(number, n, *stage) for n, stage in enumerate(stages)))
        self.observers = list(observers)
        self.lock = ReportingLock(self)
        self.calls: deque[tuple[str, tuple[Any, ...]]] = deque()
        #: Held by who passes them on.
        self.turn = threading.Lock()
        #: The workers that have started and not ended.
        self.working: dict[Hashable, tuple[StageInfo, int]] = {}
        #: What the run ended with, if it did.
        self.error: BaseException | None = None
        self.over = False
        for name in CALLS:
            if any(hears(each, name) for each in observers):
                setattr(self, name, partial(self.note, name))

    def note(self, name: str, *said: Any) -> None:
        with self.lock:
            if not self.over:
                self.calls.append((name, said))
                self.lock.noted = True

    def pass_on(self) -> None:
        """Make the calls, unless another thread does: that one sees those that come meanwhile."""
        while self.calls and self.turn.acquire(blocking=False):
            try:
                self.call_observers()
            finally:
                self.turn.release()

    def call_observers(self) -> None:
        token = OBSERVERS.set(())  # else a stream that an observer iterates would be observed
        try:
            while self.calls:
                name, said = self.calls.popleft()
                for observer in self.observers[:]:
                    try:
                        getattr(observer, name)(*said)
                    except (Exception, GeneratorExit):  # what is given up is the observer, and no thread
                        self.observers.remove(observer)
                        self.complain(observer, name)
        finally:
            OBSERVERS.reset(token)

    def complain(self, observer: Observer, name: str) -> None:
        import logging  # late: it takes longer to import than all of fstream

        logging.getLogger("fstream").exception(
            "%s.%s raised: this observer is told nothing more of run %d",
            type(observer).__name__, name, self.run.number,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------- workers and ends

    def started(self, worker: Hashable, stage: StageInfo, index: int) -> None:
        """The *worker* of this *index* has started."""
        with self.lock:
            self.working[worker] = stage, index
            self.worker_started(stage, index)

    def ended(self, worker: Hashable, how: HowEnded) -> None:
        """It has ended; nothing if it had not started, or had ended already."""
        with self.lock:
            if (known := self.working.pop(worker, None)) is not None:
                self.worker_ended(*known, how)

    def close(self) -> None:
        """The run is over, if it was not: say so, and see that all is passed on. Not with the lock held."""
        with self.lock:
            self.end()
        if self.turn.acquire(timeout=self.GRACE):
            self.turn.release()
        self.pass_on()

    def end(self) -> None:
        """The run is over. Under the lock."""
        if self.over:
            return
        for worker in list(self.working):
            self.ended(worker, "left")
        self.run_ended(self.run, self.error)
        self.over, self.error = True, None


def hears(observer: Observer, name: str) -> bool:
    """Tell whether *observer* has a method of this name of its own: the others need not be noted."""
    method = getattr(observer, name)
    return getattr(method, "__func__", None) is not getattr(Observer, name)


class ReportingLock(type(threading.RLock())):  # type: ignore[misc]  # it is a class, of another name on each Python
    """The lock of a run that is observed: who has noted something passes it on when it has released it."""

    def __init__(self, reports: Reports) -> None:
        super().__init__()
        self.pass_on: Callable[[], None] = reports.pass_on
        #: Who has the lock has noted something.
        self.noted = False

    def __new__(cls, _reports: Reports) -> ReportingLock:
        return super().__new__(cls)  # type: ignore[no-any-return]

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        noted, self.noted = self.noted, False
        super().release()
        if not noted:
            return
        if self._is_owned():  # by an outer block
            self.noted = True
        else:
            self.pass_on()


def reports_of(stages: Iterable[tuple[str, str, int]], *more: Observer) -> Reports | None:
    """Make the reports of a run that is opened here, and tell that it is; None if nobody observes it.

    Of each stage: its name, its kind, how many workers it may have. *more* are told, too, and first.
    """
    observers = (*more, *OBSERVERS.get())
    if not observers:
        return None
    reports = Reports(observers, stages)
    reports.calls.append(
        ("run_opened", (reports.run,))
    )  # passed on later: a run is opened with signals held off
    return reports
