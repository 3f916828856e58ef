"""Where the microseconds of one item's way go, in each kind: `python -m benchmarks.profile_item [CASE ...]`.

A sampler looks at every thread some hundred times a second and charges the CPU time that the thread has used since
then, by its own clock, to the function that it is in. So waiting costs nothing in the table, and nothing is added to
an item's way, as a tracing profiler would add more than an item costs. Worker processes are sampled by themselves.

Samples are taken where the interpreter lets go of a thread: at calls and loops. The function is right, the line need
not be; `--lines` shows lines all the same. It is made to let go more often than usual, so that the sampler need not
wait for a thread that waits itself: with threads, this costs some speed.
"""

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.per_item import generate, identity, identity_task
from benchmarks.rows import OnlyAsync, consume

PERIOD = 0.002
Where = tuple[str, str, int]  # thread, function, line


class Sampler:
    """Charges CPU time to functions while it is open."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)
        self.seconds: dict[Where, float] = defaultdict(float)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        sys.setswitchinterval(PERIOD / 20)
        before = {thread: _used(thread) for thread in threading.enumerate()}
        while not self._over.wait(PERIOD):
            frames = sys._current_frames()
            for thread in threading.enumerate():
                frame = frames.get(thread.ident or 0)
                if thread is self._thread or frame is None:
                    continue
                try:
                    used = _used(thread)
                except ProcessLookupError:  # it has just ended
                    continue
                name = f"{self._process} {re.sub(r'-[0-9]+$', '', thread.name)}"
                function = f"{Path(frame.f_code.co_filename).stem}: {frame.f_code.co_qualname}"
                self.seconds[name, function, frame.f_lineno] += used - before.get(thread, 0)
                before[thread] = used


def _used(thread: threading.Thread) -> float:
    """CPU time of a thread that lives."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


_samplers: list[Sampler] = []


def start_in_worker() -> None:
    """`on_start` of a process stage: sample this worker."""
    _samplers.append(sampler := Sampler("worker"))
    sampler.start()


def stop_in_worker(folder: str, stage_status: Any) -> None:
    """`on_done`: leave the samples in *folder*."""
    sampler = _samplers.pop()
    sampler.stop()
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
        json.dump([[*where, seconds] for where, seconds in sampler.seconds.items()], file)


class Case(NamedTuple):
    """One kind, fed and drained in one way."""

    name: str
    f: Callable[[Any], Any]
    items: Callable[[int], Iterable[int]]
    options: dict[str, Any]
    in_loop: bool = False


CASES = (
    Case("sync", identity, range, {"kind": "sync"}),
    Case("thread", identity, range, {"kind": "thread", "workers": 2}),
    Case("thread-generator", identity, generate, {"kind": "thread", "workers": 2}),
    Case("process", identity, range, {"kind": "process", "workers": 2}),
    Case("process-generator", identity, generate, {"kind": "process", "workers": 2}),
    Case("task", identity_task, range, {"kind": "task"}),
    Case("task-async-for", identity_task, range, {"kind": "task"}, in_loop=True),
)


class Profile(NamedTuple):
    """Seconds of wall and of CPU for so many items."""

    items: int
    wall: float
    seconds: dict[Where, float]


def profile(case: Case, items: int, duration: float) -> Profile:
    """Run *case* over and over for about *duration* seconds."""
    from fstream import pmap

    options: Any = dict(case.options)
    with tempfile.TemporaryDirectory() as folder:
        if options["kind"] == "process":
            options |= {"on_start": start_in_worker, "on_done": partial(stop_in_worker, folder)}

        def run() -> None:
            stream = pmap(case.f, case.items(items), **options)
            consume(OnlyAsync(stream) if case.in_loop else stream)

        run()  # warm
        for file in Path(folder).iterdir():
            file.unlink()
        sampler = Sampler("")
        start, runs = perf_counter(), 0
        sampler.start()
        while perf_counter() - start < duration:
            run()
            runs += 1
        wall = perf_counter() - start
        sampler.stop()
        seconds = sampler.seconds
        for file in Path(folder).iterdir():
            for thread, function, line, used in json.loads(file.read_text()):
                seconds[thread, function, line] += used
        return Profile(items * runs, wall, seconds)


def report(case: Case, result: Profile, *, lines: bool, least: float) -> Iterator[str]:
    """The table of one case: threads by their CPU time, functions within; what is under *least* of it is left out."""
    threads: dict[str, float] = defaultdict(float)
    functions: dict[tuple[str, str], float] = defaultdict(float)
    for (thread, function, line), used in result.seconds.items():
        threads[thread] += used
        functions[thread, f"{function}, line {line}" if lines else function] += used

    total = sum(threads.values())

    def micros(seconds: float) -> str:
        return f"{seconds / result.items * 1e6:.3f}"

    yield f"\n{case.name}: {micros(result.wall)} us an item, CPU time {micros(total)} us\n"
    yield "| thread | function | us an item |"
    yield "| --- | --- | --- |"
    for thread, used in sorted(threads.items(), key=itemgetter(1), reverse=True):
        if used > least * total:
            yield f"| {thread.strip()} | | {micros(used)} |"
            for (owner, function), part in sorted(functions.items(), key=itemgetter(1), reverse=True):
                if owner == thread and part > least * total:
                    yield f"| | {function} | {micros(part)} |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.profile_item", description=__doc__.split("\n")[0])
    parser.add_argument(
        "case", nargs="*", help=f"of {', '.join(case.name for case in CASES)}; all if none is given"
    )
    parser.add_argument("--items", type=int, default=500_000, help="in each run (default 500,000)")
    parser.add_argument("--seconds", type=float, default=3, help="for each case (default 3)")
    parser.add_argument("--lines", action="store_true", help="lines, not functions")
    options = parser.parse_args()
    for case in CASES:
        if not options.case or case.name in options.case:
            result = profile(case, options.items, options.seconds)
            print("\n".join(report(case, result, lines=options.lines, least=0.02)), flush=True)


if __name__ == "__main__":
    main()
