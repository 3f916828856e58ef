"""`rate`: how many tries may start in any window of time."""

from __future__ import annotations

import asyncio
import bisect
import math
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count, pairwise
from time import perf_counter, sleep
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fstream import Observer, Rate, observe, pmap
from fstream._flow.pacing import Limit
from fstream._flow.span import Span
from fstream._flow.window import Window
from fstream._workers.simulated.schedule import Schedule
from fstream.testing import schedules, simulated
from tests.conftest import CONCURRENT_KINDS
from tests.functions import identity, suited
from tests.gates import PATIENCE, Log

#: By how much f may see its start later than its run does, in seconds: a busy machine stops a worker between the count
#: of its try and the first step of f. By the clock of the run a rate is never exceeded: a simulated one shows it.
LATE = 0.1


def most_within(times: list[float], window: float, costs: list[float] | None = None) -> float:
    """The most starts, or costs of starts, in any half-open window of so many seconds."""
    sums = [0.0]
    for cost in costs or [1.0] * len(times):
        sums.append(sums[-1] + cost)
    return max(sums[bisect.bisect_left(times, time + window)] - sums[n] for n, time in enumerate(times))


def driven(limit: Limit, seconds: float, late: Callable[[], float] = lambda: 0.0) -> list[float]:
    """The starts of somebody who always has more, and who wakes *late* after each wait."""
    now, times = 5.0, []
    while now < 5.0 + seconds:
        while limit.grant(now, 1):
            limit.start(now, 1.0)
            times.append(now)
        now = limit.opens(now) + late()
    return times


# ------------------------------------------------------------------------------------------------ the account


@pytest.mark.parametrize("n", [0.5, 1, 3, 19, 20, 50, 99, 1000])
@pytest.mark.parametrize("per", [0.1, 1.0, 60.0])
def test_a_limit_is_never_exceeded_and_nearly_reached(n: float, per: float):
    times = driven(Limit(n, per), 10 * per)
    whole, window = max(1, n), per * max(1, 1 / n)
    assert most_within(times, window) <= whole
    assert len(times) >= 0.97 * n * 10
    assert most_within(times, 1e-9) <= max(1, n / 20)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), delays=st.lists(st.floats(0, 0.03), min_size=1, max_size=50))
def test_a_limit_is_never_exceeded_however_late_one_wakes(n: int, delays: list[float]):
    late = iter(delays * 10_000)
    times = driven(Limit(n, 1.0), 5, lambda: next(late))
    assert most_within(times, 1.0) <= n


def test_who_wakes_late_makes_good_for_it():
    late = iter([0.0, 0.0, 0.02, 0.0, 0.015] * 10_000)
    assert len(driven(Limit(50, 1.0), 10, lambda: next(late))) >= 0.97 * 500


@settings(max_examples=60, deadline=None)
@given(costs=st.lists(st.floats(0, 10), min_size=1, max_size=80))
def test_costs_add_up_to_no_more_than_the_limit(costs: list[float]):
    limit, now, times = Limit(10, 1.0), 3.0, []
    for cost in costs:
        while not limit.grant(now, 1, cost):
            assert limit.opens(now, cost) > now
            now = limit.opens(now, cost)
        limit.start(now, cost)
        times.append(now)
    assert most_within(times, 1.0, costs) <= 10 + 1e-6


def test_what_is_given_back_may_start():
    limit = Limit(10, 1.0)
    assert limit.grant(1.0, 99) == 1
    assert limit.grant(1.0, 99) == 0
    limit.give_back(1.0)
    assert limit.grant(1.0, 99) == 1
    limit.start(1.0, 1.0)
    limit.give_back(1.0, 1.0)
    assert limit.used == 0


def test_what_is_counted_and_begins_later_counts_until_then():
    limit = Limit(100, 1.0)
    assert limit.grant(1.0, 5) == 5
    assert limit.grant(9.0, 5) == 5
    limit.start(9.0, 5)
    assert limit.used == 10
    limit.start(9.5, 5)
    limit.look(10.2)
    assert limit.used == 5
    limit.look(10.6)
    assert limit.used == 0


