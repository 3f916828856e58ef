"""When tries of a stage's items may start: what waits after a failure, and what holds back the whole stage.

No worker sleeps for any of it. What may not start yet is in the ledger, and whoever waits for the next span wakes when
the window is due.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["LONGEST_BACKOFF", "LONGEST_HOLD", "Again", "Pacing", "further_try"]


#: No wait before a further try is longer than this, in seconds, however often an item has failed.
LONGEST_BACKOFF: Final = 60.0

#: A hook that asks for more than this, in seconds, asks for an item to fail.
LONGEST_HOLD: Final = 300.0

#: After so many doublings each wait is the longest one, and 2.0 to the power of it is still a number.
MOST_DOUBLINGS: Final = 1000


#: Gives the time, in seconds.
Clock: TypeAlias = Callable[[], float]


class Again(NamedTuple):
    """A further try of an item: from so many seconds on, and none of its whole stage before *hold* seconds."""

    after: float
    hold: float = 0.0


def further_try(
    retry_on: Any, backoff: float, error: Exception, tries: int, draw: Callable[[], float]
) -> Again | None:
    """Decide whether an item is tried again that has failed so many times, at last with *error*; None if not.

    *retry_on* is a class of exceptions, a tuple of them, or a hook, which is called. *draw* gives numbers of 0 to 1.
    """
    said: Any
    if isinstance(retry_on, type | tuple):
        said = isinstance(error, retry_on)
    else:
        said = retry_on(error)
    if said is False:
        return None
    if said is True:
        # Full jitter: where many have failed at once, their further tries are spread over all of the time.
        most = min(LONGEST_BACKOFF, backoff * 2.0 ** min(tries - 1, MOST_DOUBLINGS))
        return Again(most * draw() if most > 0 else 0.0)
    if isinstance(said, bool) or not isinstance(said, Real):
        raise TypeError(f"retry_on must give True, False or a number of seconds, got {said!r}")
    seconds: Any = said
    if not seconds >= 0:  # nor is what is not a number
        raise ValueError(f"retry_on must give at least 0 seconds, got {said!r}")
    return None if seconds > LONGEST_HOLD else Again(float(seconds), float(seconds))


class Pacing:
    """Whether tries of a stage may start now, and from when on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        #: No try starts before this time, in seconds of the clock.
        self.held_until = 0.0

    def hold(self, until: float) -> None:
        """Let no try start before the time *until*. Of several holds the latest end counts."""
        self.held_until = max(self.held_until, until)

    def allows(self, now: float) -> bool:
        """Tell whether a try may start."""
        return now >= self.held_until

    def opens(self) -> float:
        """The time from which a try may start."""
        return self.held_until
