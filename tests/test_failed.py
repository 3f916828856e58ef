"""A Failed stands in its item's place, and later stages hand it on; SKIP from f; attempt; what ended a stage."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import fstream
from fstream import (
    SKIP,
    Failed,
    StageStatus,
    batch,
    merge,
    peach,
    pfilter,
    pflat_map,
    pmap,
)
from fstream._plan.kernels import may_be_skipped
from fstream.testing import Schedule, simulated
from tests.conftest import KINDS
from tests.functions import identity, square, suited
from tests.gates import Gate, Log, holding
from tests.scripts import printed, run_python

ITEMS = [4, 0, 2, 0, 1]


def inverse(number: float) -> float:
    return 1 / number


def add_one(number: float) -> float:
    return number + 1


def shown(outputs: list[Any]) -> list[Any]:
    """The outputs, with the index of what failed in the place of each Failed."""
    return [("failed", each.index) if isinstance(each, Failed) else each for each in outputs]


#: What ITEMS give.
INVERSES = [0.25, ("failed", 1), 0.5, ("failed", 3), 1.0]


# ------------------------------------------------------------------------------------------------ what it is


def test_it_has_the_item_the_error_the_place_the_stage_and_the_tries(kind: str):
    failed = list(pmap(suited(inverse, kind), ITEMS, kind=kind, on_error="keep", retries=2, name="inverse"))[
        3
    ]
    assert isinstance(failed, Failed)
    assert (failed.item, failed.index, failed.stage, failed.tries) == (0, 3, "inverse", 3)
    assert type(failed.error) is ZeroDivisionError
    assert "stage 'inverse'" in failed.error.__notes__[-1]
    assert not failed
    with pytest.raises(ZeroDivisionError) as caught:
        failed.raise_()
    assert caught.value is failed.error


def test_it_is_made_by_position_and_frozen():
    error = ValueError("no")
    failed = Failed("item", error, 3, "stage", 2)
    assert (failed.item, failed.error, failed.index, failed.stage, failed.tries) == (
        "item",
        error,
        3,
        "stage",
        2,
    )
    assert failed == Failed("item", error, 3, "stage", 2)
    with pytest.raises(AttributeError):
        failed.item = 4  # type: ignore[misc]


class Awkward(Exception):
    """It cannot be pickled as exceptions are: its __init__ takes other arguments than it passes on."""

    def __init__(self, one: int, *, other: int) -> None:
        super().__init__(f"{one} and {other}")
        self.other = other


def test_it_can_be_pickled_also_with_an_error_that_cannot():
    error = Awkward(1, other=2)
    error.add_note("a note")
    failed = pickle.loads(pickle.dumps(Failed(["item"], error, 3, "stage", 2)))
    assert (failed.item, failed.index, failed.stage, failed.tries) == (["item"], 3, "stage", 2)
    assert type(failed.error) is Awkward
    assert (str(failed.error), failed.error.other, failed.error.__notes__) == ("1 and 2", 2, ["a note"])
    assert not copy.copy(failed)


# ------------------------------------------------------------------------------------- each combinator, each kind


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
def test_it_stands_in_its_items_place(kind: str, is_async: bool):
    def outputs(stream: Any) -> list[Any]:
        async def wait() -> Any:
            return await stream

        return shown(asyncio.run(wait()) if is_async else list(stream))

    options: Any = {"kind": kind, "on_error": "keep"}
    f = suited(inverse, kind)
    assert outputs(pmap(f, ITEMS, **options)) == INVERSES
    assert outputs(pfilter(f, ITEMS, **options)) == [4, ("failed", 1), 2, ("failed", 3), 1]
    assert outputs(peach(f, ITEMS, **options)) == [("failed", 1), ("failed", 3)]
    twice = suited(lambda number: [1 / number] * 2, kind)
    assert outputs(pflat_map(twice, ITEMS, **options)) == [
        0.25, 0.25, ("failed", 1), 0.5, 0.5, ("failed", 3), 1.0, 1.0,
    ]  # fmt: skip


def test_lines_up_with_zip(kind: str):
    pairs = list(zip(ITEMS, pmap(suited(inverse, kind), ITEMS, kind=kind, on_error="keep"), strict=True))
    assert [item for item, output in pairs if isinstance(output, Failed)] == [0, 0]


def test_what_is_no_exception_is_not_kept(shared_memory_kind: str):
    def leave(_: int) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(pmap(suited(leave, shared_memory_kind), [1], kind=shared_memory_kind, on_error="keep"))


def test_a_dead_worker_and_a_time_out_are_kept():
    def die(number: int) -> int:
        import os
        import time

        if number == 1:
            os._exit(7)
        if number == 2:
            time.sleep(60)
        return number

    good, dead, late, last = pmap(die, range(4), kind="process", workers=2, timeout=2, on_error="keep")
    assert (good, last) == (0, 3)
    assert (type(dead.error), dead.item) == (fstream.WorkerDied, 1)  # type: ignore[union-attr]
    assert type(late.error) is TimeoutError  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------- later stages hand it on


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("later", KINDS)
def test_later_stages_hand_it_on_untouched(kind: str, later: str, ordered: bool):
    options: Any = {"kind": later, "ordered": ordered}
    first = pmap(suited(inverse, kind), kind=kind, on_error="keep", ordered=ordered)

    def outputs(then: Any) -> list[Any]:
        given = shown(list((first | then)(ITEMS * 20)))
        return given if ordered else sorted(given, key=repr)

    def expected(then: Callable[[float], list[Any]]) -> list[Any]:
        given: list[Any] = []
        for number, item in enumerate(ITEMS * 20):
            given += then(1 / item) if item else [("failed", number)]
        return given if ordered else sorted(given, key=repr)

    f = suited(add_one, later)
    assert outputs(pmap(f, **options)) == expected(lambda x: [x + 1])
    assert outputs(pfilter(suited(lambda x: x > 0.25, later), **options)) == expected(
        lambda x: [x] if x > 0.25 else []
    )
    assert outputs(pflat_map(suited(lambda x: [x, x], later), **options)) == expected(lambda x: [x, x])
    assert outputs(peach(f, **options)) == expected(lambda x: [])
    assert outputs(pmap(f, **options) | pmap(suited(identity, kind), kind=kind, ordered=ordered)) == expected(
        lambda x: [x + 1]
    )


def test_it_is_handed_on_as_the_very_object(kind: str):
    failed: Any = Failed(1, ValueError(), 0, "by hand", 1)
    stream = pmap(identity, [0, failed, 2], kind="thread") | pmap(suited(square, kind), kind=kind)
    outputs: list[Any] = list(stream)
    assert outputs[1] is failed
    assert (outputs[0], outputs[2]) == (0, 4)


def test_one_that_f_has_made_itself_is_handed_on_too(kind: str):
    def make(number: int) -> Any:
        return Failed(number, ValueError(), number, "made", 1) if number % 2 else number

    stages = pmap(suited(make, kind), kind=kind) | pmap(suited(square, kind), kind=kind)
    assert shown(list(stages(range(5)))) == [0, ("failed", 1), 4, ("failed", 3), 16]


def test_stages_that_run_as_one_hand_it_on():
    def make(number: int) -> Any:
        return Failed(number, ValueError(), number, "made", 1) if number % 2 else number

    stages = (
        pmap(make, kind="process")
        | pmap(square, kind="process")
        | pfilter(lambda x: x != 4, kind="process")
        | pflat_map(lambda x: [x, x], kind="process")
    )
    assert shown(list(stages(range(5)))) == [0, 0, ("failed", 1), ("failed", 3), 16, 16]
    kept = pmap(inverse, kind="thread", on_error="keep")
    assert shown(list((kept | pmap(add_one, kind="process") | pfilter(bool, kind="process"))(ITEMS))) == [
        1.25, ("failed", 1), 1.5, ("failed", 3), 2.0,
    ]  # fmt: skip


def test_f_of_the_first_stage_sees_those_that_come_from_elsewhere(kind: str):
    failed = Failed(1, ValueError("why"), 0, "yesterday", 1)
    items = [failed] if kind != "process" else [failed, failed]
    assert list(pmap(suited(lambda each: each.item, kind), items, kind=kind)) == [1] * len(items)
    assert list(pmap(suited(lambda each: each.item, kind), iter(items), kind=kind)) == [1] * len(items)


def test_it_goes_through_merge_and_an_executor():
    with ThreadPoolExecutor(2) as pool:
        stream = merge(pmap(inverse, ITEMS, on_error="keep"), [3.0]) | pmap(add_one, kind=pool)
        assert sorted(map(repr, shown(list(stream)))) == sorted(
            map(repr, [1.25, ("failed", 1), 1.5, ("failed", 3), 2.0, 4.0])
        )


def test_a_batch_takes_it_for_an_item(kind: str):
    kept = pmap(suited(inverse, kind), kind=kind, on_error="keep")
    lists = list((kept | batch(2) | pmap(suited(shown, kind), kind=kind))(ITEMS))
    assert lists == [[0.25, ("failed", 1)], [0.5, ("failed", 3)], [1.0]]
    lists = list(
        (kept | batch(2, weight=lambda number: number) | pmap(suited(shown, kind), kind=kind))(ITEMS)
    )
    assert lists == [[0.25, ("failed", 1), 0.5], [("failed", 3), 1.0]]


def test_the_element_index_counts_it(kind: str):
    def index(_number: float, element_index: int) -> int:
        return element_index

    kept = pmap(suited(inverse, kind), kind=kind, on_error="keep")

    async def index_later(_number: float, element_index: int) -> int:
        return element_index

    f: Any = index_later if kind == "task" else index
    assert shown(list((kept | pmap(f, kind=kind))(ITEMS))) == [0, ("failed", 1), 2, ("failed", 3), 4]


@pytest.mark.parametrize("later", ["thread", "process", "task"])
def test_it_takes_no_worker(later: str, gate: Gate, log: Log):
    # The only worker is at the item before, until the failed item that is behind it has come out.
    stream = pmap(inverse, [1, 0, 0], kind="thread", workers=1, on_error="keep") | pmap(
        holding(later, {1.0: gate}, log), kind=later, workers=1, ordered=False, maxsize=4
    )
    with stream:
        assert shown([next(stream), next(stream)]) == [("failed", 1), ("failed", 2)]
        gate.open()
        assert list(stream) == [1.0]


def test_workers_of_later_stages_begin_nothing_for_it():
    started: list[int] = []
    stream = pmap(inverse, [0, 0, 0], kind="thread", on_error="keep") | pmap(
        add_one, kind="thread", on_start=lambda: started.append(1)
    )
    assert shown(list(stream)) == [("failed", 0), ("failed", 1), ("failed", 2)]
    assert started == []


@pytest.mark.parametrize("simulated_kind", ["thread", "process", "task"])
@pytest.mark.parametrize("ordered", [True, False])
def test_in_a_simulation_too(simulated_kind: str, ordered: bool):
    options: Any = {"kind": simulated_kind, "ordered": ordered, "workers": 2}
    with simulated(Schedule(stalls=(3, 1, 4))):
        stream = pmap(inverse, ITEMS, on_error="keep", **options) | pmap(add_one, **options)
        assert sorted(shown(list(stream)), key=repr) == sorted(
            [1.25, ("failed", 1), 1.5, ("failed", 3), 2.0], key=repr
        )


# --------------------------------------------------------------------------------------------------- SKIP from f


@pytest.mark.parametrize("is_async", [False, True], ids=["for", "async for"])
@pytest.mark.parametrize("ordered", [True, False])
def test_an_item_of_which_f_says_skip_has_no_output(kind: str, ordered: bool, is_async: bool):
    def outputs(stream: Any) -> list[Any]:
        async def wait() -> Any:
            return await stream

        return sorted(asyncio.run(wait()) if is_async else list(stream))

    def skip_odd(number: int) -> Any:
        from fstream import SKIP

        return SKIP if number % 2 else number

    options: Any = {"kind": kind, "ordered": ordered}
    f = suited(skip_odd, kind)
    even = list(range(0, 300, 2))
    assert outputs(pmap(f, range(300), **options)) == even
    assert outputs(pmap(f, iter(range(300)), **options) | pmap(suited(identity, kind), **options)) == even
    truly = suited(lambda number: skip_odd(number) if number % 2 else True, kind)
    assert outputs(pfilter(truly, range(300), **options)) == even
    lists = suited(lambda number: skip_odd(number) if number % 2 else [number], kind)
    assert outputs(pflat_map(lists, range(300), **options)) == even
    assert outputs(peach(f, range(300), **options)) == []


def test_with_a_bound_of_one(concurrent_kind: str):
    f = suited(lambda number: SKIP if number % 3 else number, concurrent_kind)
    assert list(pmap(f, range(50), kind=concurrent_kind, maxsize=1)) == list(range(0, 50, 3))


def test_nobody_looks_for_skip_where_nobody_has_it():
    # Of another interpreter, as the tests have it.
    program = (
        "import fstream, fstream._plan.kernels as k; fstream.run(fstream.pmap(abs, [1]))\n"
        "print(k.may_be_skipped(), list(fstream.pmap(lambda x: fstream.SKIP, [1, 2])), k.may_be_skipped())\n"
        "kept = [fstream.SKIP]; print(k.may_be_skipped())"
    )
    assert printed(run_python("-c", program)).splitlines() == ["False [] False", "True"]
    assert may_be_skipped()


# ------------------------------------------------------------------------------------------------------- attempt


def test_f_is_told_the_attempt(kind: str):
    def f(number: int, attempt: int, element_index: int) -> tuple[int, int, int]:
        if attempt < number:
            raise ValueError
        return number, attempt, element_index

    async def f_later(number: int, attempt: int, element_index: int) -> tuple[int, int, int]:
        return f(number, attempt, element_index)

    outputs = list(pmap(f_later if kind == "task" else f, [0, 2, 1, 0], kind=kind, retries=2))
    assert outputs == [(0, 0, 0), (2, 2, 1), (1, 1, 2), (0, 0, 3)]


def test_deaths_and_time_outs_are_attempts():
    def f(number: int, attempt: int) -> int:
        import os
        import time

        if attempt == 0 and number == 2:
            os._exit(1)
        if attempt == 1 and number == 2:
            time.sleep(60)
        return attempt

    assert list(pmap(f, range(4), kind="process", workers=1, timeout=2, retries=3)) == [0, 0, 2, 0]


# --------------------------------------------------------------------------------------------- what ended a stage


def ended_with(log: Log) -> Callable[..., None]:
    def done(stage_status: StageStatus) -> None:
        log.write(type(stage_status.error).__name__)

    return done


def test_on_done_is_told_no_error_after_the_end_and_a_close(kind: str, log: Log):
    done = ended_with(log)
    assert list(pmap(suited(square, kind), [1, 2], kind=kind, workers=1, on_done=done)) == [1, 4]
    assert log.take(1) == ["NoneType"]
    with pmap(suited(square, kind), iter(range(10**6)), kind=kind, workers=1, on_done=done) as stream:
        next(stream)
    assert log.take(2) == ["NoneType"] * 2


def test_on_done_is_told_the_error_of_its_stage(kind: str, log: Log):
    with pytest.raises(ZeroDivisionError):
        list(pmap(suited(inverse, kind), [1, 0], kind=kind, workers=1, on_done=ended_with(log)))
    assert log.take(1) == ["ZeroDivisionError"]


def test_on_done_is_told_the_error_of_the_source(kind: str, log: Log):
    def source() -> Any:
        yield 1
        raise KeyError

    with pytest.raises(KeyError):
        list(pmap(suited(square, kind), source(), kind=kind, workers=1, on_done=ended_with(log)))
    assert log.take(1) == ["KeyError"]


@pytest.mark.parametrize("other", KINDS)
def test_on_done_is_told_an_error_before_and_behind(kind: str, other: str, log: Log):
    done = ended_with(log)
    watched = pmap(suited(identity, kind), kind=kind, workers=1, on_done=done)
    failing = pmap(suited(inverse, other), kind=other, workers=1)
    with pytest.raises(ZeroDivisionError):
        list((failing | watched)([1, 0]))
    assert log.take(1) == ["ZeroDivisionError"]
    with pytest.raises(ZeroDivisionError):
        list((watched | failing)(iter([1, 1, 0, *[1] * 10_000])))
    assert log.take(2) == ["ZeroDivisionError"] * 2


def test_it_is_the_very_error(shared_memory_kind: str):
    seen: list[Any] = []
    error = ValueError("mine")

    def fail(_: int) -> None:
        raise error

    with pytest.raises(ValueError, match="mine"):
        list(
            pmap(
                suited(fail, shared_memory_kind),
                [1],
                kind=shared_memory_kind,
                on_done=lambda stage_status: seen.append(stage_status.error),
            )
        )
    assert seen == [error]
