"""The laws 1 to 8 of the design, on real workers of every kind and on simulated ones under drawn schedules.

What a real run can show of some laws is little, as the interleaving is not ours: the simulated worlds are the ones
that look for the bad schedule. A law that needs what a world does not have, a thread that blocks say, leaves it out.
"""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fstream import Transformer, WorkerDied, ordered, peach, pmap
from fstream._flow.weight import Weight
from fstream._flow.window import Window
from fstream._workers.simulated.schedule import Simulation
from fstream.testing import Schedule, schedules, simulated
from property_tests.conversations import (
    Boom,
    Conversation,
    Heard,
    Tally,
    count_done,
    count_start,
    failing_at,
    first,
    outcome,
)
from property_tests.strategies import (
    KINDS,
    PMAP,
    Chain,
    Step,
    chains,
    check_equal,
    described,
    endless_chains,
    identity,
    lists_of_items,
    options,
    printed,
    shapes,
    steps,
)
from property_tests.worlds import (
    MIXED,
    MIXED_WORLDS,
    POOLS,
    PROCESS,
    SIMULATED,
    SIMULATED_MIXED,
    SIMULATED_TASK,
    SIMULATED_THREAD,
    SYNC,
    TASK,
    THREAD,
    THREAD_POOL,
    WORLDS,
    law,
)
from tests.functions import suited
from tests.leaks import Running, check_no_leaks
from tests.sources import Source

Shape = Callable[[list[Any]], Iterable[Any]]


def any_options(kinds: tuple[str, ...], **chosen: Any) -> st.SearchStrategy[dict[str, Any]]:
    return options(kinds[0], **chosen)


in_order = partial(any_options, ordered=True)
bounded = partial(any_options, maxsizes=(1, 2, 5))


# Law 1: every kind means what the built-in means.


@law(*WORLDS, *POOLS, step=steps, items=lists_of_items(), shape=shapes())
def test_1_a_stage_equals_its_plain_counterpart(step: Step, items: list[Any], shape: Shape):
    check_equal(step.transformer()(shape(items)), step.plain(items), step.options["ordered"])


@law(SYNC, THREAD, TASK, SIMULATED_THREAD, SIMULATED_TASK, chosen=any_options, items=lists_of_items())
def test_1_peach_calls_f_once_for_each_item(kind: str, chosen: dict[str, Any], items: list[Any]):
    called: list[Any] = []
    assert list(peach(called.append, items, kind=kind, **chosen)) == []
    check_equal(called, items, in_order=False)


@law(
    *MIXED_WORLDS,
    *POOLS,
    TASK,
    SIMULATED_TASK,
    chain=chains,
    items=lists_of_items(longest=60),
    shape=shapes(),
)
def test_1_a_chain_equals_its_plain_counterpart(chain: Chain, items: list[Any], shape: Shape):
    check_equal(chain.transformer()(shape(items)), chain.plain(items), chain.keeps_order)


@law(*MIXED_WORLDS, faults=True, chain=chains, items=lists_of_items(longest=60), light=st.integers(0, 30))
def test_1_a_chain_whose_items_become_heavy_equals_its_plain_counterpart(
    chain: Chain, items: list[Any], light: int
):
    weighings = itertools.count()

    def weight(_: Window) -> tuple[Weight, bool]:
        size = 1.0 if next(weighings) < light else 1e9
        return Weight(size, size), True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Window, "_weight", weight)
        patch.setattr("fstream._flow.window.SELDOM", 1)
        patch.setattr("fstream._flow.window.SELDOM_SECONDS", 0.0)
        check_equal(chain.transformer()(item for item in items), chain.plain(items), chain.keeps_order)


@law(*MIXED_WORLDS, chain=partial(chains, ordered=False), items=lists_of_items(longest=60))
def test_1_ordered_restores_the_order_of_any_chain(chain: Chain, items: list[Any]):
    check_equal(items | chain.transformer() | ordered, chain.plain(items))


# Law 2: nothing is pulled, no thread, process or task started, before the first `next`.


