"""`batch`: lists of so many items, or of what has come within a time."""

from __future__ import annotations

import asyncio
import math
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from inspect import signature
from itertools import chain, count
from time import perf_counter
from typing import Any

import pytest
from toolz import pipe

from fstream import Stream, batch, merge, ordered, pfilter, pflat_map, pmap, star
from fstream._engine.queues import ThreadQueue
from fstream._engine.run import Run
from fstream._flow.batching import Batches
from fstream._flow.buffers import Work
from fstream._flow.room import Room
from fstream._flow.sizing import Numbers
from fstream._flow.sources import Feed, Slices
from fstream._flow.span import CLOSED, Closed, Failure
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from fstream._workers.process.queue import PipeQueue
from fstream._workers.task.queues import TaskQueue
from tests.conftest import CONCURRENT_KINDS, KINDS
from tests.functions import square, square_async, suited
from tests.gates import PATIENCE, Gate, holding
from tests.loops import AsyncSource, Boom, closed_where_pulled, in_loop, wait_until
from tests.sources import Source

#: Seconds: long enough that a test which waits for it is seen to hang.
LONG = 10 * PATIENCE


def joined(batches: Any) -> list[Any]:
    return list(chain.from_iterable(batches))


# ------------------------------------------------------------------------------------------------- a value


def test_all_forms_are_equal():
    expected = [[0, 1], [2, 3], [4]]
    assert list(batch(2, range(5))) == expected
    assert list(batch(2)(range(5))) == expected
    assert list(batch()(2)(range(5))) == expected
    assert list(batch(within=LONG)(2, range(5))) == expected
    assert pipe(range(5), batch(2), list) == expected
    assert range(5) | batch(2) | list == expected
    assert list(batch(n=2, source=range(5))) == expected
    assert isinstance(batch(2, range(5)), Stream)


