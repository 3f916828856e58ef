"""No worker at all: f runs in the thread of whoever takes the outputs, one item at a time."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, compress, islice, repeat
from operator import length_hint
from time import perf_counter
from typing import Any, Final, Protocol

from fstream._engine.reports import reports_of
from fstream._flow.known import Known
from fstream._flow.sizing import SPAN_SECONDS
from fstream._flow.sources import sliceable
from fstream._plan.kernels import DROP, SKIP
from fstream._plan.stages import MISSING, Stage, StageStatus
from fstream._workers.call import Call, handled, is_failure, judged, tolerance_of
from fstream._workers.failed import Failed
from fstream._workers.memory import Memory, Unkept
from fstream._workers.notes import annotate

__all__ = ["Owner", "aclose", "blame", "is_stream", "iterate", "iterate_async"]

#: An observer is told of so many items at once, at most: they may be cheap, and those behind them slow.
MOST_TOLD: Final = 4096


class Here:
    """The caller as the stage's only worker."""

    #: Always empty: `call` adds its length to `start`, and here `start` alone is the index of the present item.
    slots: Final = ()
    #: No other worker has tried the item before.
    tries: Final = 0

    def __init__(self, stage: Stage, count: Callable[[], int]) -> None:
        self.stage = stage
        #: How many items have come.
        self.count = count
        self.memory = Memory(stage) if stage.memo is not None else None
        self.call = Call(stage, 0, None if self.memory is None else self.memory.remember)
        self.call.place = self
        #: Passes on what happens, if somebody observes, and how many items it was told of.
        self.observer = reports_of([(stage.name, stage.kind, 1)])
        self.told = 0
        #: How many items ended the run: their errors are its.
        self.fatal = 0
        #: What ended the stage.
        self.error: BaseException | None = None
        self.tolerance = tolerance_of(stage)

    @property
    def start(self) -> int:
        """Index of the present item, as a span has it."""
        return self.count() - 1

    def begin(self) -> None:
        if self.observer is not None:
            self.observer.started(self, self.observer.run.stages[0], 0)
        with self.naming("on_start"):
            self.call.begin()

    def parts(self, items: Iterator[Any]) -> Iterator[Iterator[Any]]:
        """Give *items* in parts, and tell the observer of each: cheap ones by the thousand, slow ones alone."""
        most, came = 1, self.count()
        while True:
            begun = perf_counter()
            yield islice(items, most)
            before, came = came, self.count()
            self.tell(came)
            if came - before < most:
                return
            most = min(2 * most, MOST_TOLD) if perf_counter() - begun < SPAN_SECONDS else 1

    def tell(self, came: int) -> None:
        """So many items have come in all, and are through."""
        start, count, self.told = self.told, came - self.told, came
        if self.observer is not None and count:
            stage = self.observer.run.stages[0]
            with self.observer.lock:  # passed on together
                self.observer.pulled(self.observer.run, count)
                self.observer.taken(stage, start, count, 0)
                self.observer.done(stage, start, count - self.fatal, None, 0)

    def step(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Have *step* look an item up before f is called."""
        memory = self.memory
        if memory is None:
            return step

        def look_up(item: Any) -> Any:
            try:
                known = memory.arrived(item, self.start)
            except BaseException as error:
                raise Unkept(error) from None
            return known.slot if type(known) is Known else step(item)

        return look_up

    def again(self, tries: int, error: BaseException) -> bool:
        if self.observer is not None:
            self.observer.retried(self.observer.run.stages[0], self.start, error, tries)
        return True

    def ends_with(self, error: BaseException, owner: Owner) -> None:
        if isinstance(error, GeneratorExit):
            self.error = owner.blamed
            return
        self.error = error
        if self.observer is not None:
            self.observer.error = error

    def over(self) -> None:
        """Tell the observer of what it was not told, and of the end."""
        if self.observer is not None:
            self.tell(self.count())
            self.observer.ended(self, "ended")
            self.observer.close()

    def outputs(self, item: Any) -> tuple[Any, ...] | list[Any]:
        """Run f on *item*; give its outputs."""
        if not self.call.started:
            self.begin()
        try:
            slot = self.step(self.call.step)(item)
        except BaseException as error:
            slot = self.failed(error, item)
        return self.stage.kernel.outputs([slot], skips=True)

    def failed(self, error: BaseException, item: Any) -> Any:
        """Give the slot that stands for a failed *item*, or raise."""
        if isinstance(error, GeneratorExit) and error.__traceback__ and error.__traceback__.tb_next is None:
            raise error  # not out of f: the generator that called f is closed
        slot = self.call.rescue(error, item, self.start, 0, self.again)
        if is_failure(slot):
            if self.observer is not None:
                self.observer.failed(self.observer.run.stages[0], slot.index, slot.error, slot.tries)
            if self.memory is not None:
                self.memory.failed(slot.index)
            slot = handled(self.stage, judged(self.stage, self.tolerance, slot, self.count))
        if is_failure(slot):
            self.fatal = 1
            raise slot.error
        return SKIP if slot is DROP else slot

    def end(self) -> None:
        if self.memory is not None:
            self.memory.end()
        with self.naming("on_done"):
            self.call.end(StageStatus(0, self.error))

    @contextmanager
    def naming(self, role: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            annotate(error, f"in {role} of stage {self.stage.name!r} ({self.stage.kind})")
            self.error = error
            if self.observer is not None:
                self.observer.error = error
            raise


def counted(source: Iterable[Any], items: Iterator[Any]) -> tuple[Iterator[Any], Callable[[], int]]:
    """Give the *items* of *source*, and what tells how many of them have come.

    C counts them: a number that Python adds to would cost half as much again as the rest of a turn.
    """
    if sliceable(source) and hasattr(items, "__length_hint__"):
        return items, lambda: len(source) - length_hint(items)  # type: ignore[arg-type]
    marks = repeat(True, sys.maxsize)
    return compress(items, marks), lambda: sys.maxsize - length_hint(marks)


class Owner(Protocol):
    """Whose outputs they are."""

    #: It was asked to close.
    closing: bool
    #: Nothing more is to be pulled from sources that are no streams: what `halt` sees to, once there is one.
    draining: bool
    halt: Callable[[], None]
    #: What ended whoever takes the outputs, if it closes them for that.
    blamed: BaseException | None
    #: How many stages in a row, up to this one, call one another.
    depth: int
    #: Tells how many items have come.
    count: Callable[[], int]

    def end(self) -> None: ...


def is_stream(source: Any) -> bool:
    """Tell whether it is a `Stream`, which this floor cannot import."""
    return hasattr(type(source), "_blame")


def blame(items: Any, error: BaseException | None) -> None:
    """Tell a stream, which is closed next, that this is for an *error* of whoever takes its outputs."""
    if error is not None and is_stream(items):
        items._blame(error)


def iterate(
    stage: Stage, source: Iterable[Any], owner: Owner, handing_on: bool
) -> Generator[Any, None, None]:
    """Give the outputs of *stage* over *source*, on behalf of *owner*; *handing_on* says that the source is a stream.

    The loops are all that happens for an item, as what is called there, or looked at, counts: `map` takes 50 ns.
    """
    halted = False

    def halt() -> None:
        nonlocal halted
        halted = True

    given = iter(source)
    items, count = counted(source, given)
    owner.count, owner.halt = count, halt
    here = Here(stage, count)
    failed, spread, plain = here.failed, stage.kernel.spread, stage.kernel.finish is None
    try:
        try:
            if (owner.draining and not handing_on) or (item := next(items, MISSING)) is MISSING:
                return
        except RecursionError as error:
            if owner.depth > 64:  # else it is the source's own
                error.args = (
                    f"{owner.depth} stages of kind 'sync' in a row: each calls the one before it, and the limit of"
                    f" recursion is {sys.getrecursionlimit()}; raise it by sys.setrecursionlimit, or join their"
                    " functions",
                )
            raise
        here.begin()
        step = here.step(here.call.step)
        if handing_on and stage.hands_on:
            step = handed_on(stage, step)
        # The first item again, in what keeps it no longer than needed, and the others.
        rest = (items,) if here.observer is None else here.parts(items)
        for part in chain((iter([item]),), rest):
            if plain:
                for item in part:
                    try:
                        slot = step(item)
                    except BaseException as error:
                        slot = failed(error, item)
                    if slot is not SKIP:
                        yield slot
                    if halted:
                        return
                continue
            for item in part:
                try:
                    slot = step(item)
                except BaseException as error:
                    slot = failed(error, item)
                if spread:
                    yield from slot
                elif slot is not DROP and slot is not SKIP:
                    yield slot
                if halted:
                    return
    except BaseException as error:
        here.ends_with(error, owner)
        raise
    finally:
        try:
            here.end()
        finally:
            blame(given, here.error)
            if isinstance(given, Generator):
                given.close()
            here.over()


def handed_on(stage: Stage, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Keep each `Failed` from f."""
    kept = stage.kernel.kept

    def handing_on(item: Any) -> Any:
        return kept(item) if type(item) is Failed else step(item)

    return handing_on


async def aclose(items: Any) -> None:
    """Close an async iterator, if it can be closed and nobody else is at it, as a loop that ends may be."""
    if hasattr(type(items), "aclose"):  # an instance may have an answer to every name
        try:
            await items.aclose()
        except RuntimeError:
            if not getattr(items, "ag_running", False):
                raise


async def iterate_async(
    stage: Stage, source: Iterable[Any] | AsyncIterable[Any], owner: Owner, handing_on: bool
) -> AsyncGenerator[Iterable[Any], None]:
    """The same for an ``async for``, some at a time."""
    from asyncio import sleep

    number = 0
    halted = False

    def halt() -> None:
        nonlocal halted
        halted = True

    owner.halt = halt
    here = Here(stage, lambda: number)
    handing_on = handing_on and stage.hands_on
    items: Any = None
    try:
        if isinstance(source, AsyncIterable):
            items = aiter(source)
            owner.count = here.count
            paused = perf_counter()
            async for item in items:
                number += 1
                yield (item,) if handing_on and type(item) is Failed else here.outputs(item)
                if halted:
                    break
                if perf_counter() - paused > SPAN_SECONDS:  # a source that never waits leaves others a turn
                    here.tell(number)
                    await sleep(0)
                    paused = perf_counter()
        else:
            items = iterate(stage, source, owner, handing_on)
            for output in items:
                yield (output,)
    except GeneratorExit:
        if not owner.closing and isinstance(items, AsyncIterable):
            items = None  # collected, or at the end of the loop: whoever closes this closes that, too
        raise
    except BaseException as error:
        here.ends_with(error, owner)
        raise
    finally:
        owner.end()
        try:
            here.end()
        finally:
            if isinstance(items, AsyncIterable):
                blame(items, here.error)
                await aclose(items)
            elif isinstance(items, Generator):
                items.close()
            if isinstance(source, AsyncIterable):  # else `iterate` has told
                here.over()
