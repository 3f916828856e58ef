"""`watch`: a live view of all pipelines that run in a block, on stderr alone.

It has no thread: whatever a pipeline does is told to the observer, which draws what there is now if the last time is
long enough ago.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Final, Protocol, TextIO

from fstream._engine.run import RLock
from fstream._flow.observer import Observer, RunInfo, StageInfo, observe
from fstream._seen.account import Account
from fstream._seen.stats import StageStats, Stats, stats_of

__all__ = ["watch"]

#: Plain lines come this often, in seconds, and what is drawn in place is drawn this often.
LINES_EVERY: Final = 5.0
DRAWN_EVERY: Final = 0.1

#: So many pipelines are shown one by one while they run. Those that f runs may be a thousand at once.
MOST_SHOWN: Final = 8


@contextmanager
def watch() -> Iterator[None]:
    """Show what the streams do that start in a ``with`` block, while they do it.

        >>> from fstream import pmap
        >>> with watch():
        ...     total = sum(pmap(abs, [-1, 2, -3], kind="thread"))
        >>> total
        6

    One line for each stage: what it has given, how fast, what has failed and was tried again, what it holds, how busy
    it is; the bottleneck is marked. Where the source has a length: how far it is, and how long it will take.

    It writes to stderr, never to stdout. In a terminal, or a notebook, where `rich` is installed, the view is drawn in
    one place; else there is a line for each stage every five seconds, and at the end of the block. Pipelines of the
    same stages that have ended are shown as one, so streams that f iterates may be many.
    """
    watcher = Watcher(_view())
    with observe(watcher):
        try:
            yield
        finally:
            watcher.close()


class View(Protocol):
    """Where it is shown."""

    #: How often, in seconds.
    every: float

    def show(self, pipelines: list[Pipeline]) -> None: ...

    def end(self, pipelines: list[Pipeline]) -> None: ...


@dataclass
class Pipeline:
    """What is shown of a pipeline; or of several that have ended, added up."""

    stats: Stats
    #: How many outputs each stage gives in a second.
    rates: list[float]
    #: How many items its first stage is through with, and how many there will be, if that is known.
    done: int
    total: int | None = None
    runs: int = 1

    def progress(self) -> str:
        """How far it is, if that is known."""
        if not self.total or not self.stats.stages:
            return ""
        done = self.done
        text = f"{done:,} of {self.total:,} ({min(1.0, done / self.total):.0%})"
        left = self.total - done
        known = max(stage.known or 0 for stage in self.stats.stages)  # these took no time
        rate = (done - known) / self.stats.seconds if self.stats.seconds else 0.0
        return f"{text}, {_clock(left / rate)} left" if left > 0 and rate > 0 else text

    def is_bottleneck(self, stage: StageStats) -> bool:
        return self.stats.bottleneck is not None and self.stats.bottleneck.name == stage.name


class Watcher(Observer):
    """Collects the pipelines, and has them shown in time."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.turn = RLock()  # a signal handler may use streams of its own
        self.shown = perf_counter()
        #: The runs that have started, and whether they have ended.
        self.runs: dict[Account, bool] = {}
        #: What pipelines that have ended did, by their stages.
        self.past: dict[tuple[tuple[str, str], ...], Pipeline] = {}
        #: How much each stage had given, and when, when it was shown last.
        self.before: dict[Account, tuple[float, list[int]]] = {}
        self.over = False

    def run_opened(self, run: RunInfo) -> None:
        with self.turn:
            if run.account is not None:
                self.runs[run.account] = False

    def run_ended(self, run: RunInfo, error: BaseException | None) -> None:
        with self.turn:
            if run.account in self.runs:
                self.runs[run.account] = True
                self.fold()
        self.look()

    def done(
        self, stage: StageInfo, start: int, count: int, seconds: float | None, worker: int | None
    ) -> None:
        self.look()

    def failed(self, stage: StageInfo, index: int, error: BaseException, tries: int) -> None:
        self.look()

    def retried(self, stage: StageInfo, index: int, error: BaseException, tries: int) -> None:
        self.look()

    def look(self) -> None:
        """Show what there is, if it is time, and nobody else does."""
        if perf_counter() - self.shown < self.view.every or not self.turn.acquire(blocking=False):
            return
        try:
            if not self.over and perf_counter() - self.shown >= self.view.every:
                self.shown = perf_counter()
                self.view.show(self.pipelines())
        finally:
            self.turn.release()

    def close(self) -> None:
        """The block is over: show what has become of all."""
        with self.turn:
            self.over = True
            self.fold()
            self.view.end([*self.past.values(), *self.running()])

    # ------------------------------------------------------------------------------------------ what is shown

    def last_ones(self) -> list[Account]:
        """The last run of each pipeline."""
        upstream = {id(each) for account in self.runs for source in account.sources for each in source.walk()}
        # Somebody may be told of a run before it is told of the one downstream that started it.
        return [
            account
            for account in self.runs
            if id(account) not in upstream and (self.over or not account.feeds)
        ]

    def fold(self) -> None:
        """Add what has ended to what has ended before."""
        for account in self.last_ones():
            parts = account.walk()
            if not all(self.runs.get(each, True) for each in parts):
                continue
            new = self.pipeline(account)
            key = tuple((stage.name, stage.kind) for stage in new.stats.stages)
            old = self.past.get(key)
            self.past[key] = new if old is None else _sum(old, new)
            for each in parts:
                self.runs.pop(each, None)
                self.before.pop(each, None)

    def running(self) -> list[Pipeline]:
        return [self.pipeline(account) for account in self.last_ones()[:MOST_SHOWN]]

    def pipelines(self) -> list[Pipeline]:
        return [*list(self.past.values())[-MOST_SHOWN:], *self.running()]

    def pipeline(self, account: Account) -> Pipeline:
        stats, now = stats_of(account), perf_counter()
        given = [stage.given for stage in stats.stages]
        since, before = self.before.get(account, (now - stats.seconds, [0] * len(given)))
        if len(before) != len(given):
            since, before = now - stats.seconds, [0] * len(given)
        passed = now - since
        if self.over or self.runs.get(account, True):
            passed, before = stats.seconds, [0] * len(given)
        self.before[account] = now, given
        rates = [(count - old) / passed if passed > 0 else 0.0 for count, old in zip(given, before)]
        first = account.walk()[0].up_to_date()
        done = first.entries[0].done if first.entries else 0
        return Pipeline(stats, rates, done, first.total)


