"""kind="dask", and a `distributed.Client` as kind, on a cluster of two processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fstream import (
    Failed,
    NotPicklable,
    Processes,
    TooManyFailures,
    WorkerDied,
    batch,
    ordered,
    pfilter,
    pmap,
    trace,
)
from fstream._flow.span import Span
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage, WorkerInfo
from fstream._workers import dask
from fstream._workers.dask import Answered, Workers, answered
from fstream._workers.parcels import Parcels
from fstream._workers.process.wire import loads
from tests.faults.faulty import HAS_GIL, eventually
from tests.functions import MEANINGS, Meaning, fail_at_first, identity, square, suited
from tests.gates import PATIENCE, Gate, Log, holding, opened_when
from tests.scripts import Script, printed
from tests.sources import Source
from tests.test_glossary import absolute, called, steps
from tests.test_observer import recorded

distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.drawn,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    # Its profiler ends processes there, and its scheduler has kept tasks whose futures were gone.
    pytest.mark.skipif(not HAS_GIL, reason="distributed does not support free-threaded builds yet"),
]


@contextmanager
def local_cluster(**options: Any) -> Iterator[Any]:
    options = {
        "n_workers": 2,
        "threads_per_worker": 1,
        "dashboard_address": ":0",
        "silence_logs": 50,
    } | options
    import dask

    # Else the cluster does without a worker that takes 15 s to start again, as on a machine that is busy.
    patient = {"distributed.deploy.lost-worker-timeout": "120s"}
    with dask.config.set(patient), distributed.LocalCluster(**options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with local_cluster() as cluster:
        yield cluster


def nothing_is_left(cluster: Any, client: Any) -> bool:
    gc.collect()
    return not cluster.scheduler.tasks and not client.futures


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    """The current client. After the test there is nothing left of it in the cluster."""
    with distributed.Client(cluster) as client:
        yield client
        assert eventually(partial(nothing_is_left, cluster, client)), (
            cluster.scheduler.tasks,
            client.futures,
        )
        assert eventually(lambda: not any(client.run(remembered).values())), client.run(remembered)


def remembered() -> list[Any]:
    """In a worker: what it keeps of stages."""
    from fstream._workers import parcels

    return [*parcels._CALLS, *parcels._ASIDE, *parcels._SEATS]


@pytest.fixture
def own() -> Iterator[Any]:
    """A cluster for this test alone, which may harm it, and its client."""
    with local_cluster() as cluster, distributed.Client(cluster) as client:
        yield client


def threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("fstream")}


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """In place of that of all tests: the threads and tasks of dask come and go as it likes."""
    before = threads()
    yield
    assert eventually(lambda: threads() <= before), threads() - before


# The laws


@pytest.mark.parametrize("meaning", MEANINGS, ids=str)
def test_each_combinator_means_the_same(meaning: Meaning, client: Any, is_ordered: bool):
    outputs = list(meaning.combinator(meaning.f, range(2000), kind="dask", ordered=is_ordered))
    expected = meaning.expected(range(2000))
    assert outputs == expected if is_ordered else sorted(outputs) == sorted(expected)


def test_a_client_is_a_kind(client: Any):
    assert list(pmap(square, range(100), kind=client)) == list(map(square, range(100)))


def test_nothing_happens_before_the_first_output(client: Any):
    source = Source(itertools.count())
    before = threads()
    stream = pmap(square, source, kind="dask")
    assert threads() == before
    assert not client.futures
    assert next(stream) == 0
    stream.close()
    assert source.closed.wait(PATIENCE)


def test_no_more_is_pulled_than_there_is_room_for(client: Any):
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            pulled.append(number)
            yield number

    with pmap(square, numbers(), kind="dask", maxsize=3) as stream:
        for taken in range(10):
            assert next(stream) == taken * taken
            assert len(pulled) <= taken + 1 + 3


def test_what_is_finished_comes_out_before_what_is_slow(client: Any, gate: Gate):
    with pmap(holding("dask", {1: gate}), [0, 1, 2, 3], kind="dask") as stream:
        assert next(stream) == 0
        gate.open()
        assert list(stream) == [1, 2, 3]


def test_a_slow_item_does_not_delay_others_where_order_is_not_asked_for(client: Any, gate: Gate):
    with pmap(holding("dask", {0: gate}), range(500), kind="dask", ordered=False) as stream:
        assert {next(stream) for _ in range(499)} == set(range(1, 500))
        gate.open()
        assert list(stream) == [0]


def test_no_more_items_are_at_work_than_the_stage_has_workers(
    client: Any, log: Log, make_gate: Callable[[], Gate]
):
    gates = {number: make_gate() for number in range(3)}
    with pmap(holding("dask", gates, log), range(3), kind="dask", workers=1, maxsize=3) as stream:
        with opened_when(gates[0], lambda: log.wait_for(("start", 0))):
            assert next(stream) == 0
        log.wait_for(("start", 1))
        assert ("start", 2) not in log.entries()
        for gate in gates.values():
            gate.open()
        assert list(stream) == [1, 2]


def test_cheap_items_share_few_tasks(client: Any, cluster: Any):
    with recorded() as record:
        assert list(pmap(square, range(50_000), kind="dask")) == list(map(square, range(50_000)))
    assert len(record.told("done")) < 100
    assert record.items() == 50_000


def test_what_dask_would_take_for_its_own_is_an_item_as_any_other(client: Any):
    items: list[Any] = [[1, [2]], ("a", 1), {"b": (abs, -1)}, (abs, -1), "x", b"y", None]
    assert list(pmap(identity, items, kind="dask")) == items


def test_large_items(client: Any):
    items = [bytes([number]) * (3 << 20) for number in range(8)]
    assert list(pmap(lambda item: item + b"!", items, kind="dask")) == [item + b"!" for item in items]


class Large:
    """An item with a large buffer, as an array of numpy is one."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, _: Any) -> Any:
        return Large, (pickle.PickleBuffer(self.data),)


