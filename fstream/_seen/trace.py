"""`trace`: a timeline of what workers do, in the format of Chrome's traces, written while it happens.

Each stage of a run is a process of the trace, each worker a thread of it, and each span that a worker is through with a
block. What happens to an item, or to a worker, is an instant.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from fstream._engine.run import RLock
from fstream._flow.observer import HowEnded, Observer, RunInfo, StageInfo, observe
from fstream._seen.account import Account
from fstream._seen.picture import AFTER, BEFORE
from fstream._seen.stats import Stats, stats_of, table

__all__ = ["trace"]

#: How many events are kept before they are written.
MANY: Final = 512

#: What each stage holds is noted so often at most, in seconds.
COUNTED_EVERY: Final = 0.01

#: The pipelines whose table is shown beside the picture.
MOST_TABLES: Final = 16

#: What the end of a file takes: the notes of what it is, and that it was cut.
END_BYTES: Final = 512


@contextmanager
def trace(path: str | os.PathLike[str], *, max_bytes: int = 100_000_000) -> Iterator[None]:
    """Write a timeline of what the streams do that start in a ``with`` block.

        >>> import json, tempfile
        >>> from fstream import pmap
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with trace(f"{folder}/run.json"):
        ...         total = sum(pmap(abs, range(100), kind="thread", name="absolute"))
        ...     with open(f"{folder}/run.json") as file:
        ...         events = json.load(file)["traceEvents"]
        >>> sum(event["args"]["items"] for event in events if event["name"] == "absolute")
        100

    *path* ending in ``.json``: Perfetto and ``chrome://tracing`` open it. In ``.html``: any browser does, by itself and
    without a network; it shows the table of `Stream.stats` above the timeline.

    Each worker is a row. Each block is a span of items that it worked off: ``args`` hold how many *items* these were,
    and the index of the *first*. Errors, further tries, and workers that died or ran over their time are marked. What a
    stage holds is a curve.

    It is written to the disk while it happens, and takes no memory. The file has at most *max_bytes* bytes: what would
    come after that is left out, and the file says so.
    """
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes must be an int, got {max_bytes!r}")
    file = _FILES.get(Path(path).suffix.lower())
    if file is None:
        raise ValueError(f"path must end in .json or .html, got {os.fspath(path)!r}")
    if max_bytes < file.least:
        raise ValueError(f"max_bytes must be at least {file.least}, got {max_bytes}")
    tracer = Tracer(file(Path(path), max_bytes))
    try:
        with observe(tracer):
            yield
    finally:
        tracer.close()


class File:
    """The file: its events are one JSON array, with a head and an end around it."""

    head: str = '{"traceEvents": [\n'
    least = 2_000

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.file = path.open("wb")
        self.left = max_bytes - END_BYTES - len(self.head.encode())
        self.first = True
        self.file.write(self.head.encode())
        #: What was left out.
        self.lost = 0

    def write(self, events: list[str]) -> None:
        """Write as many of *events* as there is room for."""
        kept = []
        for event in events:
            if self.lost or len(event) + 2 > self.left:  # it is all ASCII
                self.lost += 1
                continue
            self.left -= len(event) + 2
            kept.append(event)
        if kept:
            self.file.write(("" if self.first else ",\n").encode() + ",\n".join(kept).encode())
            self.first = False

    def notes(self) -> str:
        """What the end says: an object of JSON."""
        lost = {"cut": f"max_bytes was reached: {self.lost} events are left out"} if self.lost else {}
        return json.dumps({"made by": "fstream", **lost})

    def end(self, pipelines: list[Stats]) -> str:
        return f'\n], "displayTimeUnit": "ms", "otherData": {self.notes()}}}\n'

    def close(self, pipelines: list[Stats]) -> None:
        with self.file:
            self.file.write(self.end(pipelines).encode())


class Page(File):
    """The same in a page that shows it."""

    head = BEFORE + '{"traceEvents": [\n'
    least = len((BEFORE + AFTER).encode()) + 20_000

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(path, max_bytes)
        self.left -= len(AFTER.encode()) + 16_000  # for the tables

    def write(self, events: list[str]) -> None:
        super().write([event.replace("</", "<\\/").replace("<!", "<\\u0021") for event in events])

    def end(self, pipelines: list[Stats]) -> str:
        text, room = "", 16_000
        for stats in pipelines[:MOST_TABLES]:
            more = table(stats)
            if len(more) < room:
                text, room = text + more, room - len(more)
        return super().end(pipelines) + "</script>\n" + AFTER.replace("<!--tables-->", text)


_FILES: Final[dict[str, type[File]]] = {".json": File, ".html": Page, ".htm": Page}


class Tracer(Observer):
    """Makes events of what it is told."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.turn = RLock()
        self.origin = perf_counter()
        self.events: list[str] = []
        #: The runs by their numbers, with those upstream of them.
        self.runs: dict[int, Account] = {}
        #: The number of each stage's process in the trace, and its name as JSON. Those of runs that have ended are free
        #: for later ones of the same stage.
        self.stages: dict[StageInfo, tuple[int, str]] = {}
        self.free: dict[tuple[str, str], list[int]] = {}
        self.numbers = count(1)
        #: The rows that have a name.
        self.rows: set[tuple[int, int]] = set()
        #: When the last block of a row ended: no two of one row overlap.
        self.ends: dict[tuple[int, int], float] = {}
        self.counted: dict[StageInfo, float] = {}
        #: When each run began.
        self.opened: dict[int, float] = {}
        self.over = False
        self.shown: list[Stats] = []

    def close(self) -> None:
        with self.turn:
            self.over = True
            for account in self.last_ones():
                self.keep(account)
            try:
                self.flush()
            finally:
                self.file.close(self.shown)

    # ------------------------------------------------------------------------------------------------- events

    def add(self, stage: StageInfo, row: int, begun: float, now: float, args: str) -> None:
        """Note a block of *stage* in a *row*, with *args* as JSON."""
        number, name = self.stage(stage)
        if (number, row) not in self.rows:
            self.rows.add((number, row))
            self.meta("thread_name", number, row, f"worker {row - 1}" if row else "items side by side")
        begun = max(begun, self.ends.get((number, row), 0.0))
        self.ends[number, row] = now
        self.events.append(
            f'{{"ph":"X","pid":{number},"tid":{row},"name":{name},{self.at(begun)},'
            f'"dur":{max(0.0, now - begun) * 1e6:.1f},"args":{args}}}'
        )
        if len(self.events) >= MANY:
            self.flush()

    def row_of(self, stage: StageInfo, begun: float, worker: int | None, seconds: float | None) -> int:
        """The row of a worker; an executor's have no numbers: then the first one that was free at the time *begun*."""
        if worker is not None:
            return worker + 1
        if seconds is None:
            return 0
        number, row = self.stage(stage)[0], 1
        while self.ends.get((number, row), 0.0) > begun:
            row += 1
        return row

    def stage(self, stage: StageInfo) -> tuple[int, str]:
        known = self.stages.get(stage)
        if known is None and (free := self.free.get((stage.name, stage.kind))):
            known = self.stages[stage] = free.pop(), json.dumps(stage.name)
        elif known is None:
            number = next(self.numbers)
            known = self.stages[stage] = number, json.dumps(stage.name)
            self.meta("process_name", number, 0, f"{stage.name} ({stage.kind})")
            self.events.append(
                f'{{"ph":"M","pid":{number},"tid":0,"name":"process_sort_index","args":{{"sort_index":{number}}}}}'
            )
        return known

    def meta(self, what: str, number: int, row: int, name: str) -> None:
        self.events.append(
            f'{{"ph":"M","pid":{number},"tid":{row},"name":"{what}","args":{{"name":{json.dumps(name)}}}}}'
        )

    def at(self, when: float) -> str:
        """Give a time as the trace has it: in microseconds from the beginning."""
        return f'"ts":{max(0.0, (when - self.origin) * 1e6):.1f}'

    def mark(self, stage: StageInfo, worker: int | None, name: str, args: dict[str, Any]) -> None:
        """Note that something happened now."""
        with self.turn:
            if self.over:
                return
            number, _ = self.stage(stage)
            row = 0 if worker is None else worker + 1
            text = json.dumps({"ph": "i", "s": "t", "pid": number, "tid": row, "name": name, "args": args})
            self.events.append(text[:-1] + f",{self.at(perf_counter())}}}")

    def flush(self) -> None:
        self.file.write(self.events)
        self.events.clear()

    # --------------------------------------------------------------------------------------- what it is told

    def run_opened(self, run: RunInfo) -> None:
        with self.turn:
            if run.account is not None and not self.over:
                self.runs[run.number], self.opened[run.number] = run.account, perf_counter()
                for stage in run.stages:
                    self.stage(stage)

    def run_ended(self, run: RunInfo, error: BaseException | None) -> None:
        if error is not None and run.stages:
            self.mark(run.stages[-1], None, "the run ends", {"error": _shown(error)})
        with self.turn:
            for stage in run.stages:
                self.counted.pop(stage, None)
                if (known := self.stages.pop(stage, None)) is not None:
                    self.free.setdefault((stage.name, stage.kind), []).append(known[0])
            self.opened.pop(run.number, None)
            account = self.runs.get(run.number)
            if account is not None and len(self.runs) > 2 * MOST_TABLES and not account.feeds:
                self.keep(account)

    def last_ones(self) -> list[Account]:
        upstream = {
            id(each) for one in self.runs.values() for source in one.sources for each in source.walk()
        }
        return [account for account in self.runs.values() if id(account) not in upstream]

    def keep(self, account: Account) -> None:
        """Keep the numbers of a pipeline, and forget its runs."""
        if len(self.shown) < MOST_TABLES:
            self.shown.append(stats_of(account))
        parts = {id(each) for each in account.walk()}
        self.runs = {number: each for number, each in self.runs.items() if id(each) not in parts}

    def done(
        self, stage: StageInfo, start: int, count: int, seconds: float | None, worker: int | None
    ) -> None:
        if not count and seconds is None:  # all of it was given back before anything was begun
            return
        now = perf_counter()
        with self.turn:
            if self.over:
                return
            if seconds is None:  # nobody has measured it: since the last of these, at most
                begun = self.ends.get((self.stage(stage)[0], 0), self.opened.get(stage.run, now))
            else:
                begun = now - seconds
            row = self.row_of(stage, begun, worker, seconds)
            self.add(stage, row, begun, now, f'{{"items":{count},"first":{start}}}')
            if now - self.counted.get(stage, 0.0) > COUNTED_EVERY:
                self.counted[stage] = now
                self.count_held(stage, now)

    def count_held(self, stage: StageInfo, now: float) -> None:
        """Note what a stage holds."""
        account = self.runs.get(stage.run)
        run = account.run() if account is not None and account.run is not None else None
        if run is not None:
            number, _ = self.stage(stage)
            window = run.windows[stage.index]
            held = window.ledger.next_index - window.room.gone
            self.events.append(
                f'{{"ph":"C","pid":{number},"tid":0,"name":"held",{self.at(now)},"args":{{"items":{held}}}}}'
            )

    def failed(self, stage: StageInfo, index: int, error: BaseException, tries: int) -> None:
        self.mark(stage, None, "failed", {"item": index, "error": _shown(error), "tries": tries})

    def retried(self, stage: StageInfo, index: int, error: BaseException, tries: int) -> None:
        self.mark(stage, None, "tried again", {"item": index, "error": _shown(error), "tries": tries})

    def worker_ended(self, stage: StageInfo, index: int, how: HowEnded) -> None:
        if how != "ended":
            self.mark(stage, index, f"worker {how}", {"worker": index})


def _shown(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200]
    except Exception:
        return type(error).__name__
