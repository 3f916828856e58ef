"""Fixtures of all tests: the kinds, gates and logs, scripts run as programs of their own, the leak check."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date
from itertools import count
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis.strategies import none

from fstream._engine.run import Run
from tests.faults.faulty import HAS_GIL
from tests.gates import PATIENCE, Gate, Log
from tests.leaks import no_leaks
from tests.scripts import Script, ScriptResult, run_script

__all__ = ["no_leaks"]

KINDS = ("sync", "thread", "process", "task")
CONCURRENT_KINDS = ("thread", "process", "task")
SHARED_MEMORY_KINDS = ("sync", "thread", "task")

OF_FORKS = r"ignore:This process .* is multi-threaded, use of fork(pty)?\(\):DeprecationWarning"


def pytest_configure() -> None:
    # Before xdist's workers are started, which inherit it: all of them have to draw the same tests.
    os.environ.setdefault("FSTREAM_DRAW", date.today().isoformat())
    # Keep the test modules as pytest rewrites them for their asserts: that is half of what it takes to collect them.
    sys.dont_write_bytecode = False
    if not HAS_GIL:
        # It looks at the frames of threads that run meanwhile: the process ends by a segmentation fault at some time.
        os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")


def pytest_report_header() -> str:
    return f"what is drawn: FSTREAM_DRAW={os.environ['FSTREAM_DRAW']}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is slow. Where a tenth is drawn of the fault matrix, draw of the other slow tests, too.

    Each Python draws others, so that most are seen on one of them.
    """
    for item in items:
        if "process" in item.name:  # each of its workers takes a tenth of a second of CPU to start
            item.add_marker(pytest.mark.slow)
        if item.name == "testing.md":  # hypothesis traces each line that it runs there
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(240))
        if item.get_closest_marker("forks"):
            # From Python 3.15 on, a warning that is an error is raised by `os.fork`, when the child is there already.
            item.add_marker(pytest.mark.filterwarnings(OF_FORKS))
    if os.environ.get("FSTREAM_MATRIX") != "drawn":
        return
    seed = f"{os.environ['FSTREAM_DRAW']} {sys.version}"
    left_out = [item for item in items if Random(f"{seed} {item.nodeid}").random() > share_of(item)]
    config.hook.pytest_deselected(items=left_out)
    out = set(left_out)
    items[:] = [item for item in items if item not in out]


def pytest_collection_finish() -> None:
    """Leave what pytest has of its own out of each later collection of garbage: twelve thousand tests take long."""
    sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)
    first_of_hypothesis()
    gc.collect()
    gc.freeze()


@settings(max_examples=1, derandomize=True, database=None)
@given(nothing=none())
def first_of_hypothesis(nothing: None) -> None:
    """Let hypothesis register its own random numbers: it asks the collector for them, which hides what is frozen.

    It does so in its first test that is derandomized, as all are where the variable CI is set.
    """


def share_of(item: pytest.Item) -> float:
    """What share is drawn of tests like *item*."""
    if item.get_closest_marker("drawn"):
        return 0.1
    return 0.2 if item.get_closest_marker("slow") else 1.0


@pytest.fixture
def waits_in_vain_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a run to end as long as may be has waited in vain: that lasts longer than such a test may."""
    monkeypatch.setattr(Run, "LONGEST", 2 * PATIENCE)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind."""
    return str(request.param)


@pytest.fixture(params=CONCURRENT_KINDS)
def concurrent_kind(request: pytest.FixtureRequest) -> str:
    """The kinds that work on several items at once."""
    return str(request.param)


@pytest.fixture(params=SHARED_MEMORY_KINDS)
def shared_memory_kind(request: pytest.FixtureRequest) -> str:
    """The kinds whose workers see the objects of the test itself, not copies."""
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["ordered", "unordered"])
def is_ordered(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="fs") as path:
        yield Path(path)


@pytest.fixture
def make_gate(folder: Path) -> Iterator[Callable[[], Gate]]:
    """Make gates, which are opened at the end of the test whatever happened."""
    numbers = count()
    with ExitStack() as at_end:

        def make() -> Gate:
            gate = Gate(folder / f"gate{next(numbers)}")
            at_end.callback(gate.open)
            return gate

        yield make


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    return make_gate()


@pytest.fixture
def log(folder: Path) -> Iterator[Log]:
    log = Log(folder / "log")
    yield log
    log.close()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run Python source as a script of its own: ``script(source, *arguments)``."""

    def run(source: str, *arguments: str, **environment: str) -> ScriptResult:
        return run_script(tmp_path, source, *arguments, **environment)

    return run
