"""Programs of their own, for what a test cannot see from inside: start, exit and death of an interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Protocol

import fstream

PACKAGE_FOLDER = Path(fstream.__file__).parent.parent
LIFETIME = 40  # seconds after which a script counts as hung

ScriptResult = subprocess.CompletedProcess[str]


class Script(Protocol):
    def __call__(self, source: str, *arguments: str, **environment: str) -> ScriptResult: ...


def environment_with(**variables: str) -> dict[str, str]:
    """The environment in which a script finds the package under test."""
    path = os.pathsep.join(filter(None, [str(PACKAGE_FOLDER), variables.pop("PYTHONPATH", "")]))
    return {**os.environ, **variables, "PYTHONPATH": path}


def run_python(*arguments: str, stdin: str = "", **environment: str) -> ScriptResult:
    """Run the interpreter to its end.

    Its output is read to the end of file, which comes when nobody holds the pipe any more: a process that
    outlived the script shows as a time-out.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIFETIME,
        env=environment_with(**environment),
    )


def write_script(folder: Path, source: str) -> Path:
    path = folder / "script.py"
    path.write_text(dedent(source))
    return path


def run_script(folder: Path, source: str, *arguments: str, **environment: str) -> ScriptResult:
    """Run *source* as a script file in *folder*."""
    return run_python(str(write_script(folder, source)), *arguments, **environment)


def printed(result: ScriptResult) -> str:
    """What the script printed, if it ended well and without a word of complaint."""
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout.strip()
