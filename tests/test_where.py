"""Which thread or loop runs what, for each kind: the table in the README, cell by cell."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fstream import SKIP, Rate, batch, divert, pmap, star
from tests.functions import suited
from tests.gates import Gate, Log

CONSUMER = threading.get_ident()

#: Is set in the processes of an executor.
IN_EXECUTOR = False


def enter_executor() -> None:
    global IN_EXECUTOR
    IN_EXECUTOR = True


def place() -> str:
    """Where this runs, by the process, the thread and its loop alone."""
    thread = threading.current_thread()
    if multiprocessing.parent_process() is not None:
        is_main = thread is threading.main_thread()
        process = "a process of the executor" if IN_EXECUTOR else "a worker process"
        return (
            process
            if IN_EXECUTOR
            else f"the main thread of {process}"
            if is_main
            else f"a thread of {process}"
        )
    try:
        asyncio.get_running_loop()
        return "the loop of the consumer" if thread.ident == CONSUMER else "a loop of fstream"
    except RuntimeError:
        return "the thread of the consumer" if thread.ident == CONSUMER else thread.name


def is_place(cell: str, seen: str, is_async: bool) -> bool:
    """Tell whether what was *seen* is what a *cell* of the table says."""
    consumer = "the loop of the consumer" if is_async else "the thread of the consumer"
    match cell:
        case "the consumer's thread":
            return seen == consumer
        case "the event loop":
            return seen == (consumer if is_async else "a loop of fstream")
        case "a worker thread":
            return seen in ("fstream-f-0", "fstream-f-1")
        case "the pump":
            return seen == "fstream-f-pump"
        case "a feeder":
            return seen == "fstream-feeder"
        case "a thread of the executor":
            return seen.startswith("executor")
        case "the main thread of a worker process" | "a process of the executor":
            return seen == cell
    raise AssertionError(f"the table says {cell!r}")


# ------------------------------------------------------------------------------------------------- what the table says

COLUMNS: dict[str, Callable[[], Any]] = {
    '`"sync"`': lambda: "sync",
    '`"thread"`': lambda: "thread",
    '`"process"`': lambda: "process",
    '`"task"`': lambda: "task",
    "an `Executor` of threads": lambda: ThreadPoolExecutor(2, thread_name_prefix="executor"),
    "an `Executor` of processes": lambda: ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=enter_executor
    ),
}

#: What is noted of the callbacks of a row.
ROWS = {
    "f, `on_start`": {"f", "on_start"},
    "`on_done`": {"on_done"},
    "`on_error`, `retry_on`, what is kept in `memo`": {"on_error", "retry_on", "memo: kept"},
    "the source, an iterator before this stage": {"source", "iterator"},
    "`key`, the `cost` of a `Rate`, `memo_key`, lookups in `memo`": {"key", "cost", "memo_key", "memo: looked up"},
    "the sink of a `divert` behind this stage": {"sink"},
    "the `weight` of a `batch` behind this stage": {"weight"},
}  # fmt: skip


def table() -> dict[str, dict[str, str]]:
    """The cells, by column and row."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    lines = readme.split("### What runs where\n\n")[1].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {column: {row[0]: row[number] for row in rows} for number, column in enumerate(head) if number}


def test_the_table_has_a_row_and_a_column_for_each_that_is_tested():
    cells = table()
    assert list(cells) == list(COLUMNS)
    assert all(list(rows) == list(ROWS) for rows in cells.values())


# ------------------------------------------------------------------------------------------------------ what is true


