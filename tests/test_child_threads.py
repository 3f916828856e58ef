"""The two threads of a worker process: what the reader sends, the main thread does not change meanwhile."""

from __future__ import annotations

import socket
import threading
from array import array
from typing import Any

from fstream._flow.span import Failure
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._workers.call import Call, is_failure
from fstream._workers.process.child import IDLE, Child
from fstream._workers.process.messages import Items, Slots, Stolen
from fstream._workers.process.wire import Wire, dumps, loads

WAIT = 20  # seconds


class Announced:
    """A lock that says when somebody comes who has to wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waits = threading.Event()

    def __enter__(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.waits.set()
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def make_child(sock: socket.socket, f: Any) -> Child:
    child = Child(sock, memoryview(array("q", [IDLE, 0, 0, -1])))
    child.call = Call(Stage(MAP, f, "process", on_error="skip"), 0)
    child.call.set_place(child)
    return child


def test_a_failure_is_noted_when_nobody_finds_out_what_to_send():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = make_child(theirs, abs)
        child.sending = lock = Announced()  # type: ignore[assignment]
        failing = threading.Thread(target=child.failure, args=(Failure(0, "item", ValueError()),))
        with lock:  # as the reader does that gives out what is finished
            failing.start()
            assert lock.waits.wait(WAIT)
            assert child.failed == set()
        failing.join(WAIT)
        assert child.failed == {0}


def test_failures_are_told_from_outputs_whoever_sends_them():
    def f(item: int) -> int:
        if item % 2:
            raise ValueError(item)
        return item

    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = make_child(theirs, f)
        wire = Wire(ours)
        over = threading.Event()

        def reader() -> None:
            while not over.is_set():
                child.steal()

        def work() -> None:
            child.work(Items(0, 0), dumps(list(range(200))))

        received: list[Any] = []
        threads = [threading.Thread(target=reader), threading.Thread(target=work)]
        for thread in threads:
            thread.start()
        closed = False
        taken = 200
        while not closed:
            for message, body in wire.receive():
                if isinstance(message, Slots):
                    start, count, failed, closed, _ = message
                    slots = loads(body)
                    assert start + len(received) + len(slots) == count
                    assert {n for n, slot in enumerate(slots) if is_failure(slot)} == set(failed)
                    received += slots
                elif isinstance(message, Stolen):  # what the reader has given back
                    taken -= message.left or 0
        over.set()
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive()
    assert len(received) == taken
