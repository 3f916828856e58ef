"""Faults that need a scene of their own: who is busy, who waits, who walks away, and what is shared."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fstream import NotPicklable, WorkerDied, peach, pfilter, pflat_map, pmap
from tests import gates
from tests.faults import faulty
from tests.faults.faulty import (
    CONCURRENT,
    HANG,
    KINDS,
    SLACK,
    Before,
    Boom,
    Done,
    Faulty,
    Gate,
    KillsUnpickler,
    Start,
    Tally,
    Watch,
    as_coroutine,
    chain,
    drop_garbage,
    eventually,
    raise_boom,
    said,
    ten,
)

pytestmark = [pytest.mark.timeout(HANG / 2), pytest.mark.drawn, pytest.mark.slow]


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(str(tmp_path / "tally"))


@pytest.fixture(autouse=True)
def hanging_threads_are_let_go() -> Iterator[None]:
    faulty.RELEASE.clear()
    yield
    faulty.RELEASE.set()


def for_kind(f: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    """*f*, as a coroutine function if that is what *kind* runs."""
    return as_coroutine(f) if kind == "task" else f


class Busy:
    """Hangs on every item but the first, which raises as soon as *others* are under way."""

    def __init__(self, tally: Tally, others: int) -> None:
        self.tally, self.others = tally, others

    def __call__(self, item: int) -> None:
        if item:
            self.tally.note("busy", item)
            faulty.hang(item)
        else:
            assert eventually(lambda: self.tally.count("busy") >= self.others, HANG / 4)
            self.tally.note("raises")
            raise_boom(item)

    async def as_task(self, item: int) -> None:
        if item:
            self.tally.note("busy", item)
            await faulty.hang_task(item)
        else:
            while self.tally.count("busy") < self.others:
                await asyncio.sleep(0.005)
            self.tally.note("raises")
            raise_boom(item)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_an_error_is_prompt_while_others_are_busy_and_the_feeder_is_blocked(
    concurrent_kind: str, ordered: bool, tally: Tally
) -> None:
    watch = Watch()
    busy = Busy(tally, others=2)
    f = busy.as_task if concurrent_kind == "task" else busy
    stream = pmap(f, kind=concurrent_kind, workers=3, maxsize=4, ordered=ordered)(
        watch.source(itertools.count())
    )
    with pytest.raises(Boom):
        next(stream)
    raised = tally.last("raises")
    assert raised is not None
    assert time.monotonic() - raised < SLACK, "stated: under a second"
    assert watch.pulled <= 5
    started = tally.count("busy")
    assert eventually(lambda: watch.released)
    assert tally.count("busy") == started


def test_close_is_prompt_while_the_source_blocks(concurrent_kind: str) -> None:
    watch, gate = Watch(), Gate(3)
    stream = pmap(for_kind(ten, concurrent_kind), kind=concurrent_kind)(
        watch.source(gate.guard(itertools.count()))
    )
    assert [next(stream) for _ in range(3)] == [0, 10, 20]
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < SLACK, "stated: at once"
    gate.open()
    assert eventually(lambda: watch.released)


def test_close_is_prompt_while_items_hang(concurrent_kind: str) -> None:
    hang = faulty.hang_task if concurrent_kind == "task" else faulty.hang
    stream = pmap(first_is_quick(hang, concurrent_kind), kind=concurrent_kind, workers=2)(range(10))
    assert next(stream) == 0
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < SLACK, "stated: within a second"


def first_is_quick(hang: Callable[[Any], Any], kind: str) -> Callable[[Any], Any]:
    async def task(item: int) -> Any:
        return await hang(item) if item else item

    def plain(item: int) -> Any:
        return hang(item) if item else item

    return task if kind == "task" else plain


# The consumer leaves


def leave_by_break(stream: Any) -> None:
    for _ in stream:
        break


def leave_by_close(stream: Any) -> None:
    next(stream)
    stream.close()


def leave_by_throw(stream: Any) -> None:
    next(stream)
    with pytest.raises(Boom):
        stream.throw(Boom("thrown in"))


def leave_by_error(stream: Any) -> None:
    with pytest.raises(Boom), stream:
        for _ in stream:
            raise Boom("in the loop body")


def leave_by_drop(stream: Any) -> None:
    next(stream)


def leave_in_a_cycle(stream: Any) -> None:
    next(stream)
    cycle: list[Any] = [stream]
    cycle.append(cycle)


WAYS_TO_LEAVE = (
    leave_by_break,
    leave_by_close,
    leave_by_throw,
    leave_by_error,
    leave_by_drop,
    leave_in_a_cycle,
)


@pytest.mark.parametrize("leave", WAYS_TO_LEAVE)
def test_everything_is_released_when_the_consumer_leaves(
    leave: Callable[[Any], None], kind: str, tally: Tally
) -> None:
    before, watch = Before(), Watch()
    stage = pmap(for_kind(ten, kind), kind=kind, workers=2, on_start=Start(tally), on_done=Done(tally))
    began = time.monotonic()
    leave(stage(watch.source(itertools.count())))
    drop_garbage()
    assert eventually(lambda: watch.released)
    before.assert_all_released()
    assert eventually(lambda: tally.count("on_done") == tally.count("on_start") > 0)
    assert time.monotonic() - began < 2 * SLACK, "stated: within a second"


# on_done


def test_one_on_done_that_raises_does_not_stop_the_others(kind: str, tally: Tally) -> None:
    stage = pmap(
        for_kind(slowly, kind),
        kind=kind,
        workers=3,
        on_start=Start(tally),
        on_done=Done(tally, raise_boom, times=1),
    )
    stream = stage(range(30))
    got = list(itertools.islice(stream, 30))
    assert got == [ten(item) for item in range(30)]
    with pytest.raises(Boom):
        next(stream)
    assert tally.count("on_done") == tally.count("on_start") > 0


def slowly(item: int) -> int:
    """Work enough for every worker to get some."""
    time.sleep(0.003)
    return ten(item)


# timeout


class Late:
    """Quick for the first hundred items, slow but in time for the rest; *hanging* hangs."""

    def __init__(self, tally: Tally, hanging: int = -1) -> None:
        self.tally, self.hanging = tally, hanging

    def seconds(self, item: int) -> float:
        self.tally.note("start", item)
        return HANG if item == self.hanging else 0.05 if item >= 100 else 0

    def __call__(self, item: int) -> int:
        faulty.RELEASE.wait(self.seconds(item))
        return ten(item)

    async def as_task(self, item: int) -> int:
        await asyncio.sleep(self.seconds(item))
        return ten(item)


def test_a_timeout_is_of_an_item_and_not_of_a_batch(concurrent_kind: str, tally: Tally) -> None:
    late = Late(tally)
    f = late.as_task if concurrent_kind == "task" else late
    stage = pmap(f, kind=concurrent_kind, workers=1, timeout=0.5)
    assert list(stage(range(116))) == [ten(item) for item in range(116)]


def test_a_timeout_costs_nobody_else(concurrent_kind: str, tally: Tally) -> None:
    late = Late(tally, hanging=105)
    f = late.as_task if concurrent_kind == "task" else late
    stage = pmap(f, kind=concurrent_kind, workers=2, timeout=0.5, on_error="skip")
    assert list(stage(range(112))) == [ten(item) for item in range(112) if item != 105]
    assert tally.count("start", 105) == 1


def test_a_coroutine_that_will_not_be_cancelled_ends_in_a_timeout_too() -> None:
    async def stubborn(item: int) -> int:
        try:
            await asyncio.sleep(HANG)
        except asyncio.CancelledError:
            await asyncio.sleep(0.2)
        return item

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        list(pmap(stubborn, kind="task", timeout=0.1)(range(3)))
    assert time.monotonic() - began < SLACK


@dataclass(frozen=True)
class Trying:
    """`ten`, whose tries of item 1 end one after the other as *acts* do, and then go well."""

    tally: Tally
    acts: tuple[Callable[[Any], Any], ...]

    def __call__(self, item: int) -> Any:
        if item == 1 and (turn := self.tally.turn("try")) <= len(self.acts):
            return self.acts[turn - 1](item)
        return item * 10


def trying(kind: str, acts: tuple[Callable[[Any], Any], ...], tally: Tally) -> Callable[[Any], Any]:
    f = Trying(tally, acts)
    return as_coroutine(f) if kind == "task" else f


#: What two tries end with, and the error of the second.
TWO_TRIES: list[tuple[str, tuple[Callable[[Any], Any], ...], type[BaseException]]] = [
    (kind, acts, error)
    for kind in CONCURRENT
    for acts, error in [
        ((raise_boom, faulty.hang_task if kind == "task" else faulty.hang), TimeoutError),
        ((faulty.hang_task if kind == "task" else faulty.hang, raise_boom), Boom),
    ]
] + [
    ("process", (raise_boom, faulty.exit_7), WorkerDied),
    ("process", (faulty.exit_7, raise_boom), Boom),
    ("process", (raise_boom, faulty.give_lock), NotPicklable),
    ("process", (faulty.give_lock, raise_boom), Boom),
    ("process", (raise_boom, faulty.give_killer), WorkerDied),
    ("process", (raise_boom, faulty.raise_killer), WorkerDied),
]


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize(("kind", "acts", "error"), TWO_TRIES)
def test_tries_are_counted_whatever_they_end_with(
    kind: str, acts: tuple[Callable[[Any], Any], ...], error: type[BaseException], ordered: bool, tally: Tally
) -> None:
    stage = pmap(
        trying(kind, acts, tally), kind=kind, workers=2, timeout=0.5, retries=1, backoff=0, ordered=ordered
    )
    with pytest.raises(error):
        list(stage(range(5)))
    assert tally.count("try") == 2


@pytest.mark.parametrize(("kind", "acts", "error"), TWO_TRIES)
def test_the_last_try_may_succeed(
    kind: str, acts: tuple[Callable[[Any], Any], ...], error: type[BaseException], tally: Tally
) -> None:
    stage = pmap(trying(kind, acts, tally), kind=kind, workers=2, timeout=0.5, retries=2, backoff=0)
    assert list(stage(range(5))) == [0, 10, 20, 30, 40]
    assert tally.count("try") == 3


def test_a_process_deaf_to_signals_is_stopped_too() -> None:
    def deaf(item: int) -> int:
        with suppress(ValueError):  # signals are for main threads only
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
        return sum(itertools.repeat(item, 10**12))  # holds the interpreter lock all the time

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        list(pmap(deaf, kind="process", workers=2, timeout=0.3)(range(3)))
    assert time.monotonic() - began < 2 * SLACK


# Dead processes


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda n: n.name)
def test_a_busy_worker_killed_from_outside(number: signal.Signals, ordered: bool, tally: Tally) -> None:
    stage = pmap(Victim(tally), kind="process", workers=2, ordered=ordered)
    with shooting(tally, number), pytest.raises(WorkerDied) as caught:
        list(stage(range(10)))
    assert (caught.value.exitcode, caught.value.item) == (-number, 5)


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_a_busy_worker_killed_from_outside_and_retried(ordered: bool, tally: Tally) -> None:
    stage = pmap(Victim(tally, times=2), kind="process", workers=2, ordered=ordered, retries=2, backoff=0)
    with shooting(tally, signal.SIGKILL, shots=2):
        got = list(stage(range(50)))
    assert sorted(got) == [ten(item) for item in range(50)]
    assert got == sorted(got) or not ordered


@pytest.mark.forks
def test_a_worker_that_dies_and_leaves_a_process_of_its_own_behind(gate: gates.Gate) -> None:
    """That one has inherited all that the parent sees its worker by."""

    def fork_and_die(item: int) -> int:
        if item == 5:
            if os.fork() == 0:
                gate.wait()
                os._exit(0)
            os._exit(7)
        return ten(item)

    began = time.monotonic()
    with pytest.raises(WorkerDied) as caught:
        list(pmap(fork_and_die, range(10), kind="process", workers=2))
    assert (caught.value.exitcode, caught.value.item) == (7, 5)
    assert time.monotonic() - began < HANG / 2


class Victim:
    """Waits to be killed at item 5, so many times."""

    def __init__(self, tally: Tally, times: int = 1_000) -> None:
        self.tally, self.times = tally, times

    def __call__(self, item: int) -> int:
        if item == 5 and self.tally.turn("victim") <= self.times:
            self.tally.note("pid", os.getpid())
            time.sleep(HANG)
        return ten(item)


class shooting:
    """Kills the workers that note their pid, from another thread, as someone outside would."""

    def __init__(self, tally: Tally, number: signal.Signals, shots: int = 1) -> None:
        self._args = tally, number, shots
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        tally, number, shots = self._args
        for shot in range(shots):
            if eventually(lambda shot=shot: tally.count("pid") > shot, HANG / 2):
                os.kill(int(tally.events("pid")[shot][1]), number)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()


def test_workers_that_die_idle_in_a_pipeline_are_replaced_unseen(tally: Tally) -> None:
    gate = Gate(8)
    stage = pmap(with_pid, kind="process", workers=2, on_start=Start(tally))
    stream = stage(gate.guard(range(20)))
    first = [next(stream) for _ in range(8)]
    kill_all({pid for _, pid in first})
    gate.open()
    rest = list(stream)
    assert [item for item, _ in first + rest] == list(range(20))
    assert {pid for _, pid in rest}.isdisjoint({pid for _, pid in first})
    assert tally.count("on_start") >= 2, "a new worker starts anew"


def test_warm_workers_that_die_are_replaced_unseen() -> None:
    first = {pid for _, pid in pmap(with_pid, kind="process", workers=2)(range(20))}
    kill_all(first)
    got = list(pmap(with_pid, kind="process", workers=2)(range(20)))
    assert [item for item, _ in got] == list(range(20))
    assert first.isdisjoint({pid for _, pid in got})


def with_pid(item: int) -> tuple[int, int]:
    return item, os.getpid()


def kill_all(pids: Iterable[int]) -> None:
    """Kill idle workers and wait until they are dead."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("poison", ["in f", "in the item"])
