"""The cost of one item that costs nothing: what the library itself takes."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from benchmarks.adapters import Kind, chunked_imap, fstream, fstream_async, peers, task_peers
from benchmarks.floors import hundred_tasks
from benchmarks.rows import Adapter, Bound, Row, bare, best_chunk, mapping, serial, timed

SIZE = 1_000_000
CHUNKS = (1_000, 3_000, 10_000, 30_000, 100_000)


def identity(item: int) -> int:
    return item


async def identity_task(item: int) -> int:
    return item


def generate(n: int) -> Iterator[int]:
    yield from range(n)


def _cheap(
    kind: Kind, source: str, items: Callable[[int], Iterable[int]], peers: Mapping[str, Adapter]
) -> Row:
    rival = f"{'ThreadPool' if kind == 'thread' else 'Pool'}.imap, best chunk"
    return Row(
        f"{kind}-{source}",
        f"{kind}, identity over a {source} of {SIZE:,}",
        "us an item",
        {
            "fstream": timed(fstream(kind, 2), identity, items),
            rival: best_chunk(partial(chunked_imap, kind), identity, items, CHUNKS),
        },
        {"fstream": Bound(1.5, rival) if items is range else Bound(0.6)},
        SIZE,
        SIZE // (2 if items is range else 4),
        peers=mapping(peers, identity, items),
    )


def _tasks(*, in_loop: bool) -> Row:
    floor = "100 tasks sharing one iterator"
    return Row(
        f"task-{'async-for' if in_loop else 'for'}",
        f"task, `async def f(x): return x`, 100 workers, `{'async for' if in_loop else 'for'}`",
        "us an item",
        {
            "fstream": timed(fstream_async if in_loop else fstream("task"), identity_task, range),
            floor: timed(bare(hundred_tasks), identity_task, range),
        },
        {"fstream": Bound(2, floor)},
        SIZE,
        SIZE // 4,
        peers=mapping(task_peers(in_loop=in_loop), identity_task, range),
    )


SEQUENCES: Mapping[str, Callable[[int], Sequence[int]]] = {
    "list": lambda n: list(range(n)),
    "tuple": lambda n: tuple(range(n)),
    "range": range,
    "array": lambda n: array("q", range(n)),
}


def _sources(kind: Kind) -> Row:
    """The sequences are built before the clock starts."""
    ours, generator = fstream(kind, 2), "fstream, generator"
    contenders = {f"fstream, {name}": timed(ours, identity, build) for name, build in SEQUENCES.items()}
    return Row(
        f"{kind}-sources",
        f"{kind}, identity over a sequence of {SIZE:,}, against a generator",
        "us an item",
        {generator: timed(ours, identity, generate), **contenders},
        {name: Bound(1, generator) for name in contenders},
        SIZE,
        SIZE // 4,
    )


ROWS = (
    _cheap("thread", "range", range, peers("thread")),
    _cheap("process", "range", range, peers("process")),
    _cheap("thread", "generator", generate, {}),
    _cheap("process", "generator", generate, {}),
    _tasks(in_loop=False),
    _tasks(in_loop=True),
    Row(
        "sync",
        f"sync, identity over `range({SIZE:,})`",
        "us an item",
        mapping({"fstream": fstream("sync"), "map": serial}, identity, range),
        {"fstream": Bound(1.3, "map")},
        SIZE,
        SIZE // 4,
    ),
    _sources("thread"),
    _sources("process"),
)
