"""Items that need no worker, because their slot is known when they are drawn: a `Failed` of an earlier stage.

A window sorts them out where it draws, if it has `Knowns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby

from fstream._flow.span import Item, Slot

__all__ = ["Knowns"]


class Knowns:
    """What a window knows of such items: their types, and how to get the slot."""

    def __init__(self, slot_of: Mapping[type, Callable[[Item], Slot]], may_come: Callable[[], bool]) -> None:
        self.slot_of = slot_of
        self.types = frozenset(self.slot_of)
        #: Tells whether there may be one among the items. Most often this is all that is asked.
        self.may_come = may_come

    def among(self, items: Iterable[Item]) -> bool:
        """Tell whether one is among *items*: 20 ns for each of these."""
        return self.may_come() and not self.types.isdisjoint(map(type, items))

    def sorted_out(self, items: Iterable[Item]) -> Iterator[tuple[list[Item], list[Slot] | None]]:
        """Give *items* in parts, each with its slots; with None if they are to be run."""
        run: list[Item] = []
        for cls, part in groupby(items, type):
            if cls not in self.types:
                run += part
                continue
            if run:
                yield run, None
                run = []
            known = list(part)
            yield known, list(map(self.slot_of[cls], known))
        if run:
            yield run, None
