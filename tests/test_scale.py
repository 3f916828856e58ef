"""kind="dask" on a cluster of any size, as a model: what decides is the library's own (benchmarks/scale.py)."""

from __future__ import annotations

import math
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.scale import Answered, Cluster, Task, simulate
from fstream import WorkerDied

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(("workers", "cost"), [(100, 1e-5), (1000, 1e-3)])
def test_many_workers_and_cheap_items_are_as_fast_as_the_client_and_the_scheduler(workers: int, cost: float):
    result = simulate(workers, cost, 10.0)
    assert result.efficiency < 0.5
    assert max(result.client, result.scheduler) > 0.9


def test_what_comes_back_at_once_is_answered_by_one_message():
    result = simulate(1000, 1.0, 20.0)
    assert result.spans > 2 * result.graphs


@pytest.mark.parametrize("workers", [2, 100])
@pytest.mark.parametrize(("cost", "items"), [(1e-6, 30_000), (1e-4, 20_000), (0.01, 300), (1.0, 40)])
def test_an_item_that_kills_its_workers_is_found_by_few_deaths_among_thousands(
    workers: int, cost: float, items: int
):
    scheduler = pytest.importorskip("distributed.scheduler")
    deadly = items * 3 // 4
    killed: list[int] = []

    class Deadly(Cluster):
        """The scheduler gives up a task with the deadly item, and at first its neighbours with it."""

        async def gather(self, tasks: list[Task], **options: Any) -> list[Answered]:
            answers = await super().gather(tasks, **options)
            for task in tasks:
                first = not killed and 0 < deadly - task.start <= 2 * task.count
                if first or task.start <= deadly < task.start + task.done:
                    killed.append(task.count)
                    raise scheduler.KilledWorker(str(task.start), SimpleNamespace(address="tcp://a:1"), 3)
            return answers

    blamed: list[Any] = []

    def blame(error: BaseException, item: int) -> int:
        blamed.append((type(error), getattr(error, "item", None), item))
        return item

    result = simulate(workers, cost, 1e9, items=items, make=Deadly, on_error=blame)
    assert list(chain.from_iterable(result.outputs)) == list(range(items))
    assert blamed == [(WorkerDied, deadly, deadly)]
    assert len(killed) <= 3 + math.log2(max(killed))
    assert result.spans < 1000
