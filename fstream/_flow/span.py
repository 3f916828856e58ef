"""A span, a contiguous run of a stage's inputs in one worker's hands; and the two ways in which things end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from fstream._flow.sizing import STRIDE

__all__ = ["CLOSED", "Closed", "Failure", "Item", "Progress", "Slot", "Span"]

#: What users have: an item, and what became of one. Nobody looks into them here.
Item: TypeAlias = object
Slot: TypeAlias = object


@dataclass(slots=True)
class Failure:
    """An error as a value: what became of the item at *index*, on its way to the consumer in that item's place."""

    index: int
    item: Item
    error: BaseException | None
    #: How often it was tried; 0 if it cannot be, because it cannot travel to a worker, or its output back.
    tries: int = field(default=0, compare=False)
    #: It ends the stream, whatever ``on_error`` says.
    final: bool = field(default=False, compare=False)
    #: Of a stage that stands for several: the part that failed, and the part that *item* was given to. They differ
    #: where nobody knows any more what the part that failed was given.
    part: int = field(default=0, compare=False)
    given_to: int = field(default=0, compare=False)


class Closed(NamedTuple):
    """The end of what can be taken, for good; *error* is what ended it, None for exhaustion."""

    error: BaseException | None = None


CLOSED: Final = Closed()


class Progress(NamedTuple):
    """How far an item has come in a stage that stands for several."""

    #: The part that is given the item next.
    part: int
    #: How often each part has tried it.
    tries: tuple[int, ...]
    #: The part that has failed for good already, if only its item is wanted: what the parts before give it.
    until: int | None = None
    #: What that part has failed with. It stays here.
    error_of: Callable[[Failure], BaseException] | None = None


class Span:
    """A contiguous run of a stage's inputs in the hands of one worker.

    Its worker claims a stride of the items at a time and runs them. Others steal what the worker has not started, also
    out of the stride that it is at.

    Invariant: ``slots[n]`` is the slot of ``items[n]``. Only the span's worker appends slots, in order.
    Invariant: `claim` and `steal` are called under one lock.
    Invariant: a worker iterates its stride by an iterator of its own, and appends the slot of each item before it goes
    on to the next. So once `halt` has emptied the stride, the worker starts no item but the first that has no slot.
    That item may be at work already. It stays with the worker, whether it was started or not.
    """

    __slots__ = (
        "begun", "closed", "counted", "filled", "given", "items", "progress", "sent", "slots", "start", "stride",
        "ticket", "tries", "worker",
    )  # fmt: skip

    def __init__(self, start: int, items: Sequence[Item], tries: int = 0) -> None:
        self.start = start
        #: Perhaps a slice of the source. The slice of a range makes no items before they are asked for, nor on its way
        #: to a process.
        self.items = items
        self.slots: list[Slot] = []
        #: The list that its worker appends to: the slots. A simulated process has another one, and sends them later.
        self.filled = self.slots
        #: What its worker has claimed last; None before it has claimed anything.
        self.stride: list[Item] | None = None
        #: The span is in another process, or nothing of it is to be run. Nobody here can steal from it.
        self.sent = False
        #: How many slots the taker downstream has been given.
        self.given = 0
        #: True when the worker will append no more.
        self.closed = False
        #: When the worker got it, in seconds of the caller's clock.
        self.begun = 0.0
        #: How often its first item was tried before. What is tried again is alone in its span.
        self.tries = tries
        #: How far its only item has come, if the stage stands for several and the item does not begin with the first.
        self.progress: Progress | None = None
        #: What its stage looks at before its only item starts, if it looks at anything.
        self.ticket: Any = None
        #: How many starts the stage's rate has counted for it, that have not begun as far as the rate knows.
        self.counted = 0
        #: The index of the worker that has it, if somebody observes.
        self.worker: int | None = None

    def claim(self, most: int = STRIDE) -> Iterator[Item] | None:
        """Give the worker its next items, up to *most*; None at the end."""
        first = len(self.filled)
        self.stride = list(self.items[first : first + most])
        return iter(self.stride) if self.stride else None

    def halt(self) -> None:
        """Have the worker start nothing more until it claims again."""
        if self.stride:
            self.stride.clear()

    def steal(self) -> Span | None:
        """Take away the items that the worker has not started, as a span of their own; None if there are none."""
        self.halt()
        kept = 0
        if self.stride is not None:
            # Of two changes of a list one is the first, also without the GIL. Either the worker appended its last slot
            # before this change, and the slot is counted; or it appends it later, and then finds its stride empty.
            self.filled.extend(())
            kept = len(self.filled) + 1
        if self.sent or kept >= len(self.items):
            return None
        return self.split(kept)

    def split(self, count: int) -> Span:
        """Keep the first *count* items; give the others, which no worker has started, as a span of their own."""
        tail = Span(self.start + count, self.items[count:], 0 if count else self.tries)
        tail.ticket = self.ticket
        tail.progress = self.progress
        self.items = self.items[:count]
        return tail
