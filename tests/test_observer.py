"""What a run tells those who observe it: one call a span, each of them once, and none to nobody."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fstream import Observer, WorkerDied, merge, observe, peach, pfilter, pflat_map, pmap
from fstream._engine.reports import Reports
from fstream._flow.observer import CALLS
from fstream.testing import Schedule, simulated
from tests.faults.faulty import Tally
from tests.functions import identity, is_odd
from tests.gates import PATIENCE, Gate, Log, holding

pytestmark = pytest.mark.drawn


class Record(Observer):
    """Keeps every call, and checks that no two come at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.over = threading.Event()
        self.turn = threading.Lock()

    def hear(self, name: str, *said: Any) -> None:
        assert self.turn.acquire(blocking=False), "two calls at once"
        self.calls.append((name, *said))
        self.turn.release()
        if name == "run_ended":
            self.over.set()

    def told(self, name: str) -> list[tuple[Any, ...]]:
        return [said for what, *said in self.calls if what == name]  # type: ignore[misc]

    def items(self) -> int:
        """How many items are through."""
        return sum(count for _, _, count, _, _ in self.told("done"))


def heard(name: str) -> Callable[..., None]:
    return lambda self, *said: self.hear(name, *said)


for name in CALLS:
    setattr(Record, name, heard(name))


@contextmanager
def recorded() -> Iterator[Record]:
    record = Record()
    with observe(record):
        yield record


def check_balance(record: Record, whole: bool = True) -> None:
    """Assert that all that was begun has ended, once; and, if the run went to its end, that nothing is missing."""
    names = [name for name, *_ in record.calls]
    assert names[0] == "run_opened"
    assert names[-1] == "run_ended"
    assert names.count("run_opened") == names.count("run_ended") == 1
    run = record.calls[0][1]
    assert {said[0] for name, *said in record.calls if not name.startswith(("run", "pulled"))} <= {
        *run.stages
    }
    working: Counter[Any] = Counter()
    in_hand: Counter[Any] = Counter()
    for name, stage, *said in record.calls:
        if name == "worker_started":
            working[stage, said[0]] += 1
            assert working[stage, said[0]] == 1
        elif name == "worker_ended":
            working[stage, said[0]] -= 1
            assert working[stage, said[0]] == 0
        elif name == "taken":
            in_hand[stage] += 1
            assert said[2] is None or working[stage, said[2]] == 1
        elif name == "done" and said[3] is not None:
            in_hand[stage] -= 1
    assert not +working
    if whole and not any(worker is None for *_, worker in record.told("taken")):
        assert not +in_hand


def totals(record: Record, name: str) -> list[int]:
    """How many items or outputs were told of by *name*, for each stage of the run."""
    run = record.calls[0][1]
    place = {"done": 2, "given": 1}[name]
    return [sum(said[place] for said in record.told(name) if said[0] == stage) for stage in run.stages]


# -------------------------------------------------------------------------------------------------- to the end


@pytest.mark.parametrize("items", [0, 1, 5, 3000])
@pytest.mark.parametrize("listed", [True, False], ids=["list", "generator"])
def test_each_item_is_told_of_once(kind: str, is_ordered: bool, items: int, listed: bool):
    source = list(range(items))
    with recorded() as record:
        outputs = list(
            pmap(identity, source if listed else iter(source), kind=kind, workers=2, ordered=is_ordered)
        )
    assert sorted(outputs) == source
    check_balance(record)
    assert sum(count for _, count in record.told("pulled")) == items
    assert totals(record, "done") == [items]
    if kind != "sync":
        assert totals(record, "given") == [items]
    assert record.told("run_ended")[0][1] is None


@pytest.mark.parametrize("is_async", [True, False])
def test_items_that_wait_in_tasks_are_told_of_once(is_ordered: bool, is_async: bool):
    async def turn(item: int) -> int:
        await asyncio.sleep(0)
        return item

    async def consume() -> list[int]:
        return await pmap(turn, range(3000), workers=50, ordered=is_ordered)

    with recorded() as record:
        outputs = (
            asyncio.run(consume())
            if is_async
            else list(pmap(turn, range(3000), workers=50, ordered=is_ordered))
        )
    assert sorted(outputs) == list(range(3000))
    check_balance(record)
    assert totals(record, "done") == totals(record, "given") == [3000]
    assert any(worker is None for *_, worker in record.told("done"))
    assert len(record.told("taken")) < 1000 > len(record.told("done"))


