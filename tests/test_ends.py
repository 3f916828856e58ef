"""However a stream ends, it leaves nothing running and closes its source in the thread that iterated it.

That nothing is left running is what the leak check around every test sees.
"""

from __future__ import annotations

import gc
import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fstream import Observer, Stream, merge, observe, peach, pfilter, pmap
from fstream._engine.run import Run
from tests.functions import identity, suited
from tests.gates import PATIENCE, Gate, Log, holding
from tests.leaks import Running, check_no_leaks, collect
from tests.scripts import LIFETIME, Script, environment_with, printed, write_script
from tests.sources import Source


def check_closed_where_iterated(source: Source) -> None:
    assert source.closed.wait(PATIENCE)
    assert source.pulled_in == {source.closed_in}


def failing(number: int) -> int:
    raise ValueError(number)


def consume(stream: Stream[int]) -> None:
    assert sum(1 for _ in stream) == 50


def close(stream: Stream[int]) -> None:
    assert next(stream) == 0
    stream.close()


def leave_with(stream: Stream[int]) -> None:
    with stream as entered:
        assert next(entered) == 0


def leave_with_by_an_error(stream: Stream[int]) -> None:
    with pytest.raises(LookupError, match="mine"), stream:
        raise LookupError(f"mine after {next(stream)}")


def throw(stream: Stream[int]) -> None:
    assert next(stream) == 0
    with pytest.raises(LookupError, match="mine"):
        stream.throw(LookupError("mine"))


def leave_loop(stream: Stream[int]) -> None:
    for output in stream:
        assert output == 0
        break


def forget_in_a_cycle(stream: Stream[int]) -> None:
    assert next(stream) == 0
    cycle: list[object] = [stream]
    cycle.append(cycle)


EARLY_ENDS = [close, leave_with, leave_with_by_an_error, throw, leave_loop, forget_in_a_cycle]


def one_stage(kind: str, source: Source) -> Stream[int]:
    return pmap(suited(identity, kind), source, kind=kind, workers=2)


def three_stages(kind: str, source: Source) -> Stream[int]:
    stage = pmap(suited(identity, kind), kind=kind, workers=2)
    return source | stage | pfilter(suited(lambda _: True, kind), kind=kind, workers=2) | stage


def merged(kind: str, source: Source) -> Stream[int]:
    return merge(one_stage(kind, source))


@pytest.mark.parametrize("build", [one_stage, three_stages, merged])
@pytest.mark.parametrize("end", [consume, *EARLY_ENDS])
def test_every_end_closes_the_source(
    kind: str, build: Callable[[str, Source], Stream[int]], end: Callable[[Stream[int]], None]
):
    source = Source(range(50))
    end(build(kind, source))
    collect()
    check_closed_where_iterated(source)


@pytest.mark.parametrize("build", [one_stage, three_stages, merged])
@pytest.mark.parametrize("end", EARLY_ENDS)
def test_every_early_end_stops_an_infinite_source(
    kind: str, build: Callable[[str, Source], Stream[int]], end: Callable[[Stream[int]], None]
):
    source = Source(count())
    end(build(kind, source))
    collect()
    check_closed_where_iterated(source)


