"""Several streams at once on one pool of processes: turns, ends, and who waits for whom."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import pytest

from fstream import Processes, WorkerDied, pmap
from fstream._workers.process import pool
from fstream._workers.process.link import SHORTEST_LOOK, Link
from fstream._workers.process.pool import HOME_PATIENCE, Pool, Worker
from fstream._workers.process.warm import WARM
from fstream._workers.process.workers import Workers
from tests.faults.faulty import eventually
from tests.functions import square
from tests.gates import PATIENCE, Gate, Log, holding
from tests.test_pool import FakeLink, entered, leased

pytestmark = pytest.mark.slow

SQUARES = [n * n for n in range(100)]


@pytest.fixture
def two() -> Iterator[Processes]:
    """A pool of two workers."""
    with Processes(2) as processes:
        yield processes


def squares(kind: Any, **options: Any) -> list[int]:
    return list(pmap(square, iter(range(100)), kind=kind, **options))


def is_whole(processes: Processes) -> bool:
    """All workers are given back, and nobody waits for one."""
    owner = processes.pool()
    return eventually(lambda: not (owner.leases or owner.waiting or owner.tenants))


# How they end


def closed(streams: list[Any]) -> None:
    for stream in streams:
        stream.close()


def dropped(streams: list[Any]) -> None:
    streams.clear()
    gc.collect()


def left_by_an_error(streams: list[Any]) -> None:
    for stream in streams:
        with pytest.raises(KeyError), stream:
            raise KeyError


@pytest.mark.parametrize("leave", [closed, dropped, left_by_an_error])
def test_streams_that_are_left_give_their_workers_to_those_who_wait(
    two: Processes, leave: Callable[[list[Any]], None], make_gate: Callable[[], Gate], log: Log
):
    never = make_gate()
    streams: list[Any] = [
        pmap(holding("process", {n + 1: never}, log), count(n), kind=two, workers=1) for n in (0, 10)
    ]
    for stream in streams:
        for _ in stream:
            break
    log.wait_for(("start", 1), ("start", 11))
    del stream
    with ThreadPoolExecutor() as threads:
        others = [threads.submit(squares, two, workers=1) for _ in range(3)]
        assert eventually(lambda: len(two.pool().waiting) == 3)
        leave(streams)
        assert [other.result(PATIENCE) for other in others] == [SQUARES] * 3
    streams.clear()
    assert is_whole(two)


def test_tasks_of_one_loop_that_leave_their_streams_give_the_workers_to_those_who_wait(
    two: Processes, make_gate: Callable[[], Gate], log: Log
):
    never, others_wait = make_gate(), asyncio.Event()

    async def leaves(first: int) -> None:
        stream = pmap(holding("process", {first + 1: never}, log), count(first), kind=two, workers=1)
        async for _ in stream:
            break
        await others_wait.wait()
        await stream.aclose()

    async def takes_all() -> list[int]:
        while len(two.pool().leases) < 2:
            await asyncio.sleep(0)
        return [output async for output in pmap(square, iter(range(100)), kind=two, workers=1)]

    async def watch() -> None:
        await asyncio.to_thread(eventually, lambda: len(two.pool().waiting) == 2, PATIENCE)
        others_wait.set()

    async def main() -> list[Any]:
        _, *found = await asyncio.gather(watch(), leaves(0), leaves(10), takes_all(), takes_all())
        return found

    assert asyncio.run(main()) == [None, None, SQUARES, SQUARES]
    assert is_whole(two)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_errors_in_two_of_five_streams_leave_the_others_alone(two: Processes, is_ordered: bool):
    def f(item: int, bad: int) -> int:
        if item == bad:
            raise ValueError(item)
        return item

    def outcome(bad: int) -> Any:
        outputs: list[int] = []
        try:
            stream = pmap(lambda n: f(n, bad), iter(range(1000)), kind=two, ordered=is_ordered)
            outputs.extend(stream)
        except ValueError as error:
            return error.args, outputs == list(range(bad)) if is_ordered else bad not in outputs
        return sorted(outputs)

    with ThreadPoolExecutor(5) as threads:
        found = list(threads.map(outcome, [-1, 50, -1, 500, -1]))
    assert found[1::2] == [((50,), True), ((500,), True)]
    assert found[::2] == [list(range(1000))] * 3
    assert is_whole(two)


def test_five_streams_that_have_no_end_are_all_served(two: Processes):
    streams = [pmap(square, count(n * 1000), kind=two) for n in range(5)]
    try:
        for _ in range(3):
            for number, stream in enumerate(streams):
                before = next(stream)
                assert before >= (number * 1000) ** 2
                assert max(islice(stream, 50)) > before
    finally:
        closed(streams)
    assert is_whole(two)


# Who waits for whom


@pytest.fixture
def cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have the program's pool be without workers, on a machine of so many CPUs. Nobody waits long for a home."""
    WARM.clear()
    monkeypatch.setattr(pool, "HOME_PATIENCE", 1.0)
    yield lambda count: monkeypatch.setattr(pool, "cpu_count", lambda: count)
    WARM.clear()


