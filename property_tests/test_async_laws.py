"""The laws under `async for`: a pipeline equals the built-ins, and ends wherever it is told to without a trace."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fstream import Stream, pmap
from property_tests.strategies import (
    KINDS,
    Chain,
    chains,
    check_equal,
    endless_chains,
    lists_of_items,
    shapes,
)
from tests.functions import suited
from tests.leaks import Running, check_no_leaks
from tests.loops import (
    AsyncSource,
    Boom,
    closed_where_pulled,
    eventually,
    other_tasks,
    run_strictly,
    turns,
)
from tests.sources import Source

Shape = Callable[[list[Any]], Any]


def sources() -> st.SearchStrategy[Shape]:
    """Ways to make a source of a list, sync or async."""
    return st.one_of(shapes(), st.just(AsyncSource))


async def drain(stream: Stream[Any]) -> list[Any]:
    return [output async for output in stream]


async def the_list(stream: Stream[Any]) -> list[Any]:
    return await stream


@given(
    chain=chains(), items=lists_of_items(), make_source=sources(), consume=st.sampled_from([drain, the_list])
)
def test_any_chain_has_the_outputs_of_its_plain_counterpart(
    chain: Chain, items: list[Any], make_source: Shape, consume: Any
):
    outputs = run_strictly(lambda: consume(chain.transformer()(make_source(items))))
    check_equal(outputs, chain.plain(items), chain.keeps_order)


@given(chain=chains(), items=lists_of_items())
def test_an_async_source_gives_the_same_in_sync_iteration(chain: Chain, items: list[Any]):
    check_equal(chain.transformer()(AsyncSource(items)), chain.plain(items), chain.keeps_order)


@given(
    kind=st.sampled_from(KINDS),
    failing=st.integers(0, 30),
    make_source=st.sampled_from([Source, AsyncSource]),
    workers=st.integers(1, 4),
)
def test_an_error_comes_after_all_the_outputs_before_it(
    kind: str, failing: int, make_source: Shape, workers: int
):
    def fail(x: int) -> int:
        if x >= failing:
            raise Boom(x)
        return -x

    source, outputs = make_source(itertools.count()), []  # one that ends may be cancelled in its own clean-up

    async def main() -> None:
        try:
            async for y in pmap(suited(fail, kind), source, kind=kind, workers=workers):
                outputs.append(y)
        except Boom as error:
            outputs.append(error.args)

    run_strictly(main)
    assert outputs == [*range(0, -failing, -1), (failing,)]
    assert closed_where_pulled(source)


class Waiting:
    """An async iterable of numbers that waits before each of them for some turns of the loop."""

    def __init__(self, waits: list[int]) -> None:
        self.waits = waits

    async def __aiter__(self) -> AsyncIterator[int]:
        for x, wait in enumerate(self.waits):
            await turns(wait)
            yield x


async def after_turns(waits: list[int], x: int) -> int:
    await turns(waits[x])
    return x


@given(
    waits=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30),
    workers=st.integers(1, 4),
    maxsize=st.sampled_from([None, 1, 3]),
)
def test_order_does_not_depend_on_who_waits_how_long(
    waits: list[tuple[int, int]], workers: int, maxsize: int | None
):
    f = partial(after_turns, [of_f for _, of_f in waits])
    source = Waiting([of_source for of_source, _ in waits])
    stream = pmap(f, source, kind="task", workers=workers, maxsize=maxsize)
    assert run_strictly(lambda: drain(stream)) == list(range(len(waits)))


# Early ends


async def take_for_ever(stream: Stream[Any], count: int, reached: asyncio.Event) -> None:
    """Set *reached* after *count* outputs; leave others their turns, as kind "sync" alone would not."""
    async with aclosing(stream):
        for taken in itertools.count():
            if taken == count:
                reached.set()
            await anext(stream)
            await asyncio.sleep(0)


async def cancel(consumer: asyncio.Task[Any]) -> None:
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()


async def cancelled_after_turns(stream: Stream[Any], count: int) -> None:
    consumer = asyncio.create_task(take_for_ever(stream, 0, asyncio.Event()))
    await turns(count)
    await cancel(consumer)


async def cancelled_after_outputs(stream: Stream[Any], count: int) -> None:
    reached = asyncio.Event()
    consumer = asyncio.create_task(take_for_ever(stream, count, reached))
    await reached.wait()
    await cancel(consumer)


async def closed_after_outputs(stream: Stream[Any], count: int) -> None:
    async with aclosing(stream):
        for _ in range(count):
            await anext(stream)


async def timed_out(stream: Stream[Any], count: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(count / 1000):
            await take_for_ever(stream, 0, asyncio.Event())


async def dropped_after_outputs(stream: Stream[Any], count: int) -> None:
    """Nobody closes it: it goes with its last reference."""
    for _ in range(count):
        await anext(stream)


EARLY_ENDS = (
    cancelled_after_turns,
    cancelled_after_outputs,
    closed_after_outputs,
    timed_out,
    dropped_after_outputs,
)


@given(
    chain=endless_chains(),
    make_source=st.sampled_from([Source, AsyncSource]),
    end=st.sampled_from(EARLY_ENDS),
    count=st.integers(0, 60),
)
def test_an_end_anywhere_leaves_nothing_behind(chain: Chain, make_source: Any, end: Any, count: int):
    before, source = Running.now(), make_source(itertools.count())

    async def main() -> None:
        await end(chain.transformer()(source), count)
        gc.collect()
        await eventually(lambda: not other_tasks() and closed_where_pulled(source))

    run_strictly(main)
    check_no_leaks(before)


@given(chain=endless_chains(), make_source=st.sampled_from([Source, AsyncSource]), count=st.integers(0, 40))
def test_a_loop_that_ends_anywhere_leaves_nothing_behind(chain: Chain, make_source: Any, count: int):
    before, source = Running.now(), make_source(itertools.count())
    stream = chain.transformer()(source)

    async def main() -> None:
        asyncio.create_task(take_for_ever(stream, 0, asyncio.Event()))  # noqa: RUF006  (the loop's end cancels it)
        await turns(count)

    run_strictly(main, unfinished=True)
    stream.close()
    check_no_leaks(before)
    assert closed_where_pulled(source)


@given(chain=endless_chains(), count=st.integers(0, 40), others=st.integers(1, 3))
def test_a_cancelled_stream_does_not_disturb_its_neighbours(chain: Chain, count: int, others: int):
    """Several streams of one transformer on one loop: one is cancelled, the others give all their outputs."""

    async def main() -> list[list[Any]]:
        neighbours = [asyncio.create_task(drain(chain.transformer()(range(50)))) for _ in range(others)]
        await cancelled_after_turns(chain.transformer()(itertools.count()), count)
        return await asyncio.gather(*neighbours)

    for outputs in run_strictly(main):
        check_equal(outputs, chain.plain(range(50)), chain.keeps_order)
