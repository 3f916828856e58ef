"""Mocks, and objects that answer every attribute, in every place where a pipeline takes what the user made."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from fstream import NotPicklable, peach, pfilter, pflat_map, pmap

#: Those that a process cannot have, as a mock cannot be pickled.
HERE = pytest.mark.parametrize("kind", ["sync", "thread", "task"])
MOCKS = pytest.mark.parametrize("mock", [Mock, MagicMock])


class Answers:
    """An object with an answer to every attribute; it can be pickled, and called."""

    def __init__(self, answer: Any = None) -> None:
        self.__dict__["answer"] = answer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as a mock does, for what Python looks up itself
            raise AttributeError(name)
        return Answers()

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.answer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answers)

    def __hash__(self) -> int:
        return 1


class AnswersAll(Answers):
    """The same for the names that Python has for itself, too."""

    def __getattr__(self, name: str) -> Any:
        if name in {"__getstate__", "__setstate__", "__reduce_ex__"}:
            raise AttributeError(name)
        return Answers()


class Strange(Exception):
    """An error with an answer to every attribute."""

    def __getattr__(self, name: str) -> Any:
        return Mock()


class Stranger(Exception):
    """One that has an answer to none, and says so in its own way."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


def same(x: Any) -> Any:
    return x


def fail(error: type[BaseException], x: Any) -> Any:
    raise error(x)


@HERE
@MOCKS
def test_a_mock_as_f(kind: Any, mock: Any):
    f = mock(return_value=7)
    assert list(pmap(f, range(3), kind=kind)) == [7, 7, 7]
    assert [call.args for call in f.call_args_list] == [(0,), (1,), (2,)] or kind != "sync"
    assert f.call_count == 3
    assert list(pfilter(mock(return_value=True), range(3), kind=kind)) == [0, 1, 2]
    assert list(pflat_map(mock(return_value=[1, 2]), range(2), kind=kind)) == [1, 2, 1, 2]
    each = mock()
    assert list(peach(each, range(3), kind=kind)) == []
    assert each.call_count == 3
    assert repr(pmap(f, kind=kind))


@HERE
@MOCKS
def test_a_mock_that_raises(kind: Any, mock: Any):
    with pytest.raises(ValueError, match="no") as caught:
        list(pmap(mock(side_effect=ValueError("no")), [1], kind=kind))
    assert "Mock" in caught.value.__notes__[0]


@HERE
@MOCKS
def test_mocks_as_handlers(kind: Any, mock: Any):
    start, done = mock(return_value="resource"), mock()
    f = mock(side_effect=lambda x, resource: (x, resource))
    options = {"on_start": start, "on_done": done, "workers": 1}
    assert list(pmap(f, range(2), kind=kind, **options)) == [(0, "resource"), (1, "resource")]
    assert start.call_count == done.call_count == 1
    on_error = mock(return_value="instead")
    assert list(pmap(mock(side_effect=KeyError), [1], kind=kind, on_error=on_error)) == ["instead"]
    (error, item), _ = on_error.call_args
    assert (type(error), item) == (KeyError, 1)


@HERE
@MOCKS
def test_mocks_as_items_outputs_and_resources(kind: Any, mock: Any):
    items = [mock(), mock()]
    assert list(pmap(same, items, kind=kind)) == items
    assert list(pfilter(same, items, kind=kind)) == items
    made = [mock(), mock()]
    assert list(pmap(mock(side_effect=list(made)), range(2), kind=kind, workers=1)) == made
    resource = mock()
    assert list(pmap(lambda _, r: r, [1], kind=kind, on_start=lambda: resource)) == [resource]
    with pytest.raises(ZeroDivisionError, match="by zero") as caught:
        list(pmap(lambda _: 1 / 0, [mock()], kind=kind))
    assert "Mock" in caught.value.__notes__[0]


def test_mocks_as_sources(kind: str):
    source = MagicMock()
    source.__iter__.return_value = iter([1, 2, 3])
    if hasattr(type(source), "__aiter__"):  # it is both; the plain way is taken
        assert list(pmap(same, source, kind=kind)) == [1, 2, 3]
    with pytest.raises(TypeError, match="Mock"):
        pmap(same, Mock(), kind=kind)


@HERE
def test_a_mock_that_cannot_be_iterated_as_what_flat_map_is_given(kind: Any):
    with pytest.raises(TypeError, match="not iterable"):
        list(pflat_map(Mock(), [1], kind=kind))


@MOCKS
def test_a_mock_works_in_a_process_or_the_error_says_why_not(mock: Any):
    # cloudpickle can send some, and some of those it cannot load.
    with suppress(NotPicklable), pytest.raises(StopIteration):
        outputs = pmap(mock(return_value=1), [1], kind="process")
        assert next(outputs) == 1
        next(outputs)


@pytest.mark.parametrize("strange", [Answers, AnswersAll])
def test_what_answers_every_attribute_in_every_place(strange: type[Answers], kind: str):
    assert list(pmap(strange(7), range(3), kind=kind)) == [7, 7, 7]
    assert list(pmap(same, [strange(), strange()], kind=kind)) == [strange(), strange()]
    assert list(pmap(strange(strange()), [1], kind=kind)) == [strange()]
    options = {"on_start": strange(None), "on_done": strange(None)}
    assert list(pmap(same, range(3), kind=kind, **options)) == [0, 1, 2]
    assert list(pmap(partial_fail(ValueError), [1], kind=kind, on_error=strange(8))) == [8]
    assert repr(pmap(strange(7), kind=kind))


def partial_fail(error: type[BaseException]) -> Any:
    def f(x: Any) -> Any:
        raise error(x)

    return f


@pytest.mark.parametrize("error", [Strange, Stranger])
@pytest.mark.parametrize("retries", [0, 1])
def test_an_error_with_an_answer_to_every_attribute(error: type[Exception], retries: int, kind: str):
    outputs = pmap(partial_fail(error), [1], kind=kind, retries=retries)
    with pytest.raises(error) as caught:
        list(outputs)
    (note,) = BaseException.__getattribute__(caught.value, "__notes__")
    assert "item 0: 1" in note
    assert list(pmap(partial_fail(error), [1, 2], kind=kind, on_error="skip")) == []
    with pytest.raises(error):
        list(pmap(same, [1], kind=kind, on_start=partial(fail, error, 0)))
