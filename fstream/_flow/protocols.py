"""The seams of a row: what its parts ask of one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from fstream._flow.sizing import MAX_CHEAP_PROCESS
from fstream._flow.span import Closed

__all__ = ["Buffer", "Drawn", "TakerQueue", "Upstream"]


#: Outputs for a taker, and how many items' room they give back once they are out of its hands. A plain tuple: one of a
#: class of its own takes as long to make as all the rest of a draw.
Drawn: TypeAlias = tuple[Sequence[Any], int]


class Upstream(Protocol):
    """Where a window draws its items from."""

    #: True if what is drawn was counted as held when it was pulled, as the feeder does.
    prepaid: bool

    def available(self) -> int: ...

    def draw(self, most: int) -> Drawn: ...

    def release(self, credits: int) -> None: ...

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        """Let more be held, up to *most*, if that would bring more."""
        ...

    #: Nothing more is to be drawn.
    stopped: bool

    @property
    def has_more(self) -> bool:
        """There is more here, or may be, whatever is further upstream."""
        ...

    @property
    def end(self) -> Closed | None:
        """How it ended, None if more may come. Invariant: an end is one for ever, as takers leave that have seen it."""
        ...

    @property
    def waiting(self) -> bool:
        """There is more than the window that draws from here has room for."""
        ...

    @property
    def has_partial(self) -> bool:
        """What is finished of a span may be kept until the span is, as nobody has pressed."""
        ...

    @property
    def flush_delay(self) -> float:
        """How long a taker waits before it presses, in seconds."""
        ...

    def request_flush(self) -> None:
        """The taker has waited long: it is to have what is finished, and what is now at work as soon as that is."""
        ...


class Buffer(Protocol):
    """What a queue asks before it lets its taker go on. All of it under the run's lock."""

    def ready(self) -> bool:
        """Tell whether there is something to take, the end included."""
        ...

    def take(self) -> Any:
        """Take it; called only when ready."""
        ...

    def report_starvation(self, starved: bool) -> bool:
        """Its taker waits: let upstream hold more if that is *starved* downstream; tell whether it is starved here."""
        ...

    def can_flush(self) -> bool:
        """Tell whether `request_flush` might bring something to light."""
        ...

    @property
    def flush_delay(self) -> float:
        """How long its takers are can_flush before they request_flush, in seconds."""
        ...

    def request_flush(self) -> None:
        """Its takers have been can_flush for so long."""
        ...


class TakerQueue(Protocol):
    """What a run asks of each of its queues, under its lock."""

    buffer: Buffer
    #: How many takers are in `get`.
    takers: int
    #: A taker was woken and has not taken yet.
    signalled: bool
    #: A deadline runs, at which the takers request_flush.
    watched: bool

    def signal(self) -> None:
        """Wake one taker."""
        ...

    def watch(self) -> None:
        """Start the deadline."""
        ...