def test_only_poison_is_dropped_among_many_suspects(poison: str, ordered: bool) -> None:
    bad = {7, 250, 251, 499}

    def f(item: Any) -> int:
        if item in bad:
            os._exit(9)
        return ten(item)

    items = [KillsUnpickler(n) if n in bad and poison == "in the item" else n for n in range(500)]
    got = list(pmap(f, kind="process", workers=2, ordered=ordered, on_error="skip")(items))
    assert sorted(got) == [ten(item) for item in range(500) if item not in bad]
    assert got == sorted(got) or not ordered


def test_a_deadly_item_is_tried_as_often_as_it_may(tally: Tally) -> None:
    f = Faulty(faulty.exit_7, tally, at=5)
    with pytest.raises(WorkerDied):
        list(pmap(f, kind="process", workers=2, retries=2, backoff=0)(range(10)))
    assert 3 <= tally.count("start", 5) <= 4, "once more if it was a suspect among others"


def test_a_worker_that_dies_while_its_input_is_still_being_sent() -> None:
    def dies(item: bytes) -> int:
        os._exit(9)

    big = [bytes(4_000_000)] * 6
    with pytest.raises(WorkerDied) as caught:
        list(pmap(dies, kind="process", workers=2)(big))
    assert caught.value.exitcode == 9


