"""on_done is given what it declares by name, and the rest in turn: on_done(stage_status, *resources)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest
from more_itertools import collapse

from fstream import StageStatus, Stream, WorkerInfo, batch, divert, inline, merge, pmap
from tests.functions import suited
from tests.gates import Log

Write = Callable[..., None]


def collected(stream: Stream[Any]) -> list[Any]:
    async def main() -> list[Any]:
        return [output async for output in stream]

    return asyncio.run(main())


DONE = StageStatus(0)
INFO = WorkerInfo(0)

#: The resources, what on_done is, and the arguments that it must get.
SHAPES: dict[str, tuple[Any, Callable[[Write], Callable[..., Any]], tuple[Any, ...]]] = {
    "of a dict, what it declares": ({"x": 1, "y": 2}, lambda write: lambda y: write(y), (2,)),
    "of a dict, all": ({"x": 1, "y": 2}, lambda write: lambda y, x: write(y, x), (2, 1)),
    "by keyword only": ({"y": 2}, lambda write: lambda *, y: write(y), (2,)),
    "the status, too": ({"y": 2}, lambda write: lambda stage_status, y: write(stage_status, y), (DONE, 2)),
    "the status last": ({"y": 2}, lambda write: lambda y, stage_status: write(y, stage_status), (2, DONE)),
    "the status by keyword": (
        {"y": 2},
        lambda write: lambda y, *, stage_status: write(y, stage_status),
        (2, DONE),
    ),
    "the status under another name": ({"y": 2}, lambda write: lambda status, y: write(status, y), (DONE, 2)),
    "the status, positional only": ({"y": 2}, lambda write: lambda s, /, y: write(s, y), (DONE, 2)),
    "the status in *args": ({"y": 2}, lambda write: lambda *args, y: write(args, y), ((DONE,), 2)),
    "a default that stands": ({"y": 2}, lambda write: lambda y, z=3: write(y, z), (2, DONE)),
    "a default between": (
        {"y": 2},
        lambda write: lambda status, z=3, y=4: write(status, z, y),
        (DONE, 3, 2),
    ),
    "a default by keyword": ({}, lambda write: lambda stage_status, *, y=5: write(y), (5,)),
    "a dict, and nothing": ({"y": 2}, lambda write: lambda: write(), ()),
    "a dict, and the worker": ({"y": 2}, lambda write: lambda worker_info: write(worker_info), (INFO,)),
    "ours before a dict's": (
        {"stage_status": 1, "worker_info": 2},
        lambda write: lambda stage_status, worker_info: write(stage_status, worker_info),
        (DONE, INFO),
    ),
    "None, and nothing": (None, lambda write: lambda: write(), ()),
    "None, and the worker": (None, lambda write: lambda worker_info: write(worker_info), (INFO,)),
    "None, and the status by keyword": (
        None,
        lambda write: lambda *, stage_status: write(stage_status),
        (DONE,),
    ),
    "None, and a status of any name": (None, lambda write: lambda _: write(_), (DONE,)),
    "None, and *args": (None, lambda write: lambda *args: write(args), ((DONE,),)),
    "an object, and nothing": (7, lambda write: lambda: write(), ()),
    "an object, and the worker alone": (7, lambda write: lambda worker_info: write(worker_info), (INFO,)),
    "an object, in turn": (7, lambda write: lambda status, it: write(status, it), (DONE, 7)),
    "an object, in *args": (7, lambda write: lambda *args: write(args), ((DONE, 7),)),
    "an object before the status": (
        7,
        lambda write: lambda it, stage_status: write(it, stage_status),
        (7, DONE),
    ),
    "an object, and the status by keyword": (
        7,
        lambda write: lambda it, *, stage_status: write(it, stage_status),
        (7, DONE),
    ),
    "the worker between": (
        7,
        lambda write: lambda stage_status, worker_info, it: write(stage_status, worker_info, it),
        (DONE, INFO, 7),
    ),
    "a tuple around the status": (
        (7, 8),
        lambda write: lambda one, stage_status, two: write(one, stage_status, two),
        (7, DONE, 8),
    ),
    "an empty tuple": ((), lambda write: lambda status: write(status), (DONE,)),
}


@pytest.mark.parametrize(("resources", "make", "expected"), SHAPES.values(), ids=SHAPES.keys())
def test_on_done_is_given_what_it_declares(
    kind: str,
    log: Log,
    resources: Any,
    make: Callable[[Write], Callable[..., Any]],
    expected: tuple[Any, ...],
):
    on_done = suited(make(lambda *args: log.write(repr(args))), kind)
    f = suited(lambda item, *_: item, kind)
    assert list(pmap(f, [1], kind=kind, workers=1, on_start=lambda: resources, on_done=on_done)) == [1]
    assert log.entries() == [repr(expected)]


def test_each_of_the_stages_that_run_as_one_is_given_its_own(log: Log):
    one = pmap(abs, kind="process", on_start=lambda: {"x": 1}, on_done=lambda x: log.write(x))
    two = pmap(abs, kind="process", on_done=lambda: log.write(2))
    assert list([3] | one | two) == [3]
    assert 1 in log.entries() and 2 in log.entries()


@pytest.mark.parametrize(
    ("resources", "on_done"),
    [(7, lambda only: None), ((7, 8), lambda status, one: None), ({"x": 1}, lambda status, missing: None)],
    ids=["no room for the object", "no room for the second", "a name that the dict has not"],
)
def test_what_does_not_fit_is_an_error(kind: str, resources: Any, on_done: Callable[..., None]):
    f = suited(lambda item, *_: item, kind)
    with pytest.raises(TypeError, match="positional argument") as caught:
        list(pmap(f, [1], kind=kind, workers=1, on_start=lambda: resources, on_done=on_done))
    assert "in on_done of stage" in caught.value.__notes__[0]


@pytest.mark.parametrize("where", ["at the error", "before it", "behind it"])
@pytest.mark.parametrize("inlined", [False, True], ids=["workers", "inline"])
@pytest.mark.parametrize("iterate", [list, collected], ids=["for", "async for"])
def test_its_error_comes_not_before_the_error_that_ended_the_stream(
    kind: str, where: str, inlined: bool, iterate: Callable[[Any], list[Any]]
):
    def on_done(_status: StageStatus) -> None:
        raise LookupError("on_done")

    def complaining(place: str) -> Any:
        return {"on_done": on_done} if place == where else {}

    stream = (
        [2, 1, 0]
        | pmap(suited(abs, kind), kind=kind, **complaining("before it"))
        | pmap(suited(lambda item: 2 // item, kind), kind=kind, **complaining("at the error"))
        | pmap(suited(abs, kind), kind=kind, **complaining("behind it"))
    )
    with inline() if inlined else nullcontext(), pytest.raises(ZeroDivisionError):
        iterate(stream)


def test_a_worker_stage_before_one_in_place_does_not_complain_of_its_end_either(concurrent_kind: str):
    def on_done(_status: StageStatus) -> None:
        raise LookupError("on_done")

    first = pmap(suited(abs, concurrent_kind), kind=concurrent_kind, on_done=on_done)
    with pytest.raises(ZeroDivisionError):
        list([1, 0] | first | pmap(lambda item: 1 // item, kind="sync"))


def between(name: str, stream: Any) -> Any:
    """What may stand between two stages."""
    if name == "merge":
        return merge(stream, [[1]])
    steps: dict[str, Any] = {
        "nothing": batch(1),
        "divert": batch(1) | divert(print, where=str),
        "weighed": batch(1, weight=lambda _: 1),
    }
    return stream | steps[name]


@pytest.mark.parametrize("name", ["nothing", "divert", "weighed", "merge"])
@pytest.mark.parametrize("kind_behind", ["sync", "thread"])
@pytest.mark.parametrize("inlined", [False, True], ids=["workers", "inline"])
@pytest.mark.parametrize("iterate", [list, collected], ids=["for", "async for"])
def test_the_status_has_the_error_of_a_stage_behind_it_whatever_is_between(
    shared_memory_kind: str, kind_behind: str, name: str, inlined: bool, iterate: Callable[[Any], list[Any]]
):
    errors: list[BaseException | None] = []
    f = suited(lambda number: [number], shared_memory_kind)
    first = pmap(f, count(), kind=shared_memory_kind, on_done=lambda status: errors.append(status.error))
    failing = pmap(lambda item: 1 // (3 - next(collapse(item))), kind=kind_behind)
    with inline() if inlined else nullcontext(), pytest.raises(ZeroDivisionError) as caught:
        iterate(between(name, first) | failing)
    assert errors and all(error is caught.value for error in errors)


def test_a_built_in_without_a_signature_is_given_all_in_turn(kind: str):
    with pytest.raises(TypeError, match="StageStatus"):
        list(pmap(suited(abs, kind), [1], kind=kind, workers=1, on_done=iter))
