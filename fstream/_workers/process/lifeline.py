"""How the workers of a process end with it."""

from __future__ import annotations

import os
import threading
from typing import Final


class Lifeline:
    """A pipe to which nothing is ever written: this process alone holds the end that could.

    When it dies, however that happens, the pipe closes, and the kernel kills the workers, which hold the other end:
    even one that is busy in C code that does not let its reader thread run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: tuple[int, int] | None = None

    def fd(self) -> int:
        """The workers' end."""
        with self._lock:
            self._ends = self._ends or os.pipe()
            return self._ends[0]

    def forget(self) -> None:
        """In a fork: it has workers of its own, if any."""
        self._lock = threading.Lock()
        ends, self._ends = self._ends, None
        for fd in ends or ():
            os.close(fd)


LIFELINE: Final = Lifeline()
