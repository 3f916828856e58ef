"""Short pipelines over and over, with threads switched as often as can be: rare races show here."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

import pytest

from fstream import Stream, merge, ordered, pfilter, pflat_map, pmap, run
from fstream._workers.process.child import CELL_SIZE, Child
from fstream._workers.process.messages import Items, Open, Steal, plain
from fstream._workers.process.wire import Wire
from tests.functions import identity, is_odd, square, suited

ROUNDS = {"sync": 50, "thread": 50, "process": 10, "task": 50}


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def stage(kind: str, **options: Any) -> Callable[[Any], Stream[Any]]:
    return pmap(suited(square, kind), kind=kind, **{"workers": 2} | options)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_short_sources(kind: str, stages: int, length: int):
    for _ in range(ROUNDS[kind]):
        stream: Any = iter(range(length))
        for _ in range(stages):
            stream = stream | stage(kind)
        assert list(stream) == [number ** (2**stages) for number in range(length)]


@pytest.mark.parametrize("maxsize", [1, 2, 0])
@pytest.mark.parametrize("workers", [1, 3])
def test_tight_bounds(kind: str, is_ordered: bool, maxsize: int, workers: int):
    for _ in range(ROUNDS[kind] // 2):
        tight = stage(kind, workers=workers, maxsize=maxsize, ordered=is_ordered)
        assert sorted(iter(range(20)) | tight | tight) == [number**4 for number in range(20)]


def test_early_closes(kind: str):
    for taken in range(ROUNDS[kind]):
        with count() | stage(kind) | stage(kind) as stream:
            assert list(islice(stream, taken % 5)) == [number**4 for number in range(taken % 5)]


def test_filters_that_drop_most(kind: str):
    for _ in range(ROUNDS[kind]):
        keep = pfilter(suited(lambda number: number % 10 == 9, kind), kind=kind, workers=2, maxsize=2)
        assert list(iter(range(40)) | keep | keep) == [9, 19, 29, 39]


def test_streams_that_fail(kind: str):
    for _ in range(ROUNDS[kind]):
        fails = pmap(suited(lambda number: 1 // (3 - number), kind), kind=kind, workers=2)
        with pytest.raises(ZeroDivisionError):
            list(count() | fails | stage(kind))


def test_ordered_after_unordered_stages(kind: str):
    for _ in range(ROUNDS[kind]):
        twice = pflat_map(suited(lambda item: [item, item], kind), kind=kind, workers=3, ordered=False)
        stream = iter(range(10)) | stage(kind, ordered=False) | twice | ordered
        assert list(stream) == [number * number for number in range(10) for _ in range(2)]


@pytest.mark.parametrize("length", [0, 1, 100])
def test_merged_sources(length: int):
    for _ in range(50):
        merged = merge(range(length), iter(range(length)), [], (number for number in range(length)))
        assert sorted(merged) == sorted([*range(length)] * 3)


def test_merged_streams(kind: str):
    for _ in range(ROUNDS[kind]):
        streams = [stage(kind)(iter(range(length))) for length in (0, 1, 7, 20)]
        expected = [number * number for length in (0, 1, 7, 20) for number in range(length)]
        assert sorted(merge(*streams)) == sorted(expected)


def test_merged_infinite_sources():
    for taken in range(50):
        with merge(count(), count(), count()) as merged:
            assert len(list(islice(merged, taken * 10))) == taken * 10


def test_stages_after_merged_streams(kind: str):
    for _ in range(ROUNDS[kind]):
        odd = pfilter(suited(is_odd, kind), kind=kind, workers=2)
        merged = merge(iter(range(10)), stage(kind)(range(10))) | pmap(suited(identity, kind), kind=kind)
        assert sorted(merged | odd) == sorted([1, 3, 5, 7, 9, 1, 9, 25, 49, 81])


def test_streams_that_run_at_once(kind: str):
    for _ in range(ROUNDS[kind] // 2):
        streams = [stage(kind)(iter(range(10))) for _ in range(3)]
        run(*streams)
        assert [list(stream) for stream in streams] == [[], [], []]


def test_a_span_that_is_recalled_before_its_stage_is_loaded_comes_back():
    # The reader of a worker gives a span back while the main thread is busy with the stage's f: the parent must
    # know by then that what it hears is of the new stage.
    parent, worker = socket.socketpair()
    with parent, worker:
        child = Child(worker, memoryview(bytearray(CELL_SIZE)).cast("q"))
        for message in (Open(7, None, 0, stays=False), Items(0, 0), Steal()):
            child.sort((message, []))
        assert [plain(message) for message, _ in Wire(parent).receive()] == [("Opened",), ("Stolen", 0, None)]
