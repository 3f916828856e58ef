"""A span on its way to a worker that has no memory in common with this process, and what comes back.

Both are bytes, that are unpickled where they are used: so what cannot be pickled or unpickled is an error as a value,
of the stage or of an item, and never one of whatever carries them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, Final, NamedTuple

from fstream._flow.span import Failure, Span
from fstream._plan.stages import Stage, carried
from fstream._workers.call import Call
from fstream._workers.notes import annotate, describe
from fstream._workers.process.blame import blame
from fstream._workers.process.errors import decode_error, encode_error
from fstream._workers.process.wire import Packed, dumps, loads
from fstream.errors import NotPicklable

__all__ = ["INSIDE", "Answer", "Parcels"]

#: The executors that run what runs here, by their `id` in the process that submits to them.
INSIDE: Final[ContextVar[frozenset[int]]] = ContextVar("INSIDE", default=frozenset())

#: The keys of the stages that are at work in this process.
_LIVE: Final[set[str]] = set()
_NUMBERS: Final = count()

#: In a worker, `calls`: what each of its threads has begun, by the key of the stage, and in which context.
_HERE: Final = threading.local()


class Answer(NamedTuple):
    """What has become of a span in a worker."""

    #: What could not be begun, "stage", "on_start" or "items", for what error; "" if all could.
    broken: str
    error: tuple[Any, ...] | None = None
    #: The slots, from the first; and of those that are failures, by their positions, the error and how often the item
    #: was tried.
    slots: Packed = []  # noqa: RUF012  (nobody changes it)
    failed: dict[int, tuple[tuple[Any, ...], int]] = {}  # noqa: RUF012
    seconds: float = 0.0


class Parcels:
    """Makes the parcels of one stage."""

    def __init__(self, stage: Stage, context: Context) -> None:
        # Handlers run in this process, and need not be picklable.
        self.stage = Stage(
            stage.kernel, stage.f, stage.kind, retries=stage.retries, on_start=stage.on_start,
            on_error="raise" if stage.on_error == "raise" else "skip", name=stage.name,
            rate=None if stage.rate is None else 1.0,
        )  # fmt: skip
        self.variables = carried(stage, context)
        self.key = f"{os.getpid()}-{next(_NUMBERS)}"
        self.packed: Packed = []
        #: What is wrong with the stage, if it cannot be pickled.
        self.problem: NotPicklable | None = None
        #: How many bytes an item is, of those that were sent last.
        self.item_bytes = 1.0

    def open(self) -> None:
        _LIVE.add(self.key)

    def close(self) -> None:
        _LIVE.discard(self.key)

    def pack(self, span: Span, seconds: float, inside: frozenset[int]) -> Callable[[], Answer]:
        """Make what runs *span* in the worker, and gives it up behind the item that it is at after *seconds*."""
        if not self.packed:
            try:
                self.packed = _plain(dumps((self.stage, self.variables)))
            except Exception as error:
                self.problem = NotPicklable(blame(self.stage, error, self.variables))
                self.problem.__cause__ = error
                raise self.problem from error
        items = _plain(dumps(span.items))
        self.item_bytes = max(1.0, sum(map(len, items)) / max(1, len(span.items)))
        return partial(serve, self.key, {*_LIVE}, inside, self.packed, span.start, span.tries, items, seconds)

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
        for position, (error, tries) in answer.failed.items():
            slots[position] = Failure(span.start + position, span.items[position], decode_error(error), tries)
        return slots


def _plain(packed: Packed) -> Packed:
    """In parts that any protocol of pickle takes, and that are writable where they were."""
    return [packed[0], *map(bytearray, packed[1:])]


def serve(
    key: str, live: set[str], inside: frozenset[int], stage: Packed, start: int, tries: int, items: Packed,
    seconds: float,
) -> Answer:  # fmt: skip
    """Work a span off, in the worker. It lets nothing out, as that would be taken for an error of the executor."""
    try:
        call, context = _call_of(key, live, stage)
    except BaseException as error:
        return Answer("stage", encode_error(error))
    try:
        return context.run(_work, call, INSIDE.get() | inside, start, tries, items, seconds)
    finally:
        call.set_place(None)  # it keeps no item while it waits


def _call_of(key: str, live: set[str], stage: Packed) -> tuple[Call, Context]:
    """Give what this thread does for the stage: made for its first span, and kept while the stage is at work."""
    calls: dict[str, tuple[Call, Context]] = _HERE.__dict__.setdefault("calls", {})
    for old in calls.keys() - live:
        del calls[old]
    if key not in calls:
        shape, variables = loads(stage)
        context = copy_context()
        for variable, value in variables:
            context.run(variable.set, value)
        calls[key] = Call(shape, 0), context
    return calls[key]


def _work(
    call: Call, inside: frozenset[int], start: int, tries: int, items: Packed, seconds: float
) -> Answer:
    INSIDE.set(inside)
    at = "on_start"
    try:
        if not call.started:
            call.begin()
            if call.stage.rate is not None and call.stage.on_start is not None:
                return Answer("", None, _plain(dumps([])))  # a try counts when f begins, not before
        at = "items"
        span = Span(start, loads(items), tries)
        return _answer(call, span, seconds)
    except BaseException as error:
        return Answer(at, encode_error(call.named(error)))


def _answer(call: Call, span: Span, seconds: float) -> Answer:
    slots, stage = span.slots, call.stage
    failed: dict[int, tuple[tuple[Any, ...], int]] = {}
    call.set_place(span)
    begun = perf_counter()
    for index, item in enumerate(span.items, span.start):
        try:
            slot = call.step(item)
        except BaseException as error:
            failure = call.failure(error, item, index, 1 if slots else span.tries + 1)
            assert failure.error is not None
            failed[len(slots)] = encode_error(failure.error), failure.tries
            slot = None
        slots.append(slot)
        # What is behind an item that may be tried again, or that may end the stage, is left to others.
        if perf_counter() - begun > seconds or (failed and (stage.retries or stage.on_error == "raise")):
            break
    elapsed = perf_counter() - begun
    try:
        packed = dumps(slots)
    except Exception:
        for position, slot in enumerate(slots):
            try:
                dumps(slot)
            except Exception as error:
                where = describe(stage, span.start + position, span.items[position])
                problem = NotPicklable(
                    f"{where}: its output, of type {type(slot).__name__}, cannot be pickled: {error}"
                )
                problem.__cause__ = error
                tries = 1 if position else span.tries + 1
                failed[position], slots[position] = (encode_error(problem), tries), None
        packed = dumps(slots)
    return Answer("", None, _plain(packed), failed, elapsed)
