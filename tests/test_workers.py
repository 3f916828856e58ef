"""How many items are worked on at once, and where."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from fstream import peach, pmap
from fstream._flow.span import CLOSED, Span
from fstream._plan.kernels import DROP, FILTER, MAP, Kernel
from fstream._plan.stages import MISSING, Stage
from fstream._workers.opening import open_run
from fstream._workers.task.workers import SIDE_BY_SIDE
from tests.functions import suited
from tests.gates import Gate, Log, check_sequence_matches, holding, opened_when


def place(_: object) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def held_at_once(entries: list[tuple[str, int]]) -> list[int]:
    """How many items were in work after each step."""
    in_work, steps = 0, []
    for step, _ in entries:
        in_work += {"start": 1, "end": -1}[step]
        steps.append(in_work)
    return steps


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_is_how_many_items_are_worked_on_at_once(
    concurrent_kind: str, is_ordered: bool, workers: int, gate: Gate, log: Log
):
    items = range(workers * 4)
    f = holding(concurrent_kind, dict.fromkeys(items, gate), log)
    with opened_when(gate, lambda: log.take(workers)):
        outputs = list(pmap(f, items, kind=concurrent_kind, workers=workers, ordered=is_ordered))
    assert sorted(outputs) == list(items)
    assert max(held_at_once(log.entries())) == workers


def test_the_first_items_start_together(concurrent_kind: str, gate: Gate, log: Log):
    f = holding(concurrent_kind, {0: gate, 1: gate}, log)
    with opened_when(gate, lambda: log.take(2)):
        list(peach(f, range(3), kind=concurrent_kind, workers=2))
    check_sequence_matches(log.entries()[:2], [{("start", 0), ("start", 1)}])


def test_as_many_work_at_once_after_a_pause_of_the_source(
    concurrent_kind: str, make_gate: Callable[[], Gate], log: Log
):
    first, pause, second = (make_gate() for _ in range(3))

    def source() -> Iterator[int]:
        yield from range(3)
        pause.wait()
        yield from range(3, 6)

    def watch() -> None:
        try:
            log.take(3)
            first.open()
            log.take(6)
        finally:
            first.open()
            pause.open()
        log.take(9)

    f = holding(concurrent_kind, {item: first if item < 3 else second for item in range(6)}, log)
    with opened_when(second, watch):
        assert list(pmap(f, source(), kind=concurrent_kind, workers=3)) == list(range(6))


@pytest.mark.parametrize("early", [1, 2, 4, 9])
def test_an_item_that_comes_late_is_started_beside_those_in_work(
    concurrent_kind: str, early: int, make_gate: Callable[[], Gate], log: Log
):
    pause, end = make_gate(), make_gate()

    def source() -> Iterator[int]:
        yield from range(early)
        pause.wait()
        yield early

    def watch() -> None:
        try:
            log.take(early)
        finally:
            pause.open()
        log.take(early + 1)

    f = holding(concurrent_kind, dict.fromkeys(range(early + 1), end), log)
    with opened_when(end, watch):
        outputs = list(pmap(f, source(), kind=concurrent_kind, workers=early + 2))
    assert outputs == list(range(early + 1))
    assert held_at_once(log.entries())[early] == early + 1


def test_a_hundred_tasks_by_default(gate: Gate, log: Log):
    f = holding("task", dict.fromkeys(range(250), gate), log)
    with opened_when(gate, lambda: log.take(100)):
        list(pmap(f, range(250)))
    assert max(held_at_once(log.entries())) == 100


def test_sync_works_where_the_consumer_is():
    assert list(pmap(place, range(3), kind="sync", workers=4)) == [place(None)] * 3


def test_threads_work_beside_the_consumer():
    places = set(pmap(place, range(100), kind="thread", workers=2))
    assert {pid for pid, _ in places} == {os.getpid()}
    assert threading.get_ident() not in {thread for _, thread in places}
    assert len(places) <= 2


def test_processes_work_outside_this_one():
    pids = {pid for pid, _ in pmap(place, range(100), kind="process", workers=2)}
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_tasks_of_a_stage_share_one_loop():
    async def task_and_loop(_: int) -> tuple[int, int]:
        return id(asyncio.get_running_loop()), threading.get_ident()

    assert len(set(pmap(task_and_loop, range(100), kind="task", workers=10))) == 1


def test_work_goes_on_while_the_consumer_is_busy(concurrent_kind: str, log: Log):
    stream = pmap(suited(log.write, concurrent_kind), count(), kind=concurrent_kind, workers=2, maxsize=10)
    next(stream)
    log.take(10)
    stream.close()


@contextmanager
def crew_of(kind: str, workers: int, kernel: Kernel = MAP, **options: Any) -> Iterator[Any]:
    """The workers of a stage over `range(999)`, none of which is started."""
    loop = asyncio.new_event_loop()
    try:
        yield open_run([range(999)], [Stage(kernel, abs, kind, workers, name="abs", **options)], loop).crews[
            0
        ]
    finally:
        loop.close()


# Lone items, for tasks that wait side by side


@contextmanager
def three_tasks(**options: Any) -> Iterator[Any]:
    """A stage of three tasks that have started, as far as it knows, and are all at work."""
    with crew_of("task", 3, **options) as crew:
        crew.queue.loop = crew.host.loop
        for _ in range(3):
            crew.place()
        yield crew


def done_by(crew: Any) -> Span:
    span: Span = crew.window.take(0.0, 1)
    span.slots.extend(span.claim() or ())
    return span


def finish_lone(crew: Any, index: int, slot: Any = MISSING) -> None:
    number, item = crew.window.ledger.lone_items.popleft()
    assert number == index
    crew.window.ledger.lone_slots[index] = item if slot is MISSING else slot
    crew.tell(index)


def test_who_has_waited_draws_some_items_for_others_too():
    with three_tasks() as crew:
        first, second = done_by(crew), done_by(crew)
        assert crew.next_waiting(first, 0.01) is None
        assert [index for index, _ in crew.window.ledger.lone_items] == [
            2,
            3,
            4,
            5,
        ]  # all that there is room for
        assert crew.next_waiting(second, 0.01) is None
        assert crew.poll().start == 2


def test_lone_items_are_there_for_one_that_waits():
    with three_tasks() as crew:
        crew.next_waiting(done_by(crew), 0.01)
        assert crew.queue.buffer.ready()
        assert crew.queue.buffer.take().start == 1


def test_no_more_than_a_few_items_are_drawn_for_others():
    with three_tasks() as crew:
        crew.window.room.limit = 999
        crew.next_waiting(done_by(crew), 0.01)
        assert len(crew.window.ledger.lone_items) == SIDE_BY_SIDE


def test_nothing_is_drawn_for_others_where_a_worker_may_be_lost():
    with three_tasks(timeout=9.0) as crew:
        assert crew.next_waiting(done_by(crew), 0.01).start == 1
        assert not crew.window.ledger.lone_items


def test_after_a_lone_item_that_did_not_wait_comes_one_whose_time_is_taken():
    with three_tasks() as crew:
        crew.next_waiting(done_by(crew), 0.01)
        finish_lone(crew, 1)
        assert crew.next_lone(waited=False).start == 2
        assert crew.next_lone(waited=True) is None


def test_nobody_goes_home_before_there_can_be_nothing_more():
    with three_tasks() as crew:
        spans = [done_by(crew) for _ in range(6)]  # all that there is room for
        assert [crew.next_waiting(span, 0.01) for span in spans[:3]] == [None] * 3
        assert not crew.over


def test_all_go_home_when_there_can_be_nothing_more():
    with three_tasks() as crew:
        span = done_by(crew)
        crew.window.upstream.over = True
        assert crew.next_waiting(span, 0.01) == CLOSED
        assert crew.over


def test_a_lone_item_that_a_taker_waits_for_is_told_of_at_once():
    with three_tasks() as crew:
        crew.window.draw_lone(6)
        settled: list[None] = []
        crew.run.settle = lambda *_: settled.append(None)
        finish_lone(crew, 0)
        assert len(settled) == 1
        assert crew.window.available() == 1
        finish_lone(crew, 1)  # the taker is awake, and comes upon it
        assert len(settled) == 1
        assert crew.window.available() == 2


def test_lone_items_that_give_nothing_are_seen_to_at_the_end_of_the_turn():
    with three_tasks(kernel=FILTER) as crew:
        crew.window.draw_lone(6)
        finish_lone(crew, 0)
        for index in 1, 2:
            finish_lone(crew, index, DROP)
        assert crew.window.room.held == 6
        crew.host.loop.call_soon(crew.host.loop.stop)
        crew.host.loop.run_forever()  # one turn
        assert crew.window.room.held == 4
        assert crew.window.outbox.ready_count == 1


@pytest.mark.parametrize("kernel", [MAP, FILTER])
def test_who_asks_for_more_lone_items_tells_of_those_that_are_done(kernel: Kernel):
    with three_tasks(kernel=kernel) as crew:
        crew.window.draw_lone(3)
        for index in range(3):
            _, item = crew.window.ledger.lone_items.popleft()
            crew.window.ledger.lone_slots[index] = item if kernel is MAP else DROP
        settled: list[None] = []
        crew.run.settle = lambda *_: settled.append(None)
        crew.next_lone()
        assert len(settled) == 1
        assert crew.window.room.held == (6 if kernel is MAP else 3)


@pytest.mark.parametrize("coming", [1, 2])
def test_the_last_to_come_draws_an_item_for_itself_and_for_each_that_it_starts(coming: int):
    with crew_of("task", 9) as crew:
        crew.queue.loop = crew.host.loop
        workers = [crew.enlist(crew.place()) for _ in range(1 + coming)]
        crew.coming = coming
        workers[0].span = done_by(crew)
        started: list[Any] = []
        crew.launch = started.append
        for _ in range(coming):
            assert crew.arrived() is None
        assert [index for index, _ in crew.window.ledger.lone_items] == list(range(1, 2 + len(started)))
        assert len(started) == 1 + coming


def test_who_comes_while_nobody_waits_is_given_a_span():
    with crew_of("task", 9) as crew:
        crew.enlist(crew.place())
        crew.launch = lambda _: None
        assert crew.arrived().start == 0
        assert not crew.window.ledger.lone_items
