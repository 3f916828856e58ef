"""A `concurrent.futures.Executor` as kind: an instance, or a function that makes one."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fstream import NotPicklable, WorkerDied, batch, ordered, pmap
from tests.faults.faulty import eventually
from tests.functions import (
    MEANINGS,
    Meaning,
    asides,
    fail_at_first,
    identity,
    number_of,
    refuse_seven,
    square,
    suited,
)
from tests.gates import PATIENCE, Gate, Log, holding, opened_when
from tests.sources import Source
from tests.test_observer import recorded

pytestmark = [pytest.mark.drawn, pytest.mark.slow]

MAKERS: dict[str, Callable[[], Executor]] = {
    "threads": partial(ThreadPoolExecutor, 2),
    **{
        method: partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context(method))
        for method in ("fork", "spawn", "forkserver")
    },
}
if sys.version_info >= (3, 14):
    from concurrent.futures import InterpreterPoolExecutor

    MAKERS["interpreters"] = partial(InterpreterPoolExecutor, 2)
if find_spec("loky") is not None:

    def reusable() -> Executor:
        from loky import get_reusable_executor

        executor: Executor = get_reusable_executor(max_workers=2)
        return executor

    MAKERS["loky"] = reusable
FORKS = MAKERS["fork"]
EACH = {
    name: pytest.param(make, id=name, marks=[pytest.mark.forks] if make is FORKS else [])
    for name, make in MAKERS.items()
}


@pytest.fixture(params=EACH.values())
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    with request.param() as executor:
        executor.submit(
            square, 1
        ).result()  # its processes are forked before there is a gate: they would keep it shut
        yield executor


@pytest.fixture
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def forks() -> Iterator[Executor]:
    with FORKS() as executor:
        yield executor


class Plain(Executor):
    """An executor that has `submit` and nothing else."""

    def __init__(self) -> None:
        self.made: list[threading.Thread] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        self.made.append(threading.Thread(target=run))
        self.made[-1].start()
        return future


# The laws


@pytest.mark.parametrize("meaning", MEANINGS, ids=str)
def test_each_combinator_means_the_same(meaning: Meaning, pool: Executor, is_ordered: bool):
    outputs = list(meaning.combinator(meaning.f, range(2000), kind=pool, ordered=is_ordered))
    expected = meaning.expected(range(2000))
    assert outputs == expected if is_ordered else sorted(outputs) == sorted(expected)


def test_only_submit_is_needed():
    assert list(pmap(square, range(100), kind=Plain(), workers=3)) == list(map(square, range(100)))


def test_the_executor_of_the_caller_stays_open(pool: Executor):
    for _ in range(3):
        assert list(pmap(square, [1, 2], kind=pool)) == [1, 4]
    assert pool.submit(square, 3).result() == 9


def is_shut(executor: Executor) -> bool:
    try:
        executor.submit(square, 1)
    except RuntimeError as error:
        return "shutdown" in str(error)
    return False


@pytest.mark.parametrize("make", EACH.values())
def test_a_factory_is_called_at_the_first_output_and_its_executor_closed_at_the_end(
    make: Callable[[], Executor],
):
    made: list[Executor] = []

    def factory() -> Executor:
        made.append(make())
        return made[-1]

    transformer = pmap(square, kind=factory)
    stream = transformer([1, 2, 3])
    assert not made
    assert next(stream) == 1
    assert len(made) == 1
    assert list(stream) == [4, 9]
    assert is_shut(made[0])
    with transformer(itertools.count()) as stream:
        next(stream)
    # An early end does not wait for long for workers that are still starting: on a loaded machine they take seconds.
    assert eventually(lambda: is_shut(made[1]))


def test_a_class_of_executors_is_a_factory():
    assert list(pmap(square, [1, 2, 3], kind=ThreadPoolExecutor)) == [1, 4, 9]


def test_nothing_happens_before_the_first_output(threads: ThreadPoolExecutor):
    source = Source(itertools.count())
    before = threading.active_count()
    stream = pmap(square, source, kind=threads)
    assert threading.active_count() == before
    assert next(stream) == 0
    stream.close()


def test_no_more_is_pulled_than_there_is_room_for(pool: Executor):
    pulled: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            pulled.append(number)
            yield number

    with pmap(square, numbers(), kind=pool, maxsize=3) as stream:
        for taken in range(20):
            assert next(stream) == taken * taken
            assert len(pulled) <= taken + 1 + 3


def test_what_is_finished_comes_out_before_what_is_slow(pool: Executor, gate: Gate):
    with pmap(holding("executor", {1: gate}), [0, 1, 2, 3], kind=pool) as stream:
        assert next(stream) == 0
        gate.open()
        assert list(stream) == [1, 2, 3]


def test_a_slow_item_does_not_delay_others_where_order_is_not_asked_for(pool: Executor, gate: Gate):
    with pmap(holding("executor", {0: gate}), range(500), kind=pool, ordered=False) as stream:
        assert {next(stream) for _ in range(499)} == set(range(1, 500))
        gate.open()
        assert list(stream) == [0]


def test_on_threads_what_is_finished_of_a_span_comes_out_while_the_rest_waits(threads: Executor, gate: Gate):
    slow = 5000
    f = holding("executor", {slow: gate})
    with pmap(f, range(slow + 1), kind=threads) as stream:
        assert [next(stream) for _ in range(slow)] == list(range(slow))
        gate.open()
        assert list(stream) == [slow]


def test_no_more_items_are_at_work_than_there_are_workers(log: Log, make_gate: Callable[[], Gate]):
    gates = {number: make_gate() for number in range(4)}
    f = holding("executor", gates, log)
    with ThreadPoolExecutor(4) as pool, pmap(f, range(4), kind=pool, workers=2, maxsize=4) as stream:
        with opened_when(gates[0], lambda: log.wait_for(("start", 0), ("start", 1))):
            assert next(stream) == 0
        log.wait_for(("start", 2))
        assert ("start", 3) not in log.entries()
        for gate in gates.values():
            gate.open()
        assert list(stream) == [1, 2, 3]


# Ends


def test_an_early_end_closes_the_source(pool: Executor):
    source = Source(itertools.count())
    stream = pmap(square, source, kind=pool)
    assert [next(stream) for _ in range(3)] == [0, 1, 4]
    stream.close()
    assert source.closed.wait(PATIENCE)
    assert pool.submit(square, 3).result() == 9


def test_after_an_error_nothing_new_is_begun(threads: Executor, log: Log):
    def refuse(number: int) -> int:
        log.write(number)
        if number == 2:
            raise ValueError(number)
        return number

    with pytest.raises(ValueError):
        list(pmap(refuse, itertools.count(), kind=threads, maxsize=4))
    assert max(log.entries()) <= 2 + 4


def test_an_executor_that_is_shut_down_is_an_error():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown") as caught:
        list(pmap(square, [1], kind=pool, on_error="skip"))
    assert "executor of stage 'square'" in caught.value.__notes__[0]


# Errors


def test_an_error_comes_after_the_outputs_before_it_and_names_the_item(pool: Executor):
    outputs: list[float] = []
    with pytest.raises(ZeroDivisionError) as caught:
        outputs.extend(pmap(lambda number: 1 / number, [4, 2, 0, 1], kind=pool))
    assert outputs == [0.25, 0.5]
    assert caught.value.__notes__ == ["in stage '<lambda>' (executor), item 2: 0"]


def test_on_threads_it_is_the_very_error(threads: Executor):
    error = ValueError("mine")

    def fail(_: int) -> None:
        raise error

    with pytest.raises(ValueError) as caught:
        list(pmap(fail, [1], kind=threads))
    assert caught.value is error


@pytest.mark.parametrize(
    ("on_error", "stands_for"), [("skip", []), (lambda error, number: (type(error), number), None)]
)
def test_on_error(pool: Executor, on_error: Any, stands_for: Any):
    outputs = list(pmap(lambda number: 1 // number, [1, 0, 1], kind=pool, on_error=on_error))
    assert outputs == ([1, 1] if on_error == "skip" else [1, (ZeroDivisionError, 0), 1])


def test_retries(pool: Executor, tmp_path: Path):
    f = partial(fail_at_first, tmp_path)
    assert list(pmap(f, range(50), kind=pool, retries=1, backoff=0)) == list(range(50))
    with pytest.raises(OSError):
        list(pmap(f, [50], kind=pool))


# Time-outs


def test_a_time_out_costs_one_item(pool: Executor, gate: Gate, log: Log):
    f = holding("executor", {1: gate}, log)
    outputs = list(pmap(f, range(6), kind=pool, timeout=0.5, on_error=lambda error, _: repr(error)))
    late = f"TimeoutError(\"stage '{f.__name__}' (executor), item 1: 1, ran over its 0.5 seconds\")"
    assert outputs == [0, late, 2, 3, 4, 5]
    assert ("end", 1) not in log.entries()
    assert pool.submit(square, 3).result() == 9
    gate.open()
    log.wait_for(("end", 1))  # which changes nothing


def test_an_item_that_is_over_its_time_is_tried_again(pool: Executor, gate: Gate, log: Log):
    def late_at_first(item: int, attempt: int) -> tuple[int, int]:
        if item == 3 and attempt == 0:
            gate.wait()
            log.write("end")
        return item, attempt

    stream = pmap(late_at_first, range(50), kind=pool, timeout=0.5, retries=1, backoff=0)
    assert list(stream) == [(item, int(item == 3)) for item in range(50)]
    gate.open()
    log.wait_for("end")


def test_an_item_that_computes_is_over_its_time_too(pool: Executor, tmp_path: Path):
    end = tmp_path / "end"

    def compute(item: int) -> int:
        while item == 1 and not end.exists():
            pass
        return item

    try:
        assert list(pmap(compute, range(4), kind=pool, timeout=0.5, on_error="skip")) == [0, 2, 3]
    finally:
        end.touch()


def test_a_late_item_keeps_its_resources_and_others_get_new_ones(pool: Executor, gate: Gate, log: Log):
    def start() -> int:
        log.write("start")
        return threading.get_ident()

    def f(item: int, thread: int) -> bool:
        if item == 1:
            gate.wait()
            log.write(("late", thread == threading.get_ident()))
        return thread == threading.get_ident()

    stream = pmap(f, range(50), kind=pool, on_start=start, timeout=0.5, on_error="skip")
    assert list(stream) == [True] * 49
    gate.open()
    log.wait_for(("late", True))


@pytest.mark.parametrize("make", [each for name, each in EACH.items() if name != "threads"])
def test_items_with_a_time_out_share_spans_and_their_threads_end(make: Callable[[], Executor], gate: Gate):
    with make() as pool:
        pool.submit(square, 1).result()
        with recorded() as record:
            stream = pmap(square, range(5000), kind=pool, timeout=60.0)
            assert list(stream) == list(map(square, range(5000)))
        assert len(record.told("done")) < 100
        assert list(pmap(holding("executor", {1: gate}), range(4), kind=pool, timeout=0.5, on_error="skip"))
        gate.open()

        def none_left() -> bool:  # what comes to a worker next ends the threads of stages that are over
            list(pmap(identity, range(200), kind=pool))
            return not any(pool.submit(asides).result() for _ in range(4))

        assert eventually(none_left)


@pytest.mark.parametrize("make", [each for name, each in EACH.items() if name not in ("threads", "loky")])
def test_an_executor_of_the_stage_ends_no_later_than_what_is_at_work(
    make: Callable[[], Executor], gate: Gate
):
    f = holding("executor", {1: gate})
    stream = pmap(f, range(4), kind=make, timeout=0.5, on_error="skip")
    assert [next(stream) for _ in range(3)] == [0, 2, 3]
    gate.open()
    assert list(stream) == []


@pytest.mark.parametrize("make", [EACH[name] for name in ("fork", "spawn", "forkserver")])
def test_nobody_waits_for_what_a_process_of_the_stage_is_at(make: Callable[[], Executor], gate: Gate):
    f = holding("executor", {1: gate})
    assert list(pmap(f, range(4), kind=make, timeout=0.5, on_error="skip")) == [0, 2, 3]
    gate.open()


# What is given by name, and the resources


def test_the_number_of_an_item(pool: Executor):
    assert list(pmap(number_of, "abc", kind=pool)) == [("a", 0), ("b", 1), ("c", 2)]


def test_on_start_runs_once_in_each_worker(pool: Executor, log: Log):
    def start() -> tuple[int, int]:
        where = os.getpid(), threading.get_ident()
        log.write(where)
        return where

    def where(_: int, pid: int, thread: int) -> bool:
        return (pid, thread) == (os.getpid(), threading.get_ident())

    assert all(pmap(where, range(3000), kind=pool, on_start=start))
    started = log.entries()
    assert 1 <= len(started) == len(set(started)) <= 2


def test_two_stages_on_one_executor_have_resources_of_their_own(pool: Executor):
    def plus(number: int, step: int) -> int:
        return number + step

    stages = pmap(plus, kind=pool, on_start=lambda: 1) | pmap(plus, kind=pool, on_start=lambda: 100)
    assert list(stages(range(500))) == list(range(101, 601))


def test_an_error_of_on_start(pool: Executor):
    def start() -> None:
        raise OSError("no")

    with pytest.raises(OSError) as caught:
        list(pmap(square, [1], kind=pool, on_start=start, on_error="skip"))
    assert "in on_start of stage 'square' (executor)" in caught.value.__notes__


def test_context_variables_reach_threads(threads: Executor):
    user: ContextVar[str] = ContextVar("user")
    user.set("me")
    assert list(pmap(lambda _: user.get(), [1, 2], kind=threads)) == ["me", "me"]


# What cannot be pickled


class Unloadable:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise ValueError("not here")


@pytest.mark.parametrize("make", [EACH["fork"], EACH["forkserver"]])
class TestPickling:
    def test_a_function(self, make: Callable[[], Executor]):
        lock = threading.Lock()
        with pytest.raises(NotPicklable, match=r"stage '.*' \(executor\): f cannot be pickled.*'lock'"):
            list(pmap(lambda _: lock, [1], kind=make, on_error="skip"))

    def test_an_item(self, make: Callable[[], Executor]):
        items = [1, threading.Lock(), 3]
        with pytest.raises(NotPicklable, match=r"item 1: <.*lock.*>: item cannot be pickled"):
            list(pmap(identity, items, kind=make))
        assert list(pmap(identity, items, kind=make, on_error="skip")) == [1, 3]

    def test_an_output(self, make: Callable[[], Executor]):
        def locked(number: int) -> Any:
            return threading.Lock() if number == 1 else number

        with pytest.raises(NotPicklable, match=r"item 1: 1: its output, of type lock, cannot be pickled"):
            list(pmap(locked, range(3), kind=make))
        assert list(pmap(locked, range(3), kind=make, on_error="skip")) == [0, 2]

    def test_what_cannot_be_unpickled(self, make: Callable[[], Executor]):
        items = [1, Unloadable(), 3]
        with pytest.raises(NotPicklable, match=r"item 1: .*unpickled in the worker: not here"):
            list(pmap(identity, items, kind=make))
        with pytest.raises(NotPicklable, match="item 1: 1: its output cannot be unpickled: not here"):
            list(pmap(lambda number: Unloadable() if number == 1 else number, range(3), kind=make))

    def test_an_output_that_cannot_be_unpickled_is_tried_again(self, make: Callable[[], Executor]):
        stream = pmap(
            lambda number: Unloadable() if number == 1 else number,
            range(3), kind=make, retries=2, backoff=0, on_error="keep",
        )  # fmt: skip
        first, failed, last = stream
        assert (first, type(failed.error), failed.tries, last) == (0, NotPicklable, 3, 2)
        assert sum(stage.retried for stage in stream.stats().stages) == 2

    def test_a_closure_and_large_items(self, make: Callable[[], Executor]):
        suffix = b"!"
        items = [bytes([number]) * (1 << 20) for number in range(8)]
        assert list(pmap(lambda item: item + suffix, items, kind=make)) == [item + suffix for item in items]


# Broken executors


def die_at(deadly: int, number: int) -> int:
    if number == deadly:
        os._exit(3)
    return number


def die_at_first(folder: Path, deadly: set[int], number: int) -> int:
    if number in deadly:
        try:
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return number
        os._exit(3)
    return number


@pytest.mark.forks
def test_the_callers_executor_that_breaks_is_an_error(forks: Executor):
    with pytest.raises(WorkerDied, match=r"\(executor\).*executor broke") as caught:
        list(pmap(partial(die_at, 5), range(10), kind=forks, retries=3, backoff=0, on_error="skip"))
    assert isinstance(caught.value.__cause__, BrokenExecutor)


@pytest.mark.forks
def test_a_factory_has_the_item_named_that_the_executor_breaks_with():
    outputs: list[int] = []
    with pytest.raises(WorkerDied, match="item 5: 5: its executor broke") as caught:
        outputs.extend(pmap(partial(die_at, 5), range(10), kind=FORKS))
    assert outputs == list(range(5))
    assert caught.value.item == 5


@pytest.mark.forks
def test_with_a_factory_only_the_item_is_lost_that_the_executor_breaks_with():
    f = partial(die_at, 50)
    assert list(pmap(f, range(100), kind=FORKS, on_error="skip")) == [n for n in range(100) if n != 50]


@pytest.mark.forks
def test_with_a_factory_retries_overcome_what_breaks_executors(tmp_path: Path, is_ordered: bool):
    f = partial(die_at_first, tmp_path, {3, 4, 40})
    outputs = list(pmap(f, range(60), kind=FORKS, retries=1, backoff=0, ordered=is_ordered))
    assert sorted(outputs) == list(range(60))
    if is_ordered:
        assert outputs == sorted(outputs)


@pytest.mark.forks
def test_an_executor_that_cannot_be_made_again(tmp_path: Path):
    made: list[Executor] = []

    def once() -> Executor:
        if made:
            raise OSError("no more")
        made.append(FORKS())
        return made[0]

    with pytest.raises(OSError, match="no more"):
        list(pmap(partial(die_at, 0), range(10), kind=once))


def test_an_executor_whose_workers_cannot_start():
    def refuse() -> None:
        raise OSError("never")

    with pytest.raises(WorkerDied):
        list(pmap(square, range(3), kind=partial(ThreadPoolExecutor, 2, initializer=refuse)))


# Beside other stages


@pytest.mark.parametrize("make", [EACH["threads"], EACH["fork"]])
def test_a_row_with_other_kinds(make: Callable[[], Executor]):
    row = pmap(square, kind="thread") | pmap(square, kind=make) | pmap(suited(square, "task"), kind="task")
    for transformer in (row, row | pmap(square, kind="sync") | pmap(identity, kind=make)):
        outputs = list(transformer(range(300)))
        power = 8 if transformer is row else 16
        assert outputs == [number**power for number in range(300)]


def test_async_iteration(pool: Executor):
    async def main() -> None:
        assert await pmap(square, range(500), kind=pool) == list(map(square, range(500)))
        stream = pmap(square, itertools.count(), kind=pool)
        async for output in stream:
            if output > 100:
                break
        await stream.aclose()

    asyncio.run(main())


def test_ordered_restores_the_order(pool: Executor):
    assert list(ordered(pmap(square, range(300), kind=pool, ordered=False))) == list(map(square, range(300)))


def test_a_stream_inside_f_on_the_same_executor_is_an_error(threads: Executor):
    def nested(number: int) -> list[int]:
        return list(pmap(square, [number], kind=threads))

    with pytest.raises(RuntimeError, match="stream inside f on the executor that runs f"):
        list(pmap(nested, [1, 2, 3], kind=threads))

    def nested_twice(number: int) -> list[list[int]]:
        return list(pmap(nested, [number], kind="thread"))

    with pytest.raises(RuntimeError, match="stream inside f on the executor that runs f"):
        list(pmap(nested_twice, [1, 2, 3], kind=threads))


INHERITED: list[Executor] = []


def nested_in_a_fork(number: int) -> list[int]:
    return list(pmap(square, [number], kind=INHERITED[0]))


@pytest.mark.forks
def test_a_stream_inside_f_on_an_inherited_executor_is_an_error(forks: Executor):
    INHERITED[:] = [forks]
    with pytest.raises(RuntimeError, match="stream inside f on the executor that runs f"):
        list(pmap(nested_in_a_fork, [1, 2, 3], kind=forks))
    INHERITED.clear()


def test_a_stream_inside_f_on_another_executor(threads: Executor):
    def nested(number: int) -> list[int]:
        return list(pmap(square, [number], kind=ThreadPoolExecutor))

    assert list(pmap(nested, [1, 2, 3], kind=threads)) == [[1], [4], [9]]


# Options


async def wait(_: int) -> None:
    """Nothing."""


class ClientExecutor(Plain):
    """Named as that of `distributed` is."""


def numbered(item: int, worker_info: Any) -> int:
    return item


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda pool: pmap(square, kind=Plain()), ValueError, "workers must be given, as Plain"),
        (lambda pool: pmap(square, kind=ClientExecutor()), TypeError, "pass its client"),
        (lambda pool: pmap(square, kind=pool, max_items_per_worker=3), ValueError, "max_tasks_per_child"),
        (lambda pool: pmap(square, kind=pool, on_done=print), ValueError, "on_done is not for executors"),
        (lambda pool: pmap(numbered, kind=pool), ValueError, "worker_info is not for executors"),
        (
            lambda pool: pmap(square, kind=pool, on_start=lambda worker_info: None),
            ValueError,
            "worker_info is not for executors",
        ),
        (lambda pool: pmap(wait, kind=pool), TypeError, "kind='executor' cannot run: use kind='task'"),
        (lambda pool: pmap(square, kind=square), TypeError, r"write kind=lambda: square\(...\)"),
        (lambda pool: pmap(square, kind="executor"), ValueError, "kind must be one of 'sync', 'thread'"),
        (lambda pool: pmap(square, kind=3), TypeError, "a concurrent.futures.Executor, .*got 3"),
        (lambda pool: pmap(kind=3), TypeError, "kind must be one of 'sync'"),
    ],
)
def test_what_cannot_be_had_is_refused_when_the_transformer_is_built(
    threads: Executor, build: Callable[[Executor], object], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        build(threads)


def test_a_factory_that_makes_something_else():
    with pytest.raises(TypeError, match=r"'dict' must make an executor, got \{\}"):
        list(pmap(square, [1], kind=dict))
    with pytest.raises(ValueError, match="workers must be given, as Plain"):
        list(pmap(square, [1], kind=Plain))
    assert list(pmap(square, [1], kind=Plain, workers=1)) == [1]


def test_a_transformer_on_an_executor_is_a_value(threads: Executor):
    assert pmap(square, kind=threads) == pmap(square, kind=threads) != pmap(square, kind=ThreadPoolExecutor)
    assert hash(pmap(square, kind=threads)) == hash(pmap(square, kind=threads))
    of_a_class = pmap(square, kind=ThreadPoolExecutor)
    assert repr(of_a_class) == "pmap(square, kind=ThreadPoolExecutor)"
    assert list(pickle.loads(pickle.dumps(of_a_class))([1, 2])) == [1, 4]


# Observers, and batches between


def test_an_observer_is_told_of_each_item_once_and_of_no_worker(pool: Executor):
    with recorded() as record:
        assert list(pmap(square, range(2000), kind=pool)) == list(map(square, range(2000)))
    (run,) = record.told("run_opened")[0]
    assert [(stage.kind, stage.workers) for stage in run.stages] == [("executor", 2)]
    assert record.items() == 2000
    assert sum(count for _, count in record.told("given")) == 2000
    assert {worker for *_, worker in record.told("taken") + record.told("done")} == {None}
    taken = {start for _, start, *_ in record.told("taken")}
    assert {start for _, start, *_ in record.told("done")} <= taken
    assert not record.told("worker_started") + record.told("worker_ended")


def test_an_observer_is_told_of_each_further_try_and_of_what_fails_for_good(pool: Executor):
    with recorded() as record:
        outputs = list(pmap(refuse_seven, range(20), kind=pool, retries=2, backoff=0, on_error="skip"))
    assert outputs == [item for item in range(20) if item != 7]
    assert [(index, type(error), tries) for _, index, error, tries in record.told("retried")] == [
        (7, ValueError, 1),
        (7, ValueError, 2),
    ]
    assert [(index, type(error), tries) for _, index, error, tries in record.told("failed")] == [
        (7, ValueError, 3)
    ]
    assert record.items() == 20


def test_an_observer_is_told_of_an_item_that_is_over_its_time(pool: Executor, gate: Gate):
    with recorded() as record:

        def wait_at_three(item: int) -> int:
            if item == 3:
                gate.wait()
            return item

        stream = pmap(wait_at_three, range(10), kind=pool, timeout=0.5, on_error="skip")
        assert list(stream) == [item for item in range(10) if item != 3]
        gate.open()
    assert [(index, type(error), tries) for _, index, error, tries in record.told("failed")] == [
        (3, TimeoutError, 1)
    ]
    assert record.items() == 10


@pytest.mark.forks
def test_an_observer_is_told_of_an_item_that_breaks_executors():
    with recorded() as record:
        outputs = list(pmap(partial(die_at, 5), range(10), kind=FORKS, on_error="skip"))
    assert outputs == [item for item in range(10) if item != 5]
    assert [(index, type(error)) for _, index, error, _ in record.told("failed")] == [(5, WorkerDied)]
    assert record.items() == 10


def test_batches_between_stages_in_executors(pool: Executor, threads: Executor):
    pipeline = pmap(square, kind=pool) | batch(3, within=60.0) | pmap(sum, kind=threads)
    assert list(pipeline(range(8))) == [0 + 1 + 4, 9 + 16 + 25, 36 + 49]


def test_a_batch_that_is_due_goes_into_an_executor(pool: Executor, gate: Gate):
    def items() -> Iterator[int]:
        yield 1
        yield 2
        gate.wait()

    stream = (batch(3, within=0.05) | pmap(sum, kind=pool))(items())
    assert next(stream) == 3
    gate.open()
    assert list(stream) == []


def test_a_slow_stage_upstream_withholds_nothing_from_an_executor(pool: Executor, gate: Gate):
    before = pmap(holding("process", {1000: gate}), range(1010), kind="process", workers=1)
    stream = pmap(identity, before, kind=pool)
    assert list(itertools.islice(stream, 1000)) == list(range(1000))
    gate.open()
    assert list(stream) == list(range(1000, 1010))
