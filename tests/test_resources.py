"""on_start gives a worker its resources, on_done takes them back; worker_info, element_index go by name."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from fstream import Processes, StageStatus, WorkerInfo, peach, pfilter, pflat_map, pmap
from fstream._workers.process.leaving import Leaving
from fstream._workers.thread import Worker
from tests.faults.faulty import eventually
from tests.functions import suited
from tests.gates import PATIENCE, Gate, Log, holding, opened_when

# What on_start may return


def add_two(number: int, one: int, two: int) -> int:
    return number + one + two


def add_named(number: int, *, one: int) -> int:
    return number + one


RESOURCES: dict[str, tuple[Callable[[], Any], Callable[..., Any], list[Any]]] = {
    "None": (lambda: None, lambda item: item, [0, 1, 2]),
    "an object": (lambda: 10, lambda item, ten: item + ten, [10, 11, 12]),
    "a false object": (lambda: 0, lambda item, zero: (item, zero), [(0, 0), (1, 0), (2, 0)]),
    "a list, which is one object": (lambda: [10, 20], lambda item, both: item + sum(both), [30, 31, 32]),
    "a tuple": (lambda: (10, 20), add_two, [30, 31, 32]),
    "a tuple of one": (lambda: (10,), lambda item, ten: item + ten, [10, 11, 12]),
    "an empty tuple": (lambda: (), lambda item: item, [0, 1, 2]),
    "a dict": (lambda: {"one": 10, "two": 20}, add_two, [30, 31, 32]),
    "a dict of more than f declares": (lambda: {"one": 10, "two": 20}, add_named, [10, 11, 12]),
    "an empty dict": (lambda: {}, lambda item: item, [0, 1, 2]),
}


@pytest.mark.parametrize(("on_start", "f", "expected"), RESOURCES.values(), ids=RESOURCES.keys())
def test_resources_are_passed_to_f(
    kind: str, on_start: Callable[[], Any], f: Callable[..., Any], expected: list[Any]
):
    stream = pmap(suited(f, kind), range(3), kind=kind, workers=2, on_start=suited(on_start, kind))
    assert list(stream) == expected


Write = Callable[[list[int]], None]

GIVEN_TO_ON_DONE: dict[str, tuple[Any, Callable[[Write], Callable[..., None]], list[int]]] = {
    "None": (None, lambda write: lambda stage_status: write([]), []),
    "an object": (10, lambda write: lambda stage_status, ten: write([ten]), [10]),
    "a tuple": ((10, 20), lambda write: lambda stage_status, one, two: write([one, two]), [10, 20]),
    "a dict": ({"one": 10, "two": 20}, lambda write: lambda stage_status, two: write([two]), [20]),
}


@pytest.mark.parametrize(
    ("resources", "make_on_done", "expected"), GIVEN_TO_ON_DONE.values(), ids=GIVEN_TO_ON_DONE.keys()
)
def test_resources_are_passed_to_on_done(
    kind: str,
    resources: Any,
    make_on_done: Callable[[Write], Callable[..., None]],
    expected: list[int],
    log: Log,
):
    stream = pmap(
        suited(lambda item, *_: item, kind),
        range(3),
        kind=kind,
        workers=1,
        on_start=lambda: resources,
        on_done=suited(make_on_done(log.write), kind),
    )
    assert list(stream) == [0, 1, 2]
    assert log.take(1) == [expected]


@pytest.mark.parametrize(
    ("combinator", "f", "expected"),
    [
        (pmap, lambda item, ten: item + ten, [10, 11, 12]),
        (pfilter, lambda item, ten: item + ten > 10, [1, 2]),
        (pflat_map, lambda item, ten: [item, ten], [0, 10, 1, 10, 2, 10]),
        (peach, lambda item, ten: item + ten, []),
    ],
    ids=["pmap", "pfilter", "pflat_map", "peach"],
)
def test_every_combinator_passes_resources(
    kind: str, combinator: Callable[..., Any], f: Callable[..., Any], expected: list[int]
):
    assert list(combinator(suited(f, kind), range(3), kind=kind, workers=2, on_start=lambda: 10)) == expected


def test_a_generator_function_gets_resources(kind: str):
    def f(item: int, ten: int):
        yield item
        yield item + ten

    assert list(pflat_map(f, range(3), kind=kind, on_start=lambda: 10)) == [0, 10, 1, 11, 2, 12]


def test_resources_never_leave_their_worker(kind: str):
    def on_start() -> threading.Lock:
        return threading.Lock()  # cannot be pickled

    def f(item: int, lock: threading.Lock) -> int:
        with lock:
            return item

    assert list(pmap(f, range(20), kind=kind, workers=2, on_start=on_start)) == list(range(20))


# How often and where


def test_on_start_runs_once_in_each_worker_before_its_first_item(
    concurrent_kind: str, make_gate: Callable[[], Gate], log: Log
):
    workers, gate = 3, make_gate()
    hold = holding(concurrent_kind, dict.fromkeys(range(workers), gate), log)
    on_start = partial(log.write, "on_start")
    stream = pmap(hold, range(50), kind=concurrent_kind, workers=workers, on_start=on_start)
    with opened_when(gate, lambda: log.take(2 * workers)):
        assert list(stream) == list(range(50))
    entries = log.entries()
    assert entries.count("on_start") == workers
    assert entries[0] == "on_start"
    for position, entry in enumerate(entries[: 2 * workers]):
        started = entries[: position + 1].count("on_start")
        assert started >= position + 1 - started, f"{entry} has no worker that started"


def test_each_worker_has_its_own_resource(concurrent_kind: str, gate: Gate, log: Log):
    workers = 3
    hold = holding(concurrent_kind, dict.fromkeys(range(workers), gate), log)

    def f(item: int, mine: list[int]) -> tuple[int, int]:
        hold(item)
        return os.getpid(), id(mine)

    async def task(item: int, mine: list[int]) -> tuple[int, int]:
        await hold(item)
        return os.getpid(), id(mine)

    suited_f = task if concurrent_kind == "task" else f
    stream = pmap(suited_f, range(workers), kind=concurrent_kind, workers=workers, on_start=lambda: [])
    with opened_when(gate, lambda: log.take(workers)):
        assert len(set(stream)) == workers


def test_on_start_and_on_done_run_where_f_runs(kind: str, log: Log):
    def place() -> tuple[int, int]:
        return os.getpid(), threading.get_ident()

    places = set(
        pmap(
            lambda _: place(),
            range(20),
            kind=kind,
            workers=1,
            on_start=lambda: log.write(place()),
            on_done=lambda stage_status: log.write(place()),
        )
    )
    assert len(places) == 1
    assert set(log.take(2)) == places


def test_on_start_runs_again_for_every_run(kind: str, log: Log):
    transformer = pmap(abs, kind=kind, workers=1, on_start=partial(log.write, "on_start"))
    for run in (1, 2, 3):
        assert list(transformer([1, 2])) == [1, 2]
        assert log.entries() == ["on_start"] * run


# on_done, at every end


def starts_and_dones(kind: str, log: Log, f: Callable[..., Any] = abs) -> Any:
    return pmap(
        suited(f, kind),
        kind=kind,
        workers=3,
        on_start=partial(log.write, "start"),
        on_done=lambda stage_status: log.write("done"),
    )


def every_start_has_its_done(entries: list[str]) -> bool:
    return entries.count("start") == entries.count("done") > 0


def test_on_done_runs_at_exhaustion(kind: str, log: Log):
    assert list(starts_and_dones(kind, log)(range(50))) == list(range(50))
    log.wait_until(every_start_has_its_done, "on_done in every worker")


def test_on_done_runs_at_an_error(kind: str, log: Log):
    with pytest.raises(ZeroDivisionError):
        list(starts_and_dones(kind, log, partial(divmod, 1))([3, 2, 1, 0]))
    log.wait_until(every_start_has_its_done, "on_done in every worker")


def test_on_done_runs_at_an_early_close(kind: str, log: Log, gate: Gate):
    def source():
        yield from range(20)
        gate.wait()

    stream = starts_and_dones(kind, log)(source())
    assert [next(stream) for _ in range(20)] == list(range(20))
    stream.close()
    log.wait_until(every_start_has_its_done, "on_done in every worker")


def test_the_end_comes_after_on_done(kind: str, log: Log):
    def on_done(_status: StageStatus) -> None:
        time.sleep(0.6)  # as it may take; longer than any grace that a worker has at an early end
        log.write("done")

    assert list(pmap(suited(abs, kind), [1, 2], kind=kind, workers=1, on_done=on_done)) == [1, 2]
    assert log.entries() == ["done"]


def test_an_empty_source_has_no_start_without_its_done(kind: str, log: Log):
    assert list(starts_and_dones(kind, log)([])) == []
    log.wait_until(lambda entries: entries.count("start") == entries.count("done"), "on_done in every worker")


# stage_status


@pytest.mark.parametrize("workers", [1, 3])
def test_stage_status_counts_the_workers_still_active(
    concurrent_kind: str, workers: int, gate: Gate, log: Log
):
    def on_done(stage_status: StageStatus) -> None:
        log.write(("status", stage_status.active_workers, stage_status.done))

    hold = holding(concurrent_kind, dict.fromkeys(range(workers), gate), log)
    stream = pmap(hold, range(workers), kind=concurrent_kind, workers=workers, on_done=on_done)
    with opened_when(gate, lambda: log.take(workers)):
        list(stream)
    entries = log.take(3 * workers)
    statuses = [entry[1:] for entry in entries if entry[0] == "status"]
    assert sorted(statuses, reverse=True) == [(active, active == 0) for active in reversed(range(workers))]
    assert statuses[-1] == (0, True)


def test_stage_status_on_sync(log: Log):
    def on_done(stage_status: StageStatus) -> None:
        log.write((stage_status.active_workers, stage_status.done))

    list(pmap(abs, [1, 2], kind="sync", workers=3, on_done=on_done))
    assert log.entries() == [(0, True)]


@pytest.mark.parametrize("length", [1, 100])
def test_exactly_one_worker_is_the_last(kind: str, length: int, log: Log):
    def on_done(stage_status: StageStatus) -> None:
        log.write(("done", stage_status.done))

    stream = pmap(
        suited(abs, kind),
        range(length),
        kind=kind,
        workers=3,
        on_start=partial(log.write, ("start",)),
        on_done=on_done,
    )
    assert list(stream) == list(range(length))

    def all_are_done(entries: list[tuple[Any, ...]]) -> bool:
        return entries.count(("start",)) == len([entry for entry in entries if entry[0] == "done"])

    entries = log.wait_until(all_are_done, "on_done in every worker")
    assert entries.count(("done", True)) == 1
    assert entries[-1] == ("done", True)


@pytest.mark.parametrize("f", [abs, lambda item: 1 / item], ids=["exhaustion", "error"])
def test_a_thread_that_begins_when_another_one_ends_is_the_last(
    monkeypatch: pytest.MonkeyPatch, f: Callable[[int], float]
):
    work = Worker.work
    both_have_one, first_has_ended = threading.Barrier(2), threading.Event()
    statuses: list[bool] = []

    def late(worker: Worker, span: Any) -> float:
        both_have_one.wait(PATIENCE)
        if span.start:
            first_has_ended.wait(PATIENCE)
        return work(worker, span)

    def on_done(stage_status: StageStatus) -> None:
        statuses.append(stage_status.done)
        first_has_ended.set()

    monkeypatch.setattr(Worker, "work", late)
    stream = pmap(f, range(2), kind="thread", workers=2, maxsize=2, on_done=on_done)
    with suppress(ZeroDivisionError):
        assert list(stream) == [0, 1]
    assert statuses == [False, True]


def test_a_worker_that_may_have_begun_nothing_is_not_the_last():
    def worker(name: str, flight: list[Any], answered: bool) -> Any:
        return SimpleNamespace(name=name, flight=flight, answered=answered, active=True, finishing=False)

    asked: list[str] = []
    workers = [worker("one", [], True), worker("busy", [1], False), worker("idle", [], False)]
    crew: Any = SimpleNamespace(
        workers=workers,
        stage=SimpleNamespace(on_done=abs),
        ask_to_finish=lambda worker, what: asked.append(worker.name),
    )
    deque(Leaving(crew, lambda timeout: iter(()), lambda: None).dismiss(stopped=False), 0)  # type: ignore[arg-type, return-value]
    assert asked == ["idle", "one", "busy"]


@pytest.mark.parametrize("end", ["exhausted", "closed"])
def test_a_worker_that_is_in_on_done_as_the_stage_ends_is_waited_for(gate: Gate, log: Log, end: str):
    """It has had its last item before."""

    def on_done() -> None:
        log.write("begun")
        gate.wait()
        log.write("ended")

    def source() -> Iterable[int]:
        yield 7
        log.wait_for("begun")
        if end == "closed":
            gate.wait()

    pool = Processes(1)
    stage = pmap(abs, kind=pool, max_items_per_worker=1, on_done=on_done)
    pumps: Any = pool.pool().tenants
    with pool, opened_when(gate, lambda: eventually(lambda: any(pump.ending for pump in list(pumps)))):
        stream = stage(source())
        assert next(stream) == 7
        if end == "exhausted":
            assert not list(stream)
        else:
            log.wait_for("begun")
            stream.close()
    assert log.entries() == ["begun", "ended"]


# worker_info and element_index


def test_worker_info_numbers_the_workers(concurrent_kind: str, gate: Gate, log: Log):
    workers = 3

    def f(item: int, worker_info: WorkerInfo) -> int:
        log.write(worker_info.index)
        gate.wait()
        return worker_info.index

    async def task(item: int, worker_info: WorkerInfo) -> int:
        log.write(worker_info.index)
        await gate.passed()
        return worker_info.index

    stream = pmap(
        task if concurrent_kind == "task" else f, range(workers), kind=concurrent_kind, workers=workers
    )
    with opened_when(gate, lambda: log.take(workers)):
        assert sorted(stream) == list(range(workers))


def test_worker_info_in_on_start_f_and_on_done_is_the_same(kind: str, log: Log):
    def on_start(worker_info: WorkerInfo) -> int:
        return worker_info.index

    def f(item: int, started_as: int, worker_info: WorkerInfo) -> tuple[int, int]:
        return started_as, worker_info.index

    def on_done(stage_status: StageStatus, started_as: int, worker_info: WorkerInfo) -> None:
        log.write((started_as, worker_info.index))

    outputs = list(
        pmap(suited(f, kind), range(100), kind=kind, workers=3, on_start=on_start, on_done=on_done)
    )
    for started_as, index in outputs + log.wait_until(bool, "on_done"):
        assert started_as == index
        assert index in range(3)


def test_element_index_is_the_position_among_the_inputs(kind: str, is_ordered: bool):
    def f(item: str, element_index: int) -> tuple[str, int]:
        return item, element_index

    items = list("abcdefghij" * 30)
    stream = pmap(suited(f, kind), items, kind=kind, workers=3, ordered=is_ordered)
    assert sorted(stream, key=lambda output: output[1]) == [(item, index) for index, item in enumerate(items)]


@pytest.mark.parametrize("make", [list, tuple, bytes, iter, deque, partial(array, "B")])
def test_element_index_is_known_whatever_the_source(kind: str, make: Callable[[bytes], Iterable[int]]):
    def f(item: int, element_index: int) -> tuple[int, int]:
        if item == 13:
            raise LookupError("no")
        return item, element_index

    stream = pmap(suited(f, kind), make(bytes(range(10, 15))), kind=kind)
    assert [next(stream), next(stream), next(stream)] == [(10, 0), (11, 1), (12, 2)]
    with pytest.raises(LookupError) as caught:
        next(stream)
    assert "item 3: 13" in caught.value.__notes__[0]


def test_element_index_counts_what_reaches_the_stage(kind: str):
    def f(item: int, element_index: int) -> tuple[int, int]:
        return item, element_index

    stream = (
        range(10)
        | pfilter(suited(lambda item: item % 3 == 0, kind), kind=kind, workers=2)
        | pflat_map(suited(lambda item: [item, -item], kind), kind=kind, workers=2)
        | pmap(suited(f, kind), kind=kind, workers=2)
    )
    assert list(stream) == [(0, 0), (0, 1), (3, 2), (-3, 3), (6, 4), (-6, 5), (9, 6), (-9, 7)]


@pytest.mark.parametrize(
    ("combinator", "f", "expected"),
    [
        (pfilter, lambda item, element_index: element_index % 2 == 0, ["a", "c"]),
        (pflat_map, lambda item, element_index: [item] * element_index, ["b", "c", "c"]),
        (pmap, lambda item, element_index: f"{item}{element_index}", ["a0", "b1", "c2"]),
    ],
    ids=["pfilter", "pflat_map", "pmap"],
)
def test_every_combinator_passes_the_index(
    kind: str, combinator: Callable[..., Any], f: Callable[..., Any], expected: list[str]
):
    assert list(combinator(suited(f, kind), "abc", kind=kind, workers=2)) == expected


def test_all_together(kind: str):
    def f(item: int, one: int, worker_info: WorkerInfo, element_index: int, *, two: int) -> tuple[int, ...]:
        return item, one, element_index, two, worker_info.index

    stream = pmap(suited(f, kind), [7, 8], kind=kind, workers=1, on_start=lambda: {"one": 1, "two": 2})
    assert list(stream) == [(7, 1, 0, 2, 0), (8, 1, 1, 2, 0)]


# Coroutine functions


def test_on_start_f_and_on_done_may_be_coroutine_functions(gate: Gate, log: Log):
    async def on_start(worker_info: WorkerInfo) -> int:
        await gate.passed()
        return 10 * worker_info.index

    async def f(item: int, resource: int, worker_info: WorkerInfo) -> bool:
        return resource == 10 * worker_info.index

    async def on_done(stage_status: StageStatus, resource: int) -> None:
        await gate.passed()
        log.write(stage_status.done)

    gate.open()
    assert list(pmap(f, range(50), workers=3, on_start=on_start, on_done=on_done)) == [True] * 50
    assert log.entries()[-1] is True
