"""What f, on_start and on_done may be on tasks: coroutine functions, what returns awaitables, plain functions."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from fstream import StageStatus, Transformer, WorkerInfo, peach, pfilter, pflat_map, pmap
from tests.functions import square, square_async
from tests.gates import PATIENCE, Gate
from tests.loops import Boom, in_every_loop, in_loop, no_complaints, run_strictly

NOT_TASK = ("sync", "thread", "process")


async def async_power(exponent: int, x: int) -> int:
    await asyncio.sleep(0)
    return int(x**exponent)


async def async_is_even(x: int) -> bool:
    await asyncio.sleep(0)
    return x % 2 == 0


async def async_twice(x: int) -> list[int]:
    await asyncio.sleep(0)
    return [x, x]


class Client:
    """As clients are: `get` is a coroutine function, `fetch` a plain one that returns a coroutine."""

    async def get(self, x: int) -> int:
        return await square_async(x)

    def fetch(self, x: int) -> Coroutine[Any, Any, int]:
        return self.get(x)

    async def __call__(self, x: int) -> int:
        return await self.get(x)


class Awaitable:
    """Neither a coroutine nor a future."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return self.x * self.x


def future_square(x: int) -> asyncio.Future[int]:
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, x * x)
    return future


def task_square(x: int) -> asyncio.Task[int]:
    return asyncio.get_running_loop().create_task(square_async(x))


COROUTINE_FUNCTIONS = [
    pytest.param(square_async, id="function"),
    pytest.param(Client().get, id="method"),
    pytest.param(functools.partial(async_power, 2), id="partial"),
]
RETURN_AWAITABLES = [
    *COROUTINE_FUNCTIONS,
    pytest.param(Client().fetch, id="method-that-returns-a-coroutine"),
    pytest.param(functools.partial(Client().fetch), id="partial-of-it"),
    pytest.param(Client(), id="async-call"),
    pytest.param(lambda x: square_async(x), id="lambda"),
    pytest.param(future_square, id="future"),
    pytest.param(task_square, id="task"),
    pytest.param(Awaitable, id="awaitable"),
    pytest.param(square, id="plain"),
    pytest.param(lambda x: x * x if x % 2 else square_async(x), id="now-and-then"),
]


@pytest.mark.parametrize("f", RETURN_AWAITABLES)
@in_every_loop
async def test_on_tasks_what_f_returns_is_awaited_if_it_can_be(f: Callable[[int], Any]) -> None:
    assert await pmap(f, range(10), kind="task", workers=3) == list(map(square, range(10)))


@pytest.mark.parametrize("f", RETURN_AWAITABLES)
def test_so_it_is_in_sync_iteration(f: Callable[[int], Any]) -> None:
    with no_complaints():
        assert list(pmap(f, range(10), kind="task", workers=3)) == list(map(square, range(10)))


@pytest.mark.parametrize("f", COROUTINE_FUNCTIONS)
@pytest.mark.parametrize("build", [pmap, lambda f: pmap()(f), lambda f: pmap(workers=100)(f)])
def test_a_coroutine_function_means_task(build: Callable[..., Transformer[Any, Any]], f: Any) -> None:
    with no_complaints():
        assert list(build(f)(range(5))) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(
    ("combinator", "f", "outputs"),
    [
        pytest.param(pfilter, async_is_even, [0, 2], id="pfilter"),
        pytest.param(pflat_map, async_twice, [0, 0, 1, 1, 2, 2, 3, 3], id="pflat_map"),
        pytest.param(peach, square_async, [], id="peach"),
    ],
)
@in_loop
async def test_the_other_combinators_take_coroutine_functions(
    combinator: Any, f: Any, outputs: list[int]
) -> None:
    assert await combinator(f, range(4)) == outputs


@pytest.mark.parametrize(
    ("combinator", "f", "outputs"),
    [
        pytest.param(pfilter, lambda x: async_is_even(x), [0, 2], id="pfilter"),
        pytest.param(pflat_map, lambda x: async_twice(x), [0, 0, 1, 1, 2, 2, 3, 3], id="pflat_map"),
        pytest.param(peach, lambda x: square_async(x), [], id="peach"),
    ],
)
@in_loop
async def test_the_other_combinators_await_what_f_returns(
    combinator: Any, f: Any, outputs: list[int]
) -> None:
    assert await combinator(f, range(4), kind="task") == outputs