def test_starts_that_are_noted_together_count_as_late_as_the_last_of_them():
    limit = Limit(100, 10.0)
    assert limit.grant(1.0, 5) == 5
    limit.start(1.0, 1)
    limit.start(1.005, 4)
    assert len(limit.log) == 1
    limit.look(1.002 + limit.per)
    assert limit.used == 5
    limit.look(1.006 + limit.per)
    assert limit.used == 0


def test_a_limit_keeps_few_times_of_many_starts():
    limit = Limit(1_000_000, 60.0)
    assert len(driven(limit, 0.5)) > 1000
    assert len(limit.log) < 100


def test_a_limit_takes_another_clock_as_it_is():
    limit = Limit(1, 1.0)
    assert limit.grant(5000.0, 1)
    limit.start(5000.0, 1)
    assert limit.grant(1.0, 1)


@pytest.mark.parametrize(("n", "per"), [(1e-12, 1.0), (5e-324, 1.0), (1e-300, 1e300), (1, 1.7e308)])
def test_a_limit_of_one_start_in_an_age_can_be_waited_for(n: float, per: float):
    limit = Limit(n, per)
    assert limit.grant(5.0, 1) == 1
    limit.start(5.0, 1.0)
    assert limit.grant(5.0, 1) == 0
    assert 1e9 < limit.opens(5.0) < threading.TIMEOUT_MAX


