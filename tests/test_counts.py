"""How often a pipeline does what costs: takes, wake-ups, messages, locks. No noise changes much there.

What depends on time (how much goes into a span, how much a window may hold, who has waited too long) goes by a clock of
the tests' own: an item costs the same whatever else the machine does, and nobody is ever late.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from types import SimpleNamespace
from typing import Any

import pytest

from fstream import pmap
from fstream._engine import run as run_module
from fstream._engine.queues import ThreadQueue
from fstream._engine.run import Run
from fstream._flow.span import Span
from fstream._flow.window import Window
from fstream._workers.process.queue import PipeQueue
from fstream._workers.process.wire import Wire
from fstream._workers.task.queues import TaskQueue
from tests.functions import identity
from tests.gates import PATIENCE, Gate, opened_when

ITEMS = 100_000

#: How long nothing happens in a pipeline that rests, in seconds, and how often that is looked at before it must rest:
#: on a loaded machine the workers may still start.
LONG, LOOKS = 0.3, 30

#: What is counted, and where it happens.
COUNTED: dict[str, list[tuple[type, str]]] = {
    "take": [(Window, "take"), (ThreadQueue, "_get"), (TaskQueue, "_get")],
    "wake": [(queue, name) for queue in (ThreadQueue, TaskQueue, PipeQueue) for name in ("signal", "watch")],
    "send": [(Wire, "push")],
    "receive": [(Wire, "receive")],
}


class Counts:
    """How often each thing has happened, in any thread of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        for what, places in COUNTED.items():
            for owner, name in places:
                monkeypatch.setattr(owner, name, self.counting(what, getattr(owner, name)))
        lock = type("CountedLock", (type(threading.RLock()),), {})
        for name in ("acquire", "__enter__"):
            setattr(lock, name, self.counting("lock", getattr(lock, name)))
        monkeypatch.setattr(run_module, "threading", SimpleNamespace(**{**vars(threading), "RLock": lock}))

    def counting(self, what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.happened.append(what)
            return method(*args)

        return counted

    def now(self) -> Counter[str]:
        return Counter(self.happened)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


async def identity_async(item: int) -> int:
    return item


def stage(kind: str) -> Any:
    f: Any = identity_async if kind == "task" else identity
    return pmap(f, kind=kind, workers=100 if kind == "task" else 2)


ROWS = {kind: (kind,) for kind in ("thread", "process", "task")} | {
    "two threads": ("thread", "thread"),
    "a thread and a process": ("thread", "process"),
    "a process and tasks": ("process", "task"),
    "tasks and a process": ("task", "process"),
}
SOURCES: dict[str, Callable[[], Iterable[int]]] = {
    "list": lambda: list(range(ITEMS)),
    "generator": lambda: (item for item in range(ITEMS)),
}

#: How often a stage may do each thing for all items: half as much again as is ever seen on two CPUs that five other
#: programs keep busy. Once an item would be 100,000.
BOUNDS = {"take": 500, "wake": 300, "lock": 1_200, "send": 180, "receive": 130}

#: What an item costs, in seconds.
COST = 1e-7


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all that is decided by the time go by one in which nothing but items takes any."""
    done = Window.done

    def done_at_cost(window: Window, span: Span, elapsed: float | None = None) -> None:
        done(window, span, None if elapsed is None else COST * len(span.slots))

    monkeypatch.setattr(Window, "done", done_at_cost)
    monkeypatch.setattr(Window, "flush_delay", PATIENCE)
    monkeypatch.setattr(Run, "clock", staticmethod(lambda: 0.0))


def flowing(kinds: tuple[str, ...], source: Iterable[int]) -> Any:
    return reduce(lambda upstream, kind: stage(kind)(upstream), kinds, source)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("kinds", ROWS.values(), ids=ROWS.keys())
def test_cheap_items_travel_by_the_hundred(
    kinds: tuple[str, ...], source: Callable[[], Iterable[int]], steady: None, counts: Counts
):
    assert sum(1 for _ in flowing(kinds, source())) == ITEMS
    found = counts.now()
    assert not {what: count for what, count in found.items() if count > BOUNDS[what] * len(kinds)}, found


@pytest.mark.parametrize("kinds", ROWS.values(), ids=ROWS.keys())
def test_nothing_happens_while_the_source_blocks(kinds: tuple[str, ...], counts: Counts, gate: Gate):
    def source() -> Iterator[int]:
        yield from range(3)
        gate.wait()
        yield 3

    def watch() -> None:
        # The source blocks, and all three outputs have been given.
        came.wait(PATIENCE)
        for _ in range(LOOKS):
            before = counts.now()
            time.sleep(LONG)
            happened.append(counts.now() - before)
            if not happened[-1]:
                break

    came, happened = threading.Event(), list[Counter[str]]()
    with opened_when(gate, watch):
        for output in flowing(kinds, source()):
            if output == 2:
                came.set()
    assert not happened[-1]
