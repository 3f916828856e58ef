"""The floors of the library: the rule holds, and what breaks it is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.floors import PROJECT, broken, modules


def write(folder: Path, files: dict[str, str]) -> Path:
    """Make a package of *files*, and of the floors that hold them."""
    for name, source in files.items():
        path = folder / "fstream" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for parent in path.parents:
            if folder in parent.parents:
                (parent / "__init__.py").touch()
    return folder


def test_every_module_imports_what_is_below_it_and_none_in_a_circle():
    assert len(modules(PROJECT)) > 40
    assert broken() == []


@pytest.mark.parametrize(
    "source",
    [
        "from fstream._workers.kinds import register",
        "import fstream._workers.kinds",
        "from fstream._workers import kinds",
        "def f():\n    from fstream._workers.kinds import register",
        "if TYPE_CHECKING:\n    from fstream._workers.kinds import register",
    ],
)
def test_an_import_of_a_floor_above_is_found_wherever_it_stands(tmp_path: Path, source: str):
    folder = write(tmp_path, {"_engine/run.py": source, "_workers/kinds.py": ""})
    line = 1 + source.count("\n")
    assert broken(folder) == [f"fstream/_engine/run.py:{line}: _engine may not import fstream._workers.kinds"]


def test_a_circle_on_one_floor_is_found(tmp_path: Path):
    folder = write(
        tmp_path,
        {
            "_flow/room.py": "def f():\n    from fstream._flow.span import Span",
            "_flow/span.py": "from fstream._flow.room import Room",
        },
    )
    assert [problem[:8] for problem in broken(folder)] == ["a circle"]
