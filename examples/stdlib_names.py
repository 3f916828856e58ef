"""Count the names in every file of Python's standard library: read on threads, parse on processes, or on a cluster.

Run it by `make demo`, or as a script; `--limit 100` takes only the first hundred files. It shows what each step does
while it runs, says which one holds the others back, and leaves a timeline that a browser shows. `--cluster`, or `make
demo-cluster`, parses on a dask cluster of two processes that it starts on this machine: only the kind differs. The main
guard is for that cluster, whose processes import the script. fstream's own do not.
"""

from __future__ import annotations

import argparse
import ast
import sys
import sysconfig
import tempfile
import time
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from toolz import compose, curried, excepts, merge_with, pipe, second, topk

from fstream import Stream, pmap, trace, watch

Counts = dict[str, int]

# What read and count_names raise for files that are broken on purpose: samples for the library's own tests.
BROKEN = (SyntaxError, ValueError)


def python_files(folder: Path) -> Iterator[Path]:
    """Give the Python files under *folder*, but not the packages installed beside the library."""
    return (path for path in sorted(folder.rglob("*.py")) if "site-packages" not in path.parts)


def read(path: Path) -> str:
    """Read *path* in the encoding that it declares."""
    with tokenize.open(path) as file:
        return file.read()


def count_names(source: str) -> Counts:
    """Count the names in the syntax tree of *source*."""
    return Counter(node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))


def silence_warnings() -> None:
    """Keep the parser from warning of old-fashioned string escapes."""
    warnings.simplefilter("ignore")


def counting(kind: Literal["process", "dask"], paths: Iterable[Path]) -> Stream[Counts]:
    """Give the counts of each file that is not broken, made on workers."""
    stream: Stream[Counts] = pipe(
        paths,
        pmap(read, kind="thread", on_error="skip"),
        pmap(count_names, kind=kind, on_error="skip", on_start=silence_warnings),
    )
    return stream


@contextmanager
def local_cluster() -> Iterator[None]:
    """Have a dask cluster of two processes, and make its client the current one."""
    from distributed import Client, LocalCluster

    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
        yield


def count_with_map(paths: Iterable[Path]) -> list[Counts]:
    """Count the names of each file that is not broken, one after the other."""
    silence_warnings()
    counts: list[Counts] = pipe(
        paths,
        curried.map(excepts(BROKEN, compose(count_names, read), lambda _error: None)),
        curried.filter(lambda found: found is not None),
        list,
    )
    return counts


def timed(count: Callable[[Any], list[Counts]], argument: object) -> tuple[list[Counts], float]:
    """Give the result of *count* and the seconds that it took."""
    start = time.perf_counter()
    return count(argument), time.perf_counter() - start


def main(limit: int | None, kind: Literal["process", "dask"]) -> bool:
    """Count both ways, print what came out, and tell whether it was the same."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = list(islice(python_files(library), limit))
    stream = counting(kind, paths)
    picture = Path(tempfile.gettempdir()) / "stdlib_names.html"
    with watch(), trace(picture):
        counts, seconds = timed(list, stream)  # first, so that it also pays for the cold file cache
    expected, seconds_with_map = timed(count_with_map, paths)
    equal = counts == expected
    total: Counts = merge_with(sum, counts)

    print(f"{len(paths):,} files in {library}, {len(paths) - len(counts)} of them broken on purpose")
    print(f"{sum(total.values()):,} names, {len(total):,} different ones. The most frequent:")
    for name, count in topk(10, total.items(), key=second):
        print(f"    {name:<12}{count:>10,}")
    print(f"with fstream  {seconds:6.2f} s")
    print(f"with map      {seconds_with_map:6.2f} s, {seconds_with_map / seconds:.2f} times as long")
    print(f"the bottleneck is {stream.stats().bottleneck}")
    print(f"a timeline is in {picture}")
    print("both counts are equal" if equal else "THE COUNTS DIFFER")
    return equal


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Count the names in Python's standard library.")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N files only")
    parser.add_argument("--cluster", action="store_true", help="parse on a dask cluster of two processes")
    given = parser.parse_args()
    if given.cluster:
        with local_cluster():
            equal = main(given.limit, "dask")
    else:
        equal = main(given.limit, "process")
    sys.exit(0 if equal else 1)
