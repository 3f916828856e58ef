"""What decides, driven step by step, without a thread: `Window`, `Feed` and `Slices`, and the buffers before them."""

from __future__ import annotations

from array import array
from dataclasses import asdict
from heapq import heappop, heappush
from itertools import islice
from typing import Any

import pytest

from fstream._flow.buffers import OVERDUE, Credits, Outlet, Work
from fstream._flow.observer import Observer, StageInfo
from fstream._flow.protocols import Upstream
from fstream._flow.room import Room
from fstream._flow.sizing import MAX_CHEAP, MAX_SLOW, MAX_SPAN, SHORT, Numbers
from fstream._flow.sources import Feed, Grant, Slices
from fstream._flow.span import Closed, Failure, Span
from fstream._flow.window import Window
from fstream._plan.kernels import DROP, FILTER, FLAT_MAP, MAP, Kernel
from fstream._workers.dask import CHEAP, FEW
from fstream._workers.kinds import backend_for


def window_over(
    upstream: Upstream,
    *,
    workers: int = 2,
    ordered: bool = True,
    maxsize: int | None = None,
    kernel: Kernel = MAP,
    room: Room | None = None,
    loses: bool = True,
    **numbers: Any,
) -> Window:
    return Window(
        upstream,
        room or Room(maxsize, 2 * workers),
        workers=workers,
        ordered=ordered,
        outputs=lambda slots: kernel.outputs(slots, skips=False),
        one_each=kernel.plain,
        numbers=Numbers(**{"shares": lambda workers: workers} | numbers),
        loses=loses,
    )


def window_of(items: str, **options: Any) -> Window:
    """A window without a bound, over items so cheap that a span takes all that it may have."""
    window = window_over(Slices(items), workers=1, maxsize=0, **options)
    window.sizing.cost, window.sizing.last_size = 0.0, len(items)
    return window


def taken(window: Window, most: int = MAX_SPAN) -> Span:
    span = window.take(0.0, most)
    assert span is not None
    return span


def finish(window: Window, span: Span) -> None:
    span.slots.extend(span.claim() or ())
    window.done(span, 0.0)


def begin(span: Span, count: int = 1) -> None:
    """Finish *count* items of *span*, and start the next one."""
    claimed = span.claim()
    assert claimed is not None
    span.slots.extend(islice(claimed, count))


def lose(window: Window, span: Span, retries: int = 1, at: int | None = None) -> Span | None:
    """As a crew does: have the item tried again at which the worker was lost, or keep its place."""
    victim = window.lose(span, at)
    if victim is not None and victim.tries <= retries:
        window.ledger.requeue(victim)
        return None
    if victim is not None:
        window.keep_place(victim)
    return victim


def work_off(window: Window) -> None:
    while window.takable():
        finish(window, taken(window))


def draw(window: Window, most: int) -> tuple[list[Any], int]:
    """Draw as takers do, who look first whether there is something."""
    return window.draw(most) if window.available() else ([], 0)


def drawn(window: Window) -> list[Any]:
    outputs, credits = draw(window, 999)
    window.release(credits)
    return outputs


def held_by(span: Span) -> tuple[int, list[Any]]:
    return span.start, list(span.items)


def test_what_is_finished_after_an_unordered_stage_failed_does_not_open_its_end_again():
    window = window_over(Slices("abc"), ordered=False)
    finish(window, taken(window))
    slow, bad = taken(window, 1), taken(window, 1)
    begin(slow, 0)
    error = ValueError()
    window.fail(Failure(bad.start, "c", error))
    assert window.draw(9)[0] == ["a"]
    assert window.end == Closed(error)
    slow.slots.append("b")
    window.done(slow)
    assert not window.available()
    assert window.end == Closed(error)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("kernel", [MAP, FILTER], ids=["map", "filter"])
def test_what_is_finished_after_a_stage_failed_as_a_whole_does_not_open_its_end_again(
    ordered: bool, kernel: Kernel
):
    """As `on_start` or a pool that is closed has it: whoever takes the outputs has heard of the end, and left."""
    window = window_of("abc", ordered=ordered, kernel=kernel)
    span = taken(window)
    begin(span, 1)
    error = ValueError()
    window.fail(Failure(-1, None, error))
    before, _ = window.draw(9)
    assert len(before) <= 1
    assert window.end == Closed(error)
    span.slots.extend("bc")
    assert not window.available()
    window.done(span)
    assert not window.available()
    assert window.end == Closed(error)


def test_what_is_finished_before_an_unordered_stage_fails_goes_out_first():
    window = window_over(Slices("abc"), ordered=False)
    span = taken(window)
    span.slots.append("a")
    window.fail(Failure(1, "b", ValueError()))
    assert window.end is None
    assert window.draw(9)[0] == ["a"]
    assert window.end is not None


def test_an_earlier_failure_takes_the_place_of_a_later_one_in_order():
    window = window_over(Slices("ab"))
    first, second = taken(window), taken(window)
    early, late = ValueError(), KeyError()
    window.fail(Failure(second.start, "b", late))
    assert window.end is None
    window.fail(Failure(first.start, "a", early))
    assert window.end == Closed(early)


def test_a_source_that_failed_is_not_opened_again_by_another_one():
    feed = Feed(Room(None, 4), feeders=2)
    append = feed.pending.append  # the other feeder is in the midst of this
    error = ValueError()
    feed.ended(0, error)
    assert feed.end == Closed(error)
    append("late")
    assert feed.end == Closed(error)
    assert not feed.available()


