"""The floors of the library: who may import whom, imports inside functions included. `make lint` checks it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parent.parent

#: What each floor may import, beside itself.
BELOW: Final = {
    "errors": set[str](),
    "journal": {"_engine"},
    "_plan": set[str](),
    "_flow": set[str](),
    "_engine": {"_plan", "_flow"},
    "_workers": {"_plan", "_flow", "_engine", "errors"},
    "_seen": {"_plan", "_flow", "_engine"},
    "stream": {"_plan", "_engine", "_workers", "_seen"},
    "transformer": {"_flow", "_plan", "_workers", "stream"},
    "combinators": {"_plan", "_workers", "stream", "transformer"},
    "testing": {"_workers"},
    "fstream": {
        "_engine",
        "_flow",
        "_plan",
        "_seen",
        "_workers",
        "combinators",
        "errors",
        "journal",
        "stream",
        "transformer",
    },
}


def modules(folder: Path) -> dict[str, Path]:
    """Give every module of the library by its name."""
    found = {}
    for path in (folder / "fstream").rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Give the line and the module of each import of the library's own, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield node.lineno, name if name in known else node.module


def floor(module: str) -> str:
    return [*module.split("."), "fstream"][1]


def broken(folder: Path = PROJECT) -> list[str]:
    """Say which imports break the rule, and which modules import each other in a circle."""
    found = modules(folder)
    graph = {
        module: {(line, name) for line, name in imports(path.read_text(), set(found)) if name != module}
        for module, path in found.items()
    }
    problems = [
        f"{found[module].relative_to(folder)}:{line}: {floor(module)} may not import {name}"
        for module, names in graph.items()
        for line, name in sorted(names)
        if floor(name) not in {floor(module), *BELOW[floor(module)]}
    ]
    try:
        TopologicalSorter({module: {name for _, name in names} for module, names in graph.items()}).prepare()
    except CycleError as error:
        problems.append(f"a circle: {' <- '.join(error.args[1])}")
    return problems


if __name__ == "__main__":
    sys.exit("\n".join(broken()) or None)
