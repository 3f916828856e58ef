"""How many items of a stage may fail."""

from __future__ import annotations

from collections import deque
from typing import Final

__all__ = ["Tolerance"]

#: A share is one of so many items worked off last, and is looked at from so many items on.
LAST: Final = 100
FIRST: Final = 20


class Tolerance:
    """Counts the failed items of one stage, and says once that there are too many: more than *most*.

    An int is a number of items, a float a share of those worked off last. The caller brings the number of items that
    were worked off, so what does not fail costs nothing here.
    """

    def __init__(self, most: float) -> None:
        self.most = most
        self.count = 0
        #: The errors of the last ones.
        self.errors: deque[Exception] = deque(maxlen=10)
        #: How many items had been worked off when the last ones failed, themselves among them.
        self.times: deque[int] = deque(maxlen=LAST)
        #: There were too many: what fails from now on changes nothing.
        self.exceeded = False

    def add(self, error: Exception, worked_off: int) -> str | None:
        """Count a failure; say what is too much, if this one tips it."""
        if self.exceeded:
            return None
        self.count += 1
        self.errors.append(error)
        if isinstance(self.most, int):
            self.exceeded = self.count > self.most
            return f"{self.count} items failed" if self.exceeded else None
        worked_off = max(worked_off, self.count)  # others may have failed, and not be through with that
        self.times.append(worked_off)
        failed = sum(time > worked_off - LAST for time in self.times)
        last = min(worked_off, LAST)
        self.exceeded = worked_off >= FIRST and failed > self.most * last
        return f"{failed} of the last {last} items failed" if self.exceeded else None
