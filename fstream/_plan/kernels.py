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

Nothing here knows of workers; everything here can be pickled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from inspect import isawaitable
from itertools import chain
from typing import Any, Final

__all__ = ["BATCH", "DROP", "EACH", "FILTER", "FLAT_MAP", "MAP", "SKIP", "Kernel", "Sentinel"]


class Sentinel:
    """A value that is only itself, in every process; pickled by its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name


#: The slot of an item that has no output.
DROP: Final = Sentinel("DROP")

#: What an ``on_error`` handler returns to drop the failed item.
SKIP: Final = Sentinel("SKIP")


def _keep(item: Any, result: Any) -> Any:
    return item if result else DROP


def _drop(_item: Any, _result: Any) -> Any:
    return DROP


def _unroll(_item: Any, result: Iterable[Any]) -> list[Any]:
    return list(result)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One of the four meanings; *finish(item, f(item))* makes the slot, None leaves it as f gave it."""

    verb: str
    finish: Callable[[Any, Any], Any] | None
    spread: bool = False
    drops: bool = False

    @property
    def plain(self) -> bool:
        """A slot is an output, as it is."""
        return not (self.spread or self.drops)

    @property
    def first(self) -> str:
        """What a call of it begins with."""
        return "n" if self.verb == "batch" else "f"

    @property
    def nothing(self) -> Any:
        """The slot of an item that is left out."""
        return () if self.spread else DROP

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
        if skips or self.drops:
            return [slot for slot in slots if slot is not DROP]
        return slots


MAP: Final = Kernel("pmap", None)
FILTER: Final = Kernel("pfilter", _keep, drops=True)
EACH: Final = Kernel("peach", _drop, drops=True)
#: Stands for `batch`, whose steps are described as those of the others are, with n in the place of f.
BATCH: Final = Kernel("batch", None)
FLAT_MAP: Final = Kernel("pflat_map", _unroll, spread=True)
