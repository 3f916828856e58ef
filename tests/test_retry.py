"""Further tries: of which errors, after which wait, and what waits with them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fstream import SKIP, Observer, observe, pmap
from fstream._engine.run import Run
from fstream._flow.pacing import LONGEST_BACKOFF, Again, further_try
from fstream._workers.simulated.schedule import Schedule, Simulation
from fstream._workers.sync import Rest
from fstream.testing import schedules, simulated
from tests.conftest import CONCURRENT_KINDS
from tests.faults.faulty import Tally
from tests.functions import suited
from tests.gates import PATIENCE, Log


class Boom(Exception):
    """What f raises."""


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is as long as it may be."""
    monkeypatch.setattr(Run, "draw", staticmethod(lambda: 1.0))
    monkeypatch.setattr(Simulation, "draw", lambda _: 1.0)


class Starts(Observer):
    """When each item was taken, in seconds from the first on."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.began = clock()
        self.times: list[tuple[float, int]] = []

    def taken(self, stage: Any, start: int, count: int, worker: int | None) -> None:
        if worker is not None:
            now = round(self.clock() - self.began, 3)
            self.times += [(now, index) for index in range(start, start + count)]

    def of(self, index: int) -> list[float]:
        return [time for time, number in self.times if number == index]


@contextmanager
def simulated_starts(schedule: Schedule = Schedule(cheap=True)) -> Iterator[Starts]:  # noqa: B008
    with simulated(schedule) as simulation:
        starts = Starts(simulation.clock)
        with observe(starts):
            yield starts


def failing(*bad: int, error: type[Exception] = Boom) -> Callable[[int], int]:
    def f(item: int) -> int:
        if item in bad:
            raise error(item)
        return item

    return f


# ------------------------------------------------------------------------------------------- what is decided


def decided(retry_on: Any = Exception, backoff: float = 0.1, tries: int = 1, drawn: float = 1.0) -> Any:
    return further_try(retry_on, backoff, Boom(), tries, lambda: drawn)


def test_waits_double_up_to_a_minute_and_are_drawn_evenly():
    waits = [decided(tries=tries) for tries in range(1, 13)]
    assert waits == [Again(min(60.0, 0.1 * 2**n)) for n in range(12)]
    assert decided(tries=5, drawn=0.25) == Again(0.4)
    assert decided(tries=5, drawn=0.0) == Again(0.0)
    assert decided(backoff=0, tries=9) == Again(0.0)


@pytest.mark.parametrize("backoff", [1e-300, 0.1, 7, 1e300, math.inf, pytest.param(10**400, id="no float")])
@pytest.mark.parametrize("tries", [1, 2_000, 10**9])
def test_no_number_of_tries_is_too_large(backoff: float, tries: int):
    assert 0 <= decided(backoff=backoff, tries=tries).after <= LONGEST_BACKOFF


@pytest.mark.parametrize(
    ("retry_on", "expected"),
    [
        (Exception, Again(0.1)),
        (Boom, Again(0.1)),
        (ValueError, None),
        ((ValueError, Boom), Again(0.1)),
        ((), None),
        (lambda _: True, Again(0.1)),
        (lambda _: False, None),
        (lambda _: 0, Again(0.0)),
        (lambda _: 1, Again(1.0, 1.0)),
        (lambda _: Fraction(1, 2), Again(0.5, 0.5)),
        (lambda _: 300, Again(300.0, 300.0)),
        (lambda _: 300.5, None),
        (lambda _: math.inf, None),
        (lambda _: 10**400, None),
    ],
)
def test_a_class_a_tuple_or_a_hook_says_which_errors_are_tried_again(retry_on: Any, expected: Any):
    assert decided(retry_on) == expected


# ---------------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"retry_on": Boom},
            ValueError,
            r"retry_on needs retries: write pmap\(f, retries=3, retry_on=\.\.\.\)",
        ),
        ({"backoff": 1}, ValueError, "backoff needs retries"),
        ({"backoff": 1, "retries": 0}, ValueError, "backoff needs retries"),
        ({"backoff": 0.1}, ValueError, "backoff needs retries"),
        ({"retry_on": Exception}, ValueError, "retry_on needs retries"),
        ({"retries": 1, "backoff": -1}, ValueError, "backoff must be at least 0 seconds, got -1"),
        ({"retries": 1, "backoff": math.nan}, ValueError, "backoff must be at least 0 seconds, got nan"),
        ({"retries": 1, "backoff": True}, TypeError, "backoff must be a number of seconds, got True"),
        ({"retries": 1, "backoff": None}, TypeError, "backoff must be a number of seconds, got None"),
        ({"retries": 1, "retry_on": "all"}, TypeError, "retry_on must be a class of exceptions.*got 'all'"),
        ({"retries": 1, "retry_on": None}, TypeError, "retry_on must be .*got None"),
        ({"retries": 1, "retry_on": int}, TypeError, "retry_on must be .*got <class 'int'>"),
        ({"retries": 1, "retry_on": (Boom, 3)}, TypeError, "retry_on must be .*got .*3"),
        ({"retries": 1, "retry_on": suited(bool, "task")}, TypeError, "'bool' is a coroutine function"),
    ],
)
def test_what_is_wrong_is_an_error_at_once(options: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pmap(abs, kind="task" if "coroutine" in message else "thread", **options)


# ------------------------------------------------------------------------------------------------- the waits


@pytest.mark.usefixtures("longest")
def test_an_item_waits_longer_from_try_to_try(concurrent_kind: str, is_ordered: bool):
    f = suited(failing(1), concurrent_kind)
    with simulated_starts() as starts:
        stage = pmap(f, kind=concurrent_kind, ordered=is_ordered, retries=3, backoff=0.5, on_error="skip")
        assert sorted(stage(range(3))) == [0, 2]
    assert starts.of(1) == [0.0, 0.5, 1.5, 3.5]
    assert {*starts.of(0), *starts.of(2)} == {0.0}


@pytest.mark.usefixtures("longest")
def test_others_go_on_while_an_item_waits(concurrent_kind: str):
    f = suited(failing(0), concurrent_kind)
    with simulated_starts() as starts:
        stage = pmap(f, kind=concurrent_kind, workers=1, retries=1, backoff=9, on_error="skip", maxsize=4)
        assert list(stage(iter(range(12)))) == list(range(1, 12))
    assert starts.of(0) == [0.0, 9.0]
    assert {time for n in (1, 2, 3) for time in starts.of(n)} == {0.0}
    assert [starts.of(n) for n in range(4, 12)] == [
        [9.0]
    ] * 8  # there was no room for more: it kept its place


@pytest.mark.usefixtures("longest")
def test_a_number_holds_back_the_whole_stage(concurrent_kind: str):
    f = suited(failing(2), concurrent_kind)
    with simulated_starts(Schedule()) as starts:
        stage = pmap(f, kind=concurrent_kind, workers=1, retries=1, retry_on=lambda _: 30, on_error="skip")
        assert list(stage(range(5))) == [0, 1, 3, 4]
    assert all(starts.of(n)[0] < 1 for n in range(3))
    # A process goes on to its next item before the hook is asked here.
    held = [starts.of(n)[-1] for n in ((2, 4) if concurrent_kind == "process" else (2, 3, 4))]
    assert min(held) >= 30 and max(held) < 31


def test_of_several_holds_the_latest_end_counts(concurrent_kind: str):
    def after(error: Exception) -> float:
        return {0: 20, 1: 5}[error.args[0]]

    f = suited(failing(0, 1), concurrent_kind)
    with simulated_starts() as starts:
        stage = pmap(f, kind=concurrent_kind, workers=2, retries=1, retry_on=after, on_error="skip")
        assert list(stage(range(4))) == [2, 3]
    assert all(starts.of(n)[-1] >= 20 for n in (0, 1))


@pytest.mark.usefixtures("longest")
def test_every_stage_has_a_hold_of_its_own(concurrent_kind: str):
    f = suited(failing(2), concurrent_kind)
    first = pmap(
        f, kind=concurrent_kind, workers=1, retries=1, retry_on=lambda _: 30, on_error="skip", name="first"
    )
    second = pmap(suited(abs, concurrent_kind), kind=concurrent_kind, workers=1, name="second", retries=1)
    with simulated(Schedule()) as simulation:
        stream = (first | second)(range(5))
        assert (next(stream), next(stream)) == (0, 1)
        assert simulation.now < 10
        assert list(stream) == [3, 4]


def test_a_number_over_300_fails_the_item_with_its_own_error_and_holds_nobody(concurrent_kind: str):
    f = suited(failing(1), concurrent_kind)
    with simulated_starts() as starts:
        stream = pmap(f, range(4), kind=concurrent_kind, retries=5, retry_on=lambda _: 301, on_error="skip")
        assert list(stream) == [0, 2, 3]
    assert {time for time, _ in starts.times} == {0.0}


@settings(max_examples=40, deadline=None)
@given(
    schedule=schedules(faults=True),
    kind=st.sampled_from(CONCURRENT_KINDS),
    hook=st.sampled_from([Exception, lambda _: True, lambda _: 3]),
    size=st.sampled_from([None, 1, 3]),
    is_ordered=st.booleans(),
)
def test_nothing_is_lost_or_doubled_whatever_waits(
    schedule: Schedule, kind: str, hook: Any, size: int | None, is_ordered: bool
):
    from dataclasses import replace

    with simulated(replace(schedule, transient=True)):
        outputs = list(
            pmap(
                suited(abs, kind), range(9), kind=kind, workers=3, ordered=is_ordered, maxsize=size,
                retries=2, retry_on=hook, timeout=5,
            )
        )  # fmt: skip
    assert (outputs if is_ordered else sorted(outputs)) == list(range(9))


# ------------------------------------------------------------------------------------------------- in real life


def once(tally: Tally, kind: str, bad: int = 1) -> Callable[[int], Any]:
    def f(item: int) -> int:
        if item == bad and tally.turn("f") == 1:
            raise Boom
        return item

    return suited(f, kind)


@pytest.fixture
def tally(folder: Any) -> Tally:
    return Tally(str(folder / "tally"))


@pytest.mark.parametrize(
    "hook", [Boom, (ValueError, Boom), lambda error: isinstance(error, Boom), lambda _: 0.01]
)
def test_an_error_that_is_tried_again_is_overcome(kind: str, is_ordered: bool, tally: Tally, hook: Any):
    stage = pmap(once(tally, kind), kind=kind, ordered=is_ordered, retries=1, retry_on=hook, backoff=0.01)
    assert sorted(stage(range(5))) == list(range(5))


def test_so_it_is_under_async_for(kind: str, tally: Tally):
    async def outputs() -> list[int]:
        return [each async for each in pmap(once(tally, kind), range(5), kind=kind, retries=1, backoff=0.01)]

    assert asyncio.run(outputs()) == list(range(5))


@pytest.mark.parametrize("hook", [ValueError, (), lambda _: False, lambda _: 301])
def test_an_error_that_is_not_tried_again_is_raised_after_one_try(kind: str, log: Log, hook: Any):
    def f(item: int) -> int:
        log.write(item)
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        list(pmap(suited(f, kind), [1, 0], kind=kind, retries=9, retry_on=hook))
    assert log.entries().count(0) == 1


@pytest.mark.parametrize("on_error", ["raise", "skip", lambda *_: SKIP])
def test_a_hook_that_raises_ends_the_stream_with_its_error(kind: str, on_error: Any):
    def hook(error: Exception) -> bool:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        list(
            pmap(
                suited(failing(1), kind),
                range(3),
                kind=kind,
                retries=1,
                retry_on=hook,
                on_error=on_error,
                name="s",
            )
        )
    assert "retry_on of stage 's'" in caught.value.__notes__[0] and "item 1: 1" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("said", "error"), [(None, TypeError), ("5", TypeError), (-1, ValueError), (math.nan, ValueError)]
)
def test_what_a_hook_may_not_say_ends_the_stream(kind: str, said: Any, error: type[Exception]):
    with pytest.raises(error, match="retry_on must give"):
        list(
            pmap(
                suited(failing(1), kind), [1], kind=kind, retries=1, retry_on=lambda _: said, on_error="skip"
            )
        )


def test_a_hook_runs_in_this_process_and_gets_the_error_of_f(kind: str):
    seen: list[Any] = []

    def hook(error: Exception) -> bool:
        seen.append(error)
        return False

    list(pmap(suited(failing(1), kind), [1], kind=kind, retries=1, retry_on=hook, on_error="skip"))
    assert [(type(error), error.args) for error in seen] == [(Boom, (1,))]


def test_a_death_is_tried_again_as_a_hook_says(tally: Tally):
    def f(item: int) -> int:
        import os

        if item == 1:
            tally.turn("f")
            os._exit(3)
        return item

    seen: list[str] = []

    def hook(error: Exception) -> bool:
        seen.append(type(error).__name__)
        return len(seen) < 2

    stream = pmap(
        f, range(3), kind="process", workers=1, retries=9, retry_on=hook, backoff=0, on_error="skip"
    )
    assert list(stream) == [0, 2]
    assert seen == ["WorkerDied"] * 2
    assert tally.turn("f") == 3


@pytest.mark.usefixtures("longest")
def test_close_ends_a_wait_at_once(kind: str, log: Log):
    def f(item: int) -> int:
        log.write(item)
        raise Boom

    stream = pmap(suited(f, kind), [7], kind=kind, retries=1, backoff=60)
    came: list[Any] = []
    taker = threading.Thread(target=lambda: came.extend(stream))
    taker.start()
    log.wait_for(7)
    stream.close()
    taker.join(PATIENCE)
    assert not taker.is_alive()
    assert (came, log.entries()) == ([], [7])


@pytest.mark.usefixtures("longest")
def test_close_ends_a_wait_in_the_thread_of_a_feeder(log: Log):
    def f(item: int) -> int:
        log.write(item)
        raise Boom

    stream = pmap(f, [7], kind="sync", retries=1, backoff=60) | pmap(abs, kind="thread")
    taker = threading.Thread(target=list, args=(stream,))
    taker.start()
    log.wait_for(7)
    stream.close()
    taker.join(PATIENCE)
    assert not taker.is_alive()


def test_a_rest_that_is_over_is_none():
    from fstream._workers.sync import Left

    rest = Rest()
    rest.wait(0.0)
    rest.stop()
    with pytest.raises(Left):
        rest.wait(PATIENCE)


@pytest.mark.usefixtures("longest")
def test_a_wait_leaves_the_loop_to_others(kind: str, log: Log):
    """Were the loop blocked, nobody could cancel the task."""

    def f(item: int) -> int:
        log.write(item)
        raise Boom

    async def main() -> None:
        stream = pmap(suited(f, kind), [7], kind=kind, retries=1, backoff=60)
        task = asyncio.ensure_future(stream._list())
        while not log.entries():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.usefixtures("longest")
def test_a_wait_is_no_part_of_the_time_out(concurrent_kind: str):
    f = suited(abs, concurrent_kind)
    with simulated_starts(Schedule(faults=((1, "times out"),), transient=True, cheap=True)) as starts:
        stream = pmap(f, range(3), kind=concurrent_kind, timeout=5, retries=1, backoff=15)
        assert list(stream) == [0, 1, 2]
    assert starts.of(1) == [0.0, 20.0]


def test_a_hold_takes_back_what_processes_have_not_begun(log: Log):
    def f(item: int) -> int:
        import time

        log.write((item, time.monotonic()))
        if item == 40:
            raise Boom
        time.sleep(0.002)  # stands for work: spans have several items
        return item

    ended: list[float] = []

    def hook(error: Exception) -> float:
        ended.append(time.monotonic())
        return 1.5

    stream = pmap(f, range(400), kind="process", workers=2, retries=1, retry_on=hook, on_error="skip")
    assert list(stream) == [n for n in range(400) if n != 40]
    starts = [when for _, when in log.entries()]
    assert not [when for when in starts if ended[0] + 0.75 < when < ended[0] + 1.5]
    assert max(starts) > ended[0] + 1.5
