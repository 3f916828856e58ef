"""What a program pays before its first output: the import, and the second pipeline's start."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter

from benchmarks.adapters import fstream, peers
from benchmarks.per_item import identity
from benchmarks.rows import Adapter, Bound, Contender, Measure, Row, Sample, own_figure

LAZY = ("asyncio", "multiprocessing", "loky")


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@contextmanager
def _wall(code: str) -> Iterator[Measure]:
    def measure(n: int) -> Sample:
        walls = []
        for _ in range(n):
            start = perf_counter()
            _python(code)
            walls.append(perf_counter() - start)
        return Sample(median(walls))

    if "import " in code:
        __import__(code.removeprefix("import "))  # not installed: skipped
    yield measure


@contextmanager
def _loaded() -> Iterator[Measure]:
    def measure(n: int) -> Sample:
        code = f"import fstream, sys; print(*sorted(set({LAZY}) & set(sys.modules)))"
        loaded = _python(code).split()
        return Sample(len(loaded), ", ".join(loaded))

    yield measure


def _first_output(adapter: Adapter) -> Contender:
    """The median over n pipelines, each opened after another one has run."""

    @contextmanager
    def contender() -> Iterator[Measure]:
        def measure(n: int) -> Sample:
            waits = []
            for _ in range(n):
                start = perf_counter()
                with adapter() as mapper:
                    outputs = iter(mapper(identity, range(100)))  # type: ignore[arg-type]
                    next(outputs)
                    waits.append(perf_counter() - start)
                    for _ in outputs:
                        pass
            return Sample(median(waits))

        yield measure

    return contender


def milliseconds_more(value: float, reference: float) -> float:
    return (value - reference) * 1e3


ROWS = (
    Row(
        "import",
        "import, over `python -c pass`",
        "ms",
        {
            "pass": partial(_wall, "pass"),
            "fstream": partial(_wall, "import fstream"),
        },
        {"fstream": Bound(60)},
        10,
        1,
        milliseconds_more,
        "pass",
        {
            module: partial(_wall, f"import {module}")
            for module in ("joblib", "mpire", "pebble", "streamable", "aiostream", "pypeln")
        },
        whole=True,
    ),
    Row(
        "import-lazy",
        f"how many of {', '.join(LAZY)} `import fstream` loads",
        "modules",
        {"fstream": _loaded},
        {"fstream": Bound(0)},
        1,
        1,
        own_figure,
    ),
    Row(
        "second-pipeline",
        "the second process pipeline of a program: its first output",
        "ms",
        {"fstream": _first_output(fstream("process", 2))},
        {"fstream": Bound(3)},
        20,
        5,
        lambda value, reference: value * 1e3,
        peers={name: _first_output(adapter) for name, adapter in peers("process").items()},
        whole=True,
    ),
)