def test_an_error_closes_the_source(kind: str):
    source = Source(count())
    with pytest.raises(ZeroDivisionError):
        list(pmap(suited(lambda number: 1 // (5 - number), kind), source, kind=kind, workers=2))
    check_closed_where_iterated(source)


def test_an_error_far_downstream_closes_the_source(kind: str):
    source = Source(count())
    fails = pmap(suited(lambda number: 1 // (5 - number), kind), kind=kind, workers=2)
    with pytest.raises(ZeroDivisionError):
        list(three_stages(kind, source) | fails)
    check_closed_where_iterated(source)


def test_a_generator_that_others_hold_is_closed(kind: str):
    source = (number for number in count())
    with pmap(suited(identity, kind), source, kind=kind, workers=2) as stream:
        assert next(stream) == 0
    assert inspect.getgeneratorstate(source) == inspect.GEN_CLOSED


def test_taking_a_few_closes_the_source(kind: str):
    source = Source(count())
    assert [output for output, _ in zip(one_stage(kind, source), range(3), strict=False)] == [0, 1, 2]
    gc.collect()
    check_closed_where_iterated(source)


@pytest.mark.parametrize("hook", ["on_error", "retry_on", "memo", "observer"])
def test_a_hook_that_closes_its_stream_does_not_wait_for_its_own_thread(
    concurrent_kind: str, hook: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Run, "LONGEST", 2 * PATIENCE)
    stream: Stream[int]
    called, closed = threading.Event(), threading.Event()

    def close(*_: object) -> int:
        if not called.is_set():
            called.set()
            stream.close()
            closed.set()
        return 0

    class Closing(dict[int, int]):
        def __setitem__(self, key: int, value: int) -> None:
            close()

    class Told(Observer):
        def done(self, *_: object) -> None:
            close()

    options: dict[str, Any] = {
        "on_error": {"on_error": close},
        "retry_on": {"retry_on": close, "retries": 1, "backoff": 0, "on_error": "skip"},
        "memo": {"memo": Closing()},
        "observer": {},
    }[hook]
    f = suited(identity if hook in ("memo", "observer") else failing, concurrent_kind)
    with observe(*([Told()] if hook == "observer" else [])):
        stream = pmap(f, count(), kind=concurrent_kind, **options)
        consumer = threading.Thread(target=copy_context().run, args=(list, stream), daemon=True)
        consumer.start()
        consumer.join(PATIENCE)
    assert not consumer.is_alive()
    assert closed.wait(PATIENCE)


def test_merge_closes_all_its_sources(kind: str):
    sources = [Source(count()) for _ in range(3)]
    stream = merge(*(one_stage(kind, source) for source in sources))
    while not all(source.pulled for source in sources):
        next(stream)
    stream.close()
    for source in sources:
        check_closed_where_iterated(source)


def test_a_foreign_iterator_between_stages_passes_the_end_on(kind: str):
    source = Source(count())
    stream = pmap(suited(str, kind), (output for output in one_stage(kind, source)), kind=kind, workers=2)
    assert next(stream) == "0"
    stream.close()
    del stream
    gc.collect()
    check_closed_where_iterated(source)


# Workers and sources that are busy at the end


def check_stopped(kind: str, no_leaks: Running) -> None:
    """Processes and tasks are stopped in the middle of f; a thread cannot be, and ends when f returns."""
    if kind != "thread":
        check_no_leaks(no_leaks)


@pytest.mark.parametrize("end", EARLY_ENDS)
def test_the_end_does_not_wait_for_a_busy_worker(
    concurrent_kind: str,
    end: Callable[[Stream[int]], None],
    gate: Gate,
    log: Log,
    no_leaks: Running,
):
    f = holding(concurrent_kind, {1: gate}, log)
    stream = pmap(f, [0, 0, 1], kind=concurrent_kind, workers=2)
    assert next(stream) == 0
    log.wait_for(("start", 1))
    end(stream)
    del stream
    gc.collect()
    check_stopped(concurrent_kind, no_leaks)
    gate.open()


def test_an_error_does_not_wait_for_a_busy_worker(concurrent_kind: str, gate: Gate, no_leaks: Running):
    f = holding(concurrent_kind, {1: gate})
    stream = pmap(f, [1, 0], kind=concurrent_kind, workers=2, ordered=False)
    with pytest.raises(ZeroDivisionError):
        list(stream | pmap(suited(partial(divmod, 1), concurrent_kind), kind=concurrent_kind))
    check_stopped(concurrent_kind, no_leaks)
    gate.open()


def test_the_end_does_not_wait_for_a_source_that_blocks(concurrent_kind: str, gate: Gate):
    def items() -> Iterator[int]:
        yield 0
        gate.wait()

    source = Source(items())
    stream = one_stage(concurrent_kind, source)
    assert next(stream) == 0
    stream.close()
    assert not source.closed.is_set()
    gate.open()
    check_closed_where_iterated(source)


# Again and again


@pytest.mark.parametrize("end", ["closed", "failed downstream"])
def test_a_stream_that_a_source_starts_when_all_is_over_ends_at_once(
    concurrent_kind: str, end: str, gate: Gate
):
    """It gives nothing, and without an end of its own would hold its workers and the source for ever."""

    def source() -> Iterator[int]:
        yield 0
        gate.wait()
        yield from peach(suited(identity, concurrent_kind), count(), kind=concurrent_kind, workers=2)

    f = suited(identity if end == "closed" else lambda number: 1 // number, concurrent_kind)
    stream = pmap(f, source(), kind=concurrent_kind, workers=2)
    if end == "closed":
        assert next(stream) == 0
        stream.close()
    else:
        with pytest.raises(ZeroDivisionError):
            next(stream)
    gate.open()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_pipelines_keep_no_file_open(kind: str, no_leaks: Running):
    def run_some() -> None:
        for length in (0, 1, 20):
            assert list(one_stage(kind, Source(range(length)))) == list(range(length))
        close(one_stage(kind, Source(count())))

    run_some()
    check_no_leaks(no_leaks)
    before, rounds = open_files(), 20
    for _ in range(rounds):
        run_some()
    check_no_leaks(no_leaks)
    assert open_files() < before + rounds


def test_an_ended_pipeline_is_freed(kind: str, no_leaks: Running):
    class Item:
        alive = 0

        def __init__(self) -> None:
            Item.alive += 1

        def __del__(self) -> None:
            Item.alive -= 1

    with pmap(suited(lambda _: 0, kind), (Item() for _ in count()), kind=kind, workers=2) as stream:
        assert next(stream) == 0
    del stream
    gc.collect()
    check_no_leaks(no_leaks)
    gc.collect()
    assert Item.alive == 0


# The interpreter exits

UNFINISHED = """
    import asyncio, itertools, os, sys, threading, time
    from fstream import pmap

    kind, busy, ending = sys.argv[1:]

    def f(number):
        if busy == "busy" and number > 0:
            time.sleep(100)
        return number

    async def task(number):
        if busy == "busy" and number > 0:
            await asyncio.sleep(100)
        return number

    def source():
        yield 0
        if busy == "source":
            time.sleep(100)
        yield from itertools.count(1)

    stream = pmap(task if kind == "task" else f, kind=kind, workers=2)(source())
    print(next(stream), flush=True)
    if ending == "exit":
        sys.exit(3)
    if ending == "error":
        raise LookupError("mine")
    if ending == "wait":
        sys.stdin.read()
"""


@pytest.mark.parametrize("busy", ["idle", "busy", "source"])
def test_the_interpreter_exits_with_an_unfinished_stream(concurrent_kind: str, busy: str, script: Script):
    assert printed(script(UNFINISHED, concurrent_kind, busy, "end")) == "0"


def test_sys_exit_with_an_unfinished_stream(concurrent_kind: str, script: Script):
    result = script(UNFINISHED, concurrent_kind, "busy", "exit")
    assert (result.returncode, result.stdout, result.stderr) == (3, "0\n", "")


def test_an_error_of_the_script_with_an_unfinished_stream(concurrent_kind: str, script: Script):
    result = script(UNFINISHED, concurrent_kind, "busy", "error")
    assert (result.returncode, result.stdout) == (1, "0\n")
    assert result.stderr.count("Traceback") == 1
    assert result.stderr.endswith("LookupError: mine\n")


@pytest.mark.parametrize("busy", ["idle", "busy"])
def test_a_killed_parent_leaves_no_process(busy: str, tmp_path: Path):
    command = [sys.executable, str(write_script(tmp_path, UNFINISHED)), "process", busy, "wait"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment_with()
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0\n"
        parent.kill()
        rest, _ = parent.communicate(timeout=LIFETIME)  # the end of file comes when the last worker is gone
    assert rest == b""


def test_streams_of_all_kinds_and_nested_at_exit(script: Script):
    source = """
        import itertools
        from fstream import pmap, pflat_map, merge

        def nested(number):
            return list(pmap(abs, range(number), kind="process", workers=1))

        streams = [pmap(abs, itertools.count(), kind=kind) for kind in ("sync", "thread", "process", "task")]
        chain = streams[1] | pmap(abs, kind="process") | pmap(abs, kind="thread")
        deep = pmap(nested, range(1, 5), kind="process", workers=2)
        both = merge(streams[0], streams[3])
        print(next(chain), next(streams[2]), next(deep), next(both))
    """
    assert printed(script(source)) == "0 0 [0] 0"
