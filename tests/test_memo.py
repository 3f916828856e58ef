"""memo: what is known takes no worker and keeps its place, equal keys under way run once, failures are not kept."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fstream import SKIP, Failed, batch, merge, peach, pfilter, pflat_map, pmap
from fstream.testing import Schedule, simulated
from tests.functions import identity, square, suited
from tests.gates import Gate, Log, holding


def unlucky(number: int) -> int:
    raise ValueError(number)


class Calls:
    """f that counts how often it is called for an item, in this process."""

    def __init__(self, f: Callable[[Any], Any] = square) -> None:
        self.f = f
        self.counts: Counter[Any] = Counter()
        self.lock = threading.Lock()

    def __call__(self, item: Any) -> Any:
        with self.lock:
            self.counts[item] += 1
        return self.f(item)


# ------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("ordered", [True, False])
def test_results_are_kept_and_looked_up(kind: str, ordered: bool):
    memo: dict[int, int] = {3: 333}
    options: Any = {"kind": kind, "ordered": ordered, "memo": memo}
    outputs = list(pmap(suited(square, kind), [1, 2, 3, 4] * 25, **options))
    expected = [1, 4, 333, 16] * 25
    assert outputs == expected if ordered else sorted(outputs) == sorted(expected)
    assert memo == {1: 1, 2: 4, 3: 333, 4: 16}
    never = suited(unlucky, kind)
    again = list(pmap(never, iter([4, 3, 2, 1]), **options))
    assert again == [16, 333, 4, 1] if ordered else sorted(again) == [1, 4, 16, 333]


def test_each_item_is_run_once_in_all(shared_memory_kind: str):
    calls = Calls()
    memo: dict[int, int] = {}
    for _ in range(2):
        stream = pmap(suited(calls, shared_memory_kind), [1, 2, 3] * 50, kind=shared_memory_kind, memo=memo)
        assert list(stream) == [1, 4, 9] * 50
    assert calls.counts == {1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("executor", [lambda: ThreadPoolExecutor(2), lambda: ProcessPoolExecutor(2)])
def test_on_executors(executor: Any):
    memo: dict[int, int] = {}
    for _ in range(2):
        assert list(pmap(square, [1, 2, 1, 3] * 10, kind=executor, memo=memo)) == [1, 4, 1, 9] * 10
    assert memo == {1: 1, 2: 4, 3: 9}


def test_under_await(kind: str):
    memo: dict[int, int] = {}

    async def main() -> None:
        assert await pmap(suited(square, kind), [1, 2, 1], kind=kind, memo=memo) == [1, 4, 1]
        assert await pmap(suited(unlucky, kind), [1, 2, 1], kind=kind, memo=memo) == [1, 4, 1]

        async def source() -> Any:
            for number in (1, 2, 3, 3):
                yield number

        assert await pmap(suited(square, kind), source(), kind=kind, memo=memo) == [1, 4, 9, 9]

    asyncio.run(main())
    assert memo == {1: 1, 2: 4, 3: 9}


def test_each_combinator_keeps_what_it_needs(kind: str):
    options: Any = {"kind": kind}
    kept: dict[int, Any] = {}
    for _ in range(2):
        f = suited(lambda number: number % 2 == 1, kind)
        assert list(pfilter(f, range(5), memo=kept, **options)) == [1, 3]
    assert kept == {0: False, 1: True, 2: False, 3: True, 4: False}
    kept = {}
    for _ in range(2):
        spread = suited(lambda number: iter([number] * number), kind)
        assert list(pflat_map(spread, range(4), memo=kept, **options)) == [1, 2, 2, 3, 3, 3]
    assert kept == {0: [], 1: [1], 2: [2, 2], 3: [3, 3, 3]}
    kept = {}
    for _ in range(2):
        assert list(peach(suited(square, kind), range(3), memo=kept, **options)) == []
    assert kept == {0: None, 1: None, 2: None}


def test_the_key_may_be_of_ones_own(kind: str):
    memo: dict[str, str] = {}
    outputs = list(pmap(suited(str.upper, kind), ["ab", "aB", "c"], kind=kind, memo=memo, memo_key=str.lower))
    assert outputs == ["AB", "AB", "C"]
    assert memo == {"ab": "AB", "c": "C"}
    lists = list(pmap(suited(sum, kind), [[1, 2], [3], [1, 2]], kind=kind, memo={}, memo_key=tuple))
    assert lists == [3, 3, 3]


def test_the_element_index_counts_all(kind: str):
    def f(_item: str, element_index: int) -> int:
        return element_index

    async def f_later(_item: str, element_index: int) -> int:
        return element_index

    memo = {"b": "known"}
    g: Any = f_later if kind == "task" else f
    assert list(pmap(g, "abcab", kind=kind, memo=memo)) == [0, "known", 2, 0, "known"]


def test_a_stage_with_a_memo_stands_anywhere_in_a_row(kind: str):
    memo: dict[int, int] = {}
    f = suited(square, kind)
    stages = (
        pmap(suited(identity, kind), kind=kind)
        | pmap(f, kind=kind, memo=memo)
        | pmap(f, kind=kind)
        | pmap(f, kind=kind, memo=dict[int, int]())
    )
    assert list(stages([1, 2, 1, 2])) == [1, 256, 1, 256]
    assert memo == {1: 1, 2: 4}
    assert list(batch(2, [1, 1, 2]) | pmap(suited(sum, kind), kind=kind, memo={}, memo_key=tuple)) == [2, 2]
    assert sorted(merge([1, 2], [2, 3]) | pmap(f, kind=kind, memo={})) == [1, 4, 4, 9]


def test_a_default_dict_is_not_asked_for_a_default():
    memo: Any = defaultdict(lambda: 7)
    assert list(pmap(square, [2], memo=memo)) == [4]
    assert memo == {2: 4}


# ---------------------------------------------------------------------------------------------------- no worker


@pytest.mark.parametrize("ordered", [True, False])
def test_a_hit_takes_no_worker(concurrent_kind: str, ordered: bool, gate: Gate, log: Log):
    memo = {2: "two", 3: "three"}
    stream = pmap(
        holding(concurrent_kind, {1: gate}, log),
        iter([2, 1, 3, 2]),
        kind=concurrent_kind,
        workers=1,
        ordered=ordered,
        maxsize=8,
        memo=memo,
    )
    with stream:
        assert next(stream) == "two"
        log.wait_for(("start", 1))
        if not ordered:  # the only worker is at 1
            assert [next(stream), next(stream)] == ["three", "two"]
        gate.open()
        assert list(stream) == ([1, "three", "two"] if ordered else [1])


def test_nothing_is_begun_where_all_is_known(kind: str, log: Log):
    memo = dict.fromkeys(range(100), "known")
    stream = pmap(
        suited(square, kind), range(100), kind=kind, memo=memo, on_start=lambda: log.write("started")
    )
    assert list(stream) == ["known"] * 100
    if kind != "sync":
        assert log.entries() == []


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("maxsize", [1, 2, 5, None, 0])
def test_bounds_hold(concurrent_kind: str, ordered: bool, maxsize: int | None):
    memo: dict[int, int] = {}
    items = [1, 1, 2, 1, 3, 3, 3, 2, 4] * 10
    stream = pmap(
        suited(square, concurrent_kind),
        iter(items),
        kind=concurrent_kind,
        workers=2,
        ordered=ordered,
        maxsize=maxsize,
        memo=memo,
    )
    outputs = list(stream)
    expected = [item**2 for item in items]
    assert outputs == expected if ordered else sorted(outputs) == sorted(expected)


# ------------------------------------------------------------------------------------------- equal keys under way


@pytest.mark.parametrize("ordered", [True, False])
def test_equal_keys_under_way_run_once(concurrent_kind: str, ordered: bool, gate: Gate, log: Log):
    stream = pmap(
        holding(concurrent_kind, {1: gate}, log),
        iter([1, 1, 2, 1]),
        kind=concurrent_kind,
        workers=3,
        ordered=ordered,
        memo={},
    )
    outputs: list[int] = []
    consumer = threading.Thread(target=lambda: outputs.extend(stream))
    consumer.start()
    log.wait_for(("start", 1), ("end", 2))
    gate.open()
    consumer.join()
    assert outputs == [1, 1, 2, 1] if ordered else sorted(outputs) == [1, 1, 1, 2]
    assert sorted(log.entries()) == [("end", 1), ("end", 2), ("start", 1), ("start", 2)]


def test_where_one_fails_those_behind_it_run_themselves(kind: str, log: Log):
    def fail(number: int) -> int:
        log.write(number)
        raise ValueError(number)

    memo: dict[int, int] = {}
    stream = pmap(suited(fail, kind), [1, 1, 2, 1], kind=kind, on_error="keep", memo=memo)
    outputs: list[Any] = list(stream)
    assert [(type(each), each.index) for each in outputs] == [
        (Failed, 0),
        (Failed, 1),
        (Failed, 2),
        (Failed, 3),
    ]
    assert sorted(log.entries()) == [1, 1, 1, 2]
    assert memo == {}


def test_one_that_succeeds_brings_those_behind_it(shared_memory_kind: str):
    def second(number: int) -> int:
        if calls.counts[number] == 1:
            raise ValueError
        return number * 10

    calls = Calls(second)
    memo: dict[int, int] = {}
    stream = pmap(
        suited(calls, shared_memory_kind), [1, 1, 1, 1], kind=shared_memory_kind, on_error="skip", memo=memo
    )
    assert list(stream) == [10, 10, 10]
    assert (calls.counts, memo) == ({1: 2}, {1: 10})


def test_a_further_try_that_succeeds_is_kept(kind: str):
    def f(number: int, attempt: int) -> int:
        if not attempt:
            raise ValueError
        return number

    async def f_later(number: int, attempt: int) -> int:
        return f(number, attempt)

    memo: dict[int, int] = {}
    g: Any = f_later if kind == "task" else f
    assert list(pmap(g, [1, 2, 1], kind=kind, retries=1, memo=memo)) == [1, 2, 1]
    assert memo == {1: 1, 2: 2}


def test_a_dead_worker_is_a_failure():
    def f(number: int, attempt: int) -> int:
        import os

        if number == 1 and not attempt:
            os._exit(1)
        return number

    memo: dict[int, int] = {}
    assert list(pmap(f, [1, 1, 2], kind="process", on_error="skip", memo=memo)) == [2]
    assert memo == {2: 2}
    assert list(pmap(f, [1, 1, 2], kind="process", retries=1, memo=memo)) == [1, 1, 2]
    assert memo == {1: 1, 2: 2}


def test_neither_skip_nor_what_on_error_gives_is_kept(kind: str):
    def f(number: int) -> Any:
        if number == 1:
            raise ValueError
        return SKIP if number == 2 else number

    for combinator in (pmap, pfilter, pflat_map):
        memo: dict[int, Any] = {}
        g = suited(f if combinator is not pflat_map else lambda n: [n] if n == 3 else f(n), kind)
        handler = (
            (lambda error, item: ["handled"]) if combinator is pflat_map else lambda error, item: "handled"
        )
        outputs: Any = list(combinator(g, [1, 2, 3], kind=kind, on_error=handler, memo=memo))  # type: ignore[operator]
        assert outputs == (["handled", 3] if combinator is not pfilter else [1, 3])
        assert list(memo) == [3]


def test_failures_of_a_stage_before_are_no_keys(kind: str):
    first = pmap(suited(lambda number: 1 / number, kind), kind=kind, on_error="keep")
    memo: dict[float, float] = {}
    outputs: list[Any] = list((first | pmap(suited(square, kind), kind=kind, memo=memo))([1, 0, 2, 0, 1]))
    assert [each.index if isinstance(each, Failed) else each for each in outputs] == [1, 1, 0.25, 3, 1]
    assert memo == {1.0: 1.0, 0.5: 0.25}


# ----------------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("on_error", ["raise", "skip", "keep"])
def test_a_key_that_cannot_be_hashed_is_an_error_that_names_the_item(kind: str, on_error: Any):
    stream = pfilter(suited(sum, kind), [(1,), [2, 3]], kind=kind, on_error=on_error, memo={})  # type: ignore[arg-type]
    assert next(stream) == (1,)
    with pytest.raises(TypeError, match="unhashable type: 'list'") as caught:
        next(stream)
    assert "item 1: [2, 3]" in "\n".join(caught.value.__notes__)
    assert "write memo_key=f" in "\n".join(caught.value.__notes__)


def test_an_error_of_memo_key_names_the_item(kind: str):
    stream = pmap(
        suited(square, kind), [1, 0], kind=kind, on_error="skip", memo={}, memo_key=lambda item: 1 / item
    )
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError) as caught:
        next(stream)
    assert "item 1: 0" in "\n".join(caught.value.__notes__)


class Full(dict[Any, Any]):
    """A mapping that takes no more than two."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) == 2:
            raise OSError(28, "No space left on device")
        super().__setitem__(key, value)


