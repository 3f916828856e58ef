"""The leak check: a test leaves no thread, task or busy process behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import pytest

from fstream._workers.process.workers import WARM

SETTLING = 2.0  # seconds that threads, tasks and processes have to be gone after a test


#: How many references there are to the class of tasks besides those of its instances, each of which has one; and those
#: instances that have ended and are kept by somebody.
other_references = 0
ended_tasks: weakref.WeakSet[asyncio.Task[object]] = weakref.WeakSet()


def collect() -> None:
    """Collect garbage here and now: `gc.collect` does nothing while another thread is at it."""
    threads: list[int] = []

    def note(_phase: str, _info: object) -> None:
        threads.append(threading.get_ident())

    gc.callbacks.append(note)
    try:
        while threading.get_ident() not in threads:
            gc.collect()
            time.sleep(0)
    finally:
        gc.callbacks.remove(note)


def copied(objects: Iterable[object]) -> list[object]:
    """Copy a set that other threads change meanwhile: again, as `asyncio.all_tasks` does."""
    while True:
        try:
            return list(objects)
        except RuntimeError:
            continue


def pending_tasks() -> list[asyncio.Task[object]]:
    """Every task of this process that has not ended, on whatever loop."""
    global other_references, ended_tasks
    known: Iterable[object]
    if sys.version_info >= (3, 14):
        # Its list of tasks is one of C's. To look at all objects takes longer than most tests: not where there is none
        # but those that have ended. Of a run of all tests it would take two thirds.
        references = sys.getrefcount(asyncio.Task)
        if references <= other_references + len(ended_tasks):
            return []
        known = [each for each in gc.get_objects() if isinstance(each, asyncio.Task)]
        ended_tasks = weakref.WeakSet(each for each in known if each.done())
        # Of the two the smaller: another thread may have made a task meanwhile, or let go of one.
        other_references = min(references, sys.getrefcount(asyncio.Task)) - len(known)
    else:
        names = ("_all_tasks", "_scheduled_tasks", "_eager_tasks")
        known = chain.from_iterable(copied(vars(asyncio.tasks).get(name, ())) for name in names)
    return [each for each in known if isinstance(each, asyncio.Task) and not each.done()]


@dataclass(frozen=True)
class Running:
    """What runs at one moment, in this process and below it."""

    threads: frozenset[threading.Thread]
    tasks: frozenset[asyncio.Task[object]]
    busy_processes: int

    @classmethod
    def now(cls) -> Running:
        # Warm worker processes wait for work; they are no leak.
        busy = len(multiprocessing.active_children()) - len(WARM)
        return cls(frozenset(threading.enumerate()), frozenset(pending_tasks()), max(0, busy))

    def beyond(self, before: Running) -> str:
        """What runs here and did not *before*; nothing is the empty string."""
        found = [f"thread {each.name}" for each in self.threads - before.threads]
        found += [f"task {each}" for each in self.tasks - before.tasks]
        if self.busy_processes > before.busy_processes:
            found.append(
                f"{self.busy_processes - before.busy_processes} of {multiprocessing.active_children()}"
            )
        return ", ".join(found)


def check_no_leaks(before: Running) -> None:
    """Assert that soon nothing runs that did not run *before*."""
    if Running.now().beyond(before):
        gc.collect()
    deadline = time.monotonic() + SETTLING
    while (found := Running.now().beyond(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found, f"left behind: {found}"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[Running]:
    """Check that the test leaves nothing behind; gives what ran before it."""
    before = Running.now()
    yield before
    check_no_leaks(before)
