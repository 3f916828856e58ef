"""The process of one contender: opens it, warms it up, and measures each time it is told to.

    python -m benchmarks.child FD ROW CONTENDER SIZE SECONDS

FD is its end of a pipe. It sends `Opened`; then `Ready` for the first command and a `Sample` for each further
one, until the command is None; or `Failed`. It leads a process group, which it takes with it if the parent
dies.
"""

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import perf_counter

from benchmarks.rows import Failed, Measure, Opened, Ready

#: See prctl(2).
PR_SET_PDEATHSIG = 1


def listen(pipe: Connection, commands: "SimpleQueue[bool | None]") -> None:
    """Pass the parent's commands on; if there is no parent any more, end with everything that was started."""
    try:
        while True:
            commands.put(command := pipe.recv())
            if command is None:
                return
    except (EOFError, OSError):
        os.killpg(0, signal.SIGCONT)
        os.killpg(0, signal.SIGTERM)  # not SIGKILL: who looks after named semaphores may remove them first


def go_on_without_parent() -> None:
    """Have this process go on when its parent dies, so that it notices: it may be stopped then."""
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)


def affordable(measure: Measure, size: int, seconds: float) -> int:
    """As many items as can be done in that time, up to *size*; found by doing ever more of them."""
    n = least = max(1, min(100, size // 10))
    measure(n)
    while n < size:
        start = perf_counter()
        measure(n)
        wall = perf_counter() - start
        if wall * 3 > seconds:
            return max(least, min(size, int(n * seconds / wall) // least * least))
        n = min(size, n * 5)
    return n


def main(arguments: list[str]) -> None:
    fd, row_name, contender, size, seconds = arguments
    go_on_without_parent()
    pipe = Connection(int(fd))
    commands: SimpleQueue[bool | None] = SimpleQueue()
    threading.Thread(target=listen, args=(pipe, commands), daemon=True).start()

    from benchmarks.registry import find

    row = find(row_name)
    try:
        with {**row.contenders, **row.peers}[contender]() as measure:
            pipe.send(Opened())
            if commands.get() is None:
                return
            flexible = contender in row.peers and not row.whole
            n = affordable(measure, int(size), float(seconds)) if flexible else int(size)
            measure(n)
            pipe.send(Ready(n))
            while commands.get() is not None:
                pipe.send(measure(n))
    except ImportError as error:
        pipe.send(Failed(str(error), missing=True))
    except Exception as error:
        pipe.send(Failed(f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main(sys.argv[1:])
