"""Seed bugs into fstream, one at a time, and see that the tests find every one.

    python tests/mutants.py                       # all of them; the last line says how many were found
    python tests/mutants.py --only span process   # those with one of these words in their name or function
    python tests/mutants.py --quick               # each on the tests that it names, and no others
    python tests/mutants.py --draw                # one in twenty, drawn by the commit; --draw SEED draws by SEED

A mutant is fstream with one piece of one function replaced, by what a programmer might have written. `mutants.toml` has
them, and says how they are written down. Pieces are compared as syntax trees: a function that moves to another file
breaks no mutant, nor does a line that is formatted anew. What changes nothing that a user can rely on (speed, say) is
no mutant.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import Timer
from typing import Any

ROOT = Path(__file__).parent.parent

COPIED = ("fstream", "tests", "property_tests", "benchmarks", "docs", "pyproject.toml")

#: Seconds after which a test counts as hung, and after which it is given up that one fails.
EACH, WHOLE = 25, 600

#: One of so many mutants is drawn.
DRAWN = 20


@dataclass(frozen=True)
class Mutant:
    """fstream with one bug: an entry of `mutants.toml`."""

    name: str
    function: str
    old: str
    new: str
    tests: tuple[str, ...]
    nth: int | None = None
    file: str = "*.py"


@dataclass(frozen=True)
class Source:
    """A file of fstream, and what it defines, by qualified names."""

    path: Path
    text: str
    definitions: tuple[tuple[str, ast.AST], ...]


def load(path: Path = ROOT / "tests" / "mutants.toml") -> tuple[list[Mutant], tuple[str, ...]]:
    """Give the mutants, and all tests that they are run on, those first that are fast and find much."""
    data = tomllib.loads(path.read_text())
    mutants = [Mutant(name, **{**m, "tests": tuple(m["tests"])}) for name, m in data["mutants"].items()]
    return mutants, tuple(data["tests"])


def package() -> list[Source]:
    paths = sorted((ROOT / "fstream").rglob("*.py"))
    return [Source(path, text := path.read_text(), tuple(definitions(ast.parse(text)))) for path in paths]


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Give the functions and classes in *node*, and what is assigned to, with their qualified names."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield prefix + name, child
                yield from definitions(child, f"{prefix}{name}.")
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield prefix + name, child
            case ast.stmt():
                yield from definitions(child, prefix)


def ends_open(block: object) -> bool:
    """Tell whether the last statement of *block* is ``...``."""
    match block:
        case [*_, ast.Expr(value=ast.Constant(value=value))]:
            return value is ...
    return False


def same(old: Any, there: Any, rest: list[ast.stmt]) -> bool:
    """Tell whether a piece is what is *there*. What stands there for its ``...`` goes to *rest*."""
    if type(old) is not type(there):
        return False
    if isinstance(old, ast.AST):
        return all(same(getattr(old, field), getattr(there, field), rest) for field in old._fields)
    if isinstance(old, list):
        if ends_open(old):
            old, there, rest[:] = old[:-1], there[: len(old) - 1], there[len(old) - 1 :]
        return len(old) == len(there) and all(same(*pair, rest) for pair in zip(old, there))
    return bool(old == there)


def places(tree: ast.AST, old: list[ast.AST]) -> Iterator[tuple[ast.AST, str, int, list[ast.stmt]]]:
    """Find a piece, one expression or some statements: in which field of which node, from which index on."""
    fields = [(node, *pair) for node in ast.walk(tree) for pair in ast.iter_fields(node)]
    for node, field, value in fields:
        there = value if isinstance(value, list) else [value]
        for start in range(len(there) - len(old) + 1):
            rest: list[ast.stmt] = []
            if same(old, there[start : start + len(old)], rest):
                yield node, field, start, rest


def pieces(mutant: Mutant) -> tuple[list[ast.AST], list[ast.AST]]:
    """Parse the old piece and the new one: as expressions if both are, else as statements."""
    old: list[Any] = ast.parse(mutant.old, "old").body
    new: list[Any] = ast.parse(mutant.new or "pass", "new").body
    if not old or same(old, new, []):
        raise LookupError("nothing is replaced")
    if len(old) == len(new) == 1 and isinstance(old[0], ast.Expr) and isinstance(new[0], ast.Expr):
        return [old[0].value], [new[0].value]
    return old, new


def mutated(mutant: Mutant, sources: Iterable[Source]) -> tuple[Path, str]:
    """Give the file that has the function, and its text with the bug in it. An error says why it cannot be done."""
    old, new = pieces(mutant)
    files = [source for source in sources if source.path.match(mutant.file)]
    copies = [(s, deepcopy(node)) for s in files for name, node in s.definitions if name == mutant.function]
    if not copies:
        raise LookupError("there is no such function")
    found = [(source, tree, place) for source, tree in copies for place in places(tree, old)]
    if len(found) != 1 and not 1 <= (mutant.nth or 0) <= len(found):
        raise LookupError(f"the function has this piece {len(found)} times, not once: {mutant.old}")
    source, tree, (node, field, start, rest) = found[(mutant.nth or 1) - 1]
    blocks: list[Any] = [getattr(part, "body", None) for piece in new for part in ast.walk(piece)]
    for block in blocks:
        if ends_open(block):
            block[-1:] = rest
    there = getattr(node, field)
    if isinstance(there, list):
        there[start : start + len(old)] = new
    else:
        setattr(node, field, new[0])
    text = spliced(source.text, tree)
    compile(text, str(source.path), "exec")
    return source.path, text


def spliced(text: str, node: Any) -> str:
    """Write *node* over the lines that it was parsed from. All other lines keep their numbers."""
    lines = text.split("\n")
    first = min(part.lineno for part in [node, *getattr(node, "decorator_list", ())]) - 1
    last, depth = node.end_lineno, node.col_offset // 4
    for _ in range(depth):  # not indented by us, as that would change its docstring
        node = ast.If(ast.Constant(True), [node], [])
    new = ast.unparse(node).splitlines()[depth:]
    new = new[not new[0] :]  # a blank line comes before what is in a block
    new += [""] * (last - first - len(new))
    return "\n".join([*lines[:first], *new, *lines[last:]])


def misfits(mutants: Iterable[Mutant], sources: list[Source]) -> Iterator[str]:
    """Say which mutants do not fit, and why."""
    for mutant in mutants:
        try:
            mutated(mutant, sources)
            if missing := [test for test in mutant.tests or ("(none)",) if not exists(test)]:
                raise LookupError(f"there are no such tests: {', '.join(missing)}")
        except (LookupError, SyntaxError) as error:
            yield f"{mutant.name} ({mutant.function}): {error}"


def exists(test: str) -> bool:
    """Tell whether there is a test of pytest's name *test*."""
    file, _, name = test.partition("::")
    path, function = ROOT / file, re.split(r"[.:]", name.partition("[")[0])[-1]
    return path.exists() and (not name or f"def {function}(" in path.read_text())


