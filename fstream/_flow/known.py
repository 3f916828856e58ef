"""Items that need no worker, because their slot is known when they are drawn, or will be without their own doing.

There are two sorts: what is given out as it comes (a `Failed` of an earlier stage), and what was looked up (`Known`). A
window sorts them out where it draws, if it has `Knowns`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Final

from fstream._flow.span import Item, Slot

__all__ = ["PENDING", "Known", "Knowns"]

#: Stands for the slot of an item that waits for another one.
PENDING: Final[Slot] = type("Pending", (), {"__repr__": lambda _: "PENDING"})()


class Known:
    """An item with its slot; or one that waits for another item, which will bring that."""

    __slots__ = ("alone", "given", "item", "slot")

    def __init__(self, item: Item, slot: Slot = PENDING) -> None:
        self.item = item
        self.slot = slot
        #: What is to be run if it comes to that: the item, or its ticket.
        self.given = item
        #: The other item has failed: this one is to be run.
        self.alone = False


class Knowns:
    """What a window knows of such items: their types, and how to get the slot."""

    def __init__(self, slot_of: Mapping[type, Callable[[Item], Slot]], may_come: Callable[[], bool]) -> None:
        self.slot_of: dict[type, Callable[[Item], Slot]] = {Known: attrgetter("slot"), **slot_of}
        self.types = frozenset(self.slot_of)
        #: Tells whether there may be one among the items. Most often this is all that is asked.
        self.may_come = may_come

    def among(self, items: Iterable[Item]) -> bool:
        """Tell whether one is among *items*: 20 ns for each of these."""
        return self.may_come() and not self.types.isdisjoint(map(type, items))

    def sorted_out(self, items: Iterable[Item]) -> Iterator[tuple[list[Item], list[Slot] | None]]:
        """Give *items* in parts, each with its slots; with None if they are to be run, `PENDING` if they wait."""
        run: list[Item] = []
        for cls, part in groupby(items, type):
            if cls not in self.types:
                run += part
                continue
            if run:
                yield run, None
                run = []
            known = list(part)
            slots = list(map(self.slot_of[cls], known))
            if cls is Known and any(slot is PENDING for slot in slots):
                yield from (_alone(each) for each in known if isinstance(each, Known))
            else:
                yield known, slots
        if run:
            yield run, None


def _alone(known: Known) -> tuple[list[Item], list[Slot] | None]:
    return ([known.given], None) if known.alone else ([known], [known.slot])
