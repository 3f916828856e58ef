"""Bad options raise when the transformer is built; the message names the option, the bound and the value."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from fstream import merge, ordered, peach, pfilter, pflat_map, pmap, run
from tests.functions import COMBINATORS, square, square_async

TRANSFORMER = {each.__name__: each for each in COMBINATORS}


async def start_async() -> None:
    """As on_start: nothing to pass on."""


class SquareAsync:
    async def __call__(self, number: int) -> int:
        return number * number


COROUTINE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "def": square_async,
    "partial": functools.partial(square_async),
    "object": SquareAsync(),
    "method": SquareAsync().__call__,
}


@pytest.fixture(params=TRANSFORMER)
def combinator(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return TRANSFORMER[request.param]


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("workers", 0, "at least 1"),
        ("workers", -3, "at least 1"),
        ("maxsize", -1, "at least 0"),
        ("retries", -1, "at least 0"),
        ("timeout", 0, "0"),
        ("timeout", -1.5, "0"),
        ("timeout", float("nan"), "0"),
        ("on_error", "ignore", "skip"),
        ("kind", "threads", "thread"),
    ],
)
def test_a_value_out_of_bounds(combinator: Callable[..., Any], option: str, value: object, bound: str):
    for build in (combinator, functools.partial(combinator, square)):
        with pytest.raises(ValueError) as caught:
            build(**{option: value})
        assert option in str(caught.value)
        assert bound in str(caught.value)
        assert repr(value) in str(caught.value)


def test_the_words_of_the_message():
    with pytest.raises(ValueError, match=r"^workers must be at least 1, got 0$"):
        pmap(square, workers=0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("workers", "3"),
        ("workers", 2.5),
        ("workers", True),
        ("maxsize", "3"),
        ("maxsize", 2.5),
        ("maxsize", True),
        ("retries", "3"),
        ("retries", 1.0),
        ("retries", True),
        ("timeout", "3"),
        ("timeout", True),
        ("ordered", "yes"),
        ("ordered", 1),
        ("ordered", None),
        ("on_error", 3),
        ("on_start", 3),
        ("on_done", "close"),
        ("name", 3),
        ("kind", 3),
    ],
)
def test_a_value_of_the_wrong_type(combinator: Callable[..., Any], option: str, value: object):
    for build in (combinator, functools.partial(combinator, square)):
        with pytest.raises(TypeError) as caught:
            build(**{option: value})
        assert option in str(caught.value)
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"maxsize": 0},
        {"maxsize": None},
        {"retries": 0},
        {"timeout": None},
        {"timeout": 1},
        {"timeout": 0.5},
        {"on_error": "skip"},
        {"on_error": print},
        {"name": "squares"},
        {"ordered": False},
        {"on_start": None, "on_done": None},
    ],
    ids=repr,
)
def test_the_values_at_the_bounds_are_good(
    combinator: Callable[..., Any], kind: str, options: dict[str, Any]
):
    assert combinator(square, kind=kind, **options) == combinator(square, kind=kind, **options)


def test_an_unknown_kind_lists_the_kinds(combinator: Callable[..., Any]):
    with pytest.raises(ValueError) as caught:
        combinator(square, kind="coroutine")
    for known in ("sync", "thread", "process", "task", "coroutine"):
        assert repr(known) in str(caught.value)


def test_an_unknown_option_is_named(combinator: Callable[..., Any]):
    with pytest.raises(TypeError, match="worker_count"):
        combinator(square, worker_count=3)
    with pytest.raises(TypeError, match="worker_count"):
        combinator(worker_count=3)


def test_options_are_keyword_only(combinator: Callable[..., Any]):
    with pytest.raises(TypeError):
        combinator(square, [1], "thread")


@pytest.mark.parametrize("f", [3, "square", [1, 2]], ids=repr)
def test_f_must_be_callable(combinator: Callable[..., Any], f: object):
    with pytest.raises(TypeError, match="callable"):
        combinator(f, kind="thread")


def test_f_and_source_swapped(combinator: Callable[..., Any]):
    with pytest.raises(TypeError, match=combinator.__name__):
        combinator([1, 2], square)


# Coroutine functions


@pytest.mark.parametrize("kind", ["sync", "thread", "process"])
@pytest.mark.parametrize("f", COROUTINE_FUNCTIONS.values(), ids=COROUTINE_FUNCTIONS.keys())
def test_a_coroutine_function_belongs_on_task(
    combinator: Callable[..., Any], kind: str, f: Callable[..., Any]
):
    for build in (functools.partial(combinator, f), lambda **options: combinator(**options)(f)):
        with pytest.raises(TypeError) as caught:
            build(kind=kind)
        assert "'task'" in str(caught.value)
        assert repr(kind) in str(caught.value)


@pytest.mark.parametrize("kind", ["sync", "thread", "process"])
@pytest.mark.parametrize("option", ["on_start", "on_done"])
def test_coroutine_functions_of_the_worker_belong_on_task(
    combinator: Callable[..., Any], kind: str, option: str
):
    with pytest.raises(TypeError) as caught:
        combinator(square, kind=kind, **{option: start_async})
    assert option in str(caught.value)
    assert "'task'" in str(caught.value)


@pytest.mark.parametrize("f", COROUTINE_FUNCTIONS.values(), ids=COROUTINE_FUNCTIONS.keys())
def test_a_coroutine_function_runs_as_a_task_by_default(f: Callable[..., Any]):
    assert list(pmap(f, [1, 2, 3])) == [1, 4, 9]


# Sources


class NoLonger(list[int]):
    """It has items, and says that it is not to be iterated."""

    __iter__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "source",
    [3, None, square, object, re.match("a", "a"), NoLonger()],
    ids=["int", "None", "function", "class", "match", "no longer"],
)
def test_a_source_that_is_not_iterable_raises_at_once(
    combinator: Callable[..., Any], kind: str, source: object
):
    with pytest.raises(TypeError):
        combinator(square, kind=kind)(source)
    with pytest.raises(TypeError):
        combinator(square, source, kind=kind)
    with pytest.raises(TypeError):
        (combinator(square, kind=kind) | pmap(square, kind=kind))(source)
    with pytest.raises(TypeError):
        source | combinator(square, kind=kind)


def test_the_message_names_what_is_not_iterable():
    with pytest.raises(TypeError, match="int"):
        pmap(square, kind="thread")(3)


@pytest.mark.parametrize(
    "consume",
    [lambda: merge([1], 3), lambda: ordered(3), lambda: run(3)],
    ids=["merge", "ordered", "run"],
)
def test_the_other_verbs_want_iterables_too(consume: Callable[[], object]):
    with pytest.raises(TypeError):
        consume()


def test_forgetting_f_is_an_error():
    for combinator in (pmap, pfilter, pflat_map, peach):
        with pytest.raises(TypeError):
            combinator(kind="thread")([1, 2, 3])