#: What is to be killed if we are.
RUNNING: set[subprocess.Popen[str]] = set()


def kill(process: subprocess.Popen[str]) -> None:
    RUNNING.discard(process)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


#: A line of ``pytest -v``: the test, and what became of it. One that crashes or hangs has no verdict.
VERDICT = re.compile(r"(?P<test>\S+::.*?) (?P<verdict>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS|$)")

#: A line of the summary at the end, which is all that ``pytest -n`` says of a test.
SUMMARY = re.compile(r"(?:FAILED|ERROR) (?P<test>\S+::.*?)(?: - |$)")


def killer(folder: str, arguments: Iterable[str]) -> str | None:
    """Run tests until one fails, hangs or crashes, and give its name; None if none does."""
    options = f"-xv --tb=no --color=no -pno:cacheprovider --timeout={EACH} --hypothesis-seed=0".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": folder},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that what hangs can be killed with all its children
    )
    RUNNING.add(process)
    limit = Timer(WHOLE, kill, [process])
    limit.start()
    last = time.monotonic()
    try:
        for line in process.stdout or ():
            if found := VERDICT.match(line):
                test, verdict, now = found["test"], found["verdict"], time.monotonic()
                if verdict in ("FAILED", "ERROR", ""):
                    return test if now - last < EACH else f"{test} (hung)"
                last = now
            elif found := SUMMARY.match(line):
                return found["test"].rstrip()
        status = process.wait()
        return None if status in (0, -signal.SIGKILL) else f"pytest, which ended with status {status}"
    finally:
        limit.cancel()
        kill(process)
        process.wait()


