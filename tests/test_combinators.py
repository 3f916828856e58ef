"""What each combinator means, beyond its f and its kind: peach, pfilter, pflat_map, ordered, merge, run."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import count, islice
from typing import Any

import pytest
from toolz import pipe, take

from fstream import Stream, merge, ordered, peach, pfilter, pflat_map, pmap, run
from tests.functions import countdown, identity, is_odd, square, suited
from tests.gates import Gate, Log, holding, opened_when
from tests.sources import Source


class Truth:
    """An item that only knows whether it is true."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return self.value


# peach


def test_peach_calls_f_once_for_each_item_and_gives_nothing(kind: str, is_ordered: bool, log: Log):
    f = suited(log.write, kind)
    assert list(peach(f, range(100), kind=kind, workers=3, ordered=is_ordered)) == []
    assert sorted(log.entries()) == list(range(100))


def test_peach_ends_at_the_first_next(kind: str, log: Log):
    stream = peach(suited(log.write, kind), range(10), kind=kind)
    with pytest.raises(StopIteration):
        next(stream)
    assert sorted(log.entries()) == list(range(10))


def test_peach_in_the_middle_of_a_chain(kind: str, log: Log):
    chain = pmap(suited(square, kind), kind=kind, workers=2) | peach(
        suited(log.write, kind), kind=kind, workers=2
    )
    assert list(chain(range(10))) == []
    assert sorted(log.entries()) == [number * number for number in range(10)]


# pfilter


@pytest.mark.parametrize("verdict", [1, "yes", [0], Truth(True)], ids=["1", "str", "list", "object"])
def test_whatever_is_true_keeps_the_item(kind: str, verdict: object):
    assert list(pfilter(suited(lambda _: verdict, kind), [0, None, ""], kind=kind)) == [0, None, ""]


@pytest.mark.parametrize(
    "verdict", [0, "", [], None, Truth(False)], ids=["0", "str", "list", "None", "object"]
)
def test_whatever_is_false_drops_the_item(kind: str, verdict: object):
    assert list(pfilter(suited(lambda _: verdict, kind), [1, "x", object], kind=kind)) == []


def test_the_items_kept_are_the_items_themselves(kind: str):
    items = [[number] for number in range(20)]
    kept = list(pfilter(suited(lambda item: item[0] % 2, kind), items, kind=kind, workers=2))
    assert kept == items[1::2]
    if kind != "process":
        assert all(one is another for one, another in zip(kept, items[1::2], strict=True))


# pflat_map


@pytest.mark.parametrize(
    "many",
    [list, tuple, iter, lambda items: (item for item in items), dict.fromkeys],
    ids=["list", "tuple", "iterator", "generator", "dict"],
)
def test_f_may_give_any_iterable(kind: str, many: Any):
    f = suited(lambda number: many(range(number)), kind)
    assert list(pflat_map(f, [3, 0, 1, 2], kind=kind, workers=2)) == [0, 1, 2, 0, 0, 1]


def test_a_string_is_an_iterable_of_its_characters(kind: str):
    assert list(pflat_map(suited(str, kind), [12, 345], kind=kind)) == list("12345")


def test_f_may_be_a_generator_function(kind: str):
    assert list(pflat_map(countdown, [3, 0, 1], kind=kind, workers=2)) == [3, 2, 1, 1]


def test_f_may_be_an_asynchronous_generator_function(gate: Gate):
    async def countdown_async(number: int) -> AsyncIterator[int]:
        for each in countdown(number):
            await gate.passed()
            yield each

    gate.open()
    assert list(pflat_map(countdown_async, [3, 0, 1], kind="task", workers=2)) == [3, 2, 1, 1]


def test_f_may_await_an_asynchronous_iterable():
    async def items(number: int) -> AsyncIterator[int]:
        for each in countdown(number):
            yield each

    async def countdown_async(number: int) -> AsyncIterator[int]:
        return items(number)

    assert list(pflat_map(countdown_async, [3, 0, 1], workers=2)) == [3, 2, 1, 1]


def test_what_is_not_iterable_is_a_type_error(kind: str):
    with pytest.raises(TypeError, match="int"):
        list(pflat_map(suited(square, kind), [1], kind=kind))


# ordered


def test_ordered_restores_the_order_of_the_source(kind: str):
    stream = pipe(
        range(500),
        pmap(suited(square, kind), kind=kind, workers=3, ordered=False),
        pfilter(suited(is_odd, kind), kind=kind, workers=3, ordered=False),
        pflat_map(suited(lambda number: [number, -number], kind), kind=kind, workers=3, ordered=False),
        ordered,
    )
    assert isinstance(stream, Stream)
    assert list(stream) == [sign * n * n for n in range(1, 500, 2) for sign in (1, -1)]


def test_ordered_waits_for_the_item_that_is_next(concurrent_kind: str, gate: Gate, log: Log):
    hold = holding(concurrent_kind, {0: gate}, log)
    stream = range(20) | pmap(hold, kind=concurrent_kind, workers=2, ordered=False) | ordered

    with opened_when(gate, lambda: log.wait_for(("end", 1))):
        assert list(stream) == list(range(20))