def test_a_worker_that_dies_while_it_sends_its_output(tally: Tally) -> None:
    def shot_soon(item: int) -> bytes:
        if item == 3 and tally.turn("first") == 1:
            threading.Timer(0.03, os._exit, (9,)).start()
            return bytes(100_000_000)  # takes longer to send than the worker lives
        return bytes([item])

    got = list(pmap(shot_soon, kind="process", workers=2, retries=1, backoff=0)(range(8)))
    assert [len(output) for output in got] in ([1] * 8, [1, 1, 1, 100_000_000, 1, 1, 1, 1])


# Faults leave no trace


@pytest.mark.parametrize("kind", KINDS)
def test_failed_pipelines_leave_no_files_open(kind: str, tally: Tally) -> None:
    def fail() -> None:
        f = for_kind(Faulty(raise_boom, tally, at=3), kind)
        with pytest.raises(Boom):
            list(pmap(f, kind=kind, workers=2)(range(10)))

    before = Before()

    def settle() -> int:
        drop_garbage()
        before.assert_all_released()
        return len(os.listdir("/proc/self/fd"))

    for _ in range(2):
        fail()
    opened = settle()
    for _ in range(10):
        fail()
    assert eventually(lambda: settle() <= opened + 8), "those of two warm workers are no leak"


