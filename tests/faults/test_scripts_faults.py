"""Faults that need a whole interpreter: interrupts, killed parents, exits with streams running, and forks.

Each script runs as a plain file without a main guard, in a session of its own, so that all that it leaves
behind can be found.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.faulty import HANG, KINDS, SLACK, eventually
from tests.scripts import environment_with, write_script

pytestmark = [pytest.mark.timeout(HANG), pytest.mark.slow]

PREAMBLE = """
import asyncio, itertools, os, signal, sys, threading, time, warnings
from fstream import pmap, pflat_map, peach

# Python 3.12 warns of forks beside threads; they are the point.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)

def ten(item):
    return item * 10

async def ten_task(item):
    return item * 10

def sleeps(item):
    if item:
        time.sleep(60)
    return item

async def sleeps_task(item):
    if item:
        await asyncio.sleep(60)
    return item

def spins(item):
    while item:
        pass
    return item

def holds_the_interpreter(item):
    if item:
        sum(itertools.repeat(1, 10**12))
    return item

def functions(kind):
    return (ten_task, sleeps_task) if kind == "task" else (ten, sleeps)
"""

OTHER_KINDS = [kind for kind in KINDS if kind != "sync"]


@dataclass
class Script:
    """A script in an interpreter of its own."""

    process: subprocess.Popen[str]

    def wait_for(self, word: str) -> None:
        """Read what it prints up to a line that is *word*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                return
        raise AssertionError(f"never printed {word!r}: {self.process.communicate()}")

    def family(self) -> list[psutil.Process]:
        """The interpreter and all that it started."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def end(self, seconds: float) -> tuple[int, str, str]:
        """Exit status, output and errors of a script that has to end in time."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err

    def left(self) -> list[int]:
        """The processes of its session that still live."""
        found = []
        for pid in psutil.pids():
            try:
                if (
                    os.getsid(pid) == self.process.pid
                    and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found


Start = Callable[..., Script]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a script; whatever it leaves is killed after the test."""
    scripts: list[Script] = []

    def start_script(text: str, *args: str) -> Script:
        path = write_script(tmp_path, PREAMBLE + textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(path), *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment_with(PYTHONUNBUFFERED="1"),
        )
        scripts.append(Script(process))
        return scripts[-1]

    yield start_script
    for script in scripts:
        for pid in script.left():
            os.kill(pid, signal.SIGKILL)
        script.process.kill()
        script.process.communicate()


def assert_gone(script: Script, seconds: float = 2 * SLACK) -> None:
    assert eventually(lambda: not script.left(), seconds), [
        psutil.Process(p).cmdline() for p in script.left()
    ]


# Ctrl-C

BUSY = """
    kind, busy = sys.argv[1:]
    quick, slow = functions(kind)
    source = itertools.count()
    stream = pmap(slow if busy == "busy" else quick, kind=kind, workers=2, name="the-stage")(source)
    if busy == "waiting":  # for a source that gives no more
        def source():
            yield 0
            time.sleep(60)
        stream = pmap(quick, kind=kind, workers=2)(source())
    print(next(stream))
    print("ready")
    for output in stream:
        pass
"""

CHAIN = """
    stream = pmap(ten, kind="thread")(itertools.count())
    stream = stream | pmap(ten, kind="process", workers=2) | pmap(ten_task, kind="task")
    print(next(stream))
    print("ready")
    for output in stream:
        time.sleep(0.001)
"""


def interrupt(script: Script, whole_group: bool) -> None:
    """Press Ctrl-C: a terminal sends it to the whole group; `kill -INT` to the main process only."""
    script.wait_for("ready")
    time.sleep(0.05)  # well into its waiting
    (os.killpg if whole_group else os.kill)(script.process.pid, signal.SIGINT)


def assert_interrupted(script: Script) -> None:
    """Out in about a second, with one traceback, and no child left."""
    began = time.monotonic()
    status, _, err = script.end(HANG / 2)
    assert time.monotonic() - began < SLACK, "stated: in about a second"
    assert status == -signal.SIGINT
    assert err.count("Traceback") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt"), err
    assert "Exception ignored" not in err
    assert_gone(script)


@pytest.mark.parametrize("whole_group", [False, True], ids=["main", "group"])
@pytest.mark.parametrize("busy", ["quick", "busy", "waiting"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_ctrl_c(start: Start, kind: str, busy: str, whole_group: bool) -> None:
    script = start(BUSY, kind, busy)
    interrupt(script, whole_group)
    assert_interrupted(script)


@pytest.mark.parametrize("whole_group", [False, True], ids=["main", "group"])
def test_ctrl_c_in_a_row_of_kinds(start: Start, whole_group: bool) -> None:
    script = start(CHAIN)
    interrupt(script, whole_group)
    assert_interrupted(script)


def test_ctrl_c_while_workers_start(start: Start) -> None:
    script = start(
        """
        def starts_slowly():
            os.write(1, b"ready\\n")
            time.sleep(60)
        list(pmap(ten, kind="process", workers=2, on_start=starts_slowly)(range(10)))
        """
    )
    interrupt(script, whole_group=True)
    assert_interrupted(script)


def test_a_caught_interrupt_leaves_a_working_library(start: Start) -> None:
    script = start(
        """
        stream = pmap(sleeps, kind="process", workers=2)(range(10))
        try:
            print(next(stream))
            print("ready")
            list(stream)
        except KeyboardInterrupt:
            print(list(pmap(ten, kind="process", workers=2)(range(5))))
        """
    )
    interrupt(script, whole_group=True)
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "[0, 10, 20, 30, 40]", "")
    assert_gone(script)


# A killed parent


@pytest.mark.parametrize("f", ["ten", "sleeps", "spins", "holds_the_interpreter"])
def test_no_worker_outlives_a_killed_parent(start: Start, f: str) -> None:
    script = start(
        """
        f = globals()[sys.argv[1]]
        stream = pmap(f, kind="process", workers=2)(itertools.count())
        print(next(stream))
        print("ready")
        for output in stream:
            pass
        """,
        f,
    )
    script.wait_for("ready")
    time.sleep(0.1)
    assert len(script.left()) >= 3
    script.process.kill()
    assert_gone(script)


def test_no_warm_worker_outlives_a_killed_parent(start: Start) -> None:
    script = start(
        """
        list(pmap(ten, kind="process", workers=2)(range(10)))
        print("ready")
        time.sleep(60)
        """
    )
    script.wait_for("ready")
    script.process.kill()
    assert_gone(script)


def test_no_nested_worker_outlives_a_killed_parent(start: Start) -> None:
    script = start(
        """
        def report(item):
            if item:
                os.write(1, b"ready\\n")
            return sleeps(item)
        def nested(item):
            return list(pmap(report, kind="process", workers=2)([0, 1]))
        list(pmap(nested, kind="process", workers=1)(range(3)))
        """
    )
    script.wait_for("ready")
    script.process.kill()
    assert_gone(script)


# Exit


@pytest.mark.parametrize("busy", ["quick", "busy", "waiting"])
@pytest.mark.parametrize("kind", KINDS)
def test_exit_with_a_running_stream(start: Start, kind: str, busy: str) -> None:
    script = start(BUSY.replace("for output in stream:", "if 0:"), kind, busy)
    script.wait_for("ready")
    status, _, err = script.end(HANG / 2)
    assert (status, err) == (0, "")
    assert_gone(script)


@pytest.mark.parametrize(
    ("last", "expected"),
    [("sys.exit(3)", 3), ("os._exit(3)", 3), ("raise SystemExit", 0), ("os.abort()", -signal.SIGABRT)],
)
def test_each_way_to_exit_with_running_streams(start: Start, last: str, expected: int) -> None:
    script = start(
        f"""
        streams = [pmap(functions(k)[0], kind=k, workers=2)(itertools.count()) for k in ("thread", "process", "task")]
        print([next(stream) for stream in streams])
        {last}
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip()) == (expected, "[0, 0, 0]")
    assert "fstream" not in err
    assert_gone(script)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_at_module_level(start: Start, kind: str) -> None:
    script = start(
        """
        quick, slow = functions(sys.argv[1])
        stream = pmap(quick, kind=sys.argv[1], workers=2)(itertools.count())
        for output in stream:
            raise LookupError("of the user")
        """,
        kind,
    )
    status, _, err = script.end(HANG / 2)
    assert status == 1
    assert err.count("Traceback") == 1, err
    assert err.rstrip().endswith("LookupError: of the user")
    assert "fstream" not in err
    assert_gone(script)