def test_ordered_reaches_stages_before_one_that_is_ordered(concurrent_kind: str, gate: Gate, log: Log):
    hold = holding(concurrent_kind, {0: gate}, log)
    late = range(20) | pmap(hold, kind=concurrent_kind, workers=2, ordered=False) | pmap(abs) | ordered
    with opened_when(gate, lambda: log.wait_for(("end", 1))):
        assert list(late) == list(range(20))


def test_stages_after_ordered_may_be_unordered_again(kind: str):
    unordered = pmap(suited(square, kind), kind=kind, workers=2, ordered=False)
    assert sorted(range(100) | unordered | ordered | unordered) == [number**4 for number in range(100)]


def test_ordered_twice_is_ordered(kind: str):
    stream = pmap(suited(square, kind), range(50), kind=kind, workers=2, ordered=False)
    assert list(ordered(ordered(stream))) == list(map(square, range(50)))


def test_ordered_on_an_infinite_source(kind: str):
    stream = pmap(suited(square, kind), count(), kind=kind, workers=2, ordered=False) | ordered
    assert list(take(100, stream)) == [number * number for number in range(100)]
    stream.close()


# merge


def test_merge_gives_the_outputs_of_all(kind: str):
    streams = [pmap(suited(square, kind), range(length), kind=kind, workers=2) for length in (0, 1, 30, 7)]
    merged = merge(*streams)
    assert isinstance(merged, Stream)
    assert sorted(merged) == sorted(square(number) for length in (0, 1, 30, 7) for number in range(length))


def test_merge_keeps_the_order_within_each_source(kind: str):
    streams = [
        pmap(suited(lambda n: (n % 3, n), kind), range(at, 300, 3), kind=kind, workers=2) for at in range(3)
    ]
    outputs = list(merge(*streams))
    for at in range(3):
        assert [number for source, number in outputs if source == at] == list(range(at, 300, 3))


def test_merge_of_plain_iterables():
    assert sorted(merge([1, 2], (3,), {4: "four"}, iter([5]), range(6, 8))) == [1, 2, 3, 4, 5, 6, 7]


def test_merge_of_nothing_is_empty():
    assert list(merge()) == []
    assert list(merge([], [])) == []


def test_merge_of_one_is_that_one(kind: str):
    assert list(merge(pmap(suited(square, kind), range(50), kind=kind))) == list(map(square, range(50)))


def test_merge_waits_for_no_source_while_another_has_something(gate: Gate):
    def blocked() -> Iterator[int]:
        gate.wait()
        yield -1

    merged = merge(blocked(), range(1_000))
    assert list(islice(merged, 1_000)) == list(range(1_000))
    gate.open()
    assert list(merged) == [-1]


def test_merge_waits_for_no_stage_while_another_has_something(concurrent_kind: str, gate: Gate):
    held = pmap(holding(concurrent_kind, {0: gate}), range(3), kind=concurrent_kind, workers=1)
    free = pmap(suited(identity, concurrent_kind), range(10, 500), kind=concurrent_kind, workers=1)
    merged = merge(held, free)
    assert list(islice(merged, 490)) == list(range(10, 500))
    gate.open()
    assert list(merged) == [0, 1, 2]


def test_merge_of_infinite_sources():
    merged = merge(Source(count()), count())
    assert len(list(take(1_000, merged))) == 1_000
    merged.close()


def test_a_slow_consumer_does_not_make_merge_grow():
    sources = [Source(count()) for _ in range(3)]
    with merge(*sources) as merged:
        taken = 0
        while taken < 100 or not all(source.pulled for source in sources):
            next(merged)
            taken += 1
        assert sum(source.pulled for source in sources) < taken + 10_000


def test_stages_after_and_before_merge(kind: str):
    merged = merge(range(10), pmap(suited(square, kind), range(10), kind=kind))
    chain = pmap(suited(square, kind), kind=kind, workers=2) | pfilter(suited(is_odd, kind), kind=kind)
    expected = [n**2 for n in range(10) if n % 2] + [n**4 for n in range(10) if n % 2]
    assert Counter(chain(merged)) == Counter(expected)


# run


def test_run_consumes_and_gives_none(kind: str, log: Log):
    streams = [peach(suited(log.write, kind), range(at, at + 10), kind=kind, workers=2) for at in (0, 10, 20)]
    assert run(*streams) is None
    assert sorted(log.entries()) == list(range(30))
    assert [list(stream) for stream in streams] == [[], [], []]


def test_run_drops_the_outputs(kind: str):
    stream = pmap(suited(square, kind), range(10), kind=kind)
    assert run(stream) is None
    assert list(stream) == []


def test_run_of_nothing():
    assert run() is None


@pytest.mark.parametrize("waits_first", [True, False])
def test_run_consumes_all_at_once(concurrent_kind: str, waits_first: bool, gate: Gate):
    waits = peach(holding(concurrent_kind, {0: gate}), [0], kind=concurrent_kind)
    opens = peach(lambda _: gate.open(), [0], kind="thread")
    run(*((waits, opens) if waits_first else (opens, waits)))


def test_run_raises_the_error_of_any(concurrent_kind: str):
    endless = peach(suited(abs, concurrent_kind), count(), kind=concurrent_kind, workers=2)
    fails = pmap(suited(lambda number: 1 // (5 - number), concurrent_kind), count(), kind=concurrent_kind)
    with pytest.raises(ZeroDivisionError):
        run(endless, fails)
