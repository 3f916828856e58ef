"""Any `concurrent.futures.Executor` as workers: the caller's own, or one that is opened for the stage.

    window --take--> pump --submit--> [executor] f --the future's callback--> pump --> window

One future is one span; an executor is asked for nothing but `submit`, and for its end if it is the stage's own. What is
submitted is a `Flight`: where the executor's threads are threads of this process, it works its span off as a worker
thread would; where it is pickled on its way, a parcel goes in its place.

An observer is told that a span is taken when it is submitted, by no worker in particular, because an executor's workers
have no numbers. For the same reason no worker is said to start or to end.
"""

from __future__ import annotations

import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final

from fstream._engine.steps import through
from fstream._flow.buffers import OVERDUE
from fstream._flow.sizing import SPAN_BYTES
from fstream._flow.span import Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage, declared, name_of
from fstream._workers.call import Call
from fstream._workers.crew import Crew
from fstream._workers.notes import annotate, describe
from fstream._workers.parcels import INSIDE, Parcels, serve
from fstream._workers.pump import FlightPump, FlightQueue
from fstream._workers.thread import Hand, Watch
from fstream.errors import WorkerDied

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["Workers", "check", "prepare"]

#: A parcel is given up, behind the item that it is at, after so many times what it should take.
OVERTIME: Final = 2


def check(stage: Stage) -> None:
    """Refuse what executors cannot give."""
    engine = stage.engine
    if type(engine).__name__ == "ClientExecutor":
        raise TypeError("kind must not be a ClientExecutor: pass its client, kind=client")
    if stage.max_items_per_worker is not None:
        raise ValueError(
            "max_items_per_worker is for kind='process': give max_tasks_per_child to the executor"
        )
    if stage.on_done is not None:
        raise ValueError(
            "on_done is not for executors, whose workers do not end with the stage: leave it out"
        )
    if "worker_info" in stage.names or (stage.on_start and "worker_info" in declared(stage.on_start)):
        raise ValueError("worker_info is not for executors, whose workers have no numbers: leave it out")
    if isinstance(engine, Executor):
        _workers_of(stage, engine)
        return
    try:
        signature(engine).bind()
    except TypeError:
        name = name_of(engine)
        raise TypeError(
            "kind must be an executor or a function of no arguments that makes one, "
            f"got {name!r}, which takes arguments: write kind=lambda: {name}(...)"
        ) from None
    except ValueError:  # some built-ins have none
        pass


def _size(executor: Executor) -> int | None:
    return getattr(executor, "_max_workers", None)


def _workers_of(stage: Stage, executor: Executor) -> int:
    workers = stage.workers or _size(executor)
    if workers is None:
        raise ValueError(f"workers must be given, as {type(executor).__name__} does not say how many it has")
    return workers


class Pool:
    """The executor of a stage: the caller's, or one of its own, for which there is *make*."""

    def __init__(self, engine: Any) -> None:
        self.make = None if isinstance(engine, Executor) else engine
        self.executor: Executor = engine
        self.renew()
        if self.make is None and id(self.executor) in INSIDE.get():
            raise RuntimeError(
                "a stream inside f on the executor that runs f may wait for ever for its own worker: "
                "give it another executor, or another kind"
            )

    def renew(self) -> None:
        if self.make is None:
            return
        executor = self.make()
        if not isinstance(executor, Executor):
            raise TypeError(f"kind: {name_of(self.make)!r} must make an executor, got {executor!r}")
        self.executor = executor


def prepare(stage: Stage) -> Stage:
    """Open the executor, and see how many workers it has."""
    pool = Pool(stage.engine)
    return replace(stage, engine=pool, workers=_workers_of(stage, pool.executor))


#: The future of all flights that are back. It is done, so that nobody sets it any more.
LANDED: Final[Future[Any]] = Future()
LANDED.cancel()


