"""Fetch a few hundred pages by aiohttp on tasks, from a server that the script itself starts.

Each worker opens a session in `on_start`; f gets it as its second argument; `on_done` closes it.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from aiohttp import ClientSession
from toolz import pipe

from fstream import StageStatus, pmap

WORDS = ["item", "order", "output", "source", "span", "stage", "stream", "task", "thread", "worker"]
LATENCY = 0.05  # seconds: as if the server were far away


class Page(NamedTuple):
    """What is counted in one page."""

    words: int
    links: int


def html(number: int) -> str:
    """Write page *number*: some text with links to other pages, always the same."""
    dice = random.Random(number)
    text = " ".join(dice.choices(WORDS, k=dice.randint(50, 500)))
    links = " ".join(f'<a href="/{dice.randrange(1_000)}">more</a>' for _ in range(dice.randint(1, 20)))
    return f"<html><body><p>{text}</p><p>{links}</p></body></html>"


class Handler(BaseHTTPRequestHandler):
    """Serve page 7 at /7, and so on."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together

    def do_GET(self) -> None:
        """Answer one request."""
        body = html(int(self.path.removeprefix("/"))).encode()
        time.sleep(LATENCY)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """Let as many clients wait for a connection as there are workers."""

    request_queue_size = 128
    daemon_threads = True


@contextmanager
def serving() -> Iterator[str]:
    """Run the server on a free port of the loopback address, and give its URL."""
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def open_session() -> ClientSession:
    """Open the HTTP session of one worker."""
    return ClientSession(raise_for_status=True)


async def fetch(url: str, session: ClientSession) -> str:
    """Get the text of one page."""
    async with session.get(url) as response:
        return await response.text()


async def close_session(_status: StageStatus, session: ClientSession) -> None:
    """Close the HTTP session of one worker."""
    await session.close()


def measure(page: str) -> Page:
    """Count the words and the links of one page."""
    return Page(words=len(re.sub(r"<[^>]*>", " ", page).split()), links=page.count("<a "))


def main(count: int) -> bool:
    """Fetch *count* pages, print what was in them, and tell whether it was what the server had written."""
    with serving() as site:
        start = time.perf_counter()
        pages: list[Page] = pipe(
            (f"{site}/{number}" for number in range(count)),
            pmap(fetch, kind="task", workers=50, on_start=open_session, on_done=close_session),
            pmap(measure, kind="sync"),
            list,
        )
        seconds = time.perf_counter() - start
    as_written = pages == [measure(html(number)) for number in range(count)]
    print(f"{len(pages):,} pages in {seconds:.2f} s; one by one they take at least {LATENCY * count:.1f} s")
    print(f"{sum(page.words for page in pages):,} words, {sum(page.links for page in pages):,} links")
    print("all as written, in order" if as_written else "NOT AS WRITTEN")
    return as_written


parser = argparse.ArgumentParser(description="Fetch pages from a local server.")
parser.add_argument("--pages", type=int, default=300, metavar="N", help="how many pages (default: 300)")
sys.exit(0 if main(parser.parse_args().pages) else 1)
