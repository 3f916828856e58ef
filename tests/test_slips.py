"""Likely slips: the error says what to write."""

from __future__ import annotations

import bdb
import operator
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from fstream import SKIP, merge, ordered, pfilter, pflat_map, pmap, run
from tests.functions import COMBINATORS, identity, square, suited


@pytest.fixture(params=COMBINATORS, ids=lambda each: each.__name__)
def combinator(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return request.param  # type: ignore[no-any-return]


def notes_of(stream: Iterable[Any], error: type[BaseException] = TypeError) -> str:
    with pytest.raises(error) as caught:
        list(stream)
    return "\n".join(caught.value.__notes__)


# Sources


def streams() -> list[Any]:
    return [pmap(square, [1, 2], kind="sync"), pmap(square, [3], kind="sync")]


@pytest.mark.parametrize("verb", [merge, run], ids=lambda each: each.__name__)
@pytest.mark.parametrize("make", [list, tuple])
def test_a_list_of_streams_in_place_of_streams(verb: Callable[..., Any], make: Callable[..., Any]):
    for sources in ((make(streams()),), ([0], make(streams()))):
        with pytest.raises(TypeError) as caught:
            verb(*sources)
        assert str(caught.value) == (
            f"{verb.__name__}() takes each source as an argument of its own, got a {make.__name__} of them: "
            f"write {verb.__name__}(*sources)"
        )
    verb(*streams())


def test_a_list_of_iterators_in_place_of_iterators():
    def numbers():
        yield 1

    async def later():
        yield 1

    class Later:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> int:
            return 1

    for source in ([numbers()], [later()], [iter([1]), iter([2])], (map(abs, [1]),), [Later()]):
        with pytest.raises(TypeError, match=r"write merge\(\*sources\)"):
            merge(source)


@pytest.mark.parametrize("source", [[1, 3], [[1], [3]], [(1, 2)], ["ab"], [], ()], ids=repr)
def test_a_list_of_anything_else_is_a_source(source: Any):
    assert list(merge(source)) == list(source)
    run(source)


@pytest.mark.parametrize(
    "consume",
    [merge, run, ordered, pmap(square, kind="sync"), lambda source: pmap(square, source)],
    ids=["merge", "run", "ordered", "transformer", "pmap"],
)
def test_a_transformer_in_place_of_a_stream(consume: Callable[[Any], Any]):
    with pytest.raises(TypeError) as caught:
        consume(pfilter(square, kind="sync"))
    assert "write (pfilter(square, kind='sync'))(source)" in str(caught.value)


@pytest.mark.parametrize(
    "consume",
    [merge, run, ordered, pmap(square), lambda partly: [1] | partly, lambda partly: partly | pmap(square)],
    ids=["merge", "run", "ordered", "transformer", "source | it", "it | transformer"],
)
def test_f_is_still_missing(consume: Callable[[Any], Any]):
    with pytest.raises(
        TypeError, match=r"pflat_map\(kind='thread'\) has no f yet: write pflat_map\(f, source"
    ):
        consume(pflat_map(kind="thread"))


def test_several_sources_as_map_takes_them(combinator: Callable[..., Any]):
    name = combinator.__name__
    row = combinator(operator.add) | pmap(square)
    for build in (
        combinator,
        combinator(kind="thread"),
        lambda f, *sources: combinator(f)(*sources),
        lambda _, *sources: row(*sources),
    ):
        with pytest.raises(TypeError) as caught:
            build(operator.add, [1, 2], [3, 4])
        assert str(caught.value) == (
            f"{name}() takes one source, got 2: write {name}(star(f), zip(source1, source2))"
        )
    with pytest.raises(TypeError, match=r"got 3: write .*zip\(source1, source2, source3\)"):
        combinator(max, [1], [2], [3])


def test_options_by_position(combinator: Callable[..., Any]):
    name = combinator.__name__
    with pytest.raises(TypeError, match=rf"by keyword.* write {name}\(f, source, kind='process'\)"):
        combinator(square, [1, 2], "process")
    with pytest.raises(TypeError, match=rf"by keyword, got 4: write {name}\(f, source, workers=2\)"):
        combinator(square, [1, 2], 4)


# f


@pytest.mark.parametrize("pairs", [[(1, 2)], [[1, 2]]], ids=["tuple", "list"])
def test_f_of_two_parameters_on_pairs(combinator: Callable[..., Any], kind: str, pairs: list[Any]):
    notes = notes_of(combinator(suited(lambda one, other: [one, other], kind), pairs, kind=kind))
    assert f"write {combinator.__name__}(star(f), source)" in notes
    assert "item 0: " in notes


def test_a_built_in_of_two_parameters_on_pairs(kind: str):
    assert "write pmap(star(f), source)" in notes_of(pmap(suited(operator.add, kind), [(1, 2)], kind=kind))


def test_f_of_two_parameters_and_resources_on_pairs(kind: str):
    f = suited(lambda one, other, resource, element_index: one, kind)
    assert "star(f)" in notes_of(pmap(f, [(1, 2)], kind=kind, on_start=lambda: 3))


def test_f_of_two_parameters_in_stages_that_run_as_one():
    row = (
        pmap(lambda x: (x, x), [1], kind="process")
        | pmap(lambda a, b: a, kind="process")
        | pmap(identity, kind="process")
    )
    assert "star(f)" in notes_of(row)


def test_it_is_noted_once_whatever_the_tries(kind: str):
    f = suited(lambda one, other: one, kind)
    assert notes_of(pmap(f, [(1, 2)], kind=kind, retries=2, backoff=0)).count("star(f)") == 1


def test_it_is_noted_once_on_an_error_that_many_items_share(shared_memory_kind: str):
    error = ValueError("kept")

    def f(_: Any) -> Any:
        raise error

    assert (
        list(pmap(suited(f, shared_memory_kind), [SKIP] * 3, kind=shared_memory_kind, on_error="skip")) == []
    )
    assert "\n".join(error.__notes__).count("SKIP is for on_error") == 1


def test_f_that_cannot_be_called_as_it_is(kind: str):
    f = suited(lambda one, other: one, kind)
    notes = notes_of(pmap(f, [1], kind=kind))
    assert (
        "f was called as f(item), which does not fit its parameters: further ones are what on_start=" in notes
    )
    stream = pmap(suited(lambda one: one, kind), [1], kind=kind, on_start=lambda: "text")
    assert "f was called as f(item, <str>), which does not fit" in notes_of(stream)


@pytest.mark.parametrize("item", [(1, 2), 1], ids=["pair", "number"])
def test_a_type_error_out_of_f_is_not_explained(kind: str, item: Any):
    def f(item: Any) -> Any:
        raise TypeError("f() missing 1 required positional argument: 'b'")

    def inner(_item: Any) -> Any:
        return divmod(1)  # type: ignore[call-arg]

    for each in (f, inner):
        assert "f was" not in notes_of(pmap(suited(each, kind), [item], kind=kind))


def test_f_of_no_known_signature():
    assert "f was" not in notes_of(pmap(max, [3], kind="thread"))


def test_a_handler_sees_it(kind: str):
    f = suited(lambda one, other: one, kind)
    stream = pmap(f, [(1, 2)], kind=kind, on_error=lambda error, item: error.__notes__)
    assert "star(f)" in "\n".join(next(stream))


# SKIP


def test_skip_as_an_item(kind: str):
    notes = notes_of(pmap(suited(lambda x: x + 1, kind), [SKIP], kind=kind))
    assert "SKIP is for on_error handlers to return" in notes
    notes = notes_of(pmap(suited(lambda x: x.strip(), kind), [SKIP], kind=kind), AttributeError)
    assert "SKIP is for on_error handlers to return" in notes


# A debugger


def stop(item: int) -> int:
    breakpoint()
    return item


def ask(item: int) -> str:
    return input()


#: What pdb raises at the end of its input.
QUIT = bdb.BdbQuit if sys.version_info < (3, 14) else SystemExit


@pytest.mark.parametrize(("f", "error"), [(stop, QUIT), (ask, EOFError)])
def test_a_worker_process_has_no_terminal(f: Any, error: type[BaseException]):
    assert "with fstream.inline()" in notes_of(pmap(f, [1], kind="process"), error)


def test_a_function_that_exits_is_told_nothing_of_a_terminal():
    assert "inline" not in notes_of(pmap(sys.exit, [1], kind="process"), SystemExit)


def test_the_end_of_a_file_is_none_of_a_terminal():
    def read(item: int) -> int:
        raise EOFError("the file is cut off")

    assert "inline" not in notes_of(pmap(read, [1], kind="process"), EOFError)
