"""What workers print, log and warn comes out in the parent, through what it has there now."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fstream import Processes, WorkerDied, pmap, shutdown
from fstream._workers.process.child import CELL_SIZE
from fstream._workers.process.relay import AREA, COUNT, NUMBER, OUT, Relay, Relayed
from fstream._workers.process.wire import _READ, Wire
from tests.faults.faulty import HANG, eventually
from tests.gates import PATIENCE, Gate
from tests.scripts import LIFETIME, Script, environment_with, printed, write_script

pytestmark = pytest.mark.slow


class Heard(io.StringIO):
    """A stream that tells what has been written to it, to whoever waits."""

    def await_lines(self, count: int) -> list[str]:
        assert eventually(lambda: self.getvalue().count("\n") >= count, PATIENCE), self.getvalue()
        return self.getvalue().splitlines()


def redirected() -> redirect_stdout[Heard]:
    return redirect_stdout(Heard())


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def records() -> Iterator[Records]:
    handler, level = Records(), logging.root.level
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)
    logging.root.setLevel(level)


def run_in_worker(f: Callable[[Any], Any], *items: Any, **options: Any) -> list[Any]:
    return list(pmap(f, items or (0,), kind="process", workers=1, **options))


# ---------------------------------------------------------------------------------------------------- where it goes


def say(x: object) -> object:
    print("out", x)
    print("err", x, file=sys.stderr)
    return x


def test_prints_come_out_through_the_streams_of_the_parent(capsys: pytest.CaptureFixture[str]):
    run_in_worker(say, 1, 2)
    assert capsys.readouterr() == ("out 1\nout 2\n", "err 1\nerr 2\n")


def test_a_warm_worker_prints_to_the_streams_of_now():
    for _ in range(2):
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            run_in_worker(say, 1)
        assert (out.getvalue(), err.getvalue()) == ("out 1\n", "err 1\n")


def test_prints_come_out_where_the_file_of_the_standard_output_is_captured(capfd: pytest.CaptureFixture[str]):
    run_in_worker(say, 1)
    assert capfd.readouterr() == ("out 1\n", "err 1\n")


def test_without_relay_prints_go_to_the_files_that_workers_have(capfd: pytest.CaptureFixture[str]):
    with Processes(1, relay=False) as pool, redirect_stdout(io.StringIO()) as out:
        assert list(pmap(say, [1], kind=pool)) == [1]
    assert out.getvalue() == ""
    assert capfd.readouterr().out == "out 1\n"


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_it_does_not_depend_on_how_workers_start(start: str, script: Script):
    source = """
        import io, logging, sys
        from contextlib import redirect_stdout
        from fstream import Processes, pmap

        def f(x):
            print("printed", x)
            logging.warning("logged %s", x)

        if __name__ == "__main__":
            logging.basicConfig(format="%(stage)s %(message)s", stream=sys.stdout)
            with Processes(1, start=sys.argv[1]) as pool, redirect_stdout(io.StringIO()) as out:
                list(pmap(f, [1], kind=pool))
            print(out.getvalue(), end="")
    """
    assert printed(script(source, start)) == "f logged 1\nprinted 1"


def test_a_forked_worker_has_no_handlers_of_its_parent(script: Script):
    source = """
        import logging, sys
        from fstream import Processes, pmap

        logging.basicConfig(format="%(processName)s %(message)s", stream=sys.stdout)
        named = logging.getLogger("named")
        named.addHandler(logging.StreamHandler(sys.stdout))
        named.propagate = False

        def f(x):
            logging.warning("to the root")
            named.warning("to another")

        with Processes(1, start="fork") as pool:
            list(pmap(f, [1], kind=pool))
    """
    assert printed(script(source, PYTHONWARNINGS="ignore")).splitlines() == [
        "fstream-worker-1 to the root",
        "to another",
    ]


class Closed(io.StringIO):
    def write(self, text: str) -> NoReturn:
        raise OSError("no room")


@pytest.mark.parametrize("closed", [None, Closed()])
def test_a_pipeline_goes_on_where_nothing_can_be_written(closed: Closed | None):
    with redirect_stdout(closed), redirect_stderr(io.StringIO()) as err:
        assert run_in_worker(say, 1, 2) == [1, 2]
    assert err.getvalue() == "err 1\nerr 2\n"


def test_a_closed_standard_output_is_no_error():
    out = io.StringIO()
    out.close()
    with redirect_stdout(out):
        assert run_in_worker(say, 1) == [1]


# ------------------------------------------------------------------------------------------------------ what and when


def test_all_that_a_worker_says_comes_out_in_order():
    said: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            said.extend(text.split())
            return len(text)

    class ToSaid(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    def f(x: int) -> int:
        print(f"out-{x}")
        logging.warning("log-%s", x)
        print(f"err-{x}", file=sys.stderr)
        warnings.warn(f"warning-{x}", stacklevel=1)
        print(f"last-{x}")
        return x

    handler = ToSaid()
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings(), redirect_stdout(Stream()), redirect_stderr(Stream()):
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: said.append(str(message))
            for x in pmap(f, range(10), kind="process", workers=1):
                said.append(f"output-{x}")
                # The worker is ahead of the consumer, but no output is ahead of what was said before.
                assert said.index(f"last-{x}") < said.index(f"output-{x}")
    finally:
        logging.root.removeHandler(handler)
    words = [word for word in said if not word.startswith("output")]
    assert words == [f"{what}-{x}" for x in range(10) for what in ("out", "log", "err", "warning", "last")]


@pytest.mark.parametrize("lines", [1, 5])
@pytest.mark.parametrize("flush", [True, False])
def test_what_is_printed_comes_out_while_the_item_is_at_work(gate: Gate, lines: int, flush: bool):
    with redirected() as heard:

        def f(_: int) -> None:
            for n in range(lines):
                print("line", n, flush=flush)
            gate.wait()

        stream = pmap(f, [0], kind="process", workers=1)
        consumer = threading.Thread(target=list, args=(stream,))
        consumer.start()
        try:
            assert heard.await_lines(lines) == [f"line {n}" for n in range(lines)]
        finally:
            gate.open()
            consumer.join()


def test_part_of_a_line_comes_out_when_it_is_flushed(gate: Gate):
    with redirected() as heard:

        def f(_: int) -> None:
            print("so far", end="", flush=True)
            gate.wait()

        consumer = threading.Thread(target=run_in_worker, args=(f,))
        consumer.start()
        try:
            assert eventually(lambda: heard.getvalue() == "so far", PATIENCE)
        finally:
            gate.open()
            consumer.join()


def test_part_of_a_line_comes_out_before_the_output():
    with redirected() as heard:
        for x in pmap(lambda x: print(x, end=" ") or x, range(20), kind="process", workers=1, maxsize=1):
            assert heard.getvalue().split()[x] == str(x)


def test_a_slow_item_that_prints_keeps_no_other_waiting(tmp_path: Path):
    over = tmp_path / "over"

    def f(x: int) -> int:
        while x == 0 and not over.exists():
            print("still at it", flush=True)
            time.sleep(0.001)
        return x

    with redirect_stdout(io.StringIO()):
        stream = pmap(f, range(200), kind="process", workers=2, ordered=False)
        assert sorted(next(stream) for _ in range(199)) == list(range(1, 200))
        over.touch()
        assert list(stream) == [0]


def test_what_resources_print_comes_out(capsys: pytest.CaptureFixture[str]):
    run_in_worker(
        lambda x, resource: print(x, resource),
        1,
        on_start=lambda: print("start") or "resource",
        on_done=lambda status, resource: print("done", resource),
    )
    assert capsys.readouterr().out == "start\n1 resource\ndone resource\n"


def test_a_start_that_fails_has_printed_why(capsys: pytest.CaptureFixture[str]):
    def start() -> NoReturn:
        print("no key", end="")
        raise ValueError

    with pytest.raises(ValueError):
        run_in_worker(abs, 1, on_start=start)
    assert capsys.readouterr().out == "no key"


def test_what_a_worker_of_a_worker_says_comes_out(records: Records):
    with redirected() as heard:

        def outer(x: int) -> list[int]:
            def inner(y: int) -> int:
                print("inner", y)
                logging.warning("inner %s", y)
                return y

            try:
                return list(pmap(inner, [x], kind="process", workers=1))
            finally:
                shutdown()

        assert run_in_worker(outer, 1) == [[1]]
        assert heard.getvalue() == "inner 1\n"
        assert [(record.getMessage(), record.stage) for record in records.records] == [("inner 1", "inner")]  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------- deaths and floods


def test_what_was_printed_before_a_death_is_complete():
    with redirected() as heard:

        def f(x: int) -> None:
            for n in range(x):
                print("line", n)
            os.kill(os.getpid(), signal.SIGKILL)

        for count in (1, 2, 50, 1000):
            with pytest.raises(WorkerDied):
                run_in_worker(f, count)
            assert heard.getvalue().splitlines() == [f"line {n}" for n in range(count)]
            heard.seek(0)
            heard.truncate()


def test_what_was_logged_before_a_death_is_complete(records: Records):
    def f(_: int) -> None:
        for n in range(100):
            logging.warning("line %s", n)
        os._exit(1)

    with pytest.raises(WorkerDied):
        run_in_worker(f)
    assert records.messages == [f"line {n}" for n in range(100)]


def test_what_an_item_has_said_before_its_time_is_over_comes_out(tmp_path: Path):
    began, said = tmp_path / "began", tmp_path / "said"

    class Stream(Heard):
        """Keeps the pump from hearing the rest until the time is over."""

        def write(self, text: str) -> int:
            if not began.exists():
                began.touch()
                assert eventually(said.exists, PATIENCE)
                time.sleep(0.6)
            return super().write(text)

    def f(_: int) -> None:
        print("first")
        while not began.exists():
            time.sleep(0.001)
        for n in range(1000):
            print("line", n)
        said.touch()
        time.sleep(HANG)

    with redirect_stdout(Stream()) as heard, pytest.raises(TimeoutError):
        run_in_worker(f, timeout=0.5)
    assert heard.getvalue().splitlines() == ["first", *(f"line {n}" for n in range(1000))]


def test_what_others_have_printed_when_an_error_ends_the_stream_comes_out(tmp_path: Path):
    with redirected() as heard:
        ready = tmp_path / "ready"

        def f(x: int) -> None:
            if x == 0:
                for n in range(100):
                    print("line", n)
                ready.touch()
                time.sleep(HANG)
            while not ready.exists():
                time.sleep(0.001)
            raise ValueError

        with pytest.raises(ValueError):
            list(pmap(f, [0, 1], kind="process", workers=2, ordered=False))
        assert heard.getvalue().splitlines() == [f"line {n}" for n in range(100)]


def test_a_flood_waits_for_the_parent_to_write_it(tmp_path: Path):
    count = tmp_path / "count"
    line = "x" * 99
    total = 100_000
    written, may_write = [0], threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            assert may_write.wait(PATIENCE)
            written[0] += len(text)
            assert len(text) < _READ
            return len(text)

    def flood(_: int) -> None:
        with count.open("wb", buffering=0) as progress:
            for n in range(total):
                print(line)
                if n % 1000 == 0:
                    progress.write(b".")

    def printed_so_far() -> int:
        return count.stat().st_size * 1000 * 100 if count.exists() else 0

    def stands_still() -> bool:
        before = printed_so_far()
        time.sleep(0.5)
        return 0 < before == printed_so_far()

    with redirect_stdout(Slow()):
        consumer = threading.Thread(target=run_in_worker, args=(flood,))
        consumer.start()
        try:
            assert eventually(stands_still, PATIENCE)
            # What the kernel keeps of a socket, what the parent reads at once, and a page.
            assert printed_so_far() < 3_000_000 < total * 100
        finally:
            may_write.set()
            consumer.join()
    assert written[0] == total * 100


def test_a_large_text_comes_in_small_messages():
    sizes = []

    class Measure(io.StringIO):
        def write(self, text: str) -> int:
            sizes.append(len(text))
            return len(text)

    with redirect_stdout(Measure()):
        run_in_worker(lambda _: print("x" * 1_000_000))
    assert sum(sizes) == 1_000_001
    assert max(sizes) <= 4096 - AREA


def test_a_worker_that_floods_is_stopped(tmp_path: Path):
    done = tmp_path / "done"

    def flood(_: int) -> NoReturn:
        while True:
            print("x" * 1000)

    with redirect_stdout(Heard()) as heard:
        stream = pmap(
            flood,
            [0, 1],
            kind="process",
            workers=1,
            ordered=False,
            timeout=HANG,
            on_done=lambda _: done.touch(),
        )
        consumer = threading.Thread(target=lambda: list(stream))
        consumer.start()
        heard.await_lines(1000)
        stream.close()
        consumer.join(PATIENCE)
        assert not consumer.is_alive()
    assert done.exists()


# ---------------------------------------------------------------------------------------------------- threads, forks


def test_threads_of_f_tear_nothing():
    with redirected() as heard:

        def f(x: int) -> int:
            def run(name: int) -> None:
                for n in range(500):
                    print(f"{x} {name} {n}\n", end="")

            threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads[1:]:
                thread.join()
            return x  # and one of them goes on

        assert run_in_worker(f, *range(20), on_done=lambda _: time.sleep(0.2)) == list(range(20))
        lines = heard.getvalue().splitlines()
        assert sorted(lines) == sorted(
            f"{x} {name} {n}" for x in range(20) for name in range(4) for n in range(500)
        )
        for x in range(20):
            for name in range(4):
                of_one = [line for line in lines if line.startswith(f"{x} {name} ")]
                assert of_one == [f"{x} {name} {n}" for n in range(500)]


def test_what_a_thread_says_after_the_answer_comes_out_while_the_stage_goes_on(gate: Gate):
    threads: list[threading.Thread] = []  # the worker has one of its own

    def f(x: int) -> int:
        if x == 0:
            threads.append(threading.Thread(target=lambda: (gate.wait(), print("late"))))
            threads[0].start()
        else:
            threads[0].join()
        return x

    with redirected() as heard:
        stream = pmap(f, [0, 1], kind="process", workers=1)
        assert next(stream) == 0
        gate.open()
        assert list(stream) == [1]
        assert heard.getvalue() == "late\n"


def test_what_a_thread_says_while_no_stage_has_the_worker_goes_to_its_files(script: Script, tmp_path: Path):
    source = """
        import io, os, sys, threading, time
        from contextlib import redirect_stdout
        from fstream import Processes, pmap

        def f(path):
            def late():
                while not os.path.exists(path):
                    time.sleep(0.01)
                for n in range(100_000):
                    print("late", n)
                os.rename(path, path + ".done")
            threading.Thread(target=late).start()

        path = sys.argv[1]
        with Processes(1) as pool:
            with redirect_stdout(io.StringIO()) as out:
                list(pmap(f, [path], kind=pool))
            open(path, "w").close()
            while not os.path.exists(path + ".done"):
                time.sleep(0.01)
            with redirect_stdout(io.StringIO()) as out:
                list(pmap(print, ["in a stage again"], kind=pool))
            print(out.getvalue(), end="", flush=True)
    """
    *lines, last = printed(script(source, str(tmp_path / "go"))).splitlines()
    assert last == "in a stage again"
    # What the last stage did not hear any more, the next one does.
    assert sorted(lines) == sorted(f"late {n}" for n in range(100_000))


def test_forks_of_f_print_to_the_files_of_the_worker(script: Script):
    source = """
        import io, logging, multiprocessing, os, sys
        from contextlib import redirect_stdout
        from fstream import pmap

        def child():
            print("from a child")
            logging.warning("logged by a child")

        def f(x):
            if (pid := os.fork()) == 0:
                print("from a fork")
                os._exit(0)
            os.waitpid(pid, 0)
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            process.join()
            print("from f", x)
            return x

        with redirect_stdout(io.StringIO()) as out:
            assert list(pmap(f, range(3), kind="process", workers=1)) == [0, 1, 2]
        sys.stderr.write(out.getvalue())
    """
    result = script(source, PYTHONWARNINGS="ignore")
    assert result.stdout == "from a fork\nfrom a child\n" * 3
    assert sorted(result.stderr.splitlines()) == sorted(
        ["logged by a child"] * 3 + [f"from f {x}" for x in range(3)]
    )


def test_f_may_print_while_its_output_is_pickled():
    with redirected() as heard:

        class Noisy:
            def __init__(self, x: int) -> None:
                self.x = x

            def __reduce__(self) -> Any:
                for n in range(1000):
                    print("pickled", self.x, n, flush=True)
                return int, (self.x,)

        assert run_in_worker(Noisy, *range(3)) == [0, 1, 2]
        assert {f"pickled {x} {n}" for x in range(3) for n in range(1000)} <= set(
            heard.getvalue().splitlines()
        )


class OneEnd:
    """A worker's end of a socket, without the worker."""

    opened = True

    def __init__(self) -> None:
        self.parents, mine = socket.socketpair()
        self.wire = Wire(mine)
        self.sending = threading.RLock()

    def uninterrupted(self, do: Callable[[], None]) -> None:
        do()

    def at_work(self) -> str:
        return "f"

    def sent(self) -> list[tuple[Any, ...]]:
        self.parents.setblocking(False)
        return [message for message, _ in Wire(self.parents).receive()]

    def close(self) -> None:
        self.wire.close()
        self.parents.close()


