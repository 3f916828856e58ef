"""Journal: a memo in one file, that outlives the program, whatever ends that."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fstream import Journal, peach, pflat_map, pmap
from fstream._workers import opening
from tests.functions import square, suited
from tests.gates import PATIENCE, Gate
from tests.scripts import environment_with, write_script


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def fill(path: Path, entries: dict[Any, Any], stage: str = "square") -> None:
    with Journal(path) as journal:
        list(pmap(entries.__getitem__, list(entries), kind="sync", name=stage, memo=journal))


# ---------------------------------------------------------------------------------------------------- a mapping


def test_the_next_run_finds_what_the_last_one_kept(kind: str, path: Path):
    def never(number: int) -> int:
        raise AssertionError(number)

    with Journal(path) as journal:
        assert list(pmap(suited(square, kind), [1, 2, 3, 2], kind=kind, name="f", memo=journal)) == [
            1,
            4,
            9,
            4,
        ]
    with Journal(path) as journal:
        assert dict(journal) == {1: 1, 2: 4, 3: 9}
        assert list(pmap(suited(never, kind), [3, 2, 1], kind=kind, name="f", memo=journal)) == [9, 4, 1]


def test_it_serves_an_async_consumer(kind: str, path: Path):
    async def outputs() -> list[int]:
        stream = pmap(suited(square, kind), [1, 2, 1], kind=kind, name="f", memo=journal)
        return [output async for output in stream]

    with Journal(path) as journal:
        assert asyncio.run(outputs()) == [1, 4, 1]
        assert asyncio.run(outputs()) == [1, 4, 1]


def test_a_row_that_cannot_be_laid_leaves_the_journal_to_others(path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_workers(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    with Journal(path) as journal:
        with monkeypatch.context() as context:
            context.setattr(opening, "open_workers", no_workers)
            with pytest.raises(OSError, match="Too many open files"):
                list(pmap(square, [1], kind="thread", memo=journal))
        assert list(pmap(square, [1], kind="thread", memo=journal)) == [1]


def test_it_is_json_by_the_line(path: Path):
    fill(path, {"a\n": {"b": [1, None, 0.5]}, ("c", 1): True})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"fstream-journal": 1, "stage": "square"},
        ["a\n", {"b": [1, None, 0.5]}],
        [["c", 1], True],
    ]


@pytest.mark.parametrize(
    "key", ["", "é\ud800", "1", 1, -(2**70), 1.5, math.inf, None, (), (1, "1"), ("a", (None, (2.5,)))]
)
def test_keys_keep_their_type(path: Path, key: Any):
    fill(path, {key: "value"})
    with Journal(path) as journal:
        [found] = journal
        assert (found, type(found)) == (key, type(key))
        assert repr(found) == repr(key)
        assert journal[key] == "value"


@pytest.mark.parametrize("key", [True, False])
def test_bools_are_keys(path: Path, key: bool):
    fill(path, {key: 1})
    with Journal(path) as journal:
        assert [*journal] == [key]
        assert next(iter(journal)) is key


def test_one_and_its_text_are_two_keys(path: Path):
    fill(path, {1: "number", "1": "text", (1,): "tuple"})
    with Journal(path) as journal:
        assert dict(journal) == {1: "number", "1": "text", (1,): "tuple"}


def test_it_is_a_mapping(path: Path):
    with Journal(path) as journal:
        journal["a"] = [1]
        journal["a"].append(2)
        assert journal["a"] == [1]  # what was kept, not what became of it
        journal["a"] = 2
        assert (len(journal), journal.get("b", 7), "a" in journal, "b" in journal) == (1, 7, True, False)
        with pytest.raises(KeyError):
            journal["b"]
        with pytest.raises(TypeError, match="only ever appended to"):
            del journal["a"]
        assert repr(journal) == f"Journal({str(path)!r})"
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            pickle.dumps(journal)
    with Journal(path) as journal:
        assert dict(journal) == {"a": 2}


def test_peach_keeps_the_key_alone(kind: str, path: Path):
    seen = path.with_name("seen")

    def note(number: int) -> object:
        with seen.open("a") as file:
            file.write(f"{number}\n")
        return object()

    for _ in range(2):
        with Journal(path) as journal:
            assert list(peach(suited(note, kind), [1, 2, 1], kind=kind, name="note", memo=journal)) == []
            assert dict(journal) == {1: None, 2: None}
    assert sorted(seen.read_text().split()) == ["1", "2"]
    assert path.read_text().splitlines()[1:] in (["[1]", "[2]"], ["[2]", "[1]"])


# ---------------------------------------------------------------------------------------------- what it cannot hold


@pytest.mark.parametrize(
    "value", [(1, 2), {1: 2}, {"a": (1,)}, {3}, b"bytes", math.nan, object(), [[math.nan]]]
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_what_json_does_not_give_back_is_an_error_that_names_the_item(
    kind: str, path: Path, value: Any, on_error: Any
):
    if kind == "process" and type(value) is object:
        value = 1j
    with Journal(path) as journal:
        stream = pmap(
            suited(lambda item: value if item == 2 else item, kind),
            [1, 2, 3],
            kind=kind,
            workers=1,
            name="f",
            on_error=on_error,
            memo=journal,
        )
        assert next(stream) == 1
        with pytest.raises(
            TypeError, match=r"JSON cannot hold .* give the journal dumps= and loads="
        ) as caught:
            next(stream)
        assert "item 1: 2" in "\n".join(caught.value.__notes__)
        assert journal[1] == 1
        assert 2 not in journal


@pytest.mark.parametrize("key", [b"bytes", math.nan, frozenset(), (1, b""), object])
def test_a_key_that_it_cannot_hold_is_an_error(path: Path, key: Any):
    with Journal(path) as journal:
        with pytest.raises(TypeError, match="write memo_key="):
            list(pmap(str, [key], kind="thread", name="f", memo=journal))
        assert len(journal) == 0


def test_other_values_by_functions_of_ones_own(kind: str, path: Path):
    def dumps(value: Any) -> str:
        return pickle.dumps(value).hex() + "\n"

    def loads(text: str) -> Any:
        return pickle.loads(bytes.fromhex(text.strip()))

    for _ in range(2):
        with Journal(path, dumps=dumps, loads=loads) as journal:
            f = suited(lambda item: (item, {item: 1j}), kind)
            assert list(pmap(f, [1, 2], kind=kind, name="f", memo=journal)) == [(1, {1: 1j}), (2, {2: 1j})]
    assert len(path.read_text().splitlines()) == 3


def test_a_value_that_loads_does_not_find_its_way_in_is_an_error_and_not_made_again(kind: str, path: Path):
    fill(path, {2: '{"old": 4}'})
    with Journal(path, dumps=json.dumps, loads=lambda text: json.loads(text)["new"]) as journal:
        with pytest.raises(KeyError, match="new") as caught:
            list(pmap(suited(square, kind), [2], kind=kind, name="square", memo=journal))
        assert journal.get(3) is None
        assert journal.get(3, 9) == 9
    assert caught.value.__notes__ == [f"in memo of stage 'square' ({kind}), item 0: 2"]


def test_outputs_of_flat_map(path: Path):
    for _ in range(2):
        with Journal(path) as journal:
            assert list(pflat_map(str.split, ["a b", "c", "a b"], memo=journal)) == ["a", "b", "c", "a", "b"]


# --------------------------------------------------------------------------------------------------- whose it is


def test_a_journal_of_another_stage_is_an_error_when_it_is_built(path: Path):
    fill(path, {1: 1}, stage="fetch")
    with Journal(path) as journal:
        with pytest.raises(ValueError, match="is of stage 'fetch', not of 'square'"):
            pmap(square, memo=journal)
        pmap(square, memo=journal, name="fetch")


@pytest.mark.parametrize(
    "content",
    ["hello\n", "hello", '{"a": 1}\n', "[1, 2]\n", '{"fstream-journal": 2, "stage": "f"}\n', "\0\0\0", "\n"],
)
def test_what_is_no_journal_is_an_error_and_stays_as_it_is(path: Path, content: str):
    path.write_text(content)
    with pytest.raises(ValueError, match="is no journal"):
        Journal(path)
    assert path.read_text() == content


def test_a_line_in_the_middle_that_is_no_entry_is_an_error(path: Path):
    fill(path, {1: 1, 2: 4})
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "[1, oops\n", lines[2]]))
    with pytest.raises(ValueError, match="is no journal: line 2"):
        Journal(path)


def test_it_serves_one_stream_at_a_time(path: Path):
    with Journal(path) as journal:
        first = pmap(square, iter([1, 2, 3]), kind="thread", memo=journal)
        next(first)
        with pytest.raises(RuntimeError, match="serves another stream"):
            list(pmap(square, [1], kind="thread", memo=journal))
        first.close()
        assert list(pmap(square, [1], kind="thread", memo=journal)) == [1]
        with pmap(square, iter([1, 2, 3]), kind="sync", memo=journal) as second:
            next(second)
            with pytest.raises(RuntimeError, match="serves another stream"):
                list(pmap(square, [1], kind="sync", memo=journal))
        assert list(pmap(square, [4], kind="sync", memo=journal)) == [16]


@pytest.mark.parametrize("names", [("first", "second"), ("same", "same")])
def test_two_stages_of_one_stream_are_told_to_have_a_journal_each(
    kind: str, names: tuple[str, str], path: Path
):
    with Journal(path) as journal:
        first, second = (pmap(suited(square, kind), kind=kind, name=name, memo=journal) for name in names)
        with pytest.raises(RuntimeError, match="give each a journal of its own, by memo=Journal") as caught:
            list((first | second)([1]))
        assert all(repr(name) in str(caught.value) for name in names)
    assert path.read_text().count("\n") <= 1  # neither has kept anything


def test_two_at_once_on_one_file_are_refused(path: Path):
    with Journal(path):
        with pytest.raises(BlockingIOError, match="the journal is in use"):
            Journal(path)
        program = f"import fstream; fstream.Journal({str(path)!r})"
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment_with(), capture_output=True, text=True
        )
        assert "BlockingIOError" in ran.stderr
    Journal(path).close()


@pytest.mark.parametrize("kind", ["a device without end", "a pipe"])
def test_what_is_no_file_is_refused(path: Path, kind: str):
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    with pytest.raises(ValueError, match="path must be a file, got '"):
        Journal(path)


@pytest.mark.forks
def test_a_fork_does_not_hold_the_lock(path: Path):
    with Journal(path):
        reading, writing = os.pipe()
        if not (pid := os.fork()):
            os.close(writing)
            os.read(reading, 1)  # until the test is through
            os._exit(0)
        os.close(reading)
    try:
        Journal(path).close()
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


class Held(dict[Any, Any]):
    """Values that a thread is storing until the *gate* opens."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.storing = threading.Event()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.storing.set()
        self.gate.wait()
        super().__setitem__(key, value)


