"""Idle worker processes, kept for the next stage."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing import util
from typing import Final

from fstream._engine.run import close_all
from fstream._workers.process.lifeline import LIFELINE
from fstream._workers.process.link import OURS, PROCESSES, Link
from fstream._workers.process.surroundings import inherited

__all__ = ["WARM"]


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
