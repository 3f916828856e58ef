"""Each call of the operating system that the library makes, where it fails: an error at once, or the pipeline works.

`TABLE` has a row for each site of such a call, `SOUND` the sites that need none, with the reason. A scan of the source
finds the sites, so a new call must be thought about.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import gc
import importlib
import os
import pkgutil
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import isroutine
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from fstream import WorkerDied, merge, pmap
from fstream._workers.process import child, link
from fstream._workers.process.fresh import FreshProcess
from fstream._workers.process.lifeline import LIFELINE
from fstream._workers.process.warm import WARM
from tests.gates import PATIENCE

LIBRARY: Final = Path(__file__).parent.parent.parent / "fstream"

MODULES: Final = frozenset(
    [
        "_thread",
        "asyncio",
        "fcntl",
        "mmap",
        "multiprocessing",
        "os",
        "resource",
        "select",
        "selectors",
        "signal",
        "_signal",
        "socket",
        "subprocess",
        "tempfile",
        "threading",
    ]
)

pytestmark = [pytest.mark.drawn, pytest.mark.slow]

#: Methods of sockets, threads, selectors and loops: what they are called on is not known to a scan.
METHODS: Final = frozenset(
    [
        "thread.start",
        "process.start",
        "_push.send",
        "sendall",
        "sendmsg",
        "recv",
        "recv_into",
        "recvmsg_into",
        "setsockopt",
        "poll.register",
        "selector.register",
        "selector.modify",
        "selector.select",
        "create_task",
        "call_later",
        "call_soon",
        "call_soon_threadsafe",
        "poll.poll",
        "file.write",
        "file.flush",
    ]
)


class Site(NamedTuple):
    """Where the library makes a call."""

    module: str
    function: str
    call: str


# ---------------------------------------------------------------------------------------------------- the scan


def dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id if isinstance(node, ast.Name) else "", *reversed(parts)])


def sites_in(source: str, module: str) -> Iterator[Site]:
    tree = ast.parse(source)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    names = {name: full for name, full in names.items() if full.split(".")[0] in MODULES}

    def look(node: ast.AST, function: tuple[str, ...]) -> Iterator[Site]:
        for inner in ast.iter_child_nodes(node):
            named = isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if isinstance(inner, ast.Call):
                name = dotted(inner.func)
                first, _, rest = name.partition(".")
                ends = {name.split(".")[-1], ".".join(name.split(".")[-2:])}
                if first in names:
                    yield Site(module, ".".join(function), names[first] + ("." + rest if rest else ""))
                elif method := METHODS & ends:
                    yield Site(module, ".".join(function), min(method))
                for given in map(dotted, inner.args):  # functions that are called by others
                    first, _, rest = given.partition(".")
                    call = f"{names.get(first)}.{rest}"
                    if first in names and rest and isroutine(pkgutil.resolve_name(call)):
                        yield Site(module, ".".join(function), call)
            yield from look(inner, (*function, inner.name) if named else function)  # type: ignore[attr-defined]

    yield from look(tree, ())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


def all_sites() -> set[Site]:
    return {site for path in LIBRARY.rglob("*.py") for site in sites_in(path.read_text(), module_of(path))}


# ----------------------------------------------------------------------------------------------- the pipelines


def slowly(x: int) -> int:
    time.sleep(0.005)  # so that one worker is not enough
    return x


async def slowly_async(x: int) -> int:
    await asyncio.sleep(0.005)
    return x


async def async_items() -> AsyncIterator[int]:
    for x in range(20):
        await asyncio.sleep(0)
        yield x


def items() -> Iterator[int]:
    yield from range(20)


PIPELINES: Final[dict[str, Callable[[], Any]]] = {
    "sync": lambda: pmap(slowly, items(), kind="sync"),
    "thread": lambda: pmap(slowly, items(), kind="thread", workers=2),
    "timed": lambda: pmap(slowly, items(), kind="thread", workers=2, timeout=60.0),
    "task": lambda: pmap(slowly_async, items(), workers=2),
    "timed task": lambda: pmap(slowly_async, items(), workers=2, timeout=60.0),
    "async source": lambda: pmap(slowly, async_items(), kind="thread", workers=2),
    "process": lambda: pmap(slowly, items(), kind="process", workers=2),
    "warm process": lambda: pmap(
        slowly, list(pmap(slowly, items(), kind="process", workers=2)), kind="process"
    ),
    "merged": lambda: merge(items()),
    "executor": lambda: pmap(slowly, items(), kind=partial(ThreadPoolExecutor, 2)),
    "timed executor": lambda: pmap(slowly, items(), kind=partial(ThreadPoolExecutor, 2), timeout=60.0),
}


def taken_by_for(stream: Any) -> list[int]:
    return list(stream)


def taken_by_async_for(stream: Any) -> list[int]:
    async def take() -> list[int]:
        return [output async for output in stream]

    return asyncio.run(take())


LOOPS: Final = {"for": taken_by_for, "async for": taken_by_async_for}


# ---------------------------------------------------------------------------------------------- how calls fail

NO_FILES = OSError(errno.EMFILE, "Too many open files")
NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")
FORBIDDEN = OSError(errno.EPERM, "Operation not permitted")
TRY_LATER = OSError(errno.EAGAIN, "Resource temporarily unavailable")
NO_THREAD = RuntimeError("can't start new thread")
NO_LOCK = RuntimeError("can't allocate lock")


class Failing:
    """A call that fails where one function of the library makes it: at some of the times, or at each if none are."""

    def __init__(
        self, site: Site, real: Any, error: BaseException, times: tuple[int, ...], note: Path
    ) -> None:
        self.count = 0

        def call(*args: Any, **named: Any) -> Any:
            frame = sys._getframe(1)
            if (
                frame.f_globals["__name__"] == f"fstream.{site.module}"
                and frame.f_code.co_qualname.replace(".<locals>", "") == site.function
            ):
                self.count += 1
                if not times or self.count in times:
                    with open(note, "a") as file:
                        file.write("failed\n")
                    raise type(error)(*error.args)
            return real(*args, **named)

        self.call = call


class Standing:
    """A module, or a file, of which one attribute is another."""

    def __init__(self, module: Any, name: str, attribute: Any) -> None:
        self._module = module
        setattr(self, name, attribute)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def __enter__(self) -> Any:
        self._module.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._module.close()


#: Whose methods they are.
OWNERS: Final[dict[str, Any]] = {
    "thread.start": threading.Thread,
    "process.start": FreshProcess,
    **dict.fromkeys(("_push.send", "sendall", "sendmsg", "recv", "recv_into", "recvmsg_into"), socket.socket),
    **dict.fromkeys(("selector.register", "selector.modify", "selector.select"), selectors.DefaultSelector),
    **dict.fromkeys(
        ("create_task", "call_later", "call_soon", "call_soon_threadsafe"), asyncio.BaseEventLoop
    ),
}


def make_fail(
    patch: pytest.MonkeyPatch, site: Site, error: BaseException, times: tuple[int, ...], note: Path
) -> None:
    """Replace the call where the library looks it up; a line goes into *note* each time that it fails."""
    if site.call in OWNERS:
        owner, name = OWNERS[site.call], site.call.split(".")[-1]
        patch.setattr(owner, name, Failing(site, getattr(owner, name), error, times, note).call)
        return
    module = importlib.import_module(f"fstream.{site.module}")
    *parents, name = site.call.split(".")
    parent = importlib.import_module(".".join(parents))
    real = getattr(parent, name)
    call = Failing(site, real, error, times, note).call
    if vars(module).get(parents[-1]) is parent:
        patch.setattr(module, parents[-1], Standing(parent, name, call))
    else:
        patch.setattr(module, name, call)


def failing_main(
    site: Site, error: BaseException, times: tuple[int, ...], note: Path, connection: Any
) -> None:
    """What a worker process runs, where the call fails in it."""
    with pytest.MonkeyPatch.context() as patch:
        make_fail(patch, site, error, times, note)
        child.main(connection)


# --------------------------------------------------------------------------------------------------- the table

ANY: Final = ()
FIRST: Final = (1,)
LATER: Final = (2,)


class Row(NamedTuple):
    """What fails, when, under which pipelines, and what comes of it."""

    site: Site
    error: BaseException
    times: tuple[int, ...]
    pipelines: tuple[str, ...]
    #: The error at the consumer; None where the pipeline works without.
    outcome: type[BaseException] | None
    loops: tuple[str, ...] = ("for", "async for")


def row(
    where: str,
    call: str,
    error: BaseException,
    times: tuple[int, ...],
    pipelines: str,
    outcome: Any = "it",
    **more: Any,
) -> Row:
    module, _, function = where.partition(":")
    outcome = type(error) if outcome == "it" else outcome
    return Row(Site(module, function, call), error, times, tuple(pipelines.split(", ")), outcome, **more)


WORKS: Final = None
PROCESS: Final = "_workers.process"
FOR: Final = ("for",)

TABLE: Final = [
    # Threads, and the locks that they wait in.
    row(
        "_engine.queues:ThreadQueue.taking",
        "threading.Lock",
        NO_LOCK,
        FIRST,
        "thread, task, merged",
        loops=FOR,
    ),
    row("_engine.queues:ThreadQueue.taking", "threading.Lock", NO_LOCK, LATER, "thread, timed, merged"),
    row("_engine.run:Run.__init__", "threading.RLock", NO_LOCK, FIRST, "thread, task, process, merged"),
    row("_engine.run:Run.launch", "thread.start", NO_THREAD, FIRST, "thread, process, merged, executor"),
    row("_engine.run:Run.launch", "thread.start", NO_THREAD, FIRST, "task, async source", loops=FOR),
    row("_engine.run:Run.launch", "thread.start", NO_THREAD, LATER, "timed, process, executor"),
    row(
        "_engine.run:Run.launch", "thread.start", MemoryError("no memory"), LATER, "timed, process, executor"
    ),
    row("_workers.thread:Workers.launch", "thread.start", NO_THREAD, FIRST, "thread, timed, async source"),
    row("_workers.thread:Workers.launch", "thread.start", MemoryError("no memory"), FIRST, "thread, timed"),
    row(
        "_workers.thread:Workers.launch",
        "thread.start",
        NO_THREAD,
        LATER,
        "thread, timed, async source",
        WORKS,
    ),
    row("_workers.thread:Workers.launch", "thread.start", MemoryError("no memory"), LATER, "thread", WORKS),
    row("_workers.thread:Workers.__init__", "threading.Lock", NO_LOCK, FIRST, "thread"),
    row(
        "_engine.run:Run.thread",
        "threading.Thread",
        MemoryError("no memory"),
        FIRST,
        "thread, merged, process",
    ),
    row("_engine.run:Run.thread", "threading.Thread", MemoryError("no memory"), FIRST, "timed, executor"),
    row(
        "_engine.run:Run.thread", "threading.Thread", MemoryError("no memory"), (2,), "timed, timed executor"
    ),
    row("_workers.thread:Watch.__init__", "threading.Lock", MemoryError("no memory"), FIRST, "timed"),
    row("_engine.run:Run.launch", "thread.start", NO_THREAD, (3,), "timed executor"),
    # The event loop of a thread of our own.
    row(
        "_workers.task.host:Host.start",
        "threading.Thread",
        MemoryError("no memory"),
        FIRST,
        "task",
        loops=FOR,
    ),
    row("_workers.task.host:Host._main", "asyncio.Runner", NO_FILES, FIRST, "task, async source", loops=FOR),
    row("_workers.task.private_loop:new_loop", "asyncio.new_event_loop", NO_FILES, FIRST, "task", loops=FOR),
    row(
        "_workers.task.private_loop:PreciseSelector.select",
        "select.select",
        NO_MEMORY,
        FIRST,
        "task",
        loops=FOR,
    ),
    row(
        "_workers.task.private_loop:PreciseSelector.select",
        "select.select",
        NO_MEMORY,
        (3,),
        "timed task",
        loops=FOR,
    ),
    row(
        "_workers.task.private_loop:PreciseSelector.select",
        "select.select",
        NO_MEMORY,
        ANY,
        "task",
        loops=FOR,
    ),
    # A worker process, on the side of its parent.
    row(f"{PROCESS}.queue:PipeQueue.__init__", "socket.socketpair", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.queue:PipeQueue.ring", "_push.send", TRY_LATER, FIRST, "process", WORKS),
    row(f"{PROCESS}.workers:Workers.make_selector", "selectors.DefaultSelector", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.pump:Pump.ignore_interrupts", "signal.pthread_sigmask", FORBIDDEN, FIRST, "process"),
    row(f"{PROCESS}.pump:Pump.steps", "selector.register", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.workers:Workers.employ", "selector.register", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.workers:Workers.employ", "selector.register", NO_MEMORY, LATER, "process"),
    row(f"{PROCESS}.pump:Pump.listen", "selector.select", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.pump:Pump.listen", "selector.select", NO_MEMORY, LATER, "process"),
    row(f"{PROCESS}.lifeline:Lifeline.fd", "os.pipe", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.arena:shared_file", "os.memfd_create", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.arena:shared_file", "os.memfd_create", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.arena:shared_file", "os.ftruncate", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.arena:arenas", "mmap.mmap", NO_MEMORY, ANY, "process", WORKS),
    row(f"{PROCESS}.link:Link.__init__", "mmap.mmap", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.link:Link.__init__", "socket.socketpair", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.link:Link.__init__", "socket.socketpair", NO_FILES, LATER, "process"),
    row(f"{PROCESS}.link:Link.__init__", "os.dup", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.link:Link.__init__", "process.start", TRY_LATER, FIRST, "process"),
    row(f"{PROCESS}.link:Link.__init__", "sendmsg", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.link:Link.__init__", "sendmsg", NO_MEMORY, LATER, "process"),
    row(f"{PROCESS}.link:Link.idle", "recv", NO_MEMORY, ANY, "warm process", WORKS),
    row(f"{PROCESS}.fresh:_Popen._launch", "os.pipe", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.fresh:_Popen._launch", "socket.socketpair", NO_FILES, FIRST, "process"),
    row(f"{PROCESS}.fresh:_Popen._launch", "signal.pthread_sigmask", FORBIDDEN, FIRST, "process"),
    row(
        f"{PROCESS}.fresh:_Popen._launch", "multiprocessing.util.spawnv_passfds", TRY_LATER, FIRST, "process"
    ),
    row(
        f"{PROCESS}.fresh:_Popen._launch", "multiprocessing.util.spawnv_passfds", NO_MEMORY, LATER, "process"
    ),
    row(f"{PROCESS}.fresh:_Popen._launch", "sendall", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.fresh:_Popen._name_for_good", "os.pidfd_open", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.fresh:_Popen._name_for_good", "os.waitid", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.surroundings:_status", "os.open", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.surroundings:_status", "os.read", NO_MEMORY, FIRST, "process"),
    row(f"{PROCESS}.surroundings:inherited", "os.stat", FORBIDDEN, FIRST, "process"),
    row(f"{PROCESS}.surroundings:inherited", "os.getpriority", FORBIDDEN, FIRST, "process"),
    row("_workers:current_folder", "os.getcwd", FileNotFoundError(2, "gone"), FIRST, "process", WORKS),
    row(f"{PROCESS}.wire:Wire.flush", "sendmsg", NO_MEMORY, FIRST, "process", WORKS),  # by another worker
    # Not the second one alone: that may be what a worker is told beside its spans, which waits for the next message.
    row(f"{PROCESS}.wire:Wire.flush", "sendmsg", NO_MEMORY, (2, 3, 4), "process"),
    row(
        f"{PROCESS}.wire:Wire.flush",
        "sendmsg",
        BlockingIOError(errno.EAGAIN, "full"),
        FIRST,
        "process",
        WORKS,
    ),
    row(f"{PROCESS}.wire:Wire.receive", "recv_into", NO_MEMORY, FIRST, "process", WORKS),  # by another worker
    row(
        f"{PROCESS}.wire:Wire.receive",
        "recv_into",
        BlockingIOError(errno.EAGAIN, "not yet"),
        FIRST,
        "process",
        WORKS,
    ),
]

#: The same in a worker process.
IN_THE_WORKER: Final = [
    row(f"{PROCESS}.arena:arenas", "mmap.mmap", NO_MEMORY, ANY, "process", WORKS),
    row(f"{PROCESS}.child:Child.__init__", "threading.RLock", NO_LOCK, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:Child.read", "select.poll", NO_MEMORY, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:die_with", "os.open", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.child:die_with", "fcntl.fcntl", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.child:lead_a_group", "os.setpgid", FORBIDDEN, ANY, "process", WORKS),
    row(f"{PROCESS}.child:lead_a_group", "signal.signal", FORBIDDEN, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:leave_to_the_parent", "signal.signal", FORBIDDEN, ANY, "process", WorkerDied),
    row(
        f"{PROCESS}.child:leave_to_the_parent",
        "signal.pthread_sigmask",
        FORBIDDEN,
        ANY,
        "process",
        WorkerDied,
    ),
    row(f"{PROCESS}.child:main", "os.dup", NO_FILES, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:main", "socket.socket", NO_MEMORY, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:main", "socket.recv_fds", NO_MEMORY, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:main", "mmap.mmap", NO_MEMORY, ANY, "process", WorkerDied),
    row(f"{PROCESS}.child:main", "threading.Thread", MemoryError("no memory"), ANY, "process", WorkerDied),
    row(f"{PROCESS}.wire:Wire.flush", "sendmsg", NO_MEMORY, (3,), "process", WorkerDied),
    row(f"{PROCESS}.wire:Wire.receive", "recv_into", NO_MEMORY, (2,), "process", WorkerDied),
]


def fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def children() -> set[str]:
    """The child processes of this one, those included that have ended, and that nobody has waited for."""
    while True:
        try:
            paths = Path("/proc/self/task").glob("*/children")
            return {pid for path in paths for pid in path.read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread has ended meanwhile: another one has its children


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No files and no processes are left behind, warm workers aside; nor is any error only printed."""
    WARM.clear()
    LIFELINE.forget()
    before = fds(), children()
    yield
    WARM.clear()
    LIFELINE.forget()
    after = fds(), children()
    assert after[0] <= before[0]
    assert not after[1] - before[1]


