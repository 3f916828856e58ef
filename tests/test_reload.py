"""Modules that are edited while workers are warm."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fstream import Processes, StageStatus, pmap
from fstream._workers.process.imported import Imported
from tests.faults.faulty import eventually
from tests.faults.test_fault_cases import alive
from tests.gates import Gate, Log

pytestmark = pytest.mark.slow

#: A module that says which version it is, and in which process it is asked.
SOURCE = """
import os

def version(_=None):
    return {number}, os.getpid()
"""


class Edited:
    """A module in a folder of its own, that a test edits."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.py"
        self.number = 0
        self.edit()
        self.module: ModuleType = importlib.import_module(name)

    def edit(self) -> None:
        """Save it with the next number; its time is another one, however fast this is."""
        self.number += 1
        self.path.write_text(SOURCE.format(number=self.number))
        os.utime(self.path, (self.number, self.number))
        importlib.invalidate_caches()

    def reload(self) -> None:
        self.edit()
        importlib.reload(self.module)

    @property
    def version(self) -> Callable[..., Any]:
        """A function that goes by its name."""
        return self.module.version  # type: ignore[no-any-return]


@pytest.fixture
def edited(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Edited]:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"edited_{abs(hash(request.node.name))}"
    yield Edited(tmp_path, name)
    sys.modules.pop(name, None)


@pytest.fixture(params=["fresh", "spawn"])
def pool(request: pytest.FixtureRequest) -> Iterator[Processes]:
    with Processes(1, start=request.param) as pool:
        yield pool


def asked(f: Callable[..., Any], pool: Processes, count: int = 1, **options: Any) -> list[Any]:
    return list(pmap(f, range(count), kind=pool, **options))


def importing(name: str) -> Callable[[Any], Any]:
    """Give a function that goes with its code, and imports the module itself."""
    return lambda _: importlib.import_module(name).version()


@pytest.mark.parametrize("by_name", [True, False])
def test_a_worker_that_has_imported_the_version_of_before_is_replaced(
    edited: Edited, pool: Processes, by_name: bool
) -> None:
    def ask() -> Any:
        return asked(edited.version if by_name else importing(edited.name), pool)[0]

    ask()  # the first of all processes by spawn starts a tracker of resources, and a worker has that for good
    number, pid = ask()
    assert (number, pid) == ask() == (1, pid)
    edited.reload()
    number, other = ask()
    assert number == 2 and other != pid
    assert eventually(lambda: not alive(pid))
    assert ask() == (2, other)


def test_an_edited_module_that_nobody_reloads_is_new_to_new_stages_alone(edited: Edited) -> None:
    with Processes(1) as pool:
        assert asked(importing(edited.name), pool)[0][0] == 1
        edited.edit()
        assert asked(importing(edited.name), pool)[0][0] == 2
        assert edited.version()[0] == 1


