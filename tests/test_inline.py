"""Every stage in the caller's thread, for a debugger; and slips that are named: coroutines, a `peach` left alone."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from fstream import batch, inline, merge, ordered, peach, pfilter, pflat_map, pmap, run
from tests.functions import identity, is_odd
from tests.scripts import Script, printed

ANY_KIND = ["sync", "thread", "process", "task", ThreadPoolExecutor, partial(ThreadPoolExecutor, 2)]

any_kind = pytest.mark.parametrize(
    "any_kind", ANY_KIND, ids=["sync", "thread", "process", "task", "executor", "factory"]
)


def here(_: object) -> int:
    return threading.get_ident()


async def here_task(_: object) -> int:
    await asyncio.sleep(0)
    return threading.get_ident()


def source(seen: list[int], count: int = 5) -> Iterator[int]:
    for item in range(count):
        seen.append(threading.get_ident())
        yield item


async def async_source(seen: list[int], count: int = 5) -> Any:
    for item in range(count):
        await asyncio.sleep(0)
        seen.append(threading.get_ident())
        yield item


def iterated(stream: Any, is_async: bool) -> list[Any]:
    async def consume() -> list[Any]:
        return [output async for output in stream]

    return asyncio.run(consume()) if is_async else list(stream)


both = pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
sources = pytest.mark.parametrize("make", [source, async_source], ids=["source", "async source"])


@any_kind
@both
@sources
def test_all_runs_in_the_thread_of_the_caller(any_kind: Any, is_async: bool, make: Any):
    seen: list[int] = []
    started: list[int] = []
    ended: list[int] = []
    options: Any = {"kind": any_kind, "on_start": lambda: started.append(threading.get_ident())}
    if any_kind in ("sync", "thread", "process", "task"):
        options["on_done"] = lambda: ended.append(threading.get_ident())
    with inline():
        assert set(iterated(pmap(here, make(seen), **options), is_async)) == {threading.get_ident()}
    assert set(seen) == {threading.get_ident()}
    assert started == [threading.get_ident()]
    assert set(ended) <= {threading.get_ident()}
    assert len(ended) == ("on_done" in options)


@both
@sources
def test_coroutine_functions_run_in_the_thread_of_the_caller(is_async: bool, make: Any):
    seen: list[int] = []
    with inline():
        outputs = iterated(pmap(here_task, make(seen)) | pmap(here_task), is_async)
    assert outputs == [threading.get_ident()] * 5
    assert set(seen) == {threading.get_ident()}


@any_kind
@both
def test_the_outputs_are_those_of_map(any_kind: Any, is_async: bool):
    with inline():
        row = (
            pmap(identity, kind=any_kind, workers=3)
            | pfilter(is_odd, kind=any_kind)
            | pflat_map(lambda x: [x] * 2, kind=any_kind)
        )
        assert iterated(row(iter(range(7))), is_async) == [1, 1, 3, 3, 5, 5]
        assert iterated(row([]), is_async) == []
        seen: list[int] = []
        assert (
            iterated(
                peach(seen.append, range(3), kind=any_kind if any_kind != "process" else "thread"), is_async
            )
            == []
        )
        assert seen == [0, 1, 2]


@both
def test_steps_between_stages_run_inline(is_async: bool):
    with inline():
        assert iterated(batch(2, pmap(identity, range(5))), is_async) == [[0, 1], [2, 3], [4]]
        assert iterated(batch(5, ["to", "be", "or", "another"], weight=len), is_async) == [
            ["to", "be"],
            ["or"],
            ["another"],
        ]
        assert iterated(batch(2, range(3), within=60), is_async) == [[0, 1], [2]]
        assert iterated(ordered(pmap(identity, range(5), ordered=False)), is_async) == list(range(5))
        merged = merge(pmap(identity, range(3)), iter("ab"), async_source([], 2))
        assert sorted(map(str, iterated(merged, is_async))) == sorted(map(str, [0, 1, 2, "a", "b", 0, 1]))


@both
def test_what_is_open_in_a_batch_goes_out_before_an_error(is_async: bool):
    def failing() -> Iterator[int]:
        yield from range(3)
        raise LookupError("no more")

    seen: list[Any] = []

    def consume(stream: Any) -> None:
        for output in stream:
            seen.append(output)

    async def consume_async(stream: Any) -> None:
        async for output in stream:
            seen.append(output)

    with inline(), pytest.raises(LookupError):
        stream = batch(2, failing())
        asyncio.run(consume_async(stream)) if is_async else consume(stream)
    assert seen == [[0, 1], [2]]


@any_kind
@both
def test_failures_are_what_they_are_elsewhere(any_kind: Any, is_async: bool):
    tries: list[int] = []

    def reciprocal(item: int) -> float:
        tries.append(item)
        return 1 / item

    with inline():
        skipping = pmap(reciprocal, kind=any_kind, retries=2, on_error="skip")
        assert iterated(skipping([1, 0, 2]), is_async) == [1.0, 0.5]
        assert tries == [1, 0, 0, 0, 2]
        answering = pmap(reciprocal, kind=any_kind, on_error=lambda error, item: -1)
        assert iterated(answering([1, 0]), is_async) == [1.0, -1]
        with pytest.raises(ZeroDivisionError) as caught:
            iterated(pmap(reciprocal, [1, 0], kind=any_kind), is_async)
    assert "stage 'reciprocal'" in "".join(caught.value.__notes__)


async def reciprocal_task(item: int) -> float:
    await asyncio.sleep(0)
    return 1 / item


@both
def test_failures_of_coroutines_too(is_async: bool):
    async def answer(error: Exception, item: int) -> int:
        await asyncio.sleep(0)
        return -1

    with inline():
        assert iterated(pmap(reciprocal_task, [1, 0, 2], on_error="skip"), is_async) == [1.0, 0.5]
        assert iterated(pmap(reciprocal_task, [1, 0], on_error=answer, retries=1), is_async) == [1.0, -1]
        with pytest.raises(ZeroDivisionError):
            iterated(pmap(reciprocal_task, [1, 0]), is_async)


@any_kind
def test_a_traceback_shows_all_there_is(any_kind: Any):
    def items() -> Iterator[int]:
        yield broken_source()

    def broken_source() -> int:
        raise LookupError("no more")

    with inline(), pytest.raises(LookupError) as caught:
        list(pmap(identity, pmap(identity, items(), kind=any_kind), kind=any_kind))
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[0] == "test_a_traceback_shows_all_there_is"
    assert names[-2:] == ["items", "broken_source"]
    assert names.count("iterate") == 2


@both
def test_it_stays_lazy_and_closes_its_source(is_async: bool):
    closed: list[bool] = []

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def take_one(stream: Any) -> int:
        output: int = await anext(stream)
        await stream.aclose()
        return output

    with inline():
        stream = pmap(here_task, pmap(identity, endless(), kind="thread"))
        assert not closed
        if is_async:
            asyncio.run(take_one(stream))
        else:
            next(stream)
            stream.close()
    assert closed == [True]


def test_a_loop_for_coroutines_is_the_same_for_all_stages_of_a_stream():
    loops: list[asyncio.AbstractEventLoop] = []

    async def note(item: int) -> int:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return item

    with inline():
        assert list(pmap(note, range(3)) | pmap(note)) == [0, 1, 2]
    assert len(set(loops)) == 1
    assert loops[0].is_closed()


def test_under_async_for_coroutines_run_on_the_callers_loop():
    async def main() -> None:
        lock = asyncio.Lock()

        async def locked(item: int) -> asyncio.AbstractEventLoop:
            async with lock:
                await asyncio.sleep(0)
                return asyncio.get_running_loop()

        with inline():
            assert await pmap(locked, range(3)) == [asyncio.get_running_loop()] * 3
            assert (
                list(pmap(here_task, range(2))) == [threading.get_ident()] * 2
            )  # a plain `for` inside of a loop

    asyncio.run(main())


def test_only_streams_that_start_in_the_block_run_so():
    stream = pmap(here, range(2), kind="thread")
    with inline():
        early = pmap(here, range(2), kind="thread")
        assert next(early) == threading.get_ident()
    assert threading.get_ident() not in list(stream)
    assert list(early) == [threading.get_ident()]


@any_kind
def test_inline_runs_are_counted(any_kind: Any):
    with inline():
        stream = pmap(identity, range(5), kind=any_kind) | pfilter(is_odd, kind=any_kind)
        list(stream)
    assert [(s.name, s.taken, s.given) for s in stream.stats().stages] == [
        ("identity", 5, 5),
        ("is_odd", 5, 2),
    ]


SCRIPT = """
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from fstream import pmap

    def here(_):
        return threading.get_ident() == main

    main = threading.get_ident()
    for kind in ("thread", "process", "task", ThreadPoolExecutor):
        print(*pmap(here, [1], kind=kind))