def test_dead_workers_leave_no_files_open_and_no_zombies(tally: Tally) -> None:
    before = Before()

    def fail() -> None:
        with pytest.raises(WorkerDied):
            list(pmap(Faulty(faulty.exit_7, tally, at=3), kind="process", workers=2)(range(10)))

    for _ in range(2):
        fail()
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(6):
        fail()
    before.assert_all_released()
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) <= opened + 6)


# All operations, and several stages


@pytest.mark.parametrize("verb", [pmap, pfilter, pflat_map, peach], ids=lambda verb: verb.__name__)
def test_an_error_in_each_operation(verb: Any, kind: str) -> None:
    f = for_kind(raise_boom, kind)
    with pytest.raises(Boom) as caught:
        list(verb(f, kind=kind, name="the-stage")(range(5)))
    assert f"in stage 'the-stage' ({kind}), item 0" in said(caught.value)


def test_an_error_names_f_where_the_stage_has_no_name(kind: str) -> None:
    async def task_boom(item: int) -> None:
        raise_boom(item)

    with pytest.raises(Boom) as caught:
        list(pmap(task_boom if kind == "task" else raise_boom, kind=kind)(range(5)))
    name = "task_boom" if kind == "task" else "raise_boom"
    assert f"in stage '{name}' ({kind}), item 0: 0" in said(caught.value)


