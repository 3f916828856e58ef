"""A span, a contiguous run of a stage's inputs in one worker's hands; and the two ways in which things end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fstream._flow.sizing import STRIDE

__all__ = ["CLOSED", "Closed", "Failure", "Span"]


@dataclass(slots=True)
class Failure:
    """An error as a value: what became of the item at *index*, on its way to the consumer in that item's place."""

    index: int
    item: Any
    error: BaseException | None


class Closed(NamedTuple):
    """The end of what can be taken, for good; *error* is what ended it, None for exhaustion."""

    error: BaseException | None = None


CLOSED: Final = Closed()


class Span:
    """A contiguous run of a stage's inputs in the hands of one worker.

    Its worker claims a stride of the items at a time and runs them; others take from it what it has not started, also
    of the stride that it is at.

    Invariant: ``slots[n]`` is the slot of ``items[n]``; its worker appends them in order, nobody else does.
    Invariant: `claim` and `steal` are called under one lock.
    Invariant: a worker iterates its stride, by an iterator of its own, and appends the slot of each item before it goes
    on to the next. So once `halt` has emptied the stride, it starts none but the one that may be at work already: the
    first that has no slot. That one stays its own, whether it has been started or not.
    """

    __slots__ = (
        "begun", "closed", "filled", "given", "items", "sent", "slots", "start", "stride", "tried", "tries",
    )  # fmt: skip

    def __init__(self, start: int, items: Sequence[Any], tries: int = 0) -> None:
        self.start = start
        #: A slice of the source, perhaps: that of a range makes no items before they are asked for, nor on its way to a
        #: process.
        self.items = items
        self.slots: list[Any] = []
        #: What its worker appends to: its slots, but in a simulated process, which sends them later.
        self.filled = self.slots
        #: What its worker has claimed last; None before it has claimed anything.
        self.stride: list[Any] | None = None
        #: It is in another process, or nothing of it is to be run: nobody here can take anything of it.
        self.sent = False
        #: How many slots the taker downstream has been given.
        self.given = 0
        #: True when the worker will append no more.
        self.closed = False
        #: When the worker got it, if it is of several items, in the caller's time.
        self.begun = 0.0
        #: How often its first item was tried before: by workers that died or ran over their time.
        self.tries = tries
        #: How often the item at work was tried so far and failed; 0 before its worker tries it again.
        self.tried = 0

    def claim(self) -> Iterator[Any] | None:
        """Give the worker its next items, None at the end."""
        first = len(self.filled)
        self.stride = list(self.items[first : first + STRIDE])
        return iter(self.stride) if self.stride else None

    def halt(self) -> None:
        """Have the worker start nothing more before it has claimed it."""
        if self.stride:
            self.stride.clear()

    def steal(self) -> Span | None:
        """Take the items back that the worker has not started, as a span of their own."""
        self.halt()
        kept = 0
        if self.stride is not None:
            # Without the GIL, too, one of two changes of a list is the first. The worker has appended its last slot
            # before this one, and the slot is counted; or after it, and the worker finds its stride empty then.
            self.filled.extend(())
            kept = len(self.filled) + 1
        if self.sent or kept >= len(self.items):
            return None
        rest = Span(self.start + kept, self.items[kept:], 0 if kept else self.tries)
        self.items = self.items[:kept]
        return rest

    def split(self, count: int) -> Span:
        """Keep the first *count* items of a span that no worker has; give the others as a new one."""
        tail = Span(self.start + count, self.items[count:])
        self.items = self.items[:count]
        return tail
