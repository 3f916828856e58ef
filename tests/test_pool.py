"""One pool of worker processes for all stages that run at once: who has a worker, and what a worker holds."""

from __future__ import annotations

import decimal
import gc
import math
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from fstream import NotPicklable, Processes, WorkerDied, peach, pfilter, pmap, run, shutdown
from fstream._workers.process import pool
from fstream._workers.process.child import IDLE, Child
from fstream._workers.process.messages import Close, Forget, Open
from fstream._workers.process.pool import POOL, Pool, Worker
from fstream._workers.process.warm import WARM
from fstream._workers.process.wire import Wire
from tests.faults.faulty import eventually
from tests.functions import square
from tests.gates import PATIENCE, Gate, Log, holding, opened_when
from tests.scripts import Script, printed

pytestmark = pytest.mark.slow


def pid_of(_: object) -> int:
    return os.getpid()


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program's pool, without workers, on a machine of two CPUs."""
    WARM.clear()
    monkeypatch.setattr(pool, "cpu_count", lambda: 2)
    yield
    WARM.clear()


@pytest.fixture
def one() -> Iterator[Processes]:
    """A pool of one worker."""
    with Processes(1) as processes:
        yield processes


def at_once(*jobs: Callable[[], Any]) -> list[Any]:
    """Run each in a thread of its own; give what they gave, an exception where one raised."""

    def outcome(job: Callable[[], Any]) -> Any:
        try:
            return job()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(outcome, jobs))


# What the pool decides


