"""Gates and logs put the steps of a test in order, across threads, tasks and processes, without a sleep."""

from __future__ import annotations

import ast
import asyncio
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE = 20.0  # seconds after which something that must happen counts as hung


class Clock:
    """The time, in seconds, as the test says."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Gate:
    """Holds whoever waits on it, in any thread, task or process, until the test opens it.

    It is a Unix socket that listens and never accepts. Who waits connects and reads; closing it lets all go.
    """

    def __init__(self, path: Path) -> None:
        self._address = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._address)
        self._listener.listen(1024)

    def __getstate__(self) -> dict[str, str]:
        return {"_address": self._address}

    def open(self) -> None:
        """Let all pass, now and later; only the process that made the gate can open it."""
        self._listener.close()

    def wait(self) -> None:
        """Block until the gate is open."""
        with socket.socket(socket.AF_UNIX) as waiting, suppress(ConnectionError, FileNotFoundError):
            waiting.connect(self._address)
            waiting.recv(1)

    async def passed(self) -> None:
        """Wait as a task until the gate is open."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as waiting, suppress(ConnectionError, FileNotFoundError):
            waiting.setblocking(False)
            await loop.sock_connect(waiting, self._address)
            await loop.sock_recv(waiting, 1)


class Log:
    """What threads, tasks and processes wrote, in the order in which they did; entries are literals."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        os.mkfifo(path)
        self._reader = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._unread = b""
        self._entries: list[Any] = []
        self._reading = threading.RLock()

    def __getstate__(self) -> dict[str, str]:
        return {"_path": self._path}

    def close(self) -> None:
        os.close(self._reader)

    def write(self, entry: object) -> None:
        """Append *entry*; one short write to a pipe, so entries do not mix. An error if the test is over."""
        pipe = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.set_blocking(pipe, True)
            os.write(pipe, repr(entry).encode() + b"\n")
        finally:
            os.close(pipe)

    def entries(self) -> list[Any]:
        """Everything written so far."""
        with self._reading:  # threads of a test may look at once
            with suppress(BlockingIOError):
                while True:
                    self._unread += os.read(self._reader, 65536)
            *lines, self._unread = self._unread.split(b"\n")
            self._entries += [ast.literal_eval(line.decode()) for line in lines]
            return list(self._entries)

    def wait_until(self, satisfied: Callable[[list[Any]], bool], what: str) -> list[Any]:
        """Block until the entries satisfy the condition; give them back."""
        deadline = time.monotonic() + PATIENCE
        while not satisfied(entries := self.entries()):
            select.select([self._reader], [], [], max(0.0, deadline - time.monotonic()))
            assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}; written: {entries}"
        return entries

    def wait_for(self, *expected: object) -> list[Any]:
        """Block until each of *expected* was written."""
        return self.wait_until(lambda entries: all(entry in entries for entry in expected), repr(expected))

    def take(self, count: int) -> list[Any]:
        """Block until *count* entries were written."""
        return self.wait_until(lambda entries: len(entries) >= count, f"{count} entries")


def holding(kind: str, held: Mapping[Any, Gate], log: Log | None = None) -> Callable[[Any], Any]:
    """The identity as a function for *kind*, which waits at the gate of each item in *held*.

    It logs ("start", item) and ("end", item).
    """

    def note(step: str, item: Any) -> None:
        if log is not None:
            log.write((step, item))

    def hold(item: Any) -> Any:
        note("start", item)
        if item in held:
            held[item].wait()
        note("end", item)
        return item

    async def hold_task(item: Any) -> Any:
        note("start", item)
        if item in held:
            await held[item].passed()
        note("end", item)
        return item

    return hold_task if kind == "task" else hold


@contextmanager
def opened_when(gate: Gate, happened: Callable[[], object]) -> Iterator[None]:
    """Open *gate* from another thread as soon as *happened*, which blocks, returns."""

    def open_then() -> None:
        try:
            happened()
        finally:
            gate.open()

    opener = threading.Thread(target=open_then)
    opener.start()
    try:
        yield
    finally:
        opener.join()


def check_sequence_matches(record: Sequence[object], template: Sequence[object]) -> None:
    """Assert that *record* is *template*, where a set in the template stands for its members in any order."""
    position = 0
    for expected in template:
        if isinstance(expected, set):
            found = record[position : position + len(expected)]
            assert set(found) == expected, f"at {position}: {found} is no order of {expected}"
            position += len(expected)
        else:
            assert record[position : position + 1] == [expected], (
                f"at {position}: not {expected!r} in {record}"
            )
            position += 1
    assert position == len(record), f"more than expected: {record[position:]}"


def at_line(
    function: Callable[..., Any], nth: int, act: Callable[[], object], call: Callable[[], object]
) -> None:
    """Call *call*, and *act* before the nth line of *function*, or at the end."""
    lines = count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not function.__code__:
            return None
        if event == "line" and next(lines) == nth:
            sys.settrace(None)
            act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    if next(lines) <= nth:
        act()
