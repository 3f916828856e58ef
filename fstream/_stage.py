"""What a pipeline is made of: options, stages and transformers. They describe; nothing here runs."""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from inspect import Parameter, Signature, isasyncgenfunction, iscoroutinefunction, signature
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    TypeAlias,
    TypedDict,
    TypeVar,
    get_type_hints,
    overload,
)

from fstream._kernels import Kernel, Mark

if TYPE_CHECKING:
    from fstream.stream import Stream

__all__ = [
    "MISSING",
    "Curried",
    "Kind",
    "OnError",
    "Options",
    "Signed",
    "Stage",
    "StageStatus",
    "Transformer",
    "WorkerInfo",
    "check_source",
    "curry",
    "declared",
    "hashable",
    "signature_with",
]

Kind: TypeAlias = Literal["sync", "thread", "process", "task"]

U = TypeVar("U")
T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

#: A time-out of so many seconds, 31 years, is none: `math.inf` above all.
NO_LIMIT: Final = 1e9

KINDS: Final = ("sync", "thread", "process", "task")

#: Stands for an argument that was not given, as None may be an item.
MISSING: Final[Any] = type(
    "Missing", (), {"__repr__": lambda _: "MISSING", "__reduce__": lambda _: "MISSING"}
)()


#: What becomes of a failed item; a handler gives U, or `SKIP`, which is a Mark.
OnError: TypeAlias = Literal["raise", "skip"] | Callable[[Exception, Any], U | Mark]


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
    on_start: Callable[..., Any] | None
    on_done: Callable[..., Any] | None
    name: str | None
    max_items_per_worker: int | None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker may know of itself: its *index*, in ``range(workers)``."""

    index: int


@dataclass(frozen=True, slots=True)
class StageStatus:
    """What ``on_done`` is told: how many other workers of the stage are still active.

    >>> StageStatus(active_workers=0).done
    True
    """

    active_workers: int

    @property
    def done(self) -> bool:
        """True in the last worker of the stage."""
        return self.active_workers == 0


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a pipeline, with every option resolved but the number of workers."""

    kernel: Kernel
    f: Callable[..., Any]
    kind: Kind
    workers: int | None = None
    maxsize: int | None = None
    ordered: bool = True
    timeout: float | None = None
    retries: int = 0
    on_error: str | Callable[..., Any] = "raise"
    on_start: Callable[..., Any] | None = None
    on_done: Callable[..., Any] | None = None
    name: str = ""
    max_items_per_worker: int | None = None
    #: The stages that this one stands for, if there are several.
    parts: tuple[Stage, ...] = ()
    #: What f can be given by name, and whether it is a coroutine function: looked up once, not by each worker.
    names: frozenset[str] = field(init=False, repr=False, compare=False)
    asynchronous: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", declared(self.f))
        object.__setattr__(self, "asynchronous", iscoroutinefunction(self.f))


# --------------------------------------------------------------------------------------------------- options


def name_of(f: object) -> str:
    """A readable name of a callable, without a memory address.

    >>> name_of(len), name_of(max)
    ('len', 'max')
    """
    while isinstance(f, partial):
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


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_kind(kind: object) -> None:
    kinds = ", ".join(map(repr, KINDS))
    if not isinstance(kind, str):
        raise TypeError(f"kind must be one of {kinds}, got {kind!r}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {kinds}, got {kind!r}")


def _check_maxsize(value: object) -> None:
    if value is not None:
        _whole("maxsize", value, 0)


def _check_ordered(value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"ordered must be True or False, got {value!r}")


