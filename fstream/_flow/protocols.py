"""The seams of a row: what its parts ask of one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from fstream._flow.pacing import Clock
from fstream._flow.sizing import MAX_CHEAP_PROCESS, SPAN_SECONDS
from fstream._flow.span import Closed, Item, Span

__all__ = ["Buffer", "Drawn", "Node", "TakerQueue", "Upstream"]


#: Outputs for a taker, and the credits that come with them: how many items' room is free again once the taker is
#: through with these outputs. A plain tuple, because an object of a class takes as long to make as all the rest of a
#: draw.
Drawn: TypeAlias = tuple[Sequence[Item], int]


class Upstream:
    """Where a window draws its items from. What its subclasses do not define is as it is for a sequence."""

    #: Its items were counted as held when the feeder pulled them, so a draw does not count them again.
    prepaid = False
    #: How many feeders wait for room to pull more.
    blocked = 0
    #: Nothing more is to be drawn.
    stopped = False

    def available(self) -> int:
        """Tell how many items can be drawn now."""
        raise NotImplementedError

    def draw(self, most: int) -> Drawn:
        """Give up to *most* items."""
        raise NotImplementedError

    def waiting(self, most: int) -> Sequence[Item]:
        """Give up to *most* of the items that wait here, to look at."""
        return ()

    def release(self, credits: int) -> None:
        """The taker is through with outputs that came with so many credits: their room is free."""

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        """Let more items be held, up to *most*, if that would bring more; tell whether it did."""
        return False

    @property
    def end(self) -> Closed | None:
        """How it ended; None if more may come.

        Invariant: once there is an end it stays, because takers leave when they have seen it.
        """
        raise NotImplementedError

    @property
    def has_partial(self) -> bool:
        """A flush may bring more: slots of an unfinished span that the taker waits for, or a batch that is due then."""
        return False

    @property
    def flush_delay(self) -> float:
        """How long a taker waits before it requests a flush, in seconds."""
        return SPAN_SECONDS

    def request_flush(self) -> None:
        """Give out what is finished of an unfinished span now, and the item at work as soon as it is done."""


class Node(Protocol):
    """What has times of its own at which something is to be done."""

    def look(self) -> object:
        """Do what is due by now."""
        ...


class Buffer(Protocol):
    """What a queue asks before it lets its taker go on. Everything is called under the run's lock."""

    clock: Clock

    def ready(self) -> bool:
        """Tell whether there is something to take. The end counts."""
        ...

    def take(self) -> Span | Sequence[Item] | int | Closed | None:
        """Take it; called only when ready. None if it is gone by now: then the taker waits again."""
        ...

    def report_starvation(self, starved: bool) -> bool:
        """The taker of this buffer waits. Let upstream grow if it starves; tell whether it does.

        *starved* says whether a taker nearer the consumer starves. Only then may windows further up grow.
        """
        ...

    def can_flush(self) -> bool:
        """Tell whether `request_flush` might bring the takers something."""
        ...

    @property
    def flush_delay(self) -> float:
        """How long the takers wait while `can_flush` is true before `request_flush` is called, in seconds."""
        ...

    def request_flush(self) -> None:
        """Ask upstream to flush: the takers have waited for `flush_delay`."""
        ...


class TakerQueue(Protocol):
    """What a run asks of each of its queues, under its lock."""

    buffer: Buffer
    #: How many takers are in `get`.
    takers: int
    #: A taker was woken and has not taken yet.
    signalled: bool
    #: A deadline runs. When it is over, a flush is requested.
    watched: bool
    #: The deadline, in seconds of the run's clock, in a row that has nodes.
    #: Invariant: no taker waits beyond it. Otherwise a new deadline would look later than this one, though it comes
    #: before the taker wakes.
    until: float

    def signal(self) -> None:
        """Wake one taker."""
        ...

    def watch(self) -> None:
        """Start the deadline, anew if one runs."""
        ...