@pytest.fixture
def end() -> Iterator[OneEnd]:
    end = OneEnd()
    yield end
    end.close()


def test_what_is_printed_while_a_message_is_sent_waits_for_its_end(end: OneEnd):
    relay = Relay(end, memoryview(bytearray(CELL_SIZE)).cast("q"))
    relay.thread = threading.current_thread()  # nobody else sends it
    with end.sending:
        relay.say(OUT, b"by a finalizer\n")
        assert end.sent() == []
    relay.say(OUT, b"afterwards\n")
    with end.sending:
        relay.flush()
    assert b"".join(data for *_, data in end.sent()) == b"by a finalizer\nafterwards\n"


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_where_no_thread_can_be_had_each_line_is_sent_at_once(
    end: OneEnd, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(_: threading.Thread) -> NoReturn:
        raise error

    monkeypatch.setattr(threading.Thread, "start", fail)
    relay = Relay(end, memoryview(bytearray(CELL_SIZE)).cast("q"))
    for _ in range(3):
        relay.say(OUT, b"line\n")
    assert [data for *_, data in end.sent()] == [b"line\n"] * 3


def test_what_a_dead_worker_had_sent_is_not_doubled(end: OneEnd):
    with redirected() as heard:
        cell = bytearray(CELL_SIZE)
        relay, relayed = Relay(end, memoryview(cell).cast("q")), Relayed()
        relay.thread = threading.current_thread()  # nobody else sends it
        relay.say(OUT, b"sent\n")
        before = bytes(cell)
        relay.sent = time.perf_counter() + 60.0
        relay.say(OUT, b"kept\n")
        (message,) = end.sent()
        assert relayed.take(message, [])
        cell_as_it_was_sent = memoryview(bytearray(before)).cast("q")
        cell_as_it_was_sent[COUNT], cell_as_it_was_sent[NUMBER] = 5, 0
        relayed.print_collected(cell_as_it_was_sent.obj)
        assert heard.getvalue() == "sent\n"
        for _ in range(2):
            relayed.print_collected(cell)
        assert heard.getvalue() == "sent\nkept\n"


# ------------------------------------------------------------------------------------------------------- the streams


def test_the_streams_of_a_worker_are_what_code_expects(capfd: pytest.CaptureFixture[str]):
    def f(_: int) -> list[Any]:
        sys.stdout.buffer.write("größe ".encode())
        sys.stdout.writelines(["a", "b"])
        sys.stdout.write("\n")
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        return [
            sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.name,
            sys.stdout.writable(), sys.stdout.readable(), sys.stdout.closed,
        ]  # fmt: skip

    (found,) = run_in_worker(f)
    assert found == [1, 2, False, "utf-8", "<stdout>", True, False, False]
    assert capfd.readouterr().out == "größe ab\n"


def test_bytes_that_are_no_text_come_out_as_they_are(tmp_path: Path):
    source = """
        import sys
        from fstream import pmap

        list(pmap(lambda _: sys.stdout.buffer.write(bytes(range(256)) * 100), [0], kind="process"))
    """
    command = [sys.executable, write_script(tmp_path, source)]
    found = subprocess.check_output(command, env=environment_with(), timeout=LIFETIME)
    assert found == bytes(range(256)) * 100


def test_a_character_may_come_in_two_messages():
    with redirected() as heard:
        text = "ä€𝄞" * 10_000
        run_in_worker(print, text)
        assert heard.getvalue() == f"{text}\n"


def test_text_that_the_parent_cannot_encode_is_no_error():
    raw = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(raw, encoding="ascii")) as out:
        assert run_in_worker(print, "größe") == [None]
        out.flush()
        assert raw.getvalue() == "größe\n".encode()


