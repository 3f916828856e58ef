"""How worker processes end: with what f has started, at whose signal, and never in a stranger's place."""

from __future__ import annotations

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fstream import WorkerDied, pmap
from fstream._workers.process.link import Link
from fstream._workers.process.warm import WARM
from tests.faults.faulty import eventually
from tests.gates import Gate, Log
from tests.scripts import Script, environment_with, printed, write_script

pytestmark = pytest.mark.slow

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def new_workers() -> Iterator[None]:
    """Workers that start in the test, and end with it."""
    WARM.clear()
    yield
    WARM.clear()


# Programs that f starts


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """The programs that `noted` has started."""

    def pids() -> list[int]:
        return [int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal()]

    yield pids
    for pid in filter(lives, pids()):
        os.kill(pid, signal.SIGKILL)


def noted(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    program = subprocess.Popen(command)
    (folder / str(program.pid)).touch()
    return program


# A shell that starts another one: only a group holds both.
NESTED = ["sh", "-c", f"'{SLEEP[0]}' -c '{SLEEP[2]}' & touch $!; wait"]


@pytest.mark.parametrize("command", [SLEEP, NESTED], ids=["program", "shell"])
def test_what_f_has_started_ends_with_a_worker_that_is_over_its_time(
    tmp_path: Path, programs: Callable[[], list[int]], command: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)

    def convert(_: object) -> None:
        noted(tmp_path, command).wait()

    with pytest.raises(TimeoutError):
        list(pmap(convert, [1], kind="process", workers=1, timeout=1.0))
    assert len(programs()) == (1 if command is SLEEP else 2)
    assert eventually(lambda: not any(map(lives, programs())))


def test_what_f_has_started_ends_with_a_stage_that_is_left(tmp_path: Path, programs: Callable[[], list[int]]):
    def convert(number: int) -> int:
        if number:
            noted(tmp_path, SLEEP).wait()
        return number

    with pmap(convert, [0, 1], kind="process", workers=1) as outputs:
        next(outputs)
        assert eventually(programs)
    assert eventually(lambda: not any(map(lives, programs())))


def test_what_f_has_started_ends_with_a_worker_that_dies(tmp_path: Path, programs: Callable[[], list[int]]):
    def convert(_: object) -> None:
        noted(tmp_path, SLEEP)
        os._exit(7)

    with pytest.raises(WorkerDied) as caught:
        list(pmap(convert, [1], kind="process", workers=1))
    assert caught.value.exitcode == 7
    assert eventually(lambda: not any(map(lives, programs())))


def test_what_f_has_started_outlives_a_worker_that_ends_well(
    tmp_path: Path, programs: Callable[[], list[int]]
):
    def serve(_: object) -> int:
        noted(tmp_path, SLEEP)
        return os.getpid()

    [worker] = pmap(serve, [1], kind="process", workers=1, max_items_per_worker=1)
    assert not lives(worker)
    assert list(map(lives, programs())) == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_what_f_has_started_ends_with_a_killed_parent(
    script: Script, tmp_path: Path, programs: Callable[[], list[int]]
):
    source = """
        import os, signal, subprocess, sys, time
        from fstream import pmap

        def convert(number):
            if number:
                program = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                open(f"{sys.argv[1]}/{program.pid}", "w").close()
                program.wait()

        stream = pmap(convert, [0, 1], kind="process", workers=1)
        next(stream)
        while not any(name.isdecimal() for name in os.listdir(sys.argv[1])):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    script(source, str(tmp_path))
    assert len(programs()) == 1
    assert eventually(lambda: not any(map(lives, programs())))


def test_programs_and_forks_of_f_can_be_terminated(new_workers: None):
    def program(number: int) -> int:
        started = subprocess.Popen(SLEEP)
        started.send_signal(number)
        return started.wait()

    def fork(number: int) -> int:
        if not (pid := os.fork()):
            while True:
                signal.pause()
        os.kill(pid, number)  # it may come before the fork does anything
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    signals = [signal.SIGTERM, signal.SIGHUP] * 20
    statuses = [-number for number in signals]
    assert list(pmap(program, signals[:4], kind="process", workers=1, timeout=20.0)) == statuses[:4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks beside threads
        assert list(pmap(fork, signals, kind="process", workers=1, timeout=20.0)) == statuses


TERMINAL = """
    import subprocess, sys
    from fstream import pmap

    READ = "import os; os.read(os.open('/dev/tty', os.O_RDWR), 1)"
    WRITE = "import os, termios; fd = os.open('/dev/tty', os.O_RDWR); " + (
        "termios.tcsetattr(fd, termios.TCSANOW, termios.tcgetattr(fd)); os.write(fd, b'written ')"
    )

    def run(program):
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    read, written = pmap(run, [READ, WRITE], kind="process", workers=1, timeout=20.0)
    print(read.returncode, read.stderr.strip().split()[-1], written.returncode, written.stderr)
    print("done")
"""


@pytest.mark.forks
def test_a_program_of_f_that_uses_the_terminal_is_not_stopped_for_ever(tmp_path: Path):
    path = write_script(tmp_path, TERMINAL)
    pid, terminal = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, str(path)], environment_with())
    shown = b""
    try:
        while True:
            shown += os.read(terminal, 4096)
    except OSError:  # all others have closed it
        pass
    finally:
        os.close(terminal)
    os.waitpid(pid, 0)
    assert shown.split() == b"written 1 error 0 done".split()


# Parents that give up


UNTOLD = """
    import socket
    from multiprocessing.connection import Connection
    from fstream._workers.process import child
    from fstream._workers.process.start import process_of

    if __name__ == "__main__":
        ours, theirs = socket.socketpair()
        ours.close()
        process = process_of("fresh", child.main, (Connection(theirs.detach()),))
        process.start()
        process.join()
        print(process.status)
"""


def test_a_worker_whose_parent_ends_before_it_says_anything_ends_without_a_word(script: Script):
    assert printed(script(UNTOLD)) == "0"


# Signals for all processes of the program

TO_ALL = """
    import os, signal, sys, threading, time
    import psutil
    from fstream import pmap

    number = signal.Signals[sys.argv[1]]
    got = threading.Event()
    signal.signal(number, lambda *_: got.set())  # finish what is begun, take no more

    def work(item):
        return item

    def source():
        yield from range(100)
        to_all()
        while not got.is_set():
            pass
        yield from range(100, 200)

    def to_all():
        for process in [*psutil.Process().children(recursive=True), psutil.Process()]:
            process.send_signal(number)
        os.killpg(os.getpgrp(), number)

    os.setpgrp()
    print(list(pmap(work, source(), kind="process", workers=2)) == list(range(200)))
    print(list(pmap(work, range(200), kind="process", workers=2)) == list(range(200)))  # by warm workers
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_all_processes_is_the_parent_s_business(script: Script, name: str):
    assert printed(script(TO_ALL, name)) == "True\nTrue"


def test_a_signal_that_comes_while_workers_start_is_the_parent_s_business(script: Script):
    source = """
        import os, signal, threading
        from fstream import pmap
        from fstream._workers.process.fresh import FreshProcess

        def start(process):
            started(process)
            os.kill(process.pid, signal.SIGTERM)

        started, FreshProcess.start = FreshProcess.start, start
        print(sum(pmap(abs, range(100), kind="process", workers=2)))
    """
    assert printed(script(source)) == "4950"


def test_a_parent_that_is_terminated_dies_of_that(script: Script):
    source = """
        import os, signal
        from fstream import pmap

        def source():
            yield 1
            os.killpg(os.getpgrp(), signal.SIGTERM)
            while True:
                yield 2

        os.setpgrp()
        for _ in pmap(abs, source(), kind="process", workers=2):
            pass
    """
    result = script(source)  # its output ends when nobody holds it any more
    assert (result.returncode, result.stderr) == (-signal.SIGTERM, "")


def test_what_the_parent_ignores_programs_of_f_ignore(script: Script):
    source = """
        import signal, subprocess, sys
        from fstream import pmap

        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does

        def ignored(_):
            code = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
            return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

        print(*pmap(ignored, [1], kind="process", workers=1))
    """
    assert printed(script(source)) == "True"


# Numbers of processes


@pytest.fixture(params=["pidfd", "number"])
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, new_workers: None) -> str:
    """How a worker is named: by a file, where there is such a thing, or by its number."""
    if request.param == "number":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    return str(request.param)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is sent by number, and to whom, instead of being sent."""
    sent: list[tuple[int, int]] = []
    for name in ("kill", "killpg"):
        monkeypatch.setattr(os, name, lambda pid, number: sent.append((pid, number)))
    return sent


def reaped(link: Link) -> None:
    """Let a worker end, and have others get its exit status."""
    link.sock.close()
    pid = link.process.pid
    assert pid is not None
    os.waitpid(pid, 0)


@pytest.mark.usefixtures("named")
def test_nobody_is_killed_in_the_place_of_a_worker_that_others_have_waited_for(
    killed: list[tuple[int, int]],
):
    link = Link()
    reaped(link)
    assert link.kill() is None
    assert not link.process.is_alive()
    assert not killed
    assert link.kill() is None
    assert not killed


def test_nobody_is_killed_in_the_place_of_a_worker_whose_number_another_child_has(
    named: str, killed: list[tuple[int, int]]
):
    link = Link()
    reaped(link)
    with subprocess.Popen(SLEEP) as stranger:
        link.process._popen.pid = stranger.pid
        link.process.kill()
        assert not killed
        assert stranger.poll() is None
        subprocess.run(["kill", "-9", str(stranger.pid)], check=True)
    if named == "pidfd":
        assert link.process.status is None


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_exit_status_is_told(number: signal.Signals):
    def die(item: int) -> int:
        if item == 2:
            os.kill(os.getpid(), number)
        if item == 5:
            os._exit(7)
        return item

    for item, status in ((2, -number), (5, 7)):
        with pytest.raises(WorkerDied) as caught:
            list(pmap(die, [item], kind="process", workers=1))
        assert caught.value.exitcode == status
    with pytest.raises(TimeoutError):
        list(pmap(time.sleep, [60], kind="process", workers=1, timeout=0.2))


UNKNOWN = """
    import os, signal, sys, threading
    from fstream import WorkerDied, pmap

    if sys.argv[2] == "number":
        del os.pidfd_open

    if sys.argv[1] == "ignored":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    else:  # by the kernel's own means: whoever ends is waited for at once
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, reap)

    def f(item):
        if item == 3:
            os._exit(7)
        return item

    try:
        print(list(pmap(f, [1, 2, 3], kind="process", workers=1)))
    except WorkerDied as error:
        assert error.item == 3
        assert (error.exitcode, "exit status unknown" in str(error)) in [(None, True), (7, False)], error
        assert sys.argv[1] != "ignored" or error.exitcode is None
    import time
    try:
        list(pmap(time.sleep, [60], kind="process", workers=1, timeout=0.2))
    except TimeoutError:
        pass
    print(list(pmap(f, [1, 2], kind="process", workers=1)))
    print(len(list(pmap(f, range(4, 90), kind="process", max_items_per_worker=20))))
