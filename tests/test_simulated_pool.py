"""The pool of processes as `simulated` has it: its workers are actors, and what decides is what ships."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterable, Iterator
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any

import pytest

from fstream import Processes, WorkerDied, pfilter, pmap
from fstream._workers.process import pool
from fstream._workers.simulated.schedule import Simulation
from fstream.testing import Schedule, simulated

#: What the workers have done: they are simulated, so they have this very list.
LOG: list[Any] = []

STALLS = [(), (0,), (1, 2), (3, 1, 4), (0, 0, 5), (2, 7, 1, 8)]


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cpu_count", lambda: 2)


def started(name: str) -> str:
    LOG.append(("start", name))
    return name


def ended(_status: Any, name: str) -> None:
    LOG.append(("end", name))


def unchanged(item: Any, _resource: Any = None) -> Any:
    return item


def at_once(*streams: Any) -> list[list[Any]]:
    """Take all outputs of each stream in a task of its own."""

    async def outputs(stream: AsyncIterable[Any]) -> list[Any]:
        return [output async for output in stream]

    return list(pmap(outputs, streams, kind="task", workers=len(streams)))


def leases(simulation: Simulation) -> int:
    return sum(len(each.leases) for each in simulation.pools.values())


@pytest.mark.parametrize("stalls", STALLS)
def test_streams_at_once_have_as_many_workers_as_cpus(two_cpus: None, stalls: tuple[int, ...]):
    with simulated(Schedule(stalls=stalls)) as simulation:
        given = at_once(*(pmap(abs, range(9), kind="process", workers=2) for _ in range(4)))
    assert given == [list(range(9))] * 4
    assert len(simulation.processes) == 2


@pytest.mark.parametrize("stalls", STALLS)
def test_a_row_of_stages_goes_on_with_one_worker(stalls: tuple[int, ...]):
    one = Processes(1)
    with simulated(Schedule(stalls=stalls)) as simulation:
        row = [pmap(unchanged, kind=one, workers=2, maxsize=size) for size in (1, 2, 1, 3)]
        assert list(row[0](range(7)) | row[1] | row[2] | row[3]) == list(range(7))
    assert len(simulation.processes) == 1


@pytest.mark.parametrize("stalls", STALLS)
def test_a_stream_gets_its_turn_beside_one_that_always_has_more_to_do(stalls: tuple[int, ...]):
    one, given = Processes(1), list[int]()

    async def consume(which: str) -> None:
        stream = pmap(abs, count() if which == "endless" else range(5), kind=one)
        async for output in stream:
            if which == "short":
                given.append(output)
            assert output < 1000, "the other waits for ever"
            if given == list(range(5)):
                break
        await stream.aclose()

    with simulated(Schedule(stalls=stalls)):
        list(pmap(consume, ["endless", "short"], kind="task"))
    assert given == list(range(5))


def test_a_stage_whose_room_is_full_has_no_worker():
    with simulated() as simulation:
        full = pmap(abs, range(9), kind=Processes(1), maxsize=1)
        assert next(full) == 0
        other = pmap(abs, range(9), kind="process", workers=1)
        assert list(other) == list(range(9))
        same = pmap(abs, range(9), kind=simulation.runs[0].crews[0].stage.engine)
        assert list(same) == list(range(9))
        assert list(full) == list(range(1, 9))


def resourceful(one: Processes, name: str, **options: Any) -> Any:
    if options.get("retries"):
        options["backoff"] = 0
    options |= {"on_start": partial(started, name), "on_done": ended}
    return pmap(unchanged, kind=one, workers=1, name=name, maxsize=1, **options)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_worker_that_dies_with_three_stages_in_it_is_lost_to_the_options_of_the_one_at_work(retries: int):
    one = Processes(1)
    with simulated(Schedule(faults=((5, "dies"),))):
        streams = [resourceful(one, name, retries=retries)(range(4)) for name in "abc"]
        given: list[list[Any]] = [[], [], []]
        died = []
        for turn in range(12):
            try:
                given[turn % 3] += [next(streams[turn % 3])]
            except WorkerDied:
                died.append(turn % 3)
            except StopIteration:
                assert turn % 3 in died
        for stream in streams:
            assert not list(stream)
    whole = [n for n in range(3) if given[n] == list(range(4))]
    assert len(died) == (0 if retries else 1) and whole == [n for n in range(3) if n not in died]
    counts = Counter(LOG)
    assert (
        sum(counts["start", name] for name in "abc")
        > sum(counts["end", name] for name in "abc")
        == 3 - len(died)
    )


def test_each_stage_counts_the_items_of_a_worker_for_itself():
    one = Processes(1)
    with simulated() as simulation:
        few, many = resourceful(one, "few", max_items_per_worker=2), resourceful(one, "many")
        assert at_once(few(range(6)), many(range(6))) == [list(range(6))] * 2
    counts = Counter(LOG)
    assert counts["start", "few"] == counts["end", "few"] == 3
    assert counts["start", "many"] == counts["end", "many"]
    assert len(simulation.processes) >= 3


@pytest.mark.parametrize("way", ["closed", "dropped"])
def test_a_stream_that_is_left_gives_its_worker_back_at_once(way: str):
    one = Processes(1)
    with simulated() as simulation:
        left = pmap(abs, count(), kind=one)
        assert next(left) == 0
        assert leases(simulation) == 1
        if way == "closed":
            left.close()
            assert not leases(simulation)
        del left
        assert list(pmap(abs, range(3), kind=one)) == [0, 1, 2]
        assert not leases(simulation)


VARIABLE = ContextVar("VARIABLE", default=0)


def test_a_process_has_those_context_variables_that_it_is_given():
    VARIABLE.set(7)
    with simulated():
        stage = partial(pmap, lambda _: VARIABLE.get(), [1], kind="process")
        assert list(stage(context=[VARIABLE])) == [7]
        assert list(stage()) == [0]


def squares_below(n: int) -> list[int]:
    return list(pmap(abs, range(n), kind="process") | pfilter(bool, kind="process", maxsize=1))


def test_a_pipeline_in_f_has_workers_of_its_own():
    with simulated() as simulation:
        assert list(pmap(squares_below, range(4), kind=Processes(1))) == [[], [], [1], [1, 2]]
    assert len(simulation.pools) == 2


def test_a_source_may_be_a_stream_on_the_same_worker():
    one = Processes(1)

    def source() -> Iterator[int]:
        yield from pmap(abs, [-1, -2], kind=one)

    with simulated(Schedule(ahead=True)):
        assert list(pmap(abs, source(), kind=one)) == [1, 2]


def test_a_closed_pool_is_an_error():
    with Processes(1) as one:
        stream = pmap(abs, [1], kind=one)
    with pytest.raises(RuntimeError, match="is closed"), simulated():
        list(stream)


def test_to_wait_for_a_worker_for_ever_is_a_hang(monkeypatch: pytest.MonkeyPatch):
    """Those who wait look at the pool again and again, so time never stands still."""
    monkeypatch.setattr(pool.Pool, "_deal", lambda self: None)
    one = Processes(1)
    with pytest.raises(AssertionError, match="nobody can go on"), simulated():
        first = pmap(abs, count(), kind=one)
        assert next(first) == 0
        list(pmap(abs, range(3), kind=one))


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("turn", range(12))
def test_a_stage_that_winds_up_hears_of_a_worker_that_died_with_another_stage(turn: int):
    """It has resources there, and would wait for it until it is given back."""
    two = partial(pmap, kind=Processes(2), retries=9, backoff=0, ordered=False)
    with simulated(Schedule(faults=((turn, "dies"),), transient=True)):
        first = two(unchanged, iter(range(3)), workers=2, on_start=partial(started, "x"), on_done=ended)
        row = two(unchanged, two(unchanged, first, workers=1), workers=1)
        assert sorted(at_once(row)[0]) == [0, 1, 2]


@pytest.mark.parametrize(
    "stalls", [(3, 5, 7, 1), (5, 7, 4, 2, 4, 6, 2, 3, 2, 7, 2, 7, 6, 7, 2, 5, 2, 4, 3, 7)]
)
def test_a_worker_that_falls_behind_is_not_passed_over_for_ever(stalls: tuple[int, ...]):
    """Its items are taken back from it each time, and then it is given others."""

    def f(item: int) -> int:
        return 1 // (item - 8)

    with pytest.raises(ZeroDivisionError), simulated(Schedule(stalls=stalls, ahead=True)):
        list(pmap(f, count(), kind="process", maxsize=5, workers=2, ordered=False))


@pytest.mark.usefixtures("two_cpus")
def test_a_stage_that_only_waits_itself_does_not_look_without_end_whether_others_do():
    """Its worker was recalled, is slow, and nobody else waits any more."""

    def same(item: int, worker_info: Any) -> int:
        return item

    two = partial(pmap, same, kind=Processes(2), retries=9, ordered=False)
    with simulated(Schedule(faults=((5, "times out"), (2, "times out")), transient=True)):
        first = two(iter(range(4)), workers=1, max_items_per_worker=3, backoff=0)
        row = two(two(first, workers=1, timeout=5, backoff=0), workers=2, timeout=5, backoff=0)
        assert sorted(at_once(row)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("lengths", "others", "stalls"),
    [
        ([1, 1], [None], (8, 2, 1, 0)),
        ([5, 6, 5], [3, 3], (4, 8, 4, 6, 8)),
        ([3, 2, 2], [3, 3], (1, 6, 8, 4, 8)),
        ([6, 2], [3, 3], (4, 6, 8)),
        ([6, 6, 1], [3, 3], (3,)),
    ],
)
def test_a_worker_that_starts_gets_its_turn_beside_one_that_always_has_more_to_do(
    lengths: list[int], others: list[int | None], stalls: tuple[int, ...]
):
    """Else what it was given is taken back before it begins, and it is given to the next one who waits."""
    kind, left, taken = Processes(2), len(lengths), Counter[int]()

    async def finite(length: int) -> None:
        nonlocal left
        assert await pmap(abs, range(length), kind=kind, workers=2) == list(range(length))
        left -= 1

    async def endless(number: int) -> None:
        stream = pmap(abs, count(), kind=kind, workers=2, maxsize=others[number])
        async for _ in stream:
            taken[number] += 1
            if not left:
                break
            assert taken[number] < 1000
        await stream.aclose()

    async def consume(number: int) -> None:
        await (finite(lengths[number]) if number < len(lengths) else endless(number - len(lengths)))

    with simulated(Schedule(stalls=stalls, ahead=True)):
        total = len(lengths) + len(others)
        list(pmap(consume, range(total), workers=total))


def test_a_stream_that_is_dropped_is_stopped_by_a_step_of_its_own():
    with simulated() as simulation:
        stream = pmap(abs, count(), kind="process", maxsize=2)
        assert next(stream) == 0
        del stream
        gc.collect()
        assert simulation.runs[0].members
        simulation.finish_all(lambda: simulation.runs[0].members)