def test_the_cause_chain_keeps_the_error_of_f_first() -> None:
    def f(item: int) -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise Boom("outer") from error

    with pytest.raises(Boom) as caught:
        list(pmap(f, kind="process")(range(3)))
    types = [type(cause).__name__ for cause in chain(caught.value)]
    assert types == ["KeyError", "WorkerTraceback"]


def test_a_generator_that_fails_half_way_gives_its_outputs_once(kind: str, tally: Tally) -> None:
    def twice(item: int) -> Iterator[int]:
        yield item
        if item == 3 and tally.turn("fail") == 1:
            raise Boom("half-way")
        yield -item

    async def twice_async(item: int) -> Any:
        for output in twice(item):
            yield output

    f = twice_async if kind == "task" else twice
    got = list(pflat_map(f, kind=kind, retries=1, backoff=0)(range(6)))
    assert got == [output for item in range(6) for output in (item, -item)]
    assert tally.count("fail") == 2


def test_all_outputs_lost_to_skip_make_an_empty_stream(kind: str) -> None:
    stage = pmap(for_kind(raise_boom, kind), kind=kind, on_error="skip")
    assert list(stage(range(40))) == []


@pytest.mark.parametrize("kinds", list(itertools.permutations(CONCURRENT)), ids="-".join)
@pytest.mark.parametrize("failing", range(3))
def test_an_error_in_any_stage_of_a_row(kinds: tuple[str, ...], failing: int, tally: Tally) -> None:
    watch = Watch()
    factor = 10**failing  # what the stages before have made of an item
    stream: Any = watch.source(itertools.count())
    for number, kind in enumerate(kinds):
        at = 6 * factor if number == failing else -1
        f = for_kind(Faulty(raise_boom, tally, at), kind)
        stream = pmap(f, kind=kind, workers=2, name=f"stage-{number}")(stream)
    got = []
    with pytest.raises(Boom) as caught:
        for output in stream:
            got.append(output)
    assert got == [1000 * item for item in range(6)]
    assert f"in stage 'stage-{failing}' ({kinds[failing]}), item 6: {6 * factor}" in said(caught.value)
    assert eventually(lambda: watch.released)


def test_the_source_fails_at_once(kind: str) -> None:
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise Boom("no iterator")

    with pytest.raises(Boom, match="no iterator"):
        list(pmap(for_kind(ten, kind), kind=kind)(Broken()))


def test_two_workers_that_fail_at_once_give_one_error(concurrent_kind: str, tally: Tally) -> None:
    both = threading.Barrier(2) if concurrent_kind == "thread" else None

    def f(item: int) -> None:
        if both:
            both.wait(SLACK)
        raise_boom(item)

    with pytest.raises(Boom) as caught:
        list(pmap(for_kind(f, concurrent_kind) if not both else f, kind=concurrent_kind, workers=2)(range(2)))
    assert "item 0" in said(caught.value)


# Large items and outputs


