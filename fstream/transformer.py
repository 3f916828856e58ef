"""Transformers: a pipeline before it has a source. They describe; nothing here runs."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import fields, replace
from functools import partial
from inspect import Parameter, Signature, signature
from numbers import Real
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Never,
    NoReturn,
    TypeVar,
    get_type_hints,
    overload,
)

from fstream._flow.pacing import Places, Ticket
from fstream._plan import kernels
from fstream._plan.kernels import BATCH, DIVERT, MAP, Kernel
from fstream._plan.options import _NONE_IS_DEFAULT, Options, U, check_n, checked, checks_of
from fstream._plan.stages import MISSING, NO_LIMIT, Batch, Stage, is_async, name_of
from fstream._workers.failed import Failed
from fstream._workers.kinds import IN_PLACE, backend_for, by_default, is_kind, that_await
from fstream._workers.notes import OptionFailed, annotate, shown

if TYPE_CHECKING:
    from fstream.stream import Stream

__all__ = ["Curried", "Signed", "Transformer", "check_source", "curry", "hashable", "signature_with"]

T_contra = TypeVar("T_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
V = TypeVar("V")

_DEFAULTS: Final = (
    {each.name: each.default for each in fields(Stage)} | dict.fromkeys(_NONE_IS_DEFAULT) | {"where": Failed}
)


def signature_with(given: Mapping[str, Any], kernel: Kernel = MAP) -> Signature:
    """What a combinator takes that has the options *given*: they are its defaults."""
    hints = {
        "within": float | None,
        "weight": Callable[[Any], float] | None,
        "where": type | tuple[type, ...] | Callable[[Any], object],
    }
    hints |= get_type_hints(Options) | {
        "on_error": Literal["raise", "skip", "keep"] | Callable[[Exception, Any], Any]
    }
    return Signature(
        [Parameter(name, Parameter.POSITIONAL_ONLY, default=MISSING) for name in (kernel.first, "source")]
        + [
            Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=given.get(name, _DEFAULTS[name]),
                annotation=hints[name],
            )
            for name in checks_of(kernel.verb)
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
    given = options["kind"] if "kind" in options else by_default(is_async(f))
    backend = backend_for(given)
    kind = backend.name
    name = options.get("name") or name_of(f)
    if not backend.awaits:
        _check_none_awaits(f, kind, options)
    timeout = options.get("timeout")
    if timeout is not None and timeout >= NO_LIMIT:
        timeout = None
    engine = None if given is kind or isinstance(given, str) else given
    resolved = {
        "kind": kind,
        "name": name,
        "timeout": timeout,
        "engine": engine,
        "context": tuple(options.get("context", ())),
    }
    stage = Stage(kernel, f, **{**options, **resolved})
    _check_together(stage, options)
    backend.check(stage)
    return replace(stage, ticket=ticketing(stage))


def _check_together(stage: Stage, given: dict[str, Any]) -> None:
    """Refuse options that do not go together, or mean nothing without another one."""
    verb = stage.kernel.verb
    for name, default in (("retry_on", Exception), ("backoff", 0.1)):
        # A wrapper may hand on all three as they are by default.
        forgotten = name in given and "retries" not in given
        if not stage.retries and (forgotten or getattr(stage, name) != default):
            raise ValueError(f"{name} needs retries: write {verb}(f, retries=3, {name}=...)")
    if stage.per_key != 1 and stage.key is None:
        raise ValueError(f"per_key needs key: write {verb}(f, key=..., per_key={stage.per_key})")
    if stage.max_failures is not None and stage.on_error == "raise":
        raise ValueError(
            "max_failures is for another on_error than 'raise', with which the first failure ends the stream: "
            "write on_error='keep', 'skip' or a function"
        )
    if stage.memo_key is not None and stage.memo is None:
        raise ValueError("memo_key is for memo: write memo={} or memo=Journal(path) with it")
    for name, of in (("retry_on", "an error"), ("key", "an item"), ("memo_key", "an item")):
        if not isinstance(call := getattr(stage, name), type | tuple) and is_async(call):
            raise TypeError(
                f"{name} {name_of(call)!r} is a coroutine function: it must be a function of {of}"
            )
    if (
        stage.memo is not None
        and (check := getattr(type(stage.memo), "_fstream_check_stage", None)) is not None
    ):
        check(stage.memo, stage.name)


def _check_none_awaits(f: Any, kind: str, options: dict[str, Any]) -> None:
    for role in ("f", "on_start", "on_done", "on_error"):
        call = f if role == "f" else options.get(role)
        if callable(call) and is_async(call):
            raise TypeError(
                f"{role} {name_of(call)!r} is a coroutine function, which kind={kind!r} cannot run: "
                f"use kind={that_await()}"
            )


def ticketing(stage: Stage) -> Stage | None:
    """The stage before *stage*, where that looks at more of an item than the item; else None."""
    if stage.key is None and getattr(stage.rate, "cost", None) is None:
        return None
    return Stage(
        MAP,
        partial(_ticket, stage),
        IN_PLACE.name,
        name=f"before {stage.name}",
        serves=stage.name,
        on_start=Places,
    )


def _ticket(stage: Stage, item: Any, places: Places) -> Ticket:
    role, key, place = "key", None, None
    try:
        if stage.key is not None:
            key = stage.key(item)
            place = places.of(key)
        if (rate := stage.rate) is None:
            return Ticket(item, place)
        role, cost = "cost", getattr(rate, "cost", None)
        return Ticket(item, place) if cost is None else Ticket(item, place, _cost(cost(item), rate.n))
    except BaseException as error:
        if role == "key" and key is not None and type(error) is TypeError and "unhashable" in str(error):
            annotate(error, f"key must give what can be hashed, got {shown(key)}")
        raise OptionFailed(error, role, stage) from None


def _cost(cost: Any, n: float) -> float:
    if isinstance(cost, bool) or not isinstance(cost, Real):
        raise TypeError(f"cost must give a number, got {cost!r}")
    if not 0 <= cost <= max(n, 1):  # type: ignore[operator]  # nor is what is not a number
        raise ValueError(f"cost must give a number from 0 to the {n} of its rate, got {cost!r}")
    return float(cost)


def resolve_batch(n: Any, options: dict[str, Any]) -> Batch:
    """The same for `batch`."""
    within, weight = options.get("within"), options.get("weight")
    check_n(n, weighed=weight is not None)
    if is_async(weight):
        raise TypeError(f"weight {name_of(weight)!r} is a coroutine function, which batch() cannot run")
    weigh = None if weight is None else _in_place(partial(_weighed, weight), name_of(weight), "batch")
    return Batch(n, None if within is None or within >= NO_LIMIT else within, weigh)


def _in_place(f: Callable[[Any], Any], name: str, serves: str = "") -> Stage:
    """A stage of fstream's own, which sees each `Failed` that comes."""
    return Stage(MAP, f, IN_PLACE.name, name=name, serves=serves, hands_on=False)


