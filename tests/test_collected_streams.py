"""Streams that are collected wherever a collector runs, and what several threads do to one run at once."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from fstream import pmap
from fstream._flow.room import Room
from fstream._flow.sources import Feed
from tests.faults.faulty import HAS_GIL
from tests.gates import PATIENCE, Gate
from tests.loops import wait_until


def twice(x: int) -> int:
    return 2 * x


def test_a_stream_that_is_dropped_while_another_thread_is_in_its_run_is_stopped_soon():
    stream = pmap(twice, count(), kind="thread")
    next(stream)
    run = stream._outputs.run
    assert run is not None
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with run.lock:
            held.set()
            leave.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(PATIENCE)
    del stream  # comes back at once
    assert not run.stopped
    leave.set()
    holder.join()
    wait_until(lambda: run.stopped and not run.members)


def test_a_stream_that_is_dropped_in_the_middle_of_its_own_run_is_stopped_after_that():
    stream = pmap(twice, count(), kind="thread")
    next(stream)
    run = stream._outputs.run
    assert run is not None
    with run.lock:  # where anything that is made may start a collection
        del stream
        assert not run.stopped
    wait_until(lambda: run.stopped and not run.members)


def test_a_stream_that_is_dropped_anywhere_else_is_stopped_at_once():
    stream = pmap(twice, count(), kind="thread")
    next(stream)
    run = stream._outputs.run
    assert run is not None
    del stream
    if HAS_GIL:  # without it, a worker may have had the object last, and it is freed a little later
        assert run.stopped
    wait_until(lambda: run.stopped and not run.members)


def test_feeders_may_go_on_while_another_one_ends_with_an_error():
    class Appending(ValueError):
        pass

    feed = Feed(Room(None, 10), 2)
    stop = threading.Event()
    append = feed.pending.append

    def go_on() -> None:
        while not stop.is_set():
            append(1)

    other = threading.Thread(target=go_on)
    other.start()
    feed.ended(0, Appending())
    before = len(feed.pending)
    stop.set()
    other.join()
    assert len(feed.pending) == before
    assert feed.end is None if before else isinstance(feed.end, tuple)


def test_another_thread_may_close_a_stream_of_kind_sync_that_is_in_f(gate: Gate):
    begun = threading.Event()

    def f(x: int) -> int:
        begun.set()
        gate.wait()
        return x

    stream = pmap(f, [1], kind="sync")
    taken: list[int] = []
    taker = threading.Thread(target=lambda: taken.extend(stream))
    taker.start()
    assert begun.wait(PATIENCE)
    stream.close()
    gate.open()
    taker.join()
    assert list(stream) == []


def test_an_error_of_the_end_that_close_finds_is_raised():
    def fail(*_: object) -> None:
        raise ValueError("in the end")

    stream = pmap(twice, [1, 2], kind="sync", on_done=fail)
    next(stream)
    with pytest.raises(ValueError, match="in the end"):
        stream.close()
