"""What one worker does with one item, driven directly: how often it tries, and what becomes of a failure."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from fstream import SKIP, StageStatus
from fstream._flow.span import Failure
from fstream._plan.kernels import DROP, FILTER, FLAT_MAP, MAP, Kernel
from fstream._plan.stages import Stage
from fstream._workers.call import Call, further_try_of, handled
from fstream._workers.notes import annotate


def failing(times: float, error: BaseException) -> tuple[Callable[[int], int], list[int]]:
    """Make an f that fails so many times, and the list of its calls."""
    calls: list[int] = []

    def f(item: int) -> int:
        calls.append(item)
        if len(calls) <= times:
            raise error
        return -item

    return f, calls


def verb(value: object) -> str | None:
    return value.verb if isinstance(value, Kernel) else None


def again(stage: Stage, error: BaseException, tries: int) -> bool:
    """Whether an item is tried again that has failed so many times."""
    return further_try_of(stage, Failure(5, 7, error, tries), lambda: 0.5) is not None


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_an_item_is_tried_once_and_its_retries(retries: int):
    stage = Stage(MAP, abs, "thread", retries=retries)
    assert [again(stage, ValueError(), tries) for tries in (1, 2, 3)] == [retries > 0, retries > 1, False]


def test_what_cannot_travel_is_not_tried_again():
    assert not again(Stage(MAP, abs, "thread", retries=2), ValueError(), tries=0)


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("on_error", ["skip", lambda error, item: 0])
def test_an_exit_is_neither_tried_again_nor_handled(error: BaseException, on_error: Any):
    stage = Stage(MAP, abs, "thread", retries=2, retry_on=lambda _: True, on_error=on_error)
    assert not again(stage, error, 1)
    failure = Failure(5, 7, error, 1)
    assert handled(stage, failure) is failure


@pytest.mark.parametrize(
    ("kernel", "outputs"), [(MAP, ["a", "b"]), (FILTER, ["a", "b"]), (FLAT_MAP, ["a", "b"])], ids=verb
)
@pytest.mark.parametrize("on_error", ["skip", lambda error, item: SKIP], ids=["skip", "SKIP"])
def test_a_skipped_item_has_no_output(kernel: Kernel, outputs: list[str], on_error: Any):
    slot = handled(Stage(kernel, abs, "thread", on_error=on_error), Failure(0, 7, ValueError()))
    good = ["a"] if kernel.spread else "a", ["b"] if kernel.spread else "b"
    assert kernel.outputs([good[0], slot, good[1]], skips=True) == outputs


@pytest.mark.parametrize(("kernel", "slot"), [(MAP, [1]), (FILTER, 7), (FLAT_MAP, [1])], ids=verb)
def test_a_handler_s_result_stands_for_that_of_f(kernel: Kernel, slot: Any):
    stage = Stage(kernel, abs, "thread", on_error=lambda error, item: [1])
    assert handled(stage, Failure(0, 7, ValueError())) == slot


def test_a_filter_drops_what_its_handler_finds_false():
    assert handled(Stage(FILTER, abs, "thread", on_error=lambda e, i: 0), Failure(0, 7, ValueError())) is DROP


def test_an_error_of_the_handler_is_the_item_s():
    error = KeyError()
    handler, _ = failing(1, error)
    stage = Stage(MAP, abs, "thread", on_error=lambda _error, item: handler(item))
    assert handled(stage, Failure(5, 7, ValueError())) == Failure(5, 7, error)


def test_a_note_is_added_to_those_that_are_there():
    error = ValueError()
    error.add_note("mine")
    annotate(error, "ours")
    assert error.__notes__ == ["mine", "ours"]


def test_on_done_runs_once_in_a_worker_that_has_begun():
    done: list[StageStatus] = []
    call = Call(Stage(MAP, abs, "thread", on_done=done.append), 0)
    call.end(StageStatus(2))
    assert done == []
    call.begin()
    call.end(StageStatus(1))
    call.end(StageStatus(0))
    assert done == [StageStatus(1)]


def test_element_index_is_that_of_the_stage():
    class Place:
        start = 40
        slots = ("a", "b")

    call = Call(Stage(MAP, lambda item, element_index: (item, element_index), "thread"), 0)
    call.place = Place()  # type: ignore[assignment]
    assert call.step("c") == ("c", 42)


def test_resources_go_to_each_call():
    numbers = count()
    call = Call(Stage(MAP, lambda item, number: (item, number), "thread", on_start=lambda: next(numbers)), 0)
    call.begin()
    assert [call.step("a"), call.step("b")] == [("a", 0), ("b", 0)]
