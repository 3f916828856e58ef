"""A Stream is a generator, whatever its source."""

from __future__ import annotations

import array
import collections.abc
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from itertools import count, islice
from typing import Any

import pytest
import toolz

from fstream import SKIP, Stream, merge, ordered, pmap
from fstream._engine.run import Run
from fstream._workers.opening import OPEN, open_run
from tests.functions import COMBINATORS, identity, square, suited
from tests.gates import PATIENCE
from tests.sources import Source


def squares(kind: str, items: Iterable[int] = range(5)) -> Stream[int]:
    return pmap(suited(square, kind), items, kind=kind, workers=2)


# A generator


@pytest.mark.parametrize("combinator", COMBINATORS, ids=lambda each: each.__name__)
def test_a_stream_is_a_generator(combinator: Callable[..., Stream[Any]], kind: str):
    stream = combinator(square, [], kind=kind)
    assert isinstance(stream, Stream)
    assert isinstance(stream, collections.abc.Generator)
    assert iter(stream) is stream
    stream.close()


def test_merge_and_ordered_give_streams(kind: str):
    for stream in (merge(squares(kind)), ordered(squares(kind))):
        assert isinstance(stream, Stream)
        assert list(stream) == [0, 1, 4, 9, 16]


def test_next(kind: str):
    stream = squares(kind)
    assert [next(stream) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert next(stream, "end") == "end"


def test_send_none_is_next(kind: str):
    stream = squares(kind)
    assert [stream.send(None), next(stream), stream.send(None)] == [0, 1, 4]
    stream.close()


def test_stop_iteration_for_ever_after_exhaustion(kind: str):
    stream = squares(kind)
    assert list(stream) == [0, 1, 4, 9, 16]
    for advance in (next, lambda stream: stream.send(None)) * 3:
        with pytest.raises(StopIteration):
            advance(stream)
    assert list(stream) == []


def test_stop_iteration_for_ever_after_close(kind: str):
    stream = squares(kind, count())
    assert next(stream) == 0
    stream.close()
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(stream)
    stream.close()


def test_close_before_the_start(kind: str):
    source = Source(range(5))
    stream = squares(kind, source)
    stream.close()
    assert list(stream) == []
    assert source.pulled == 0


def test_close_while_another_thread_starts_the_stream(concurrent_kind: str):
    def open_and_close(*args: Any) -> Run:
        stream.close()  # as if by another thread, at the worst moment
        return open_run(*args)

    def outputs() -> list[int]:
        OPEN.set(open_and_close)
        return list(stream)

    source = Source(count())
    stream = squares(concurrent_kind, source)
    assert copy_context().run(outputs) == []
    assert source.pulled == 0 or source.closed.wait(PATIENCE)


def test_close_after_the_end(kind: str):
    stream = squares(kind)
    assert list(stream) == [0, 1, 4, 9, 16]
    stream.close()
    stream.close()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_throw_raises_at_the_caller_and_ends_the_stream(kind: str, taken: int):
    stream = squares(kind)
    assert len(list(islice(stream, taken))) == taken
    error = LookupError("mine", 3)
    with pytest.raises(LookupError) as caught:
        stream.throw(error)
    assert caught.value is error
    assert list(stream) == []


def test_throw_generator_exit(kind: str):
    stream = squares(kind, count())
    assert next(stream) == 0
    with pytest.raises(GeneratorExit):
        stream.throw(GeneratorExit)
    assert next(stream, "end") == "end"


def test_a_stream_is_its_own_context(kind: str):
    with squares(kind, count()) as stream:
        assert isinstance(stream, Stream)
        assert next(stream) == 0
    assert next(stream, "end") == "end"


def test_leaving_the_context_lets_errors_through(kind: str):
    with pytest.raises(LookupError, match="mine"), squares(kind) as stream:
        next(stream)
        raise LookupError("mine")
    assert next(stream, "end") == "end"


def test_a_context_that_consumes_all(kind: str):
    with squares(kind) as stream:
        assert list(stream) == [0, 1, 4, 9, 16]


def test_outputs_that_one_thread_has_not_taken_are_the_next_ones_of_another():
    stream = pmap(abs, range(50), kind="thread")
    lists = stream._outputs  # what `chain` asks for more, in both of two threads that see the same end
    first = next(lists)
    assert next(lists) is first
    assert [*first, *stream] == list(range(50))


def test_a_stream_that_another_one_takes_from_cannot_be_taken(concurrent_kind: str):
    source = pmap(suited(identity, concurrent_kind), range(50), kind=concurrent_kind)
    with pmap(suited(identity, concurrent_kind), source, kind=concurrent_kind) as stream:
        assert next(stream) == 0
        with pytest.raises(RuntimeError, match="source of another one"):
            next(source)
        assert list(stream) == list(range(1, 50))
        assert list(source) == []


def test_closing_a_stream_closes_the_one_that_takes_from_it(concurrent_kind: str):
    source = pmap(suited(identity, concurrent_kind), count(), kind=concurrent_kind)
    stream = pmap(suited(identity, concurrent_kind), source, kind=concurrent_kind)
    assert next(stream) == 0
    source.close()
    assert list(stream) == []


def test_yield_from(kind: str):
    def twice() -> Iterator[int]:
        yield from squares(kind)
        yield from squares(kind)

    assert list(twice()) == [0, 1, 4, 9, 16] * 2


def test_closing_a_generator_that_delegates_closes_the_stream(kind: str):
    source = Source(count())

    def delegating() -> Iterator[int]:
        yield from squares(kind, source)

    generator = delegating()
    assert next(generator) == 0
    generator.close()
    assert source.closed.wait(20)


def test_a_stream_goes_wherever_an_iterator_goes(kind: str):
    assert sum(squares(kind)) == 30
    assert dict(zip("abcde", squares(kind), strict=True)) == {"a": 0, "b": 1, "c": 4, "d": 9, "e": 16}
    first, *rest = squares(kind)
    assert (first, rest) == (0, [1, 4, 9, 16])
    assert 9 in squares(kind)
    assert max(enumerate(squares(kind))) == (4, 16)


# The bar


def test_a_bar_passes_the_stream_on(kind: str):
    assert squares(kind) | list == [0, 1, 4, 9, 16]
    assert squares(kind) | sum == 30
    assert squares(kind) | toolz.last == 16
    assert isinstance(squares(kind) | ordered, Stream)


def test_a_bar_passes_the_stream_itself(kind: str):
    stream = squares(kind)
    assert stream | (lambda given: given) is stream


def test_a_bar_into_nothing_callable(kind: str):
    with pytest.raises(TypeError):
        squares(kind) | 3


# Sources


class Indexed:
    """Iterable the old way: by position."""

    def __getitem__(self, position: int) -> int:
        if position == 3:
            raise IndexError(position)
        return position


class OnlyIterable:
    def __iter__(self) -> Iterator[int]:
        return iter((0, 1, 2))


SOURCES: dict[str, Callable[[], Iterable[Any]]] = {
    "list": lambda: [0, 1, 2],
    "tuple": lambda: (0, 1, 2),
    "range": lambda: range(3),
    "str": lambda: "abc",
    "bytes": lambda: b"abc",
    "dict": lambda: {"a": 1, "b": 2},
    "dict items": lambda: OrderedDict(a=1, b=2).items(),
    "set": lambda: {1, 2, 3},
    "frozenset": lambda: frozenset("abc"),
    "array": lambda: array.array("d", [0.5, 1.5]),
    "memoryview": lambda: memoryview(b"abc"),
    "deque": lambda: deque([0, 1, 2]),
    "generator": lambda: (number for number in range(3)),
    "iterator": lambda: iter([0, 1, 2]),
    "callable iterator": lambda: iter([3, 2, 1, 0].pop, 3),
    "map": lambda: map(square, range(3)),
    "zip": lambda: zip("ab", range(2), strict=True),
    "only __getitem__": Indexed,
    "only __iter__": OnlyIterable,
    "empty list": lambda: [],
    "empty generator": lambda: (number for number in range(0)),
    "one item": lambda: ["only"],
    "duplicates": lambda: [1, 1, 2, 1, 2, 2],
    "a stream": lambda: pmap(square, range(3), kind="thread"),
}


@pytest.mark.parametrize("make_source", SOURCES.values(), ids=SOURCES.keys())
def test_any_iterable_is_a_source(kind: str, make_source: Callable[[], Iterable[Any]]):
    for f in (identity, suited(identity, kind)):
        assert list(pmap(f, make_source(), kind=kind, workers=2)) == list(make_source())


def test_a_file_is_a_source_and_stays_open(kind: str, tmp_path):
    path = tmp_path / "lines"
    path.write_text("one\ntwo\n")
    with path.open() as lines:
        assert list(pmap(suited(str.strip, kind), lines, kind=kind)) == ["one", "two"]
        assert not lines.closed


def test_an_infinite_source(kind: str):
    assert list(toolz.take(5, squares(kind, count()))) == [0, 1, 4, 9, 16]


ODD_VALUES = [
    None,
    NotImplemented,
    Ellipsis,
    False,
    (),
    b"",
    ValueError("a value", 3),
    StopIteration(3),
    StopAsyncIteration(),
    GeneratorExit(),
    KeyboardInterrupt(),
    ValueError,
]


def described(value: object) -> object:
    """The value, or for an exception what makes it equal to another."""
    return (type(value), value.args) if isinstance(value, BaseException) else value


def test_no_value_is_special(kind: str, is_ordered: bool):
    items = ODD_VALUES * 3
    outputs = list(pmap(suited(identity, kind), items, kind=kind, workers=2, ordered=is_ordered))
    assert sorted(map(repr, map(described, outputs))) == sorted(map(repr, map(described, items)))
    if is_ordered:
        assert [described(output) for output in outputs] == [described(item) for item in items]


def test_skip_is_one_object_with_a_name(kind: str):
    assert "SKIP" in repr(SKIP)
    [item] = pmap(suited(lambda item: item[0] is SKIP, kind), [[SKIP]], kind=kind)
    assert item is True


def test_a_range_may_be_longer_than_len_can_say(kind: str):
    with squares(kind, range(10**30)) as stream:
        assert list(islice(stream, 5)) == [0, 1, 4, 9, 16]


def test_a_source_is_iterated_once(kind: str):
    class Once:
        times = 0

        def __iter__(self) -> Iterator[int]:
            self.times += 1
            return iter(range(5))

    once = Once()
    assert list(squares(kind, once)) == [0, 1, 4, 9, 16]
    assert once.times == 1
