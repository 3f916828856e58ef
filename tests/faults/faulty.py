"""Things that go wrong on purpose: functions, items, outputs and sources, and ways to watch what comes of it.

All of it can be pickled by name, so that it works on processes too, unless it is there not to be.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import psutil

from fstream._flow.weight import has_gil
from fstream._workers.process.workers import WARM
from tests.gates import PATIENCE

KINDS = ("sync", "thread", "process", "task")
CONCURRENT = ("thread", "process", "task")

STATED = 1.0
"""Seconds in which the library promises to let go of everything."""

SLACK = 3.0
"""Seconds that the tests allow for it, since they may share a loaded machine."""

HANG = 60.0
"""Seconds that a hanging item takes; no test waits as long."""

RELEASE = threading.Event()
"""Set by a test to end the threads that its hanging items keep busy; in a worker process nobody sets it."""

RAISED: list[BaseException] = []
"""The errors raised in this process, to tell the very same object from an equal one."""


def ten(item: int) -> int:
    """The function that every faulty one stands for."""
    return item * 10


#: False where threads run in parallel.
HAS_GIL = has_gil()


def eventually(condition: Callable[[], object], seconds: float = PATIENCE / 2) -> bool:
    """Wait until *condition* holds; False if it still does not after so many seconds.

    After `PATIENCE` gates open by themselves, which might make it hold.
    """
    end = time.monotonic() + seconds
    while not condition():
        if not HAS_GIL:  # an object that another thread has made is freed when that thread runs again, or now
            gc.collect()
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


@dataclass(frozen=True)
class Tally:
    """What happened when, in whichever process: a file with a line for each event."""

    path: str

    def note(self, event: str, about: object = "") -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{time.monotonic():.6f}\t{event}\t{shown(about)}\n".encode())
        finally:
            os.close(descriptor)

    def events(self, event: str, about: object = None) -> list[tuple[float, str]]:
        """When each such event was, and about what."""
        if not os.path.exists(self.path):
            return []
        with open(self.path) as file:
            whole = file.read().split("\n")[:-1]  # what follows the last newline is just being written
        rows = [line.split("\t") for line in whole]
        return [(float(at), what) for at, name, what in rows if name == event and about in (None, what)]

    def count(self, event: str, about: object = None) -> int:
        return len(self.events(event, None if about is None else shown(about)))

    def turn(self, event: str) -> int:
        """Note *event*; how many of them there are with this one, also if many workers do it at once."""
        self.note(event)
        number = 1
        while True:
            try:
                os.close(os.open(f"{self.path}.{event}.{number}", os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                number += 1
            else:
                return number

    def last(self, event: str, about: object = None) -> float | None:
        """When the latest such event was."""
        return max(
            (at for at, _ in self.events(event, None if about is None else shown(about))), default=None
        )


def shown(thing: object) -> str:
    try:
        return str(thing)
    except RuntimeError:
        return type(thing).__name__


@dataclass
class Watch:
    """Sees what a source is asked for, and by which threads."""

    pulled: int = 0
    given: int = 0
    most_held: int = 0
    threads: set[int] = field(default_factory=set)
    closed_by: int | None = None

    def pull(self) -> None:
        self.threads.add(threading.get_ident())
        self.pulled += 1
        self.most_held = max(self.most_held, self.pulled - self.given)

    def source(self, items: Iterable[Any]) -> Iterator[Any]:
        """*items*, under this watch; also notes which thread closes it."""
        try:
            for item in items:
                self.pull()
                yield item
        finally:
            self.closed_by = threading.get_ident()

    @property
    def released(self) -> bool:
        """Whether the source was left alone, or closed by the thread that iterated it."""
        return not self.threads or self.threads == {self.closed_by}


class Gate:
    """Lets a source through one item at a time."""

    def __init__(self, permits: float) -> None:
        self._permits = permits
        self._change = threading.Condition()

    def allow(self, permits: float = 1) -> None:
        with self._change:
            self._permits += permits
            self._change.notify_all()

    def open(self) -> None:
        self.allow(math.inf)

    def guard(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            with self._change:
                ready = self._change.wait_for(lambda: self._permits > 0, HANG / 2)
                self._permits -= 1
            assert ready, "the source waits for an output that never comes"
            yield item


# What f does with the bad item


class Boom(Exception):
    """An ordinary error, with arguments and an attribute."""

    code = 0


class NeedsTwo(Exception):
    """Pickles, but cannot be made again from its one argument."""

    def __init__(self, what: str, item: object) -> None:
        super().__init__(f"{what} of {item}")


class BadRebuild(Exception):
    """Pickles, but raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_fails, (str(self),)


