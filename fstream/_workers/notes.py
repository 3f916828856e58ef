"""The notes on an error that say where it was raised: in which stage, at which item."""

from __future__ import annotations

import reprlib
import sys
from typing import Any

from fstream._flow.weight import has_gil
from fstream._plan.stages import Stage

__all__ = ["OptionFailed", "annotate", "annotate_item", "describe", "named", "notes_of", "shown"]

#: Whether threads may shorten the traceback of an error that another thread raises at the same time. Without the GIL
#: CPython 3.13 has no lock there, and miscounts references: bare threads that raise one error come to a traceback that
#: goes in a circle. Where fstream shortened it, 15 of 40 runs of 20,000 items on four threads crashed or hung; where it
#: is left as it is, none of 40. CPython 3.14 has a lock.
TRACEBACKS_ARE_LOCKED = sys.version_info >= (3, 14)


class OptionFailed(BaseException):
    """The *error* was raised by what an option calls, and not by f: it ends the stream, whatever ``on_error`` says.

    *role* is the option's name. *stage* is the stage that has this option, if it is another one than the one at work.
    """

    def __init__(self, error: BaseException, role: str, stage: Stage | None = None) -> None:
        self.error = error
        self.role = role
        self.stage = stage


def describe(stage: Stage, index: int, item: Any) -> str:
    """Name an item of a stage in a message."""
    return f"stage {stage.name!r} ({stage.kind}), item {index}: {shown(item)}"


def shown(item: Any) -> str:
    try:
        return reprlib.repr(item)
    except Exception as error:
        return f"<{type(item).__name__} whose repr raises {type(error).__name__}>"


def named(error: BaseException, name: str) -> BaseException:
    """Keep a StopIteration of what is called *name* out of the iterators that it would end in silence (PEP 479)."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    stop = RuntimeError(f"{name} raised {type(error).__name__}")
    stop.__cause__ = error
    return stop


def annotate(error: BaseException, note: str) -> None:
    _set_notes(error, [*notes_of(error), note])


def notes_of(error: BaseException) -> list[Any]:
    """Give the notes that *error* has, past a `__getattr__` of its class, which may answer to every name."""
    try:
        notes: object = BaseException.__getattribute__(error, "__notes__")
    except AttributeError:
        return []
    return [*notes] if isinstance(notes, list | tuple) else []


def _set_notes(error: BaseException, notes: list[str]) -> None:
    BaseException.__setattr__(error, "__notes__", notes)  # not add_note, which a frozen exception refuses


class ItemNote(str):
    """The note that says in which *role* of which *stage*, and at which item, an error was raised."""

    stage: Stage
    role: str
    #: How long the error's traceback was when it was raised for the first item, and how long it is. Invariant: the
    #: first is no more than the second, so that what is cut out of the middle never makes a circle.
    first: int
    length: int

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)


def annotate_item(error: BaseException, stage: Stage, which: str, role: str = "") -> None:
    """Name the item *which* of *stage* in a note.

    One object may be raised for many items, as what is kept of a log-in that failed. So a note takes the place of an
    earlier one of the stage, and the traceback shows the first time and the last: else each item would leave its note
    and its frames.
    """
    note = ItemNote(f"in {role}{which}")
    note.stage, note.role, note.first, note.length = stage, role, 0, 0
    notes: list[str] = []
    earlier: list[ItemNote] = []
    for other in notes_of(error):
        if type(other) is ItemNote and other.stage is stage and other.role == role:
            earlier.append(other)
        else:
            notes.append(other)
    if TRACEBACKS_ARE_LOCKED or has_gil():
        _shorten_traceback(error, note, earlier)
    _set_notes(error, [*notes, note])


def _shorten_traceback(error: BaseException, note: ItemNote, earlier: list[ItemNote]) -> None:
    """Leave of the traceback what was there at first, and what came after the *earlier* notes."""
    entries = []
    entry = error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    note.first = note.length = len(entries)
    for other in earlier:
        note.first = min(other.first, len(entries))
        if (new := len(entries) - other.length) > 0:
            entries[new - 1].tb_next = entries[-note.first] if note.first else None
            note.length = new + note.first
