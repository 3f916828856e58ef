"""A function that cannot be pickled: the error says which it was, and what in it is to blame."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any

import pytest

from fstream import NotPicklable, pmap
from tests.functions import identity

LOCK = threading.Lock()


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:")
    yield opened
    opened.close()


def message(f: Callable[..., Any] = identity, **options: Any) -> str:
    with pytest.raises(NotPicklable) as caught:
        list(pmap(f, [1], kind="process", name="f", **options))
    assert caught.value.__cause__ is not None
    return str(caught.value)


@pytest.mark.parametrize("role", ["f", "on_start", "on_done"])
def test_the_error_says_which_function_it_was_and_which_variable(role: str, connection: sqlite3.Connection):
    def function(*_: Any) -> None:
        connection.commit()

    told = message(function) if role == "f" else message(**{role: function})
    assert re.fullmatch(
        rf"stage 'f' \(process\): {role} cannot be pickled: "
        r"its variable 'connection' \(sqlite3.Connection\): cannot pickle 'sqlite3.Connection' object",
        told,
    )


def local(uses: Any) -> Callable[..., Any]:
    """A function of this test's own, which travels with its code."""
    return lambda item: (item, uses)


class Holder:
    def __init__(self, held: Any) -> None:
        self.held = held

    def method(self, item: Any) -> Any:
        return item

    def __call__(self, item: Any) -> Any:
        return item


def decorated(f: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(f)
    def wrapper(item: Any) -> Any:
        return f(item)

    return wrapper


def of_main(f: Any) -> Any:
    """The function as of a script: it travels with its code, and so with the globals that it uses."""
    f.__module__ = "__main__"
    return f


def with_defaults(item: Any, lock: Any = LOCK, *, other: Any = None) -> Any:
    return item


def with_keyword(item: Any, *, lock: Any = LOCK) -> Any:
    return item


def with_attribute(item: Any) -> Any:
    return item


with_attribute.lock = LOCK  # type: ignore[attr-defined]


def with_global(item: Any) -> Any:
    return [LOCK for _ in item]


@pytest.mark.parametrize(
    ("f", "blamed"),
    [
        pytest.param(local(LOCK), "variable 'uses'", id="variable"),
        pytest.param(local(local(LOCK)), "variable 'uses', its variable 'uses'", id="a function's"),
        pytest.param(local({"a": [1, LOCK]}), "variable 'uses', its value at 'a', its element 1", id="deep"),
        pytest.param(partial(identity, LOCK), "argument 0", id="argument"),
        pytest.param(partial(identity, lock=LOCK), "argument 'lock'", id="argument by name"),
        pytest.param(partial(local(LOCK)), "function, its variable 'uses'", id="function of a partial"),
        pytest.param(Holder(LOCK), "attribute 'held'", id="attribute"),
        pytest.param(Holder(LOCK).method, "object, its attribute 'held'", id="method"),
        pytest.param(decorated(local(LOCK)), "variable 'f', its variable 'uses'", id="decorated"),
        pytest.param(of_main(with_global), "global 'LOCK'", id="global"),
        pytest.param(of_main(with_defaults), "default 0", id="default"),
        pytest.param(of_main(with_keyword), "default 'lock'", id="default by name"),
        pytest.param(of_main(with_attribute), "attribute 'lock'", id="attribute of a function"),
    ],
)
def test_what_is_to_blame(f: Callable[..., Any], blamed: str):
    assert message(f) == (
        f"stage 'f' (process): f cannot be pickled: its {blamed} (_thread.lock): cannot pickle '_thread.lock' object"
    )


def test_of_stages_that_run_as_one_the_one_is_named(connection: sqlite3.Connection):
    first = pmap(identity, kind="process", name="first")
    second = pmap(local(connection), kind="process", name="second")
    with pytest.raises(
        NotPicklable, match=r"^stage 'second' \(process\): f cannot be pickled: its variable 'uses'"
    ):
        list([1] | first | second)


class Circle:
    def __init__(self) -> None:
        self.itself = self

    def __call__(self, item: Any) -> Any:
        return item

    def __reduce__(self) -> Any:
        raise TypeError("not me")


def test_what_refers_to_itself():
    assert message(Circle()) == "stage 'f' (process): f cannot be pickled: not me"


class Guarded:
    """It cannot be pickled, and says why itself."""

    def __init__(self) -> None:
        self.lock = LOCK

    def __reduce__(self) -> Any:
        raise TypeError("to be inherited only")


def test_who_says_why_is_not_contradicted_by_what_is_in_it():
    told = message(local(Guarded()))
    assert told.endswith("its variable 'uses' (tests.test_blame.Guarded): to be inherited only")
