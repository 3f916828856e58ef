"""How a row of stages is laid, who is looked at in it, and when it has ended."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fstream import batch, pfilter, pmap
from fstream._engine.run import FULL_LOOK_SECONDS, SHORT_ROW, Run
from fstream._engine.steps import through
from fstream._flow.room import Room
from fstream._flow.sizing import Numbers, Sizing
from fstream._flow.sources import Feed
from fstream._flow.span import CLOSED, Span
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from fstream._workers.opening import open_run
from tests.functions import suited
from tests.gates import PATIENCE
from tests.loops import wait_until
from tests.sources import Source


def test_each_stage_starts_with_room_for_two_items_for_each_worker():
    stages = [pmap(abs, kind="thread", workers=count).steps[0].stage for count in (3, 5)]
    run = open_run([range(9)], stages)
    assert [window.room.limit for window in run.windows] == [6, 10]
    assert run.outlet.room is run.windows[-1].room


def test_no_more_workers_are_started_than_a_stage_has(monkeypatch: pytest.MonkeyPatch):
    run = open_run([range(9)], [pmap(abs, kind="thread", workers=3).steps[0].stage])
    [crew] = run.crews
    started: list[Any] = []
    monkeypatch.setattr(crew, "launch", started.append)
    crew.recruit(9)  # type: ignore[attr-defined]
    assert [worker.index for worker in started] == [0, 1, 2]


class Waiting:
    """A queue whose takers wait, and can go on as soon as somebody looks; also the buffer that says so."""

    takers = 1
    watched = False

    def __init__(self) -> None:
        self.buffer = self
        self.signalled = False

    def ready(self) -> bool:
        return True

    def signal(self) -> None:
        self.signalled = True


def test_in_a_long_row_all_are_looked_at_now_and_then():
    run = Run()
    now = 1.0
    run.clock = lambda: now  # type: ignore[method-assign,assignment]
    run.queues = queues = [Waiting() for _ in range(2 * SHORT_ROW)]  # type: ignore[misc]

    def woken_by_a_change_at(position: int) -> list[int]:
        for queue in queues:
            queue.signalled = False
        run.settle(queues[position])  # type: ignore[arg-type]
        return [n for n, queue in enumerate(queues) if queue.signalled]

    everybody = list(range(len(queues)))
    assert woken_by_a_change_at(5) == everybody
    assert woken_by_a_change_at(5) == [4, 5, 6]
    now += FULL_LOOK_SECONDS * len(queues)
    assert woken_by_a_change_at(5) == everybody


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_before_a_stage_that_waits_for_a_worker_grows_while_the_consumer_starves(
    workers: int, monkeypatch: pytest.MonkeyPatch
):
    """Each lease would else serve no more items than a window has at first. One that has a worker is served."""
    stages = [pmap(abs, kind="process", workers=count).steps[0].stage for count in (1, 2)]
    run = open_run([range(9)], stages)
    grown: list[bool] = []
    monkeypatch.setattr(run.windows[0], "grow", lambda: grown.append(True))
    pump: Any = run.crews[1]
    pump.waiting = 0.0  # in line
    pump.workers += [LentOut()] * workers
    buffer = pump.queue.buffer
    assert not buffer.report_starvation(False)
    assert not grown
    assert buffer.report_starvation(True)  # those before it are told in any case
    assert grown == [True] * (not workers)
    for crew in run.crews:
        crew.selector.close()  # type: ignore[attr-defined]
        crew.queue.close()  # type: ignore[attr-defined]


class LentOut:
    """A worker process that is still starting."""

    opened = False
    flight = ()


class Starving(Waiting):
    """One whose takers find nothing, and starve."""

    def __init__(self, starves: bool = False) -> None:
        super().__init__()
        self.starves = starves
        self.was_told: list[bool] = []

    def ready(self) -> bool:
        return False

    def report_starvation(self, starved: bool) -> bool:
        self.was_told.append(starved)
        return starved or self.starves

    def can_flush(self) -> bool:
        return False


def test_in_a_long_row_a_stage_knows_that_the_consumer_starves_though_nobody_looks_at_it():
    run = Run()
    run.clock = lambda: 1.0  # type: ignore[method-assign,assignment]
    consumer, *queues = all_queues = [Starving(starves=n == 0) for n in range(2 * SHORT_ROW)]
    run.queues = all_queues  # type: ignore[assignment]
    run.settle()
    run.settle(queues[5])  # type: ignore[arg-type]  # all are looked at
    run.settle(queues[5])  # type: ignore[arg-type]
    assert queues[4].was_told == [True] * 3
    assert len(consumer.was_told) == 2
    consumer.takers = 0  # it is away with outputs
    run.settle()
    run.settle(queues[5])  # type: ignore[arg-type]
    assert queues[4].was_told[3:] == [False] * 2


def test_nobody_is_woken_before_the_row_is_laid():
    run = Run()
    run.settle()
    assert not run.starved


def test_in_a_long_row_those_batches_are_looked_at_that_are_beside_the_change():
    stages = [pmap(abs, kind="thread").steps[0].stage, batch(2, within=9.0).steps[0].stage] * SHORT_ROW
    run = open_run([iter(range(9))], stages)
    assert len(run.nodes) == SHORT_ROW
    assert run.nodes_beside(run.crews[0].queue) == run.nodes[:1]
    assert run.nodes_beside(run.crews[2].queue) == run.nodes[:3]
    run.consumer_queue()
    assert run.nodes_beside(run.crews[2].queue) == run.nodes[:3]
    assert run.nodes_beside(run.crews[-1].queue) == run.nodes[-3:]


def test_in_a_long_row_without_order_only_what_a_memo_knows_is_looked_at_all_the_time():
    first = pmap(abs, kind="thread", ordered=False, memo={})
    stages = [t.steps[0].stage for t in [first] + [pmap(abs, kind="thread", ordered=False)] * SHORT_ROW]
    run = open_run([iter(range(9))], stages)
    assert run.sorting == run.windows[:1]


def test_to_wait_for_the_lock_is_no_work(monkeypatch: pytest.MonkeyPatch):
    """Else items would be taken for slow ones where many threads wait for it, and travel one by one."""
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(Run, "clock", staticmethod(lambda: now))
    run = open_run([range(3)], [pmap(lambda _: passes(0.25), kind="thread", workers=1).steps[0].stage])
    [crew], [window] = run.crews, run.windows
    claim = window.claim
    monkeypatch.setattr(window, "claim", lambda *asked: passes(100.0) or claim(*asked))  # type: ignore[func-returns-value]
    worker: Any = crew.enlist(0)  # type: ignore[attr-defined]
    for _ in range(2):
        span = window.take(0.0)
        assert isinstance(span, Span)
        assert through(worker.work(span)) == 0.25 * len(span.items)
        window.done(span, 0.0)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_worker_that_hands_in_a_span_wakes_who_waits_for_its_outputs(wanted: bool):
    run = open_run([range(9)], [pmap(abs, kind="thread", workers=1).steps[0].stage])
    [crew], [window] = run.crews, run.windows
    span = window.take(0.0)
    assert isinstance(span, Span)
    run.queues[0] = consumer = Waiting()  # type: ignore[call-overload]
    span.slots.extend(span.items)
    crew.next_for(span, 0.0, wanted)  # type: ignore[attr-defined]
    assert consumer.signalled


def test_a_stage_has_not_ended_before_its_source_has_however_often_it_is_asked():
    feed = Feed(Room(None, 8), 1)
    window = Window(
        feed, feed.room, workers=1, ordered=True, outputs=lambda slots: MAP.outputs(slots, skips=False),
        numbers=Numbers(shares=lambda workers: workers),
    )  # fmt: skip
    assert [window.end, window.end] == [None, None]
    feed.ended(0, None)
    assert window.end == CLOSED


def test_what_is_pulled_of_one_source_after_another_one_failed_goes_nowhere():
    feed = Feed(Room(None, 8), 2)
    append = feed.pending.append  # as feeders do that go on
    append("before")
    error = ValueError()
    feed.ended(0, error)
    append("after")
    assert feed.available() == 1
    assert feed.draw(9)[0] == ["before"]
    assert feed.end == (error,)


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_skipped_is_no_output(kind: str, ordered: bool):
    def inverse(x: int) -> Any:
        return 6 // x

    stream = pmap(suited(inverse, kind), [1, 0, 2, 0, 3], kind=kind, ordered=ordered, on_error="skip")
    assert sorted(stream) == [2, 3, 6]


def test_what_is_filtered_out_makes_room_though_nobody_asks_for_more(concurrent_kind: str, is_ordered: bool):
    source = Source(range(1_000))
    f = suited(lambda x: x == 0, concurrent_kind)
    with pfilter(f, source, kind=concurrent_kind, workers=1, maxsize=2, ordered=is_ordered) as stream:
        assert next(stream) == 0
        wait_until(lambda: source.pulled == 1_000)


def test_close_ends_workers_that_wait_for_room(concurrent_kind: str):
    f = suited(abs, concurrent_kind)
    with pmap(f, range(9), kind=concurrent_kind, workers=1, maxsize=2) as stream:
        assert next(stream) == 0
        run = stream._outputs.run
        assert run is not None
        wait_until(lambda: run.crews[0].queue.takers)
    assert not run.members


@pytest.fixture
def long_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is given all that there is at once."""
    monkeypatch.setattr(Sizing, "fair", lambda _sizing, most: most)