def test_a_list_that_grows_after_its_end_was_seen_has_ended():
    source = [1]
    slices = Slices(source)
    source.append(2)
    assert slices.draw(9)[0] == [1, 2]
    assert slices.end is not None
    source.append(3)
    assert slices.end is not None
    assert not slices.available()


@pytest.mark.parametrize("most", [1, 2])
def test_a_list_that_shrinks_between_two_looks_gives_what_is_left(most: int):
    source = [1, 2]
    slices = Slices(source)
    assert slices.available()
    source.clear()
    assert slices.draw(most) == ([], 0)
    assert slices.end is not None


# Spans


def test_what_a_worker_has_not_started_is_taken_back_as_a_span_of_its_own():
    span = Span(3, list("abcd"), tries=1)
    claimed = span.claim()
    rest = span.steal()
    assert rest is not None
    assert (held_by(rest), rest.tries, held_by(span)) == ((4, ["b", "c", "d"]), 0, (3, ["a"]))
    assert list(rest.claim() or ()) == ["b", "c", "d"]
    assert list(claimed or ()) == []


def test_a_span_is_split_without_loss():
    span = Span(3, list("abcd"))
    tail = span.split(1)
    assert (held_by(span), held_by(tail)) == ((3, ["a"]), (4, ["b", "c", "d"]))
    assert (list(span.claim() or ()), list(tail.claim() or ())) == (["a"], ["b", "c", "d"])


# Room


def test_room_is_what_the_limit_leaves():
    room = Room(3, 9)
    assert room.free == 3
    room.held = 3
    assert room.free == 0


def test_only_a_limit_that_nobody_set_grows():
    strict, own = Room(3, 9), Room(None, 4)
    assert not strict.grow(99)
    assert strict.limit == 3
    assert own.grow(99)
    assert own.limit == 8
    assert not own.grow(9)  # nothing has gone through it since
    own.release(2)
    assert own.grow(9)
    own.release(9)
    assert not own.grow(9)
    assert own.limit == 9


def test_maxsize_0_is_no_limit():
    assert Room(0, 4).free > 9_999


# Sources


@pytest.mark.parametrize(
    ("cost", "size"), [(1e-9, 40), (1e-5, 20), (2e-5, 20), (9e-5, 20), (5e-4, 3), (1.0, 1)]
)
def test_only_work_that_is_worth_it_is_shared(cost: float, size: int):
    window = window_over(Slices(range(40)), workers=2, maxsize=0)
    window.sizing.cost, window.sizing.last_size = cost, 99
    assert len(taken(window).items) == size


def test_spans_grow_with_the_work_that_is_done_as_far_as_they_may():
    window = window_over(Slices(range(99)), maxsize=0, span_seconds=0.1, longest_span=1.0)
    lengths = []
    for elapsed in (0.1, 2.0, 2.0, 20.0, 0.0):
        span = taken(window, 1)
        span.slots.extend(span.claim() or ())
        window.done(span, elapsed)
        lengths.append(round(window.sizing.span_seconds, 3))
        assert window.flush_delay == 2 * window.sizing.span_seconds
    assert lengths == [0.1, 0.131, 0.256, 1.0, 1.0]


def test_a_span_is_so_many_times_the_last_one_at_most():
    for growth in 2, 8:
        window = window_over(Slices(range(999)), workers=1, maxsize=0, span_seconds=1.0, growth=growth)
        sizes = []
        for _ in range(4):
            span = taken(window)
            sizes.append(len(span.items))
            span.slots.extend(span.claim() or ())
            window.done(span, 1e-6)
        assert sizes == [1, growth, growth**2, growth**3]


def test_less_work_than_a_part_of_a_span_goes_to_one_worker():
    for part, size in (0.1, 5), (0.25, 12):
        window = window_over(Slices(range(20)), workers=4, maxsize=0, span_seconds=1.0, not_shared=part)
        window.sizing.cost, window.sizing.last_size = 0.02, 20
        assert len(taken(window).items) == size


@pytest.mark.parametrize(("count", "cost"), [(400_000, 3e-8), (200_000, 1e-5), (2_000, 1e-3), (200, 1e-2)])
def test_two_seconds_of_work_are_few_spans_on_a_cluster_and_both_of_its_workers_end_together(
    count: int, cost: float
):
    """Two workers, each with a span at work and one behind it; what is handed over is there in 20 ms."""
    window = window_over(Slices(range(count)), workers=2, **asdict(backend_for("dask").numbers))
    window.sizing.most_cheap = FEW * CHEAP
    now, spans, free = 0.0, 0, [0.0, 0.0]
    under_way: list[tuple[float, int, Span]] = []
    while True:
        while window.available():
            window.release(window.draw(1 << 15)[1])
        window.grow()
        while len(under_way) < 4 and (span := window.take(now, 1 << 22)) is not None:
            spans += 1
            worker = free.index(min(free))
            free[worker] = max(now + 0.02, free[worker]) + cost * len(span.items)
            heappush(under_way, (free[worker], spans, span))
        if not under_way:
            break
        now, _, span = heappop(under_way)
        span.slots.extend(span.items)
        window.done(span, cost * len(span.items))
    assert window.exhausted
    assert spans <= 32
    assert max(free) - min(free) < 0.04
    assert max(free) < count * cost / 2 + 0.16


