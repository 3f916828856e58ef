"""No worker at all: f runs in the thread of whoever takes the outputs, one item at a time."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import compress, islice, repeat
from math import inf
from operator import length_hint
from threading import Lock
from time import perf_counter
from typing import Any, Final, Protocol

from fstream._engine.interrupts import acquire
from fstream._engine.rates import rate_of
from fstream._engine.reports import reports_of
from fstream._engine.run import HERE, Run
from fstream._flow.known import Known
from fstream._flow.pacing import Again
from fstream._flow.sizing import SPAN_SECONDS
from fstream._flow.sources import sliceable
from fstream._flow.span import Failure
from fstream._flow.tally import Hold, Tally
from fstream._plan.kernels import DROP, MAP, SKIP
from fstream._plan.stages import MISSING, Stage, StageStatus
from fstream._workers.call import (
    Call,
    further_try_of,
    handled,
    handler_failed,
    is_failure,
    judged,
    tolerance_of,
)
from fstream._workers.failed import Failed
from fstream._workers.memory import Memory
from fstream._workers.notes import OptionFailed, annotate

__all__ = ["Owner", "Tap", "aclose", "blame", "each", "is_stream", "iterate", "iterate_async"]

#: So many items are one part, at most: they may be cheap, and those behind them slow. Of each part the time of the
#: first item is taken, and an observer is told.
MOST_TOLD: Final = 4096

#: After so many items that took less than this, in seconds, with all that is done for them, the others are no more
#: divided into parts, unless somebody observes: a part costs each of its items some 8 ns.
MANY: Final = 3 * MOST_TOLD
CHEAP: Final = 1e-6


class Account(Protocol):
    """Keeps the numbers of a stage that runs here."""

    def runs_here(self, here: Here, source: Any) -> None: ...

    def is_over(self) -> None: ...


class CallHere(Call):
    """f as `map` has it: what it gives is an output, also a coroutine."""

    takes_coroutines = True


class Left(BaseException):
    """The stream was closed while its consumer waited here."""


class Rest:
    """Where the consumer's thread waits on kind "sync": whoever closes the stream ends the wait.

    The stages that call one another in one thread share one.
    """

    def __init__(self) -> None:
        self.over = False
        #: The time at which a stream that is drained is closed, in seconds of `perf_counter`.
        self.until = inf
        #: Released to wake who waits. A lock and no event: a signal handler may do so, in the middle of a wait.
        self.bell = Lock()
        self.bell.acquire()
        #: Wakes a task that waits.
        self.ring_task: Callable[[], object] = lambda: None

    def left(self, end: float) -> float:
        """Tell how many seconds are left to wait until the time *end*; raise `Left` if the stream is closed."""
        now = perf_counter()
        if self.over or now >= self.until:
            raise Left
        return min(end, self.until) - now

    def wait(self, seconds: float) -> None:
        """Wait so many *seconds*; raise `Left` if the stream is closed meanwhile, or was."""
        feeder = getattr(HERE, "feeder", None)
        if feeder is not None:  # this is the thread of a feeder, which is stopped with its run
            feeder.adopt(self)
            if feeder.run.feed.stopped:
                self.stop()
        end = perf_counter() + seconds
        while (left := self.left(end)) > 0:
            acquire(self.bell, left)

    async def wait_async(self, seconds: float) -> None:
        """Wait as `wait` does, and let the event loop run other tasks meanwhile."""
        import asyncio

        from fstream._workers.task.reach import running, soon

        loop, end = running(), perf_counter() + seconds
        while True:
            bell = asyncio.Event()
            self.ring_task = partial(soon, loop, bell.set)
            left = self.left(end)
            try:
                async with asyncio.timeout(left):
                    await bell.wait()
            except TimeoutError:
                self.left(end)
                return

    def stop(self) -> None:
        self.over = True
        self.ring()

    def stop_at(self, until: float) -> None:
        """Let nobody wait beyond the time *until*."""
        self.until = min(self.until, until)
        self.ring()

    def ring(self) -> None:
        with suppress(RuntimeError):  # it was rung already
            self.bell.release()
        self.ring_task()


class Here:
    """The caller as the stage's only worker."""

    #: Always empty: `call` adds its length to `start`, and here `start` alone is the index of the present item.
    slots: Final = ()
    clock = staticmethod(perf_counter)

    def __init__(
        self, stage: Stage, count: Callable[[], int], source: Any, tap: Tap, account: Account | None = None
    ) -> None:
        self.stage = stage
        #: What it shares with its stream.
        self.tap = tap
        #: How many items have come.
        self.count = count
        self.memory = Memory(stage) if stage.memo is not None else None
        self.call: Any = CallHere(stage, 0, None if self.memory is None else self.memory.remember)
        self.call.place = self
        #: Item -> slot.
        self.step: Callable[[Any], Any]
        #: Passes on what happens, if somebody observes, and how many items it was told of.
        self.observer = reports_of([(stage.name, stage.kind, 1)])
        self.told = 0
        self.account = account
        self.tally = Tally()
        #: The part in hand. It begins when the first item is asked for; then that is there, is worked off, and its
        #: outputs are taken: all in seconds of `perf_counter`.
        self.most = 1
        self.asked = self.tally.began = perf_counter()
        self.had = self.made = self.back = 0.0
        #: How many outputs there were, of a flat map, and how many items had none. To count costs 25 ns, so nothing is
        #: counted of an item that has one.
        self.given = self.skipped = 0
        #: How many items had come before the part in hand.
        self.counted = 0
        #: How many items ended the run: their errors are its.
        self.fatal = 0
        #: What ended the stage.
        self.error: BaseException | None = None
        self.tolerance = tolerance_of(stage)
        self.rate = rate_of(stage.rate)
        #: What a start of the present item costs, how often that item was tried before, and when it is tried again.
        self.cost = 1.0
        self.tries = 0
        self.again = Again(0.0)
        #: The slot of the item that was tried again last, until it is taken.
        self.slot: Any = None
        if account is not None:
            account.runs_here(self, source)  # from now on somebody may look at it

    @property
    def start(self) -> int:
        """Index of the present item, as a span has it."""
        return self.count() - 1

    def begin(self) -> None:
        if self.observer is not None:
            self.observer.started(self, self.observer.run.stages[0], 0)
        with self.naming("on_start"):
            self.call.begin()

    # ----------------------------------------------------------------------------------------- what is waited for

    def item_of(self, given: Any) -> Any:
        """The item that is *given*, with a ticket if the stage looks at more."""
        if self.stage.ticket is None:
            return given
        self.cost = given.cost
        return given.item

    def turns(self) -> Iterator[float]:
        """Give the seconds to wait until the present item may start, again and again until it does."""
        if self.rate is not None:
            while not self.rate.grant(now := perf_counter(), 1, self.cost):
                yield max(0.0, self.rate.opens(now, self.cost) - now)
                self.tally.hold_up(Hold.RATE, perf_counter() - now)
            self.rate.start(now, self.cost)

    def pauses(self) -> Iterator[float]:
        """The same for a further try."""
        if self.again.after > 0:
            begun = perf_counter()
            yield self.again.after
            self.tally.hold_up(Hold.RETRIES, perf_counter() - begun)
        yield from self.turns()

    def pause(self, seconds: float) -> None:
        """Wait so many *seconds*, which are no part of the time in f."""
        begun = perf_counter()
        self.tap.rest.wait(seconds)
        self.had += perf_counter() - begun

    async def pause_async(self, seconds: float) -> None:
        """Wait as `pause` does, and let the event loop run other tasks meanwhile."""
        begun = perf_counter()
        await self.tap.rest.wait_async(seconds)
        self.had += perf_counter() - begun

    # ------------------------------------------------------------------------------------------------ in parts

    def has(self) -> None:
        """The first item of a part is there."""
        self.had = perf_counter()

    def stepping(self) -> Callable[[Any], Any]:
        """Give item -> slot."""
        return self.taking(self.looking_up(self.admitting(self.call.step)))

    def admitting(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Have *step* wait for the stage's rate."""
        if self.rate is None:
            return step

        def admit(item: Any) -> Any:
            for seconds in self.turns():
                self.pause(seconds)
            return step(item)

        return admit

    def taking(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Have *step* take a ticket apart."""
        if self.stage.ticket is None:
            return step

        def take(ticket: Any) -> Any:
            return step(self.item_of(ticket))

        return take

    def looking_up(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Have *step* look an item up before f is called."""
        if self.memory is None:
            return step
        known = self.known

        def look_up(item: Any) -> Any:
            slot = known(item)
            return step(item) if slot is MISSING else slot

        return look_up

    def known(self, item: Any) -> Any:
        """Give the slot of *item* if the memo has it, else `MISSING`."""
        if self.memory is None:
            return MISSING
        try:
            known = self.memory.arrived(item, self.start)
        except BaseException as error:
            raise OptionFailed(error, "memo") from None
        if type(known) is not Known:
            return MISSING
        self.tally.known += 1
        return known.slot

    def timed(self, item: Any) -> Any:
        """Run f on it."""
        try:
            return self.step(item)
        finally:
            self.made = perf_counter()

    def rest(self, items: Iterator[Any]) -> Iterator[Any]:
        """The first item is through: give the others, as many as are one part."""
        self.back = perf_counter()
        if self.most == 1:
            return iter(())
        if self.observer is None and self.counted >= MANY and self.back - self.asked < CHEAP:
            self.most = sys.maxsize
            return items
        return islice(items, self.most - 1)

    def goes_on(self) -> bool:
        """A part is through: count it, and tell whether there may be another one."""
        now, came = perf_counter(), self.count()
        count = came - self.counted
        self.settle(now, came)
        if count < self.most:
            return False
        # What waits for a rate comes alone: each wait is to be told from the time in f.
        slow = self.rate is not None or now - self.asked >= SPAN_SECONDS
        self.most = 1 if slow else min(2 * self.most, MOST_TOLD)
        self.asked = now
        return True

    def settle(self, now: float, came: int) -> None:
        """Count the part in hand, as far as it has come."""
        tally, count = self.tally, came - self.counted
        starved, busy, blocked = self.seconds(now)
        tally.starved, tally.blocked = tally.starved + starved, tally.blocked + blocked
        tally.busy += busy
        if count and self.made > self.had > self.asked:
            tally.costs.add(self.made - self.had, count)
        tally.taken, tally.given, self.counted = came, self.outputs_of(came), came
        self.tell(came, busy)

    def seconds(self, now: float) -> tuple[float, float, float]:
        """How long the part has waited for items, was in f, and has waited for its outputs to be taken, by *now*.

        Beyond the first item, that is not known: the others are taken to be as it was.
        """
        if self.had < self.asked:
            return now - self.asked, 0.0, 0.0
        starved = self.had - self.asked
        if self.made < self.had:
            return starved, now - self.had, 0.0
        busy = self.made - self.had
        if self.back < self.made:
            return starved, busy, now - self.made
        blocked = self.back - self.made
        times = (now - self.asked) / ((self.back - self.asked) or 1.0)
        return starved * times, busy * times, blocked * times

    def outputs_of(self, came: int) -> int:
        """How many outputs there are of so many items."""
        return self.given if self.stage.kernel.spread else came - self.skipped - self.fatal

    def tell(self, came: int, seconds: float) -> None:
        """So many items have come in all, and are through: so many *seconds* were in f since the last time."""
        start, count, self.told = self.told, came - self.told, came
        if self.observer is not None and count:
            stage = self.observer.run.stages[0]
            with self.observer.lock:  # passed on together
                self.observer.pulled(self.observer.run, count)
                self.observer.taken(stage, start, count, 0)
                self.observer.done(stage, start, count - self.fatal, seconds, 0)

    def ends_with(self, error: BaseException) -> None:
        if isinstance(error, GeneratorExit | Left):
            self.error = self.tap.blamed
            return
        self.error = error
        if self.observer is not None:
            self.observer.error = error

    def over(self) -> None:
        """Count what was not counted; tell the observer of it, and of the end."""
        self.settle(perf_counter(), self.count())
        if self.account is not None:
            self.account.is_over()
        if self.observer is not None:
            self.observer.ended(self, "ended")
            self.observer.close()

    def outputs(self, item: Any) -> list[Any]:
        """Run f on *item*; give its outputs."""
        if not self.call.started:
            self.begin()
            self.step = self.stepping()
        self.has()
        try:
            slot = self.timed(item)
        except BaseException as error:
            # Not as a variable: this frame is in the error's traceback, and a `Failed` would keep itself alive.
            return self.counted_outputs(self.failed(error, item))
        return self.counted_outputs(slot)

    async def outputs_in_time(self, given: Any) -> list[Any]:
        """The same, with waits that leave the event loop to others."""
        if not self.call.started:
            self.begin()
            self.step = self.call.step
        self.has()
        item = self.item_of(given)
        try:
            slot = self.known(item)
        except OptionFailed as error:
            slot = self.failed(error, given)
        if slot is MISSING:
            for seconds in self.turns():
                await self.pause_async(seconds)
            try:
                slot = self.timed(item)
            except BaseException as error:
                for seconds in self.further_tries(error, item):
                    await self.pause_async(seconds)
                return self.counted_outputs(self.taken_slot())
        return self.counted_outputs(slot)

    def counted_outputs(self, slot: Any) -> list[Any]:
        outputs = self.stage.kernel.outputs([slot], skips=True)
        self.given += len(outputs)
        self.skipped += not outputs
        return outputs

    def failed(self, error: BaseException, given: Any) -> Any:
        """Give the slot that stands for the failed item that was *given*, or raise."""
        if isinstance(error, GeneratorExit) and error.__traceback__ and error.__traceback__.tb_next is None:
            raise error  # not out of f: the generator that called f is closed
        if isinstance(error, Left):
            raise error
        for seconds in self.further_tries(error, self.item_of(given)):
            self.pause(seconds)
        return self.taken_slot()

    def taken_slot(self) -> Any:
        """Give what `further_tries` has left."""
        slot, self.slot = self.slot, None
        return slot

    def further_tries(self, error: BaseException, item: Any) -> Iterator[float]:
        """Try a failed *item* again as often as the stage says; leave its slot in `slot`, or raise.

        It gives the seconds to wait before each further try.
        """
        while (failure := self.tried(error, item)) is None:
            yield from self.pauses()
            try:
                slot = self.call.step(item)
                break
            except BaseException as another:
                error = another
        else:
            slot = handled(self.stage, self.given_up(failure))
        self.slot = self.stands(slot)
        del error, failure, slot  # as in `outputs`

    def tried(self, error: BaseException, item: Any) -> Failure | None:
        """Note that a try of *item* has ended with *error*; give the failure, or None if it is tried `again`."""
        self.tries += 1
        failure: Failure = self.call.failure(error, item, self.start, self.tries)
        try:
            again = further_try_of(self.stage, failure, Run.draw)
        except BaseException as raised:
            self.fatal = 1
            raise handler_failed(self.stage, failure, raised, "retry_on").error or raised from None
        if again is None:
            return failure
        self.again = again
        self.tally.retried += 1
        if self.observer is not None and failure.error is not None:
            self.observer.retried(self.observer.run.stages[0], self.start, failure.error, self.tries)
        return None

    def stands(self, slot: Any) -> Any:
        """Give the *slot* that stands for an item that had failed, or raise."""
        self.tries = 0
        if is_failure(slot):
            self.fatal = 1
            raise slot.error
        self.made = perf_counter()
        return SKIP if slot is DROP else slot

    def given_up(self, failure: Failure) -> Failure:
        """An item has failed for good: give the failure that ``on_error`` is to decide about."""
        self.tally.failed += 1
        try:
            if self.memory is not None:
                self.memory.failed(failure.index)
        except OptionFailed as failed:
            return handler_failed(self.stage, failure, failed.error, "memo")
        if self.observer is not None and failure.error is not None:
            self.observer.failed(self.observer.run.stages[0], failure.index, failure.error, failure.tries)
        return judged(self.stage, self.tolerance, failure, self.count)

    def end(self) -> None:
        if self.memory is not None:
            self.memory.end()
        with self.ending():
            self.call.end(StageStatus(0, self.error))

    def ending(self) -> AbstractContextManager[None]:
        """Where ``on_done`` runs: its error is raised if it is the first one."""
        return self.naming("on_done") if self.error is None else suppress(Exception)

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


class Tap:
    """What a stage without workers shares with its stream: neither is to keep the other alive."""

    def __init__(self) -> None:
        #: Nothing more is to be pulled from a source that is no stream. A source that is one is drained itself.
        self.draining = False
        #: What ended whoever takes the outputs, if it closes them for that.
        self.blamed: BaseException | None = None
        #: How many stages in a row, up to this one, call one another.
        self.depth = 1
        #: Tells how many items have come.
        self.count: Callable[[], int] = lambda: 0
        #: Where its thread waits: shared with the stages that this one calls.
        self.rest = Rest()


class Owner(Protocol):
    """Whose outputs they are."""

    #: It was asked to close.
    closing: bool
    tap: Tap

    def end(self) -> None: ...


def is_stream(source: Any) -> bool:
    """Tell whether it is a `Stream`, which this floor cannot import."""
    return hasattr(type(source), "_blame")


def blame(items: Any, error: BaseException | None) -> None:
    """Tell a stream, which is closed next, that this is for an *error* of whoever takes its outputs."""
    if error is not None and is_stream(items):
        items._blame(error)


def iterate(
    stage: Stage, source: Iterable[Any], tap: Tap, handing_on: bool, account: Account | None = None
) -> Generator[Any, None, None]:
    """Give the outputs of *stage* over *source*; *handing_on* says that the source is a stream.

    The loops are all that happens for an item, as what is called there, or looked at, counts: `map` takes 50 ns. So a
    map has one of its own: what it does not look at saves a third.
    """
    ends: Any = Tap() if handing_on else tap  # a source that is a stream is drained itself, and ends then
    given = iter(source)
    items, count = counted(source, given)
    tap.count = count
    here = Here(stage, count, source, tap, account)
    failed, spread = here.failed, stage.kernel.spread
    keeping, kept = handing_on and stage.hands_on, stage.kernel.kept
    bare = stage.kernel is MAP and not keeping  # no slot is DROP, and no item goes past f
    try:
        try:
            if ends.draining or (item := next(items, MISSING)) is MISSING:
                return
        except RecursionError as error:
            explain(error, tap)
            raise
        here.begin()
        step = here.stepping()
        here.step = handed_on(stage, step) if keeping else step
        while item is not MISSING:
            made = [*here.outputs(item)][::-1]
            item = None  # neither the item nor an output is kept longer than needed
            while made:
                yield made.pop()
            rest = iter(()) if ends.draining else here.rest(items)
            if bare:
                for item in rest:
                    try:
                        slot = step(item)
                    except BaseException as error:
                        slot = failed(error, item)
                    if slot is not SKIP:
                        yield slot
                    else:
                        here.skipped += 1
                    if ends.draining:
                        return
            else:
                for item in rest:
                    try:
                        slot = kept(item) if keeping and type(item) is Failed else step(item)
                    except BaseException as error:
                        slot = failed(error, item)
                    if slot is DROP or slot is SKIP:
                        here.skipped += 1
                    elif spread:
                        here.given += len(slot)
                        yield from slot
                    else:
                        yield slot
                    if ends.draining:
                        return
            if ends.draining or not here.goes_on():
                return
            item = next(items, MISSING)
    except BaseException as error:
        here.ends_with(error)
        if isinstance(error, Left):
            return
        raise
    finally:
        try:
            here.end()
        finally:
            blame(given, here.error)
            if isinstance(given, Generator):
                given.close()
            here.over()
            came = count()
            tap.count = lambda: came  # it keeps no source


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


async def each(source: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Give the items of *source*, of either sort, and close it at the end."""
    items: Any = aiter(source) if isinstance(source, AsyncIterable) else iter(source)
    try:
        if isinstance(source, AsyncIterable):
            async for item in items:
                yield item
        else:
            for item in items:
                yield item
    finally:
        if isinstance(source, AsyncIterable):
            await aclose(items)
        elif isinstance(items, Generator):
            items.close()


def explain(error: RecursionError, tap: Tap) -> None:
    """Say how many stages call one another, where *error* comes of that."""
    if tap.depth > 64:  # else it is the source's own
        error.args = (
            f"{tap.depth} stages of kind 'sync' in a row: each calls the one before it, and the limit of"
            f" recursion is {sys.getrecursionlimit()}; raise it by sys.setrecursionlimit, or join their functions",
        )


async def iterate_async(
    stage: Stage,
    source: Iterable[Any] | AsyncIterable[Any],
    owner: Owner,
    handing_on: bool,
    account: Account | None = None,
) -> AsyncGenerator[Iterable[Any], None]:
    """The same for an ``async for``, some at a time."""
    from asyncio import sleep

    if not (stage.paced or isinstance(source, AsyncIterable)):
        items = iterate(stage, source, owner.tap, False, account)  # no stream: that is an async iterable, too
        try:
            for output in items:
                yield (output,)
        finally:
            owner.end()
            items.close()
        return
    number = 0
    here = Here(stage, lambda: number, source, owner.tap, account)
    if not isinstance(source, AsyncIterable):  # a wait must leave the loop to others
        source = each(() if owner.tap.draining else source)
    pulls, handing_on = not handing_on, handing_on and stage.hands_on
    given: Any = None
    try:
        given = aiter(source)
        owner.tap.count = here.count
        paused = perf_counter()
        async for item in given:
            number += 1
            if handing_on and type(item) is Failed:
                yield here.counted_outputs(stage.kernel.kept(item))
            elif stage.paced:
                yield await here.outputs_in_time(item)
            else:
                yield here.outputs(item)
            if owner.tap.draining and pulls:
                break
            here.back = perf_counter()
            here.goes_on()
            if here.back - paused > SPAN_SECONDS:  # a source that never waits leaves others a turn
                await sleep(0)
                paused = perf_counter()
    except GeneratorExit as error:
        here.ends_with(error)
        if not owner.closing:
            given = None  # collected, or at the end of the loop: whoever closes this closes that, too
        raise
    except BaseException as error:
        if isinstance(error, RecursionError) and not number:
            explain(error, owner.tap)
        here.ends_with(error)
        if not isinstance(error, Left):
            raise
    finally:
        owner.end()
        try:
            here.end()
        finally:
            if given is not None:
                blame(given, here.error)
                await aclose(given)
            here.over()
