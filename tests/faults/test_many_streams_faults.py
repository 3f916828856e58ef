"""Faults of one stream beside others on the same worker: they are its own business, by its own options."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fstream import Failed, NotPicklable, Processes, WorkerDied, pmap
from fstream._workers.process.pool import Pool
from tests.faults.faulty import eventually
from tests.functions import square
from tests.gates import PATIENCE, Gate, Log, holding

pytestmark = pytest.mark.slow

ITEMS = 40
BAD = 7


@pytest.fixture
def one() -> Iterator[Processes]:
    """A pool of one worker."""
    with Processes(1) as processes:
        yield processes


def die_at(bad: int, once: Path | None = None) -> Callable[[int], int]:
    def f(item: int) -> int:
        if item == bad and not (once and once.exists()):
            if once:
                once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    return f


def hang_at(bad: int, once: Path | None = None) -> Callable[[int], int]:
    def f(item: int) -> int:
        if item == bad and not (once and once.exists()):
            if once:
                once.touch()
            time.sleep(60)
        return item

    return f


class Neighbour:
    """A stream with resources in the worker, and no patience: nothing of it may fail."""

    def __init__(self, kind: Any, log: Log, name: str, items: int = ITEMS) -> None:
        def on_start() -> int:
            log.write((name, "start", os.getpid()))
            return os.getpid()

        def on_done(_: Any, pid: int) -> None:
            log.write((name, "done", pid))

        def f(item: int, pid: int) -> tuple[int, int]:
            assert pid == os.getpid()
            return item, pid

        self.name = name
        self.log = log
        self.items = items
        self.pids: set[int] = set()
        self.stream = pmap(f, iter(range(items)), kind=kind, maxsize=2, on_start=on_start, on_done=on_done)
        self.taken = 0

    def take(self) -> None:
        """Take the next output."""
        item, pid = next(self.stream)
        assert item == self.taken
        self.taken += 1
        self.pids.add(pid)

    def take_all(self) -> None:
        """Take all the others, each once and in order; all began anew in each worker that they had, and none else."""
        while self.taken < self.items:
            self.take()
        assert list(self.stream) == []
        mine = [entry[1:] for entry in self.log.entries() if entry[0] == self.name]
        starts = [pid for what, pid in mine if what == "start"]
        assert len(starts) == len(set(starts)) and self.pids <= set(starts)
        assert {pid for what, pid in mine if what == "done"} == {starts[-1]}


def outcome(stream: Any) -> Any:
    """The outputs, and the error that they ended with."""
    outputs = []
    try:
        for output in stream:
            outputs.append(output.item if isinstance(output, Failed) else output)
    except Exception as error:
        return outputs, error
    return outputs, None


WITHOUT = [n for n in range(ITEMS) if n != BAD]
#: What comes of a stage in which an item fails, for its options: outputs, and whether there is an error.
FATES: dict[str, tuple[dict[str, Any], list[int], bool]] = {
    "raise": ({}, list(range(BAD)), True),
    "skip": ({"on_error": "skip"}, WITHOUT, False),
    "keep": ({"on_error": "keep"}, list(range(ITEMS)), False),
    "answer": ({"on_error": lambda _, item: -item}, [-n if n == BAD else n for n in range(ITEMS)], False),
    "retry": ({"retries": 1, "backoff": 0}, list(range(ITEMS)), False),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("fault", ["dies", "times out"])
def test_a_worker_that_three_stages_use_is_lost_to_the_options_of_the_one_at_work(
    one: Processes, log: Log, tmp_path: Path, fate: str, fault: str
):
    options, expected, fails = FATES[fate]
    once = tmp_path / "once" if fate == "retry" else None
    a, b = Neighbour(one, log, "a"), Neighbour(one, log, "b")
    a.take()
    b.take()
    if fault == "dies":
        f, error_type = die_at(BAD, once), WorkerDied
    else:
        f, error_type = hang_at(BAD, once), TimeoutError
        options = options | {"timeout": 0.5}
    outputs, error = outcome(pmap(f, iter(range(ITEMS)), kind=one, **options))
    assert outputs == expected
    assert (type(error) is error_type) if fails else error is None
    for neighbour in a, b:
        neighbour.take_all()
        assert len(neighbour.pids) == 2


def test_a_worker_is_killed_again_and_again_under_three_streams_with_options_of_their_own(one: Processes):
    """It is killed from outside: whoever is at work is charged by its own options, and nobody else."""
    over, moved, most = threading.Event(), threading.Event(), 60

    def slow(item: int) -> int:
        time.sleep(0.005)
        return item

    def kill_some() -> int:
        killed = 0
        while killed < 6 and moved.wait(PATIENCE) and not over.is_set():
            moved.clear()
            for worker in list(one.pool().leases):
                if worker.opened:
                    worker.link.process.kill()
                    killed += 1
        return killed

    def run(**options: Any) -> Any:
        outputs = []
        for output in pmap(slow, iter(range(most)), kind=one, backoff=0, maxsize=5, **options):
            outputs.append(output)
            moved.set()
        return outputs

    with ThreadPoolExecutor(4) as threads:
        killer = threads.submit(kill_some)
        streams = [
            threads.submit(run, **options)
            for options in (
                {"retries": 9},
                {"retries": 9, "on_error": "keep"},
                {"retries": 9, "ordered": False},
            )
        ]
        try:
            assert [sorted(stream.result(60)) for stream in streams] == [list(range(most))] * 3
        finally:
            over.set()
            moved.set()
        assert killer.result() >= 3


def test_time_that_others_have_the_worker_for_is_no_time_of_an_item(one: Processes, gate: Gate, log: Log):
    """The items of two stages wait for the worker, for longer than their time-out."""
    hold = holding("process", {0: gate}, log)
    began = time.perf_counter()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(list, pmap(hold, iter([0]), kind=one))
        log.wait_for(("start", 0))
        others = [
            threads.submit(list, pmap(square, iter(range(5)), kind=one, timeout=timeout))
            for timeout in (0.1, 0.15)
        ]
        assert eventually(lambda: len(one.pool().waiting) == 2)
        assert eventually(lambda: time.perf_counter() - began > 0.5)
        assert not any(other.done() for other in others)
        gate.open()
        assert first.result(PATIENCE) == [0]
        assert [other.result(PATIENCE) for other in others] == [[0, 1, 4, 9, 16]] * 2


def test_the_time_of_an_item_is_its_own_though_the_stage_comes_and_goes(one: Processes):
    """Two stages take turns, each item takes half of the time-out of the stage: none is killed for what was before."""

    def slow(item: int) -> int:
        time.sleep(0.05)
        return item

    def outputs(timeout: float) -> Any:
        return outcome(pmap(slow, iter(range(12)), kind=one, timeout=timeout))

    with ThreadPoolExecutor() as threads:
        assert list(threads.map(outputs, [2.0, 3.0])) == [(list(range(12)), None)] * 2


def test_each_stage_counts_the_items_of_a_worker_for_itself(one: Processes, log: Log):
    """Two stages wear the worker out, each by a number of its own; a third has resources in it, a fourth has none."""

    def pids_of(items: int, most: int | None) -> list[int]:
        options = {} if most is None else {"max_items_per_worker": most}
        return list(pmap(lambda _: os.getpid(), iter(range(items)), kind=one, **options))

    neighbour = Neighbour(one, log, "a")
    neighbour.take()
    with ThreadPoolExecutor() as threads:
        few, more, any_number = threads.map(pids_of, [20, 20, 200], [3, 7, None])
    for pids, most in (few, 3), (more, 7):
        assert len(pids) == 20
        assert max(map(pids.count, pids)) <= most
    assert len(any_number) == 200
    neighbour.take_all()
    assert len(neighbour.pids) == 1, "its worker was kept"


def give_lock(item: int) -> Any:
    return threading.Lock() if item == BAD else item


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


class Unloadable:
    def __reduce__(self) -> Any:
        return int, ("nine",)


@pytest.mark.parametrize("what", ["output", "item", "item that cannot be loaded", "f"])
def test_what_of_one_stream_cannot_be_pickled_is_no_matter_of_the_others(one: Processes, log: Log, what: str):
    lock = threading.Lock()
    bad: Any = {"item": Unpicklable(), "item that cannot be loaded": Unloadable()}.get(what, BAD)

    def f(item: Any) -> Any:
        return give_lock(item) if what == "output" else item

    def locked(item: Any) -> Any:
        return item, lock

    def faulty() -> Any:
        items = [*range(BAD), bad, *range(BAD + 1, ITEMS)]
        return outcome(pmap(locked if what == "f" else f, iter(items), kind=one))

    def skipping() -> Any:
        items = [*range(BAD), bad, *range(BAD + 1, ITEMS)]
        return outcome(pmap(locked if what == "f" else f, iter(items), kind=one, on_error="skip"))

    a = Neighbour(one, log, "a", items=200)
    a.take()
    with ThreadPoolExecutor() as threads:
        failed, skipped = threads.submit(faulty), threads.submit(skipping)
        others = [threads.submit(list, pmap(square, iter(range(200)), kind=one)) for _ in range(2)]
        neighbour = threads.submit(a.take_all)
        outputs, error = failed.result(PATIENCE)
        assert type(error) is NotPicklable
        assert outputs == ([] if what == "f" else list(range(BAD)))
        if what == "f":
            assert type(skipped.result(PATIENCE)[1]) is NotPicklable
        else:
            assert skipped.result(PATIENCE) == (WITHOUT, None)
        assert [other.result(PATIENCE) for other in others] == [[n * n for n in range(200)]] * 2
        neighbour.result(PATIENCE)
    assert len(a.pids) == 1


# Workers that cannot start


def test_a_worker_that_cannot_be_started_is_an_error_of_the_stream_that_wants_it(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, log: Log
):
    """One stream has its worker already. Of two others the first one is refused, and the second one is served."""
    start, refused = Pool.start, iter([False, True, False])

    def may_start(owner: Pool) -> Any:
        if next(refused, False):
            raise OSError("no more processes")
        return start(owner)

    monkeypatch.setattr(Pool, "start", may_start)
    with Processes(2) as two, ThreadPoolExecutor() as threads:
        hold = holding("process", {0: gate}, log)
        first = threads.submit(outcome, pmap(hold, iter(range(10)), kind=two, workers=1))
        log.wait_for(("start", 0))
        outputs, error = threads.submit(outcome, pmap(square, iter(range(10)), kind=two, workers=1)).result(
            PATIENCE
        )
        assert outputs == [] and type(error) is OSError
        third = threads.submit(outcome, pmap(square, iter(range(10)), kind=two, workers=1))
        assert third.result(PATIENCE) == ([n * n for n in range(10)], None)
        gate.open()
        assert first.result(PATIENCE) == (list(range(10)), None)
        assert not two.pool().leases


def test_those_who_wait_behind_a_stream_whose_worker_cannot_be_started_are_served(
    monkeypatch: pytest.MonkeyPatch, gate: Gate
):
    """The refused start holds the only place, and two streams wait for it."""
    start, refused, at_it = Pool.start, iter([True]), threading.Event()

    def may_start(owner: Pool) -> Any:
        if next(refused, False):
            at_it.set()
            gate.wait()
            raise OSError("no more processes")
        return start(owner)

    monkeypatch.setattr(Pool, "start", may_start)
    with Processes(1) as one, ThreadPoolExecutor() as threads:
        first = threads.submit(outcome, pmap(square, iter(range(10)), kind=one))
        assert at_it.wait(PATIENCE)
        others = [threads.submit(outcome, pmap(square, iter(range(10)), kind=one)) for _ in range(2)]
        assert eventually(lambda: len(one.pool().waiting) == 2)
        gate.open()
        assert type(first.result(PATIENCE)[1]) is OSError
        assert [other.result(PATIENCE) for other in others] == [([n * n for n in range(10)], None)] * 2


@pytest.mark.parametrize("fault", ["raises", "dies"])
def test_an_on_start_that_fails_is_an_error_of_its_stream_alone(one: Processes, log: Log, fault: str):
    def on_start() -> None:
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("cannot begin")

    a, b = Neighbour(one, log, "a"), Neighbour(one, log, "b")
    a.take()
    with ThreadPoolExecutor() as threads:
        failing = [
            threads.submit(outcome, pmap(lambda n: n, count(), kind=one, on_start=on_start, retries=2))
            for _ in range(2)
        ]
        neighbours = [threads.submit(each.take_all) for each in (a, b)]
        for each in failing:
            outputs, error = each.result(PATIENCE)
            assert outputs == []
            assert type(error) is (WorkerDied if fault == "dies" else ValueError)
        for neighbour in neighbours:
            neighbour.result(PATIENCE)
    if fault == "raises":
        assert len(a.pids) == len(b.pids) == 1
