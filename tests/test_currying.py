"""A transformer is a value: made in any form, compared, hashed, printed, pickled, composed, reused."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import toolz

from fstream import Transformer, pfilter, pmap
from tests.functions import COMBINATORS, MEANINGS, Meaning, is_odd, square

Form = Callable[[Callable[..., Any], Callable[[int], Any], Iterable[int], str], Iterable[Any]]

FORMS: dict[str, Form] = {
    "all at once": lambda combinator, f, xs, kind: combinator(f, xs, kind=kind),
    "source later": lambda combinator, f, xs, kind: combinator(f, kind=kind)(xs),
    "f and source later": lambda combinator, f, xs, kind: combinator(kind=kind)(f)(xs),
    "pipe": lambda combinator, f, xs, kind: toolz.pipe(xs, combinator(f, kind=kind)),
    "bar": lambda combinator, f, xs, kind: xs | combinator(f, kind=kind),
    "bar to list": lambda combinator, f, xs, kind: xs | combinator(f, kind=kind) | list,
    "compose": lambda combinator, f, xs, kind: toolz.compose(list, combinator(f, kind=kind))(xs),
}


class Adder:
    """A callable without a name of its own."""

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, number: int) -> int:
        return number + self.amount

    def method(self, number: int) -> int:
        return number + self.amount


def make_transformer(**options: Any) -> Transformer[Any, Any]:
    return pmap(square, **{"kind": "thread", "workers": 3} | options)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("meaning", MEANINGS, ids=str)
def test_all_forms_are_equal(form: Form, meaning: Meaning, kind: str):
    assert list(form(meaning.combinator, meaning.f, [3, 1, 2], kind)) == meaning.expected([3, 1, 2])


@pytest.mark.parametrize("meaning", MEANINGS, ids=str)
def test_f_and_source_without_options(meaning: Meaning):
    assert list(meaning.combinator(meaning.f, [3, 1, 2])) == meaning.expected([3, 1, 2])
    assert list(meaning.combinator(meaning.f)([3, 1, 2])) == meaning.expected([3, 1, 2])


@pytest.mark.parametrize(
    "source",
    [[1, 2], (1, 2), range(1, 3), {1, 2}, {1: "a", 2: "b"}, iter([1, 2])],
    ids=lambda source: type(source).__name__,
)
def test_plain_iterables_go_into_a_transformer_with_a_bar(source: Iterable[int]):
    assert list(source | pmap(square, kind="sync")) == [1, 4]


def test_an_option_that_is_given_again_takes_the_place_of_the_first():
    assert pmap(kind="sync", workers=2)(square, kind="thread") == pmap(square, kind="thread", workers=2)


def test_later_options_do_not_change_the_options_given_first():
    partly = pmap(kind="thread", workers=3)
    assert partly(square) == partly(square) == make_transformer()


def test_what_a_combinator_returns_is_a_transformer():
    for meaning in MEANINGS:
        assert isinstance(meaning.combinator(meaning.f, kind="sync"), Transformer)


# Composition


def test_a_bar_composes_transformers(kind: str):
    both = pmap(square, kind=kind) | pfilter(is_odd, kind=kind)
    assert isinstance(both, Transformer)
    assert list(both(range(10))) == list(filter(is_odd, map(square, range(10))))


def test_composition_is_associative():
    one, two, three = pmap(square, kind="sync"), pfilter(is_odd, kind="sync"), pmap(str, kind="sync")
    expected = [str(number * number) for number in range(1, 10, 2)]
    for composed in ((one | two) | three, one | (two | three)):
        assert list(composed(range(10))) == expected


def test_composing_leaves_the_parts_as_they_were():
    one, two = pmap(square, kind="sync"), pmap(str, kind="sync")
    assert list((one | two)([3])) == ["9"]
    assert (list(one([3])), list(two([3]))) == ([9], ["3"])


# Equality and hash


@pytest.mark.parametrize(
    "make", [make_transformer, lambda: make_transformer() | pfilter(is_odd, kind="sync")]
)
def test_equal_content_makes_equal_transformers(make: Callable[[], Transformer[Any, Any]]):
    assert make() == make()
    assert (make() != make()) is False
    assert hash(make()) == hash(make())
    assert {make(): "found"}[make()] == "found"


@pytest.mark.parametrize(
    "other",
    [
        pmap(str, kind="thread", workers=3),
        pfilter(square, kind="thread", workers=3),
        make_transformer(kind="process"),
        make_transformer(workers=4),
        make_transformer(maxsize=3),
        make_transformer(ordered=False),
        make_transformer(name="other"),
        make_transformer(on_start=dict),
        make_transformer() | pmap(str, kind="sync"),
        square,
        None,
    ],
    ids=lambda other: getattr(other, "__name__", repr(other)),
)
def test_different_content_makes_different_transformers(other: object):
    assert make_transformer() != other


def test_the_order_of_composition_counts():
    one, two = pmap(square, kind="sync"), pfilter(is_odd, kind="sync")
    assert one | two != two | one


# Repr


def test_repr_is_the_call():
    assert repr(make_transformer()) == "pmap(square, kind='thread', workers=3)"


@pytest.mark.parametrize("combinator", COMBINATORS, ids=lambda each: each.__name__)
def test_repr_names_the_combinator(combinator: Callable[..., Transformer[Any, Any]]):
    assert repr(combinator(square, kind="sync")) == f"{combinator.__name__}(square, kind='sync')"


@pytest.mark.parametrize(
    "f",
    [
        square,
        lambda number: number,
        functools.partial(pow, 2),
        Adder(3),
        Adder(3).method,
        [].append,
        len,
        int,
    ],
    ids=["def", "lambda", "partial", "callable", "method", "builtin method", "builtin", "class"],
)
def test_repr_has_no_memory_address(f: Callable[..., Any]):
    transformer = pmap(f, kind="thread", on_start=f, on_done=f)
    for text in (repr(transformer), repr(transformer | transformer)):
        assert "0x" not in text
        assert "pmap(" in text


def test_repr_shows_the_options_that_were_given():
    text = repr(
        pmap(square, kind="process", workers=2, maxsize=5, ordered=False, name="squares", on_start=dict)
    )
    for part in (
        "kind='process'",
        "workers=2",
        "maxsize=5",
        "ordered=False",
        "name='squares'",
        "on_start=dict",
    ):
        assert part in text


def test_repr_of_a_composition_shows_its_parts_in_order():
    one, two = make_transformer(), pfilter(is_odd, kind="sync")
    assert repr(one | two) == f"{one!r} | {two!r}"


# Pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "make", [make_transformer, lambda: make_transformer() | pfilter(is_odd, kind="sync")]
)
def test_pickling_gives_an_equal_transformer(make: Callable[[], Transformer[Any, Any]], protocol: int):
    copy = pickle.loads(pickle.dumps(make(), protocol))
    assert copy == make()
    assert hash(copy) == hash(make())
    assert repr(copy) == repr(make())
    assert list(copy(range(5))) == list(make()(range(5)))


# Immutability


@pytest.mark.parametrize("attribute", ["kind", "workers", "f", "stages", "anything"])
def test_attributes_cannot_be_set(attribute: str):
    transformer = make_transformer()
    with pytest.raises(AttributeError, match=f"Transformer is immutable: '{attribute}' cannot be set"):
        setattr(transformer, attribute, "other")
    assert transformer == make_transformer()


def test_attributes_cannot_be_deleted():
    transformer = make_transformer()
    names = [name for cls in type(transformer).__mro__ for name in getattr(cls, "__slots__", ())]
    for name in [*names, *getattr(transformer, "__dict__", ())]:
        with pytest.raises(AttributeError, match="Transformer is immutable: 'steps' cannot be deleted"):
            delattr(transformer, name)
    assert transformer == make_transformer()


def test_a_transformer_runs_again_and_again(kind: str):
    transformer = pmap(square, kind=kind) | pfilter(is_odd, kind=kind)
    first, second = transformer(range(10)), transformer(range(5))
    assert list(second) == [1, 9]
    assert list(first) == [1, 9, 25, 49, 81]
    assert list(transformer([])) == []
