"""A stage holds no more than its maxsize; by itself it stays small before a slow consumer."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, islice
from typing import Any

import pytest

from fstream import Stream, ordered, peach, pfilter, pflat_map, pmap
from tests.faults.faulty import eventually
from tests.functions import identity, suited
from tests.gates import Gate, Log, holding, opened_when
from tests.sources import Source

PAUSE = 0.001  # seconds: a slow consumer, which gives the stages time to pull too much


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """What is in a reference cycle stays."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def most_held(stream: Stream[object], source: Source, outputs: int) -> int:
    """The most items that were pulled and not given out, seen by a slow consumer of that many outputs."""
    most = 0
    for given, _ in enumerate(islice(stream, outputs), start=1):
        time.sleep(PAUSE)
        most = max(most, source.pulled - given)
    stream.close()
    return most


@pytest.mark.parametrize("maxsize", [1, 2, 5])
def test_a_stage_never_holds_more_than_maxsize(concurrent_kind: str, is_ordered: bool, maxsize: int):
    source = Source(count())
    f = suited(identity, concurrent_kind)
    stream = pmap(f, source, kind=concurrent_kind, workers=4, maxsize=maxsize, ordered=is_ordered)
    assert most_held(stream, source, outputs=60) <= maxsize


@pytest.mark.parametrize("maxsize", [1, 2, 5])
def test_maxsize_counts_the_items_in_work(
    concurrent_kind: str, is_ordered: bool, maxsize: int, gate: Gate, log: Log
):
    source, items = Source(count()), range(100)
    f = holding(concurrent_kind, dict.fromkeys(items, gate), log)
    stream = pmap(f, source, kind=concurrent_kind, workers=4, maxsize=maxsize, ordered=is_ordered)
    pulled = []

    def as_many_as_there_may_be_are_held() -> None:
        log.take(min(maxsize, 4))
        time.sleep(50 * PAUSE)
        pulled.append(source.pulled)

    with opened_when(gate, as_many_as_there_may_be_are_held):
        next(stream)
    stream.close()
    assert pulled[0] <= maxsize


def test_what_waits_for_its_turn_is_held(concurrent_kind: str, gate: Gate, log: Log):
    source = Source(count())
    f = holding(concurrent_kind, {0: gate}, log)
    stream = pmap(f, source, kind=concurrent_kind, workers=2, maxsize=5)
    pulled = []

    def the_others_are_done() -> None:
        log.wait_for(("end", 4))
        time.sleep(50 * PAUSE)
        pulled.append(source.pulled)

    with opened_when(gate, the_others_are_done):
        assert next(stream) == 0
    stream.close()
    assert pulled == [5]


def test_a_chain_holds_what_its_stages_may_hold(concurrent_kind: str):
    source = Source(count())
    f = suited(identity, concurrent_kind)
    one, two = (pmap(f, kind=concurrent_kind, workers=4, maxsize=maxsize) for maxsize in (2, 3))
    assert most_held(source | one | two, source, outputs=60) <= 5


def test_maxsize_bounds_through_ordered(concurrent_kind: str):
    source = Source(count())
    f = suited(identity, concurrent_kind)
    stream = ordered(pmap(f, source, kind=concurrent_kind, workers=4, maxsize=3, ordered=False))
    assert most_held(stream, source, outputs=60) <= 3


def none_of(_: object) -> bool:
    return False


def nothing_of(_: object) -> list[object]:
    return []


@pytest.mark.parametrize("maxsize", [1, 2])
@pytest.mark.parametrize(
    ("combinator", "f"),
    [(pfilter, none_of), (pflat_map, nothing_of), (peach, identity)],
    ids=lambda each: each.__name__,
)
def test_what_gives_nothing_is_not_held(concurrent_kind: str, is_ordered: bool, combinator, f, maxsize: int):
    source = Source(range(1_000))
    stream = combinator(
        suited(f, concurrent_kind),
        source,
        kind=concurrent_kind,
        workers=4,
        maxsize=maxsize,
        ordered=is_ordered,
    )
    assert list(stream) == []
    assert source.pulled == 1_000


@pytest.mark.parametrize("maxsize", [1, 2])
def test_many_outputs_of_one_item_pass_a_small_maxsize(concurrent_kind: str, is_ordered: bool, maxsize: int):
    stream = pflat_map(
        suited(range, concurrent_kind), [100] * 20, kind=concurrent_kind, maxsize=maxsize, ordered=is_ordered
    )
    assert sorted(stream) == sorted(list(range(100)) * 20)


@pytest.mark.parametrize("maxsize", [0, 1, 2, 5, 100, None])
def test_the_bound_changes_no_output(kind: str, maxsize: int | None):
    chain = pmap(suited(identity, kind), kind=kind, workers=3, maxsize=maxsize) | pfilter(
        suited(lambda item: item % 3, kind), kind=kind, workers=3, maxsize=maxsize
    )
    assert list(chain(range(300))) == [item for item in range(300) if item % 3]


