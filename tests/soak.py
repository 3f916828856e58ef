"""A soak: random pipelines with random faults, for as long as you like, with all cores busy.

    python tests/soak.py --seconds 300
    python tests/soak.py --seed 1234          # one round again: what a failure prints

Each round draws a plan from its seed: one to four pipelines, run at once from as many threads, each of random
sources, stages, options, faults, and ways to leave. A plain sequential model says what must come of it: of
ordered stages exactly which outputs and which error; of unordered ones which outputs may come and which error
must. After each round nothing may be left behind. A watchdog shows all stacks and fails if a round takes too
long.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a script: for `tests` and `fstream`

import psutil

from fstream import SKIP, WorkerDied, pfilter, pflat_map, pmap
from fstream._workers.process.workers import WARM
from fstream.errors import NotPicklable, RemoteError
from tests.faults import faulty
from tests.faults.faulty import Before, Boom, Tally, children, eventually

PATIENCE = 120.0
"""Seconds that one round may take."""

TIMEOUT = 1.5
"""Seconds for an item, where a stage has a time-out; long beside what an item takes on a loaded machine."""

VERBS = {"map": pmap, "filter": pfilter, "flat_map": pflat_map}


# What a stage does


@dataclass(frozen=True)
class Step:
    """The f of a stage: makes new, unique numbers of each; goes wrong at the *bad* ones, *times* times each."""

    place: int
    verb: str
    tally: Tally
    fault: str = ""
    bad: frozenset[int] = frozenset()
    times: int = 0
    pause: float = 0.0
    nests: str = ""

    def plain(self, value: int) -> Any:
        """What comes of a value when nothing goes wrong."""
        if self.verb == "filter":
            return value % 3 != 0
        return value * 10 + self.place if self.verb == "map" else (value * 10, value * 10 + 1)

    def outputs(self, value: int) -> list[int]:
        plain = self.plain(value)
        if self.verb == "filter":
            return [value] if plain else []
        return [plain] if self.verb == "map" else list(plain)

    def goes_wrong(self, value: int) -> bool:
        return value in self.bad and self.tally.turn(f"{self.place}-{value}") <= self.times

    def __call__(self, value: int) -> Any:
        if self.pause:
            time.sleep(self.pause)
        if self.nests and value % 7 == 0:
            assert list(pmap(faulty.ten, kind=self.nests, workers=2)(range(3))) == [0, 10, 20]
        if self.goes_wrong(value):
            act = FAULTS[self.fault].act
            assert act is not None
            return act(value)
        return self.plain(value)

    async def as_task(self, value: int) -> Any:
        if self.pause:
            await asyncio.sleep(self.pause)
        if self.fault == "hangs" and self.goes_wrong(value):
            await faulty.hang_task(value)
        if self.fault != "hangs" and self.goes_wrong(value):
            act = FAULTS[self.fault].act
            assert act is not None
            return act(value)
        return self.plain(value)


@dataclass(frozen=True)
class Fault:
    """A way to go wrong, the errors that may come of it, the kinds that can, and how often it is drawn."""

    errors: tuple[type[BaseException], ...]
    act: Callable[[Any], Any] | None = None
    kinds: tuple[str, ...] = faulty.KINDS
    weight: int = 4
    curable: bool = True
    """Can be retried, skipped and answered."""
    verbs: tuple[str, ...] = tuple(VERBS)


FAULTS = {
    "raises": Fault((Boom,), faulty.raise_boom, weight=10),
    "raises_with_lock": Fault((Boom, RemoteError), faulty.raise_with_lock),
    "raises_bad_rebuild": Fault((faulty.BadRebuild, RemoteError), faulty.raise_bad_rebuild),
    "stops": Fault((RuntimeError,), faulty.raise_stop_iteration),
    "exits": Fault((SystemExit,), faulty.raise_system_exit, weight=2, curable=False),
    "dies": Fault((WorkerDied,), faulty.exit_7, ("process",), weight=6),
    "is_killed": Fault((WorkerDied,), faulty.kill_self, ("process",)),
    "unpicklable": Fault((NotPicklable,), faulty.give_lock, ("process",), verbs=("map",)),
    "hangs": Fault((TimeoutError,), faulty.hang, faulty.CONCURRENT, weight=2),
    "on_start": Fault((Boom,), weight=1, curable=False),
}


@dataclass(frozen=True)
class Answer:
    """An `on_error` that puts what f would have given in place of the error, or drops the item."""

    step: Step
    skips: bool

    def __call__(self, error: BaseException, value: int) -> Any:
        return SKIP if self.skips else self.step.plain(value)


@dataclass(frozen=True)
class Stage:
    step: Step
    kind: str
    options: dict[str, Any]
    remedy: str = ""
    """What becomes of the bad items: "" (an error), "retried", "skipped" or "answered"."""

    def transformer(self) -> Any:
        f = self.step.as_task if self.kind == "task" else self.step
        return VERBS[self.step.verb](f, kind=self.kind, **self.options)

    @property
    def fails(self) -> bool:
        """Whether a bad item ends the pipeline."""
        return bool(self.step.fault) and not self.remedy

    def __str__(self) -> str:
        step = self.step
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        text = f"{step.verb} on {self.kind} ({options})"
        if step.fault:
            text += f"; {step.fault} at {sorted(step.bad)}, {step.times} times, {self.remedy or 'an error'}"
        return (
            text
            + (f"; pauses {step.pause}" if step.pause else "")
            + (f"; nests {step.nests}" * bool(step.nests))
        )


class Broken(Exception):
    """The source's own failure."""


