"""The public verbs: what a pipeline is written with."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from inspect import Parameter, Signature, isasyncgenfunction
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Never,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    Unpack,
    overload,
)

from fstream._plan.kernels import BATCH, DIVERT, EACH, FILTER, FLAT_MAP, MAP, Kernel, Sentinel
from fstream._plan.options import Keep, OnError, Options, checked
from fstream._plan.stages import MISSING, declared, is_async, name_of
from fstream._workers.failed import Failed
from fstream.stream import Stream
from fstream.transformer import Signed, Transformer, check_source, curry, hashable, signature_with

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    #: What an ``on_error`` handler gives: nothing if there is none.
    D = TypeVarWithDefault("D", default=Never)
    D_co = TypeVarWithDefault("D_co", default=Never, covariant=True)
else:
    D = TypeVar("D")
    D_co = TypeVar("D_co", covariant=True)

__all__ = ["batch", "divert", "merge", "ordered", "peach", "pfilter", "pflat_map", "pmap", "run", "star"]

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Source: TypeAlias = Iterable[T] | AsyncIterable[T]

#: f may take more than the item: its worker's resources, ``worker_info``, ``element_index``.
Verb: TypeAlias = Callable[[T], R] | Callable[Concatenate[T, ...], R]

Many: TypeAlias = AsyncIterable[R] | Awaitable[Iterable[R]] | Awaitable[AsyncIterable[R]] | Iterable[R]

#: An ``on_error`` that is a coroutine function.
Later: TypeAlias = Callable[[Exception, Any], Awaitable[D | Sentinel]]


class _KeepMap(Protocol):
    @overload
    def __call__(self, f: Verb[T, Awaitable[R]], /) -> Transformer[T, R | Failed]: ...
    @overload
    def __call__(self, f: Verb[T, R], /) -> Transformer[T, R | Failed]: ...


class _KeepFilter(Protocol):
    def __call__(self, f: Verb[T, object], /) -> Transformer[T, T | Failed]: ...


class _KeepFlatMap(Protocol):
    def __call__(self, f: Verb[T, Many[R]], /) -> Transformer[T, R | Failed]: ...


class _KeepEach(Protocol):
    def __call__(self, f: Verb[T, object], /) -> Transformer[T, Failed]: ...


class _Map(Protocol[D_co]):
    @overload
    def __call__(self, f: Verb[T, Awaitable[R]], /) -> Transformer[T, R | D_co]: ...
    @overload
    def __call__(self, f: Verb[T, R], /) -> Transformer[T, R | D_co]: ...


class _Filter(Protocol):
    def __call__(self, f: Verb[T, object], /) -> Transformer[T, T]: ...


class _FlatMap(Protocol[D_co]):
    def __call__(self, f: Verb[T, Many[R]], /) -> Transformer[T, R | D_co]: ...


class _Each(Protocol):
    def __call__(self, f: Verb[T, object], /) -> Transformer[T, Never]: ...


class _Batch(Protocol):
    @overload
    def __call__(self, n: float, /) -> Transformer[Any, list[Any]]: ...
    @overload
    def __call__(self, n: float, source: Source[T], /) -> Stream[list[T]]: ...


class _Divert(Protocol):
    @overload
    def __call__(self, sink: Callable[[Any], object], /) -> Transformer[Any, Any]: ...
    @overload
    def __call__(self, sink: Callable[[Any], object], source: Source[T], /) -> Stream[T]: ...


class _Starred(Protocol[R_co]):
    def __call__(self, args: Iterable[Any], /, *more: Any, **named: Any) -> R_co: ...


@overload
def pmap(
    f: Verb[T, Awaitable[R]], source: Source[T], /, *, on_error: Keep, **options: Unpack[Options]
) -> Stream[R | Failed]: ...
@overload
def pmap(
    f: Verb[T, R], source: Source[T], /, *, on_error: Keep, **options: Unpack[Options]
) -> Stream[R | Failed]: ...
@overload
def pmap(
    f: Verb[T, Awaitable[R]], /, *, on_error: Keep, **options: Unpack[Options]
) -> Transformer[T, R | Failed]: ...
@overload
def pmap(f: Verb[T, R], /, *, on_error: Keep, **options: Unpack[Options]) -> Transformer[T, R | Failed]: ...
@overload
def pmap(*, on_error: Keep, **options: Unpack[Options]) -> _KeepMap: ...
@overload
def pmap(
    f: Verb[T, Awaitable[R]], source: Source[T], /, *, on_error: Later[D], **options: Unpack[Options]
) -> Stream[R | D]: ...
@overload
def pmap(
    f: Verb[T, R], source: Source[T], /, *, on_error: Later[D], **options: Unpack[Options]
) -> Stream[R | D]: ...
@overload
def pmap(
    f: Verb[T, Awaitable[R]],
    source: Source[T],
    /,
    *,
    on_error: OnError[D] = "raise",
    **options: Unpack[Options],
) -> Stream[R | D]: ...
@overload
def pmap(
    f: Verb[T, R], source: Source[T], /, *, on_error: OnError[D] = "raise", **options: Unpack[Options]
) -> Stream[R | D]: ...
@overload
def pmap(
    f: Verb[T, Awaitable[R]], /, *, on_error: Later[D], **options: Unpack[Options]
) -> Transformer[T, R | D]: ...
@overload
def pmap(f: Verb[T, R], /, *, on_error: Later[D], **options: Unpack[Options]) -> Transformer[T, R | D]: ...
@overload
def pmap(
    f: Verb[T, Awaitable[R]], /, *, on_error: OnError[D] = "raise", **options: Unpack[Options]
) -> Transformer[T, R | D]: ...
@overload
def pmap(
    f: Verb[T, R], /, *, on_error: OnError[D] = "raise", **options: Unpack[Options]
) -> Transformer[T, R | D]: ...
@overload
def pmap(*, on_error: Later[D], **options: Unpack[Options]) -> _Map[D]: ...
@overload
def pmap(*, on_error: OnError[D] = "raise", **options: Unpack[Options]) -> _Map[D]: ...
def pmap(f: Any = MISSING, source: Any = MISSING, /, *more: Any, **options: Any) -> Any:
    """Apply *f* to each item, on workers of a kind.

        >>> from toolz import pipe
        >>> pipe(["a", "bb", "ccc"], pmap(len, kind="thread", workers=2), list)
        [1, 2, 3]

    ``pmap(f, source)``, ``pmap(f)(source)``, ``pmap()(f)(source)`` and ``source | pmap(f)`` are the same, with any
    options. It is `map` for every kind: `list` of the stream equals ``list(map(f, source))``.

    The stream is *lazy*: nothing is pulled and no worker started before its first ``next``. Its outputs are *ordered*
    as the inputs are. It is *bounded*: a consumer that is slow, or stops, stops the source. Items are handed over in
    spans, as many at a time as are worked off in a few milliseconds; a finished output never waits for that.

    *kind* says what runs f: ``"thread"`` (the default), ``"process"``, ``"task"`` (the default if f is a coroutine
    function), or ``"sync"`` for no worker at all, f running where the outputs are taken. It may also be a `Processes`,
    which is a pool of worker processes of one's own; or a `concurrent.futures.Executor`, or a function of no arguments
    that makes one, such as a class: that one is opened at the first ``next``, and closed with the stream. ``"dask"`` is
    the cluster of the current `distributed.Client`, and a `Client` object is that one's.

    *workers* is how many items are worked on at once: by default ``min(32, cpus + 4)`` threads, as many processes as
    this process may use CPUs, 100 tasks, as many as a cluster has threads. All process stages of a program share that
    many processes, or as many as the largest *workers* at work asks for. Neighbouring ones are run as one, each with
    its own *on_error*, *retries* and *timeout*. A stage with *maxsize*, *rate*, *key*, *memo* or *max_failures* runs by
    itself. So do two with different *workers*, two with the same *workers* if that is less than the CPUs, and one with
    a function as *on_error* from those behind it.

    *maxsize* is how many items the stage may hold: pulled, but not yet given out. ``None`` (the default) lets it size
    itself: twice *workers* at first; more only while its workers and its consumer wait for items, and not for the
    *rate* alone; and no more than 64 MiB of them, by estimate. ``0`` is no bound.

    *ordered* False gives outputs as they complete. Default True.

    *timeout* is in seconds, for one item, from the start of f. Beyond it the item fails with `TimeoutError`; its
    process is killed, its task cancelled, its thread left to itself. In an executor or a cluster f goes on until it
    returns. Default None: no limit. It has no effect on kind "sync", nor have *workers* and *maxsize*.

    *retries* is how many more times an item is tried that failed, ran over its time, or whose worker died; each try has
    the whole *timeout*. Default 0. An item that waits for its next try holds no worker, and keeps its place in the
    order and in *maxsize*; others go on.

    *retry_on* says which errors are tried again: a class of exceptions, by default `Exception`, a tuple of classes, or
    ``hook(error)``. A hook runs in this process, while an item has tries left. It returns True, False, or a number of
    seconds, what a ``Retry-After`` says: no try of this stage starts before they are over. After more than 300 the item
    fails at once, with its own error. What a hook raises ends the stream.

    *backoff* is how many seconds the first further try waits at most, 0.1 by default. It doubles from try to try, up to
    60, and each wait is drawn evenly between 0 and that. With 0 an item is tried again at once.

        >>> def flaky(x, seen=set()):
        ...     if x not in seen:
        ...         seen.add(x)
        ...         raise ConnectionError
        ...     return -x
        >>> pipe([1, 2], pmap(flaky, retries=3, retry_on=ConnectionError, backoff=0.01), list)
        [-1, -2]

    *rate* is how many tries may start in a second, first and further ones together: a number for each stream, or a
    `Rate`, which has other times and costs, and is one limit for all stages and streams that share it. An item that
    waits for it holds no worker. Default None: no limit.

    *key* is a function of an item: no more than *per_key* items of one ``key(item)``, by default 1, are at work at
    once. None is no key. Others go on as far as the stage may hold items. An item that waits for its next try is not at
    work. With a key each item travels alone. *key* is called in the thread that iterates the source of the stage.

    *on_error* is what becomes of an item that failed for good: ``"raise"`` (the default), ``"skip"``, or a function
    ``g(error, item)`` whose result stands for f's; it runs in this process and may return `SKIP`, or raise. With
    ``"keep"`` a `Failed` stands in its place, and later stages hand that on untouched.

        >>> pipe([1, 0], pmap(lambda x: 1 / x, on_error=lambda error, item: type(error).__name__), list)
        [1.0, 'ZeroDivisionError']
        >>> pipe([1, 0], pmap(lambda x: 1 / x, on_error="keep"), pmap(str), list)[1].error
        ZeroDivisionError('division by zero')

    *max_failures* ends the stream with `TooManyFailures`, in the place of the item that tipped it, when more items
    than this have failed for good: a number of items, or a share, as a float, of the last hundred that were worked
    off. Default None: no limit. It goes with another *on_error* than ``"raise"``.

    *memo* is a mutable mapping, a dict or a `Journal` for one, in which f's results are looked up and kept. A result
    that is there takes no worker, items of equal keys that are under way are run once, and failures are not kept. A key
    that cannot be hashed is an error of the stream. Default None.

        >>> known = {1: "one"}
        >>> pmap(str, [1, 2, 2], memo=known) | list
        ['one', '2', '2']
        >>> known
        {1: 'one', 2: '2'}

    *memo_key* gives the key of an item. It needs *memo*. Default None: the item is the key.

    *on_start* runs once in each worker before its first item and returns its resources: None, one object, a tuple of
    them, or a dict. f and *on_done* are given them as further arguments, those of a dict by name.

    *on_done* runs once in each worker that started, at its end, as ``on_done(stage_status, *resources)``, or by name
    what it declares: ``stage_status``, ``worker_info``, and resources where they are a dict. Without parameters it is
    given nothing.

    *name* is what errors call the stage; by default f's name.

    *context* is a list of context variables whose values, as whoever iterates the stream has them, f sees in other
    processes, too. Default None. Threads and tasks see all of them without it.

    *max_items_per_worker* replaces a worker process after so many items, against C libraries that leak. Default None:
    never. For other kinds than "process" it is an error.

    f, *on_start* and *on_done* may have a parameter ``worker_info`` (its ``index`` is in ``range(workers)``), and f
    parameters ``element_index``, the item's position, and ``attempt``, how often it was tried before.

    f may return `SKIP`: the item has no output.

    An option that is wrong raises `TypeError` or `ValueError` here. An error of f is raised by the stream, after the
    outputs of all items before; a worker process that ends in f raises `WorkerDied`; a function, item or output that
    cannot be sent to a process or back raises `NotPicklable`.

    Where items are tuples, `star` spreads them over f's parameters.

    Stages of workers linked by queues, and *on_start* and *on_done*, are ideas of pypeln.
    """
    return curry(MAP, f, source, more, options)


@overload
def pfilter(
    f: Verb[T, object], source: Source[T], /, *, on_error: Keep, **options: Unpack[Options]
) -> Stream[T | Failed]: ...
@overload
def pfilter(
    f: Verb[T, object], /, *, on_error: Keep, **options: Unpack[Options]
) -> Transformer[T, T | Failed]: ...
@overload
def pfilter(*, on_error: Keep, **options: Unpack[Options]) -> _KeepFilter: ...
@overload
def pfilter(
    f: Verb[T, object],
    source: Source[T],
    /,
    *,
    on_error: OnError[object] = "raise",
    **options: Unpack[Options],
) -> Stream[T]: ...
@overload
def pfilter(
    f: Verb[T, object], /, *, on_error: OnError[object] = "raise", **options: Unpack[Options]
) -> Transformer[T, T]: ...
@overload
def pfilter(*, on_error: OnError[object] = "raise", **options: Unpack[Options]) -> _Filter: ...
def pfilter(f: Any = MISSING, source: Any = MISSING, /, *more: Any, **options: Any) -> Any:
    """Keep the items for which *f* gives something true.

        >>> pfilter(str.isupper, ["a", "B", "C"]) | list
        ['B', 'C']

    It is `filter` on workers. *on_error*'s result stands for f's, so a true one keeps the item. Laziness, order,
    bounds, options and errors are those of `pmap`.
    """
    return curry(FILTER, f, source, more, options)


@overload
def pflat_map(
    f: Verb[T, Many[R]], source: Source[T], /, *, on_error: Keep, **options: Unpack[Options]
) -> Stream[R | Failed]: ...
@overload
def pflat_map(
    f: Verb[T, Many[R]], /, *, on_error: Keep, **options: Unpack[Options]
) -> Transformer[T, R | Failed]: ...
@overload
def pflat_map(*, on_error: Keep, **options: Unpack[Options]) -> _KeepFlatMap: ...
@overload
def pflat_map(
    f: Verb[T, Many[R]], source: Source[T], /, *, on_error: Later[Iterable[D]], **options: Unpack[Options]
) -> Stream[R | D]: ...
@overload
def pflat_map(
    f: Verb[T, Many[R]],
    source: Source[T],
    /,
    *,
    on_error: OnError[Iterable[D]] = "raise",
    **options: Unpack[Options],
) -> Stream[R | D]: ...
@overload
def pflat_map(
    f: Verb[T, Many[R]], /, *, on_error: Later[Iterable[D]], **options: Unpack[Options]
) -> Transformer[T, R | D]: ...
@overload
def pflat_map(
    f: Verb[T, Many[R]], /, *, on_error: OnError[Iterable[D]] = "raise", **options: Unpack[Options]
) -> Transformer[T, R | D]: ...
@overload
def pflat_map(*, on_error: Later[Iterable[D]], **options: Unpack[Options]) -> _FlatMap[D]: ...
@overload
def pflat_map(*, on_error: OnError[Iterable[D]] = "raise", **options: Unpack[Options]) -> _FlatMap[D]: ...
def pflat_map(f: Any = MISSING, source: Any = MISSING, /, *more: Any, **options: Any) -> Any:
    """Apply *f*, which returns an iterable, to each item, and give the elements.

        >>> pflat_map(str.split, ["to be", "or not"]) | list
        ['to', 'be', 'or', 'not']

    It is `toolz.mapcat` on workers. A generator that f returns is run where f runs, to its end; on kind ``"task"`` f
    may be an async generator too. All outputs of an item are in memory at once, so f should not return an endless
    iterable. Laziness, order, bounds, options and errors are those of `pmap`.
    """
    return curry(FLAT_MAP, f, source, more, options)


@overload
def peach(
    f: Verb[T, object], source: Source[T], /, *, on_error: Keep, **options: Unpack[Options]
) -> Stream[Failed]: ...
@overload
def peach(f: Verb[T, object], /, *, on_error: Keep, **options: Unpack[Options]) -> Transformer[T, Failed]: ...
@overload
def peach(*, on_error: Keep, **options: Unpack[Options]) -> _KeepEach: ...
@overload
def peach(
    f: Verb[T, object],
    source: Source[T],
    /,
    *,
    on_error: OnError[object] = "raise",
    **options: Unpack[Options],
) -> Stream[Never]: ...
@overload
def peach(
    f: Verb[T, object], /, *, on_error: OnError[object] = "raise", **options: Unpack[Options]
) -> Transformer[T, Never]: ...
@overload
def peach(*, on_error: OnError[object] = "raise", **options: Unpack[Options]) -> _Each: ...
def peach(f: Any = MISSING, source: Any = MISSING, /, *more: Any, **options: Any) -> Any:
    """Call *f* for each item and give nothing out.

        >>> seen = []
        >>> peach(seen.append, [1, 2, 3], workers=1) | list
        []
        >>> seen
        [1, 2, 3]

    Nothing runs until the stream is consumed, by `run` for instance. Laziness, bounds, options and errors are those
    of `pmap`.
    """
    return curry(EACH, f, source, more, options)


def _show_options(kernel: Kernel, *verbs: Any) -> None:
    """Have `help` and completion show the options: derived from `Options`, as a second list would go stale."""
    shown = signature_with({}, kernel)
    for verb in verbs:
        verb.__signature__ = shown


_show_options(MAP, pmap, pfilter, pflat_map, peach)


@overload
def batch(
    n: float, source: Source[T], *, within: float | None = None, weight: Callable[[T], float] | None = None
) -> Stream[list[T]]: ...
@overload
def batch(
    n: float, *, within: float | None = None, weight: Callable[[T], float]
) -> Transformer[T, list[T]]: ...
@overload
def batch(n: float, *, within: float | None = None, weight: None = None) -> Transformer[Any, list[Any]]: ...
@overload
def batch(*, within: float | None = None, weight: Callable[[Any], float] | None = None) -> _Batch: ...
def batch(
    n: Any = MISSING,
    source: Any = MISSING,
    *more: Any,
    within: float | None = None,
    weight: Callable[[Any], float] | None = None,
) -> Any:
    """Give the items in lists of *n*, the last one shorter.

        >>> batch(2, "abcde") | list
        [['a', 'b'], ['c', 'd'], ['e']]
        >>> pmap(abs, [-1, 2, -3], kind="thread") | batch(2) | pmap(sum, kind="process") | list
        [3, 3]

    It takes the data last, as `pmap` does: ``batch(n, source)``, ``batch(n)(source)`` and ``source | batch(n)`` are the
    same. It is lazy, keeps the order that it finds, and needs no worker. A full batch goes out at once.

    *within*: seconds, None (the default) or a number greater than 0. No batch is open for longer, counted from when
    its first item came. So a slow source does not keep the items that are there.

    *weight*: ``weight(item)`` is a number of at least 0, and a batch holds items of a total weight of at most *n*. An
    item that is heavier goes alone. It is called in the thread that iterates the source of the batches.

        >>> batch(5, ["to", "be", "or", "not", "another"], weight=len) | list
        [['to', 'be'], ['or', 'not'], ['another']]

    What is open goes out at the end, and before an error of what is upstream. It holds less than *n* items itself; or,
    with *weight*, a batch and what has come for the next one. The bounds of the stages beside it stay as they are: one
    of them may hold fewer items than a batch does. To the stage after it, a batch is one item.
    """
    return curry(BATCH, n, source, more, checked("batch", {"within": within, "weight": weight}))


@overload
def divert(sink: Callable[[Any], object], source: Source[T | Failed], /) -> Stream[T]: ...
@overload
def divert(sink: Callable[[Any], object], source: Source[T | D], /, *, where: type[D]) -> Stream[T]: ...
@overload
def divert(
    sink: Callable[[Any], object],
    source: Source[T],
    /,
    *,
    where: tuple[type, ...] | Callable[[Any], object] | None = None,
) -> Stream[T]: ...
@overload
def divert(
    sink: Callable[[Any], object],
    /,
    *,
    where: type | tuple[type, ...] | Callable[[Any], object] | None = None,
) -> Transformer[Any, Any]: ...
@overload
def divert(*, where: type | tuple[type, ...] | Callable[[Any], object] | None = None) -> _Divert: ...
def divert(sink: Any = MISSING, source: Any = MISSING, /, *more: Any, where: Any = None) -> Any:
    """Hand each item that *where* picks to *sink*, and give all others.

        >>> dead = []
        >>> pmap(lambda x: 1 / x, [4, 0, 2], on_error="keep") | divert(dead.append) | list
        [0.25, 0.5]
        >>> dead[0].item
        0

    It takes the data last, as `pmap` does: ``divert(sink, source)``, ``divert(sink)(source)``,
    ``divert(where=...)(sink)(source)`` and ``source | divert(sink)`` are the same. It is lazy, and keeps the order.

    *where* is a class, a tuple of classes, or a function of an item that says whether this goes to the sink. Default
    `Failed`.

    ``sink(item)`` runs in the thread that iterates the outputs of this: put it last for your own thread. It needs no
    worker. An error of it ends the stream.
    """
    return curry(DIVERT, sink, source, more, checked("divert", {"where": where}))


_show_options(DIVERT, divert)


def ordered(stream: Source[T], /) -> Stream[T]:
    """Give the outputs of *stream* in the order of its source.

        >>> pmap(abs, [-1, 2, -3], ordered=False) | ordered | list
        [1, 2, 3]

    It rewrites the stages that *stream* is made of, back to its source or to the last iterator that is not fstream's:
    each of them gives its outputs in order, within its own bounds. What is no `Stream` has its order already. Lazy.

    Raises `RuntimeError` if the stream has started, as its order is lost by then.
    """
    check_source(stream)
    return stream.in_order() if isinstance(stream, Stream) else Stream.of(stream)


def merge(*sources: Source[T]) -> Stream[T]:
    """Give the outputs of several *sources* as they come.

        >>> sorted(merge([1, 3], pmap(abs, [-2, -4])))
        [1, 2, 3, 4]

    Each source keeps its own order; between them there is none. Each is iterated in a thread of its own (an async one
    in a task), lazily: two items of each are held at first, and up to 4,096 in all while the consumer waits for them.
    A stage behind it with a *maxsize* below the number of sources asks no more than so many of them at a time: where
    those are silent, others wait. The first error closes all sources and is raised.
    """
    _check_sources("merge", sources)
    return Stream(tuple(sources), None)


def run(*streams: Source[object]) -> None:
    """Consume *streams*, all at once, for what they do rather than for what they give.

        >>> seen = []
        >>> run(peach(seen.append, [1, 2]), peach(seen.append, [3]))
        >>> sorted(seen)
        [1, 2, 3]

    It returns when all have ended. The first error ends all of them and is raised.
    """
    _check_sources("run", streams)
    only = streams[0] if len(streams) == 1 else None
    deque(only if isinstance(only, Iterable) else merge(*streams), maxlen=0)


def _check_sources(verb: str, sources: tuple[object, ...]) -> None:
    for source in sources:
        if isinstance(source, list | tuple) and source and isinstance(source[0], Iterator | AsyncIterator):
            raise TypeError(
                f"{verb}() takes each source as an argument of its own, got a {type(source).__name__} of them: "
                f"write {verb}(*sources)"
            )
        check_source(source)


def star(f: Callable[..., R], /) -> _Starred[R]:
    """Make of ``f(a, b)`` a function of a pair, for a source of pairs.

        >>> from operator import sub
        >>> pmap(star(sub), [(3, 1), (5, 2)]) | list
        [2, 3]

    ``star(f)(args, *more, **named)`` is ``f(*args, *more, **named)``, for any number of *args*. So f may also take
    resources, ``worker_info`` and ``element_index``. The new function is a value: it is picklable if f is, and
    ``star(f) == star(f)``. It has f's name, and is a coroutine function if f is.
    """
    return _Star(f)


async def _spread_later(f: Callable[..., Any], args: Iterable[Any], /, *more: Any, **named: Any) -> Any:
    return await f(*args, *more, **named)


async def _spread_each(f: Callable[..., Any], args: Iterable[Any], /, *more: Any, **named: Any) -> Any:
    async for output in f(*args, *more, **named):
        yield output


def _spread(f: Callable[..., Any], args: Iterable[Any], /, *more: Any, **named: Any) -> Any:
    return f(*args, *more, **named)


def _signature_of(star: _Star) -> Signature:
    """What may go by name is what f declares: how much of that the first argument brings is not known here."""
    return Signature(
        [Parameter("__args", Parameter.POSITIONAL_ONLY), Parameter("__more", Parameter.VAR_POSITIONAL)]
        + [Parameter(name, Parameter.KEYWORD_ONLY, default=MISSING) for name in sorted(declared(star.f))]
    )


class _Star(partial[Any]):
    """What `star` makes. A `partial`, as `inspect` asks those whether they are coroutine functions, on each Python."""

    __signature__ = Signed(_signature_of)

    def __new__(cls, f: Callable[..., Any]) -> Self:
        if not callable(f):
            raise TypeError(f"f must be callable, got {type(f).__name__}")
        if isasyncgenfunction(f) or isasyncgenfunction(getattr(f, "__call__", None)):  # noqa: B004
            return super().__new__(cls, _spread_each, f)
        return super().__new__(cls, _spread_later if is_async(f) else _spread, f)

    @property
    def f(self) -> Callable[..., Any]:
        return self.args[0]  # type: ignore[no-any-return]

    @property
    def __name__(self) -> str:
        return name_of(self.f)

    def __repr__(self) -> str:
        return f"star({name_of(self.f)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _Star, (self.f,)

    def __eq__(self, other: object) -> bool:
        return self.f == other.f if type(other) is _Star else NotImplemented

    def __hash__(self) -> int:
        return hash((_Star, hashable(self.f)))
