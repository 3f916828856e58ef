"""Laws of several streams at once on one pool of simulated processes, under schedules that are drawn.

What decides there is what ships: the pool, the pumps, and what a process does for its parent. `test_many_streams.py`
has the same laws with real processes, in the few orders that a machine has.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from fstream import Processes, Stream, pmap
from fstream._workers.process import pool
from fstream._workers.simulated.schedule import Schedule, Simulation
from fstream.testing import schedules, simulated
from property_tests.strategies import Counted

CPUS = 2

#: What the workers of the stages have done: they are simulated, so they have this very counter.
DONE: Counter[tuple[str, int]] = Counter()

NUMBERS = count()


def started(stage: int) -> int:
    DONE["start", stage] += 1
    return stage


def ended(stage: int, _status: Any, resource: int) -> None:
    assert resource == stage
    DONE["end", stage] += 1


def unchanged(workers: int, item: int, *resources: int, worker_info: Any) -> int:
    assert worker_info.index in range(workers)
    return item


@dataclass(frozen=True)
class Step:
    """The options of a stage, which gives each item as it is."""

    workers: int
    ordered: bool
    maxsize: int | None
    has_resources: bool
    most_items: int | None
    timeout: float | None
    backoff: float
    number: int = field(default_factory=NUMBERS.__next__, compare=False)

    def stage(self, kind: Any) -> Any:
        resources: dict[str, Any] = {}
        if self.has_resources:
            resources = {"on_start": partial(started, self.number), "on_done": partial(ended, self.number)}
        return pmap(
            partial(unchanged, self.workers), kind=kind, workers=self.workers, ordered=self.ordered,
            maxsize=self.maxsize, max_items_per_worker=self.most_items, timeout=self.timeout,
            retries=9, backoff=self.backoff, **resources,
        )  # fmt: skip


STEPS = st.builds(
    Step,
    workers=st.integers(1, 3),
    ordered=st.booleans(),
    maxsize=st.sampled_from([None, 0, 1, 2, 5]),
    has_resources=st.booleans(),
    most_items=st.sampled_from([None, None, 3]),
    timeout=st.sampled_from([None, 5.0]),
    backoff=st.sampled_from([0.0, 0.1]),
)


@dataclass(frozen=True)
class Pipeline(Counted):
    """One stream and its consumer, who takes *taken* outputs and then leaves by *leave*."""

    length: int
    steps: list[Step]
    leave: str
    taken: int
    held: list[int] = field(default_factory=list, compare=False, repr=False)
    outputs: list[int] = field(default_factory=list, compare=False, repr=False)

    def stream(self, kind: Any) -> Stream[int]:
        stream: Any = self.source()
        for step in self.steps:
            stream = step.stage(kind)(stream)
        return stream  # type: ignore[no-any-return]

    def take(self, stream: Stream[int], most: int) -> None:
        self.outputs.extend(islice(stream, most))

    def part(self, stream: Stream[int]) -> None:
        """Take what is left to be taken, and leave."""
        if self.leave == "exhausted":
            self.outputs.extend(stream)
        else:
            self.take(stream, self.taken - len(self.outputs))
        if self.leave == "closed":
            stream.close()

    async def consume(self, kind: Any) -> None:
        """The same as a task; the simulation's loop closes nothing that is dropped."""
        stream = self.stream(kind)
        if self.leave == "exhausted" or self.taken:
            async for output in stream:
                self.outputs.append(output)
                if self.leave != "exhausted" and len(self.outputs) >= self.taken:
                    break
        await stream.aclose()

    def check(self, faults: bool) -> None:
        """It has done what it does alone."""
        expected = list(range(self.length))
        if self.leave != "exhausted":
            assert len(self.outputs) >= min(self.taken, self.length)
        if all(step.ordered for step in self.steps):
            assert self.outputs == expected[: len(self.outputs)]
        assert Counter(self.outputs) <= Counter(expected), "something came twice, or from nowhere"
        if self.leave == "exhausted":
            assert sorted(self.outputs) == expected
        assert max(self.held, default=0) <= self.bound
        for step in self.steps:
            starts, ends = DONE["start", step.number], DONE["end", step.number]
            assert ends <= starts if faults else ends == starts
            if not (faults or step.most_items):
                assert starts <= step.workers