class Tenant:
    """The workers of a stage, as the pool sees them."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self.granted: deque[Worker] = deque()
        self.mourned: deque[Any] = deque()
        self.poked = False
        self.only: set[Any] | None = None
        self.index: int | None = None

    def takes(self, link: Any) -> bool:
        return self.only is None or link in self.only

    def prefers(self, link: Any) -> int:
        return 0

    def spare_index(self, links: list[Any]) -> int | None:
        return self.index if links else None

    def ring(self) -> None:
        pass

    def is_here(self) -> bool:
        return False


class FakeLink:
    """A worker process that is none."""

    def __init__(self) -> None:
        self.homes: set[Any] = set()
        self.owed: list[int] = []
        self.worn = self.ended = False
        self.asleep = True

    def tell_owed(self) -> None:
        self.owed.clear()

    def sleeps(self) -> bool:
        return self.asleep

    def end(self) -> None:
        self.ended = True

    def buried(self) -> None:
        pass


def leased(pool: Pool, tenant: Tenant) -> Worker:
    """A lease that was to be had at once, of a worker that has started and is at work."""
    worker = pool.hire(tenant)
    assert worker is not None
    if worker.new:
        worker.link, worker.new = FakeLink(), False  # type: ignore[assignment]
    worker.opened = True
    worker.flight = [...]  # type: ignore[list-item]
    return worker


def entered(pool: Pool, number: int, most: int = 2) -> list[Tenant]:
    tenants = [Tenant(most) for _ in range(number)]
    for tenant in tenants:
        pool.enter(tenant)
    return tenants


def test_there_are_as_many_workers_as_cpus_or_as_a_stage_asks_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "cpu_count", lambda: 3)
    free, fixed = Pool(), Pool(2)
    assert (free.limit, fixed.limit) == (3, 2)
    [tenant] = entered(free, 1, 7)
    entered(fixed, 1, 7)
    assert (free.limit, fixed.limit) == (7, 2)
    free.leave(tenant, 0, set())
    assert free.limit == 3


def test_a_worker_that_is_given_back_goes_to_whoever_waits_first():
    pool = Pool(1)
    a, b, c = entered(pool, 3)
    worker = leased(pool, a)
    assert pool.hire(b) is None
    assert pool.hire(c) is None
    assert worker.recalled and a.poked
    pool.release(worker)
    assert [granted.link for granted in b.granted] == [worker.link]
    assert not c.granted
    assert not pool.warm.count


def test_a_worker_that_has_nothing_to_do_is_recalled_before_others():
    pool = Pool(2)
    a, b, c = entered(pool, 3)
    busy, idle = leased(pool, a), leased(pool, b)
    idle.flight = []
    pool.hire(c)
    assert (busy.recalled, idle.recalled) == (False, True)


def test_who_has_most_gives_a_worker_up_and_of_equals_who_has_it_for_longest():
    pool = Pool(3)
    a, b, c = entered(pool, 3)
    first, old, new = leased(pool, a), leased(pool, b), leased(pool, b)
    first.since, old.since, new.since = 1.0, 2.0, 3.0
    pool.hire(c)
    assert [first.recalled, old.recalled, new.recalled] == [False, True, False]


def test_nobody_gives_a_worker_up_to_one_who_would_then_have_more():
    pool = Pool(2)
    a, b = entered(pool, 2)
    workers = leased(pool, a), leased(pool, b)
    assert pool.hire(a) is None
    assert not any(worker.recalled for worker in workers)


def test_a_worker_that_is_starting_is_not_recalled():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    worker.opened, worker.flight = False, []
    pool.hire(b)
    assert not worker.recalled


def test_a_worker_that_was_starting_is_recalled_when_it_has_started():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    worker.opened = False
    pool.hire(b)
    worker.opened = True
    pool.look_again()
    assert worker.recalled


def test_who_has_a_worker_that_is_idle_lacks_room_alone():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    b.only = {spare := FakeLink()}
    pool.warm.put(spare)  # type: ignore[arg-type]
    pool.hire(b)
    assert worker.recalled
    pool.release(worker)
    assert [granted.link for granted in b.granted] == [spare]


def test_a_worker_is_recalled_again_by_one_who_has_not_waited_for_it_meanwhile():
    pool = Pool(1)
    a, b = entered(pool, 2)
    leased(pool, a)
    pool.hire(b)
    pool.cancel(b)
    a.poked = False
    pool.hire(b)
    assert a.poked


def test_one_worker_is_recalled_for_each_who_waits():
    pool = Pool(2)
    a, b = entered(pool, 2)
    workers = leased(pool, a), leased(pool, a)
    pool.hire(b)
    pool.hire(b)
    assert sum(worker.recalled for worker in workers) == 1


def test_each_who_waits_has_another_worker_recalled():
    pool = Pool(2)
    a, b, c = entered(pool, 3)
    workers = leased(pool, a), leased(pool, a)
    pool.hire(b)
    pool.hire(c)
    assert all(worker.recalled for worker in workers)


def test_of_a_hundred_who_wait_only_the_first_are_asked_what_they_can_use():
    pool = Pool(2)
    first, second, *others = entered(pool, 102)
    worker = leased(pool, first)
    leased(pool, second)
    for tenant in others:
        pool.hire(tenant)
    asked: list[Tenant] = []
    for tenant in others:
        tenant.takes = lambda _, tenant=tenant: asked.append(tenant) or True  # type: ignore[method-assign,misc]
    pool.release(worker)
    assert others[0].granted and len(set(map(id, asked))) < 5


def test_who_can_use_certain_workers_alone_is_given_those():
    pool = Pool(2)
    a, b = entered(pool, 2)
    one, other = leased(pool, a), leased(pool, a)
    b.only = {other.link}
    pool.hire(b)
    assert (one.recalled, other.recalled) == (False, True)
    pool.release(one)
    assert not b.granted
    pool.release(other)
    assert [worker.link for worker in b.granted] == [other.link]


def test_a_worker_that_dies_makes_room_for_a_new_one():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    pool.hire(b)
    pool.gone(worker)
    assert [granted.link for granted in b.granted] == [None]


def test_those_who_had_resources_in_a_dead_worker_are_told():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    worker.link.homes.add(b)
    pool.gone(worker)
    assert list(b.mourned) == [worker.link] and b.poked


def test_a_pool_that_was_larger_shrinks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool, "cpu_count", lambda: 1)
    free = Pool()
    [large] = entered(free, 1, 2)
    a, b = entered(free, 2, 1)
    first, second = leased(free, a), leased(free, b)
    free.leave(large, 0, set())
    free.hire(large)
    free.release(first)
    assert not large.granted
    free.release(second)
    assert len(large.granted) == 1


def test_idle_workers_that_do_not_suit_make_room_for_one_that_does():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    pool.release(worker)
    b.takes = lambda link: link is None  # type: ignore[method-assign]
    new = pool.hire(b)
    assert new is not None and new.link is None
    assert worker.link.ended  # type: ignore[attr-defined]
    assert not pool.warm.count


@pytest.mark.parametrize("asleep", [True, False])
def test_one_more_is_started_for_a_stage_that_waits_while_a_worker_sleeps(
    asleep: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool, "cpu_count", lambda: 1)
    free = Pool()
    a, b = entered(free, 2, 1)
    worker: Any = leased(free, a)
    worker.link.asleep, worker.since = asleep, -PATIENCE
    assert free.hire(b) is None
    free.look_for_sleepers(b)
    assert len(b.granted) == asleep


def test_none_is_started_for_a_stage_that_waits_for_the_worker_that_has_its_resources(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pool, "cpu_count", lambda: 1)
    free = Pool()
    a, b = entered(free, 2, 1)
    worker: Any = leased(free, a)
    worker.link.asleep, worker.since = True, -PATIENCE
    b.only = {worker.link}
    assert free.hire(b) is None
    free.look_for_sleepers(b)
    assert not b.granted and b in free.waiting


def test_a_pool_of_a_given_size_never_has_more():
    fixed = Pool(1)
    a, b = entered(fixed, 2, 1)
    worker: Any = leased(fixed, a)
    worker.link.asleep, worker.since = True, -PATIENCE
    fixed.hire(b)
    fixed.look_for_sleepers(b)
    assert not b.granted


def test_a_worn_worker_goes_to_those_who_have_resources_there_and_then_ends():
    pool = Pool(1)
    a, b = entered(pool, 2)
    worker = leased(pool, a)
    worker.link.worn = True
    worker.link.homes.add(b)
    pool.release(worker)
    assert not worker.link.ended  # type: ignore[attr-defined]
    again = pool.hire(b)
    assert again is not None and again.link is worker.link
    again.link.homes.clear()
    pool.release(again)
    assert worker.link.ended  # type: ignore[attr-defined]


def test_workers_forget_a_stage_that_is_over_whoever_has_them():
    pool = Pool(2)
    a, b = entered(pool, 2)
    mine, other = leased(pool, a), leased(pool, b)
    pool.release(mine)
    a.poked = b.poked = False
    pool.leave(a, 7, {mine.link, other.link})
    assert mine.link.owed == []  # it was told
    assert other.link.owed == [7] and b.poked


# Many streams


def test_many_streams_at_once_have_as_many_workers_as_cpus(two_cpus: None):
    def pids() -> set[int]:
        return set(pmap(pid_of, iter(range(300)), kind="process", workers=2))

    found = at_once(*[pids] * 12)
    assert len(set[int]().union(*found)) <= 2
    assert len(WARM) <= 2


def test_many_stages_of_a_row_have_as_many_workers_as_cpus(two_cpus: None):
    def note(item: tuple[int, ...]) -> tuple[int, ...]:
        return (*item, os.getpid())

    row = pmap(note, kind="process", workers=2)
    for _ in range(5):
        row = row | pmap(note, kind="process", workers=2, retries=1)
    found = list(row((n,) for n in range(300)))
    assert [item[0] for item in found] == list(range(300))
    assert {len(item) for item in found} == {7}
    assert len({pid for item in found for pid in item[1:]}) <= 2


@pytest.mark.parametrize("is_ordered", [True, False])
def test_streams_that_share_a_worker_give_what_they_give_alone(one: Processes, is_ordered: bool):
    def outputs(start: int) -> list[int]:
        stream = iter(range(start, start + 500)) | pmap(square, kind=one, ordered=is_ordered)
        return sorted(stream | pfilter(lambda n: n % 2, kind=one, retries=1, ordered=is_ordered))

    found = at_once(*[lambda start=start: outputs(start) for start in range(8)])
    assert found == [[n * n for n in range(start, start + 500) if n % 2] for start in range(8)]


def test_a_stream_gets_its_turn_beside_one_that_never_ends(one: Processes):
    with pmap(square, count(), kind=one) as endless:
        over = threading.Event()

        def consume() -> None:
            while not over.is_set():
                next(endless)

        thread = threading.Thread(target=consume)
        thread.start()
        try:
            assert list(pmap(square, range(100), kind=one)) == [n * n for n in range(100)]
        finally:
            over.set()
            thread.join()


def test_a_stream_gets_its_turn_beside_one_that_always_has_more_to_do(one: Processes):
    def slow(item: int) -> int:
        time.sleep(0.001)
        return item

    with pmap(slow, range(10**9), kind=one, maxsize=0) as endless:
        assert next(endless) == 0
        assert list(pmap(square, range(100), kind=one)) == [n * n for n in range(100)]


def test_a_stream_that_asks_while_the_only_worker_is_starting_gets_its_turn(
    one: Processes, monkeypatch: pytest.MonkeyPatch
):
    def slow(item: int) -> int:
        time.sleep(0.001)
        return item

    def start_when_another_one_waits() -> Any:
        assert eventually(lambda: one.pool().waiting)
        return Pool.start(one.pool())

    monkeypatch.setattr(one.pool(), "start", start_when_another_one_waits)
    with (
        ThreadPoolExecutor() as threads,
        pmap(slow, range(10**9), kind=one, maxsize=0) as endless,
        pmap(square, range(100), kind=one) as other,
    ):
        first = threads.submit(next, endless)
        assert eventually(lambda: one.pool().leases)
        assert threads.submit(list, other).result(PATIENCE) == [n * n for n in range(100)]
        assert first.result(PATIENCE) == 0


def test_a_stage_whose_room_is_full_has_no_worker(one: Processes):
    with pmap(square, count(), kind=one, maxsize=3) as full:
        assert next(full) == 0
        assert list(pmap(square, range(10), kind=one)) == [n * n for n in range(10)]
        assert list(islice(full, 5)) == [1, 4, 9, 16, 25]


def test_an_idle_worker_is_given_back_though_its_time_is_not_over(
    one: Processes, monkeypatch: pytest.MonkeyPatch
):
    for module in "pump", "workers":
        monkeypatch.setattr(f"fstream._workers.process.{module}.SLICE", PATIENCE * 9)
    with pmap(square, count(), kind=one, maxsize=3) as full:
        assert next(full) == 0
        assert list(pmap(square, range(10), kind=one)) == [n * n for n in range(10)]


def test_what_waits_behind_the_item_at_work_does_not_keep_others_from_the_worker(
    one: Processes, gate: Gate, log: Log
):
    """The first stream is at an item of a long span when the second one asks."""
    f = holding("process", {15_000: gate})
    with pmap(f, iter(range(20_000)), kind=one) as first:
        assert list(islice(first, 15_000)) == list(range(15_000))
        second = threading.Thread(target=lambda: list(pmap(log.write, [1], kind=one)))
        second.start()
        assert eventually(lambda: one.pool().waiting)
        gate.open()
        second.join(PATIENCE)
        assert log.entries() == [1]


@pytest.mark.slow
def test_the_pool_grows_to_the_workers_of_a_stage_and_back(two_cpus: None, gate: Gate, log: Log):
    items = range(20)
    f = holding("process", dict.fromkeys(items, gate), log)
    with opened_when(gate, lambda: log.take(5)):
        assert list(pmap(f, items, kind="process", workers=5)) == list(items)
    assert len(multiprocessing.active_children()) >= 5
    assert POOL.limit == 2


def test_workers_that_nobody_needs_end_after_their_time():
    with Processes(2, idle=0.1) as processes:
        pids = set(pmap(pid_of, range(100), kind=processes))
        assert eventually(lambda: not pids & {each.pid for each in multiprocessing.active_children()})
        assert set(pmap(pid_of, range(100), kind=processes)).isdisjoint(pids)


@pytest.mark.parametrize("idle", [0, 0.001])
def test_a_worker_that_ends_by_itself_as_a_stage_comes_is_replaced_unseen(idle: float):
    """The stage would else blame its first item for the fourth worker in a row that ended so."""
    with Processes(2, idle=idle) as processes:
        for _ in range(10):
            assert list(pmap(abs, range(5), kind=processes, on_error="skip")) == [*range(5)]


def test_a_worker_waits_for_its_first_stage_however_short_its_time_is():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Child(theirs, memoryview(array("q", [IDLE, 0, 0, -1, 0, -1])), idle=0.0)
        reader = threading.Thread(target=worker.read)
        reader.start()
        ours.send(b"")
        reader.join(0.1)
        assert reader.is_alive()
        parent = Wire(ours)
        parent.push(Open(8, None, 0, stays=False))
        parent.push(Close(8, over=False))
        parent.flush()
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert worker.left


@pytest.mark.parametrize("idle", [math.inf, 1e10, 10**400], ids=["inf", "1e10", "googols"])
def test_workers_may_wait_for_as_long_as_one_likes(idle: float):
    with Processes(1, idle=idle) as processes:
        [pid] = pmap(pid_of, [1], kind=processes)
        assert list(pmap(pid_of, [1], kind=processes)) == [pid]


# Stages in one worker


def test_a_worker_holds_stages_with_resources_each(one: Processes, log: Log):
    def stage(name: str) -> Any:
        def on_start() -> str:
            log.write((name, "start", os.getpid()))
            return name

        def on_done(stage_status: Any, resource: str) -> None:
            log.write((resource, "done", os.getpid(), stage_status.done))

        def f(item: str, resource: str) -> str:
            return item + resource

        return pmap(f, kind=one, on_start=on_start, on_done=on_done, retries=1)

    row = stage("a") | stage("b") | stage("c")
    assert list(row([str(n) for n in range(200)])) == [f"{n}abc" for n in range(200)]
    [pid] = {entry[2] for entry in log.entries()}
    assert sorted(log.entries()) == sorted(
        [*((name, "start", pid) for name in "abc"), *((name, "done", pid, True) for name in "abc")]
    )


def test_a_stage_with_resources_waits_for_its_worker_though_another_is_idle(
    make_gate: Callable[[], Gate], log: Log
):
    other_stage_has_both = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        assert other_stage_has_both.wait(PATIENCE)
        yield 1

    def on_start() -> int:
        log.write(os.getpid())
        return 10

    def hold(gate: Gate) -> None:
        log.write((str(gate.__getstate__()), os.getpid()))
        gate.wait()

    gates = [make_gate(), make_gate()]
    with Processes(2) as two:
        stream = pmap(lambda item, ten: item + ten, source(), kind=two, workers=1, on_start=on_start)
        assert next(stream) == 10
        with pmap(hold, gates, kind=two, workers=2) as other, ThreadPoolExecutor(2) as threads:
            both = threads.submit(list, other)
            home, *held = log.take(3)
            other_stage_has_both.set()
            last = threads.submit(list, stream)
            here, elsewhere = sorted(gates, key=lambda gate: (str(gate.__getstate__()), home) not in held)
            elsewhere.open()
            assert eventually(lambda: two.pool().warm.count or len(log.entries()) > 3)
            here.open()
            assert (last.result(PATIENCE), both.result(PATIENCE)) == ([11], [None, None])
    assert len(log.entries()) == 3


def test_the_index_of_a_worker_is_one_of_its_stage_whoever_has_the_workers(two_cpus: None, log: Log):
    def on_start(worker_info: Any) -> int:
        log.write((worker_info.index, os.getpid()))
        return int(worker_info.index)

    def f(item: int, index: int, worker_info: Any) -> int:
        assert index == worker_info.index
        return index

    def indexes() -> set[int]:
        return set(pmap(f, iter(range(300)), kind="process", workers=1, on_start=on_start))

    def others() -> int:
        return sum(pmap(square, iter(range(3000)), kind="process", workers=3))

    assert at_once(indexes, others, indexes)[::2] == [{0}, {0}]
    assert len(log.entries()) == 2  # once for each stage


def test_a_stage_sees_nothing_of_what_another_sets_for_itself(one: Processes, tmp_path: Path):
    def stage(digits: int) -> Any:
        def on_start() -> None:
            decimal.getcontext().prec = digits
            (tmp_path / str(digits)).mkdir()
            os.chdir(tmp_path / str(digits))
            os.environ["DIGITS"] = str(digits)

        def f(_: int) -> tuple[str, str, str]:
            return str(1 / decimal.Decimal(3)), os.path.basename(os.getcwd()), os.environ["DIGITS"]

        return pmap(f, count(), kind=one, maxsize=1, on_start=on_start)

    with stage(3) as first, stage(5) as second, stage(7) as third:
        for _ in range(3):  # they take turns
            for stream, digits in (first, 3), (second, 5), (third, 7):
                assert next(stream) == ("0." + "3" * digits, str(digits), str(digits))


def test_on_done_runs_in_a_worker_that_another_stage_has(one: Processes, gate: Gate, log: Log):
    def f(item: int, resource: str) -> int:
        return item

    hold = holding("process", {0: gate}, log)
    first = pmap(f, range(2), kind=one, maxsize=1, on_start=lambda: "r", on_done=lambda _, r: log.write(r))
    assert next(first) == 0
    with ThreadPoolExecutor() as threads:
        second = threads.submit(lambda: list(pmap(hold, [0], kind=one)))
        log.wait_for(("start", 0))
        third = threads.submit(list, first)
        gate.open()
        assert third.result(PATIENCE) == [1]
        assert second.result(PATIENCE) == [0]
    assert log.entries() == [("start", 0), ("end", 0), "r"]


def test_who_closes_a_stream_does_not_wait_for_the_items_of_another_one(one: Processes, gate: Gate, log: Log):
    hold = holding("process", {0: gate}, log)
    first = pmap(
        lambda n, _: n, count(), kind=one, maxsize=1, on_start=lambda: "r", on_done=lambda _, r: log.write(r)
    )
    assert next(first) == 0
    with ThreadPoolExecutor() as threads:
        second = threads.submit(lambda: list(pmap(hold, [0], kind=one)))
        log.wait_for(("start", 0))
        first.close()
        assert log.entries() == [("start", 0)]
        gate.open()
        assert second.result(PATIENCE) == [0]
        assert log.wait_for("r") == [("start", 0), ("end", 0), "r"]


def test_a_worker_that_has_had_its_items_keeps_the_resources_of_others_until_they_are_over(
    one: Processes, log: Log
):
    with pmap(
        lambda n, _: n,
        count(),
        kind=one,
        maxsize=1,
        on_start=pid_of_here,
        on_done=lambda _, pid: log.write(pid),
    ) as other:
        assert next(other) == 0
        pids = set(pmap(pid_of, range(20), kind=one, max_items_per_worker=5))
        assert len(pids) == 4
        assert next(other) == 1
    [pid] = log.entries()
    assert pid in pids
    assert eventually(lambda: pid not in {each.pid for each in multiprocessing.active_children()})


def pid_of_here() -> int:
    return os.getpid()


def test_a_worker_with_resources_does_not_end_by_itself():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Child(theirs, memoryview(array("q", [IDLE, 0, 0, -1, 0, -1])), idle=0.0)
        worker.sort((Open(7, None, 0, stays=True), []))
        worker.sort((Close(7, over=False), []))
        reader = threading.Thread(target=worker.read)
        reader.start()
        parent = Wire(ours)
        parent.push(Open(8, None, 0, stays=False))
        parent.push(Close(8, over=False))
        parent.flush()
        for _ in range(4):
            assert worker.inbox.get(timeout=PATIENCE) is not None
        reader.join(0.1)
        assert reader.is_alive()
        parent.push(Forget(7))
        parent.flush()
        reader.join(PATIENCE)
        assert not reader.is_alive()


def test_a_handler_that_interrupts_a_change_of_a_run_closes_its_pool_without_a_wait(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(pool, "CLOSING", 10 * PATIENCE)
    with Processes(1) as processes:
        stream = pmap(square, count(), kind=processes)
        assert next(stream) == 0
        run = stream._outputs.run  # type: ignore[attr-defined]
        with run.lock:  # its pump wants it, too, and cannot end before this does
            processes.close()
        with pytest.raises(RuntimeError, match="was closed"):
            deque(stream, 0)


# Deaths, errors and ends


def test_the_items_of_a_killed_worker_have_each_the_options_of_its_stage(one: Processes, tmp_path: Path):
    def dies_once(item: int) -> int:
        if item == 3 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    def dies(item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    again, left_out, fails = at_once(
        lambda: list(pmap(dies_once, iter(range(100)), kind=one, retries=1)),
        lambda: list(pmap(dies, iter(range(100)), kind=one, on_error="skip")),
        lambda: list(pmap(dies, iter(range(100)), kind=one)),
    )
    assert again == list(range(100))
    assert left_out == [n for n in range(100) if n != 3]
    assert isinstance(fails, WorkerDied)
    assert fails.item == 3


def test_a_stage_begins_anew_where_its_worker_dies_of_another_stage(one: Processes, log: Log):
    """Three stages are loaded in the worker, one of them is at work."""

    def die(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def on_start() -> int:
        log.write(("start", os.getpid()))
        return os.getpid()

    def on_done(_: Any, pid: int) -> None:
        log.write(("done", pid))

    def f(item: int, pid: int) -> int:
        assert pid == os.getpid()
        return item

    resourceful = pmap(f, kind=one, maxsize=1, on_start=on_start, on_done=on_done)
    with resourceful(iter(range(50))) as first, resourceful(iter(range(50))) as second:
        assert (next(first), next(second)) == (0, 0)
        with pytest.raises(WorkerDied):
            list(pmap(die, [1], kind=one))
        assert list(first) == list(second) == list(range(1, 50))
    started = [pid for what, pid in log.entries() if what == "start"]
    done = [pid for what, pid in log.entries() if what == "done"]
    assert len(set(started)) == 2 and len(started) == 4
    assert done == [started[2]] * 2


def test_an_error_in_one_stream_leaves_the_others_alone(one: Processes):
    good, bad, other = at_once(
        lambda: list(pmap(square, iter(range(2000)), kind=one)),
        lambda: list(pmap(lambda n: 1 // (50 - n), iter(range(2000)), kind=one)),
        lambda: list(pmap(square, iter(range(2000)), kind=one, retries=1)),
    )
    assert good == other == [n * n for n in range(2000)]
    assert isinstance(bad, ZeroDivisionError)


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_stream_that_is_dropped_gives_its_worker_back_at_once(
    one: Processes, end: str, make_gate: Callable[[], Gate], log: Log
):
    never = make_gate()
    stream: Any = pmap(holding("process", {1: never}, log), count(), kind=one)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    with ThreadPoolExecutor() as threads:
        other = threads.submit(lambda: list(pmap(square, range(5), kind=one)))
        assert eventually(lambda: bool(one.pool().waiting))
        if end == "close":
            stream.close()
        del stream
        gc.collect()
        assert other.result(PATIENCE) == [0, 1, 4, 9, 16]


def test_closing_a_stream_leaves_the_resources_of_others_where_they_are(
    one: Processes, make_gate: Callable[[], Gate], log: Log
):
    never = make_gate()
    other = pmap(
        lambda n, _: n, count(), kind=one, maxsize=1, on_start=pid_of_here, on_done=lambda _, p: log.write(p)
    )
    assert next(other) == 0
    with pmap(interruptible(never), count(), kind=one) as closed:
        assert next(closed) == 0
    assert next(other) == 1
    other.close()
    assert len(log.entries()) == 1


def interruptible(gate: Gate) -> Callable[[int], int]:
    def f(item: int) -> int:
        while item:  # so that it can be stopped between two steps
            time.sleep(0.01)
        return item

    return f


# Who waits for whom


def test_f_may_wait_for_what_a_later_stage_does(two_cpus: None, make_gate: Callable[[], Gate], log: Log):
    gate = make_gate()
    hold = holding("process", {1: gate, 2: gate}, log)
    row = pmap(hold, kind="process", workers=2) | pmap(square, kind="process", workers=2, retries=1)
    with row(count()) as stream:
        assert next(stream) == 0
        gate.open()
        assert next(stream) == 1


def test_a_handler_may_run_a_pipeline_on_the_same_pool(two_cpus: None):
    def handler(_: Exception, item: int) -> int:
        return sum(pmap(square, [item, item], kind="process", workers=2))

    def f(item: int) -> int:
        raise ValueError(item)

    assert list(pmap(f, range(4), kind="process", workers=2, on_error=handler)) == [0, 2, 8, 18]


def test_a_source_may_be_a_stream_on_the_same_worker(one: Processes):
    inner = (n for n in pmap(square, iter(range(100)), kind=one))
    assert list(pmap(abs, (n for n in inner), kind=one)) == [n * n for n in range(100)]


def test_a_pipeline_in_f_has_workers_of_its_own(two_cpus: None):
    def outer(number: int) -> int:
        return sum(pmap(square, range(number), kind="process", workers=2))

    assert list(pmap(outer, [3, 4], kind="process", workers=2)) == [5, 14]


# Processes


def test_stages_that_name_a_pool_share_it_and_no_other(one: Processes):
    mine = set(pmap(pid_of, range(50), kind=one)) | set(pmap(pid_of, range(50), kind=one))
    assert len(mine) == 1
    assert mine.isdisjoint(pmap(pid_of, range(50), kind="process"))


def test_a_stage_has_as_many_workers_as_its_pool(gate: Gate, log: Log):
    with Processes(3) as processes:
        f = holding("process", dict.fromkeys(range(9), gate), log)
        with opened_when(gate, lambda: log.take(3)):
            assert list(pmap(f, range(9), kind=processes)) == list(range(9))


def test_neighbours_on_one_pool_run_as_one(one: Processes):
    row = pmap(square, kind=one) | pmap(float, kind=one)
    assert list(row(range(5))) == [0.0, 1.0, 4.0, 9.0, 16.0]


def test_a_pool_that_is_closed_has_no_workers_left():
    with Processes(2) as processes:
        pids = set(pmap(pid_of, range(100), kind=processes))
    assert not pids & {each.pid for each in multiprocessing.active_children()}


def test_a_closed_pool_is_an_error_that_says_so():
    processes = Processes(1)
    before = pmap(square, kind=processes)
    processes.close()
    processes.close()
    with pytest.raises(RuntimeError, match=r"Processes\(1\) is closed"):
        pmap(square, kind=processes)
    with pytest.raises(RuntimeError, match=r"Processes\(1\) is closed"):
        list(before(range(3)))
    with pytest.raises(RuntimeError, match=r"Processes\(1\) is closed"), processes:
        pass


def test_a_stream_at_work_ends_with_an_error_when_its_pool_is_closed(make_gate: Callable[[], Gate], log: Log):
    never = make_gate()
    processes = Processes(1)
    stream = pmap(holding("process", {1: never}, log), count(), kind=processes)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    processes.close()
    with pytest.raises(RuntimeError, match="its Processes was closed while it was at work"):
        next(stream)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"workers": "2"}, TypeError, "workers must be an int or None, got '2'"),
        ({"workers": True}, TypeError, "workers must be an int or None, got True"),
        (
            {"start": "thread"},
            ValueError,
            "start must be one of 'fresh', 'fork', 'spawn', 'forkserver', got 'thread'",
        ),
        ({"start": None}, TypeError, "start must be a str, got None"),
        ({"idle": -1}, ValueError, "idle must be at least 0 seconds, got -1"),
        ({"idle": float("nan")}, ValueError, "idle must be at least 0 seconds, got nan"),
        ({"idle": "1"}, TypeError, "idle must be a number of seconds, got '1'"),
        ({"relay": 1}, TypeError, "relay must be True or False, got 1"),
    ],
)
def test_bad_options_of_a_pool(options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=f"^{message}$"):
        Processes(**options)


def test_the_class_is_no_pool():
    with pytest.raises(TypeError, match=r"write kind=Processes\(\)"):
        pmap(square, kind=Processes)


def test_a_pool_shows_what_it_was_given():
    processes = Processes(2, start="spawn", idle=1.5, relay=False)
    assert repr(processes) == "Processes(2, start='spawn', idle=1.5, relay=False)"
    assert repr(pmap(square, kind=Processes(2))) == "pmap(square, kind=Processes(2))"


def test_a_pool_cannot_be_pickled(one: Processes):
    with pytest.raises(TypeError, match=r"Processes\(1\) belongs to this process and cannot be pickled"):
        pickle.dumps(pmap(square, kind=one))
    inner = pmap(square, kind=one)
    with pytest.raises(NotPicklable, match="write kind='process' in what a worker runs"):
        list(pmap(lambda n: list(inner(range(n))), [1], kind="process"))


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_pool_starts_its_workers_as_it_was_told(script: Script, start: str):
    source = """
        import colorsys, os, sys, warnings
        from fstream import Processes, WorkerDied, pmap

        warnings.simplefilter("ignore")  # of forks beside threads

        def look(number):
            return hasattr(colorsys, "changed_here"), number * number

        def die(number):
            os._exit(7)

        if __name__ == "__main__":
            colorsys.changed_here = True
            with Processes(2, start=sys.argv[1]) as pool:
                found = list(pmap(look, range(100), kind=pool))
                print({there for there, _ in found}, sum(n for _, n in found))
                try:
                    list(pmap(die, [1], kind=pool))
                except WorkerDied as error:
                    print(error.exitcode)
                try:
                    list(pmap(lambda _: __import__("time").sleep(60), [1], kind=pool, timeout=0.5))
                except TimeoutError:
                    print("too late")
                print(len(list(pmap(look, range(100), kind=pool))))
    """
    there = "True" if start == "fork" else "False"
    assert printed(script(source, start)) == f"{{{there}}} 328350\n7\ntoo late\n100"


# Shutdown, threads and forks


def test_shutdown_ends_the_idle_workers_and_a_later_pipeline_starts_new_ones(two_cpus: None, one: Processes):
    before = {*pmap(pid_of, range(100), kind="process"), *pmap(pid_of, range(100), kind=one)}
    with pmap(square, count(), kind="process", workers=1) as stream:
        next(stream)
        shutdown()
        assert len({each.pid for each in multiprocessing.active_children()} - before) <= 1
        assert next(stream) == 1
    assert before.isdisjoint(pmap(pid_of, range(100), kind=one))


def test_shutdown_of_a_program_without_workers(script: Script):
    source = """
        import sys
        import fstream

        fstream.shutdown()
        print("multiprocessing" in sys.modules)
    """
    assert printed(script(source)) == "False"


def test_streams_of_many_threads_share_the_pool(two_cpus: None):
    def job(number: int) -> int:
        squares = pmap(square, kind="process", workers=2)
        return sum(sum(squares(range(number))) for _ in range(5))

    expected = [5 * sum(n * n for n in range(number)) for number in range(20)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(job, range(20))) == expected


def test_streams_that_are_run_together_share_the_pool(two_cpus: None, log: Log):
    run(*[peach(lambda n: log.write(os.getpid()), range(20), kind="process", workers=2) for _ in range(4)])
    assert len(log.entries()) == 80
    assert len(set(log.entries())) <= 2


def test_a_fork_has_a_pool_of_its_own(script: Script):
    source = """
        import os, warnings
        from fstream import Processes, pmap

        warnings.simplefilter("ignore")  # of forks beside threads
        with Processes(2) as pool:
            stream = pmap(abs, iter(range(1000)), kind=pool)
            next(stream)
            mine = set(pmap(lambda _: os.getpid(), range(100), kind=pool))
            if not (fork := os.fork()):
                theirs = set(pmap(lambda _: os.getpid(), range(100), kind=pool))
                assert theirs and theirs.isdisjoint(mine)
                pool.close()
                os._exit(0)
            print(os.waitpid(fork, 0)[1], len(list(stream)))
    """
    assert printed(script(source)) == "0 999"
