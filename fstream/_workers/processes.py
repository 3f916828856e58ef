"""A pool of worker processes as users see it: its size, how its workers start, and when they end."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn

from fstream._engine.interrupts import Uninterrupted
from fstream._plan.stages import NO_LIMIT, Stage

if TYPE_CHECKING:
    from fstream._workers.process.pool import Pool

__all__ = ["STARTS", "Processes", "check_processes", "is_processes", "on_its_pool", "shutdown"]

#: The ways in which a worker process may start.
STARTS: Final = ("fresh", "fork", "spawn", "forkserver")


class Processes:
    """A pool of worker processes of one's own, for ``kind=``: all stages that name it share its workers.

    Without one, all process stages of a program share a pool that has as many workers as there are CPUs.

    >>> from fstream import Processes, pmap
    >>> with Processes(1) as pool:
    ...     list([-1, 2] | pmap(abs, kind=pool) | pmap(float, kind=pool, retries=1))
    [1.0, 2.0]

    *workers* is how many processes there are at most, however many items a stage would work on at once; with None
    there are as many as CPUs, or as the largest ``workers=`` of the stages at work asks for.
    *start* says how a worker starts. "fresh" is a new interpreter, which does not import the main module; "fork",
    "spawn" and "forkserver" are the ways of `multiprocessing`, with their conditions: a fork of a program with threads
    may hang, the other two need a main guard.
    *idle* is how many seconds a worker waits for more to do before it ends.
    *relay*: what workers print, log and warn comes out in this process, through its streams and loggers; False leaves
    it to the files and handlers that the workers have.

    It belongs to the process that has made it, and cannot be pickled. In a fork it starts workers anew.
    """

    def __init__(
        self, workers: int | None = None, *, start: str = "fresh", idle: float = 10.0, relay: bool = True
    ) -> None:
        if workers is not None:
            if isinstance(workers, bool) or not isinstance(workers, int):
                raise TypeError(f"workers must be an int or None, got {workers!r}")
            if workers < 1:
                raise ValueError(f"workers must be at least 1, got {workers}")
        if not isinstance(start, str):
            raise TypeError(f"start must be a str, got {start!r}")
        if start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(map(repr, STARTS))}, got {start!r}")
        if isinstance(idle, bool) or not isinstance(idle, int | float):
            raise TypeError(f"idle must be a number of seconds, got {idle!r}")
        if not idle >= 0:  # nor is what is not a number
            raise ValueError(f"idle must be at least 0 seconds, got {idle}")
        if not isinstance(relay, bool):
            raise TypeError(f"relay must be True or False, got {relay!r}")
        self.workers = workers
        self.start = start
        self.idle = idle
        self.relay = relay
        self.closed = False
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def pool(self) -> Pool:
        """Give the pool itself, which is made for the first stage that starts."""
        from fstream._workers.process.pool import Pool

        with Uninterrupted(), self._lock:
            self.check_open()
            if self._pool is None:
                idle = min(self.idle, NO_LIMIT)  # an int may be larger than any float
                self._pool = Pool(self.workers, start=self.start, idle=idle, relay=self.relay)
            return self._pool

    def check_open(self) -> None:
        if self.closed:
            raise RuntimeError(
                f"{self!r} is closed: its stages have to run before close(), or within its with block"
            )

    def close(self) -> None:
        """End its workers. A stream that is still at work on them ends with an error."""
        with Uninterrupted(), self._lock:
            self.closed = True
            pool = self._pool
        if pool is not None:
            pool.close()

    def __enter__(self) -> Processes:
        self.check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        words = [] if self.workers is None else [repr(self.workers)]
        given = {"start": (self.start, "fresh"), "idle": (self.idle, 10.0), "relay": (self.relay, True)}
        words += [f"{name}={value!r}" for name, (value, default) in given.items() if value != default]
        return f"Processes({', '.join(words)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} belongs to this process and cannot be pickled: write kind='process' in what a worker runs, "
            "or make the Processes there"
        )


def is_processes(kind: object) -> bool:
    """Tell whether *kind* is such a pool, or the class, which is a slip that `check` tells of."""
    return kind is Processes or isinstance(kind, Processes)


def check_processes(stage: Stage) -> None:
    """Refuse a pool that no stage can run on, when the transformer is built."""
    if stage.engine is Processes:
        raise TypeError("kind must be a Processes object, got the class: write kind=Processes()")
    if stage.engine is not None:
        stage.engine.check_open()


def on_its_pool(stage: Stage) -> Stage:
    """Have a stage without ``workers`` work on as many items as its pool has workers."""
    if stage.engine is None:
        return stage
    return replace(stage, workers=stage.workers or stage.engine.workers)


def shutdown() -> None:
    """End the idle worker processes of this program now, those of every `Processes` included.

    Those at work for a stream go on, and may stay idle afterwards. A later pipeline starts workers anew. Without this
    call an idle worker ends by itself after ten seconds, and all end with the program.

    >>> from fstream import pmap, shutdown
    >>> list(pmap(abs, [-1, 2], kind="process"))
    [1, 2]
    >>> shutdown()
    """
    pool = sys.modules.get("fstream._workers.process.pool")
    if pool is not None:
        pool.end_idle()