def outcome_of(make: Callable[[], Any], take: Callable[[Any], list[int]], most: float = PATIENCE) -> Any:
    began = time.monotonic()
    try:
        return sorted(take(make()))
    except BaseException as error:
        return error
    finally:
        assert time.monotonic() - began < most


def check(
    row: Row, pipeline: str, loop: str, note: Path, patch: Callable[[pytest.MonkeyPatch], None]
) -> None:
    make, take = PIPELINES[pipeline], LOOPS[loop]
    with pytest.MonkeyPatch.context() as monkeypatch:
        patch(monkeypatch)
        # Processes take a second each to start on a machine that is busy; else it is a matter of milliseconds, and what
        # is waited for in vain, of five seconds.
        outcome = outcome_of(make, take, PATIENCE if "process" in pipeline else PATIENCE / 5)
    assert note.exists(), "the call was not made"
    if row.outcome is None:
        assert outcome == list(range(20))
    else:
        assert type(outcome) is row.outcome, outcome
    del outcome
    WARM.clear()  # those that were started under the fault
    assert outcome_of(make, take) == list(range(20))


def cases(table: list[Row]) -> list[Any]:
    return [
        pytest.param(
            each, pipeline, loop, id=f"{each.site.function}-{each.site.call}-{number}-{pipeline}-{loop}"
        )
        for number, each in enumerate(table)
        for pipeline in each.pipelines
        for loop in each.loops
    ]


