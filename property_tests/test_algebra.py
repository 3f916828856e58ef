"""What may be put in the place of what: the equations between pipelines, real and simulated, of whatever kinds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import toolz
from hypothesis import strategies as st

from fstream import merge, ordered, peach, pfilter, pflat_map, pmap, run
from property_tests.strategies import (
    KINDS,
    PFILTER,
    PFLAT_MAP,
    PMAP,
    Chain,
    Operation,
    as_many_as_described,
    chains,
    check_equal,
    identity,
    lists_of_items,
    options,
)
from property_tests.worlds import MIXED_WORLDS, law
from tests.sources import Source

Options = dict[str, Any]
Function = Callable[[Any], Any]


def stages(kinds: tuple[str, ...] = KINDS, **chosen: Any) -> st.SearchStrategy[Options]:
    """Options of an ordered stage of any kind."""
    return st.sampled_from(kinds).flatmap(
        lambda kind: options(kind, ordered=True, **chosen).map(lambda drawn: {"kind": kind, **drawn})
    )


def of(operation: Operation) -> st.SearchStrategy[Function]:
    return st.sampled_from(operation.functions)


def composed(after: Function, before: Function, item: Any) -> Any:
    return after(before(item))


def kept(p: Function, item: Any) -> list[Any]:
    return [item] if p(item) else []


def alone(item: Any) -> list[Any]:
    return [item]


def bound(after: Function, before: Function, item: Any) -> list[Any]:
    """Flat-map *after* over what *before* gives."""
    return list(toolz.mapcat(after, before(item)))


def both(p: Function, q: Function, item: Any) -> bool:
    return bool(p(item) and q(item))


equation = partial(law, *MIXED_WORLDS, items=lists_of_items(longest=100), a=stages, b=stages, c=stages)


@equation()
def test_pmap_of_the_identity_changes_nothing(items: list[Any], a: Options, b: Options, c: Options):
    check_equal(pmap(identity, items, **a), items)


@equation(f=of(PMAP), g=of(PMAP))
def test_two_pmaps_are_one_of_the_composed_function(
    items: list[Any], a: Options, b: Options, c: Options, f: Function, g: Function
):
    check_equal(items | (pmap(f, **a) | pmap(g, **b)), pmap(partial(composed, g, f), items, **c))


@equation(f=of(PMAP), p=of(PFILTER))
def test_a_pfilter_after_a_pmap_is_a_pmap_after_a_pfilter_of_both(
    items: list[Any], a: Options, b: Options, c: Options, f: Function, p: Function
):
    after = items | (pmap(f, **a) | pfilter(p, **b))
    check_equal(after, items | (pfilter(partial(composed, p, f), **c) | pmap(f, **a)))


@equation(p=of(PFILTER), q=of(PFILTER))
def test_two_pfilters_are_one_of_both(
    items: list[Any], a: Options, b: Options, c: Options, p: Function, q: Function
):
    check_equal(items | (pfilter(p, **a) | pfilter(q, **b)), pfilter(partial(both, p, q), items, **c))


@equation(p=of(PFILTER))
def test_a_pfilter_is_a_pflat_map(items: list[Any], a: Options, b: Options, c: Options, p: Function):
    check_equal(pfilter(p, items, **a), pflat_map(partial(kept, p), items, **b))


@equation(f=of(PMAP))
def test_a_pmap_is_a_pflat_map(items: list[Any], a: Options, b: Options, c: Options, f: Function):
    check_equal(pmap(f, items, **a), pflat_map(partial(composed, alone, f), items, **b))


@equation(f=of(PFLAT_MAP))
def test_pflat_map_has_a_left_identity(items: list[Any], a: Options, b: Options, c: Options, f: Function):
    for item in items[:3]:
        check_equal([item] | (pflat_map(alone, **a) | pflat_map(f, **b)), f(item))


@equation()
def test_pflat_map_has_a_right_identity(items: list[Any], a: Options, b: Options, c: Options):
    check_equal(pflat_map(alone, items, **a), items)


@equation(f=of(PFLAT_MAP), g=of(PFLAT_MAP))
def test_pflat_map_is_associative(
    items: list[Any], a: Options, b: Options, c: Options, f: Function, g: Function
):
    check_equal(items | (pflat_map(f, **a) | pflat_map(g, **b)), pflat_map(partial(bound, g, f), items, **c))


@equation(f=of(PMAP))
def test_peach_is_a_pfilter_that_keeps_nothing(
    items: list[Any], a: Options, b: Options, c: Options, f: Function
):
    check_equal(peach(f, items, **a), [])


SHORT = partial(chains, spreads=1)


@law(*MIXED_WORLDS, t=SHORT, u=SHORT, v=partial(SHORT, max_size=2), items=lists_of_items(longest=20))
def test_the_composition_of_transformers_is_associative(t: Chain, u: Chain, v: Chain, items: list[Any]):
    left = (t.transformer() | u.transformer()) | v.transformer()
    right = t.transformer() | (u.transformer() | v.transformer())
    assert left == right
    check_equal(left(items[:5]), right(items[:5]), t.keeps_order and u.keeps_order and v.keeps_order)


@law(*MIXED_WORLDS, chain=chains, items=lists_of_items(longest=60))
def test_ordered_is_idempotent(chain: Chain, items: list[Any]):
    check_equal(ordered(ordered(chain.transformer()(items))), ordered(chain.transformer()(items)))


@law(*MIXED_WORLDS, chain=partial(chains, ordered=False), items=lists_of_items(longest=60))
def test_ordered_undoes_ordered_false(chain: Chain, items: list[Any]):
    check_equal(ordered(chain.transformer()(items)), chain.plain(items))


@law(
    *MIXED_WORLDS,
    chain=partial(chains, operations=(PMAP,), ordered=True, maxsizes=(1, 2, 5), max_size=3),
    taken=st.integers(0, 40),
)
def test_what_is_taken_is_the_prefix_and_little_more_is_pulled(chain: Chain, taken: int):
    source = Source(itertools.count())
    with chain.transformer()(source) as stream:
        check_equal(itertools.islice(stream, taken), chain.plain(range(taken)))
    assert source.pulled <= taken + chain.most_held


def labelled(label: int, items: list[Any]) -> Iterator[tuple[int, int]]:
    return ((label, position) for position in range(len(items)))


@law(*MIXED_WORLDS, several=st.lists(lists_of_items(longest=40), max_size=3), a=stages)
def test_merge_is_the_union_and_keeps_the_order_of_each_source(several: list[list[Any]], a: Options):
    sources = [labelled(label, items) for label, items in enumerate(several)]
    merged = list(merge(*(pmap(identity, source, **a) for source in sources)))
    by_source = [[output for output in merged if output[0] == label] for label in range(len(several))]
    assert by_source == [list(labelled(label, items)) for label, items in enumerate(several)]


@law(*MIXED_WORLDS, chain=chains, several=st.lists(lists_of_items(longest=20), max_size=3))
def test_a_chain_of_a_merge_is_a_merge_of_chains(chain: Chain, several: list[list[Any]]):
    transformer = chain.transformer()
    check_equal(transformer(merge(*several)), merge(*map(transformer, several)), in_order=False)


@law(*MIXED_WORLDS, chain=chains, several=st.lists(lists_of_items(longest=20), min_size=1, max_size=3))
def test_run_consumes_all_and_gives_nothing(chain: Chain, several: list[list[Any]]):
    sources = [Source(items) for items in several]
    assert run(*map(chain.transformer(), sources)) is None  # type: ignore[func-returns-value]
    assert [source.pulled for source in sources] == [len(items) for items in several]


@law(*MIXED_WORLDS, items=lists_of_items(longest=60), a=stages, b=stages)
def test_skipping_what_fails_is_a_pfilter(items: list[Any], a: Options, b: Options):
    def fails(item: Any) -> bool:
        return len(as_many_as_described(item)) == 1

    def f(item: Any) -> Any:
        return 1 / 0 if fails(item) else item

    check_equal(pmap(f, items, on_error="skip", **a), pfilter(lambda item: not fails(item), items, **b))
