"""No worker at all: f runs in the thread of whoever takes the outputs, one item at a time."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, compress, islice, repeat
from operator import length_hint
from time import perf_counter
from typing import Any, Final, Protocol

from fstream._engine.rates import rate_of
from fstream._engine.reports import reports_of
from fstream._engine.run import HERE, Run
from fstream._flow.sizing import SPAN_SECONDS
from fstream._flow.sources import sliceable
from fstream._plan.kernels import DROP
from fstream._plan.stages import MISSING, Stage, StageStatus
from fstream._workers.call import Call, further_try_of, handled, handler_failed, is_failure
from fstream._workers.notes import annotate

__all__ = ["Rest", "aclose", "iterate", "iterate_async"]

#: An observer is told of so many items at once, at most: they may be cheap, and those behind them slow.
MOST_TOLD: Final = 4096


class Left(BaseException):
    """The stream was closed while its consumer waited here."""


class Rest:
    """Where the consumer's thread waits on kind "sync": whoever closes the stream ends the wait.

    The stages that call one another in one thread share one.
    """

    def __init__(self) -> None:
        self.over = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait so many *seconds*; raise `Left` if the stream is closed meanwhile, or was."""
        feeder = getattr(HERE, "feeder", None)
        if feeder is not None:  # this is the thread of a feeder, which is stopped with its run
            feeder.adopt(self)
            if feeder.run.stopped:
                self.stop()
        if self.over.wait(seconds):
            raise Left

    def stop(self) -> None:
        self.over.set()