"""


@pytest.mark.parametrize(("value", "runs_inline"), [("1", True), ("0", False), ("", False)])
def test_an_environment_variable_does_the_same(script: Script, value: str, runs_inline: bool):
    first = printed(script(SCRIPT, FSTREAM_INLINE=value)).split()[0]
    assert first == str(runs_inline)


def test_an_environment_variable_is_for_all_kinds(script: Script):
    assert printed(script(SCRIPT, FSTREAM_INLINE="1")).split() == ["True"] * 4


# ------------------------------------------------------------------------------------------------- slips with a name


async def later(item: int) -> int:
    return item


@pytest.mark.parametrize("on", ["thread", "process"])
@pytest.mark.parametrize("combinator", [pmap, pfilter, pflat_map, peach], ids=lambda each: each.__name__)
@both
def test_an_f_that_gives_coroutines_is_an_error(on: Any, combinator: Any, is_async: bool):
    with pytest.raises(
        TypeError, match=f"returned a coroutine, which kind='{on}' cannot run: use kind='task'"
    ):
        iterated(combinator(lambda item: later(item), [1, 2, 3], kind=on, retries=1), is_async)
    gc.collect()


def test_an_f_that_gives_coroutines_is_an_error_where_process_stages_run_as_one():
    with pytest.raises(TypeError, match="use kind='task'"):
        list(pmap(abs, [1, 2, 3], kind="process") | pmap(lambda item: later(item), kind="process"))


def test_an_f_that_gives_coroutines_is_right_for_tasks():
    assert list(pmap(lambda item: later(item), [1, 2, 3], kind="task")) == [1, 2, 3]


def test_a_peach_that_is_dropped_unconsumed_warns(kind: str):
    seen: list[int] = []
    stream = peach(seen.append, [1, 2], kind=kind)
    with pytest.warns(
        RuntimeWarning, match=r"peach\(append\) was dropped before it was consumed.*run\(peach"
    ):
        del stream
    assert seen == []


def test_a_peach_that_is_used_in_some_way_does_not_warn():
    def consume_later() -> None:
        stream = peach(identity, [1, 2], kind="thread")
        stream.close()
        run(peach(identity, [1], kind="thread"))
        list(peach(identity, [1], kind="thread") | batch(2))
        list(ordered(peach(identity, [1], kind="thread", ordered=False)))
        list(merge(peach(identity, [1], kind="thread"), [2]))
        next(peach(identity, [1], kind="thread"), None)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        consume_later()
        gc.collect()


def test_other_streams_may_be_dropped():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pmap(identity, [1])
        gc.collect()
