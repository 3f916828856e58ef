"""An output is never withheld until later input comes or another item ends, beyond what order demands."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import pytest

from fstream import pfilter, pflat_map, pmap
from fstream._engine.queues import ThreadQueue
from fstream._flow.buffers import Outlet
from fstream._flow.window import Window
from tests.conftest import CONCURRENT_KINDS
from tests.functions import identity, is_odd, suited
from tests.gates import PATIENCE, Gate, Log, holding
from tests.loops import wait_until

MANY = 3_000  # cheap items, so that spans have grown


def blocking_after(items: range, gate: Gate) -> Iterator[int]:
    """*items*, then nothing until the gate is open."""
    yield from items
    gate.wait()


# The source blocks


@pytest.mark.parametrize("number", [1, 2, 7, MANY])
def test_outputs_come_while_the_source_blocks(kind: str, is_ordered: bool, number: int, gate: Gate):
    f = suited(identity, kind)
    stream = pmap(f, blocking_after(range(number), gate), kind=kind, ordered=is_ordered, workers=2)
    assert sorted(islice(stream, number)) == list(range(number))
    gate.open()
    assert list(stream) == []


def test_outputs_come_through_a_chain_while_the_source_blocks(kind: str, gate: Gate):
    stream = (
        blocking_after(range(MANY), gate)
        | pmap(suited(identity, kind), kind=kind, workers=2)
        | pfilter(suited(is_odd, kind), kind=kind, workers=2)
        | pflat_map(suited(lambda item: [item, item], kind), kind=kind, workers=2)
    )
    assert list(islice(stream, MANY)) == [item for item in range(MANY) if item % 2 for _ in range(2)]
    gate.open()
    assert list(stream) == []


def test_items_that_are_filtered_out_do_not_hold_up_the_others(kind: str, gate: Gate):
    stream = pfilter(suited(lambda item: item < 5, kind), blocking_after(range(MANY), gate), kind=kind)
    assert list(islice(stream, 5)) == [0, 1, 2, 3, 4]
    gate.open()
    assert list(stream) == []


def test_outputs_may_feed_the_source(kind: str, is_ordered: bool):
    found: queue.SimpleQueue[int] = queue.SimpleQueue()
    found.put(0)
    stream = pmap(suited(lambda item: item + 1, kind), iter(found.get, 50), kind=kind, ordered=is_ordered)
    outputs = []
    for output in stream:
        outputs.append(output)
        found.put(output)
    assert outputs == list(range(1, 51))


# A slow item follows


def test_an_output_comes_while_its_worker_is_at_the_next_item(
    concurrent_kind: str, is_ordered: bool, gate: Gate
):
    f = holding(concurrent_kind, {1: gate})
    stream = pmap(f, count(), kind=concurrent_kind, ordered=is_ordered, workers=1)
    assert next(stream) == 0
    gate.open()
    assert next(stream) == 1
    stream.close()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_outputs_come_before_a_slow_item_of_the_same_span(
    concurrent_kind: str, is_ordered: bool, workers: int, gate: Gate
):
    f = holding(concurrent_kind, {MANY: gate})
    stream = pmap(f, range(MANY + 10), kind=concurrent_kind, ordered=is_ordered, workers=workers)
    before = set(range(MANY))
    while before:
        before.discard(next(stream))
    gate.open()
    assert MANY in list(stream)


@pytest.mark.parametrize("workers", [1, 2, 10])
def test_an_output_comes_while_the_next_item_blocks_the_loop(
    workers: int, is_ordered: bool, make_gate: Callable[[], Gate]
):
    gates = {item: make_gate() for item in range(9, 200, 10)}
    done = set()

    async def f(item: int) -> int:
        await asyncio.sleep(0)
        if item in gates:
            while not done.issuperset(range(item)):
                await asyncio.sleep(0)
            gates[item].wait()  # in the turn in which the last one before it was done
        done.add(item)
        return item

    outputs = []
    for output in pmap(f, range(200), kind="task", ordered=is_ordered, workers=workers):
        outputs.append(output)
        if output + 1 in gates:
            gates[output + 1].open()
    assert sorted(outputs) == list(range(200))


def is_asleep(consumer: ThreadQueue | None) -> bool:
    """Tell whether the *consumer* waits in its queue, and nobody has woken it."""
    return consumer is not None and bool(consumer.waiters) and not consumer.signalled


@pytest.mark.parametrize("more", [5, 200], ids=["few-behind", "many-behind"])
@pytest.mark.parametrize("kinds", [("task",), ("task", "thread"), ("task", "process")])
def test_all_that_was_waited_for_comes_while_another_item_blocks_the_loop(
    kinds: tuple[str, ...], more: int, is_ordered: bool, gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    """They are done in one and the same turn of the loop, and so may be what is decided about them."""
    # The consumer does not look by itself: it is to be told.
    monkeypatch.setattr(Outlet, "can_flush", lambda outlet: False)
    first, count = 100, 20  # what comes before makes lone items of them
    last = first + count
    others_go_on = None

    async def f(item: int) -> int:
        nonlocal others_go_on
        others_go_on = others_go_on or asyncio.Event()
        if item < first:
            await asyncio.sleep(0)
        elif item < last:
            await others_go_on.wait()
            wait_until(lambda: is_asleep(stream._outputs.queue))  # it has what came before
        else:
            others_go_on.set()
            await asyncio.sleep(0)  # they come first
            gate.wait()
        return item

    options: dict[str, Any] = {"workers": count + 1, "maxsize": 1000, "ordered": is_ordered}
    stream = iter(range(last + more)) | pmap(f, kind="task", **options)
    for kind in kinds[1:]:
        stream = stream | pmap(suited(identity, kind), kind=kind, workers=2, ordered=is_ordered)
    assert sorted(islice(stream, last)) == list(range(last))
    gate.open()
    assert sorted(stream) == list(range(last, last + more))


@pytest.mark.parametrize("workers", [2, 9])
def test_what_was_waited_for_comes_while_all_workers_wait_with_others(workers: int, is_ordered: bool):
    last = 100  # many more are drawn by then

    async def consume() -> None:
        gate = asyncio.Event()

        async def f(item: int) -> int:
            for _ in range(3):
                await asyncio.sleep(0)
            if item >= last:
                await gate.wait()
            return item

        stream = pmap(f, range(2 * last), maxsize=0, ordered=is_ordered, workers=workers)
        assert sorted([await anext(stream) for _ in range(last)]) == list(range(last))
        gate.set()
        assert sorted(await stream) == list(range(last, 2 * last))

    asyncio.run(consume())


@pytest.mark.parametrize("position", [0, 1, MANY // 3])
def test_others_overtake_a_slow_item_where_order_is_not_asked_for(
    concurrent_kind: str, position: int, gate: Gate
):
    f = holding(concurrent_kind, {position: gate})
    stream = pmap(f, range(MANY), kind=concurrent_kind, ordered=False, workers=2)
    assert sorted(islice(stream, MANY - 1)) == [item for item in range(MANY) if item != position]
    gate.open()
    assert list(stream) == [position]


@pytest.mark.parametrize("position", [1, 500, 20_000])
def test_what_waits_behind_a_slow_item_comes_also_if_there_is_no_end_of_other_work(
    concurrent_kind: str, position: int, gate: Gate
):
    f = holding(concurrent_kind, {position: gate})
    behind = set(range(position + 1, position + 100))
    with pmap(f, count(), kind=concurrent_kind, ordered=False, workers=2) as stream:
        deadline = time.monotonic() + PATIENCE
        while behind and time.monotonic() < deadline:
            behind.discard(next(stream))
        gate.open()
    assert not behind


def test_a_process_that_has_nothing_left_to_do_takes_over_what_waits_behind_others(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
):
    hold = holding("process", {30: gate})

    def f(item: int) -> int:
        time.sleep(0.001)  # so that spans are of several, and worth while
        return int(hold(item))

    monkeypatch.setattr(Window, "flush_delay", PATIENCE)  # nobody is late
    with pmap(f, range(60), kind="process", workers=2, ordered=False) as stream:
        assert sorted(islice(stream, 59)) == [item for item in range(60) if item != 30]
        gate.open()
        assert list(stream) == [30]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_slow_item_after_the_other(concurrent_kind: str, workers: int, make_gate: Callable[[], Gate]):
    gates = {position: make_gate() for position in (100, 101, 1_000, 2_000)}
    stream = pmap(holding(concurrent_kind, gates), range(MANY), kind=concurrent_kind, workers=workers)
    given = 0
    for position, gate in gates.items():
        assert list(islice(stream, position - given)) == list(range(given, position))
        gate.open()
        given = position
    assert list(stream) == list(range(given, MANY))


def test_a_slow_stage_upstream_withholds_nothing_downstream(concurrent_kind: str, gate: Gate):
    stream = (
        range(MANY + 10)
        | pmap(holding(concurrent_kind, {MANY: gate}), kind=concurrent_kind, workers=2)
        | pmap(suited(identity, concurrent_kind), kind=concurrent_kind, workers=2)
    )
    assert list(islice(stream, MANY)) == list(range(MANY))
    gate.open()
    assert list(stream) == list(range(MANY, MANY + 10))


@pytest.mark.parametrize("downstream", CONCURRENT_KINDS)
@pytest.mark.parametrize("upstream", CONCURRENT_KINDS)
def test_workers_that_have_waited_long_take_over_what_waits_behind_a_slow_item(
    upstream: str, downstream: str, make_gate: Callable[[], Gate]
):
    flood, slow = make_gate(), make_gate()
    stream = (
        range(2 * MANY)
        | pmap(holding(upstream, {MANY: flood}), kind=upstream, workers=2)
        | pmap(holding(downstream, {MANY + 1: slow}), kind=downstream, workers=2, ordered=False)
    )
    assert sorted(islice(stream, MANY)) == list(range(MANY))
    time.sleep(0.03)  # the workers downstream are waiting, and have asked upstream for all that there is
    flood.open()
    assert sorted(islice(stream, MANY - 1)) == [MANY, *range(MANY + 2, 2 * MANY)]
    slow.open()
    assert list(stream) == [MANY + 1]


@pytest.mark.parametrize("downstream", CONCURRENT_KINDS)
@pytest.mark.parametrize("upstream", CONCURRENT_KINDS)
def test_one_slow_item_after_the_other_upstream(
    upstream: str, downstream: str, make_gate: Callable[[], Gate]
):
    gates = {position: make_gate() for position in (MANY, MANY + 1, MANY + 3, MANY + 10)}
    stream = (
        range(2 * MANY)
        | pmap(holding(upstream, gates), kind=upstream, workers=1)
        | pmap(suited(identity, downstream), kind=downstream, workers=3)
    )
    given = 0
    for position, gate in gates.items():
        assert list(islice(stream, position - given)) == list(range(given, position))
        gate.open()
        given = position
    assert list(stream) == list(range(given, 2 * MANY))


def test_a_slow_stage_downstream_withholds_nothing(concurrent_kind: str, gate: Gate):
    stream = (
        range(MANY + 10)
        | pmap(suited(identity, concurrent_kind), kind=concurrent_kind, workers=2)
        | pmap(holding(concurrent_kind, {MANY: gate}), kind=concurrent_kind, workers=2)
    )
    assert list(islice(stream, MANY)) == list(range(MANY))
    gate.open()
    assert list(stream) == list(range(MANY, MANY + 10))


def test_an_item_starts_while_nobody_asks(concurrent_kind: str, log: Log):
    stream = pmap(holding(concurrent_kind, {}, log), range(3), kind=concurrent_kind, workers=2)
    assert next(stream) == 0
    log.wait_for(("end", 1))
    assert list(stream) == [1, 2]
