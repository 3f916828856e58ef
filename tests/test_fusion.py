"""Neighbouring process stages that run as one: nobody sees the difference, but for the number of processes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fstream import SKIP, NotPicklable, Transformer, WorkerDied, peach, pfilter, pflat_map, pmap
from fstream._plan.fusion import fuse
from fstream._workers import kinds
from fstream._workers.kinds import can_fuse
from tests.faults.faulty import Boom, Tally, give_lock
from tests.functions import identity, is_odd, square


def names(transformer: Transformer[Any, Any]) -> list[str]:
    return [stage.name for stage in fuse([step.stage for step in transformer.steps], can_fuse)]


def process(verb: Callable[..., Any], f: Callable[..., Any], **options: Any) -> Any:
    return verb(f, kind="process", **options)


SQUARE = process(pmap, square)
ODD = process(pfilter, is_odd)
TWICE = process(pflat_map, lambda item: [item, item], name="twice")


@pytest.mark.parametrize(
    ("transformer", "expected"),
    [
        (SQUARE | ODD | SQUARE, ["square | is_odd | square"]),
        (SQUARE | TWICE | SQUARE, ["square | twice", "square"]),
        (ODD | process(peach, identity), ["is_odd | identity"]),
        (SQUARE | pmap(square, kind="thread") | SQUARE, ["square", "square", "square"]),
        (pmap(square, kind="thread") | pmap(square, kind="thread"), ["square", "square"]),
        (SQUARE | process(pmap, square, workers=999), ["square", "square"]),
        (process(pmap, square, workers=999) | process(pmap, square, workers=999), ["square | square"]),
        (process(pmap, square, workers=1) | process(pmap, square, workers=1), ["square", "square"]),
        (SQUARE | process(pmap, square, maxsize=9), ["square", "square"]),
        (SQUARE | process(pmap, square, timeout=9), ["square | square"]),
        (SQUARE | process(pmap, square, retries=1), ["square | square"]),
        (SQUARE | process(pmap, square, on_error="skip"), ["square | square"]),
        (SQUARE | process(pmap, square, on_error=print), ["square | square"]),
        (process(pmap, square, on_error=print) | SQUARE, ["square", "square"]),
        (SQUARE | process(pmap, square, on_error="keep"), ["square | square"]),
        (
            process(pmap, square, on_error="keep") | process(pmap, square, on_error="keep"),
            ["square | square"],
        ),
        (ODD | process(pmap, square, on_error="keep"), ["is_odd", "square"]),
        (
            process(pmap, square, on_error="skip") | process(pmap, square, on_error="keep"),
            ["square", "square"],
        ),
        (SQUARE | process(pmap, square, rate=9), ["square", "square"]),
        (SQUARE | process(pmap, square, key=is_odd), ["square", "square"]),
        (SQUARE | process(pmap, square, on_error="skip", max_failures=9), ["square", "square"]),
        (process(pmap, square, memo={}) | SQUARE, ["square", "square"]),
        (SQUARE | process(pmap, square, ordered=False), ["square", "square"]),
        (SQUARE | process(pmap, square, max_items_per_worker=9), ["square", "square"]),
        (
            process(pmap, square, max_items_per_worker=9) | process(pmap, square, max_items_per_worker=9),
            ["square | square"],
        ),
        (
            process(pmap, square, on_start=dict) | SQUARE | process(pmap, square, on_start=dict),
            ["square | square | square"],
        ),
        (
            process(pmap, square, on_done=print) | SQUARE | process(pmap, square, on_start=dict),
            ["square | square", "square"],
        ),
    ],
)
def test_which_stages_run_as_one(transformer: Transformer[Any, Any], expected: list[str]):
    assert names(transformer) == expected


def test_stages_with_fewer_workers_than_cpus_run_by_themselves(monkeypatch: pytest.MonkeyPatch):
    stages = process(pmap, square, workers=3) | process(pmap, square, workers=3)
    for cpus, count in (2, 1), (3, 1), (4, 2):
        monkeypatch.setattr(kinds, "cpu_count", lambda cpus=cpus: cpus)
        assert len(names(stages)) == count


@pytest.mark.parametrize("options", [{"workers": 99}, {"timeout": 9}, {"retries": 1}, {"on_error": "skip"}])
def test_on_a_cluster_stages_run_as_one_where_any_failure_ends_the_stream(options: dict[str, Any]):
    plain, other = (
        replace(step.stage, kind="dask") for step in (SQUARE | process(pmap, square, **options)).steps
    )
    here = SQUARE.steps[0].stage
    for stages, count in ([plain, plain], 1), ([plain, other], 2), ([other, plain], 2), ([here, plain], 2):
        assert len(fuse(stages, can_fuse)) == count


def test_as_many_items_are_at_work_as_each_stage_allows():
    pids = process(pmap, lambda _: os.getpid(), workers=9) | process(
        pmap, lambda pid: (pid, os.getpid()), workers=9
    )
    assert len(names(pids)) == 1
    assert all(before == after for before, after in pids(range(50)))


def test_workers_are_renewed_after_as_many_items_of_each_stage():
    options = {"max_items_per_worker": 5}
    pids = process(pmap, lambda _: os.getpid(), **options) | process(
        pmap, lambda pid: (pid, os.getpid()), **options
    )
    assert len(names(pids)) == 1
    found = Counter(pids(range(20)))
    assert all(before == after for before, after in found)
    assert max(found.values()) <= 5


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_outputs_are_those_of_the_stages(length: int, ordered: bool):
    options = {"ordered": ordered}
    stages = process(pmap, square, **options) | process(pfilter, is_odd, **options)
    stages |= process(pflat_map, lambda item: [item] * (item % 3), **options)
    outputs = list(stages(range(length)))
    odd = [item**2 for item in range(length) if item % 2]
    expected = [item for item in odd for _ in range(item % 3)]
    assert outputs == expected if ordered else sorted(outputs) == expected


def test_they_share_their_workers():
    pids = process(pmap, lambda _: os.getpid()) | process(pmap, lambda pid: (pid, os.getpid()))
    assert all(before == after for before, after in pids(range(50)))


def test_peach_gives_nothing_out(tmp_path: Path):
    tally = Tally(str(tmp_path / "tally"))
    assert list((SQUARE | process(peach, lambda item: tally.note("f", item)))(range(9))) == []
    assert sorted(int(item) for _, item in tally.events("f")) == [item**2 for item in range(9)]


def fail_at(bad: int, exception: type[BaseException] = Boom) -> Callable[[int], int]:
    def f(item: int) -> int:
        if item == bad:
            raise exception(item)
        return item

    return f


def outputs_and_error(stream: Any) -> tuple[list[Any], BaseException]:
    outputs = []
    with pytest.raises(BaseException) as raised:
        for output in stream:
            outputs.append(output)
    return outputs, raised.value


def test_an_error_names_its_own_stage_and_item():
    outputs, error = outputs_and_error((SQUARE | process(pmap, fail_at(25), name="second"))(range(100)))
    assert outputs == [0, 1, 4, 9, 16]
    assert type(error) is Boom
    assert error.__notes__ == ["in stage 'second' (process), item 5: 25"]
    assert "raise exception(item)" in str(error.__cause__)


def test_after_a_filter_it_names_the_item_that_the_item_was_made_of():
    outputs, error = outputs_and_error((ODD | process(pmap, fail_at(5), name="second"))(range(100)))
    assert outputs == [1, 3]
    assert error.__notes__ == ["in stage 'second' (process), 5, made of item 5: 5"]


def test_a_stop_iteration_names_its_f():
    _, error = outputs_and_error((SQUARE | process(pmap, fail_at(4, StopIteration), name="second"))(range(9)))
    assert type(error) is RuntimeError
    assert "second raised StopIteration" in str(error)


def test_a_dead_worker_names_the_item():
    stages = SQUARE | process(pmap, lambda item: os._exit(3) if item == 16 else item, name="dies")
    outputs, error = outputs_and_error(stages(range(9)))
    assert outputs == [0, 1, 4, 9]
    assert type(error) is WorkerDied
    assert error.exitcode == 3
    assert "stage 'square | dies' (process), item 4: 4" in str(error)


def test_an_output_that_cannot_be_pickled():
    stages = SQUARE | process(pmap, lambda item: give_lock(item) if item == 4 else item, name="lock")
    outputs, error = outputs_and_error(stages(range(9)))
    assert outputs == [0, 1]
    assert type(error) is NotPicklable
    assert "stage 'square | lock' (process), item 2: 2: its output" in str(error)


class Resource:
    """What ``on_start`` makes, and ``on_done`` gives back."""

    def __init__(self, tally: Tally, name: str) -> None:
        self.tally, self.name = tally, name

    def start(self) -> dict[str, str]:
        self.tally.note(f"start {self.name}")
        return {"word": self.name}

    def done(self, _status: Any, word: str) -> None:
        self.tally.note(f"done {word}")


@pytest.mark.parametrize("taken", [3, 100])
def test_each_stage_has_its_own_resources(tmp_path: Path, taken: int):
    tally = Tally(str(tmp_path / "tally"))
    first, second = Resource(tally, "first"), Resource(tally, "second")

    def add(item: Any, word: str) -> Any:
        return [*(item if isinstance(item, list) else [item]), word]

    stages = process(pmap, add, on_start=first.start, on_done=first.done)
    stages |= process(pmap, add, on_start=second.start, on_done=second.done)
    with stages(range(taken)) as stream:
        for item in range(3):
            assert next(stream) == [item, "first", "second"]
    for word in ("first", "second"):
        assert tally.count(f"start {word}") == tally.count(f"done {word}") > 0


def test_resources_are_given_back_though_those_of_the_next_stage_fail(tmp_path: Path):
    tally = Tally(str(tmp_path / "tally"))
    resource = Resource(tally, "first")

    def fail() -> None:
        raise Boom("in on_start")

    stages = process(pmap, lambda item, word: item, on_start=resource.start, on_done=resource.done)
    stages |= process(pmap, identity, on_start=fail)
    _, error = outputs_and_error(stages(range(9)))
    assert type(error) is Boom
    assert tally.count("start first") == tally.count("done first") > 0


def test_all_on_dones_run_though_one_raises(tmp_path: Path):
    tally = Tally(str(tmp_path / "tally"))

    def bad(_status: Any) -> None:
        raise Boom("in on_done")

    stages = process(pmap, identity, on_done=bad)
    stages |= process(pmap, identity, on_done=lambda _status: tally.note("done"))
    outputs, error = outputs_and_error(stages(range(9)))
    assert outputs == list(range(9))
    assert type(error) is Boom
    assert tally.count("done") > 0


@pytest.mark.parametrize("position", [0, 1])
def test_on_done_runs_whichever_stage_has_it(tmp_path: Path, position: int):
    tally = Tally(str(tmp_path / "tally"))
    has = process(pmap, identity, on_done=lambda _status: tally.note("done"))
    stages = has | SQUARE if position == 0 else SQUARE | has
    assert len(names(stages)) == 1
    assert list(stages(range(9))) == [item**2 for item in range(9)]
    assert tally.count("done") > 0


def test_positions_are_those_of_the_items_that_a_stage_gets():
    def position(item: int, element_index: int) -> tuple[int, int]:
        return item, element_index

    def odd_or_none(item: int) -> Any:
        return item if item % 2 else SKIP

    stages = process(pmap, position) | process(pmap, identity)
    assert names(stages) == ["position | identity"]
    assert list(stages(range(50))) == [(item, item) for item in range(50)]
    for before in ODD, process(pmap, odd_or_none):
        stages = before | process(pmap, position)
        assert len(names(stages)) == 2
        assert list(stages(range(50))) == [(item, number) for number, item in enumerate(range(1, 50, 2))]