def resourceful(log: Log, source: Any, workers: int, most: int, kind: Any = "process") -> Any:
    """A stream with resources that logs its starts and ends, and gives (item, index, pid)."""

    def on_start(worker_info: Any) -> int:
        log.write(("on_start", worker_info.index, os.getpid()))
        return os.getpid()

    def on_done(_: Any, pid: int, worker_info: Any) -> None:
        assert pid == os.getpid()
        log.write(("on_done", worker_info.index, pid))

    def f(item: int, pid: int, worker_info: Any) -> tuple[int, int, int]:
        assert pid == os.getpid()
        return item, worker_info.index, pid

    return pmap(f, source, kind=kind, workers=workers, maxsize=most, on_start=on_start, on_done=on_done)


def noted(log: Log, what: str) -> list[tuple[int, int]]:
    return sorted(entry[1:] for entry in log.entries() if entry[0] == what)


def test_an_item_in_the_only_worker_of_a_stage_may_wait_for_that_stage(
    cpus: Callable[[int], None], gate: Gate, log: Log
):
    """The item of another stream goes on when the stage has given another output, which it does elsewhere."""
    cpus(1)
    with resourceful(log, count(), workers=1, most=1) as stream, ThreadPoolExecutor() as threads:
        first, _, home = next(stream)
        other = threads.submit(list, pmap(holding("process", {7: gate}, log), [7], kind="process", workers=1))
        log.wait_for(("start", 7))
        second, index, elsewhere = threads.submit(next, stream).result(PATIENCE)
        gate.open()
        assert other.result(PATIENCE) == [7]
        assert (first, second, index) == (0, 1, 0)
        assert home != elsewhere
        assert [next(stream)[:2] for _ in range(20)] == [(n, 0) for n in range(2, 22)]
    assert eventually(lambda: len(noted(log, "on_done")) == 2)
    assert noted(log, "on_start") == noted(log, "on_done") == sorted([(0, home), (0, elsewhere)])


def test_items_in_all_workers_of_a_stage_may_wait_for_that_stage(
    cpus: Callable[[int], None], make_gate: Callable[[], Gate], log: Log
):
    """No two workers of the stage have one index at the same time, whatever becomes of the first ones."""
    cpus(2)
    gate = make_gate()
    with resourceful(log, iter(range(300)), workers=2, most=4) as stream, ThreadPoolExecutor() as threads:
        before = [next(stream) for _ in range(50)]
        hold = holding("process", {1: gate, 2: gate}, log)
        other = threads.submit(list, pmap(hold, [1, 2], kind="process", workers=2))
        log.wait_for(("start", 1), ("start", 2))
        after = threads.submit(lambda: [next(stream) for _ in range(50)]).result(PATIENCE)
        gate.open()
        assert other.result(PATIENCE) == [1, 2]
        rest = list(stream)
    found = before + after + rest
    assert [item for item, _, _ in found] == list(range(300))
    assert {index for _, index, _ in found} <= {0, 1}
    assert noted(log, "on_start") == noted(log, "on_done")