@pytest.mark.parametrize("maxsize", [1, 4, None, 0])
@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_more_than_a_pipe_holds_in_both_directions_at_once(maxsize: int | None, ordered: bool) -> None:
    size = 3_000_000
    items = [bytes([number]) * size for number in range(10)]
    got = list(pmap(invert, kind="process", workers=2, ordered=ordered, maxsize=maxsize)(items))
    expected = [(255 - number, size) for number in range(10)]
    seen = [(output[0], len(output)) for output in got]
    assert (seen if ordered else sorted(seen, reverse=True)) == expected


def test_more_than_a_pipe_holds_between_processes() -> None:
    items = (bytes([number]) * 2_000_000 for number in range(8))
    stage = pmap(invert, kind="process", workers=2)
    assert list(stage(stage(items)) | pmap(len, kind="thread")) == [2_000_000] * 8


def invert(item: bytes) -> bytes:
    return item.translate(bytes(range(255, -1, -1)))


# What is shared


def test_two_streams_of_one_transformer_interleaved(kind: str) -> None:
    stage = pmap(for_kind(ten, kind), kind=kind, workers=2)
    assert list(zip(stage(range(200)), stage(range(200, 400)), strict=True)) == [
        (ten(item), ten(item + 200)) for item in range(200)
    ]


def test_one_transformer_in_many_threads(kind: str) -> None:
    stage = pmap(for_kind(ten, kind), kind=kind, workers=2)
    got = in_threads(
        [lambda start=start: list(stage(range(start, start + 100))) for start in range(0, 600, 100)]
    )
    assert got == [[ten(item) for item in range(start, start + 100)] for start in range(0, 600, 100)]


def test_a_failing_stream_does_not_disturb_its_twin(kind: str, tally: Tally) -> None:
    stage = pmap(for_kind(Faulty(raise_boom, tally, at=150), kind), kind=kind, workers=2)
    healthy, failing = stage(range(100)), stage(range(100, 200))
    pairs = []
    with pytest.raises(Boom):
        for pair in zip(healthy, failing, strict=False):
            pairs.append(pair)
    assert pairs == [(ten(item), ten(item + 100)) for item in range(50)]
    assert list(healthy) == [ten(item) for item in range(51, 100)]  # zip took one that had no partner


def test_one_iterator_feeds_two_streams(kind: str) -> None:
    source = iter(range(2_000))  # safe to share between threads
    stage = pmap(for_kind(ten, kind), kind=kind, workers=2)
    first, second = in_threads([lambda: list(stage(source)), lambda: list(stage(source))])
    assert first == sorted(first) and second == sorted(second)
    assert sorted(first + second) == [ten(item) for item in range(2_000)]


def test_one_generator_feeds_two_streams(kind: str) -> None:
    source = (item for item in range(2_000))  # not safe to share: Python says "generator already executing"
    stage = pmap(for_kind(ten, kind), kind=kind, workers=2)
    first, second = in_threads([lambda: take_all(stage(source)), lambda: take_all(stage(source))])
    seen = Counter(first[0] + second[0])
    assert max(seen.values(), default=1) == 1
    assert set(seen) <= {ten(item) for item in range(2_000)}
    if not first[1] and not second[1]:
        assert len(seen) == 2_000
    for error in (first[1], second[1]):
        assert error is None or "already executing" in str(error), repr(error)


def test_one_stream_consumed_by_two_threads(kind: str) -> None:
    stream = pmap(for_kind(ten, kind), kind=kind, workers=2)(range(2_000))
    first, second = in_threads([lambda: take_all(stream), lambda: take_all(stream)])
    errors = [error for error in (first[1], second[1]) if error]
    assert all(isinstance(error, ValueError | RuntimeError) for error in errors), errors
    rest = take_all(stream)[0] if errors else []
    assert sorted(first[0] + second[0] + rest) == [ten(item) for item in range(2_000)]


def take_all(stream: Iterable[int]) -> tuple[list[int], BaseException | None]:
    """The outputs, and what ended them before time."""
    got: list[int] = []
    try:
        for output in stream:
            got.append(output)
    except Exception as error:
        return got, error
    return got, None