def test_a_window_whose_workers_become_more_or_fewer():
    window = window_over(Slices(range(10_000)), workers=2, span_seconds=1.0)
    window.resize(10)
    assert (window.workers, window.room.limit) == (10, 20)
    window.resize(4)
    assert (window.workers, window.room.limit) == (4, 20)
    window.sizing.cost, window.sizing.last_size = 0.1, 999
    assert len(taken(window).items) == 5  # a fourth of what there is room for
    bounded = window_over(Slices(range(99)), workers=2, maxsize=3)
    bounded.resize(10)
    assert bounded.room.limit == 3


def test_a_window_has_room_for_four_long_spans_of_each_worker():
    window = window_over(Slices(range(99)), workers=2, span_seconds=1.0, longest_span=1.0)
    window.sizing.cost = 0.001
    assert window.sizing.most_held() == 8_000


def test_a_window_has_room_for_many_items_that_need_no_worker():
    sizing = window_over(Slices("ab"), workers=2).sizing
    assert sizing.most_held() == 2 * MAX_SLOW
    for _ in range(20):
        sizing.measure_known(known=10, drawn=10)
    assert sizing.most_held() == MAX_CHEAP
    for _ in range(20):
        sizing.measure(elapsed=1.0, count=1)
    assert sizing.most_held() == 2 * MAX_SLOW


def test_spans_of_one_length_do_not_grow():
    window = window_of("ab")
    before = window.sizing.span_seconds
    span = taken(window)
    span.slots.extend(span.claim() or ())
    window.done(span, 99.0)
    assert window.sizing.span_seconds == before


def test_feeders_share_the_room():
    room = Room(4, 0)
    feed = Feed(room, feeders=2)
    assert feed.credits(Grant()) == 2
    assert room.held == 2
    assert feed.credits(Grant()) == 1  # half of what is left


def test_a_source_that_ends_gives_back_the_room_that_it_did_not_use():
    room = Room(1, 0)
    feed = Feed(room, feeders=2)
    feed.ended(feed.credits(Grant()), None)
    assert room.free == 1
    assert feed.credits(Grant()) == 1


def test_a_feed_ends_with_its_last_source_when_all_is_drawn():
    feed = Feed(Room(None, 4), feeders=2)
    feed.ended(0, None)
    assert feed.end is None
    feed.pending.append("a")
    feed.ended(0, None)
    assert feed.end is None
    assert feed.draw(9)[0] == ["a"]
    assert feed.end is not None


def test_an_error_of_the_source_comes_after_what_it_gave():
    feed, error = Feed(Room(None, 4), feeders=1), ValueError()
    feed.pending.append("a")
    feed.ended(0, error)
    assert feed.end is None
    assert feed.draw(9)[0] == ["a"]
    assert feed.end == Closed(error)


@pytest.mark.parametrize("alone", [True, False])
def test_the_room_of_what_was_pulled_is_given_back_once(alone: bool):
    room = Room(4, 0)
    feed = Feed(room, feeders=1)
    feed.alone = alone  # else the window that draws gives it back
    feed.pending.extend("abcd"[: feed.credits(Grant())])
    feed.release(feed.draw(2)[1])
    assert room.held == (2 if alone else 4)


# Bounds


def test_an_item_is_held_until_its_output_was_released():
    window = window_over(Slices("abcd"), maxsize=2)
    for span in (taken(window), taken(window)):
        assert len(span.items) == 1
        finish(window, span)
    assert window.take(0.0) is None
    _, credits = draw(window, 1)
    assert window.take(0.0) is None
    window.release(credits)
    assert window.room.held == 1
    assert held_by(taken(window)) == (2, ["c"])
    assert window.take(0.0) is None


# Lone items


def lone_window(items: str, **options: Any) -> Window:
    """A window that may have lone items, as nothing is ever lost that a worker has in hand."""
    return window_over(Slices(items), loses=False, **options)


def finish_lone(window: Window, index: int) -> None:
    """As a task does that waits beside others: without a span."""
    number, item = window.ledger.lone_items.popleft()
    assert number == index
    window.ledger.lone_slots[index] = item


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("maxsize", [3, 0])
def test_lone_items_are_held_until_they_go_out(maxsize: int, ordered: bool):
    window = lone_window("abcd", maxsize=maxsize, ordered=ordered)
    count = maxsize or 4
    window.draw_lone(9)
    assert list(window.ledger.lone_items) == [*enumerate("abcd")][:count]
    assert window.room.held == window.ledger.busy == window.backlog == count
    for index in range(count):
        assert window.end is None
        finish_lone(window, index)
        assert window.ledger.busy == count - index - 1
    assert drawn(window) == list("abcd")[:count]
    assert window.room.held == window.ledger.busy == window.ledger.lone == 0
    assert (window.end is None) == bool(maxsize)


def test_no_more_lone_items_are_drawn_than_are_asked_for():
    window = lone_window("abcd")
    window.draw_lone(2)
    assert list(window.ledger.lone_items) == [(0, "a"), (1, "b")]
    assert window.backlog == 4
    assert window.takable()
    window.draw_lone(0)
    window.draw_lone(1)
    assert list(window.ledger.lone_items) == [(0, "a"), (1, "b"), (2, "c")]


def test_lone_items_may_be_taken_though_nothing_else_is_there():
    window = lone_window("a")
    window.draw_lone(1)
    assert window.takable()


