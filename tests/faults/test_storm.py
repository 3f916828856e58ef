"""A storm: while a long job runs on processes, workers are killed at random from outside."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from fstream import WorkerDied, pmap
from tests.faults.faulty import children, ten

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ITEMS = 20_000
INTERVAL = 0.1


class Killer:
    """Kills one worker at random, again and again, until told to stop.

    It leaves the next alone until there was an output since: on a machine so loaded that a worker takes longer to start
    than it has to live, nothing would ever be done.
    """

    def __init__(self, seed: int) -> None:
        self.killed = 0
        self._random = random.Random(seed)
        self._moved, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def outputs_of(self, stream: Iterable[int]) -> list[int]:
        """Consume *stream*; whoever is killed in ``on_done`` takes no output along."""
        outputs = []
        try:
            for output in stream:
                outputs.append(output)
                self._moved.set()
        except WorkerDied as died:
            if "in on_done" not in str(died):
                raise
        return outputs

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            if self._moved.is_set() and (found := children()):
                self._moved.clear()
                victim = self._random.choice(found)
                try:
                    victim.kill()
                except psutil.NoSuchProcess:
                    continue
                self.killed += 1

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()


def work() -> Callable[[int], int]:
    """Work that takes a while, so that many are killed before it is done.

    It is pickled by value: a worker that lives so short a time cannot import this module's tools too.
    """

    def f(item: int) -> int:
        time.sleep(0.001)
        return item * 10

    return f


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_all_outputs_once_whoever_is_killed(ordered: bool) -> None:
    stage = pmap(work(), kind="process", workers=4, retries=20, backoff=0, ordered=ordered)
    items = ITEMS if ordered else ITEMS // 4
    with Killer(seed=items) as killer:
        got = killer.outputs_of(stage(range(items)))
    assert killer.killed >= 5, "too few to speak of a storm"
    assert (got if ordered else sorted(got)) == [ten(item) for item in range(items)]


def test_a_storm_over_two_stages_of_processes() -> None:
    stage = pmap(work(), kind="process", workers=2, retries=20, backoff=0)
    with Killer(seed=2) as killer:
        got = killer.outputs_of(stage(range(3_000)) | stage)
    assert killer.killed >= 3
    assert got == [item * 100 for item in range(3_000)]


def test_a_storm_over_four_streams_at_once() -> None:
    """They share the workers; each has options of its own, and two have resources there."""

    def with_resource(item: int, resource: int) -> int:
        time.sleep(0.001)
        return item * resource

    stormproof: dict[str, Any] = {"kind": "process", "workers": 2, "retries": 20, "backoff": 0}
    stages = [
        pmap(work(), **stormproof),
        pmap(work(), **stormproof, ordered=False),
        pmap(with_resource, **stormproof, on_start=lambda: 10),
        pmap(with_resource, **stormproof, maxsize=7, on_start=lambda: 10, on_done=lambda _, resource: None),
    ]
    with Killer(seed=4) as killer, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(killer.outputs_of, (stage(range(250)) for stage in stages)))
    assert killer.killed >= 3
    expected = [ten(item) for item in range(250)]
    assert [sorted(outputs) if n == 1 else outputs for n, outputs in enumerate(found)] == [expected] * 4
