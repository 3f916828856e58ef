"""What a worker that has no memory in common with the program keeps of a stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from fstream._flow.span import Span
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._workers import parcels
from fstream._workers.parcels import Parcels, serve
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
