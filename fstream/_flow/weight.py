"""How many bytes an item holds, about. It is looked at without running any code of Python: that might do anything."""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Sequence
from itertools import islice
from types import GetSetDescriptorType, MethodDescriptorType, ModuleType
from typing import Any, Final, NamedTuple

from fstream._flow.sizing import SPAN_BYTES

__all__ = ["LIGHT", "SAMPLES", "SELDOM", "SELDOM_SECONDS", "Gauge", "Weight", "has_gil", "is_light", "weigh"]

#: How many items are weighed at a time. That takes 10 us, and up to 100 us.
SAMPLES: Final = 5

#: Some are weighed again after so many items, or after so many seconds: items of another sort are to be noticed before
#: many of them are there.
SELDOM: Final = 256
SELDOM_SECONDS: Final = 0.008

#: Items of less than so many bytes are light.
LIGHT: Final = 1024

#: How deep to look, and at how many pieces of each object: of more, the first ones stand for all.
DEEPEST: Final = 4
FEW: Final = 8

_CONTAINERS: Final[tuple[Any, ...]] = (list, tuple, set, frozenset, deque, dict)

#: What refers to nothing, and tells its whole size. Most items are of these: to ask no more about them halves the time
#: of a weighing, which was 5 % of what cheap items cost on threads.
_PLAIN: Final = frozenset({int, float, complex, bool, str, bytes, type(None)})


class Weight(NamedTuple):
    """How many bytes some samples have."""

    mean: float
    #: Most of them have at least so many: it is no single heavy one. 0 if they are too few to say so.
    most: float = 0.0


def weigh(samples: Sequence[object]) -> Weight | None:
    """Give the bytes of *samples*; None if they are too few.

    What several share, a model say, is not counted: so the first one only shows what that is. Objects of C that tell no
    size count as next to nothing.
    """
    if len(samples) < 2:
        return None
    seen: set[int] = set()
    try:
        _size_of(samples[0], seen, DEEPEST)
        sizes = sorted(_size_of(sample, seen, DEEPEST) for sample in samples[1:])
    except Exception:  # it was changed in the meantime
        return None
    return Weight(sum(sizes) / len(sizes), sizes[(len(sizes) - 1) // 2] if len(sizes) > 2 else 0.0)


def is_light(item: object) -> bool:
    """Tell whether *item* has less than `LIGHT` bytes, without what it refers to. That takes 0.1 us."""
    try:
        return type(type(item).__sizeof__) is not MethodDescriptorType or sys.getsizeof(item) < LIGHT
    except Exception:
        return True


class Gauge:
    """Tells when the slots of a span, in another process, have more than `SPAN_BYTES`. It weighs some now and then."""

    def __init__(self, now: float) -> None:
        #: When it has looked last, in seconds of the caller's clock.
        self.looked = now
        #: How many slots there were then, and about how many bytes they have.
        self.count = 0
        self.bytes = 0.0

    def is_full(self, slots: list[Any], now: float) -> bool:
        """Tell whether *slots* have so many bytes at the time *now*."""
        if now - self.looked >= SELDOM_SECONDS:
            self.looked = now
            if weight := weigh(slots[-SAMPLES:]):
                self.bytes += weight.mean * (len(slots) - self.count)
                self.count = len(slots)
        return self.bytes > SPAN_BYTES


def has_gil() -> bool:
    """Tell whether one thread runs at a time. On a free-threaded build an import may bring the GIL back."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _parts_of(value: Any) -> list[object]:
    """Give what *value* refers to; only its attributes where other threads may change it at the same time."""
    if has_gil():
        return gc.get_referents(value)
    try:
        return list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        return []


def _size_of(value: Any, seen: set[int], deep: int) -> float:
    if id(value) in seen:
        return 0.0
    seen.add(id(value))
    cls = type(value)
    if cls in _PLAIN:
        return sys.getsizeof(value)
    if issubclass(cls, (type, ModuleType)):  # `isinstance` may ask the object for its class
        return 0.0
    size: float = sys.getsizeof(value) if type(cls.__sizeof__) is MethodDescriptorType else 0
    if (
        type(data := getattr(cls, "nbytes", None)) is GetSetDescriptorType
    ):  # an array: a view has none of its own
        size = max(size, data.__get__(value))
    if not deep:
        return size
    container = (
        cls if cls in _CONTAINERS else next((each for each in _CONTAINERS if issubclass(cls, each)), None)
    )
    if container is not None:  # C tells what it has, also where its class is the user's
        count = container.__len__(value)
        pieces = list(islice(dict.values(value) if container is dict else container.__iter__(value), FEW))
    else:
        pieces = _parts_of(value)
        count = len(pieces)
        del pieces[FEW:]
    if pieces:
        size += sum(_size_of(piece, seen, deep - 1) for piece in pieces) * count / len(pieces)
    return size
