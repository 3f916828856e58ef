"""Which loop a task stage runs on, what it sees there, and how little a worker costs."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import resource
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from toolz import pipe

from fstream import StageStatus, pfilter, pflat_map, pmap
from tests.functions import is_odd, square
from tests.gates import Gate
from tests.loops import (
    AsyncSource,
    if_uvloop,
    in_every_loop,
    in_loop,
    no_complaints,
    run_strictly,
    uvloop,
    wait_until,
)
from tests.scripts import printed, run_python


async def where(_: object) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    await asyncio.sleep(0)
    return asyncio.get_running_loop(), threading.current_thread()


def where_plainly(_: object) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


@pytest.mark.parametrize("f", [where, where_plainly])
@in_every_loop
async def test_under_async_for_f_runs_on_the_callers_loop(f: Callable[[object], Any]) -> None:
    here = asyncio.get_running_loop(), threading.current_thread()
    assert set(await pmap(f, range(20), kind="task", workers=3)) == {here}


@in_every_loop
async def test_so_does_each_task_stage_of_a_mixed_pipeline(kind: str) -> None:
    loops = []

    async def look(x: int) -> int:
        loops.append(asyncio.get_running_loop())
        return x

    f = look if kind == "task" else square
    assert await pipe(range(10), pmap(look), pmap(f, kind=kind, workers=2), pmap(look)) == [
        x if kind == "task" else x * x for x in range(10)
    ]
    assert set(loops) == {asyncio.get_running_loop()}


@pytest.mark.parametrize("f", [where, where_plainly])
def test_under_sync_iteration_f_runs_on_one_loop_in_a_background_thread(f: Callable[[object], Any]) -> None:
    with no_complaints():
        places = set(pmap(f, range(20), kind="task", workers=3))
    assert len(places) == 1
    loop, thread = places.pop()
    assert thread is not threading.current_thread()
    wait_until(lambda: loop.is_closed() and not thread.is_alive())


@in_every_loop
async def test_f_awaits_a_future_of_the_callers_loop() -> None:
    """The consumer itself lets f go on: the futures belong to the loop in which both run."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(10)]
    futures[0].set_result(0)

    async def wait_for(x: int) -> int:
        return int(await futures[x])

    async for y in pmap(wait_for, range(10), workers=3):
        if y < 9:
            futures[y + 1].set_result(y + 1)
    assert all(future.done() for future in futures)


@in_every_loop
async def test_f_shares_a_lock_with_the_callers_tasks() -> None:
    lock, inside, most = asyncio.Lock(), 0, 0

    async def alone(x: int) -> int:
        nonlocal inside, most
        async with lock:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
        return x

    async def use_lock_too() -> None:
        for x in range(20):
            await alone(x)

    outputs, _ = await asyncio.gather(drain(pmap(alone, range(20), workers=5)), use_lock_too())
    assert outputs == list(range(20))
    assert most == 1


async def drain(stream: Any) -> list[Any]:
    return [y async for y in stream]


