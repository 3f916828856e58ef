"""One stream, driven step by step, against the model of the contract: whatever is done to it in whatever order.

The machine feeds the source, opens the gates at which f waits, kills workers and leaves; a thread of its own asks the
stream for outputs. It waits for one only when the model says that one must come: then it has to come by itself.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fstream
from fstream import Stream, WorkerDied
from property_tests.model import END, SOURCE_FAILED, Event, Item, Made, Model, Options
from property_tests.worlds import PROCESS, SYNC, TASK, THREAD, World
from tests.gates import PATIENCE, Gate, Log
from tests.leaks import Running, check_no_leaks

# It drops streams in whatever state they are.
pytestmark = pytest.mark.filterwarnings("ignore:peach:RuntimeWarning")

ALWAYS = 99  # more than all tries
PLENTY = 20  # retries: more than there are kills


class Boom(Exception):
    """Raised by f for the item of that number."""


class SourceFailed(Exception):
    """Raised by the source."""


def working(kind: str, log: Log, folder: Path) -> Callable[[Item], Any]:
    """The function of the stage: does what its item says, and logs ("start", number) and ("end", number)."""

    def result(item: Item) -> Made:
        for tries in range(1, item.fails + 1):
            try:
                os.mkdir(folder / f"{item.number}.{tries}")  # so that tries in several processes are counted
            except FileExistsError:
                continue
            raise Boom(item.number)
        return Made(item.number, item.size)

    def work(item: Item) -> Made:
        log.write(("start", item.number))
        try:
            if item.gate is not None:
                item.gate.wait()
            return result(item)
        finally:
            log.write(("end", item.number))

    async def work_task(item: Item) -> Made:
        log.write(("start", item.number))
        try:
            if item.gate is not None:
                await item.gate.passed()
            return result(item)
        finally:
            log.write(("end", item.number))

    return work_task if kind == "task" else work


def answer(_: BaseException, item: Item) -> Made:
    return Made(item.number, 1, answered=True)


def taken(streams: list[Stream[Any]]) -> Event:
    """What `next` brings."""
    try:
        return "output", next(streams[0])
    except StopIteration:
        return END
    except SourceFailed:
        return SOURCE_FAILED
    except Boom as error:
        return "failed", error.args[0]
    except WorkerDied as death:
        return "died", death.item and death.item.number


def close(streams: list[Stream[Any]]) -> None:
    streams[0].close()


def drop(streams: list[Stream[Any]]) -> None:
    streams.clear()
    gc.collect()


def in_time(future: Future[Any]) -> Any:
    """What comes of *future*, which must not hang."""
    try:
        return future.result(PATIENCE)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE:g} s for what must come at once") from None


def thread() -> ThreadPoolExecutor:
    """One thread, which is there already."""
    executor = ThreadPoolExecutor(1)
    executor.submit(int).result()
    return executor


class Source:
    """Yields what the model was fed, waits where there is nothing, ends as it says; shows what it sees."""

    LAST = Item(-1)  # what it yields when all is over: nobody may work on that

    def __init__(self, model: Model, change: threading.Condition) -> None:
        self.model = model
        self.change = change
        self.over = False
        self.most_held = 0
        self.iterated_by: set[threading.Thread] = set()
        self.closed_by: threading.Thread | None = None

    def __iter__(self) -> Iterator[Item]:
        self.items = self.generate()  # kept, so that the garbage collector does not close it
        return self.items

    def generate(self) -> Iterator[Item]:
        try:
            while (item := self.pull()) is not None:
                yield item
        finally:
            self.closed_by = threading.current_thread()

    def pull(self) -> Item | None:
        model = self.model
        self.iterated_by.add(threading.current_thread())
        with self.change:
            self.change.wait_for(lambda: model.unpulled or model.ending or self.over)
            if self.over:
                return self.LAST
            if model.unpulled:
                item = model.pull()
                self.most_held = max(self.most_held, model.held())
                return item
        if model.ending == SOURCE_FAILED:
            raise SourceFailed
        return None


WORK = st.fixed_dictionaries(
    {
        "size": st.integers(0, 3),
        "fails": st.sampled_from([0, 0, 0, 0, 0, 1, ALWAYS]),
        "waits": st.sampled_from([False, False, True]),
    }
)
OPTIONS = {
    "verb": st.sampled_from(["pmap", "pmap", "pfilter", "pflat_map", "peach"]),
    "workers": st.integers(1, 3),
    "maxsize": st.sampled_from([None, 1, 2, 4, 0]),
    "ordered": st.booleans(),
    "retries": st.sampled_from([0, 0, 1, PLENTY, PLENTY]),
    "on_error": st.sampled_from(["raise", "raise", "skip", "answer"]),
}


class StreamMachine(RuleBasedStateMachine):
    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(prefix="fs")
        self.path = Path(self.folder.name)
        self.log = Log(self.path / "log")
        self.change = threading.Condition()
        self.consumer, self.neighbour = thread(), thread()
        self.before = Running.now()
        self.numbers = count()

    @initialize(options=st.fixed_dictionaries(OPTIONS))
    def describe(self, options: dict[str, Any]) -> None:
        self.options = Options(self.kind, **options)
        verb, on_error = getattr(fstream, options.pop("verb")), options.pop("on_error")
        self.transformer = verb(
            working(self.kind, self.log, self.path),
            kind=self.kind,
            on_error=answer if on_error == "answer" else on_error,
            backoff=0 if options["retries"] else 0.1,
            **options,
        )
        self.begin()

    def begin(self) -> None:
        self.model = Model(self.options)
        self.source = Source(self.model, self.change)
        self.streams = [self.transformer(self.source)]
        self.items: dict[int, Item] = {}
        self.pending: Future[Event] | None = None
        self.kills = 0

    def begin_if_over(self) -> None:
        """A transformer may be used again, whatever became of its last stream."""
        if self.model.over:
            self.open_gates()
            self.begin()

    # The source

    def feed(self, work: dict[str, Any]) -> None:
        number, waits = next(self.numbers), work.pop("waits")
        item = Item(number, gate=Gate(self.path / f"gate{number}") if waits else None, **work)
        self.items[number] = item
        with self.change:
            self.model.feed(item)
            self.change.notify()

    @rule(works=st.lists(WORK, min_size=1, max_size=6))
    def yield_some(self, works: list[dict[str, Any]]) -> None:
        self.begin_if_over()
        if not self.model.ending:
            for work in works:
                self.feed(dict(work))

    @rule(size=st.integers(0, 1))
    def yield_many(self, size: int) -> None:
        self.begin_if_over()
        if not self.model.ending and len(self.items) < 400:  # once: the log holds no more
            for _ in range(600):
                self.feed({"size": size, "waits": False})

    @rule(ending=st.sampled_from([END, END, SOURCE_FAILED]))
    def end_source(self, ending: Event) -> None:
        with self.change:
            self.model.ending = self.model.ending or ending
            self.change.notify()

    # The consumer

    @rule()
    def ask(self) -> None:
        if self.streams and not self.pending:
            with self.change:
                self.model.ask()
            self.pending = self.consumer.submit(taken, self.streams)

    @rule(most=st.integers(2, 40))
    def take_several(self, most: int) -> None:
        for _ in range(most):
            if self.model.must():
                self.ask()
                self.receive()

    @invariant()
    def receive(self) -> None:
        """Wait for what must come. What comes without is not taken yet: it depends on time whether it has come."""
        if not self.pending:
            return
        if must := self.model.must():
            event = in_time(self.pending)
            self.pending = None
            assert event in must | self.model.may(), (event, must, self.model.may())
            if not self.model.over:
                with self.change:
                    self.model.give(event)
                if self.model.over:
                    self.check_end(event)
        elif self.pending.done():
            assert self.pending.result() in self.model.may(), (self.pending.result(), self.model.may())

    @rule(fresh=st.sampled_from([False, False, False, True]), dropping=st.booleans())
    def leave(self, fresh: bool, dropping: bool) -> None:
        """Close or drop the stream; one that has not been asked for anything yet only if it is to be *fresh*."""
        if not self.streams or fresh == self.model.asked:
            return
        if self.pending is None:
            in_time(self.consumer.submit(drop if dropping else close, self.streams))
        elif self.kind == "sync":  # a generator that already executes
            return
        else:  # from another thread than the one that waits for its next output
            in_time(self.neighbour.submit(close, self.streams))
            event, self.pending = in_time(self.pending), None
            allowed = {END} | self.model.must() | self.model.may()
            assert event in allowed, (event, allowed)
        self.check_end()

    # The others

    @rule(which=st.integers(0, 20))
    def open_gate(self, which: int) -> None:
        if blocked := sorted(self.model.blocked):
            self.open(blocked[which % len(blocked)])

    @rule()
    def open_gates(self) -> None:
        for number in sorted(self.model.blocked):
            self.open(number)

    def open(self, number: int) -> None:
        with self.change:
            self.model.open(number)
        self.items[number].gate.open()

    @precondition(lambda self: self.kind == "process" and self.is_killable())
    @rule(which=st.integers(0, 20))
    def kill_worker(self, which: int) -> None:
        """Kill a process, of this stream or a warm one."""
        if processes := sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0):
            self.kills += 1
            with self.change:
                processes[which % len(processes)].kill()
                if not self.options.retries:
                    self.model.kill()

    def is_killable(self) -> bool:
        """The model knows what comes of it."""
        return self.options.retries == PLENTY or (
            not self.options.retries and self.options.on_error == "raise"
        )

    @rule(sizes=st.lists(st.integers(0, 3), max_size=10))
    def use_another_stream(self, sizes: list[int]) -> None:
        """A second stream of the same transformer does not disturb the first, and is not disturbed."""
        items = [Item(next(self.numbers), size) for size in sizes]
        expected = [output for item in items for _, output in self.options.events(item)]
        outputs = in_time(self.neighbour.submit(list, self.transformer(iter(items))))
        assert outputs == expected if self.options.in_order else Counter(outputs) == Counter(expected)

    @rule(garbage=st.booleans())
    def come_to_rest(self, garbage: bool) -> None:
        """Leave the stage alone for as long as something moves."""
        moved = None
        while (now := (len(self.model.unpulled), len(self.log.entries()))) != moved:
            moved = now
            time.sleep(0.005)
        if garbage:
            gc.collect()

    # What holds after each step

    @invariant()
    def nothing_runs_before_the_first_next(self) -> None:
        if not self.model.asked:
            assert not self.source.iterated_by

    @invariant()
    def no_more_is_held_than_may_be(self) -> None:
        if self.options.maxsize is not None or not self.model.waited:
            assert self.source.most_held <= self.options.bound

    @invariant()
    def no_more_is_worked_on_than_may_be(self) -> None:
        starts, ends = self.calls()
        assert starts[Source.LAST.number] == 0
        assert sum((starts - ends).values()) <= self.options.workers + self.kills
        most = {n: self.options.tries(item) + self.kills for n, item in self.items.items()}
        assert starts <= Counter(most), (starts - Counter(most), self.kills, self.options, self.log.entries())

    def calls(self) -> tuple[Counter[int], Counter[int]]:
        """How often f was called on each item of the present stream, and came to an end."""
        starts, ends = Counter[int](), Counter[int]()
        for what, number in self.log.entries():
            if number in self.items or number == Source.LAST.number:
                (starts if what == "start" else ends)[number] += 1
        return starts, ends

    def check_end(self, event: Event | None = None) -> None:
        """The stream is over, by *event* or as it was left: nothing of it may be left."""
        with self.change:
            self.model.over = self.source.over = True
            self.change.notify()
        if self.kind == "thread":  # one that is busy in f cannot be stopped
            self.open_gates()
        self.check_released()
        assert self.source.iterated_by == {self.source.closed_by} - {None}
        if event == END and not self.kills and not self.model.killed:
            starts, _ = self.calls()
            assert starts == {number: self.options.tries(item) for number, item in self.items.items()}

    def check_released(self) -> None:
        check_no_leaks(self.before)

    def teardown(self) -> None:
        try:
            if hasattr(self, "model"):
                self.open_gates()
                if self.pending and self.kind == "sync":  # which cannot be closed while it waits
                    self.end_source(ending=END)
                self.receive()
                if not self.model.over:
                    self.leave(fresh=not self.model.asked, dropping=False)
        finally:
            for each in (self.consumer, self.neighbour):
                each.shutdown()
            self.log.close()
            self.folder.cleanup()


def case(world: World) -> Any:
    (kind,) = world.kinds
    machine = type(f"{kind.title()}Machine", (StreamMachine,), {"kind": kind})
    machine.TestCase.settings = settings(max_examples=world.examples, stateful_step_count=40)
    return machine.TestCase


TestSync, TestThread, TestProcess, TestTask = map(case, [SYNC, THREAD, PROCESS, TASK])