@pytest.mark.forks
def test_a_fork_closes_it_while_a_thread_writes(path: Path, gate: Gate):
    with Journal(path) as journal:
        held = journal._texts = Held(gate)
        thread = threading.Thread(target=journal.__setitem__, args=("a", 1))
        thread.start()
        assert held.storing.wait(PATIENCE)
        if not (pid := os.fork()):
            signal.alarm(int(PATIENCE / 4))  # or it would be there for ever
            journal.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        gate.open()
        thread.join()
        assert dict(journal) == {"a": 1}


def test_a_journal_that_is_collected_lets_go_of_its_file(path: Path):
    journal = Journal(path)
    journal["a"] = 1
    del journal
    gc.collect()
    with Journal(path) as journal:
        assert dict(journal) == {"a": 1}


def test_a_closed_one_is_not_written(path: Path):
    with Journal(path) as journal:
        pass
    journal.close()
    with pytest.raises(ValueError, match="is closed"):
        journal["a"] = 1
    with pytest.raises(ValueError, match="is closed"):
        list(pmap(square, [1], memo=journal))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dumps": str}, ValueError, "dumps and loads go together"),
        ({"loads": str}, ValueError, "dumps and loads go together"),
        ({"dumps": str, "loads": 3}, TypeError, "loads must be a function or None, got 3"),
    ],
)
def test_slips(path: Path, arguments: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        Journal(path, **arguments)


def test_dumps_has_to_give_text(path: Path):
    journal = Journal(path, dumps=pickle.dumps, loads=pickle.loads)  # type: ignore[arg-type]
    with journal, pytest.raises(TypeError, match="dumps must give a str, got bytes"):
        list(pmap(square, [1], memo=journal))


# ----------------------------------------------------------------------------------------------- what cuts it off


def test_a_torn_last_line_is_cut_off_with_a_warning(path: Path):
    fill(path, {1: 1, 2: 4, 3: 9})
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        if length and whole[length - 1 : length] != b"\n":
            with pytest.warns(RuntimeWarning, match="was cut off, and is removed"):
                journal = Journal(path)
        else:
            journal = Journal(path)
        with journal:
            assert len(journal) == max(0, kept - 1)
            assert list(pmap(square, [1, 2, 3, 4], kind="sync", memo=journal)) == [1, 4, 9, 16]
        with Journal(path) as journal:
            assert dict(journal) == {1: 1, 2: 4, 3: 9, 4: 16}


@pytest.mark.parametrize("rest", ["\0\0\0\0", "[4,16]\0\n", "[4,\n", '"\udcff\n', "{}\n", "[]\n"])
def test_whatever_it_looks_like(path: Path, rest: str):
    fill(path, {1: 1})
    with path.open("a", encoding="ascii", errors="surrogateescape") as file:
        file.write(rest)
    with pytest.warns(RuntimeWarning, match="cut off"):
        journal = Journal(path)
    with journal:
        assert dict(journal) == {1: 1}


def test_a_full_disk_is_an_error_and_loses_nothing(shared_memory_kind: str, path: Path):
    kind: Any = shared_memory_kind
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    outputs = []
    try:
        with Journal(path) as journal:
            resource.setrlimit(resource.RLIMIT_FSIZE, (120, limit[1]))
            with pytest.raises(OSError, match="File too large") as caught:
                for output in pmap(
                    suited(square, kind), range(100), kind=kind, workers=1, name="f", memo=journal
                ):
                    outputs.append(output)
            assert "stage 'f'" in "\n".join(caught.value.__notes__)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            kept = dict(journal)
            journal[-1] = "after"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert outputs == [number**2 for number in range(len(outputs))]
    assert len(outputs) > 5
    with Journal(path) as journal:
        assert dict(journal) == kept | {-1: "after"}
        assert set(outputs) <= set(kept.values())


JOB = """
    import os, sys
    from fstream import Journal, pmap

    path, calls, kind = sys.argv[1:]

    def f(number):
        with open(calls, "a") as file:
            file.write(f"{number}\\n")
        return number * number

    async def f_later(number):
        return f(number)

    with Journal(path) as journal:
        stream = pmap(
            f_later if kind == "task" else f, iter(range(2000)), kind=kind, workers=2, maxsize=8, name="f", memo=journal
        )
        for output in stream:
            print(output, flush=True)
"""


def check_kills(folder: Path, kind: str, kills: int) -> None:
    script, path, calls = write_script(folder, JOB), folder / "journal", folder / "calls"
    command = [sys.executable, "-W", "ignore", str(script), str(path), str(calls), kind]
    draw = random.Random(f"{kind} {kills}")
    for _ in range(kills):
        job = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment_with(), text=True)
        assert job.stdout is not None
        for _ in range(draw.randrange(1, 2000 // kills)):
            job.stdout.readline()
        time.sleep(draw.random() / 1000)
        job.kill()
        job.wait()
        job.stdout.close()
    last = subprocess.run(
        command, capture_output=True, text=True, env=environment_with(), timeout=PATIENCE * 3
    )
    assert last.stderr == ""
    assert [int(line) for line in last.stdout.split()] == [number**2 for number in range(2000)]
    counts = Counter(calls.read_text().split())
    assert len(counts) == 2000
    assert sum(counts.values()) <= 2000 + 8 * kills


@pytest.mark.parametrize("kind", ["thread", "process", "task"])
def test_a_job_that_is_killed_and_started_again_does_little_twice(tmp_path: Path, kind: str):
    check_kills(tmp_path, kind, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sync", "thread", "process", "task"])
def test_killed_twenty_times(tmp_path: Path, kind: str):
    check_kills(tmp_path, kind, 20)


def test_many_entries_are_opened_soon_and_take_little_memory(path: Path):
    count = 20_000
    with path.open("w") as file:
        file.write('{"fstream-journal": 1, "stage": "fetch"}\n')
        for number in range(count):
            file.write(f'["https://example.org/pages/{number}",{{"status": 200, "size": {number}}}]\n')
    tracemalloc.start()
    try:
        with Journal(path) as journal:
            held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(journal) == count
    assert held / count < 300
