"""What an operation means for one item: item -> slot -> outputs.

A *slot* is what one item became. Every stage keeps exactly one slot for each item, so that order and losses can be
counted, and spreads slots into outputs only when they leave the stage:

======== ==================== ======= =========
kernel   slot                 spread  outputs
======== ==================== ======= =========
map      f(item)              no      the slot
filter   item or DROP         no      the slot, unless it is DROP
each     DROP                 no      none
flat_map list(f(item))        yes     the slot's elements
======== ==================== ======= =========

Where f gives SKIP, that is the slot. SKIP and DROP have no elements, so neither gives an output of a flat_map.

Nothing here knows of workers; everything here can be pickled.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from inspect import isawaitable
from itertools import chain
from typing import Any, Final, Never

__all__ = [
    "BATCH",
    "DIVERT",
    "DROP",
    "EACH",
    "FILTER",
    "FLAT_MAP",
    "MAP",
    "SKIP",
    "Kernel",
    "Sentinel",
    "may_be_skipped",
]


class Sentinel:
    """A value that is only itself, in every process; pickled by its name.

    It is false, and has no elements: as the result of f it keeps no item in `pfilter`, and gives none in `pflat_map`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Iterator[Never]:
        return iter(())


#: The slot of an item that has no output.
DROP: Final = Sentinel("DROP")

#: What f, or an ``on_error`` handler, returns where the item is to have no output. Invariant: `HOLDERS` modules of
#: fstream have a variable for it, and nothing else of fstream refers to it.
SKIP: Final = Sentinel("SKIP")

#: This module, `fstream` itself and `fstream._workers.sync`.
HOLDERS: Final = 3

#: What one variable refers to, and nothing else.
_PROBE: Final = Sentinel("PROBE")


def may_be_skipped() -> bool:
    """Tell whether an output may be `SKIP`: somebody refers to it beside fstream itself. A list that holds it does.

    Who looks at each output instead spends a fifth of what a cheap item costs in all.
    """
    return sys.getrefcount(SKIP) - HOLDERS > sys.getrefcount(_PROBE) - 1


def _keep(item: Any, result: Any) -> Any:
    return item if result else SKIP if result is SKIP else DROP


def _drop(_item: Any, _result: Any) -> Any:
    return DROP


def _unroll(_item: Any, result: Iterable[Any]) -> list[Any]:
    return result if result is SKIP else list(result)  # type: ignore[return-value]  # it has no elements


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of the four meanings; *finish(item, f(item))* makes the slot, None leaves it as f gave it."""

    verb: str
    finish: Callable[[Any, Any], Any] | None
    spread: bool = False
    drops: bool = False
    #: What a call of it begins with.
    first: str = "f"

    @property
    def plain(self) -> bool:
        """A slot is an output, as it is."""
        return not (self.spread or self.drops)

    def kept(self, failed: Any) -> Any:
        """The slot of an item that is given out as it is: a `Failed`."""
        return (failed,) if self.spread else failed

    def slot(self, item: Any, result: Any) -> Any:
        return result if self.finish is None else self.finish(item, result)

    def step(self, f: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Turn *f* into item -> slot."""
        finish = self.finish
        if finish is None:
            return f

        def step(item: Any) -> Any:
            return finish(item, f(item))

        return step

    def async_step(self, f: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
        """The same, awaiting what is awaitable and running async iterables to their end."""

        async def step(item: Any) -> Any:
            result = f(item)
            if isawaitable(result):
                result = await result
            if self.spread and hasattr(type(result), "__aiter__"):
                result = [output async for output in result]
            return self.slot(item, result)

        return step

    def outputs(self, slots: list[Any], *, skips: bool) -> list[Any]:
        """Spread *slots* into outputs; *skips* says that some may be left out though the kernel drops none."""
        if self.spread:
            return list(chain.from_iterable(slots))
        if skips or self.drops or may_be_skipped():
            return [slot for slot in slots if slot is not DROP and slot is not SKIP]
        return slots


MAP: Final = Kernel("pmap", None)
FILTER: Final = Kernel("pfilter", _keep, drops=True)
EACH: Final = Kernel("peach", _drop, drops=True)
FLAT_MAP: Final = Kernel("pflat_map", _unroll, spread=True)
#: No stage has these two. `batch` and `divert` are described by them, as the other steps are by theirs.
BATCH: Final = Kernel("batch", None, first="n")
DIVERT: Final = Kernel("divert", None, first="sink")