def _check_timeout(value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, got {value!r}")
    if not value > 0:  # nor is what is not a number
        raise ValueError(f"timeout must be greater than 0 seconds, got {value}")


def _check_on_error(value: object) -> None:
    if isinstance(value, str):
        if value not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise', 'skip' or a function g(error, item), got {value!r}")
    elif not callable(value):
        raise TypeError(f"on_error must be 'raise', 'skip' or a function g(error, item), got {value!r}")


def _optional_call(name: str) -> Callable[[object], None]:
    def check(value: object) -> None:
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function or None, got {value!r}")

    return check


def _check_name(value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"name must be a str, got {value!r}")


def _check_max_items(value: object) -> None:
    if value is not None:
        _whole("max_items_per_worker", value, 1)


CHECKS: Final[dict[str, Callable[[Any], None]]] = {
    "kind": _check_kind,
    "workers": lambda value: _whole("workers", value, 1),
    "maxsize": _check_maxsize,
    "ordered": _check_ordered,
    "timeout": _check_timeout,
    "retries": lambda value: _whole("retries", value, 0),
    "on_error": _check_on_error,
    "on_start": _optional_call("on_start"),
    "on_done": _optional_call("on_done"),
    "name": _check_name,
    "max_items_per_worker": _check_max_items,
}

#: Options whose None means "not given": what a wrapper passes on unset.
_NONE_IS_DEFAULT: Final = frozenset({"kind", "workers", "name"})

_DEFAULTS: Final = {each.name: each.default for each in fields(Stage)} | dict.fromkeys(_NONE_IS_DEFAULT)


def checked(verb: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check the options that were given; raise for the first that is wrong."""
    given = {}
    for name, value in options.items():
        if name not in CHECKS:
            close = difflib.get_close_matches(name, CHECKS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; the options are {', '.join(CHECKS)}"
            if name in ("chunksize", "chunk_size", "batch_size"):
                hint = "; there is none to tune: spans of items size themselves"
            raise TypeError(f"{verb}() has no option {name!r}{hint}")
        if value is None and name in _NONE_IS_DEFAULT:
            continue
        CHECKS[name](value)
        given[name] = value
    return given


def signature_with(given: Mapping[str, Any]) -> Signature:
    """What a combinator takes that has the options *given*: they are its defaults."""
    hints = get_type_hints(Options) | {"on_error": Literal["raise", "skip"] | Callable[[Exception, Any], Any]}
    return Signature(
        [Parameter(name, Parameter.POSITIONAL_ONLY, default=MISSING) for name in ("f", "source")]
        + [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=given.get(name, _DEFAULTS[name]),
                annotation=hints[name],
            )
            for name in CHECKS
        ]
    )


def resolve(kernel: Kernel, f: Any, options: dict[str, Any]) -> Stage:
    """Make the stage of *f*, or raise for what does not fit together."""
    if not callable(f):
        slip = (
            f"; write {kernel.verb}(f, source), not {kernel.verb}(source, f)"
            if hasattr(f, "__iter__")
            else ""
        )
        raise TypeError(f"f must be callable, got {type(f).__name__}{slip}")
    asynchronous = is_async(f)
    kind = options.get("kind", "task" if asynchronous else "thread")
    name = options.get("name") or name_of(f)
    for role, call in (("f", f), ("on_start", options.get("on_start")), ("on_done", options.get("on_done"))):
        if kind != "task" and call is not None and is_async(call):
            raise TypeError(
                f"{role} {name_of(call)!r} is a coroutine function, which kind={kind!r} cannot run: use kind='task'"
            )
    handler = options.get("on_error")
    if kind != "task" and callable(handler) and is_async(handler):
        raise TypeError(
            f"on_error {name_of(handler)!r} is a coroutine function, which kind={kind!r} cannot run: use kind='task'"
        )
    if kind != "process" and options.get("max_items_per_worker") is not None:
        raise ValueError(f"max_items_per_worker is for kind='process', got kind={kind!r}")
    timeout = options.get("timeout")
    if timeout is not None and timeout >= NO_LIMIT:
        timeout = None
    return Stage(kernel, f, **{**options, "kind": kind, "name": name, "timeout": timeout})


def check_source(source: object) -> None:
    """Raise TypeError at once if *source* cannot be iterated."""
    cls = type(source)
    if isinstance(source, Curried):
        raise TypeError(f"{source!r} has no f yet: write {source.kernel.verb}(f, source)")
    if isinstance(source, Transformer):
        raise TypeError(f"source must not be a transformer: write ({source!r})(source), or join the two by |")
    if any(getattr(cls, name, None) is not None for name in ("__iter__", "__aiter__", "__getitem__")):
        return
    raise TypeError(f"source must be an iterable or an async iterable, got {cls.__name__}")


# ---------------------------------------------------------------------------------------------- transformers


def _show(verb: str, f: Any, options: dict[str, Any]) -> str:
    words = [] if f is MISSING else [name_of(f)]
    words += [
        f"{name}={name_of(value) if callable(value) else repr(value)}" for name, value in options.items()
    ]
    return f"{verb}({', '.join(words)})"


class _Value:
    """An immutable value: equal by content, picklable by its arguments."""

    __slots__ = ()

    def _content(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name!r} cannot be set")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), hashable(self._content())))


def hashable(content: Any) -> Any:
    if isinstance(content, tuple):
        return tuple(map(hashable, content))
    if isinstance(content, dict):
        return frozenset((name, hashable(value)) for name, value in content.items())
    try:
        hash(content)
    except TypeError:  # an unhashable callable: equal ones are of one type
        return type(content)
    return content


class Signed:
    """The ``__signature__`` of the instances of a class: made by *make* when somebody asks."""

    def __init__(self, make: Callable[[Any], Signature]) -> None:
        self.make = make

    def __get__(self, instance: object, _owner: type) -> Signature | None:
        return None if instance is None else self.make(instance)


class Curried(_Value):
    """A combinator that has its options and still waits for *f*: ``pmap(kind="thread")``."""

    __slots__ = ("kernel", "options")
    __signature__ = Signed(lambda curried: signature_with(curried.options))
    kernel: Kernel
    options: dict[str, Any]

    def __init__(self, kernel: Kernel, options: dict[str, Any]) -> None:
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "options", checked(kernel.verb, options))

    def __call__(self, f: Any = MISSING, source: Any = MISSING, /, *more: Any, **options: Any) -> Any:
        return curry(self.kernel, f, source, more, {**self.options, **options})

    def __ror__(self, source: Any, /) -> Any:
        check_source(self)

    def __repr__(self) -> str:
        return _show(self.kernel.verb, MISSING, self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return Curried, (self.kernel, self.options)

    def _content(self) -> tuple[Any, ...]:
        return (self.kernel, self.options)


class Step(_Value):
    """A combinator with its f and options, as they were given; *stage* is what they come to."""

    __slots__ = ("f", "kernel", "options", "stage")
    kernel: Kernel
    f: Callable[..., Any]
    options: dict[str, Any]
    stage: Stage

    def __init__(self, kernel: Kernel, f: Callable[..., Any], options: dict[str, Any]) -> None:
        given = checked(kernel.verb, options)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "f", f)
        object.__setattr__(self, "options", given)
        object.__setattr__(self, "stage", resolve(kernel, f, given))

    def __repr__(self) -> str:
        return _show(self.kernel.verb, self.f, self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return Step, (self.kernel, self.f, self.options)

    def _content(self) -> tuple[Any, ...]:
        return (self.kernel, self.f, self.options)


class Transformer(_Value, Generic[T_contra, R_co]):
    """A reusable value that turns a source into a `Stream`: what ``pmap(f)`` returns.

    Call it on a source, put it into `toolz.pipe`, or write ``source | transformer``. ``t1 | t2`` is the
    transformer that does *t1* and then *t2*; any function of one argument may take the place of *t2*.

    >>> from fstream import pmap, pfilter
    >>> t = pmap(abs, kind="sync") | pfilter(bool, kind="sync")
    >>> t
    pmap(abs, kind='sync') | pfilter(bool, kind='sync')
    >>> [-1, 0, 1] | t | list
    [1, 1]
    """

    __slots__ = ("steps",)
    #: numpy arrays leave ``array | transformer`` to us, and pandas objects, whose highest priority is 4000.
    __array_ufunc__ = None
    __pandas_priority__ = 5000
    steps: tuple[Any, ...]

    def __init__(self, steps: tuple[Any, ...]) -> None:
        object.__setattr__(self, "steps", steps)

    def __call__(self, source: Iterable[T_contra] | AsyncIterable[T_contra], /) -> Stream[R_co]:
        from fstream.stream import Stream

        check_source(source)
        result: Any = source
        for step in self.steps:
            result = Stream(result, step.stage) if isinstance(step, Step) else step(result)
        return result  # type: ignore[no-any-return]

    @overload
    def __or__(self, after: Transformer[R_co, U], /) -> Transformer[T_contra, U]: ...
    @overload
    def __or__(self, after: Callable[[Stream[R_co]], Any], /) -> Transformer[T_contra, Any]: ...
    def __or__(self, after: Any, /) -> Any:
        if isinstance(after, Transformer):
            return Transformer(self.steps + after.steps)
        return Transformer((*self.steps, after)) if callable(after) else NotImplemented

    def __ror__(self, source: Iterable[T_contra] | AsyncIterable[T_contra], /) -> Stream[R_co]:
        return self(source)

    if not TYPE_CHECKING:

        def __getitem__(self, _index: object) -> Any:
            """Say what to write, to what would iterate this; `dict` views do, for their own ``|``.

            An ``__iter__`` would make this an `Iterable`, and `collections.abc.Set` would take it for a set, too.
            """
            raise TypeError(
                f"a transformer has no items of its own: write {self._verb}(f, source); so, too, in place of "
                f"source | {self._verb}(f), where source is a dict view or another object with a | of its own"
            )

    @property
    def _verb(self) -> str:
        return next((step.kernel.verb for step in self.steps if isinstance(step, Step)), "pmap")

    def __repr__(self) -> str:
        return " | ".join(repr(step) if isinstance(step, Step) else name_of(step) for step in self.steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return Transformer, (self.steps,)

    def _content(self) -> tuple[Any, ...]:
        return self.steps


def curry(kernel: Kernel, f: Any, source: Any, more: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Give what the arguments so far come to: a `Curried`, a `Transformer` or a `Stream`."""
    if more:
        verb, third = kernel.verb, more[0]
        if isinstance(third, str) or not hasattr(third, "__iter__"):
            word = f"kind={third!r}" if third in KINDS else "workers=2"
            raise TypeError(
                f"{verb}() takes its options by keyword, got {third!r}: write {verb}(f, source, {word})"
            )
        names = ", ".join(f"source{n + 1}" for n in range(1 + len(more)))
        raise TypeError(
            f"{verb}() takes one source, got {1 + len(more)}: write {verb}(star(f), zip({names}))"
        )
    if f is MISSING:
        return Curried(kernel, options)
    transformer: Transformer[Any, Any] = Transformer((Step(kernel, f, options),))
    return transformer if source is MISSING else transformer(source)
