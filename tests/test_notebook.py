"""Sync iteration while a loop runs in the same thread, and cells with a top-level await, as in a notebook."""

from __future__ import annotations

import ast
import asyncio
import inspect
import itertools
import textwrap
import threading
import types
from typing import Any

import pytest
from toolz import pipe, take

from fstream import merge, peach, pfilter, pmap, run
from tests.functions import is_odd, square, square_async, suited
from tests.gates import PATIENCE
from tests.loops import AsyncSource, Boom, closed_where_pulled, in_every_loop, in_loop, run_strictly
from tests.scripts import run_python

pytestmark = pytest.mark.slow


@in_every_loop
async def test_sync_iteration_inside_a_running_loop(kind: str) -> None:
    stream = pmap(suited(square, kind), range(50), kind=kind, workers=2)
    assert list(stream) == list(map(square, range(50)))


@in_every_loop
async def test_a_mixed_pipeline_inside_a_running_loop() -> None:
    stream = pipe(
        range(50),
        pmap(square_async, workers=3),
        pfilter(is_odd, kind="process", workers=2),
        pmap(square_async),
    )
    assert list(stream) == [x**4 for x in range(1, 50, 2)]


@in_every_loop
async def test_an_async_source_inside_a_running_loop(kind: str) -> None:
    """The running loop is blocked meanwhile, so the source runs on the private one."""
    source = AsyncSource(range(20))
    assert list(pmap(suited(square, kind), source, kind=kind, workers=2)) == list(map(square, range(20)))
    assert closed_where_pulled(source)
    assert source.closed_in is not asyncio.get_running_loop()


@in_loop
async def test_f_does_not_run_on_the_blocked_loop() -> None:
    async def where(_: object) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), threading.current_thread()

    ((loop, thread),) = set(pmap(where, range(10), workers=3))
    assert loop is not asyncio.get_running_loop()
    assert thread is not threading.current_thread()


@in_loop
async def test_closing_inside_a_running_loop(kind: str) -> None:
    source = AsyncSource(itertools.count())
    with pmap(suited(square, kind), source, kind=kind, workers=2) as stream:
        assert list(take(3, stream)) == [0, 1, 4]
    assert source.closed.wait(PATIENCE)
    assert closed_where_pulled(source)


@in_loop
async def test_an_error_inside_a_running_loop() -> None:
    async def fail(x: int) -> int:
        raise Boom(x)

    with pytest.raises(Boom, match="0"):
        list(pmap(fail, range(3)))


@in_loop
async def test_run_and_merge_inside_a_running_loop() -> None:
    seen = []

    async def see(x: int) -> None:
        seen.append(x)

    run(peach(see, range(3)), peach(see, AsyncSource(range(3, 6))))
    assert sorted(seen) == list(range(6))
    assert sorted(merge(pmap(square_async, [2]), AsyncSource([3]))) == [3, 4]


@in_loop
async def test_both_iterations_take_turns() -> None:
    """One blocks the loop, the other runs on it; in turns they do not disturb each other."""
    transformer = pmap(square_async, workers=3)
    for _ in range(3):
        assert list(transformer(range(10))) == await transformer(range(10)) == list(map(square, range(10)))


@in_loop
async def test_a_sync_pipeline_inside_a_coroutine_function() -> None:
    """f blocks the loop that it runs on with a `for` loop over another pipeline, and still gets its outputs."""

    async def total(n: int) -> int:
        return sum(pmap(square_async, range(n)))

    assert await pmap(total, range(5), workers=2) == [sum(map(square, range(n))) for n in range(5)]


# Cells with a top-level await, as IPython runs them: each on the same loop, in the same namespace.

CELLS = """
from fstream import pmap, pfilter
import asyncio
offset = 1
async def load(x):
    await asyncio.sleep(0)
    return x + offset
def double(x):
    return 2 * x + offset - 1

outputs = [y async for y in pmap(load, range(3))]
assert outputs == [1, 2, 3], outputs

assert await pmap(load, range(3)) == [1, 2, 3]

assert list(pmap(load, range(3))) == [1, 2, 3]

stream = range(4) | pmap(load) | pmap(double, kind="process", workers=2) | pfilter(lambda x: x > 2, kind="thread")
assert await anext(stream) == 4

assert [y async for y in stream] == [6, 8]

unfinished = pmap(load, iter(int, 1), workers=2)
assert await anext(unfinished) == 1

unfinished = pmap(double, iter(int, 1), kind="thread")
assert next(unfinished) == 0

del unfinished
assert list(range(3) | pmap(double, kind="process", workers=2)) == [0, 2, 4]
"""


@pytest.mark.parametrize("main", ["__main__", "notebook"])
def test_cells_with_a_top_level_await(main: str) -> None:
    """Functions defined in a cell reach processes too, though no module can be imported to find them."""
    namespace: dict[str, Any] = {"__name__": main}

    async def run_cells() -> None:
        for cell in CELLS.split("\n\n"):
            code = compile(cell, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if code.co_flags & inspect.CO_COROUTINE:
                await types.FunctionType(code, namespace)()
            else:
                exec(code, namespace)
        namespace.clear()

    run_strictly(run_cells, unfinished=True)


def test_the_asyncio_prompt() -> None:
    """`python -m asyncio` runs what is typed on a loop that is running."""
    typed = """
    from fstream import pmap
    async def load(x): return x + 1

    await pmap(load, range(3))
    list(pmap(load, range(4)))
    [y async for y in pmap(len, ["a", "bc"], kind="process", workers=1)]
    """
    ended = run_python("-m", "asyncio", stdin=textwrap.dedent(typed))
    assert [line[line.index("[") :] for line in ended.stdout.splitlines() if "[" in line] == [
        "[1, 2, 3]",
        "[1, 2, 3, 4]",
        "[1, 2]",
    ], ended.stderr
    assert "Traceback" not in ended.stderr
