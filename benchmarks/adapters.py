"""fstream and its peers, each at its defaults, behind one signature: `mapper(f, items)` gives the outputs.

An adapter is a context manager that opens what the peer keeps open between two runs (a pool) and gives the
mapper. It imports the peer, so that one that is not installed is an `ImportError` of its own contenders only.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import Pool, ThreadPool
from typing import Any, Literal

from benchmarks.rows import Adapter, ChunkMapper, Mapper, OnlyAsync

Kind = Literal["thread", "process"]


def fstream(kind: str, workers: int | None = None) -> Adapter:
    @contextmanager
    def adapter() -> Iterator[Mapper]:
        from fstream import pmap

        options: dict[str, Any] = {"kind": kind} if workers is None else {"kind": kind, "workers": workers}
        yield lambda f, items: pmap(f, items, **options)

    return adapter


def _pool(kind: Kind, workers: int) -> Pool:
    return ThreadPool(workers) if kind == "thread" else multiprocessing.Pool(workers)


def _executor(kind: Kind, workers: int) -> ThreadPoolExecutor | ProcessPoolExecutor:
    return ThreadPoolExecutor(workers) if kind == "thread" else ProcessPoolExecutor(workers)


@contextmanager
def chunked_imap(kind: Kind, workers: int = 2) -> Iterator[ChunkMapper]:
    with _pool(kind, workers) as pool:
        yield pool.imap


@contextmanager
def _imap(kind: Kind, workers: int) -> Iterator[Mapper]:
    with _pool(kind, workers) as pool:
        yield pool.imap


@contextmanager
def _executor_map(kind: Kind, workers: int) -> Iterator[Mapper]:
    with _executor(kind, workers) as executor:
        yield executor.map


@contextmanager
def _joblib(kind: Kind, workers: int) -> Iterator[Mapper]:
    from joblib import Parallel, delayed

    prefer = "threads" if kind == "thread" else "processes"
    with Parallel(n_jobs=workers, prefer=prefer, return_as="generator") as parallel:
        yield lambda f, items: parallel(delayed(f)(item) for item in items)


@contextmanager
def _mpire(kind: Kind, workers: int) -> Iterator[Mapper]:
    from mpire.pool import WorkerPool

    start_method = "threading" if kind == "thread" else "fork"
    with WorkerPool(n_jobs=workers, start_method=start_method, keep_alive=True) as pool:
        yield pool.imap


@contextmanager
def _pebble(kind: Kind, workers: int) -> Iterator[Mapper]:
    import pebble

    pool_type = pebble.ThreadPool if kind == "thread" else pebble.ProcessPool
    with pool_type(max_workers=workers) as pool:
        yield lambda f, items: pool.map(f, items).result()


@contextmanager
def _pypeln(kind: Kind, workers: int) -> Iterator[Mapper]:
    import pypeln

    stage = pypeln.thread if kind == "thread" else pypeln.process
    yield lambda f, items: stage.map(f, items, workers=workers)


@contextmanager
def _streamable(kind: Kind, workers: int) -> Iterator[Mapper]:
    from streamable import stream

    with _executor(kind, workers) as executor:
        yield lambda f, items: stream(items).map(f, concurrency=executor)


def peers(kind: Kind, workers: int = 2) -> dict[str, Adapter]:
    """The peers that map with threads or processes. pypeln's outputs are unordered, all others' ordered."""
    pool, executor = (
        ("ThreadPool.imap", "ThreadPoolExecutor.map")
        if kind == "thread"
        else ("Pool.imap", "ProcessPoolExecutor.map")
    )
    adapters = {
        pool: _imap,
        executor: _executor_map,
        "joblib": _joblib,
        "mpire": _mpire,
        "pebble": _pebble,
        "streamable": _streamable,
        "pypeln": _pypeln,
    }
    return {name: partial(adapter, kind, workers) for name, adapter in adapters.items()}


@contextmanager
def fstream_async(workers: int | None = None) -> Iterator[Mapper]:
    """Task workers, iterated with `async for`."""
    with fstream("task", workers)() as mapper:
        yield lambda f, items: OnlyAsync(mapper(f, items))  # type: ignore[arg-type]


@contextmanager
def _pypeln_tasks(*, in_loop: bool) -> Iterator[Mapper]:
    import pypeln

    def mapper(f: Any, items: Any) -> Any:
        stage = pypeln.task.map(f, items, workers=100)
        return OnlyAsync(stage) if in_loop else stage

    yield mapper


@contextmanager
def _streamable_tasks(*, in_loop: bool) -> Iterator[Mapper]:
    from streamable import stream

    def mapper(f: Any, items: Any) -> Any:
        outputs = stream(items).map(f, concurrency=100)
        return OnlyAsync(outputs) if in_loop else outputs

    yield mapper


@contextmanager
def _aiostream() -> Iterator[Mapper]:
    from aiostream import stream

    yield lambda f, items: stream.map(stream.iterate(items), f, task_limit=100)


def task_peers(*, in_loop: bool) -> dict[str, Adapter]:
    """The peers that map a coroutine function with 100 tasks, iterated with `async for` or with `for`."""
    adapters: dict[str, Adapter] = {
        "streamable": partial(_streamable_tasks, in_loop=in_loop),
        "pypeln": partial(_pypeln_tasks, in_loop=in_loop),
    }
    return {**adapters, "aiostream": _aiostream} if in_loop else adapters