class Noting:
    """Notes where the callbacks of a stage run."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def noting(self, what: str, give: Callable[..., Any] = lambda *_: None) -> Callable[..., Any]:
        log = self.log

        def callback(*args: Any) -> Any:
            log.write((what, place()))
            return give(*args)

        return callback

    def seen(self) -> dict[str, set[str]]:
        places: dict[str, set[str]] = defaultdict(set)
        for what, where in self.log.entries():
            places[what].add(where)
        return places


class Memo(dict[Any, Any]):
    def __init__(self, noting: Noting) -> None:
        self.looks = noting.noting("memo: looked up")
        self.keeps = noting.noting("memo: kept")

    def get(self, key: Any, default: Any = None) -> Any:
        self.looks()
        return super().get(key, default)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.keeps()
        super().__setitem__(key, value)


def streams(kind: Any, noting: Noting) -> Iterator[Any]:
    """Streams that call every callback of the table, one after the other; every callback notes where it runs."""
    log = noting.log

    def numbers() -> Iterator[int]:
        log.write(("source", place()))
        yield from (1, 0, 2)
        log.write(("source", place()))

    def passed_on(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            log.write(("iterator", place()))
            yield item

    def f(item: int, _resource: Any) -> float:
        log.write(("f", place()))
        return 1 / item

    options: dict[str, Any] = {} if not isinstance(kind, str) else {"on_done": noting.noting("on_done")}
    stage = pmap(
        suited(f, kind), kind=kind, name="f", workers=2, on_start=noting.noting("on_start", lambda: 0),
        retries=1, backoff=0, retry_on=noting.noting("retry_on", lambda _: True),
        on_error=noting.noting("on_error", lambda *_: SKIP), **options,
    )  # fmt: skip
    memory: dict[str, Any] = {
        "key": noting.noting("key", lambda item: item % 2),
        "rate": Rate(10_000, cost=noting.noting("cost", lambda _: 1)),
        "memo_key": noting.noting("memo_key", str),
    }
    looking = pmap(suited(abs, kind), kind=kind, name="f", workers=2, memo=Memo(noting), **memory)
    any_stage = pmap(suited(abs, kind), kind=kind, workers=2)
    yield stage(numbers())
    yield stage(passed_on(any_stage(range(1, 4))))
    yield looking(numbers())
    yield divert(noting.noting("sink"), any_stage(numbers()), where=int)
    yield batch(2, any_stage(range(3)), weight=noting.noting("weight", lambda _: 1))


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.replace("`", "").replace('"', ""))
def test_each_callback_runs_where_the_table_says(column: str, is_async: bool, log: Log):
    noting = Noting(log)
    kind = COLUMNS[column]()

    async def consume(stream: Any) -> list[Any]:
        return [output async for output in stream]

    for stream in streams(kind, noting):
        asyncio.run(consume(stream)) if is_async else list(stream)
    if not isinstance(kind, str):
        kind.shutdown()
    seen = noting.seen()
    for row, cell in table()[column].items():
        for what in ROWS[row]:
            places = seen.pop(what, set())
            if cell == "not for these":
                assert not places
            else:
                assert places and all(is_place(cell, each, is_async) for each in places), (what, cell, places)
    assert not seen


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
def test_an_async_source_is_iterated_on_the_loop(kind: str, is_async: bool):
    async def numbers():
        yield place()

    looked_up: list[str] = []

    def memo_key(item: str) -> str:
        looked_up.append(place())
        return item

    async def outputs() -> list[str]:
        return await pmap(suited(str, kind), numbers(), kind=kind, memo={}, memo_key=memo_key)

    loop = "the loop of the consumer" if is_async else "a loop of fstream"
    if is_async:
        assert asyncio.run(outputs()) == [loop]
    else:
        assert list(pmap(suited(str, kind), numbers(), kind=kind, memo={}, memo_key=memo_key)) == [loop]
    assert looked_up == [loop if is_async or kind != "sync" else "the thread of the consumer"]


@pytest.mark.parametrize("option", ["on_error", "retry_on"])
def test_after_a_time_out_of_a_thread_the_watch_is_asked(option: str, gate: Gate):
    asked: list[str] = []

    def hook(*_: Any) -> Any:
        asked.append(place())
        return SKIP if option == "on_error" else False

    options: dict[str, Any] = {
        "on_error": "skip",
        **({"retries": 1} if option == "retry_on" else {}),
        option: hook,
    }
    assert list(pmap(lambda _: gate.wait(), [1], kind="thread", name="f", timeout=0.05, **options)) == []
    assert asked == ["fstream-f-watch"]
    gate.open()


@pytest.mark.parametrize(
    "options",
    [{}, {"memo": {}}, {"key": len}, {"rate": Rate(1000, cost=len)}],
    ids=["none", "memo", "key", "cost"],
)
def test_nobody_iterates_a_list_unless_a_stage_looks_at_its_items(concurrent_kind: str, options: Any):
    feeders: list[int] = []

    def count_feeders(_error: Exception, item: str) -> str:
        feeders.append(sum(thread.name == "fstream-feeder" for thread in threading.enumerate()))
        return item

    f = suited(abs, concurrent_kind)
    # There is room for one item, so a feeder waits until that is out.
    stream = pmap(f, ["a", "b"], kind=concurrent_kind, maxsize=1, on_error=count_feeders, **options)
    assert list(stream) == ["a", "b"]
    assert feeders[0] == (1 if options else 0)


# ------------------------------------------------------------------------------------- what may be used in one thread


def rows() -> Iterator[tuple[int]]:
    connection = sqlite3.connect(":memory:")
    try:
        yield from connection.execute("values (1), (2), (3)")
    finally:
        connection.close()


@pytest.mark.parametrize(
    "take", [list, lambda stream: [next(stream), stream.close()][:1]], ids=["all", "some"]
)
def test_a_cursor_is_made_iterated_and_closed_in_one_thread(kind: str, take: Any):
    stream = pmap(star(suited(abs, kind)), rows(), kind=kind)
    assert take(stream) == [1, 2, 3][: 3 if take is list else 1]