def test_a_batch_is_composed_with_others_into_a_value():
    t = pmap(abs, kind="sync") | batch(3, within=0.5, weight=len) | pmap(len)
    assert repr(t) == "pmap(abs, kind='sync') | batch(3, within=0.5, weight=len) | pmap(len)"
    assert pickle.loads(pickle.dumps(t)) == t
    assert hash(pickle.loads(pickle.dumps(t))) == hash(t)
    assert batch(2) == batch(2) != batch(3)
    assert batch(2) == batch(2, within=None)
    assert batch(within=1.0) == batch(within=1.0) != batch(within=2.0)
    assert repr(batch(within=1.0)) == "batch(within=1.0)"
    assert list(signature(batch(within=1.0)).parameters) == ["n", "source", "within", "weight"]
    assert signature(batch(within=1.0)).parameters["within"].default == 1.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: batch(0), ValueError, "n must be at least 1, got 0"),
        (lambda: batch(True), TypeError, "n must be an int, got True"),
        (lambda: batch(1.5), TypeError, "n must be an int, got 1.5"),
        (lambda: batch(0, weight=len), ValueError, "n must be at least 1, got 0"),
        (lambda: batch(math.nan, weight=len), ValueError, "n must be at least 1, got nan"),
        (
            lambda: batch([1, 2], 3),
            TypeError,
            r"got \[1, 2\]; write batch\(n, source\), not batch\(source, n\)",
        ),
        (lambda: batch(2, within=0), ValueError, "within must be greater than 0 seconds, got 0"),
        (lambda: batch(within=-1), ValueError, "within must be greater than 0 seconds, got -1"),
        (lambda: batch(2, within="1"), TypeError, "within must be a number of seconds or None, got '1'"),
        (lambda: batch(2, weight=3), TypeError, "weight must be a function or None, got 3"),
        (lambda: batch(2, weight=square_async), TypeError, "weight 'square_async' is a coroutine function"),
        (lambda: batch(2, [1], 3), TypeError, r"got 3: write batch\(n, source, within=0.5\)"),
        (lambda: batch(within=1)(2, wihtin=2), TypeError, "no option 'wihtin'; did you mean 'within'"),
        (lambda: batch(2, 3), TypeError, "source must be an iterable or an async iterable, got int"),
        (lambda: [1] | batch(within=1), TypeError, r"has no n yet: write batch\(n, source\)"),
        (lambda: {1: 2}.keys() | batch(2), TypeError, r"write batch\(n, source\)"),
    ],
)
def test_what_is_wrong_is_an_error_at_once(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


# ------------------------------------------------------------------------------------------ what it gives


def source_of(items: Any, form: str) -> Any:
    async def pulled() -> AsyncIterator[Any]:
        for item in items:
            yield item

    return {"list": list, "iterator": iter, "async": lambda _: pulled(), "stream": Stream.of}[form](items)


FORMS = ("list", "iterator", "async", "stream")


@pytest.mark.parametrize("within", [None, LONG, math.inf])
@pytest.mark.parametrize("n", [1, 3, 4, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_lists_of_n_items_of_any_source(form: str, n: int, within: float | None) -> None:
    items = list(range(12))
    expected = [items[at : at + n] for at in range(0, 12, n)]
    assert list(batch(n, source_of(items, form), within=within)) == expected

    async def gathered() -> list[Any]:
        return [one async for one in batch(n, source_of(items, form), within=within)]

    assert asyncio.run(gathered()) == expected


@pytest.mark.parametrize("form", FORMS)
def test_of_nothing_comes_nothing(form: str) -> None:
    assert list(batch(2, source_of([], form), within=LONG)) == []


@pytest.mark.parametrize("form", FORMS)
def test_batches_by_weight(form: str) -> None:
    t = batch(5, weight=len)
    assert list(t(source_of(["to", "be", "or", "not", "another", "", "thought"], form))) == [
        ["to", "be"],
        ["or", "not"],
        ["another"],
        [""],
        ["thought"],
    ]


@pytest.mark.parametrize("within", [None, LONG])
@pytest.mark.parametrize("maxsize", [None, 1, 3])
def test_between_stages_of_any_kind_whose_room_is_smaller_than_a_batch(
    kind: str, maxsize: int | None, within: float | None
) -> None:
    t = (
        pmap(suited(square, kind), kind=kind, maxsize=maxsize, workers=2)
        | batch(7, within=within)
        | pflat_map(list, kind=kind, maxsize=maxsize, workers=2)
        | batch(4, within=within)
    )
    squares = [square(x) for x in range(30)]
    assert list(t(range(30))) == [squares[at : at + 4] for at in range(0, 30, 4)]
    assert list(t(iter(range(30)))) == [squares[at : at + 4] for at in range(0, 30, 4)]

    async def gathered() -> Any:
        return await t(range(30))

    assert asyncio.run(gathered()) == list(t(range(30)))


def test_stages_that_would_be_one_are_not_where_a_batch_is_between_them():
    t = pmap(square, kind="process") | batch(2) | pmap(len, kind="process") | pfilter(bool, kind="process")
    assert list(t(range(5))) == [2, 2, 1]


def test_over_several_sources():
    assert sorted(joined(merge(range(5), iter(range(5, 9))) | batch(2, within=0.01))) == list(range(9))


def test_batches_of_batches():
    assert range(5) | batch(2, within=LONG) | batch(2, within=LONG) | list == [[[0, 1], [2, 3]], [[4]]]


def test_more_cheap_items_than_any_span_holds():
    t = batch(3) | pmap(sum, kind="thread") | batch(1000)
    sums = joined(t(iter(range(30_000))))
    assert sums == [3 * n + 3 for n in range(0, 30_000, 3)]


def test_ordered_reaches_through_a_batch():
    log: list[int] = []

    def slow_first(x: int) -> int:
        if x == 0:
            wait_until(lambda: len(log) >= 3)
        log.append(x)
        return x

    t = pmap(slow_first, ordered=False, workers=4, kind="thread") | batch(2, within=LONG)
    assert list(ordered(t(range(4)))) == [[0, 1], [2, 3]]


def test_an_item_that_is_skipped_is_in_no_batch(kind: str) -> None:
    t = pmap(suited(invert, kind), kind=kind, on_error="skip") | batch(2)
    assert list(t([1, 0, 2, 4, 0])) == [[1, 0.5], [0.25]]


def invert(x: float) -> float:
    return 1 / x


# ------------------------------------------------------------------------------------------------- in time


def blocking(gate: threading.Event, items: list[int]) -> Iterator[int]:
    yield from items
    assert gate.wait(PATIENCE)


@pytest.mark.parametrize("weight", [None, float])
def test_what_is_open_goes_out_in_time_while_the_source_blocks(kind: str, weight: Any) -> None:
    gate = threading.Event()
    stage = pmap(suited(square, kind), kind=kind)
    for t in (
        batch(10, within=0.01, weight=weight),
        stage | batch(10, within=0.01, weight=weight) | pmap(list, kind=kind),
    ):
        gate.clear()
        stream, got = t(blocking(gate, [0, 1, 0])), []
        try:
            while len(got) < 3:
                got += next(stream)
        finally:
            gate.set()
        assert got == [0, 1, 0]
        assert list(stream) == []


@in_loop
async def test_the_same_for_an_async_for() -> None:
    for each in KINDS:
        gate = asyncio.Event()

        async def pulled(gate: asyncio.Event = gate) -> AsyncIterator[int]:
            yield 0
            yield 1
            await gate.wait()

        stage = pmap(suited(square, each), kind=each)  # type: ignore[arg-type]
        async with (stage | batch(10, within=0.01) | pmap(list, kind=each))(pulled()) as stream:  # type: ignore[arg-type]
            got: list[int] = []
            async with asyncio.timeout(PATIENCE):
                while len(got) < 2:
                    got += await anext(stream)
            assert got == [0, 1]
            gate.set()
            assert [one async for one in stream] == []


@pytest.mark.parametrize("kind", CONCURRENT_KINDS)
def test_a_full_batch_goes_out_at_once_though_the_item_behind_it_is_slow(kind: Any, gate: Gate) -> None:
    # As many as a span may hold, once they are known to be cheap: the slow one is in the hands of one worker with them.
    t = pmap(holding(kind, {300: gate}), kind=kind, workers=1, ordered=True) | batch(100, within=LONG)
    with t(iter(range(302))) as stream:
        assert [len(next(stream)) for _ in range(3)] == [100, 100, 100]
        gate.open()
        assert next(stream) == [300, 301]


# -------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("within", [None, LONG])
def test_what_is_open_goes_out_before_an_error(kind: str, within: float | None) -> None:
    stream = (pmap(suited(invert, kind), kind=kind) | batch(3, within=within) | pmap(len, kind="thread"))(
        [1, 2, 4, 8, 0, 16]
    )
    assert [next(stream), next(stream)] == [3, 1]
    with pytest.raises(ZeroDivisionError) as caught:
        next(stream)
    assert "item 4" in str(caught.value.__notes__)


def test_what_is_open_goes_out_before_an_error_of_the_source():
    def failing() -> Iterator[int]:
        yield from range(4)
        raise Boom

    for weight in (None, lambda _: 1):
        stream = batch(3, failing(), within=LONG, weight=weight)
        assert [next(stream), next(stream)] == [[0, 1, 2], [3]]
        with pytest.raises(Boom):
            next(stream)


def test_an_error_of_weight_names_the_item():
    stream = batch(3, [1, 1, None, 1], weight=lambda item: item, within=LONG)
    assert next(stream) == [1, 1]
    with pytest.raises(TypeError, match="weight must give a number, got None") as caught:
        next(stream)
    assert "item 2" in str(caught.value.__notes__)
    with pytest.raises(ValueError, match="weight must give a number of at least 0, got -1"):
        list(batch(3, [-1], weight=lambda item: item))


def test_a_stage_behind_a_batch_that_fails_stops_what_is_before_it():
    source = Source(count())
    stream = (pmap(square, kind="thread") | batch(2, within=LONG) | pmap(star(invert_sum), kind="thread"))(
        source
    )
    with pytest.raises(ZeroDivisionError):
        list(stream)
    assert source.closed.wait(PATIENCE)


def invert_sum(a: int, b: int) -> float:
    return 1 / (a + b - 13)


@pytest.mark.parametrize("kind", CONCURRENT_KINDS)
def test_closing_and_dropping_close_the_source(kind: Any) -> None:
    for leave in (Stream.close, lambda _: None):
        source = Source(count())
        stream = (pmap(square, kind=kind) | batch(3, within=LONG))(source)
        assert next(stream) == [0, 1, 4]
        leave(stream)
        del stream
        assert source.closed.wait(PATIENCE)
        assert closed_where_pulled(source)


@in_loop
async def test_closing_an_async_for_closes_the_source() -> None:
    source = AsyncSource(count())
    async with batch(3, source, within=LONG) as stream:
        assert await anext(stream) == [0, 1, 2]
    assert closed_where_pulled(source)


def test_nothing_is_pulled_before_the_first_next_and_little_after_it():
    source = Source(count())
    with (batch(5, within=LONG) | pmap(len, kind="thread", workers=1, maxsize=1))(source) as stream:
        assert source.pulled == 0
        assert next(stream) == 5
        assert source.pulled <= 5 * 3 + 4 + 8  # three batches on the way, an open one, and the feeder's room


def test_a_source_that_gives_to_one_of_several_feeders_wakes_the_stage():
    gate = threading.Event()

    def blocked() -> Iterator[int]:
        assert gate.wait(PATIENCE)
        yield -1

    def slow() -> Iterator[int]:
        for n in range(3):
            wait_until(lambda n=n: len(got) == n)  # type: ignore[misc]
            yield n
        gate.set()

    got: list[int] = []
    for output in merge(blocked(), slow()) | pmap(square, kind="thread", workers=8):
        got.append(output)
    assert sorted(got) == [0, 1, 1, 4]


# ----------------------------------------------------------------------------------- what decides, step by step


class Time:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def feed(*items: Any, room: int = 100) -> Feed:
    upstream = Feed(Room(room, room), 1)
    upstream.alone = True
    put(upstream, *items)
    return upstream


def put(upstream: Feed, *items: Any) -> None:
    upstream.room.held += len(items)
    upstream.pending.extend(items)


def node(upstream: Any, n: float, within: float | None = None, weighed: bool = False) -> tuple[Batches, Time]:
    clock = Time()
    return Batches(upstream, n, within=within, weighed=weighed, clock=clock), clock


def drawn(batches: Batches, most: int = 100) -> list[Any]:
    outputs, credits = batches.draw(most)
    batches.release(credits)
    return list(outputs)


def test_a_batch_is_open_from_its_first_item_on_also_while_nobody_takes():
    upstream = feed()
    batches, clock = node(upstream, 3, within=5.0)
    clock.now = 10.0
    put(upstream, "a")
    batches.look()
    assert batches.flush_delay == 5.0
    assert batches.has_partial
    clock.now = 14.0
    put(upstream, "b")
    batches.look()
    assert batches.flush_delay == 1.0
    assert batches.available() == 0
    clock.now = 15.0
    put(upstream, "c")  # too late for the first one
    assert batches.available() == 1
    assert drawn(batches) == [["a", "b"]]
    assert not batches.has_partial  # it has room for "c" now, and has not looked yet
    batches.look()
    assert batches.flush_delay == 5.0
    assert batches.end is None
    upstream.ended(0, None)
    assert batches.available() == 1
    assert drawn(batches) == [["c"]]
    assert batches.end == Closed()
    assert not batches.has_partial


def test_it_holds_less_than_n_items_and_gives_their_room_back():
    upstream = feed(room=1)
    batches, clock = node(upstream, 3, within=1.0)
    for letter in "ab":
        assert upstream.room.free == 1
        put(upstream, letter)
        batches.look()
        clock.now += 1.0
    batches.look()
    assert (batches.held, list(batches.closed)) == (2, [["a"], ["b"]])
    put(upstream, "c")
    batches.look()
    assert (batches.held, upstream.room.free) == (2, 0)
    assert drawn(batches, 1) == [["a"]]
    batches.look()
    assert (batches.held, upstream.room.free) == (2, 1)


def test_full_batches_are_drawn_many_at_a_time_with_what_was_open():
    upstream = feed("a")
    batches, _ = node(upstream, 2, within=9.0)
    assert batches.available() == 0
    put(upstream, *"bcdef")
    assert batches.available() == 3
    assert upstream.room.held == 5
    outputs, credits = batches.draw(2)
    assert list(outputs) == [["a", "b"], ["c", "d"]]
    assert credits == 3  # given back when they are out of the taker's hands
    assert drawn(batches) == [["e", "f"]]


def test_weights_decide_what_goes_together():
    upstream = feed(("a", 2), ("b", 2), ("c", 2), ("d", 9), ("e", 4), ("f", 0))
    batches, _ = node(upstream, 4, within=9.0, weighed=True)
    given = []
    while batches.available():
        given += drawn(batches)
    assert given == [["a", "b"], ["c"], ["d"], ["e"]]
    upstream.ended(0, None)
    assert batches.available() == 1
    assert drawn(batches) == [["f"]]


def test_a_list_that_shrinks_between_two_looks():
    items = list("abcd")
    batches, _ = node(Slices(items), 2, within=9.0)
    assert batches.available() == 2
    del items[3:]
    outputs, _ = batches.draw(2)
    assert list(outputs) == [["a", "b"]]
    assert batches.available() == 1  # a list that has ended once stays so
    assert drawn(batches) == [["c"]]


def test_one_that_is_stopped_gives_nothing_more():
    upstream = feed("a", "b", "c")
    batches, _ = node(upstream, 2, within=9.0)
    batches.look()
    upstream.stopped = True
    assert batches.available() == 0
    assert batches.end == CLOSED
    assert not batches.has_partial


def test_a_window_behind_it_ends_as_what_is_before_it():
    def window(upstream: Any) -> Window:
        return Window(
            upstream, Room(0, 4), workers=2, ordered=True, outputs=lambda slots: MAP.outputs(slots, skips=False),
            one_each=True, numbers=Numbers(shares=lambda workers: workers), loses=False,
        )  # fmt: skip

    before = window(Slices("abc"))
    batches, _ = node(before, 2, within=9.0)
    after = window(batches)
    error = ValueError("c")
    for letter in "ab":
        span = before.take(0.0, 1)
        assert span is not None
        span.slots.append(letter)
        before.done(span, 0.0)
    span = before.take(0.0, 1)
    assert span is not None
    before.fail(Failure(span.start, "c", error))
    assert after.end is None
    assert not after.exhausted
    span = after.take(0.0)
    assert span is not None
    assert span.items == [["a", "b"]]
    span.slots.append(1)
    after.done(span)
    assert after.available() == 1
    assert after.draw(9)[0] == [1]
    assert after.end == Closed(error)
    assert after.exhausted


def test_a_worker_insists_when_its_node_is_due_or_its_own_spans_are():
    upstream = feed("a")
    batches, clock = node(upstream, 2, within=0.001)
    window = Window(
        batches,
        Room(0, 4),
        workers=2,
        ordered=True,
        outputs=list,
        numbers=Numbers(shares=lambda workers: workers),
    )
    work = Work(window, clock)
    assert not work.ready()
    assert work.can_flush()
    assert work.flush_delay == 0.001
    clock.now = 0.001
    work.request_flush()
    assert work.ready()


# ------------------------------------------------------------------------------ a deadline that comes nearer


class Due:
    """A buffer whose taker is to request_flush at a time that the test brings nearer."""

    clock = staticmethod(perf_counter)

    def __init__(self) -> None:
        self.flush_delay = LONG
        self.insisted = False

    def ready(self) -> bool:
        return self.insisted

    def take(self) -> str:
        return "taken"

    def report_starvation(self, wanted: bool) -> bool:
        return wanted

    def can_flush(self) -> bool:
        return not self.insisted

    def request_flush(self) -> None:
        self.insisted = True


class LaidOut(Run):
    """A run of one queue, as behind a node."""

    def __init__(self, queue_of: Callable[[LaidOut, Due], Any]) -> None:
        super().__init__()
        self.buffer = Due()
        self.nodes = [node(feed(), 2, within=1.0)[0]]
        self.queues = [queue_of(self, self.buffer)]

    def hasten(self) -> None:
        with self.lock:
            self.settle()
            assert self.queues[0].watched
            self.buffer.flush_delay = 0.0
            self.settle()


def test_a_thread_minds_a_deadline_that_was_nearer_before_it_waited():
    run = LaidOut(lambda run, buffer: ThreadQueue(buffer, run.lock, run.settle))
    queue: Any = run.queues[0]
    with run.lock:
        run.buffer.flush_delay, queue.takers = 0.0, 1
        run.settle()  # while the taker is on its way
        run.buffer.flush_delay, queue.takers = LONG, 0
    taken: list[Any] = []
    taker = threading.Thread(target=lambda: taken.append(queue.get()), daemon=True)
    taker.start()
    wait_until(lambda: queue.minder is not None)
    with run.lock:
        run.buffer.flush_delay = 0.0
        run.settle()
    wait_until(lambda: bool(taken))
    taker.join(PATIENCE)


def test_a_task_minds_a_deadline_that_was_nearer_before_its_time_began():
    async def main() -> Any:
        run = LaidOut(lambda run, buffer: TaskQueue(buffer, run.lock, run.settle))
        queue: Any = run.queues[0]

        def settle(delay: float) -> None:
            with run.lock:
                run.buffer.flush_delay = delay
                run.settle()

        taker = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        elsewhere = threading.Thread(target=settle, args=(0.0,))
        elsewhere.start()
        elsewhere.join(PATIENCE)  # this loop has no turn meanwhile
        run.buffer.flush_delay = LONG
        for _ in range(3):
            await asyncio.sleep(0)
        settle(0.0)
        async with asyncio.timeout(PATIENCE):
            return await taker

    assert asyncio.run(main()) == "taken"


def test_a_thread_minds_the_deadline_that_comes_nearer():
    run = LaidOut(lambda run, buffer: ThreadQueue(buffer, run.lock, run.settle))
    taken: list[Any] = []
    takers = [
        threading.Thread(target=lambda: taken.append(run.queues[0].get()), daemon=True) for _ in range(2)
    ]  # type: ignore[attr-defined]
    for taker in takers:
        taker.start()
    wait_until(lambda: len(run.queues[0].waiters) == 2)  # type: ignore[attr-defined]
    run.hasten()
    wait_until(lambda: len(taken) == 2)
    for taker in takers:
        taker.join(PATIENCE)


@in_loop
async def test_a_task_minds_the_deadline_that_comes_nearer() -> None:
    run = LaidOut(lambda run, buffer: TaskQueue(buffer, run.lock, run.settle))
    taker = asyncio.ensure_future(run.queues[0].get())  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    run.hasten()
    assert await asyncio.wait_for(taker, PATIENCE) == "taken"


def test_a_pump_minds_the_deadline_that_comes_nearer():
    run = LaidOut(lambda _, buffer: PipeQueue(buffer))
    queue: Any = run.queues[0]
    queue.takers = 1
    run.hasten()
    assert queue.deadline <= run.clock()
    queue.close()
