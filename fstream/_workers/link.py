"""A worker process as the parent holds it: how it is started, kept warm, and ended."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import weakref
from array import array
from contextlib import ExitStack
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from typing import Final

from fstream._run import close_all
from fstream._workers import child
from fstream._workers.arena import arenas, shared_file
from fstream._workers.fresh import FreshProcess
from fstream._workers.surroundings import inherited
from fstream._workers.wire import NO_SIGPIPE, Wire, raise_no_sigpipe

__all__ = ["OURS", "WARM", "Link"]


class Link:
    """A worker process, its socket and its cell."""

    def __init__(self) -> None:
        #: What it has from this process for good.
        self.inherited = inherited()
        life = LIFELINE.fd()  # first: where no pipe can be had, there is nothing to close
        with ExitStack() as files:
            files.callback(os.close, cell := _cell_file())
            self.cell = mmap.mmap(cell, child.CELL_SIZE)
            shared = [cell, life]
            if (arena := shared_file()) is not None:
                files.callback(os.close, arena)
            there, back = arenas(arena)
            if arena is not None and there is not None:
                shared.append(arena)
            ours, theirs = socket.socketpair()
            try:
                OURS.add(ours)
                # Said for both: `socket.setdefaulttimeout` makes sockets that do not block.
                ours.setblocking(False)
                with theirs:
                    theirs.setblocking(True)
                    connection = Connection(os.dup(theirs.fileno()))
                self.process = FreshProcess(target=child.main, args=(connection,), name="fstream-worker")
                self.process.start()
                PROCESSES.add(self.process)
                connection.close()
                try:
                    raise_no_sigpipe(ours)
                    # Not `send_fds`, which leaves out the flag.
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", shared))]
                    ours.sendmsg([b"c"], rights, NO_SIGPIPE)
                except ConnectionError:  # it has died already: its end of the stream will tell
                    pass
            except BaseException:
                ours.close()
                raise
        self.sock = ours
        self.wire = Wire(ours, there, back)
        #: It has said that it has started.
        self.ready = False

    def state(self, position: int) -> int:
        return int.from_bytes(self.cell[8 * position : 8 * position + 8], sys.byteorder, signed=True)

    def forget_span(self) -> None:
        """What its cell says is not of any span that is sent from now on."""
        self.cell[24:32] = (-1).to_bytes(8, sys.byteorder, signed=True)

    def idle(self) -> bool:
        """Still there: fit for another stage. It may yet have answers to the last one in its socket."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b"" and self.process.is_alive()
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> bool:
        """Tell it that it has no stage any more; False if it is dead."""
        self.wire.push((child.CLOSE,))
        try:
            self.wire.flush()
        except OSError:
            return False
        return True

    def dismiss(self) -> None:
        """Let it end: it does when its socket is closed."""
        self.sock.close()

    def kill(self) -> int | None:
        """End it now, with the programs that f has started, and tell its exit status, None if others have got that."""
        self.sock.close()
        self.process.kill()
        self.process.join()
        return self.process.status

    def died(self) -> int | None:
        """The exit status of a worker that has closed its socket in the middle of a stage."""
        wait([self.process.sentinel], 1.0)
        return self.kill()

    def buried(self) -> int | None:
        """The same of one that had nothing to do any more: what f has started there, and left running, runs on."""
        self.sock.close()
        self.process.join(1.0)
        return self.process.status if not self.process.is_alive() else self.kill()


def _cell_file() -> int:
    if (fd := shared_file(child.CELL_SIZE)) is not None:
        return fd
    with tempfile.TemporaryFile() as file:
        file.truncate(child.CELL_SIZE)
        return os.dup(file.fileno())


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


class Warm:
    """Idle worker processes, kept for the next stage. They end by themselves after ``child.IDLE_SECONDS``.

    Some are still starting: the stage that had them started has ended before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: list[Link] = []

    def __len__(self) -> int:
        """How many there are; those that have ended are cleared away."""
        with self._lock:
            gone = [link for link in self._links if not link.idle()]
            self._links = [link for link in self._links if link not in gone]
        for link in gone:
            link.buried()
        return len(self._links)

    def take(self) -> Link | None:
        """Give one that has the same from this process as a new one would have."""
        ours = inherited()
        while True:
            with self._lock:
                fit = [link for link in reversed(self._links) if link.inherited == ours]
                if not fit:
                    return None
                found = max(
                    fit, key=lambda link: link.ready
                )  # rather one that has started, the latest of them
                self._links.remove(found)
            if found.idle():
                return found
            found.buried()

    def put(self, link: Link) -> None:
        with self._lock:
            self._links.append(link)

    def clear(self) -> None:
        """End them all."""
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            if link.ready:
                link.dismiss()
            else:
                link.kill()
        for link in links:
            link.buried()

    def forget(self) -> None:
        """In a fork: they are the parent's, and so are its locks."""
        self._lock = threading.Lock()
        self._links = []


WARM: Final = Warm()

#: The parent's ends of all socket pairs. A fork closes its copies, so that it does not keep workers from seeing that
#: their parent is gone.
OURS: weakref.WeakSet[socket.socket] = weakref.WeakSet()

#: All worker processes. To a fork they are no children, though multiprocessing would wait for them as such.
PROCESSES: weakref.WeakSet[FreshProcess] = weakref.WeakSet()


def _in_fork() -> None:
    for sock in list(OURS):
        sock.close()
    LIFELINE.forget()
    WARM.forget()
    multiprocessing.process._children.difference_update(PROCESSES)  # type: ignore[attr-defined]
    _register(WARM)


os.register_at_fork(after_in_child=_in_fork)


def _at_exit() -> None:
    close_all()
    WARM.clear()


def _register(_: Warm) -> None:
    # With multiprocessing, which waits for all child processes when a process ends, be it the main one or a child of
    # the user's own: its finalizers come before that.
    util.Finalize(None, _at_exit, exitpriority=100)


_register(WARM)
util.register_after_fork(WARM, _register)  # it forgets all finalizers