@dataclass(frozen=True)
class Plan:
    """One pipeline, and what its consumer does."""

    items: int
    source: str
    breaks_at: int | None
    stages: list[Stage]
    leave: str
    after: int | None
    """How many outputs the consumer takes; None for all."""

    def inputs(self) -> Iterator[int]:
        for item in range(1, self.items + 1):
            if item == self.breaks_at:
                raise Broken(item)
            if self.source == "slow" and item % 16 == 0:
                time.sleep(0.001)
            yield item

    def stream(self) -> Any:
        if self.source == "list":
            source: Any = list(range(1, self.items + 1))
        elif self.source == "async":
            source = asynchronous(self.inputs())
        else:
            source = self.inputs()
        for stage in self.stages:
            source = stage.transformer()(source)
        return source

    @property
    def ordered(self) -> bool:
        return all(stage.options["ordered"] for stage in self.stages)

    def __str__(self) -> str:
        lines = [f"{self.items} items from a source that is {self.source}, breaks at {self.breaks_at}"]
        lines += [f"  {stage}" for stage in self.stages]
        return "\n".join([*lines, f"  left by {self.leave} after {self.after} outputs"])


async def asynchronous(items: Iterable[int]) -> Any:
    for item in items:
        yield item


# What must come of it


class Expected(Exception):
    """The model's error: one of these types."""


def model(plan: Plan, tolerant: bool, reached: list[tuple[type[BaseException], ...]]) -> Iterator[int]:
    """The outputs in order. An error ends them, unless *tolerant*: then its item gives nothing.

    *reached* collects the errors that are met.
    """

    def meet(errors: tuple[type[BaseException], ...]) -> None:
        reached.append(errors)
        if not tolerant:
            raise Expected

    def source() -> Iterator[int]:
        for item in range(1, plan.items + 1):
            if item == plan.breaks_at:
                meet((Broken,))
                return
            yield item

    def through(stage: Stage, values: Iterable[int]) -> Iterator[int]:
        for value in values:
            if stage.step.fault == "on_start":
                meet(FAULTS["on_start"].errors)
                return
            if value in stage.step.bad and stage.fails:
                meet(FAULTS[stage.step.fault].errors)
            elif not (value in stage.step.bad and stage.remedy == "skipped"):
                yield from stage.step.outputs(value)

    values: Iterable[int] = source()
    for stage in plan.stages:
        values = through(stage, values)
    return iter(values)


