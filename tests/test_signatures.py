"""What the combinators take can be seen: by inspect, help and completion, with types and defaults."""

from __future__ import annotations

import inspect
import pydoc
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest

from fstream import pmap
from fstream._plan.options import CHECKS, Kind, Options
from fstream._plan.stages import Stage
from tests.functions import COMBINATORS, square

DEFAULTS = {
    "kind": None,
    "workers": None,
    "maxsize": None,
    "ordered": True,
    "timeout": None,
    "retries": 0,
    "retry_on": Exception,
    "backoff": 0.1,
    "rate": None,
    "key": None,
    "per_key": 1,
    "on_error": "raise",
    "max_failures": None,
    "memo": None,
    "memo_key": None,
    "on_start": None,
    "on_done": None,
    "name": None,
    "context": None,
    "max_items_per_worker": None,
}


@pytest.fixture(params=COMBINATORS, ids=lambda each: each.__name__)
def combinator(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def options_of(f: Callable[..., Any]) -> dict[str, Any]:
    shape = inspect.signature(f).parameters.values()
    return {each.name: each.default for each in shape if each.kind is each.KEYWORD_ONLY}


def test_the_signature_has_the_options_and_their_defaults(combinator: Callable[..., Any]):
    assert options_of(combinator) == DEFAULTS


def test_the_signature_has_f_and_source_before_them(combinator: Callable[..., Any]):
    shape = list(inspect.signature(combinator).parameters.values())
    assert [each.name for each in shape if each.kind is each.POSITIONAL_ONLY] == ["f", "source"]
    assert len(shape) == 2 + len(DEFAULTS)


def test_every_option_has_its_type(combinator: Callable[..., Any]):
    shape = inspect.signature(combinator).parameters
    assert set(get_args(shape["kind"].annotation)) == {*get_args(Kind), type(None)}
    for name in DEFAULTS:
        assert shape[name].annotation is not inspect.Parameter.empty


def test_the_options_are_the_same_wherever_they_are_told():
    assert set(CHECKS) == set(DEFAULTS) == set(get_type_hints(Options)) | {"on_error"}
    assert set(DEFAULTS) <= {each.name for each in fields(Stage)}


def test_the_defaults_that_are_shown_are_those_that_hold(combinator: Callable[..., Any]):
    def stage(**options: Any) -> Any:
        return combinator(square, **options).steps[0].stage

    assert stage(**DEFAULTS) == stage()


def test_help_shows_the_options(combinator: Callable[..., Any]):
    text = pydoc.plain(pydoc.render_doc(combinator))
    for part in ("kind: ", "'process'", "ordered: bool = True", "retries: int = 0", "= 'raise'"):
        assert part in text


def test_what_still_waits_for_f_says_what_it_takes(combinator: Callable[..., Any]):
    waiting = combinator(kind="thread", workers=2)
    assert options_of(waiting) == DEFAULTS | {"kind": "thread", "workers": 2}
    assert options_of(waiting(square).steps[0].f) == {}
    assert "self" not in inspect.signature(type(waiting)).parameters


def test_a_transformer_takes_a_source():
    assert list(inspect.signature(pmap(square)).parameters) == ["source"]


def test_completion_shows_the_options():
    jedi = pytest.importorskip("jedi")
    for code in ("pmap(abs, on_", "partly(on_"):
        found = jedi.Interpreter(code, [{"pmap": pmap, "partly": pmap(kind="thread")}]).complete()
        assert {"on_error=", "on_start=", "on_done="} <= {each.name_with_symbols for each in found}
