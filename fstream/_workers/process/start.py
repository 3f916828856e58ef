"""How a worker process is started: afresh, or as `multiprocessing` starts processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any, Final

from fstream._workers.process.fresh import FreshProcess

__all__ = ["Process", "process_of"]


class OtherProcess:
    """A process that one of the start methods of `multiprocessing` starts, as a `FreshProcess` is used."""

    def __init__(self, start: str, target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
        if multiprocessing.current_process().daemon:
            raise RuntimeError(
                f"start={start!r} is not for daemonic processes: multiprocessing forbids it. Leave it out"
            )
        context: Any = multiprocessing.get_context(start)
        self.inner: BaseProcess = context.Process(target=target, args=args, name=name, daemon=False)
        self.start = self.inner.start
        self.join = self.inner.join
        self.is_alive = self.inner.is_alive

    @property
    def pid(self) -> int | None:
        return self.inner.pid

    @property
    def sentinel(self) -> int:
        return self.inner.sentinel

    @property
    def status(self) -> int | None:
        return self.inner.exitcode

    def kill(self) -> None:
        """Kill it, and the programs that f has started: they are in its process group."""
        pid = self.inner.pid
        if pid is not None and self.inner.is_alive():
            with suppress(OSError):  # it has ended meanwhile, or leads no group yet
                os.killpg(pid, signal.SIGKILL)
            self.inner.kill()


Process = FreshProcess | OtherProcess

#: Log records name their process.
_NUMBERS: Final = count(1)


def process_of(start: str, target: Callable[..., object], args: tuple[Any, ...]) -> Process:
    """Make the process of a worker."""
    name = f"fstream-worker-{next(_NUMBERS)}"
    if start == "fresh":
        return FreshProcess(target=target, args=args, name=name)
    return OtherProcess(start, target, args, name)