def stamped(large: Large) -> Large:
    memoryview(large.data)[0] = 7  # it is its own
    return large


@pytest.mark.parametrize("size", [1 << 15, 1 << 18, 1 << 23])
def test_large_buffers_travel_beside_the_pickles(client: Any, size: int, monkeypatch: Any):
    sent: list[int] = []
    mapped = client.map

    def noting(f: Any, loads: list[Any], **options: Any) -> Any:
        sent.extend(len(pickle.dumps(load, protocol=5, buffer_callback=lambda _: None)) for load in loads)
        return mapped(f, loads, **options)

    monkeypatch.setattr(client, "map", noting)
    items = [Large(bytearray([number]) * size) for number in range(8)]
    outputs = list(pmap(stamped, items, kind="dask"))
    assert [(len(large.data), *large.data[:2]) for large in outputs] == [
        (size, 7, number) for number in range(8)
    ]
    assert [large.data[0] for large in items] == [*range(8)]
    assert sum(sent) < 8 * 10_000


def test_an_output_may_stay_in_a_worker_for_a_while_and_be_written_to_its_disk():
    from distributed.protocol import deserialize, serialize

    made = Parcels(Stage(MAP, identity, "dask"), copy_context(), pickle.PickleBuffer)
    there: Any = answered(*made.pack(Span(0, [Large(b"x" * (1 << 20))]), 1.0, frozenset()))
    for _ in range(3):
        header, frames = serialize(there, context={"pickle-protocol": 4})
        assert max(map(len, frames)) == 1 << 20
        there = deserialize(header, [bytearray(frame) for frame in frames])
        assert type(there) is Answered
    (output,) = made.slots_of(loads(there.parts), Span(0, [None]))
    assert bytes(output.data) == b"x" * (1 << 20)
    assert sys.getsizeof(there) > 1 << 20


def test_workers_that_are_threads_of_this_process_get_items_of_their_own():
    items = [Large(bytearray([number]) * (1 << 20)) for number in range(4)]
    with local_cluster(processes=False) as cluster, distributed.Client(cluster) as client:
        assert [large.data[0] for large in pmap(stamped, items, kind=client)] == [7] * 4
    assert [large.data[0] for large in items] == [0, 1, 2, 3]


# What comes with other stages


def test_neighbours_are_one_task_and_each_has_its_numbers(client: Any):
    row = pmap(square, kind="dask") | pfilter(lambda n: n % 2, kind="dask") | pmap(float, kind="dask")
    stream = row(range(1000))
    with recorded() as record:
        assert list(stream) == [float(n * n) for n in range(1000) if n % 2]
    (run,) = record.told("run_opened")[0]
    assert [stage.kind for stage in run.stages] == ["dask"]
    assert [(stage.name, stage.taken, stage.given) for stage in stream.stats().stages] == [
        ("square", 1000, 1000),
        ("<lambda>", 1000, 500),
        ("float", 500, 500),
    ]
    with pytest.raises(ZeroDivisionError) as caught:
        list((pmap(square, kind="dask") | pmap(lambda n: 1 / n, kind="dask"))([1, 0]))
    assert caught.value.__notes__ == ["in stage '<lambda>' (dask), item 1: 0"]


def test_a_row_with_other_kinds(client: Any):
    row = pmap(square, kind="thread") | pmap(square, kind="dask") | pmap(suited(square, "task"), kind="task")
    assert list(row(range(300))) == [number**8 for number in range(300)]
    with Processes(1) as pool:
        assert list((row | batch(7) | pmap(sum, kind=client) | pmap(float, kind=pool))(range(20))) == [
            float(sum(number**8 for number in numbers)) for numbers in (range(7), range(7, 14), range(14, 20))
        ]


def test_ordered_restores_the_order(client: Any):
    assert list(ordered(pmap(square, range(300), kind="dask", ordered=False))) == list(
        map(square, range(300))
    )


def test_async_iteration_with_a_client_of_another_thread(client: Any):
    async def main() -> None:
        assert await pmap(square, range(500), kind="dask") == list(map(square, range(500)))
        stream = pmap(square, itertools.count(), kind="dask")
        async for output in stream:
            if output > 100:
                break
        await stream.aclose()

    asyncio.run(main())