def test_a_stage_returns_to_a_worker_that_it_has_left_rather_than_to_begin_in_a_third_one(
    cpus: Callable[[int], None], make_gate: Callable[[], Gate], log: Log
):
    cpus(1)
    with resourceful(log, count(), workers=1, most=1) as stream, ThreadPoolExecutor() as threads:
        next(stream)
        for item in range(3):
            gate = make_gate()
            hold = holding("process", {item: gate}, log)
            other = threads.submit(list, pmap(hold, [item], kind="process", workers=1))
            log.wait_for(("start", item))
            threads.submit(next, stream).result(PATIENCE)
            gate.open()
            assert other.result(PATIENCE) == [item]
    assert eventually(lambda: noted(log, "on_start") == noted(log, "on_done"))
    assert len(noted(log, "on_start")) == 2


def test_a_handler_may_take_from_a_stream_whose_only_worker_is_at_the_failed_item_s_stage(
    cpus: Callable[[int], None], log: Log
):
    cpus(1)
    with resourceful(log, count(), workers=1, most=1) as stream:
        next(stream)

        def f(item: int) -> int:
            raise ValueError(item)

        def handler(_: Exception, item: int) -> int:
            return item * int(next(stream)[0])

        answered = pmap(f, [10, 100], kind="process", workers=1, on_error=handler)
        assert list(answered) == [10, 200]


def test_f_may_wait_for_a_stage_that_has_a_worker_which_sleeps_too(
    cpus: Callable[[int], None], make_gate: Callable[[], Gate], log: Log
):
    """Of two workers, one is at an item of each stream: both wait for the next item of the second stream."""
    cpus(2)
    third, second = make_gate(), make_gate()

    def opens(item: int) -> int:
        log.write(("start", item))
        if item == 1:
            second.wait()
        return item

    with ThreadPoolExecutor() as threads:
        first = threads.submit(
            list, pmap(holding("process", {7: third}, log), [7], kind="process", workers=1)
        )
        log.wait_for(("start", 7))
        stream = pmap(opens, iter([1, 2]), kind="process", workers=2, ordered=False)
        assert threads.submit(next, stream).result(PATIENCE) == 2
        third.open()
        second.open()
        assert list(stream) == [1]
        assert first.result(PATIENCE) == [7]


def test_the_end_of_a_stream_that_is_closed_waits_for_no_item_in_its_worker(
    cpus: Callable[[int], None], gate: Gate, log: Log
):
    """Where the item waits for the end of the stream: an end by exhaustion would wait for the item."""
    cpus(1)
    stream = resourceful(log, count(), workers=1, most=1)
    next(stream)
    with ThreadPoolExecutor() as threads:
        other = threads.submit(list, pmap(holding("process", {7: gate}, log), [7], kind="process", workers=1))
        log.wait_for(("start", 7))
        stream.close()
        assert noted(log, "on_done") == []
        gate.open()
        assert other.result(PATIENCE) == [7]
    assert eventually(lambda: len(noted(log, "on_done")) == 1)