def _sum(one: Pipeline, other: Pipeline) -> Pipeline:
    """What two runs of the same stages did."""
    seconds = one.stats.seconds + other.stats.seconds
    longer = max(one.stats, other.stats, key=lambda stats: stats.seconds)
    stages = [
        replace(last, **{name: getattr(a, name) + getattr(b, name) for name in COUNTS})
        for a, b, last in zip(one.stats.stages, other.stats.stages, longer.stages)
    ]
    rates = [stage.given / seconds if seconds else 0.0 for stage in stages]
    total = None if one.total is None or other.total is None else one.total + other.total
    stats = Stats(tuple(stages), longer.bottleneck, seconds)
    return Pipeline(stats, rates, one.done + other.done, total, one.runs + other.runs)


COUNTS: Final = ("taken", "given", "failed", "retried", "held")


def _clock(seconds: float) -> str:
    """Give a time as people say it.

    >>> _clock(7.2), _clock(75), _clock(7300)
    ('7 s', '1:15 min', '2:01 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


# --------------------------------------------------------------------------------------------------- the views


class Lines:
    """Plain lines, one a stage."""

    every = LINES_EVERY

    def show(self, pipelines: list[Pipeline]) -> None:
        text = "".join(f"fstream: {line}\n" for pipeline in pipelines for line in lines_of(pipeline))
        with suppress(OSError, ValueError):  # stderr is closed: that is no reason to end a job
            if sys.stderr is not None:
                sys.stderr.write(text)
                getattr(sys.stderr, "flush", int)()

    end = show


def lines_of(pipeline: Pipeline) -> Iterator[str]:
    """Say of each stage what it has done."""
    times = f", {pipeline.runs} times" if pipeline.runs > 1 else ""
    for number, (stage, rate) in enumerate(zip(pipeline.stats.stages, pipeline.rates)):
        words = [
            f"{stage.name} ({stage.kind}{times}): {stage.given:,} given",
            _rate(rate),
            f"busy {stage.busy:.0%}",
        ]
        if stage.failed:
            words.append(f"{stage.failed:,} failed")
        if stage.retried:
            words.append(f"{stage.retried:,} tried again")
        if stage.held:
            words.append(f"{stage.held:,} held")
        if number == 0 and (progress := pipeline.progress()):
            words.append(progress)
        if pipeline.is_bottleneck(stage):
            words.append("the bottleneck")
        yield ", ".join(words)


class Drawn:
    """Drawn in one place, by rich."""

    every = DRAWN_EVERY

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        # What the user prints is put above the view where it goes to the same terminal, and left alone elsewhere.
        self.live: Any = Live(
            console=Console(file=file),
            auto_refresh=False,
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=True,
        )
        self.live.start()

    def show(self, pipelines: list[Pipeline]) -> None:
        from rich.console import Group

        self.live.update(Group(*map(drawing_of, pipelines)), refresh=True)

    def end(self, pipelines: list[Pipeline]) -> None:
        try:
            self.show(pipelines)
        finally:
            self.live.stop()


def drawing_of(pipeline: Pipeline) -> Any:
    """Make rich's table of a pipeline."""
    from rich.table import Table
    from rich.text import Text

    times = f"{pipeline.runs} runs  " if pipeline.runs > 1 else ""
    table = Table(
        title=f"{times}{pipeline.progress()}" or None, title_justify="left", box=None, pad_edge=False
    )
    for heading in ("stage", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("given", "rate", "held", "busy", "failed", "tried again"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage, rate in zip(pipeline.stats.stages, pipeline.rates):
        slow = pipeline.is_bottleneck(stage)
        table.add_row(
            Text(f"{stage.name}{' <' if slow else ''}"), stage.kind, f"{stage.given:,}", _rate(rate), f"{stage.held:,}",
            f"{stage.busy:.0%}", f"{stage.failed:,}", f"{stage.retried:,}", style="bold" if slow else None,
        )  # fmt: skip
    if pipeline.stats.bottleneck is not None:
        table.caption, table.caption_justify = Text(str(pipeline.stats.bottleneck)), "left"
    return table


def _is_terminal(file: TextIO | None) -> bool:
    try:
        return file is not None and file.isatty()
    except (AttributeError, ValueError):  # it is closed, or can write and nothing else
        return False


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def _view() -> View:
    """What can be drawn here."""
    if _is_terminal(sys.stderr) or _in_notebook():
        with suppress(ImportError):
            return Drawn(sys.stderr)
    return Lines()