@pytest.mark.parametrize(("row", "pipeline", "loop"), cases(TABLE))
def test_a_call_that_fails(row: Row, pipeline: str, loop: str, tmp_path: Path, nothing_left: None):
    note = tmp_path / "note"
    check(row, pipeline, loop, note, lambda patch: make_fail(patch, row.site, row.error, row.times, note))


@pytest.mark.parametrize(("row", "pipeline", "loop"), cases(IN_THE_WORKER))
def test_a_call_that_fails_in_a_worker_process(
    row: Row, pipeline: str, loop: str, tmp_path: Path, nothing_left: None
):
    note = tmp_path / "note"
    main = partial(failing_main, row.site, row.error, row.times, note)
    check(
        row, pipeline, loop, note, lambda patch: patch.setattr(link, "child", Standing(child, "main", main))
    )


# -------------------------------------------------------------------------------------------------- the others

#: Calls that need no row wherever they are, with the reason.
HARMLESS: Final = {
    "reads or makes a number or a text, or an object of Python alone": """
        os.getpid threading.current_thread threading.get_ident threading.main_thread threading.local os.fsencode
        os.fspath os.fsdecode signal.default_int_handler _signal.getsignal
        os.path.join os.path.dirname os.path.basename os.waitstatus_to_exitcode signal.Signals signal.getsignal
        asyncio.CancelledError asyncio.Event asyncio.Lock asyncio.Handle asyncio.TimerHandle asyncio.Future asyncio.Task
        asyncio.timeout asyncio.current_task asyncio._get_running_loop asyncio._set_running_loop asyncio._enter_task
        asyncio._leave_task os.getuid os.geteuid os.getgid os.getegid os.environ.get os.environ.clear os.environ.update
        os.cpu_count os.process_cpu_count multiprocessing.context.set_spawning_popen
        multiprocessing.spawn.get_command_line multiprocessing.process._children.add
        multiprocessing.process._children.difference_update multiprocessing.connection.Connection os._exit
        threading.RLock
        """,
    "closes a file that is open: what it says of an error, the file is closed": "os.close",
    "in C a change of a list; on a loop that is closed it is an error of the loop's owner": """
        create_task call_later call_soon asyncio.sleep asyncio.wait asyncio.create_task
        """,
    "while a module is imported: the import fails": """
        os.register_at_fork multiprocessing.util.register_after_fork
        """,
}

