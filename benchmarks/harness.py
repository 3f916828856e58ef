"""Runs rows: interleaved rounds over one process per contender; medians, the table, the JSON file.

A row's contenders are opened all at once and warmed one after another; then each round measures each of them
once, in turn (A B C, A B C, ...), so that what else the machine does meets them all alike. Whoever waits for its
turn is idle. A figure or a ratio is the median of those of the rounds.
"""

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import repeat
from math import inf
from multiprocessing import Pipe
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from benchmarks.rows import Bound, Failed, Opened, Ready, Row, Sample

DISTRIBUTIONS = (
    *("fstream", "toolz", "more-itertools", "loky", "cloudpickle", "numpy", "aiohttp", "distributed"),
    *("joblib", "mpire", "pebble", "pypeln", "streamable", "aiostream"),
)
PROJECT = Path(__file__).parent.parent
BEFORE = ", before"
QUICK_PEERS = {"ThreadPool.imap", "Pool.imap", "joblib", "pypeln"}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    repeats: int
    quick: bool
    #: A folder with the package of an earlier commit, for `against`.
    before: Path | None = None

    @property
    def budget(self) -> float:
        """Seconds for one measurement of a contender that need not do the whole row."""
        return 0.1 if self.quick else 1

    def contenders(self, row: Row) -> list[str]:
        """Who takes part: in a quick run the best known of the peers only."""
        return [*row.contenders, *(peer for peer in row.peers if not self.quick or peer in QUICK_PEERS)]

    @property
    def patience(self) -> float:
        """Seconds after which a contender hangs."""
        return 20 if self.quick else 120


class Child:
    """A contender in a process of its own, which leads a process group: that ends with it.

    While others have their turn it is stopped: a cluster that idles takes 7 % of a CPU, and a row has six.
    """

    def __init__(self, row: Row, contender: str, effort: Effort) -> None:
        self._patience = effort.patience
        self._pipe, theirs = Pipe()
        size = row.quick if effort.quick else row.size
        arguments = map(str, (theirs.fileno(), row.name, contender.removesuffix(BEFORE), size, effort.budget))
        environment = {**os.environ}
        if effort.before is not None:  # the rows are today's, whichever package they measure
            folders = [effort.before, PROJECT] if contender.endswith(BEFORE) else [PROJECT]
            environment |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", *arguments],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def answer(self) -> Opened | Ready | Sample | Failed:
        """Wait for the next answer, and stop the contender."""
        if not self._pipe.poll(self._patience):
            self._end()  # now, so that it does not disturb the others
            return Failed(f"no answer in {self._patience:g} s, cut off")
        try:
            answer: Opened | Ready | Sample | Failed = self._pipe.recv()
            self._signal(signal.SIGSTOP)
            return answer
        except (EOFError, OSError):
            return Failed(f"ended by itself, exit status {self._process.wait()}")

    def command(self, go: bool | None) -> None:
        """Go on to the next answer, or with None, end."""
        self._signal(signal.SIGCONT)
        with suppress(OSError):
            self._pipe.send(go)

    def close(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self._end()
        self._pipe.close()

    def _end(self) -> None:
        """End the whole group: by SIGTERM first, so that who looks after named semaphores can remove them."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass
class Outcome:
    """What one contender did."""

    contender: str
    items: int = 0
    samples: list[float] = field(default_factory=list)
    figure: float | None = None
    note: str = ""
    failed: Failed | None = None


@dataclass(frozen=True)
class Verdict:
    """A contender's figure against its target: *ratio* to the rival's figure, or the figure if there is none."""

    contender: str
    bound: Bound
    ratio: float | None

    @property
    def met(self) -> bool:
        return self.ratio is not None and self.bound.met(self.ratio)


@dataclass(frozen=True)
class Result:
    """A measured row."""

    row: Row
    outcomes: Sequence[Outcome]
    verdicts: Sequence[Verdict]
    #: What share of the CPUs other processes took meanwhile: with more than a few percent, measure again.
    others: float


@contextmanager
def _children(row: Row, effort: Effort) -> Iterator[list[tuple[Outcome, Child]]]:
    opened: list[tuple[Outcome, Child]] = []
    try:
        for contender in effort.contenders(row):
            opened.append((Outcome(contender), Child(row, contender, effort)))
        yield opened
    finally:
        for _, child in opened:
            child.command(None)
        for _, child in opened:
            child.close()


def _cpu_seconds() -> float:
    """CPU time that others have used on this process's CPUs since the machine started; 0 where it is not known."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return 0.0
    fields = {line.split()[0]: line.split()[1:] for line in lines}
    ticks = 0
    for cpu in os.sched_getaffinity(0):
        user, nice, system, _, _, *interrupts_and_stolen = map(int, fields[f"cpu{cpu}"][:8])
        ticks += user + nice + system + sum(interrupts_and_stolen)
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def measure(row: Row, effort: Effort) -> Result:
    start, others = perf_counter(), _cpu_seconds()
    with _children(row, effort) as opened:
        for outcome, child in opened:
            _take(row, outcome, child)
        for _ in range(1 + effort.repeats):
            for outcome, child in opened:
                if outcome.failed is None:
                    child.command(True)
                    _take(row, outcome, child)
    outcomes = [outcome for outcome, _ in opened]
    figures = _figures(row, outcomes)
    for outcome in outcomes:
        if rounds := figures.get(outcome.contender):
            outcome.figure = median(rounds)
    verdicts = [_verdict(name, bound, figures) for name, bound in row.bounds.items()]
    others = (_cpu_seconds() - others) / (perf_counter() - start) / 2
    return Result(row, outcomes, verdicts, others)


def _take(row: Row, outcome: Outcome, child: Child) -> None:
    match child.answer():
        case Ready(items):
            outcome.items = items
        case Sample(value, note):
            outcome.samples.append(value)
            outcome.note = note
        case Failed() as failed:
            outcome.failed = failed
            _notice(row, outcome)


def _notice(row: Row, outcome: Outcome) -> None:
    assert outcome.failed is not None
    word = "skipped" if outcome.failed.missing else "failed"
    print(f"{row.name}: {outcome.contender} {word}: {outcome.failed.why}", file=sys.stderr, flush=True)


@contextmanager
def package_of(revision: str) -> Iterator[Path]:
    """Give a folder with the package as it was at a revision of git."""
    with TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", revision, "fstream"], cwd=PROJECT, stdout=subprocess.PIPE, check=True
        )
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        yield Path(folder)


