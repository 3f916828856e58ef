"""A span on its way to a worker that has no memory in common with this process, and what comes back.

Both are bytes, that are unpickled where they are used: so what cannot be pickled or unpickled is an error as a value,
of the stage or of an item, and never one of whatever carries them.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, ContextVar, copy_context
from functools import partial
from itertools import count
from queue import Empty, SimpleQueue
from time import monotonic, perf_counter
from typing import Any, Final, NamedTuple

from fstream._flow.span import Failure, Span
from fstream._flow.tally import PartCounts
from fstream._flow.weight import Gauge
from fstream._plan.stages import Stage, StageStatus
from fstream._workers.call import Call, FusedCall, call_of
from fstream._workers.notes import annotate, describe
from fstream._workers.process.blame import blame_output
from fstream._workers.process.errors import decode_error, encode_error
from fstream._workers.process.shape import packed_stage
from fstream._workers.process.wire import Packed, dumps, loads
from fstream.errors import NotPicklable

__all__ = ["INSIDE", "Answer", "Order", "Parcels", "forget", "serve", "take_out", "to_finish"]

#: What runs what runs here: the `id` of an executor in the process that submits to it, the address of a scheduler.
INSIDE: Final[ContextVar[frozenset[int | str]]] = ContextVar("INSIDE", default=frozenset())

#: The keys of the stages that are at work in this process.
_LIVE: Final[set[str]] = set()
_NUMBERS: Final = count()

#: Tells this program from others that use the same workers.
_PROGRAM: Final = os.urandom(8).hex()

#: In a worker: what each of its threads has begun, and in which context, by the key of the stage and the thread.
_CALLS: Final[dict[tuple[str, int], tuple[Call | FusedCall, Context]]] = {}

#: In a worker: the threads in which items of a stage run that has time-outs, an ``on_done`` or a ``worker_info``, by
#: its key and the thread that they work for; or ``~index``, which is negative, if they have an index.
_ASIDE: Final[dict[tuple[str, int], Aside]] = {}

#: In a worker: its indexes, by the stage's key and the first one, which it has for as long as it is one.
_SEATS: Final[dict[tuple[str, int], Seats]] = {}

#: Whether threads may be daemons here. In an interpreter beside the first one they may not, and that waits at its end
#: until they return.
DAEMONS: Final = sys.version_info < (3, 12) or _thread.daemon_threads_allowed()

#: In a worker: the keys of the stages that ended last, of which a task may still come.
_OVER: Final[dict[str, None]] = {}
MOST_OVER: Final = 1024


class Order(NamedTuple):
    """A span on its way to a worker. What is pickled in it is unpickled where errors of that are values."""

    key: str
    #: The keys of this program's stages that are at work.
    live: set[str]
    inside: frozenset[int | str]
    stage: Packed
    start: int
    tries: int
    items: Packed
    #: It is given up, behind the item that it is at, after so many seconds.
    seconds: float
    #: The items run in a thread that may be given up, and that the worker's resources stay with.
    aside: bool
    timeout: float | None
    #: Which indexes the workers here may have, or all workers by where they are; None if f does not ask for its own.
    seats: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None
    #: The index of the worker, once it is known.
    seat: int | None = None
    python: tuple[int, int] = sys.version_info[:2]


class Answer(NamedTuple):
    """What has become of a span in a worker."""

    #: What could not be begun: "stage", "on_start", "items", or "worker" if there was no thread; "" if all could.
    broken: str
    error: tuple[Any, ...] | None = None
    #: The slots, from the first; and of those that are failures, by their positions, the error, how often the item was
    #: tried, and which part of the stage has failed, if it stands for several.
    slots: Packed = []  # noqa: RUF012  (nobody changes it)
    failed: dict[int, tuple[tuple[Any, ...], int, int]] = {}  # noqa: RUF012
    seconds: float = 0.0
    #: What the parts of the stage have counted, if it stands for several.
    parts: PartCounts | None = None


class Parcels:
    """Makes the parcels of one stage."""

    def __init__(self, stage: Stage, context: Context, part: Callable[[Any], Any] = bytearray) -> None:
        self.stage = stage
        self.context = context
        #: Makes of a large buffer what travels: a copy that any protocol of pickle takes, unless it is said otherwise.
        self.part = part
        self.timeout = stage.timeout
        self.key = f"{_PROGRAM}-{os.getpid()}-{next(_NUMBERS)}"
        self.packed: Packed = []
        #: What is wrong with the stage, if it cannot be pickled.
        self.problem: NotPicklable | None = None
        #: How many bytes an item is, of those that were sent last.
        self.item_bytes = 1.0
        #: Which workers have which indexes, by where they are, if f asks for its own.
        self.seats: dict[str, tuple[int, ...]] | None = None

    def open(self) -> None:
        _LIVE.add(self.key)

    def close(self) -> None:
        _LIVE.discard(self.key)

    def pack(self, span: Span, seconds: float, inside: frozenset[int | str]) -> Order:
        """Make what runs *span* in the worker, and gives it up behind the item that it is at after *seconds*."""
        if not self.packed:
            try:
                packed = _plain(packed_stage(self.stage, self.context))
                self.packed = [packed[0], *map(self.part, packed[1:])]
            except NotPicklable as problem:
                self.problem = problem
                raise
        items = dumps(span.items)
        self.item_bytes = max(1.0, sum(map(len, items)) / max(1, len(span.items)))
        aside = self.timeout is not None or self.stage.on_done is not None or self.seats is not None
        return Order(
            self.key,
            {*_LIVE},
            inside,
            self.packed,
            span.start,
            span.tries,
            [items[0], *map(self.part, items[1:])],
            seconds,
            aside,
            self.timeout,
            self.seats,
        )

    def problem_of(self, answer: Answer) -> tuple[str, BaseException] | None:
        """What could not be begun, if anything, and for what error."""
        if answer.error is None:
            return None
        error, where = decode_error(answer.error), f"stage {self.stage.name!r} ({self.stage.kind})"
        if answer.broken == "on_start":
            annotate(error, f"in on_start of {where}")
        elif answer.broken == "stage":
            problem = NotPicklable(f"{where} cannot be loaded in a worker: {error}")
            problem.__cause__ = error
            error = problem
        return answer.broken, error

    def slots_of(self, answer: Answer, span: Span) -> list[Any]:
        """The slots of *span* that have come back, failures among them."""
        slots: list[Any] = loads(answer.slots)
        for position, (error, tries, part) in answer.failed.items():
            index, item = span.start + position, span.items[position]
            slots[position] = Failure(index, item, decode_error(error), tries, part=part)
        return slots


def _plain(packed: Packed) -> Packed:
    """In parts that any protocol of pickle takes, and that are writable where they were."""
    return [packed[0], *map(bytearray, packed[1:])]


def serve(*fields: Any) -> Answer:
    """Work a span off, in the worker. It lets nothing out, as that would be taken for an error of the executor."""
    order = Order(*fields)
    if order.key in _OVER:
        return Answer("stage", encode_error(RuntimeError("the stage is over")))
    try:
        return _served(order) if order.seats is None else _seated(order)
    finally:
        if order.key in _OVER:  # since then
            forget(order.key)


def _seated(order: Order) -> Answer:
    """Work it off under an index that no other thread has meanwhile."""
    assert isinstance(order.seats, tuple)
    if not order.seats:  # it has come since, and has none yet
        return Answer("", None, _plain(dumps([])))
    seats = _SEATS.setdefault((order.key, order.seats[0]), Seats())
    seats.add(order.seats)
    seat = seats.free.get()  # more threads may be here than have an index
    try:
        return _served(order._replace(seat=seat))
    finally:
        seats.free.put(seat)


class Seats:
    """The indexes that one worker has. It may be given more of them."""

    def __init__(self) -> None:
        #: Those that no thread has at work.
        self.free: SimpleQueue[int] = SimpleQueue()
        self.known: dict[int, object] = {}

    def add(self, seats: tuple[int, ...]) -> None:
        """Add those of *seats* that are new. Several threads may be here with the same ones."""
        mine = object()
        for seat in seats:
            if self.known.setdefault(seat, mine) is mine:
                self.free.put(seat)


def _served(order: Order) -> Answer:
    for place in list(_ASIDE):
        if (
            _is_over(place, order) and (over := _ASIDE.pop(place, None)) is not None
        ):  # `forget` may have it, too
            over.close()
    if not order.aside:
        return Execution(order).run()
    place = order.key, threading.get_ident() if order.seat is None else ~order.seat
    aside = _ASIDE.get(place)
    if aside is None:
        try:
            aside = _ASIDE[place] = Aside()
        except Exception as error:  # too many threads
            return Answer("worker", encode_error(error))
    answer = aside.serve(Execution(order))
    if aside.abandoned:
        _ASIDE.pop(place, None)
    return answer


def _close_all() -> None:
    """Have all threads beside others end, or end behind the item that they are at."""
    for aside in list(_ASIDE.values()):
        aside.close()


if not DAEMONS:
    threading._register_atexit(_close_all)  # type: ignore[attr-defined]  # `atexit` comes when they have ended


def _is_over(place: tuple[str, int], order: Order) -> bool:
    """Tell whether *place* is this thread's, and of a stage of the order's program that is not at work any more."""
    key, thread = place
    ours = thread == threading.get_ident() and key.rpartition("-")[0] == order.key.rpartition("-")[0]
    return ours and key not in order.live


class Execution:
    """An order that is carried out in a thread of a worker: its span is worked off there."""

    def __init__(self, order: Order) -> None:
        self.order = order
        #: What has been begun last: what a failure is of, if nothing else is known.
        self.at = "stage"
        self.call: Call | FusedCall | None = None
        self.span = Span(order.start, [], order.tries)
        self.failed: dict[int, tuple[tuple[Any, ...], int, int]] = {}
        #: When the item at work was begun, in seconds of `monotonic`; None between items.
        self.begun: float | None = None
        self.abandoned = False
        self.lock = threading.Lock()

    def run(self) -> Answer:
        """Do all of it."""
        order, call = self.order, None
        try:
            self.call, context = _call_of(order)
            call = self.call
            return context.run(self.work, call)
        except BaseException as error:
            if self.at == "stage" and order.python != sys.version_info[:2]:
                here, there = (".".join(map(str, each)) for each in (sys.version_info[:2], order.python))
                annotate(error, f"the worker has Python {here}, the program {there}: they must be the same")
            return Answer(self.at, encode_error(call.named(error) if call else error))
        finally:
            if call is not None:
                call.set_place(None)  # it keeps no item while it waits

    def work(self, call: Call | FusedCall) -> Answer:
        """Do what is left to do once the stage is loaded, in its context."""
        INSIDE.set(INSIDE.get() | self.order.inside)
        self.at = "on_start"
        if not call.started:
            call.begin()
            if call.stage.rate is not None and call.stage.on_start is not None:
                return Answer("", None, _plain(dumps([])))  # a try counts when f begins, not before
        self.at = "items"
        self.span.items = loads(self.order.items)
        begun = perf_counter()
        self.fill(call)
        return self.answer(perf_counter() - begun)

    def fill(self, call: Call | FusedCall) -> None:
        """Append the slots, up to an item that may be tried again or may end the stage: others have those behind it."""
        span, stage, timed = self.span, call.stage, self.order.timeout is not None
        slots, failed, step = span.slots, self.failed, call.step
        call.set_place(span)
        begun = perf_counter()
        gauge, until = Gauge(begun), begun + self.order.seconds
        for index, item in enumerate(span.items, span.start):
            if timed:
                self.begun = monotonic()
            try:
                slot = step(item)
            except BaseException as error:
                slot = call.failure(error, item, index, 1 if slots else span.tries + 1)
            if timed:
                with self.lock:
                    if self.abandoned:
                        return
                    self.begun = None
            if type(slot) is Failure:
                assert slot.error is not None
                failed[len(slots)] = encode_error(slot.error), slot.tries, slot.part
                slot = None
            slots.append(slot)
            if failed and (stage.retries or stage.on_error == "raise"):
                break
            if (now := perf_counter()) > until or gauge.is_full(slots, now):
                break

    def answer(self, seconds: float) -> Answer:
        """Pack what there is."""
        slots, failed, stage, span = self.span.slots, self.failed, self.stage, self.span
        try:
            packed = dumps(slots)
        except Exception:
            for position, slot in enumerate(slots):
                try:
                    dumps(slot)
                except Exception as error:
                    index, item = span.start + position, span.items[position]
                    problem = blame_output(stage, index, item, slot, error)
                    tries, part = 1 if position else span.tries + 1, max(0, len(stage.parts) - 1)
                    failed[position], slots[position] = (encode_error(problem), tries, part), None
            packed = dumps(slots)
        parts = self.call.counted() if isinstance(self.call, FusedCall) else None
        return Answer("", None, _plain(packed), failed, seconds, parts)

    @property
    def stage(self) -> Stage:
        assert self.call is not None
        return self.call.stage

    def left(self, timeout: float) -> float:
        """How many seconds the item at work has left; all of them, if none is."""
        return timeout if (begun := self.begun) is None else begun + timeout - monotonic()

    def give_up(self, timeout: float) -> bool:
        """Let the item at work fail if it is over its time, and leave its thread to itself."""
        with self.lock:
            if self.left(timeout) > 0:
                return False
            self.abandoned = True
        span, slots = self.span, self.span.slots
        where = describe(self.stage, span.start + len(slots), span.items[len(slots)])
        error = TimeoutError(f"{where}, ran over its {timeout} seconds")
        self.failed[len(slots)] = encode_error(error), 1 if slots else span.tries + 1, 0
        slots.append(None)
        return True


class Aside:
    """A thread beside one of a worker's: it can be given up, and what ``on_start`` has made stays with it."""

    def __init__(self) -> None:
        self.todo: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        #: It has been told to end, and takes nothing more. Under the lock.
        self.closed = False
        self.lock = threading.Lock()
        self.call: Call | FusedCall | None = None
        #: An item was over its time.
        self.abandoned = False
        # F has the context that it would have in the worker's own thread: dask says there which worker it is.
        self.thread = threading.Thread(
            target=copy_context().run, args=(self.main,), name="fstream-aside", daemon=DAEMONS
        )
        self.thread.start()

    def put(self, *calls: Callable[[], object] | None) -> bool:
        """Have it make these calls, and end if the last one is None; False if it was told to end before."""
        with self.lock:
            if self.closed:
                return False
            self.closed = calls[-1] is None
            for call in calls:
                self.todo.put(call)
            return True

    def serve(self, execution: Execution) -> Answer:
        """See *execution* done, within the time that each of its items has."""
        timeout = execution.order.timeout
        # Nobody else's: another thread may wait for what this one is at.
        answers: SimpleQueue[Answer] = SimpleQueue()
        if not self.put(partial(self.do, execution, answers)):  # since it was found
            return Answer("", None, _plain(dumps([])))
        begun = perf_counter()
        while True:
            try:
                left = None if timeout is None else max(0.0, execution.left(timeout))
                return answers.get(timeout=left)
            except Empty:
                assert timeout is not None
                if execution.give_up(timeout):
                    self.abandoned = True
                    self.end(StageStatus(1))
                    return execution.answer(perf_counter() - begun)

    def do(self, execution: Execution, answers: SimpleQueue[Answer]) -> None:
        answer = execution.run()
        self.call = execution.call
        answers.put(answer)

    def end(self, status: StageStatus) -> Future[tuple[Any, ...] | None]:
        """Have it run ``on_done``, if it has begun, and end; give the error, if there is one."""
        ended: Future[tuple[Any, ...] | None] = Future()

        def end() -> None:
            error = None
            if self.call is not None and self.call.started:
                try:
                    self.call.end(status)
                except BaseException as raised:
                    error = encode_error(self.call.named(raised))
            ended.set_result(error)

        if not self.put(end, None):
            ended.set_result(None)
        return ended

    def close(self) -> None:
        self.put(None)

    def main(self) -> None:
        while (call := self.todo.get()) is not None:
            call()
            del call  # it is not to be kept while the next one is waited for
        for place in [place for place in list(_CALLS) if place[1] == threading.get_ident()]:
            _CALLS.pop(place, None)


