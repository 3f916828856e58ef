"""The mutants fit the code of today, and the tool that writes them puts each bug where it belongs."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants import Mutant, Source, definitions, drawn, exists, load, misfits, mutated, package

pytestmark = pytest.mark.slow

CODE = '''\
LIMIT = 8  # a constant


class Box:
    """Holds things."""

    size: int = 1

    @property
    def full(self) -> bool:
        # a comment
        return (
            self.held >= self.limit  # another
        )

    def put(self, thing):
        """Put a thing in.

        Twice.
        """
        if self.full:
            return False
        self.held += 1
        self.things.append(thing)
        self.held += 1
        return True


def put(thing):
    def again():
        return thing + thing

    return again()


AFTER = 1
'''

MUTANT = Mutant(
    "a bug", "Box.full", "self.held >= self.limit", "self.held > self.limit", ("tests/test_mutants.py",)
)


def source(text: str, path: str = "box.py") -> Source:
    return Source(Path(path), text, tuple(definitions(ast.parse(text))))


def changed(mutant: Mutant, *sources: Source) -> dict[int, str]:
    """The lines that a mutant changes, by their numbers."""
    path, text = mutated(mutant, sources or [source(CODE)])
    before = next(s for s in sources or [source(CODE)] if s.path == path).text.splitlines()
    after = text.splitlines()
    assert len(after) == len(before)
    return {
        n: line.strip() for n, (line, was) in enumerate(zip(after, before), 1) if line != was and line.strip()
    }


def test_every_mutant_fits_the_code_and_the_tests_of_today() -> None:
    mutants, tests = load()
    assert list(misfits(mutants, package())) == []
    assert [test for test in tests if not exists(test)] == []


def test_a_piece_is_found_however_it_is_formatted() -> None:
    assert changed(MUTANT) == {11: "return self.held > self.limit"}


def test_what_is_around_the_function_stays_as_it_is() -> None:
    _, text = mutated(MUTANT, [source(CODE)])
    assert text.splitlines()[:8] == CODE.splitlines()[:8]
    assert text.splitlines()[14:] == CODE.splitlines()[14:]


def test_a_function_may_move_to_another_file_and_another_place_in_it() -> None:
    moved = source(
        "import sys\n\nif sys.platform:\n" + "".join(f"    {line}\n" for line in CODE.splitlines()), "b.py"
    )
    path, text = mutated(MUTANT, [source("pass\n", "a.py"), moved])
    assert path == Path("b.py")
    assert "return self.held > self.limit" in text


def test_statements_are_replaced_and_the_docstring_stays() -> None:
    mutant = replace(
        MUTANT, function="Box.put", old="self.held += 1\nself.things.append(thing)", new="self.held += 2"
    )
    tree = ast.parse(mutated(mutant, [source(CODE)])[1])
    put = next(node for name, node in definitions(tree) if name == "Box.put")
    assert isinstance(put, ast.FunctionDef)
    assert [ast.unparse(statement) for statement in put.body[2:]] == [
        "self.held += 2",
        "self.held += 1",
        "return True",
    ]
    assert ast.get_docstring(put, clean=False) == "Put a thing in.\n\n        Twice.\n        "


def test_a_piece_that_nothing_replaces_is_deleted() -> None:
    mutant = replace(MUTANT, function="Box.put", old="return False", new="")
    assert "if self.full:\n            pass\n" in mutated(mutant, [source(CODE)])[1]


def test_the_rest_of_a_block_stays_though_its_head_is_replaced() -> None:
    mutant = replace(MUTANT, function="Box.put", old="if self.full: ...", new="while not self.full: ...")
    assert "while not self.full:\n            return False\n" in mutated(mutant, [source(CODE)])[1]


@pytest.mark.parametrize(
    ("function", "old", "new", "line"),
    [
        ("LIMIT", "8", "9", {1: "LIMIT = 9"}),
        ("Box.size", "1", "2", {7: "size: int = 2"}),
        ("put.again", "thing + thing", "thing", {31: "return thing"}),
    ],
)
def test_constants_and_nested_functions_have_names(
    function: str, old: str, new: str, line: dict[int, str]
) -> None:
    assert changed(replace(MUTANT, function=function, old=old, new=new)) == line


def test_of_several_equal_pieces_one_may_be_chosen() -> None:
    mutant = replace(MUTANT, function="Box.put", old="self.held += 1", new="self.held += 2")
    with pytest.raises(LookupError, match=r"has this piece 2 times, not once: self.held \+= 1"):
        mutated(mutant, [source(CODE)])
    _, text = mutated(replace(mutant, nth=2), [source(CODE)])
    assert text.index("held += 1") < text.index("held += 2")
    with pytest.raises(LookupError, match="2 times"):
        mutated(replace(mutant, nth=3), [source(CODE)])


def test_of_several_functions_of_one_name_the_one_that_has_the_piece_is_changed() -> None:
    other = source("class Box:\n    def full(self):\n        return self.closed\n", "other.py")
    assert changed(replace(MUTANT, old="self.closed", new="True"), source(CODE), other) == {3: "return True"}


def test_of_several_functions_that_have_the_piece_a_file_is_chosen() -> None:
    two = [source(CODE, "fstream/box.py"), source(CODE, "fstream/_workers/other.py")]
    with pytest.raises(LookupError, match="2 times"):
        mutated(MUTANT, two)
    assert mutated(replace(MUTANT, file="other.py"), two)[0] == two[1].path


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"function": "Box.empty"}, "there is no such function"),
        ({"old": "self.held == self.limit"}, "has this piece 0 times"),
        ({"old": "self.held >= 1 = 2"}, "cannot assign to comparison"),
        ({"old": "self . held>self.limit"}, "nothing is replaced"),
        ({"old": "", "new": "pass"}, "nothing is replaced"),
        ({"old": "return self.held >= self.limit", "new": "break"}, "'break' outside loop"),
        ({"tests": ()}, "there are no such tests: (none)"),
        ({"tests": ("tests/test_nowhere.py",)}, "there are no such tests"),
        ({"tests": ("tests/test_mutants.py::test_nothing",)}, "there are no such tests"),
    ],
)
def test_a_mutant_that_does_not_fit_is_told_of(difference: dict[str, object], message: str) -> None:
    mutant = replace(MUTANT, **difference)  # type: ignore[arg-type]
    [problem] = misfits([MUTANT, mutant], [source(CODE)])
    assert problem.startswith(f"a bug ({mutant.function}): ")
    assert message in problem


def test_a_draw_is_the_same_for_the_same_seed() -> None:
    mutants, _ = load()
    assert drawn(mutants, "a") == drawn(mutants, "a") != drawn(mutants, "b")
    assert len(drawn(mutants, "a")) == -(-len(mutants) // 20)
