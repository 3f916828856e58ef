"""Rows of many stages: what they cost is in proportion, and nothing runs into the limit of recursion."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fstream import Stream, ordered, pfilter, pmap
from fstream._engine.run import SHORT_ROW
from fstream._flow.outbox import Outbox
from fstream._workers.opening import open_run
from fstream._workers.process.queue import PumpWork
from fstream._workers.pump import FlightQueue
from tests.gates import PATIENCE
from tests.loops import wait_until

pytestmark = pytest.mark.slow


def add_one(x: int) -> int:
    return x + 1


async def add_one_async(x: int) -> int:
    return x + 1


def row(count: int, source: Any, f: Any = add_one, **options: Any) -> Stream[int]:
    for _ in range(count):
        source = pmap(f, source, **options)
    return source  # type: ignore[no-any-return]


def asked(stages: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a window of a row of so many *stages* is asked for its end, or asks another one, for ten items."""
    looks = 0
    lock = threading.Lock()
    has_more = Outbox.has_more.fget  # type: ignore[attr-defined]

    def counted(outbox: Outbox) -> Any:
        nonlocal looks
        with lock:
            looks += 1
        return has_more(outbox)

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "has_more", property(counted))
        assert list(row(stages, iter(range(10)), kind="thread", workers=1)) == list(
            range(stages, stages + 10)
        )
    return looks


def test_what_a_row_looks_at_grows_with_its_stages_and_not_as_a_power_of_two(monkeypatch: pytest.MonkeyPatch):
    few, many = asked(5, monkeypatch), asked(40, monkeypatch)
    assert many < 30 * few  # eight times the stages, and the items have as much farther to go


def looked_at(stages: int, kind: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the buffers of workers in a row of so many *stages* are looked at, for ten items."""
    looks = 0
    lock = threading.Lock()

    with monkeypatch.context() as patch:
        for buffer in (PumpWork, FlightQueue):

            def counted(work: Any, ready: Any = buffer.ready) -> bool:
                nonlocal looks
                with lock:
                    looks += 1
                return ready(work)  # type: ignore[no-any-return]

            patch.setattr(buffer, "ready", counted)
        stream = row(stages, range(10), kind=kind, workers=1, maxsize=4)  # a bound keeps them apart
        assert list(stream) == list(range(stages, stages + 10))
    return looks


@pytest.mark.parametrize("kind", ["process", ThreadPoolExecutor])
def test_what_pumps_look_at_grows_with_the_stages_and_not_as_their_square(
    kind: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fstream._engine.run.FULL_LOOK_SECONDS", 1e9)
    few, many = looked_at(10, kind, monkeypatch), looked_at(120, kind, monkeypatch)
    assert many < 25 * few  # twelve times the stages; as a square it would be 144 times the looks


@pytest.mark.parametrize("is_iterator", [True, False], ids=["iterator", "range"])
def test_a_hundred_stages_of_threads(is_iterator: bool):
    items = range(200)
    assert list(row(100, iter(items) if is_iterator else items, kind="thread")) == list(range(100, 300))


def test_more_stages_than_python_recurses():
    count = sys.getrecursionlimit() + 100
    stream = row(count, iter([0, 1, 2]), add_one_async, workers=1)
    assert repr(stream).count("add_one_async") == count
    assert next(stream) == count
    stream.close()


def test_an_error_in_a_long_row_stops_it_all():
    def fail(x: int) -> int:
        raise ValueError(x)

    stream = row(30, pmap(fail, row(30, iter(range(100)), kind="thread"), kind="thread"), kind="thread")
    with pytest.raises(ValueError, match="30"):
        list(stream)


def test_many_stages_are_put_in_order_and_dropped():
    stream = row(20 * sys.getrecursionlimit(), range(3), kind="thread", ordered=False)
    in_order = ordered(stream)
    assert in_order is not stream
    assert ordered(in_order) is in_order
    del stream, in_order
    gc.collect()


def test_in_a_long_row_a_worker_is_of_concern_to_those_beside_it():
    run = open_run(
        [iter("ab"), iter("cd")], [t.steps[0].stage for t in [pmap(add_one, kind="thread")] * (2 * SHORT_ROW)]
    )
    queues, feeders = run.queues, [feeder.queue for feeder in run.feeders]
    assert run.beside(queues[5]) == queues[4:7]
    assert run.beside(queues[0]) == queues[:2]
    assert run.beside(run.crews[0].queue) == [run.crews[1].queue, run.crews[0].queue, *feeders]


@pytest.mark.parametrize("kind", ["process", ThreadPoolExecutor])
def test_the_end_goes_on_from_a_pump_in_a_long_row(kind: Any, monkeypatch: pytest.MonkeyPatch):
    """Nobody looks at the whole row: those who wait for the end are told of it by those before them."""
    monkeypatch.setattr("fstream._engine.run.FULL_LOOK_SECONDS", 1e9)
    begin = threading.Event()

    def drop(x: int) -> bool:
        return not begin.wait(PATIENCE)

    none = pfilter(drop, range(1), kind="thread", workers=1)
    stream = row(SHORT_ROW, row(2, none, kind=kind, workers=1), add_one_async, workers=1)
    outputs: list[Any] = []
    taker = threading.Thread(target=lambda: outputs.append(list(stream)), daemon=True)
    taker.start()
    wait_until(lambda: (run := stream._outputs.run) is not None and len(run.queues) == 3 + SHORT_ROW + 1)
    run: Any = stream._outputs.run
    wait_until(lambda: all(queue.takers for queue in run.queues[:-1]))
    begin.set()
    taker.join(PATIENCE)
    assert outputs == [[]]
