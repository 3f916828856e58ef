"""`Failed`: a failed item as a value, in that item's place among the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Never

__all__ = ["Failed"]


@dataclass(frozen=True, slots=True)
class Failed:
    """What stands in the place of an item that failed, with ``on_error="keep"``. It is falsy.

        >>> from fstream import pmap
        >>> good, bad = pmap(lambda x: 1 / x, [4, 0], on_error="keep")
        >>> good, bool(bad), bad.item, bad.index
        (0.25, False, 0, 1)
        >>> bad.raise_()
        Traceback (most recent call last):
            ...
        ZeroDivisionError: division by zero

    *item* and *error* are what failed, and how, after all of its *tries*; *index* is the position of the item among
    those that came to the stage, *stage* the name of that.

    Later stages hand it on, in its place: their f never sees it. It can be pickled. Where the error cannot, a
    `RemoteError` takes its place, which tells of it.
    """

    #: There has been one in this process. Before that no item is one, and nobody looks.
    _made: ClassVar[bool] = False

    item: Any
    error: BaseException
    index: int
    stage: str
    tries: int

    def __post_init__(self) -> None:
        if not Failed._made:
            Failed._made = True

    def __bool__(self) -> bool:
        return False

    def raise_(self) -> Never:
        """Raise the error."""
        raise self.error

    def __reduce__(self) -> tuple[Any, ...]:
        from fstream._workers.process.errors import encode_error

        return _again, (self.item, encode_error(self.error), self.index, self.stage, self.tries)


def _again(item: Any, error: tuple[Any, ...], index: int, stage: str, tries: int) -> Failed:
    from fstream._workers.process.errors import decode_error

    return Failed(item, decode_error(error), index, stage, tries)
