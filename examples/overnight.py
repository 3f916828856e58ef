"""The overnight job: fetch many pages of a slow, limited service, which fails now and then, into a database.

    python examples/overnight.py

starts such a service on the loopback address (overnight_server.py), starts the job, kills it in the middle by
`kill -9`, starts it again, and checks that nothing was lost and nothing done twice. The job itself is `run_job`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from sqlite3 import connect
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from aiohttp import ClientError, ClientResponseError, ClientSession
from toolz import concat, pipe

from fstream import Failed, Journal, Rate, StageStatus, batch, divert, pmap, watch

LIMIT = 100  # requests in a second: what the service allows
HELD = 64  # pages that the job has under way, and that a kill can lose
CREATE = "create table if not exists pages (url primary key, title)"
INSERT = "insert or ignore into pages values (:url, :title)"


# ---------------------------------------------------------------------------------------------------------- the job


@cache  # one session for all workers of the stage
def open_session() -> ClientSession:
    return ClientSession(raise_for_status=True)


async def close_session(stage_status: StageStatus, session: ClientSession) -> None:
    if stage_status.done:  # in the last worker
        open_session.cache_clear()
        await session.close()


def host(url: str) -> str:
    return urlsplit(url).netloc


async def fetch(url: str, session: ClientSession) -> Any:
    async with session.get(url) as response:
        return await response.json()


def again(error: Exception) -> bool | float:
    if isinstance(error, ClientResponseError):
        if error.status == 429 and error.headers:
            return float(error.headers["Retry-After"])  # nobody asks before that
        return error.status >= 500
    return isinstance(error, ClientError | TimeoutError)


def run_job(urls: list[str], folder: Path) -> None:
    with (
        Journal(folder / "fetched.jsonl") as journal,
        open(folder / "dead.jsonl", "w") as letters,
        closing(connect(folder / "pages.db")) as database,
        watch(),
    ):

        def bury(dead: Failed) -> None:
            print(json.dumps([dead.item, repr(dead.error), dead.tries]), file=letters)

        fetching = pmap(
            fetch, kind="task", workers=50, maxsize=HELD, ordered=False,
            on_start=open_session, on_done=close_session,
            rate=Rate(LIMIT),                              # first and further tries together
            key=host, per_key=20,                          # requests to one host at once
            timeout=2.0, retries=5, retry_on=again,
            on_error="keep",                               # what failed for good goes on as a Failed
            memo=journal,                                  # what an earlier run has fetched is not fetched again
        )  # fmt: skip
        database.execute(CREATE)
        for pages in pipe(urls, fetching, divert(bury), batch(100, within=2.0)):
            with database:  # a transaction
                database.executemany(INSERT, pages)


# ------------------------------------------------------------------------------- a service for it, a kill, a check


@contextmanager
def serving(hosts: int = 3) -> Iterator[list[str]]:
    """Run the service in a process of its own, and give its addresses."""
    script = str(Path(__file__).with_name("overnight_server.py"))
    command = [sys.executable, script, str(LIMIT), str(hosts)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()


def start(sites: list[str], count: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start the job in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, "--pages", str(count), "--job", str(folder), *sites])


def urls_of(sites: list[str], count: int) -> list[str]:
    """Give the addresses of *count* pages, in turn on each of *sites*."""
    return [f"{sites[number % len(sites)]}/{number}" for number in range(count)]


def lines(path: Path) -> list[str]:
    """Give the lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


def main(count: int) -> bool:
    """Run the job, kill it, run it again, print what came of it, and tell whether that is what it should be."""
    with tempfile.TemporaryDirectory() as name, serving() as sites:
        folder, begun = Path(name), time.perf_counter()
        job = start(sites, count, folder)
        while len(lines(folder / "fetched.jsonl")) < count / 2 and job.poll() is None:
            time.sleep(0.05)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        fetched = len(lines(folder / "fetched.jsonl")) - 1
        ended = start(sites, count, folder).wait()
        seconds = time.perf_counter() - begun

        seen = json.load(urlopen(f"{sites[0]}/stats"))
        with closing(connect(folder / "pages.db")) as database:
            stored = list(concat(database.execute("select url from pages")))
        dead = [json.loads(line)[0] for line in lines(folder / "dead.jsonl")]
        twice = seen["served"] - len(stored)
        right = ended == 0 and sorted(stored + dead) == sorted(urls_of(sites, count)) and twice <= HELD

    print(f"killed when {fetched} pages were fetched; the second run went on from there")
    print(f"{len(stored)} pages in the database, {len(dead)} dead letters, in {seconds:.1f} s")
    print(
        f"the service had {seen['requests']} requests and refused {seen['refused']}; {twice} pages were fetched twice"
    )
    print("nothing lost, nothing done again but what the job held" if right else "NOT AS IT SHOULD BE")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch pages, be killed, and go on.")
    parser.add_argument("--pages", type=int, default=500, metavar="N", help="how many pages (default: 500)")
    parser.add_argument(
        "--job", type=Path, metavar="FOLDER", help="run the job alone, with its files in a folder"
    )
    parser.add_argument("sites", nargs="*", help="the addresses of the service, for --job")
    arguments = parser.parse_args()
    if arguments.job:
        run_job(urls_of(arguments.sites, arguments.pages), arguments.job)
    else:
        sys.exit(0 if main(arguments.pages) else 1)
