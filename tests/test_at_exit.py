"""The first pipeline of a program may run in a function that `atexit` calls."""

from __future__ import annotations

import sys

import pytest

from tests.scripts import Script

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["sync", "thread", "task", "process"])
def test_the_first_pipeline_of_a_program_runs_at_its_exit(kind: str, script: Script):
    source = """
        import atexit, sys
        from fstream import pmap

        async def negative(x):
            return -x

        @atexit.register
        def at_exit():
            kind = sys.argv[1]
            try:
                print(list(pmap(negative if kind == "task" else abs, [-1, -2], kind=kind, workers=2)))
            except RuntimeError as error:
                print(error)
    """
    expected = "[1, 2]"
    if sys.version_info[:2] == (3, 12) and kind != "sync":  # which starts no thread then, for nobody
        expected = "can't create new thread at interpreter shutdown"
    result = script(source, kind)
    assert (result.returncode, result.stdout.strip()) == (0, expected)