class Flight(Hand):
    """One span in an executor's hands."""

    crew: Workers
    span: Span
    future: Future[Any]

    def __init__(self, crew: Workers, span: Span) -> None:
        super().__init__(crew, None, crew.no_call)
        self.span = span
        self.executor = crew.pool.executor
        #: What kept it from being pickled.
        self.problem: Exception | None = None

    def __call__(self) -> float:
        """Work it off, in a thread of this process; give the seconds that went into it."""
        here = self.crew.here.__dict__
        self.call = here["call"] = here.get("call") or Call(self.stage, 0, self.crew.keep)
        context = self.run.context.copy()
        context.run(INSIDE.set, INSIDE.get() | {id(self.executor)})
        try:
            return 0.0 if self.run.stopped else context.run(through, self.work(self.span))
        finally:
            self.call.set_place(None)  # it keeps no item while it waits

    def __reduce__(self) -> Any:
        self.crew.travels = True
        with self.run.lock:  # from here on nobody takes anything of it
            self.span.sent = True
        seconds = OVERTIME * self.crew.window.sizing.span_seconds
        try:
            parcel = self.crew.parcels.pack(self.span, seconds, frozenset({id(self.executor)}))
        except Exception as error:
            self.problem = error
            raise
        return partial(serve, *parcel).__reduce__()