def collect(values: Iterator[int]) -> tuple[list[int], bool]:
    """The outputs of a model, and whether an error ended them."""
    got = []
    try:
        for value in values:
            got.append(value)
    except Expected:
        return got, True
    return got, False


def check(plan: Plan, got: list[int], error: BaseException | None) -> int:
    """Compare with the model; give the number of faults that were met."""
    reached: list[tuple[type[BaseException], ...]] = []
    possible, _ = collect(model(plan, tolerant=True, reached=reached))
    faults = len(reached) + sum(len(stage.step.bad) for stage in plan.stages if stage.remedy)
    whole = plan.after is None or len(got) < plan.after
    if plan.ordered:
        errors: list[tuple[type[BaseException], ...]] = []
        outputs, _ = collect(model(plan, tolerant=False, reached=errors))
        wanted = outputs if whole else outputs[: plan.after]
        assert got == wanted, f"got {shown(got)}, and not {shown(wanted)}"
    else:
        assert len(set(got)) == len(got), f"doubled: {sorted(x for x in got if got.count(x) > 1)[:10]}"
        assert set(got) <= set(possible), f"from nowhere: {sorted(set(got) - set(possible))[:10]}"
        assert error or not whole or len(got) == len(possible), (
            f"lost: {sorted(set(possible) - set(got))[:10]}"
        )
        errors = reached
    if whole and errors:
        assert error, f"no error, and not one of {errors}"
    if error:
        assert whole, f"an error after enough outputs: {error!r}"
        assert any(isinstance(error, types) for types in errors), f"{error!r}, and not one of {errors}"
    return faults


def shown(values: list[int]) -> str:
    return str(values) if len(values) < 40 else f"{str(values[:20])[:-1]}, ... {len(values)} in all]"


# Drawing a plan


def draw_plan(dice: random.Random, tally: Tally, calm: bool) -> Plan:
    """A random pipeline; a *calm* one neither nests processes nor takes long."""
    items = dice.choice([0, 1, 2, 7, 30, 100, 100, 300, 300, 1000] + [5000] * (not calm))
    breaks_at = dice.randint(1, items) if items and dice.random() < 0.1 else None
    source = dice.choice(
        ["list", "generator", "slow", "async"] if breaks_at is None else ["generator", "async"]
    )
    plan = Plan(items, source, breaks_at, [], *draw_leave(dice, items))
    for place in range(1, dice.choice([1, 1, 2, 2, 3, 4]) + 1):
        values, _ = collect(model(plan, tolerant=True, reached=[]))
        plan.stages.append(draw_stage(dice, place, values, tally, calm))
    return plan


def draw_leave(dice: random.Random, items: int) -> tuple[str, int | None]:
    leave = dice.choice(["exhaustion"] * 5 + ["async for"] * 3 + ["close", "drop", "error", "aclose"])
    return leave, None if leave in ("exhaustion", "async for") else dice.randint(0, items)


def draw_stage(dice: random.Random, place: int, values: list[int], tally: Tally, calm: bool) -> Stage:
    kind = dice.choice(["sync", "thread", "thread", "process", "process", "task", "task"])
    options: dict[str, Any] = {
        "ordered": dice.random() < 0.7,
        "maxsize": dice.choice([None, None, 0, 1, 2, 5, 50]),
        "workers": dice.choice([1, 2, 2, 3, 5]),
    }
    if kind == "process" and dice.random() < 0.15:
        options["max_items_per_worker"] = dice.choice([1, 10, 100])
        if len(values) // options["max_items_per_worker"] > 40:
            del options["max_items_per_worker"]
    step: dict[str, Any] = {
        "place": place,
        "verb": dice.choice(["map", "map", "filter", "flat_map"]),
        "tally": tally,
        "pause": 0.0005 if len(values) <= 300 and dice.random() < 0.2 else 0.0,
        "nests": dice.choice(["thread", "sync"]) if len(values) <= 100 and dice.random() < 0.1 else "",
    }
    remedy = ""
    if values and dice.random() < 0.5:
        names = [
            name for name, fault in FAULTS.items() if kind in fault.kinds and step["verb"] in fault.verbs
        ]
        name = dice.choices(names, [FAULTS[name].weight for name in names])[0]
        remedy = draw_remedy(dice, name, step, options)
        most = 1 if name == "hangs" or calm else 3
        step["fault"] = name
        step["bad"] = frozenset(dice.sample(values, min(len(values), dice.randint(1, most))))
    return Stage(Step(**step), kind, options, remedy)


