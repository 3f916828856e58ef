"""Who runs an item: its worker claims it, or somebody takes it from that span, also in the middle of a stride."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fstream import pmap
from fstream._flow.room import Room
from fstream._flow.sizing import MAX_SPAN, STRIDE, Numbers
from fstream._flow.sources import Slices
from fstream._flow.span import Failure, Span
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from tests.gates import PATIENCE, Gate, Log, opened_when


def window_of(count: int, **options: Any) -> Window:
    """A window whose next span has all of *count* items."""
    window = Window(
        Slices(range(count)), Room(0, 1), workers=1, ordered=True, one_each=True, numbers=Numbers(shares=lambda _: 1),
        outputs=lambda slots: MAP.outputs(slots, skips=False), **options,
    )  # fmt: skip
    window.sizing.cost, window.sizing.last_size = 0.0, count
    return window


def taken(window: Window, most: int = MAX_SPAN) -> Span:
    span = window.take(0.0, most)
    assert span is not None
    return span


class Steps:
    """A worker that takes the steps of one: `start` an item, `finish` it, which notes that it was run."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self.todo: Iterator[Any] | None = None
        self.ran: list[Any] = []
        self.at_work: list[Any] = []

    def start(self) -> bool:
        if self.todo is None:
            if len(self.span.slots) >= len(self.span.items):
                return False
            self.todo = self.span.claim()
        for item in self.todo or ():
            self.at_work.append(item)
            return True
        self.todo = None
        return self.start()

    def finish(self) -> None:
        item = self.at_work.pop()
        self.ran.append(item)
        self.span.slots.append(item)

    def run(self) -> None:
        while self.at_work or self.start():
            self.finish()


def before(worker: Steps, steps: int) -> None:
    """Take so many steps, of two an item."""
    for n in range(steps):
        worker.finish() if n % 2 else worker.start()


@pytest.mark.parametrize("second", range(5))
@pytest.mark.parametrize("first", range(9))
def test_each_item_is_run_once_whenever_others_take_what_was_not_started(first: int, second: int):
    owner = Steps(Span(7, range(4)))
    before(owner, first)
    spans = [owner.span.steal()]
    if second and owner.at_work:
        owner.finish()
    before(owner, second % 2)
    spans.append(owner.span.steal())
    thieves = [Steps(span) for span in spans if span is not None]
    for worker in (owner, *thieves):
        worker.run()
    assert sorted(item for worker in (owner, *thieves) for item in worker.ran) == [0, 1, 2, 3]
    for worker in (owner, *thieves):
        assert [worker.span.start + n for n in range(len(worker.span.items))] == [n + 7 for n in worker.ran]
        assert worker.span.slots == list(worker.span.items)


@pytest.mark.parametrize("done", range(4))
def test_all_behind_the_item_at_work_is_taken(done: int):
    owner = Steps(Span(0, range(4)))
    before(owner, 2 * done + 1)
    rest = owner.span.steal()
    assert list(rest.items if rest else ()) == [0, 1, 2, 3][done + 1 :]
    assert owner.at_work == [done]
    owner.finish()
    assert not owner.start()


def test_what_was_not_claimed_is_taken_whole_and_keeps_its_tries():
    """Its worker is at ``on_start``, say."""
    span = Span(3, range(4), tries=2)
    rest = span.steal()
    assert rest is not None
    assert (rest.start, list(rest.items), rest.tries) == (3, [0, 1, 2, 3], 2)
    assert not len(span.items)
    assert span.claim() is None


def test_tries_stay_with_the_item_that_had_them():
    owner = Steps(Span(3, range(4), tries=2))
    owner.start()
    rest = owner.span.steal()
    assert rest is not None
    assert (owner.span.tries, rest.tries) == (2, 0)


def test_a_long_span_is_claimed_stride_by_stride():
    owner = Steps(Span(0, range(2 * STRIDE + 1)))
    lengths = []
    while owner.start():
        lengths.append(len(owner.span.stride or ()))
        owner.finish()
    assert Counter(lengths) == {STRIDE: 2 * STRIDE, 1: 1}
    assert owner.ran == list(range(2 * STRIDE + 1))


def test_what_is_behind_the_stride_is_taken_too():
    owner = Steps(Span(0, range(3 * STRIDE)))
    before(owner, 5)
    rest = owner.span.steal()
    assert rest is not None
    assert list(rest.items) == list(range(3, 3 * STRIDE))


def test_nobody_here_takes_anything_of_a_span_that_was_sent_away():
    span = Span(0, range(4))
    span.sent = True
    assert span.steal() is None
    assert list(span.items) == [0, 1, 2, 3]


def test_a_worker_claims_nothing_of_a_stage_that_was_stopped():
    window = window_of(4)
    span = taken(window)
    todo = window.claim(span, 0.0)
    assert todo is not None
    assert next(todo) == 0
    window.stop()
    assert list(todo) == []
    assert window.claim(span, 0.0) is None


@pytest.mark.parametrize(("index", "expected"), [(1, []), (9, [1, 2, 3])])
def test_a_worker_goes_on_only_with_what_is_before_a_failure(index: int, expected: list[int]):
    window = window_of(4)
    taken(window, 1)
    window.sizing.last_size = 3
    todo = window.claim(taken(window), 0.0)
    window.fail(Failure(index, None, ValueError()))
    assert list(todo or ()) == expected


@contextmanager
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Claimers:
    """Threads that share some spans: each runs one, or takes the rest of another's if there is none left."""

    def __init__(self, count: int) -> None:
        self.lock = threading.Lock()
        self.pending = [Span(0, range(count))]
        self.spans: list[Span] = []
        self.ran: list[int] = []

    def next_span(self) -> Span | None:
        while True:
            with self.lock:
                if self.pending:
                    self.spans.append(self.pending.pop())
                    return self.spans[-1]
                unfinished = [span for span in self.spans if len(span.slots) < len(span.items)]
                self.pending += filter(None, (span.steal() for span in unfinished))
                if not unfinished:
                    return None

    def main(self) -> None:
        while (span := self.next_span()) is not None:
            while len(span.slots) < len(span.items):
                with self.lock:
                    todo = span.claim()
                for item in todo or ():
                    self.ran.append(item)
                    span.slots.append(item)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_that_take_from_each_other_run_each_item_once(threads: int):
    count = 2000
    with switching_often():
        for _ in range(10):
            claimers = Claimers(count)
            members = [threading.Thread(target=claimers.main, daemon=True) for _ in range(threads)]
            for member in members:
                member.start()
            for member in members:
                member.join(PATIENCE)
            assert sorted(claimers.ran) == list(range(count))
            assert sorted(slot for span in claimers.spans for slot in span.slots) == list(range(count))
            assert all(span.slots == list(span.items) for span in claimers.spans)


@pytest.mark.parametrize("is_slow_at", [0, 5])
def test_what_is_behind_a_slow_item_in_a_stride_is_run_by_others(
    concurrent_kind: str, is_slow_at: int, gate: Gate, log: Log
):
    def f(x: int) -> int:
        log.write(x)
        if x == is_slow_at + 100:
            gate.wait()
        return x

    async def slow(x: int) -> int:
        log.write(x)
        if x == is_slow_at + 100:
            await gate.passed()
        return x

    every = range(200)
    with opened_when(gate, lambda: log.take(200)):
        outputs = list(pmap(slow if concurrent_kind == "task" else f, every, kind=concurrent_kind, workers=2))
    assert outputs == list(every)
    assert sorted(log.entries()) == list(every)