@dataclass(frozen=True)
class Frozen(Exception):
    """No attribute of it can be set, so not even a note can be added."""

    item: object


def rebuild_fails(text: str) -> NoReturn:
    raise ValueError(f"cannot be rebuilt: {text}")


def throw(error: BaseException, cause: BaseException | None = None) -> NoReturn:
    RAISED.append(error)
    raise error from cause


def raise_boom(item: object) -> NoReturn:
    error = Boom("no good", 42)
    error.code = 7
    throw(error, KeyError("root"))


def raise_needs_two(item: object) -> NoReturn:
    throw(NeedsTwo("no part", 42))


def raise_with_lock(item: object) -> NoReturn:
    error = Boom("holds a lock")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    throw(error)


def raise_with_socket(item: object) -> NoReturn:
    error = Boom("holds a socket")
    error.socket = socket.socket()  # type: ignore[attr-defined]
    error.socket.close()  # type: ignore[attr-defined]
    throw(error)


def raise_bad_rebuild(item: object) -> NoReturn:
    throw(BadRebuild("no way back"))


def raise_frozen(item: object) -> NoReturn:
    throw(Frozen(42))


def raise_stop_iteration(item: object) -> NoReturn:
    throw(StopIteration("too early"))


def raise_stop_async_iteration(item: object) -> NoReturn:
    throw(StopAsyncIteration("too early"))


def raise_generator_exit(item: object) -> NoReturn:
    throw(GeneratorExit("not yours"))


def raise_cancelled(item: object) -> NoReturn:
    throw(asyncio.CancelledError("not cancelled"))


def raise_system_exit(item: object) -> NoReturn:
    throw(SystemExit(3))


def raise_interrupt(item: object) -> NoReturn:
    throw(KeyboardInterrupt())


def hang(item: object) -> None:
    """Far too slow, and deaf: a thread ends when the test sets `RELEASE`, a process must be killed."""
    RELEASE.wait(HANG)


async def hang_task(item: object) -> None:
    await asyncio.sleep(HANG)


def exit_7(item: object) -> NoReturn:
    os._exit(7)


def exit_0(item: object) -> NoReturn:
    os._exit(0)


def kill_self(item: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(item: object) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


# Items and outputs that do not travel


@dataclass(frozen=True)
class Parcel:
    """An item or an output that is more than a number; this one is harmless."""

    number: int

    def __mul__(self, by: int) -> int:
        return self.number * by


class Unpicklable(Parcel):
    def __reduce__(self) -> NoReturn:
        raise TypeError(f"parcel {self.number} does not travel")


class Unrebuildable(Parcel):
    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild_fails, (repr(self),)


class KillsPickler(Parcel):
    def __reduce__(self) -> NoReturn:
        os._exit(7)


class KillsUnpickler(Parcel):
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


class Shy(Parcel):
    def __repr__(self) -> NoReturn:
        raise RuntimeError("no repr")


def give_lock(item: object) -> object:
    return threading.Lock()


def give_unpicklable(item: int) -> Unpicklable:
    return Unpicklable(item)


def give_unrebuildable(item: int) -> Unrebuildable:
    return Unrebuildable(item)


def give_killer(item: int) -> KillsPickler:
    return KillsPickler(item)


class KillerError(Exception):
    """An error that ends its worker when it is pickled."""

    def __reduce__(self) -> NoReturn:
        os._exit(7)


def raise_killer(item: int) -> NoReturn:
    raise KillerError(item)


# Functions made of them


@dataclass(frozen=True)
class Faulty:
    """`ten`, except that the item *at* is given to *act*, on the first *times* tries."""

    act: Callable[[Any], Any]
    tally: Tally
    at: int
    times: int = 1_000_000

    def __call__(self, item: Any) -> Any:
        number = item.number if isinstance(item, Parcel) else item
        self.tally.note("start", number)
        if number == self.at and self.tally.count("start", number) <= self.times:
            return self.act(item)
        return item * 10


def as_coroutine(faulty: Callable[[Any], Any]) -> Callable[[Any], Awaitable[Any]]:
    """*faulty* as a coroutine function, whose act may be one too."""

    async def coroutine(item: Any) -> Any:
        output = faulty(item)
        return await output if asyncio.iscoroutine(output) else output

    return coroutine


@dataclass(frozen=True)
class Clinging:
    """`ten`, with something that cannot be pickled."""

    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, item: Any) -> Any:
        return item * 10


