"""Process stages as people need them: in any script, with any function, warm."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, cast

import pytest

from fstream import WorkerDied, pfilter, pflat_map, pmap
from fstream._flow.span import Span
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._workers.opening import open_run
from fstream._workers.process import child
from fstream._workers.process.link import Link
from fstream._workers.process.queue import PipeQueue
from fstream._workers.process.warm import WARM
from fstream._workers.process.workers import Worker, Workers
from tests.faults.faulty import eventually
from tests.functions import square
from tests.scripts import Script, printed, run_python

pytestmark = pytest.mark.slow

SQUARES = """
    from fstream import pmap

    print("once", flush=True)

    def square(number):
        return number * number

    print(list(pmap(square, range(4), kind="process", workers=2)))
"""
SQUARES_PRINTED = "once\n[0, 1, 4, 9]"


# Any script


def test_a_script_without_a_main_guard(script: Script):
    assert printed(script(SQUARES)) == SQUARES_PRINTED


def test_python_with_a_command():
    assert printed(run_python("-c", dedent(SQUARES))) == SQUARES_PRINTED


def test_python_from_standard_input():
    assert printed(run_python("-", stdin=dedent(SQUARES))) == SQUARES_PRINTED


def test_python_with_a_module(tmp_path: Path):
    (tmp_path / "squares.py").write_text(dedent(SQUARES))
    assert printed(run_python("-m", "squares", PYTHONPATH=str(tmp_path))) == SQUARES_PRINTED


def test_an_interactive_session():
    session = (
        "from fstream import pmap\ndef square(number):\n    return number * number\n\n"
        'print(list(pmap(square, range(4), kind="process", workers=2)))\n'
    )
    result = run_python("-i", "-q", stdin=session)
    assert (result.returncode, result.stdout) == (0, "[0, 1, 4, 9]\n"), result.stderr


def test_a_module_beside_the_script(script: Script, tmp_path: Path):
    (tmp_path / "neighbour.py").write_text("def double(number):\n    return 2 * number\n")
    source = """
        from fstream import pmap
        import neighbour

        print(list(pmap(neighbour.double, [1, 2], kind="process", workers=1)))
    """
    assert printed(script(source)) == "[2, 4]"


def test_functions_classes_and_globals_of_the_script(script: Script):
    source = """
        import dataclasses, math
        from fstream import pmap, pfilter, pflat_map

        factor = 10

        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            def scaled(self):
                return Point(self.x * factor)

        def scaled(point):
            return point.scaled()

        points = [Point(1), Point(2)]
        assert list(pmap(scaled, points, kind="process", workers=1)) == [Point(10), Point(20)]
        assert list(pmap(Point.scaled, points, kind="process", workers=1)) == [Point(10), Point(20)]
        assert list(pmap(Point, [1, 2], kind="process", workers=1)) == points
        assert all(type(point) is Point for point in pmap(Point, [1, 2], kind="process", workers=1))
        assert list(pfilter(lambda point: point.x > 1, points, kind="process", workers=1)) == [Point(2)]
        roots = pflat_map(lambda point: (math.sqrt(each) for each in (point.x, 4)), kind="process", workers=1)
        print(list(roots([Point(1)])))
    """
    assert printed(script(source)) == "[1.0, 2.0]"


# Any function and item


def test_lambdas_and_closures():
    offset = 10

    def add(number: int) -> int:
        return number + offset

    assert list(pmap(add, range(3), kind="process")) == [10, 11, 12]
    assert list(pmap(lambda number: add(number) + 1, range(3), kind="process")) == [11, 12, 13]


def test_local_classes_as_items_and_outputs():
    @dataclass(frozen=True)
    class Item:
        number: int

    @dataclass(frozen=True)
    class Output:
        item: Item

    outputs = list(pmap(Output, map(Item, range(3)), kind="process", workers=2))
    assert outputs == [Output(Item(number)) for number in range(3)]
    assert {type(output) for output in outputs} == {Output}


def test_the_worker_s_traceback_names_the_file_of_a_function_that_is_sent_by_value():
    def inverse(item: int) -> float:
        return 1 / item  # the line to be shown

    with pytest.raises(ZeroDivisionError) as caught:
        list(pmap(lambda item: inverse(item), [0], kind="process", workers=1))
    shown = str(caught.value.__cause__)
    assert f'File "{__file__}", line {inverse.__code__.co_firstlineno + 1}, in inverse' in shown
    assert "return 1 / item  # the line to be shown" in shown


def test_functions_as_items_and_outputs():
    def adder(f):
        return lambda number: f(number) + 1

    assert [f(3) for f in pmap(adder, [lambda number: number, square], kind="process")] == [4, 10]


def test_generators_run_where_f_runs():
    def pids(count: int):
        for _ in range(count):
            yield os.getpid()

    outputs = list(pflat_map(pids, [2, 3], kind="process", workers=1))
    assert len(outputs) == 5
    assert os.getpid() not in outputs


def test_items_larger_than_any_pipe():
    megabyte = 1 << 20
    chain = pmap(lambda data: data[::-1], kind="process", workers=2) | pfilter(len, kind="process", workers=2)
    items = [bytes([number]) * (4 * megabyte) for number in range(12)]
    assert list(chain(items)) == items


def test_what_f_prints_is_seen(script: Script):
    source = """
        from fstream import peach, run

        run(peach(print, ["from the worker"], kind="process", workers=1))
    """
    assert printed(script(source)) == "from the worker"


def test_a_process_stage_inside_a_process_stage(script: Script):
    source = """
        import os
        from fstream import pmap

        def inner(number):
            return os.getpid(), number * number

        def outer(number):
            outputs = list(pmap(inner, range(number), kind="process", workers=1))
            return os.getpid(), {pid for pid, _ in outputs}, sum(output for _, output in outputs)

        results = list(pmap(outer, [3, 4], kind="process", workers=2))
        for pid, inner_pids, _ in results:
            assert len({os.getpid(), pid, *inner_pids}) == 2 + len(inner_pids)
        print([total for *_, total in results])
    """
    assert printed(script(source)) == "[5, 14]"


# Start methods


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_start_method_of_multiprocessing_has_no_influence(script: Script, method: str):
    source = """
        import colorsys, itertools, multiprocessing, sys
        from fstream import pmap, pfilter

        print("once")

        def look(_):
            return hasattr(colorsys, "changed_here"), hasattr(sys.modules["__main__"], "colorsys")

        multiprocessing.set_start_method(sys.argv[1])
        colorsys.changed_here = True
        print(*pmap(look, [0], kind="process", workers=1))
        chain = pmap(abs, kind="process", workers=2) | pfilter(lambda number: number % 2, kind="process", workers=2)
        for _ in range(3):
            assert list(chain(range(500))) == list(range(1, 500, 2))
        unfinished = chain(itertools.count())
        print(next(unfinished))
    """
    assert printed(script(source, method)) == "once\n(False, False)\n1"


@pytest.mark.parametrize(
    "accident",
    ["Lock()", "Queue()", "Pool(1).terminate()", "Process(target=abs, args=(1,)).start()"],
)
def test_what_other_libraries_do_to_the_start_method_has_no_influence(script: Script, accident: str):
    source = """
        import colorsys, multiprocessing, sys
        from fstream import pmap

        colorsys.changed_here = True
        if __name__ == "__main__":
            exec("multiprocessing." + sys.argv[1])
            assert multiprocessing.get_start_method(allow_none=True)
            print(*pmap(lambda _: hasattr(colorsys, "changed_here"), [0], kind="process", workers=1))
    """
    assert printed(script(source, accident, PYTHONWARNINGS="ignore")) == "False"


def test_the_start_method_is_not_set_for_the_user(script: Script):
    source = """
        import multiprocessing
        from fstream import pmap

        list(pmap(abs, [1], kind="process", workers=1))
        print(multiprocessing.get_start_method(allow_none=True))
    """
    assert printed(script(source)) == "None"


# The bell of the pump


class Socket:
    """A socket whose next sends fail."""

    def __init__(self, real: Any, failures: int) -> None:
        self.real, self.failures = real, failures

    def send(self, *args: Any) -> int:
        if self.failures:
            self.failures -= 1
            raise BlockingIOError
        return int(self.real.send(*args))

    def close(self) -> None:
        self.real.close()


def test_a_bell_that_could_not_be_rung_for_want_of_memory_is_rung_later():
    queue: Any = PipeQueue(cast("Any", None))
    queue._push = Socket(queue._push, 3)
    queue.ring()
    assert queue.bell.recv(10) == b"!"
    queue.close()


def test_a_bell_that_rings_already_is_not_rung_again():
    queue: Any = PipeQueue(cast("Any", None))
    queue.ring()
    queue._push = Socket(queue._push, sys.maxsize)
    queue.ring()
    assert queue._push.failures == sys.maxsize - 1
    queue.close()


def test_a_bell_that_does_not_ring_may_be_silenced():
    queue = PipeQueue(cast("Any", None))
    queue.silence()
    queue.ring()
    queue.silence()
    with pytest.raises(BlockingIOError):
        queue.bell.recv(1)
    queue.close()


def test_a_bell_that_is_closed_is_not_rung():
    queue = PipeQueue(cast("Any", None))
    queue.close()
    queue.ring()


# Workers


def test_warm_workers_are_reused(script: Script):
    source = """
        import multiprocessing, os
        from fstream import pmap

        def pids(length, workers):
            return set(pmap(lambda _: os.getpid(), range(length), kind="process", workers=workers))

        first = pids(10, 1)
        assert first == pids(10, 1) == pids(10, 1)
        pids(1_000, 2)
        alive = {child.pid for child in multiprocessing.active_children()}
        assert first <= alive and len(alive) <= 2, alive
        assert pids(1_000, 2) <= alive
        print("reused")
    """
    assert printed(script(source)) == "reused"


def pid_of(_: object) -> int:
    return os.getpid()


def test_a_worker_that_is_starting_when_its_stage_ends_is_kept_for_the_next():
    WARM.clear()
    crew: Any = open_run([range(3)], [Stage(MAP, abs, "process", 1, name="abs")]).crews[0]
    crew.hire()
    [worker] = crew.workers
    deque(crew.leaving.wind_up(), 0)
    crew.leaving.leave_pool()
    crew.selector.close()
    crew.queue.close()
    assert WARM._links == [worker.link]
    assert not worker.link.ready
    assert list(pmap(pid_of, range(2), kind="process", workers=1)) == [worker.link.process.pid] * 2
    assert worker.link.ready


def test_a_worker_that_has_started_is_taken_before_one_that_is_starting():
    WARM.clear()
    assert list(pmap(square, range(2), kind="process", workers=1)) == [0, 1]
    [warm] = WARM._links
    WARM.put(Link())
    assert list(pmap(pid_of, range(2), kind="process", workers=1)) == [warm.process.pid] * 2


def test_a_worker_that_died_while_it_started_is_not_kept():
    WARM.clear()
    link = Link()
    WARM.put(link)
    link.process.kill()
    link.process.join()
    assert list(pmap(square, range(2), kind="process", workers=1)) == [0, 1]
    assert link not in WARM._links


def test_workers_that_are_starting_do_not_keep_the_interpreter_from_its_end(script: Script):
    source = """
        from fstream._workers.process.warm import WARM
        from fstream._workers.process.link import Link

        for _ in range(8):
            WARM.put(Link())
        print("done")
    """
    assert printed(script(source)) == "done"


@pytest.mark.parametrize("doing", [child.SENDING, child.LOADING, 0])
def test_a_worker_that_dies_before_an_item_does_not_take_it_along(
    doing: int, monkeypatch: pytest.MonkeyPatch
):
    """A cell may still say what was done for the span before, or for the stage before, whose answers are there."""
    WARM.clear()
    assert list(pmap(square, range(2), kind="process", workers=1)) == [0, 1]
    killed = []

    def kill_after(workers: Workers, worker: Worker, span: Span) -> None:
        send(workers, worker, span)
        if not killed:
            killed.append(worker.link.process.pid)
            os.kill(killed[0], signal.SIGKILL)

    [link] = WARM._links
    os.kill(link.process.pid or 0, signal.SIGSTOP)  # so that it starts nothing
    link.cell[:8] = doing.to_bytes(8, sys.byteorder, signed=True)
    send = Workers.send
    monkeypatch.setattr(Workers, "send", kill_after)
    assert list(pmap(square, [7], kind="process", workers=1)) == [49]
    assert killed == [link.process.pid]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_workers_die_of_before_they_begin_it_fails(
    workers: int, on_error: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As one that the kernel finds too large for the memory that there is, while it is received."""
    send = Workers.send

    def square_there(folder: Path) -> Callable[[int], int]:
        (folder / str(os.getpid())).touch()
        return square

    class Square:
        """It leaves a file where it is unpickled."""

        def __call__(self, number: int) -> int:
            raise AssertionError("not here")

        def __reduce__(self) -> Any:
            return square_there, (tmp_path,)

    def send_poison(workers: Workers, worker: Worker, span: Span) -> None:
        if span.items != [30]:
            send(workers, worker, span)
            return
        pid = worker.link.process.pid or 0
        opening = tmp_path / str(pid)
        assert eventually(lambda: opening.exists() and worker.link.state(child.DOING) == child.IDLE)
        os.kill(pid, signal.SIGSTOP)  # so that it does not begin
        send(workers, worker, span)
        os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(Workers, "send", send_poison)
    outputs = []
    with nullcontext() if on_error == "skip" else pytest.raises(WorkerDied, match="item 30") as caught:
        outputs.extend(
            pmap(Square(), range(50), kind="process", workers=workers, maxsize=1, on_error=on_error)
        )
    good = [n for n in range(50 if on_error == "skip" else 30) if n != 30]
    assert outputs == [n * n for n in good]
    assert on_error == "skip" or caught.value.item == 30


