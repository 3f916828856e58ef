"""Which part of a pipeline holds the others back: named rightly where it is known by construction."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fstream import Bottleneck, Processes, Stream, batch, merge, pfilter, pflat_map, pmap
from fstream._flow.tally import Hold, Tally
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._seen.account import Account, Entry
from fstream._seen.bottleneck import find
from fstream._workers.cpu_time import counted
from tests.faults.faulty import HAS_GIL
from tests.gates import PATIENCE

pytestmark = pytest.mark.slow

SLOW, QUICK = 0.01, 0.001


def wait(item: int) -> int:
    time.sleep(SLOW)
    return item


def quick(item: int) -> int:
    time.sleep(QUICK)
    return item


async def wait_task(item: int) -> int:
    await asyncio.sleep(SLOW)
    return item


async def quick_task(item: int) -> int:
    await asyncio.sleep(QUICK)
    return item


def crunch(item: int) -> int:
    """Some 10 ms of one CPU, in Python."""
    end = time.thread_time() + SLOW
    while time.thread_time() < end:
        math.factorial(50)
    return item


def cheap(item: int) -> int:
    return item


def one_in_twenty(item: int) -> int:
    time.sleep(0.2 if item % 20 == 0 else 0.0005)
    return item


def flaky(item: int, attempt: int) -> int:
    if not attempt:
        raise ConnectionError
    return item


class Heavy:
    """What takes 5 ms to be pickled."""

    def __reduce__(self) -> Any:
        time.sleep(0.005)
        return Heavy, ()


def weigh(item: Heavy) -> int:
    return 1


def generate(count: int, seconds: float = 0.0) -> Iterator[int]:
    for item in range(count):
        if seconds:
            time.sleep(seconds)
        yield item


def take(stream: Stream[Any], seconds: float = 0.0) -> Stream[Any]:
    for _ in stream:
        if seconds:
            time.sleep(seconds)
    return stream


def take_async(stream: Stream[Any], seconds: float = 0.0) -> Stream[Any]:
    async def consume() -> None:
        async for _ in stream:
            if seconds:
                await asyncio.sleep(seconds)

    asyncio.run(consume())
    return stream


#: The pipelines, by what their bottleneck is: each consumes a stream, and gives it.
PIPELINES: dict[str, tuple[str, Callable[[], Stream[Any]]]] = {
    "I/O on threads, first of two": (
        "wait",
        lambda: take(
            generate(150) | pmap(wait, kind="thread", workers=2) | pmap(quick, kind="thread", workers=2)
        ),
    ),
    "I/O on threads, second of two": (
        "wait",
        lambda: take(
            generate(150) | pmap(quick, kind="thread", workers=2) | pmap(wait, kind="thread", workers=2)
        ),
    ),
    "I/O in tasks": (
        "wait_task",
        lambda: take(generate(600) | pmap(wait_task, workers=10) | pmap(cheap, kind="thread")),
    ),
    "I/O in tasks behind quicker ones": (
        "wait_task",
        lambda: take_async(generate(300) | pmap(quick_task, workers=10) | pmap(wait_task, workers=4)),
    ),
    "a CPU stage on processes": (
        "crunch",
        lambda: take(generate(60) | pmap(quick, kind="thread") | pmap(crunch, kind="process", workers=2)),
    ),
    "a CPU stage before I/O": (
        "crunch",
        lambda: take(
            generate(60) | pmap(crunch, kind="process", workers=1) | pmap(wait, kind="thread", workers=8)
        ),
    ),
    "one slow of three process stages that run as one": (
        "crunch",
        lambda: take(
            generate(60)
            | pmap(cheap, kind="process")
            | pmap(crunch, kind="process")
            | pmap(abs, kind="process")
        ),
    ),
    "items of a process stage that take long to be pickled": (
        "weigh",
        lambda: take([Heavy() for _ in range(100)] | pmap(weigh, kind="process")),
    ),
    "I/O before a process stage that has little to do": (
        "wait",
        lambda: take(generate(60) | pmap(wait, kind="thread", workers=1) | pmap(cheap, kind="process")),
    ),
    "threads that wait for the GIL": (
        "crunch",
        lambda: take(generate(40) | pmap(quick, kind="thread") | pmap(crunch, kind="thread", workers=4)),
    ),
    "a slow source": (
        "the source",
        lambda: take(generate(80, SLOW) | pmap(quick, kind="thread", workers=2)),
    ),
    "a slow source of processes": (
        "the source",
        lambda: take(generate(80, SLOW) | pmap(quick, kind="process", workers=2)),
    ),
    "a slow source of tasks": (
        "the source",
        lambda: take_async(generate(80, SLOW) | pmap(quick_task)),
    ),
    "a slow consumer": (
        "the consumer",
        lambda: take(generate(80) | pmap(quick, kind="thread", workers=2), SLOW),
    ),
    "a slow consumer of a list": (
        "the consumer",
        lambda: take([*range(80)] | pmap(quick, kind="process", workers=2), SLOW),
    ),
    "a slow consumer of tasks": (
        "the consumer",
        lambda: take_async(generate(80) | pmap(quick_task, workers=10), SLOW),
    ),
    "a window that is too small": (
        "wait",
        lambda: take(
            generate(80) | pmap(quick, kind="thread") | pmap(wait, kind="thread", workers=8, maxsize=2)
        ),
    ),
    "slow items in order": (
        "one_in_twenty",
        lambda: take(
            generate(100)
            | pmap(one_in_twenty, kind="thread", workers=4, maxsize=16)
            | pmap(cheap, kind="thread")
        ),
    ),
    "a sync stage between others": (
        "wait",
        lambda: take(
            generate(80) | pmap(quick, kind="thread") | pmap(wait, kind="sync") | pmap(quick, kind="thread")
        ),
    ),
    "sync stages alone": (
        "wait",
        lambda: take(
            generate(60) | pmap(quick, kind="sync") | pmap(wait, kind="sync") | pfilter(cheap, kind="sync")
        ),
    ),
    "a stage behind merged streams": (
        "wait",
        lambda: take(
            merge(generate(40) | pmap(quick, kind="thread"), generate(40) | pmap(cheap, kind="thread"))
            | pmap(wait, kind="thread", workers=2)
        ),
    ),
    "a stage with many outputs before a slow one": (
        "wait",
        lambda: take(
            generate(20)
            | pflat_map(lambda item: [item] * 8, kind="thread", name="spread")
            | pmap(wait, kind="thread", workers=4)
        ),
    ),
    "a rate on threads": (
        "cheap",
        lambda: take(generate(60) | pmap(cheap, kind="thread", rate=100) | pmap(quick, kind="thread")),
    ),
    "a rate in tasks": (
        "quick_task",
        lambda: take_async(generate(60) | pmap(quick_task, rate=100) | pmap(cheap, kind="thread")),
    ),
    "a rate in place": (
        "cheap",
        lambda: take(generate(20, QUICK) | pmap(cheap, kind="sync", rate=20) | pmap(quick, kind="thread")),
    ),
    "a key that all items have": (
        "wait",
        lambda: take(generate(60) | pmap(quick) | pmap(wait, kind="thread", workers=4, key=lambda _: "all")),
    ),
    "a key that all items have, with two workers": (
        "wait",
        lambda: take(generate(60) | pmap(wait, kind="thread", workers=2, key=lambda _: "all")),
    ),
    "a slow key": (
        "cheap",
        lambda: take(generate(60) | pmap(cheap, kind="thread", key=wait) | pmap(quick, kind="thread")),
    ),
    "a slow weight": (
        "batch",
        lambda: take(generate(60) | pmap(quick, kind="thread") | batch(99, weight=wait)),
    ),
    "further tries": (
        "flaky",
        lambda: take(
            generate(12) | pmap(cheap) | pmap(flaky, kind="thread", workers=4, retries=1, backoff=0.5)
        ),
    ),
    "further tries in place": (
        "flaky",
        lambda: take(generate(8) | pmap(flaky, kind="sync", retries=1, backoff=0.2)),
    ),
    "a slow source before a rate that is never reached": (
        "the source",
        lambda: take(generate(60, SLOW) | pmap(cheap, kind="thread", rate=1000)),
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_bottleneck_is_named(name: str):
    expected, run = PIPELINES[name]
    if (
        "process" in name or "CPU" in name or "list" in name
    ):  # a machine that is busy starts workers for seconds
        take(generate(100) | pmap(quick, kind="process", workers=2))
    stats = run().stats()
    assert stats.bottleneck is not None
    assert stats.bottleneck.name == expected, str(stats)
    assert str(stats.bottleneck).startswith(expected)
    assert f"bottleneck: {stats.bottleneck}" in str(stats)


def bottleneck(name: str) -> str:
    return str(PIPELINES[name][1]().stats().bottleneck)


@pytest.mark.skipif(not HAS_GIL, reason="there is no GIL")
def test_the_gil_is_named():
    for _ in range(5):  # a machine that is busy with other things gives this process less than one CPU
        if "the GIL" in (named := bottleneck("threads that wait for the GIL")):
            return
    raise AssertionError(named)


@pytest.mark.skipif(not HAS_GIL, reason="there is no GIL")
@pytest.mark.parametrize(
    ("at_once", "expected"),
    [(1.0, "it has the GIL for 90% of the time"), (1.6, "its threads wait for the GIL")],
)
def test_a_stage_that_has_the_gil_is_named_and_not_one_whose_threads_wait_for_it(
    at_once: float, expected: str
):
    account = Account(
        [
            Stage(MAP, wait, "thread", workers=8, name="wait"),
            Stage(MAP, crunch, "thread", workers=2, name="crunch"),
        ]
    )
    account.began, account.ended = 0.0, 10.0
    waiting, working = account.entries
    for entry, at_work, cpu in (waiting, 7.6, 0.3), (working, at_once, 9.0):
        entry.taken = 100
        entry.busy, entry.whole, entry.cpu = 10 * at_work, 10.0 * entry.workers, cpu
        entry.starved = entry.whole - entry.busy
    found = find([account])
    assert found is not None and found.name == "crunch" and expected in found.why and "'process'" in found.why
    working.cpu = 3.0  # it leaves the GIL to others for most of the time: they do what they seem to do
    found = find([account])
    assert found is not None and found.name == "wait" and "more workers" in found.why


def test_threads_count_their_cpu_time_while_they_work_and_when_they_have_ended():
    tally, has_worked, ends = Tally(), threading.Event(), threading.Event()

    def work() -> None:
        with counted(tally, threading.Lock()):
            crunch(0)
            has_worked.set()
            assert ends.wait(PATIENCE)

    thread = threading.Thread(target=work)
    thread.start()
    assert has_worked.wait(PATIENCE)
    if hasattr(time, "pthread_getcpuclockid"):
        assert SLOW <= tally.cpu_seconds() < PATIENCE
    ends.set()
    thread.join(PATIENCE)
    assert SLOW <= tally.cpu_seconds() < PATIENCE and not tally.clocks


def test_where_greenlets_stand_for_threads_the_system_is_not_asked_for_their_clocks(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(threading, "get_ident", lambda: 1)  # as gevent has it
    tally = Tally()
    with counted(tally, threading.Lock()):
        assert not tally.clocks


def test_a_stage_knows_the_cpu_time_of_its_threads(monkeypatch: pytest.MonkeyPatch):
    made: list[Account] = []

    class Kept(Account):
        def begin(self, *args: Any) -> None:
            made.append(self)
            super().begin(*args)

    monkeypatch.setattr("fstream.stream.Account", Kept)
    take(range(20) | pmap(cheap, kind="thread") | pmap(crunch, kind="thread", workers=4))
    (account,) = made
    assert [20 * SLOW <= entry.cpu < PATIENCE for entry in account.entries] == [False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="how it numbers the clocks of threads")
def test_threads_that_are_not_of_this_process_count_nothing():
    tally = Tally()
    tally.clocks.add(~os.getppid() << 3 | 6)  # as in a fork
    assert tally.cpu_seconds() == 0.0


def test_threads_that_wait_for_something_else_do_not_wait_for_the_gil():
    assert "more workers" in bottleneck("I/O on threads, second of two")


def test_a_window_that_is_too_small_is_named_with_its_option():
    assert "maxsize=2 keeps 6 of 8 workers from work" in bottleneck("a window that is too small")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a rate on threads", "its rate"),
        ("a rate in tasks", "its rate"),
        ("a rate in place", "its rate"),
        ("a key that all items have", "others of their key"),
        ("a key that all items have, with two workers", "others of their key"),
        ("a slow key", "its keys, costs or weights take"),
        ("further tries", "their next try"),
        ("further tries in place", "their next try"),
    ],
)
def test_what_holds_a_stage_up_is_named(name: str, expected: str):
    assert f"{expected} " in bottleneck(name)


def test_what_is_slow_to_pickle_is_named():
    take(generate(100) | pmap(quick, kind="process"))
    assert "to pickle its items and outputs" in bottleneck(
        "items of a process stage that take long to be pickled"
    )


def test_a_stage_whose_processes_start_is_named():
    with Processes(2) as new:
        stats = take(generate(20) | pmap(quick, kind="thread") | pmap(cheap, kind=new)).stats()
    assert str(stats.bottleneck).startswith("cheap (process): it waits for worker processes")


def slow_to_start(worker_info: Any) -> None:
    if worker_info.index == 0:
        time.sleep(2.0)  # far longer than all else takes, on a machine that is busy, too


def test_a_stage_is_named_whose_first_process_begins_after_the_others():
    with Processes(2) as both:
        take(generate(20) | pmap(quick, kind=both))  # they have started
        stage = pmap(cheap, kind=both, on_start=slow_to_start)
        stats = take(generate(200) | stage).stats()
    assert str(stats.bottleneck).startswith("cheap (process): it waits for worker processes")


def test_stages_that_run_as_one_are_named_where_their_processes_start():
    with Processes(2) as new:
        row = pmap(cheap, kind=new) | pmap(abs, kind=new)
        stats = take(generate(20) | pmap(quick, kind="thread") | row).stats()
    assert "(process): it waits for worker processes" in str(stats.bottleneck)


def test_time_that_nobody_saw_is_of_the_sort_that_was_seen():
    entry = Entry(Stage(MAP, abs, "process"), workers=2)
    entry.tally.hold_up(Hold.WORKERS, 0.2)
    entry.divide(whole=1.0, busy=0.1, starved=0.2, blocked=0.1)
    assert entry.held_up == {Hold.WORKERS: pytest.approx(0.6)}
    assert entry.starved == pytest.approx(0.6)


@pytest.mark.parametrize(("at_once", "expected"), [(0.08, "wait"), (1.1, "quick")])
def test_a_full_window_is_to_blame_only_while_an_item_is_at_work(at_once: float, expected: str):
    stages = [
        Stage(MAP, quick, "thread", workers=2, name="quick"),
        Stage(MAP, wait, "thread", workers=4, name="wait"),
    ]
    account = Account(stages)
    account.began, account.ended = 0.0, 10.0
    first, second = account.entries
    # The second stage waits for items, though the first has no room: for a slow item, or for a machine that is slow.
    for entry, at_work in (first, at_once), (second, 0.8):
        entry.taken = 100
        entry.whole, entry.busy = 10.0 * entry.workers, 10 * at_work
    first.blocked = first.whole - first.busy
    second.starved = second.whole - second.busy
    found = find([account])
    assert found is not None and found.name == expected


def test_an_order_that_has_to_wait_is_named():
    assert "ordered=False" in bottleneck("slow items in order")


def test_the_bottleneck_is_named_during_the_run():
    stream = generate(100) | pmap(wait, kind="thread", workers=2) | pmap(cheap, kind="thread")
    for _ in range(60):
        next(stream)
    named = stream.stats().bottleneck
    stream.close()
    assert named is not None
    assert named.name == "wait"
    assert 0.5 < named.share <= 1


def test_where_nothing_was_done_there_is_no_bottleneck():
    assert pmap(cheap, []).stats().bottleneck is None
    assert find([Account([])]) is None


def test_a_bottleneck_is_a_value():
    assert str(Bottleneck("parse", " (process): busy", 0.9)) == "parse (process): busy"
    with pytest.raises(AttributeError):
        Bottleneck("parse", "", 0.9).name = "fetch"  # type: ignore[misc]