def _call_of(order: Order) -> tuple[Call | FusedCall, Context]:
    """Give what this thread does for the stage: made for its first span, and kept while the stage is at work."""
    for place in [place for place in list(_CALLS) if _is_over(place, order)]:
        _CALLS.pop(place, None)
    place = order.key, threading.get_ident()
    if place not in _CALLS:
        shape, variables = loads(order.stage)
        context = copy_context()
        for variable, value in variables:
            context.run(variable.set, value)
        _CALLS[place] = call_of(shape, order.seat or 0), context
    return _CALLS[place]


def to_finish(key: str) -> tuple[str, int]:
    """In a worker: which process this is, and how many threads in it have an ``on_done`` of the stage *key* to run."""
    here = [aside for place, aside in list(_ASIDE.items()) if place[0] == key]
    return f"{_PROGRAM}-{os.getpid()}", sum(aside.call is not None and aside.call.started for aside in here)


def take_out(key: str) -> list[Aside]:
    """In a worker: forget the stage *key*, and give the threads that run its ``on_done``."""
    _OVER[key] = None
    while len(_OVER) > MOST_OVER:
        _OVER.pop(next(iter(_OVER)), None)
    taken = [aside for place in list(_ASIDE) if place[0] == key and (aside := _ASIDE.pop(place, None))]
    for place in [place for place in list(_SEATS) if place[0] == key]:
        _SEATS.pop(place, None)
    active = [aside for aside in taken if aside.call is not None and aside.call.started]
    for aside in taken:
        if aside not in active:
            aside.close()
    return active


def forget(key: str) -> None:
    """In a worker: keep nothing of the stage *key*."""
    for aside in take_out(key):
        aside.close()
    for place in [place for place in list(_CALLS) if place[0] == key]:
        _CALLS.pop(place, None)