@pytest.mark.parametrize("on_error", ["raise", "skip", "keep"])
def test_a_mapping_that_fails_ends_the_stream(kind: str, on_error: Any):
    memo = Full()
    stream = pmap(
        suited(square, kind), [1, 2, 3, 3], kind=kind, workers=1, retries=3, on_error=on_error, memo=memo
    )
    assert [next(stream), next(stream)] == [1, 4]
    with pytest.raises(OSError, match="No space left") as caught:
        next(stream)
    assert "item 2: 3" in "\n".join(caught.value.__notes__)
    assert memo == {1: 1, 2: 4}


class Fickle:
    """A key that can be hashed until it *ends*."""

    def __init__(self) -> None:
        self.ends = False

    def __hash__(self) -> int:
        if self.ends:
            raise LookupError("no hash any more")
        return 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "skip", "keep"])
def test_a_key_that_cannot_be_hashed_any_more_ends_the_stream(
    concurrent_kind: str, on_error: Any, fails: bool, gate: Gate
):
    key = Fickle()

    def held(number: int) -> int:
        gate.wait()
        return number // (not fails)

    def items() -> Iterator[int]:
        yield from [1, 2, 3]  # the first is under way, the others wait for it
        key.ends = True
        gate.open()

    options: Any = {"kind": concurrent_kind, "workers": 2, "on_error": on_error}
    stream = pmap(suited(held, concurrent_kind), items(), **options, memo={}, memo_key=lambda _: key)
    with pytest.raises(LookupError, match="no hash any more") as caught:
        next(stream)
    assert "item 0: 1" in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("fails", [False, True])
