"""Loops that cannot be made, or are not those that one thinks; endless time-outs; cancellations that vanish."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from fstream import pmap
from fstream._flow.sizing import Sizing
from fstream._workers.task import host as loops
from tests.faults.faulty import eventually
from tests.gates import PATIENCE
from tests.loops import run_strictly
from tests.scripts import Script, printed


async def same(x: Any) -> Any:
    return x


def plain(x: Any) -> Any:
    return x


async def numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number


@pytest.mark.parametrize("use", ["tasks", "async source", "behind a process"])
def test_a_loop_that_cannot_be_made_is_an_error_at_once(use: str, monkeypatch: pytest.MonkeyPatch):
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    def make() -> Any:
        if use == "tasks":
            return pmap(same, [0, 1, 2])
        if use == "async source":
            return pmap(plain, numbers(), kind="thread")
        return pmap(plain, pmap(same, [0, 1, 2]), kind="process")

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", refuse)
        patch.setattr(loops, "new_loop", refuse)
        stream = make()
        with pytest.raises(OSError, match="Too many open files"):
            next(stream)
        assert list(stream) == []
    assert time.monotonic() - began < PATIENCE / 4
    assert list(make()) == [0, 1, 2]


def test_no_file_is_left_for_a_loop(script: Script):
    source = """
        import os, resource
        from fstream import pmap

        async def fetch(x):
            return x

        print(list(pmap(fetch, [1])))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        try:
            print(list(pmap(fetch, [1])))
        except OSError:
            print("an error")
        for each in held:
            os.close(each)
        print(list(pmap(fetch, [1])))
    """
    assert script(source).stdout.split("\n")[:3] == ["[1]", "an error", "[1]"]


def test_where_there_is_no_epoll_the_loop_is_that_of_asyncio(script: Script):
    source = """
        import select, selectors
        del select.epoll, selectors.EpollSelector
        selectors.DefaultSelector = selectors.SelectSelector
        import asyncio
        from fstream import pmap

        async def fetch(x):
            await asyncio.sleep(0.001)
            return x

        print(list(pmap(fetch, range(3))), asyncio.run(pmap(abs, range(3), kind="thread")._list()))
    """
    assert printed(script(source)) == "[0, 1, 2] [0, 1, 2]"


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_greenlets_in_the_place_of_threads(library: str, script: Script):
    pytest.importorskip(library)
    patch = {
        "gevent": "from gevent import monkey; monkey.patch_all()",
        "eventlet": "import warnings; warnings.simplefilter('ignore'); import eventlet; eventlet.monkey_patch()",
    }
    source = """
        import asyncio
        from fstream import pmap

        async def fetch(x):
            await asyncio.sleep(0.001)
            return x

        both = pmap(abs, pmap(fetch, iter(range(3))), kind="thread")
        print(list(pmap(fetch, range(3))), list(both), asyncio.run(pmap(abs, range(3), kind="thread")._list()))
    """
    assert printed(script(f"{patch[library]}\n" + __import__("textwrap").dedent(source))) == " ".join(
        ["[0, 1, 2]"] * 3
    )


def test_a_loop_is_here_only_in_its_own_thread(monkeypatch: pytest.MonkeyPatch):
    async def main() -> tuple[bool, bool]:
        loop = asyncio.get_running_loop()
        here = loops.is_here(loop)
        monkeypatch.setattr(
            threading, "get_ident", lambda: -1
        )  # as in a greenlet that stands for another thread
        return here, loops.is_here(loop)

    assert asyncio.run(main()) == (True, False)


@pytest.mark.parametrize("seconds", [math.inf, 1e10, 10**400, 4e6], ids=["inf", "1e10", "googols", "months"])
def test_a_time_out_may_be_as_long_as_one_likes(concurrent_kind: str, seconds: float):
    f = same if concurrent_kind == "task" else plain
    assert list(pmap(f, range(4), kind=concurrent_kind, workers=2, timeout=seconds)) == [0, 1, 2, 3]
    assert "timeout=" in repr(pmap(f, timeout=seconds))


def test_the_watch_of_the_time_outs_sees_an_item_that_is_begun_while_it_looks(
    monkeypatch: pytest.MonkeyPatch,
):
    from fstream._workers.thread import TimedSlots, Workers

    over, looked, begun, go = (threading.Event() for _ in range(4))
    overdue, append = Workers.overdue, TimedSlots.append

    def slow_look(crew: Workers, now: float) -> Any:
        result = overdue(crew, now)
        if over.is_set() and not looked.is_set():
            looked.set()
            begun.wait(0.2)  # an item is begun after the look, and before the watch sleeps, if that can be
        return result

    def append_and_have_it_look(slots: TimedSlots, slot: Any) -> None:
        append(slots, slot)
        watch = slots.worker.crew.watch
        assert watch is not None
        assert eventually(lambda: watch.asleep)  # else its first look keeps this thread from waking it
        over.set()
        watch.rouse()
        assert looked.wait(PATIENCE)  # nothing is at work when the watch looks

    def f(x: int) -> int:
        if x == 1:
            begun.set()
            go.wait(PATIENCE)
        return x

    monkeypatch.setattr(Workers, "overdue", slow_look)
    monkeypatch.setattr(TimedSlots, "append", append_and_have_it_look)
    # Both items are claimed at once: to claim one takes the lock, which the watch holds while it looks.
    monkeypatch.setattr(Sizing, "fair", lambda sizing, most: most)

    began = time.monotonic()
    try:
        with pytest.raises(TimeoutError):
            list(pmap(f, [0, 1], kind="thread", workers=1, timeout=0.05))
    finally:
        go.set()
    assert time.monotonic() - began < PATIENCE / 2


# Cancellations.


async def limited(seconds: float) -> str:
    """Wait for ever, but no longer than so many *seconds*, as some libraries do it: the cancellation is swallowed."""
    task = asyncio.current_task()
    assert task is not None
    timer = asyncio.get_running_loop().call_later(seconds, task.cancel)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass
    finally:
        timer.cancel()
    return "late"


async def late_and_then_for_ever(x: int) -> str:
    late = await limited(0.01)
    return late if x == 0 else await asyncio.Event().wait()  # type: ignore[return-value]


async def late_or_for_ever(x: int) -> str:
    return await limited(0.01) if x == 0 else await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.mark.parametrize("f", [late_or_for_ever, late_and_then_for_ever])
def test_a_task_that_has_swallowed_a_cancellation_is_cancelled_at_the_end(f: Any):
    async def main() -> float:
        async with aclosing(pmap(f, range(3), workers=1)) as stream:
            assert await anext(stream) == "late"
            await asyncio.sleep(0.05)
            began = time.monotonic()
        return time.monotonic() - began

    assert run_strictly(main) < 2


@pytest.mark.parametrize("f", [late_or_for_ever, late_and_then_for_ever])
def test_a_task_that_has_swallowed_a_cancellation_is_cancelled_when_its_time_is_over(f: Any):
    async def main() -> list[str]:
        return await pmap(f, range(2), workers=1, timeout=0.1, on_error="skip")

    began = time.monotonic()
    assert run_strictly(main) == ["late"]
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("take", ["for", "await"])
def test_nobody_waits_for_a_task_that_swallows_the_cancellation_when_its_time_is_over(take: str):
    released = threading.Event()
    ends: list[bool] = []

    async def deaf(x: int) -> int:
        while x < 2 and not released.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return x

    async def end(_: Any) -> None:
        await asyncio.sleep(0.05)
        ends.append(released.is_set())

    async def main(stream: Any) -> list[int]:
        outputs: list[int] = await stream
        released.set()  # else `asyncio.run` waits for it
        return outputs

    releasing = threading.Timer(PATIENCE, released.set)
    releasing.start()
    began = time.monotonic()
    try:
        stream = pmap(deaf, range(3), workers=1, timeout=0.1, on_error="skip", on_done=end)
        assert (list(stream) if take == "for" else asyncio.run(main(stream))) == [2]
        assert time.monotonic() - began < 3
        assert ends[0] is False  # that of the one who could be waited for
    finally:
        released.set()
        releasing.cancel()


def test_what_is_cleaned_up_after_a_cancellation_is_not_cut_short():
    begun, cleaned = [], []

    async def f(x: int) -> int:
        begun.append(x)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(x)
        return x

    async def main() -> None:
        stream = pmap(f, range(3), workers=3, timeout=60)
        taking = asyncio.create_task(stream._list())
        while len(begun) < 3:
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task(), taking}:
            task.cancel()  # by others first
        await asyncio.sleep(0)
        await stream.aclose()
        taking.cancel()
        with suppress(asyncio.CancelledError):
            await taking

    run_strictly(main)
    assert sorted(cleaned) == [0, 1, 2]


class Scope:
    """As a cancel scope of anyio: after a while it cancels its task at each turn of the loop, until that leaves it."""

    def __enter__(self) -> None:
        self.task, self.loop = asyncio.current_task(), asyncio.get_running_loop()
        self.handle: asyncio.Handle = self.loop.call_later(0.05, self.deliver)

    def deliver(self) -> None:
        assert self.task is not None
        if isinstance(getattr(self.task, "_fut_waiter", None), asyncio.Future):
            self.task.cancel()
        self.handle = self.loop.call_soon(self.deliver)

    def __exit__(self, kind: Any, *_: object) -> bool:
        self.handle.cancel()
        return kind is asyncio.CancelledError


def cancellable(f: Any, grace: float) -> loops.Cancellable:
    """What runs *f*, as the tasks of a run do."""
    member = loops.Cancellable()
    member.run = SimpleNamespace(GRACE=grace)  # type: ignore[assignment]
    member.task = asyncio.create_task(f())
    return member


def test_a_task_is_cancelled_by_us_once():
    cleaned = []

    async def f() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            cleaned.append("all")

    async def main() -> None:
        member = cancellable(f, 0)
        for _ in range(2):  # as where a stage downstream fails, and then the stream is closed
            await asyncio.sleep(0)
            member.cancel()
        assert member.task is not None
        await asyncio.wait([member.task])

    run_strictly(main)
    assert cleaned == ["all"]


def test_a_task_that_has_swallowed_a_cancellation_before_is_cancelled_without_delay():
    async def f() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def main() -> None:
        member = cancellable(f, 3600)
        assert member.task is not None
        await asyncio.sleep(0)
        member.task.cancel()
        assert member.is_cancelled
        await asyncio.sleep(0)
        member.came_back()
        assert not member.is_cancelled
        member.cancel()
        await asyncio.wait([member.task], timeout=PATIENCE)
        assert member.task.cancelled()

    run_strictly(main)


def test_a_scope_that_cancels_again_and_again_waits_for_on_done():
    begun, done = [], []

    async def connect() -> str:
        begun.append("connection")
        return begun[-1]

    async def query(x: int, _: str) -> int:
        await asyncio.sleep(0.001)
        return x

    async def disconnect(_: Any, connection: str) -> None:
        await asyncio.sleep(0.01)
        done.append(connection)

    async def main() -> int:
        stream = pmap(query, iter(int, 1), workers=3, on_start=connect, on_done=disconnect)
        with Scope():
            async with aclosing(stream):
                async for _ in stream:
                    pass
        return len(done)

    assert asyncio.run(main()) == len(begun) > 0