def test_lone_items_become_spans_of_those_who_ask_for_one_before_anything_new():
    window = lone_window("abcd")
    window.draw_lone(2)
    spans = [taken(window) for _ in range(4)]
    assert [held_by(span) for span in spans] == [(n, [item]) for n, item in enumerate("abcd")]
    assert (window.ledger.busy, window.ledger.lone) == (4, 0)
    for span in spans:
        finish(window, span)
    assert drawn(window) == list("abcd")
    assert window.end is not None


def test_lone_items_and_spans_go_out_in_one_order():
    window = lone_window("abcdef", maxsize=0)
    first = taken(window, 1)
    window.draw_lone(2)
    finish_lone(window, 1)
    third = taken(window)
    window.draw_lone(1)
    finish_lone(window, 3)
    window.draw_lone(2)
    finish_lone(window, 4)
    assert not window.available()
    finish(window, third)
    finish(window, first)
    assert drawn(window) == list("abcde")
    finish_lone(window, 5)
    assert drawn(window) == ["f"]
    assert window.end is not None


def test_a_slot_of_a_lone_item_waits_for_its_turn():
    window = lone_window("abc")
    window.draw_lone(3)
    first = taken(window)
    finish_lone(window, 1)
    assert not window.available()
    finish(window, first)
    assert drawn(window) == ["a", "b"]
    finish_lone(window, 2)
    assert drawn(window) == ["c"]


@pytest.mark.parametrize("kernel", [FILTER, FLAT_MAP])
def test_lone_items_that_give_nothing_hold_no_room(kernel: Kernel):
    window = lone_window("ab", kernel=kernel)
    window.draw_lone(2)
    for _ in range(2):
        index, _ = window.ledger.lone_items.popleft()
        window.ledger.lone_slots[index] = DROP
        window.outbox.harvest()
    assert window.room.held == 0


def test_a_lone_item_is_taken_to_last_as_long_as_a_span():
    window, other = lone_window("abc", maxsize=0), lone_window("abc", maxsize=0)
    window.sizing.span_seconds = other.sizing.span_seconds = 2.0
    window.sizing.cost = other.sizing.cost = 8.0
    window.draw_lone(3)
    for span in [taken(other, 1) for _ in range(3)]:
        span.slots.extend(span.claim() or ())
        other.done(span, 2.0)
    assert window.sizing.cost == other.sizing.cost == 2.75


def test_the_first_lone_items_are_taken_to_last_as_long_as_a_span():
    window = lone_window("abc")
    window.draw_lone(3)
    assert window.sizing.cost == window.sizing.span_seconds


@pytest.mark.parametrize("given_back", [False, True])
def test_no_lone_items_are_drawn_while_something_comes_before_them(given_back: bool):
    window = lone_window("abcdef", maxsize=0)
    window.sizing.cost, window.sizing.last_size = 0.0, 6
    first = taken(window, 3)
    begin(first, 0)
    if given_back:
        window.ledger.steal_from(first)
    window.draw_lone(1)
    assert not window.ledger.lone_items
    window.ledger.steal_from(first)
    for index in (1, 2):
        span = taken(window, 1)
        assert span.start == index
    window.draw_lone(9)
    assert [index for index, _ in window.ledger.lone_items] == [3, 4, 5]


@pytest.mark.parametrize("ordered", [True, False])
def test_no_lone_item_is_started_after_a_failure_or_a_stop(ordered: bool):
    for end in (lambda window: window.fail(Failure(0, "a", ValueError())), Window.stop):
        window = lone_window("abcd", ordered=ordered)
        window.draw_lone(2)
        window.ledger.lone_items.popleft()
        end(window)
        assert not window.ledger.lone_items
        assert window.exhausted
        window.draw_lone(2)
        assert not window.ledger.lone_items


def test_what_is_before_a_lone_item_that_failed_goes_out_first():
    window = lone_window("abcd")
    window.draw_lone(4)
    slow, bad, late = (window.ledger.lone_items.popleft()[0] for _ in range(3))
    error = ValueError()
    window.fail(Failure(bad, "b", error))
    window.ledger.lone_slots[late] = "c"
    assert window.end is None
    window.ledger.lone_slots[slow] = "a"
    assert drawn(window) == ["a"]
    assert window.end == Closed(error)


def test_an_unordered_stage_that_failed_gives_no_lone_slot_of_later():
    window = lone_window("abc", ordered=False)
    window.draw_lone(3)
    for _ in range(2):
        window.ledger.lone_items.popleft()
    window.ledger.lone_slots[1] = "b"
    window.fail(Failure(0, "a", ValueError()))
    assert window.draw(9)[0] == ["b"]
    window.ledger.lone_slots[2] = "c"
    assert not window.available()


def test_there_are_no_lone_items_where_some_may_be_lost():
    window = window_over(Slices("abc"), loses=True)
    window.draw_lone(2)
    assert not window.ledger.lone_items


def test_more_may_come_while_there_are_lone_items():
    window = lone_window("ab")
    window.draw_lone(2)
    assert not window.exhausted
    window.ledger.lone_items.popleft()
    assert not window.exhausted
    window.ledger.lone_items.popleft()
    assert window.exhausted
    assert window.end is None


# What is held


def test_a_span_counts_as_many_items_as_it_has():
    window = window_of("abcd")
    taken(window, 3)
    assert window.room.held == 3
    taken(window)
    assert window.room.held == 4


