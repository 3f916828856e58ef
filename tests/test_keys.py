"""`key` and `per_key`: how many items of one key are at work at once."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fstream import Observer, batch, observe, pfilter, pflat_map, pmap
from fstream._flow.pacing import Keys, Ticket
from fstream._flow.span import Span
from fstream._workers.simulated.schedule import Schedule
from fstream.testing import assert_lawful, schedules, simulated
from tests.conftest import CONCURRENT_KINDS
from tests.functions import square, suited
from tests.gates import PATIENCE, Gate, Log, holding


def third(item: int) -> int:
    return item % 3


class AtWork(Observer):
    """Notes the most items of one key that were in the hands of workers at once."""

    def __init__(self, key: Callable[[int], Any]) -> None:
        self.key = key
        self.hands: dict[int, list[int]] = {}
        self.most: Counter[Any] = Counter()

    def taken(self, stage: Any, start: int, count: int, worker: int | None) -> None:
        if worker is None or stage.kind == "sync":
            return
        self.hands[worker] = list(range(start, start + count))
        at_work = [index for indices in self.hands.values() for index in indices]
        self.most |= Counter(map(self.key, at_work))

    def done(self, stage: Any, start: int, count: int, seconds: float | None, worker: int | None) -> None:
        if worker is not None and stage.kind != "sync":
            self.hands[worker] = []


# ------------------------------------------------------------------------------------------------ the account


def span_of(index: int, key: Any) -> Span:
    span = Span(index, [index])
    span.ticket = Ticket(index, key)
    return span


def test_a_place_that_is_left_goes_to_the_first_in_order():
    keys = Keys(1)
    first, second, third, other = span_of(0, "a"), span_of(9, "a"), span_of(4, "a"), span_of(5, "b")
    assert [keys.admit(each) for each in (first, second, third, other)] == [True, False, False, True]
    assert keys.leave(first) is third
    assert keys.leave(first) is None
    assert keys.leave(third) is second
    assert keys.leave(second) is None
    assert keys.leave(other) is None
    assert not (keys.taken or keys.placed or keys.parked)


def test_no_key_is_no_place():
    keys = Keys(1)
    assert keys.admit(span_of(0, None)) and keys.admit(span_of(1, None))
    assert not (keys.taken or keys.placed)


def test_what_is_cut_off_gets_no_place():
    keys = Keys(1)
    spans = [span_of(n, "a") for n in range(4)]
    assert [keys.admit(span) for span in spans] == [True, False, False, False]
    keys.cut(2)
    assert keys.leave(spans[0]) is spans[1]
    assert keys.leave(spans[1]) is None
    assert not keys.parked


# ------------------------------------------------------------------------------------------------ the option


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "host"}, TypeError, "key must be a function or None, got 'host'"),
        ({"key": third, "per_key": 0}, ValueError, "per_key must be at least 1, got 0"),
        ({"key": third, "per_key": 1.5}, TypeError, "per_key must be an int, got 1.5"),
        ({"per_key": 2}, ValueError, r"per_key needs key: write pmap\(f, key=\.\.\., per_key=2\)"),
        ({"key": suited(third, "task")}, TypeError, "key 'third' is a coroutine function"),
    ],
)
def test_what_is_wrong_is_an_error_at_once(options: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pmap(abs, **options)


# ------------------------------------------------------------------------------------------ under a schedule


@settings(max_examples=60, deadline=None)
@given(
    schedule=schedules(),
    kind=st.sampled_from(CONCURRENT_KINDS),
    per_key=st.integers(1, 3),
    size=st.sampled_from([None, 1, 4, 0]),
    is_ordered=st.booleans(),
)
def test_no_more_of_one_key_are_at_work_whoever_goes_on_when(
    schedule: Schedule, kind: str, per_key: int, size: int | None, is_ordered: bool
):
    watch = AtWork(third)
    with observe(watch), simulated(schedule):
        stage = pmap(
            suited(square, kind), kind=kind, workers=6, key=third, per_key=per_key, maxsize=size,
            ordered=is_ordered,
        )  # fmt: skip
        outputs = list(stage(range(30)))
    assert (outputs if is_ordered else sorted(outputs)) == [n * n for n in range(30)]
    assert max(watch.most.values()) <= per_key


@pytest.mark.parametrize("is_list", [True, False])
def test_it_changes_nothing_else(concurrent_kind: str, is_ordered: bool, is_list: bool):
    def odd(item: int) -> int | None:
        return item % 2 or None

    assert_lawful(
        pmap(
            suited(square, concurrent_kind), kind=concurrent_kind, workers=3, key=odd, ordered=is_ordered,
            retries=2, timeout=5,
        )
        | pfilter(suited(bool, concurrent_kind), kind=concurrent_kind, key=third, retries=1),
        lambda items: filter(None, map(square, items)),
        sources=st.lists(st.integers(0, 9), max_size=8),
    )  # fmt: skip


def test_an_item_that_waits_for_its_next_try_is_not_at_work(concurrent_kind: str):
    def f(item: int) -> int:
        if item == 0:
            raise ValueError
        return item

    with simulated(Schedule(cheap=True)) as simulation:
        stage = pmap(
            suited(f, concurrent_kind), kind=concurrent_kind, key=lambda _: "one", retries=1,
            retry_on=lambda _: True, backoff=60, on_error="skip", ordered=False,
        )  # fmt: skip
        stream = stage(range(4))
        simulation.draw = lambda: 1.0  # type: ignore[method-assign]
        assert [next(stream) for _ in range(3)] == [1, 2, 3]
        assert simulation.now < 50
        assert list(stream) == []
        assert simulation.now > 50


def test_a_failure_ends_the_stream_though_others_of_its_key_are_parked(
    concurrent_kind: str, is_ordered: bool
):
    def f(item: int) -> int:
        return 1 // (4 - item)

    with simulated(Schedule(ahead=True)), pytest.raises(ZeroDivisionError):
        list(pmap(suited(f, concurrent_kind), range(40), kind=concurrent_kind, key=third, ordered=is_ordered))


# ------------------------------------------------------------------------------------------------ in real life


@pytest.fixture(params=["for", "async for"])
def listed(request: pytest.FixtureRequest) -> Callable[[Any], list[Any]]:
    async def gathered(stream: Any) -> list[Any]:
        return [output async for output in stream]

    return list if request.param == "for" else lambda stream: asyncio.run(gathered(stream))


def test_outputs_are_those_of_map(kind: str, is_ordered: bool, listed: Any):
    stream = pmap(suited(square, kind), range(60), kind=kind, key=third, per_key=2, ordered=is_ordered)
    outputs = listed(stream)
    assert (outputs if is_ordered else sorted(outputs)) == [n * n for n in range(60)]


def test_it_stands_in_a_row_and_takes_any_source(kind: str):
    async def pulled() -> Any:
        for n in range(20):
            yield n

    f = suited(square, kind)
    expected = [n * n for n in range(20)]
    assert list(pmap(f, iter(range(20)), kind=kind, key=third)) == expected
    assert list(pmap(f, pulled(), kind=kind, key=third)) == expected
    row = pmap(abs, kind="thread") | pmap(f, kind=kind, key=third) | batch(7) | pflat_map(list)
    assert list(row(range(20))) == expected


def test_one_hot_key_does_not_starve_the_others(concurrent_kind: str, gate: Gate, log: Log):
    f = holding(concurrent_kind, {0: gate}, log)
    hot = [0, 3, 6, 9, 12]
    stage = pmap(f, kind=concurrent_kind, workers=2, key=lambda n: n in hot, ordered=False, maxsize=0)
    stream = stage([*hot, 1, 2, 4])
    cold = [next(stream) for _ in range(3)]
    gate.open()
    assert sorted(cold) == [1, 2, 4]
    assert list(stream) == hot
    starts = [item for what, item in log.entries() if what == "start"]
    assert [item for item in starts if item in hot] == hot


def test_items_of_one_key_run_one_after_the_other(concurrent_kind: str, log: Log):
    f = holding(concurrent_kind, {}, log)
    list(pmap(f, range(40), kind=concurrent_kind, workers=4, key=lambda _: 1))
    at_work = 0
    for what, _ in log.entries():
        at_work += 1 if what == "start" else -1
        assert at_work in (0, 1)


@pytest.mark.parametrize("key", [lambda _: None, lambda item: item])
def test_all_workers_are_at_work_where_keys_differ_or_are_none(
    concurrent_kind: str, key: Any, gate: Gate, log: Log
):
    f = holding(concurrent_kind, dict.fromkeys(range(3), gate), log)
    stream = pmap(f, range(3), kind=concurrent_kind, workers=3, key=key)
    taker = threading.Thread(target=list, args=(stream,))
    taker.start()
    log.wait_for(("start", 0), ("start", 1), ("start", 2))
    gate.open()
    taker.join(PATIENCE)
    assert not taker.is_alive()


def test_ten_thousand_keys_cost_nothing_when_they_are_gone(concurrent_kind: str):
    stream = pmap(suited(abs, concurrent_kind), range(10_000), kind=concurrent_kind, key=lambda n: n)
    assert next(stream) == 0
    run = stream._outputs.run
    assert run is not None
    assert sum(1 for _ in stream) == 9_999
    keys = run.windows[0].pacing.keys  # type: ignore[union-attr]
    assert keys is not None
    assert not (keys.taken or keys.placed or keys.parked)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_key_that_cannot_be_hashed_is_an_error_that_names_the_item(kind: str, on_error: Any):
    stream = pmap(
        suited(abs, kind), range(6), kind=kind, key=lambda n: [n] if n == 4 else n, on_error=on_error
    )
    given: list[int] = []
    with pytest.raises(TypeError, match=r"key must give what can be hashed, got \[4\]") as caught:
        given.extend(stream)
    assert "item 4: 4" in "".join(caught.value.__notes__)
    assert given == [0, 1, 2, 3]


def test_a_stream_is_closed_while_items_are_parked(concurrent_kind: str, gate: Gate, log: Log):
    f = holding(concurrent_kind, {1: gate}, log)
    stream = pmap(f, count(), kind=concurrent_kind, workers=2, key=lambda _: 1)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    gate.open()
    stream.close()