def test_exit_from_another_thread_while_streams_run(start: Start) -> None:
    script = start(
        """
        def consume(kind, begun):
            for output in pmap(functions(kind)[0], kind=kind, workers=2)(itertools.count()):
                begun.set()
        for kind in ("thread", "process", "task"):
            begun = threading.Event()
            threading.Thread(target=consume, args=(kind, begun), daemon=True).start()
            begun.wait()  # from 3.12 on, a stream that starts while the interpreter exits is an error
        """
    )
    status, _, err = script.end(HANG / 2)
    assert (status, err) == (0, "")
    assert_gone(script)


def test_streams_of_atexit_functions_work(start: Start) -> None:
    script = start(
        """
        import atexit
        @atexit.register
        def late():
            print(list(pmap(ten, kind="sync")(range(3))))
        list(pmap(ten, kind="process", workers=2)(range(3)))
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "[0, 10, 20]", "")
    assert_gone(script)


# Workers print nothing of their own


def test_a_dead_worker_says_nothing_of_ours(start: Start) -> None:
    script = start(
        """
        def dies(item):
            if item == 3:
                os._exit(7)
            return item
        print(len(list(pmap(dies, kind="process", workers=2, on_error="skip")(range(20)))))
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "19", "")
    assert_gone(script)


# Forks