def test_async_iteration_with_an_asynchronous_client(cluster: Any):
    async def main() -> list[int]:
        async with distributed.Client(cluster.scheduler_address, asynchronous=True) as client:
            with pytest.raises(RuntimeError, match="write `async for output in stream`"):
                list(pmap(square, [1], kind=client))
            return [output async for output in pmap(square, range(500), kind=client)]

    assert asyncio.run(main()) == list(map(square, range(500)))


def inner(number: int) -> list[int]:
    with distributed.worker_client():
        return list(pmap(square, [number], kind="dask"))


def test_a_stream_inside_f_on_the_same_cluster_is_an_error(client: Any):
    with pytest.raises(RuntimeError, match="stream inside f on the cluster that runs f"):
        list(pmap(inner, [1], kind="dask"))


# Options


def test_retries(client: Any, tmp_path: Path, is_ordered: bool):
    f = partial(fail_at_first, tmp_path)
    stream = pmap(f, range(20), kind="dask", retries=1, backoff=0, ordered=is_ordered)
    assert sorted(stream) == list(range(20))
    assert stream.stats().stages[0].retried == 20
    with pytest.raises(OSError):
        list(pmap(f, [50], kind="dask"))


def test_a_hook_says_what_is_tried_again_and_when(client: Any, tmp_path: Path):
    f = partial(fail_at_first, tmp_path)
    asked: list[str] = []

    def hook(error: Exception) -> float:
        asked.append(repr(error))
        return 0

    assert list(pmap(f, range(3), kind="dask", retries=1, retry_on=hook)) == [0, 1, 2]
    assert sorted(asked) == ["OSError(0)", "OSError(1)", "OSError(2)"]