@dataclass(frozen=True)
class Start:
    """An `on_start` that does *act* on the first *times* calls."""

    tally: Tally
    act: Callable[[Any], Any] = ten
    times: int = 1_000_000

    def __call__(self) -> None:
        if self.tally.turn("on_start") <= self.times:
            self.act(0)


@dataclass(frozen=True)
class Done:
    """An `on_done` that does *act* on the first *times* calls."""

    tally: Tally
    act: Callable[[Any], Any] = ten
    times: int = 1_000_000

    def __call__(self, stage_status: object) -> None:
        if self.tally.turn("on_done") <= self.times:
            self.act(0)


@dataclass(frozen=True)
class Handler:
    """An `on_error` that notes where it runs and what it is given; it cannot be pickled and need not be."""

    tally: Tally
    answer: Callable[[BaseException, Any], Any]
    lock: Any = field(default_factory=threading.Lock)

    def __call__(self, error: BaseException, item: Any) -> Any:
        assert isinstance(error, BaseException)
        self.tally.note("handler", os.getpid())
        return self.answer(error, item)


# What is left behind


NO_WORKERS: set[int] = set()
"""The ids of child processes that a test started by itself."""


#: What is in the command lines of the processes that multiprocessing starts once, and keeps.
SERVERS = ("resource_tracker", "multiprocessing.forkserver")


def children() -> list[psutil.Process]:
    """The worker processes of this process: its children but those and multiprocessing's own servers."""
    found = []
    for child in psutil.Process().children():
        if child.pid in NO_WORKERS:
            continue
        try:
            if not any(server in word for word in child.cmdline() for server in SERVERS):
                found.append(child)
        except psutil.ZombieProcess:  # dead, and not yet reaped
            found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def workers_left() -> list[psutil.Process]:
    """The worker processes beyond the idle warm ones."""
    return children()[len(WARM) :]


@dataclass(frozen=True)
class Before:
    """The threads that a test found when it began."""

    threads: frozenset[threading.Thread] = field(default_factory=lambda: frozenset(threading.enumerate()))

    def threads_left(self) -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread not in self.threads]

    def assert_all_released(self, children: bool = True, seconds: float = SLACK) -> None:
        """Fail if threads or worker processes of the test are still there after a while."""
        assert eventually(lambda: not self.threads_left(), seconds), f"threads left: {self.threads_left()}"
        if children:
            assert eventually(lambda: not workers_left(), seconds), f"processes left: {workers_left()}"


def drop_garbage() -> None:
    for _ in range(3):
        gc.collect()


def chain(error: BaseException) -> list[BaseException]:
    """The causes of *error*, from its own to the last."""
    causes: list[BaseException] = []
    cause = error.__cause__
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    return causes


def said(error: BaseException) -> str:
    """All that the caller can read about *error*: message, notes, causes."""
    parts = [
        shown(error),
        *getattr(error, "__notes__", ()),
        *(f"{type(c).__name__}: {c}" for c in chain(error)),
    ]
    return "\n".join(parts)
