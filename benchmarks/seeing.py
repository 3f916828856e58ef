"""What it costs to be looked at: the same work with nobody looking, and with each of those who may look."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from pathlib import Path

from benchmarks.adapters import Kind, fstream
from benchmarks.per_item import SIZE, identity
from benchmarks.rows import Adapter, Bound, Mapper, Row, mapping

Look = Callable[[], AbstractContextManager[None]]


def looked_at(adapter: Adapter, look: Look) -> Adapter:
    @contextmanager
    def opened() -> Iterator[Mapper]:
        with adapter() as mapper, look():
            yield mapper

    return opened


@contextmanager
def _observed() -> Iterator[None]:
    from fstream import Observer, observe

    class Counting(Observer):
        items = 0

        def done(self, stage, start, count, seconds, worker):  # type: ignore[no-untyped-def]
            self.items += count

    with observe(Counting()):
        yield


@contextmanager
def _watched() -> Iterator[None]:
    from fstream import watch

    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), watch():
        yield


@contextmanager
def _traced() -> Iterator[None]:
    from fstream import trace

    with tempfile.TemporaryDirectory() as folder, trace(Path(folder) / "run.json"):
        yield


NOBODY = "fstream"
LOOKS: dict[str, Look] = {
    "fstream, observed": _observed,
    "fstream, watched": _watched,
    "fstream, traced": _traced,
}


def _row(kind: Kind) -> Row:
    ours = fstream(kind, 2)
    adapters = {NOBODY: ours, **{name: looked_at(ours, look) for name, look in LOOKS.items()}}
    return Row(
        f"seen-{kind}",
        f"{kind}, identity over a range of {SIZE:,}, with somebody who looks",
        "us an item",
        mapping(adapters, identity, range),
        {name: Bound(1.03, NOBODY) for name in LOOKS},
        SIZE,
        SIZE // 2,
    )


ROWS = (_row("thread"), _row("process"))