def test_a_stage_gives_the_one_upstream_its_room_back():
    above = window_of("abc")
    below = window_over(above, workers=3)
    work_off(above)
    assert above.room.held == 3
    taken(below)
    assert (above.room.held, below.room.held) == (2, 1)


def test_what_a_feeder_pulled_is_held_by_the_stage_that_draws_it():
    room = Room(4, 0)
    feed = Feed(room, feeders=1)
    window = window_over(feed, room=room)
    feed.pending.extend("abcd"[: feed.credits(Grant())])
    work_off(window)
    assert room.held == 4
    assert drawn(window) == ["a", "b", "c", "d"]
    assert room.held == 0


def test_the_room_of_each_output_is_given_back_once():
    window = window_of("abcd")
    finish(window, taken(window))
    credits = [draw(window, most)[1] for most in (1, 2, 9)]
    assert credits == [1, 2, 1]


def test_the_room_of_an_item_is_given_back_with_the_last_of_its_outputs():
    window = window_of("ab", kernel=FLAT_MAP)
    span = taken(window)
    span.slots += [[1, 2, 3], [4, 5, 6]]
    window.done(span)
    parts = [window.draw(2) for _ in range(3)]
    assert [output for part, _ in parts for output in part] == [1, 2, 3, 4, 5, 6]
    held = 2
    for (_, credits), left in zip(parts, (4, 2, 0), strict=True):
        held -= credits
        assert held >= (left > 0)
    assert held == 0


def test_the_room_of_an_item_is_given_back_though_those_after_it_wait():
    window = window_of("ab", kernel=FLAT_MAP)
    for outputs in ([1, 2, 3], [4]):
        span = taken(window, 1)
        span.slots.append(outputs)
        window.done(span)
        window.outbox.harvest()
    assert window.draw(3) == ([1, 2, 3], 1)


def test_items_without_outputs_are_not_held():
    window = window_of("ab", kernel=FILTER)
    span = taken(window)
    span.slots += [DROP, DROP]
    window.done(span)
    assert not window.available()
    assert window.room.held == 0


# Order


def test_outputs_leave_an_unfinished_span_once():
    window = window_of("abcd")
    span = taken(window)
    begin(span, 2)
    assert drawn(window) == ["a", "b"]
    assert drawn(window) == []
    span.slots.append("c")
    finish(window, span)
    assert drawn(window) == ["c", "d"]
    assert window.end is not None


def test_a_span_that_is_finished_early_waits_for_its_turn():
    window = window_of("abc")
    first, second = taken(window, 1), taken(window)
    finish(window, second)
    assert drawn(window) == []
    finish(window, first)
    assert drawn(window) == ["a", "b", "c"]


def test_an_item_that_is_tried_again_keeps_its_place():
    window = window_of("abc")
    first, second = taken(window, 1), taken(window, 1)
    first.claim()
    lose(window, first)
    third = taken(window, 1)
    assert held_by(third) == (0, ["a"])
    finish(window, second)
    assert drawn(window) == []
    finish(window, third)
    work_off(window)
    assert drawn(window) == ["a", "b", "c"]


def test_spans_without_outputs_do_not_hold_up_those_after_them():
    window = window_of("abc", kernel=FILTER)
    spans = [taken(window, 1) for _ in range(3)]
    for span, slot in reversed(list(zip(spans, (DROP, DROP, "c"), strict=True))):
        span.slots.append(slot)
        window.done(span)
    assert window.available()
    assert drawn(window) == ["c"]


def test_a_span_of_which_all_is_there_is_over_before_its_worker_says_so():
    window = window_of("abcd")
    first, second, third = taken(window, 1), taken(window, 2), taken(window)
    first.slots.extend(first.claim() or ())
    second.slots.extend(second.claim() or ())
    assert drawn(window) == ["a", "b", "c"]
    window.done(second)
    window.done(first)
    assert drawn(window) == []
    finish(window, third)
    assert drawn(window) == ["d"]
    assert window.end is not None


@pytest.mark.parametrize("kernel", [MAP, FILTER])
@pytest.mark.parametrize("ordered", [True, False])
def test_outputs_of_short_spans_are_drawn_as_one_list(kernel: Kernel, ordered: bool):
    window = window_of("abcdef", kernel=kernel, ordered=ordered)
    spans = [taken(window, 1) for _ in range(6)]
    for span in spans[:4]:
        finish(window, span)
    assert draw(window, 3) == (["a", "b", "c"], 3)
    for span in spans[4:]:
        finish(window, span)
    assert drawn(window) == ["d", "e", "f"]
    assert [span.slots for span in spans] == [[item] for item in "abcdef"]
    assert window.room.held == 3


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_next_to_go_out_is_told_from_what_waits_for_its_turn(ordered: bool):
    window = window_of("abc", ordered=ordered)
    first, second, third = (taken(window, 1) for _ in range(3))
    assert [window.outbox.next_out(span.start) for span in (first, second)] == [True, not ordered]
    finish(window, first)
    assert window.available()
    assert not window.outbox.next_out(second.start)
    assert drawn(window) == ["a"]
    assert [window.outbox.next_out(span.start) for span in (second, third)] == [True, not ordered]


# What is given back


def test_what_waits_behind_a_slow_item_is_taken_back_after_a_moment():
    window = window_of("abcd")
    span = taken(window)
    begin(span)
    window.steal_overdue(0.5, 1.0)
    assert window.take(0.0) is None
    window.steal_overdue(1.0, 1.0)
    assert held_by(taken(window)) == (2, ["c", "d"])


