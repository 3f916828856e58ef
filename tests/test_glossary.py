"""The glossary and the pictures of docs/architecture.md, against the code."""

from __future__ import annotations

import ast
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from fstream import pmap

PROJECT: Final = Path(__file__).parent.parent
LIBRARY: Final = PROJECT / "fstream"
ARCHITECTURE: Final = (PROJECT / "docs" / "architecture.md").read_text()

#: A line of a picture: the function, its file, what it does.
STEP: Final = re.compile(r"^ \| ([\w.]+) +([\w/]+\.py)( |$)", re.MULTILINE)


def names_in(path: Path) -> set[str]:
    """Give what the file defines: functions, classes, and "Class.name" of methods and attributes."""
    found = set[str]()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for name in members(node)}
    return found


def members(cls: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(cls):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in [node.target] if isinstance(node, ast.AnnAssign) else node.targets:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    yield target.attr


DEFINED: Final = {path.relative_to(LIBRARY).as_posix(): names_in(path) for path in LIBRARY.rglob("*.py")}
EVERYWHERE: Final = set[str]().union(*DEFINED.values())


def section(title: str) -> str:
    _, _, text = ARCHITECTURE.partition(f"\n{title}\n")
    assert text, title
    return re.split(r"\n##+ ", text)[0]


def steps(kind: str) -> list[tuple[str, str]]:
    return [(name, file) for name, file, _ in STEP.findall(section(f'### kind="{kind}"'))]


def glossary() -> dict[str, str]:
    rows = re.findall(r"^\| ([\w ]+) \| `([\w.]+)` \| ", section("## Glossary"), re.MULTILINE)
    return dict(rows)


def test_the_glossary_has_each_word_once() -> None:
    lines = [line for line in section("## Glossary").splitlines() if line.startswith("| ")][1:]
    assert len(glossary()) == len(lines) >= 30


@pytest.mark.parametrize(("word", "name"), glossary().items())
def test_a_word_of_the_glossary_is_a_name_in_the_code(word: str, name: str) -> None:
    assert name in EVERYWHERE, word


@pytest.mark.parametrize("kind", ["sync", "thread", "process", "task", "dask"])
def test_a_picture_names_functions_where_they_are(kind: str) -> None:
    assert len(steps(kind)) >= 5
    assert [step for step in steps(kind) if step[0] not in DEFINED[step[1]]] == []


def test_what_the_architecture_says_of_classes_is_there() -> None:
    classes = {name for name in EVERYWHERE if "." not in name and name[0].isupper()}
    said = set(re.findall(r"`([A-Z]\w+\.[a-z]\w*)`", ARCHITECTURE))
    assert said
    assert {name for name in said if name.split(".")[0] in classes} <= EVERYWHERE


def test_files_in_the_tables_are_there() -> None:
    files = re.findall(r"`(_\w+/[\w/]+\.py)`", ARCHITECTURE)
    assert files
    assert [file for file in files if not (LIBRARY / file).exists()] == []


def called(f: Callable[[], Any]) -> set[tuple[str, str]]:
    """Give the functions of the library, with their files, that run while *f* does, in any thread."""
    seen = set[tuple[str, str]]()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add((frame.f_code.co_qualname, frame.f_code.co_filename))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        f()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return {
        (name, Path(file).relative_to(LIBRARY).as_posix())
        for name, file in seen.copy()  # a thread may still be at its end
        if LIBRARY in Path(file).parents
    }


def absolute(x: int) -> int:
    return abs(x)


@pytest.mark.parametrize("kind", ["sync", "thread", "process", "task"])
def test_each_function_of_a_picture_is_on_the_way_of_an_item(kind: Any) -> None:
    ran = called(lambda: list(pmap(absolute, (x for x in [-1]), kind=kind)))
    elsewhere = [number for number, (_, file) in enumerate(steps(kind)) if file.endswith("child.py")]
    here = steps(kind)
    if elsewhere:
        del here[elsewhere[0] : elsewhere[-1] + 1]  # in another process
    assert [step for step in here if step not in ran] == []
