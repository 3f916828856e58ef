"""What fails and what is known, under all interleavings: kept failures, memos, limits, drained streams."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fstream import SKIP, Failed, TooManyFailures, batch, pfilter, pflat_map, pmap
from fstream.testing import Schedule, schedules, simulated
from property_tests.worlds import WORLDS, law

kinds = st.sampled_from(["sync", "thread", "process", "task"])
#: Those that are negative fail.
values = st.lists(st.integers(-3, 3), max_size=25)
rooms = st.sampled_from([None, 1, 2, 5, 0])


class Negative(Exception):
    pass


def checked(value: int) -> int:
    if value < 0:
        raise Negative(value)
    return value


def doubled(value: int) -> int:
    return 2 * value


def positions(outputs: list[Any]) -> list[Any]:
    """The outputs, with what failed as ("failed", its position)."""
    return [("failed", each.index) if isinstance(each, Failed) else each for each in outputs]


def same(left: list[Any], right: list[Any], ordered: bool) -> bool:
    return left == right if ordered else Counter(left) == Counter(right)


@law(*WORLDS, items=values, ordered=st.booleans(), room=rooms)
def test_what_fails_is_kept_and_handed_on(
    items: list[int], ordered: bool, room: int | None, kind: Any
) -> None:
    options: Any = {"kind": kind, "ordered": ordered, "maxsize": room, "workers": 3}
    kept = pmap(checked, on_error="keep", **options)
    for source in (items, iter(items)):
        outputs = list((kept | pmap(doubled, **options) | pfilter(bool, **options))(source))
        expected = [("failed", index) if item < 0 else 2 * item for index, item in enumerate(items) if item]
        assert same(positions(outputs), expected, ordered)


@given(items=values, before=kinds, after=kinds, ordered=st.booleans(), schedule=schedules())
def test_between_stages_of_all_kinds(
    items: list[int], before: Any, after: Any, ordered: bool, schedule: Schedule
) -> None:
    with simulated(schedule):
        stages = (
            pmap(checked, kind=before, on_error="keep", ordered=ordered, workers=2)
            | pflat_map(lambda value: [value] * value, kind=after, ordered=ordered, workers=2)
            | batch(2)
        )
        outputs = [output for outputs in stages(items) for output in outputs]
        expected: list[Any] = []
        for index, item in enumerate(items):
            expected += [("failed", index)] if item < 0 else [item] * item
        assert same(positions(outputs), expected, ordered)


@law(*WORLDS, items=values, ordered=st.booleans(), room=rooms, known=st.sets(st.integers(-3, 3)))
def test_a_memo_changes_nothing_but_how_often_f_runs(
    items: list[int], ordered: bool, room: int | None, known: set[int], kind: Any
) -> None:
    memo = {value: 2 * value for value in known}
    options: Any = {"kind": kind, "ordered": ordered, "maxsize": room, "workers": 3}
    outputs = list(pmap(doubled, iter(items), memo=memo, **options))
    assert same(outputs, [2 * item for item in items], ordered)
    assert memo == {value: 2 * value for value in {*known, *items}}


@given(
    items=values,
    kind=kinds,
    ordered=st.booleans(),
    retries=st.integers(0, 2),
    schedule=schedules(faults=True),
)
def test_a_memo_under_faults(
    items: list[int], kind: Any, ordered: bool, retries: int, schedule: Schedule
) -> None:
    memo: dict[int, int] = {}
    with simulated(schedule):
        stream = pmap(
            checked, items, kind=kind, ordered=ordered, retries=retries, workers=3, timeout=9, on_error="keep",
            memo=memo,
        )  # fmt: skip
        outputs = list(stream)
    assert len(outputs) == len(items)
    for output in outputs:
        if isinstance(output, Failed):
            assert output.item == items[output.index]
            assert output.tries == retries + 1
    good = [output for output in outputs if not isinstance(output, Failed)]
    if ordered:
        assert [each.index if isinstance(each, Failed) else each for each in outputs] == [
            index if isinstance(output, Failed) else items[index] for index, output in enumerate(outputs)
        ]
    assert {*good} == {*memo}
    assert memo == {value: value for value in memo}


@given(items=values, most=st.integers(0, 6), kind=kinds, schedule=schedules())
def test_a_limit_of_failures_ends_the_stream_or_changes_nothing(
    items: list[int], most: int, kind: Any, schedule: Schedule
) -> None:
    bad = [item for item in items if item < 0]
    outputs: list[int] = []
    error = None
    with simulated(schedule):
        try:
            for output in pmap(checked, items, kind=kind, workers=3, on_error="skip", max_failures=most):
                outputs.append(output)
        except TooManyFailures as raised:
            error = raised
    assert (error is not None) == (len(bad) > most)
    good = [item for item in items if item >= 0]
    assert outputs == good[: len(outputs)] if error else outputs == good


@given(items=values, kind=kinds, ordered=st.booleans(), schedule=schedules())
def test_skip_gives_nothing(items: list[int], kind: Any, ordered: bool, schedule: Schedule) -> None:
    with simulated(schedule):
        stream = pmap(
            lambda value: SKIP if value < 0 else value, iter(items), kind=kind, ordered=ordered, maxsize=2
        )
        assert same(list(stream), [item for item in items if item >= 0], ordered)


@given(count=st.integers(0, 30), after=st.integers(0, 10), before=kinds, kind=kinds, schedule=schedules())
def test_a_drained_stream_gives_what_was_pulled(
    count: int, after: int, before: Any, kind: Any, schedule: Schedule
) -> None:
    pulled: list[int] = []

    def source() -> Any:
        for number in range(count):
            pulled.append(number)
            yield number

    with simulated(schedule):
        stream = pmap(abs, source(), kind=before, workers=2) | pmap(abs, kind=kind, workers=2)
        outputs = [output for output, _ in zip(stream, range(after), strict=False)]
        # `zip` has taken one more, unless there was none.
        at_drain = len(pulled)
        stream.drain()
        rest = list(stream)
    assert len(pulled) == at_drain
    assert outputs + pulled[len(pulled) - len(rest) :] == outputs + rest
    assert len(outputs) + len(rest) in (len(pulled), len(pulled) - 1)