#: Sites that need no row, with the reason.
SOUND: Final = {
    ("_workers.simulated.processes", "selectors.SelectorKey"): "a tuple",
    ("_seen.trace", "file.write"): "test_a_full_disk_is_an_error_at_the_end_of_the_block in test_trace",
    ("_engine.rates", "threading.Lock"): "where a rate is made: nothing is open yet",
    ("_workers.memory", "threading.Lock"): "where a run is laid: nothing is open yet",
    ("_workers.dask", "os.urandom"): "where a run is laid: nothing is open yet",
    (
        "_workers.dask",
        "asyncio.run_coroutine_threadsafe",
    ): "the spans fail: test_a_client_that_is_closed_under_a_stream_is_an_error",
    ("_workers.dask", "asyncio.ensure_future"): "in Python alone, as the next two",
    ("_workers.dask", "asyncio.gather"): "in Python alone",
    ("_workers.dask", "asyncio.wrap_future"): "in Python alone",
    ("_workers.parcels", "os.urandom"): "while the module is imported",
    (
        "_workers.parcels",
        "thread.start",
    ): "too many threads are an answer of the worker's, an error of the stage",
    ("_workers.parcels", "threading.Thread"): "in the same block",
    ("_workers.parcels", "_thread.daemon_threads_allowed"): "while the module is imported",
    ("_workers.parcels", "threading._register_atexit"): "while the module is imported",
    ("_workers.parcels", "threading.Lock"): "in a worker: an error of the executor's, which ends the stage",
    ("_workers.process.imported", "os.stat"): "a file that is gone counts as unchanged",
    ("_workers.sync", "threading.Lock"): "where a stream is made: nothing is open yet",
    ("_workers.task.inline", "asyncio.Runner"): "before anything is open: an error of the consumer's",
    (
        "journal",
        "os.fstat",
    ): "of a file that was just opened, where the journal is made: nothing else is open yet",
    ("journal", "os.open"): "an error where the journal is made: nothing is open yet",
    ("journal", "os.ftruncate"): "test_a_full_disk_is_an_error_and_loses_nothing in test_journal",
    ("journal", "os.write"): "test_a_full_disk_is_an_error_and_loses_nothing in test_journal",
    ("journal", "fcntl.flock"): "test_two_at_once_on_one_file_are_refused in test_journal",
    (
        "_engine.interrupts",
        "_signal.signal",
    ): "for signals that have a handler: cannot fail in the main thread",
    (
        "_engine.run",
        "_thread.start_new_thread",
    ): "test_a_run_whose_stream_is_dropped_where_no_thread_can_be_started",
    ("_engine.reports", "threading.Lock"): "where a run is laid: nothing is open yet",
    ("_workers.cpus", "os.sched_getaffinity"): "of this process itself: cannot fail",
    ("_workers.process.child", "os.killpg"): "the process ends in the next line, by its own hand",
    ("_workers.process.child", "signal.pthread_kill"): "the main thread lives as long as the process",
    ("_workers.process.child", "poll.register"): "in C a change of a dict",
    ("_workers.process.child", "poll.poll"): "as select.poll: in the same block",
    **dict.fromkeys(
        [
            ("_workers.process.child", "leave_to_the_parent.before signal.pthread_sigmask"),
            ("_workers.process.child", "leave_to_the_parent.after signal.pthread_sigmask"),
            ("_workers.process.child", "leave_to_the_parent.after_in_fork signal.signal"),
        ],
        "around a fork of f's: the same calls have worked when the worker started",
    ),
    ("_workers.process.fresh", "_Popen.__init__ threading.Lock"): "before anything is open",
    (
        "_workers.process.fresh",
        "FreshProcess._bootstrap os.open",
    ): "in the worker before it starts: it dies, as in os.dup",
    (
        "_workers.process.fresh",
        "multiprocessing.util._flush_std_streams",
    ): "multiprocessing's own, which ignores errors",
    (
        "_workers.process.fresh",
        "multiprocessing.connection.wait",
    ): "an error in the pump ends the stage, as does select",
    (
        "_workers.process.fresh",
        "_Popen._ended os.waitpid",
    ): "of a child that was not waited for: cannot fail but by ECHILD",
    ("_workers.process.fresh", "_Popen._ended os.waitid"): "the same",
    **dict.fromkeys(
        [
            ("_workers.process.fresh", f"_Popen.kill {call}")
            for call in ("os.kill", "os.killpg", "signal.pidfd_send_signal")
        ],
        "it has ended, or may not be killed: then its closed socket ends it",
    ),
    ("_workers.process.fresh", "multiprocessing.reduction.dump"): "into memory, before anything is open",
    ("_workers.process.fresh", "multiprocessing.util.Finalize"): "in Python alone",
    ("_workers.process.lifeline", "threading.Lock"): "while a module is imported, or in a fork",
    (
        "_workers.process.link",
        "multiprocessing.connection.wait",
    ): "an error in the pump ends the stage, as does select",
    ("_workers.process.link", "file.write"): "test_a_full_disk_where_there_is_no_memory_file",
    ("_workers.process.link", "file.flush"): "test_a_full_disk_where_there_is_no_memory_file",
    ("_workers.process.link", "tempfile.TemporaryFile"): "test_a_full_disk_where_there_is_no_memory_file",
    ("_workers.process.link", "_cell_file os.dup"): "test_a_full_disk_where_there_is_no_memory_file",
    (
        "_workers.process.surroundings",
        "os.chdir",
    ): "what fails is another worker's folder: test_worker_surroundings",
    ("_workers.process.queue", "recv"): "of a bell that is silent: in test_processes",
    ("_workers.process.surroundings", "os.umask"): "cannot fail",
    ("_workers.process.surroundings", "resource.getrlimit"): "of this process itself: cannot fail",
    ("_workers.process.surroundings", "os.getgroups"): "of this process itself: cannot fail",
    ("_workers.process.warm", "threading.Lock"): "before anything is open, or in a fork",
    (
        "_workers.process.pool",
        "threading.Lock",
    ): "before anything is open, in a fork, or at the end: nothing is held then",
    ("_workers.processes", "threading.Lock"): "before anything is open",
    ("_workers.process.start", "multiprocessing.get_context"): "of a name that was checked",
    ("_workers.process.start", "multiprocessing.current_process"): "of this process itself: cannot fail",
    ("_workers.process.start", "os.killpg"): "it has ended, or is killed by its number in the next line",
    ("_workers.process.warm", "multiprocessing.util.Finalize"): "in Python alone",
    (
        "_workers.process.relay",
        "threading.Thread",
    ): "test_where_no_thread_can_be_had_each_line_is_sent_at_once",
    ("_workers.process.relay", "thread.start"): "test_where_no_thread_can_be_had_each_line_is_sent_at_once",
    ("_workers.process.wire", "threading.Lock"): "while a module is imported",
    ("_workers.process.wire", "setsockopt"): "macOS alone, on a socket that is open",
    ("_workers.process.wire", "recvmsg_into"): "as recv_into: in the same block",
    (
        "_workers.process.workers",
        "selector.modify",
    ): "only where a socket is full; an error ends the stage, as does select",
    ("_workers.task.private_loop", "asyncio.SelectorEventLoop"): "test_no_file_is_left_for_a_loop",
    ("_workers.task.reach", "call_soon_threadsafe"): "of a loop that was closed: test_loops_that_fail",
}


