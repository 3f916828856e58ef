"""Rows of process stages that run as one: whatever their options, they do what the stages do by themselves."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fstream import SKIP, Failed, pfilter, pflat_map, pmap
from fstream._workers import opening
from fstream.testing import Schedule, schedules, simulated


class Boom(Exception):
    pass


class Part(NamedTuple):
    """f of one stage: it fails for some items, always or but for the last try."""

    verb: str
    number: int
    bad: frozenset[int]
    fails: int

    def __call__(self, item: int, attempt: int) -> Any:
        if item % 11 in self.bad and attempt < self.fails:
            raise Boom(item, attempt)
        if self.verb == "pfilter":
            return item % 3
        return [item] * (item % 3) if self.verb == "pflat_map" else item + 1


class Option(NamedTuple):
    """What one stage does about failures."""

    policy: str
    retries: int


parts = st.tuples(
    st.sampled_from(["pmap", "pmap", "pfilter", "pflat_map"]),
    st.frozensets(st.integers(0, 10), max_size=3),
    st.integers(1, 3),
    st.builds(
        Option, st.sampled_from(["raise", "skip", "keep", "instead", "skips", "raises"]), st.integers(0, 2)
    ),
)
VERBS: dict[str, Any] = {"pmap": pmap, "pfilter": pfilter, "pflat_map": pflat_map}


def row(drawn: list[Any], ordered: bool, calls: Counter[Any]) -> Any:
    stages: Any = None
    for number, (verb, bad, fails, option) in enumerate(drawn):

        def handler(error: Exception, item: int, number: int = number, option: Option = option) -> Any:
            calls[number, str(error), item] += 1
            if option.policy == "raises":
                raise ValueError(item)
            result = item + 50
            return (
                SKIP if option.policy == "skips" else [result] if drawn[number][0] == "pflat_map" else result
            )

        on_error: Any = handler if option.policy in ("instead", "skips", "raises") else option.policy
        stage = VERBS[verb](
            Part(verb, number, bad, fails), kind="process", retries=option.retries, on_error=on_error,
            ordered=ordered, name=f"part{number}", **({"backoff": 0} if option.retries else {}),
        )  # fmt: skip
        stages = stage if stages is None else stages | stage
    return stages


def shown(output: Any, ordered: bool) -> Any:
    if isinstance(output, Failed):
        # Without order, an item's position is its turn.
        index = output.index if ordered else None
        return output.item, str(output.error), index, output.stage, output.tries
    return output


def found(drawn: list[Any], items: list[int], ordered: bool, schedule: Schedule) -> Any:
    calls: Counter[Any] = Counter()
    outputs, error = [], None
    with simulated(schedule):
        stream = row(drawn, ordered, calls)(items)
        try:
            for output in stream:
                outputs.append(shown(output, ordered))
        except Exception as raised:
            error = repr(raised)
        stats = [(each.taken, each.given, each.failed, each.retried) for each in stream.stats().stages]
    if error is None:
        return outputs if ordered else Counter(outputs), calls, stats
    # What is behind the failure may have been worked on, or not; without order, what was before it may be out, or not.
    return (outputs, error) if ordered else "ended"


@given(
    drawn=st.lists(parts, min_size=2, max_size=4),
    items=st.lists(st.integers(0, 30), max_size=20),
    ordered=st.booleans(),
    schedule=schedules(),
)
def test_they_do_what_the_stages_do_by_themselves(
    drawn: list[Any], items: list[int], ordered: bool, schedule: Schedule
) -> None:
    as_one = found(drawn, items, ordered, schedule)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(opening, "fuse", lambda stages, _can_fuse: stages)
        by_themselves = found(drawn, items, ordered, schedule)
    assert as_one == by_themselves
