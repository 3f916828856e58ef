"""Laws of several streams at once on one pool of processes: none notices the others, and the pool is whole afterwards.

Two to five pipelines are drawn with their options, faults and ends. Each is consumed by a thread of its own, or by a
task on one loop. The slice that a stage has a worker for is drawn, too: with none, workers change hands all the time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fstream import Failed, Stream, pfilter, pflat_map, pmap
from fstream._workers.process import pool
from fstream._workers.process.pool import POOL
from property_tests.conversations import Boom
from property_tests.strategies import Counted
from property_tests.worlds import PROCESS
from tests.faults.faulty import eventually

pytestmark = pytest.mark.slow

CPUS = 2
PAUSE = 0.002  # seconds that f takes of a stage that is slow: so a few items are more than a slice


class Notes:
    """What the workers of a pipeline did: a file for each kind of event, with a number a line."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def note(self, what: str, number: int) -> None:
        file = os.open(f"{self.path}.{what}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, b"%d\n" % number)
        finally:
            os.close(file)

    def counts(self, what: str) -> Counter[int]:
        if not os.path.exists(f"{self.path}.{what}"):
            return Counter()
        with open(f"{self.path}.{what}") as lines:
            return Counter(map(int, lines))


@dataclass(frozen=True)
class Functions:
    """The f of a stage, and what its workers start and end with."""

    stage: int
    workers: int
    notes: Notes
    fails_at: int | None
    pause: float

    def number(self, item: int, worker_info: Any) -> int:
        assert worker_info.index in range(self.workers)
        self.notes.note(f"call{self.stage}", item)
        if self.pause:
            time.sleep(self.pause)
        if item == self.fails_at:
            raise Boom(item)
        return item

    def resourceful(self, item: int, pid: int, worker_info: Any) -> int:
        assert pid == os.getpid()
        return self.number(item, worker_info)

    def on_start(self) -> int:
        self.notes.note(f"start{self.stage}", os.getpid())
        return os.getpid()

    def on_done(self, _: Any, pid: int) -> None:
        assert pid == os.getpid()
        self.notes.note(f"done{self.stage}", pid)


@dataclass(frozen=True)
class Step:
    """The options of a stage, all of which give each item as it is."""

    workers: int
    ordered: bool
    maxsize: int | None
    is_slow: bool
    has_resources: bool
    most_items: int | None
    others: dict[str, Any]

    def stage(self, position: int, notes: Notes, fails_at: int | None) -> Any:
        functions = Functions(position, self.workers, notes, fails_at, PAUSE * self.is_slow)
        options: dict[str, Any] = {"workers": self.workers, "ordered": self.ordered, "maxsize": self.maxsize}
        if self.most_items:
            options["max_items_per_worker"] = self.most_items
        if self.has_resources:
            options |= {"on_start": functions.on_start, "on_done": functions.on_done}
        f = functions.resourceful if self.has_resources else functions.number
        return pmap(f, kind="process", **options, **self.others)


STEPS = st.builds(
    Step,
    workers=st.integers(1, 3),
    ordered=st.booleans(),
    maxsize=st.sampled_from([None, None, 0, 1, 2, 5]),
    is_slow=st.booleans(),
    has_resources=st.booleans(),
    most_items=st.sampled_from([None, None, None, 40]),
    others=st.sampled_from([{}, {}, {"retries": 1, "backoff": 0}, {"on_error": "keep"}, {"timeout": 30.0}]),
)


@dataclass(frozen=True)
class Pipeline(Counted):
    """One stream and its consumer, who takes *taken* outputs and then leaves by *leave*."""

    length: int
    steps: list[Step]
    fails_at: int | None
    leave: str
    taken: int
    held: list[int] = field(default_factory=list, compare=False, repr=False)
    outputs: list[Any] = field(default_factory=list, compare=False, repr=False)

    @property
    def in_order(self) -> bool:
        return all(step.ordered for step in self.steps)

    @property
    def is_exhausted(self) -> bool:
        return self.leave == "exhausted"

    @property
    def is_kept(self) -> bool:
        """What fails does so in the last stage, which keeps it."""
        return self.steps[-1].others.get("on_error") == "keep"

    @property
    def tries(self) -> int:
        return self.steps[-1].others.get("retries", 0) + 1  # type: ignore[no-any-return]

    def stream(self, notes: Notes) -> Stream[Any]:
        stream: Any = self.source()
        for position, step in enumerate(self.steps):
            is_last = position == len(self.steps) - 1
            stream = step.stage(position, notes, self.fails_at if is_last else None)(stream)
        return stream  # type: ignore[no-any-return]

    def consume(self, notes: Notes) -> BaseException | None:
        """Take what is to be taken, leave, and give the error that was met."""
        stream = self.stream(notes)
        try:
            for output in stream if self.is_exhausted else islice(stream, self.taken):
                self.outputs.append(output)
            if self.leave == "left by an error":
                with stream:
                    raise KeyError
            if self.leave == "closed":
                stream.close()
        except KeyError:
            pass
        except Boom as error:
            return error
        del stream
        gc.collect()
        return None

    async def consume_as_task(self, notes: Notes) -> BaseException | None:
        stream = self.stream(notes)
        try:
            if self.is_exhausted or self.taken:
                async for output in stream:
                    self.outputs.append(output)
                    if not self.is_exhausted and len(self.outputs) >= self.taken:
                        break
            await stream.aclose()
        except Boom as error:
            return error
        return None

    def check(self, notes: Notes, error: BaseException | None) -> None:
        """It has done what it does alone."""
        fails = self.fails_at is not None and self.fails_at < self.length and not self.is_kept
        expected = list(range(self.length))
        outputs = [output.item if isinstance(output, Failed) else output for output in self.outputs]
        assert [type(output) for output in self.outputs].count(Failed) <= self.is_kept
        if self.in_order:
            before = expected[: self.fails_at] if fails else expected
            assert outputs == before[: len(outputs)]
            if error is not None or (self.is_exhausted and not fails):
                assert outputs == before
        assert Counter(outputs) <= Counter(expected), "something came twice, or from nowhere"
        if error is not None:
            assert fails and error.args == (self.fails_at,)
            assert self.fails_at not in outputs
        elif self.is_exhausted:
            assert not fails and sorted(outputs) == expected
        else:
            assert len(outputs) == min(self.taken, self.length)
        assert max(self.held, default=0) <= self.bound
        for position, step in enumerate(self.steps):
            calls = notes.counts(f"call{position}")
            assert calls.keys() <= set(expected)
            tries = self.tries if position == len(self.steps) - 1 else 1
            assert all(count <= (tries if n == self.fails_at else 1) for n, count in calls.items())
            if self.is_exhausted and not fails:
                assert set(calls) == set(expected)
            if step.has_resources and not step.most_items:
                assert eventually(
                    lambda position=position: (
                        notes.counts(f"done{position}") == notes.counts(f"start{position}")
                    ),
                    10.0,
                )
                assert len(notes.counts(f"start{position}")) <= step.workers


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    steps = draw(st.lists(STEPS, min_size=1, max_size=2))
    is_slow = any(step.is_slow for step in steps)
    length = draw(st.integers(0, 30 if is_slow else 100))
    fails_at = draw(st.none() | st.none() | st.integers(0, max(length - 1, 0)))
    leave = draw(
        st.sampled_from(["exhausted", "exhausted", "exhausted", "closed", "dropped", "left by an error"])
    )
    return Pipeline(length, steps, fails_at, leave, draw(st.integers(0, length)))


@contextmanager
def small_pool(turn: float) -> Iterator[None]:
    """The program's pool on a machine of two CPUs, where workers change hands after *turn* seconds.

    A worker that is stopped has the time that a loaded machine takes: if it is killed, others lose their ``on_done``.
    """
    with ExitStack() as patches:
        patches.enter_context(patch.object(pool, "cpu_count", lambda: CPUS))
        patches.enter_context(patch("fstream._workers.process.leaving.STOP_SECONDS", 20.0))
        for module in "pump", "workers":
            patches.enter_context(patch(f"fstream._workers.process.{module}.SLICE", turn))
        yield


def check_whole() -> None:
    """All workers are given back, and nobody waits for one."""
    assert eventually(lambda: not (POOL.leases or POOL.waiting or POOL.tenants), 10.0), (
        POOL.leases, POOL.waiting, POOL.tenants
    )  # fmt: skip


Consumers = Callable[[list[Pipeline], list[Notes]], list[BaseException | None]]


def in_threads(several: list[Pipeline], notes: list[Notes]) -> list[BaseException | None]:
    with ThreadPoolExecutor(len(several)) as threads:
        return list(threads.map(Pipeline.consume, several, notes))


def on_one_loop(several: list[Pipeline], notes: list[Notes]) -> list[BaseException | None]:
    async def main() -> list[BaseException | None]:
        return await asyncio.gather(*map(Pipeline.consume_as_task, several, notes))

    return asyncio.run(main())


@settings(max_examples=PROCESS.examples * 2)
@given(
    several=st.lists(pipelines(), min_size=2, max_size=5),
    consume=st.sampled_from([in_threads, on_one_loop]),
    turn=st.sampled_from([0.0, 0.002, pool.SLICE]),
)
def test_streams_at_once_do_each_what_they_do_alone(
    several: list[Pipeline], consume: Consumers, turn: float
) -> None:
    with tempfile.TemporaryDirectory() as folder, small_pool(turn):
        notes = [Notes(Path(folder, str(number))) for number in range(len(several))]
        errors = consume(several, notes)
        for pipeline, of_it, error in zip(several, notes, errors, strict=True):
            pipeline.check(of_it, error)
        check_whole()


def as_pairs(number: int) -> tuple[int, int]:
    return number, number + 1


def is_even(number: int) -> bool:
    return number % 2 == 0


VERBS = {
    "pmap": (pmap, as_pairs, lambda items: [as_pairs(n) for n in items]),
    "pfilter": (pfilter, is_even, lambda items: [n for n in items if is_even(n)]),
    "pflat_map": (pflat_map, as_pairs, lambda items: [each for n in items for each in as_pairs(n)]),
}


@settings(max_examples=PROCESS.examples)
@given(
    several=st.lists(
        st.tuples(
            st.sampled_from(sorted(VERBS)), st.lists(st.integers(0, 99), max_size=40), st.integers(1, 3)
        ),
        min_size=2,
        max_size=5,
    ),
    turns=st.lists(st.integers(0, 4), max_size=60),
)
def test_streams_that_one_consumer_asks_in_turn_give_each_what_they_give_alone(
    several: list[tuple[str, list[int], int]], turns: list[int]
) -> None:
    with small_pool(0.0):
        streams = []
        for name, items, workers in several:
            verb, f, _ = VERBS[name]
            streams.append(verb(f, iter(items), kind="process", workers=workers, maxsize=2))
        outputs: list[list[Any]] = [[] for _ in several]
        for turn in turns:
            outputs[turn % len(several)] += islice(streams[turn % len(several)], 1)
        for (name, items, _), stream, given_before in zip(several, streams, outputs, strict=True):
            assert [*given_before, *stream] == VERBS[name][2](items)
        check_whole()