@pytest.mark.parametrize(
    ("on_error", "stands_for"), [("skip", []), (lambda error, number: (type(error), number), None)]
)
def test_on_error(client: Any, on_error: Any, stands_for: Any):
    outputs = list(pmap(lambda number: 1 // number, [1, 0, 1], kind="dask", on_error=on_error))
    assert outputs == ([1, 1] if on_error == "skip" else [1, (ZeroDivisionError, 0), 1])


def test_what_failed_may_be_kept(client: Any):
    row = pmap(lambda number: 1 // number, kind="dask", on_error="keep") | pmap(str, kind=client)
    one, failed, other = row([1, 0, 1])
    assert (one, other) == ("1", "1")
    assert isinstance(failed, Failed)
    assert (failed.item, type(failed.error), failed.index) == (0, ZeroDivisionError, 1)


def test_too_many_failures(client: Any):
    with pytest.raises(TooManyFailures):
        list(pmap(lambda number: 1 // 0, range(100), kind="dask", on_error="skip", max_failures=5))


def test_rate_key_and_memo(client: Any, log: Log):
    def noted(number: int) -> int:
        log.write(number)
        return number * number

    memo = {3: 9}
    f = pmap(noted, kind="dask", rate=1000, key=lambda number: number % 2, per_key=1, memo=memo)
    assert list(f([1, 2, 3, 1, 4])) == [1, 4, 9, 1, 16]
    assert memo == {1: 1, 2: 4, 3: 9, 4: 16}
    assert sorted(log.entries()) == [1, 2, 4]


def numbered(item: str, element_index: int, attempt: int) -> tuple[str, int, int]:
    if attempt == 0:
        raise OSError
    return item, element_index, attempt


def test_the_number_of_an_item_and_of_its_try(client: Any):
    assert list(pmap(numbered, "abc", kind="dask", retries=1, backoff=0)) == [
        ("a", 0, 1),
        ("b", 1, 1),
        ("c", 2, 1),
    ]


@pytest.mark.parametrize("more", [{}, {"timeout": 60.0}], ids=["plain", "timed"])
def test_resources_are_made_used_and_ended_in_one_thread(client: Any, log: Log, more: dict[str, Any]):
    def here() -> tuple[int, int]:
        return os.getpid(), threading.get_ident()

    def start() -> tuple[Any, ...]:
        log.write(("start", *here()))
        return (here(),)

    def done(stage_status: Any, where: Any) -> None:
        log.write(("done", *here(), stage_status.active_workers, stage_status.error is None, where == here()))

    def f(_: int, where: Any) -> bool:
        time.sleep(0.002)
        return where == here()

    assert all(pmap(f, range(500), kind="dask", on_start=start, on_done=done, **more))
    entries = log.entries()
    started = [entry[1:] for entry in entries if entry[0] == "start"]
    ended = [entry for entry in entries if entry[0] == "done"]
    assert 1 <= len(started) == len(set(started)) <= 2
    assert sorted(entry[1:3] for entry in ended) == sorted(started)
    assert [entry[3] for entry in ended] == [*range(len(ended))][::-1]
    assert all(is_right for entry in ended for is_right in entry[4:])


# The indexes of the workers


def seated(log: Log, seconds: float = 0.005) -> Callable[..., Any]:
    """Give the worker's index, and write when an item begins and ends there."""

    def f(item: int, worker_info: WorkerInfo) -> int:
        log.write(("begin", worker_info.index))
        time.sleep(seconds)
        log.write(("end", worker_info.index))
        return worker_info.index

    return f


def check_one_at_a_time(entries: list[tuple[str, int]]) -> None:
    """No two items were at work under one index."""
    for index in {index for _, index in entries}:
        steps = [step for step, each in entries if each == index]
        assert steps == ["begin", "end"] * (len(steps) // 2)


@pytest.mark.parametrize(
    ("shape", "workers", "processes"),
    [
        ((2, 1), None, True),
        ((2, 1), 1, True),
        ((1, 4), 2, True),
        ((2, 2), None, True),
        ((2, 2), 3, True),
        ((2, 2), 9, True),
        ((2, 2), None, False),
        ((2, 2), 3, False),
    ],
)
def test_each_worker_has_an_index(shape: tuple[int, int], workers: int | None, processes: bool, log: Log):
    before = set(remembered())  # of executors in this process, which are told nothing of a stage's end
    with (
        local_cluster(n_workers=shape[0], threads_per_worker=shape[1], processes=processes) as cluster,
        distributed.Client(cluster) as client,
    ):
        indexes = set(pmap(seated(log), range(200), kind=client, workers=workers))
        assert indexes <= set(range(min(workers or 4, shape[0] * shape[1])))
        assert len(indexes) > 1 or workers == 1
        check_one_at_a_time(log.entries())
        assert eventually(lambda: not {*itertools.chain(*client.run(remembered).values())} - before)


def test_a_worker_keeps_its_index(client: Any, log: Log):
    def start(worker_info: WorkerInfo) -> tuple[int, int]:
        log.write(("start", worker_info.index))
        return worker_info.index, threading.get_ident()

    def f(item: int, started_as: int, thread: int, worker_info: WorkerInfo) -> bool:
        return (started_as, thread) == (worker_info.index, threading.get_ident())

    def done(stage_status: Any, started_as: int, thread: int, worker_info: WorkerInfo) -> None:
        log.write(("done", started_as))
        assert (started_as, thread) == (worker_info.index, threading.get_ident())

    assert all(pmap(f, range(5000), kind="dask", on_start=start, on_done=done))
    entries = sorted(log.entries())
    assert entries in ([(step, n) for step in ("done", "start") for n in some] for some in ([0], [1], [0, 1]))


@pytest.mark.parametrize("options", [{}, {"timeout": 60.0}, {"on_done": lambda *_: None}], ids="-".join)
def test_f_may_ask_dask_for_its_worker(client: Any, options: dict[str, Any]):
    def f(item: int, worker_info: WorkerInfo) -> str:
        return distributed.get_worker().address

    def g(item: int) -> str:
        return distributed.get_worker().address

    for asks in f, g:
        assert set(pmap(asks, range(20), kind="dask", **options)) <= set(client.scheduler_info()["workers"])


def test_who_follows_a_late_item_has_its_index(client: Any, gate: Gate):
    def f(item: int, worker_info: WorkerInfo) -> int:
        if item == 1:
            gate.wait()
        return worker_info.index

    assert set(pmap(f, range(20), kind="dask", workers=1, timeout=0.5, on_error="skip")) == {0}
    gate.open()


def test_workers_that_join_get_indexes_and_those_that_leave_give_theirs_up(log: Log):
    with (
        local_cluster(n_workers=1) as cluster,
        distributed.Client(cluster) as client,
        pmap(seated(log), itertools.count(), kind=client) as stream,
    ):
        assert {next(stream) for _ in range(20)} == {0}
        cluster.scale(3)
        assert eventually(lambda: {next(stream) for _ in range(60)} == {0, 1, 2}, 40)
        cluster.scale(1)
        assert eventually(lambda: len({next(stream) for _ in range(20)}) == 1, 30)


def test_a_worker_that_had_fewer_indexes_than_threads_takes_over_those_of_one_that_leaves():
    def f(item: int, worker_info: WorkerInfo) -> tuple[str, int]:
        time.sleep(0.005)
        return distributed.get_worker().address, worker_info.index

    def indexes(stream: Any) -> dict[str, set[int]]:
        held: dict[str, set[int]] = {}
        for home, index in itertools.islice(stream, 60):
            held.setdefault(home, set()).add(index)
        return held

    with (
        local_cluster(n_workers=2, threads_per_worker=2) as cluster,
        distributed.Client(cluster) as client,
        pmap(f, itertools.count(), kind=client, workers=3) as stream,
    ):
        held: dict[str, set[int]] = {}
        assert eventually(
            lambda: held.update(indexes(stream)) or sorted(map(len, held.values())) == [1, 2], 30
        )
        leaves, stays = sorted(held, key=lambda home: len(held[home]), reverse=True)
        client.retire_workers([leaves])
        assert eventually(lambda: len(indexes(stream).get(stays, ())) == 2, 30)


def test_the_only_worker_is_killed_and_the_next_one_has_its_index(log: Log):
    with local_cluster(n_workers=1) as cluster, distributed.Client(cluster) as client:
        stream = pmap(seated(log), range(400), kind=client)
        outputs = [next(stream) for _ in range(20)]
        os.kill(pids(client)[0], signal.SIGKILL)
        assert {*outputs, *stream} == {0}


def test_on_done_is_told_of_the_error_and_its_own_is_raised(client: Any, log: Log):
    def done(stage_status: Any) -> None:
        log.write(repr(stage_status.error))

    with pytest.raises(ZeroDivisionError):
        list(pmap(lambda number: 1 / number, [1, 0], kind="dask", on_done=done))
    assert "ZeroDivisionError('division by zero')" in log.wait_until(bool, "on_done")

    def refuse() -> None:
        raise OSError("in the end")

    with pytest.raises(OSError, match="in the end") as caught:
        list(pmap(square, [1], kind="dask", on_done=refuse))
    assert "in on_done of stage 'square' (dask)" in caught.value.__notes__


def test_on_done_runs_where_a_stream_is_left_early(client: Any, log: Log):
    with pmap(square, itertools.count(), kind="dask", on_done=lambda: log.write("done")) as stream:
        next(stream)
    log.wait_for("done")


def test_an_error_of_on_start(client: Any):
    def start() -> None:
        raise OSError("no")

    with pytest.raises(OSError) as caught:
        list(pmap(square, [1], kind="dask", on_start=start, on_error="skip"))
    assert "in on_start of stage 'square' (dask)" in caught.value.__notes__


def test_a_time_out_costs_one_item_and_no_worker(client: Any, gate: Gate, log: Log):
    f = holding("dask", {1: gate, 2: gate, 3: gate}, log)
    outputs = list(pmap(f, range(6), kind="dask", timeout=0.3, on_error=lambda error, _: repr(error)))
    late = [
        f"TimeoutError(\"stage '{f.__name__}' (dask), item {n}: {n}, ran over its 0.3 seconds\")"
        for n in (1, 2, 3)
    ]
    assert outputs == [0, *late, 4, 5]
    gate.open()


def test_a_time_out_and_retries(client: Any, tmp_path: Path):
    def slow_at_first(number: int) -> int:
        try:
            (tmp_path / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return number
        time.sleep(0.5)
        return -1

    outputs = list(pmap(slow_at_first, range(4), kind="dask", timeout=0.2, retries=1, backoff=0))
    assert outputs == list(range(4))


# Errors


def test_an_error_comes_after_the_outputs_before_it_and_names_the_item(client: Any):
    outputs: list[float] = []
    with pytest.raises(ZeroDivisionError) as caught:
        outputs.extend(pmap(lambda number: 1 / number, [4, 2, 0, 1], kind="dask"))
    assert outputs == [0.25, 0.5]
    assert caught.value.__notes__ == ["in stage '<lambda>' (dask), item 2: 0"]
    assert "in <lambda>" in str(caught.value.__cause__)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_comes_home_and_the_workers_live(client: Any, error: type[BaseException]):
    def refuse(number: int) -> int:
        if number == 2:
            raise error
        return os.getpid()

    before = set(client.run(os.getpid).values())
    outputs: list[int] = []
    with pytest.raises(error):
        outputs.extend(pmap(refuse, range(4), kind="dask", on_error="skip"))
    assert len(outputs) == 2
    assert set(client.run(os.getpid).values()) == before


def test_the_end_of_an_iterator_is_no_end_of_the_stream(client: Any):
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list(pmap(lambda _: next(iter([])), [1], kind="dask"))


class Unloadable:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")


class TestPickling:
    def test_a_function(self, client: Any):
        lock = threading.Lock()
        with pytest.raises(NotPicklable, match=r"stage '.*' \(dask\): f cannot be pickled.*'lock'"):
            list(pmap(lambda _: lock, [1], kind="dask", on_error="skip"))

    def test_an_item(self, client: Any):
        items = [1, threading.Lock(), 3]
        with pytest.raises(NotPicklable, match=r"item 1: <.*lock.*>: item cannot be pickled"):
            list(pmap(identity, items, kind="dask"))
        assert list(pmap(identity, items, kind="dask", on_error="skip")) == [1, 3]

    def test_an_output(self, client: Any):
        def locked(number: int) -> Any:
            return threading.Lock() if number == 1 else number

        with pytest.raises(NotPicklable, match=r"item 1: 1: its output, of type lock, cannot be pickled"):
            list(pmap(locked, range(3), kind="dask"))
        assert list(pmap(locked, range(3), kind="dask", on_error="skip")) == [0, 2]

    def test_what_cannot_be_unpickled(self, client: Any):
        with pytest.raises(NotPicklable, match=r"item 1: .*unpickled in the worker: not here"):
            list(pmap(identity, [1, Unloadable(), 3], kind="dask"))
        with pytest.raises(NotPicklable, match="item 1: 1: its output cannot be unpickled: not here"):
            list(pmap(lambda number: Unloadable() if number == 1 else number, range(3), kind="dask"))

    def test_a_module_that_workers_do_not_have(self, client: Any, tmp_path: Path, monkeypatch: Any):
        (tmp_path / "only_here.py").write_text("def f(x):\n    return x\n")
        monkeypatch.syspath_prepend(tmp_path)
        import only_here  # type: ignore[import-not-found]

        with pytest.raises(NotPicklable, match=r"stage 'f' \(dask\) cannot be loaded in a worker.*only_here"):
            list(pmap(only_here.f, [1], kind="dask"))


# Faults


def pids(client: Any) -> list[int]:
    return list(client.run(os.getpid).values())


def test_workers_that_are_killed_cost_nothing(own: Any):
    def f(number: int) -> int:
        time.sleep(0.01)
        return number

    stream = pmap(f, range(600), kind=own)
    outputs = [next(stream) for _ in range(50)]
    os.kill(pids(own)[0], signal.SIGKILL)
    outputs += stream
    assert outputs == list(range(600))


@pytest.mark.parametrize("seconds", [float(os.environ.get("FSTREAM_KILLS_SECONDS", "12"))])
def test_all_outputs_once_though_workers_are_killed_all_the_time(own: Any, seconds: float):
    def f(number: int) -> int:
        time.sleep(0.005)
        return number

    over = threading.Event()

    def kill() -> None:
        while not over.wait(2.0):  # a nanny needs 0.8 to 2.8 s to replace one: a faster pace shows nothing
            if (
                len(both := pids(own)) > 1
            ):  # on a busy machine it needs longer, and nobody would ever get anywhere
                os.kill(both[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        begun = time.monotonic()
        numbers = itertools.takewhile(lambda _: time.monotonic() - begun < seconds, itertools.count())
        outputs = list(pmap(f, numbers, kind=own))
    finally:
        over.set()
        killer.join()
    assert len(outputs) > 100
    assert outputs == list(range(len(outputs)))


def kill_own_worker_at(deadly: int, number: int) -> int:
    if number == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.fixture
def fragile() -> Iterator[Any]:
    """A cluster that gives a task up when one worker has died with it, and another."""
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        local_cluster() as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_an_item_that_kills_its_worker_is_named_and_others_are_innocent(fragile: Any):
    f = partial(kill_own_worker_at, 7)
    outputs = list(pmap(f, range(12), kind=fragile, on_error="keep"))
    assert [output for output in outputs if not isinstance(output, Failed)] == [
        n for n in range(12) if n != 7
    ]
    failed = outputs[7]
    assert isinstance(failed.error, WorkerDied)
    assert (failed.item, failed.error.item, failed.tries) == (7, 7, 1)
    assert "stage 'kill_own_worker_at' (dask), item 7: 7: its worker died" in str(failed.error)


@pytest.fixture
def nannies(tmp_path: Path) -> Iterator[tuple[Any, list[subprocess.Popen[bytes]]]]:
    """A client, and two workers' nannies that are processes of their own."""
    options: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
    ):
        words = [
            cluster.scheduler_address,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            str(tmp_path),
        ]
        both = [subprocess.Popen([sys.executable, "-c", WORKER, *words], **options) for _ in range(2)]
        try:
            client.wait_for_workers(2, timeout=30)
            yield client, both
        finally:
            for nanny in both:
                os.killpg(nanny.pid, signal.SIGKILL)
                nanny.wait()


def test_a_nanny_that_is_killed_costs_its_worker_and_nothing_else(nannies: Any):
    client, (nanny, _) = nannies

    def f(number: int) -> int:
        time.sleep(0.01)
        return number

    stream = pmap(f, range(600), kind=client)
    outputs = [next(stream) for _ in range(50)]
    nanny.kill()
    begun = time.monotonic()
    outputs += stream
    assert outputs == list(range(600))
    assert time.monotonic() - begun < 60  # 5.5 s of it are work; the machine may be busy
    assert eventually(lambda: len(client.nthreads()) == 1)


def test_workers_that_join_are_used_and_those_that_leave_are_done_without():
    def f(number: int) -> int:
        time.sleep(0.02)
        return os.getpid()

    with (
        local_cluster(n_workers=1) as cluster,
        distributed.Client(cluster) as client,
        pmap(f, itertools.count(), kind=client) as stream,
    ):
        assert len({next(stream) for _ in range(20)}) == 1
        cluster.scale(3)
        assert eventually(lambda: next(stream) and stream.stats().stages[0].workers == 3, 40)
        assert eventually(lambda: len({next(stream) for _ in range(60)}) == 3, 40)
        cluster.scale(1)
        assert eventually(lambda: len(client.nthreads()) == 1, 30)
        assert eventually(lambda: len({next(stream) for _ in range(20)}) == 1, 30)


def test_a_restart_of_the_cluster_loses_nothing(own: Any):
    def f(number: int) -> int:
        time.sleep(0.01)
        return number

    stream = pmap(f, range(200), kind=own)
    outputs = [next(stream) for _ in range(20)]
    own.restart()
    assert outputs + list(stream) == list(range(200))


def endless(client: Any) -> Any:
    return pmap(lambda number: time.sleep(0.01) or number, itertools.count(), kind=client)


def test_a_client_that_is_closed_under_a_stream_is_an_error(own: Any):
    stream, other = endless(own), endless(own)
    assert next(stream) == 0
    own.close()
    with pytest.raises(ConnectionError, match="its client is closed"):
        next(other)
    with pytest.raises(
        ConnectionError, match=r"stage '<lambda>' \(dask\): its (client is closed|scheduler.*gone)"
    ):
        list(stream)
    assert own.status == "closed"
    with pytest.raises(ValueError, match="kind must be a client that is open"):
        pmap(square, kind=own)


SCHEDULER = "from distributed.cli.dask_scheduler import main; main()"
WORKER = "from distributed.cli.dask_worker import main; main()"


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A scheduler that is a process of its own, with one worker: the process and a client."""
    file = tmp_path / "scheduler.json"
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    words = ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([sys.executable, "-c", SCHEDULER, *words], **options)  # type: ignore[call-overload]
    words = [
        "--no-nanny",
        "--no-dashboard",
        "--nthreads",
        "1",
        "--scheduler-file",
        str(file),
        "--death-timeout",
        "20",
    ]
    worker = subprocess.Popen([sys.executable, "-c", WORKER, *words], **options)  # type: ignore[call-overload]
    try:
        assert eventually(file.exists, 30)
        client = distributed.Client(scheduler_file=str(file), timeout=20)
        client.wait_for_workers(1, timeout=30)
        yield scheduler, client
        client.close(timeout=1)
    finally:
        for process in worker, scheduler:
            process.kill()
            process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_scheduler_that_is_gone_is_an_error_within_seconds(scheduler: tuple[Any, Any], how: signal.Signals):
    process, client = scheduler
    stream = endless(client)
    assert next(stream) == 0
    process.send_signal(how)
    begun = time.monotonic()
    with pytest.raises(ConnectionError, match=r"stage '<lambda>' \(dask\): its scheduler, at tcp.*, is gone"):
        list(stream)
    assert time.monotonic() - begun < (5 if how == signal.SIGKILL else 20)
    process.kill()


class Looked:
    """Workers that look after their cluster of one thread, which answers so; an answer of None is an error."""

    def __init__(self, *answers: dict[str, int] | None) -> None:
        self.answers = list(answers)
        self.flights = {"flight"}
        self.down: list[str] = []
        self.sizes: list[int] = []
        self.resize = self.sizes.append
        self.parcels = SimpleNamespace(seats=None)
        client = SimpleNamespace(scheduler=self)
        self.cluster = SimpleNamespace(client=client, threads=1, is_there=lambda: True, gone=lambda why: why)
        with suppress(asyncio.CancelledError):
            asyncio.run(Workers.look_after(self))  # type: ignore[arg-type]

    async def ncores(self) -> dict[str, int]:
        if self.down or not self.answers:
            raise asyncio.CancelledError
        if (threads := self.answers.pop(0)) is None:
            raise OSError
        return threads

    def put_down(self, flight: str, _: Any) -> None:
        self.down.append(flight)


def test_a_scheduler_that_is_silent_twice_in_a_row_is_gone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dask, "PULSE", 0.0)
    answers = None, {"tcp://a:1": 1}, None
    assert not Looked(*answers).down
    assert Looked(*answers, None).down == ["flight"]


def test_a_stage_has_as_many_workers_as_its_cluster_has_threads_now(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dask, "PULSE", 0.0)
    assert Looked({"tcp://a:1": 1}, {"tcp://a:1": 1, "tcp://b:1": 2}, None).sizes == [3]


@pytest.mark.parametrize("turns", range(4))
def test_the_end_is_heard_in_the_turn_in_which_the_scheduler_answers(
    monkeypatch: pytest.MonkeyPatch, turns: int
):
    monkeypatch.setattr(dask, "PULSE", 0.0)

    async def is_over() -> bool:
        asked, answer = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def ncores() -> dict[str, int]:
            asked.set()
            return await answer  # type: ignore[no-any-return]

        client = SimpleNamespace(scheduler=SimpleNamespace(ncores=ncores))
        cluster = SimpleNamespace(client=client, threads=1, is_there=lambda: True)
        workers = SimpleNamespace(flights={"flight"}, cluster=cluster, parcels=SimpleNamespace(seats=None))
        looking = asyncio.create_task(Workers.look_after(workers))  # type: ignore[arg-type]
        await asked.wait()
        answer.set_result({"tcp://a:1": 1})
        for _ in range(turns):
            await asyncio.sleep(0)
        looking.cancel()
        await asyncio.wait({looking}, timeout=PATIENCE)
        return looking.cancelled()

    assert asyncio.run(is_over())


def test_a_scheduler_that_went_while_nothing_was_in_flight(scheduler: tuple[Any, Any]):
    process, client = scheduler

    def source() -> Iterator[int]:
        yield 1
        process.kill()
        process.wait()
        assert eventually(lambda: client.status != "running")
        yield 2

    with pytest.raises(ConnectionError, match="is gone"):
        list(pmap(square, source(), kind=client, maxsize=1))


def test_a_stream_that_is_dropped_leaves_nothing(client: Any, cluster: Any):
    stream = endless(client)
    assert next(stream) == 0
    assert eventually(lambda: cluster.scheduler.tasks)  # between two spans there may be none
    del stream
    assert eventually(partial(nothing_is_left, cluster, client))


def test_a_stream_that_is_closed_leaves_nothing(client: Any, cluster: Any):
    stream = endless(client)
    assert next(stream) == 0
    assert eventually(lambda: cluster.scheduler.tasks)  # between two spans there may be none
    stream.close()
    assert eventually(partial(nothing_is_left, cluster, client))
    assert list(stream) == []


def test_the_tasks_of_a_stage_that_is_over_are_cancelled():
    cancelled: list[Any] = []

    async def cancel(tasks: list[Any], *, asynchronous: bool) -> None:
        cancelled.extend(tasks)

    crew: Any = SimpleNamespace(
        cluster=SimpleNamespace(client=SimpleNamespace(cancel=cancel)),
        parcels=SimpleNamespace(key="stage"),
        stage=SimpleNamespace(on_done=None),
        pulse=None,
    )
    assert asyncio.run(Workers.leave(crew, ["one", "two"])) == []
    assert cancelled == ["one", "two"]


def test_ctrl_c_leaves_nothing(script: Script):
    result = script(
        """
        import itertools, os, signal, sys, threading, time
        from fstream import pmap

        if __name__ == "__main__":
            from distributed import Client, LocalCluster

            with LocalCluster(1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster):
                stream = pmap(lambda x: time.sleep(0.01) or x, itertools.count(), kind="dask")
                try:
                    for output in stream:
                        if output == 10:
                            signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt:
                    print("interrupted")
                del stream
                end = time.monotonic() + 10
                while cluster.scheduler.tasks and time.monotonic() < end:
                    time.sleep(0.01)
                print(len(cluster.scheduler.tasks))
        """
    )
    # The workers say on stderr that tasks were cancelled.
    assert (result.returncode, result.stdout.split()) == (0, ["interrupted", "0"]), result.stderr


# What is refused


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: pmap(square, kind=distributed.Client),
            TypeError,
            r"got the class: write kind=Client\(address\)",
        ),
        (lambda: pmap(square, kind="dask", max_items_per_worker=3), ValueError, "--lifetime"),
        (
            lambda: pmap(suited(square, "task"), kind="dask"),
            TypeError,
            "kind='dask' cannot run: use kind='task'",
        ),
        (
            lambda: list(pmap(square, [1], kind="dask")),
            RuntimeError,
            "needs a client: write client = distributed",
        ),
    ],
)
def test_what_cannot_be_had_is_refused(
    build: Callable[[], object], error: type[Exception], message: str, monkeypatch: Any
):
    monkeypatch.setattr(distributed.client, "_global_clients", {})
    with pytest.raises(error, match=message):
        build()


def test_an_executor_of_dask_is_refused(client: Any):
    with client.get_executor() as executor, pytest.raises(TypeError, match="pass its client, kind=client"):
        pmap(square, kind=executor)


def test_without_distributed_the_message_says_what_to_install(script: Script):
    result = script(
        """
        import sys
        sys.modules["distributed"] = None
        from fstream import pmap
        try:
            pmap(abs, kind="dask")
        except ImportError as error:
            print(error)
        """
    )
    assert printed(result) == "kind='dask' needs distributed: pip install 'fstream[dask]'"


def test_fstream_imports_nothing_of_dask(script: Script):
    result = script(
        """
        import sys
        from fstream import pmap
        transformer = pmap(abs, kind="dask")
        print(sorted({"dask", "distributed", "tornado"} & sys.modules.keys()))
        """
    )
    assert printed(result) == "[]"


def test_a_transformer_on_dask_is_a_value(client: Any):
    transformer = pmap(square, kind="dask")
    assert repr(transformer) == "pmap(square, kind='dask')"
    assert pickle.loads(pickle.dumps(transformer)) == transformer
    assert pmap(square, kind=client) == pmap(square, kind=client) != transformer


def test_each_function_of_the_picture_is_on_the_way_of_an_item(monkeypatch: Any):
    def run() -> None:
        with local_cluster(n_workers=1, processes=False) as cluster, distributed.Client(cluster) as client:
            assert list(pmap(absolute, (x for x in [-1]), kind=client)) == [1]

    monkeypatch.setattr(
        distributed.Future, "_cb_executor", None
    )  # its thread would be older than the profile
    ran = called(run)
    assert [step for step in steps("dask") if step not in ran] == []


def test_a_trace_and_the_numbers(client: Any, tmp_path: Path):
    with trace(tmp_path / "run.json"):
        stream = pmap(square, range(100), kind="dask")
        list(stream)
    assert "square" in (tmp_path / "run.json").read_text()
    (stage,) = stream.stats().stages
    assert (stage.kind, stage.taken, stage.given, stage.workers) == ("dask", 100, 100, 2)
