"""Which part of a pipeline holds the others back: named rightly where it is known by construction."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fstream import Bottleneck, Stream, merge, pfilter, pflat_map, pmap
from fstream._seen.account import Account
from fstream._seen.bottleneck import find

pytestmark = pytest.mark.slow

SLOW, QUICK = 0.01, 0.001


def wait(item: int) -> int:
    time.sleep(SLOW)
    return item


def quick(item: int) -> int:
    time.sleep(QUICK)
    return item


async def wait_task(item: int) -> int:
    await asyncio.sleep(SLOW)
    return item


async def quick_task(item: int) -> int:
    await asyncio.sleep(QUICK)
    return item


def crunch(item: int) -> int:
    """Some 10 ms of one CPU, in Python."""
    end = time.thread_time() + SLOW
    while time.thread_time() < end:
        math.factorial(50)
    return item


def cheap(item: int) -> int:
    return item


def one_in_twenty(item: int) -> int:
    time.sleep(0.2 if item % 20 == 0 else 0.0005)
    return item


def generate(count: int, seconds: float = 0.0) -> Iterator[int]:
    for item in range(count):
        if seconds:
            time.sleep(seconds)
        yield item


def take(stream: Stream[Any], seconds: float = 0.0) -> Stream[Any]:
    for _ in stream:
        if seconds:
            time.sleep(seconds)
    return stream


def take_async(stream: Stream[Any], seconds: float = 0.0) -> Stream[Any]:
    async def consume() -> None:
        async for _ in stream:
            if seconds:
                await asyncio.sleep(seconds)

    asyncio.run(consume())
    return stream


#: The pipelines, by what their bottleneck is: each consumes a stream, and gives it.
PIPELINES: dict[str, tuple[str, Callable[[], Stream[Any]]]] = {
    "I/O on threads, first of two": (
        "wait",
        lambda: take(
            generate(150) | pmap(wait, kind="thread", workers=2) | pmap(quick, kind="thread", workers=2)
        ),
    ),
    "I/O on threads, second of two": (
        "wait",
        lambda: take(
            generate(150) | pmap(quick, kind="thread", workers=2) | pmap(wait, kind="thread", workers=2)
        ),
    ),
    "I/O in tasks": (
        "wait_task",
        lambda: take(generate(600) | pmap(wait_task, workers=10) | pmap(cheap, kind="thread")),
    ),
    "I/O in tasks behind quicker ones": (
        "wait_task",
        lambda: take_async(generate(300) | pmap(quick_task, workers=10) | pmap(wait_task, workers=4)),
    ),
    "a CPU stage on processes": (
        "crunch",
        lambda: take(generate(60) | pmap(quick, kind="thread") | pmap(crunch, kind="process", workers=2)),
    ),
    "a CPU stage before I/O": (
        "crunch",
        lambda: take(
            generate(60) | pmap(crunch, kind="process", workers=1) | pmap(wait, kind="thread", workers=8)
        ),
    ),
    "one slow of three process stages that run as one": (
        "crunch",
        lambda: take(
            generate(60)
            | pmap(cheap, kind="process")
            | pmap(crunch, kind="process")
            | pmap(abs, kind="process")
        ),
    ),
    "threads that wait for the GIL": (
        "crunch",
        lambda: take(generate(40) | pmap(quick, kind="thread") | pmap(crunch, kind="thread", workers=4)),
    ),
    "a slow source": (
        "the source",
        lambda: take(generate(80, SLOW) | pmap(quick, kind="thread", workers=2)),
    ),
    "a slow source of processes": (
        "the source",
        lambda: take(generate(80, SLOW) | pmap(quick, kind="process", workers=2)),
    ),
    "a slow source of tasks": (
        "the source",
        lambda: take_async(generate(80, SLOW) | pmap(quick_task)),
    ),
    "a slow consumer": (
        "the consumer",
        lambda: take(generate(80) | pmap(quick, kind="thread", workers=2), SLOW),
    ),
    "a slow consumer of a list": (
        "the consumer",
        lambda: take([*range(80)] | pmap(quick, kind="process", workers=2), SLOW),
    ),
    "a slow consumer of tasks": (
        "the consumer",
        lambda: take_async(generate(80) | pmap(quick_task, workers=10), SLOW),
    ),
    "a window that is too small": (
        "wait",
        lambda: take(
            generate(80) | pmap(quick, kind="thread") | pmap(wait, kind="thread", workers=8, maxsize=2)
        ),
    ),
    "slow items in order": (
        "one_in_twenty",
        lambda: take(
            generate(100)
            | pmap(one_in_twenty, kind="thread", workers=4, maxsize=16)
            | pmap(cheap, kind="thread")
        ),
    ),
    "a sync stage between others": (
        "wait",
        lambda: take(
            generate(80) | pmap(quick, kind="thread") | pmap(wait, kind="sync") | pmap(quick, kind="thread")
        ),
    ),
    "sync stages alone": (
        "wait",
        lambda: take(
            generate(60) | pmap(quick, kind="sync") | pmap(wait, kind="sync") | pfilter(cheap, kind="sync")
        ),
    ),
    "a stage behind merged streams": (
        "wait",
        lambda: take(
            merge(generate(40) | pmap(quick, kind="thread"), generate(40) | pmap(cheap, kind="thread"))
            | pmap(wait, kind="thread", workers=2)
        ),
    ),
    "a stage with many outputs before a slow one": (
        "wait",
        lambda: take(
            generate(20)
            | pflat_map(lambda item: [item] * 8, kind="thread", name="spread")
            | pmap(wait, kind="thread", workers=4)
        ),
    ),
    # A rate that is too low, and a key that all items have, belong here: a stage that is held up by one names it.
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_bottleneck_is_named(name: str):
    expected, run = PIPELINES[name]
    stats = run().stats()
    assert stats.bottleneck is not None
    assert stats.bottleneck.name == expected, str(stats)
    assert str(stats.bottleneck).startswith(expected)
    assert f"bottleneck: {stats.bottleneck}" in str(stats)


def bottleneck(name: str) -> str:
    return str(PIPELINES[name][1]().stats().bottleneck)


@pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is no GIL")
def test_the_gil_is_named():
    for _ in range(5):  # a machine that is busy with other things gives this process less than one CPU
        if "the GIL" in (named := bottleneck("threads that wait for the GIL")):
            return
    raise AssertionError(named)


def test_threads_that_wait_for_something_else_do_not_wait_for_the_gil():
    assert "more workers" in bottleneck("I/O on threads, second of two")


def test_a_window_that_is_too_small_is_named_with_its_option():
    assert "maxsize=2 keeps 6 of 8 workers from work" in bottleneck("a window that is too small")


def test_an_order_that_has_to_wait_is_named():
    assert "ordered=False" in bottleneck("slow items in order")


def test_the_bottleneck_is_named_during_the_run():
    stream = generate(100) | pmap(wait, kind="thread", workers=2) | pmap(cheap, kind="thread")
    for _ in range(60):
        next(stream)
    named = stream.stats().bottleneck
    stream.close()
    assert named is not None
    assert named.name == "wait"
    assert 0.5 < named.share <= 1


def test_where_nothing_was_done_there_is_no_bottleneck():
    assert pmap(cheap, []).stats().bottleneck is None
    assert find([Account([])]) is None


def test_a_bottleneck_is_a_value():
    assert str(Bottleneck("parse", " (process): busy", 0.9)) == "parse (process): busy"
    with pytest.raises(AttributeError):
        Bottleneck("parse", "", 0.9).name = "fetch"  # type: ignore[misc]