def test_a_row_tells_of_all_its_stages(concurrent_kind: str):
    row = (
        pmap(identity, kind=concurrent_kind, workers=2)
        | pfilter(is_odd, kind="thread")
        | pflat_map(lambda item: [item, item], kind="thread", name="twice")
    )
    with recorded() as record:
        assert len(list(row(range(1000)))) == 1000
    check_balance(record)
    stages = record.calls[0][1].stages
    assert [(stage.index, stage.name, stage.kind) for stage in stages] == [
        (0, "identity", concurrent_kind), (1, "is_odd", "thread"), (2, "twice", "thread"),
    ]  # fmt: skip
    assert {stage.run for stage in stages} == {record.calls[0][1].number}
    assert stages[0].workers == 2
    assert totals(record, "done") == [1000, 1000, 500]
    assert totals(record, "given") == [1000, 500, 1000]


def test_process_stages_that_run_as_one_are_told_of_as_one():
    with recorded() as record:
        list(pmap(abs, kind="process")(range(100)) | pmap(float, kind="process"))
    check_balance(record)
    assert [stage.name for stage in record.calls[0][1].stages] == ["abs | float"]
    assert totals(record, "done") == [100]


def test_a_sync_stage_between_others_is_a_run_of_its_own():
    with recorded() as record:
        record.turn = threading.Semaphore(99)  # type: ignore[assignment]  # calls of two runs may come at once
        list(pmap(abs, range(100), kind="thread") | pmap(float, kind="sync") | pmap(int, kind="thread"))
    assert sorted(run.stages[0].name for (run,) in record.told("run_opened")) == ["abs", "float", "int"]
    assert {run for run, _ in record.told("run_ended")} == {run for (run,) in record.told("run_opened")}
    assert record.items() == 300


def test_merged_sources_are_a_run_without_stages():
    with recorded() as record:
        assert sorted(merge(iter("ab"), iter("cd"))) == list("abcd")
    check_balance(record)
    assert sum(count for _, count in record.told("pulled")) == 4


def test_cheap_items_are_told_of_by_the_thousand(kind: str):
    with recorded() as record:
        assert sum(1 for _ in pmap(identity, range(100_000), kind=kind, workers=2)) == 100_000
    assert record.items() == 100_000
    assert len(record.calls) < 5_000


def test_the_calls_for_a_span_come_in_order(kind: str):
    with recorded() as record:
        list(pmap(identity, [1], kind=kind, workers=1))
    names = [name for name, *_ in record.calls]
    expected = [
        "run_opened",
        "worker_started",
        "pulled",
        "taken",
        "done",
        "given",
        "worker_ended",
        "run_ended",
    ]
    if kind == "sync":
        expected.remove("given")
    assert sorted(names) == sorted(expected)
    order = [name for name in names if name in ("run_opened", "pulled", "taken", "done", "run_ended")]
    assert order == ["run_opened", "pulled", "taken", "done", "run_ended"]
    assert names.index("worker_started") < names.index("taken")


# ------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("on_error", ["raise", "skip", lambda *_: 0], ids=["raise", "skip", "answered"])
def test_retries_and_failures_are_told_with_their_tries(kind: str, on_error: Any):
    def reciprocal(item: int) -> float:
        return 1 / item

    with recorded() as record:
        stream = pmap(reciprocal, [1, 0, 2], kind=kind, workers=1, retries=2, backoff=0, on_error=on_error)
        if on_error == "raise":
            with pytest.raises(ZeroDivisionError):
                list(stream)
        else:
            list(stream)
    check_balance(record, whole=on_error != "raise")
    told = [
        (name, said[1], type(said[2]), said[3])
        for name, *said in record.calls
        if name in ("retried", "failed")
    ]
    assert told == [
        ("retried", 1, ZeroDivisionError, 1),
        ("retried", 1, ZeroDivisionError, 2),
        ("failed", 1, ZeroDivisionError, 3),
    ]
    assert isinstance(
        record.told("run_ended")[0][1], ZeroDivisionError if on_error == "raise" else type(None)
    )
    if on_error != "raise":
        assert record.items() == 3


def test_a_time_out_is_told_with_its_worker(gate: Gate, log: Log, concurrent_kind: str):
    f = holding(concurrent_kind, {0: gate})
    with recorded() as record:
        outputs = list(
            pmap(
                f, [0, 1], kind=concurrent_kind, workers=1, timeout=0.2, retries=1, backoff=0, on_error="skip"
            )
        )
    assert outputs == [1]
    gate.open()
    check_balance(record)
    ends = Counter(how for *_, how in record.told("worker_ended"))
    assert ends["timed out"] == 2
    assert [(index, type(error), tries) for _, index, error, tries in record.told("retried")] == [
        (0, TimeoutError, 1)
    ]
    assert [(index, type(error), tries) for _, index, error, tries in record.told("failed")] == [
        (0, TimeoutError, 2)
    ]
    assert record.items() == 2


