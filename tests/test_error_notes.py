"""The note on an error names one item, however many the same object was raised for; a handler's error has one, too."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from fstream import pmap
from fstream._workers.notes import TRACEBACKS_ARE_LOCKED
from tests.faults.faulty import HAS_GIL
from tests.functions import suited

KINDS = ["sync", "thread", "process", "task"]
SHORTENED = TRACEBACKS_ARE_LOCKED or HAS_GIL
WHERE_SHORTENED = pytest.mark.skipif(
    not SHORTENED, reason="CPython 3.13 has no lock on tracebacks without the GIL"
)


class Cached(ConnectionError):
    """One object for all who wait. It carries out of its process how it was when it was raised."""

    found: tuple[int, int] = 0, 0


def length(error: BaseException) -> int:
    return len(list(traceback.walk_tb(error.__traceback__)))


def raising(error: Cached) -> Callable[[int], Any]:
    def f(item: int) -> None:
        error.found = len(getattr(error, "__notes__", ())), length(error)
        raise error

    return f


@pytest.mark.parametrize("options", [{}, {"retries": 2, "backoff": 0}])
def test_one_error_for_many_items_gathers_no_notes_and_no_traceback(kind: str, options: dict[str, Any]):
    found: list[tuple[int, int]] = []

    def handler(error: Exception, _: int) -> None:
        assert isinstance(error, Cached)
        found.append(error.found)

    f = suited(raising(Cached("no log-in")), kind)
    list(pmap(f, range(300), kind=kind, workers=1, on_error=handler, **options))
    assert max(notes for notes, _ in found) == 1
    longest = max(frames for _, frames in found)
    # On kind "sync" some items are run by way of one more function, which takes their time.
    assert not SHORTENED or longest <= max(frames for _, frames in found[:4]) + 2 * (kind == "sync")


@WHERE_SHORTENED
def test_skipped_items_are_not_kept_by_the_error_that_they_share(shared_memory_kind: str):
    class Item:
        pass

    error = Cached("no log-in")
    items: list[weakref.ref[Item]] = []

    def source() -> Any:
        for _ in range(200):
            item = Item()
            items.append(weakref.ref(item))
            yield item

    f = suited(raising(error), shared_memory_kind)
    list(pmap(f, source(), kind=shared_memory_kind, workers=1, maxsize=8, on_error="skip"))
    assert sum(item() is not None for item in items) <= 24  # of a span or two
    assert len(error.__notes__) == 1


def test_each_handler_is_told_of_its_own_item(kind: str):
    f = suited(raising(Cached("no log-in")), kind)
    outputs = pmap(f, range(100), kind=kind, workers=1, name="f", on_error=lambda e, _: e.__notes__[-1])
    assert list(outputs) == [f"in stage 'f' ({kind}), item {item}: {item}" for item in range(100)]


@WHERE_SHORTENED
def test_it_is_seen_where_such_an_error_comes_from_and_where_it_came_from_first(shared_memory_kind: str):
    error = Cached("no log-in")

    def log_in() -> None:
        raise error

    with pytest.raises(Cached):
        log_in()

    f = suited(raising(error), shared_memory_kind)
    list(pmap(f, range(9), kind=shared_memory_kind, workers=1, on_error="skip"))
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    assert names.count("f") == 2
    assert names.count("log_in") == 1


def test_notes_of_others_and_of_other_stages_are_kept(shared_memory_kind: str):
    error = Cached("no log-in")
    error.add_note("of another")

    def outer(item: int) -> list[int]:
        return list(pmap(raising(error), [item, item], kind="thread", workers=1, name="inner"))

    f = suited(outer, shared_memory_kind)
    with pytest.raises(Cached):
        list(pmap(f, [5], kind=shared_memory_kind, workers=1, name="outer"))
    assert error.__notes__ == [
        "of another",
        "in stage 'inner' (thread), item 0: 5",
        f"in stage 'outer' ({shared_memory_kind}), item 0: 5",
    ]


@WHERE_SHORTENED  # elsewhere four bare threads that raise one error are enough for a traceback that goes in a circle
def test_many_threads_may_raise_one_error():
    error = Cached("no log-in")
    together = threading.Barrier(4)

    def f(item: int) -> None:
        if item < 4:
            together.wait(20)
        raise error

    assert list(pmap(f, range(2_000), kind="thread", workers=4, on_error="skip")) == []
    assert len(error.__notes__) <= 4
    assert length(error) < 100


def refuse(_: Any) -> None:
    raise LookupError("of f")


def broken(error: Exception, _: Any) -> None:
    raise ArithmeticError("of the handler") from error


async def broken_later(error: Exception, _: Any) -> None:
    await asyncio.sleep(0)
    raise ArithmeticError("of the handler") from error


@pytest.mark.parametrize(("kind", "handler"), [*((kind, broken) for kind in KINDS), ("task", broken_later)])
def test_what_a_handler_raises_is_named(kind: str, handler: Callable[..., Any]):
    with pytest.raises(ArithmeticError) as caught:
        list(pmap(suited(refuse, kind), "abc", kind=kind, workers=1, name="f", on_error=handler))
    assert caught.value.__notes__ == [f"in on_error of stage 'f' ({kind}), item 0: 'a'"]
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__notes__ == [f"in stage 'f' ({kind}), item 0: 'a'"]


def test_a_handler_that_raises_what_it_was_given_adds_its_note(kind: str):
    def handler(error: Exception, _: Any) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        list(pmap(suited(refuse, kind), "a", kind=kind, name="f", on_error=handler))
    item = f"stage 'f' ({kind}), item 0: 'a'"
    assert caught.value.__notes__ == [f"in {item}", f"in on_error of {item}"]


@pytest.mark.parametrize("handler", [broken, broken_later])
def test_what_a_handler_of_a_late_item_raises_is_named(handler: Callable[..., Any]):
    async def f(_: str) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ArithmeticError) as caught:
        list(pmap(f, "a", name="f", timeout=0.01, on_error=handler))
    assert caught.value.__notes__ == ["in on_error of stage 'f' (task), item 0: 'a'"]


def test_what_the_handler_of_a_worker_s_death_raises_is_named():
    with pytest.raises(ArithmeticError) as caught:
        list(pmap(lambda _: os._exit(3), "a", kind="process", name="f", on_error=broken))
    assert caught.value.__notes__ == ["in on_error of stage 'f' (process), item 0: 'a'"]
