"""What needs no worker, behind keys and rates; and what waits where every stage runs in the caller's thread."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fstream import Failed, Rate, inline, pmap
from tests.functions import square, suited

#: One start, and no other while a test lasts.
ONCE = {"n": 1, "per": 3600.0}


def inverse(number: int) -> float:
    return 1 / number


def parity(number: int) -> int:
    return number % 2


def cost(number: int) -> int:
    assert isinstance(number, int | float)
    return 1


def told(outputs: list[Any]) -> list[Any]:
    return [output.item if isinstance(output, Failed) else output for output in outputs]


@pytest.mark.parametrize("costs", [None, cost], ids=["of one each", "of a cost"])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_what_is_handed_on_counts_as_no_start(kind: str, ordered: bool, costs: Any):
    items = [0, 0, 1, *[0] * 30]
    stream = pmap(suited(inverse, kind), items, kind=kind, on_error="keep") | pmap(
        suited(square, kind), kind=kind, rate=Rate(**ONCE, cost=costs), ordered=ordered
    )
    outputs = told(list(stream))
    assert outputs == items if ordered else sorted(outputs) == sorted(items)


def test_what_is_handed_on_has_no_key(kind: str):
    seen: list[Any] = []

    def key(number: float) -> int:
        seen.append(number)
        return 0

    stream = pmap(suited(inverse, kind), [1, 0, 2, 0, 0, 4], kind=kind, on_error="keep") | pmap(
        suited(square, kind), kind=kind, key=key, workers=3
    )
    assert told(list(stream)) == [1, 0, 0.25, 0, 0, 0.0625]
    assert seen == [1, 0.5, 0.25]


def test_what_is_handed_on_takes_no_place_of_a_key_while_others_do(concurrent_kind: str):
    stream = pmap(
        suited(inverse, concurrent_kind), [1, 0, 1, 0, 1], kind=concurrent_kind, on_error="keep"
    ) | pmap(suited(square, concurrent_kind), kind=concurrent_kind, key=int, per_key=1, ordered=False)
    assert sorted(told(list(stream))) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("costs", [None, cost], ids=["of one each", "of a cost"])
def test_what_a_memo_knows_counts_as_no_start(kind: str, costs: Any):
    memo: dict[int, int] = {number: -number for number in range(20)}
    numbers = [*range(10), 20, *range(10), 20]
    stream = pmap(suited(square, kind), numbers, kind=kind, memo=memo, rate=Rate(**ONCE, cost=costs))
    assert list(stream) == [400 if number == 20 else -number for number in numbers]


def test_what_waits_for_an_equal_item_that_fails_runs_with_its_key(kind: str):
    def f(number: int, attempt: int, element_index: int) -> int:
        if element_index == 0:
            raise ValueError(attempt)
        return number

    async def f_later(number: int, attempt: int, element_index: int) -> int:
        return f(number, attempt, element_index)

    memo: dict[int, int] = {}
    g: Any = f_later if kind == "task" else f
    stream = pmap(g, [3, 3, 5, 3], kind=kind, memo=memo, key=parity, retries=1, backoff=0, on_error="skip")
    assert list(stream) == [3, 5, 3]
    assert memo == {3: 3, 5: 5}


def test_an_item_that_is_tried_again_keeps_its_key_of_the_memo(kind: str):
    def f(number: int, attempt: int) -> tuple[int, int]:
        if number == 1 and attempt < 2:
            raise ValueError(number)
        return number, attempt

    async def f_later(number: int, attempt: int) -> tuple[int, int]:
        return f(number, attempt)

    g: Any = f_later if kind == "task" else f
    stream = pmap(g, [1, 1, 2, 1], kind=kind, memo={}, key=parity, retries=2, backoff=0.001, workers=2)
    assert list(stream) == [(1, 2), (1, 2), (2, 0), (1, 2)]


@pytest.mark.parametrize("share", [2, 0.3])
def test_what_waits_for_its_next_try_is_no_failure_yet(kind: str, share: float):
    def f(number: int, attempt: int) -> int:
        if number % 5 == 0 and attempt == 0:
            raise ValueError(number)
        return number

    async def f_later(number: int, attempt: int) -> int:
        return f(number, attempt)

    g: Any = f_later if kind == "task" else f
    options: Any = {"kind": kind, "retries": 1, "backoff": 0.001, "on_error": "skip", "max_failures": share}
    assert list(pmap(g, range(60), **options)) == list(range(60))


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
@pytest.mark.parametrize("any_kind", ["sync", "thread", "process", "task"])
def test_inline_stages_try_again_wait_and_take_tickets(any_kind: str, is_async: bool):
    import asyncio

    tries: Counter[int] = Counter()

    def f(number: int, attempt: int) -> int:
        assert attempt == tries[number]
        tries[number] += 1
        if number % 2 and attempt < 2:
            raise ValueError(number)
        return -number

    async def f_later(number: int, attempt: int) -> int:
        await asyncio.sleep(0)
        return f(number, attempt)

    async def outputs(stream: Any) -> list[int]:
        return [output async for output in stream]

    g: Any = f_later if any_kind == "task" else f
    rate = Rate(10_000, cost=cost)
    with inline():
        stream = pmap(
            g, range(6), kind=any_kind, retries=2, retry_on=ValueError, backoff=0.001, rate=rate, key=parity
        )
        found = asyncio.run(outputs(stream)) if is_async else list(stream)
    assert found == [0, -1, -2, -3, -4, -5]
    assert tries == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1, 5: 3}
    assert stream.stats().stages[-1].retried == 6
