"""The overnight job of the examples, killed several times: what is in its files then, and what the service has seen."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.gates import PATIENCE

pytest.importorskip("aiohttp")
pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"
LIMIT, HELD, WORKERS = 100, 64, 50  # as in the example
PAGES, KILLS = 300, 3


@pytest.fixture
def sites() -> Iterator[list[str]]:
    command = [sys.executable, str(EXAMPLES / "overnight_server.py"), str(LIMIT), "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()


def job(folder: Path, sites: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / "overnight.py"), "--pages", str(PAGES), "--job", str(folder)]
    return subprocess.Popen([*command, *sites], stderr=subprocess.PIPE, text=True)


def stored(folder: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(folder / "pages.db")) as database:
        return list(database.execute("select url, title from pages"))


def kill_when_fetched(running: subprocess.Popen[str], journal: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not journal.exists() or journal.read_bytes().count(b"\n") < count:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)  # another process writes the file
    running.kill()
    running.communicate()
    assert running.returncode == -signal.SIGKILL


def test_after_several_kills_all_is_there_once_and_the_service_was_asked_little_more(
    tmp_path: Path, sites: list[str]
):
    for kill in range(1, KILLS + 1):
        kill_when_fetched(job(tmp_path, sites), tmp_path / "fetched.jsonl", PAGES * kill // (KILLS + 1))
    last = job(tmp_path, sites)
    _, errors = last.communicate(timeout=40)
    assert last.returncode == 0, errors

    urls = [f"{sites[number % 2]}/{number}" for number in range(PAGES)]
    gone = [number for number in range(PAGES) if number % 100 == 13]
    broken = [number for number in range(PAGES) if number % 200 == 57]
    rows = stored(tmp_path)
    assert sorted(rows) == sorted(
        (url, f"Page {number}") for number, url in enumerate(urls) if number not in [*gone, *broken]
    )
    letters = [json.loads(line) for line in (tmp_path / "dead.jsonl").read_text().splitlines()]
    # What has failed is tried again by the next run.
    assert sorted(url for url, _, _ in letters) == sorted(urls[number] for number in [*gone, *broken])
    assert {tries for url, _, tries in letters if urls.index(url) in broken} == {6}
    assert all("ClientResponseError" in error for _, error, _ in letters)

    seen: dict[str, Any] = json.load(urlopen(f"{sites[0]}/stats"))
    once_more = [number for number in range(PAGES) if number % 50 == 31 or number % 20 == 7]
    assert seen["pages"] == len(rows)
    assert seen["served"] <= len(rows) + KILLS * HELD
    assert seen["tries"] <= len(rows) + KILLS * HELD + len(once_more) + (KILLS + 1) * (
        len(gone) + 6 * len(broken)
    )
    # Each time that the service refuses, it refuses those that were asked for just then, and is left alone until it
    # may be asked again: when it has closed, and when a new run knows nothing of the requests of the one before.
    times = seen["requests"] // 200 + KILLS + 1
    assert seen["refused"] <= WORKERS * times
