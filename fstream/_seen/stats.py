"""`Stats`, what `Stream.stats` gives: the numbers of each stage, as a value, a table, and HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from fstream._seen.account import Account, Entry
from fstream._seen.bottleneck import Bottleneck, find

__all__ = ["StageStats", "Stats", "stats_of", "table"]


@dataclass(frozen=True, slots=True)
class StageStats:
    """The numbers of one stage.

    *taken* counts items that it took from upstream, *given* outputs as the next stage takes them, *failed* items that
    failed for good, *retried* further tries, *held* items that it has now. *workers* is how many it may have.

    *busy*, *starved* and *blocked* are shares of the time of all of its workers: they worked, waited for items, waited
    for room. They add up to 1 once a worker has come. *cost_p50* and *cost_p99*, the median and the 99th percentile of
    what an item takes, are in seconds, None if nothing was measured. Items that travel together count as equal.

    *known* counts items that needed no call of f: the memo had their result, or an item of an equal key that was under
    way brought it. None without a memo.
    """

    name: str
    kind: str
    taken: int
    given: int
    failed: int
    retried: int
    held: int
    workers: int
    busy: float
    starved: float
    blocked: float
    cost_p50: float | None
    cost_p99: float | None
    known: int | None = field(default=None, kw_only=True)  # behind what is matched by position


@dataclass(frozen=True, slots=True)
class Stats:
    """What a stream has done so far.

    *stages* has one `StageStats` for each stage, from the source on, those of merged streams one after the other.
    *bottleneck* names what holds the others back, and why; it is None before anything was done. *seconds* is how long
    the run has lasted. Its ``str`` is a table.

        >>> from fstream import pmap
        >>> stream = pmap(abs, range(-1000, 0), kind="thread", workers=2)
        >>> largest = max(stream)
        >>> stream.stats().stages[0].given
        1000
    """

    stages: tuple[StageStats, ...]
    bottleneck: Bottleneck | None
    seconds: float

    def __str__(self) -> str:
        rows = _rows(self.stages)
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = [
            "  ".join(
                cell.ljust(width) if n < 2 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self._below()])

    def _below(self) -> Iterator[str]:
        if self.bottleneck is not None:
            yield f"bottleneck: {self.bottleneck}"

    def _repr_html_(self) -> str:
        """The same table, as notebooks show it."""
        return table(self)


HEADINGS = (
    "stage", "kind", "taken", "given", "failed", "retried", "held", "workers", "busy", "starved", "blocked", "median",
    "99 %",
)  # fmt: skip


#: The position of the column *known*, which a table has if one of its stages has a memo.
KNOWN: Final = HEADINGS.index("given")


def _rows(stages: Sequence[StageStats]) -> list[list[str]]:
    """Give the lines of the table, the headings first."""
    rows = [[*HEADINGS], *map(_row, stages)]
    if any(stage.known is not None for stage in stages):
        column = ("known", *("-" if stage.known is None else f"{stage.known:,}" for stage in stages))
        for row, cell in zip(rows, column):
            row.insert(KNOWN, cell)
    return rows


def _row(stage: StageStats) -> list[str]:
    counts = (stage.taken, stage.given, stage.failed, stage.retried, stage.held, stage.workers)
    return [
        stage.name,
        stage.kind,
        *(f"{count:,}" for count in counts),
        *(f"{share:.0%}" for share in (stage.busy, stage.starved, stage.blocked)),
        in_words(stage.cost_p50),
        in_words(stage.cost_p99),
    ]


def in_words(seconds: float | None) -> str:
    """Give a time with its unit.

    >>> in_words(0.00123), in_words(2.5), in_words(None)
    ('1.2 ms', '2.5 s', '-')
    """
    if seconds is None:
        return "-"
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    return f"{seconds / size:.{3 if seconds / size >= 10 else 2}g} {unit}"


def table(stats: Stats) -> str:
    """Give *stats* as an HTML table."""

    def line(cells: Sequence[str], tag: str) -> str:
        style = [
            ' style="text-align: left"' if n < 2 else ' style="text-align: right"' for n in range(len(cells))
        ]
        return (
            "<tr>" + "".join(f"<{tag}{s}>{escape(cell)}</{tag}>" for s, cell in zip(style, cells)) + "</tr>"
        )

    headings, *rows = _rows(stats.stages)
    body = "".join(line(row, "td") for row in rows)
    below = "".join(f"<p>{escape(text)}</p>" for text in stats._below())
    return f'<table class="fstream"><thead>{line(headings, "th")}</thead><tbody>{body}</tbody></table>{below}'


def stats_of(account: Account, most: int | None = None) -> Stats:
    """Give the numbers of *account*, of the first *most* stages if that is given, and of those upstream of it."""
    accounts = [each.up_to_date() for each in account.walk()]
    stages: list[StageStats] = []
    for each in accounts:
        own = [stage for entry in each.entries if not entry.serves for stage in _stages_of(entry)]
        stages += own[:most] if each is accounts[-1] else own
    seconds = max(each.seconds for each in accounts)
    return Stats(tuple(stages), find(accounts), seconds)


def _stages_of(entry: Entry) -> Iterator[StageStats]:
    """Give the numbers of a stage, or of each of those that it stands for.

    What one of these does is a part of what their workers do. While another one is at work, it waits: for an item, if
    that one comes before it.
    """
    tally, whole, names = entry.tally, entry.whole or 1.0, entry.names
    quantiles = tally.costs.quantile(0.5), tally.costs.quantile(0.99)
    parts = tally.parts
    if parts is None:
        seconds, dropped, failed, retried = [1.0], [0], [tally.failed], [tally.retried]
    else:
        seconds, dropped, failed, retried = parts.seconds, parts.dropped, parts.failed, parts.retried
    share_of = (
        [each / (sum(seconds) or 1.0) for each in seconds] if sum(seconds) else [1 / len(names)] * len(names)
    )
    taken, before = entry.taken, 0.0
    for number, name in enumerate(names):
        share = share_of[number]
        last = number == len(names) - 1
        given = entry.given if last else max(0, taken - dropped[number])
        busy = entry.busy / whole
        starved = entry.starved / whole + busy * before
        before += share
        busy *= share
        p50, p99 = (each if each is None else each * share for each in quantiles)
        blocked = max(0.0, 1.0 - busy - starved) if entry.whole else 0.0
        yield StageStats(
            name, entry.kind, taken, given, failed[number], retried[number], entry.held if last else 0, entry.workers,
            busy, starved, blocked, p50, p99, known=tally.known if entry.has_memo else None,
        )  # fmt: skip
        taken = given
