"""An error comes in its place, as the object that f raised, and says where it comes from."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from fstream import Failed, NotPicklable, WorkerDied, merge, peach, pfilter, pflat_map, pmap
from fstream.testing import Schedule, simulated
from tests.functions import identity, square, suited
from tests.gates import Gate, Log, holding


@pytest.mark.parametrize("stalls", [(number,) for number in range(20)])
@pytest.mark.parametrize("kind", ["thread", "task"])
def test_after_a_failure_nothing_is_started_upstream(kind: str, stalls: tuple[int, ...]):
    """Whoever stalls: an earlier item, say, which the error waits for."""
    events: list[str] = []
    trace: list[str] = []

    def upstream(item: int) -> int:
        events.append("starts")
        return item

    def downstream(item: int) -> int:
        if item == 1:
            events.append("fails")
            trace.clear()
            raise ValueError
        return item

    first = pmap(upstream, kind="thread", workers=1, maxsize=0)
    then = pmap(downstream, kind=kind, workers=3)
    with simulated(Schedule(stalls=stalls)) as simulation, pytest.raises(ValueError):
        simulation.trace = trace
        list(range(30) | first | then)
    if any(line.endswith("stalls") and "upstream" not in line for line in trace):
        return  # it stalls with its error in hand, of which nobody can know
    assert len(events) - events.index("fails") <= 2  # the one that its worker has in hand is started yet


class Refusal(Exception):
    """An exception with an attribute of its own."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, code)
        self.code = code


def refuse(refused: int, item: int) -> int:
    if item == refused:
        error = Refusal("no", item)
        error.hint = "ask again"  # type: ignore[attr-defined]
        raise error
    return item


def collect(stream: Iterable[Any], outputs: list[Any]) -> None:
    """Append the outputs to *outputs* as they come, so that those before an error are seen."""
    for output in stream:
        outputs.append(output)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


@pytest.fixture
def f_refusing(kind: str) -> Callable[[int], Callable[[int], Any]]:
    """Make an f for the kind that refuses one item."""
    return lambda refused: suited(partial(refuse, refused), kind)


Refusing = Callable[[int], Callable[[int], Any]]


@pytest.mark.parametrize("position", [0, 1, 5, 1_000, 1_999])
def test_outputs_before_then_the_error(kind: str, position: int, f_refusing: Refusing):
    outputs: list[Any] = []
    with pytest.raises(Refusal) as caught:
        collect(pmap(f_refusing(position), range(2_000), kind=kind, workers=2), outputs)
    assert outputs == list(range(position))
    assert type(caught.value) is Refusal
    assert caught.value.args == ("no", position)
    assert caught.value.code == position
    assert caught.value.hint == "ask again"


def test_the_very_object_that_was_raised(shared_memory_kind: str):
    error = Refusal("no", 3)

    def f(_: int) -> None:
        raise error

    with pytest.raises(Refusal) as caught:
        list(pmap(suited(f, shared_memory_kind), [1], kind=shared_memory_kind))
    assert caught.value is error


@pytest.mark.parametrize("options", [{}, {"name": "gatekeeper"}], ids=["f's name", "name="])
def test_a_note_names_the_stage_and_the_item(kind: str, options: dict[str, str]):
    def doorman(item: str) -> str:
        raise LookupError("no")

    with pytest.raises(LookupError) as caught:
        list(pmap(suited(doorman, kind), ["item-17"], kind=kind, **options))
    assert options.get("name", "doorman") in notes(caught.value)
    assert "'item-17'" in notes(caught.value)


def test_the_note_names_the_stage_that_failed(kind: str, f_refusing: Refusing):
    before, after = (pmap(suited(identity, kind), kind=kind, name=name) for name in ("before", "after"))
    with pytest.raises(Refusal) as caught:
        list(range(10) | before | pmap(f_refusing(7), kind=kind, name="refusing") | after)
    assert "refusing" in notes(caught.value)
    assert "before" not in notes(caught.value)
    assert "after" not in notes(caught.value)
    assert len(caught.value.__notes__) == 1


def test_the_traceback_of_the_worker_is_shown(kind: str, f_refusing: Refusing):
    with pytest.raises(Refusal) as caught:
        list(pmap(f_refusing(0), [0], kind=kind))
    shown = "".join(traceback.format_exception(caught.value))
    assert "raise error" in shown
    assert "in refuse" in shown


