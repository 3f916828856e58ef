"""No worker at all: f runs in the thread of whoever takes the outputs, one item at a time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

from fstream._kernels import DROP
from fstream._spans import SPAN_SECONDS
from fstream._stage import Stage, StageStatus
from fstream._workers.call import Call, annotate, describe, handled, is_failure

__all__ = ["aclose", "iterate", "iterate_async"]


class Here:
    """The caller as the stage's only worker."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.call = Call(stage, 0)
        self.call.place = self
        #: Index of the present item, as a span has it.
        self.start = 0
        self.slots: list[Any] = []

    def outputs(self, item: Any) -> tuple[Any, ...] | list[Any]:
        """Run f on *item*; give its outputs."""
        call, stage = self.call, self.stage
        if not call.started:
            self.begin()
        try:
            slot = call.step(item)
        except BaseException as error:
            slot = self.failed(error, item)
        if is_failure(slot):
            raise slot.error
        self.start += 1
        if stage.kernel.spread:
            return slot  # type: ignore[no-any-return]
        return () if slot is DROP else (slot,)

    def failed(self, error: BaseException, item: Any) -> Any:
        slot = self.call.rescue(error, item, self.start, 0)
        if is_failure(slot):
            annotate(slot.error, f"in {describe(self.stage, self.start, item)}")
            slot = handled(self.stage, slot)
        return slot

    def begin(self) -> None:
        with self.naming("on_start"):
            self.call.begin()

    def end(self) -> None:
        with self.naming("on_done"):
            self.call.end(StageStatus(0))

    @contextmanager
    def naming(self, role: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            annotate(error, f"in {role} of stage {self.stage.name!r} ({self.stage.kind})")
            raise


def iterate(stage: Stage, source: Iterable[Any]) -> Iterator[Any]:
    """Give the outputs of *stage* over *source*."""
    here = Here(stage)
    items = None
    try:
        items = iter(source)
        for item in items:
            yield from here.outputs(item)
    finally:
        try:
            here.end()
        finally:
            if isinstance(items, Generator):
                items.close()


class Owner(Protocol):
    """Whose outputs they are."""

    #: It was asked to close.
    closing: bool

    def end(self) -> None: ...


async def aclose(items: Any) -> None:
    """Close an async iterator, if it can be closed and nobody else is at it, as a loop that ends may be."""
    if hasattr(items, "aclose"):
        try:
            await items.aclose()
        except RuntimeError:
            if not getattr(items, "ag_running", False):
                raise


async def iterate_async(
    stage: Stage, source: Iterable[Any] | AsyncIterable[Any], owner: Owner
) -> AsyncGenerator[Any, None]:
    """The same for an ``async for``, on behalf of *owner*."""
    from asyncio import sleep

    here = Here(stage)
    items: Any = None
    try:
        if isinstance(source, AsyncIterable):
            items = aiter(source)
            paused = perf_counter()
            async for item in items:
                for output in here.outputs(item):
                    yield output
                if perf_counter() - paused > SPAN_SECONDS:  # a source that never waits leaves others a turn
                    await sleep(0)
                    paused = perf_counter()
        else:
            items = iter(source)
            for item in items:
                for output in here.outputs(item):
                    yield output
    except GeneratorExit:
        if not owner.closing and isinstance(items, AsyncIterable):
            items = None  # collected, or at the end of the loop: whoever closes this closes that, too
        raise
    finally:
        owner.end()
        try:
            here.end()
        finally:
            if isinstance(items, AsyncIterable):
                await aclose(items)
            elif isinstance(items, Generator):
                items.close()
