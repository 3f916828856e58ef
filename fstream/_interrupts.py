"""Keep Ctrl-C out of the few lines that must not be left in the middle: where a run is started, and where it ends."""

from __future__ import annotations

# In C: the functions that `signal` puts around these make an enum member of each handler, or for one that is none a
# message with its repr, which nobody sees. That of asyncio's has the main task in it, and takes longer than a run does
# to start.
import _signal as signal  # type: ignore[import-not-found]
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Uninterrupted"]


class Uninterrupted:
    """A block in which an interrupt waits for the end of the block.

    Python raises KeyboardInterrupt between any two steps of the main thread, and so also between the start of a worker
    and the note that there is one. Nothing in such a block waits for user code: it lasts for a moment.
    """

    __slots__ = ("frame", "handler")

    def __enter__(self) -> None:
        self.handler: Callable[[int, FrameType | None], Any] | None = None
        #: Where it would have been raised.
        self.frame: FrameType | None = None
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):  # else it is ignored, or ends the process, or is none of Python's
            self.handler = handler
            try:
                signal.signal(signal.SIGINT, self._note)
            except ValueError:  # not in the main thread, the only one that it is raised in
                self.handler = None

    def _note(self, _number: int, frame: FrameType | None) -> None:
        self.frame = frame

    def __exit__(self, *_: object) -> None:
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)
            if self.frame is not None:
                self.handler(signal.SIGINT, self.frame)
