"""What a type checker must make of the public API: checked by `make types`, never run."""

# mypy: disable-error-code="empty-body"
# The functions here are signatures only.

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import Any, Never, assert_type

from distributed import Client

from fstream import (
    SKIP,
    Failed,
    Journal,
    StageStatus,
    Stream,
    Transformer,
    WorkerInfo,
    divert,
    merge,
    ordered,
    peach,
    pfilter,
    pflat_map,
    pmap,
    run,
    star,
)


def dask_client() -> Client: ...


class Connection:
    def close(self) -> None: ...


def spell(number: int) -> str: ...
def is_even(number: int) -> bool: ...
def digits(number: int) -> list[str]: ...
def count_down(number: int) -> Iterator[str]: ...
async def fetch(number: int) -> str: ...
async def fetch_is_even(number: int) -> bool: ...
async def fetch_digits(number: int) -> list[str]: ...
async def fetch_lines(number: int) -> AsyncIterator[str]:
    yield ""


def is_long(text: str) -> bool: ...


def map_has_four_equal_forms(ints: list[int]) -> None:
    assert_type(pmap(spell, ints), Stream[str])
    assert_type(pmap(spell)(ints), Stream[str])
    assert_type(pmap()(spell)(ints), Stream[str])
    assert_type(ints | pmap(spell), Stream[str])

    assert_type(pmap(spell, ints, kind="process"), Stream[str])
    assert_type(pmap(spell, kind="process")(ints), Stream[str])
    assert_type(pmap(kind="process")(spell)(ints), Stream[str])
    assert_type(ints | pmap(spell, kind="process"), Stream[str])


def map_unwraps_the_result_of_a_coroutine_function(ints: list[int]) -> None:
    assert_type(pmap(fetch, ints), Stream[str])
    assert_type(pmap(fetch)(ints), Stream[str])
    assert_type(pmap()(fetch)(ints), Stream[str])
    assert_type(ints | pmap(fetch, kind="task", workers=100), Stream[str])


def map_takes_any_callable(ints: list[int], words: list[str]) -> None:
    assert_type(pmap(str)(ints), Stream[str])
    assert_type(pmap(str.upper)(words), Stream[str])
    assert_type(pmap(words.index)(words), Stream[int])
    assert_type(pmap(lambda number: f"<{number}>")(ints), Stream[str])
    assert_type(pmap(lambda number: f"<{number}>", ints), Stream[str])


def filter_keeps_the_type_of_the_items(ints: list[int]) -> None:
    assert_type(pfilter(is_even, ints), Stream[int])
    assert_type(pfilter(is_even)(ints), Stream[int])
    assert_type(pfilter(kind="process")(is_even)(ints), Stream[int])
    assert_type(ints | pfilter(is_even, kind="thread"), Stream[int])
    assert_type(pfilter(bool, ints), Stream[int])
    assert_type(pfilter(fetch_is_even, ints), Stream[int])
    assert_type(ints | pfilter(fetch_is_even), Stream[int])


def flat_map_unwraps_iterables_of_both_kinds(ints: list[int]) -> None:
    assert_type(pflat_map(digits, ints), Stream[str])
    assert_type(pflat_map(digits)(ints), Stream[str])
    assert_type(pflat_map(kind="process")(digits)(ints), Stream[str])
    assert_type(ints | pflat_map(count_down, kind="process"), Stream[str])
    assert_type(pflat_map(fetch_digits)(ints), Stream[str])
    assert_type(pflat_map(fetch_lines, ints, kind="task"), Stream[str])
    assert_type(pflat_map(fetch_lines)(ints), Stream[str])
    assert_type(pflat_map()(fetch_lines)(ints), Stream[str])
    assert_type(ints | pflat_map(fetch_lines, kind="task"), Stream[str])


def each_has_no_outputs(ints: list[int]) -> None:
    assert_type(peach(spell, ints), Stream[Never])
    assert_type(peach(spell)(ints), Stream[Never])
    assert_type(peach(kind="thread")(spell)(ints), Stream[Never])
    assert_type(ints | peach(fetch), Stream[Never])


