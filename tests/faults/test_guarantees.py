"""The guarantees in the documentation name the tests that hold them, and every fault is among them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.fault_table import FAULTS

DOCS = Path(__file__).parent.parent.parent / "docs"
TEXT = (DOCS / "guarantees.md").read_text()
LINKS = sorted(set(re.findall(r"\[(\w+)\]\(([^)]*/tests/[^)]*)\)", TEXT.replace("(../", f"({DOCS.parent}/"))))


@pytest.mark.parametrize(("name", "path"), LINKS, ids=[name for name, _ in LINKS])
def test_a_guarantee_names_a_test_that_there_is(name: str, path: str) -> None:
    if path.endswith("fault_table.py"):
        assert name in {fault.name for fault in FAULTS}
    else:
        assert f"def {name}(" in Path(path).read_text()


def test_each_fault_is_guaranteed() -> None:
    linked = {name for name, _ in LINKS}
    assert {fault.name for fault in FAULTS} <= linked


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("test_*.py")), ids=lambda path: path.stem)
def test_each_test_of_faults_is_named(path: Path) -> None:
    tests = set(re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE))
    about_the_tests = {"test_fault_matrix", "test_guarantees"}
    assert path.stem in about_the_tests or tests <= {name for name, _ in LINKS}
