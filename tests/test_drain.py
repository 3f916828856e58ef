"""drain(): nothing more is pulled, what is held comes out, the stream ends. And how long a stream is."""

from __future__ import annotations

import asyncio
import operator
import signal
import threading
from array import array
from collections import UserList
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import pytest
from toolz.curried import partition_all

from fstream import Stream, batch, merge, observe, pfilter, pflat_map, pmap
from fstream._engine.run import Run
from fstream._flow.observer import Observer
from fstream.stream import _Outputs
from fstream.testing import simulated
from tests.conftest import KINDS
from tests.functions import identity, square, suited
from tests.gates import PATIENCE, Gate, Log, at_line, holding
from tests.sources import Source


def rest_of(stream: Any) -> list[Any]:
    return list(stream)


# ----------------------------------------------------------------------------------------------------------- drain


def test_nothing_more_is_pulled_and_what_is_held_comes_out(kind: str):
    source = Source(count())
    stream = pmap(suited(square, kind), source, kind=kind)
    outputs = [next(stream), next(stream)]
    stream.drain()
    at_once = source.pulled
    outputs += stream
    assert outputs == [number**2 for number in range(len(outputs))]
    assert at_once <= source.pulled <= at_once + 1
    assert len(outputs) == source.pulled
    assert source.closed.wait(PATIENCE)


@pytest.mark.parametrize("later", KINDS)
def test_in_a_row_of_stages(kind: str, later: str):
    source = Source(count())
    stages = pmap(suited(square, kind), kind=kind) | pmap(suited(identity, later), kind=later)
    stream = (stages | pmap(suited(identity, kind), kind=kind))(source)
    outputs = [next(stream)]
    stream.drain()
    outputs += stream
    assert outputs == [number**2 for number in range(source.pulled)]


def test_a_list_is_drained_too(kind: str):
    stream = pmap(suited(square, kind), list(range(10**6)), kind=kind)
    outputs = [next(stream)]
    stream.drain()
    outputs += stream
    assert outputs == [number**2 for number in range(len(outputs))]
    assert len(outputs) < 10**6


def test_before_the_first_output_the_stream_is_empty(kind: str):
    source = Source(count())
    stream = pmap(suited(square, kind), source, kind=kind) | pmap(suited(square, kind), kind=kind)
    stream.drain()
    stream.drain()
    assert list(stream) == []
    assert source.pulled == 0


def test_a_stage_of_a_row_that_has_started_drains_the_row():
    inner = pmap(square, count(), kind="thread")
    outer = pmap(identity, inner, kind="thread")
    first = next(outer)
    inner.drain()
    outputs = [first, *outer]
    assert outputs == [number**2 for number in range(len(outputs))]
    assert list(outer) == []


def test_outputs_of_one_item_that_are_held_come_out(kind: str):
    stream = pflat_map(suited(lambda number: [number] * 3, kind), iter([1, 2, 3, 4]), kind=kind, maxsize=1)
    outputs = [next(stream)]
    stream.drain()
    outputs += stream
    assert outputs[:3] == [1, 1, 1]
    assert len(outputs) % 3 == 0


def test_an_open_batch_comes_out(kind: str):
    stream = (pmap(suited(square, kind), kind=kind, maxsize=2) | batch(3))(Source(count()))
    outputs = [next(stream)]
    stream.drain()
    outputs += stream
    assert [item for items in outputs for item in items] == [
        number**2 for number in range(sum(map(len, outputs)))
    ]


def blocking(first: list[int], gate: Gate, then: list[int]) -> Iterator[int]:
    yield from first
    gate.wait()
    yield from then


@pytest.mark.parametrize("concurrent", ["thread", "process", "task"])
def test_a_source_that_blocks_is_not_waited_for(concurrent: str, gate: Gate):
    source = Source(blocking([1, 2, 3], gate, [4]))
    stream = pmap(suited(square, concurrent), source, kind=concurrent)  # type: ignore[call-overload]
    assert [next(stream), next(stream), next(stream)] == [1, 4, 9]
    stream.drain()
    assert list(stream) == []
    gate.open()
    assert source.closed.wait(PATIENCE)


def test_a_consumer_that_waits_for_it_is_woken(gate: Gate):
    stream = pmap(square, blocking([1], gate, []), kind="thread")
    assert next(stream) == 1
    timer = threading.Timer(0.05, stream.drain)
    timer.start()
    assert list(stream) == []
    timer.join()
    gate.open()


def test_what_the_pull_under_way_brings_before_the_last_output_comes_out(
    make_gate: Any, log: Log, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Run, "PATIENCE", 0.0)
    pull, work = make_gate(), make_gate()
    source = Source(blocking([1], pull, [2, 3]))
    stream = pmap(holding("thread", {1: work}, log), source, kind="thread", workers=2)
    outputs: list[int] = []
    consumer = threading.Thread(target=lambda: outputs.extend(stream))
    consumer.start()
    log.wait_for(("start", 1))
    stream.drain()
    pull.open()
    log.wait_for(("end", 2))
    work.open()
    consumer.join(PATIENCE)
    assert outputs == [1, 2]
    assert source.pulled == 2


