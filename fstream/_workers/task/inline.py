"""What is awaitable, where every stage runs in the caller's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from inspect import isawaitable
from typing import Any, Final

from fstream._plan.stages import MISSING, Stage, StageStatus
from fstream._workers.failed import Failed
from fstream._workers.sync import Account, Here, Tap, aclose, blame, is_stream
from fstream._workers.task.reach import outside_of_loops
from fstream._workers.task.workers import AsyncCall

__all__ = ["iterate_here", "outputs_of", "settle", "with_loop"]

#: `runner` is what runs a thread's coroutines, where there is no event loop of the caller's.
_HERE: Final = threading.local()


class Runner:
    """An event loop that runs while somebody waits for it, in the thread that does."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        #: How many stages and sources need it.
        self.users = 0


@contextmanager
def lent() -> Iterator[None]:
    """Keep the loop of this thread: stages and sources that run at the same time have the same one."""
    runner: Runner | None = getattr(_HERE, "runner", None)
    if runner is None:
        runner = _HERE.runner = Runner()
    runner.users += 1
    try:
        yield
    finally:
        runner.users -= 1
        if not runner.users:
            with outside_of_loops():
                runner.runner.close()
            if getattr(_HERE, "runner", None) is runner:
                del _HERE.runner


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run *coroutine* to its end, in this thread, on the loop that is lent."""
    with lent(), outside_of_loops():
        return _HERE.runner.runner.run(coroutine, context=copy_context())


def with_loop(outputs: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Give *outputs*, while the loop is kept."""
    with lent():
        yield from outputs


async def _awaited(result: Any) -> Any:
    if isawaitable(result):
        result = await result
    if hasattr(type(result), "__aiter__"):
        result = [output async for output in result]
    return result


def settle(result: Any) -> Any:
    """Wait for *result*, if it is to be awaited; give the list of what an async iterable gives."""
    if isawaitable(result) or hasattr(type(result), "__aiter__"):
        return run(_awaited(result))
    return result


def iterate_here(source: AsyncIterable[Any]) -> Generator[Any, None, None]:
    """Iterate an async *source* in this thread."""
    with lent():
        items = aiter(source)
        try:
            while (item := run(_next(items))) is not MISSING:
                yield item
        finally:
            run(aclose(items))


async def _next(items: Any) -> Any:
    return await anext(items, MISSING)


class AsyncHere(Here):
    """The caller as the only worker of a stage whose f is awaited on the running loop."""

    call: AsyncCall

    async def start_call(self) -> None:
        if self.observer is not None:
            self.observer.started(self, self.observer.run.stages[0], 0)
        with self.naming("on_start"):
            await self.call.abegin()

    async def end_call(self) -> None:
        if self.memory is not None:
            self.memory.end()
        if self.call.started:
            with self.ending():
                await self.call.aend(StageStatus(0, self.error))

    async def outputs_awaited(self, item: Any) -> Any:
        """Run f on *item*; give its outputs."""
        self.has()
        item = self.item_of(item)
        try:
            slot = self.known(item)
            if slot is MISSING:
                for seconds in self.turns():
                    await self.pause_async(seconds)
                slot = await self.call.step(item)
        except (GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:
            slot = await self.slot_of_failed(error, item)
        self.made = self.clock()
        return self.counted_outputs(slot)

    async def slot_of_failed(self, error: BaseException, item: Any) -> Any:
        while (failure := self.tried(error, item)) is None:
            for seconds in self.pauses():
                await self.pause_async(seconds)
            try:
                return self.stands(await self.call.step(item))
            except (GeneratorExit, asyncio.CancelledError):
                raise
            except BaseException as another:
                error = another
        return self.stands(await self.call.ahandled(self.given_up(failure)))


async def outputs_of(
    stage: Stage, source: Any, items: AsyncGenerator[Any, None], tap: Tap, account: Account
) -> AsyncGenerator[Iterable[Any], None]:
    """Give the outputs of *stage* over the *items* of *source*, those of one item at a time."""
    number, handing_on = 0, is_stream(source)
    here = AsyncHere(stage, lambda: number, items, tap, account)
    tap.count = here.count
    here.call = AsyncCall(stage, 0, None if here.memory is None else here.memory.remember)
    here.call.place = here
    try:
        async for item in items:
            number += 1
            if not here.call.started:
                await here.start_call()
            if handing_on and stage.hands_on and type(item) is Failed:
                yield here.counted_outputs(stage.kernel.kept(item))
            else:
                yield await here.outputs_awaited(item)
            if tap.draining and not handing_on:
                break
            here.back = here.clock()
            here.goes_on()
    except BaseException as error:
        here.ends_with(error)
        raise
    finally:
        try:
            await here.end_call()
        finally:
            blame(source, here.error)
            here.over()
