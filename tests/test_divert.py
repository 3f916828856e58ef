"""divert: what is of a class, or satisfies a function, goes to a sink in the consumer's thread, and not downstream."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
from typing import Any

import pytest
from toolz import pipe

from fstream import Failed, Stream, Transformer, divert, pmap
from fstream.testing import simulated
from tests.functions import suited

ITEMS = [4, 0, 2]


def inverse(number: float) -> float:
    return 1 / number


def test_the_four_forms_are_equal():
    def given(form: Any) -> tuple[list[Any], list[Any]]:
        dead: list[Any] = []
        return list(form(dead.append)), dead

    odd = lambda item: item % 2  # noqa: E731  (one object, so that the four are equal)
    forms = [
        given(lambda sink: divert(sink, range(6), where=odd)),
        given(lambda sink: divert(sink, where=odd)(range(6))),
        given(lambda sink: divert(where=odd)(sink)(range(6))),
        given(lambda sink: pipe(range(6), divert(sink, where=odd))),
        given(lambda sink: range(6) | divert(sink, where=odd)),
    ]
    assert forms == [([0, 2, 4], [1, 3, 5])] * 5


def test_what_failed_goes_to_the_sink(kind: str):
    dead: list[Any] = []
    stream = pmap(suited(inverse, kind), ITEMS, kind=kind, on_error="keep") | divert(dead.append)
    assert isinstance(stream, Stream)
    assert list(stream) == [0.25, 0.5]
    assert [(each.item, type(each)) for each in dead] == [(0, Failed)]


def test_stages_behind_it_get_the_rest(kind: str):
    dead: list[Any] = []
    kept = pmap(suited(inverse, kind), kind=kind, on_error="keep")
    assert list((kept | divert(dead.append) | pmap(suited(str, kind), kind=kind))(ITEMS)) == ["0.25", "0.5"]
    assert len(dead) == 1


@pytest.mark.parametrize("where", [int, (int, float), lambda item: isinstance(item, int)])
def test_where_is_a_class_some_classes_or_a_function(where: Any):
    seen: list[Any] = []
    assert list(divert(seen.append, ["a", 1, "b"], where=where)) == ["a", "b"]
    assert seen == [1]


def test_the_sink_runs_where_the_outputs_are_taken(kind: str):
    threads = set()
    stream = pmap(suited(inverse, kind), ITEMS, kind=kind, on_error="keep")
    list(stream | divert(lambda _: threads.add(threading.current_thread())))
    assert threads == {threading.current_thread()}

    async def main() -> None:
        threads.clear()
        stream = pmap(suited(inverse, kind), ITEMS, kind=kind, on_error="keep")
        async for _ in stream | divert(lambda _: threads.add(threading.current_thread())):
            pass
        assert threads == {threading.current_thread()}

    asyncio.run(main())


def test_it_is_lazy_and_keeps_the_order():
    pulled: list[int] = []

    def source() -> Any:
        for number in range(1000):
            pulled.append(number)
            yield number

    stream = divert(pulled.append, source(), where=lambda item: item < 0)
    assert pulled == []
    assert [next(stream), next(stream)] == [0, 1]
    assert pulled == [0, 1]


def test_an_error_of_the_sink_ends_the_stream():
    def sink(item: Any) -> None:
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full") as caught:
        list(divert(sink, [1], where=int))
    assert "stage 'divert' (sync), item 0: 1" in caught.value.__notes__[-1]


def test_none_is_an_output_and_the_sink_gives_none():
    assert list(divert(lambda item: item, [None, 1], where=int)) == [None]


def test_it_is_a_value():
    transformer = divert(print)
    assert isinstance(transformer, Transformer)
    assert transformer == divert(print)
    assert transformer != divert(print, where=int)
    assert pickle.loads(pickle.dumps(transformer)) == transformer
    assert repr(divert(print, where=int)) == "divert(print, where=int)"
    assert repr(divert(where=int)) == "divert(where=int)"
    assert [*inspect.signature(divert).parameters] == ["sink", "source", "where"]
    assert [*inspect.signature(divert(where=int)).parameters] == ["sink", "source", "where"]


def test_in_a_simulation_too():
    dead: list[Any] = []
    with simulated():
        stream = pmap(inverse, ITEMS, kind="thread", on_error="keep") | divert(dead.append)
        assert list(stream) == [0.25, 0.5]
    assert len(dead) == 1


async def sink_later(item: Any) -> None: ...


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: divert([1], print), r"write divert\(sink, source\), not divert\(source, sink\)"),
        (lambda: divert(3), "sink must be a function of an item, got int"),
        (lambda: divert(sink_later), "sink 'sink_later' is a coroutine function"),
        (lambda: divert(print, where=3), "where must be a class, a tuple of classes, or a function of an item, got 3"),
        (lambda: divert(print, where=()), "where must be a class"),
        (lambda: divert(print, [1], int), r"divert\(\) takes its options by keyword"),
        (lambda: divert(print, 3), "source must be an iterable"),
        (lambda: [1] | divert(where=int), "has no sink yet"),
    ],
)  # fmt: skip
def test_a_slip_is_a_type_error_that_says_what_to_write(call: Any, message: str):
    with pytest.raises(TypeError, match=message):
        call()


def test_the_signature_shows_what_is_diverted_by_default():
    assert inspect.signature(divert).parameters["where"].default is Failed
