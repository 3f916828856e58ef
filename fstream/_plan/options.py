"""The options: their names, types and checks."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from os import PathLike
from typing import (
    Any,
    Final,
    Literal,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
)

from fstream._plan.kernels import Sentinel

__all__ = [
    "CHECKS",
    "_NONE_IS_DEFAULT",
    "Executor",
    "Keep",
    "Kind",
    "OnError",
    "Options",
    "RetryOn",
    "U",
    "check_n",
    "check_within",
    "checked",
    "checks_of",
]


class Executor(Protocol):
    """What is asked of a `concurrent.futures.Executor`, whose module takes longer to import than all of fstream."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any: ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None: ...


class PoolOfProcesses(Protocol):
    """What `fstream.Processes` is, to a floor that cannot import it."""

    workers: int | None
    start: str
    idle: float
    relay: bool

    def close(self) -> None: ...


class Client(Protocol):
    """What is asked of a `distributed.Client`, which may not be installed."""

    def map(self, func: Callable[..., Any], *iterables: Any, pure: bool = True) -> Any: ...

    def gather(self, futures: Any) -> Any: ...

    def scheduler_info(self) -> Any: ...


#: What ``kind`` may be, as a type checker sees it; the registry of kinds says what it may be in fact.
Kind: TypeAlias = (
    Literal["sync", "thread", "process", "task", "dask"]
    | PoolOfProcesses
    | Client
    | Executor
    | Callable[[], Executor]
)

U = TypeVar("U")

#: What becomes of a failed item; a handler gives U, or `SKIP`, which is a Sentinel.
OnError: TypeAlias = Literal["raise", "skip"] | Callable[[Exception, Any], U | Sentinel]

#: A `Failed` stands in the place of a failed item.
Keep: TypeAlias = Literal["keep"]


#: Which errors are tried again; a hook gives whether, or after how many seconds.
RetryOn: TypeAlias = (
    type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool | float]
)


class Limited(Protocol):
    """A `Rate`."""

    def grant(self, now: float, most: int, cost: float = 1.0) -> int: ...


class Options(TypedDict, total=False):
    """The options of the four combinators, as a type checker sees them; `pmap` says what they mean.

    All but *on_error*, which is in the signatures, as the type of the outputs depends on it.
    """

    kind: Kind | None
    workers: int | None
    maxsize: int | None
    ordered: bool
    timeout: float | None
    retries: int
    retry_on: RetryOn
    backoff: float
    rate: float | Limited | None
    key: Callable[[Any], Any] | None
    per_key: int
    on_start: Callable[..., Any] | None
    on_done: Callable[..., Any] | None
    max_failures: float | None
    memo: Any
    memo_key: Callable[[Any], Any] | None
    name: str | None
    context: Sequence[ContextVar[Any]] | None
    max_items_per_worker: int | None


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _left_to_the_registry(_kind: object) -> None:
    pass


def _check_maxsize(value: object) -> None:
    if value is not None:
        _whole("maxsize", value, 0)


def _check_ordered(value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"ordered must be True or False, got {value!r}")


def _seconds_or_none(name: str, value: object) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}")
    return value


def _check_seconds(name: str, value: object) -> None:
    seconds = _seconds_or_none(name, value)
    if seconds is not None and not seconds > 0:  # nor is what is not a number
        raise ValueError(f"{name} must be greater than 0 seconds, got {value}")


def _check_backoff(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"backoff must be a number of seconds, got {value!r}")
    if not value >= 0:  # nor is what is not a number
        raise ValueError(f"backoff must be at least 0 seconds, got {value}")


def check_within(value: object) -> None:
    """Check the within of `Stream.drain`."""
    seconds = _seconds_or_none("within", value)
    if seconds is not None and not seconds >= 0:  # nor is what is not a number
        raise ValueError(f"within must be at least 0 seconds, got {value}")


def _check_rate(value: object) -> None:
    if hasattr(value, "grant"):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        slip = f": write rate=Rate{value!r}" if isinstance(value, tuple) and len(value) == 2 else ""
        raise TypeError(f"rate must be a number of starts a second or a Rate, got {value!r}{slip}")
    if not 0 < value <= sys.float_info.max:  # nor is what is not a number
        raise ValueError(f"rate must be greater than 0 starts a second and finite, got {value!r:.50}")


def _is_error_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _check_retry_on(value: object) -> None:
    if isinstance(value, tuple):
        fits = all(map(_is_error_class, value))
    else:
        fits = _is_error_class(value) if isinstance(value, type) else callable(value)
    if not fits:
        raise TypeError(
            f"retry_on must be a class of exceptions, a tuple of them, or a function hook(error), got {value!r}"
        )