def test_too_few_files_are_an_error_and_none_stays_open(script: Script):
    source = """
        import gc
        import os
        import resource

        from fstream import pmap
        from fstream._workers.process.warm import WARM

        def opened():
            WARM.clear()
            gc.collect()
            return len(os.listdir("/proc/self/fd"))

        assert list(pmap(abs, range(3), kind="process", workers=1)) == [0, 1, 2]
        before, most = opened(), resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for more in range(0, 30, 2):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + more, most))
            try:
                assert list(pmap(abs, range(3), kind="process", workers=1)) == [0, 1, 2]
                result = "works"
            except OSError as error:
                result = error.strerror
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            assert opened() == before, (more, opened(), before)
            if more in (0, 28):
                print(result)
    """
    assert printed(script(source, PYTHONWARNINGS="error::ResourceWarning")) == "Too many open files\nworks"


def test_warm_workers_keep_nothing_of_the_run_before():
    def counted(item: int, seen: list[int]) -> int:
        seen.append(item)
        return len(seen)

    counting = pmap(counted, kind="process", workers=1, on_start=lambda: [])
    assert list(counting(range(3))) == list(counting(range(3))) == [1, 2, 3]


def test_what_f_leaves_for_the_end_of_its_process_is_done(tmp_path: Path):
    def f(number: int) -> int:
        atexit.register((tmp_path / str(number)).touch)
        return number

    numbers = list(range(4))
    assert list(pmap(f, numbers, kind="process", workers=1, max_items_per_worker=2)) == numbers
    assert {path.name for path in tmp_path.iterdir()} >= {"0", "1"}  # the other worker is warm