def names_of(site: Site) -> set[tuple[str, str]]:
    return {(site.module, site.call), (site.module, f"{site.function} {site.call}")}


def is_sound(site: Site) -> bool:
    harmless = {call for calls in HARMLESS.values() for call in calls.split()}
    return site.call in harmless or bool(names_of(site) & set(SOUND))


def test_each_call_that_can_fail_is_in_the_table_or_known_to_be_sound():
    tabled = {row.site for row in (*TABLE, *IN_THE_WORKER)}
    assert not {site for site in all_sites() - tabled if not is_sound(site)}
    assert not tabled - all_sites()
    assert not set(SOUND) - {name for site in all_sites() for name in names_of(site)}


def test_the_scan_finds_calls_however_they_are_imported():
    source = """
import os, multiprocessing.connection as connection
from select import select as choose

class A:
    def f(self):
        def g():
            os.environ.get("x")
        connection.wait([])
        choose([])
        print(map(os.stat, []), os.sep)
        self.link.sock.sendmsg([])
        self.thread.start()
        self.start()
"""
    assert set(sites_in(source, "m")) == {
        Site("m", "A.f.g", "os.environ.get"),
        Site("m", "A.f", "multiprocessing.connection.wait"),
        Site("m", "A.f", "select.select"),
        Site("m", "A.f", "os.stat"),
        Site("m", "A.f", "sendmsg"),
        Site("m", "A.f", "thread.start"),
    }