@pytest.mark.parametrize("ordered", [True, False])
def test_a_span_of_which_nothing_is_left_leaves_its_place_to_what_was_taken_back(ordered: bool):
    window = window_of("ab", ordered=ordered)
    empty = taken(window)
    window.ledger.steal_from(empty)
    rest = taken(window)
    window.done(empty)
    finish(window, rest)
    assert drawn(window) == ["a", "b"]
    assert window.end is not None


def test_a_worker_from_which_all_was_taken_back_has_spent_no_time_on_it():
    told = []

    class Times(Observer):
        def done(self, stage: Any, start: int, count: int, seconds: float | None, worker: int | None) -> None:
            told.append((start, count, seconds))

    window = window_of("ab")
    window.observer, window.info = Times(), StageInfo(1, 0, "f", "thread", 1)
    late = taken(window)
    window.ledger.steal_from(late)
    assert late.claim() is None
    window.done(late, 0.5)
    finish(window, taken(window))
    assert told == [(0, 0, None), (0, 2, 0.0)]


def test_a_span_that_came_back_may_be_given_out_in_parts():
    window = window_of("abcd")
    window.requeue_tail(taken(window), 3)
    spans = [taken(window, 1) for _ in range(3)]
    assert [held_by(span) for span in spans] == [(1, ["b"]), (2, ["c"]), (3, ["d"])]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_worker_gives_back_its_last_items(count: int):
    window = window_of("abcd")
    span = taken(window)
    span.sent = True  # it is in another process
    window.requeue_tail(span, count)
    if count < 4:
        span.slots.extend(span.items)
        window.done(span, 0.0)
    work_off(window)
    assert drawn(window) == ["a", "b", "c", "d"]
    assert window.end is not None


def test_suspects_are_run_one_by_one():
    window = window_of("abcd")
    span = taken(window)
    span.slots.append("a")
    window.requeue_apart(span)
    spans = [taken(window) for _ in range(3)]
    assert [held_by(span) for span in spans] == [(1, ["b"]), (2, ["c"]), (3, ["d"])]
    assert window.take(0.0) is None


def test_a_suspect_keeps_its_tries_before():
    window = window_of("ab")
    span = taken(window)
    span.tries = 2
    window.requeue_apart(span)
    assert [taken(window).tries for _ in range(2)] == [2, 0]


def test_the_item_that_lost_its_worker_is_tried_as_often_as_it_may():
    window = window_of("ab")
    span = taken(window)
    begin(span)
    for _ in range(2):
        assert lose(window, span, retries=2) is None
        span = taken(window)
        assert held_by(span) == (1, ["b"])
        span.claim()
    victim = lose(window, span, retries=2)
    assert victim is not None
    assert (victim.tries, held_by(victim)) == (3, (1, ["b"]))
    assert window.take(0.0) is None
    victim.slots.append("instead")
    window.done(victim)
    assert drawn(window) == ["a", "instead"]
    assert window.end is not None


def test_what_a_lost_worker_had_is_run_again_once():
    """It was at the third of four items, and the slots of the second were lost with it."""
    window = window_of("abcd", ordered=False)
    span = taken(window)
    span.sent = True
    span.slots.append("a")
    lose(window, span, at=2)
    again = []
    while window.takable():
        again.append(taken(window, 1))
    assert sorted(map(held_by, again)) == [(1, ["b"]), (2, ["c"]), (3, ["d"])]
    assert {span.start: span.tries for span in again} == {1: 0, 2: 1, 3: 0}
    for span in again:
        finish(window, span)
    assert sorted(drawn(window)) == ["a", "b", "c", "d"]


def test_what_a_thread_that_was_abandoned_has_not_started_is_run_once():
    window = window_of("abcd")
    span = taken(window)
    begin(span)
    lose(window, span)
    work_off(window)
    assert drawn(window) == ["a", "b", "c", "d"]
    assert window.end is not None


# Ends


def test_workers_stay_while_a_span_may_come_back():
    window = window_of("ab")
    work = Work(window, lambda: 0.0)
    span = taken(window)
    assert not work.ready()
    begin(span)
    window.ledger.steal_from(span)  # there is none, but the one that it has may be lost
    assert not work.ready()
    lose(window, span)
    assert work.ready()
    assert not window.exhausted
    finish(window, work.take())
    assert work.ready()
    assert work.take() == Closed()
    assert drawn(window) == ["a", "b"]
    assert window.end is not None


def test_workers_stay_at_a_failure_while_an_earlier_span_may_come_back():
    window = window_of("abc")
    first, second, third = (taken(window, 1) for _ in range(3))
    finish(window, third)
    window.fail(Failure(1, "b", ValueError()))
    window.done(second)
    assert not window.exhausted
    first.claim()
    lose(window, first)
    assert not window.exhausted
    assert held_by(taken(window)) == (0, ["a"])


def test_what_is_to_be_run_again_before_a_failure_is():
    window = window_of("abcd")
    first, second, third = (taken(window, 1) for _ in range(3))
    for span in (first, third):
        span.claim()
        lose(window, span)
    error = ValueError()
    window.fail(Failure(1, "b", error))
    window.done(second)
    assert held_by(taken(window)) == (0, ["a"])
    assert window.take(0.0) is None


