"""Sources that remember what happened to them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any


class Source:
    """An iterable that counts what is pulled from it, and remembers which threads pulled and closed it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self.pulled = 0
        self.pulled_in: set[threading.Thread] = set()
        self.closed_in: threading.Thread | None = None
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in self._items:
                self.pulled += 1
                self.pulled_in.add(threading.current_thread())
                yield item
        finally:
            self.closed_in = threading.current_thread()
            self.closed.set()
