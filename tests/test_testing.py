"""fstream.testing: what a simulation does, what each fault is, and what `assert_lawful` finds."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase

from fstream import (
    NotPicklable,
    RemoteError,
    StageStatus,
    WorkerDied,
    WorkerInfo,
    merge,
    pfilter,
    pflat_map,
    pmap,
)
from fstream.testing import Schedule, SimulatedError, assert_lawful, schedules, simulated
from tests.functions import identity, is_odd, square, suited
from tests.leaks import Running
from tests.sources import Source

pytestmark = pytest.mark.slow

NUMBERS = st.lists(st.integers(0, 9), max_size=8)
DIES, RAISES, LATE = ((0, "dies"),), ((0, "raises"),), ((0, "times out"),)


def outputs_under(schedule: Schedule, stream_of: Callable[[], Iterable[Any]]) -> list[Any]:
    with simulated(schedule):
        return list(stream_of())


# ------------------------------------------------------------------------------------------------ interleaving


def where(_: int) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def test_nothing_real_is_started(concurrent_kind: str):
    before, here = Running.now(), where(0)
    with simulated():
        stream = pmap(where, range(9), kind=concurrent_kind)
        assert [next(stream) for _ in range(3)] == [here] * 3
        now = Running.now()
        assert now.threads == before.threads and now.busy_processes == before.busy_processes


def refused() -> Executor:
    raise AssertionError("nobody asked for an executor")


NEEDS_DASK = pytest.mark.skipif(find_spec("distributed") is None, reason="needs distributed")


@pytest.mark.parametrize("kind", [pytest.param("dask", marks=NEEDS_DASK), refused], ids=["dask", "factory"])
def test_no_cluster_is_needed_and_no_executor_is_opened(kind: Any):
    stream = partial(pmap, square, kind=kind)
    with simulated(Schedule()):
        assert list(stream(range(20))) == [square(item) for item in range(20)]
        failing = pmap(partial(int.__floordiv__, 1), [1, 0, 1], kind=kind, workers=1, on_error="skip")
        assert list(failing) == [1, 1]
    assert_lawful(pmap(square, kind=kind, workers=3, retries=1), partial(map, square), sources=NUMBERS)


@given(schedule=schedules(faults=True), kind=st.sampled_from(["thread", "process", "task"]))
@settings(max_examples=50, deadline=None)
def test_the_same_schedule_gives_the_same_story(schedule: Schedule, kind: str):
    def story() -> str:
        with simulated(schedule) as simulation:
            stage = pmap(square, kind=kind, workers=3, ordered=False, retries=1, timeout=1, on_error="skip")
            list(range(12) | stage | pflat_map(range, kind="task", on_error="skip"))
        return simulation.story()

    assert story() == story()


def test_a_stall_changes_the_order_in_which_items_complete(concurrent_kind: str):
    def numbers(ordered: bool, *stalls: int) -> list[int]:
        stream = pmap(identity, kind=concurrent_kind, workers=3, ordered=ordered)
        return outputs_under(Schedule(stalls=stalls), lambda: stream(range(6)))

    shuffled = [numbers(False, stall) for stall in range(12)]
    assert numbers(False) == list(range(6)) and any(outputs != list(range(6)) for outputs in shuffled)
    assert all(sorted(outputs) == list(range(6)) for outputs in shuffled)
    assert all(numbers(True, stall) == list(range(6)) for stall in range(12))


def test_cheap_items_travel_together(concurrent_kind: str):
    def story(cheap: bool) -> str:
        with simulated(Schedule(cheap=cheap)) as simulation:
            list(pmap(identity, range(100), kind=concurrent_kind, workers=1, maxsize=0))
        return simulation.story()

    assert re.search(r"takes item \d+ to ", story(True)) and " to " not in story(False)


def test_streams_still_open_are_closed_at_the_end_of_the_block(concurrent_kind: str):
    source = Source(itertools.count())
    with simulated() as simulation:
        stream = pmap(identity, source, kind=concurrent_kind)
        next(stream)
        assert not source.closed.is_set()
    assert source.closed.is_set() and not simulation.runs[0].members


def test_after_the_block_streams_are_real():
    with simulated():
        pass
    assert set(pmap(lambda _: threading.get_ident(), range(3))) != {threading.get_ident()}


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_context_variables_reach_the_workers(kind: str):
    variable = ContextVar("variable", default=0)
    variable.set(7)
    stage = partial(pmap, lambda _: variable.get(), [1], kind=kind)
    assert outputs_under(Schedule(), stage) == [7]
    handler = partial(stage, on_error=lambda *_: variable.get(), timeout=1)
    assert outputs_under(Schedule(faults=LATE), handler) == [7]


# ------------------------------------------------------------------------------------------------------- hangs


async def never(_: Any = None) -> None:
    await asyncio.Event().wait()


async def one_and_no_more() -> AsyncIterator[int]:
    yield 1
    await never()


def test_a_hang_is_an_error():
    with pytest.raises(AssertionError, match="nobody can go on") as raised, simulated():
        list(pmap(never, range(3)))
    assert "calls f on item 0" in raised.value.__notes__[-1]


def test_a_source_that_blocks_is_a_hang(concurrent_kind: str):
    with pytest.raises(AssertionError, match="nobody can go on"), simulated():
        list(pmap(identity, one_and_no_more(), kind=concurrent_kind))


def test_a_hang_within_f_cannot_be_skipped():
    with pytest.raises(AssertionError, match="nobody can go on"), simulated():
        list(pmap(lambda _: list(pmap(never, [1])), range(3), on_error="skip"))


def test_tasks_and_sources_that_block_are_cancelled_at_an_early_end():
    cleaned = []

    async def source() -> AsyncIterator[int]:
        try:
            yield 0
            yield 1
            await never()
        finally:
            cleaned.append("source")

    async def f(x: int) -> int:
        try:
            if x:
                await never()
        finally:
            cleaned.append(f"f({x})")
        return x

    with simulated() as simulation, pmap(f, source(), workers=3) as stream:
        assert next(stream) == 0
        simulation.step()
    assert sorted(cleaned) == ["f(0)", "f(1)", "source"] or sorted(cleaned) == ["f(0)", "source"]


# ---------------------------------------------------------------------------------------------- event loops


async def slept(x: int) -> int:
    async with asyncio.timeout(100):
        await asyncio.sleep(50 - x)
    return x


def test_time_is_the_simulations():
    with simulated() as simulation:
        assert list(pmap(slept, range(9), ordered=False)) == list(range(8, -1, -1))
    assert 50 < simulation.now < 60  # cancelled time-outs are not waited for


def test_f_may_iterate_asynchronously():
    async def total(n: int) -> int:
        return sum(await pmap(slept, range(n))) + sum(
            [x async for x in pmap(square, range(n), kind="process")]
        )

    with simulated():
        assert list(pmap(total, range(5))) == [0, 0, 2, 8, 20]


def test_workers_of_f_know_nothing_of_its_loop():
    def runs_a_loop(x: int) -> int:
        return asyncio.run(asyncio.sleep(0, x))

    with simulated():
        nested = pmap(lambda x: list(pmap(runs_a_loop, [x], kind="thread")), range(3), kind="task")
        assert list(nested) == [[0], [1], [2]]


async def counted(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(3600)
        yield number


@pytest.mark.parametrize("stalls", [(), (0, 1, 0, 2, 5)])
def test_streams_are_simulated_on_an_event_loop_of_real_life(concurrent_kind: str, stalls: tuple[int, ...]):
    threads = threading.active_count()

    async def main() -> None:
        stage = partial(pmap, suited(square, concurrent_kind), kind=concurrent_kind, workers=3)
        row = stage(counted(9)) | pfilter(suited(is_odd, concurrent_kind), kind=concurrent_kind)
        assert await row == [1, 9, 25, 49]
        outputs = []
        async for output in stage(itertools.count()):
            outputs.append(output)
            if output > 99:
                break
        assert outputs == [number * number for number in range(11)]
        stream = stage(itertools.count())
        assert [await anext(stream), await anext(stream)] == [0, 1]
        await stream.aclose()
        assert [output async for output in stream] == []
        with pytest.raises(ZeroDivisionError):
            await stage(1 // (2 - number) for number in range(5))
        assert asyncio.current_task() is not None
        assert threading.active_count() == threads

    with simulated(Schedule(stalls=stalls)) as simulation:
        asyncio.run(main())
    assert "takes item 0" in simulation.story()


def test_what_only_a_task_of_real_life_could_bring_is_a_hang():
    async def main() -> None:
        opened = asyncio.Event()

        async def waits(number: int) -> int:
            await opened.wait()
            return number

        asyncio.get_running_loop().call_soon(opened.set)
        await pmap(waits, range(3))

    with pytest.raises(AssertionError, match="nobody can go on"), simulated():
        asyncio.run(main())


def test_a_task_cancelled_by_itself_ends_the_stream():
    async def f(x: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return x

    with pytest.raises(asyncio.CancelledError), simulated():
        list(pmap(f, range(3)))


# ----------------------------------------------------------------------------------------- nested and composed


def test_streams_are_nested(concurrent_kind: str):
    def squares_below(n: int) -> list[int]:
        return list(pmap(square, range(n), kind="process"))

    with simulated(Schedule(stalls=(3, 1, 4, 1, 5))):
        assert list(pmap(squares_below, range(4), kind=concurrent_kind)) == [[], [0], [0, 1], [0, 1, 4]]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("stall", range(20))
def test_rows_with_sync_stages_between_them_do_not_hold_each_other_up(stall: int, ahead: bool):
    """Each is iterated by the feeder of the next, all on one stack."""

    def stage(maxsize: int | None = None) -> Any:
        return pmap(identity, kind="thread", workers=1, maxsize=maxsize)

    between = pmap(identity, kind="sync")
    row = stage() | between | stage(0) | between | stage(1) | stage()
    with simulated(Schedule(stalls=(stall,), ahead=ahead)):
        assert list(row([1, 2, 3])) == [1, 2, 3]


def test_a_source_that_is_a_stream_is_stopped_with_what_it_feeds():
    def endless() -> Iterator[int]:
        yield from pfilter(lambda x: x < 3, itertools.count(), kind="thread")

    def f(x: int) -> int:
        return 1 // (2 - x)

    with pytest.raises(ZeroDivisionError), simulated():
        list(pmap(f, endless(), kind="thread"))


def test_all_combine():
    async def times(n: int) -> AsyncIterator[int]:
        for _ in range(n):
            yield n

    with simulated(Schedule(stalls=(2, 7, 1, 8))):
        chain = pmap(square, kind="process") | pfilter(bool, kind="sync") | pflat_map(times)
        assert list(chain(range(3))) == [1, 4, 4, 4, 4]
        assert sorted(merge(chain(range(3)), [0])) == [0, 1, 4, 4, 4, 4]


# ----------------------------------------------------------------------------------------------------- workers


def test_processes_have_copies(concurrent_kind: str):
    seen: list[int] = []
    with simulated():
        items = [[1], [2]]
        outputs = list(pmap(lambda item: seen.append(1) or item, items, kind=concurrent_kind))  # type: ignore[func-returns-value]
    shared = concurrent_kind != "process"
    assert outputs == items and (outputs[0] is items[0]) == shared and bool(seen) == shared


@pytest.mark.parametrize("retries", [0, 1])
def test_what_cannot_be_pickled_fails_as_in_real_processes(retries: int):
    lock = threading.Lock()
    stage = partial(pmap, kind="process", retries=retries, name="stage")
    cases: list[tuple[Callable[[Any], Any], list[Any], str]] = [
        (identity, [lock], "item cannot be pickled"),
        (lambda _: threading.Lock(), [1], "its output, of type lock, cannot be pickled"),
        (lambda _: lock, [1], "f cannot be pickled: its variable 'lock'"),
    ]
    for f, items, message in cases:
        with pytest.raises(NotPicklable, match=message), simulated():
            list(stage(f, items))


def test_an_output_that_cannot_be_pickled_has_its_retries():
    with simulated():
        assert list(pmap(first_time_unpicklable, range(3), kind="process", retries=1)) == [0, 1, 2]


CALLS = itertools.count()


def first_time_unpicklable(x: int) -> Any:
    return threading.Lock() if next(CALLS) == 1 else x


def test_an_exception_that_cannot_be_sent_is_a_remote_error():
    def f(_: int) -> None:
        raise KeyError(threading.Lock())

    with pytest.raises(RemoteError), simulated():
        list(pmap(f, [1], kind="process"))


def test_stop_iteration_is_named(concurrent_kind: str):
    with pytest.raises(RuntimeError, match="next raised StopIteration"), simulated():
        list(pmap(next, [iter([])], kind=concurrent_kind))


def test_each_worker_has_its_resources_and_one_is_the_last(concurrent_kind: str):
    LOG.clear()
    with simulated(Schedule(stalls=(4, 2, 9))):
        stream = pmap(
            lambda x, own, element_index: (x, element_index), "abcdef", kind=concurrent_kind, workers=3,
            on_start=log_start, on_done=log_done,
        )  # fmt: skip
        assert list(stream) == [*zip("abcdef", range(6))]
    started, ended = LOG.count("start"), [entry for entry in LOG if entry != "start"]
    assert len(ended) == started and ended.count(True) == 1 and ended[-1] is True


LOG: list[Any] = []


def log_start(worker_info: WorkerInfo) -> int:
    assert worker_info.index in range(3)
    LOG.append("start")
    return worker_info.index


def log_done(status: StageStatus, _index: int) -> None:
    LOG.append(status.done)


def test_coroutines_of_on_done_run_one_after_the_other():
    running: list[bool] = []

    async def on_done(status: StageStatus) -> None:
        await asyncio.sleep(1 + status.active_workers)
        running.append(status.done)

    with simulated():
        list(pmap(slept, range(9), workers=3, on_done=on_done))
    assert running[-1] and not any(running[:-1])


def test_on_start_that_raises_has_no_on_done(kind: str):
    LOG.clear()
    with pytest.raises(ZeroDivisionError) as raised, simulated():
        list(pmap(identity, range(3), kind=kind, on_start=lambda: 1 / 0, on_done=log_done))
    assert not LOG and "on_start" in raised.value.__notes__[0]


def test_on_start_that_raises_has_no_on_done_in_real_life(kind: str):
    done = []
    with pytest.raises(ZeroDivisionError):
        list(pmap(identity, range(3), kind=kind, on_start=lambda: 1 / 0, on_done=done.append))
    assert not done


def test_a_process_is_replaced_after_its_items():
    LOG.clear()
    with simulated():
        stream = pmap(
            with_resource,
            range(7),
            kind="process",
            workers=1,
            max_items_per_worker=2,
            on_start=log_start,
            on_done=log_end,
        )
        assert list(stream) == list(range(7))
    assert LOG == ["start", "end"] * 4


def with_resource(x: int, _resource: int) -> int:
    return x


def log_end(_status: StageStatus, _index: int) -> None:
    LOG.append("end")


@pytest.mark.parametrize("handler", ["plain", "coroutine"])
def test_on_error_may_be_a_coroutine_function_for_tasks(handler: str):
    async def later(error: Exception, item: int) -> str:
        await asyncio.sleep(1)
        return f"{type(error).__name__} {item}"

    def at_once(error: Exception, item: int) -> str:
        return f"{type(error).__name__} {item}"

    with simulated():
        g: Any = later if handler == "coroutine" else at_once
        assert list(pmap(lambda x: 1 // x, [1, 0], kind="task", on_error=g)) == [1, "ZeroDivisionError 0"]


# ------------------------------------------------------------------------------------------------------ faults


def test_a_fault_raises(concurrent_kind: str):
    with pytest.raises(SimulatedError, match="item 0") as raised, simulated(Schedule(faults=RAISES)):
        list(pmap(identity, range(3), kind=concurrent_kind))
    assert "item 0: 0" in raised.value.__notes__[0]


def test_only_processes_die(concurrent_kind: str):
    error = WorkerDied if concurrent_kind == "process" else SimulatedError
    with pytest.raises(error), simulated(Schedule(faults=DIES)):
        list(pmap(identity, range(3), kind=concurrent_kind))


@pytest.mark.parametrize(("timeout", "error"), [(5, TimeoutError), (None, SimulatedError)])
def test_only_a_stage_with_a_time_out_times_out(
    concurrent_kind: str, timeout: int | None, error: type[Exception]
):
    with pytest.raises(error), simulated(Schedule(faults=LATE)) as simulation:
        list(pmap(identity, range(3), kind=concurrent_kind, timeout=timeout))
    assert (simulation.now >= 6) == (timeout is not None)


@pytest.mark.parametrize("faults", [DIES, RAISES, LATE], ids=["dies", "raises", "times out"])
def test_faults_count_as_tries(concurrent_kind: str, faults: Any):
    def numbers(times: int) -> list[int]:
        schedule = Schedule(faults=faults * times)
        stage = pmap(identity, kind=concurrent_kind, workers=1, retries=2, backoff=0, timeout=5)
        return outputs_under(schedule, lambda: stage([0]))

    assert numbers(1) == numbers(2) == [0]
    with pytest.raises((WorkerDied, SimulatedError, TimeoutError)):
        numbers(3)


@pytest.mark.parametrize("faults", [DIES, RAISES, LATE], ids=["dies", "raises", "times out"])
def test_transient_faults_spare_an_item_that_has_no_try_left(concurrent_kind: str, faults: Any):
    schedule = Schedule(faults=faults * 9, transient=True)
    stage = partial(pmap, identity, range(4), kind=concurrent_kind, timeout=5)
    assert outputs_under(schedule, stage) == [0, 1, 2, 3]
    assert outputs_under(schedule, partial(stage, retries=3)) == [0, 1, 2, 3]


def test_faults_are_handled_by_on_error(concurrent_kind: str):
    for faults in (DIES, RAISES, LATE):
        stage = partial(pmap, identity, range(3), kind=concurrent_kind, timeout=5, workers=1)
        assert outputs_under(Schedule(faults=faults), partial(stage, on_error="skip")) == [1, 2]
        assert outputs_under(Schedule(faults=faults), partial(stage, on_error=lambda *_: 9)) == [9, 1, 2]


def test_the_dead_have_no_on_done(concurrent_kind: str):
    LOG.clear()
    schedule = Schedule(faults=LATE)
    stage = pmap(
        with_resource,
        kind=concurrent_kind,
        workers=1,
        timeout=5,
        retries=1,
        on_start=log_start,
        on_done=log_end,
    )
    assert outputs_under(schedule, lambda: stage(range(3))) == [0, 1, 2]
    assert LOG.count("start") == 2 and LOG.count("end") == (1 if concurrent_kind == "process" else 2)


# ------------------------------------------------------------------------------------------- hypothesis, stories


@pytest.mark.parametrize("faults", [False, True])
def test_schedules_shrink_to_the_one_where_nothing_goes_wrong(faults: bool):
    assert find(schedules(faults=faults), lambda _: True) == Schedule()


def test_an_endless_source_keeps_no_worker_from_its_end():
    most = 20_000

    def f(number: int) -> None:
        assert number < most
        if number == 1:
            raise KeyError(number)

    with pytest.raises(KeyError), simulated(Schedule(stalls=(0, 5, 0), ahead=True)):
        list(pmap(f, itertools.count(), kind="thread", workers=2, ordered=False))


def test_a_bad_schedule_shrinks_to_what_matters():
    found = find(
        schedules(),
        lambda s: outputs_under(s, lambda: pmap(identity, range(4), ordered=False)) != [0, 1, 2, 3],
    )
    assert 1 <= len(found.stalls) <= 2 and not found.cheap


def test_the_story_is_told_with_an_exception():
    with pytest.raises(KeyError) as raised, simulated():
        list(pmap(square, [3]))
        raise KeyError
    assert "square[0] has item 0: 9" in raised.value.__notes__[-1]


def test_the_story_is_told_with_an_example_of_hypothesis():
    @settings(max_examples=5, database=None)
    @given(schedules())
    def fails(schedule: Schedule) -> None:
        with simulated(schedule):
            assert list(pmap(square, [3])) == [10]

    with pytest.raises(AssertionError) as raised:
        fails()
    notes = "\n".join(raised.value.__notes__)
    assert notes.count("square[0] has item 0: 9") == 1 and "schedule=Schedule(" in notes


# ------------------------------------------------------------------------------------------------- assert_lawful


def test_lawful_pipelines_are_accepted(concurrent_kind: str):
    assert_lawful(pmap(square, kind=concurrent_kind), partial(map, square), sources=NUMBERS)
    assert_lawful(pmap(square, kind=concurrent_kind, ordered=False), partial(map, square), sources=NUMBERS)


def test_a_pipeline_that_raises_as_its_reference_does_is_accepted(concurrent_kind: str):
    def inverse(x: int) -> int:
        return 6 // (3 - x)

    assert_lawful(pmap(inverse, kind=concurrent_kind), partial(map, inverse), sources=NUMBERS)


def test_faults_need_no_retries(concurrent_kind: str):
    """They are transient: what has no try left is spared."""
    assert_lawful(pmap(square, kind=concurrent_kind, retries=0), partial(map, square), sources=NUMBERS)


def check_rejected(transformer: Any, reference: Any, error: type[BaseException] = AssertionError) -> str:
    with pytest.raises(error) as raised:
        assert_lawful(transformer, reference, sources=NUMBERS)
    return "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])


def test_a_wrong_function_is_rejected_with_the_smallest_source():
    told = check_rejected(pmap(square), partial(map, lambda x: x))
    assert "gave [4], the reference [2]" in told and "Schedule(stalls=()" in told and "square[0]" in told


def test_what_was_found_with_one_pipeline_is_not_kept_for_another():
    database, before = InMemoryExampleDatabase(), settings.get_current_profile_name()
    settings.register_profile("keeping", settings.get_profile(before), database=database)
    settings.load_profile("keeping")
    try:
        check_rejected(pmap(square), partial(map, lambda x: x))
    finally:
        settings.load_profile(before)
    assert not database.data


def test_lost_and_doubled_outputs_are_rejected():
    check_rejected(
        lambda source: pmap(square, source, ordered=False) | (lambda s: list(s)[1:]), partial(map, square)
    )
    check_rejected(pflat_map(lambda x: [x, x], ordered=False), partial(map, identity))


def test_an_order_that_is_lost_on_the_way_is_rejected():
    """A function in between that looks at the order makes of any order another multiset."""

    def numbered(source: Any) -> Any:
        return pmap(tuple, enumerate(pmap(identity, source, ordered=False)))

    check_rejected(numbered, enumerate)


def test_state_that_calls_share_is_rejected():
    def running_total(source: Any) -> Any:
        totals = [0]

        def f(x: int) -> int:
            totals[0] += x
            return totals[0]

        return pmap(f, source, workers=2)

    check_rejected(running_total, lambda items: list(itertools.accumulate(items)))


def test_state_of_a_process_is_rejected():
    def f(x: int, seen: list[int] = []) -> int:  # noqa: B006
        seen.append(x)
        return len(seen)

    def counting(source: Any) -> Any:
        return pmap(f, source, kind="process", workers=2)

    check_rejected(counting, lambda items: range(1, len(items) + 1))


def test_a_reference_that_raises_alone_is_rejected():
    check_rejected(pmap(identity), partial(map, lambda x: 1 // (x - 1) and x))


def test_another_error_than_the_references_is_rejected():
    def fails(x: int) -> None:
        raise KeyError(x)

    check_rejected(pmap(lambda x: 1 // 0), partial(map, fails), ZeroDivisionError)


def test_an_error_that_comes_too_early_is_rejected():
    def early(source: Any) -> Any:
        return pmap(lambda x: 1 // (3 - x), source) | (lambda stream: list(stream))

    check_rejected(early, partial(map, lambda x: 1 // (3 - x)))


def test_a_pipeline_that_hangs_is_rejected():
    assert "nobody can go on" in check_rejected(pmap(never), partial(map, lambda _: None))