def in_threads(calls: list[Callable[[], Any]]) -> list[Any]:
    """The results of all *calls*, each made in a thread of its own, begun together."""
    together = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        together.wait(SLACK)
        results[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


# Worker recycling


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("most", [1, 5])
def test_a_worker_is_replaced_after_so_many_items(most: int, ordered: bool, tally: Tally) -> None:
    stage = pmap(
        with_pid,
        kind="process",
        workers=2,
        ordered=ordered,
        max_items_per_worker=most,
        on_start=Start(tally),
        on_done=Done(tally),
    )
    got = list(stage(range(13)))
    items = [item for item, _ in got]
    assert sorted(items) == list(range(13))
    assert items == sorted(items) or not ordered
    shares = Counter(pid for _, pid in got)
    assert max(shares.values()) <= most
    assert len(shares) >= 13 / most
    assert tally.count("on_done") == tally.count("on_start") >= len(shares)


def test_recycling_goes_with_deaths_and_retries(tally: Tally) -> None:
    f = Faulty(faulty.exit_7, tally, at=5, times=2)
    stage = pmap(f, kind="process", workers=2, max_items_per_worker=4, retries=3, backoff=0)
    assert list(stage(range(30))) == [ten(item) for item in range(30)]


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2", True])
def test_max_items_per_worker_is_checked_when_the_stage_is_built(bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="max_items_per_worker"):
        pmap(ten, kind="process", max_items_per_worker=bad)


# ---------------------------------------------------------------------------------- outputs that cannot travel


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
@pytest.mark.parametrize("retries", [1, 2])
def test_an_output_that_cannot_be_pickled_is_tried_again(retries: int, ordered: bool, tally: Tally) -> None:
    def f(item: int) -> Any:
        tally.note("f", item)
        bad = item % 10 == 4 and tally.turn(f"f{item}") <= retries
        return faulty.give_lock(item) if bad else ten(item)

    stream = pmap(f, range(30), kind="process", workers=2, retries=retries, backoff=0, ordered=ordered)
    assert sorted(stream) == list(map(ten, range(30)))
    assert [tally.count("f", item) for item in (4, 14, 24)] == [retries + 1] * 3


@pytest.mark.parametrize("ordered", [True, False], ids=["ordered", "unordered"])
def test_an_output_that_cannot_be_pickled_is_tried_again_while_its_worker_is_at_the_next_item(
    ordered: bool, tally: Tally
) -> None:
    """The worker's last answers about a span come when it has some of the items in its hands once more."""

    def f(item: int) -> Any:
        if (turn := tally.turn(f"f{item}")) == 1:
            raise Boom(item)
        time.sleep(0.002)
        return faulty.give_lock(item) if turn == 2 else ten(item)

    stream = pmap(f, range(50), kind="process", workers=1, retries=2, backoff=0, ordered=ordered)
    assert sorted(stream) == list(map(ten, range(50)))


@pytest.mark.parametrize("fused", [False, True], ids=["alone", "fused"])
def test_an_output_that_can_never_be_unpickled_is_tried_as_often_as_may_be(tally: Tally, fused: bool) -> None:
    def f(item: int) -> Any:
        tally.note("f", item)
        return faulty.give_unrebuildable(item) if item == 4 else ten(item)

    source = pmap(lambda item: item, range(9), kind="process", workers=2) if fused else range(9)
    stream = pmap(f, source, kind="process", workers=2, retries=2, backoff=0, on_error="keep")
    outputs = list(stream)
    failed = outputs.pop(4)
    assert outputs == [ten(item) for item in range(9) if item != 4]
    assert (type(failed.error), failed.item, failed.tries) == (NotPicklable, 4, 3)
    assert tally.count("f", 4) in (
        3,
        4,
    )  # once more where it was in a span with others: they are run one by one


def test_an_output_that_can_never_be_pickled_is_tried_as_often_as_may_be(tally: Tally) -> None:
    def f(item: int) -> Any:
        tally.note("f", item)
        return faulty.give_lock(item) if item == 4 else ten(item)

    stream = pmap(f, range(9), kind="process", workers=2, retries=2, backoff=0)
    outputs = []
    with pytest.raises(NotPicklable, match="item 4: 4: its output, of type lock, cannot be pickled"):
        outputs.extend(stream)
    assert outputs == [0, 10, 20, 30]
    assert tally.count("f", 4) == 3