def test_a_stage_that_waits_for_a_worker_that_dies_gets_another_one_however_late_it_hears_of_that(
    log: Log, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    """By then nobody else is there any more who could have the pool look who waits."""
    hears, mourn = threading.Event(), Workers.mourn

    def mourn_late(crew: Workers) -> None:
        if crew.mourned:
            assert hears.wait(PATIENCE)
        mourn(crew)

    monkeypatch.setattr(Workers, "mourn", mourn_late)
    with (
        Processes(1) as one,
        ThreadPoolExecutor() as threads,
        resourceful(log, count(), workers=1, most=1, kind=one) as stream,
    ):
        next(stream)

        def die(_: int) -> None:
            log.write("begun")
            gate.wait()
            os.kill(os.getpid(), signal.SIGKILL)

        other = threads.submit(list, pmap(die, [1], kind=one))
        log.wait_for("begun")
        output = threads.submit(next, stream)
        assert eventually(lambda: len(one.pool().waiting) == 1)
        gate.open()
        assert type(other.exception(PATIENCE)) is WorkerDied
        assert eventually(lambda: len(one.pool().tenants) == 1)
        hears.set()
        assert output.result(PATIENCE)[0] == 1


# Which worker has which index


def crew_at_work(begun: dict[Any, int], at_work: list[int], free: list[int]) -> Workers:
    crew = Workers.__new__(Workers)
    crew.begun_in, crew.free_indexes, crew.ending = begun, free, False
    crew.workers = []
    for index in at_work:
        worker = Worker(crew, None)
        worker.index = index
        crew.workers.append(worker)
    return crew


def test_the_workers_that_share_an_index_take_turns():
    left, present, other = FakeLink(), FakeLink(), FakeLink()
    crew = crew_at_work({left: 0, present: 0, other: 1}, [0], [])
    assert not crew.takes(left)  # type: ignore[arg-type]
    assert crew.takes(other)  # type: ignore[arg-type]
    assert crew.spare_index([left, other]) == 1  # type: ignore[list-item]
    crew.workers = []
    assert crew.takes(left)  # type: ignore[arg-type]
    assert crew.spare_index([left, other]) == 0  # type: ignore[list-item]


def test_an_index_is_free_when_the_last_worker_of_that_index_is_gone():
    left = FakeLink()
    crew = crew_at_work({left: 0}, [], [])
    crew.free(0)  # of one that has died
    assert crew.free_indexes == []
    crew = crew_at_work({}, [0], [])
    crew.free(0)
    assert crew.free_indexes == []
    crew.workers = []
    crew.free(0)
    assert crew.free_indexes == [0]


# Who sleeps, as the pool decides


@pytest.mark.parametrize(("seconds", "is_given"), [(HOME_PATIENCE - 1, False), (HOME_PATIENCE + 1, True)])
def test_a_stage_begins_elsewhere_only_when_its_worker_has_slept_for_long(
    monkeypatch: pytest.MonkeyPatch, seconds: float, is_given: bool
):
    monkeypatch.setattr(pool, "cpu_count", lambda: 1)
    free = Pool()
    a, b = entered(free, 2, 1)
    worker: Any = leased(free, a)
    worker.since = time.perf_counter() - seconds
    b.only, b.index = {worker.link}, 0
    assert free.hire(b) is None
    free.look_for_sleepers(b)
    assert [granted.index for granted in b.granted] == [0] * is_given


def test_a_stage_that_waits_while_a_worker_sleeps_gets_an_idle_one_rather_than_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pool, "cpu_count", lambda: 1)
    free = Pool()
    a, b = entered(free, 2, 1)
    worker: Any = leased(free, a)
    worker.since = -PATIENCE
    free.warm.put(spare := FakeLink())  # type: ignore[arg-type]
    assert free.hire(b) is None
    free.look_for_sleepers(b)
    assert [granted.link for granted in b.granted] == [spare]


@pytest.mark.parametrize("is_asleep", [True, False])
def test_a_stage_that_has_a_worker_gets_one_more_only_if_its_own_sleeps_too(
    monkeypatch: pytest.MonkeyPatch, is_asleep: bool
):
    monkeypatch.setattr(pool, "cpu_count", lambda: 2)
    free = Pool()
    a, b = entered(free, 2, 2)
    others, own = leased(free, a), leased(free, b)
    others.since = own.since = -PATIENCE
    own.link.asleep = is_asleep
    assert free.hire(b) is None
    free.look_for_sleepers(b)
    assert len(b.granted) == is_asleep


def test_a_worker_at_work_does_not_sleep_for_the_second_who_asks(monkeypatch: pytest.MonkeyPatch):
    """Within a moment it has used no CPU that could be told from none."""
    now, used = 100.0, 5.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "clock_gettime", lambda _: used)
    link = Link.__new__(Link)
    link.looked, link.used, link.asleep = 0.0, -1.0, False
    link.process = type("Process", (), {"pid": 1})()
    assert not link.sleeps()
    now, used = now + 1, used + 0.9
    assert not link.sleeps()
    now += SHORTEST_LOOK / 2
    assert not link.sleeps()
    now += SHORTEST_LOOK
    assert link.sleeps()