# ------------------------------------------------------------------------------------------------ the option


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (0, ValueError, "rate must be greater than 0 starts a second and finite, got 0"),
        (-1, ValueError, "rate must be greater than 0"),
        (math.nan, ValueError, "rate must be greater than 0"),
        (10**400, ValueError, "rate must be greater than 0 starts a second and finite, got 1000"),
        (True, TypeError, "rate must be a number of starts a second or a Rate, got True"),
        ((50, 1), TypeError, r"got \(50, 1\): write rate=Rate\(50, 1\)"),
        ("5", TypeError, "rate must be a number"),
    ],
)
def test_what_is_no_rate_is_an_error_at_once(rate: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pmap(abs, rate=rate)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "n must be greater than 0 and finite, got 0"),
        ((math.inf,), ValueError, "n must be greater than 0 and finite"),
        ((1, 0), ValueError, "per must be greater than 0 and finite, got 0"),
        (("1",), TypeError, "n must be a number, got '1'"),
        ((1, True), TypeError, "per must be a number, got True"),
        ((1, 1, 5), TypeError, "cost must be a function of an item or None, got 5"),
    ],
)
def test_a_rate_says_what_is_wrong_with_it(arguments: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Rate(*arguments)


def test_a_rate_that_is_pickled_becomes_another_one():
    rate = Rate(5, per=60, cost=len)
    copy = pickle.loads(pickle.dumps(rate))
    assert (copy.n, copy.per, copy.cost) == (5, 60, len)
    assert copy is not rate
    assert repr(Rate(5, per=60.0)) == "Rate(5, per=60.0)" and repr(Rate(0.5)) == "Rate(0.5)"
    assert pmap(abs, rate=rate) == pmap(abs, rate=rate) != pmap(abs, rate=copy)


# ------------------------------------------------------------------------------------------ under a schedule


class Starts(Observer):
    """When items were taken, by the clock of a simulation."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.times: list[float] = []
        self.indices: list[int] = []

    def taken(self, stage: Any, start: int, count: int, worker: int | None) -> None:
        if worker is not None and stage.kind != "sync":
            self.times += [self.clock()] * count
            self.indices += range(start, start + count)


@contextmanager
def simulated_starts(schedule: Schedule) -> Iterator[Starts]:
    with simulated(schedule) as simulation:
        starts = Starts(simulation.clock)
        with observe(starts):
            yield starts


@settings(max_examples=40, deadline=None)
@given(
    schedule=schedules(faults=True),
    kind=st.sampled_from(CONCURRENT_KINDS),
    n=st.sampled_from([0.5, 3, 40, 5000]),
    retries=st.integers(0, 2),
    size=st.sampled_from([None, 2, 0]),
    is_ordered=st.booleans(),
)
def test_no_window_has_more_starts_whoever_goes_on_when(
    schedule: Schedule, kind: str, n: float, retries: int, size: int | None, is_ordered: bool
):
    waits = {"retries": retries, "backoff": 0.05} if retries else {}
    with simulated_starts(schedule) as starts:
        stage = pmap(
            suited(abs, kind), kind=kind, workers=4, rate=n, ordered=is_ordered, maxsize=size,
            timeout=5, on_error="skip", **waits,
        )  # fmt: skip
        outputs = list(stage(range(60)))
    assert len(outputs) >= 55
    assert set(starts.indices) == set(range(60))
    if not schedule.cheap:  # else a span that is taken back is told of twice, though it began once
        assert most_within(starts.times, max(1, 1 / n)) <= max(1, n)


def test_50_a_second_are_50_a_second(concurrent_kind: str):
    with simulated_starts(Schedule(cheap=True)) as starts:
        assert len(list(pmap(suited(abs, concurrent_kind), range(500), kind=concurrent_kind, rate=50))) == 500
    assert most_within(starts.times, 1.0) <= 50
    assert most_within(starts.times, 1e-6) <= 2
    assert starts.times[-1] - starts.times[0] <= 10 / 0.97


def test_one_rate_is_one_limit_for_several_stages_and_streams(concurrent_kind: str):
    rate, f = Rate(20), suited(abs, concurrent_kind)
    with simulated_starts(Schedule(cheap=True)) as starts:
        stage = pmap(f, kind=concurrent_kind, rate=rate) | pmap(f, kind=concurrent_kind, rate=rate)
        first, second = stage(range(20)), stage(range(20))
        assert [next(first), next(second), *first, *second] == [0, 0, *range(1, 20), *range(1, 20)]
    assert len(starts.times) >= 80
    assert most_within(sorted(starts.times), 1.0) <= 20
    assert starts.times[-1] - starts.times[0] <= 4 / 0.97 + 0.5


def test_further_tries_count(concurrent_kind: str):
    def f(item: int) -> None:
        raise ValueError(item)

    with simulated_starts(Schedule(cheap=True)) as starts:
        stage = pmap(
            suited(f, concurrent_kind), kind=concurrent_kind, rate=10, retries=2, backoff=0, on_error="skip"
        )
        assert list(stage(range(20))) == []
    assert len(starts.times) == 60
    assert most_within(starts.times, 1.0) <= 10


def test_a_start_costs_what_the_item_says(concurrent_kind: str):
    rate = Rate(10, cost=lambda item: item)
    with simulated_starts(Schedule(cheap=True)) as starts:
        stage = pmap(suited(abs, concurrent_kind), kind=concurrent_kind, rate=rate)
        assert list(stage([5, 5, 5, 0, 10, 1])) == [5, 5, 5, 0, 10, 1]
    costs = [[5, 5, 5, 0, 10, 1][index] for index in starts.indices]
    assert most_within(starts.times, 1.0, [float(cost) for cost in costs]) <= 10


# ------------------------------------------------------------------------------------------------ in real life


def started(kind: str) -> Callable[[int], Any]:
    def f(item: int) -> float:
        from time import perf_counter

        return perf_counter()

    return suited(f, kind)


def test_f_begins_no_more_often_than_it_may(kind: str):
    times = sorted(pmap(started(kind), range(30), kind=kind, rate=Rate(10, per=0.5)))
    assert most_within(times, 0.5 - LATE) <= 10
    assert times[-1] - times[0] >= 1.0


def test_so_it_is_under_async_for_and_the_loop_is_free(kind: str):
    async def main() -> list[float]:
        stream = pmap(started(kind), range(20), kind=kind, rate=Rate(10, per=0.5))
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counter = asyncio.ensure_future(count_turns())
        times = [time async for time in stream]
        counter.cancel()
        assert turns > 100
        return times

    times = sorted(asyncio.run(main()))
    assert most_within(times, 0.5 - LATE) <= 10


def test_a_try_counts_when_f_begins_and_not_when_on_start_does(concurrent_kind: str):
    def slow_start() -> None:
        import time

        time.sleep(0.2)  # stands for a slow log-in

    times = sorted(
        pmap(started(concurrent_kind), range(24), kind=concurrent_kind, workers=4, rate=Rate(8, per=0.4),
             on_start=slow_start)
    )  # fmt: skip
    assert most_within(times, 0.4 - LATE) <= 8


def fails_once(item: int, attempt: int) -> int:
    if attempt == 0:
        raise ValueError(item)
    return item


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["process", ProcessPoolExecutor])
def test_when_a_failed_try_in_another_process_began_is_told(kind: Any, monkeypatch: pytest.MonkeyPatch):
    """The way there takes some milliseconds, and no slot comes back of what is tried again."""
    told: list[int] = []
    began = Window.began

    def spy(window: Window, span: Span, elapsed: float) -> None:
        told.append(span.start)
        began(window, span, elapsed)

    monkeypatch.setattr(Window, "began", spy)
    assert list(pmap(fails_once, range(2), kind=kind, workers=1, rate=100, retries=1, backoff=0)) == [0, 1]
    assert sorted(told) == [0, 0, 1, 1]


def test_what_a_closed_stream_had_in_hand_does_not_block_its_rate_for_ever(concurrent_kind: str):
    rate = Rate(100_000, per=0.2)
    for _ in range(3):
        stream = pmap(suited(abs, concurrent_kind), count(), kind=concurrent_kind, rate=rate)
        for _ in range(2_000):
            next(stream)
        stream.close()
    assert len(list(pmap(abs, range(50_000), rate=rate))) == 50_000


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("cost", "message"), [(11, "cost must give a number from 0 to the 10"), ("1", "cost must give a number")]
)
def test_a_cost_that_is_none_is_an_error_that_names_the_item(
    kind: str, on_error: Any, cost: Any, message: str
):
    rate = Rate(10, cost=lambda item: cost if item == 3 else 0)
    stream = pmap(suited(abs, kind), range(6), kind=kind, rate=rate, on_error=on_error)
    given: list[int] = []
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        given.extend(stream)
    assert "item 3: 3" in "".join(caught.value.__notes__)


def test_costs_go_with_all_kinds_and_both_iterations(kind: str):
    rate = Rate(1000, cost=lambda item: item)
    assert list(pmap(suited(abs, kind), range(5), kind=kind, rate=rate)) == list(range(5))

    async def outputs() -> list[int]:
        return [each async for each in pmap(suited(abs, kind), range(5), kind=kind, rate=rate)]

    assert asyncio.run(outputs()) == list(range(5))


def test_close_ends_a_wait_for_the_rate_at_once(kind: str, log: Log):
    stream = pmap(suited(log.write, kind), count(), kind=kind, rate=Rate(1, per=1000))
    taker = threading.Thread(target=list, args=(stream,))
    taker.start()
    log.take(1)
    stream.close()
    taker.join(PATIENCE)
    assert not taker.is_alive()
    assert len(log.entries()) == 1


def metronome(seconds: float, a_second: int) -> int:
    """Count how often a thread that sleeps from one time to the next comes to it, within the same burst."""
    begun = due = perf_counter()
    ticks = 0
    while (now := perf_counter()) - begun < seconds:
        ticks += 1
        due = max(due, now - 0.05) + 1 / a_second
        sleep(max(0.0, due - now))
    return ticks


@pytest.mark.slow
def test_measured_it_is_never_over_and_nearly_reached(kind: str):
    times: list[float] = []
    with ThreadPoolExecutor(1) as beside:
        ticks = beside.submit(metronome, 10, 50)  # a busy machine is late for it, too
        with pmap(started(kind), count(), kind=kind, rate=50, workers=4) as stream:
            for time in stream:
                times.append(time)
                if time - times[0] >= 10:
                    break
        most = min(500, ticks.result())
    times = sorted(times)
    assert most_within(times, 1.0 - LATE) <= 50
    begun = [time for time in times if time - times[0] < 10]
    assert len(begun) >= 0.8 * most  # an item has several threads to wait for
    assert max(after - before for before, after in pairwise(times)) < 2
    assert perf_counter() > times[-1]


def test_a_stream_of_one_start_in_an_age_waits_until_it_is_closed(kind: str):
    stream = pmap(suited(identity, kind), [1, 2], kind=kind, rate=1e-12)
    assert next(stream) == 1
    closer = threading.Timer(0.05, stream.close)
    closer.start()
    assert list(stream) == []
    closer.join()
