"""How many items a stage may hold, and how that grows."""

from __future__ import annotations

import sys
from enum import Enum

from fstream._flow.sizing import MAX_CHEAP

__all__ = ["Lack", "Room"]


class Lack(Enum):
    """For want of what the last span was smaller than its worker could have worked off in time."""

    NOTHING, ROOM, ITEMS = range(3)


class Room:
    """How many items may be held, and are.

    *maxsize* n is a strict bound, 0 none; with None the limit starts at *least* and may `grow`.
    """

    __slots__ = ("gone", "growable_at", "held", "lack", "limit", "maxsize")

    def __init__(self, maxsize: int | None, least: int) -> None:
        self.maxsize = maxsize
        #: Invariant: with ``maxsize=n`` this is n for ever.
        self.limit = sys.maxsize if maxsize == 0 else maxsize or least
        #: Invariant: 0 <= held <= limit.
        self.held = 0
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
            self.limit = max(self.limit, least)

    def grow(self, most: int) -> bool:
        """Double the limit, to *most* at most; tell whether it is larger now."""
        if self.maxsize is not None or self.limit >= most or self.gone < self.growable_at:
            return False
        self.limit = min(self.limit * 2, most)
        self.growable_at = self.gone + self.limit / 4
        self.lack = Lack.NOTHING
        return True