@law(*MIXED_WORLDS, *POOLS, chain=chains)
def test_2_a_stream_that_nobody_iterates_does_nothing(chain: Chain, simulation: Simulation | None):
    before, source = Running.now(), Source(itertools.count())
    stream = chain.transformer()(source)
    assert not Running.now().beyond(before) and source.pulled == 0
    assert simulation is None or not simulation.runs
    del stream


# Law 3: an output is not withheld until later input comes or another item ends.

bursts = st.lists(st.integers(1, 9), max_size=5)


@law(*WORLDS, *POOLS, MIXED, chain=partial(chains, operations=(PMAP,), max_size=3), sizes=bursts)
def test_3_all_outputs_come_while_the_source_blocks(chain: Chain, sizes: list[int]):
    heard = Heard()
    check_equal(
        heard.all_of(chain.transformer()(Conversation(heard, sizes))), chain.plain(range(sum(sizes))), False
    )


@law(TASK, SIMULATED_TASK, chosen=in_order, length=st.integers(0, 40))
def test_3_an_output_comes_while_all_later_items_are_busy(kind: str, chosen: dict[str, Any], length: int):
    heard = Heard()

    async def f(number: int) -> int:
        await heard.reach(number)
        return number

    assert heard.all_of(pmap(f, range(length), kind=kind, **chosen)) == list(range(length))


@law(THREAD, THREAD_POOL, chosen=in_order, length=st.integers(0, 40))
def test_3_an_output_comes_while_all_later_threads_are_busy(kind: str, chosen: dict[str, Any], length: int):
    heard = Heard()

    def f(number: int) -> int:
        heard.wait(number)
        return number

    assert heard.all_of(pmap(f, range(length), kind=kind, **chosen)) == list(range(length))


@law(TASK, SIMULATED_TASK, workers=st.integers(2, 4), length=st.integers(1, 40), slow=st.integers(0, 39))
def test_3_a_slow_item_delays_no_other_where_order_does_not_demand_it(workers: int, length: int, slow: int):
    heard, slow = Heard(), slow % length

    async def f(number: int) -> int:
        await heard.reach(length - 1 if number == slow else 0)
        return number

    outputs = heard.all_of(pmap(f, range(length), workers=workers, ordered=False))
    assert outputs[-1] == slow and sorted(outputs) == list(range(length))


# Law 4: a stage never holds more than its maxsize.


@law(
    *WORLDS,
    *MIXED_WORLDS,
    chain=partial(chains, operations=(PMAP,), maxsizes=(1, 2, 3, 6), max_size=3),
    length=st.integers(0, 30),
)
def test_4_no_more_is_pulled_than_there_is_room_for(chain: Chain, length: int):
    held: list[int] = []
    heard = Heard()
    source = (held.append(number + 1 - heard.count) or number for number in range(length))  # type: ignore[func-returns-value]
    heard.all_of(chain.transformer()(source))
    assert max(held, default=0) <= chain.most_held


@law(*SIMULATED, SIMULATED_MIXED, chain=endless_chains, taken=st.integers(1, 40))
def test_4_no_window_holds_more_than_its_limit(chain: Chain, taken: int, simulation: Simulation):
    held: list[bool] = []

    def looked_at(number: int) -> int:
        rooms = (
            room for run in simulation.runs for room in (run.outlet.room, *(w.room for w in run.windows))
        )
        held.append(all(0 <= room.held <= room.limit for room in rooms))
        return number

    first(taken, chain.transformer()(map(looked_at, range(5_000))))
    assert all(held)


# Law 5: however it ends, nothing is left behind, and the source is closed in the thread that iterated it.


def exhausted(stream: Any, _taken: int) -> None:
    stream.close()
    list(stream)


def closed(stream: Any, taken: int) -> None:
    first(taken, stream)
    stream.close()


def left_by_an_error(stream: Any, taken: int) -> None:
    with pytest.raises(Boom), stream:
        first(taken, stream)
        raise Boom


def thrown_into(stream: Any, taken: int) -> None:
    first(taken, stream)
    with pytest.raises(Boom):
        stream.throw(Boom())