# ----------------------------------------------------------------------------------------------------------- logging


def test_records_come_to_the_loggers_of_the_parent(records: Records):
    def fetch(x: int) -> None:
        logging.getLogger("some.where").warning("item %s of %s", x, 9, extra={"url": "http://x"})

    run_in_worker(fetch, 1)
    (record,) = records.records
    assert record.getMessage() == "item 1 of 9"
    assert (record.name, record.levelname, record.funcName) == ("some.where", "WARNING", "fetch")
    assert record.processName is not None and record.processName.startswith("fstream-worker-")
    assert record.process != os.getpid()
    assert vars(record)["stage"] == "fetch"
    assert vars(record)["url"] == "http://x"


def test_levels_are_those_of_the_parent(records: Records):
    def f(_: int) -> bool:
        logging.info("root")
        logging.getLogger("verbose").debug("verbose")
        logging.getLogger("quiet.part").warning("quiet")
        return logging.getLogger("verbose").isEnabledFor(logging.DEBUG)

    verbose, quiet = logging.getLogger("verbose"), logging.getLogger("quiet")
    try:
        assert run_in_worker(f) == [False]
        assert records.messages == ["quiet"]
        logging.root.setLevel(logging.INFO)
        verbose.setLevel(logging.DEBUG)
        quiet.setLevel(logging.ERROR)
        assert run_in_worker(f) == [True]
        assert records.messages == ["quiet", "root", "verbose"]
        logging.disable(logging.INFO)
        run_in_worker(f)
        assert records.messages == ["quiet", "root", "verbose"]
    finally:
        logging.disable(logging.NOTSET)
        verbose.setLevel(logging.NOTSET)
        quiet.setLevel(logging.NOTSET)


