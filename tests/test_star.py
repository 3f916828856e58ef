"""star(f) makes of f(a, b) a function of a pair: a value, under f's name, with what f declares."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import pickle
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from fstream import SKIP, WorkerInfo, peach, pfilter, pflat_map, pmap, star
from tests.functions import suited
from tests.gates import Log

PAIRS = [(3, 1), (5, 2), (2, 2)]


def subtract(one: int, other: int) -> int:
    return one - other


async def subtract_later(one: int, other: int) -> int:
    return one - other


async def count_later(start: int, end: int) -> AsyncIterator[int]:
    for number in range(start, end):
        yield number


def count(start: int, end: int) -> Iterator[int]:
    yield from range(start, end)


class Subtract:
    async def __call__(self, one: int, other: int) -> int:
        return one - other


class Count:
    async def __call__(self, start: int, end: int) -> AsyncIterator[int]:
        for number in range(start, end):
            yield number


def test_each_pair_becomes_the_arguments_of_f(kind: str):
    assert list(pmap(star(suited(subtract, kind)), PAIRS, kind=kind)) == [2, 3, 0]


def test_every_combinator_takes_it(kind: str, log: Log):
    assert list(pfilter(star(suited(operator.gt, kind)), PAIRS, kind=kind)) == [(3, 1), (5, 2)]
    assert list(pflat_map(star(suited(count, kind)), [(0, 2), (5, 6)], kind=kind)) == [0, 1, 5]
    write = suited(lambda one, other: log.write((one, other)), kind)
    assert list(peach(star(write), PAIRS, kind=kind, workers=1)) == []
    assert log.entries() == PAIRS


@pytest.mark.parametrize("args", [(), (1,), [1, 2], (1, 2, 3), range(5), iter("ab"), "ab"])
def test_it_is_f_of_any_number_of_arguments_with_more_and_named_ones(args: Any):
    f = star(lambda *args, **named: (args, named))
    copied = tuple(copy.copy(args))
    assert f(args, "more", "and more", x=1) == ((*copied, "more", "and more"), {"x": 1})


def test_f_may_have_parameters_of_any_name():
    assert star(lambda f, args, more: (f, args, more))((1, 2), more=3) == (1, 2, 3)
    assert star(lambda self, cls, named: (self, cls, named))((), self=1, cls=2, named=3) == (1, 2, 3)


# What f declares


def test_f_is_given_its_resources_by_position(kind: str):
    f = star(suited(lambda a, b, x, y: (a, b, x, y), kind))
    assert list(pmap(f, [(1, 2)], kind=kind, on_start=lambda: (3, 4))) == [(1, 2, 3, 4)]


def test_f_is_given_what_it_declares_by_name(kind: str):
    def f(a: int, b: int, connection: str, worker_info: WorkerInfo, element_index: int) -> tuple[Any, ...]:
        return a, b, connection, worker_info.index, element_index

    resources = {"connection": "open", "other": "unused"}
    stream = pmap(star(suited(f, kind)), [(1, 2), (3, 4)], kind=kind, workers=1, on_start=lambda: resources)
    assert list(stream) == [(1, 2, "open", 0, 0), (3, 4, "open", 0, 1)]


# Coroutine functions


@pytest.mark.parametrize(
    "f", [subtract_later, functools.partial(subtract_later), Subtract()], ids=["def", "partial", "object"]
)
def test_it_is_a_coroutine_function_if_f_is(f: Callable[..., Any]):
    assert inspect.iscoroutinefunction(star(f))
    assert not inspect.isasyncgenfunction(star(f))
    assert list(pmap(star(f), PAIRS)) == [2, 3, 0]
    with pytest.raises(TypeError, match="'task'"):
        pmap(star(f), kind="thread")


@pytest.mark.parametrize(
    "f", [count_later, functools.partial(count_later), Count()], ids=["def", "partial", "object"]
)
def test_it_is_an_async_generator_function_if_f_is(f: Callable[..., Any]):
    assert inspect.isasyncgenfunction(star(f))
    assert list(pflat_map(star(f), [(0, 2), (5, 6)])) == [0, 1, 5]


@pytest.mark.parametrize("f", [subtract, count, operator.sub, functools.partial(subtract, 1), divmod])
def test_it_is_neither_if_f_is_neither(f: Callable[..., Any]):
    assert not inspect.iscoroutinefunction(star(f))
    assert not inspect.isasyncgenfunction(star(f))


# A value


def test_it_has_the_name_of_f():
    assert star(subtract).__name__ == "subtract"
    assert repr(star(subtract)) == "star(subtract)"
    assert repr(pmap(star(functools.partial(subtract, 1)))) == "pmap(subtract)"
    with pytest.raises(ZeroDivisionError) as caught:
        list(pmap(star(divmod), [(1, 0)]))
    assert "in stage 'divmod'" in caught.value.__notes__[0]


def test_equal_functions_make_equal_stars():
    assert star(subtract) == star(subtract)
    assert hash(star(subtract)) == hash(star(subtract))
    assert pmap(star(subtract)) == pmap(star(subtract))
    assert star(subtract) != star(operator.sub)
    assert star(subtract) != subtract
    assert star(subtract) != functools.partial(subtract)


def test_a_function_that_cannot_be_hashed():
    class Adder:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self)

        def __call__(self, one: int, other: int) -> int:
            return one + other

    assert star(Adder()) == star(Adder())
    assert hash(star(Adder())) == hash(star(Adder()))


@pytest.mark.parametrize("module", [pickle, cloudpickle])
@pytest.mark.parametrize("f", [subtract, subtract_later, operator.sub])
def test_it_can_be_pickled_and_copied(module: Any, f: Callable[..., Any]):
    for twin in (module.loads(module.dumps(star(f))), copy.copy(star(f)), copy.deepcopy(star(f))):
        assert twin == star(f)
        assert twin.__name__ == star(f).__name__
        assert list(pmap(twin, PAIRS)) == [2, 3, 0]


def test_a_lambda_goes_to_processes():
    assert list(pmap(star(lambda one, other: one - other), PAIRS, kind="process")) == [2, 3, 0]


def test_a_star_of_a_star():
    assert star(star(subtract))([(3, 1)]) == 2


def test_its_signature_is_of_one_argument_and_the_names_of_f():
    shape = inspect.signature(star(subtract))
    assert [name for name, each in shape.parameters.items() if each.kind is each.KEYWORD_ONLY] == [
        "one",
        "other",
    ]
    shape.bind((1, 2))
    assert inspect.signature(star([].append)).bind((1,))
    inspect.signature(type(star(subtract)))


@pytest.mark.parametrize("f", [3, None, "f"], ids=repr)
def test_f_must_be_callable(f: Any):
    with pytest.raises(TypeError, match=f"f must be callable, got {type(f).__name__}"):
        star(f)


def test_items_that_cannot_be_spread_are_an_error(kind: str):
    with pytest.raises(TypeError, match="int"):
        list(pmap(star(suited(subtract, kind)), [3], kind=kind))


def test_an_item_that_is_skipped(kind: str):
    f = star(suited(divmod, kind))
    assert list(pmap(f, [(1, 0), (3, 2)], kind=kind, on_error=lambda error, pair: SKIP)) == [(1, 1)]
