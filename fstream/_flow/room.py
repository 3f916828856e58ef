"""How many items a stage may hold."""

from __future__ import annotations

import sys

from fstream._flow.sizing import MAX_CHEAP

__all__ = ["Room"]


class Room:
    """How many items may be held, and are.

    *maxsize* n is a strict bound, 0 none; with None the limit starts at *least* and may `grow`.
    """

    __slots__ = ("held", "limit", "maxsize")

    def __init__(self, maxsize: int | None, least: int) -> None:
        self.maxsize = maxsize
        #: Invariant: with ``maxsize=n`` this is n for ever.
        self.limit = sys.maxsize if maxsize == 0 else maxsize or least
        #: Invariant: 0 <= held <= limit.
        self.held = 0

    @property
    def free(self) -> int:
        return min(self.limit - self.held, MAX_CHEAP)

    def grow(self, most: int) -> bool:
        if self.maxsize is not None or self.limit >= most:
            return False
        self.limit = min(self.limit * 2, most)
        return True
