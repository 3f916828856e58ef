"""The numbers by which spans and windows are sized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = [
    "LONGEST_SPAN_SECONDS",
    "MAX_CHEAP",
    "MAX_CHEAP_PROCESS",
    "MAX_SECONDS",
    "MAX_SLOW",
    "MAX_SPAN",
    "NOT_SHARED",
    "PROCESS_SPAN_SECONDS",
    "SHORT",
    "SPAN_OF_WORK",
    "SPAN_SECONDS",
    "STRIDE",
    "Numbers",
]


#: How much work one span should be, in seconds: enough to make its cost of hand-over vanish, too little to notice. That
#: is some 60 microseconds of CPU between threads, 90 between tasks and 370 between processes, in the parent alone.
SPAN_SECONDS: Final = 0.002
PROCESS_SPAN_SECONDS: Final = 0.016

#: The more has been worked, the less it matters when a part of it is ready: spans between processes grow with that, to
#: this part of it for each worker, and no further than to so many seconds.
SPAN_OF_WORK: Final = 0.125
LONGEST_SPAN_SECONDS: Final = 0.064

#: Work of less than this part of a span is not shared out: to hand some of it over would take as long as to do it.
NOT_SHARED: Final = 0.1

#: Outputs of spans shorter than this are joined, so that a taker has one list of them.
SHORT: Final = 64

#: A span never grows beyond this many items.
MAX_SPAN: Final = 4096

#: A worker claims so many items of its span at a time: enough that the lock costs nothing, few enough that nobody waits
#: long for it while a list of them is made.
STRIDE: Final = 1024

#: A window that sizes itself never holds more cheap items than this, or between processes, where a span may be half as
#: much, than so many ...
MAX_CHEAP: Final = 1 << 15
MAX_CHEAP_PROCESS: Final = 1 << 16

#: ... nor, if they are not cheap, more than this many for each worker, unless they are done within MAX_SECONDS.
MAX_SLOW: Final = 64
MAX_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """What is different about the windows of one kind of workers."""

    #: Into how many spans what is there should go, for so many workers, so that each has its fair share.
    shares: Callable[[int], int]
    #: How much work one span should be, in seconds ...
    span_seconds: float = SPAN_SECONDS
    #: ... and how much it may grow to be, for `SPAN_OF_WORK`.
    longest_span: float = SPAN_SECONDS
    #: How many items a window may hold at most, however cheap they are.
    most_cheap: int = MAX_CHEAP
    #: Spans are worked on elsewhere: who minds the workers has to ask for what is finished of one.
    remote: bool = False