def test_the_cause_that_f_gave_is_kept(shared_memory_kind: str):
    def f(_: int) -> None:
        raise Refusal("no", 1) from LookupError("the cause")

    with pytest.raises(Refusal) as caught:
        list(pmap(suited(f, shared_memory_kind), [1], kind=shared_memory_kind))
    shown = "".join(traceback.format_exception(caught.value))
    assert "LookupError: the cause" in shown


@pytest.mark.parametrize("combinator", [pfilter, pflat_map, peach], ids=lambda each: each.__name__)
def test_every_combinator_raises(kind: str, combinator: Callable[..., Any], f_refusing: Refusing):
    with pytest.raises(Refusal, match="7"):
        list(combinator(f_refusing(7), [7, 8], kind=kind))


def test_outputs_of_the_items_before_an_error_in_a_generator(kind: str):
    def f(item: int) -> Iterator[int]:
        yield item
        if item == 3:
            raise Refusal("no", item)
        yield -item

    outputs: list[Any] = []
    with pytest.raises(Refusal) as caught:
        collect(pflat_map(f, range(10), kind=kind, workers=2), outputs)
    assert outputs[:6] == [0, 0, 1, -1, 2, -2]
    assert outputs[6:] in ([], [3])
    assert "3" in notes(caught.value)


def test_an_error_without_order(kind: str, f_refusing: Refusing):
    outputs: list[Any] = []
    with pytest.raises(Refusal, match="50"):
        collect(pmap(f_refusing(50), range(100), kind=kind, workers=2, ordered=False), outputs)
    assert len(outputs) == len(set(outputs))
    assert set(outputs) <= set(range(100)) - {50}


def test_after_an_error_the_stream_is_at_its_end(kind: str, f_refusing: Refusing):
    stream = pmap(f_refusing(0), range(10), kind=kind, workers=2)
    with pytest.raises(Refusal):
        next(stream)
    assert list(stream) == []


def test_after_an_error_the_transformer_runs_again(kind: str, f_refusing: Refusing):
    transformer = pmap(f_refusing(5), kind=kind, workers=2)
    for _ in range(3):
        with pytest.raises(Refusal):
            list(transformer(range(10)))
        assert list(transformer(range(5))) == [0, 1, 2, 3, 4]


def test_the_first_of_many_errors_is_raised(kind: str):
    def f(item: int) -> int:
        if item >= 20:
            raise Refusal("no", item)
        return item

    outputs: list[Any] = []
    with pytest.raises(Refusal) as caught:
        collect(pmap(suited(f, kind), range(1_000), kind=kind, workers=4), outputs)
    assert outputs == list(range(20))
    assert caught.value.code == 20


# Errors of others than f


def test_an_error_of_the_source_comes_after_its_items(kind: str):
    error = Refusal("no more", 3)

    def source() -> Iterator[int]:
        yield from range(100)
        raise error

    outputs: list[Any] = []
    with pytest.raises(Refusal) as caught:
        collect(
            pmap(suited(identity, kind), source(), kind=kind, workers=2) | pmap(square, kind="thread"),
            outputs,
        )
    assert outputs == [number * number for number in range(100)]
    assert caught.value is error


def test_an_error_of_iter_itself(kind: str):
    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise Refusal("not today", 3)

    with pytest.raises(Refusal, match="not today"):
        list(pmap(suited(identity, kind), Broken(), kind=kind))


def test_an_error_of_a_merged_stream(kind: str, f_refusing: Refusing):
    with pytest.raises(Refusal):
        list(merge(range(5), pmap(f_refusing(3), range(10), kind=kind)))


def test_an_error_of_on_start(kind: str):
    def on_start() -> None:
        raise Refusal("cannot start", 3)

    with pytest.raises(Refusal, match="cannot start"):
        list(pmap(suited(identity, kind), range(10), kind=kind, workers=2, on_start=on_start))


def test_an_error_of_on_done(kind: str):
    def on_done(stage_status: object) -> None:
        raise Refusal("cannot end", 3)

    with pytest.raises(Refusal, match="cannot end"):
        list(pmap(suited(identity, kind), range(10), kind=kind, workers=1, on_done=on_done))


# Errors that would mean something else