class Workers(Crew):
    """What one stage has in its executor."""

    #: What a span is in its hands. A kind that hands spans over in another way has another class.
    flight: Any = Flight
    #: What an executor may have broken with is run one by one. It costs little then, and to break an executor much.
    singly = True

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.pool: Pool = stage.engine
        #: How many spans may be in flight. As many as can run; to processes one more, so that the way to and fro takes
        #: none of their time. Not to threads, which are near: a later item would come before one that was taken back.
        # Nor with a rate, because a try counts when f begins.
        self.most = window.workers
        if (size := _size(self.pool.executor)) is not None and size <= window.workers:
            ahead = stage.rate is None and not isinstance(self.pool.executor, ThreadPoolExecutor)
            self.most = size + ahead
        self.flights: set[Any] = set()
        #: Indexes of the items that an executor may have broken with: they are run with nothing beside them.
        self.suspects: set[int] = set()
        #: The executor has broken with one item alone.
        self.proven = False
        self.parcels = Parcels(stage, run.context)
        #: Flights are pickled, so time-outs are seen to where they are unpickled; or nobody knows yet.
        self.travels = False
        #: The `call` of each thread of this process that has begun.
        self.here = threading.local()
        self.no_call = Call(stage, 0)
        self.queue = FlightQueue(self)
        self.watch = Watch(self) if stage.timeout is not None else None
        self.pump = FlightPump(self)

    def start(self) -> None:
        self.parcels.open()
        self.members.add(self.pump)
        self.run.launch(self.pump)
        if self.watch is not None:
            self.run.launch(self.watch)

    def stop(self) -> None:
        self.queue.signal()
        if self.watch is not None:
            self.watch.rouse()

    def add(self, index: int | None = None) -> None:
        """A worker was given up: it is the executor's, and nobody takes its place before it returns."""

    def capacity(self) -> bool:
        return len(self.flights) < (1 if self.suspects else self.most)

    def dispatch(self) -> None:
        """Submit spans. Not under the lock: an executor has locks of its own."""
        while (flight := self.next_flight()) is not None:
            try:
                flight.future = flight.executor.submit(flight)
            except BaseException as error:
                flight.future = Future()
                flight.future.set_exception(error)
            # It does no more: it may be called by a thread that holds a lock of the executor's.
            flight.future.add_done_callback(lambda _, flight=flight: self.queue.news.put(flight))

    def next_flight(self) -> Any:
        """Take a span; None if there is none, or no more may be in flight."""
        if not self.capacity():
            return None
        with self.run.lock:
            now = self.run.clock()
            self.window.steal_overdue(now, OVERDUE)
            alone = (self.suspects and self.singly) or (self.watch and not self.travels)
            span = self.window.take(now, 1 if alone else max(1, int(SPAN_BYTES / self.parcels.item_bytes)))
            self.settle_beside()
            if span is None:
                return None
            span.stride = []  # nobody takes its first item, which the executor has
            flight = self.flight(self, span)
            self.flights.add(flight)
            self.members.add(flight)
        if self.observer is not None:
            self.taken(span, flight)
        return flight

    def landed(self, flight: Any) -> None:
        span = flight.span
        self.suspects.discard(span.start)
        seconds = None
        try:
            answer = flight.future.result()
            seconds = answer if isinstance(answer, float) else self.receive(span, answer)
        except BrokenExecutor as error:
            self.broken(flight, error)
        except BaseException as error:
            self.refused(flight, error)
        finally:
            with self.run.lock:
                self.flights.discard(flight)
                self.members.discard(flight)
                if self.suspects:
                    self.suspects.difference_update(range(span.start, span.start + len(span.items)))
                # A future keeps its callbacks, and so the flight, which is in the frames of tracebacks, too.
                flight.future = LANDED
                if not flight.abandoned:  # else the watch may be about to look at the span
                    flight.span = Span(span.start, ())
                    self.window.done(span, seconds)
                self.settle_beside()

    def receive(self, span: Span, answer: Any) -> float:
        """Put the slots that a parcel has come back with into their span."""
        if (problem := self.parcels.problem_of(answer)) is not None:
            what, error = problem
            if what == "items":
                self.unfit(span, error, "item cannot be unpickled in the worker")
            else:
                self.fail(Failure(-1, None, error))
            return 0.0
        try:
            slots = self.parcels.slots_of(answer, span)
        except BaseException as error:
            self.unfit(span, error, "its output cannot be unpickled", -1)
            return 0.0
        if answer.failed:
            with self.run.lock:
                self.window.began(span, answer.seconds)
        if answer.failed or self.keep is not None:
            all(self.put(span, slot) for slot in slots)  # up to a failure that stays
        else:
            span.slots.extend(slots)
        with self.run.lock:
            if answer.parts is not None:
                assert self.window.tally.parts is not None
                self.window.tally.parts.add(answer.parts)
            self.window.requeue_tail(span, len(span.items) - len(slots))
        seconds: float = answer.seconds
        return seconds

    def refused(self, flight: Any, error: BaseException) -> None:
        """The executor has not run it."""
        span = flight.span
        if self.parcels.problem is not None:
            self.fail(Failure(-1, None, self.parcels.problem))
        elif flight.problem is not None:
            self.unfit(span, flight.problem, "item cannot be pickled")
        elif not self.window.stopped:
            annotate(error, f"in the executor of {describe(self.stage, span.start, span.items[0])}")
            self.fail(Failure(span.start, span.items[0], error))

    def broken(self, flight: Flight, error: BrokenExecutor) -> None:
        """The executor has lost its workers: blame the only item that it had, or run each alone on a new one."""
        span, pool = flight.span, self.pool
        if self.window.stopped:
            return
        if flight.executor is pool.executor:  # the first to say so
            mates = [each for each in self.flights if each.executor is pool.executor]
            self.proven = len(mates) == len(span.items) == 1
            try:
                pool.executor.shutdown(wait=False)
                pool.renew()
            except BaseException as raised:
                pool.make = None
                self.fail(Failure(-1, None, raised))
        proven, self.proven = self.proven, False
        died = partial(self.died, span, error)
        if pool.make is None:
            failure = Failure(span.start, span.items[0], None)
            failure.error = died(failure)
            self.fail(failure)
        elif proven:
            span.sent = True  # also if nobody had begun it: to run it is what breaks executors
            self.lost(span, died)
        else:
            with self.run.lock:
                self.suspects.update(range(span.start + len(span.slots), span.start + len(span.items)))
                self.window.requeue_apart(span)

    def died(self, span: Span, error: BrokenExecutor, failure: Failure) -> WorkerDied:
        where, item = describe(self.stage, span.start, failure.item), failure.item
        if len(span.items) > 1 or len(self.flights) > 1:
            first = min(each.span.start for each in self.flights)
            last = max(each.span.start + len(each.span.items) for each in self.flights) - 1
            where, item = (
                f"stage {self.stage.name!r} ({self.stage.kind}), one of the items {first} to {last}",
                None,
            )
        died = WorkerDied(f"{where}: its executor broke: {error}", None, item)
        died.__cause__ = error
        return died

    def wind_up(self) -> None:
        """Wait for what is at work, and close an executor of the stage's own."""
        self.parcels.close()
        for flight in list(self.flights):
            flight.future.cancel()
        while not all(flight.abandoned for flight in self.flights):
            if (landed := self.queue.news.get()) is not None:
                self.landed(landed)
        if self.pool.make is not None:
            self.pool.executor.shutdown(wait=not self.flights)