def sources_may_be_any_iterable(
    lazily: Iterable[int], items: Generator[int, None, None], later: AsyncIterable[int]
) -> None:
    assert_type(pmap(spell)(range(3)), Stream[str])
    assert_type(pmap(spell)(lazily), Stream[str])
    assert_type(pmap(spell)(items), Stream[str])
    assert_type(pmap(spell)(later), Stream[str])
    assert_type(pmap(spell, later, kind="process"), Stream[str])
    assert_type(later | pmap(fetch), Stream[str])


def transformers_compose(ints: list[int]) -> None:
    assert_type(pmap(spell), Transformer[int, str])
    assert_type(pmap(fetch), Transformer[int, str])
    assert_type(pfilter(is_even), Transformer[int, int])
    assert_type(pflat_map(digits), Transformer[int, str])
    assert_type(peach(spell), Transformer[int, Never])

    assert_type(pmap(spell) | pfilter(is_long), Transformer[int, str])
    assert_type(ints | (pfilter(is_even) | pmap(fetch)), Stream[str])
    assert_type(ints | pfilter(is_even) | pmap(fetch), Stream[str])


def a_stream_goes_on_into_any_function(ints: list[int]) -> None:
    assert_type(ints | pmap(spell) | list, list[str])
    assert_type(ints | pmap(spell) | set, set[str])
    assert_type(ints | pmap(is_even) | sum, int)
    assert_type(ints | pmap(spell) | ordered, Stream[str])
    assert_type(ordered(pmap(spell, ints, ordered=False)), Stream[str])
    assert_type(merge(pmap(spell, ints), ["more"]), Stream[str])
    run(pmap(spell, ints), peach(spell, ints))


def a_stream_is_a_generator_and_a_context_manager(stream: Stream[str]) -> None:
    generator: Generator[str, None, None] = stream
    assert_type(next(stream), str)
    with stream as opened:
        assert_type(opened, Stream[str])
        for output in opened:
            assert_type(output, str)
    generator.close()


async def a_stream_is_an_async_generator_and_an_awaitable(ints: list[int]) -> None:
    generator: AsyncGenerator[str, None] = pmap(fetch, ints)
    async for output in pmap(fetch, ints):
        assert_type(output, str)
    assert_type(await pmap(fetch, ints), list[str])
    assert_type([output async for output in ints | pmap(spell)], list[str])
    await generator.aclose()


def connect(worker_info: WorkerInfo) -> Connection:
    assert_type(worker_info.index, int)
    return Connection()


async def connect_later() -> Connection:
    return Connection()


def disconnect(stage_status: StageStatus, connection: Connection) -> None:
    assert_type(stage_status.active_workers, int)
    assert_type(stage_status.done, bool)
    connection.close()


def query(number: int, connection: Connection) -> str: ...
def query_by_name(number: int, *, connection: Connection, element_index: int) -> str: ...
async def query_later(number: int, connection: Connection) -> str: ...


def f_may_have_more_parameters(ints: list[int]) -> None:
    assert_type(ints | pmap(query, on_start=connect, on_done=disconnect), Stream[str])
    assert_type(ints | pmap(query_by_name, on_start=lambda: {"connection": Connection()}), Stream[str])
    assert_type(ints | pmap(query_later, on_start=connect_later, on_done=disconnect), Stream[str])


def the_options_of_all_four(ints: list[int]) -> None:
    pmap(
        spell,
        kind="process",
        workers=4,
        maxsize=100,
        ordered=False,
        timeout=1.5,
        retries=2,
        on_error="skip",
        on_start=connect,
        on_done=disconnect,
        name="spell",
        max_items_per_worker=1_000,
    )
    pfilter(is_even, ints, kind="thread", on_error=lambda error, item: SKIP)
    pmap(spell, ints, kind=ThreadPoolExecutor)
    pmap(spell, ints, kind=partial(ProcessPoolExecutor, 2))
    pmap(spell, ints, kind=ThreadPoolExecutor(2))
    pmap(spell, ints, kind="dask")
    pmap(spell, ints, kind=dask_client())
    pmap(spell, ints, kind=3)  # type: ignore[call-overload]
    pflat_map(digits, ints, kind="sync", on_error="raise")
    peach(fetch, ints, kind="task", timeout=None, workers=None, maxsize=0)


def say_how(error: Exception, number: int) -> float: ...
def maybe_say_how(error: Exception, number: int) -> float | None: ...
def many(error: Exception, number: int) -> list[float]: ...
async def say_later(error: Exception, number: int) -> float: ...
async def many_later(error: Exception, number: int) -> list[float]: ...


