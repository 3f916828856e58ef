"""Which thread runs what, for each kind: the table in the README."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from fstream import pmap, star
from tests.functions import suited

CONSUMER = threading.get_ident()


def place() -> str:
    """Where this runs, in the words of the table."""
    if multiprocessing.parent_process() is not None:
        is_main = threading.current_thread() is threading.main_thread()
        return "main thread of a worker process" if is_main else "thread of a worker process"
    try:
        asyncio.get_running_loop()
        loop = "the running loop" if threading.get_ident() == CONSUMER else "a loop of fstream"
    except RuntimeError:
        return "consumer" if threading.get_ident() == CONSUMER else threading.current_thread().name
    return loop


class Seen:
    """What ran where."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.source: set[str] = set()
        self.between: set[str] = set()
        self.on_error: set[str] = set()

    def numbers(self) -> Iterator[int]:
        self.source.add(place())
        yield 1
        yield 0

    def pass_on(self, numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            self.between.add(place())
            yield number

    def handle(self, _error: Exception, _item: int) -> tuple[str, str]:
        self.on_error.add(place())
        return "", ""

    def stream(self) -> Any:
        def f(item: int, started: str) -> tuple[str, str]:
            assert 1 / item
            return started, place()

        first = pmap(suited(abs, self.kind), self.numbers(), kind=self.kind)
        return pmap(
            suited(f, self.kind),
            self.pass_on(first),
            kind=self.kind,
            workers=1,
            name="f",
            on_start=place,
            on_error=self.handle,
        )


WORKERS = {
    "sync": "consumer",
    "thread": "fstream-f-0",
    "process": "main thread of a worker process",
    "task": "a loop of fstream",
}


def test_in_a_plain_for(kind: str):
    seen = Seen(kind)
    first, _failed = seen.stream()
    assert first == (WORKERS[kind], WORKERS[kind])
    feeder = {"consumer" if kind == "sync" else "fstream-feeder"}
    assert seen.source == seen.between == feeder
    assert seen.on_error == {"fstream-f-pump" if kind == "process" else WORKERS[kind]}


def test_in_an_async_for(kind: str):
    async def main() -> None:
        seen = Seen(kind)
        here = "the running loop"
        worker = here if kind in ("sync", "task") else WORKERS[kind]
        assert (await seen.stream())[0] == (worker, worker)
        assert seen.source == seen.between == {here if kind == "sync" else "fstream-feeder"}
        assert seen.on_error == {"fstream-f-pump" if kind == "process" else worker}

    asyncio.run(main())


def test_an_async_source_is_iterated_on_the_loop(kind: str):
    async def numbers():
        yield place()

    async def main() -> list[str]:
        return await pmap(suited(str, kind), numbers(), kind=kind)

    assert list(pmap(suited(str, kind), numbers(), kind=kind)) == ["a loop of fstream"]
    assert asyncio.run(main()) == ["the running loop"]


def rows() -> Iterator[tuple[int]]:
    connection = sqlite3.connect(":memory:")
    try:
        yield from connection.execute("values (1), (2), (3)")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "take", [list, lambda stream: [next(stream), stream.close()][:1]], ids=["all", "some"]
)
def test_a_cursor_is_made_iterated_and_closed_in_one_thread(kind: str, take: Any):
    stream = pmap(star(suited(abs, kind)), rows(), kind=kind)
    assert take(stream) == [1, 2, 3][: 3 if take is list else 1]
