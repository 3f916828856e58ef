"""Tasks as `simulated` has them: the workers, their queue and their feeder are those that ship."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fstream import Observer, StageStatus, WorkerInfo, observe, pfilter, pmap
from fstream._workers.simulated.schedule import Simulation
from fstream._workers.task import workers
from fstream.testing import Schedule, schedules, simulated

STALLS = [(), (0,), (2,), (4,), (1, 2), (3, 1, 4), (0, 0, 5), (2, 7, 1, 8)]

LATE = "times out"


async def same(item: Any) -> Any:
    return item


async def counted(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


def lines(simulation: Simulation, *words: str) -> list[str]:
    return [line for line in simulation.trace if any(word in line for word in words)]


# --------------------------------------------------------------------------------------------------------- schedules


def test_each_worker_can_be_stalled_by_itself():
    """It ends its item last; the others on the loop go on."""

    def last(*stalls: int) -> int:
        with simulated(Schedule(stalls=stalls)):
            return list(pmap(same, range(3), workers=3, ordered=False))[-1]

    assert {last(stall) for stall in range(9)} == {0, 1, 2}


def test_without_a_stall_tasks_begin_and_end_in_order():
    with simulated() as simulation:
        assert list(pmap(same, range(9), workers=3, ordered=False)) == list(range(9))
    begun = [int(line.split()[5][:-1]) for line in lines(simulation, "calls f")]
    assert begun == list(range(9))


class Lone(Observer):
    """How many items were drawn by themselves."""

    count = 0

    def taken(self, stage: Any, start: int, count: int, worker: int | None) -> None:
        self.count += count if worker is None else 0


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("ordered", [True, False])
def test_items_that_wait_side_by_side_are_taken_by_themselves(stalls: tuple[int, ...], ordered: bool):
    with observe(lone := Lone()), simulated(Schedule(stalls=stalls)) as simulation:
        stage = pmap(same, workers=3, ordered=ordered) | pfilter(same, workers=3, ordered=ordered)
        assert sorted(stage(range(20))) == list(range(1, 20))
    assert lone.count > 10
    assert len(lines(simulation, "takes item")) == len(lines(simulation, "calls f")) == 40


@pytest.mark.parametrize("workers", [1, 3])
def test_a_cheap_f_does_not_wait_but_where_it_stalls(workers: int):
    def takers(*stalls: int) -> set[str]:
        with simulated(Schedule(stalls=stalls, cheap=True)) as simulation:
            assert list(pmap(same, range(50), workers=workers, maxsize=0)) == list(range(50))
        assert any(" to " in line for line in simulation.trace)
        return {line.split()[0] for line in lines(simulation, "calls f")}

    assert takers() == {"same[0]"}
    assert max(len(takers(stall)) for stall in range(6)) == min(2, workers)


# ------------------------------------------------------------------------------------------------------ times out


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("cheap", [False, True])
def test_each_item_that_hangs_is_found_by_the_watch(stalls: tuple[int, ...], cheap: bool):
    """Also one that begins to hang when no other does, and the watch has been over all."""
    faults: Any = ((0, LATE), (1, LATE), (3, LATE), (0, LATE))
    with simulated(Schedule(stalls=stalls, faults=faults, transient=True, cheap=cheap)) as simulation:
        stage = pmap(same, workers=2, timeout=10, retries=1, backoff=0)
        assert list(stage(range(8))) == list(range(8))
    assert len(lines(simulation, LATE)) == 4
    assert 21 < simulation.now < 100


def test_an_item_that_hangs_later_is_found_later():
    """Nobody begins anything meanwhile that would have the watch look again."""

    async def source() -> AsyncIterator[int]:
        for number in range(3):
            yield number
            await asyncio.sleep(3)

    with simulated(Schedule(faults=((0, LATE), (0, LATE), (0, LATE)))) as simulation:
        assert list(pmap(same, source(), workers=3, timeout=10, on_error="skip")) == []
    assert 1 + 6 + 10 <= simulation.now < 18


def test_time_alone_is_no_time_out():
    async def slow(item: int) -> int:
        await asyncio.sleep(100)
        return item

    with simulated(Schedule(stalls=(2, 2))):
        assert list(pmap(slow, range(5), workers=2, timeout=1)) == list(range(5))


def test_what_f_cleans_up_after_its_time_is_waited_for():
    cleaned: list[int] = []

    async def f(item: int) -> int:
        try:
            await asyncio.sleep(0)
        finally:
            cleaned.append(item)
        return item

    with pytest.raises(TimeoutError), simulated(Schedule(faults=((1, LATE),))) as simulation:
        list(pmap(f, range(9), workers=2, timeout=1))
    assert not simulation.runs[0].members and 0 in cleaned


# --------------------------------------------------------------------------------------------------- nested, async


@settings(max_examples=60, deadline=None)
@given(
    schedule=schedules(faults=True),
    workers_=st.integers(1, 4),
    ordered=st.booleans(),
    taken=st.integers(0, 12),
    is_async=st.booleans(),
)
def test_a_stream_in_f_of_another_is_iterated_on_its_loop(
    schedule: Schedule, workers_: int, ordered: bool, taken: int, is_async: bool
):
    async def first(n: int) -> list[int]:
        outputs: list[int] = []
        source: Any = counted(n) if is_async else range(n)
        stream = pmap(same, source, workers=workers_, ordered=ordered, retries=1, backoff=0, timeout=5)
        async for output in stream:
            outputs.append(output)
            if len(outputs) > taken:
                break
        await stream.aclose()
        return outputs

    with simulated(replace(schedule, transient=True)) as simulation:
        results = list(pmap(first, [5, 0, 9], workers=2, retries=1, backoff=0))
    assert [len(result) for result in results] == [min(5, taken + 1), 0, min(9, taken + 1)]
    assert not any(run.members for run in simulation.runs)


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("ahead", [False, True])
def test_an_async_source_is_pulled_as_the_schedule_says(stalls: tuple[int, ...], ahead: bool):
    closed: list[int] = []

    async def source() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.append(1)

    with (
        simulated(Schedule(stalls=stalls, ahead=ahead)) as simulation,
        pmap(same, source(), workers=2, maxsize=5) as stream,
    ):
        assert [next(stream) for _ in range(3)] == [0, 1, 2]
        pulled = len(lines(simulation, "pulls item"))
        assert stalls or pulled == (7 if ahead else 3)
        stream.drain()
        rest = list(stream)
        assert rest == list(range(3, 3 + len(rest))) and len(rest) >= pulled - 3
    assert closed == [1]


def test_a_coroutine_of_on_done_is_told_who_is_the_last():
    told: list[tuple[int, bool]] = []
    started = itertools.count()

    async def on_start(worker_info: WorkerInfo) -> int:
        await asyncio.sleep(next(started))
        return worker_info.index

    async def on_done(status: StageStatus, index: int) -> None:
        await asyncio.sleep(3 - index)
        told.append((index, status.done))

    for stalls in STALLS:
        told.clear()
        with simulated(Schedule(stalls=stalls)):
            stage = pmap(lambda item, _: item, kind="task", workers=3, on_start=on_start, on_done=on_done)
            assert list(stage(range(6))) == list(range(6))
        assert [done for _, done in told] == [False] * (len(told) - 1) + [True]


def test_the_workers_are_those_that_ship():
    with simulated() as simulation:
        stream = pmap(same, range(3))
        next(stream)
        (crew,) = simulation.runs[0].crews
        assert isinstance(crew, workers.Workers)
        assert all(isinstance(member, workers.Worker) for member in crew.members)
