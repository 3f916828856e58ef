"""The leak check: a test leaves no thread, task or busy process behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import time
from collections.abc import Iterator

import pytest

from fstream._workers.process import WARM

SETTLING = 2.0  # seconds that threads, tasks and processes have to be gone after a test


def pending_tasks() -> list[asyncio.Task[object]]:
    """Every task of this process that has not ended, on whatever loop."""
    return [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()]


def leaks(threads: set[threading.Thread]) -> list[str]:
    """What runs now beyond *threads*; warm worker processes, which wait for work, are no leak."""
    found = [f"thread {each.name}" for each in threading.enumerate() if each not in threads]
    found += [f"task {each}" for each in pending_tasks()]
    children, warm = multiprocessing.active_children(), len(WARM)
    if len(children) > warm:
        found.append(f"processes {children}, of which {warm} are warm")
    return found


def check_no_leaks(before: set[threading.Thread]) -> None:
    """Assert that soon nothing runs that did not run *before*."""
    if leaks(before):
        gc.collect()
    deadline = time.monotonic() + SETTLING
    while (found := leaks(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not found, f"left behind: {found}"


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[set[threading.Thread]]:
    """Check that the test leaves nothing behind; gives the threads that were there before it."""
    before = set(threading.enumerate())
    yield before
    check_no_leaks(before)