@in_loop
async def test_peach_awaits_f_once_for_each_item() -> None:
    seen: Counter[int] = Counter()

    async def see(x: int) -> None:
        await asyncio.sleep(0)
        seen[x] += 1

    assert await peach(see, range(50), workers=4) == []
    assert seen == Counter(range(50))


@pytest.mark.parametrize("kind", NOT_TASK)
@pytest.mark.parametrize("combinator", [pmap, pfilter, pflat_map, peach])
@pytest.mark.parametrize("f", COROUTINE_FUNCTIONS)
def test_a_coroutine_function_on_another_kind_is_refused(combinator: Any, f: Any, kind: str) -> None:
    with pytest.raises(TypeError, match="task"):
        combinator(f, kind=kind)
    with pytest.raises(TypeError, match="task"):
        combinator(kind=kind)(f)
    with pytest.raises(TypeError, match="task"):
        combinator(f, range(3), kind=kind)


async def start() -> str:
    await asyncio.sleep(0)
    return "resource"


async def done(status: StageStatus, *resources: Any) -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("kind", NOT_TASK)
@pytest.mark.parametrize("option", [{"on_start": start}, {"on_done": done}])
def test_so_are_coroutine_functions_around_it(option: dict[str, Any], kind: str) -> None:
    with pytest.raises(TypeError, match="task"):
        pmap(square, kind=kind, **option)


# on_start and on_done.


