"""The tables of docs/cookbook.md that say what others' calls are in fstream: both sides give the same."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pytest

import fstream
from fstream import pmap
from tests.scripts import run_python

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent / "docs"


def f(number: int) -> int:
    return number * number


async def g(number: int) -> int:
    await asyncio.sleep(0)
    return number * number


def odd(number: int) -> bool:
    return number % 2 == 1


def below(number: int) -> range:
    return range(number)


def add(number: int, n: int) -> int:
    return number + n


def rows(heading: str) -> list[tuple[str, str]]:
    """The calls in the table below a *heading*: theirs, and ours."""
    text = (DOCS / "cookbook.md").read_text().split(f"### {heading}\n")[1].split("\n### ")[0]
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return [(theirs.strip(" `"), ours.strip(" `")) for theirs, ours, _ in lines]


def check(heading: str, **names: Any) -> None:
    xs, ys = range(20), range(5, 25)
    scope = {
        **{name: getattr(fstream, name) for name in fstream.__all__},
        **globals(),
        "xs": xs,
        "ys": ys,
        "pairs": [*zip(xs, ys)],
        **names,
    }
    found = rows(heading)
    assert found
    for theirs, ours in found:
        there, here = eval(theirs, scope), eval(ours, scope)
        in_order = "ordered=False" not in ours and "merge" not in ours
        assert (there == here) if in_order else (sorted(there) == sorted(here)), (theirs, ours)


def test_concurrent_futures():
    with ThreadPoolExecutor(4) as executor:
        check("concurrent.futures", executor=executor, as_completed=as_completed)
        assert list(pmap(f, range(5), kind=executor)) == [0, 1, 4, 9, 16]


def test_multiprocessing():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        check("multiprocessing.Pool", pool=pool)
        pool.close()
        pool.join()


@pytest.mark.parametrize(
    ("heading", "names"),
    [("joblib", "Parallel=joblib.Parallel, delayed=joblib.delayed"), ("pypeln", "pl=pypeln")],
    ids=["joblib", "pypeln"],
)
def test_others(heading: str, names: str):
    pytest.importorskip(heading)
    # In a program of its own, as they leave threads and processes behind.
    source = f"import {heading}; from tests.test_cookbook import check; check({heading!r}, {names})"
    result = run_python("-W", "ignore", "-c", source)
    assert result.returncode == 0, result.stderr
