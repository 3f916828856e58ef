"""What a worker that has no memory in common with the program keeps of a stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from fstream._flow import weight
from fstream._flow.span import Span
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage, StageStatus
from fstream._workers import parcels
from fstream._workers.parcels import Aside, Execution, Order, Parcels, serve
from tests.faults.faulty import eventually
from tests.gates import PATIENCE, Gate, holding


class Late:
    """An f whose stage ends while a worker loads it."""

    key = ""

    def __call__(self, item: int) -> int:
        return item

    def __setstate__(self, state: dict[str, Any]) -> None:
        parcels.forget(state["key"])


@pytest.mark.parametrize("options", [{}, {"timeout": 20.0}], ids=["in its thread", "aside"])
def test_a_span_that_comes_as_its_stage_ends_leaves_nothing(options: dict[str, Any]):
    late = Late()
    made = Parcels(Stage(MAP, late, "dask", **options), copy_context())
    late.key = made.key
    made.open()
    answer = serve(*made.pack(Span(0, [1, 2]), 1.0, frozenset()))
    made.close()
    assert answer.error is None
    assert eventually(
        lambda: not [place for place in [*parcels._CALLS, *parcels._ASIDE] if place[0] == made.key]
    )


def test_an_item_that_is_over_its_time_ends_its_span_where_it_is_at_work(gate: Gate):
    made = Parcels(Stage(MAP, holding("dask", {2: gate}), "dask", timeout=0.2), copy_context())
    made.open()
    span = Span(7, [1, 2, 3])
    with ThreadPoolExecutor(1) as threads:
        answered = threads.submit(serve, *made.pack(span, 1.0, frozenset()))
        try:
            slot, late = made.slots_of(answered.result(PATIENCE), span)
        finally:
            gate.open()
    made.close()
    assert slot == 1
    assert (type(late.error), late.index, late.item) == (TimeoutError, 8, 2)


def test_a_worker_that_has_no_index_gives_its_span_back():
    made = Parcels(Stage(MAP, abs, "dask"), copy_context())
    made.seats = {}
    span = Span(0, [-1, -2])
    answer = serve(*made.pack(span, 1.0, frozenset())._replace(seats=()))
    assert (answer.error, made.slots_of(answer, span)) == (None, [])


def test_slots_that_come_to_be_heavy_end_the_span(monkeypatch: pytest.MonkeyPatch):
    """The program has others run the rest, when there is room."""
    monkeypatch.setattr(weight, "SPAN_BYTES", 10_000)
    monkeypatch.setattr(weight, "SELDOM_SECONDS", 0.0)
    made = Parcels(Stage(MAP, bytes, "dask"), copy_context())
    made.open()
    span = Span(0, [1] * 20 + [1000] * 50)
    slots = made.slots_of(serve(*made.pack(span, 60.0, frozenset())), span)
    made.close()
    parcels.forget(made.key)
    assert 10_000 < sum(map(len, slots)) < 15_000


HERE: ContextVar[str] = ContextVar("HERE", default="nowhere")


@pytest.mark.parametrize("options", [{}, {"timeout": 20.0}], ids=["in its thread", "aside"])
def test_f_has_the_context_of_the_thread_that_it_works_for(options: dict[str, Any]):
    made = Parcels(Stage(MAP, lambda _: HERE.get(), "dask", **options), copy_context())
    made.open()
    span = Span(0, [1])
    with ThreadPoolExecutor(1, initializer=HERE.set, initargs=("worker",)) as threads:
        answer = threads.submit(serve, *made.pack(span, 1.0, frozenset())).result(PATIENCE)
    made.close()
    parcels.forget(made.key)
    assert made.slots_of(answer, span) == ["worker"]


class Watched(Execution):
    """Who waits for it looks often whether it is late, and is counted."""

    looks = 0

    def __init__(self, made: Parcels, span: Span, at_most: float = PATIENCE) -> None:
        super().__init__(Order(*made.pack(span, 1.0, frozenset())))
        self.at_most = at_most

    def left(self, timeout: float) -> float:
        self.looks += 1
        return min(self.at_most, super().left(timeout))


def test_each_of_two_threads_with_one_beside_them_gets_its_own_answer(gate: Gate):
    """The worker that was at work under an index is lost, and the next one in its process has that."""
    made = Parcels(Stage(MAP, holding("dask", {1: gate}), "dask", timeout=2 * PATIENCE), copy_context())
    spans = [Span(0, [1]), Span(1, [2])]
    lost, other = Watched(made, spans[0], 0.001), Watched(made, spans[1])
    aside = Aside()
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(aside.serve, lost)]
        assert eventually(lambda: lost.looks)
        answers.append(threads.submit(aside.serve, other))
        assert eventually(lambda: other.looks)
        seen = lost.looks
        assert eventually(lambda: lost.looks > seen + 20)  # the other one has waited for longer
        gate.open()
        slots = [made.slots_of(each.result(PATIENCE), span) for each, span in zip(answers, spans)]
    aside.close()
    assert slots == [[1], [2]]


def test_a_thread_that_was_told_to_end_is_not_waited_for():
    """By its stage's end, or as its item was late, after it was found and before it was given a span, or the end."""
    made = Parcels(Stage(MAP, abs, "dask", timeout=20.0), copy_context())
    span = Span(0, [-1])
    aside = Aside()
    aside.close()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(aside.serve, Watched(made, span)).result(PATIENCE)
    assert (answer.error, made.slots_of(answer, span)) == (None, [])
    assert aside.end(StageStatus(1)).result(PATIENCE) is None
