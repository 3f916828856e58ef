"""examples/asgi_stream.py: a real server process, and clients that stay or hang up half-way."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from tests.loops import eventually, in_every_loop, wait_until
from tests.scripts import environment_with

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parent.parent / "examples" / "asgi_stream.py"
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
JSON_FILES = sorted(str(path.relative_to(STDLIB)) for path in (STDLIB / "json").rglob("*.py"))


class Server:
    """A running server and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", self.log.read_text())
        self.port = int(found[1]) if found else 0
        return bool(found)

    @contextmanager
    def get(self, path: str) -> Iterator[HTTPResponse]:
        """Ask for *path*; the end of the block hangs up, read or not."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", path)
            with connection.getresponse() as response:
                yield response

    def status(self) -> Any:
        with self.get("/status") as response:
            return json.load(response)

    def is_idle(self) -> bool:
        return bool(self.status() == {"open": 0})

    def files(self, path: str) -> list[str]:
        """The files that the lines of a whole response are about."""
        with self.get(path) as response:
            assert response.status == 200
            return [json.loads(line)["file"] for line in response]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, EXAMPLE, "0"], stdout=file, stderr=file, env=environment_with()
        )
    server = Server(process, log)
    try:
        wait_until(server.is_up)
        yield server
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        assert "Traceback" not in log.read_text(), log.read_text()
        assert not psutil.wait_procs(children, timeout=30)[1]
    finally:
        process.kill()
        process.wait()


def test_a_client_gets_a_line_for_each_file_in_order(server: Server) -> None:
    assert server.files("/names/json") == JSON_FILES
    wait_until(server.is_idle)


def test_a_client_that_hangs_up_closes_the_pipeline_and_the_next_request_works(server: Server) -> None:
    """The pipeline over the whole library takes seconds; it is open while its first line is read."""
    for _ in range(2):
        with server.get("/names/") as response:
            assert "file" in json.loads(response.readline())
            assert server.status() == {"open": 1}
        wait_until(server.is_idle)
        assert server.files("/names/json") == JSON_FILES


def test_a_client_that_hangs_up_leaves_the_others_alone(server: Server) -> None:
    with server.get("/names/json") as staying:
        with server.get("/names/") as leaving:
            assert leaving.readline()
        assert [json.loads(line)["file"] for line in staying] == JSON_FILES
    wait_until(server.is_idle)


def test_other_paths_are_not_found(server: Server) -> None:
    for path in ("/", "/names/../..", "/names/no_such_folder"):
        with server.get(path) as response:
            assert response.status == 404


# The same handler without a server, where each step can be held.


@pytest.fixture
def example() -> ModuleType:
    """The example as a module that nobody can import, so that its functions travel to processes by value."""
    spec = importlib.util.spec_from_file_location("asgi_stream", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Client:
    """The other end of an ASGI call: it hangs up when it has got *patience* lines."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.lines: list[bytes] = []
        self.hung_up = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            self.lines += message["body"].splitlines()
        if len(self.lines) >= self.patience:
            self.hung_up.set()
            await asyncio.Event().wait()  # nobody reads any more

    async def ask(self, app: Any, path: str) -> None:
        await app({"type": "http", "path": path}, self.receive, self.send)


@in_every_loop
async def test_the_handler_ends_when_the_client_hangs_up(example: ModuleType) -> None:
    client = Client(patience=3)
    await client.ask(example.app, "/names/")
    assert len(client.lines) == 3
    await eventually(lambda: not example.OPEN)


@in_every_loop
async def test_the_handler_ends_with_the_last_line(example: ModuleType) -> None:
    client = Client(patience=1000)
    await client.ask(example.app, "/names/json")
    assert [json.loads(line)["file"] for line in client.lines] == JSON_FILES
    assert not example.OPEN