def test_a_key_that_cannot_be_hashed_any_more_in_place(fails: bool):
    def last(number: int) -> int:
        key.ends = True
        return number // (not fails)

    key = Fickle()
    stream = pmap(last, [1], kind="sync", on_error="skip", memo={}, memo_key=lambda _: key)
    with pytest.raises(LookupError, match="no hash any more") as caught:
        next(stream)
    assert "item 0: 1" in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"memo": 3}, TypeError, "memo must be a mutable mapping or None, got 3"),
        ({"memo": dict}, TypeError, "memo must be a mutable mapping or None, got <class 'dict'>"),
        ({"memo": ()}, TypeError, "memo must be a mutable mapping"),
        ({"memo": "a.jsonl"}, TypeError, r"write memo=Journal\('a.jsonl'\) for a file"),
        ({"memo": Path("a.jsonl")}, TypeError, r"write memo=Journal\('a.jsonl'\) for a file"),
        ({"memo_key": str}, ValueError, "memo_key is for memo"),
        ({"memo": {}, "memo_key": 3}, TypeError, "memo_key must be a function or None, got 3"),
    ],
)
def test_what_does_not_fit_is_an_error_at_once(options: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        pmap(square, **options)


def test_a_key_function_is_no_coroutine_function():
    async def key(item: Any) -> Any: ...

    with pytest.raises(TypeError, match="memo_key 'key' is a coroutine function"):
        pmap(square, memo={}, memo_key=key)


def test_a_transformer_with_a_memo_can_be_hashed():
    memo: dict[Any, Any] = {1: [2]}
    transformer = pmap(square, memo=memo)
    before = hash(transformer)
    memo[2] = 4
    assert hash(transformer) == before
    assert transformer == pmap(square, memo=memo)


def test_no_lock_is_held_while_a_key_is_hashed_whatever_becomes_of_its_item(shared_memory_kind: str):
    looked: list[int] = []
    slow: list[bool] = []

    class Key:
        def __init__(self, number: int) -> None:
            self.number = number

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Key) and self.number == other.number

        def __hash__(self) -> int:
            other = threading.Thread(
                target=lambda: looked.append(stream.stats().stages[0].failed), daemon=True
            )
            other.start()
            other.join(2)  # for ever, if this thread has the run's lock
            slow.append(other.is_alive())
            return self.number

    stream = pmap(
        suited(unlucky, shared_memory_kind),
        range(4),
        kind=shared_memory_kind,
        on_error="keep",
        memo={},
        memo_key=Key,
    )
    assert all(isinstance(output, Failed) for output in stream)
    assert max(looked) > 0
    assert not any(slow)


def test_a_mapping_has_its_own_methods():
    class Span(dict[Any, Any]):
        def begin(self) -> None:
            raise AssertionError

        end = keep_key = check_stage = begin

    memo = Span()
    assert list(pmap(square, [2, 2], memo=memo)) == [4, 4]
    list(peach(square, [3], memo=memo))
    assert memo == {2: 4, 3: None}


# ------------------------------------------------------------------------------------------------------- simulated


@pytest.mark.parametrize("simulated_kind", ["thread", "process", "task"])
@pytest.mark.parametrize("ordered", [True, False])
def test_in_a_simulation_too(simulated_kind: str, ordered: bool):
    for stalls in ((), (0, 1), (3, 1, 2, 5)):
        with simulated(Schedule(stalls=stalls)):
            memo: dict[int, int] = {}
            options: Any = {"kind": simulated_kind, "ordered": ordered, "memo": memo, "workers": 3}
            outputs = list(pmap(square, [1, 2, 1, 1, 3] * 5, **options))
            assert sorted(outputs) == sorted([1, 4, 1, 1, 9] * 5)
            assert memo == {1: 1, 2: 4, 3: 9}
