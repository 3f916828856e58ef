"""The live view: what it says, where it says it, and how it ends."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fstream._seen.watch as watching
from fstream import batch, observe, pfilter, pmap, watch
from fstream._seen.watch import Lines, Pipeline, Watcher, lines_of
from tests.functions import identity, is_odd
from tests.gates import Gate, Log, holding
from tests.scripts import LIFETIME, Script, environment_with, write_script


class Seen:
    """A view that keeps what it is to show."""

    every = 0.0

    def __init__(self) -> None:
        self.shown: list[list[Pipeline]] = []
        self.last: list[Pipeline] = []

    def show(self, pipelines: list[Pipeline]) -> None:
        self.shown.append(pipelines)

    def end(self, pipelines: list[Pipeline]) -> None:
        self.last = pipelines


def numbers(pipelines: list[Pipeline]) -> list[list[tuple[str, int]]]:
    return [[(stage.name, stage.given) for stage in pipeline.stats.stages] for pipeline in pipelines]


def reciprocal(item: int) -> float:
    return 1 / item


def twice(item: int) -> float:
    return 2 * item


# -------------------------------------------------------------------------------------------------- what it says


def test_each_stage_has_a_line_on_stderr_and_none_on_stdout(
    kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Lines, "every", 1e9)  # none but those at the end, however long it takes
    with watch():
        list(pmap(identity, range(100), kind=kind, workers=2) | pfilter(is_odd, kind="thread"))
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"fstream: identity ({kind}): 100 given, ")
    assert lines[1].startswith("fstream: is_odd (thread): 50 given, ")
    assert "100 of 100 (100%)" in lines[0]
    assert re.search(r"[\d.,]+/s, busy \d+%", lines[0])


def test_failures_and_further_tries_are_said(kind: str, capsys: pytest.CaptureFixture[str]):
    with watch():
        list(pmap(reciprocal, [1, 0, 2], kind=kind, retries=2, on_error="skip"))
    assert "2 given" in (line := capsys.readouterr().err)
    assert "1 failed, 2 tried again" in line


def test_the_bottleneck_is_marked_on_one_line(capsys: pytest.CaptureFixture[str]):
    def slow(item: int) -> int:
        time.sleep(0.01)
        return item

    with watch():
        list(pmap(identity, iter(range(30)), kind="thread") | pmap(slow, kind="thread", workers=1))
    lines = capsys.readouterr().err.splitlines()
    assert [line.endswith("the bottleneck") for line in lines] == [False, True]


def test_while_it_runs_lines_come_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(Lines, "every", 0.05)

    def slow(item: int) -> int:
        time.sleep(0.02)
        return item

    begun = time.monotonic()
    with watch():
        list(pmap(slow, range(30), kind="thread", workers=1))
    most = (time.monotonic() - begun) / Lines.every + 2
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= most
    given = [int(re.search(r"(\d+) given", line)[1]) for line in lines]  # type: ignore[index]
    assert given == sorted(given)
    assert given[-1] == 30
    assert " left" in lines[1]
    assert " left" not in lines[-1]


def test_what_a_stage_holds_is_no_progress(concurrent_kind: str, gate: Gate, log: Log):
    seen = Seen()
    watcher = Watcher(seen)
    f = holding(concurrent_kind, {2: gate}, log)
    with observe(watcher), pmap(f, range(9), kind=concurrent_kind, workers=1, maxsize=4) as stream:
        assert [next(stream), next(stream)] == [0, 1]
        log.wait_for(("start", 2))
        (pipeline,) = watcher.running()
        assert pipeline.stats.stages[0].taken > 2
        assert pipeline.progress().startswith("2 of 9 (22%)")
        gate.open()
        assert len(list(stream)) == 7
    watcher.close()
    assert seen.last[0].progress() == "9 of 9 (100%)"


@pytest.mark.parametrize("kind", ["sync", "thread"])
def test_lists_of_items_are_no_progress_in_items(kind: str):
    seen = Seen()
    watcher = Watcher(seen)
    with observe(watcher):
        assert len(list(range(9) | batch(3) | pmap(len, kind=kind))) == 3
    watcher.close()
    assert seen.last[-1].progress() == ""


def test_the_time_that_is_left_is_reckoned_from_what_f_was_called_for():
    stream = pmap(identity, range(3), kind="thread", memo={0: 0})
    list(stream)
    (stage,) = stream.stats().stages
    assert stage.known == 1
    stats = replace(stream.stats(), stages=(replace(stage, taken=100, known=90),), seconds=10.0)
    assert Pipeline(stats, [10.0], 100, 110).progress() == "100 of 110 (91%), 10 s left"
    assert Pipeline(
        replace(stats, stages=(replace(stage, taken=90, known=90),)), [9.0], 90, 110
    ).progress() == ("90 of 110 (82%)")


# ------------------------------------------------------------------------------------------------ which pipelines


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    monkeypatch.setattr(watching, "_view", lambda: seen)
    return seen


def test_several_streams_are_shown(seen: Seen):
    with watch():
        one, two = pmap(identity, range(10), kind="thread"), pmap(twice, range(20), kind="task")
        next(one), next(two)
        list(one), list(two)
    assert sorted(numbers(seen.last)) == [[("identity", 10)], [("twice", 20)]]


def test_stages_of_several_runs_are_one_pipeline(seen: Seen):
    with watch():
        list(
            pmap(identity, range(10), kind="thread")
            | pmap(twice, kind="sync")
            | pfilter(is_odd, kind="thread")
        )
    assert numbers(seen.last) == [[("identity", 10), ("twice", 10), ("is_odd", 0)]]


def test_streams_that_f_iterates_are_added_up(seen: Seen, shared_memory_kind: str):
    with watch():
        list(pmap(lambda n: sum(pmap(identity, range(n), kind="sync")), [3] * 50, kind=shared_memory_kind))
    inner = next(pipeline for pipeline in seen.last if pipeline.stats.stages[0].name == "identity")
    assert inner.runs == 50
    assert inner.stats.stages[0].given == 150
    assert len(seen.last) == 2
    assert max(map(len, seen.shown)) <= 2 * watching.MOST_SHOWN


def test_what_has_ended_is_kept_in_few_words():
    watcher = Watcher(Seen())
    with observe(watcher):
        for _ in range(100):
            list(pmap(identity, [1, 2], kind="sync"))
    assert len(watcher.runs) == 0
    assert len(watcher.past) == 1
    assert len(watcher.before) == 0


def test_blocks_may_be_nested(capsys: pytest.CaptureFixture[str]):
    with watch():
        with watch():
            list(pmap(identity, [1], kind="thread"))
        inner = capsys.readouterr().err
        list(pmap(twice, [1], kind="thread"))
    assert inner.count("\n") == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_a_stream_that_goes_on_after_the_block_is_shown_no_more(seen: Seen):
    with watch():
        stream = pmap(identity, range(100), kind="thread")
        next(stream)
    shown = len(seen.shown)
    assert list(stream) == list(range(1, 100))
    assert len(seen.shown) == shown


def test_a_stream_that_was_dropped_is_shown(seen: Seen):
    import gc

    with watch():
        stream = pmap(identity, range(10**9), kind="thread")
        next(stream)
        del stream
        gc.collect()
    assert [[name for name, _ in pipeline] for pipeline in numbers(seen.last)] == [["identity"]]


# ---------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_an_error_ends_it_clean(kind: str, error: type[BaseException], capsys: pytest.CaptureFixture[str]):
    def source() -> Iterator[int]:
        yield from range(5)
        raise error

    with pytest.raises(error), watch():
        list(pmap(identity, source(), kind=kind))
    assert "identity" in capsys.readouterr().err


def test_a_stderr_that_is_closed_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = (tmp_path / "stderr").open("w")
    file.close()
    monkeypatch.setattr(sys, "stderr", file)
    with watch():
        assert list(pmap(identity, [1], kind="thread")) == [1]
    monkeypatch.setattr(sys, "stderr", None)
    with watch():
        assert list(pmap(identity, [1], kind="thread")) == [1]


@pytest.mark.parametrize("flushes", [True, False])
def test_a_stderr_of_ones_own_needs_to_write_alone(monkeypatch: pytest.MonkeyPatch, flushes: bool):
    class Tee:
        """What scripts put in place of stderr, to have it in a file, too."""

        def __init__(self) -> None:
            self.write = written.append
            if flushes:
                self.flush = lambda: None

    written: list[str] = []
    monkeypatch.setattr(sys, "stderr", Tee())
    with watch():
        assert list(pmap(identity, [1], kind="thread")) == [1]
    assert "identity (thread): 1 given" in "".join(written)


def test_a_line_of_many_runs_says_how_many(seen: Seen):
    with watch():
        for _ in range(3):
            list(pmap(identity, [1, 2], kind="thread"))
    (line,) = [line for pipeline in seen.last for line in lines_of(pipeline)]
    assert line.startswith("identity (thread, 3 times): 6 given")
    assert "6 of 6" in line


# ------------------------------------------------------------------------------------------------- in a terminal

SCRIPT = """
    import sys, time
    from fstream import pmap, watch

    def slow(item):
        time.sleep(0.05)
        print("printed", item, flush=True)
        if sys.argv[1] == "fails" and item == 6:
            raise LookupError("no more")
        return item

    with watch():
        for item in pmap(slow, range(12), kind="thread", workers=1):
            pass
    print("after")
