"""Three pipelines made faster, step by step, each step the one that `stats().bottleneck` asks for.

Each step does the same work as the one before, and gives the same outputs, some in another order. It prints how long
it took, and what it says of itself. `--traces FOLDER` leaves a timeline of each step there.
"""

import argparse
import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from more_itertools import consume

from fstream import Stream, batch, peach, pfilter, pmap, trace

# ---------------------------------------------------------------- what is fetched is parsed, as most scripts do it


PAGES = json.dumps([{"page": page, "words": [f"word {n}" for n in range(200)]} for page in range(8)])


def fetch(number: int) -> tuple[int, str]:
    """Stands for a request that takes 20 ms."""
    time.sleep(0.02)
    return number, PAGES


def parse(answer: tuple[int, str]) -> int:
    number, text = answer
    return number + sum(len(set(page["words"])) for _ in range(12) for page in json.loads(text))


def on_threads(count: int) -> Stream[int]:
    return range(count) | pmap(fetch, kind="thread", workers=2) | pmap(parse, kind="thread")


def more_fetchers(count: int) -> Stream[int]:
    return range(count) | pmap(fetch, kind="thread", workers=16) | pmap(parse, kind="thread")


def parsed_on_processes(count: int) -> Stream[int]:
    return range(count) | pmap(fetch, kind="thread", workers=16) | pmap(parse, kind="process")


# ------------------------------------------------------------------- one service answers some requests after seconds


def ask(number: int) -> int:
    """Stands for a service that answers within 5 ms, but one time in forty after 400 ms."""
    time.sleep(0.4 if number % 40 == 20 else 0.005)
    return number


def in_order(count: int) -> Stream[int]:
    return range(count) | pmap(ask, kind="thread", workers=8, maxsize=16)


def as_they_come(count: int) -> Stream[int]:
    return range(count) | pmap(ask, kind="thread", workers=8, maxsize=16, ordered=False)


def more_workers(count: int) -> Stream[int]:
    return range(count) | pmap(ask, kind="thread", workers=32, ordered=False)


# ------------------------------------------------------------------------- a database that commits after each row


class Rows:
    """A table in a new database on disk, used by one worker."""

    def __init__(self, folder: str) -> None:
        self.database = sqlite3.connect(Path(folder) / "rows.db", check_same_thread=False)
        self.database.execute("create table rows (number integer)")

    def insert(self, *numbers: int) -> None:
        with self.database:  # one commit, which waits for the disk
            self.database.executemany("insert into rows values (?)", [(number,) for number in numbers])

    def count(self) -> int:
        [(count,)] = self.database.execute("select count(*) from rows")
        return int(count)


def is_wanted(number: int) -> bool:
    return number % 3 > 0


def row_by_row(count: int, rows: Rows) -> Stream[Any]:
    return range(count) | pfilter(is_wanted, kind="thread") | peach(rows.insert, kind="thread", workers=1)


def in_batches(count: int, rows: Rows) -> Stream[Any]:
    def insert(numbers: list[int]) -> None:
        rows.insert(*numbers)

    return (
        range(count)
        | pfilter(is_wanted, kind="thread")
        | batch(500)
        | peach(insert, kind="thread", workers=1)
    )


# ------------------------------------------------------------------------------------------------------ all of them


class Step(NamedTuple):
    what: str
    run: Callable[[int], Stream[Any]]


def timed(steps: list[Step], count: int, traces: Path | None) -> Iterator[list[Any]]:
    """Run each step; print its time, and what it says of itself; give its outputs."""
    for what, run in steps:
        shown = nullcontext() if traces is None else trace(traces / f"{what.replace(' ', '_')}.html")
        with shown:
            stream = run(count)
            outputs = list(stream)
        stats = stream.stats()
        print(f"{what}: {stats.seconds:.2f} s\n  {stats.bottleneck}")
        yield outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="how many items each pipeline has")
    parser.add_argument("--traces", type=Path, help="a folder for a timeline of each step")
    options = parser.parse_args()

    consume(
        pmap(parse, [(0, PAGES)], kind="process")
    )  # the first worker processes of a program take a moment

    print("-- fetch and parse")
    steps = [
        Step("all on threads", on_threads),
        Step("sixteen fetch", more_fetchers),
        Step("parsed on processes", parsed_on_processes),
    ]
    found = list(timed(steps, options.count, options.traces))
    same = all(outputs == found[0] for outputs in found)

    print("-- some answers are slow")
    steps = [
        Step("in order", in_order),
        Step("as they come", as_they_come),
        Step("as they come, 32 workers, no maxsize", more_workers),
    ]
    found = list(timed(steps, 4 * options.count, options.traces))
    same &= all(sorted(outputs) == list(range(4 * options.count)) for outputs in found)

    print("-- rows into a database")
    for what, pipeline in ("row by row", row_by_row), ("in batches of 500", in_batches):
        with tempfile.TemporaryDirectory() as folder:
            rows = Rows(folder)
            with closing(rows.database):
                consume(
                    timed(
                        [Step(what, lambda count: pipeline(count, rows))],  # noqa: B023
                        2 * options.count,
                        options.traces,
                    )
                )
                same &= rows.count() == sum(map(is_wanted, range(2 * options.count)))

    print("each step gave the same" if same else "THE STEPS DIFFER")
    sys.exit(not same)


if __name__ == "__main__":
    main()
