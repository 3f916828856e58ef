"""What a worker that has no memory in common with the program keeps of a stage."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import pytest

from fstream._flow.span import Span
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._workers import parcels
from fstream._workers.parcels import Parcels, serve
from tests.faults.faulty import eventually


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