@pytest.mark.parametrize("nth", range(7))
@pytest.mark.parametrize("place", ["last", "first"])
def test_what_a_stream_pulls_that_starts_meanwhile_comes_out(
    place: str, nth: int, make_gate: Callable[[], Gate]
):
    gate = make_gate()

    def f(number: int) -> int:
        gate.wait()
        return number

    source = Source(count())
    first = pmap(f, source, kind="thread", workers=1)
    last = first | pmap(identity, kind="thread", workers=1)
    outputs: list[int] = []
    consumer = threading.Thread(target=lambda: outputs.extend(last), daemon=True)

    def start_meanwhile() -> None:
        consumer.start()
        while consumer.is_alive() and not source.pulled:
            consumer.join(0.001)

    at_line(_Outputs.drain, nth, start_meanwhile, (first if place == "first" else last).drain)
    gate.open()
    consumer.join(PATIENCE)
    try:
        assert not consumer.is_alive()
        assert len(outputs) >= source.pulled - 1  # the pull under way
    finally:
        last.close()


@pytest.mark.parametrize("kind_of_stage", KINDS)
def test_from_another_thread(kind_of_stage: str):
    source = Source(count())
    stream = pmap(suited(square, kind_of_stage), source, kind=kind_of_stage)  # type: ignore[call-overload]
    outputs = [next(stream)]
    thread = threading.Thread(target=stream.drain)
    thread.start()
    thread.join(PATIENCE)
    outputs += stream
    assert outputs == [number**2 for number in range(source.pulled)]


@pytest.mark.parametrize("kind_of_stage", KINDS)
@pytest.mark.parametrize("observed", [False, True])
def test_from_a_signal_handler(kind_of_stage: str, observed: bool):
    stream: Stream[int]
    before = signal.signal(signal.SIGUSR1, lambda *_: stream.drain())
    try:
        with observe(*([Observer()] if observed else [])):
            source = Source(count())
            stream = pmap(suited(square, kind_of_stage), source, kind=kind_of_stage)  # type: ignore[call-overload]
            outputs = [next(stream)]
            signal.setitimer(signal.ITIMER_REAL, 0)
            killer = threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGUSR1))
            killer.start()
            outputs += stream
            killer.join()
        assert outputs == [number**2 for number in range(source.pulled)]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_from_within_f(shared_memory_kind: str):
    def drain_at_ten(number: int) -> int:
        if number == 10:
            stream.drain()
        return number

    source = Source(count())
    stream: Stream[int] = pmap(suited(drain_at_ten, shared_memory_kind), source, kind=shared_memory_kind)  # type: ignore[call-overload]
    outputs = list(stream)
    assert outputs == list(range(source.pulled))
    assert source.pulled >= 11
    if shared_memory_kind == "sync":
        assert source.pulled == 11


def test_async_iteration(kind: str):
    async def main() -> None:
        source = Source(count())
        stream = pmap(suited(square, kind), source, kind=kind)
        outputs = [await anext(stream)]
        stream.drain()
        outputs += [output async for output in stream]
        assert outputs == [number**2 for number in range(source.pulled)]

    asyncio.run(main())


@pytest.mark.parametrize("sort", KINDS)
def test_an_async_source_that_blocks(sort: str):
    closed = threading.Event()

    async def source() -> Any:
        try:
            yield 1
            await asyncio.sleep(3600)
        finally:
            closed.set()

    if sort == "sync":
        pytest.skip("the consumer waits in the source itself")
    stream = pmap(suited(square, sort), source(), kind=sort)  # type: ignore[call-overload]
    assert next(stream) == 1
    stream.drain()
    assert list(stream) == []
    assert closed.wait(PATIENCE)


def test_an_error_ends_it_as_ever(kind: str):
    def fail(number: int) -> float:
        return 1 / (5 - number)

    stream = pmap(suited(fail, kind), iter(range(100)), kind=kind, maxsize=10, workers=1)
    outputs = [next(stream)]
    stream.drain()
    try:
        outputs += stream
    except ZeroDivisionError:
        pass
    assert len(outputs) <= 5
    assert list(stream) == []


def test_an_iterator_between_stages_ends_its_reach():
    source = Source(count())
    stream = partition_all(2, pmap(square, source, kind="thread")) | pmap(sum, kind="thread")
    outputs = [next(stream)]
    stream.drain()
    outputs += stream
    assert outputs == [(2 * n) ** 2 + (2 * n + 1) ** 2 for n in range(len(outputs))]
    assert source.closed.wait(PATIENCE)