def test_a_level_that_the_parent_has_raised_meanwhile_counts(records: Records, gate: Gate):
    def f(x: int) -> int:
        if x:
            gate.wait()
            logging.warning("late")
        return x

    stream = pmap(f, [0, 1], kind="process", workers=1, maxsize=1)
    next(stream)
    logging.root.setLevel(logging.ERROR)
    gate.open()
    list(stream)
    assert records.messages == []


def test_each_stage_is_named_and_so_is_each_part_of_one(records: Records):
    def first(x: int) -> int:
        logging.warning("of the first")
        return x

    def second(x: int) -> int:
        logging.warning("of the second")
        return x

    def done(*_: object) -> None:
        logging.warning("it ends")

    one = pmap(first, [0], kind="process")
    list(one | pmap(second, kind="process", on_start=lambda: logging.warning("it begins"), on_done=done))
    said = {(record.getMessage(), vars(record)["stage"]) for record in records.records}
    assert said == {
        ("it begins", "second"),
        ("of the first", "first"),
        ("of the second", "second"),
        ("it ends", "second"),
    }


def test_an_exception_is_logged_with_its_traceback(records: Records):
    def f(_: int) -> None:
        try:
            raise KeyError("missing")
        except KeyError:
            logging.exception("went wrong")

    run_in_worker(f)
    text = logging.Formatter().format(records.records[0])
    assert text.startswith("went wrong\nTraceback") and "KeyError: 'missing'" in text


