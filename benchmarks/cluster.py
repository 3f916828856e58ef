"""A dask cluster of two processes: arrays of 8 MB there and back, beside what is written by hand."""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.payload import arrays, scale
from benchmarks.rows import Adapter, Bound, Mapper, Row, mapping

if TYPE_CHECKING:
    from distributed import Client

IN_FLIGHT = 4


@contextmanager
def cluster() -> Iterator["Client"]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(2, threads_per_worker=1, dashboard_address=":0", silence_logs=40) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextmanager
def fstream() -> Iterator[Mapper]:
    from fstream import pmap

    with cluster() as client:
        yield lambda f, items: pmap(f, items, kind=client)


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


ROWS = (
    Row(
        "dask-arrays",
        "numpy arrays of 8 MB through a dask cluster of two processes and back, `a * 2 + 1`",
        "ms an array",
        mapping(
            {
                "fstream": fstream,
                "submit + gather(direct)": by_hand(as_it_is, as_it_is),
                "the same, pickled to bytes": by_hand(partial(pickle.dumps, protocol=5), pickle.loads),
            },
            scale,
            arrays,
            expected=None,
        ),
        {"fstream": Bound(1.1, "submit + gather(direct)")},
        100,
        15,
        lambda value, reference: value * 1e3,
    ),
)