class Connections:
    """Coroutine functions for on_start, f and on_done that write down what they were given."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.started: list[int] = []
        self.used: list[str] = []
        self.done: list[tuple[str, int, bool]] = []

    async def on_start(self, worker_info: WorkerInfo) -> str:
        await asyncio.sleep(0)
        self.loops.append(asyncio.get_running_loop())
        self.started.append(worker_info.index)
        return f"connection {worker_info.index}"

    async def f(self, x: int, connection: str) -> int:
        await asyncio.sleep(0)
        self.loops.append(asyncio.get_running_loop())
        self.used.append(connection)
        return x * x

    async def on_done(self, status: StageStatus, connection: str) -> None:
        await asyncio.sleep(0)
        self.loops.append(asyncio.get_running_loop())
        self.done.append((connection, status.active_workers, status.done))

    def check(self) -> None:
        """Each worker that started was done once; the last one knew."""
        assert self.started
        assert len(set(self.started)) == len(self.started)
        assert set(self.started) <= set(range(3))
        assert set(self.used) <= {f"connection {index}" for index in self.started}
        assert sorted(connection for connection, _, _ in self.done) == [
            f"connection {i}" for i in sorted(self.started)
        ]
        assert [last for _, _, last in self.done] == [False] * (len(self.done) - 1) + [True]
        assert self.done[-1][1] == 0
        assert len(set(self.loops)) == 1

    def stream(self, source: Any) -> Any:
        return pmap(self.f, source, workers=3, on_start=self.on_start, on_done=self.on_done)


@in_every_loop
async def test_coroutine_on_start_and_on_done() -> None:
    connections = Connections()
    assert await connections.stream(range(20)) == list(map(square, range(20)))
    connections.check()
    assert connections.loops[0] is asyncio.get_running_loop()


def test_coroutine_on_start_and_on_done_in_sync_iteration() -> None:
    connections = Connections()
    with no_complaints():
        assert list(connections.stream(range(20))) == list(map(square, range(20)))
    connections.check()


@in_every_loop
async def test_on_done_is_awaited_by_aclose() -> None:
    connections = Connections()
    async with aclosing(connections.stream(itertools.count())) as stream:
        assert await anext(stream) == 0
    connections.check()


def test_on_done_is_awaited_by_close() -> None:
    connections = Connections()
    with no_complaints(), connections.stream(itertools.count()) as stream:
        assert next(stream) == 0
    connections.check()


@pytest.mark.parametrize("returned", [None, "one", ("one", "two"), {"port": 1, "unused": 2}])
@in_loop
async def test_resources_reach_coroutine_functions(returned: Any) -> None:
    got = []

    async def on_start() -> Any:
        await asyncio.sleep(0)
        return returned

    async def f(x: int, *resources: Any) -> int:
        got.append(resources)
        return x

    async def f_by_name(x: int, port: int) -> int:
        got.append(port)
        return x

    async def on_done(status: StageStatus, *resources: Any) -> None:
        got.append(resources)

    async def on_done_by_name(status: StageStatus, unused: int) -> None:
        got.append(unused)

    if isinstance(returned, dict):
        await pmap(f_by_name, [7], workers=1, on_start=on_start, on_done=on_done_by_name)
        assert got == [1, 2]
    else:
        await pmap(f, [7], workers=1, on_start=on_start, on_done=on_done)
        resources = () if returned is None else returned if isinstance(returned, tuple) else (returned,)
        assert got == [resources, resources]


@in_loop
async def test_plain_on_start_and_on_done_go_with_a_coroutine_function() -> None:
    finished = []

    async def f(x: int, offset: int) -> int:
        return x + offset

    def on_done(status: StageStatus, offset: int) -> None:
        finished.append(offset)

    assert await pmap(f, range(3), workers=1, on_start=lambda: 10, on_done=on_done) == [10, 11, 12]
    assert finished == [10]


@in_loop
async def test_coroutine_functions_may_declare_element_index_and_worker_info() -> None:
    async def f(x: str, element_index: int, worker_info: WorkerInfo) -> tuple[str, int, bool]:
        return x, element_index, worker_info.index in range(2)

    assert await pmap(f, "abc", workers=2) == [("a", 0, True), ("b", 1, True), ("c", 2, True)]


@pytest.mark.parametrize("fails", ["on_start", "on_done"])
@in_every_loop
async def test_an_error_of_on_start_or_on_done_reaches_the_consumer(fails: str) -> None:
    """The other workers are done all the same."""
    started, finished = [], []

    async def on_start(worker_info: WorkerInfo) -> int:
        await asyncio.sleep(0)
        started.append(worker_info.index)
        if fails == "on_start" and len(started) == 2:
            raise Boom(fails)
        return worker_info.index

    async def f(x: int, index: int) -> int:
        await asyncio.sleep(0)
        return x

    async def on_done(status: StageStatus, index: int) -> None:
        await asyncio.sleep(0)
        finished.append(index)
        if fails == "on_done" and len(finished) == 1:
            raise Boom(fails)

    with pytest.raises(Boom, match=fails):
        await pmap(f, range(100), workers=4, on_start=on_start, on_done=on_done)
    failed_to_start = started[1:2] if fails == "on_start" else []
    assert sorted(finished + failed_to_start) == sorted(started)


def test_a_transformer_is_reused_in_other_loops() -> None:
    """What belongs to a loop belongs to the run, never to the transformer."""
    transformer = pmap(square_async, workers=2)

    async def main() -> list[int]:
        return await transformer(range(3))

    for _ in range(3):
        assert run_strictly(main) == [0, 1, 4]
        assert list(transformer(range(3))) == [0, 1, 4]


async def hang(item: int):
    await asyncio.sleep(PATIENCE)


async def fails(item: int):
    raise KeyError(item)


def test_a_coroutine_handles_also_what_ran_over_its_time():
    async def handler(error: BaseException, item: int) -> tuple[str, int]:
        await asyncio.sleep(0)
        return type(error).__name__, item

    stage = pmap(hang, kind="task", timeout=0.2, on_error=handler)
    assert list(stage(range(3))) == [("TimeoutError", item) for item in range(3)]


def test_a_handler_of_what_ran_over_its_time_is_stopped_with_the_stage(gate: Gate):
    stopped: list[int] = []

    async def handler(error: BaseException, item: int):
        try:
            gate.open()
            await asyncio.sleep(PATIENCE)
        finally:
            stopped.append(item)

    async def hangs_first(item: int) -> int:
        await asyncio.sleep(0 if item else PATIENCE)
        return item

    stage = pmap(hangs_first, kind="task", timeout=0.2, on_error=handler, ordered=False)
    with stage(itertools.count()) as stream:
        assert next(stream) == 1
        gate.wait()
    assert stopped == [0]


def test_a_handler_that_is_cancelled_by_somebody_else_ends_the_stream():
    async def handler(error: BaseException, item: int):
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(PATIENCE)

    with pytest.raises(asyncio.CancelledError):
        list(pmap(hang, range(2), kind="task", timeout=0.2, on_error=handler))


def test_a_handler_has_the_time_that_it_takes():
    async def handler(error: BaseException, item: int) -> str:
        await asyncio.sleep(0.4)
        return type(error).__name__

    assert list(pmap(fails, kind="task", timeout=0.2, on_error=handler)(range(3))) == ["KeyError"] * 3