def test_a_function_changed_between_runs_runs_as_changed(script: Script):
    source = """
        from fstream import pmap

        factor = 1

        def scaled(number):
            return number * factor

        for factor in (1, 2, 3):
            print(list(pmap(scaled, [1, 2], kind="process", workers=1)))
    """
    assert printed(script(source)) == "[1, 2]\n[2, 4]\n[3, 6]"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_as_many_workers_as_cpus_that_may_be_used(script: Script):
    source = """
        import os
        from fstream import pmap

        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(len(set(pmap(lambda _: os.getpid(), range(200), kind="process"))))
    """
    assert printed(script(source)) == "1"


def test_no_semaphore_and_no_shared_memory(script: Script, tmp_path: Path):
    # Every interpreter, parent and worker, imports this at its start: as where /dev/shm is missing.
    (tmp_path / "sitecustomize.py").write_text(
        dedent("""
            import _multiprocessing

            class NoSemaphore:
                SEM_VALUE_MAX = 1
                def __init__(self, *args, **kwargs):
                    raise OSError(38, "Function not implemented")

            _multiprocessing.SemLock = NoSemaphore
        """)
    )
    source = """
        import _multiprocessing
        from fstream import pmap

        assert _multiprocessing.SemLock.__name__ == "NoSemaphore"
        names = pmap(lambda _: _multiprocessing.SemLock.__name__, range(100), kind="process", workers=2)
        print(set(names))
    """
    assert printed(script(source, PYTHONPATH=str(tmp_path))) == "{'NoSemaphore'}"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/shm is of Linux")
