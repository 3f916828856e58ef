"""Context variables that a stage takes with it to processes."""

from __future__ import annotations

import decimal
import threading
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from fstream import NotPicklable, pmap
from tests.scripts import Script, printed

pytestmark = pytest.mark.slow

USER: ContextVar[str] = ContextVar("a name that no attribute has", default="nobody")
REQUEST: ContextVar[int] = ContextVar("REQUEST")


def who(_: object) -> tuple[str, int | None]:
    return USER.get(), REQUEST.get(None)


def with_values(call: Any) -> Any:
    def run() -> Any:
        USER.set("ada")
        REQUEST.set(7)
        return call()

    return copy_context().run(run)


@pytest.mark.parametrize("kind", ["sync", "thread", "process", lambda: ProcessPoolExecutor(1)])
def test_the_variables_that_are_named_go_with_a_stage(kind: Any):
    both = pmap(who, kind=kind, context=[USER, REQUEST])
    assert with_values(lambda: list(both([1, 2]))) == [("ada", 7)] * 2
    assert list(both([1])) == [("nobody", None)]


def test_others_stay_behind():
    assert with_values(lambda: list(pmap(who, [1], kind="process", context=(REQUEST,)))) == [("nobody", 7)]


def test_stages_that_run_as_one_take_the_variables_of_each():
    row = pmap(who, kind="process", context=[USER]) | pmap(
        lambda got: (got, who(0)), kind="process", context=[REQUEST]
    )
    assert len(row([]).stats().stages) == 2
    assert with_values(lambda: list(row([1])))[0][1] == ("ada", 7)


def test_each_stream_takes_the_values_of_whoever_iterates_it():
    each = pmap(who, kind="process", workers=1, context=[REQUEST])

    def first_of(n: int) -> Any:
        REQUEST.set(n)
        return next(each([0]))

    assert [copy_context().run(first_of, n)[1] for n in range(3)] == [0, 1, 2]


def test_a_variable_of_a_function_goes_with_it():
    local: ContextVar[str] = ContextVar("local", default="default")

    def look(_: object) -> str:
        return local.get()

    def run() -> list[list[str]]:
        local.set("set")
        return [list(pmap(look, [1], kind="process", context=context)) for context in ([local], [])]

    assert copy_context().run(run) == [["set"], ["default"]]


def test_a_script_has_its_own(script: Script):
    process = script(
        """
        from contextvars import ContextVar
        from fstream import pmap

        user = ContextVar("user")
        user.set("ada")
        print(list(pmap(lambda _: user.get(), [1], kind="process", context=[user])))
        """
    )
    assert printed(process) == "['ada']"


def test_hooks_see_them_too():
    def on_start() -> int:
        return REQUEST.get()

    assert with_values(
        lambda: list(pmap(lambda _, r: r, [1], kind="process", on_start=on_start, context=[REQUEST]))
    ) == [7]


def test_a_value_that_cannot_be_sent_is_named():
    lock: ContextVar[Any] = ContextVar("lock")

    def run() -> Any:
        lock.set({"it": threading.Lock()})
        return list(pmap(abs, [1], kind="process", context=[lock]))

    with pytest.raises(
        NotPicklable,
        match=r"stage 'abs' \(process\): context variable 'lock' cannot be pickled: its value at 'it'",
    ):
        copy_context().run(run)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (USER, r"context must be a list of context variables: write context=\[variable\]"),
        ("USER", "context must be a list of context variables or None, got 'USER'"),
        ([USER, decimal], "context must hold context variables, got <module 'decimal'"),
    ],
)
def test_what_is_no_list_of_variables_is_an_error(context: Any, message: str):
    with pytest.raises(TypeError, match=message):
        pmap(abs, context=context)


def test_transformers_with_equal_variables_are_equal():
    assert pmap(abs, context=[USER]) == pmap(abs, context=[USER]) != pmap(abs, context=[REQUEST])
    assert pmap(abs, context=None) == pmap(abs)
