"""Stages of kind "sync", and the lock of a stream: closed from elsewhere, in long rows, interrupted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from fstream import Stream, peach, pfilter, pflat_map, pmap
from tests.gates import PATIENCE


@pytest.mark.parametrize("endless", [True, False], ids=["generator", "range"])
@pytest.mark.parametrize("verb", [pmap, pfilter, pflat_map, peach])
def test_a_sync_stage_that_another_thread_closes_stops_after_the_item_in_hand(verb: Any, endless: bool):
    in_f, closed, seen, where = threading.Event(), threading.Event(), [], []

    def f(x: int) -> Any:
        seen.append(x)
        if x == 1:
            in_f.set()
            assert closed.wait(PATIENCE)
        return (x,) if verb is pflat_map else True

    def numbers() -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            where.append(threading.current_thread())

    stream = verb(f, numbers() if endless else range(10), kind="sync")
    consumer = threading.Thread(target=lambda: list(stream))
    consumer.start()
    assert in_f.wait(PATIENCE)
    stream.close()
    closed.set()
    consumer.join(PATIENCE)
    assert seen == [0, 1]
    assert where == ([consumer] if endless else [])
    assert list(stream) == []


def test_a_row_of_sync_stages_too_long_for_python_is_an_error_that_names_their_number():
    number = sys.getrecursionlimit() + 1
    stream: Any = range(3)
    for _ in range(number):
        stream = pmap(abs, stream, kind="sync")
    with pytest.raises(RecursionError, match=f"^{number} stages of kind 'sync' in a row.* {number - 1};"):
        list(stream)
    del stream


def test_an_endless_recursion_of_the_source_is_said_as_it_is():
    def endless() -> Iterator[int]:
        yield from endless()

    with pytest.raises(RecursionError, match="maximum recursion depth"):
        list(pmap(abs, endless(), kind="sync"))


class Interrupting:
    """A lock, behind whose taking a signal handler raises once, as may happen from Python 3.14 on."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.armed = True

    def __enter__(self) -> None:
        self.lock.acquire()
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)


@pytest.mark.parametrize("kind", ["sync", "thread", "task"])
def test_an_interrupt_behind_the_taking_of_a_streams_lock_ends_it_and_leaves_the_lock_free(kind: Any):
    stream: Stream[int] = pmap(abs, count(), kind=kind)
    assert next(stream) == 0
    stream._outputs.lock = Interrupting(stream._outputs.lock)  # type: ignore[assignment]
    if kind != "sync":
        with pytest.raises(KeyboardInterrupt):
            while True:
                next(stream)
    ended = []

    def take() -> None:
        stream.close()
        try:
            stream.send(None)
        except (StopIteration, KeyboardInterrupt):
            ended.append(True)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert ended


def test_an_interrupt_behind_the_taking_of_the_lock_of_all_streams_leaves_it_free(
    monkeypatch: pytest.MonkeyPatch,
):
    lock = Interrupting(threading.RLock())
    monkeypatch.setattr("fstream.stream._LINKING", lock)
    with pytest.raises(KeyboardInterrupt):
        list(pmap(abs, range(3), kind="thread"))
    outputs: list[int] = []
    thread = threading.Thread(target=lambda: outputs.extend(pmap(abs, range(3), kind="thread")), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert outputs == [0, 1, 2]
