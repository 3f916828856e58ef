"""`python -m benchmarks`: every row of the performance table, or some of them."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from types import FrameType

from benchmarks.efficiency import calibrate
from benchmarks.harness import Effort, Result, against, document, measure, on_two_cpus, package_of, table
from benchmarks.plot import SVG, draw
from benchmarks.registry import ROWS, SWEEP
from benchmarks.rows import Row


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="fstream beside its peers and floors"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer items and three repeats: under two minutes"
    )
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="only the row NAME, or those whose name contains it"
    )
    parser.add_argument("--repeats", metavar="N", type=int, help="rounds over all contenders (default 5)")
    parser.add_argument(
        "--against", metavar="COMMIT", help="fstream beside itself as it was at COMMIT, without the others"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every sample to FILE")
    parser.add_argument("--plot", action="store_true", help=f"measure efficiency by item cost, draw {SVG}")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    return parser.parse_args(arguments)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _arguments(arguments)
    rows: Sequence[Row] = SWEEP if options.plot else ROWS
    if options.only:
        names = {row.name for row in rows}
        rows = [
            row
            for row in rows
            if any(name == row.name or (name not in names and name in row.name) for name in options.only)
        ]
    for row in rows:
        if row.needless:
            print(f"{row.name}: skipped, as {row.needless}", file=sys.stderr)
    rows = [row for row in rows if not row.needless]
    if options.list:
        print("\n".join(f"{row.name:20} {row.work}" for row in rows))
        return 0
    signal.signal(signal.SIGTERM, _end)  # as Ctrl-C: the children are ended on the way out
    results: list[Result] = []
    with package_of(options.against) if options.against else nullcontext() as before, on_two_cpus():
        effort = Effort(options.repeats or (3 if options.quick else 5), options.quick, before)
        if before is not None:
            rows = [
                against(row) for row in rows if any(name.startswith("fstream") for name in row.contenders)
            ]
        calibrate()
        for row in rows:
            start = perf_counter()
            results.append(measure(row, effort))
            took = f"{perf_counter() - start:.1f} s, other processes had {results[-1].others:.0%} of the CPUs"
            print(f"{row.name}: {took}", file=sys.stderr, flush=True)
            for verdict in results[-1].verdicts:
                if not verdict.met:
                    print(f"  missed by {verdict.contender}: {verdict.ratio}", file=sys.stderr, flush=True)
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(document(results, effort), indent=1) + "\n")
    if options.plot:
        SVG.write_text(draw(results))
    verdicts = [verdict for result in results for verdict in result.verdicts]
    hint = "; a quick run only hints at them, as its runs are short" if options.quick else ""
    print(f"\n{sum(verdict.met for verdict in verdicts)} of {len(verdicts)} targets met{hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