@asynccontextmanager
async def squares_server() -> AsyncIterator[str]:
    """A web server in the running loop that squares; yields its address."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=str(int(request.match_info["x"]) ** 2))

    app = web.Application()
    app.router.add_get("/{x}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@in_every_loop
async def test_a_client_session_of_the_callers_loop_works_in_f() -> None:
    async with squares_server() as address, aiohttp.ClientSession() as session:

        async def fetch(x: int) -> int:
            async with session.get(f"{address}/{x}") as response:
                return int(await response.text())

        stream = pipe(range(50), pmap(fetch, workers=8), pfilter(is_odd, kind="process", workers=2))
        assert await stream == [x * x for x in range(1, 50, 2)]


@in_every_loop
async def test_a_client_session_for_each_worker() -> None:
    async with squares_server() as address:

        async def connect() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(address)

        async def fetch(x: int, session: aiohttp.ClientSession) -> int:
            async with session.get(f"/{x}") as response:
                return int(await response.text())

        async def disconnect(status: StageStatus, session: aiohttp.ClientSession) -> None:
            await session.close()

        stream = pmap(fetch, range(20), workers=3, on_start=connect, on_done=disconnect)
        assert await stream == list(map(square, range(20)))


# Context variables.

USER: ContextVar[str] = ContextVar("USER", default="nobody")


def user(_: object) -> str:
    return USER.get()


async def async_user(_: object) -> str:
    await asyncio.sleep(0)
    return USER.get()


SEES_USER = pytest.mark.parametrize(
    ("f", "kind"), [(user, "sync"), (user, "thread"), (user, "task"), (async_user, "task")]
)


@SEES_USER
@in_every_loop
async def test_f_sees_the_callers_context_variables(f: Callable[[object], Any], kind: str) -> None:
    USER.set("ada")
    assert await pmap(f, range(20), kind=kind, workers=3) == ["ada"] * 20


@SEES_USER
def test_f_sees_the_callers_context_variables_in_sync_iteration(
    f: Callable[[object], Any], kind: str
) -> None:
    def main() -> list[str]:
        USER.set("ada")
        return list(pmap(f, range(20), kind=kind, workers=3))

    assert contextvars.copy_context().run(main) == ["ada"] * 20


@SEES_USER
@in_loop
async def test_each_caller_has_its_own(f: Callable[[object], Any], kind: str) -> None:
    transformer = pmap(f, kind=kind, workers=2)

    async def caller(name: str) -> list[str]:
        USER.set(name)
        return [y async for y in transformer(range(20))]

    assert await asyncio.gather(caller("ada"), caller("bob")) == [["ada"] * 20, ["bob"] * 20]
    assert USER.get() == "nobody"


@pytest.mark.parametrize("kind", ["thread", "task"])
@in_loop
async def test_so_do_on_start_and_on_done(kind: str) -> None:
    USER.set("ada")
    seen = []

    def on_done(status: StageStatus, name: str) -> None:
        seen.extend([name, USER.get()])

    await pmap(
        lambda x, name: x, range(3), kind=kind, workers=1, on_start=lambda: USER.get(), on_done=on_done
    )
    assert seen == ["ada", "ada"]


# Ten thousand workers, and no task for an item.

MANY = 10_000


class Meeting:
    """A coroutine function that holds its callers until *expected* of them are there at once."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self.inside = 0
        self.complete = asyncio.Event()

    async def __call__(self, x: int) -> int:
        self.inside += 1
        if self.inside == self.expected:
            self.complete.set()
        await self.complete.wait()
        await asyncio.sleep(0.1)
        return x


@in_every_loop
async def test_ten_thousand_items_sleep_at_once() -> None:
    begin = time.monotonic()
    assert await pmap(Meeting(MANY), range(MANY), kind="task", workers=MANY) == list(range(MANY))
    assert time.monotonic() - begin < 20


def test_ten_thousand_items_sleep_at_once_in_sync_iteration() -> None:
    begin = time.monotonic()
    with no_complaints():
        assert list(pmap(Meeting(MANY), range(MANY), kind="task", workers=MANY)) == list(range(MANY))
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("workers", "items"), [(8, 5_000), (2_000, 6_000)])
@in_every_loop
async def test_an_item_costs_no_task(workers: int, items: int) -> None:
    created = itertools.count()

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        next(created)
        return asyncio.Task(coro, loop=loop, **kwargs)

    asyncio.get_running_loop().set_task_factory(factory)
    assert await pmap(async_user, range(items), workers=workers) == ["nobody"] * items
    assert next(created) <= workers + 10


def test_an_item_costs_no_task_in_sync_iteration() -> None:
    tasks = set()

    async def note_task(x: int) -> int:
        tasks.add(asyncio.current_task())
        await asyncio.sleep(0)
        return x

    with no_complaints():
        assert list(pmap(note_task, range(5_000), workers=8)) == list(range(5_000))
    assert len(tasks) <= 8