def test_what_is_logged_need_not_be_picklable(records: Records):
    run_in_worker(lambda _: logging.warning("%s", "text", extra={"lock": threading.Lock(), "n": 1}))
    (record,) = records.records
    assert record.getMessage() == "text"
    assert (vars(record)["n"], "lock" in vars(record)["lock"]) == (1, True)


def test_a_message_that_cannot_be_made_is_told_as_ever(capsys: pytest.CaptureFixture[str]):
    assert run_in_worker(lambda x: logging.warning("%d", "no number") or x, 1) == [1]
    assert "--- Logging error ---" in capsys.readouterr().err


def test_handlers_of_a_worker_come_before_those_of_the_parent(script: Script, tmp_path: Path):
    (tmp_path / "library.py").write_text(
        "import logging, sys\n"
        "logging.basicConfig(format='root: %(message)s', stream=sys.stdout)\n"
        "log = logging.getLogger('library')\n"
        "handler = logging.StreamHandler(sys.stdout)\n"
        "handler.setFormatter(logging.Formatter('library: %(message)s'))\n"
        "log.addHandler(handler)\n"
        "silent = logging.getLogger('silent')\n"
        "silent.addHandler(logging.NullHandler())\n"
        "def f(x):\n"
        "    log.getChild('part').warning('one')\n"
        "    silent.warning('two')\n"
        "    logging.warning('three')\n"
    )
    source = """
        from fstream import pmap
        import library
        list(pmap(library.f, [1], kind="process", workers=1))
    """
    lines = printed(script(source, PYTHONPATH=str(tmp_path))).splitlines()
    assert lines == ["library: one", "root: one", "root: two", "root: three"]


