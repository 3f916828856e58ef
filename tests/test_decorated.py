"""Functions that a decorator has made, on processes: of a script, of a notebook's cells, of a function, of a module."""

from __future__ import annotations

import copyreg
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from textwrap import indent
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from fstream import NotPicklable, pmap
from fstream._workers.process.wire import dumps, loads
from tests import decorated
from tests.scripts import printed, run_script

pytestmark = pytest.mark.slow

ITEMS = [3, 1, 3]

#: What a script defines: functions of an int, by what made them.
DEFINITIONS = """\
import contextlib, functools, typing
from functools import cache, cached_property, lru_cache, partial, partialmethod, singledispatch, singledispatchmethod
from functools import wraps
import toolz
from toolz import curry, memoize

def logs(f):
    @wraps(f)
    def wrapper(*args):
        return f(*args)
    return wrapper

def plain(x): return x + 1

@lru_cache
def least(x): return x + 1

@lru_cache(maxsize=2, typed=True)
def bounded(x): return x + 2

@cache
def unbounded(x): return x + 3

@cache
def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

@singledispatch
def shown(x): return "?"

@shown.register
def _(x: int): return "int", [shown(part) for part in (str(x), x / 2)]

@shown.register(str)
def _(x): return f"str {x}"

@curry
def scaled(factor, x): return factor * x

@curry
def added(a, b, x): return a + b + x

@memoize
def memoized(x): return x + 4

@logs
@cache
def logged_cache(x): return x + 5

@cache
@logs
def cached_log(x): return x + 6

@logs
@singledispatch
def logged_dispatch(x): return x + 7

@cache
@singledispatch
def cached_dispatch(x): return x + 8

@singledispatch
@cache
def dispatched_cache(x): return x + 9

@curry
@cache
def curried_cache(factor, x): return factor * x

@cache
@curry
def cached_curry(factor, x): return factor * x

@memoize
@cache
def memoized_cache(x): return x + 10

@contextlib.contextmanager
def opened(x): yield x + 11

@cache
@partial
def cached_partial(x): return x + 12

class Shape:
    def __init__(self, side=2): self.side = side

    @cache
    def cached(self, x): return self.side, x

    @cached_property
    def area(self): return self.side ** 2

    @singledispatchmethod
    def dispatched(self, x): return "?"

    @dispatched.register
    def _(self, x: int): return "int", self.side

    @singledispatchmethod
    @classmethod
    def of(cls, x): return cls.__name__, x

    fixed = partialmethod(lambda self, a, x: (self.side, a, x), 5)

    @staticmethod
    @cache
    def static(x): return x + 13

    @classmethod
    def made(cls, x): return cls(x).area

    @property
    @cache
    def kept(self): return self.side

    @logs
    def named(self, x): return super().__repr__() != "", x

    @contextlib.contextmanager
    def lent(self, x): yield self.side, x

UserId = typing.NewType("UserId", int)

def with_context(x):
    with opened(x) as a, Shape().lent(x) as b:
        return a, b

def with_default(x, f=unbounded): return f(x)

def all_of_shape(x):
    shape = Shape()
    shape.dispatched(x)
    return shape.area, shape.kept, shape.named(x), Shape.of(x), shape.made(x), shape.static(x), UserId(x)

def enclosed():
    @cache
    def inner(x): return x if x < 2 else inner(x - 1) + 1
    return lambda x: inner(x)

shown(1)  # it has met classes now
CASES = {
    "lru_cache": least, "lru_cache(maxsize)": bounded, "cache": unbounded, "recursive cache": fibonacci,
    "singledispatch": shown, "dispatch": lambda x: shown.dispatch(type(x))(x),
    "registry": lambda x: len(shown.registry),
    "curry": scaled(10), "curry later": lambda x: scaled(10)(x), "curry twice": added(1)(2),
    "curry of a curry": curry(added)(1, 2),
    "curry of plain": curry(plain), "memoize": memoized, "wraps of cache": logged_cache, "cache of wraps": cached_log,
    "__wrapped__": lambda x: (logged_cache.__wrapped__ is not None, logged_cache.__wrapped__.__wrapped__(x)),
    "wraps of singledispatch": logged_dispatch, "cache of singledispatch": cached_dispatch,
    "singledispatch of cache": dispatched_cache, "curry of cache": curried_cache(2),
    "cache of curry": partial(cached_curry, 3),
    "memoize of cache": memoized_cache, "contextmanager": with_context, "cache of partial": cached_partial,
    "partial of cache": partial(least), "default": with_default, "closure": enclosed(),
    "cached method": Shape().cached, "cached method of a class": lambda x: Shape(x).cached(x),
    "partialmethod": Shape().fixed,
    "singledispatchmethod": Shape().dispatched, "staticmethod": Shape.static, "classmethod": Shape.made,
    "class": all_of_shape, "compose": toolz.compose(least, scaled(2)), "juxt": toolz.juxt(unbounded, shown),
    "excepts": toolz.excepts(ValueError, least), "cache of a builtin": lru_cache(abs),
    "local cache": cache(lambda x: -x),
    "parameters": lambda x: bounded.cache_parameters(),
}
"""


