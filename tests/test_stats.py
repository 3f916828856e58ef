"""What a stream says of itself: the numbers of each stage, during the run and after it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fstream import Rate, StageStats, Stats, batch, merge, peach, pfilter, pflat_map, pmap
from fstream._flow.tally import Costs
from fstream._seen.account import Account
from fstream._seen.stats import _stages_of
from fstream.testing import Schedule, simulated
from tests.faults.faulty import Tally, eventually
from tests.functions import identity, is_odd, square, suited
from tests.gates import PATIENCE, Gate, Log, at_line, holding


def numbers(stats: Stats) -> list[tuple[str, int, int]]:
    return [(stage.name, stage.taken, stage.given) for stage in stats.stages]


def check_shares(stats: Stats) -> None:
    for stage in stats.stages:
        shares = (stage.busy, stage.starved, stage.blocked)
        assert sum(shares) == pytest.approx(1)
        assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares)


class Item:
    pass


def twice(item: int) -> list[int]:
    return [item, item]


def reciprocal(item: int) -> float:
    return 1 / item


# ---------------------------------------------------------------------------------------------------- after a run


@pytest.mark.parametrize("items", [1, 5, 20_000])
@pytest.mark.parametrize("listed", [True, False], ids=["list", "generator"])
def test_each_item_is_counted_once(kind: str, is_ordered: bool, items: int, listed: bool):
    source = list(range(items))
    stream = pmap(identity, source if listed else iter(source), kind=kind, workers=2, ordered=is_ordered)
    assert sorted(stream) == source
    (stage,) = stream.stats().stages
    assert (stage.name, stage.kind) == ("identity", kind)
    assert (stage.taken, stage.given, stage.failed, stage.retried, stage.held) == (items, items, 0, 0, 0)
    assert stage.workers == (1 if kind == "sync" else 2)
    assert stage.cost_p50 is not None and stage.cost_p99 is not None
    assert 0 < stage.cost_p50 <= stage.cost_p99 < 1
    check_shares(stream.stats())


def test_an_async_consumer_counts_the_same(kind: str):
    async def source() -> Any:
        for item in range(300):
            yield item

    async def consume() -> list[Stats]:
        listed, drawn = pmap(identity, range(300), kind=kind), pfilter(is_odd, source(), kind=kind)
        assert len(await listed) == 300
        assert len([item async for item in drawn]) == 150
        return [listed.stats(), drawn.stats()]

    for stats, given in zip(asyncio.run(consume()), (300, 150)):
        (stage,) = stats.stages
        assert (stage.taken, stage.given, stage.held) == (300, given, 0)
        check_shares(stats)


def test_items_that_wait_in_tasks_are_counted_and_take_their_time():
    async def wait(item: int) -> int:
        await asyncio.sleep(0.02)
        return item

    stream = pmap(wait, range(300), workers=50)
    assert list(stream) == list(range(300))
    (stage,) = stream.stats().stages
    assert (stage.taken, stage.given, stage.workers) == (300, 300, 50)
    assert stage.cost_p50 is not None
    assert 0.019 < stage.cost_p50 < 0.2
    check_shares(stream.stats())


def test_a_row_counts_each_of_its_stages(concurrent_kind: str):
    row = (
        pmap(identity, kind=concurrent_kind, workers=2)
        | pfilter(is_odd, kind="thread")
        | pflat_map(twice, kind="thread")
        | peach(identity, kind="thread", name="last")
    )
    stream = row(range(1000))
    assert list(stream) == []
    assert numbers(stream.stats()) == [
        ("identity", 1000, 1000), ("is_odd", 1000, 500), ("twice", 500, 1000), ("last", 1000, 0),
    ]  # fmt: skip
    check_shares(stream.stats())


@pytest.mark.parametrize("combinator", [pfilter, pflat_map, peach], ids=lambda each: each.__name__)
def test_outputs_are_counted_as_the_next_stage_takes_them(kind: str, combinator: Any):
    f, given = {"pfilter": (is_odd, 500), "pflat_map": (twice, 2000), "peach": (identity, 0)}[
        combinator.__name__
    ]
    stream = combinator(f, range(1000), kind=kind)
    assert len(list(stream)) == given
    assert [(stage.taken, stage.given) for stage in stream.stats().stages] == [(1000, given)]


def test_process_stages_that_run_as_one_are_counted_by_themselves():
    stream = (pmap(abs, kind="process") | pfilter(is_odd, kind="process") | pmap(float, kind="process"))(
        range(3000)
    )
    assert len(list(stream)) == 1500
    assert numbers(stream.stats()) == [("abs", 3000, 3000), ("is_odd", 3000, 1500), ("float", 1500, 1500)]
    assert {stage.kind for stage in stream.stats().stages} == {"process"}
    check_shares(stream.stats())


def spin(item: int) -> int:
    return sum(range(20_000)) + item


def test_the_time_of_stages_that_run_as_one_is_told_apart():
    stream = (pmap(abs, kind="process") | pmap(spin, kind="process") | pmap(float, kind="process"))(
        range(500)
    )
    list(stream)
    before, slow, after = stream.stats().stages
    assert slow.busy > 5 * before.busy
    assert slow.busy > 5 * after.busy
    assert before.blocked > slow.busy - 0.01  # the second one is at work meanwhile
    assert after.starved > slow.busy - 0.01
    assert slow.cost_p50 is not None and after.cost_p50 is not None
    assert slow.cost_p50 > 5 * after.cost_p50


def test_a_failure_among_stages_that_run_as_one_is_counted_where_it_happened():
    stream = (pmap(abs, kind="process") | pmap(reciprocal, kind="process"))([3, 2, 0, 1])
    with pytest.raises(ZeroDivisionError):
        list(stream)
    first, second = stream.stats().stages
    assert (first.failed, second.failed) == (0, 1)


@pytest.mark.parametrize("options", [{"key": abs}, {"rate": Rate(1e6, cost=abs)}], ids=["key", "cost"])
def test_what_looks_at_the_items_of_a_stage_is_none(kind: str, options: Any):
    stream = [3, 4] | pmap(suited(square, kind), kind=kind, name="f", **options) | batch(9, weight=abs)
    assert [stage.name for stage in stream.stats().stages] == ["f"]
    assert list(stream) == [[9], [16]]
    (stage,) = stream.stats().stages
    assert (stage.name, stage.kind, stage.taken, stage.given, stage.held) == ("f", kind, 2, 2, 0)


def test_sync_stages_and_those_beside_them_are_all_counted():
    stream = (
        pmap(identity, kind="thread")
        | pfilter(is_odd, kind="sync")
        | pmap(float, kind="sync")
        | pmap(int, kind="thread")
    )(range(100))
    assert len(list(stream)) == 50
    assert numbers(stream.stats()) == [
        ("identity", 100, 100),
        ("is_odd", 100, 50),
        ("float", 50, 50),
        ("int", 50, 50),
    ]
    check_shares(stream.stats())


def test_merged_streams_are_counted(kind: str):
    one, two = pmap(identity, range(100), kind=kind), pfilter(is_odd, range(10), kind="thread")
    stream = pmap(float, merge(one, two, iter([1, 2])), kind="thread")
    assert len(list(stream)) == 107
    assert numbers(stream.stats()) == [("identity", 100, 100), ("is_odd", 10, 5), ("float", 107, 107)]
    assert numbers(two.stats()) == [("is_odd", 10, 5)]


def test_a_stage_in_the_middle_of_a_row_tells_of_itself_and_those_before_it():
    first = pmap(identity, range(10), kind="thread")
    second = pfilter(is_odd, first, kind="thread")
    third = pmap(float, second, kind="thread")
    assert len(list(third)) == 5
    assert numbers(first.stats()) == [("identity", 10, 10)]
    assert numbers(second.stats()) == [("identity", 10, 10), ("is_odd", 10, 5)]
    assert numbers(third.stats()) == [("identity", 10, 10), ("is_odd", 10, 5), ("float", 5, 5)]


def test_a_foreign_iterator_ends_what_is_told():
    stream = pmap(float, filter(None, pmap(identity, range(10), kind="thread")), kind="thread")
    list(stream)
    assert numbers(stream.stats()) == [("float", 9, 9)]


# ------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("on_error", ["raise", "skip", lambda *_: 0.0], ids=["raise", "skip", "answered"])
def test_failed_items_and_further_tries_are_counted(kind: str, on_error: Any):
    # Others go on while a failed item waits: of two that fail, both would have been tried again.
    items = [1, 0, 2] if on_error == "raise" else [1, 0, 2, 0, 4]
    stream = pmap(reciprocal, items, kind=kind, workers=1, retries=2, backoff=0, on_error=on_error)
    if on_error == "raise":
        with pytest.raises(ZeroDivisionError):
            list(stream)
    else:
        list(stream)
    (stage,) = stream.stats().stages
    failures = 1 if on_error == "raise" else 2
    assert (stage.failed, stage.retried, stage.held) == (failures, 2 * failures, 0)
    if on_error != "raise":
        assert (stage.taken, stage.given) == (5, 3 if on_error == "skip" else 5)


def test_a_death_counts_as_a_try(folder: Path):
    tally = Tally(str(folder / "tally"))

    def die(item: int) -> int:
        import os

        if item == 1 and tally.turn("run") <= 2:
            os._exit(3)
        return item

    stream = pmap(die, range(3), kind="process", workers=1, retries=2)
    assert list(stream) == [0, 1, 2]
    (stage,) = stream.stats().stages
    assert (stage.taken, stage.given, stage.failed) == (3, 3, 0)
    assert stage.retried >= 2


def test_a_worker_that_runs_over_its_time_was_busy(gate: Gate, log: Log, concurrent_kind: str):
    stream = pmap(
        holding(concurrent_kind, {0: gate}),
        [0],
        kind=concurrent_kind,
        workers=1,
        timeout=0.3,
        on_error="skip",
    )
    assert list(stream) == []
    gate.open()
    (stage,) = stream.stats().stages
    assert (stage.taken, stage.given, stage.failed) == (1, 0, 1)
    assert stage.busy > 0.3


def test_an_error_of_the_source_leaves_the_numbers(kind: str):
    def source() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more")

    stream = pmap(identity, source(), kind=kind)
    with pytest.raises(LookupError):
        list(stream)
    assert numbers(stream.stats()) == [("identity", 5, 5)]


# ---------------------------------------------------------------------------------------------- during a run


def test_who_looks_while_a_stream_starts_costs_it_no_numbers(kind: str):
    stream = pmap(suited(identity, kind), range(3), kind=kind)
    looks: list[bool] = []
    started: list[Any] = []

    class Looked(Account):
        def __init__(self, stages: Any) -> None:
            super().__init__(stages)
            if not looks:
                looks.append(True)
                started.append(next(stream))  # as another thread would, just then

    with pytest.MonkeyPatch.context() as context:
        context.setattr("fstream.stream.Account", Looked)
        stream.stats()
    assert [*started, *stream] == [0, 1, 2]
    assert stream.stats().stages[0].given == 3


def test_a_sync_stage_may_be_looked_at_from_its_very_first_moment():
    stream = pmap(identity, range(3), kind="sync")
    seen: list[int] = []

    class Eager(Account):
        def runs_here(self, here: Any, source: Any) -> None:
            super().runs_here(here, source)
            seen.append(stream.stats().stages[0].given)

    with pytest.MonkeyPatch.context() as context:
        context.setattr("fstream.stream.Account", Eager)
        assert list(stream) == [0, 1, 2]
    assert seen == [0]


def test_before_it_starts_a_stream_has_done_nothing(kind: str):
    stream = pfilter(is_odd, pmap(identity, range(5), kind=kind, workers=2), kind="thread")
    stats = stream.stats()
    assert numbers(stats) == [("identity", 0, 0), ("is_odd", 0, 0)]
    assert stats.bottleneck is None
    assert [stage.busy for stage in stats.stages] == [0, 0]
    assert len(list(stream)) == 2
    assert numbers(stream.stats()) == [("identity", 5, 5), ("is_odd", 5, 2)]


def test_stats_can_be_had_from_any_thread_while_workers_are_at_work(
    gate: Gate, log: Log, concurrent_kind: str
):
    stream = pmap(
        holding(concurrent_kind, {2: gate}, log), range(4), kind=concurrent_kind, workers=2, maxsize=4
    )
    assert [next(stream), next(stream)] == [0, 1]
    log.wait_for(("end", 3))
    seen: list[Stats] = []
    thread = threading.Thread(target=lambda: seen.append(stream.stats()))
    thread.start()
    thread.join()
    (stage,) = seen[0].stages
    assert stage.taken == 4
    assert stage.given >= 2
    assert 1 <= stage.held <= 3
    check_shares(seen[0])
    assert stage.busy > 0
    gate.open()
    assert list(stream) == [2, 3]
    assert stream.stats().stages[0].held == 0


def test_a_worker_in_the_middle_of_a_long_item_is_busy(gate: Gate, log: Log, concurrent_kind: str):
    stream = pmap(
        holding(concurrent_kind, {0: gate}, log), [0, 1], kind=concurrent_kind, workers=1, ordered=False
    )
    thread = threading.Thread(target=lambda: next(stream))
    thread.start()
    log.wait_for(("start", 0))
    busy = eventually(lambda: stream.stats().stages[0].busy > 0.5)  # however long the worker took to start
    gate.open()
    thread.join()
    list(stream)
    assert busy


def test_f_may_ask_for_the_stats_of_its_own_stream(shared_memory_kind: str):
    seen: list[Stats] = []

    def look(item: int) -> int:
        seen.append(stream.stats())
        return item

    stream = pmap(look, range(5), kind=shared_memory_kind, workers=2)
    assert list(stream) == list(range(5))
    assert len(seen) == 5
    assert all(stage.taken >= 1 for stats in seen for stage in stats.stages)
    for stats in seen:
        check_shares(stats)


@pytest.mark.parametrize("nth", range(20))
def test_two_threads_that_ask_at_a_time_get_numbers_of_their_own(nth: int, make_gate: Callable[[], Gate]):
    gate = make_gate()
    stream = pmap(lambda item: gate.wait() and item, range(1), kind="thread", workers=2)
    consumer = threading.Thread(target=lambda: list(stream), daemon=True)
    consumer.start()
    assert eventually(lambda: stream.stats().stages and stream.stats().stages[0].busy > 0)
    seen: list[Stats] = []

    def look_later() -> None:
        time.sleep(0.005)
        seen.append(stream.stats())

    at_line(_stages_of, nth, look_later, lambda: seen.append(stream.stats()))
    gate.open()
    consumer.join(PATIENCE)
    for stats in seen:
        check_shares(stats)


def test_a_stream_that_was_closed_keeps_its_numbers(kind: str):
    stream = pmap(identity, range(10**9), kind=kind, workers=2)
    next(stream)
    stream.close()
    stats = stream.stats()
    assert stats.stages[0].taken >= 1
    assert stats.stages[0].held == 0
    assert stream.stats() == stats


def test_numbers_keep_no_item_alive(shared_memory_kind: str):
    items = [Item() for _ in range(50)]
    known = [weakref.ref(item) for item in items]
    stream = pmap(identity, iter(items), kind=shared_memory_kind, workers=2)
    del items
    assert sum(1 for _ in stream) == 50
    assert stream.stats().stages[0].given == 50
    gc.collect()
    assert not any(ref() for ref in known)


# ------------------------------------------------------------------------------------------------- shares of time


def slow(item: int) -> int:
    import time

    time.sleep(0.004)
    return item


async def slow_task(item: int) -> int:
    await asyncio.sleep(0.004)
    return item


def slow_source(count: int) -> Iterator[int]:
    for item in range(count):
        yield slow(item)


SLOW: dict[str, Callable[[int], Any]] = {"sync": slow, "thread": slow, "process": slow, "task": slow_task}


def test_slow_work_is_busy(kind: str):
    list(pmap(SLOW[kind], range(4), kind=kind, workers=1))  # a worker process has started
    stream = pmap(SLOW[kind], range(100), kind=kind, workers=1)
    list(stream)
    stage = stream.stats().stages[0]
    assert stage.busy > max(
        0.4, stage.starved, stage.blocked
    )  # on a busy machine all that is handed over waits, too


def test_a_slow_source_starves(kind: str):
    stream = pmap(identity, slow_source(50), kind=kind, workers=2)
    list(stream)
    stage = stream.stats().stages[0]
    assert stage.starved > max(0.4, stage.busy, stage.blocked)


def test_a_slow_consumer_blocks(kind: str):
    stream = pmap(identity, iter(range(120)), kind=kind, workers=2, maxsize=2)
    for item in stream:
        slow(item)
    stage = stream.stats().stages[0]
    assert stage.blocked > max(0.4, stage.busy, stage.starved)


# ------------------------------------------------------------------------------------------------------ how it looks


def test_stats_are_values_with_a_table():
    stream = pmap(reciprocal, [1, 0, 2], kind="thread", on_error="skip", name="<1/x>") | pmap(
        float, kind="sync"
    )
    list(stream)
    stats = stream.stats()
    lines = str(stats).splitlines()
    headings = "stage kind taken given failed retried held workers busy starved blocked median 99 %"
    assert lines[0].split() == headings.split()
    assert lines[1].split()[:7] == ["<1/x>", "thread", "3", "2", "1", "0", "0"]
    assert lines[2].split()[:4] == ["float", "sync", "2", "2"]
    assert lines[3].startswith("bottleneck: ")
    html = stats._repr_html_()
    assert html.startswith("<table")
    assert "&lt;1/x&gt;" in html and "<1/x>" not in html
    assert html.count("<tr>") == 3
    with pytest.raises(AttributeError):
        stats.stages[0].taken = 4  # type: ignore[misc]


def test_a_stage_has_these_numbers_in_this_order():
    assert StageStats.__match_args__ == (
        "name", "kind", "taken", "given", "failed", "retried", "held", "workers", "busy", "starved", "blocked",
        "cost_p50", "cost_p99",
    )  # fmt: skip


def test_a_simulated_run_counts_the_same(concurrent_kind: str):
    schedule = Schedule(stalls=(2, 0, 3), faults=((1, "raises"),), transient=True)
    with simulated(schedule):
        stream = pmap(abs, range(20), kind=concurrent_kind, workers=3, retries=2)
        assert list(stream) == list(range(20))
        (stage,) = stream.stats().stages
    assert (stage.taken, stage.given, stage.failed, stage.retried) == (20, 20, 0, 1)
    check_shares(stream.stats())


# --------------------------------------------------------------------------------------------------- the sketch


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e4])
def test_a_sketch_of_costs_is_a_few_percent_off(scale: float):
    costs = Costs()
    for n in range(1, 1001):
        costs.add(n * scale, 1)
    for share in (0.01, 0.5, 0.99):
        assert costs.quantile(share) == pytest.approx(share * 1000 * scale, rel=0.05)
    assert Costs().quantile(0.5) is None


def test_a_sketch_of_costs_is_bounded():
    costs = Costs()
    for n in range(100_000):
        costs.add(1.0001**n, 7)
    assert len(costs.counts) < 300


def test_a_cost_of_nothing_is_counted():
    costs = Costs()
    costs.add(0.0, 5)
    costs.add(1.0, 1)
    assert costs.quantile(0.5) == pytest.approx(0, abs=1e-3)