def test_all_items_run_once_where_every_worker_is_replaced(edited: Edited, tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    with Processes(2) as pool:
        before = {pid for _, pid in asked(edited.version, pool, 500)}
        edited.reload()
        name = edited.name

        def started() -> tuple[()]:
            log.write(("start", os.getpid()))
            return ()

        def ask(item: int, attempt: int) -> Any:
            return item, attempt, importlib.import_module(name).version()

        def done(stage_status: StageStatus) -> None:
            log.write(("done", os.getpid()))
            log.write(("others", stage_status.active_workers))

        found = asked(ask, pool, 500, on_start=started, on_done=done)
        assert [item for item, _, _ in found] == list(range(500))
        assert {attempt for _, attempt, _ in found} == {0}
        assert {number for _, _, (number, _) in found} == {2}
        after = {pid for _, _, (_, pid) in found}
        assert not before & after
        ends = {step: {pid for what, pid in log.entries() if what == step} for step in ("start", "done")}
        assert after <= ends["start"] == ends["done"] and not before & ends["start"]
        others = [count for what, count in log.entries() if what == "others"]
        assert others == list(reversed(range(len(ends["start"]))))


def test_a_stage_with_a_rate_counts_nothing_for_a_worker_that_is_replaced(edited: Edited) -> None:
    with Processes(1) as pool:
        asked(edited.version, pool)
        edited.reload()
        found = asked(edited.version, pool, 3, rate=1000, timeout=30, max_items_per_worker=2)
        assert [number for number, _ in found] == [2] * 3


def test_a_stage_with_resources_goes_on_where_it_has_them(edited: Edited, tmp_path: Path) -> None:
    log, gate = Log(tmp_path / "log"), Gate(tmp_path / "gate")
    first, again = edited.version, importing(edited.name)

    def ask(item: int, _resource: int) -> Any:
        if item == 1:
            gate.wait()
        return again(item)

    with Processes(1) as pool:
        assert asked(first, pool)[0][0] == 1
        older = pmap(
            ask, range(3), kind=pool, maxsize=1,
            on_start=lambda: 7, on_done=lambda _, resource: log.write((resource, os.getpid())),
        )  # fmt: skip
        with closing(older):
            number, pid = next(older)
            assert number == 1
            gate.open()
            edited.reload()
            number, other = asked(edited.version, pool)[0]
            assert number == 2 and other != pid
            assert list(older) == [(1, pid)] * 2
        assert log.entries() == [(7, pid)]
        assert eventually(lambda: not alive(pid))
        assert asked(edited.version, pool) == [(2, other)]


def test_a_module_that_changes_all_the_time_does_not_keep_stages_from_work(
    edited: Edited, pool: Processes
) -> None:
    name, path = edited.name, edited.path

    def ask_and_edit(_: int) -> Any:
        found = importlib.import_module(name).version()
        path.write_text(path.read_text() + "\n")
        return found

    found = [asked(ask_and_edit, pool)[0] for _ in range(4)]
    assert [number for number, _ in found] == [1] * 4
    assert len({pid for _, pid in found}) == 4


def test_a_module_whose_file_is_gone_stays_as_it_is(edited: Edited, pool: Processes) -> None:
    asked(edited.version, pool)
    (found,) = asked(edited.version, pool)
    edited.path.unlink()
    assert asked(edited.version, pool) == [found]
    edited.edit()
    assert asked(edited.version, pool)[0][0] == 2


def test_what_is_written_within_a_second_in_as_many_bytes_is_seen(
    edited: Edited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # that goes by whole seconds
    os.utime(edited.path, ns=(10**9, 10**9))
    for cached in edited.path.parent.glob("__pycache__/*"):
        cached.unlink()
    with Processes(1) as pool:
        assert asked(importing(edited.name), pool)[0][0] == 1
        edited.path.write_text(SOURCE.format(number=2))
        os.utime(edited.path, ns=(10**9 + 1, 10**9 + 1))
        assert asked(importing(edited.name), pool)[0][0] == 2


def test_modules_in_zip_files_and_namespace_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr("zipped_alone.py", SOURCE.format(number=1))
    spaced = tmp_path / "spaced_out" / "inner.py"
    spaced.parent.mkdir()
    spaced.write_text(SOURCE.format(number=1))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "zipped.zip"))

    def ask(_: int) -> Any:
        inner = importlib.import_module("spaced_out.inner")
        return importlib.import_module("zipped_alone").version(), inner.version()

    with Processes(1) as pool:
        ((_, pid), _) = asked(ask, pool)[0]
        os.utime(tmp_path / "zipped.zip", (1, 1))
        assert asked(ask, pool)[0] == ((1, pid), (1, pid))
        spaced.write_text(SOURCE.format(number="1 + 1"))
        assert asked(ask, pool)[0][1][0] == 2


def test_a_file_that_is_written_while_it_is_imported_has_changed_since(tmp_path: Path) -> None:
    path = tmp_path / "written.py"
    path.write_text("1")
    imported = Imported()
    imported.note(str(path))
    assert not imported.changed()
    path.write_text("22")
    assert imported.changed()


def test_what_is_installed_is_not_looked_at() -> None:
    imported = Imported()
    for module in os, pytest, sys.modules["fstream"]:
        imported.note(str(module.__file__))
    assert not imported.files
    imported.note(__file__)
    assert list(imported.files) == [__file__]