@pytest.mark.parametrize("workers", [1, 3])
@in_loop
async def test_never_more_items_at_once_than_workers(workers: int) -> None:
    inside, most = 0, 0

    async def count_inside(x: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        return x

    assert await pmap(count_inside, range(200), workers=workers) == list(range(200))
    assert most == workers


# The loop of a thread of our own


async def nap(seconds: float) -> float:
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    return time.monotonic() - begun


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere asyncio does not round up")
def test_a_timer_of_our_own_loop_is_not_rounded_up_to_a_millisecond():
    naps = list(pmap(nap, [0.0003] * 100, workers=1))
    assert 0.0003 <= min(naps) < 0.0009  # in epoll_wait none would take less than 0.001


def test_our_own_loop_costs_nothing_while_it_waits_for_a_timer():
    async def worked_in_a_nap(_: object) -> float:
        begun = time.thread_time()
        await asyncio.sleep(0.3)
        return time.thread_time() - begun

    assert max(pmap(worked_in_a_nap, range(2))) < 0.03


@pytest.fixture
def many_files() -> Iterator[None]:
    """More files are open than `select` can name."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    files = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while files[-1] < 1100:
            files.append(os.dup(files[0]))
        yield
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("many_files")
def test_our_own_loop_runs_where_a_thousand_files_are_open():
    assert min(pmap(nap, [0.0003] * 3)) >= 0.0003


def test_our_own_loop_is_woken_while_it_waits_for_a_timer(gate: Gate):
    """What comes by a descriptor, here from another thread, does not wait for it."""

    async def f(x: int) -> int:
        await (gate.passed() if x else asyncio.sleep(0.01))
        if not x:
            gate.open()
        return x

    async def late(x: int) -> int:
        timer = asyncio.create_task(asyncio.sleep(600))
        try:
            return await f(x)
        finally:
            timer.cancel()

    assert list(pmap(late, range(5))) == list(range(5))


# uvloop, as its users run it.

UVLOOP_SCRIPT = """
import asyncio, uvloop
from fstream import pmap

async def loop_of(x):
    return type(asyncio.get_running_loop()).__module__

async def main():
    stream = pmap(len, pmap(loop_of, range(3)), kind="process", workers=1)
    return [y async for y in stream], await pmap(loop_of, range(1))

{run}
print(list(pmap(loop_of, range(2))))
"""


@if_uvloop
@pytest.mark.parametrize("run", ["print(uvloop.run(main()))", "uvloop.install(); print(asyncio.run(main()))"])
def test_a_script_on_uvloop(run: str) -> None:
    output = printed(run_python("-W", "ignore", "-c", UVLOOP_SCRIPT.format(run=run))).splitlines()
    assert output[0] == "([6, 6, 6], ['uvloop'])"
    assert output[1] == f"{['uvloop' if 'install' in run else 'asyncio.unix_events'] * 2}"


@if_uvloop
def test_sync_iteration_while_uvloop_runs(kind: str) -> None:
    async def main() -> list[int]:
        return list(pmap(square, range(20), kind=kind, workers=2))

    assert run_strictly(main, uvloop.new_event_loop) == list(map(square, range(20)))


@pytest.mark.parametrize("kind", ["thread", "task"])
@in_every_loop
async def test_a_pipeline_inside_f(kind: str) -> None:
    """Nested: a coroutine function iterates a stream of its own, on the same loop."""

    async def total(n: int) -> int:
        return sum([y async for y in pmap(square, range(n), kind=kind, workers=2)])

    assert await pmap(total, range(10), workers=3) == [sum(map(square, range(n))) for n in range(10)]


@in_loop
async def test_an_async_source_and_f_and_the_consumer_share_one_loop() -> None:
    source = AsyncSource(range(3))
    stream = pflat_map(lambda x: where(x), source, kind="task")
    loops = {place for place in await stream if isinstance(place, asyncio.AbstractEventLoop)}
    assert loops == source.pulled_in == {source.closed_in} == {asyncio.get_running_loop()}


def interleave(streams: list[Any]) -> Iterator[Any]:
    yield from itertools.chain.from_iterable(zip(*streams, strict=True))


def test_sync_iterations_side_by_side_each_have_a_loop_that_runs() -> None:
    """Neither waits for the other, though both have a private loop (or share one)."""
    streams = [pmap(where, range(10), kind="task", workers=2) for _ in range(3)]
    with no_complaints():
        places = list(interleave(streams))
    assert len(places) == 30
    assert all(thread is not threading.current_thread() for _, thread in places)


@in_every_loop
async def test_a_row_that_a_feeder_starts_runs_on_the_callers_loop() -> None:
    """The kind "sync" between two rows of tasks: a thread iterates the first row, and wakes the idle loop for it."""
    loops = set()

    async def noted(x: int) -> int:
        loops.add(asyncio.get_running_loop())
        return x

    for _ in range(20):
        row = iter(range(50)) | pmap(noted, workers=2, ordered=False)
        assert sorted(await (row | pmap(abs, kind="sync") | pmap(noted, workers=3))) == list(range(50))
    assert loops == {asyncio.get_running_loop()}