@pytest.mark.parametrize("raised", [StopIteration, StopIteration(3)], ids=repr)
def test_stop_iteration_is_no_end(kind: str, raised: Any):
    def stopping(item: int) -> int:
        if item == 3:
            raise raised
        return item

    outputs: list[Any] = []
    with pytest.raises(RuntimeError, match="stopping") as caught:
        collect(pmap(stopping, range(10), kind=kind, workers=2), outputs)
    assert outputs == [0, 1, 2]
    assert type(caught.value) is RuntimeError


@pytest.mark.parametrize(
    "raised", [SystemExit(3), KeyboardInterrupt("mine")], ids=["SystemExit", "KeyboardInterrupt"]
)
def test_exits_reach_the_caller(kind: str, raised: BaseException):
    def f(item: int) -> int:
        if item == 3:
            raise raised
        return item

    outputs: list[Any] = []
    with pytest.raises(type(raised)) as caught:
        collect(pmap(suited(f, kind), range(10), kind=kind, workers=2), outputs)
    assert outputs == [0, 1, 2][: len(outputs)]
    assert caught.value.args == raised.args


# Processes


def check_that_the_next_pipeline_works() -> None:
    assert list(pmap(square, range(20), kind="process", workers=2)) == list(map(square, range(20)))


def test_an_item_that_cannot_be_pickled():
    items = [1, 2, threading.Lock(), 4]
    outputs: list[Any] = []
    with pytest.raises(NotPicklable) as caught:
        collect(pmap(identity, items, kind="process", workers=2), outputs)
    assert outputs == [1, 2]
    assert "lock" in str(caught.value) + notes(caught.value)
    check_that_the_next_pipeline_works()


def test_an_output_that_cannot_be_pickled():
    def f(item: str) -> object:
        return threading.Lock() if item == "item-3" else item

    outputs: list[Any] = []
    with pytest.raises(NotPicklable) as caught:
        collect(pmap(f, ["item-1", "item-2", "item-3", "item-4"], kind="process", workers=2), outputs)
    assert outputs == ["item-1", "item-2"]
    assert "item-3" in str(caught.value) + notes(caught.value)
    check_that_the_next_pipeline_works()


@pytest.mark.parametrize("retries", [0, 1])
def test_on_error_answers_for_an_output_that_cannot_be_pickled(retries: int):
    def f(item: int) -> object:
        return threading.Lock() if item == 1 else item

    def handler(error: Exception, item: object) -> tuple[str, object]:
        return type(error).__name__, item

    answered = pmap(f, range(3), kind="process", on_error=handler, retries=retries)
    assert list(answered) == [0, ("NotPicklable", 1), 2]
    first, failed, last = pmap(f, range(3), kind="process", on_error="keep", retries=retries)
    assert (first, last) == (0, 2)
    assert isinstance(failed, Failed)
    assert (failed.item, type(failed.error), failed.tries) == (1, NotPicklable, 1 + retries)


def test_an_f_that_cannot_be_pickled():
    lock = threading.Lock()

    def locking(item: int) -> int:
        with lock:
            return item

    with pytest.raises(NotPicklable, match="locking"):
        list(pmap(locking, range(3), kind="process"))
    check_that_the_next_pipeline_works()


def test_a_worker_that_dies():
    def f(item: int) -> int:
        if item == 17:
            os._exit(3)
        return item

    outputs: list[Any] = []
    with pytest.raises(WorkerDied) as caught:
        collect(pmap(f, range(100), kind="process", workers=2), outputs)
    assert outputs == list(range(17))
    assert (caught.value.exitcode, caught.value.item) == (3, 17)
    assert "17" in str(caught.value)
    check_that_the_next_pipeline_works()


# Items deep in a stream, which travel with many others


