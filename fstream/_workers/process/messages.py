"""What a worker process and its parent say to each other.

A message travels as its name and its fields, which are plain data. What may be anything at all, such as items and
outputs, goes beside it as its body: one that cannot be loaded is then named, and the conversation goes on.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from fstream._flow.span import Progress
from fstream._flow.tally import PartCounts
from fstream._workers.process.surroundings import Surroundings

__all__ = [
    "Broken",
    "Close",
    "Counted",
    "Finish",
    "Finished",
    "Forget",
    "Items",
    "Logged",
    "Message",
    "Open",
    "Opened",
    "Ready",
    "Said",
    "Slots",
    "Stale",
    "Steal",
    "Stolen",
    "Stop",
    "Unloadable",
    "Warned",
    "plain",
    "read",
]


#: An exception as `encode_error` makes it.
Encoded: TypeAlias = tuple[Any, ...]


# ---------------------------------------------------------------------------------------------------- to the worker


class Open(NamedTuple):
    """Work for a stage. The body is its call; there is none if it is loaded."""

    key: int
    #: None if the stage is loaded.
    surroundings: Surroundings | None
    #: The index of the worker, as `worker_info` tells it.
    worker: int
    #: The stage has resources, which stay there while others have the worker.
    stays: bool


class Items(NamedTuple):
    """Run these items of a span: the body."""

    start: int
    tries: int
    progress: Progress | None = None


class Steal(NamedTuple):
    """Give back what is not started, and send what is finished."""


class Finish(NamedTuple):
    """Run ``on_done``."""

    #: How many workers are active yet.
    active: int
    #: What ended the stage.
    error: Encoded | None = None


class Stop(NamedTuple):
    """The same, even in the middle of f."""

    active: int
    error: Encoded | None = None


class Close(NamedTuple):
    """Work for a stage no more."""

    key: int
    #: If it is not over, the stage stays loaded.
    over: bool


class Forget(NamedTuple):
    """A stage is over."""

    key: int


# -------------------------------------------------------------------------------------------------- from the worker


class Ready(NamedTuple):
    """It has started."""

    #: It has room for the arena.
    has_arena: bool


class Opened(NamedTuple):
    """What follows is about the stage that was opened, and not about the one before."""


class Stale(NamedTuple):
    """It works for no further stage, as files have changed that it has imported."""


class Slots(NamedTuple):
    """What has come of the items of a span so far. The body is the slots that were not sent before."""

    start: int
    #: How many slots there are by now.
    done: int
    #: Which slots of the body are failures.
    failed: list[int]
    #: There are no more to come.
    closed: bool
    #: How long the worker has been at the span.
    seconds: float


class Stolen(NamedTuple):
    """The last items of a span are not started, and given back."""

    start: int
    #: How many they are; None for all of the span.
    left: int | None


class Counted(NamedTuple):
    """What each part of the stage has counted since the last time."""

    parts: PartCounts


class Unloadable(NamedTuple):
    """The items of a span cannot be unpickled."""

    start: int
    error: Encoded


class Broken(NamedTuple):
    """The stage cannot be used here: to load it, or ``on_start``, has raised."""

    #: "load" or "on_start".
    where: str
    error: Encoded


class Finished(NamedTuple):
    """``on_done`` was run, and may have raised."""

    error: Encoded | None


class Said(NamedTuple):
    """What was printed."""

    number: int
    #: `OUT` or `ERR`, see `relay`.
    which: int
    data: bytes


class Logged(NamedTuple):
    """A record was logged. The body is its attributes."""

    #: The logger whose handlers are next.
    above: str


class Warned(NamedTuple):
    """A warning was issued. The body is its message and its category."""

    filename: str
    lineno: int
    text: str


ToWorker: TypeAlias = Open | Items | Steal | Finish | Stop | Close | Forget
FromWorker: TypeAlias = Ready | Opened | Stale | Slots | Stolen | Counted | Unloadable | Broken | Finished
Relayable: TypeAlias = Said | Logged | Warned
Message: TypeAlias = ToWorker | FromWorker | Relayable

_BY_NAME: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (
        *(Open, Items, Steal, Finish, Stop, Close, Forget),
        *(Ready, Opened, Stale, Slots, Stolen, Counted, Unloadable, Broken, Finished),
        *(Said, Logged, Warned),
    )
}


def plain(message: Message) -> tuple[Any, ...]:
    """Give *message* as it travels.

    Not the message itself: its pickle would name a class, which takes longer to look up than to build.
    """
    return (type(message).__name__, *message)


def read(name: str, *fields: Any) -> Message:
    """Make the message again."""
    message: Message = _BY_NAME[name](*fields)
    return message
