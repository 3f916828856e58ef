"""What the async tests share: a loop that forgives nothing, sources that remember their end, a check for leaks."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import uvloop

from fstream._workers.process import WARM

T = TypeVar("T")
Loop = asyncio.AbstractEventLoop

KINDS = ("sync", "thread", "process", "task")
CONCURRENT = ("thread", "process", "task")
LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]
HANG = 30.0  # seconds after which a wait counts as a hang
ROOT = Path(__file__).parents[1]


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
        yield heard
        gc.collect()
    assert not heard, heard


def other_tasks() -> set[asyncio.Task[Any]]:
    """The unfinished tasks of the running loop but for the current one."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


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
        async with asyncio.timeout(HANG):
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


def in_every_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
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
    async with asyncio.timeout(HANG):
        while not check():
            await asyncio.sleep(0.005)


def wait_until(check: Callable[[], object]) -> None:
    """Wait until *check* is true; works in a worker too, where a plain gate cannot go."""
    deadline = time.monotonic() + HANG
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still false after {HANG} s: {check}")
        time.sleep(0.005)


@contextmanager
def nothing_left() -> Iterator[None]:
    """What starts inside ends soon after: threads, and child processes other than the idle warm workers."""
    threads = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= threads and len(worker_processes()) <= len(WARM))


def worker_processes() -> list[psutil.Process]:
    """The child processes but for loky's resource tracker."""
    return [child for child in psutil.Process().children() if not is_tracker(child)]


def is_tracker(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE or any(
            "resource_tracker" in word for word in child.cmdline()
        )
    except psutil.NoSuchProcess:
        return True


class SyncSource:
    """An iterable of *items* that counts what was pulled, and notes the threads that opened and closed it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self.pulled = 0
        self.opened: list[threading.Thread] = []
        self.closed: list[threading.Thread] = []

    def __iter__(self) -> Iterator[Any]:
        self.opened.append(threading.current_thread())
        try:
            for item in self.items:
                self.pulled += 1
                yield item
        finally:
            self.closed.append(threading.current_thread())


class AsyncSource:
    """The same as an async iterable; it notes the loops, and takes the loop some turns to close."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items
        self.pulled = 0
        self.opened: list[Loop] = []
        self.closed: list[Loop] = []

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.opened.append(asyncio.get_running_loop())
        try:
            for item in self.items:
                self.pulled += 1
                yield item
        finally:
            await turns(3)
            self.closed.append(asyncio.get_running_loop())


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


def square(x: int) -> int:
    return x * x


def is_even(x: int) -> bool:
    return x % 2 == 0


def twice(x: int) -> list[int]:
    return [x, x]


def for_kind(f: Callable[..., T], kind: str) -> Callable[..., T] | Callable[..., Awaitable[T]]:
    """*f*, made a coroutine function for tasks."""
    if kind != "task":
        return f

    @functools.wraps(f)
    async def coroutine_function(*args: Any, **kwargs: Any) -> T:
        await asyncio.sleep(0)
        return f(*args, **kwargs)

    return coroutine_function