def test_a_death_is_told_with_its_worker(folder: Path):
    tally = Tally(str(folder / "tally"))

    def die(item: int) -> int:
        import os

        if item == 1 and tally.turn("run") <= 2:
            os._exit(3)
        return item

    with recorded() as record:
        assert list(pmap(die, range(3), kind="process", workers=1, retries=2, backoff=0)) == [0, 1, 2]
    check_balance(record)
    assert Counter(how for *_, how in record.told("worker_ended"))["died"] == 2
    retried = [(index, type(error), tries) for _, index, error, tries in record.told("retried") if index == 1]
    assert retried == [(1, WorkerDied, 1), (1, WorkerDied, 2)]
    assert record.items() == 3


# ---------------------------------------------------------------------------------------------------------- ends


def leave_by_closing(stream: Any) -> None:
    stream.close()


def leave_by_throwing(stream: Any) -> None:
    with pytest.raises(ValueError, match="enough"):
        stream.throw(ValueError("enough"))


@pytest.mark.parametrize("leave", [leave_by_closing, leave_by_throwing])
def test_a_run_that_is_left_is_told_of_to_its_end(kind: str, leave: Callable[[Any], None]):
    with recorded() as record:
        stream = pmap(identity, range(10**9), kind=kind, workers=2)
        next(stream)
        leave(stream)
    check_balance(record, whole=False)


def test_a_run_that_is_dropped_is_told_of_to_its_end(kind: str):
    with recorded() as record:
        stream = pmap(identity, range(10**9), kind=kind, workers=2)
        next(stream)
        del stream
        gc.collect()
        assert record.over.wait(PATIENCE)
    check_balance(record, whole=False)


def test_a_run_that_nobody_works_for_any_more_is_told_of_when_it_is_dropped(shared_memory_kind: str):
    with recorded() as record:
        stream = pmap(identity, range(4), kind=shared_memory_kind, workers=1, maxsize=0)
        next(stream)
        del stream
        gc.collect()
        assert record.over.wait(PATIENCE)
    check_balance(record, whole=False)


def test_a_thread_that_is_left_in_f_is_told_of(gate: Gate, log: Log):
    f = holding("thread", {1: gate}, log)
    with recorded() as record:
        stream = pmap(f, [0, 1], kind="thread", workers=1)
        next(stream)
        log.wait_for(("start", 1))
        stream.close()
        check_balance(record, whole=False)
        assert [how for *_, how in record.told("worker_ended")] == ["left"]
        count = len(record.calls)
        gate.open()
    for thread in threading.enumerate():
        if thread.name.startswith("fstream-holding") or thread.name.startswith("fstream-hold"):
            thread.join(PATIENCE)
    assert len(record.calls) == count


def test_an_error_of_the_source_ends_the_run(kind: str):
    def source() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    with recorded() as record, pytest.raises(LookupError) as caught:
        list(pmap(identity, source(), kind=kind))
    check_balance(record)
    assert record.told("run_ended")[0][1] is caught.value


def test_an_async_consumer_is_told_of(kind: str):
    async def source() -> Any:
        for item in range(100):
            yield item

    async def consume() -> list[int]:
        return [item async for item in pmap(identity, source(), kind=kind)]

    with recorded() as record:
        assert asyncio.run(consume()) == list(range(100))
    check_balance(record)
    assert record.items() == 100


# ------------------------------------------------------------------------------------------------------- who looks


def test_nothing_is_told_outside_of_the_block(kind: str):
    with recorded() as record:
        early = pmap(identity, range(5), kind=kind)
    list(early)
    list(pmap(identity, range(5), kind=kind))
    assert not record.calls


def test_a_stream_that_started_in_the_block_is_told_of_to_its_end(kind: str):
    with recorded() as record:
        stream = pmap(identity, range(5), kind=kind)
        next(stream)
    list(stream)
    check_balance(record)
    assert record.items() == 5


def test_blocks_add_up_and_each_observer_hears_the_same(kind: str):
    outer, one, two = Record(), Record(), Record()
    with observe(outer):
        with observe(one, two):
            list(pmap(identity, range(5), kind=kind))
        assert outer.calls == one.calls == two.calls != []
        list(pmap(identity, range(5), kind=kind))
    assert len(outer.told("run_ended")) == 2
    assert len(one.told("run_ended")) == 1


