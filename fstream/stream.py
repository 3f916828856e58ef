"""`Stream`: the lazy outputs of a pipeline, for a ``for`` loop and for an ``async for``."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from math import inf
from operator import length_hint
from time import perf_counter
from types import TracebackType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload
from weakref import ReferenceType, ref

from fstream._engine.interrupts import Uninterrupted
from fstream._engine.run import RLock, Run, holding, let_go
from fstream._plan.kernels import EACH, MAP
from fstream._plan.options import check_within
from fstream._plan.stages import NO_LIMIT, Batch, Stage, gives_one_for_one, has_memo
from fstream._seen.account import Account
from fstream._seen.stats import Stats, stats_of
from fstream._workers.failed import Failed
from fstream._workers.inline import in_place, is_inline, iterate_inline, iterate_inline_async
from fstream._workers.kinds import IN_PLACE, backend_of, runs_in_place
from fstream._workers.opening import OPEN
from fstream._workers.sync import Tap, aclose, iterate, iterate_async

if TYPE_CHECKING:
    from fstream._engine.run import ConsumerQueue, TaskConsumer
    from fstream._workers.task.reach import EventLoop

__all__ = ["Stream"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


def _nothing() -> None: ...


def _tells_at_once(made: type) -> bool:
    """Tell whether the length of a source of this class costs nothing: it is told by C, or by Python's own library."""
    how = getattr(made, "__len__", None)
    return made.__module__ == "collections" or isinstance(how, WrapperDescriptorType)


if TYPE_CHECKING:

    class _Chain(Generator[T_co, None, None]):
        """Stands for chain, whose element type a type checker takes to be invariant."""

else:
    _Chain = chain


