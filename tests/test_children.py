"""Both ends of a worker process's socket, driven in this process: what is sent of a span, and what is given back."""

from __future__ import annotations

import io
import signal
import socket
import threading
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from itertools import count
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fstream._flow import weight
from fstream._flow.buffers import OVERDUE
from fstream._flow.sizing import SHORT_STRIDE
from fstream._flow.span import Span
from fstream._flow.weight import SELDOM_SECONDS
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._workers.call import Call, is_failure
from fstream._workers.opening import open_run
from fstream._workers.process import child
from fstream._workers.process.answers import Answers
from fstream._workers.process.child import Child
from fstream._workers.process.messages import (
    Close,
    Counted,
    Finish,
    Finished,
    Items,
    Message,
    Open,
    Opened,
    Said,
    Slots,
    Steal,
    Stolen,
    Stop,
    plain,
)
from fstream._workers.process.pool import Worker
from fstream._workers.process.pump import Pump
from fstream._workers.process.recovery import Recovery
from fstream._workers.process.relay import OUT, Relayed
from fstream._workers.process.surroundings import surroundings
from fstream._workers.process.wire import Wire, dumps, loads
from fstream._workers.process.workers import Workers
from tests.faults.faulty import eventually

pytestmark = pytest.mark.slow


class Parent:
    """The other end, and a child that runs in the test's thread."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.cell = array("q", [child.IDLE, 0, 0, -1, 0, 0, 0, 0])
        self.wire = Wire(ours)
        self.child = Child(theirs, memoryview(self.cell))

    def give(self, f: Callable[[Any], Any], **options: Any) -> None:
        self.child.call = Call(Stage(MAP, f, "process", **options), 0)
        self.child.call.place = self.child

    def work(self, start: int, items: list[Any]) -> None:
        self.child.work(Items(start, 0), dumps(items))

    def heard(self) -> list[tuple[Any, ...]]:
        """What it has said: of slots their start, themselves, the positions of failures, and whether that is all."""
        said = []
        for message, body in self.wire.receive():
            if isinstance(message, Slots):
                slots = ["failed" if is_failure(slot) else slot for slot in loads(body)]
                said.append(("Slots", message.start, slots, message.failed, message.closed))
            elif not isinstance(message, Counted):
                said.append(plain(message))
        return said

    def close(self) -> None:
        self.wire.close()
        self.child.wire.close()


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    yield parent
    parent.close()


def check_together(said: list[tuple[Any, ...]], start: int, slots: list[Any], failed: list[int]) -> None:
    """Assert what the last messages of a span say, be they one or, as somebody waits, two."""
    assert said[0] == ("Slots", start, slots, failed, len(said) == 1)
    assert said[1:] in ([], [("Slots", start, [], [], True)])


def test_the_slots_of_each_span_go_out_once(parent: Parent):
    parent.give(abs)
    parent.work(0, [-1, -2, -3])
    parent.work(3, [-4])
    assert parent.heard() == [
        ("Slots", 0, [1, 2, 3], [], True),
        ("Slots", 3, [4], [], True),
    ]


def test_nothing_of_a_span_is_kept_while_the_next_one_is_waited_for(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
):
    bodies: list[weakref.ref[memoryview]] = []
    message = parent.child.wire._message

    def remembered(*parts: Any) -> Any:
        said, body = message(*parts)
        bodies.extend(map(weakref.ref, body))
        return said, body

    monkeypatch.setattr(parent.child.wire, "_message", remembered)
    parent.give(abs)
    threads = [threading.Thread(target=main) for main in (parent.child.read, parent.child.serve)]
    for thread in threads:
        thread.start()
    parent.wire.push(Items(0, 0), dumps([-1, -2, -3]))
    parent.wire.flush()
    assert eventually(lambda: [body() for body in bodies] == [None])
    assert parent.heard() == [("Slots", 0, [1, 2, 3], [], True)]
    parent.wire.close()
    for thread in threads:
        thread.join()


def test_what_is_asked_for_in_the_middle_of_a_span_goes_out_and_what_is_not_started_comes_back(
    parent: Parent,
):
    def f(item: int) -> int:
        if item == -3:
            parent.child.steal()  # as its reader thread does
        return -item

    parent.give(f)
    parent.work(5, [-1, -2, -3, -4, -5])
    ahead, back, *later = parent.heard()
    assert (ahead, back) == (("Slots", 5, [1, 2], [], False), ("Stolen", 5, 2))
    check_together(later, 5, [3], [])


def test_what_was_asked_for_in_a_span_that_was_stopped_is_not_sent_of_the_next_stage(parent: Parent):
    def stopped(_: int) -> int:
        parent.child.steal()  # as its reader thread does
        raise child.Stopped

    parent.give(stopped)
    parent.work(0, [-1])
    parent.child.close(Close(1, over=True))
    parent.give(abs)
    parent.work(0, [-1, -2])
    assert parent.heard() == [("Slots", 0, [1, 2], [], True)]


def test_of_a_span_that_is_over_nothing_more_is_said(parent: Parent):
    parent.give(abs)
    parent.work(5, [-1, -2])
    assert parent.heard() == [("Slots", 5, [1, 2], [], True)]
    parent.child.steal()
    assert parent.heard() == []


def test_spans_that_are_not_begun_come_back_whole(parent: Parent):
    parent.give(abs)
    parent.child.inbox.put((Items(5, 0), dumps([-1])))
    parent.child.inbox.put((Finish(0), []))
    parent.child.steal()
    assert parent.heard() == [("Stolen", 5, None)]
    assert parent.child.inbox.get() == (Finish(0), [])


def test_failures_are_counted_from_the_first_slot_of_their_message(parent: Parent):
    def f(item: int) -> int:
        if item == 3:
            parent.child.steal()
        return 6 // (item - 3)

    parent.give(f, on_error="skip")
    parent.work(0, [1, 2, 3, 4])
    ahead, back, *later = parent.heard()
    assert (ahead, back) == (("Slots", 0, [-3, -6], [], False), ("Stolen", 0, 1))
    check_together(later, 0, ["failed"], [0])
    parent.give(lambda item: 6 // (item - 3), on_error="skip")
    parent.work(4, [2, 3, 4])
    assert parent.heard() == [("Slots", 4, [-6, "failed", 6], [1], True)]


def test_a_failure_that_is_raised_ends_its_span(parent: Parent):
    parent.give(lambda item: 6 // (item - 3))
    parent.work(4, [2, 3, 4])
    assert parent.heard() == [("Slots", 4, [-6, "failed"], [1], True)]


def test_the_cell_says_which_item_is_in_f(parent: Parent):
    parent.give(lambda item: parent.cell[child.DOING])
    parent.work(7, [0, 0, 0])
    assert parent.heard() == [("Slots", 7, [7, 8, 9], [], True)]
    assert parent.cell[child.DOING] == child.IDLE


@pytest.fixture
def stop(parent: Parent) -> Iterator[Callable[[], None]]:
    """Stop the child as its reader thread does."""
    before = signal.signal(signal.SIGINT, parent.child.interrupt)
    yield lambda: parent.child.sort((Stop(0), []))
    signal.signal(signal.SIGINT, before)


def test_a_stop_interrupts_f(parent: Parent, stop: Callable[[], None]):
    worked: list[int] = []

    def f(item: int) -> None:
        stop()
        worked.append(item)

    parent.give(f)
    parent.work(0, [1, 2])
    assert not worked and not parent.heard()


def test_a_stop_does_not_interrupt_on_start_and_no_item_is_begun_after_it(
    parent: Parent, stop: Callable[[], None]
):
    done: list[str] = []

    def on_start() -> str:
        stop()
        return "resource"

    parent.give(
        lambda item, resource: done.append("f"), on_start=on_start, on_done=lambda _, it: done.append(it)
    )
    parent.work(0, [1, 2])
    parent.child.finish(Finish(0))
    assert done == ["resource"]
    assert parent.heard() == [("Finished", None)]


def test_a_stop_is_for_the_stage_that_was_opened_last_where_the_main_thread_is_still_at_the_one_before(
    parent: Parent, stop: Callable[[], None]
):
    worker, worked = parent.child, list[int]()
    first, closed, second = Open(1, None, 0, stays=False), Close(1, over=True), Open(2, None, 0, stays=False)
    for message in first, closed, second:
        worker.sort((message, []))
    stop()
    worker.open(first, [])
    parent.give(worked.append)
    parent.work(0, [1])
    worker.close(closed)
    worker.open(second, [])
    parent.give(worked.append)
    parent.work(0, [2])
    assert worked == [1]
    worker.close(Close(2, over=True))
    parent.give(worked.append)
    parent.work(0, [3])
    assert worked == [1, 3]


def test_what_was_sent_of_a_span_that_was_stopped_does_not_count_for_the_next(
    parent: Parent, stop: Callable[[], None]
):
    def f(item: int) -> int:
        if item == -3:
            parent.child.steal()  # as its reader thread does
            stop()
        return -item

    parent.give(f)
    parent.work(0, [-1, -2, -3])
    parent.child.close(Close(0, over=True))
    parent.give(abs)
    parent.work(7, [-4])
    ahead, *later = parent.heard()
    assert ahead == ("Slots", 0, [1, 2], [], False)
    check_together(later, 7, [4], [])


def test_late_answers_to_the_stage_before_are_no_answers_to_this_one():
    """A warm worker may have been asked to give something back, and then be given to another run."""
    run = open_run([range(3)], [Stage(MAP, abs, "process", 1, name="abs")])
    crew: Any = run.crews[0]
    span = run.windows[0].take(0.0)
    worker: Any = Worker(crew, None)
    worker.flight = [span]
    for message in (Stolen(0, None), Slots(0, 1, [], True, 0.0), Finished(None)):
        crew.answers.answer(worker, message, dumps([9]))
        assert worker.flight == [span]
    crew.answers.answer(worker, Opened(), [])
    crew.answers.answer(worker, Slots(0, 1, [], True, 0.0), dumps([0]))
    assert worker.flight == []
    assert run.windows[0].available() == 1
    assert run.windows[0].draw(9)[0] == [0]
    crew.selector.close()
    crew.queue.close()


def test_items_are_weighed_on_their_way_there_and_back(monkeypatch: pytest.MonkeyPatch):
    items = [bytes(2000)]
    run = open_run([items], [Stage(MAP, bytes, "process", 1, name="bytes")])
    crew: Any = run.crews[0]
    monkeypatch.setattr(crew, "flush", lambda worker: None)
    worker: Any = Worker(crew, None)
    worker.begun, worker.link = True, SimpleNamespace(wire=SimpleNamespace(push=lambda *_: None))
    crew.send(worker, run.windows[0].take(0.0))
    assert (crew.bytes["there"] > 1000, crew.bytes["back"]) == (True, 0)
    crew.answers.answer(worker, Opened(), [])
    crew.answers.answer(worker, Slots(0, 1, [], True, 0.0), dumps([bytes(4000)]))
    assert crew.bytes["back"] > 2000
    crew.selector.close()
    crew.queue.close()


def test_the_cell_says_since_when(parent: Parent):
    parent.give(lambda item: parent.cell[child.SINCE], timeout=1.0)
    parent.work(0, [0, 0, 0])
    ((_, _, times, _, _),) = parent.heard()
    assert 0 < times[0] < times[1] < times[2]


def test_an_item_that_may_be_tried_again_ends_its_span(parent: Parent):
    parent.give(lambda item: 6 // (item - 3), retries=1, on_error="skip")
    parent.work(4, [2, 3, 4])
    assert parent.heard() == [("Slots", 4, [-6, "failed"], [1], True)]


def test_slots_that_come_to_be_heavy_end_the_span(parent: Parent, monkeypatch: pytest.MonkeyPatch):
    """The parent has others run the rest, when there is room."""
    monkeypatch.setattr(weight, "SPAN_BYTES", 10_000)
    times = count()
    parent.child.clock = lambda: next(times) * SELDOM_SECONDS  # type: ignore[method-assign]
    parent.give(lambda item: bytes(item))
    parent.work(0, [1] * 150 + [200] * 500)
    ((_, start, slots, failed, closed),) = parent.heard()
    assert (start, failed, closed) == (0, [], True)
    assert 5_000 < sum(map(len, slots)) < 10_000 + 200 * SHORT_STRIDE


def test_an_item_that_has_had_its_tries_does_not_end_its_span(parent: Parent):
    parent.give(lambda item: 6 // (item - 3), retries=2, on_error="skip")
    parent.child.work(Items(4, 2), dumps([3, 4]))
    assert parent.heard() == [("Slots", 4, ["failed", 6], [0], True)]


def test_a_slot_that_cannot_travel_is_a_failure(parent: Parent):
    parent.give(lambda item: threading.Lock() if item == 1 else item)
    parent.work(0, [1, 2])
    assert parent.heard() == [("Slots", 0, ["failed", 2], [0], True)]


# What the pump does about a worker that has said nothing for a while


def pump_of(worker: Any, asked: list[Any]) -> Any:
    """What the pump's decisions look at, of a stage that has more for all workers to do."""
    return SimpleNamespace(
        workers=[worker],
        window=SimpleNamespace(takable=lambda: True, flush_requested=False, flush_delay=OVERDUE / 2),
        run=SimpleNamespace(lock=nullcontext()),
        queue=SimpleNamespace(deadline=None),
        stage=SimpleNamespace(timeout=None, rate=None),
        loaded=lambda worker: True,
        at_the_end=lambda: False,
        spare=lambda: False,
        used_up=lambda worker: False,
        request_steal=asked.extend,
        pool=SimpleNamespace(waiting={}),
        clock=perf_counter,
    )


