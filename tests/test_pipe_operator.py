"""source | transformer, where the source has a | of its own: it works, or an error says what to write."""

from __future__ import annotations

from collections import ChainMap, Counter, OrderedDict, UserDict, deque
from collections.abc import Callable, Iterable, Iterator, KeysView, Set
from types import MappingProxyType
from typing import Any

import pytest

from fstream import Transformer, pfilter, pmap
from tests.functions import identity

TRANSFORMER: Transformer[Any, Any] = pmap(identity, kind="sync")


class Members(Set[int]):
    """A set of one's own: its | is that of `collections.abc.Set`, which takes any Iterable."""

    def __init__(self, items: Iterable[int]) -> None:
        self.items = list(items)

    def __contains__(self, item: object) -> bool:
        return item in self.items

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Column:
    """As a numpy array: its operators go by elements, unless the other side has no ``__array_ufunc__``."""

    def __init__(self, items: list[int]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)

    def __or__(self, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", self) is None:
            return NotImplemented
        return [item | other for item in self.items]


class Frame(Column):
    """As a pandas object: its operators go by elements, unless the other side has the higher priority."""

    __pandas_priority__ = 4000

    def __or__(self, other: Any) -> Any:
        if getattr(other, "__pandas_priority__", 0) > self.__pandas_priority__:
            return NotImplemented
        return [item | other for item in self.items]


SOURCES: dict[str, Any] = {
    "dict": {1: 2},
    "dict.values": {1: 2}.values(),
    "OrderedDict": OrderedDict({1: 2}),
    "UserDict": UserDict({1: 2}),
    "UserDict.keys": UserDict({1: 2}).keys(),
    "ChainMap": ChainMap({1: 2}),
    "ChainMap.items": ChainMap({1: 2}).items(),
    "mappingproxy": MappingProxyType({1: 2}),
    "Counter": Counter("a"),
    "set": {1},
    "frozenset": frozenset({1}),
    "KeysView": KeysView({1: 2}),
    "abc.Set": Members([1, 2]),
    "like an array": Column([1, 2]),
    "like pandas": Frame([1, 2]),
    "list": [1],
    "str": "ab",
    "bytes": b"ab",
    "range": range(2),
    "deque": deque([1]),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_bar_is_a_call(source: Any):
    for transformer in (TRANSFORMER, TRANSFORMER | pfilter(lambda _: True, kind="sync")):
        assert list(source | transformer) == list(transformer(source)) == list(source)


VIEWS: dict[str, Any] = {
    "dict.keys": {1: 2}.keys(),
    "dict.items": {1: 2}.items(),
    "OrderedDict.keys": OrderedDict({1: 2}).keys(),
    "mappingproxy.items": MappingProxyType({1: 2}).items(),
}


@pytest.mark.parametrize("source", VIEWS.values(), ids=VIEWS)
def test_a_view_of_a_dict_says_what_to_write(source: Any):
    with pytest.raises(
        TypeError, match=r"write pmap\(f, source\).* in place of source \| pmap\(f\).* dict view"
    ):
        source | TRANSFORMER
    assert list(pmap(identity, source, kind="sync")) == list(source)


def test_the_error_names_the_combinator():
    with pytest.raises(TypeError, match=r"write pfilter\(f, source\)"):
        {1: 2}.keys() | pfilter(identity)
    with pytest.raises(TypeError, match=r"write pfilter\(f, source\)"):
        {1: 2}.keys() | (pfilter(identity) | pmap(identity))


@pytest.mark.parametrize("iterate", [list, iter, sum, lambda items: 1 in items, lambda items: [*items]])
def test_a_transformer_is_not_iterable(iterate: Callable[[Any], Any]):
    assert not isinstance(TRANSFORMER, Iterable)
    with pytest.raises(TypeError, match=r"write pmap\(f, source\)"):
        next(iterate(TRANSFORMER))


def real(module: str, make: Callable[[Any], Any]) -> Any:
    return pytest.param(module, make, id=f"{module}-{make.__code__.co_names[0]}")


@pytest.mark.parametrize(
    ("module", "make"),
    [
        real("numpy", lambda numpy: numpy.array([1, 2])),
        real("pandas", lambda pandas: pandas.Series([1, 2])),
        real("pandas", lambda pandas: pandas.Index([1, 2])),
        real("pandas", lambda pandas: pandas.DataFrame({"a": [1, 2]})),
        real("polars", lambda polars: polars.DataFrame({"a": [1, 2]}).iter_rows()),
        real("pyarrow", lambda pyarrow: pyarrow.array([1, 2])),
    ],
)
def test_tables_and_arrays(module: str, make: Callable[[Any], Any]):
    library = pytest.importorskip(module)
    assert list(make(library) | TRANSFORMER) == list(make(library))


def test_a_polars_series_raises_by_itself_and_can_be_passed():
    polars = pytest.importorskip("polars")
    with pytest.raises(polars.exceptions.PolarsError):
        polars.Series([1, 2]) | TRANSFORMER
    assert list(pmap(identity, polars.Series([1, 2]), kind="sync")) == [1, 2]