def test_a_run_whose_stream_is_dropped_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise NO_THREAD

    stream = pmap(slowly, iter(int, 1), kind="thread", workers=2)
    next(stream)
    lock = stream._outputs.run.lock  # type: ignore[union-attr]
    monkeypatch.setattr("fstream._engine.run.start_new_thread", refuse)
    with lock:  # as where it is collected in the middle of a change
        del stream
    assert list(pmap(slowly, range(3), kind="thread")) == [0, 1, 2]  # and what was dropped is gone


@pytest.mark.parametrize("fails", ["TemporaryFile", "write", "flush"])
def test_a_full_disk_where_there_is_no_memory_file(
    fails: str, monkeypatch: pytest.MonkeyPatch, nothing_left: None
):
    full = OSError(errno.ENOSPC, "No space left on device")
    real = tempfile.TemporaryFile

    def make() -> Any:
        if fails == "TemporaryFile":
            raise full
        file = real()

        def fail(*_: Any) -> None:
            raise full

        return Standing(file, fails, fail) if fails in {"write", "flush"} else file

    with monkeypatch.context() as patch:
        patch.setattr(link, "shared_file", lambda *_: None)
        patch.setattr(link, "tempfile", Standing(tempfile, "TemporaryFile", make))
        with pytest.raises(OSError, match="No space left"):
            list(PIPELINES["process"]())
    with monkeypatch.context() as patch:
        patch.setattr(link, "shared_file", lambda *_: None)
        assert list(PIPELINES["process"]()) == list(range(20))
