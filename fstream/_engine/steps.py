"""What a thread does, in steps: a generator that says what it waits for, and goes on when whoever runs it has waited.

A real thread runs its steps through (`through`). A simulation has one thread for all: it lets others go on meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from fstream._engine.interrupts import acquire

__all__ = ["FOREVER", "Steps", "through"]

T = TypeVar("T")

#: Each wait is for a lock that somebody else releases: up to so many seconds. What is sent back is whether it was
#: acquired.
Steps: TypeAlias = Generator[tuple[threading.Lock, float], bool, T]

#: A wait without limit, in seconds.
FOREVER = -1.0


def through(steps: Steps[T]) -> T:
    """Run *steps* to their end in this thread, and give what they return."""
    go_on: Any = steps.send
    what: Any = None
    try:
        while True:
            lock, seconds = go_on(what)
            try:
                go_on, what = steps.send, acquire(lock, seconds)
            except BaseException as error:  # a signal handler raises
                go_on, what = steps.throw, error
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        steps.close()  # a handler may raise here as well, while they wait
