"""max_failures: too many failed items end the stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fstream import Failed, TooManyFailures, peach, pfilter, pflat_map, pmap
from fstream._flow.tolerance import Tolerance
from fstream.testing import Schedule, simulated
from tests.functions import suited


def must_be_even(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


def fail(number: int) -> int:
    raise ValueError(number)


@pytest.mark.parametrize("on_error", ["skip", "keep", lambda error, item: -item])
def test_one_more_than_may_fail_ends_the_stream_in_its_place(kind: str, on_error: Any):
    stream: Any = pmap(
        suited(must_be_even, kind), range(100), kind=kind, workers=1, on_error=on_error, max_failures=2
    )
    outputs = []
    with pytest.raises(TooManyFailures) as caught:
        outputs.extend(stream)
    for output in stream:
        raise AssertionError(output)
    assert [error.args for error in caught.value.exceptions] == [(1,), (3,), (5,)]
    assert "3 items failed, max_failures is 2" in str(caught.value)
    assert "item 5: 5" in caught.value.__notes__[-1]
    del outputs


def outputs_before(stream: Any) -> list[Any]:
    outputs: list[Any] = []
    with pytest.raises(TooManyFailures):
        for output in stream:
            outputs.append(output)
    return outputs


def test_the_outputs_before_come_first(kind: str):
    stream = pmap(
        suited(must_be_even, kind), range(100), kind=kind, workers=1, on_error="keep", max_failures=2
    )
    outputs = outputs_before(stream)
    assert [each.item if isinstance(each, Failed) else each for each in outputs] == [0, 1, 2, 3, 4]


def test_as_many_as_may_fail_do(kind: str):
    stream = pmap(suited(fail, kind), range(5), kind=kind, on_error="skip", max_failures=5)
    assert list(stream) == []


def test_none_may_fail(kind: str):
    stream = pmap(suited(must_be_even, kind), [0, 2, 3, 4], kind=kind, on_error="skip", max_failures=0)
    assert outputs_before(stream) == [0, 2]


@pytest.mark.parametrize("combinator", [pmap, pfilter, pflat_map, peach])
def test_in_every_combinator(combinator: Any, kind: str):
    with pytest.raises(TooManyFailures):
        list(combinator(suited(fail, kind), range(30), kind=kind, on_error="skip", max_failures=3))


def test_under_await(kind: str):
    async def main() -> None:
        with pytest.raises(TooManyFailures):
            await pmap(suited(fail, kind), range(30), kind=kind, on_error="skip", max_failures=3)

    asyncio.run(main())


def test_further_tries_are_not_counted(kind: str):
    stream = pmap(suited(fail, kind), range(3), kind=kind, on_error="skip", max_failures=3, retries=4)
    assert list(stream) == []


def test_what_is_handed_on_is_not_counted(kind: str):
    first = pmap(suited(fail, kind), kind=kind, on_error="keep")
    second = pmap(suited(must_be_even, kind), kind=kind, on_error="skip", max_failures=0)
    assert len(list((first | second)(range(20)))) == 20


def test_the_group_has_the_last_ten(kind: str):
    with pytest.raises(TooManyFailures) as caught:
        list(pmap(suited(fail, kind), range(40), kind=kind, workers=1, on_error="skip", max_failures=20))
    assert [error.args for error in caught.value.exceptions] == [(number,) for number in range(11, 21)]


def test_except_star_finds_them():
    found: list[Exception] = []
    try:
        list(pmap(fail, range(4), on_error="skip", max_failures=1, workers=1))
    except* ValueError as group:
        found += [group, *group.exceptions]
    assert [type(error) for error in found] == [TooManyFailures, ValueError, ValueError]


def test_a_share_counts_from_the_twentieth_item_on(kind: str):
    # The first 19 fail, and nobody minds. Then all is well for longer than is remembered.
    def early(number: int) -> int:
        return fail(number) if number < 19 else number

    stream = pmap(suited(early, kind), range(300), kind=kind, workers=1, on_error="skip", max_failures=0.5)
    assert list(stream) == list(range(19, 300))

    def twenty(number: int) -> int:
        return fail(number) if number < 20 else number

    with pytest.raises(TooManyFailures, match=r"20 of the last 20 items failed, max_failures is 0\.5"):
        list(pmap(suited(twenty, kind), range(300), kind=kind, workers=1, on_error="skip", max_failures=0.5))


def test_a_share_is_one_of_the_last_hundred():
    tolerance = Tolerance(0.1)
    said = [tolerance.add(ValueError(number), 1000 + 11 * number) for number in range(50)]
    assert said == [None] * 50  # one in eleven
    said = [tolerance.add(ValueError(number), 2000 + number) for number in range(11)]
    assert said[:-1] == [None] * 10
    assert said[-1] == "11 of the last 100 items failed"


def test_a_whole_share_never_tips(kind: str):
    assert list(pmap(suited(fail, kind), range(50), kind=kind, on_error="skip", max_failures=1.0)) == []


@pytest.mark.parametrize("simulated_kind", ["thread", "process", "task"])
def test_in_a_simulation_too(simulated_kind: str):
    with simulated(Schedule(stalls=(1, 2))), pytest.raises(TooManyFailures):
        list(pmap(fail, range(9), kind=simulated_kind, on_error="skip", max_failures=3))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_failures": 3}, ValueError, "max_failures is for another on_error than 'raise'"),
        ({"max_failures": 3, "on_error": "raise"}, ValueError, "max_failures is for another on_error than 'raise'"),
        ({"max_failures": -1, "on_error": "skip"}, ValueError, "max_failures must be at least 0, got -1"),
        ({"max_failures": 1.5, "on_error": "skip"}, ValueError, "max_failures as a share must be at most 1.0, got 1.5"),
        ({"max_failures": float("nan"), "on_error": "skip"}, ValueError, "max_failures must be at least 0, got nan"),
        ({"max_failures": True, "on_error": "skip"}, TypeError, "max_failures must be a number"),
        ({"max_failures": "3", "on_error": "skip"}, TypeError, "max_failures must be a number"),
        ({"on_error": "kept"}, ValueError, "on_error must be 'raise', 'skip', 'keep' or a function"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_at_once(options: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pmap(fail, **options)