def test_zero_is_unbounded(concurrent_kind: str, is_ordered: bool):
    exhausted = threading.Event()

    def source() -> Iterator[int]:
        yield from range(5_000)
        exhausted.set()

    f = suited(identity, concurrent_kind)
    stream = pmap(f, source(), kind=concurrent_kind, workers=2, maxsize=0, ordered=is_ordered)
    next(stream)
    assert exhausted.wait(20)
    assert len(list(stream)) == 4_999


@pytest.mark.parametrize("workers", [1, 2])
def test_a_slow_consumer_does_not_make_a_stage_grow(concurrent_kind: str, is_ordered: bool, workers: int):
    source = Source(count())
    f = suited(identity, concurrent_kind)
    stream = pmap(f, source, kind=concurrent_kind, workers=workers, ordered=is_ordered)
    assert most_held(stream, source, outputs=1_000) <= 64  # a machine that stalls may double it once or twice


def test_a_slow_consumer_does_not_make_a_chain_grow(concurrent_kind: str):
    source = Source(count())
    stage = pmap(suited(identity, concurrent_kind), kind=concurrent_kind, workers=2)
    assert most_held(source | stage | stage | stage, source, outputs=500) <= 200


def test_a_slow_item_lets_no_unbounded_number_of_later_ones_wait_for_it(concurrent_kind: str, gate: Gate):
    too_many = threading.Event()

    def source() -> Iterator[int]:
        yield from range(50_000)
        too_many.set()

    stream = pmap(holding(concurrent_kind, {0: gate}), source(), kind=concurrent_kind, workers=2)
    with opened_when(gate, lambda: too_many.wait(1)):
        assert next(stream) == 0
        assert not too_many.is_set()
    stream.close()


class Item:
    """Something that a weak reference tells to be alive."""


def number_of(_item: Item) -> int:
    return 1


def test_idle_workers_keep_nothing_of_what_they_had(concurrent_kind: str, is_ordered: bool):
    alive = weakref.WeakSet[Item]()
    taken, over = threading.Semaphore(0), threading.Event()

    def source() -> Iterator[Item]:
        for _ in range(20):
            item = Item()
            alive.add(item)
            yield item
            del item
            taken.acquire()  # one by one, so that all workers have had some
        over.wait(20)

    f = suited(number_of, concurrent_kind)
    with pmap(f, source(), kind=concurrent_kind, workers=4, ordered=is_ordered) as stream:
        try:
            for _ in range(20):
                next(stream)
                taken.release()
            # The feeder's loop has the last one still. Its worker leaves it a moment after the output is out.
            assert eventually(lambda: len(alive) <= 1), len(alive)
        finally:
            over.set()


@pytest.mark.parametrize("made_by", ["f", "on_error"])
def test_workers_at_work_keep_no_output_of_before(
    made_by: str, is_ordered: bool, make_gate: Callable[[], Gate], log: Log
):
    alive = weakref.WeakSet[Item]()
    last, end = make_gate(), make_gate()

    def make(*_: object) -> Item:
        alive.add(item := Item())
        return item

    async def f(number: int) -> Item:
        await asyncio.sleep(0)
        if number >= 8:
            log.write(number)
            await (last if number == 8 else end).passed()
        if made_by == "on_error":
            raise ValueError
        return make()

    with pmap(f, range(12), workers=4, ordered=is_ordered, maxsize=0, on_error=make) as stream:
        try:
            for _ in range(8):
                next(stream)
            log.wait_for(8, 9, 10, 11)
            last.open()
            next(stream)  # the stream has this one still
            assert eventually(lambda: len(alive) <= 1), len(alive)
        finally:
            end.open()


@pytest.mark.parametrize("on_error", ["keep", "skip"])
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("kind", ["sync", "thread", "task", ThreadPoolExecutor])
def test_what_failed_is_let_go_without_the_garbage_collector(kind: Any, on_error: Any, retries: int):
    """The traceback of an error has frames of ours. They must not hold what holds the error."""
    alive = weakref.WeakSet[Item]()

    def source() -> Iterator[Item]:
        for _ in range(200):
            alive.add(item := Item())
            yield item

    def fail(item: Item) -> None:
        raise ValueError

    async def fail_task(item: Item) -> None:
        raise ValueError

    f = fail_task if kind == "task" else fail
    again: dict[str, Any] = {"retries": 1, "backoff": 0, "timeout": 100} if retries else {}
    gc.collect()
    with collecting_nothing():
        for _ in pmap(f, source(), kind=kind, workers=4, on_error=on_error, **again):
            pass
        _ = None
        assert eventually(lambda: len(alive) <= 4), len(alive)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_what_an_executor_is_through_with_is_let_go_without_the_garbage_collector(kind: Any):
    """Its futures, too: they have what the workers have answered."""
    alive, futures = weakref.WeakSet[Item](), weakref.WeakSet[Any]()

    def source() -> Iterator[Item]:
        for _ in range(200):
            alive.add(item := Item())
            yield item

    gc.collect()
    with collecting_nothing(), kind(2) as pool:
        submit = pool.submit
        pool.submit = lambda *given: futures.add(future := submit(*given)) or future
        for _ in pmap(id, source(), kind=pool, workers=2):
            pass
        assert eventually(lambda: len(alive) <= 4), len(alive)
        assert eventually(lambda: len(futures) <= 4), len(futures)