def test_streams_in_several_threads_are_told_of_apart():
    class Calm(Observer):
        def done(self, stage: Any, start: int, count: int, seconds: Any, worker: Any) -> None:
            with lock:
                counts[stage.run] += count

    lock, counts = threading.Lock(), Counter[int]()

    def consume() -> None:
        with observe(Calm()):
            list(pmap(identity, range(1000), kind="thread", workers=2))

    threads = [threading.Thread(target=consume) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(counts.values()) == [1000] * 3


def test_streams_that_f_iterates_are_told_of():
    with recorded() as record:
        record.turn = threading.Semaphore(99)  # type: ignore[assignment]  # calls of two runs may come at once
        list(pmap(lambda n: sum(pmap(identity, range(n), kind="sync")), [3], kind="thread", workers=1))
    assert len(record.told("run_opened")) == len(record.told("run_ended")) == 2
    assert record.items() == 4


def test_only_observers_observe():
    with (
        pytest.raises(TypeError, match=r"observers must be fstream.Observer objects, got 'me'"),
        observe("me"),
    ):  # type: ignore[arg-type]
        pass


def test_a_plain_observer_may_look_at_everything(kind: str):
    with observe(Observer()):
        assert list(pmap(identity, range(5), kind=kind)) == list(range(5))


# --------------------------------------------------------------------------------------- observers that misbehave


class Broken(Observer):
    def __init__(self, name: str, error: BaseException) -> None:
        self.heard = 0
        self.error = error
        setattr(self, name, self.fail)

    def fail(self, *_: Any) -> None:
        self.heard += 1
        raise self.error


@pytest.mark.parametrize("name", ["run_opened", "taken", "done", "worker_ended", "run_ended"])
@pytest.mark.parametrize("error", [LookupError("I cannot see"), GeneratorExit()], ids=["error", "exit"])
def test_an_observer_that_raises_is_told_nothing_more(
    kind: str, name: str, error: BaseException, caplog: pytest.LogCaptureFixture
):
    broken = Broken(name, error)
    with recorded() as record, observe(broken), caplog.at_level(logging.ERROR, "fstream"):
        assert list(pmap(identity, range(3000), kind=kind, workers=2)) == list(range(3000))
    assert broken.heard == 1
    check_balance(record)
    assert record.items() == 3000
    (entry,) = caplog.records
    assert f"Broken.{name} raised" in entry.getMessage()
    assert entry.exc_info is not None
    assert entry.exc_info[1] is error


def test_an_observer_that_blocks_holds_up_one_worker_alone(gate: Gate):
    class Blocked(Record):
        blocked = False

        def hear(self, name: str, *said: Any) -> None:
            elsewhere = threading.current_thread() is not threading.main_thread()
            if name == "done" and elsewhere and not self.blocked:
                self.blocked = True
                gate.wait()
            super().hear(name, *said)

    blocked = Blocked()
    with observe(blocked):
        stream = pmap(identity, iter(range(1000)), kind="thread", workers=3)
        seen = [next(stream) for _ in range(900)]
        gate.open()
        seen += stream
    assert seen == list(range(1000))
    check_balance(blocked)
    assert blocked.items() == 1000


def test_an_observer_may_use_other_streams(kind: str):
    class Busy(Record):
        def hear(self, name: str, *said: Any) -> None:
            assert sum(pmap(identity, range(10), kind="thread", workers=2)) == 45
            super().hear(name, *said)

    busy = Busy()
    with observe(busy):
        assert list(pmap(identity, range(50), kind=kind, workers=2)) == list(range(50))
    check_balance(busy)


def test_an_observer_is_never_called_under_the_lock(kind: str, monkeypatch: pytest.MonkeyPatch):
    all_reports: list[Reports] = []
    opened = Reports.__init__

    def open_reports(self: Reports, *args: Any) -> None:
        opened(self, *args)
        all_reports.append(self)

    monkeypatch.setattr(Reports, "__init__", open_reports)
    free: list[bool] = []

    class Looking(Record):
        def hear(self, name: str, *said: Any) -> None:
            free.append(not any(reports.lock._is_owned() for reports in all_reports))

    looking = Looking()
    with observe(looking):
        list(pmap(identity, pmap(identity, iter(range(500)), kind=kind, workers=2), kind="thread"))
    assert free
    assert all(free)


# ---------------------------------------------------------------------------------------------- simulated runs


@pytest.mark.parametrize("faults", [(), ((1, "raises"),), ((1, "dies"), (0, "raises")), ((2, "times out"),)])
@pytest.mark.parametrize("cheap", [True, False])
def test_simulated_runs_tell_the_same(concurrent_kind: str, faults: Any, cheap: bool):
    schedule = Schedule(stalls=(2, 0, 3), faults=faults, cheap=cheap, transient=True)
    with recorded() as record, simulated(schedule):
        assert list(
            pmap(abs, range(20), kind=concurrent_kind, workers=3, retries=2, backoff=0, timeout=5.0)
        ) == list(range(20))
    check_balance(record)
    assert totals(record, "done") == totals(record, "given") == [20]
    assert len(record.told("retried")) == len(faults)


def test_the_story_of_a_simulation_is_told_by_an_observer():
    with recorded() as record, simulated(Schedule(cheap=True)) as simulation:
        list(peach(abs, range(9), kind="thread", workers=2))
    taken = [
        f"{stage.name}[{worker}] takes item {start}" + (f" to {start + count - 1}" if count > 1 else "")
        for stage, start, count, worker in record.told("taken")
    ]
    assert [line for line in simulation.trace if "takes" in line] == taken