def heard(seconds: float, spans: int = 1) -> Any:
    return SimpleNamespace(
        heard=perf_counter() - seconds,
        flight=[...] * spans,
        idle=not spans,
        opened=True,
        finishing=False,
        recalled=False,
    )


@pytest.mark.parametrize(("silent", "expected"), [(-1, False), (OVERDUE, True)])
def test_what_waits_behind_a_slow_item_is_recalled_also_if_there_is_enough_to_do(
    silent: float, expected: bool
):
    worker, asked = heard(silent), list[Any]()
    Pump.look_after(pump_of(worker, asked))
    assert bool(asked) == expected


@pytest.mark.parametrize(
    ("silent", "spans", "expected"), [(-1, 1, True), (-1, 2, False), (1, 1, False), (1, 0, True)]
)
def test_nothing_is_sent_to_wait_behind_a_slow_item(silent: float, spans: int, expected: bool):
    worker = heard(silent, spans)
    assert (worker in Workers.ready_workers(pump_of(worker, []))) == expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Said(0, OUT, b"still at it\n"), False),
        (Stolen(5, 2), False),  # what it has not begun
        (Slots(5, 1, [], False, 0.1), True),
    ],
)
def test_a_worker_that_says_something_is_slow_until_it_says_what_it_has_finished(
    message: Message, expected: bool
):
    link = SimpleNamespace(relayed=Relayed(), wire=SimpleNamespace(receive=lambda: [(message, [])]))
    worker: Any = SimpleNamespace(heard=0.0, link=link)
    with redirect_stdout(io.StringIO()):
        answers = SimpleNamespace(answer=lambda *_: None)
        Pump.hear(SimpleNamespace(answers=answers, clock=perf_counter), worker)  # type: ignore[arg-type]
    assert (worker.heard > 0) == expected


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os._exit` raises SystemExit."""

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(child.os, "_exit", end)


def too_large(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.mark.usefixtures("exits")
def test_a_child_without_memory_for_what_comes_finishes_what_it_has(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def f(item: int) -> int:
        if item == -2:
            parent.child.read()  # as its reader thread does
        return -item

    monkeypatch.setattr(parent.child.wire, "receive", too_large)
    parent.child.opened = True
    parent.give(f)
    parent.work(0, [-1, -2, -3])
    ahead, *later = parent.heard()
    assert ahead == ("Slots", 0, [1, 2], [], False)
    check_together(later, 0, [3], [])
    assert "MemoryError" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        parent.child.serve()


@pytest.mark.usefixtures("exits")
def test_a_reader_that_fails_while_it_gives_items_back_ends_its_process(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(parent.child, "send_slots", too_large)
    parent.child.opened = True
    parent.wire.push(Steal())
    parent.wire.flush()
    with pytest.raises(SystemExit, match="1"):
        parent.child.read()
    assert "MemoryError" in capsys.readouterr().err


# What the pump does about a worker that is dead


class Death(Recovery):
    """One that notes what becomes of what a dead worker had: how, and from which item on."""

    def __init__(self, *flight: Span, doing: int, start: int = 3) -> None:
        self.became: list[tuple[str, int]] = []
        self.unbegun, self.stillborn = Counter(), 0
        nothing = lambda *_: None  # noqa: E731
        self.crew = SimpleNamespace(  # type: ignore[assignment]
            window=SimpleNamespace(requeue_apart=self.scattered, stopped=False),
            run=SimpleNamespace(lock=nullcontext()), settle_beside=nothing,
            pool=SimpleNamespace(gone=nothing), ended=nothing, leave_out=nothing, lost=self.lost,
        )  # fmt: skip
        cell = [doing, 0, 0, start]
        worker = SimpleNamespace(
            link=SimpleNamespace(state=cell.__getitem__), flight=list(flight), finishing=False, opened=True
        )
        self.bury(worker, doing, -9)  # type: ignore[arg-type]

    def lost(self, span: Span, error_of: Any, at: int | None = None, part: int = 0) -> None:
        self.became.append(("lost", span.start + (at or 0)))

    def requeue_unfinished(self, span: Span) -> None:
        self.became.append(("handed on", span.start))

    def scattered(self, span: Span) -> None:
        self.became.append(("scattered", span.start + len(span.slots)))


def in_hand(finished: int = 1, items: int = 3, start: int = 3) -> Span:
    span = Span(start, range(items))
    span.slots.extend(range(finished))
    return span


@pytest.mark.parametrize(
    ("doing", "became"),
    [
        (4, ("lost", 4)),
        (5, ("lost", 5)),
        (3, ("handed on", 3)),  # at one whose slot is there
        (child.IDLE, ("handed on", 3)),
        (child.SENDING, ("scattered", 4)),
        (child.LOADING, ("scattered", 4)),
    ],
)
def test_a_death_is_blamed_on_the_item_that_the_worker_was_at(doing: int, became: tuple[str, int]):
    assert Death(in_hand(), doing=doing).became == [became]
    assert Death(in_hand(), in_hand(start=6), doing=doing).became == [became, ("handed on", 6)]


def test_a_worker_that_ended_by_itself_is_blamed_on_nobody_however_many_do():
    death = Death(in_hand(0, start=4), doing=child.LEFT)
    assert death.became == [("handed on", 4)]
    assert not death.unbegun and not death.stillborn


def test_the_last_item_is_blamed_for_a_death_while_its_slot_was_sent():
    assert Death(in_hand(2), doing=child.SENDING).became == [("lost", 5)]


@pytest.mark.parametrize("doing", [3, child.SENDING])
def test_a_death_at_what_others_have_by_now_is_blamed_on_nobody(doing: int):
    closed = in_hand(items=1)
    closed.closed = True
    assert Death(closed, in_hand(0, 1), doing=doing).became == [("handed on", 3)]


def test_what_a_dead_worker_has_not_begun_is_run_again():
    run = open_run([range(9)], [Stage(MAP, abs, "process", 1, name="abs")])
    window, crew = run.windows[0], cast(Pump, run.crews[0])
    first, second = window.take(0.0), window.take(0.0)
    assert first is not None and second is not None
    crew.recovery.requeue_unfinished(second)
    again = window.take(0.0)
    assert again is not None
    assert (again.start, list(again.items)) == (second.start, [1])
    crew.selector.close()
    crew.queue.close()


def test_answers_are_about_the_span_that_the_worker_got_first():
    first, second = in_hand(), in_hand()
    worker = SimpleNamespace(flight=[first, second])

    def span_of(closed: bool) -> Span | None:
        return Answers.span_of(None, worker, 3, closed)  # type: ignore[arg-type]

    assert span_of(closed=False) is first
    first.closed = True  # others have what was left of it
    assert span_of(closed=False) is None
    assert span_of(closed=True) is None
    assert span_of(closed=False) is second
    assert span_of(closed=True) is second
    assert not worker.flight


def test_a_stale_worker_declines_new_stages_and_goes_on_with_those_that_it_has(
    parent: Parent, monkeypatch: pytest.MonkeyPatch
):
    body = dumps((Stage(MAP, abs, "process"), []))
    monkeypatch.setattr(parent.child.imported, "changed", lambda: True)
    parent.child.open(
        Open(1, surroundings(), 0, stays=False), body
    )  # the first one: no other worker would do better
    parent.child.close(Close(1, over=False))
    assert parent.heard() == []
    parent.child.open(Open(2, surroundings(), 0, stays=False), body)
    parent.work(0, [-1])
    assert parent.heard() == [("Stale",)]
    parent.child.open(Open(1, None, 0, stays=False), [])
    parent.work(0, [-1])
    assert parent.heard() == [("Slots", 0, [1], [], True)]


def test_a_stage_that_was_declined_is_declined_again_whoever_thinks_that_it_is_loaded(parent: Parent):
    parent.child.open(Open(1, None, 0, stays=False), [])
    assert parent.heard() == [("Stale",)]
