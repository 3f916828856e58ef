"""Stream the outputs of a pipeline from an async web server, while they come, to clients that may hang up.

    python examples/asgi_stream.py 8000
    curl -N http://127.0.0.1:8000/names/json    # the names in each file of the json package, a line per file
    curl -N http://127.0.0.1:8000/names/        # the whole standard library; interrupt it when you like
    curl http://127.0.0.1:8000/status           # how many pipelines are open

Files are read on threads, parsed on processes, and their lines are made on the server's own loop, which goes on
serving others meanwhile. Nothing here needs a framework: `app` is plain ASGI, as FastAPI and Starlette are beneath.

What to take from it: `async with aclosing(stream)` in the handler, and cancelling the handler when the client hangs
up. The rest follows: tasks are cancelled, workers stop, the source is closed.
"""

from __future__ import annotations

import ast
import asyncio
import json
import sys
import sysconfig
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from toolz import pipe

from fstream import Stream, pmap

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
OPEN: set[object] = set()  # one token for each pipeline whose source is neither exhausted nor closed


def python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files of *folder*; the pipeline counts as open until this ends."""
    token = object()
    OPEN.add(token)
    try:
        yield from sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    finally:
        OPEN.discard(token)


def read(path: Path) -> tuple[Path, bytes]:
    return path, path.read_bytes()


def count_names(file: tuple[Path, bytes]) -> tuple[Path, Counter[str] | None]:
    """Parse a file and count its names; None if it is not valid Python, as some files for tests are not."""
    path, source = file
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return path, None
    return path, Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


async def line(counted: tuple[Path, Counter[str] | None]) -> bytes:
    path, names = counted
    report: dict[str, Any] = {"file": str(path.relative_to(STDLIB))}
    report |= (
        {"error": "not valid Python"}
        if names is None
        else {"names": names.total(), "top": names.most_common(3)}
    )
    return json.dumps(report).encode() + b"\n"


def lines(folder: Path) -> Stream[bytes]:
    """A line of JSON about each Python file of *folder*; starts when it is iterated."""
    stream: Stream[bytes] = pipe(
        python_files(folder),
        pmap(read, kind="thread", workers=4),
        pmap(count_names, kind="process"),
        pmap(line, kind="task", workers=10),
    )
    return stream


async def send_lines(send: Send, stream: Stream[bytes]) -> None:
    """Send each line as soon as it is there; `send` waits for a slow client, and the pipeline with it."""
    async with aclosing(stream):
        await begin(send, 200, b"application/x-ndjson")
        async for output in stream:
            await send({"type": "http.response.body", "body": output, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def send_json(send: Send, status: int, content: object) -> None:
    await begin(send, status, b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


async def begin(send: Send, status: int, content_type: bytes) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]}
    )


async def unless_hung_up(receive: Receive, responding: Coroutine[Any, Any, None]) -> None:
    """Run *responding* to its end, or cancel it as soon as the client hangs up."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        response.cancel()

    async with asyncio.TaskGroup() as group:
        response = group.create_task(responding)
        watching = group.create_task(watch())
        response.add_done_callback(lambda _: watching.cancel())


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """The ASGI application: ``/names/<folder>`` and ``/status``."""
    if scope["type"] != "http":
        raise NotImplementedError(f"only HTTP is served here, not {scope['type']}")
    path = scope["path"]
    folder = (STDLIB / path.removeprefix("/names/")).resolve()
    if path == "/status":
        await send_json(send, 200, {"open": len(OPEN)})
    elif path.startswith("/names/") and folder.is_relative_to(STDLIB) and folder.is_dir():
        await unless_hung_up(receive, send_lines(send, lines(folder)))
    else:
        await send_json(send, 404, {"error": f"there is no {path}"})


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(sys.argv[1]) if sys.argv[1:] else 8000, lifespan="off")
