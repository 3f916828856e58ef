"""The event loop of a thread of our own: the one that the policy makes, but with timers that come when they are due.

On Linux asyncio waits in `epoll_wait`, which counts whole milliseconds, and rounds up: a hundred sleeps of 10 ms last
10.5 ms on average, and all that became due meanwhile is worked off in one go. `select` counts microseconds.
"""

from __future__ import annotations

import asyncio
import selectors
from select import select

__all__ = ["new_loop"]


#: What asyncio waits in on Linux. Elsewhere there is none, nor where a library has put `select` in order for its own
#: threads (gevent, eventlet): to wait there is its business.
Epoll = getattr(selectors, "EpollSelector", None)

if Epoll is not None:

    class PreciseSelector(selectors.EpollSelector):
        """Waits by the microsecond: in `select`, for its own descriptor, which is ready when one of those in it is."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select([self], (), (), timeout)
                timeout = 0
            return super().select(timeout)


#: `select` takes no descriptor from here on.
FD_SETSIZE = 1024


def new_loop() -> asyncio.AbstractEventLoop:
    """Make the loop; the caller closes it."""
    loop = asyncio.new_event_loop()
    if Epoll is None or selectors.DefaultSelector is not Epoll or type(loop) is not asyncio.SelectorEventLoop:
        return loop  # that of another library, or of the user's choice
    try:
        selector = PreciseSelector()
    except OSError:  # no more files: the one that there is will do
        return loop
    if selector.fileno() >= FD_SETSIZE:
        selector.close()
        return loop
    loop.close()
    return asyncio.SelectorEventLoop(selector)
