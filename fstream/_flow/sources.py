"""Where the first window of a row draws from: what feeders have pulled, or slices of a sequence."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fstream._flow.known import Known
from fstream._flow.protocols import Drawn, Upstream
from fstream._flow.room import Room
from fstream._flow.sizing import MAX_CHEAP_PROCESS, MAX_SPAN
from fstream._flow.span import CLOSED, Closed, Item
from fstream._flow.weight import SAMPLES, SELDOM, weigh

__all__ = ["Feed", "Grant", "Slices", "sliceable"]


class Grant:
    """How many items a feeder may pull. Changed under the lock."""

    #: Beside the part that it has in hand.
    left = 0
    #: How many that part had.
    hand = 0


class Feed(Upstream):
    """What feeders have pulled from the sources and no stage has drawn yet."""

    prepaid = True

    def __init__(self, room: Room, feeders: int) -> None:
        #: The room of the window that draws from here, or the feed's own where the consumer does.
        self.room = room
        #: Feeders append without the lock: an append is atomic, and takers ask `available` again before they wait.
        self.pending: deque[Item] = deque()
        #: What feeders call for an item.
        self.append: Callable[[Item], None] = self.pending.append
        self.feeders = feeders
        #: Those of all feeders.
        self.grants: list[Grant] = []
        #: How many feeders wait for room.
        self.blocked = 0
        #: How many feeders do not pull: they wait for room, or are through. How long they have not, in seconds, if what
        #: the clock says now is added for each of them.
        self.resting = 0
        self.rested = 0.0
        self.error: BaseException | None = None
        #: No stage has a window on it: the consumer draws from here itself, so a draw gives the room back.
        self.alone = False
        #: If it is alone: some items are weighed again when so many have gone through.
        self.weigh_at = 0
        #: The run is over, or failed downstream of here.
        self.stopped = False
        #: The stream is drained: tells, and sees to it, that nothing more is waited for.
        self.drained: Callable[[], bool] | None = None
        #: Is told how many items are drawn, if somebody observes.
        self.pulled: Callable[[int], None] | None = None

    def rest(self, now: float) -> None:
        """A feeder pulls no more, until it goes on."""
        self.resting += 1
        self.rested -= now

    def go_on(self, now: float) -> None:
        self.resting -= 1
        self.rested += now

    def has_room(self, mine: Grant) -> bool:
        """Tell whether a feeder may pull.

        Where items have come to be heavy, more was granted than may be held. The others need not use it: their sources
        may be silent for ever.
        """
        room = self.room
        if room.free > 0:
            return True
        others = sum(each.left + each.hand for each in self.grants if each is not mine)
        return room.held > room.limit > room.held - others and room.maxsize is None

    def credits(self, mine: Grant) -> int:
        """Grant a feeder the room that is left, shared with the feeders beside it, ahead of what it pulls."""
        if self.room.free <= 0:  # see `has_room`
            for each in self.grants:
                if each is not mine:
                    self.room.held -= each.left
                    each.left = 0
        count = max(1, self.room.free // self.feeders)
        self.room.held += count
        return count

    def take_back(self, mine: Grant) -> None:
        """Take credits back from a feeder where items may have come to be heavy. Under the lock.

        It was granted them for as many light items. This is asked while it pulls: else it would not be before all of
        them are used up, which are up to 32,768.
        """
        room = self.room
        latest = [(each.item, each.slot) if type(each) is Known else each for each in self.waiting(SAMPLES)]
        if room.maxsize is None and (weight := weigh(latest)):
            if weight.mean > room.weight:  # they are to be drawn yet: outputs may be heavier
                room.weighs(*weight, whole=False)
            back = min(mine.left, max(0, room.held - room.limit))
            room.held -= back
            mine.left -= back

    def ended(self, unused: int, error: BaseException | None) -> None:
        """One feeder is through with its source."""
        self.room.held -= unused
        self.feeders -= 1
        if error is not None and self.error is None:
            self.error = error
            self.feeders = 0
            # What other feeders pull from now on goes nowhere: they append to the old deque, at any moment.
            old, self.pending = self.pending, deque()
            self.pending.extend(old.popleft() for _ in range(len(old)))

    def available(self) -> int:
        if self.stopped:
            return 0
        # A feeder appends, then looks who waits. A taker says that it waits, then looks here. Of two changes of a deque
        # one is the first, also without the GIL: either the item is there, or its feeder will see the taker. This
        # change changes nothing; it is there to put the two in order.
        self.pending.extend(())
        return len(self.pending)

    def draw(self, most: int) -> Drawn:
        pending = self.pending
        if most >= len(pending):
            most = len(pending)
        outputs = [pending.popleft()] if most == 1 else [pending.popleft() for _ in range(most)]
        if self.alone and self.room.gone >= self.weigh_at and outputs:
            self._weigh(outputs)
        if self.pulled is not None and most:
            self.pulled(most)
        return outputs, most if self.alone else 0

    def _weigh(self, outputs: list[Item]) -> None:
        """Bound what is pulled ahead of the consumer by what the latest items weigh, or else *outputs*, which go."""
        self.weigh_at = self.room.gone + max(SELDOM, self.room.limit // 2)
        latest = self.waiting(SAMPLES)
        if len(latest) < 2:
            latest = [None, *outputs[-SAMPLES:]]  # in place of a first sample: there may be one item alone
        if weight := weigh(latest):
            self.room.weighs(*weight)

    def waiting(self, most: int) -> list[Item]:
        return [self.pending[-n] for n in range(1, min(most, len(self.pending)) + 1)]

    def release(self, credits: int) -> None:
        self.room.release(credits)

    def grow(self, most: int = MAX_CHEAP_PROCESS) -> bool:
        return self.alone and self.blocked > 0 and not self.pending and self.room.grow(min(most, MAX_SPAN))

    @property
    def end(self) -> Closed | None:
        if self.stopped:
            return CLOSED
        if self.pending:
            return None
        if self.feeders <= 0:
            return Closed(self.error)
        return CLOSED if self.drained is not None and self.drained() else None


def sliceable(source: object) -> bool:
    """Tell whether slices of *source* give the same items as iterating it, at once and without side effects."""
    cls: Any = type(source)
    if cls is range:
        return not source[sys.maxsize :]  # type: ignore[index]  # one may be longer than `len` can say
    return cls in (list, tuple, str, bytes) or (cls.__module__ == "array" and cls.__name__ == "array")


class Slices(Upstream):
    """A sequence as upstream: drawn by slices, in the taker's own thread; it needs no feeder."""

    def __init__(self, source: Sequence[Item]) -> None:
        self.source = source
        #: A range cannot shrink, so its single items are looked up by index. Any other sequence is sliced also for one
        #: item: that costs five times as much, but is empty, and no error, where the item has gone since.
        self.is_range = type(source) is range
        self.position = 0
        self.over = self.stopped = False
        #: Is told how many items are drawn, if somebody observes.
        self.pulled: Callable[[int], None] | None = None

    def available(self) -> int:
        # Counted anew each time: a list may grow while it is iterated.
        left = len(self.source) - self.position
        return left if left > 0 and not (self.over or self.stopped) else 0

    def draw(self, most: int) -> Drawn:
        position = self.position
        if most == 1 and self.is_range:
            outputs: Sequence[Item] = [self.source[position]]
        else:
            outputs = self.source[position : position + most]
        self.position = position + len(outputs)
        if self.pulled is not None:
            self.pulled(len(outputs))
        return outputs, 0

    @property
    def end(self) -> Closed | None:
        self.over = not self.available()
        return CLOSED if self.over else None