def dropped(stream: Any, taken: int) -> None:
    first(taken, stream)
    del stream
    gc.collect()


ENDS = st.sampled_from([exhausted, closed, left_by_an_error, thrown_into])


@law(*MIXED_WORLDS, *POOLS, *SIMULATED, chain=endless_chains, end=ENDS, taken=st.integers(0, 40))
def test_5_an_end_anywhere_leaves_nothing_behind(
    chain: Chain, end: Callable[..., None], taken: int, simulation: Simulation | None
):
    before, source = Running.now(), Source(range(5_000))  # as good as endless
    end(chain.transformer()(source), taken)
    assert source.pulled_in <= {source.closed_in}
    assert simulation is None or not any(run.members for run in simulation.runs)
    check_no_leaks(before)


@law(SYNC, THREAD, TASK, *SIMULATED, chosen=bounded, end=ENDS, taken=st.integers(0, 40))
def test_5_each_on_start_has_its_on_done(
    kind: str, chosen: dict[str, Any], end: Callable[..., None], taken: int
):
    Tally.reset()
    source = range(taken) if end is exhausted else itertools.count()
    end(pmap(identity, source, kind=kind, on_start=count_start, on_done=count_done, **chosen), taken)
    assert Tally.counts["on_done"] == Tally.counts["on_start"]


# Law 6: all outputs before the failed item, then the original exception; nothing is pulled any more.

failures = st.sets(st.integers(0, 40), max_size=4)


@law(*WORLDS, *POOLS, chosen=in_order, failing=failures, length=st.integers(0, 40))
def test_6_an_error_comes_after_all_outputs_before_it(
    kind: str, chosen: dict[str, Any], failing: set[int], length: int
):
    f = failing_at(failing)
    assert outcome(pmap(suited(f, kind), range(length), kind=kind, **chosen)) == outcome(
        map(f, range(length))
    )


@law(*MIXED_WORLDS, stages=lambda kinds: st.lists(st.tuples(failures, st.sampled_from(kinds)), max_size=3))
def test_6_the_first_error_in_order_is_raised_whichever_stage_it_is_of(stages: list[tuple[set[int], str]]):
    stream: Iterable[int] = range(40)
    for failing, kind in stages:
        stream = pmap(failing_at(failing), stream, kind=kind, workers=2)
    f = failing_at(set().union(*(failing for failing, _ in stages)))
    assert outcome(stream) == outcome(map(f, range(40)))


@law(SYNC, THREAD, TASK, *SIMULATED, chosen=bounded, failing=st.integers(0, 40))
def test_6_it_is_the_very_exception_and_the_source_is_closed(kind: str, chosen: dict[str, Any], failing: int):
    error, source = Boom(), Source(itertools.count())

    def f(number: int) -> None:
        if number == failing:
            raise error

    with pytest.raises(Boom) as raised:
        list(pmap(f, source, kind=kind, **chosen))
    assert source.pulled_in == {source.closed_in}
    assert raised.value is error or kind == "process"
    assert f"item {failing}: {failing}" in raised.value.__notes__[0]


# Law 7: a dead worker is an error that names the item, or with retries is survived with nothing lost or doubled.


@law(
    *SIMULATED,
    SIMULATED_MIXED,
    faults=True,
    chain=partial(chains, retries=2, backoff=0, timeout=5, max_size=3),
    items=lists_of_items(longest=40),
)
def test_7_retries_overcome_whatever_befalls_the_workers(chain: Chain, items: list[Any]):
    check_equal(chain.transformer()(items), chain.plain(items), chain.keeps_order)


def dying_at_first(folder: Path, deadly: set[int], number: int) -> int:
    marks = folder / str(number)
    if number in deadly and not marks.exists():
        marks.touch()
        os._exit(3)
    return number


