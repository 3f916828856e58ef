"""What decides, driven step by step, without a thread: `Window`, `Feed` and `Slices`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fstream._kernels import MAP
from fstream._spans import Closed, Failure, Feed, Room, Slices, Span, Upstream, Window


def window_over(upstream: Upstream, *, workers: int = 2, ordered: bool = True) -> Window:
    outputs: Callable[[list[Any]], list[Any]] = lambda slots: MAP.outputs(slots, skips=False)  # noqa: E731
    room = Room(None, 2 * workers)
    return Window(upstream, room, workers=workers, ordered=ordered, outputs=outputs, shares=workers)


def taken(window: Window) -> Span:
    span = window.take(0.0)
    assert span is not None
    return span


def finish(window: Window, span: Span) -> None:
    span.slots.extend(span.todo)
    window.done(span, 0.0)


def test_what_is_finished_after_an_unordered_stage_failed_does_not_open_its_end_again():
    window = window_over(Slices("abc"), ordered=False)
    finish(window, taken(window))
    slow, bad = taken(window), taken(window)
    error = ValueError()
    window.fail(Failure(bad.start, "c", error))
    assert window.draw(9).outputs == ["a"]
    assert window.end == Closed(error)
    finish(window, slow)
    assert not window.available()
    assert window.end == Closed(error)


def test_what_is_finished_before_an_unordered_stage_fails_goes_out_first():
    window = window_over(Slices("abc"), ordered=False)
    span = taken(window)
    span.slots.append("a")
    window.fail(Failure(1, "b", ValueError()))
    assert window.end is None
    assert window.draw(9).outputs == ["a"]
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
    assert slices.draw(9).outputs == [1, 2]
    assert slices.end is not None
    source.append(3)
    assert slices.end is not None
    assert not slices.available()