def test_on_start_may_have_a_worker_log_by_itself(capsys: pytest.CaptureFixture[str], records: Records):
    def start() -> None:
        logging.basicConfig(format="by itself: %(message)s", level=logging.INFO, stream=sys.stderr)

    def f(x: int) -> None:
        logging.info("item %s", x)

    with Processes(1) as pool:
        list(pmap(f, [1], kind=pool, on_start=start))
    assert capsys.readouterr().err == "by itself: item 1\n"
    assert records.records == []


def test_a_filter_of_the_parent_that_fails_is_no_error_of_the_stream():
    def fail(record: logging.LogRecord) -> NoReturn:
        raise RuntimeError

    logger = logging.getLogger("fails")
    logger.addFilter(fail)
    try:
        assert run_in_worker(lambda x: logging.getLogger("fails").warning("x") or x, 1, 2) == [1, 2]
    finally:
        logger.removeFilter(fail)


# ---------------------------------------------------------------------------------------------------------- warnings


def test_warnings_are_shown_by_the_parent():
    class OwnWarning(UserWarning):
        pass

    def f(x: int) -> int:
        warnings.warn("careful", OwnWarning, stacklevel=1)
        return x

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run_in_worker(f, 1) == [1]
    (warning,) = caught
    assert (str(warning.message), warning.category, warning.filename) == ("careful", OwnWarning, __file__)


def test_captured_warnings_are_logged(records: Records):
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            run_in_worker(lambda _: warnings.warn("careful", stacklevel=1))
    finally:
        logging.captureWarnings(False)
    (record,) = records.records
    assert record.name == "py.warnings" and "UserWarning: careful" in record.getMessage()


def test_a_warning_that_cannot_be_pickled_comes_as_text(capsys: pytest.CaptureFixture[str]):
    class Unpicklable(UserWarning):
        def __reduce__(self) -> NoReturn:
            raise TypeError

    class Unloadable(UserWarning):
        def __reduce__(self) -> Any:
            return int, ("none",)

    def f(_: int) -> None:
        for category in (Unpicklable, Unloadable):
            warnings.warn(category("careful"), stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_in_worker(f)
    err = capsys.readouterr().err
    assert "Unpicklable: careful" in err and "Unloadable: careful" in err


def test_a_worker_may_record_its_own_warnings():
    def f(_: int) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("mine", stacklevel=1)
        return [str(warning.message) for warning in caught]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert run_in_worker(f) == [["mine"]]
    assert caught == []
