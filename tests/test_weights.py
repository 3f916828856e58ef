"""A stage that bounds itself is bounded by bytes, too."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from array import array
from collections import deque, namedtuple
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fstream import batch, merge, pmap
from fstream._flow import weight
from fstream._flow.buffers import PART, PARTS, Credits
from fstream._flow.known import Known
from fstream._flow.room import Room
from fstream._flow.sizing import MAX_BYTES, SHORT, SHORT_STRIDE, STRIDE
from fstream._flow.sources import Feed, Slices
from fstream._flow.weight import SAMPLES, SELDOM, SELDOM_SECONDS, Weight, weigh
from fstream._flow.window import Window
from fstream._plan.kernels import FLAT_MAP
from tests.faults.faulty import eventually
from tests.functions import identity, suited
from tests.test_windows import begin, drawn, finish, taken, window_over

BODY = 200_000
#: How many bodies are that heavy.
MOST = MAX_BYTES // BODY


class Slotted:
    __slots__ = ("__weakref__", "body")

    def __init__(self, body: bytes) -> None:
        self.body = body


@dataclass
class Page:
    url: str
    body: bytes


Row = namedtuple("Row", "key body")


def body() -> bytes:
    return bytes(BODY)


@pytest.mark.parametrize(
    "make",
    [
        lambda: body(),
        lambda: bytearray(BODY),
        lambda: ("url", body()),
        lambda: {"url": "...", "body": body()},
        lambda: Page("url", body()),
        lambda: ("url", [Page("url", body())]),
        lambda: Row(1, body()),
        lambda: array("b", body()),
        lambda: [bytes(BODY // 1000) for _ in range(1000)],
        lambda: {n: bytes(BODY // 100) for n in range(100)},
        lambda: {frozenset([bytes(BODY)])},
        pytest.param(
            lambda: Slotted(body()), marks=pytest.mark.skipif(not weight.has_gil(), reason="nobody may look")
        ),
    ],
)
def test_what_an_item_holds_counts(make: Any) -> None:
    found = weigh([make() for _ in range(4)])
    assert found is not None and 0.9 * BODY < found.mean < 1.5 * BODY


def test_what_items_share_does_not_count() -> None:
    model = Page("model", bytes(100 * BODY))
    found = weigh([(number, model) for number in range(1000, 1004)])
    assert found is not None and found.mean < 200


def test_one_item_says_nothing_of_others() -> None:
    assert weigh([body()]) is None


def test_an_item_s_own_code_is_not_run() -> None:
    class Loud:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

        def __sizeof__(self) -> int:
            raise AssertionError

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError

        nbytes = property(__sizeof__)

    class Proxy(Loud):
        @property
        def __class__(self) -> Any:
            raise AssertionError

    class Many(list[Any]):
        __iter__ = __len__ = Loud.__iter__

    loud = [
        Loud(),
        Loud(),
        Proxy(),
        MagicMock(),
        MagicMock(),
        BaseException.__new__(KeyError),
        Many([1]),
        Many(),
    ]
    assert weigh(loud) is not None


def test_few_of_many_parts_are_looked_at_also_where_the_class_is_the_user_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Many(list[Any]):
        pass

    looked: list[Any] = []
    size_of = weight._size_of
    monkeypatch.setattr(
        weight, "_size_of", lambda value, *rest: looked.append(value) or size_of(value, *rest)
    )
    found = weigh([Many(bytes(1000) for _ in range(1000)) for _ in range(3)])
    assert found is not None and 1e6 < found.mean < 1.2e6
    assert len(looked) < 100


def test_numpy_arrays_count_with_their_data() -> None:
    numpy = pytest.importorskip("numpy")
    found = weigh([numpy.zeros(BODY // 8) for _ in range(3)] + [numpy.zeros(BODY)[: BODY // 8]])
    assert found is not None and 0.9 * BODY < found.mean < 1.5 * BODY


def weighed(workers: int, size: int) -> Window:
    """A window whose items are found to have that size."""
    window = window_over(Slices(range(10**6)), workers=workers, most_cheap=4096)
    window._weight = lambda: (Weight(float(size)), True)  # type: ignore[method-assign]
    return window


@given(workers=st.integers(2, 40), size=st.sampled_from([1, 100, 10_000, 10**6, 10**8]))
def test_a_window_grows_as_far_as_what_it_holds_is_not_too_heavy(workers: int, size: int) -> None:
    window = weighed(workers, size)
    room = window.room
    room.gone = 10**6  # so much has gone through that it may grow at any time
    taken(window, 1)  # the taker waits for this one
    for _ in range(20):
        while window.takable():
            finish(window, taken(window))
        assert room.held == room.limit <= max(2 * workers, MAX_BYTES // size)
        room.growable_at = 0.0
        window.grow()
    assert room.limit >= min(64 * workers, 4096, MAX_BYTES // size)


def test_a_window_becomes_smaller_where_its_items_become_heavier() -> None:
    window = weighed(4, BODY)
    room = window.room
    room.limit = room.held = 4096  # of light ones
    for _ in range(60):
        room.release(room.held // 8)
        while window.takable():
            finish(window, taken(window))
    assert room.held == room.limit <= 1.1 * MOST


def test_items_that_become_heavier_are_noticed_after_a_while_however_many_are_held() -> None:
    """A quarter of what a large window holds might be gigabytes."""
    window = window_over(Slices(range(10**6)), workers=2, most_cheap=4096)
    room = window.room
    room.limit = 10**5
    window.weigh_at = 10**5
    for number in range(6):
        span = window.take(SELDOM_SECONDS * (number // 5), 1)
        assert span is not None
        span.slots.append(body())
        window.done(span)
        assert room.limit == (MOST if number == 5 else 10**5)
    assert room.limit == MOST


def test_lone_items_that_become_heavier_are_noticed_however_many_are_held() -> None:
    window = window_over(Slices(range(10**6)), workers=2, most_cheap=4096, loses=False)
    room = window.room
    room.limit = 10**5
    window.weigh_at = 10**5
    for number in range(SELDOM + SAMPLES + 1):
        window.draw_lone(1)
        index, _ = window.ledger.lone_items.popleft()
        assert index == number
        window.ledger.lone_slots[index] = body()
    assert room.limit == MOST


def test_few_heavy_outputs_that_wait_together_are_weighed() -> None:
    """They are in one list, as they are few. To take one of each list for a sample found no second one."""
    window = window_over(Slices(range(10**6)), workers=2, most_cheap=4096)
    room = window.room
    room.gone = 10**6
    for _ in range(100):
        if not window.takable():
            room.growable_at = 0.0
            window.grow()
        if not window.takable():
            break
        span = taken(window, 1)
        span.slots.append(bytes(10 * BODY))
        window.done(span)
        window.available()
    assert room.held == room.limit == MOST // 10


def test_a_room_that_is_over_full_has_none() -> None:
    window = window_over(Slices("abcdefgh"), workers=2, room=Room(None, 2))
    window.room.limit = 4
    for _ in range(4):
        taken(window, 1)
    window.room.weighs(MAX_BYTES)
    assert window.room.limit == 2
    assert window.backlog == 0 and not window.takable() and window.take(0.0) is None
    window.room.release(3)
    assert window.backlog == 1


def test_one_heavy_item_among_many_does_not_make_the_room_small() -> None:
    room = Room(None, 2)
    room.limit = 1000
    room.weighs(1000)
    room.weighs(50 * BODY / 5)
    assert room.limit > 100


def test_one_heavy_sample_is_not_most() -> None:
    found = weigh([bytes(10), bytes(10), bytes(10 * BODY), bytes(10), bytes(10)])
    assert found is not None and found.most < 200 < BODY < found.mean
    few = weigh([bytes(10), bytes(10), bytes(10 * BODY)])
    assert few is not None and few.most == 0


def test_a_room_is_small_at_once_where_most_items_are_heavier_than_was_thought() -> None:
    room = Room(None, 2)
    room.limit = 1000
    room.weighs(1000, 1000)
    room.weighs(BODY, BODY)
    assert room.limit == MOST


@st.composite
def mostly_light(draw: st.DrawFn) -> list[int]:
    """The sizes of 20 to 60 items, of which at most one in ten is heavy."""
    number = draw(st.integers(20, 60))
    heavy = draw(st.sets(st.integers(0, number - 1), max_size=number // 10))
    return [50 * BODY if index in heavy else 50 for index in range(number)]


@given(sizes=mostly_light())
def test_a_room_of_light_items_among_which_few_are_heavy_never_stays_small(sizes: list[int]) -> None:
    """Each weighing sees a few of them, one after the other."""
    room = Room(None, 2)
    room.weighs(50)
    for start in range(0, len(sizes), 4):
        four = sorted(sizes[start : start + 4])
        room.weighs(sum(four) / len(four), four[(len(four) - 1) // 2])
    for _ in range(40):
        room.weighs(50, 50)
    room.gone = room.limit = 1000
    assert room.grow(2000)


def test_a_window_that_knows_its_inputs_alone_learns_at_once_what_the_outputs_weigh() -> None:
    """Its first outputs are out before any is weighed. Then its taker waits for one, and the others pile up."""
    waiting = [str(n) * 20 for n in range(SAMPLES)]
    upstream = Slices(range(10**6))
    upstream.waiting = lambda _: waiting  # type: ignore[method-assign,assignment]
    window = window_over(upstream, workers=100, most_cheap=4096)
    room = window.room
    room.gone = 10**6
    window._weigh()
    assert 0 < room.weight < 1000 and not room.weighed_whole
    first = taken(window, 1)
    most = 0
    for _ in range(20):
        while window.takable():
            span = taken(window, 1)
            span.slots.extend(bytes(BODY) for _ in span.items)
            window.done(span)
        most = max(most, room.held)
        room.growable_at = 0.0
        window.grow()
    assert not first.closed
    assert 200 < most <= 1.1 * MOST


def test_outputs_alone_do_not_tell_that_items_have_become_light() -> None:
    """They were heavy on their way in. Now no input is in sight, because the source is slower than the workers."""
    window = window_over(Slices(range(10**6)), workers=2, most_cheap=4096)
    room = window.room
    room.weighs(BODY)
    room.limit = MOST
    for _ in range(SAMPLES):
        window.outbox.enter([*range(SHORT)])
    for _ in range(10):
        weight, whole = window._weight()
        assert weight is not None and weight.mean < 1000 and not whole
        window._weigh()
    assert room.heaviest == MOST


def test_inputs_that_are_heavier_than_all_was_thought_to_be_count_though_no_outputs_are_seen() -> None:
    room = Room(None, 2)
    room.limit = 10**6
    room.weighs(1000)
    room.weighs(10, whole=False)
    assert room.weight == 1000
    room.weighs(BODY, BODY, whole=False)
    assert room.limit == MOST


def test_a_given_maxsize_is_not_bounded_by_bytes() -> None:
    window = window_over(Slices([bytes(BODY)] * 5000), workers=2, maxsize=1000)
    taken(window, 1)
    while window.takable():
        finish(window, taken(window))
    assert window.room.held == window.room.limit == 1000


def test_what_was_pulled_while_it_was_light_is_drawn_no_faster_than_the_taker_makes_room() -> None:
    room = Room(None, 4)
    feed = Feed(room, feeders=0)
    feed.pending.extend(range(100))
    room.limit = room.held = 100
    window = window_over(feed, room=room)
    assert window.backlog == 100
    room.limit = 4
    outputs: list[Any] = []
    while window.end is None:
        spans = []
        while window.takable():
            spans.append(taken(window))
        assert sum(len(span.items) for span in spans) in (4, 0)
        for span in spans:
            finish(window, span)
        outputs += drawn(window)
    assert outputs == [*range(100)]


@pytest.mark.parametrize("joined", [merge, lambda source: merge(source, []), lambda source: batch(1, source)])
def test_what_is_pulled_ahead_of_the_consumer_is_bounded_by_what_it_weighs(joined: Any) -> None:
    pulled = 0

    def source() -> Iterator[bytes]:
        nonlocal pulled
        for _ in range(10_000):
            pulled += 1
            yield bytes(BODY)

    most = 0
    for had, _ in enumerate(islice(joined(source()), 6000)):
        if had % 1000 == 999:
            time.sleep(0.05)  # the feeder is faster for a while
        most = max(most, pulled - had)
    assert most <= 2 * MOST


def test_a_feed_that_a_consumer_draws_from_grows_as_far_as_its_items_are_not_too_heavy() -> None:
    feed = Feed(Room(None, 2), 1)
    feed.alone, feed.blocked = True, 1
    for _ in range(2 * SELDOM):
        feed.pending.append(body())
        feed.release(feed.draw(1)[1])
        feed.grow()
    assert feed.room.limit <= 1.1 * MOST


def test_of_what_is_pulled_ahead_of_the_consumer_the_latest_items_are_weighed() -> None:
    feed = Feed(Room(None, 2), 1)
    feed.alone, feed.room.limit = True, 4096
    feed.pending.extend([*range(300), *(body() for _ in range(SAMPLES))])
    feed.draw(1)
    assert feed.room.limit <= 1.1 * MOST


def test_what_all_that_is_pulled_ahead_shares_does_not_count() -> None:
    feed = Feed(Room(None, 2), 1)
    feed.alone, feed.room.limit = True, 4096
    model = bytes(100 * BODY)
    feed.pending.extend((number, model) for number in range(100))
    feed.draw(1)
    assert feed.room.limit == 4096


def granted(held: int, maxsize: int | None = None) -> Credits:
    """The credits of a feeder that was granted room for *held* light items."""
    room = Room(maxsize, 2)
    room.limit = maxsize or held
    credits = Credits(Feed(room, 1), perf_counter)
    credits.left = credits.feed.credits(credits)
    assert credits.left == held == room.held
    return credits


@pytest.mark.parametrize("known", [False, True], ids=["items", "what a memo knows"])
def test_a_feeder_gives_credits_back_where_items_have_come_to_be_heavy(known: bool) -> None:
    credits, pulled = granted(30_000), 0
    while room := credits.part():
        assert room == PART
        for number in range(room):
            value = body() if pulled >= 5 * PART else number
            credits.feed.append(Known(number, value) if known else value)
            pulled += 1
        if credits.looks_heavy(number):
            credits.feed.take_back(credits)
        assert credits.feed.room.held == pulled + credits.left
    assert 5 * PART < pulled <= 6 * PART


def test_items_that_are_heavy_by_what_they_refer_to_are_weighed_now_and_then() -> None:
    credits, pulled = granted(30_000), 0
    while room := credits.part():
        credits.feed.pending.extend([body()] for _ in range(room))
        pulled += room
        if credits.looks_heavy(0):
            credits.feed.take_back(credits)
    assert pulled <= PARTS * PART


@pytest.mark.parametrize("heavy", [True, False], ids=["a given maxsize", "light items"])
def test_other_credits_are_kept(heavy: bool) -> None:
    credits = granted(30_000, 30_000 if heavy else None)
    credits.left -= 10
    credits.feed.pending.extend(body() if heavy else number for number in range(10))
    for _ in range(PARTS):
        credits.feed.take_back(credits)
    assert credits.left == 30_000 - 10


def test_items_that_are_pulled_make_known_outputs_no_lighter() -> None:
    credits = granted(30_000)
    credits.feed.room.weighs(60_000.0, whole=False)
    limit = credits.feed.room.limit
    credits.feed.pending.extend(range(10))
    credits.feed.take_back(credits)
    assert (credits.feed.room.weight, credits.feed.room.limit) == (60_000.0, limit)


def two_sources() -> tuple[Credits, Credits]:
    """The credits of two feeders that have come to be too many, because items have come to be heavy."""
    feed = Feed(Room(None, 2), 2)
    feed.room.limit = 8192
    one, silent = Credits(feed, perf_counter), Credits(feed, perf_counter)
    silent.left = feed.credits(silent)
    silent.part()
    feed.room.limit = 8
    assert (feed.room.held, silent.left, silent.hand) == (4096, 4096 - PART, PART)
    return one, silent


def test_what_silent_sources_may_pull_is_taken_back() -> None:
    one, silent = two_sources()
    assert one.ready()
    assert one.take() == 1
    assert (silent.left, silent.hand, one.feed.room.held) == (0, PART, PART + 1)
    for _ in range(7):
        assert one.ready() and one.take() == 1
    assert not one.ready()  # the eight that may be held, beside what the other one has in hand
    one.feed.room.release(1)
    assert one.ready()


@pytest.mark.parametrize("kind", ["thread", "task"])
def test_a_source_whose_items_are_heavy_does_not_wait_for_one_that_is_silent(kind: Any) -> None:
    speaks, light, heavy = Event(), 30_000, 200

    def source() -> Iterator[Any]:
        yield from range(2 * light)
        for _ in range(heavy):
            yield bytes(1_000_000)

    def silent() -> Iterator[Any]:
        yield from range(light)
        speaks.wait()

    stream = pmap(suited(identity, kind), merge(source(), silent()), kind=kind, workers=2)
    deque(islice(stream, 3 * light + heavy), 0)
    speaks.set()
    assert list(stream) == []


@pytest.mark.parametrize("kind", ["thread", "process", "task", partial(ThreadPoolExecutor, 2)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_source_that_comes_to_be_heavy_is_not_pulled_as_far_as_while_it_was_light(
    kind: Any, asynchronous: bool
) -> None:
    light, heavy, pulled = 20_000, 4_000, 0

    def source() -> Iterator[Any]:
        nonlocal pulled
        for number in range(light + heavy):
            pulled = number + 1
            yield number if number < light else body()

    async def async_source() -> AsyncIterator[Any]:
        for item in source():
            yield item

    stream: Any = pmap(suited(identity, kind), async_source() if asynchronous else source(), kind=kind)
    deque(islice(stream, light), 0)
    feed = stream._outputs.run.feed
    assert eventually(lambda: feed.blocked or feed.feeders < 1)
    assert (pulled - light) * BODY < 3 * MAX_BYTES
    stream.close()


def two_spans(**options: Any) -> tuple[Window, Any, Any]:
    """A window of eight light items in the hands of two workers."""
    window = window_over(Slices("abcdefgh"), **options)
    window.room.limit = 8
    window.sizing.cost, window.sizing.last_size = 0.0, 8
    return window, taken(window, 4), taken(window, 4)


@pytest.mark.parametrize("is_ordered", [True, False])
def test_what_was_requeued_waits_while_heavier_outputs_fill_the_room(is_ordered: bool) -> None:
    window, first, second = two_spans(ordered=is_ordered)
    window.ledger.steal_from(second)
    window.done(second)
    finish(window, first)
    window.room.limit = 4
    assert (window.backlog, window.takable(), window.take(0.0)) == (0, False, None)
    assert drawn(window) == ["a", "b", "c", "d"]
    finish(window, taken(window))
    assert drawn(window) == ["e", "f", "g", "h"]


def test_what_comes_first_is_started_however_full_the_room_is() -> None:
    """The taker waits for it. All others are finished, or at work."""
    window, first, second = two_spans()
    begin(first)
    window.ledger.steal_from(first)
    begin(second, 3)
    window.room.limit = 4
    assert not window.takable()
    first.slots.append("b")
    window.done(first)
    assert not window.takable()
    assert window.draw(9)[0] == ["a", "b"]  # and the taker has them yet
    assert window.ledger.busy == 1
    assert list(taken(window).items) == ["c"]
    assert not window.takable()


def test_where_nothing_is_at_work_and_nothing_waits_for_the_taker_what_was_requeued_is_started() -> None:
    """The taker gathers a batch, say, which is larger than the room."""
    window, first, second = two_spans(ordered=False)
    window.ledger.steal_from(second)
    finish(window, first)
    window.room.limit = 4
    assert len(window.draw(9)[0]) == 4
    assert not window.takable()
    window.done(second)
    assert window.takable()


def test_a_worker_gives_up_the_rest_of_its_span_where_its_items_have_become_too_heavy() -> None:
    window, first, _ = two_spans()
    assert next(window.claim(first, 0.0) or iter(())) == "a"
    first.slots.append("a")
    window.room.limit = 4
    assert window.claim(first, 0.0) is None
    assert list(first.items) == ["a"]
    assert window.ledger.requeued_items == 3


def test_items_are_weighed_while_a_worker_is_in_the_middle_of_its_span() -> None:
    window, first, second = two_spans()
    for span in (first, second):
        span.slots += ["light", body(), body()]
    assert window.claim(first, SELDOM_SECONDS / 2) is not None
    window.room.limit = 10**5
    window.claim(first, SELDOM_SECONDS)
    assert window.room.limit < 2 * MOST


@pytest.mark.parametrize(
    ("cost", "most"), [(None, SHORT_STRIDE), (1e-3, SHORT_STRIDE), (1e-6, 249), (0.0, STRIDE)]
)
def test_a_worker_claims_few_items_at_a_time_if_they_take_long(cost: float | None, most: int) -> None:
    window = window_over(Slices(range(10**6)))
    window.room.limit = 10**6
    window.sizing.cost, window.sizing.last_size = 0.0, 4096
    span = taken(window)
    window.sizing.cost = cost
    assert len([*(window.claim(span, 0.0) or ())]) == most


@pytest.mark.slow
@pytest.mark.parametrize("is_ordered", [True, False])
def test_no_more_is_held_where_light_items_come_to_have_heavy_outputs(
    concurrent_kind: str, is_ordered: bool, tmp_path: Path
) -> None:
    """The stage has pulled some 30,000 items by then."""
    log = os.open(tmp_path / "made", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    path = str(tmp_path / "made")

    def make(number: int) -> bytes:
        if number < 50_000:
            return b"" if sum(range(300)) else b"."  # it takes some microseconds, so that strides are short
        with open(path, "ab") as made:
            made.write(b".")
        return bytes(BODY)

    async def make_later(number: int) -> bytes:
        return make(number)

    f = make_later if concurrent_kind == "task" else make
    most = had = 0
    for output in pmap(f, (n for n in range(51_000)), kind=concurrent_kind, ordered=is_ordered):
        if output:
            had += 1
            most = max(most, os.fstat(log).st_size - had)
            if had % 10 == 0:
                time.sleep(0.002)  # the workers are faster
    os.close(log)
    assert had == 1000
    assert most * BODY < 4 * MAX_BYTES  # it was 12 times as much; a busy machine makes two or three of it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers", "made"),
    [
        ("task", 100, "out"),  # not "in": a task keeps no item that it is through with
        *(
            (kind, workers, made)
            for kind, workers in (("thread", 16), ("process", 2))
            for made in ("in", "out")
        ),
    ],
)
def test_no_more_is_held_behind_a_slow_item_than_may_be(kind: str, workers: int, made: str) -> None:
    pulled = count()
    seen = 0

    def source() -> Iterator[Any]:
        nonlocal seen
        for seen in pulled:
            yield (seen, bytes(BODY if made == "in" else 1))
            if seen > 5000:
                return

    def hold(item: Any) -> bytes:
        if item[0] == 3000:
            time.sleep(2)
        return bytes(BODY if made == "out" else 1)

    async def hold_task(item: Any) -> bytes:
        if item[0] == 3000:
            await asyncio.sleep(2)
        return bytes(BODY if made == "out" else 1)

    ahead = []
    f = hold_task if kind == "task" else hold
    for given_out, _ in enumerate(pmap(f, source(), kind=kind, workers=workers)):
        ahead.append(seen - given_out)
    assert len(ahead) == 5002
    # An estimate: what some items weigh counts by and by, and inputs that wait are not always there to be weighed.
    assert max(ahead[2000:]) <= 2.5 * max(MOST, 2 * workers) + SELDOM


@pytest.mark.slow
def test_outputs_of_many_tasks_behind_a_slow_one_are_bounded_from_the_first_on() -> None:
    """The inputs wait in sight, and are light. The outputs that come before the slow one are taken at once."""
    held = most = 0

    async def fetch(number: int) -> bytes:
        nonlocal held, most
        await asyncio.sleep(0.5 if number % 1000 == 999 else 0)
        held += 1
        most = max(most, held)
        return bytes(BODY)

    for _ in pmap(fetch, (n for n in range(3000)), workers=100):
        held -= 1
    assert most * BODY <= 100_000_000


@pytest.mark.parametrize("is_ordered", [True, False])
def test_an_item_weighs_as_much_as_all_of_its_outputs(is_ordered: bool) -> None:
    """Of a `pflat_map`: its outputs wait one by one, and their room is that of the item."""
    window = window_over(Slices(range(10**6)), workers=SAMPLES, ordered=is_ordered, kernel=FLAT_MAP)
    for _ in range(SAMPLES):
        span = taken(window, 1)
        span.slots.append([bytes(BODY // 100) for _ in range(100)])
        window.done(span)
    for count_drawn in (0, 10, 95):
        window.draw(count_drawn)
        weight, _ = window._weight()
        assert weight is not None and 0.9 * BODY < weight.mean < 1.2 * BODY


def test_an_output_that_was_drawn_is_not_kept_until_its_neighbours_are_drawn() -> None:
    """Its room is free, so that there would be twice as many as may be held."""
    window = window_over(Slices(range(10**6)), workers=2, most_cheap=4096)
    bodies = [Slotted(bytes([number])) for number in range(100)]
    kept = bodies[10:]
    window.outbox.enter(bodies)
    del bodies
    drawn = [weakref.ref(output) for output in window.draw(10)[0]]
    assert [output() for output in drawn] == [None] * 10
    assert window.outbox.waiting(100) == kept
    assert window.draw(10)[0] == kept[:10]


@pytest.mark.parametrize("drawn", [0, 1, 98])
def test_what_was_drawn_of_a_list_of_outputs_makes_the_others_no_heavier(drawn: int) -> None:
    window = window_over(Slices(range(10**6)), workers=2, most_cheap=4096)
    window.outbox.enter([bytes(BODY) for _ in range(100)])
    window.draw(drawn)
    weight, _ = window._weight()
    assert weight is not None and 0.9 * BODY < weight.mean < 1.1 * BODY
