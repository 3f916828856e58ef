"""Idle worker processes, kept for the stages to come."""

from __future__ import annotations

import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Collection
from multiprocessing import util
from typing import Final

from fstream._engine.interrupts import Uninterrupted
from fstream._engine.run import close_all
from fstream._workers.process.lifeline import LIFELINE
from fstream._workers.process.link import OURS, PROCESSES, Link

__all__ = ["WARM", "Warm"]


class Warm:
    """Idle worker processes. They end by themselves after a while, unless a stage has resources there.

    Some are still starting: the stage that had them started has ended before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._links: list[Link] = []
        #: Those that were told to end.
        self._ending: list[Link] = []
        _WARMS.add(self)

    def __len__(self) -> int:
        """How many there are; those that have ended are cleared away."""
        with self._lock:
            self._ending += [link for link in self._links if not link.idle()]
            self._links = [link for link in self._links if link not in self._ending]
        self.bury()
        return len(self._links)

    @property
    def count(self) -> int:
        """How many there are, some of which may have ended."""
        return len(self._links)

    def among(self, links: Collection[Link]) -> list[Link]:
        """Give those of *links* that are here."""
        return [link for link in self._links if link in links]

    def take(self, takes: Callable[[Link], bool], prefers: Callable[[Link], int]) -> Link | None:
        """Give the one that is preferred of those that a stage takes: of equal ones the latest. It may have ended."""
        with self._lock:
            fit = [link for link in reversed(self._links) if takes(link)]
            if not fit:
                return None
            found = max(fit, key=prefers)
            self._links.remove(found)
            return found

    def has(self, takes: Callable[[Link], bool]) -> bool:
        return any(map(takes, list(self._links)))

    def put(self, link: Link) -> None:
        with self._lock:
            self._links.append(link)

    def end(self, link: Link) -> None:
        """Have it end; wait for nothing."""
        with self._lock:
            self._links.remove(link)
            # A process that ends is reaped when the next one is told to end.
            self._ending = [other for other in self._ending if other.process.is_alive()]
            self._ending.append(link)
        link.end()

    def end_unneeded(self, most: int | None = None) -> None:
        """End those in which no stage has resources: all, or the *most* that have been idle for longest."""
        for link in [link for link in self._links if not link.homes][:most]:
            self.end(link)

    def bury(self) -> None:
        """Wait for those that were told to end."""
        with Uninterrupted(), self._lock:
            ending, self._ending = self._ending, []
        for link in ending:
            link.buried()

    def clear(self) -> None:
        """End them all."""
        with Uninterrupted():
            for link in list(self._links):
                self.end(link)
        self.bury()

    def forget(self) -> None:
        """In a fork: they are the parent's, and so are its locks."""
        self._lock = threading.Lock()
        self._links = []
        self._ending = []


_WARMS: Final[weakref.WeakSet[Warm]] = weakref.WeakSet()

#: Those of the pool that all process stages share.
WARM: Final = Warm()


def _in_fork() -> None:
    for sock in list(OURS):
        sock.close()
    LIFELINE.forget()
    for warm in list(_WARMS):
        warm.forget()
    multiprocessing.process._children.difference_update(PROCESSES)  # type: ignore[attr-defined]
    _register(WARM)


os.register_at_fork(after_in_child=_in_fork)


def _at_exit() -> None:
    close_all()
    for warm in list(_WARMS):
        warm.clear()


def _register(_: Warm) -> None:
    # With multiprocessing, which waits for all child processes when a process ends, be it the main one or a child of
    # the user's own: its finalizers come before that.
    util.Finalize(None, _at_exit, exitpriority=100)


_register(WARM)
util.register_after_fork(WARM, _register)  # it forgets all finalizers