def executed(source: str, **namespace: Any) -> dict[str, Any]:
    exec(source, namespace)
    return namespace


def of_a_script() -> dict[str, Callable[[int], Any]]:
    return executed(DEFINITIONS, __name__="__main__")["CASES"]  # type: ignore[no-any-return]


def of_a_namespace() -> dict[str, Callable[[int], Any]]:
    return executed(DEFINITIONS)["CASES"]  # type: ignore[no-any-return]


def of_a_function() -> dict[str, Callable[[int], Any]]:
    source = f"def make():\n{indent(DEFINITIONS, '    ')}\n    return CASES"
    return executed(source, __name__=__name__)["make"]()  # type: ignore[no-any-return]


MADE = {"script": of_a_script(), "namespace": of_a_namespace(), "function": of_a_function()}


@pytest.mark.parametrize("where", MADE)
@pytest.mark.parametrize("what", MADE["script"])
def test_a_decorated_function_gives_on_a_process_what_it_gives_here(where: str, what: str) -> None:
    f = MADE[where][what]
    assert list(pmap(f, ITEMS, kind="process", workers=1)) == list(map(f, ITEMS))


def test_what_a_script_has_decorated_works_from_the_script_itself(tmp_path: Path) -> None:
    script = f"""
from fstream import pmap
{DEFINITIONS}
for what, f in CASES.items():
    assert list(pmap(f, {ITEMS}, kind="process", workers=1)) == list(map(f, {ITEMS})), what
print(len(CASES))
"""
    assert printed(run_script(tmp_path, script)) == str(len(MADE["script"]))


def test_a_cache_lasts_for_as_long_as_its_stage(tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    @functools.cache
    def slowly(x: int) -> int:
        with calls.open("a") as file:
            file.write(f"{x}\n")
        return -x

    items = [n % 5 for n in range(200)]
    stream = pmap(
        slowly, items, kind="process", workers=1, max_items_per_worker=None, maxsize=3
    )  # many spans
    assert list(stream) == [-x for x in items]
    assert calls.read_text().split() == list("01234")
    assert slowly.cache_info().currsize == 0  # another cache than this one


def test_what_a_worker_can_import_goes_by_its_name() -> None:
    for f in (
        decorated.cached,
        decorated.dispatched,
        decorated.curried,
        decorated.Cached.method,
        decorated.Name,
    ):
        assert loads(dumps(f)) is f
    assert loads(dumps(decorated.curried(2)))(3) == 6
    assert len(dumps(decorated.curried(2))[0]) < 400
    by_value = decorated.curried.func.__code__.co_code
    assert by_value not in dumps([decorated.curried(2), decorated.cached])[0]
    assert list(pmap(decorated.cached, ITEMS, kind="process")) == list(map(decorated.cached, ITEMS))


def test_items_and_outputs_may_be_decorated_functions() -> None:
    @functools.cache
    def negative(x: int) -> int:
        return -x

    (back,) = pmap(lambda f: functools.cache(lambda x: f(f(x) - 1)), [negative], kind="process")
    assert back(3) == 4


def test_the_classes_that_a_dispatched_function_has_met_stay_here() -> None:
    class Met:
        lock = threading.Lock()

    shown = functools.singledispatch(lambda _: "?")
    assert shown(Met()) == "?"
    assert list(pmap(shown, ITEMS, kind="process")) == ["?"] * 3


def test_what_a_cached_function_really_calls_is_not_guessed() -> None:
    cached = functools.wraps(str)(functools.cache(lambda x: -x))
    with pytest.raises(NotPicklable, match="its __wrapped__ is not the function that it caches"):
        list(pmap(cached, ITEMS, kind="process"))


def test_weak_dicts_keep_what_they_hold() -> None:
    class Key:
        pass

    key = Key()
    weak, kept = loads(dumps((WeakKeyDictionary({key: 2}), key)))
    assert weak[kept] == 2


def test_what_is_registered_by_hand_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, WeakKeyDictionary, lambda weak: (len, (list(weak),)))  # type: ignore[misc]
    assert loads(dumps(WeakKeyDictionary())) == 0
