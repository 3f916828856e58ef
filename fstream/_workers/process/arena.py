"""Memory that a worker process and its parent share: large buffers go through it, as a socket is slower by a third.

It is used again and again, since fresh memory costs more than all copying. So whoever receives copies out at once, and
what it passes on is its own. One arena serves one direction, for the buffers of one message at a time; what comes
before the other end has copied that out, or does not fit, goes through the socket.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Final

__all__ = ["Arena", "arenas", "shared_file"]


#: Messages with buffers of less than so many bytes in all stay out of it, and of more than so many.
LEAST: Final = 1 << 18
MOST: Final = 1 << 24

#: The page before the buffers, which says whether there are some.
PAGE: Final = 4096


def shared_file(size: int = 2 * (PAGE + MOST)) -> int | None:
    """Make a file of no name, in memory, by default for two arenas; None where that cannot be had.

    It cannot where the system has no such thing, a sandbox forbids it, or files may not be as large (`ulimit -f`).
    Where too many files are open, that is an error: without this one, the next would not be had. Nothing has to be
    removed: it is gone with the processes. Its pages are there as soon as they have been written to.
    """
    if not hasattr(os, "memfd_create"):
        return None
    try:
        fd = os.memfd_create("fstream")
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # any other way would want a file, too
            raise
        return None
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        return None
    return fd


def arenas(fd: int | None) -> tuple[Arena, Arena] | tuple[None, None]:
    """Map the file: the arena from the parent to the worker, and the one back; none where there is no room for it."""
    if fd is None:
        return None, None
    try:
        memory = memoryview(mmap.mmap(fd, 2 * (PAGE + MOST)))
    except OSError:  # `ulimit -v`
        return None, None
    return Arena(memory[: PAGE + MOST]), Arena(memory[PAGE + MOST :])


class Arena:
    """One direction, as both ends see it."""

    def __init__(self, memory: memoryview) -> None:
        #: Invariant: the sender alone sets it, when the buffers are in; the receiver alone clears it, when it has them.
        self._full = memory[:8].cast("q")
        self._room = memory[PAGE:]

    def put(self, buffers: list[memoryview]) -> bool:
        """Copy the buffers of a message in; False if they are not to go this way."""
        if self._full[0] or not LEAST <= sum(buffer.nbytes for buffer in buffers) <= MOST:
            return False
        position = 0
        for buffer in buffers:
            self._room[position : position + buffer.nbytes] = buffer
            position += buffer.nbytes
        self._full[0] = 1
        return True

    def get(self, sizes: list[int]) -> list[memoryview]:
        """Copy the buffers of a message out."""
        buffers, position = [], 0
        for size in sizes:
            buffers.append(memoryview(bytearray(self._room[position : position + size])))
            position += size
        self._full[0] = 0
        return buffers