def test_a_failure_stops_what_comes_after_it_and_nothing_before():
    window = window_of("abcdef")
    first, second, third = taken(window, 2), taken(window, 2), taken(window)
    for span in (first, second, third):
        begin(span, 0)
    window.fail(Failure(2, "c", ValueError()))
    assert [list(window.claim(span, 0.0) or ()) for span in (first, third)] == [["a", "b"], []]


def test_nothing_is_started_once_a_stage_is_stopped():
    window = window_of("abcd")
    first, second = taken(window, 2), taken(window, 1)
    claimed = window.claim(first, 0.0)
    window.claim(second, 0.0)
    lose(window, second)
    window.stop()
    assert list(claimed or ()) == []
    assert window.claim(first, 0.0) is None
    assert window.take(0.0) is None
    assert window.exhausted


@pytest.mark.parametrize(
    ("loses", "size", "expected"), [(False, 1, True), (False, 2, False), (True, 1, False), (True, 2, False)]
)
def test_workers_stay_as_long_as_there_may_be_more_for_them(loses: bool, size: int, expected: bool):
    window = window_of("ab", loses=loses)
    spans = [taken(window, size) for _ in range(2 // size)]
    for span in spans:
        span.claim()
    assert window.exhausted == expected
    assert window.end is None
    for span in spans:
        window.ledger.steal_from(span)
    assert window.exhausted == (expected and size == 1)
    for span in spans:
        span.slots.append("a")
        window.done(span)
    assert window.exhausted == (size == 1)


def test_the_end_comes_after_the_last_outputs():
    window = window_of("ab")
    work_off(window)
    assert window.available()
    assert window.end is None
    assert drawn(window) == ["a", "b"]
    assert window.end is not None


def test_a_stage_has_not_ended_while_its_last_items_are_at_work():
    window = window_of("ab")
    first, second = taken(window, 1), taken(window)
    finish(window, second)
    assert window.end is None
    finish(window, first)
    assert drawn(window) == ["a", "b"]
    assert window.end is not None


def test_a_failure_comes_after_the_outputs_of_the_items_before():
    window = window_of("ab")
    first, second = taken(window, 1), taken(window)
    error = ValueError()
    window.fail(Failure(1, "b", error))
    window.done(second)
    assert window.end is None
    finish(window, first)
    assert window.end is None
    assert drawn(window) == ["a"]
    assert window.end == Closed(error)


# The buffers before them


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


def outlet_over(window: Window, time: Time) -> Outlet:
    outlet = Outlet(window, window.room, time)
    outlet.release_taken()
    return outlet


def test_the_consumer_s_room_is_given_back_when_it_comes_for_more():
    window = window_over(Slices("abcdef"), maxsize=4)
    outlet = outlet_over(window, Time())
    assert not outlet.ready()
    work_off(window)
    for outputs in (["a", "b"], ["c", "d"]):
        assert outlet.ready()
        assert outlet.take() == outputs
        assert window.room.held == 4
        outlet.release_taken()
        outlet.release_taken()
        assert window.room.held == 2
        work_off(window)
    assert outlet.take() == ["e", "f"]
    outlet.release_taken()
    assert window.room.held == 0
    assert outlet.ready()
    assert outlet.take() == Closed()


@pytest.mark.parametrize(("away", "grown"), [(0.0, True), (0.0004, True), (0.0006, False), (1.0, False)])
def test_a_window_grows_for_a_consumer_that_came_at_once_and_finds_workers_without_room(
    away: float, grown: bool
):
    """It was woken when the first output was there, and had to wait for its turn until there was no more room."""
    window, time = window_over(Slices("abcdefghijkl")), Time()
    outlet = outlet_over(window, time)
    for limit in (4, 8 if grown else 4):
        work_off(window)
        assert window.room.held == window.room.limit == 4
        assert outlet.ready()
        outlet.take()
        assert window.room.limit == limit  # not the first time: nobody knows yet how long it is away
        time.now += away
        outlet.release_taken()


@pytest.mark.parametrize(("away", "waited", "grown"), [(0.0, 0.0, True), (1.0, 1.0, False), (1.0, 9.0, True)])
def test_a_window_grows_for_a_consumer_that_waits_longer_than_it_is_away(
    away: float, waited: float, grown: bool
):
    time, window = Time(), window_over(Slices(range(99)), workers=2)
    outlet = outlet_over(window, time)
    work_off(window)
    outlet.take()
    time.now += away
    outlet.release_taken()
    outlet.take()
    outlet.release_taken()
    while window.takable():
        taken(window)
    window.ledger.open = 0  # idle for want of room
    outlet.left, outlet.came = time.now - away, time.now
    time.now += waited
    assert outlet.report_starvation(False) == grown
    assert (window.room.limit > 4) == grown


def test_a_stage_upstream_grows_only_if_that_is_wanted_downstream():
    above = window_over(Slices(range(99)), workers=1)
    below = window_over(above, workers=2)
    while above.takable():
        taken(above)
    above.ledger.open = 0  # idle for want of room
    work = Work(below, Time())
    assert not work.report_starvation(False)
    assert above.room.limit == 2
    assert work.report_starvation(True)
    assert above.room.limit == 4


def test_a_window_that_nothing_goes_through_grows_once():
    window = window_over(Slices(range(99)), workers=2)
    spans = []

    def starve() -> None:
        while window.takable():
            spans.append(taken(window))
        window.ledger.open = 0  # idle for want of room

    starve()
    assert window.grow()
    starve()
    assert not window.grow()
    for span in spans[:2]:
        finish(window, span)
    drawn(window)
    starve()
    assert window.grow()
    assert window.room.limit == 16


def test_small_spans_let_the_window_upstream_grow_as_far_as_their_own():
    above = window_over(Slices(range(99)), workers=1)
    below = window_over(above, workers=2)
    work_off(above)
    below.sizing.cost, below.sizing.last_size = 0.0, 99
    finish(below, taken(below))
    below.grow()
    assert above.room.limit == 4 == below.room.limit


def test_takers_that_wait_long_ask_for_what_is_finished_and_for_what_has_not_started():
    time = Time()
    above = window_of("abcd")
    below = window_over(above)
    span = above.take(time())
    assert span is not None
    begin(span)
    work, outlet, beside = Work(below, time), outlet_over(above, time), Work(above, time)
    for buffer in (work, outlet, beside):
        assert buffer.can_flush()
    beside.request_flush()
    assert not above.ledger.requeued
    work.request_flush()
    assert held_by(taken(above)) == (2, ["c", "d"])
    assert not work.can_flush()
    assert not Work(window_of("ab"), time).can_flush()


def test_workers_that_wait_long_have_what_waits_behind_a_slow_item():
    time = Time()
    window = window_of("abcd")
    work = Work(window, time)
    begin(work.take())  # type: ignore[arg-type]
    time.now += window.flush_delay
    work.request_flush()
    assert held_by(taken(window)) == (2, ["c", "d"])


def test_a_span_that_keeps_the_taker_waiting_ends_with_the_item_at_work():
    window = window_of("abcdef")
    first, second = taken(window, 3), taken(window, 3)
    begin(first, 1)
    begin(second, 1)
    assert drawn(window) == ["a"]
    assert window.has_partial
    window.request_flush()
    assert not window.has_partial  # what is finished of the second one cannot go out before
    first.slots.append("b")
    window.done(first, 0.0)
    assert drawn(window) == ["b"]
    finish(window, taken(window))
    assert drawn(window) == ["c", "d"]
    assert window.has_partial


def test_any_span_may_keep_the_taker_waiting_where_order_is_not_asked_for():
    window = window_of("abcdef", ordered=False)
    for _ in range(2):
        begin(taken(window, 3), 0)
    window.request_flush()
    assert not window.has_partial
    assert sorted(held_by(taken(window)) for _ in range(2)) == [(1, ["b", "c"]), (4, ["e", "f"])]


def test_who_minds_remote_workers_is_told_that_the_taker_waits():
    window = window_of("abc", remote=True)
    taken(window)
    window.request_flush()
    assert window.flush_requested
    assert not window.has_partial
    assert not window.ledger.requeued


@pytest.mark.parametrize(
    "source", [range(5), "abcde", b"abcde", array("i", range(5)), tuple("abcde"), list("abcde")]
)
def test_the_items_of_a_span_are_a_slice_of_the_sequence_itself(source: Any):
    window = window_over(Slices(source), workers=1, maxsize=0)
    window.sizing.cost, window.sizing.last_size = 0.0, 5
    span = taken(window, 3)
    assert span.items == source[:3]
    span.claim()
    rest = span.steal()
    assert rest is not None
    assert list(rest.items) == list(source[1:3])
    assert span.items == source[:1]
    assert list(taken(window).claim() or ()) == list(source[3:])


def test_who_has_enough_to_do_takes_over_what_has_waited_too_long_first():
    time = Time()
    window = window_of("abcdefgh")
    work = Work(window, time)
    begin(window.take(time(), 3), 0)
    window.sizing.last_size = 1
    time.now += OVERDUE / 2
    assert held_by(work.take()) == (3, ["d", "e"])
    time.now += OVERDUE / 2
    assert held_by(work.take()) == (1, ["b", "c"])


def test_a_feeder_that_waits_for_room_is_told_of_the_end():
    room = Room(1, 0)
    feed = Feed(room, feeders=1)
    credits = Credits(feed, lambda: 0.0)
    assert credits.ready()
    assert credits.take() == 1
    assert not credits.ready()
    feed.stopped = True
    assert credits.ready()
    assert credits.take() == Closed()


def test_workers_are_told_of_the_end():
    window = window_of("")
    assert Work(window, Time()).ready()
    assert Work(window, Time()).take() == Closed()


@pytest.mark.parametrize("count", [1, 2 * SHORT])
def test_a_span_that_is_not_closed_keeps_its_slots_whatever_becomes_of_its_outputs(count: int):
    window = window_of("a" * count)
    span = taken(window)
    span.slots.extend(span.claim() or ())
    draw(window, count)[0].clear()
    assert len(span.slots) == count


@pytest.mark.parametrize("count", [1, 2 * SHORT])
def test_what_becomes_of_outputs_downstream_does_not_touch_the_span_they_came_from(count: int):
    first = window_of("a" * count)
    second = window_over(first, maxsize=0)
    second.sizing.cost, second.sizing.last_size = 0.0, count
    span = taken(first)
    span.slots.extend(span.claim() or ())  # all is there, but its worker has not said so yet
    lost = taken(second)
    assert len(lost.items) == count
    assert lose(second, lost) is None
    assert lose(first, span) is None
    assert first.take(0.0) is None
    assert first.end is not None
    work_off(second)
    assert drawn(second) == ["a"] * count
    assert second.end is not None
