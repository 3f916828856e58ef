"""How many items a stage may hold, and how that grows."""

from __future__ import annotations

import sys
from enum import Enum

from fstream._flow.sizing import MAX_BYTES, MAX_CHEAP

__all__ = ["Lack", "Room"]


class Lack(Enum):
    """For want of what the last span was smaller than its worker could have worked off in time."""

    NOTHING, ROOM, ITEMS = range(3)


class Room:
    """How many items may be held, and are.

    *maxsize* n is a strict bound, 0 none; with None the limit starts at *least* and may `grow`, as far as what an item
    `weighs` allows.
    """

    __slots__ = (
        "gone",
        "growable_at",
        "held",
        "lack",
        "least",
        "limit",
        "maxsize",
        "weighed_whole",
        "weight",
    )

    def __init__(self, maxsize: int | None, least: int) -> None:
        self.maxsize = maxsize
        self.least = least
        #: Invariant: with ``maxsize=n`` this is n for ever.
        self.limit = sys.maxsize if maxsize == 0 else maxsize or least
        #: Invariant: 0 <= held; and held <= limit, but where items have become heavier and the limit smaller.
        self.held = 0
        #: How many bytes an item has on its way in and out together, in the mean; 0 if that is not known.
        self.weight = 0.0
        #: That is of inputs with their outputs, and not of either alone.
        self.weighed_whole = False
        #: How many items have gone through. The room may grow again once that is `growable_at`. This is like TCP's
        #: slow start: a machine that stalls makes everybody wait, and is no reason to hold more.
        self.gone = 0
        self.growable_at = 0.0
        self.lack = Lack.NOTHING

    @property
    def free(self) -> int:
        return min(self.limit - self.held, MAX_CHEAP)

    def release(self, count: int) -> None:
        """So many items are held no more."""
        self.held -= count
        self.gone += count

    def assure(self, least: int) -> None:
        """Have room for so many, where nobody has said how much room there is."""
        if self.maxsize is None:
            self.least = max(self.least, least)
            self.limit = max(self.limit, self.least)

    def weighs(self, mean: float, most: float = 0.0, *, whole: bool = True) -> None:
        """Some items were found to have *mean* bytes each, and most of them at least *most*.

        If no inputs or no outputs were there to be weighed, it is not the *whole*: items are that heavy at least.
        """
        if whole > self.weighed_whole or not self.weight:
            self.weight, self.weighed_whole = mean, whole
        elif whole == self.weighed_whole or mean > self.weight:
            # A quarter counts, so that one heavy item among many does not make the room small. Where most are heavier
            # than was thought, it is no such item, and the room is too large now.
            self.weight = max((3 * self.weight + mean) / 4, most)
        self.limit = min(self.limit, self.heaviest)

    @property
    def heaviest(self) -> int:
        """How many items may be held for what they weigh."""
        return max(self.least, int(MAX_BYTES / (self.weight or 1.0)))

    def may_grow(self, most: int) -> bool:
        """Tell whether it is time for a larger limit, up to *most*."""
        return self.maxsize is None and self.limit < most and self.gone >= self.growable_at

    def grow(self, most: int, times: int = 2) -> bool:
        """Make the limit so many *times* as large, *most* at most; tell whether it is larger now."""
        if not self.may_grow(most):
            return False
        if self.limit >= (most := min(most, self.heaviest)):
            self.growable_at = self.gone + self.limit / 4  # they are not weighed again before
            return False
        self.growable_at = self.gone + self.limit / 2
        self.limit = min(self.limit * times, most)
        self.lack = Lack.NOTHING
        return True
