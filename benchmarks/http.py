"""5,000 requests to a server in its own process on 127.0.0.1, a hundred at a time, with aiohttp.

Run as `python -m benchmarks.http` it is that server: it prints its port, and ends when its standard input
does.
"""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.floors import share_among_tasks
from benchmarks.rows import Bound, Contender, Mapper, Outputs, Row, timed

AT_ONCE = 100
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!"


class _Server(asyncio.Protocol):
    """Answers every request on a connection that stays open. A request has no body: a blank line ends it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *requests, self._rest = (self._rest + data).split(b"\r\n\r\n")
        self._transport.write(ANSWER * len(requests))  # type: ignore[attr-defined]


async def serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Server, "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.http"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.stdin.close()


def _open_session() -> Any:
    from aiohttp import ClientSession, TCPConnector

    return ClientSession(connector=TCPConnector(limit=AT_ONCE))


async def _fetch(session: Any, url: str) -> str:
    async with session.get(url) as response:
        text: str = await response.text()
        return text


async def _fetch_with(url: str, session: Any) -> str:
    return await _fetch(session, url)


Client = Callable[[list[str]], Outputs]


def _raw(urls: list[str]) -> list[str]:
    async def main() -> list[str]:
        async with _open_session() as session:
            return await share_among_tasks(partial(_fetch, session), urls)

    return asyncio.run(main())


def _in_loop(fetch_all: Callable[[Any, list[str]], AsyncIterable[str]]) -> Client:
    """A client that opens a session in the caller's loop and iterates there."""

    async def client(urls: list[str]) -> AsyncIterator[str]:
        async with _open_session() as session:
            async for text in fetch_all(partial(_fetch, session), urls):
                yield text

    return client


def _fstream_in_loop(fetch: Any, urls: list[str]) -> AsyncIterable[str]:
    from fstream import pmap

    outputs: AsyncIterable[str] = pmap(fetch, urls, kind="task", workers=AT_ONCE)
    return outputs


def _pypeln_in_loop(fetch: Any, urls: list[str]) -> AsyncIterable[str]:
    from pypeln import task

    outputs: AsyncIterable[str] = task.map(fetch, urls, workers=AT_ONCE)
    return outputs


def _streamable_in_loop(fetch: Any, urls: list[str]) -> AsyncIterable[str]:
    from streamable import stream

    outputs: AsyncIterable[str] = stream(urls).map(fetch, concurrency=AT_ONCE)
    return outputs


def _aiostream_in_loop(fetch: Any, urls: list[str]) -> AsyncIterable[str]:
    from aiostream import stream

    outputs: AsyncIterable[str] = stream.map(stream.iterate(urls), fetch, task_limit=AT_ONCE)
    return outputs


class _SharedSession:
    """One session for all workers of a stage: opened by the first, closed by the last."""

    def __init__(self) -> None:
        self._session: Any = None

    async def open(self) -> Any:
        self._session = self._session or _open_session()
        return self._session

    async def close(self, stage_status: Any, session: Any) -> None:
        if stage_status.done:
            await session.close()


def _fstream(urls: list[str]) -> Iterable[str]:
    from fstream import pmap

    shared = _SharedSession()
    outputs: Iterable[str] = pmap(
        _fetch_with, urls, kind="task", workers=AT_ONCE, on_start=shared.open, on_done=shared.close
    )
    return outputs


def _pypeln(urls: list[str]) -> Iterable[str]:
    from pypeln import task

    outputs: Iterable[str] = task.map(
        _fetch_with,
        urls,
        workers=AT_ONCE,
        on_start=lambda: {"session": _open_session()},
        on_done=lambda session: session.close(),
    )
    return outputs


def _streamable(urls: list[str]) -> Iterator[str]:
    from streamable import stream

    with asyncio.Runner() as runner:
        session = runner.run(_opened())
        yield from stream(urls).map(partial(_fetch, session), concurrency=AT_ONCE)
        runner.run(session.close())


async def _opened() -> Any:
    return _open_session()


def _contender(client: Client) -> Contender:
    @contextmanager
    def adapter() -> Iterator[Mapper]:
        with _server() as url:
            yield lambda _, items: client([url for _ in items])

    return timed(adapter, None, range, expected=lambda _, items: ["Hello, world!" for _ in items])


def _row(name: str, work: str, limit: float, ours: Client, peers: Mapping[str, Client]) -> Row:
    raw = "100 tasks sharing one iterator"
    return Row(
        f"http-{name}",
        f"requests to a local server, {AT_ONCE} at a time, aiohttp, {work}",
        "of the raw rate",
        {raw: _contender(_raw), "fstream": _contender(ours)},
        {"fstream": Bound(limit, at_least=True)},
        5_000,
        2_000,
        lambda value, reference: reference / value,
        raw,
        {name: _contender(client) for name, client in peers.items()},
    )


ROWS = (
    _row(
        "async-for",
        "`async for`",
        0.97,
        _in_loop(_fstream_in_loop),
        {
            "streamable": _in_loop(_streamable_in_loop),
            "aiostream": _in_loop(_aiostream_in_loop),
            "pypeln": _in_loop(_pypeln_in_loop),
        },
    ),
    _row("for", "`for`", 0.75, _fstream, {"streamable": _streamable, "pypeln": _pypeln}),
)


if __name__ == "__main__":
    asyncio.run(serve())
