"""What a pipeline is made of, with every option resolved. It describes; nothing here runs."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, signature
from typing import Any, Final

from fstream._plan.kernels import Kernel

__all__ = [
    "MISSING",
    "NO_LIMIT",
    "Batch",
    "Stage",
    "StageStatus",
    "WorkerInfo",
    "carried",
    "declared",
    "gives_one_for_one",
    "has_memo",
    "is_async",
    "name_of",
]


#: A time-out of so many seconds, 31 years, is none: `math.inf` above all.
NO_LIMIT: Final = 1e9

#: Stands for an argument that was not given, as None may be an item.
MISSING: Final[Any] = type(
    "Missing", (), {"__repr__": lambda _: "MISSING", "__reduce__": lambda _: "MISSING"}
)()


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker may know of itself: its *index*, in ``range(workers)``."""

    index: int


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What ``on_done`` is told: how many other workers of the stage are still active, and what ended the stage.

    >>> StageStatus(active_workers=0).done
    True
    """

    active_workers: int
    #: What ended the stage: an error of its own, of a stage or a source before it, or of one behind. None after
    #: exhaustion, `Stream.drain` and `Stream.close`.
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        """True in the last worker of the stage."""
        return self.active_workers == 0


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline, with every option resolved but the number of workers."""

    kernel: Kernel
    f: Callable[..., Any]
    #: The name of its kind.
    kind: str
    workers: int | None = None
    maxsize: int | None = None
    ordered: bool = True
    timeout: float | None = None
    retries: int = 0
    #: Which errors are tried again: a class, a tuple of classes, or a hook.
    retry_on: Any = Exception
    #: How long the first further try waits at most, in seconds.
    backoff: float = 0.1
    #: How many tries may start in a second; or a `Rate`.
    rate: Any = None
    on_error: str | Callable[..., Any] = "raise"
    on_start: Callable[..., Any] | None = None
    on_done: Callable[..., Any] | None = None
    name: str = ""
    #: The context variables that go with it to other processes.
    context: tuple[ContextVar[Any], ...] = ()
    max_items_per_worker: int | None = None
    max_failures: float | None = None
    memo: Any = None
    memo_key: Callable[[Any], Any] | None = None
    #: It hands on a `Failed` of the stage before it. What stands for `divert` and for the weight of a `batch` does not.
    hands_on: bool = True
    #: It looks at the items of the stage of this name, for that one; it is none of the user's.
    serves: str = ""
    #: What the option ``kind`` was, if that was no name but an object.
    engine: Any = None
    #: Gives the key of an item, of which no more than so many are at work at once.
    key: Callable[[Any], Any] | None = None
    per_key: int = 1
    #: The stage before this one, which makes a ticket of each item, if this one looks at more than the item.
    ticket: Stage | None = None
    #: The stages that this one stands for, if there are several.
    parts: tuple[Stage, ...] = ()
    #: What f can be given by name, and whether it is a coroutine function: looked up once, not by each worker.
    names: frozenset[str] = field(init=False, repr=False, compare=False)
    asynchronous: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", declared(self.f))
        object.__setattr__(self, "asynchronous", iscoroutinefunction(self.f))

    @property
    def paced(self) -> bool:
        """Its items may have to wait before they start."""
        return self.retries > 0 or self.rate is not None or self.ticket is not None


def carried(stage: Stage, context: Context) -> list[tuple[ContextVar[Any], Any]]:
    """Give what the variables that go with *stage* are in *context*: those that are set there."""
    variables = dict.fromkeys(each for part in (stage.parts or (stage,)) for each in part.context)
    return [(variable, context[variable]) for variable in variables if variable in context]


@dataclass(frozen=True, slots=True)
class Batch:
    """A step between stages that makes lists of items, and needs no worker."""

    #: How many items a batch has, or, if they are weighed, how heavy it is at most.
    n: float
    #: How long a batch is open at most, in seconds.
    within: float | None = None
    #: The stage before this one, which makes pairs of an item and its weight.
    weigh: Stage | None = None
    #: It keeps the order that it finds.
    ordered: bool = True
    kind: Final = "batch"
    name: Final = "batch"


def has_memo(stage: Stage | Batch) -> bool:
    return isinstance(stage, Stage) and stage.memo is not None


def gives_one_for_one(stage: Stage | Batch) -> bool:
    """Tell whether each item has one output, unless f says `SKIP`."""
    return (
        isinstance(stage, Stage)
        and stage.kernel.plain
        and stage.hands_on
        and stage.on_error in ("raise", "keep")
    )


# --------------------------------------------------------------------------------------------------- options


def name_of(f: object) -> str:
    """A readable name of a callable, without a memory address.

    >>> name_of(len), name_of(max)
    ('len', 'max')
    """
    while isinstance(f, partial) and not hasattr(f, "__name__"):
        f = f.func
    name = getattr(f, "__name__", None)
    return name if name and isinstance(name, str) else type(f).__name__  # a mock has an answer to every name


def declared(f: Callable[..., Any]) -> frozenset[str]:
    """The names of the parameters that *f* can be given by name."""
    try:
        parameters = signature(f).parameters.values()
    except (TypeError, ValueError):  # some built-ins have none
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


def is_async(f: object) -> bool:
    """Tell whether calling *f* gives a coroutine or an async generator."""
    call = getattr(f, "__call__", None)  # noqa: B004  (an instance with an async __call__ counts)
    return any(iscoroutinefunction(g) or isasyncgenfunction(g) for g in (f, call))
