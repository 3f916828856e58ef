"""Sources and functions that wait for the consumer, and remember what happened: how laws 3 to 6 are observed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, ClassVar

from tests.gates import PATIENCE


class Boom(Exception):
    """What the laws raise."""


class Heard:
    """How many outputs the consumer has; whoever waits for more than ever come fails with `TimeoutError`."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def all_of(self, outputs: Iterable[Any]) -> list[Any]:
        """Consume *outputs*."""
        return [output for output in outputs if self._one_more()]

    def _one_more(self) -> bool:
        with self._changed:
            self.count += 1
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            loop.call_soon_threadsafe(event.set)
        return True

    def wait(self, count: int) -> None:
        """Block a thread until the consumer has *count* outputs."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.count >= count, PATIENCE):
                raise TimeoutError(f"no more than {self.count} outputs, not {count}")

    async def reach(self, count: int) -> None:
        """Wait as a task until the consumer has *count* outputs."""
        loop = asyncio.get_running_loop()
        # A simulation says itself that it hangs; and its time flies while the consumer stalls.
        async with asyncio.timeout(PATIENCE if isinstance(loop, asyncio.BaseEventLoop) else None):
            while self.count < count:
                changed = asyncio.Event()
                with self._changed:
                    if self.count >= count:
                        break
                    self._waiting.append((loop, changed))
                await changed.wait()


class Conversation:
    """An async source of numbers in *bursts*: each comes when the consumer has the outputs of those before."""

    def __init__(self, heard: Heard, bursts: list[int]) -> None:
        self.heard = heard
        self.bursts = bursts

    async def __aiter__(self) -> AsyncIterator[int]:
        given = 0
        for burst in self.bursts:
            for number in range(given, given + burst):
                yield number
            given += burst
            await self.heard.reach(given)


def failing_at(numbers: set[int]) -> Callable[[int], int]:
    def f(number: int) -> int:
        if number in numbers:
            raise Boom(number)
        return number

    return f


class Tally:
    """Counts what workers do, also those of simulated processes, which have copies of the functions."""

    counts: ClassVar[dict[str, int]] = {}

    @classmethod
    def reset(cls) -> None:
        cls.counts.update(on_start=0, on_done=0)


def count_start() -> None:
    Tally.counts["on_start"] += 1


def count_done(_status: Any) -> None:
    Tally.counts["on_done"] += 1


def outcome(outputs: Iterable[Any]) -> tuple[list[Any], tuple[Any, ...] | None]:
    """The outputs, and the arguments of the `Boom` that they end with."""
    given: list[Any] = []
    try:
        given.extend(outputs)
    except Boom as error:
        return given, error.args
    return given, None


def first(count: int, outputs: Iterator[Any]) -> list[Any]:
    return [next(outputs) for _ in range(count)]
