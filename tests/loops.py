"""What the async tests share: a loop that forgives nothing, an async source, a function that holds its callers."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from tests.gates import PATIENCE
from tests.sources import Source

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

try:
    import uvloop
except ImportError:  # there is none for free-threaded builds
    uvloop = None

if_uvloop = pytest.mark.skipif(uvloop is None, reason="uvloop is not installed")
LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(uvloop and uvloop.new_event_loop, id="uvloop", marks=if_uvloop),
]


@contextmanager
def no_complaints() -> Iterator[list[str]]:
    """Warnings are errors inside; what the collector or a thread could only print fails the test.

    Yields the list of such complaints, to which an event loop may add its own.
    """
    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(
            sys, "unraisablehook", lambda args: heard.append(f"{args.exc_value!r} in {args.object!r}")
        )
        patch.setattr(
            threading, "excepthook", lambda args: heard.append(f"{args.exc_value!r} in {args.thread!r}")
        )
        gc.freeze()  # what was there before is of no concern, and not looked at again
        try:
            yield heard
            gc.collect()
        finally:
            gc.unfreeze()
    assert not heard, heard


def other_tasks() -> set[asyncio.Task[Any]]:
    """The unfinished tasks of the running loop but for the current one."""
    return asyncio.all_tasks() - {asyncio.current_task()}


def run_strictly(
    main: Callable[[], Coroutine[Any, Any, T]],
    loop_factory: Callable[[], Loop] | None = None,
    *,
    unfinished: bool = False,
) -> T:
    """Run *main* as `asyncio.run` does; fail if the loop or the collector complains of anything.

    Nor may *main* leave a task behind, unless *unfinished*.
    """

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(str(context)))
        async with asyncio.timeout(PATIENCE):
            result = await main()
        if not unfinished:
            heard.extend(map(repr, other_tasks()))
        return result

    with no_complaints() as heard, asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(watched())


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a plain test of a coroutine function: run it in a loop that forgives nothing."""

    @functools.wraps(test)
    def plain(**given: Any) -> None:
        run_strictly(functools.partial(test, **given))

    return plain


def in_every_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Any:
    """As `in_loop`, once on asyncio's loop and once on uvloop's."""

    @functools.wraps(test)
    def plain(loop_factory: Callable[[], Loop], **given: Any) -> None:
        run_strictly(functools.partial(test, **given), loop_factory)

    signature = inspect.signature(test)
    factory = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    plain.__signature__ = signature.replace(parameters=[*signature.parameters.values(), factory])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop_factory", LOOPS)(plain)


async def turns(count: int) -> None:
    """Give the loop *count* turns, in which all that is ready gets on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def eventually(check: Callable[[], object]) -> None:
    """Wait until *check* is true, while the loop runs on."""
    async with asyncio.timeout(PATIENCE):
        while not check():
            await asyncio.sleep(0.005)


def wait_until(check: Callable[[], object]) -> None:
    """Wait until *check* is true."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still false after {PATIENCE} s: {check}")
        time.sleep(0.005)


class AsyncSource:
    """As `tests.sources.Source`, to be iterated asynchronously: it knows its loops, and takes some turns to close."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self.pulled = 0
        self.pulled_in: set[Loop] = set()
        self.closed_in: Loop | None = None
        self.closed = threading.Event()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            for item in self._items:
                self.pulled += 1
                self.pulled_in.add(asyncio.get_running_loop())
                yield item
        finally:
            await turns(3)
            self.closed_in = asyncio.get_running_loop()
            self.closed.set()


def closed_where_pulled(source: Source | AsyncSource) -> bool:
    """Tell whether *source*, if it was pulled at all, was closed in the same thread or loop."""
    return source.pulled_in <= {source.closed_in}


class Holding:
    """A function for tasks: lets items below *first* through, and holds each other one until it is cancelled.

    *full* is set when *workers* items are held. Leaving takes the loop some turns, so that an item counts as left only
    if its task was awaited after it was cancelled, and was cancelled but once.
    """

    def __init__(self, first: int, workers: int) -> None:
        self.first = first
        self.workers = workers
        self.full = asyncio.Event()
        self.entered: list[int] = []
        self.left: list[int] = []

    async def __call__(self, x: int) -> int:
        if x < self.first:
            return x
        self.entered.append(x)
        if len(self.entered) == self.workers:
            self.full.set()
        try:
            await asyncio.Event().wait()
        finally:
            await turns(3)
            self.left.append(x)
        return x

    def check(self) -> None:
        """Every worker held an item, and left it in good order."""
        assert len(self.entered) == self.workers
        assert sorted(self.left) == sorted(self.entered)


class Boom(Exception):
    """What the tests raise."""
