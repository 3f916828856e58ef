"""Outputs come in the order of the inputs, or as they complete."""

from __future__ import annotations

from itertools import islice

import pytest

from fstream import pfilter, pflat_map, pmap
from tests.functions import MEANINGS, Meaning, countdown, is_odd, suited, uneven_square
from tests.gates import Gate, Log, holding, opened_when


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, number))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("meaning", MEANINGS, ids=str)
def test_ordered_is_the_order_of_the_inputs(meaning: Meaning, kind: str, workers: int):
    items = [7, 0, 3, 3, 9, 1, 4] * 30
    stream = meaning.combinator(suited(meaning.f, kind), items, kind=kind, workers=workers)
    assert list(stream) == meaning.expected(items)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("meaning", MEANINGS, ids=str)
def test_unordered_is_the_same_in_any_order(meaning: Meaning, kind: str, workers: int):
    items = [7, 0, 3, 3, 9, 1, 4] * 30
    stream = meaning.combinator(suited(meaning.f, kind), items, kind=kind, workers=workers, ordered=False)
    assert sorted(stream) == sorted(meaning.expected(items))


def test_order_holds_over_many_items_of_uneven_cost(kind: str):
    stream = pmap(suited(uneven_square, kind), range(5_000), kind=kind, workers=4)
    assert list(stream) == [number * number for number in range(5_000)]


def some_item_ended(entries: list[tuple[str, int]]) -> bool:
    return any(step == "end" for step, _ in entries)


def test_an_item_that_ends_early_waits_for_its_turn(concurrent_kind: str, gate: Gate, log: Log):
    f = holding(concurrent_kind, {0: gate}, log)
    with opened_when(gate, lambda: log.wait_until(some_item_ended, "an item to overtake item 0")):
        assert list(pmap(f, range(20), kind=concurrent_kind, workers=2)) == list(range(20))
    assert log.entries().index(("end", 0)) > log.entries().index(("end", 1))


def test_an_item_that_ends_early_comes_early_where_order_is_not_asked_for(concurrent_kind: str, gate: Gate):
    stream = pmap(
        holding(concurrent_kind, {0: gate}), range(20), kind=concurrent_kind, workers=2, ordered=False
    )
    assert next(stream) != 0
    gate.open()
    assert 0 in list(stream)


def test_outputs_of_one_item_stay_together_and_in_order(kind: str):
    stream = pflat_map(suited(countdown, kind), [3] * 100, kind=kind, workers=4)
    assert list(stream) == [3, 2, 1] * 100


def test_items_that_give_nothing_leave_no_gap(kind: str):
    stream = (
        range(1_000) | pfilter(suited(is_odd, kind), kind=kind) | pfilter(suited(is_prime, kind), kind=kind)
    )
    assert list(islice(stream, 5)) == [3, 5, 7, 11, 13]
    stream.close()
