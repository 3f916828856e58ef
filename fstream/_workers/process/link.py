"""A worker process as the parent holds it: how it is started, kept warm, and ended."""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
import tempfile
import time
import weakref
from array import array
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

from fstream._workers.process import child
from fstream._workers.process.arena import arenas, shared_file
from fstream._workers.process.lifeline import LIFELINE
from fstream._workers.process.messages import Forget, Message
from fstream._workers.process.relay import Relayed
from fstream._workers.process.start import process_of
from fstream._workers.process.surroundings import inherited
from fstream._workers.process.wire import NO_SIGPIPE, Wire, raise_no_sigpipe

__all__ = ["OURS", "PROCESSES", "Link"]


#: A worker that has used less than this share of the time sleeps; and the shortest time, in seconds, of which that can
#: be said: one that waits for a CPU uses none for a while, either.
ASLEEP: Final = 0.01
SHORTEST_LOOK: Final = 0.4


class Link:
    """A worker process, its socket and its cell. *start*, *idle* and *relay* are as in `Processes`."""

    def __init__(self, start: str = "fresh", idle: float = child.IDLE_SECONDS, relay: bool = True) -> None:
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
                with connection:
                    self.process = process_of(start, child.main, (connection,))
                    self.process.start()
                PROCESSES.add(self.process if isinstance(self.process, BaseProcess) else self.process.inner)
                try:
                    raise_no_sigpipe(ours)
                    # Not `send_fds`, which leaves out the flag.
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", shared))]
                    ours.sendmsg([struct.pack(child.START_FORMAT, idle, relay)], rights, NO_SIGPIPE)
                except ConnectionError:  # it has died already: its end of the stream will tell
                    pass
                except BaseException:
                    self.process.kill()
                    self.process.join()
                    raise
            except BaseException:
                ours.close()
                raise
        self.sock = ours
        self.wire = Wire(ours, there, back)
        #: What it prints, logs and warns.
        self.relayed = Relayed()
        #: It has said that it has started.
        self.ready = False
        #: Stages, by their keys, that it is to be told to forget, by whoever has it on lease.
        self.owed: list[int] = []
        #: The stages that have resources there.
        self.homes: set[Any] = set()
        #: It has had as many items of a stage as that allows: it takes no further stage, and ends when it can.
        self.worn = False
        #: When somebody last looked whether it sleeps, how much CPU time it had used by then, both in seconds, and what
        #: was found.
        self.looked, self.used, self.asleep = 0.0, -1.0, False

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

    def tell(self, message: Message) -> bool:
        """Tell it something short, now or with what it is told next; False if it is dead."""
        self.wire.push(message)
        try:
            self.wire.flush()
        except OSError:
            return False
        return True

    def tell_owed(self) -> None:
        while self.owed:
            self.tell(Forget(self.owed.pop()))

    def sleeps(self) -> bool:
        """Tell whether it has used next to no CPU since the last call. The first call gives False.

        Where the system does not tell the CPU time, this is True. A call that comes less than `SHORTEST_LOOK` seconds
        after the last one gives the same answer, because several stages ask, and so short a time says nothing.
        """
        now, before = time.perf_counter(), self.used
        if now - self.looked < SHORTEST_LOOK:
            return self.asleep
        try:
            self.used = time.clock_gettime((~(self.process.pid or 0) << 3) | 2)  # as clock_getcpuclockid(3)
        except (OSError, AttributeError):
            self.used = 0.0
        self.asleep = before >= 0 and self.used - before < ASLEEP * (now - self.looked)
        self.looked = now
        return self.asleep

    def end(self) -> None:
        """Have it end: it does when its socket is closed, and it listens only once it has started."""
        self.sock.close()
        if not self.ready:
            self.process.kill()

    def kill(self) -> int | None:
        """End it now, with the programs that f has started, and tell its exit status, None if others have got that."""
        self.process.kill()
        self.hear_out()
        self.sock.close()
        self.process.join()
        self.relayed.print_collected(self.cell)
        return self.process.status

    def hear_out(self) -> None:
        """Have come out what it has printed, logged and warned by now. Nobody has a use for its other messages."""
        with suppress(EOFError, OSError):
            while self.sock.fileno() >= 0 and wait([self.sock], 0):
                for message, body in self.wire.receive():
                    self.relayed.take(message, body)

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
        file.write(
            bytes(child.CELL_SIZE)
        )  # not `truncate`: to use a page that the disk has no room for is SIGBUS
        file.flush()
        return os.dup(file.fileno())


#: The parent's ends of all socket pairs. A fork closes its copies, so that it does not keep workers from seeing that
#: their parent is gone.
OURS: weakref.WeakSet[socket.socket] = weakref.WeakSet()

#: All worker processes. To a fork they are no children, though multiprocessing would wait for them as such.
PROCESSES: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
