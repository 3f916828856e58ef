"""`batch` under all interleavings: what it gives, and when, by the simulation's clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fstream import batch, pmap
from fstream.testing import Schedule, schedules, simulated

KINDS = ("thread", "process", "task")

kinds = st.sampled_from(KINDS)
sizes = st.integers(1, 6)
items = st.lists(st.integers(0, 4), max_size=20)
rooms = st.sampled_from([None, 1, 2, 5])
#: Seconds between two items of a source.
gaps = st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 3.0]), max_size=20)


def by_weight(values: list[int], n: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for value in values:
        full = batches and (sum(batches[-1]) >= n or sum(batches[-1]) + value > n)
        if not batches or full:
            batches.append([])
        batches[-1].append(value)
    return batches


@given(values=items, n=sizes, room=rooms, before=kinds, after=kinds, schedule=schedules())
def test_lists_of_n(
    values: list[int], n: int, room: int | None, before: Any, after: Any, schedule: Schedule
) -> None:
    t = (
        pmap(abs, kind=before, maxsize=room, workers=3)
        | batch(n)
        | pmap(list, kind=after, maxsize=room, workers=3)
    )
    with simulated(schedule):
        for source in (values, iter(values)):
            assert list(t(source)) == [values[at : at + n] for at in range(0, len(values), n)]


@given(values=items, n=sizes, kind=kinds, schedule=schedules())
def test_lists_of_a_weight(values: list[int], n: int, kind: Any, schedule: Schedule) -> None:
    t = batch(n, weight=abs) | pmap(list, kind=kind)
    with simulated(schedule):
        assert list(t(values)) == by_weight(values, n)


@given(values=items, at=st.integers(0, 20), n=sizes, kind=kinds, within=st.booleans(), schedule=schedules())
def test_all_before_an_error_goes_out(
    values: list[int], at: int, n: int, kind: Any, within: bool, schedule: Schedule
) -> None:
    values.insert(min(at, len(values)), -1)
    given = []
    with simulated(schedule):
        try:
            for one in pmap(root, kind=kind, workers=3)(iter(values)) | batch(
                n, within=1.0 if within else None
            ):
                given.append(one)
        except ValueError:
            pass
        else:
            raise AssertionError("no error")
    assert list(chain.from_iterable(given)) == values[: values.index(-1)]
    assert all(0 < len(one) <= n for one in given)


def root(x: int) -> int:
    if x < 0:
        raise ValueError(x)
    return x


@given(gaps=gaps, n=sizes, room=rooms, kind=st.sampled_from([None, *KINDS]), schedule=schedules())
def test_no_item_waits_for_longer_while_its_taker_does(
    gaps: list[float], n: int, room: int | None, kind: Any, schedule: Schedule
) -> None:
    within = 2.0
    with simulated(schedule) as simulation:
        came: dict[int, float] = {}

        async def trickling() -> AsyncIterator[int]:
            for number, gap in enumerate(gaps):
                if gap:
                    await asyncio.sleep(gap)
                came[number] = simulation.now
                yield number

        before = [pmap(abs, kind=kind, workers=4, maxsize=room)] if kind else []
        stream: Any = trickling()
        for t in (*before, batch(n, within=within)):
            stream = t(stream)
        given = []
        for one in stream:
            given.append(one)
            if not schedule.stalls and kind is None:
                # Nobody stalls and no f takes time: it is there as soon as it is full, or due.
                first, last = came[one[0]], came[one[-1]]
                assert last - first < within
                assert simulation.now <= first + within
                if len(one) == n:
                    assert simulation.now == last
    assert list(chain.from_iterable(given)) == list(range(len(gaps)))
    assert all(0 < len(one) <= n for one in given)
