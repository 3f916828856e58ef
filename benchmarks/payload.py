"""Large items: numpy arrays of 8 MB to a worker process and back."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.adapters import fstream, peers
from benchmarks.rows import Bound, Row, mapping, serial

if TYPE_CHECKING:
    from numpy import ndarray

NUMBERS = 1_000_000


def scale(array: "ndarray") -> "ndarray":
    return array * 2 + 1


def arrays(n: int) -> Iterator["ndarray"]:
    import numpy

    return (numpy.full(NUMBERS, float(index)) for index in range(n))


def _row() -> Row:
    adapters = {"in process, serial": serial, "fstream": fstream("process", 2)}
    return Row(
        "payload",
        "numpy arrays of 8 MB through a process stage and back, `a * 2 + 1`",
        "of serial throughput",
        mapping(adapters, scale, arrays, expected=None),
        {"fstream": Bound(0.45, at_least=True)},
        100,
        15,
        lambda value, reference: reference / value,
        "in process, serial",
        mapping(peers("process"), scale, arrays, expected=None),
    )


ROWS = (_row(),)
