"""kind="dask" on a cluster of any size, as a model: what decides is the library's own (benchmarks/scale.py)."""

from __future__ import annotations

from itertools import chain

import pytest

from benchmarks.scale import simulate


@pytest.mark.parametrize(("workers", "cost"), [(2, 1e-5), (10, 1e-3), (100, 1e-2), (300, 0.5)])
@pytest.mark.parametrize("maxsize", [None, 7, 1000])
def test_all_outputs_come_in_order_and_no_more_is_held_than_may_be(
    workers: int, cost: float, maxsize: int | None
):
    result = simulate(workers, cost, 1e9, items=5000, maxsize=maxsize)
    assert list(chain.from_iterable(result.outputs)) == list(range(5000))
    assert maxsize is None or result.held <= maxsize


def test_items_of_a_second_keep_a_hundred_workers_at_work():
    assert simulate(100, 1.0).efficiency > 0.9


def test_items_of_10_us_on_a_thousand_workers_are_as_fast_as_the_client_and_the_scheduler():
    result = simulate(1000, 1e-5, 10.0)
    assert max(result.client, result.scheduler) > 0.9


def test_what_comes_back_at_once_is_answered_by_one_message():
    result = simulate(1000, 1.0, 20.0)
    assert result.spans > 2 * result.graphs