def test_nothing_is_put_into_dev_shm():
    def listed() -> set[str]:
        # loky and multiprocessing put their semaphores there, where tests of them run beside this one.
        return {name for name in os.listdir("/dev/shm") if not name.startswith(("sem.loky-", "sem.mp-"))}

    before = listed()
    during = list(pmap(lambda _: listed(), range(50), kind="process", workers=2))
    assert set().union(*during) <= before
    assert listed() <= before


@pytest.mark.parametrize(
    ("f", "item", "number", "largest"),
    [(len, 3 << 20, 20, 2), (bytes, 3 << 20, 20, 2), (len, 0, 9999, 9999)],
    ids=["there", "back", "neither"],
)
def test_large_items_travel_alone(
    f: Callable[[Any], Any], item: int, number: int, largest: int, monkeypatch: pytest.MonkeyPatch
):
    """Cheap ones travel together, else: several of them would be many megabytes."""
    sizes = []
    take = Window.take

    def spy(self: Window, now: float, most: int) -> Span | None:
        span = take(self, now, most)
        sizes.append(len(span.items) if span else 0)
        return span

    monkeypatch.setattr(Window, "take", spy)
    items = [item if f is bytes else bytearray(item) for _ in range(number)]
    assert len(list(pmap(f, items, kind="process", workers=1, maxsize=0))) == number
    assert max(sizes) <= largest
    assert max(sizes) > 99 or number < 99
