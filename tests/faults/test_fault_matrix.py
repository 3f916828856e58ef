"""Every fault of `fault_table`, on every kind, ordered and not, for all windows and sources.

By default the combinations that take their time (processes, time-outs) are covered pair by pair: each window with
each source, each of them ordered and unordered. `FSTREAM_MATRIX=full` tries every combination. `FSTREAM_MATRIX=drawn`
tries a tenth of the pairs, by the seed FSTREAM_DRAW: today's date where none is given.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fstream import pmap
from tests.faults import faulty
from tests.faults.fault_table import (
    FAULTS,
    ITEMS,
    KINDS,
    SOURCES,
    STAGE,
    Case,
    Gives,
    Raises,
    cells,
    chosen,
)
from tests.faults.faulty import HANG, SLACK, Before, Faulty, Gate, Tally, Watch, as_coroutine, eventually, ten

pytestmark = [pytest.mark.timeout(HANG / 2), pytest.mark.slow]

WORKERS = 2


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Stands in for the leak check of all tests: that of `test_fault` is as strict, and quick."""


def inputs(case: Case) -> Iterator[Any]:
    """Numbers, with the case's bad item among them, or with a failure of the source in its place."""
    numbers = itertools.count() if case.source == "infinite" else range(ITEMS)
    for number in numbers:
        if number == case.at:
            if case.fault.source_act:
                case.fault.source_act(number)
            yield case.bad_item
        else:
            yield number


def function(case: Case, tally: Tally) -> Callable[[Any], Any]:
    """The f of the case: faulty at its bad item."""
    fault = case.fault
    if fault.function:
        return fault.function
    act = (case.kind == "task" and fault.task_act) or fault.act
    f = Faulty(act, tally, case.at, fault.times)
    return as_coroutine(f) if case.kind == "task" else f


def how_many(case: Case) -> int:
    """How many inputs to see through; of an endless source some that follow the last bad item."""
    return ITEMS + 3 if case.source == "infinite" else ITEMS


def outputs(case: Case) -> list[Any]:
    """What a stage without faults would give, or one that drops the bad item or replaces its output."""
    expected: list[Any] = [ten(number) for number in range(how_many(case))]
    if isinstance(case.fault.expect, Gives):
        instead = case.fault.expect.instead
        expected[case.at : case.at + 1] = [instead(case.at)] if instead else []
    return expected


def consume(
    stream: Iterable[Any], watch: Watch, gate: Gate, enough: Callable[[list[Any]], bool], into: list[Any]
) -> None:
    """Take outputs into a list until there are enough; for each, the slow source may go on by one item."""
    for output in stream:
        into.append(output)
        watch.given += 1
        gate.allow()
        if enough(into):
            break


@pytest.mark.parametrize("case", chosen(), ids=lambda case: case.id)
def test_fault(case: Case, tmp_path: Path) -> None:
    tally, watch, before = Tally(str(tmp_path / "tally")), Watch(), Before()
    gate = Gate(2)  # one for the item that the consumer waits for, one for a bad item that gives no output
    faulty.RAISED.clear()
    faulty.RELEASE.clear()
    source: Iterable[Any] = list(inputs(case)) if case.source == "list" else inputs(case)
    if case.source == "slow":
        source = gate.guard(source)
    if case.source != "list":
        source = watch.source(source)
    stage = pmap(
        function(case, tally),
        kind=case.kind,
        workers=WORKERS,
        ordered=case.ordered,
        maxsize=case.maxsize,
        name=STAGE,
        **case.fault.options(tally),
    )
    stream = stage(source)
    try:
        if isinstance(case.fault.expect, Gives):
            assert_gives(case, stream, watch, gate, tally)
        else:
            assert_raises(case, case.fault.expect, stream, watch, gate, tally)
    finally:
        stream.close()
        gate.open()
        faulty.RELEASE.set()
    assert next(stream, None) is None, "the stream goes on after its end"
    assert eventually(lambda: watch.released), (
        f"source iterated by {watch.threads}, closed by {watch.closed_by}"
    )
    before.assert_all_released(children=case.kind == "process")
    assert_held(case, watch)
    assert_handled(case, tally)
    if case.fault.expect.tries is not None:
        assert tally.count("start", case.at) == case.fault.expect.tries
    # and the next pipeline is none the worse for it
    assert list(pmap(ten, kind=case.kind, workers=WORKERS)(range(3))) == [0, 10, 20]


