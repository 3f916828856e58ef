"""How many items the memo of a stage has answered: `known` in `stats()`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from fstream import pmap
from tests.functions import square, suited
from tests.gates import Gate, Log, holding


def failing_at_three(number: int) -> int:
    if number == 3:
        raise ValueError(number)
    return number


def test_known_counts_what_the_memo_has_answered(kind: str, is_ordered: bool):
    memo = {2: 4, 3: 9}
    stream = pmap(suited(square, kind), [1, 2, 3, 3, 5], kind=kind, ordered=is_ordered, memo=memo)
    assert sorted(stream) == [1, 4, 9, 9, 25]
    (stage,) = stream.stats().stages
    assert (stage.taken, stage.known, stage.given) == (5, 3, 5)


def test_under_async_for(kind: str):
    async def main() -> int | None:
        stream = pmap(suited(square, kind), [1, 2, 3], kind=kind, memo={2: 4, 3: 9})
        assert await stream == [1, 4, 9]
        return stream.stats().stages[0].known

    assert asyncio.run(main()) == 2


def test_it_counts_what_waits_for_an_item_of_an_equal_key(concurrent_kind: str, gate: Gate, log: Log):
    def items() -> Iterator[int]:
        yield from [7, 7, 7]
        gate.open()

    f = holding(concurrent_kind, {7: gate}, log)
    stream = pmap(f, items(), kind=concurrent_kind, workers=2, memo={})
    assert list(stream) == [7, 7, 7]
    assert log.entries() == [("start", 7), ("end", 7)]
    assert stream.stats().stages[0].known == 2


def test_failures_that_are_handed_on_are_not_known(kind: str):
    first = pmap(suited(failing_at_three, kind), kind=kind, on_error="keep")
    stream = (first | pmap(suited(square, kind), kind=kind, memo={2: 4}))([1, 2, 3, 3])
    assert len(list(stream)) == 4
    assert [stage.known for stage in stream.stats().stages] == [None, 1]


@pytest.mark.parametrize("has_memo", [False, True])
def test_the_tables_have_a_column_for_it_where_there_is_a_memo(has_memo: bool):
    second = pmap(square, name="b", kind="thread", **({"memo": {2: 4}} if has_memo else {}))
    stream = (pmap(abs, name="a", kind="sync") | second)([1, 2])
    assert list(stream) == [1, 4]
    headings, first, second_line, *_ = str(stream.stats()).splitlines()
    assert ("known" in headings.split()) == ("known" in stream.stats()._repr_html_()) == has_memo
    if has_memo:
        column = headings.split().index("known")
        assert (first.split()[column], second_line.split()[column]) == ("-", "1")
