"""What the package shows, and what it promises of its own layout."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path
from types import ModuleType

import pytest

import fstream
from tests.scripts import printed, run_python

PACKAGE = Path(fstream.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
CONCURRENCY = {
    "threading",
    "asyncio",
    "multiprocessing",
    "queue",
    "concurrent",
    "subprocess",
    "_thread",
}
FORBIDDEN_NAMES = {"utils", "helpers", "manager", "core", "base"}


def relative(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def imported_by(module: Path) -> set[str]:
    """The top-level names of what *module* imports, anywhere in it, other than for types alone."""
    found: set[str] = set()
    tree = ast.parse(module.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


PUBLIC = {
    "NotPicklable", "RemoteError", "SKIP", "StageStatus", "Stream", "Transformer", "WorkerDied", "WorkerInfo",
    "merge", "ordered", "peach", "pfilter", "pflat_map", "pmap", "run",
}  # fmt: skip

OPTIONS = [
    "kind", "workers", "maxsize", "ordered", "timeout", "retries", "on_error", "on_start", "on_done", "name",
]  # fmt: skip


def test_the_public_names_are_there():
    assert set(fstream.__all__) >= PUBLIC


def test_the_public_names_are_sorted_and_exist():
    assert list(fstream.__all__) == sorted(set(fstream.__all__))
    for name in fstream.__all__:
        assert not name.startswith("_")
        assert hasattr(fstream, name)


def test_nothing_else_is_public():
    shown = {
        name
        for name, value in vars(fstream).items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name != "annotations"
    }
    assert shown == set(fstream.__all__)


def test_a_star_import_gives_the_public_names():
    namespace: dict[str, object] = {}
    exec("from fstream import *", namespace)
    assert set(namespace) - {"__builtins__"} == set(fstream.__all__)


@pytest.mark.parametrize("name", fstream.__all__)
def test_every_public_name_is_documented(name: str):
    value = getattr(fstream, name)
    if not callable(value):
        return
    documentation = inspect.getdoc(value) or ""
    first_line = documentation.partition("\n")[0]
    assert first_line.endswith((".", ":"))
    assert documentation != inspect.getdoc(type(value))
    if inspect.isfunction(value):
        assert ">>> " in documentation


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_documented(option: str):
    assert f"*{option}*" in (fstream.pmap.__doc__ or "")


def test_the_public_errors_live_in_one_module():
    for name in fstream.__all__:
        value = getattr(fstream, name)
        if inspect.isclass(value) and issubclass(value, BaseException):
            assert value.__module__ == "fstream.errors"


@pytest.mark.parametrize(
    "error",
    [
        fstream.WorkerDied("worker died", -9, "the item"),
        fstream.NotPicklable("not to be pickled"),
        fstream.RemoteError("somewhere else"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_public_errors_can_be_pickled(error: Exception):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_modules_have_telling_names(module: Path):
    for part in module.relative_to(PACKAGE).with_suffix("").parts:
        assert part.strip("_") not in FORBIDDEN_NAMES


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_modules_say_what_they_are(module: Path):
    assert ast.get_docstring(ast.parse(module.read_text()))


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_concurrency_is_imported_only_where_it_is_run(module: Path):
    if relative(module).startswith(("_engine/", "_workers/")):
        return
    assert not imported_by(module) & CONCURRENCY


def test_the_engine_does_import_concurrency():
    engine = [module for module in MODULES if relative(module).startswith("_workers/")]
    assert {"threading", "asyncio"} <= set.union(*map(imported_by, engine))


def test_the_package_itself_defines_nothing():
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    assert not [
        node
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, definitions)
    ]


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()


HEAVY = {"asyncio", "cloudpickle", "concurrent", "multiprocessing"}


@pytest.mark.parametrize(
    "source",
    [
        "",
        "list(fstream.pmap(abs, [1], kind='sync'))",
        "list(fstream.pmap(abs, [1], kind='thread', workers=2))",
    ],
    ids=["import", "sync", "thread"],
)
def test_what_is_slow_to_import_is_imported_when_it_is_needed(source: str):
    program = (
        f"import sys; before = set(sys.modules); import fstream\n{source}\nprint(*set(sys.modules) - before)"
    )
    assert not set(printed(run_python("-c", program)).split()) & HEAVY
