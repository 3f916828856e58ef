"""Exceptions that travel between processes, and keep what they are."""

from __future__ import annotations

import pickle
import re
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

from fstream._workers.notes import notes_of
from fstream._workers.process.wire import MOST_ERRORS, _pickled
from fstream.errors import RemoteError, WorkerTraceback

__all__ = ["decode_error", "encode_error"]


# ------------------------------------------------------------------------------------------------- exceptions


def encode_error(error: BaseException) -> tuple[Any, ...]:
    """Make plain data of an exception and all that led to it, and of its traceback as text.

    Each is a record: what it is, and the positions of its cause, its context and, if it is a group, its members.
    """
    errors = [error]
    positions = {id(error): 0}
    cut = False

    def position_of(other: BaseException | None, most: int = MOST_ERRORS) -> int | None:
        nonlocal cut
        if other is None:
            return None
        if id(other) not in positions:
            if len(errors) >= most:
                cut = True
                return None
            positions[id(other)] = len(errors)
            errors.append(other)
        return positions[id(other)]

    records = []
    for each in errors:  # which grows
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        records.append(
            (
                _packed_error(each),
                position_of(each.__cause__),
                position_of(each.__context__),
                each.__suppress_context__,
                _notes(each),
                [position_of(member, sys.maxsize) for member in members],
            )
        )
    text = _formatted(error)
    if cut:
        text += f"\n(Only the first {MOST_ERRORS} of the exceptions that led to one another are kept.)\n"
    return records, text


def decode_error(encoded: tuple[Any, ...]) -> BaseException:
    """Make the exception again; its worker's traceback is the first of its causes."""
    records, text = encoded
    errors: dict[int, BaseException] = {}
    wanted = list(range(len(records)))
    while wanted:
        packed, *_, members = records[wanted[-1]]
        if wanted[-1] in errors:
            wanted.pop()
        elif missing := [member for member in members if member not in errors]:
            wanted += missing
        else:
            errors[wanted.pop()] = _unpacked_error(packed, [errors[member] for member in members])
    for position, (_, cause, context, suppress, notes, _) in enumerate(records):
        error = errors[position]
        # Also where there is none: an exception that is pickled by its name may have those of the last time.
        _set(error, "__context__", errors.get(context))
        _set(error, "__cause__", errors.get(cause))
        _set(error, "__suppress_context__", suppress)
        if notes or notes_of(error):
            _set(error, "__notes__", notes)
    causes = [0]
    while (cause := records[causes[-1]][1]) is not None and cause not in causes:
        causes.append(cause)
    first = errors[causes[-1]]
    suppress = first.__suppress_context__
    _set(first, "__cause__", WorkerTraceback(text))
    _set(first, "__suppress_context__", suppress)
    return errors[0]


def _set(error: BaseException, name: str, value: object) -> None:
    BaseException.__setattr__(error, name, value)  # some exceptions are frozen dataclasses


def _notes(error: BaseException) -> list[str]:
    return [str(note) for note in notes_of(error) if isinstance(note, str)]


def _formatted(error: BaseException) -> str:
    try:
        shown = traceback.TracebackException.from_exception(error, compact=True)
        last: traceback.TracebackException | None = shown
        for _ in range(MOST_ERRORS - 1):
            last = last and (last.__cause__ or last.__context__)
        if last is not None:
            last.__cause__ = last.__context__ = None
        return "".join(shown.format())
    except Exception:
        return f"{type(error).__name__}, which cannot be shown\n"


@contextmanager
def _alone(error: BaseException) -> Iterator[None]:
    """Take off the errors before *error*, and its traceback, which travel by themselves.

    The reducer of tblib, which dask installs, would send all of them with each.
    """
    cause, context, suppress = error.__cause__, error.__context__, error.__suppress_context__
    shown = error.__traceback__
    try:
        for name in ("__cause__", "__context__", "__traceback__"):
            _set(error, name, None)
        yield
    finally:
        _set(error, "__cause__", cause)
        _set(error, "__context__", context)
        _set(error, "__suppress_context__", suppress)
        _set(error, "__traceback__", shown)


def _packed_error(error: BaseException) -> tuple[str, Any]:
    if isinstance(error, BaseExceptionGroup):  # its members travel by themselves
        ways: dict[str, Any] = {"group": (type(error), error.message, _attributes(error))}
    else:
        # An __init__ that takes other arguments than it passes on: make it without.
        ways = {"whole": error, "parts": (type(error), error.args, _attributes(error))}
    copies = []
    for way, content in ways.items():
        try:
            with _alone(error):
                packed = way, _pickled(content)
            copy = _loaded_error(packed, error.exceptions if isinstance(error, BaseExceptionGroup) else ())
            likeness = _likeness(copy, error)
        except Exception:
            continue
        if likeness == 2:
            return packed
        if likeness >= 0:
            copies.append((likeness, packed))
    return max(copies, key=itemgetter(0))[1] if copies else ("text", _formatted(error))


def _attributes(error: BaseException) -> dict[str, Any]:
    return {name: value for name, value in error.__dict__.items() if name != "__notes__"}


def _likeness(copy: BaseException, error: BaseException) -> int:
    """How much a copy is like its original: below 0 if it is of another type.

    The text tells whether it was made of the same arguments; but addresses in it differ, and the order in a set.
    """
    if (type(copy).__module__, type(copy).__qualname__) != (type(error).__module__, type(error).__qualname__):
        return -1
    return (len(copy.args) == len(error.args)) + _say_the_same(copy, error)


def _say_the_same(one: BaseException, other: BaseException) -> bool:
    try:
        texts = str(one), str(other)
    except Exception:
        return True
    return texts[0] == texts[1] or _signs(texts[0]) == _signs(texts[1])


def _signs(text: str) -> Counter[str]:
    return Counter(re.sub("0x[0-9a-f]+", "", text))


def _loaded_error(packed: tuple[str, Any], members: Sequence[BaseException]) -> BaseException:
    way, content = packed
    loaded = pickle.loads(content)
    if way == "whole":
        return loaded  # type: ignore[no-any-return]
    cls, args, attributes = loaded
    error: BaseException
    if way == "group":
        error = BaseExceptionGroup.__new__(cls, args, members)
    else:
        error = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


def _unpacked_error(packed: tuple[str, Any], members: Sequence[BaseException]) -> BaseException:
    way, content = packed
    if way == "text":
        return RemoteError(f"an exception that cannot be pickled was raised in the worker:\n{content}")
    try:
        return _loaded_error(packed, members)
    except Exception as broken:
        return RemoteError(
            f"an exception of the worker cannot be loaded here: {type(broken).__name__}: {broken}"
        )
