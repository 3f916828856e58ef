"""Law 1: every kind means what the built-in means. Law 8: a transformer is pure and may run anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fstream import Transformer, merge, ordered, peach, pmap
from property_tests.strategies import (
    KINDS,
    OPERATIONS,
    Chain,
    Operation,
    Step,
    chains,
    described,
    lists_of_items,
    options,
    shapes,
    steps,
)

Shape = Callable[[list[Any]], Iterable[Any]]
every_kind = pytest.mark.parametrize("kind", KINDS)


def printed(outputs: Iterable[Any]) -> list[str]:
    """Outputs as they print, to compare exceptions by what they say."""
    return [repr(output) for output in outputs]


def check_equal(outputs: Iterable[Any], expected: Iterable[Any], in_order: bool) -> None:
    if in_order:
        assert printed(outputs) == printed(expected)
    else:
        assert sorted(printed(outputs)) == sorted(printed(expected))


# Law 1


@every_kind
@pytest.mark.parametrize("operation", OPERATIONS, ids=repr)
@given(data=st.data(), items=lists_of_items(), shape=shapes())
def test_a_stage_equals_its_plain_counterpart(
    operation: Operation, kind: str, data: st.DataObject, items: list[Any], shape: Shape
):
    step: Step = data.draw(steps((kind,), (operation,)))
    outputs = step.transformer()(shape(items))
    check_equal(outputs, step.plain(items), in_order=step.options["ordered"])


@pytest.mark.parametrize("kind", ["sync", "thread", "task"])
@given(data=st.data(), items=lists_of_items())
def test_peach_calls_f_once_for_each_item(kind: str, data: st.DataObject, items: list[Any]):
    called: list[Any] = []
    chosen = data.draw(options(kind, st.booleans()))
    assert list(peach(called.append, items, kind=kind, **chosen)) == []
    assert sorted(printed(called)) == sorted(printed(items))


@given(chain=chains(ordered=st.just(True)), items=lists_of_items(), shape=shapes())
def test_an_ordered_chain_equals_its_plain_counterpart(chain: Chain, items: list[Any], shape: Shape):
    check_equal(chain.transformer()(shape(items)), chain.plain(items), in_order=True)


@given(chain=chains(), items=lists_of_items(), shape=shapes())
def test_any_chain_has_the_outputs_of_its_plain_counterpart(chain: Chain, items: list[Any], shape: Shape):
    check_equal(chain.transformer()(shape(items)), chain.plain(items), chain.keeps_order)


@every_kind
@given(data=st.data(), items=lists_of_items())
def test_any_chain_of_one_kind(kind: str, data: st.DataObject, items: list[Any]):
    chain: Chain = data.draw(chains((kind,)))
    check_equal(chain.transformer()(items), chain.plain(items), chain.keeps_order)


@given(chain=chains(ordered=st.just(False)), items=lists_of_items())
def test_ordered_restores_the_order_of_any_chain(chain: Chain, items: list[Any]):
    check_equal(items | chain.transformer() | ordered, chain.plain(items), in_order=True)


@given(chain=chains(ordered=st.just(True), max_size=3), items=lists_of_items(), taken=st.integers(0, 40))
def test_the_first_outputs_are_those_of_the_plain_counterpart(chain: Chain, items: list[Any], taken: int):
    with chain.transformer()(items) as stream:
        check_equal(islice(stream, taken), chain.plain(items)[:taken], in_order=True)


@given(parts=st.lists(st.tuples(chains(max_size=2), lists_of_items()), max_size=3))
def test_merge_has_the_outputs_of_all(parts: list[tuple[Chain, list[Any]]]):
    streams = [chain.transformer()(items) for chain, items in parts]
    expected = [output for chain, items in parts for output in chain.plain(items)]
    check_equal(merge(*streams), expected, in_order=False)


# Law 8


@given(chain=chains(), several=st.lists(lists_of_items(), min_size=2, max_size=3))
def test_a_transformer_runs_one_time_after_the_other(chain: Chain, several: list[list[Any]]):
    transformer = chain.transformer()
    for items in several:
        check_equal(transformer(items), chain.plain(items), chain.keeps_order)


@given(chain=chains(max_size=2), several=st.lists(lists_of_items(), min_size=2, max_size=4))
def test_a_transformer_runs_in_many_threads_at_once(chain: Chain, several: list[list[Any]]):
    transformer = chain.transformer()
    with ThreadPoolExecutor(len(several)) as threads:
        for items, outputs in zip(several, threads.map(list, map(transformer, several)), strict=True):
            check_equal(outputs, chain.plain(items), chain.keeps_order)


@given(
    chain=chains(max_size=2),
    several=st.lists(lists_of_items(max_size=10), min_size=2, max_size=3),
    turns=st.lists(st.integers(0, 2), max_size=30),
)
def test_runs_of_a_transformer_interleave(chain: Chain, several: list[list[Any]], turns: list[int]):
    transformer = chain.transformer()
    streams = [transformer(items) for items in several]
    outputs: list[list[Any]] = [[] for _ in several]
    for turn in turns:
        outputs[turn % len(several)] += islice(streams[turn % len(several)], 1)
    for items, stream, given_before in zip(several, streams, outputs, strict=True):
        check_equal([*given_before, *stream], chain.plain(items), chain.keeps_order)


def described_outputs(transformer: Transformer[Any, Any], items: list[Any]) -> list[str]:
    return printed(transformer(items))


@every_kind
@given(data=st.data(), several=st.lists(lists_of_items(max_size=10), max_size=4))
def test_a_transformer_runs_inside_another(kind: str, data: st.DataObject, several: list[list[Any]]):
    inner_kinds = KINDS if kind != "process" else ("sync", "thread", "task")
    chain: Chain = data.draw(chains(inner_kinds, max_size=2))
    transformer = chain.transformer()
    nested = pmap(lambda items: described_outputs(transformer, items), kind=kind, workers=2)
    for items, outputs in zip(several, nested(several), strict=True):
        expected = printed(chain.plain(items))
        assert (outputs if chain.keeps_order else sorted(outputs)) == (
            expected if chain.keeps_order else sorted(expected)
        )


@given(chain=chains(max_size=3))
def test_equal_chains_are_equal_and_hash_equal(chain: Chain):
    assert chain.transformer() == chain.transformer()
    assert hash(chain.transformer()) == hash(chain.transformer())
    assert chain.transformer() != chain.transformer() | pmap(described)
