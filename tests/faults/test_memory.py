"""Memory stays flat: what is held does not grow with the number of items, nor with a slow consumer.

Each measurement runs in an interpreter of its own, whose peak is that of the pipeline alone.
`FSTREAM_SLOW=1` makes it ten million items.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.faulty import HAS_GIL
from tests.scripts import environment_with, write_script

SLOW = bool(os.environ.get("FSTREAM_SLOW"))
pytestmark = [pytest.mark.timeout(1200 if SLOW else 240), pytest.mark.slow]

MEBIBYTE = 1024  # in the kibibytes that Linux counts in
#: Without the GIL objects are larger, and each thread has a heap of its own.
NOISE = (8 if HAS_GIL else 16) * MEBIBYTE

PREAMBLE = """
import collections, itertools, os, sys, time
import psutil
from fstream import pmap, pfilter, pflat_map, peach, run, ordered

def ten(item):
    return item * 10

async def ten_task(item):
    return item * 10

def peak(pid):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def family():
    return [os.getpid(), *(child.pid for child in psutil.Process().children())]

def peaks():
    "The peak of the parent, and the highest of its workers', in KiB."
    parent, *workers = (peak(pid) for pid in family())
    return parent, max(workers, default=0)

def measure(stream, total, share=10):
    "Draw all outputs; compare the peaks after a tenth, or another share, with those at the end."
    for _ in itertools.islice(stream, total // share):
        pass
    early = peaks()
    collections.deque(itertools.islice(stream, total - total // share), maxlen=0)
    late = peaks()
    print(*(after - before for before, after in zip(early, late)))
"""


def growth(tmp_path: Path, script: str, *args: str) -> tuple[int, int]:
    """By how many KiB the peaks of the parent and of its workers grew after the first tenth."""
    path = write_script(tmp_path, PREAMBLE + script)
    result = subprocess.run(
        [sys.executable, str(path), *args],
        capture_output=True,
        text=True,
        env=environment_with(),
        timeout=1000 if SLOW else 200,
    )
    assert (result.returncode, result.stderr) == (0, "")
    parent, workers = result.stdout.split()
    return int(parent), int(workers)


def items_for(kind: str) -> int:
    """How many items go by in some seconds."""
    return 10_000_000 if SLOW else 300_000 if kind == "task" else 1_000_000


CHEAP = """
kind, total, order, maxsize = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "ordered", eval(sys.argv[4])
f = ten_task if kind == "task" else ten
measure(pmap(f, kind=kind, workers=2, ordered=order, maxsize=maxsize)(itertools.count()), total)
"""


@pytest.mark.parametrize(("order", "maxsize"), [("ordered", "None"), ("unordered", "1000")])
@pytest.mark.parametrize("kind", ["sync", "thread", "process", "task"])
def test_many_cheap_items(tmp_path: Path, kind: str, order: str, maxsize: str) -> None:
    parent, workers = growth(tmp_path, CHEAP, kind, str(items_for(kind)), order, maxsize)
    assert parent < NOISE
    assert workers < NOISE


def test_many_cheap_items_through_a_row(tmp_path: Path) -> None:
    script = """
def two(item):
    return item, item

def even(item):
    return item % 2 == 0

total = int(sys.argv[1])
stream = pflat_map(two, kind="thread")(itertools.count()) | pfilter(even, kind="process", workers=2)
measure(ordered(stream | pmap(ten_task, kind="task")), total, share=3)  # by then all three windows are full-grown
"""
    parent, workers = growth(tmp_path, script, str(items_for("process")))
    assert parent < NOISE
    assert workers < NOISE


def test_many_cheap_items_for_their_effect(tmp_path: Path) -> None:
    """`run` and `peach` collect nothing."""
    script = """
total = int(sys.argv[1])
def source():
    for item in range(total):
        if item == total // 10:
            early.extend(peaks())
        yield item
early = []
run(peach(ten, kind="process", workers=2)(source()))
print(*(after - before for before, after in zip(early, peaks())))
"""
    parent, workers = growth(tmp_path, script, str(items_for("process")))
    assert parent < NOISE
    assert workers < NOISE


SLOW_CONSUMER = """
kind = sys.argv[1]
pulled = 0

def source():
    global pulled
    while True:
        pulled += 1
        yield bytes(20_000)

def same(item):
    return item

async def same_task(item):
    return item

held = []
stream = pmap(same_task if kind == "task" else same, kind=kind, workers=2)(source())
for given in range(1500):
    next(stream)
    time.sleep(0.002)
    held.append(pulled - given)
    if given == 150:
        early = peaks()
print(*(after - before for before, after in zip(early, peaks())))
least = 4 * 2 + 8  # four for each worker, and eight: what may be held at any time
# Twice as many after each of two moments in which the machine stood still, and all seemed to starve.
assert max(held[150:]) <= max(2 * least, 4 * max(held[:150])), (max(held[150:]), max(held[:150]))
assert max(held) < 200, max(held)
"""


@pytest.mark.parametrize("kind", ["thread", "process", "task"])
def test_a_slow_consumer(tmp_path: Path, kind: str) -> None:
    """Neither the memory grows nor the number of items that wait."""
    parent, workers = growth(tmp_path, SLOW_CONSUMER, kind)
    assert parent < NOISE
    assert workers < NOISE


@pytest.mark.parametrize("kind", ["thread", "process", "task"])
def test_failures_leave_nothing(tmp_path: Path, kind: str) -> None:
    """Skipped and retried items, whose errors hold frames and items, are forgotten."""
    script = """
def often(item):
    big = bytes(10_000)
    if item % 3:
        raise ValueError(item)
    return item

async def often_task(item):
    return often(item)

kind, total = sys.argv[1], 20_000
f = often_task if kind == "task" else often
measure(pmap(f, kind=kind, workers=2, on_error="skip", retries=1, backoff=0)(itertools.count()), total)
"""
    parent, workers = growth(tmp_path, script, kind)
    assert parent < NOISE
    assert workers < NOISE


@pytest.mark.parametrize("kind", ["thread", "process", "task"])
def test_many_pipelines_one_after_the_other(tmp_path: Path, kind: str) -> None:
    script = """
kind = sys.argv[1]
f = ten_task if kind == "task" else ten
total = 150
for number in range(total):
    stream = pmap(f, kind=kind, workers=2)(itertools.count())
    next(stream)
    if number == total // 10:
        early = peaks()
    if number % 2:
        stream.close()
    del stream
print(*(after - before for before, after in zip(early, peaks())))
"""
    parent, workers = growth(tmp_path, script, kind)
    assert parent < NOISE
    assert workers < NOISE
