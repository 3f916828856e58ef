"""A node of a row, a step between stages: it makes lists of what it draws, and decides in time.

    Feed, Slices or Window --draw--> Batches --draw--> Window or consumer

It has no worker, and no queue of its own: whoever takes from it waits in its own queue, and is woken when the node is
due. It is looked at whenever somebody takes from it, and by `Run.settle`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from fstream._flow.pacing import Clock
from fstream._flow.protocols import Drawn, Upstream
from fstream._flow.sizing import MAX_CHEAP_PROCESS, MAX_SPAN
from fstream._flow.span import CLOSED, Closed, Item

__all__ = ["Batches"]


class Batches(Upstream):
    """Lists of *n* items, or, if what comes is *weighed* (pairs of an item and its weight), of a weight of *n* at most.

    A batch is *open* while more may join it, and no longer than *within* seconds. A *closed* one waits to be drawn.

    The node has room of its own for the items of one batch: what joins a batch here gives its room upstream back. So a
    batch may be larger than that room. What is a full batch already stays upstream until it is drawn, and its room is
    given back with that of the batch.

    Invariant: the open batch is not full, and holds no item that came after it was due.
    Invariant: batches that are not weighed hold less than *n* items here, all together.
    """

    def __init__(
        self, upstream: Upstream, n: float, *, within: float | None, weighed: bool, clock: Clock
    ) -> None:
        self.upstream = upstream
        self.n = n
        self.within = within
        self.weighed = weighed
        self.clock = clock
        self.open: list[Item] = []
        #: When the open batch is to be closed.
        self.due = math.inf
        #: The weight of the open batch.
        self.weight = 0
        self.closed: deque[list[Item]] = deque()
        #: How many items the open and the closed batches have.
        self.held = 0

    def look(self) -> int:
        """Take in what has come, close the open batch if it is due or the last; give how many items stay upstream."""
        upstream = self.upstream
        if self.stopped:
            return 0
        if self.open and self.due < math.inf and self.clock() >= self.due:
            self._close()
        while (count := self._joining(available := upstream.available())) > 0:
            items, credits = upstream.draw(count)
            upstream.release(credits)
            self._join(items)
        if self.open and not available and upstream.end is not None:
            self._close()
        return available

    def _joining(self, available: int) -> int:
        """How many of the *available* items are to join a batch now."""
        if self.weighed:
            return 0 if self.closed else min(available, 1)
        n = int(self.n)
        return min(available, n - 1 - self.held) if len(self.open) + available < n else 0

    def _join(self, items: Sequence[Any]) -> None:  # pairs, if they are weighed
        """Have *items* join the open batch."""
        if not items:  # a list that shrinks
            return
        self.held += len(items)
        if not self.weighed:
            self._begin()
            self.open += items
            return
        for item, weight in items:
            if self.open and self.weight + weight > self.n:
                self._close()
            self._begin()
            self.open.append(item)
            self.weight += weight
            if self.weight >= self.n:
                self._close()

    def _begin(self) -> None:
        """An item is about to join: if it is the first one, the time of the batch begins."""
        if not self.open and self.within is not None:
            self.due = self.clock() + self.within

    def _close(self) -> None:
        self.closed.append(self.open)
        self.open, self.due, self.weight = [], math.inf, 0

    # --------------------------------------------------------------------------------------- as an upstream

    def available(self) -> int:
        left = self.look()
        return len(self.closed) + (0 if self.weighed else (len(self.open) + left) // int(self.n))

    def draw(self, most: int) -> Drawn:
        batches = [self.closed.popleft() for _ in range(min(most, len(self.closed)))]
        self.held -= sum(map(len, batches))
        if self.weighed or len(batches) >= most:
            return batches, 0
        n, upstream = int(self.n), self.upstream
        # Large ones one by one: what is drawn is held beside what comes meanwhile.
        count = min(most - len(batches), max(1, MAX_SPAN // n), (len(self.open) + upstream.available()) // n)
        if count <= 0:
            return batches, 0
        drawn, credits = upstream.draw(count * n - len(self.open))
        items = [*self.open, *drawn]
        self.held -= len(self.open)
        self.open, self.due = [], math.inf
        whole = len(items) // n * n
        batches += [items[at : at + n] for at in range(0, whole, n)]
        self._join(items[whole:])  # none, unless there was less than there seemed to be
        return batches, credits

    def release(self, credits: int) -> None:
        self.upstream.release(credits)

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        return self.upstream.grow(most if self.weighed else min(most * int(self.n), MAX_CHEAP_PROCESS))

    @property
    def stopped(self) -> bool:  # type: ignore[override]  # nobody sets it: it stops with what is upstream
        return self.upstream.stopped

    @property
    def end(self) -> Closed | None:
        if self.stopped:
            return CLOSED
        return None if self.open or self.closed else self.upstream.end

    @property
    def has_partial(self) -> bool:
        return not self.stopped and (self.due < math.inf or self.upstream.has_partial)

    @property
    def flush_delay(self) -> float:
        if self.due == math.inf:
            return self.upstream.flush_delay
        left = max(0.0, self.due - self.clock())
        return min(left, self.upstream.flush_delay) if self.upstream.has_partial else left

    def request_flush(self) -> None:
        if self.upstream.has_partial:
            self.upstream.request_flush()
        self.look()