class Stream(_Chain[T_co], AsyncGenerator[T_co, None]):
    """The outputs of a pipeline: a generator and an async generator in one.

    Nothing is pulled and nothing runs before the first ``next``; everything ends with `close`, a ``with`` block,
    exhaustion, an error, or when the stream is dropped.

    >>> from fstream import pmap
    >>> with pmap(abs, kind="thread")([-1, 2, -3]) as stream:
    ...     next(stream), list(stream)
    (1, [2, 3])

    It has one consumer at a time. On a free-threaded build two threads that take from one stream need a lock of their
    own, as with `itertools.chain`: one in here would cost each output several times what it costs now.

    ``stream | g`` is ``g(stream)``; ``await stream`` gives the list of the outputs.

    >>> pmap(abs, [-1, 2]) | sum
    3
    """

    # `itertools.chain` gives __next__ at the speed of C: it iterates the lists that `_Outputs` hands it.

    # With slots, and without __getattr__, `__anext__` takes a fifth less time.
    __slots__ = ("__dict__", "__weakref__", "_current", "_outputs", "_parts")

    _outputs: _Outputs
    #: What an ``async for`` iterates just now.
    _current: Iterator[T_co]
    #: The outputs for an ``async for``, many at a time: an async generator, as an event loop that ends closes those.
    _parts: AsyncGenerator[Iterable[T_co], None] | None

    def __new__(cls, source: Any, stage: Stage | Batch | None) -> Self:
        """Make the stream of *stage* over *source*; with no stage, of the merged outputs of a tuple of sources."""
        outputs = _Outputs(source, stage)
        self: Self = super().from_iterable(outputs)  # type: ignore[misc]
        self._outputs = outputs
        self._current = outputs.current
        self._parts = None
        # What has __await__, send, throw and close counts as a coroutine, and asyncio's functions would step it as one.
        # So `send` is there, but not in the class.
        self.send = outputs.send  # type: ignore[method-assign]
        return self

    def __init__(self, source: Any, stage: Stage | Batch | None) -> None:
        pass

    @classmethod
    def of(cls, source: Any) -> Self:
        """Make a stream of what *source* gives, in the caller's own thread."""
        return cls(source, Stage(MAP, _itself, IN_PLACE.name, name="stream"))

    def in_order(self) -> Stream[T_co]:
        """Give this stream with all of its stages ordered."""
        row: list[Any] = [self]
        while isinstance(row[-1], Stream):
            row.append(row[-1]._outputs.source)
        source = row.pop()
        for stream in reversed(row):
            parts = stream._outputs.as_in_order(source)
            if parts is not None:
                stream._outputs.replaced = True
            source = stream if parts is None else Stream(*parts)
        return source  # type: ignore[no-any-return]

    @overload
    def __or__(self, g: Callable[[Self], U]) -> U: ...
    @overload
    def __or__(self: Stream[T | Failed], g: Callable[[Stream[T]], Stream[U]]) -> Stream[U | Failed]: ...
    def __or__(self, g: Any) -> Any:
        return g(self) if callable(g) else NotImplemented

    def __len__(self) -> int:
        """How many outputs there are in all, where each stage gives one for one and the source has a length.

        Functions that take a sequence or an iterator, as those of toolz, count on a length that stays.
        """
        return self._outputs.length()

    def __length_hint__(self) -> int:
        """How many of them are left."""
        try:
            return self._outputs.left()
        except TypeError:
            return NotImplemented  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<fstream.Stream {self._outputs!r}>"

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Stream cannot be pickled or copied: it is being consumed; pass its transformer on instead"
        )

    def stats(self) -> Stats:
        """Give the numbers of the pipeline up to here: what each stage has done, and which one holds the others back.

            >>> from fstream import pmap
            >>> stream = pmap(abs, [-1, 2, -3], kind="thread")
            >>> sum(stream)
            6
            >>> [(stage.name, stage.taken, stage.given) for stage in stream.stats().stages]
            [('abs', 3, 3)]

        During the run and after it, from any thread. The stages upstream are told of as far as there is no iterator
        between that is not fstream's. `Stats` says what the numbers mean; its ``str`` is a table.
        """
        return self._outputs.stats()

    # --------------------------------------------------------------------------------------- as a generator

    if TYPE_CHECKING:

        def send(self, value: None) -> T_co:
            """Give the next output; *value* goes nowhere, as in a generator that ignores it."""
            ...

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> T_co:
        """Close the stream and raise the exception."""
        self.close()
        if isinstance(typ, type):
            typ = typ() if val is None else val if isinstance(val, BaseException) else typ(val)
        raise typ.with_traceback(tb) if tb is not None else typ

    def drain(self, *, within: float | None = None) -> None:
        """Pull nothing more from the source, give out what is held, and end.

            >>> from itertools import count
            >>> from fstream import pmap
            >>> numbers = pmap(abs, count())
            >>> for number in numbers:
            ...     if number == 3:
            ...         numbers.drain()
            >>> number >= 3
            True

        It returns at once, and may be called in any thread and in a signal handler. A handler has two arguments, so it
        is ``lambda *_: stream.drain()``.

        What is held is worked off with all its tries: that may last *retries* times *timeout* and the waits between.
        `close` ends it. A source that blocks is not waited for. What it brings before the last output still comes out.
        What it brings later is dropped. A stream that is drained before its first ``next`` is empty. An error ends it
        as ever. It does not reach beyond an iterator of your own between two stages: that is then the source. Drain the
        stream before it instead.

        *within* is a number of seconds, at least 0. Default None: no limit. After so long the stream ends as by
        `close`, and what is at work is cut off. Nor is a longer *on_done* waited for. A consumer that is away with an
        output sees the end when it asks for the next one. Of several calls the earliest end counts. Another *within*
        raises `TypeError` or `ValueError`.

            >>> from time import sleep
            >>> stream = pmap(sleep, [0, 3600], kind="process")
            >>> next(stream)
            >>> stream.drain(within=0.1)
            >>> list(stream)
            []
        """
        check_within(within)
        self._outputs.drain(None if within is None or within >= NO_LIMIT else within)

    def _blame(self, error: BaseException) -> None:
        """Note that this stream will be closed for an *error* of whoever takes its outputs."""
        self._outputs.blame(error)

    def close(self) -> None:
        """End the pipeline at once: its workers, threads, tasks and processes, and its source.

        A thread that is busy in f or in the source cannot be stopped; it is left to itself and ends thereafter. A
        worker process that is busy in f is ended, and another one is started when it is needed. It waits up to 0.25 s
        for threads in f or in the source, and up to 5 s for the rest. An error of *on_done* is raised. Where a hook or
        an observer calls it in a thread of the pipeline, it waits for nobody.
        """
        self._outputs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --------------------------------------------------------------------------------- as an async generator

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        for output in self._current:
            return output
        while await self._more():
            for output in self._current:
                return output
        raise StopAsyncIteration

    async def _more(self) -> bool:
        """Wait for more outputs; False at the end."""
        outputs = self._outputs
        if self._current is outputs.current:  # else `next` took some, and what is left of those comes first
            if self._parts is None:
                self._parts = outputs.iterate_async()
            part = await anext(self._parts, None)
            if part is None:
                return False
            outputs.current = iter(part)
        self._current = outputs.current
        return True

    def asend(self, value: None) -> Coroutine[Any, Any, T_co]:
        """Give the next output; *value* goes nowhere."""
        return self.__anext__()

    async def athrow(self, typ: Any, val: Any = None, tb: TracebackType | None = None) -> T_co:
        """Close the stream and raise the exception."""
        await self.aclose()
        return self.throw(typ, val, tb)

    async def aclose(self) -> None:
        """End the pipeline as `close` does, without blocking the event loop."""
        await self._outputs.aclose()
        if self._parts is not None:
            await aclose(self._parts)  # a task that waits in its __anext__ ends now, and ends it

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _list(self) -> list[T_co]:
        outputs: list[T_co] = []
        try:
            while True:
                outputs += self._current
                if not await self._more():
                    return outputs
        finally:
            await self.aclose()

    def __await__(self) -> Generator[Any, None, list[T_co]]:
        return self._list().__await__()