@pytest.mark.parametrize("ending", ["os._exit(0)", "sys.exit(0)"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_while_a_pipeline_runs(start: Start, kind: str, ending: str) -> None:
    """A child of the user's that ends, at once or with all exit handlers, does not disturb the parent."""
    script = start(
        f"""
        stream = pmap(functions(sys.argv[1])[0], kind=sys.argv[1], workers=2)(range(3000))
        got = [next(stream) for _ in range(10)]
        child = os.fork()
        if not child:
            {ending}
        _, status = os.waitpid(child, 0)
        got += stream
        print(status, got == [item * 10 for item in range(3000)])
        """,
        kind,
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "0 True", "")
    assert_gone(script)


@pytest.mark.parametrize("observed", ["", "observed"])
def test_a_fork_may_drop_the_parents_stream_when_its_modules_are_cleared(start: Start, observed: str) -> None:
    """A free-threaded interpreter collects such a stream that late; here the script clears the module by itself."""
    script = start(
        """
        import atexit, contextlib
        from fstream import Observer, observe
        from fstream._engine import run

        def drop_late(streams):
            run.close_all()
            vars(run).update({name: None for name in vars(run) if not name.startswith("__")})
            streams.clear()

        with observe(Observer()) if sys.argv[1] else contextlib.nullcontext():
            streams = [pmap(ten, kind="thread", workers=2)(range(3000))]
            got = [next(streams[0]) for _ in range(10)]
        child = os.fork()
        if not child:
            atexit.unregister(run.close_all)  # here: Python 3.15 calls all that were there when it began to call them
            atexit.register(drop_late, streams)
            sys.exit(0)
        _, status = os.waitpid(child, 0)
        got += streams[0]
        print(status, got == [item * 10 for item in range(3000)])
        """,
        observed,
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "0 True", "")
    assert_gone(script)


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_of_a_fork_run_pipelines(start: Start, kind: str) -> None:
    """Warm workers belong to the process that started them."""
    script = start(
        """
        kind = sys.argv[1]
        stage = pmap(functions(kind)[0], kind=kind, workers=2)
        expected = [item * 10 for item in range(2000)]
        assert list(stage(range(2000))) == expected
        child = os.fork()
        right = all(list(stage(range(2000))) == expected for _ in range(5))
        if not child:
            sys.exit(0 if right else 5)
        _, status = os.waitpid(child, 0)
        print(status, right)
        """,
        kind,
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "0 True", "")
    assert_gone(script)


def test_a_fork_that_drops_the_parents_stream(start: Start) -> None:
    """The child closes and collects what it inherited; the workers are not its own."""
    script = start(
        """
        import gc, signal, threading
        stream = pmap(ten, kind="process", workers=2)(range(3000))
        got = [next(stream) for _ in range(10)]
        held, forked = threading.Event(), threading.Event()

        def hold():  # as a thread of the run may, at any time
            with stream._outputs.run.lock:
                held.set()
                forked.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        child = os.fork()
        if not child:
            signal.alarm(10)
            stream.close()
            del stream
            gc.collect()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        forked.set()
        holder.join()
        got += stream
        print(status, got == [item * 10 for item in range(3000)])
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "0 True", "")
    assert_gone(script)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_start_with_threads_alive_whatever_the_start_method_is(start: Start, method: str) -> None:
    """Threads hold locks when the workers start; a fork that copied a held lock would hang."""
    script = start(
        """
        import logging, multiprocessing

        log = logging.getLogger("busy")
        log.addHandler(logging.NullHandler())

        def logs():
            while not stop.is_set():
                log.warning("a lock is taken")

        def f(item):
            log.info("in a worker")
            return item * 10

        if __name__ == "__main__":
            multiprocessing.set_start_method(sys.argv[1])
            stop = threading.Event()
            # Without the GIL each takes a CPU for itself.
            count = 3 if getattr(sys, "_is_gil_enabled", lambda: True)() else 1
            threads = [threading.Thread(target=logs) for _ in range(count)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                stream = pmap(f, kind="process", workers=3)(range(200))
                assert list(stream) == [item * 10 for item in range(200)]
            stop.set()
            print("done")
        """,
        method,
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "done", "")
    assert_gone(script)


def test_fork_beside_running_stages_of_other_kinds(start: Start) -> None:
    script = start(
        """
        import multiprocessing
        multiprocessing.set_start_method("fork")
        stream = pmap(ten, kind="thread")(range(500)) | pmap(ten_task, kind="task")
        first = next(stream)
        inner = list(pmap(ten, kind="process", workers=2)(range(500)))
        print([first, *stream] == [item * 100 for item in range(500)], inner == list(map(ten, range(500))))
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "True True", "")
    assert_gone(script)


def test_a_pipeline_in_a_forked_multiprocessing_child(start: Start) -> None:
    script = start(
        """
        import multiprocessing
        list(pmap(ten, kind="process", workers=2)(range(10)))  # warm workers, which the child must not use
        def child():
            for kind in ("thread", "process"):
                assert list(pmap(ten, kind=kind, workers=2)(range(100))) == list(map(ten, range(100)))
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(20)
        print(process.exitcode)
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "0", "")
    assert_gone(script)


def test_threads_alive_when_workers_start(start: Start) -> None:
    script = start(
        """
        stop = threading.Event()
        for _ in range(20):
            threading.Thread(target=stop.wait).start()
        print(sum(pmap(ten, kind="process", workers=2)(range(100))))
        stop.set()
        """
    )
    status, out, err = script.end(HANG / 2)
    assert (status, out.strip(), err) == (0, "49500", "")
    assert_gone(script)
