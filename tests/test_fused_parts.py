"""Process stages that run as one, each with its own options: all that can be seen is as if each ran by itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fstream import SKIP, Failed, NotPicklable, Processes, Stream, WorkerDied, peach, pfilter, pflat_map, pmap
from fstream._plan.fusion import fuse
from fstream._workers import opening
from fstream._workers.kinds import can_fuse
from tests.faults.faulty import Boom, Tally
from tests.test_fusion import outputs_and_error

#: The items for which the part of that number fails, in the comparisons.
BAD = {0: 3, 1: 7, 2: 11}


class Part:
    """f of one part: notes its calls, and fails as often as it is told for one item."""

    def __init__(self, tally: Tally, number: int, times: int = 99, how: str = "raise") -> None:
        self.tally, self.number, self.times, self.how = tally, number, times, how
        self.__name__ = f"part{number}"

    def __call__(self, item: int, attempt: int) -> int:
        self.tally.note(f"f{self.number}", f"{item} at {attempt}")
        if item % 100 == BAD[self.number] and attempt < self.times:
            if self.how == "die":
                os._exit(3)
            if self.how == "hang":
                time.sleep(60)
            raise Boom(item)
        return item + 100


class Handled:
    """A handler of ``on_error``, which notes what it is given."""

    def __init__(self, tally: Tally, result: Any) -> None:
        self.tally, self.result = tally, result

    def __call__(self, error: Exception, item: int) -> Any:
        self.tally.note("handler", f"{type(error).__name__} {item}")
        return self.result(item) if callable(self.result) else self.result


def raises(_item: int) -> int:
    raise ValueError("in the handler")


def instead(item: int) -> int:
    return item + 5000


def skipped(_item: int) -> Any:
    return SKIP


def shown(output: Any) -> Any:
    if isinstance(output, Failed):
        return "failed", output.item, type(output.error), output.index, output.stage, output.tries
    return output


def notes(error: BaseException) -> list[str]:
    return [str(note) for note in getattr(error, "__notes__", ())]


def seen(tally: Tally, stream: Stream[Any]) -> dict[str, Any]:
    """All that can be seen of a run."""
    outputs, error = [], None
    try:
        for output in stream:
            outputs.append(shown(output))
    except Exception as raised:
        error = raised
    events = ("f0", "f1", "f2", "handler")
    found = {event: Counter(what for _, what in tally.events(event)) for event in events}
    stats = [(each.name, each.taken, each.given, each.failed, each.retried) for each in stream.stats().stages]
    return {
        "outputs": outputs,
        "error": error and (type(error), str(error), notes(error)),
        "stats": stats if error is None else [each[3:] for each in stats],
        **(found if error is None else {"handler": found["handler"]}),
    }


Row = Callable[[Tally], Any]


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "fuse", lambda stages, _can_fuse: stages)


def assert_same(
    row: Row, items: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *left_out: str
) -> dict[str, Any]:
    """Check that *row* runs as one, and shows the same as its stages by themselves."""
    one = Tally(str(tmp_path / "one"))
    assert len(fuse([step.stage for step in row(one).steps], can_fuse)) == 1
    as_one = seen(one, row(one)(items))
    with monkeypatch.context() as patched:
        apart(patched)
        several = Tally(str(tmp_path / "several"))
        by_themselves = seen(several, row(several)(items))
    for what in left_out:
        as_one.pop(what, None), by_themselves.pop(what, None)
    assert as_one == by_themselves
    return as_one


POLICIES: dict[str, Callable[[Tally], dict[str, Any]]] = {
    "raise": lambda _: {},
    "skip": lambda _: {"on_error": "skip"},
    "keep": lambda _: {"on_error": "keep"},
    "instead": lambda tally: {"on_error": Handled(tally, instead)},
    "skip by a handler": lambda tally: {"on_error": Handled(tally, skipped)},
    "a handler that raises": lambda tally: {"on_error": Handled(tally, raises)},
}
for name in list(POLICIES):
    POLICIES[f"{name} after tries"] = lambda tally, of=POLICIES[name]: {
        **of(tally), "retries": 2, "backoff": 0.001
    }  # fmt: skip
POLICIES["not tried again"] = lambda _: {"on_error": "keep", "retries": 2, "retry_on": ValueError}


#: Each policy with the part that has it. Handlers are for the last part: before others they make a stage of their own.
CASES = [
    (number, policy)
    for policy in POLICIES
    for number in range(3)
    if number == 2 or not callable(POLICIES[policy](Tally("")).get("on_error"))
]


def row_with(number: int, policy: str, times: int = 99, how: str = "raise", **more: Any) -> Row:
    def row(tally: Tally) -> Any:
        stages = None
        for each in range(3):
            options = {**POLICIES[policy](tally), **more} if each == number else {}
            stage = pmap(Part(tally, each, times, how if each == number else "raise") if each == number
                         else Part(tally, each, 0), kind="process", **options)  # fmt: skip
            stages = stage if stages is None else stages | stage
        return stages

    return row


@pytest.mark.parametrize(("number", "policy"), CASES)
def test_what_fails_in_a_part_is_seen_to_by_that_part(
    number: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert_same(row_with(number, policy), range(40), tmp_path, monkeypatch)


@pytest.mark.parametrize(("number", "policy"), [case for case in CASES if "after" in case[1]])
def test_a_further_try_begins_with_the_part_that_failed(
    number: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = assert_same(row_with(number, policy, times=2), range(40), tmp_path, monkeypatch)
    assert found["outputs"] == list(range(300, 340))
    assert found["f0"].total() == 40 + 2 * (number == 0)


LOST = [("die", *case) for case in CASES if case[1] != "raise"]
LOST += [
    ("hang", *case) for case in CASES if case[1] in ("raise", "keep", "skip", "instead", "keep after tries")
]


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize(("how", "number", "policy"), LOST)
def test_a_lost_worker_is_charged_to_the_part_that_it_was_at(
    number: int, policy: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    more = {"timeout": 0.3} if how == "hang" else {}
    row = row_with(number, policy, how=how, **more)
    # What the worker had done is lost with it, so the parts before run again.
    assert_same(row, range(20), tmp_path, monkeypatch, "f0", "f1", "f2", "error")


def test_a_lost_worker_names_the_part_and_the_item_that_its_item_was_made_of():
    def die(item: int) -> int:
        if item == 5:
            os._exit(3)
        return item

    stages = pmap(add_one, kind="process") | pmap(die, kind="process", retries=1, backoff=0, name="dies")
    outputs, error = outputs_and_error(stages(range(9)))
    assert outputs == [1, 2, 3, 4]
    assert type(error) is WorkerDied
    assert "stage 'dies' (process), made of item 4: 4: its worker ended with exit status 3" in str(error)


def test_where_the_item_is_wanted_a_lost_worker_names_that():
    def die(item: int) -> int:
        if item == 5:
            os._exit(3)
        return item

    stages = pmap(add_one, kind="process") | pmap(die, kind="process", on_error="keep", name="dies")
    failed = list(stages(range(9)))[4]
    assert (failed.item, failed.index, failed.stage, failed.error.item) == (5, 4, "dies", 5)
    assert "stage 'dies' (process), item 4: 5: its worker" in str(failed.error)


def add_one(item: int) -> int:
    return item + 1


def test_each_part_has_its_own_time():
    def wait(item: int) -> int:
        time.sleep(0.3)
        return item

    def hang(item: int) -> int:
        if item == 2:
            time.sleep(60)
        return item

    stages = pmap(wait, kind="process", timeout=50)
    stages |= pmap(wait, kind="process")
    stages |= pmap(hang, kind="process", timeout=0.25, on_error="keep", name="hangs")
    assert len(fuse([step.stage for step in stages.steps], can_fuse)) == 1
    begun = time.monotonic()
    outputs = list(stages(range(4)))
    assert time.monotonic() - begun < 30
    assert [shown(output) for output in outputs] == [0, 1, ("failed", 2, TimeoutError, 2, "hangs", 1), 3]
    assert "stage 'hangs' (process), item 2: 2, ran over its 0.25 seconds" in str(outputs[2].error)


def test_a_worker_that_is_killed_from_outside_costs_its_part_a_try(tmp_path: Path):
    tally = Tally(str(tmp_path / "tally"))

    def killed(item: int) -> int:
        if item == 4 and tally.turn("kill") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    stages = pmap(add_one, kind="process") | pmap(killed, kind="process", retries=1, backoff=0, name="killed")
    stream = stages(range(9))
    assert list(stream) == list(range(1, 10))
    assert [(each.name, each.failed, each.retried) for each in stream.stats().stages] == [
        ("add_one", 0, 0),
        ("killed", 0, 1),
    ]


def test_what_a_part_had_printed_comes_out_though_its_worker_dies(capsys: pytest.CaptureFixture[str]):
    def die(item: int) -> int:
        for word in "some", "last", "words":
            print(word)
        os._exit(3)

    stages = pmap(add_one, kind="process", on_error="keep") | pmap(die, kind="process", name="dies")
    _, error = outputs_and_error(stages([1]))
    assert type(error) is WorkerDied
    assert "stage 'dies' (process), made of item 0" in str(error)
    assert capsys.readouterr().out == "some\nlast\nwords\n"


class Deadly:
    """What ends each process that unpickles it, but for one."""

    def __init__(self, spared: int) -> None:
        self.spared = spared

    def __reduce__(self) -> Any:
        return revive, (self.spared,)


def revive(spared: int) -> Deadly:
    if os.getpid() != spared:
        os._exit(3)
    return Deadly(spared)


def test_an_item_that_kills_as_it_is_unpickled_is_charged_to_the_part_that_it_is_for():
    spared = os.getpid()

    def fail(item: Any) -> Any:
        if isinstance(item, Deadly):
            raise Boom("bad")
        return item

    stages = pmap(lambda item: Deadly(spared) if item == 3 else item, kind="process", name="makes")
    stages |= pmap(fail, kind="process", retries=1, backoff=0, on_error="skip", name="fails")
    stream = stages(range(5))
    assert list(stream) == [0, 1, 2, 4]
    assert [(each.name, each.failed, each.retried) for each in stream.stats().stages] == [
        ("makes", 0, 0),
        ("fails", 1, 1),
    ]


def fails_at(*bad: int) -> Callable[[int], int]:
    def f(item: int) -> int:
        if item in bad:
            raise Boom(item)
        return item

    return f


@pytest.mark.parametrize(
    ("number", "policy"),
    [case for case in CASES if case[1] in ("skip", "keep", "instead", "skip by a handler")],
)
def test_whatever_the_operations_are(
    number: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def is_small(item: int) -> bool:
        if item % 7 == 3:
            raise Boom(item)
        return item % 5 != 2

    def twice(item: int) -> list[int]:
        if item % 7 == 3:
            raise Boom(item)
        return [item, item]

    def row(tally: Tally) -> Any:
        def both(item: int) -> Any:
            return [item, item + 1]

        policies = {**POLICIES, "instead": lambda tally: {"on_error": Handled(tally, both)}}
        options: list[Any] = [{}, {}, {}]
        options[number] = policies[policy](tally)
        calm = {0: abs, 1: lambda item: item % 5 != 2, 2: lambda item: [item, item]}
        fs = [fails_at(4, 30), is_small, twice]
        verbs = [pmap, pfilter, pflat_map]
        stages = None
        for each, verb in enumerate(verbs):
            f: Any = fs[each] if each == number else calm[each]
            stage: Any = verb(f, kind="process", name=f"part{each}", **options[each])
            stages = stage if stages is None else stages | stage
        return stages

    if policy == "keep" and number == 2:  # after a filter nobody knows the position of an item
        assert len(fuse([step.stage for step in row(Tally("")).steps], can_fuse)) == 2
        return
    assert_same(row, range(60), tmp_path, monkeypatch)


def test_what_is_kept_is_handed_on_past_all_later_parts():
    stages = pmap(fails_at(3), kind="process", on_error="keep")
    stages |= pmap(add_one, kind="process", on_error="keep")
    stages |= pflat_map(lambda item: [item, item], kind="process", on_error="skip")
    outputs = [shown(output) for output in stages(range(5))]
    assert outputs == [1, 1, 2, 2, 3, 3, ("failed", 3, Boom, 3, "f", 1), 5, 5]


def test_peach_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def row(tally: Tally) -> Any:
        stages = pmap(fails_at(3), kind="process", retries=1, backoff=0, on_error="skip")
        return stages | peach(fails_at(5), kind="process", on_error=Handled(tally, 0))

    found = assert_same(row, range(9), tmp_path, monkeypatch)
    assert found["handler"] == Counter(["Boom 5"])


def test_an_item_may_fail_in_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def row(tally: Tally) -> Any:
        stages = None
        for number in range(4):

            def f(item: int, attempt: int, number: int = number) -> int:
                tally.note("f0", f"{number}: {item} at {attempt}")
                if item % 10 == 1 and attempt < 2:
                    raise Boom(item)
                if item % 10 == number + 2:
                    raise Boom(item)
                return item + 100

            on_error: Any = "keep" if number < 3 else Handled(tally, lambda item: item + 1000)
            stage = pmap(f, kind="process", retries=2, backoff=0, on_error=on_error, name=f"part{number}")
            stages = stage if stages is None else stages | stage
        return stages

    found = assert_same(row, range(20), tmp_path, monkeypatch)
    failed = [("failed", 2 + 101 * n, Boom, 2 + n, f"part{n}", 3) for n in range(3)]
    assert found["outputs"][:7] == [400, 401, *failed, 1305, 406]


def test_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def row(tally: Tally) -> Any:
        options: Any = {"kind": "process", "ordered": False}
        stages = pmap(fails_at(3, 9), on_error="skip", **options)
        stages |= pmap(add_one, retries=1, backoff=0, **options)
        return stages | pmap(fails_at(7), on_error=Handled(tally, instead), **options)

    found = []
    with monkeypatch.context() as patched:
        for _ in range(2):
            stream = row(Tally(str(tmp_path / "tally")))(range(500))
            found.append(Counter(stream))
            apart(patched)
    assert found[0] == found[1]


def test_an_item_that_cannot_be_told_of_ends_the_stream():
    def bad(item: Any) -> Any:
        raise Boom("bad")

    stages = pmap(lambda item: (each for each in [item]), kind="process")
    stages |= pmap(bad, kind="process", retries=1, name="bad")
    _, error = outputs_and_error(stages(range(3)))
    assert type(error) is NotPicklable
    assert "stage 'bad' (process), item 0: <generator" in str(error)
    assert "it failed, and its item cannot be pickled" in str(error)
    assert type(error.__cause__) is Boom


class Refuses:
    """What can be pickled, and not unpickled here."""

    def __reduce__(self) -> Any:
        return refuse, (os.getpid(),)


def refuse(pid: int) -> Refuses:
    raise Boom("not here")


def test_an_item_that_cannot_be_unpickled_here_ends_the_stream():
    def bad(item: Any) -> Any:
        raise Boom("bad")

    stages = pmap(lambda item: Refuses(), kind="process")
    stages |= pmap(bad, kind="process", on_error="keep", name="bad")
    _, error = outputs_and_error(stages(range(3)))
    assert type(error) is NotPicklable
    assert "stage 'bad' (process)" in str(error)
    assert "its item cannot be unpickled: not here" in str(error)


@pytest.mark.parametrize("policy", ["skip", "keep", "handler"])
def test_an_output_that_cannot_be_sent_is_a_failure_of_the_last_part(policy: str):
    def give(item: int) -> Any:
        return threading.Lock() if item == 3 else item

    on_error: Any = (lambda error, item: (type(error).__name__, item)) if policy == "handler" else policy
    stages = pmap(add_one, kind="process") | pmap(give, kind="process", on_error=on_error, name="last")
    outputs = [shown(output) for output in stages(range(4))]
    stands = {
        "skip": [],
        "keep": [("failed", 3, NotPicklable, 2, "last", 1)],
        "handler": [("NotPicklable", 3)],
    }
    assert outputs == [1, 2, *stands[policy], 4]


def test_handlers_and_hooks_are_not_sent_to_workers():
    lock = threading.Lock()

    def hook(error: Exception) -> bool:
        with lock:
            return True

    def handler(error: Exception, item: int) -> int:
        with lock:
            return -item

    tried: Any = {"kind": "process", "retries": 1, "backoff": 0, "retry_on": hook}
    stages = pmap(fails_at(1), on_error="skip", **tried) | pmap(fails_at(2), on_error=handler, **tried)
    assert list(stages(range(4))) == [0, -2, 3]


def test_a_pool_of_ones_own():
    with Processes(2) as pool:
        stages = pmap(add_one, kind=pool) | pmap(fails_at(2), kind=pool, on_error=lambda error, item: 20)
        assert list(stages(range(4))) == [1, 20, 3, 4]


def test_a_hook_is_asked_once_though_the_item_is_looked_up():
    asked = []

    def hook(error: Exception) -> bool:
        asked.append(error)
        return False

    def die(item: int) -> int:
        if item == 3:
            os._exit(3)
        return item

    stages = pmap(add_one, kind="process")
    stages |= pmap(die, kind="process", retries=1, retry_on=hook, on_error="keep")
    assert [shown(output) for output in stages(range(4))][2][:2] == ("failed", 3)
    assert len(asked) == 1