def draw_remedy(dice: random.Random, fault: str, step: dict[str, Any], options: dict[str, Any]) -> str:
    """Choose what becomes of the bad items, and the options that bring it about."""
    step["times"] = 1_000
    if fault == "hangs":
        options["timeout"] = TIMEOUT
    if fault == "on_start":
        options["on_start"] = faulty.Start(step["tally"], faulty.raise_boom)
    if not FAULTS[fault].curable:
        return ""
    remedy = dice.choice(["", "", "retried", "skipped", "answered"])
    if remedy == "retried":
        step["times"] = 1 if fault == "hangs" else dice.randint(1, 2)
        # Others of its span may die with it, and the item itself be a suspect among others once more.
        options["retries"] = step["times"] + 1
    elif fault != "hangs":
        options["retries"] = dice.choice([0, 0, 1])
    if remedy == "skipped":
        options["on_error"] = dice.choice(["skip", Answer(Step(**step), skips=True)])
    if remedy == "answered":
        options["on_error"] = Answer(Step(**step), skips=False)
    return remedy


# Running it


def consume(plan: Plan, got: list[int]) -> None:
    """Run the pipeline as planned; outputs go to *got*."""
    stream = plan.stream()
    if plan.leave in ("async for", "aclose"):
        asyncio.run(consume_async(plan, stream, got))
    elif plan.leave == "error":
        try:
            with stream:
                take(plan, stream, got)
                raise Broken("in the loop body")
        except Broken as error:
            if error.args != ("in the loop body",):
                raise
    else:
        take(plan, stream, got)
        if plan.leave == "close":
            stream.close()
        del stream
        gc.collect(0)


def take(plan: Plan, stream: Any, got: list[int]) -> None:
    while plan.after is None or len(got) < plan.after:
        try:
            got.append(next(stream))
        except StopIteration:
            break


async def consume_async(plan: Plan, stream: Any, got: list[int]) -> None:
    if plan.after != 0:
        async for output in stream:
            got.append(output)
            if len(got) == plan.after:
                break
    await stream.aclose()


@dataclass
class Count:
    """What went by."""

    rounds: int = 0
    pipelines: int = 0
    items: int = 0
    outputs: int = 0
    faults: int = 0
    errors: int = 0
    early: int = 0

    def add(self, other: Count) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def __str__(self) -> str:
        return ", ".join(f"{getattr(self, each.name)} {each.name}" for each in fields(self))


def run_plan(plan: Plan) -> Count:
    got: list[int] = []
    error: BaseException | None = None
    try:
        consume(plan, got)
    except BaseException as caught:
        error = caught
    early = plan.after is not None and len(got) == plan.after
    try:
        faults = check(plan, got, error)
    except AssertionError as wrong:
        raise wrong from error
    return Count(0, 1, plan.items, len(got), faults, error is not None, early)