def outcome(change: tuple[Path, str] | None, *runs: Sequence[str]) -> tuple[str | None, float]:
    """Make runs of tests with one file changed, until one finds it: give which test did, and the seconds."""
    begun, found = time.monotonic(), None
    with tempfile.TemporaryDirectory(prefix="mutant", ignore_cleanup_errors=True) as folder:
        for name in COPIED:
            copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, Path(folder, name))
        if change is not None:
            Path(folder, change[0].relative_to(ROOT)).write_text(change[1])
        for arguments in runs:
            found = found or killer(folder, arguments)
    return found, time.monotonic() - begun


def drawn(mutants: list[Mutant], seed: str) -> list[Mutant]:
    return random.Random(seed).sample(mutants, -(-len(mutants) // DRAWN))


def commit() -> str:
    """Name the commit, or the day where there is none."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:  # there is no git either
        return date.today().isoformat()
    return git.stdout.strip() or date.today().isoformat()


def main() -> int:
    parser = argparse.ArgumentParser(description="Seed bugs, and see that the tests find them.")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="with such a word in name or function")
    parser.add_argument("--draw", nargs="?", const=commit(), metavar="SEED", help=f"one in {DRAWN}")
    parser.add_argument("--quick", action="store_true", help="run each on the tests that it names only")
    parser.add_argument("--jobs", type=int, default=4, help="how many at once (default 4): many wait")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests without a bug first")
    arguments = parser.parse_args()
    (mutants, tests), sources = load(), package()
    if problems := list(misfits(mutants, sources)):
        print(*problems, sep="\n")
        return 2
    chosen = [m for m in mutants if any(w in f"{m.name} {m.function}" for w in arguments.only or [""])]
    if arguments.draw:
        chosen = drawn(chosen, arguments.draw)
        print(f"{len(chosen)} mutants, drawn by --draw {arguments.draw}")
    if arguments.list:
        print(*(f"{mutant.name} ({mutant.function})" for mutant in chosen), sep="\n")
        return 0
    own = tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
    many = ("-q", "-n", str(arguments.jobs), "--dist", "worksteal", *(own if arguments.quick else tests))
    if not arguments.unchecked and (problem := outcome(None, many)[0]):
        print(f"The tests fail without any bug of ours, see make test: {problem}")
        return 2
    survivors = 0
    with ThreadPoolExecutor(arguments.jobs) as threads:
        try:
            runs = [(m.tests,) if arguments.quick else (m.tests, tests) for m in chosen]
            results = threads.map(lambda m, runs: outcome(mutated(m, sources), *runs), chosen, runs)
            for mutant, (found, seconds) in zip(chosen, results, strict=True):
                survivors += found is None
                name, end = f"{mutant.name} ({mutant.function})", found or "SURVIVED"
                print(f"{name:100} {seconds:4.0f} s  {end}", flush=True)
        except BaseException:  # Ctrl-C: the sessions of the tests have not heard of it
            threads.shutdown(wait=False, cancel_futures=True)
            for process in list(RUNNING):
                kill(process)
            raise
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were found.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