def resolve_divert(sink: Any, options: dict[str, Any]) -> Stage:
    """The same for `divert`."""
    where = options.get("where", Failed)
    if not callable(sink):
        slip = "; write divert(sink, source), not divert(source, sink)" if hasattr(sink, "__iter__") else ""
        raise TypeError(f"sink must be a function of an item, got {type(sink).__name__}{slip}")
    for name, call in ("sink", sink), ("where", where):
        if is_async(call):
            raise TypeError(f"{name} {name_of(call)!r} is a coroutine function, which divert() cannot run")
    return _in_place(partial(_diverted, sink, where), "divert")


def _diverted(sink: Callable[[Any], object], where: Any, item: Any) -> Any:
    if isinstance(item, where) if isinstance(where, type | tuple) else where(item):
        sink(item)
        return kernels.SKIP
    return item


def _weighed(weight: Callable[[Any], Any], item: Any) -> tuple[Any, Any]:
    if isinstance(item, Failed):
        return item, 1
    heavy = weight(item)
    if isinstance(heavy, bool) or not isinstance(heavy, Real):
        raise TypeError(f"weight must give a number, got {heavy!r}")
    if not heavy >= 0:  # type: ignore[operator]  # nor is what is not a number
        raise ValueError(f"weight must give a number of at least 0, got {heavy}")
    return item, heavy


def check_source(source: object) -> None:
    """Raise TypeError at once if *source* cannot be iterated."""
    cls = type(source)
    if isinstance(source, Curried):
        verb, first = source.kernel.verb, source.kernel.first
        raise TypeError(f"{source!r} has no {first} yet: write {verb}({first}, source)")
    if isinstance(source, Transformer):
        raise TypeError(f"source must not be a transformer: write ({source!r})(source), or join the two by |")
    if any(getattr(cls, name, None) is not None for name in ("__iter__", "__aiter__")):
        return
    try:
        iter(source)  # type: ignore[call-overload]  # by its __getitem__, if it has one: this calls nothing of it
    except TypeError:
        raise TypeError(f"source must be an iterable or an async iterable, got {cls.__name__}") from None


# ---------------------------------------------------------------------------------------------- transformers