@law(PROCESS, chosen=any_options, deadly=st.sets(st.integers(0, 19), max_size=1))
def test_7_retries_overcome_the_deaths_of_processes(kind: str, chosen: dict[str, Any], deadly: set[int]):
    with tempfile.TemporaryDirectory() as folder:
        f = partial(dying_at_first, Path(folder), deadly)
        outputs = pmap(f, range(20), kind=kind, retries=1, backoff=0, **chosen)
        check_equal(outputs, range(20), chosen["ordered"])


@law(PROCESS, chosen=in_order, deadly=st.integers(0, 20))
def test_7_a_death_is_an_error_that_names_the_item(kind: str, chosen: dict[str, Any], deadly: int):
    outputs: list[int] = []
    with pytest.raises(WorkerDied) as died:
        outputs.extend(pmap(lambda x: os._exit(3) if x == deadly else x, range(40), kind=kind, **chosen))
    assert died.value.item == deadly and died.value.exitcode == 3 and outputs == list(range(deadly))


@given(schedule=schedules(), well=st.integers(0, 39), workers=st.integers(1, 4))
def test_7_a_simulated_death_names_the_item(schedule: Schedule, well: int, workers: int):
    outputs: list[int] = []
    with simulated(replace(schedule, faults=((well, "dies"),))), pytest.raises(WorkerDied) as died:
        outputs.extend(pmap(identity, range(40), kind="process", workers=workers))
    assert outputs == list(range(died.value.item))


# Law 8: the same transformer runs on many sources, at once, from many threads, nested, in every kind.

Several = st.lists(lists_of_items(max_size=8, longest=20), min_size=2, max_size=3)


@law(*MIXED_WORLDS, chain=chains, several=Several)
def test_8_a_transformer_runs_one_time_after_the_other(chain: Chain, several: list[list[Any]]):
    transformer = chain.transformer()
    for items in several:
        check_equal(transformer(items), chain.plain(items), chain.keeps_order)


@law(MIXED, chain=partial(chains, max_size=2), several=Several)
def test_8_a_transformer_runs_in_many_threads_at_once(chain: Chain, several: list[list[Any]]):
    transformer = chain.transformer()
    with ThreadPoolExecutor(len(several)) as threads:
        for items, outputs in zip(several, threads.map(list, map(transformer, several)), strict=True):
            check_equal(outputs, chain.plain(items), chain.keeps_order)


@law(
    *MIXED_WORLDS,
    chain=partial(chains, max_size=2),
    several=Several,
    turns=st.lists(st.integers(0, 2), max_size=30),
)
def test_8_runs_of_a_transformer_interleave(chain: Chain, several: list[list[Any]], turns: list[int]):
    transformer = chain.transformer()
    streams = [transformer(items) for items in several]
    outputs: list[list[Any]] = [[] for _ in several]
    for turn in turns:
        outputs[turn % len(several)] += islice(streams[turn % len(several)], 1)
    for items, stream, given_before in zip(several, streams, outputs, strict=True):
        check_equal([*given_before, *stream], chain.plain(items), chain.keeps_order)


def inner_chains(kinds: tuple[str, ...]) -> st.SearchStrategy[Chain]:
    """What runs inside f; tests/ has processes that have processes."""
    return chains(KINDS if kinds != ("process",) else ("sync", "thread", "task"), max_size=2)


def printed_outputs(transformer: Transformer[Any, Any], items: list[Any]) -> list[str]:
    return printed(transformer(items))


@law(*WORLDS, chain=inner_chains, several=Several)
def test_8_a_transformer_runs_inside_another(kind: str, chain: Chain, several: list[list[Any]]):
    nested = pmap(partial(printed_outputs, chain.transformer()), several, kind=kind, workers=2)
    expected = [printed(chain.plain(items)) for items in several]
    arranged: Any = list if chain.keeps_order else sorted
    assert [arranged(outputs) for outputs in nested] == [arranged(outputs) for outputs in expected]


@law(*MIXED_WORLDS, chain=chains)
def test_8_equal_chains_are_equal_and_hash_equal(chain: Chain):
    assert chain.transformer() == chain.transformer()
    assert hash(chain.transformer()) == hash(chain.transformer())
    assert chain.transformer() != chain.transformer() | pmap(described)
