"""Stages of all kinds: in a row, with foreign iterators between, interleaved, nested, from many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, islice, pairwise
from typing import Any

import more_itertools
import pytest
import toolz
from toolz import pipe
from toolz.curried import partition_all

from fstream import Stream, merge, pfilter, pflat_map, pmap
from tests.conftest import KINDS
from tests.functions import identity, is_odd, square, suited
from tests.sources import Source

pairs_of_kinds = [
    pytest.mark.parametrize("first", KINDS),
    pytest.mark.parametrize("second", KINDS),
]


def every_pair_of_kinds(test: Callable[..., None]) -> Callable[..., None]:
    for mark in pairs_of_kinds:
        test = mark(test)
    return test


def increment(number: int) -> int:
    return number + 1


def up_to(number: int) -> range:
    return range(number % 4)


# Next to each other


@every_pair_of_kinds
def test_two_kinds_next_to_each_other(first: str, second: str):
    stream = pipe(
        range(500),
        pmap(suited(square, first), kind=first, workers=2),
        pmap(suited(increment, second), kind=second, workers=2),
    )
    assert list(stream) == [number * number + 1 for number in range(500)]


@every_pair_of_kinds
def test_three_stages_there_and_back(first: str, second: str):
    stream = pipe(
        range(300),
        pfilter(suited(is_odd, first), kind=first, workers=2),
        pflat_map(suited(up_to, second), kind=second, workers=2),
        pmap(suited(square, first), kind=first, workers=2),
    )
    assert list(stream) == [number * number for item in range(300) if item % 2 for number in range(item % 4)]


@every_pair_of_kinds
def test_an_unordered_stage_before_another(first: str, second: str):
    stream = pipe(
        range(300),
        pmap(suited(square, first), kind=first, workers=2, ordered=False),
        pmap(suited(increment, second), kind=second, workers=2, ordered=False),
    )
    assert sorted(stream) == [number * number + 1 for number in range(300)]


def test_all_kinds_in_a_row_and_again():
    stages = [pmap(suited(increment, kind), kind=kind, workers=2) for kind in (*KINDS, *reversed(KINDS))]
    assert list(pipe(range(200), *stages)) == list(range(8, 208))


def test_an_infinite_source_through_all_kinds():
    source = Source(count())
    stages = [pmap(suited(increment, kind), kind=kind, workers=2) for kind in KINDS]
    assert list(toolz.take(100, pipe(source, *stages))) == list(range(4, 104))
    assert source.closed.wait(20)


# Foreign iterators


@every_pair_of_kinds
def test_foreign_iterators_between_stages(first: str, second: str):
    stream = pipe(
        range(100),
        pmap(suited(square, first), kind=first, workers=2),
        partition_all(7),
        pmap(suited(sum, second), kind=second, workers=2),
        partial(more_itertools.windowed, n=2),
        more_itertools.flatten,
        pmap(suited(increment, first), kind=first, workers=2),
    )
    sums = [sum(part) for part in toolz.partition_all(7, map(square, range(100)))]
    assert list(stream) == [number + 1 for pair in pairwise(sums) for number in pair]


def test_a_foreign_iterator_that_looks_ahead(kind: str):
    ahead = more_itertools.peekable(pmap(suited(square, kind), range(5), kind=kind))
    assert ahead.peek() == 0
    assert list(pmap(suited(increment, kind), ahead, kind=kind)) == [1, 2, 5, 10, 17]


# Streams as sources


def test_a_stream_that_has_started_is_a_source_of_the_rest(kind: str):
    upstream = pmap(suited(square, kind), range(6), kind=kind)
    assert next(upstream) == 0
    assert list(pmap(suited(increment, kind), upstream, kind=kind)) == [2, 5, 10, 17, 26]


def test_a_stream_that_starts_after_it_became_a_source(kind: str):
    upstream = pmap(suited(square, kind), range(6), kind=kind)
    downstream = pmap(suited(increment, kind), upstream, kind=kind)
    assert next(upstream) == 0
    assert list(downstream) == [2, 5, 10, 17, 26]


def test_the_items_of_a_stream_go_to_one_taker(kind: str):
    upstream = pmap(suited(square, kind), range(6), kind=kind)
    one, two = (pmap(suited(f, kind), upstream, kind=kind) for f in (increment, identity))
    assert list(one) == [1, 2, 5, 10, 17, 26]
    assert list(two) == []
    assert list(upstream) == []


# Side by side


@every_pair_of_kinds
def test_two_pipelines_interleaved(first: str, second: str):
    one = pmap(suited(square, first), range(200), kind=first, workers=2)
    two = pmap(suited(increment, second), range(200), kind=second, workers=2)
    assert list(zip(one, two, strict=True)) == [(number * number, number + 1) for number in range(200)]


def test_ten_pipelines_round_robin(kind: str):
    streams = [
        pmap(suited(square, kind), range(start, start + 20), kind=kind, workers=2) for start in range(10)
    ]
    assert list(more_itertools.interleave(*streams)) == [
        (start + step) ** 2 for step in range(20) for start in range(10)
    ]


def test_one_pipeline_ends_in_the_middle_of_another(kind: str):
    transformer = pmap(suited(square, kind), kind=kind, workers=2)
    outer = transformer(count())
    for expected in range(5):
        assert next(outer) == expected * expected
        assert list(transformer(range(10))) == [number * number for number in range(10)]
        inner = transformer(count())
        assert next(inner) == 0
        inner.close()
    outer.close()


# Nested


def nested_sum(inner: str, number: int) -> int:
    return sum(pmap(suited(square, inner), range(number), kind=inner, workers=2))


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", KINDS)
def test_a_pipeline_inside_f(outer: str, inner: str):
    f = partial(nested_sum, inner)
    assert list(pmap(f, range(6), kind=outer, workers=2)) == [0, 0, 1, 5, 14, 30]


@pytest.mark.parametrize("inner", KINDS)
def test_a_pipeline_inside_a_coroutine_function(inner: str):
    f = suited(partial(nested_sum, inner), "task")
    assert list(pmap(f, range(6), kind="task", workers=2)) == [0, 0, 1, 5, 14, 30]


def streamed(kind: str, number: int) -> Stream[int]:
    return pmap(square, range(number), kind=kind, workers=2)


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", ["sync", "thread", "task"])
def test_f_of_a_flat_map_gives_a_stream(outer: str, inner: str):
    stream = pflat_map(partial(streamed, inner), range(4), kind=outer, workers=2)
    assert list(stream) == [0, 0, 1, 0, 1, 4]


def test_a_pipeline_inside_the_source(kind: str):
    source = (total for number in range(4) for total in pmap(square, range(number), kind=kind, workers=2))
    assert list(pmap(increment, source, kind=kind, workers=2)) == [1, 1, 2, 1, 2, 5]


# From many threads


@pytest.mark.parametrize("transformer_is_shared", [True, False])
def test_many_pipelines_from_many_threads(kind: str, transformer_is_shared: bool):
    threads, rounds = 6, 3
    shared = pmap(suited(square, kind), kind=kind, workers=2) | pfilter(
        suited(is_odd, kind), kind=kind, workers=2
    )
    barrier = threading.Barrier(threads)

    def consume(start: int) -> list[Any]:
        barrier.wait()
        made = pmap(suited(square, kind), kind=kind, workers=2) | pfilter(
            suited(is_odd, kind), kind=kind, workers=2
        )
        transformer = shared if transformer_is_shared else made
        return [list(transformer(range(start, start + 50))) for _ in range(rounds)]

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(consume, range(threads)))
    assert results == [
        [[number * number for number in range(start, start + 50) if number % 2]] * rounds
        for start in range(threads)
    ]


def test_a_stream_may_be_consumed_in_another_thread_than_it_was_made(kind: str):
    stream = pmap(suited(square, kind), range(20), kind=kind, workers=2)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(list, islice(stream, 10)).result() == [number * number for number in range(10)]
    assert list(stream) == [number * number for number in range(10, 20)]


def test_streams_of_all_kinds_merged():
    streams = [pmap(suited(square, kind), range(50), kind=kind, workers=2) for kind in KINDS]
    assert sorted(merge(*streams)) == sorted(square(number) for number in range(50) for _ in KINDS)