"""


@pytest.mark.parametrize("way", ["pidfd", "number"])
@pytest.mark.parametrize("who", ["ignored", "reaped"])
def test_where_others_get_the_exit_status_it_is_unknown(script: Script, who: str, way: str):
    if way == "pidfd" and not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd here")
    assert printed(script(UNKNOWN, who, way)) == "[1, 2]\n86"


def test_many_may_ask_whether_a_worker_lives(new_workers: None):
    """Each of them could get the exit status: all know it then."""

    def ask(link: Link, asking: threading.Barrier, statuses: list[int | None]) -> None:
        asking.wait()
        while link.process.is_alive():
            pass
        statuses.append(link.process.status)

    for _ in range(5):
        link, asking, statuses = Link(), threading.Barrier(4), list[int | None]()
        threads = [threading.Thread(target=ask, args=(link, asking, statuses)) for _ in range(3)]
        for thread in threads:
            thread.start()
        asking.wait()
        assert link.kill() == -signal.SIGKILL
        for thread in threads:
            thread.join()
        assert statuses == [-signal.SIGKILL] * 3


def test_a_worker_is_terminated_as_multiprocessing_does_it(gate: Gate, log: Log, new_workers: None):
    def wait(_: Any) -> None:
        log.write("begun")
        gate.wait()

    def consume() -> None:
        with pytest.raises(WorkerDied):
            list(stream)

    with pmap(wait, [1], kind="process", workers=1) as stream:
        thread = threading.Thread(target=consume)
        thread.start()
        log.wait_for("begun")
        for each in multiprocessing.active_children():
            each.terminate()
            each.join()
            assert not each.is_alive()
        gate.open()
        thread.join()