"""


def in_terminal(folder: Path, how: str, stdout_too: bool) -> tuple[int, str, str]:
    """Run the script with stderr in a terminal; give its status, what came there, and what came to stdout."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(write_script(folder, SCRIPT)), how],
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout_too else subprocess.PIPE,
        stderr=theirs,
        env=environment_with(TERM="xterm", COLUMNS="120", LINES="40"),
    )
    os.close(theirs)
    shown, interrupted = b"", False
    end = time.monotonic() + LIFETIME
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        if how == "interrupted" and not interrupted and b"slow" in shown:
            interrupted = True
            process.send_signal(2)
    out = "" if stdout_too else process.stdout.read().decode()  # type: ignore[union-attr]
    if process.stdout is not None:
        process.stdout.close()
    os.close(ours)
    return process.wait(LIFETIME), shown.decode(), out


@pytest.mark.parametrize("how", ["ends", "fails", "interrupted"])
def test_in_a_terminal_it_is_drawn_in_place_and_leaves_the_cursor(tmp_path: Path, how: str):
    pytest.importorskip("rich")
    status, shown, out = in_terminal(tmp_path, how, stdout_too=False)
    assert status == {"ends": 0, "fails": 1, "interrupted": -2}[how], shown
    assert "slow" in shown and "given" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again
    assert "fstream: " not in shown
    printed = re.findall(r"printed \d+", out)
    assert printed == [f"printed {n}" for n in range(len(printed))]
    assert "\x1b" not in out
    if how == "ends":
        assert out.splitlines() == [*(f"printed {n}" for n in range(12)), "after"]
        assert "12 of 12" in shown
    else:
        assert ("LookupError" if how == "fails" else "KeyboardInterrupt") in shown


def test_what_the_user_prints_to_the_same_terminal_is_whole(tmp_path: Path):
    pytest.importorskip("rich")
    status, shown, _ = in_terminal(tmp_path, "ends", stdout_too=True)
    assert status == 0
    assert re.findall(r"printed \d+", shown) == [f"printed {n}" for n in range(12)]


def test_without_rich_a_terminal_has_plain_lines(monkeypatch: pytest.MonkeyPatch):
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(watching._view(), Lines)


def test_in_a_script_ctrl_c_shows_one_traceback_and_the_numbers(script: Script):
    source = """
        import os, signal, threading, time
        from fstream import pmap, watch

        def slow(item):
            if item == 3:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
            return item

        with watch():
            list(pmap(slow, range(10), kind="thread", workers=1))
    """
    result = script(source)
    assert result.returncode == -2
    assert result.stdout == ""
    assert result.stderr.count("Traceback") == 1
    assert "fstream: slow (thread): " in result.stderr