class Here:
    """The caller as the stage's only worker."""

    #: Always empty: `call` adds its length to `start`, and here `start` alone is the index of the present item.
    slots: Final = ()

    def __init__(self, stage: Stage, count: Callable[[], int], rest: Rest) -> None:
        self.stage = stage
        #: How many items have come.
        self.count = count
        self.call = Call(stage, 0)
        self.call.place = self
        #: Passes on what happens, if somebody observes, and how many items it was told of.
        self.observer = reports_of([(stage.name, stage.kind, 1)])
        self.told = 0
        #: How many items ended the run: their errors are its.
        self.fatal = 0
        #: The slot of the item that was tried again last, until it is taken.
        self.slot: Any = None
        #: Where this thread waits between two tries, and for the rate.
        self.rest = rest
        self.rate = rate_of(stage.rate)
        #: What a start of the present item costs.
        self.cost = 1.0

    @property
    def start(self) -> int:
        """Index of the present item, as a span has it."""
        return self.count() - 1

    def begin(self) -> None:
        if self.observer is not None:
            self.observer.started(self, self.observer.run.stages[0], 0)
        with self.naming("on_start"):
            self.call.begin()

    def turns(self) -> Iterator[float]:
        """Give the seconds to wait until the present item may start, again and again until it does."""
        if self.rate is not None:
            while not self.rate.grant(now := perf_counter(), 1, self.cost):
                yield max(0.0, self.rate.opens(now, self.cost) - now)
            self.rate.start(now, self.cost)

    def item_of(self, given: Any) -> Any:
        """The item that is *given*, with a ticket if the stage looks at more."""
        if self.stage.ticket is None:
            return given
        self.cost = given.cost
        return given.item

    def admitted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Give each of *items* when it may start."""
        for given in items:
            item = self.item_of(given)
            for seconds in self.turns():
                self.rest.wait(seconds)
            yield item

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

    def ends_with(self, error: BaseException) -> None:
        if self.observer is not None and not isinstance(error, GeneratorExit):
            self.observer.error = error

    def over(self) -> None:
        """Tell the observer of what it was not told, and of the end."""
        if self.observer is not None:
            self.tell(self.count())
            self.observer.ended(self, "ended")
            self.observer.close()

    async def outputs(self, item: Any) -> tuple[Any, ...] | list[Any]:
        """Run f on *item*, and wait between its tries; give its outputs."""
        from asyncio import sleep

        if not self.call.started:
            self.begin()
        item = self.item_of(item)
        for seconds in self.turns():
            await sleep(seconds)
        try:
            slot = self.call.step(item)
        except BaseException as error:
            tries = self.further_tries(error, item)
            for pause in tries:
                await sleep(pause)
            slot, self.slot = self.slot, None
        if self.stage.kernel.spread:
            return slot  # type: ignore[no-any-return]
        return () if slot is DROP else (slot,)

    def failed(self, error: BaseException, item: Any) -> Any:
        """Give the slot that stands for a failed *item*, or raise."""
        if isinstance(error, GeneratorExit) and error.__traceback__ and error.__traceback__.tb_next is None:
            raise error  # not out of f: the generator that called f is closed
        for seconds in self.further_tries(error, item):
            self.rest.wait(seconds)
        slot, self.slot = self.slot, None
        return slot

    def further_tries(self, error: BaseException, item: Any) -> Iterator[float]:
        """Try a failed *item* again as often as the stage says; leave its slot in `slot`, or raise.

        It gives the seconds to wait before each further try.
        """
        tries = 1
        while True:
            failure = self.call.failure(error, item, self.start, tries)
            try:
                again = further_try_of(self.stage, failure, Run.draw)
            except BaseException as raised:
                self.fatal = 1
                raise handler_failed(self.stage, failure, raised, "retry_on").error or raised from None
            if again is None:
                break
            if self.observer is not None and failure.error is not None:
                self.observer.retried(self.observer.run.stages[0], self.start, failure.error, tries)
            del failure  # it is not to be kept while the next try is at work
            if again.after > 0:
                yield again.after
            yield from self.turns()
            try:
                self.slot = self.call.step(item)
                return
            except BaseException as another:
                error = another
                tries += 1
        if self.observer is not None and failure.error is not None:
            self.observer.failed(self.observer.run.stages[0], failure.index, failure.error, tries)
        slot = handled(self.stage, failure)
        if is_failure(slot):
            self.fatal = 1
            raise slot.error
        self.slot = slot

    def end(self) -> None:
        with self.naming("on_done"):
            self.call.end(StageStatus(0))

    @contextmanager
    def naming(self, role: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            annotate(error, f"in {role} of stage {self.stage.name!r} ({self.stage.kind})")
            self.ends_with(error)
            raise


def counted(source: Iterable[Any], items: Iterator[Any]) -> tuple[Iterator[Any], Callable[[], int]]:
    """Give the *items* of *source*, and what tells how many of them have come.

    C counts them: a number that Python adds to would cost half as much again as the rest of a turn.
    """
    if sliceable(source) and hasattr(items, "__length_hint__"):
        return items, lambda: len(source) - length_hint(items)  # type: ignore[arg-type]
    marks = repeat(True, sys.maxsize)
    return compress(items, marks), lambda: sys.maxsize - length_hint(marks)


def iterate(
    stage: Stage, source: Iterable[Any], depth: int = 1, rest: Rest | None = None
) -> Generator[Any, None, None]:
    """Give the outputs of *stage*, the last of *depth* in a row that call one another, over *source*.

    The loops are all that happens for an item, as what is called there, or looked at, counts: `map` takes 50 ns.
    """
    given = iter(source)
    items, count = counted(source, given)
    here = Here(stage, count, rest or Rest())
    failed, spread, plain = here.failed, stage.kernel.spread, stage.kernel.finish is None
    try:
        try:
            if (item := next(items, MISSING)) is MISSING:
                return
        except RecursionError as error:
            if depth > 64:  # else it is the source's own
                error.args = (
                    f"{depth} stages of kind 'sync' in a row: each calls the one before it, and the limit of recursion"
                    f" is {sys.getrecursionlimit()}; raise it by sys.setrecursionlimit, or join their functions",
                )
            raise
        here.begin()
        step = here.call.step
        # The first item again, in what keeps it no longer than needed, and the others.
        others = (items,) if here.observer is None else here.parts(items)
        for part in chain((iter([item]),), others):
            if here.rate is not None or stage.ticket is not None:
                part = here.admitted(part)
            if plain:
                for item in part:
                    try:
                        yield step(item)
                        continue
                    except BaseException as error:
                        slot = failed(error, item)
                    if slot is not DROP:
                        yield slot
                continue
            for item in part:
                try:
                    slot = step(item)
                except BaseException as error:
                    slot = failed(error, item)
                if spread:
                    yield from slot
                elif slot is not DROP:
                    yield slot
    except Left:
        return
    except BaseException as error:
        here.ends_with(error)
        raise
    finally:
        try:
            here.end()
        finally:
            if isinstance(given, Generator):
                given.close()
            here.over()


class Owner(Protocol):
    """Whose outputs they are."""

    #: It was asked to close.
    closing: bool

    def end(self) -> None: ...


async def aclose(items: Any) -> None:
    """Close an async iterator, if it can be closed and nobody else is at it, as a loop that ends may be."""
    if hasattr(type(items), "aclose"):  # an instance may have an answer to every name
        try:
            await items.aclose()
        except RuntimeError:
            if not getattr(items, "ag_running", False):
                raise


async def _each(source: Iterable[Any]) -> AsyncGenerator[Any, None]:
    """Give the items of *source*, and close it at the end."""
    items = iter(source)
    try:
        for item in items:
            yield item
    finally:
        if isinstance(items, Generator):
            items.close()


async def iterate_async(
    stage: Stage, source: Iterable[Any] | AsyncIterable[Any], owner: Owner
) -> AsyncGenerator[Iterable[Any], None]:
    """The same for an ``async for``, some at a time, on behalf of *owner*."""
    from asyncio import sleep

    number = 0
    here = Here(stage, lambda: number, Rest())
    items: Any = None
    if stage.paced and not isinstance(source, AsyncIterable):
        source = _each(source)  # a wait between two tries must leave the loop to others
    try:
        if isinstance(source, AsyncIterable):
            items = aiter(source)
            paused = perf_counter()
            async for item in items:
                number += 1
                yield await here.outputs(item)
                if perf_counter() - paused > SPAN_SECONDS:  # a source that never waits leaves others a turn
                    here.tell(number)
                    await sleep(0)
                    paused = perf_counter()
        else:
            items = iterate(stage, source)
            for output in items:
                yield (output,)
    except GeneratorExit:
        if not owner.closing and isinstance(items, AsyncIterable):
            items = None  # collected, or at the end of the loop: whoever closes this closes that, too
        raise
    except BaseException as error:
        here.ends_with(error)
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
            if isinstance(source, AsyncIterable):  # else `iterate` has told
                here.over()