def against(row: Row, slower: float = 0.05) -> Row:
    """The same row, but fstream beside itself as it was before; a target is missed by what got *slower* than so."""
    ours = {name: contender for name, contender in row.contenders.items() if name.startswith("fstream")}
    bounds = {}
    for name in ours:
        at_least = name in row.bounds and row.bounds[name].at_least
        bounds[name] = Bound(1 - slower if at_least else 1 + slower, name + BEFORE, at_least)
    contenders = {both: contender for name, contender in ours.items() for both in (name, name + BEFORE)}
    if row.reference is not None:
        contenders[row.reference] = row.contenders[row.reference]
    return replace(row, contenders=contenders, bounds=bounds, peers={})


def _figures(row: Row, outcomes: Sequence[Outcome]) -> dict[str, list[float]]:
    """The figures of each contender, one for each round; none if it or its reference failed."""
    samples = {outcome.contender: outcome.samples for outcome in outcomes if outcome.failed is None}
    if row.reference is None:
        return {name: [row.figure(value, 0) for value in values] for name, values in samples.items()}
    references = samples.get(row.reference, [])
    return {
        name: [row.figure(value, reference) for value, reference in zip(values, references)]
        for name, values in samples.items()
    }


def _verdict(contender: str, bound: Bound, figures: dict[str, list[float]]) -> Verdict:
    rivals = repeat(1.0) if bound.rival is None else figures.get(bound.rival, [])
    ratios = [
        figure / rival
        if rival
        else inf
        if figure
        else 1.0  # there may be nothing to measure, as in a row of memory
        for figure, rival in zip(figures.get(contender, []), rivals)
    ]
    return Verdict(contender, bound, median(ratios) if ratios else None)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table_lines(result: Result) -> Iterator[tuple[str, str, str, str, str]]:
    """A row of the table for each contender: work, contender, figure, target, verdict."""
    row = result.row
    verdicts = {verdict.contender: verdict for verdict in result.verdicts}
    size = max((outcome.items for outcome in result.outcomes), default=0)
    for index, outcome in enumerate(result.outcomes):
        remarks = [outcome.note] if outcome.note else []
        if outcome.failed is None and outcome.items != size:
            remarks.append(f"{outcome.items:,} items")
        name = outcome.contender + (f" ({'; '.join(remarks)})" if remarks else "")
        figure = "-" if outcome.figure is None else f"{_number(outcome.figure)} {row.unit}"
        target, mark = "", "" if outcome.failed is None else outcome.failed.why
        if (verdict := verdicts.get(outcome.contender)) is not None:
            bound = verdict.bound
            target = f"{'>=' if bound.at_least else '<='} {bound.limit:g}"
            if bound.rival is not None:
                target += f" x {bound.rival}"
            measured = "not measured" if verdict.ratio is None else _number(verdict.ratio)
            mark = f"{'pass' if verdict.met else 'MISS'} ({measured})"
        yield (row.work if index == 0 else "", name, figure, target, mark)


HEADINGS = ("work", "contender", "figure", "target", "verdict")


def table(results: Iterable[Result]) -> str:
    """All results as one table in Markdown."""
    lines = [HEADINGS, *(line for result in results for line in table_lines(result))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def document(results: Iterable[Result], effort: Effort) -> dict[str, Any]:
    """The JSON file: where and when, and every sample."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}},
        "effort": {"repeats": effort.repeats, "quick": effort.quick, "before": effort.before is not None},
        "rows": [
            {
                "name": result.row.name,
                "work": result.row.work,
                "unit": result.row.unit,
                "others": result.others,
                "contenders": [asdict(outcome) for outcome in result.outcomes],
                "targets": [{**asdict(verdict), "met": verdict.met} for verdict in result.verdicts],
            }
            for result in results
        ],
    }


@contextmanager
def on_two_cpus() -> Iterator[None]:
    """Run on two CPUs, whatever the machine has: the figures are about two. Children inherit it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