def test_merged_streams_are_drained_each():
    sources = [Source(count()), Source(count())]
    stream = merge(pmap(square, sources[0], kind="thread"), sources[1]) | pmap(identity, kind="thread")
    outputs = [next(stream)]
    stream.drain()
    outputs += stream
    assert len(outputs) == sum(source.pulled for source in sources)


def test_on_done_is_told_no_error(kind: str, log: Log):
    stream = pmap(
        suited(square, kind),
        Source(count()),
        kind=kind,
        on_done=lambda stage_status: log.write(repr(stage_status.error)),
    )
    next(stream)
    stream.drain()
    list(stream)
    assert log.take(1)[0] == "None"


def test_a_stream_that_is_over_is_not_drained():
    stream = pmap(square, [1], kind="thread")
    assert list(stream) == [1]
    stream.drain()
    assert list(stream) == []
    closed = pmap(square, [1], kind="thread")
    closed.close()
    closed.drain()
    assert list(closed) == []


@pytest.mark.parametrize("simulated_kind", ["thread", "process", "task"])
def test_in_a_simulation_too(simulated_kind: str):
    with simulated():
        source = Source(count())
        stream = pmap(square, source, kind=simulated_kind)  # type: ignore[call-overload]
        outputs = [next(stream)]
        stream.drain()
        outputs += stream
        assert outputs == [number**2 for number in range(source.pulled)]


# ---------------------------------------------------------------------------------------------------------- length


def test_the_length_is_that_of_the_source(kind: str):
    stages = pmap(suited(square, kind), kind=kind) | pmap(suited(square, kind), kind=kind, on_error="keep")
    for source in ([1, 2, 3], range(3), {1, 2, 3}, {1: 2, 2: 3, 3: 4}, "abc", [1, 2, 3] | pmap(identity)):
        assert len(stages(source)) == 3
        assert operator.length_hint(stages(source)) == 3


def test_the_hint_is_of_what_is_left(kind: str):
    stream = pmap(suited(square, kind), [1, 2, 3, 4], kind=kind)
    for left in (4, 3, 2, 1, 0):
        assert (len(stream), stream.__length_hint__(), bool(stream)) == (4, left, True)
        if left:
            next(stream)
    assert list(stream) == []
    assert len(stream) == 4


class Numbers(Sequence[int]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        return range(3)[index]


class Sized:
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    "source",
    [array("i", range(3)), Numbers(), Sized(), UserList(range(3))],
    ids=lambda source: type(source).__name__,
)
def test_the_length_may_be_asked_for_after_the_start(source: Any, kind: str):
    stream = pmap(suited(square, kind), source, kind=kind)
    assert next(stream) == 0
    assert (len(stream), stream.__length_hint__()) == (3, 2)
    assert list(stream) == [1, 4]
    assert (len(stream), stream.__length_hint__()) == (3, 0)


def test_what_is_left_in_an_iterator_is_not_the_length_of_its_stream():
    class Shrinking:
        left = 3

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration
            self.left -= 1
            return self.left

        def __len__(self) -> int:
            return self.left

    source = Shrinking()
    stream = pmap(square, source, kind="sync")
    assert next(stream) == 4
    with pytest.raises(TypeError, match="has not noted"):
        len(stream)


def test_the_length_stays_as_toolz_counts_on_it(kind: str):
    for length, last in ((4, (4, 9)), (5, (16,))):
        squares = pmap(suited(square, kind), range(length), kind=kind)
        assert list(partition_all(2, squares))[-1] == last


def test_under_async_for(kind: str):
    async def main() -> None:
        stream = pmap(suited(square, kind), [1, 2, 3], kind=kind)
        async for _ in stream:
            assert (len(stream), stream.__length_hint__()) == (3, 2)
            break
        await stream.aclose()
        assert (len(stream), stream.__length_hint__()) == (3, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "stream",
    [
        pmap(square, iter([1])),
        pfilter(square, [1]),
        pflat_map(square, [1]),
        pmap(square, [1], on_error="skip"),
        pmap(square, [1], on_error=lambda error, item: 0),
        batch(2, [1]),
        merge([1], [2]),
        pmap(square, merge([1], [2])),
        pmap(square, range(2**70)),
    ],
    ids=str,
)
def test_a_stream_of_unknown_length_has_none(stream: Any):
    with pytest.raises(TypeError):
        len(stream)
    assert operator.length_hint(stream, 5) == 5
    assert bool(stream)


def test_an_empty_stream_is_true():
    assert bool(pmap(square, []))
    assert len(pmap(square, [])) == 0


def test_a_source_that_costs_something_to_ask_is_not_asked():
    class Query:
        def __iter__(self) -> Iterator[int]:
            return iter([1, 2])

        def __len__(self) -> int:
            raise RuntimeError("asked")

    stream = pmap(square, Query(), kind="thread")
    with pytest.raises(TypeError, match="asked"):
        len(stream)
    assert [next(stream), next(stream)] == [1, 4]
