"""Small pure functions to run on workers, and what each combinator must equal."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toolz

from fstream import peach, pfilter, pflat_map, pmap


def identity(item: Any) -> Any:
    return item


def asides() -> int:
    """How many threads there are here for items that have a time-out."""
    return sum(thread.name == "fstream-aside" for thread in threading.enumerate())


def square(number: int) -> int:
    return number * number


def is_odd(number: int) -> bool:
    return number % 2 == 1


def countdown(number: int) -> Iterator[int]:
    """number, number - 1, ..., 1"""
    yield from range(number, 0, -1)


async def square_async(number: int) -> int:
    await asyncio.sleep(0)
    return number * number


def uneven_square(number: int) -> int:
    """The square, after an amount of work that differs from item to item."""
    for _ in range(number * 7919 % 13 * 100):
        pass
    return number * number


def fail_at_first(folder: Path, number: int) -> int:
    try:
        (folder / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return number
    raise OSError(number)


def number_of(item: str, element_index: int) -> tuple[str, int]:
    return item, element_index


def refuse_seven(item: int) -> int:
    if item == 7:
        raise ValueError(item)
    return item


def suited(f: Callable[..., Any], kind: str) -> Callable[..., Any]:
    """*f* as users write it for *kind*: a coroutine function on "task"."""
    if kind != "task":
        return f

    @functools.wraps(f)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return f(*args, **kwargs)

    return coroutine


@dataclass(frozen=True)
class Meaning:
    """A combinator, an f for it, and the plain function that it must equal."""

    combinator: Callable[..., Any]
    f: Callable[[int], Any]
    plain: Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]

    def expected(self, items: Iterable[int]) -> list[Any]:
        return list(self.plain(self.f, items))

    def __str__(self) -> str:
        return str(self.combinator.__name__)


def for_each(f: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        f(item)
    return []


MEANINGS = (
    Meaning(pmap, square, map),
    Meaning(pfilter, is_odd, filter),
    Meaning(pflat_map, countdown, toolz.mapcat),
    Meaning(peach, square, for_each),
)
COMBINATORS = tuple(meaning.combinator for meaning in MEANINGS)
