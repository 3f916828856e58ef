"""The public verbs: what a pipeline is written with."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Concatenate, Never, Protocol, TypeAlias, TypeVar, Unpack, overload

from fstream._kernels import EACH, FILTER, FLAT_MAP, MAP
from fstream._stage import MISSING, Options, Transformer, check_source, curry
from fstream.stream import Stream

__all__ = ["merge", "ordered", "peach", "pfilter", "pflat_map", "pmap", "run"]

T = TypeVar("T")
R = TypeVar("R")

Source: TypeAlias = Iterable[T] | AsyncIterable[T]

#: f may take more than the item: its worker's resources, ``worker_info``, ``element_index``.
Verb: TypeAlias = Callable[[T], R] | Callable[Concatenate[T, ...], R]

Many: TypeAlias = AsyncIterable[R] | Awaitable[Iterable[R]] | Awaitable[AsyncIterable[R]] | Iterable[R]


class _Map(Protocol):
    @overload
    def __call__(self, f: Verb[T, Awaitable[R]], /) -> Transformer[T, R]: ...
    @overload
    def __call__(self, f: Verb[T, R], /) -> Transformer[T, R]: ...


class _Filter(Protocol):
    def __call__(self, f: Verb[T, object], /) -> Transformer[T, T]: ...


class _FlatMap(Protocol):
    def __call__(self, f: Verb[T, Many[R]], /) -> Transformer[T, R]: ...


class _Each(Protocol):
    def __call__(self, f: Verb[T, object], /) -> Transformer[T, Never]: ...


@overload
def pmap(f: Verb[T, Awaitable[R]], source: Source[T], /, **options: Unpack[Options]) -> Stream[R]: ...
@overload
def pmap(f: Verb[T, R], source: Source[T], /, **options: Unpack[Options]) -> Stream[R]: ...
@overload
def pmap(f: Verb[T, Awaitable[R]], /, **options: Unpack[Options]) -> Transformer[T, R]: ...
@overload
def pmap(f: Verb[T, R], /, **options: Unpack[Options]) -> Transformer[T, R]: ...
@overload
def pmap(**options: Unpack[Options]) -> _Map: ...
def pmap(f: Any = MISSING, source: Any = MISSING, /, **options: Any) -> Any:
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
    function), or ``"sync"`` for no worker at all, f running where the outputs are taken.

    *workers* is how many items are worked on at once: by default ``min(32, cpus + 4)`` threads, as many processes as
    this process may use CPUs, 100 tasks. Neighbouring process stages that leave it, *maxsize*, *timeout*, *retries* and
    *on_error* at their defaults share their workers.

    *maxsize* is how many items the stage may hold: pulled, but not yet given out. ``None`` (the default) lets it size
    itself: twice *workers* at first, more only while both workers and taker wait for it. ``0`` is no bound.

    *ordered* False gives outputs as they complete. Default True.

    *timeout* is in seconds, for one item, from the start of f. Beyond it the item fails with `TimeoutError`; its
    process is killed, its task cancelled, its thread left to itself. Default None: no limit.

    *retries* is how many more times an item is tried that failed, ran over its time, or whose worker died; each try has
    the whole *timeout*. Default 0.

    *on_error* is what becomes of an item that failed for good: ``"raise"`` (the default), ``"skip"``, or a function
    ``g(error, item)`` whose result stands for f's; it runs in this process and may return `SKIP`, or raise.

        >>> pipe([1, 0], pmap(lambda x: 1 / x, on_error=lambda error, item: type(error).__name__), list)
        [1.0, 'ZeroDivisionError']

    *on_start* runs once in each worker before its first item and returns its resources: None, one object, a tuple of
    them, or a dict. f and *on_done* are given them as further arguments, those of a dict by name.

    *on_done* runs once in each worker that started, at its end, as ``on_done(stage_status, *resources)``.

    *name* is what errors call the stage; f's name by default.

    *max_items_per_worker* replaces a worker process after so many items, against C libraries that leak. Default None.

    f, *on_start* and *on_done* may have a parameter ``worker_info`` (its ``index`` is in ``range(workers)``), and f a
    parameter ``element_index``, the item's position.

    An option that is wrong raises `TypeError` or `ValueError` here. An error of f is raised by the stream, after the
    outputs of all items before; a worker process that ends in f raises `WorkerDied`; a function, item or output that
    cannot be sent to a process or back raises `NotPicklable`.

    Stages of workers linked by queues, and *on_start* and *on_done*, are ideas of pypeln.
    """
    return curry(MAP, f, source, options)


