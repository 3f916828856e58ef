"""A dask cluster of two processes: cheap items, items that compute, arrays of 8 MB; beside what is written by hand."""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from benchmarks.efficiency import computing_row
from benchmarks.payload import arrays, scale
from benchmarks.per_item import identity
from benchmarks.rows import Adapter, Bound, ChunkMapper, Mapper, Row, best_chunk, mapping, timed

if TYPE_CHECKING:
    from distributed import Client

#: How many arrays are under way at once, and how many spans.
IN_FLIGHT = 4
#: By default a client has results come by way of the scheduler.
DIRECT = "fstream, direct_to_workers=True"
FLOOR = "by hand: four spans as bytes in flight, best chunk"
CHUNKS = tuple(1 << power for power in range(1, 17))


@contextmanager
def cluster(**options: Any) -> Iterator["Client"]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0", silence_logs=40) as cluster,
        Client(cluster, **options) as client,
    ):
        yield client


def fstream(**options: Any) -> Adapter:
    @contextmanager
    def adapter() -> Iterator[Mapper]:
        from fstream import pmap

        with cluster(**options) as client:
            yield lambda f, items: pmap(f, items, kind=client)

    return adapter


# Cheap items, and items that compute


def run_span(span: bytes) -> bytes:
    f, items = pickle.loads(span)
    return pickle.dumps(list(map(f, items)), protocol=5)


@contextmanager
def spans_by_hand() -> Iterator[ChunkMapper]:
    """What someone writes who knows dask's costs: spans as bytes, as many as there is room for in a message."""
    with cluster() as client:

        def mapper(f: Any, items: Iterable[Any], chunk: int) -> Iterator[Any]:
            source = iter(items)
            spans = iter(lambda: list(islice(source, chunk)), [])
            done: SimpleQueue[Any] = SimpleQueue()
            flying: dict[Any, int] = {}  # the futures, and which span each is
            outputs: dict[int, list[Any]] = {}  # of spans that earlier ones are waited for
            begun = given = 0

            def submit() -> None:
                nonlocal begun
                room = min(IN_FLIGHT, 4 * IN_FLIGHT - len(outputs)) - len(flying)
                if packed := [pickle.dumps((f, span), protocol=5) for span in islice(spans, max(0, room))]:
                    for future in client.map(run_span, packed, pure=False):
                        flying[future], begun = begun, begun + 1
                        future.add_done_callback(done.put)

            submit()
            while flying:
                futures = [done.get()]
                while not done.empty():
                    futures.append(done.get())
                for future, answer in zip(futures, client.gather(futures, direct=True)):
                    outputs[flying.pop(future)] = pickle.loads(answer)
                submit()
                while given in outputs:
                    yield from outputs.pop(given)
                    given += 1

        yield mapper


def client_map(**options: Any) -> Adapter:
    @contextmanager
    def adapter() -> Iterator[Mapper]:
        with cluster() as client:
            yield lambda f, items: client.gather(client.map(f, list(items), pure=False, **options))

    return adapter


@contextmanager
def joblib() -> Iterator[Mapper]:
    from joblib import Parallel, delayed, parallel_config

    with cluster():

        def mapper(f: Any, items: Iterable[Any]) -> Iterable[Any]:
            with parallel_config(backend="dask"):
                outputs: list[Any] = Parallel()(delayed(f)(item) for item in items)
            return outputs

        yield mapper


@contextmanager
def bag() -> Iterator[Mapper]:
    from dask.bag import from_sequence

    with cluster() as client:
        yield lambda f, items: client.compute(from_sequence(list(items), npartitions=16).map(f)).result()


PEERS: dict[str, Adapter] = {
    "Client.map": client_map(),
    "Client.map(batch_size=1000)": client_map(batch_size=1000),
    "joblib on dask": joblib,
    "dask.bag of 16 parts": bag,
}


def cheap() -> Row:
    return Row(
        "dask-range",
        "identity over a range of 400,000 on a dask cluster of two processes",
        "us an item",
        {
            "fstream": timed(fstream(), identity, range),
            FLOOR: best_chunk(spans_by_hand, identity, range, CHUNKS),
        },
        {"fstream": Bound(2, FLOOR)},
        400_000,
        100_000,
        peers=mapping(PEERS, identity, range),
    )


def computing(cost: float, least: float) -> Row:
    """Items of *cost* microseconds; fstream is to have *least* of the floor."""
    return computing_row(
        "dask",
        "a dask cluster of two processes",
        cost,
        fstream(),
        {FLOOR: spans_by_hand},
        CHUNKS,
        Bound(least, FLOOR, at_least=True),
        PEERS,
        quick=lambda size: max(size // 4, 50),
    )


# Arrays


def by_hand(pack: Callable[[Any], Any], unpack: Callable[[Any], Any]) -> Adapter:
    """A window of futures, gathered in order, straight from the workers."""

    @contextmanager
    def adapter() -> Iterator[Mapper]:
        with cluster() as client:

            def mapper(f: Any, items: Iterable[Any]) -> Iterator[Any]:
                flying: deque[Any] = deque()
                for item in items:
                    if len(flying) == IN_FLIGHT:
                        yield unpack(client.gather(flying.popleft(), direct=True))
                    flying.append(client.submit(partial(run, f, unpack, pack), pack(item), pure=False))
                while flying:
                    yield unpack(client.gather(flying.popleft(), direct=True))

            yield mapper

    return adapter


def run(f: Any, unpack: Callable[[Any], Any], pack: Callable[[Any], Any], item: Any) -> Any:
    return pack(f(unpack(item)))


def as_it_is(value: Any) -> Any:
    return value


def large() -> Row:
    return Row(
        "dask-arrays",
        "numpy arrays of 8 MB through a dask cluster of two processes and back, `a * 2 + 1`",
        "ms an array",
        mapping(
            {
                DIRECT: fstream(direct_to_workers=True),
                "fstream": fstream(),
                "submit + gather(direct)": by_hand(as_it_is, as_it_is),
                "the same, pickled to bytes": by_hand(partial(pickle.dumps, protocol=5), pickle.loads),
            },
            scale,
            arrays,
            expected=None,
        ),
        {DIRECT: Bound(1.1, "submit + gather(direct)")},
        100,
        15,
        lambda value, reference: value * 1e3,
    )


ROWS = (cheap(), computing(10, 0.9), *(computing(cost, 0.95) for cost in (100, 1_000, 10_000)), large())
