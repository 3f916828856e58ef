"""Nothing is pulled, and no thread, process or task started, before the first next."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from toolz import pipe

from fstream import Stream, merge, ordered, peach, pfilter, pflat_map, pmap
from tests.functions import identity
from tests.gates import Log
from tests.leaks import Running
from tests.sources import Source


def everything(kind: str, source: Source) -> Stream[Any]:
    return pipe(
        source,
        pmap(identity, kind=kind),
        pfilter(lambda item: True, kind=kind, ordered=False),
        pflat_map(lambda item: [item], kind=kind),
        ordered,
        merge,
    )


PIPELINES: dict[str, Callable[[str, Source], Stream[Any]]] = {
    "pmap": lambda kind, source: pmap(identity, source, kind=kind),
    "pfilter": lambda kind, source: pfilter(lambda item: True, source, kind=kind),
    "pflat_map": lambda kind, source: pflat_map(lambda item: [item], source, kind=kind),
    "bar": lambda kind, source: source | pmap(identity, kind=kind) | pmap(identity, kind=kind),
    "ordered": lambda kind, source: ordered(pmap(identity, source, kind=kind, ordered=False)),
    "merge": lambda kind, source: merge(pmap(identity, source, kind=kind), source),
    "everything": everything,
}


@pytest.mark.parametrize("build", PIPELINES.values(), ids=PIPELINES.keys())
def test_nothing_happens_before_the_first_next(build: Callable[[str, Source], Stream[Any]], kind: str):
    source, before = Source(range(1_000)), Running.now()
    stream = build(kind, source)
    assert iter(stream) is stream
    assert source.pulled == 0
    assert Running.now() == before
    assert next(stream) == 0
    assert source.pulled > 0
    stream.close()


def test_a_worker_starts_no_earlier(kind: str, log: Log):
    stream = pmap(identity, [1], kind=kind, on_start=lambda: log.write("start"))
    assert log.entries() == []
    assert next(stream) == 1
    assert log.entries()[0] == "start"
    stream.close()


def test_peach_waits_for_the_first_next_too(kind: str, log: Log):
    stream = peach(log.write, [1, 2, 3], kind=kind, workers=1)
    assert log.entries() == []
    assert next(stream, "end") == "end"
    assert log.entries() == [1, 2, 3]


@pytest.mark.parametrize("end", [Stream.close, lambda stream: None], ids=["close", "forget"])
def test_a_stream_that_never_starts_touches_nothing(kind: str, end: Callable[[Stream[Any]], None]):
    source, before = Source(count()), Running.now()
    stream = pmap(identity, source, kind=kind) | pmap(identity, kind=kind)
    end(stream)
    del stream
    assert source.pulled == 0
    assert Running.now() == before


def test_sync_pulls_one_item_for_one_output():
    source = Source(count())
    stream = pipe(source, pmap(identity, kind="sync"), pfilter(lambda item: item % 2, kind="sync"))
    assert [next(stream), source.pulled] == [1, 2]
    assert [next(stream), source.pulled] == [3, 4]
    stream.close()
