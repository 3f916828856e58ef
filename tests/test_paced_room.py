"""How much a stage reads ahead whose tries have to wait: for its rate, a hold, or a place of their key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fstream import pmap
from fstream._flow.known import Knowns
from fstream._flow.pacing import Keys, Limit, Pacing, Ticket
from fstream._flow.room import Room
from fstream._flow.sizing import Numbers
from fstream._flow.sources import Slices
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from tests.gates import Clock


def window_over(
    items: list[Any], clock: Clock, *, rate: float | None, per_key: int | None, memo: bool
) -> Window:
    limit = None if rate is None else Limit(rate, 1.0)
    keys = None if per_key is None else Keys(per_key)
    return Window(
        Slices([Ticket(item, item) for item in items] if keys else items),
        Room(None, 4),
        workers=8,
        ordered=False,
        outputs=lambda slots: MAP.outputs(slots, skips=False),
        one_each=True,
        numbers=Numbers(shares=lambda workers: 1),
        knowns=Knowns({}, lambda: True) if memo else None,
        pacing=Pacing(clock, limit, keys, ticketed=keys is not None),
    )


def grown(window: Window, clock: Clock) -> bool:
    """Take all that may start, and tell whether a taker that starves lets the window hold more."""
    while window.take(clock.now):
        pass
    window.ledger.open = 0  # idle
    return window.grow()


@pytest.mark.parametrize(("memo", "per_key"), [(True, None), (False, 9), (True, 9)])
def test_what_waits_for_the_rate_alone_is_no_reason_to_hold_more(memo: bool, per_key: int | None):
    clock = Clock(100.0)
    window = window_over(list("abcdefgh"), clock, rate=1, per_key=per_key, memo=memo)
    assert not grown(window, clock)
    assert window.room.limit == 4


def test_what_waits_for_a_hold_alone_is_no_reason_to_hold_more():
    clock = Clock(100.0)
    window = window_over(list("abcdefgh"), clock, rate=None, per_key=9, memo=False)
    assert window.pacing is not None
    window.pacing.hold(clock.now + 60)
    assert not grown(window, clock)


@pytest.mark.parametrize("rate", [None, 1000])
def test_where_all_that_is_held_waits_for_its_key_others_may_be_behind_it(rate: float | None):
    clock = Clock(100.0)
    window = window_over(list("aaaabbbb"), clock, rate=rate, per_key=1, memo=False)
    assert grown(window, clock)
    assert window.room.limit == 8


def test_a_stage_with_a_rate_does_not_read_its_source_ahead_of_it():
    pulled = 0

    def source():
        nonlocal pulled
        for number in range(10_000):
            pulled += 1
            yield number

    async def answer(number: int) -> int:
        await asyncio.sleep(0.01)  # an item travels alone
        return number

    with pmap(answer, source(), workers=4, rate=30, ordered=False) as stream:
        given = [next(stream) for _ in range(40)]
        assert pulled <= len(given) + 4 * 4 + 1  # it may grow once, before anything has come