def check_n(value: object, weighed: bool) -> None:
    """Check the n of `batch`: a number of items, or a weight."""
    number = isinstance(value, int | float) if weighed else isinstance(value, int)
    if isinstance(value, bool) or not number:
        slip = "; write batch(n, source), not batch(source, n)" if hasattr(value, "__iter__") else ""
        raise TypeError(f"n must be {'a number' if weighed else 'an int'}, got {value!r}{slip}")
    if not value >= 1:  # type: ignore[operator]  # nor is what is not a number
        raise ValueError(f"n must be at least 1, got {value}")


_ON_ERROR: Final = "'raise', 'skip', 'keep' or a function g(error, item)"


def _check_on_error(value: object) -> None:
    if isinstance(value, str):
        if value not in ("raise", "skip", "keep"):
            raise ValueError(f"on_error must be {_ON_ERROR}, got {value!r}")
    elif not callable(value):
        raise TypeError(f"on_error must be {_ON_ERROR}, got {value!r}")


def _check_max_failures(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"max_failures must be a number of items, a share of them, or None, got {value!r}")
    if not value >= 0:  # nor is what is not a number
        raise ValueError(f"max_failures must be at least 0, got {value}")
    if isinstance(value, float) and value > 1:
        raise ValueError(
            f"max_failures as a share must be at most 1.0, got {value}: write an int for a number of items"
        )


def _check_memo(value: object) -> None:
    if value is not None and not all(
        hasattr(type(value), name) for name in ("get", "__getitem__", "__setitem__")
    ):
        slip = f": write memo=Journal({str(value)!r}) for a file" if isinstance(value, str | PathLike) else ""
        raise TypeError(f"memo must be a mutable mapping or None, got {value!r}{slip}")


def _optional_call(name: str) -> Callable[[object], None]:
    def check(value: object) -> None:
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function or None, got {value!r}")

    return check


def _check_name(value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"name must be a str, got {value!r}")


def _check_context(value: object) -> None:
    if isinstance(value, ContextVar):
        raise TypeError("context must be a list of context variables: write context=[variable]")
    if not isinstance(value, list | tuple):
        raise TypeError(f"context must be a list of context variables or None, got {value!r}")
    for each in value:
        if not isinstance(each, ContextVar):
            raise TypeError(f"context must hold context variables, got {each!r}")


def _check_max_items(value: object) -> None:
    if value is not None:
        _whole("max_items_per_worker", value, 1)


CHECKS: Final[dict[str, Callable[[Any], None]]] = {
    "kind": _left_to_the_registry,
    "workers": lambda value: _whole("workers", value, 1),
    "maxsize": _check_maxsize,
    "ordered": _check_ordered,
    "timeout": partial(_check_seconds, "timeout"),
    "retries": lambda value: _whole("retries", value, 0),
    "retry_on": _check_retry_on,
    "backoff": _check_backoff,
    "rate": _check_rate,
    "key": _optional_call("key"),
    "per_key": lambda value: _whole("per_key", value, 1),
    "on_error": _check_on_error,
    "max_failures": _check_max_failures,
    "memo": _check_memo,
    "memo_key": _optional_call("memo_key"),
    "on_start": _optional_call("on_start"),
    "on_done": _optional_call("on_done"),
    "name": _check_name,
    "context": _check_context,
    "max_items_per_worker": _check_max_items,
}

BATCH_CHECKS: Final[dict[str, Callable[[Any], None]]] = {
    "within": partial(_check_seconds, "within"),
    "weight": _optional_call("weight"),
}


def _check_where(value: object) -> None:
    classes = value if isinstance(value, tuple) else (value,)
    if not callable(value) and not (classes and all(isinstance(each, type) for each in classes)):
        raise TypeError(f"where must be a class, a tuple of classes, or a function of an item, got {value!r}")


DIVERT_CHECKS: Final[dict[str, Callable[[Any], None]]] = {"where": _check_where}

#: Options whose None means "not given": what a wrapper passes on unset.
_NONE_IS_DEFAULT: Final = frozenset(
    {"kind", "rate", "key", "workers", "name", "context", "within", "weight", "where"}
)


def checks_of(verb: str) -> dict[str, Callable[[Any], None]]:
    """The options of a combinator, and what checks them."""
    return {"batch": BATCH_CHECKS, "divert": DIVERT_CHECKS}.get(verb, CHECKS)


def checked(verb: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options that were given; raise for the first that is wrong."""
    given = {}
    checks = checks_of(verb)
    for name, value in options.items():
        if name not in checks:
            close = difflib.get_close_matches(name, checks, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; the options are {', '.join(checks)}"
            if name in ("chunksize", "chunk_size", "batch_size"):
                hint = "; there is none to tune: spans of items size themselves"
            raise TypeError(f"{verb}() has no option {name!r}{hint}")
        if value is None and name in _NONE_IS_DEFAULT:
            continue
        checks[name](value)
        given[name] = value
    return given
