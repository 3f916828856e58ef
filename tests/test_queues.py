"""The queues of threads and of tasks, before a buffer that the test fills."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import Any, cast

import pytest

from fstream._engine.queues import ThreadQueue
from fstream._workers.task.host import Host
from fstream._workers.task.queues import TaskQueue, TurnQueue
from tests.gates import PATIENCE


class Box:
    """A buffer of what the test puts into it, and the run's part: to wake a taker if there is something."""

    clock = staticmethod(monotonic)

    def __init__(self) -> None:
        self.things: list[Any] = []
        self.lock = threading.RLock()
        self.queue: Any = None
        #: Set when someone settled.
        self.settled = threading.Event()

    def ready(self) -> bool:
        return bool(self.things)

    def take(self) -> Any:
        return self.things.pop()

    def report_starvation(self, starved: bool) -> bool:
        return starved

    def can_flush(self) -> bool:
        return False

    def request_flush(self) -> None:
        pass

    def settle(self) -> None:
        self.settled.set()
        if self.queue.takers and not self.queue.signalled and self.ready():
            self.queue.signal()

    def put(self, thing: Any) -> None:
        self.things.append(thing)
        self.settle()


def test_a_thread_that_was_woken_in_vain_is_woken_again():
    box, taken = Box(), []
    queue = box.queue = ThreadQueue(box, box.lock, box.settle)
    taker = threading.Thread(target=lambda: taken.append(queue.get()), daemon=True)
    taker.start()
    assert box.settled.wait(PATIENCE)
    with box.lock:  # so it waits
        box.put("a")
        box.things.clear()  # another one was faster
        box.settled.clear()
    assert box.settled.wait(PATIENCE)
    assert box.lock.acquire(timeout=PATIENCE / 4)
    assert queue.waiters  # it waits again, and does not go round and round
    box.put("b")
    box.lock.release()
    taker.join(PATIENCE / 4)
    assert taken == ["b"]


async def woken_in_vain(box: Box) -> asyncio.Task[Any]:
    """A task that waits, and that was woken by something that another one was faster to get."""
    queue = box.queue = TaskQueue(box, box.lock, box.settle)
    taker = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert queue.takers == 1
    box.put("a")
    box.things.clear()
    box.settled.clear()  # while it was signalled, whoever settles passes it over
    for _ in range(5):  # its turn, whichever that is
        await asyncio.sleep(0)
    return taker


def test_a_task_that_was_woken_in_vain_is_woken_again():
    async def main() -> Any:
        box = Box()
        taker = await woken_in_vain(box)
        box.put("b")
        async with asyncio.timeout(PATIENCE / 4):
            return await taker

    assert asyncio.run(main()) == "b"


def test_a_task_that_was_woken_in_vain_has_the_time_kept_for_it_again():
    async def main() -> None:
        box = Box()
        taker = await woken_in_vain(box)
        assert box.settled.is_set()
        taker.cancel()

    asyncio.run(main())


def test_who_takes_wakes_the_next():
    box, taken = Box(), []
    queue = box.queue = ThreadQueue(box, box.lock, box.settle)
    takers = [threading.Thread(target=lambda: taken.append(queue.get()), daemon=True) for _ in range(3)]
    for taker in takers:
        box.settled.clear()
        taker.start()
        assert box.settled.wait(PATIENCE)
    with box.lock:
        box.things += "abc"
        box.settle()  # wakes one
    for taker in takers:
        taker.join(PATIENCE / 4)
    assert sorted(taken) == ["a", "b", "c"]


class OneLoop:
    """A host, as far as a queue asks: the loop that runs here."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()


def test_a_consumer_is_woken_once_for_each_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch):
    async def main() -> list[int]:
        box, woken, counts = Box(), [], []
        queue = box.queue = TurnQueue(cast(Host, OneLoop()), box, box.lock, box.settle)
        monkeypatch.setattr(queue, "notify", lambda: woken.append(1))
        queue.takers = 1
        for queue.waited_long in (False, True):
            for thing in "abc":
                with box.lock:
                    box.put(thing)
            counts.append(len(woken))
            await asyncio.sleep(0)
            counts.append(len(woken))
            queue.signalled = False
        return counts

    # One that has waited long is woken by the first output, and before the turn is over.
    assert asyncio.run(main()) == [0, 1, 2, 2]