def has_handler(case: Case, tally: Tally) -> bool:
    return isinstance(case.fault.options(tally).get("on_error"), faulty.Handler)


def settled(case: Case, tally: Tally) -> bool:
    """Whether the bad item has been tried as often as it must, and handled."""
    tries = case.fault.expect.tries or 0
    return tally.count("start", case.at) >= tries and tally.count("handler") >= has_handler(case, tally)


def assert_gives(case: Case, stream: Iterable[Any], watch: Watch, gate: Gate, tally: Tally) -> None:
    got: list[Any] = []
    expected = outputs(case)
    endless = case.source == "infinite"
    missing = set(expected)

    def enough(into: list[Any]) -> bool:
        # In a time that does not grow with the outputs: without a bound, workers run ever further ahead of a
        # consumer that is slow, and the output of an item that is tried again comes after all that they made.
        missing.discard(into[-1])
        return endless and not missing and settled(case, tally)

    consume(stream, watch, gate, enough, got)
    if endless:
        beyond = Counter(got) - Counter(expected)
        assert all(output >= ten(how_many(case)) and count == 1 for output, count in beyond.items())
        got = [output for output in got if output not in beyond]
    if case.ordered:
        assert got == expected
    else:
        assert Counter(got) == Counter(expected)


def assert_raises(
    case: Case, expect: Raises, stream: Iterable[Any], watch: Watch, gate: Gate, tally: Tally
) -> None:
    got: list[Any] = []
    began = time.monotonic()
    with pytest.raises(BaseException) as caught:
        consume(stream, watch, gate, lambda into: False, got)
    ended = time.monotonic()
    began = tally.last("start", case.at) or began
    assert ended - began < SLACK + case.fault.takes, "the error took its time"
    if case.source == "infinite":
        assert_nothing_new(tally)
    error = caught.value
    assert not isinstance(error, AssertionError), error
    expect.check(error, case)
    before = outputs(case)[: {"nothing": 0, "everything": how_many(case)}.get(expect.after, case.at)]
    if case.ordered:
        assert got == before
    elif expect.after == "item":
        assert len(set(got)) == len(got)
        assert all(output % 10 == 0 and output != ten(case.at) for output in got)
    else:
        assert Counter(got) == Counter(before)


def assert_nothing_new(tally: Tally) -> None:
    """After an error no item is started; one for each worker may be just on its way."""
    started = tally.count("start")
    time.sleep(0.02)
    assert tally.count("start") <= started + WORKERS


def assert_held(case: Case, watch: Watch) -> None:
    """The stage held no more than *maxsize* items: one may be asked for while the consumer counts the last,
    and the bad item may leave without an output.
    """
    if case.maxsize:
        assert watch.most_held <= case.maxsize + 2


def assert_handled(case: Case, tally: Tally) -> None:
    """`on_error` was called once for the bad item, in this process."""
    if has_handler(case, tally):
        assert [pid for _, pid in tally.events("handler")] == [str(os.getpid())]


# The table itself


def test_every_kind_and_source_is_tried_or_left_out_for_a_reason() -> None:
    for fault in FAULTS:
        assert set(fault.without_kinds) < set(KINDS) and all(fault.without_kinds.values())
        assert set(fault.without_sources) < set(SOURCES) and all(fault.without_sources.values())
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_quick_matrix_has_every_pair() -> None:
    def pairs(cases: list[Case]) -> set[tuple[Any, ...]]:
        return {
            (case.fault.name, case.kind, first, second)
            for case in cases
            for first, second in itertools.combinations(
                [("ordered", case.ordered), ("maxsize", case.maxsize), ("source", case.source)], 2
            )
        }

    assert pairs(cells(full=False)) == pairs(cells(full=True))