@pytest.mark.usefixtures("long_spans")
def test_after_close_no_stage_starts_anything():
    ran: list[int] = []
    begun, go = threading.Event(), threading.Event()

    def hold(x: int) -> int:
        ran.append(x)
        begun.set()
        go.wait(PATIENCE)
        return x

    stream = pmap(abs, pmap(hold, range(9), kind="thread", workers=1, maxsize=0), kind="thread", workers=1)
    taker = threading.Thread(target=lambda: next(stream, None))
    taker.start()
    assert begun.wait(PATIENCE)
    run = stream._outputs.run
    assert run is not None
    stream.close()
    go.set()
    taker.join(PATIENCE)
    wait_until(lambda: not run.members)
    assert ran == [0]


@pytest.mark.usefixtures("long_spans")
def test_after_a_failure_nothing_is_started_upstream_though_the_consumer_is_away():
    ran: list[int] = []
    go = threading.Event()

    def upstream(x: int) -> int:
        ran.append(x)
        if x == 2:
            go.wait(PATIENCE)
        return x

    def downstream(x: int) -> int:
        if x == 1:
            raise ValueError
        return x

    first = pmap(upstream, kind="thread", workers=1, maxsize=0)
    with range(9) | first | pmap(downstream, kind="thread", workers=1) as stream:
        assert next(stream) == 0
        run = stream._outputs.run
        assert run is not None
        wait_until(lambda: run.windows[1].ending)
        go.set()
        wait_until(lambda: not run.crews[0].members)  # type: ignore[attr-defined]
        assert ran == [0, 1, 2]