def test_an_error_deep_in_a_stream_names_its_item(kind: str):
    outputs: list[int] = []
    with pytest.raises(ZeroDivisionError) as raised:
        collect(pmap(lambda x: x // (x != 700), range(1_000), kind=kind, workers=2), outputs)
    assert outputs == list(range(700))
    assert "item 700: 700" in notes(raised.value)


def test_an_error_behind_what_was_sent_ahead_is_that_of_its_item(kind: str):
    """The item takes so long that what is finished of its span goes out before, and the others are taken back."""

    def slowly_refuse(item: int) -> int:
        if item == 700:
            time.sleep(0.1)
            raise ValueError
        return item

    stream = pmap(
        suited(slowly_refuse, kind), range(1_000), kind=kind, workers=1, on_error=lambda _error, item: item
    )
    assert list(stream) == list(range(1_000))


def test_what_succeeds_when_tried_again_has_its_place(kind: str):
    tried: set[int] = set()

    def refuse_once(item: int) -> int:
        if item % 10 == 3 and item not in tried:
            tried.add(item)
            raise ValueError
        return item

    stream = pmap(suited(refuse_once, kind), range(1_000), kind=kind, workers=2, retries=2, backoff=0)
    assert list(stream) == list(range(1_000))  # each of two processes refuses it once


def test_an_item_is_tried_as_often_as_it_may(kind: str, log: Log):
    def refuse_always(item: int) -> None:
        log.write(item)
        raise ValueError

    with pytest.raises(ValueError):
        list(pmap(suited(refuse_always, kind), [7], kind=kind, retries=2, backoff=0))
    assert log.entries() == [7] * 3


def test_time_that_a_worker_waits_is_not_that_of_an_item(kind: str):
    def source() -> Iterator[int]:
        yield 1
        time.sleep(1.2)
        yield 2

    assert list(pmap(suited(identity, kind), source(), kind=kind, workers=1, timeout=0.8)) == [1, 2]


def test_the_time_out_is_of_an_item_though_many_travel_together(kind: str):
    def take_time(item: int) -> int:
        if item > 500:
            time.sleep(0.02)
        return item

    stream = pmap(suited(take_time, kind), range(560), kind=kind, workers=1, timeout=0.8)
    assert list(stream) == list(range(560))


# Workers that are stopped, as an item is over its time


def test_a_worker_whose_item_is_over_its_time_is_replaced(concurrent_kind: str, gate: Gate):
    f = holding(concurrent_kind, {0: gate})
    stream = pmap(f, range(5), kind=concurrent_kind, workers=1, timeout=0.8, on_error="skip")
    assert list(stream) == [1, 2, 3, 4]
    gate.open()


def test_a_task_over_its_time_is_cancelled():
    cancelled = asyncio.Event()

    async def f(item: int) -> int:
        if item == 0:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        await cancelled.wait()
        return item

    assert list(pmap(f, range(2), kind="task", workers=1, timeout=0.8, on_error="skip")) == [1]


def test_a_thread_that_was_given_up_takes_no_more_items():
    """It comes back while its replacement is at work, which is as many workers as there may be."""
    given_up, at_work, most = threading.Event(), [], []

    def f(item: int) -> int:
        if item == 0:
            given_up.wait()
            return item
        at_work.append(item)
        most.append(len(at_work))
        given_up.set()
        time.sleep(0.2)  # work during which the other one could take an item
        at_work.remove(item)
        return item

    stream = pmap(f, range(4), kind="thread", workers=1, timeout=0.8, on_error="skip")
    assert list(stream) == [1, 2, 3]
    assert most == [1, 1, 1]


def test_an_item_over_its_time_is_a_timeout(concurrent_kind: str, gate: Gate):
    f = holding(concurrent_kind, {3: gate})
    stream = pmap(f, range(5), kind=concurrent_kind, workers=1, timeout=0.8)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError, match=r"item 3: 3, ran over its 0\.8 seconds"):
        next(stream)
    gate.open()


@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_death_deep_in_a_stream_costs_one_item(is_ordered: bool):
    def die_at(item: int) -> int:
        if item == 700:
            os._exit(3)
        return item

    errors: list[WorkerDied] = []
    options: dict[str, Any] = {"workers": 1, "ordered": is_ordered, "on_error": lambda e, _: errors.append(e)}
    outputs = list(pmap(die_at, range(1_000), kind="process", **options))
    assert sorted(output for output in outputs if output is not None) == [*range(700), *range(701, 1_000)]
    assert [(error.item, error.exitcode) for error in errors] == [(700, 3)]


class Deadly:
    """What ends the process that pickles it."""

    def __reduce__(self) -> Any:
        os._exit(3)


def test_an_output_that_kills_its_worker_costs_one_item():
    stream = pmap(
        lambda x: Deadly() if x == 70 else x, range(100), kind="process", workers=1, on_error="skip"
    )
    assert list(stream) == [*range(70), *range(71, 100)]