def what_on_error_gives_is_an_output(ints: list[int], either: bool) -> None:
    assert_type(pmap(spell, ints, on_error=say_how), Stream[str | float])
    assert_type(pmap(spell, on_error=say_how)(ints), Stream[str | float])
    assert_type(pmap(on_error=say_how)(spell)(ints), Stream[str | float])
    assert_type(pmap(on_error=say_how)(fetch)(ints), Stream[str | float])
    assert_type(ints | pmap(spell, on_error=say_how, kind="process"), Stream[str | float])
    assert_type(pmap(fetch, ints, on_error=say_how), Stream[str | float])
    assert_type(pmap(spell, ints, on_error=lambda error, item: None), Stream[str | None])
    assert_type(pmap(len, [""], on_error=lambda error, item: 0), Stream[int])
    assert_type(ints | pmap(spell, on_error=maybe_say_how) | list, list[str | float | None])

    assert_type(pmap(fetch, ints, on_error=say_later), Stream[str | float])
    assert_type(pmap(fetch, on_error=say_later)(ints), Stream[str | float])
    assert_type(pmap(on_error=say_later)(fetch)(ints), Stream[str | float])
    assert_type(pmap(spell, ints, on_error=say_later, kind="task"), Stream[str | float])

    assert_type(pflat_map(digits, ints, on_error=many), Stream[str | float])
    assert_type(pflat_map(digits, on_error=many)(ints), Stream[str | float])
    assert_type(pflat_map(on_error=many)(digits)(ints), Stream[str | float])
    assert_type(pflat_map(fetch_lines, ints, on_error=many), Stream[str | float])
    assert_type(pflat_map(fetch_digits, ints, on_error=many_later), Stream[str | float])
    assert_type(pflat_map(fetch_digits, on_error=many_later)(ints), Stream[str | float])
    assert_type(pflat_map(on_error=many_later)(fetch_digits)(ints), Stream[str | float])

    assert_type(pfilter(is_even, ints, on_error=lambda error, item: True), Stream[int])
    assert_type(pfilter(is_even, on_error=say_how)(ints), Stream[int])
    assert_type(pfilter(on_error=say_how)(is_even)(ints), Stream[int])
    assert_type(peach(spell, ints, on_error=say_how), Stream[Never])
    assert_type(peach(spell, on_error=say_later)(ints), Stream[Never])
    assert_type(peach(on_error=say_how)(spell)(ints), Stream[Never])


def what_gives_no_output_is_no_output(ints: list[int], either: bool) -> None:
    assert_type(pmap(spell, ints, on_error="skip"), Stream[str])
    assert_type(pmap(spell, on_error="raise")(ints), Stream[str])
    assert_type(pmap(on_error="skip")(spell)(ints), Stream[str])
    assert_type(pmap(spell, ints, on_error="skip" if either else "raise"), Stream[str])
    assert_type(pmap(spell, ints, on_error=lambda error, item: SKIP), Stream[str])
    assert_type(pmap(spell, on_error=lambda error, item: SKIP)(ints), Stream[str])
    assert_type(pmap(spell, ints, on_error=lambda error, item: None if either else SKIP), Stream[str | None])
    assert_type(pflat_map(digits, ints, on_error="skip"), Stream[str])
    assert_type(pflat_map(digits, ints, on_error=lambda error, item: SKIP), Stream[str])
    assert_type(pflat_map(digits, ints, on_error=lambda error, item: ()), Stream[str])


