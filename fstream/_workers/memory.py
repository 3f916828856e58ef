"""The option *memo*: an item whose result is known needs no worker, and equal ones that are under way run once.

    feeder --arrived--> an item, or a Known --> window --> worker --remember--> the mapping

The feeder looks an item up when it has pulled it. Whoever has f's result first, a worker or a pump, keeps it. So the
mapping and the keys, whose code may be the user's, are never called under the run's lock.

A mapping that wants to know who uses it, as `Journal` does, has the methods ``_fstream_begin``, ``_fstream_end``,
``_fstream_check_stage`` and ``_fstream_keep_key``. Their names are such that no other mapping has them by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

from fstream._flow.known import Known
from fstream._plan import kernels
from fstream._plan.kernels import DROP, EACH, FILTER
from fstream._plan.stages import MISSING, Stage
from fstream._workers.notes import OptionFailed, annotate, annotate_item, describe, named

__all__ = ["Memory"]


class Memory:
    """What one run of a stage knows of its memo.

    Invariant: a key is in `followers` while one item of it, its *leader*, is under way: it was let through to the
    window, and has no result yet. The leader's key is in `keys`.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.memo = stage.memo
        self.key_of: Callable[[Any], Any] | None = stage.memo_key
        #: Makes an item's slot of a result that was looked up. None where the result is the slot.
        self.finish = stage.kernel.finish
        #: Held while the mapping is called, because that need not be thread-safe. A plain dict is thread-safe. So
        #: `at_hand` is that dict, which is read without the lock, and an empty one for other mappings.
        self.lock = Lock()
        self.at_hand: Any = self.memo if type(self.memo) is dict else {}
        #: The keys of the items under way, by their indices.
        self.keys: dict[int, Any] = {}
        #: The items that wait for one of an equal key, with their indices.
        self.followers: dict[Any, list[tuple[int, Known]]] = {}
        if (begin := getattr(type(self.memo), "_fstream_begin", None)) is not None:
            begin(self.memo, stage.name, self)

    def end(self) -> None:
        """Nothing more is looked up."""
        if (end := getattr(type(self.memo), "_fstream_end", None)) is not None:
            end(self.memo, self)

    def arrived(self, item: Any, index: int) -> Any:
        """Give what takes the place of *item*: itself if it is to be run, or a `Known`."""
        try:
            key = item if self.key_of is None else self.key_of(item)
            if (value := self.at_hand.get(key, MISSING)) is not MISSING:
                return Known(item, value if self.finish is None else self.finish(item, value))
            with self.lock:
                if (followers := self.followers.get(key)) is not None:
                    followers.append((index, known := Known(item)))
                    return known
                value = self.memo.get(key, MISSING)
                if value is not MISSING:
                    return Known(item, value if self.finish is None else self.finish(item, value))
                self.followers[key] = []
                self.keys[index] = key
                return item
        except BaseException as error:
            raise self._noted(error, item, index)  # noqa: B904  (it is the same, most often)

    def _noted(self, error: BaseException, item: Any, index: int) -> BaseException:
        """Give what the *error* of a look-up is to be, with its notes."""
        raised = named(error, "memo")
        annotate_item(raised, self.stage, describe(self.stage, index, item), "memo of ")
        if type(error) is TypeError and "unhashable" in str(error):
            annotate(raised, "the key of a memo must be hashable: write memo_key=f, where f(item) gives one")
        return raised

    def remember(self, index: int, slot: Any) -> list[tuple[int, Known]]:
        """Keep what has become of the item at *index*; give the items that it brings the slot of, and their indices."""
        with self.lock:
            if (key := self.keys.pop(index, MISSING)) is MISSING:
                return []
            try:
                followers = self.followers.pop(key)
                value = self._value_of(slot)
                if slot is not kernels.SKIP:
                    self._keep(key, value)
            except BaseException as error:
                raise OptionFailed(error, "memo") from None
        for _, known in followers:
            known.slot = slot if slot is kernels.SKIP else self.stage.kernel.slot(known.item, value)
        return followers

    def _value_of(self, slot: Any) -> Any:
        kernel = self.stage.kernel
        return slot is not DROP if kernel == FILTER else None if kernel == EACH else slot

    def _keep(self, key: Any, value: Any) -> None:
        if self.stage.kernel == EACH and hasattr(type(self.memo), "_fstream_keep_key"):
            self.memo._fstream_keep_key(key)
        else:
            self.memo[key] = value

    def failed(self, index: int) -> tuple[int, Known] | None:
        """The item at *index* has failed: give the item that waits for it and is to be run now, with its index."""
        with self.lock:
            if (key := self.keys.pop(index, MISSING)) is MISSING:
                return None
            try:
                followers = self.followers[key]
                if not followers:
                    del self.followers[key]
                    return None
            except BaseException as error:
                raise OptionFailed(error, "memo") from None
            next_index, known = followers.pop(0)
            self.keys[next_index] = key
            known.alone = True
            return next_index, known