def _show(verb: str, f: Any, options: dict[str, Any]) -> str:
    words = [] if f is MISSING else [name_of(f) if callable(f) else repr(f)]
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

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), hashable(self._content())))


def hashable(content: Any) -> Any:
    """Give what stands for *content* in a hash: equal contents have equal ones."""
    if isinstance(content, tuple):
        return tuple(map(hashable, content))
    if isinstance(content, dict):
        # Not the contents of a memo, which change.
        return frozenset(
            (name, name if name == "memo" else hashable(value)) for name, value in content.items()
        )
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
    __signature__ = Signed(lambda curried: signature_with(curried.options, curried.kernel))
    kernel: Kernel
    options: dict[str, Any]

    def __init__(self, kernel: Kernel, options: dict[str, Any]) -> None:
        object.__setattr__(self, "kernel", kernel)
        given = checked(kernel.verb, options)
        if "kind" in given:
            backend_for(given["kind"])
        object.__setattr__(self, "options", given)

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
    stage: Stage | Batch

    def __init__(self, kernel: Kernel, f: Callable[..., Any], options: dict[str, Any]) -> None:
        given = checked(kernel.verb, options)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "f", f)
        object.__setattr__(self, "options", given)
        stage = {BATCH: resolve_batch, DIVERT: resolve_divert}.get(kernel, partial(resolve, kernel))(f, given)
        object.__setattr__(self, "stage", stage)

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
    #: Without the arguments that are refused.
    __signature__ = Signed(
        lambda it: (whole := signature(type(it).__call__)).replace(parameters=[whole.parameters["source"]])
    )
    steps: tuple[Any, ...]

    def __init__(self, steps: tuple[Any, ...]) -> None:
        object.__setattr__(self, "steps", steps)

    def __call__(self, source: Iterable[T_contra] | AsyncIterable[T_contra], /, *more: Never) -> Stream[R_co]:
        from fstream.stream import Stream

        if more:
            refuse(self.steps[0].kernel, more)
        check_source(source)
        result: Any = source
        for step in self.steps:
            if not isinstance(step, Step):
                result = step(result)
                continue
            if isinstance(step.stage, Batch) and step.stage.weigh is not None:
                result = Stream(result, step.stage.weigh)
            elif isinstance(step.stage, Stage) and step.stage.ticket is not None:
                result = Stream(result, step.stage.ticket)
            result = Stream(result, step.stage)
        return result  # type: ignore[no-any-return]

    @overload
    def __or__(self, after: Transformer[R_co, U], /) -> Transformer[T_contra, U]: ...
    @overload
    def __or__(
        self: Transformer[T_contra, V | Failed], after: Transformer[V, U], /
    ) -> Transformer[T_contra, U | Failed]: ...
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
            kernel = next((step.kernel for step in self.steps if isinstance(step, Step)), MAP)
            verb, first = kernel.verb, kernel.first
            raise TypeError(
                f"a transformer has no items of its own: write {verb}({first}, source); so, too, in place of "
                f"source | {verb}({first}), where source is a dict view or another object with a | of its own"
            )

    def __repr__(self) -> str:
        return " | ".join(repr(step) if isinstance(step, Step) else name_of(step) for step in self.steps)

    def __reduce__(self) -> tuple[Any, ...]:
        return Transformer, (self.steps,)

    def _content(self) -> tuple[Any, ...]:
        return self.steps


def refuse(kernel: Kernel, more: tuple[Any, ...]) -> NoReturn:
    """Say what to write where arguments follow the source."""
    verb, third = kernel.verb, more[0]
    if kernel in (BATCH, DIVERT):
        option = "within=0.5" if kernel == BATCH else "where=ValueError"
        raise TypeError(
            f"{verb}() takes its options by keyword, got {third!r}: write {verb}({kernel.first}, source, {option})"
        )
    if isinstance(third, str) or not hasattr(third, "__iter__"):
        word = f"kind={third!r}" if is_kind(third) else "workers=2"
        raise TypeError(
            f"{verb}() takes its options by keyword, got {third!r}: write {verb}(f, source, {word})"
        )
    names = ", ".join(f"source{n + 1}" for n in range(1 + len(more)))
    raise TypeError(f"{verb}() takes one source, got {1 + len(more)}: write {verb}(star(f), zip({names}))")


def curry(kernel: Kernel, f: Any, source: Any, more: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Give what the arguments so far come to: a `Curried`, a `Transformer` or a `Stream`."""
    if more:
        refuse(kernel, more)
    if f is MISSING:
        return Curried(kernel, options)
    transformer: Transformer[Any, Any] = Transformer((Step(kernel, f, options),))
    return transformer if source is MISSING else transformer(source)