Generator.register(Stream)


def _itself(item: T) -> T:
    return item


class _Outputs:
    """What a stream iterates: iterators over outputs, one after the other. It starts the run, and ends it.

    Invariant: while *current* has outputs left, `__next__` gives it again rather than the next one. So two threads that
    consume one stream lose nothing: `itertools.chain` may put the same iterator into its own place twice, never
    another one over it.
    """

    # What `__del__` looks at: an interrupt may come at any step of `__init__`.
    started = replaced = False
    stage: Stage | Batch | None = None
    run: Run | None = None

    def __init__(self, source: Any, stage: Stage | Batch | None) -> None:
        #: What the stage iterates; a tuple of sources if there is no stage.
        self.source = source
        self.stage = stage
        self.lock = RLock()
        self.started = self.over = False
        #: Another stream does what this one was to do.
        self.replaced = False
        #: What it shares with its stage, if that has no workers; and what may come before there is a run.
        self.tap = Tap()
        #: The streams among the sources, and which of the sources are none.
        self.streams: list[ReferenceType[Stream[Any]]] = []
        self.own: list[bool] = []
        #: How many outputs there will be, if that is known, and how many were given out.
        self.total: int | None = None
        #: Gives the source of a stream that has started, if its length was not asked for and it is still there.
        self.unasked: Callable[[], Any] = _nothing
        self.given = 0
        if runs_in_place(stage) and isinstance(source, Stream):
            self.tap.depth += source._outputs.tap.depth
        self.current: Iterator[Any] = iter(())
        self.run = None
        self.queue: ConsumerQueue | None = None
        #: The outputs of a stage without workers, where an ``async for`` takes them.
        self.here: AsyncGenerator[Iterable[Any], None] | None = None
        #: The loop that an ``async for`` downstream runs on: the one for tasks upstream of it.
        self.loop: EventLoop | None = None
        #: The numbers of its run: of the whole row, of which this is stage number `place`, if others have taken it.
        self.account: Account | None = None
        self.place: int | None = None
        #: The outputs downstream that have taken this stage into their own row.
        self._taker: ReferenceType[_Outputs] | None = None
        #: `aclose` was called: it is not the garbage collector that closes the async generator.
        self.closing = False

    def __repr__(self) -> str:
        names = [outputs.stage.name if outputs.stage else "merge" for outputs in self._row()]
        return f"{' | '.join(names)}, {'over' if self.over else 'started' if self.started else 'not started'}"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterator[Any]:
        try:
            with self.lock:
                try:
                    if not self.started:
                        self.start()
                    if length_hint(self.current) > 0:
                        return self.current
                    if self.over:
                        if self.run is not None:  # it was closed by another thread while this one started it
                            self.run.stop()
                        raise StopIteration
                    if self._taker is not None:
                        self.taken()
                        raise StopIteration
                    if self.run is None:  # without workers the one iterator is a generator
                        if self.current.gi_frame is None:  # type: ignore[attr-defined]
                            raise StopIteration
                        return self.current
                    if self.queue is None:
                        self.queue = self.run.consumer_queue()
                    taken = self.run.take(self.queue)
                    self.given += len(taken)
                    self.current = iter(taken)
                except BaseException:
                    self.end()
                    raise
                return self.current
        except BaseException:
            let_go(self.lock)
            self.end()  # an interrupt may have come before the block that does
            raise

    def send(self, value: None) -> Any:
        """Give the next output, as a generator does that ignores what it is sent."""
        while True:
            for output in self.current:
                return output
            next(self)

    # ---------------------------------------------------------------------------------------------- starting

    @property
    def taken_by(self) -> _Outputs | None:
        return self._taker() if self._taker is not None else None

    def _row(self) -> list[_Outputs]:
        """The stages that run as one row: this one, and those upstream that have workers and have not started."""
        row = [self]
        # What a memo knows is looked up by a feeder, so a stage that has one begins a row.
        while row[0].stage is not None and not runs_in_place(row[0].stage) and not has_memo(row[0].stage):
            upstream = row[0].source._outputs if isinstance(row[0].source, Stream) else None
            if upstream is None or upstream.started or runs_in_place(upstream.stage):
                break
            row.insert(0, upstream)
        return row

    def start_inline(self) -> tuple[Any, bool, Account]:
        """Start to run in the thread of who takes the outputs: give the source, whether f awaits, and the account."""
        awaits = isinstance(self.stage, Stage) and backend_of(self.stage).awaits
        self.stage = in_place(self.stage)
        _, sources, account = self.take_sources(alone=True)
        for source in sources:
            if isinstance(source, Stream):
                source._outputs.tap.rest = self.tap.rest
        return sources if self.stage is None else sources[0], awaits, account

    def take_sources(self, *, alone: bool = False) -> tuple[list[_Outputs], list[Any], Account]:
        """Give the row that starts here, or this stage *alone*; the sources of it, which are its own from now on; and
        the account of this stage.
        """
        self.total = self._total()
        if self.total is None:
            with suppress(TypeError):
                self.unasked = ref(self._first()[1])
        with holding(_LINKING):
            row = [self] if alone else self._row()
            for outputs in row:
                outputs.started = True
                outputs._taker = ref(self) if outputs is not self else None
            self.account = account = self.account or self.account_of(row)
        first = row[0]
        sources = [first.source] if first.stage is not None else list(first.source)
        for outputs in row:
            outputs.source = None
        self.streams = [ref(source) for source in sources if isinstance(source, Stream)]
        for source in sources:
            if isinstance(source, Stream) and self.loop is not None:
                source._outputs.loop = self.loop
        return row, sources, account

    def start(self) -> None:
        if is_inline():
            source, awaits, account = self.start_inline()
            self.current = iterate_inline(self.stage, awaits, source, self.tap, account)
            return
        row, sources, account = self.take_sources()
        taps = [outputs.tap for outputs in row]
        # `drain` says so first, and looks who has started only then. So it is seen here, or it finds what is below.
        if any(tap.draining for tap in taps):
            self.over = True
            return
        stages = [outputs.stage for outputs in row if outputs.stage is not None]
        for number, outputs in enumerate(row[:-1]):
            outputs.account = account
            outputs.place = sum(isinstance(each.stage, Stage) for each in row[: number + 1])
        self.own = [not isinstance(source, Stream) for source in sources]
        if runs_in_place(self.stage):
            source = sources[0]
            if isinstance(source, Stream):
                source._outputs.tap.rest = self.tap.rest
            if not isinstance(source, Iterable):
                source = Stream((source,), None)
                source._outputs.loop = self.loop
                self.streams = [ref(source)]
            self.current = iterate(self.stage, source, self.tap, bool(self.streams), account)
        else:
            with Uninterrupted():
                self.run = OPEN.get()(sources, stages, self.loop)
                account.opens(self.run, sources)
                self.run.start()
        if any(tap.draining for tap in taps):
            until = min(tap.rest.until for tap in taps)
            self.drain(None if until == inf else until - perf_counter())

    def account_of(self, row: list[_Outputs]) -> Account:
        """Make the account of this stage, the last of *row*, that knows those of what the row iterates."""
        made = Account(outputs.stage for outputs in row)
        todo = [(made, row[0])]  # not a recursion: there may be a thousand
        while todo:
            account, first = todo.pop()
            for source in [first.source] if first.stage is not None else first.source:
                if isinstance(source, Stream):
                    outputs = source._outputs
                    if outputs.account is None:
                        upstream = outputs._row()
                        outputs.account = Account(each.stage for each in upstream)
                        todo.append((outputs.account, upstream[0]))
                    account.sources.append(outputs.account)
                    outputs.account.feeds = True
        return made

    def stats(self) -> Stats:
        with holding(_LINKING):  # what it will be made of may change until it starts
            account = self.account or self.account_of(self._row())
        return stats_of(account, self.place)

    def as_in_order(self, source: Any) -> tuple[Any, Stage | Batch] | None:
        """What a stream of the same outputs in order is made of, if *source* is in order; None if this one is."""
        if self.started:
            if self.stage is not None and not self.stage.ordered:
                raise RuntimeError(f"ordered() came too late: the stream has started: <{self!r}>")
            return None
        if self.stage is None or (self.stage.ordered and source is self.source):
            return None
        return source, replace(self.stage, ordered=True)

    def taken(self) -> None:
        """Raise an error, unless who has taken this stream is through with it."""
        if self.taken_by is not None and not self.taken_by.over:
            raise RuntimeError(
                f"this stream is the source of another one that has started: <{self.taken_by!r}>"
            )

    def iterate_async(self) -> AsyncGenerator[Iterable[Any], None]:
        """Give the outputs, some at a time, on the running loop."""
        from fstream._workers.task.reach import running

        if self.started:
            return self._give_async()
        self.loop = running()
        if is_inline():
            source, _, account = self.start_inline()
            self.here = iterate_inline_async(self.stage, source, self, account)
            return self.here
        if not runs_in_place(self.stage):
            self.start()
            return self._give_async()
        _, (source,), account = self.take_sources()
        self.here = iterate_async(self.stage, source, self, bool(self.streams), account)
        return self.here

    async def _give_async(self) -> AsyncGenerator[Iterable[Any], None]:
        self.taken()
        if self.run is None:
            return
        consumer = consumer_of(self.run)
        queue = consumer.queue_of(self.run)
        try:
            # A close has dropped what was taken: what comes next would leave a gap.
            while not self.over and (taken := await consumer.take(self.run, queue)) is not None:
                self.given += len(taken)
                yield taken
        finally:
            await self.aclose()

    # ------------------------------------------------------------------------------------------------ length

    def length(self) -> int:
        """How many outputs there are in all; raise TypeError if that is not known."""
        at, source = self._first()
        if at.started:
            if at is not self:
                return self.left()
            if at.total is not None:
                return at.total
            source = at.unasked()
            if source is None or isinstance(source, Iterator | AsyncIterator):  # it knows only what is left
                raise TypeError("the stream has started, and has not noted the length of its source")
        try:
            self.total = len(source)
        except TypeError:
            raise
        except Exception as error:  # longer than `len` can say, or an error of the source's own
            raise TypeError(f"the length of the source cannot be told: {error}") from error
        return self.total

    def left(self) -> int:
        """How many outputs are still to come; raise TypeError if that is not known."""
        at, _ = self._first()
        if not at.started:
            return self.length()
        given = at.tap.count() if at.run is None else at.given - length_hint(at.current)
        return 0 if at.over else max(0, at.length() - given)

    def _first(self) -> tuple[_Outputs, Any]:
        """The first part upstream that has not started, or the last one that has; and its source."""
        at = self
        while not at.started:
            if at.stage is None or not gives_one_for_one(at.stage):
                name = "merge" if at.stage is None else at.stage.name
                raise TypeError(f"{name!r} does not give one output for each item: the stream has no length")
            if not isinstance(at.source, Stream):
                break
            at = at.source._outputs
        return at, at.source

    def _total(self) -> int | None:
        """How many outputs there will be, if to ask costs nothing: some sources load all they have to tell."""
        try:
            at, source = self._first()
            return self.left() if at.started or _tells_at_once(type(source)) else self.total
        except TypeError:
            return None

    # ------------------------------------------------------------------------------------------------ ending

    def drain(self, within: float | None) -> None:
        """Pull nothing more, and end after *within* seconds: in any thread, in the middle of anything."""
        self.tap.draining = True  # before the rest: see `start`
        if within is not None:
            self.tap.rest.stop_at(perf_counter() + within)
        if (taker := self.taken_by) is not None:
            taker.drain(within)
            return
        if not self.started:
            self.over = self.started = True
        for stream in self.streams:
            if (upstream := stream()) is not None:
                upstream._outputs.drain(within)
        if (run := self.run) is not None:
            run.drain(self.own, within)

    def blame(self, error: BaseException) -> None:
        self.tap.blamed = error
        if self.run is not None:
            self.run.blamed = error
        elif not isinstance(
            self.stage, Stage
        ):  # without workers, what makes batches or merges has no end of its own
            for stream in self.streams:
                if (upstream := stream()) is not None:
                    upstream._blame(error)

    def end(self) -> None:
        self.over = self.started = True
        if self.run is not None:  # an interrupt may have come before it was stopped
            self.run.stop()
        self.run = self.source = None
        self.current = iter(())
        self.note_end()

    def note_end(self) -> None:
        """Keep the numbers of the run, which is over."""
        if self.account is not None and self._taker is None:
            self.account.is_over()

    def close(self) -> None:
        if (taker := self.taken_by) is not None:
            taker.close()
            return
        self.over = self.started = True  # first: who is just starting the run looks at it last
        self.tap.rest.stop()
        run, current = self.run, self.current
        if not give_up(current) or self.here is not None:
            self.end_after_item()
        if run is not None:
            run.close()
        self.note_end()
        if self.here is not None and self.loop is not None:
            from fstream._workers.task import consumer

            consumer.close_soon(self.loop, self.here)

    def end_after_item(self) -> None:
        """Without workers f or the source is at work, or calls this: end when it is through with the present item."""
        self.tap.draining = True
        for stream in self.streams:
            if (upstream := stream()) is not None:
                upstream.close()

    async def aclose(self) -> None:
        self.closing = True
        if (taker := self.taken_by) is not None:
            await taker.aclose()
            return
        self.over = self.started = True  # first: who is just starting the run looks at it last
        self.tap.rest.stop()
        run, current = self.run, self.current
        if not give_up(current):
            self.end_after_item()
        if run is not None:
            await consumer_of(run).close(run)
        self.note_end()

    def __del__(self) -> None:
        if (
            not (self.started or self.replaced)
            and isinstance(self.stage, Stage)
            and self.stage.kernel == EACH
        ):
            warnings.warn(
                f"peach({self.stage.name}) was dropped before it was consumed, and f was never called: "
                f"write run(peach({self.stage.name}, source))",
                RuntimeWarning,
                stacklevel=2,
            )
        # The stream was dropped. Wait for nothing, as this may be any thread, anywhere.
        if self.run is not None:
            self.run.drop()


def consumer_of(run: Run) -> TaskConsumer:
    """Give what takes the outputs of *run* for an ``async for``."""
    if run.consumer is not None:
        return run.consumer
    from fstream._workers.task import consumer

    return consumer


def give_up(outputs: Iterator[Any]) -> bool:
    """Have *outputs* give no more; False if they are being made just now, in another thread or in this one."""
    try:
        if isinstance(outputs, Generator):
            outputs.close()
        deque(outputs, 0)
    except ValueError as error:
        if str(error) != "generator already executing":
            raise
        return False
    return True


#: Held while streams are taken into a row, and while an account is made of them: two threads may want the same one.
_LINKING: Final = RLock()
