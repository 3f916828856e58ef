"""Idle costs nothing: a pipeline that waits uses no CPU, in the parent and the workers together."""

from __future__ import annotations

import glob
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from fstream import merge, pmap
from tests.faults.faulty import HANG, Gate, as_coroutine, children, eventually, ten

pytestmark = pytest.mark.slow

SECONDS = 1.0
STATED = 0.020
"""Seconds of CPU, promised at most for each idle second."""


def assert_idle() -> None:
    """Fail if this process and its workers do anything for a second."""
    pids = [os.getpid(), *(child.pid for child in children())]

    def used_in(seconds: float) -> float:
        before = sum(time.clock_gettime(cpu_clock(pid)) for pid in pids)
        time.sleep(seconds)
        return sum(time.clock_gettime(cpu_clock(pid)) for pid in pids) - before

    def at_rest() -> bool:
        return used_in(0.05) < STATED * 0.05 and not any_runnable(pids)

    assert eventually(at_rest), "what has just begun never comes to rest"
    before = times_of_threads(pids)
    used = used_in(SECONDS)
    assert used < STATED * SECONDS, (
        f"used {1000 * used:.1f} ms of CPU in {SECONDS} s: {shares(before, times_of_threads(pids))}"
    )


def cpu_clock(pid: int) -> int:
    """The clock of the CPU time of a process, as clock_getcpuclockid(3) gives it on Linux."""
    return (~pid << 3) | 2


def any_runnable(pids: Iterable[int]) -> bool:
    """Tell whether a thread besides this one runs, or would if it had a CPU: a worker that starts on a busy machine."""
    for pid in pids:
        for path in glob.glob(f"/proc/{pid}/task/*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError), open(path) as file:
                state = file.read().rpartition(")")[2].split()[0]
                if state == "R" and int(path.split("/")[-2]) != threading.get_native_id():
                    return True
    return False


def times_of_threads(pids: Iterable[int]) -> dict[tuple[int, int], float]:
    """The seconds of CPU that each thread of some processes has used, as Linux's scheduler counts them."""
    found = {}
    for pid in pids:
        for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError), open(path) as file:
                found[pid, int(path.split("/")[-2])] = int(file.read().split()[0]) / 1e9
    return found


def shares(before: dict[tuple[int, int], float], after: dict[tuple[int, int], float]) -> str:
    """Which threads used how much between the two."""
    names = {(os.getpid(), thread.native_id): thread.name for thread in threading.enumerate()}
    return ", ".join(
        f"{names.get(thread, f'thread {thread[1]} of process {thread[0]}')} {1000 * used:.1f} ms"
        for thread, now in after.items()
        if (used := now - before.get(thread, 0.0)) > 0
    )


def stages(name: str, **options: Any) -> Any:
    """A transformer of the kind, or a row of all kinds."""
    if name == "row":
        first, second, third = (stages(kind, **options) for kind in ("thread", "process", "task"))
        return first | second | third
    f = as_coroutine(ten) if name == "task" else ten
    return pmap(f, kind=name, workers=2, **options)


@pytest.fixture(params=["thread", "process", "task", "row"])
def row(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate(3)
    yield gate
    gate.open()


OPTIONS = [{}, {"timeout": 60}, {"maxsize": 1}, {"ordered": False}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_waiting_for_a_slow_source(row: str, options: dict[str, Any], gate: Gate) -> None:
    stream = stages(row, **options)(gate.guard(range(100)))
    for _ in range(3):
        next(stream)
    assert_idle()
    stream.close()


def test_waiting_for_a_slow_consumer(row: str) -> None:
    with stages(row)(iter(range(1_000_000))) as stream:
        next(stream)
        assert_idle()


def test_waiting_for_an_item_that_takes_long(row: str) -> None:
    def waits_from_third(item: int) -> int:
        if item >= 3:
            released.wait(HANG)
        return item

    released = threading.Event()
    stream = pmap(waits_from_third, kind="thread", timeout=HANG)(range(10)) | stages(row)
    for _ in range(3):
        next(stream)
    assert_idle()
    released.set()
    stream.close()


def test_merged_sources_that_wait(gate: Gate) -> None:
    stream = merge(gate.guard(range(100)), stages("thread")(gate.guard(range(100))))
    for _ in range(3):
        next(stream)
    assert_idle()
    stream.close()


def test_warm_workers() -> None:
    list(stages("process")(range(100)))
    assert children()
    assert_idle()