PIPELINES = st.builds(
    Pipeline,
    length=st.integers(0, 12),
    steps=st.lists(STEPS, min_size=1, max_size=3),
    leave=st.sampled_from(["exhausted", "exhausted", "closed", "dropped"]),
    taken=st.integers(0, 12),
)


def check_whole(simulation: Simulation) -> None:
    """All workers are given back, nobody waits for one, and those that are not warm have ended."""
    simulation.finish_all(lambda: any(run.members for run in simulation.runs))
    warm = set()
    for each in simulation.pools.values():
        assert not (each.leases or each.waiting or each.tenants)
        assert not any(link.homes for link in each.warm._links)
        warm |= {link.process for link in each.warm._links}
    # A process that was told to end does when it goes on.
    simulation.finish_all(lambda: {each for each in simulation.processes if each.is_alive()} - warm)


def as_tasks(several: list[Pipeline], kind: Any, turns: list[int]) -> None:
    consume = [pipeline.consume for pipeline in several]
    list(pmap(lambda number: consume[number](kind), range(len(several)), workers=len(several), kind="task"))


def in_turn(several: list[Pipeline], kind: Any, turns: list[int]) -> None:
    streams = [pipeline.stream(kind) for pipeline in several]
    for turn in turns:
        number = turn % len(several)
        if several[number].leave == "exhausted" or len(several[number].outputs) < several[number].taken:
            several[number].take(streams[number], 1)
    for pipeline in several:
        pipeline.part(streams.pop(0))


Consumers = Callable[[list[Pipeline], Any, list[int]], None]


@settings(max_examples=6 * settings.default.max_examples)  # type: ignore[union-attr]
@given(
    several=st.lists(PIPELINES, min_size=2, max_size=5),
    schedule=st.booleans().flatmap(lambda faults: schedules(faults=faults)),
    size=st.sampled_from([1, 2, None]),
    consume=st.sampled_from([as_tasks, in_turn]),
    turns=st.lists(st.integers(0, 4), max_size=20),
)
def test_streams_at_once_do_each_what_they_do_alone(
    several: list[Pipeline], schedule: Schedule, size: int | None, consume: Consumers, turns: list[int]
) -> None:
    DONE.clear()
    with (
        patch.object(pool, "cpu_count", lambda: CPUS),
        simulated(replace(schedule, transient=True)) as simulation,
    ):
        consume(several, "process" if size is None else Processes(size), turns)
        if any(pipeline.leave == "dropped" for pipeline in several):
            gc.collect()
        check_whole(simulation)
        for pipeline in several:
            pipeline.check(bool(schedule.faults))


@settings(max_examples=2 * settings.default.max_examples)  # type: ignore[union-attr]
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    endless=st.lists(st.sampled_from([None, 3]), min_size=1, max_size=2),
    schedule=schedules(),
    size=st.integers(1, 2),
)
def test_each_stream_gets_its_turn_beside_those_that_never_end(
    lengths: list[int], endless: list[int | None], schedule: Schedule, size: int
) -> None:
    most = 4000  # outputs of those that never end; mostly it is a dozen
    kind, left = Processes(size), len(lengths)
    numbers: list[Any] = [*lengths, *(None for _ in endless)]

    async def consume(number: int) -> None:
        nonlocal left
        length = numbers[number]
        if length is not None:
            outputs = [x async for x in pmap(abs, range(length), kind=kind, workers=2)]
            assert outputs == list(range(length))
            left -= 1
            return
        taken, stream = 0, pmap(abs, count(), kind=kind, workers=2, maxsize=endless[number - len(lengths)])
        async for _ in stream:
            taken += 1
            assert taken < most, "the others wait for ever"
            if not left:
                break
        await stream.aclose()

    with simulated(replace(schedule, cheap=False)):
        list(pmap(consume, range(len(numbers)), workers=len(numbers)))