@dataclass
class Round:
    """One to four pipelines at once, drawn from a seed."""

    seed: int
    plans: list[Plan] = field(default_factory=list)

    def run(self) -> Count:
        dice = random.Random(self.seed)
        faulty.RAISED.clear()
        faulty.RELEASE.clear()
        before = Before()
        total = Count(rounds=1)
        # A thread that was left to itself, over its time, may yet write a file there.
        with tempfile.TemporaryDirectory(prefix="soak", ignore_cleanup_errors=True) as folder:
            self.plans = [
                draw_plan(dice, Tally(f"{folder}/{number}"), calm=number > 0)
                for number in range(dice.choice([1, 1, 1, 2, 3, 4, 4]))
            ]
            for result in run_together([lambda plan=plan: run_plan(plan) for plan in self.plans]):
                if isinstance(result, BaseException):
                    raise result
                total.add(result)
        faulty.RELEASE.set()
        gc.collect()
        before.assert_all_released(seconds=PATIENCE / 12)
        return total

    def __str__(self) -> str:
        return "\n".join([f"round of seed {self.seed}", *map(str, self.plans)])


def run_together(calls: list[Callable[[], Count]]) -> list[Count | BaseException]:
    """The results of the calls, or what they raised; the last runs in this thread."""
    results: list[Count | BaseException] = [Count()] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    *others, last = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in others:
        thread.start()
    last.run()
    for thread in others:
        thread.join()
    return results


class Watchdog:
    """Shows all stacks and ends the process if a round takes too long."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._round: Round | None = None
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._beat = threading.Condition()
        self._thread.start()

    def _run(self) -> None:
        while True:
            with self._beat:
                watched = self._round
                self._beat.wait_for(lambda watched=watched: self._round is not watched, PATIENCE)
                if watched is None or self._round is not watched:
                    continue
            print(f"\nHUNG for {PATIENCE} s: {watched}", flush=True)
            faulthandler.dump_traceback(file=sys.stdout, all_threads=True)
            for child in children():
                print("worker", child.pid, child.as_dict(["status", "cpu_times", "num_threads"]))
            print(again(watched.seed), flush=True)
            os._exit(1)

    def watch(self, watched: Round) -> None:
        with self._beat:
            self._round = watched
            self._beat.notify_all()
        faulthandler.dump_traceback_later(PATIENCE + 15, exit=True)  # if not even the watchdog can run


class Burners:
    """Processes that keep the cores busy, and end with this one."""

    def __init__(self, count: int) -> None:
        code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"
        self._processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
        faulty.NO_WORKERS.update(process.pid for process in self._processes)

    def __enter__(self) -> Burners:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def again(seed: int) -> str:
    return f"reproduce with: python tests/soak.py --seed {seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Random pipelines with random faults.")
    parser.add_argument("--seconds", type=float, default=300, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="run the one round of this seed")
    parser.add_argument("--times", type=int, default=1, help="so many times, with --seed")
    parser.add_argument(
        "--burners", type=int, default=os.cpu_count(), help="processes that keep the cores busy"
    )
    options = parser.parse_args()
    faulthandler.enable()
    first = random.SystemRandom().randrange(10**9) if options.seed is None else options.seed
    total, watchdog, began, told = Count(), Watchdog(), time.monotonic(), time.monotonic()
    opened: int | None = None
    with Burners(options.burners if options.seed is None else 0):
        while True:
            if options.seed is None:
                if time.monotonic() - began > options.seconds:
                    break
            elif total.rounds == options.times:
                break
            current = Round(first + total.rounds if options.seed is None else first)
            watchdog.watch(current)
            try:
                total.add(current.run())
            except BaseException as error:
                print(f"\nFAILED after {total}\n{current}\n", flush=True)
                traceback.print_exception(error, file=sys.stdout)
                print(again(current.seed), flush=True)
                return 1
            if total.rounds == 50:
                opened = files_open()
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{told - began:5.0f} s: {total}", flush=True)
    memory = psutil.Process().memory_info().rss // 2**20
    print(
        f"{total} in {time.monotonic() - began:.0f} s from seed {first}; {files_open()} files, {memory} MiB"
    )
    WARM.clear()  # each of them has five open
    if opened is not None:
        assert eventually(lambda: files_open() <= opened + 32), (
            f"{opened} files open at first, {files_open()} now"
        )
    return 0


def files_open() -> int:
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    sys.exit(main())