@overload
def pfilter(f: Verb[T, object], source: Source[T], /, **options: Unpack[Options]) -> Stream[T]: ...
@overload
def pfilter(f: Verb[T, object], /, **options: Unpack[Options]) -> Transformer[T, T]: ...
@overload
def pfilter(**options: Unpack[Options]) -> _Filter: ...
def pfilter(f: Any = MISSING, source: Any = MISSING, /, **options: Any) -> Any:
    """Keep the items for which *f* gives something true.

        >>> pfilter(str.isupper, ["a", "B", "C"]) | list
        ['B', 'C']

    It is `filter` on workers. *on_error*'s result stands for f's, so a true one keeps the item. Laziness, order,
    bounds, options and errors are those of `pmap`.
    """
    return curry(FILTER, f, source, options)


@overload
def pflat_map(f: Verb[T, Many[R]], source: Source[T], /, **options: Unpack[Options]) -> Stream[R]: ...
@overload
def pflat_map(f: Verb[T, Many[R]], /, **options: Unpack[Options]) -> Transformer[T, R]: ...
@overload
def pflat_map(**options: Unpack[Options]) -> _FlatMap: ...
def pflat_map(f: Any = MISSING, source: Any = MISSING, /, **options: Any) -> Any:
    """Apply *f* to each item and give out all that the iterable holds which it returns.

        >>> pflat_map(str.split, ["to be", "or not"]) | list
        ['to', 'be', 'or', 'not']

    It is `toolz.mapcat` on workers. A generator that f returns is run where f runs, to its end; on kind ``"task"`` f
    may be an async generator too. All outputs of an item are in memory at once, so f should not return an endless
    iterable. Laziness, order, bounds, options and errors are those of `pmap`.
    """
    return curry(FLAT_MAP, f, source, options)


@overload
def peach(f: Verb[T, object], source: Source[T], /, **options: Unpack[Options]) -> Stream[Never]: ...
@overload
def peach(f: Verb[T, object], /, **options: Unpack[Options]) -> Transformer[T, Never]: ...
@overload
def peach(**options: Unpack[Options]) -> _Each: ...
def peach(f: Any = MISSING, source: Any = MISSING, /, **options: Any) -> Any:
    """Call *f* for each item and give nothing out.

        >>> seen = []
        >>> peach(seen.append, [1, 2, 3], workers=1) | list
        []
        >>> seen
        [1, 2, 3]

    Nothing runs until the stream is consumed, by `run` for instance. Laziness, bounds, options and errors are those
    of `pmap`.
    """
    return curry(EACH, f, source, options)


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

    Each source keeps its own order. Each is iterated in a thread of its own (an async one in a task), lazily and a few
    items ahead; all are closed when one raises.
    """
    for source in sources:
        check_source(source)
    return Stream(tuple(sources), None)


def run(*streams: Source[object]) -> None:
    """Consume *streams*, all at once, for what they do rather than for what they give.

        >>> seen = []
        >>> run(peach(seen.append, [1, 2]), peach(seen.append, [3]))
        >>> sorted(seen)
        [1, 2, 3]

    The first error ends all of them and is raised.
    """
    only = streams[0] if len(streams) == 1 else None
    deque(only if isinstance(only, Iterable) else merge(*streams), maxlen=0)