def what_fails_may_be_kept(ints: list[int]) -> None:
    assert_type(pmap(spell, ints, on_error="keep"), Stream[str | Failed])
    assert_type(pmap(spell, on_error="keep")(ints), Stream[str | Failed])
    assert_type(pmap(on_error="keep")(spell)(ints), Stream[str | Failed])
    assert_type(ints | pmap(fetch, on_error="keep", max_failures=0.1), Stream[str | Failed])
    assert_type(pfilter(is_even, ints, on_error="keep"), Stream[int | Failed])
    assert_type(pfilter(on_error="keep")(is_even)(ints), Stream[int | Failed])
    assert_type(pflat_map(digits, ints, on_error="keep"), Stream[str | Failed])
    assert_type(pflat_map(on_error="keep")(fetch_lines)(ints), Stream[str | Failed])
    assert_type(peach(spell, ints, on_error="keep"), Stream[Failed])
    assert_type(peach(on_error="keep")(spell)(ints), Stream[Failed])

    # Later stages take it, and hand it on.
    assert_type(pmap(spell, on_error="keep") | pmap(len), Transformer[int, int | Failed])
    assert_type(ints | (pmap(spell, on_error="keep") | pfilter(is_long)), Stream[str | Failed])
    assert_type(ints | pmap(spell, on_error="keep") | pmap(len), Stream[int | Failed])
    for output in pmap(spell, ints, on_error="keep"):
        if isinstance(output, Failed):
            assert_type((output.index, output.tries, output.stage), tuple[int, int, str])
            output.raise_()
        assert_type(output, str)


def what_failed_may_be_diverted(ints: list[int]) -> None:
    dead: list[Failed] = []
    assert_type(divert(dead.append, pmap(spell, ints, on_error="keep")), Stream[str])
    assert_type(divert(print, ints, where=is_even), Stream[int])
    assert_type(divert(print, where=int), Transformer[Any, Any])
    assert_type(pmap(spell, ints, on_error="keep") | divert(print) | list, list[Any])
    divert(ints, print)  # type: ignore[call-overload]


def a_memo_is_a_mapping(ints: list[int]) -> None:
    with Journal("pages.jsonl", dumps=str, loads=int) as journal:
        assert_type(pmap(spell, ints, memo=journal, memo_key=lambda number: number % 2), Stream[str])
    assert_type(pmap(spell, ints, memo={}), Stream[str])


def a_stream_may_be_drained_and_has_a_length(stream: Stream[str]) -> None:
    assert_type(len(stream), int)
    assert_type(bool(stream), bool)
    stream.drain()


def on_error_of_a_stage(stage_status: StageStatus) -> None:
    assert_type(stage_status.error, BaseException | None)


def add(one: int, other: int) -> float: ...
async def add_later(one: int, other: int, connection: Connection) -> float: ...


def a_star_takes_pairs(pairs: list[tuple[int, int]]) -> None:
    assert_type(pmap(star(add), pairs), Stream[float])
    assert_type(pmap(star(add))(pairs), Stream[float])
    assert_type(pairs | pmap(star(add_later), on_start=connect), Stream[float])
    assert_type(pfilter(star(add), pairs), Stream[tuple[int, int]])
    assert_type(star(add)((1, 2)), float)


def slips_are_type_errors(ints: list[int], words: list[str]) -> None:
    pmap(spell, kind="threads")  # type: ignore[call-overload]
    pmap(spell, ints, kind="fork")  # type: ignore[call-overload]
    pmap(kind=4)  # type: ignore[call-overload]
    pfilter(is_even, kind="Process")  # type: ignore[call-overload]
    pflat_map(digits, kind=None, sort=True)  # type: ignore[call-overload]
    peach(spell, ints, kind="async")  # type: ignore[call-overload]

    pmap(spell, workers="all")  # type: ignore[call-overload]
    pmap(spell, worker=2)  # type: ignore[call-overload]
    pmap(spell, maxsize=1.5)  # type: ignore[call-overload]
    pmap(spell, timeout="1s")  # type: ignore[call-overload]
    pmap(spell, on_error="ignore")  # type: ignore[call-overload]
    pmap(spell, on_start=Connection())  # type: ignore[call-overload]

    pmap(ints, spell)  # type: ignore[call-overload]
    pmap("spell", ints)  # type: ignore[call-overload]
    pflat_map(is_even, ints)  # type: ignore[arg-type]
    pmap(spell)(3)  # type: ignore[arg-type]
    pmap(spell)(words)  # type: ignore[arg-type]
    pmap(spell, ints, on_error=spell)  # type: ignore[arg-type]
    pmap(add, ints, ints)  # type: ignore[call-overload]
    pmap(spell, ints, "thread")  # type: ignore[call-overload]
    star(3)  # type: ignore[arg-type]
    list(pmap(spell))  # type: ignore[call-overload]
    words | pmap(spell)  # type: ignore[operator]
    pmap(spell) | pmap(spell)  # type: ignore[arg-type]
    ints | pmap(spell) | pmap(spell)  # type: ignore[operator]
