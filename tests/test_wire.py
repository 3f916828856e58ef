"""What goes over a wire: each buffer has memory of its own, and writing to an end that is gone raises, no more."""

from __future__ import annotations

import pickle
import signal
import socket
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from fstream._workers.process.messages import Forget, Steal
from fstream._workers.process.wire import Wire, dumps, loads
from tests.scripts import run_script

pytestmark = pytest.mark.slow


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    one, other = (Wire(sock) for sock in socket.socketpair())
    for wire in one, other:
        wire.sock.setblocking(False)
    yield one, other
    one.close()
    other.close()


def through(wires: tuple[Wire, Wire], value: Any) -> Any:
    sender, receiver = wires
    sender.push(Steal(), dumps(value))
    while True:
        done = sender.flush()
        for message, body in receiver.receive():
            assert done
            assert type(message) is Steal
            return loads(body)


class Block:
    """Bytes that travel beside the pickle, and come out as a view of the memory that they came in."""

    def __init__(self, size: int, fill: int = 0) -> None:
        self.content = bytearray([fill]) * size

    def __reduce_ex__(self, _: Any) -> Any:
        return memoryview, (pickle.PickleBuffer(self.content),)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([20_000] * 8, id="a small message"),
        pytest.param([20_000, 3_000_000, 20_000], id="a large one"),
        pytest.param([20_000] * 300, id="a large one of small buffers"),
        pytest.param([300_000], id="one buffer"),
    ],
)
def test_each_buffer_has_memory_of_its_own(wires: tuple[Wire, Wire], sizes: list[int]):
    blocks = [Block(size, number % 251) for number, size in enumerate(sizes)]
    received = through(wires, blocks)
    assert [view.nbytes for view in received] == sizes
    assert all(view == block.content for view, block in zip(received, blocks, strict=True))
    owners = [view.obj for view in received]
    assert [len(owner) for owner in owners] == sizes
    assert len({id(owner) for owner in owners}) == len(owners)
    assert not any(view.readonly for view in received)


def test_messages_of_all_sizes_come_out_one_after_the_other(wires: tuple[Wire, Wire]):
    sender, receiver = wires
    sizes = [0, 1, 20_000, 262_144, 262_145, 5, 1_000_000, 20_000, 700_000, 3]
    for number, size in enumerate(sizes):
        sender.push(Forget(number), dumps([Block(size, number), Block(size, number)]))
    received = []
    while len(received) < len(sizes):
        sender.flush()
        received += receiver.receive()
    assert [message for message, _ in received] == [Forget(number) for number in range(len(sizes))]
    for number, (_, body) in enumerate(received):
        assert loads(body) == [bytes([number]) * sizes[number]] * 2


@pytest.mark.parametrize("step", [1, 7, 23, 24, 31, 4096])
def test_a_message_may_come_in_pieces(step: int):
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    theirs.setblocking(False)
    received: list[Any] = []
    with ours, theirs:
        there = Wire(ours)
        there.push(Forget(1), dumps([Block(17_000, 1)]))
        there.push(Forget(2), dumps([Block(17_000, 2), Block(400_000, 3)]))
        content = b"".join(there._out)
        cuts = [*range(0, 60_000, step), *range(60_000, len(content), 100_000), len(content)]
        for start, end in pairwise(cuts):
            ours.sendall(content[start:end])
            received += wire.receive()
    assert [message for message, _ in received] == [Forget(1), Forget(2)]
    assert [list(map(len, loads(body))) for _, body in received] == [[17_000], [17_000, 400_000]]
    assert loads(received[1][1])[1] == bytes([3]) * 400_000


def test_the_end_of_a_wire_in_the_middle_of_a_message(wires: tuple[Wire, Wire]):
    sender, receiver = wires
    sender.push(Steal(), dumps(Block(2_000_000)))
    assert not sender.flush()
    deque(receiver.receive(), 0)
    sender.close()
    with pytest.raises(EOFError):
        while True:
            deque(receiver.receive(), 0)


SIGPIPE_AT_ITS_DEFAULT = """
    import os, signal, sys
    from fstream import WorkerDied, pmap

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def f(blob):
        if blob[0] == 5:
            os._exit(3)
        return len(blob)

    blobs = [bytes([n]) * 300_000 for n in range(40)]
    for _ in range(5):
        try:
            list(pmap(f, blobs, kind="process", workers=2))
        except WorkerDied:
            print("died")
"""


def test_a_worker_that_dies_is_an_error_also_where_a_broken_pipe_is_deadly(tmp_path: Any):
    result = run_script(tmp_path, SIGPIPE_AT_ITS_DEFAULT)
    assert result.returncode == 0, result
    assert result.stdout.split() == ["died"] * 5


DEAD_AT_THE_START = """
    import os, signal, sys
    from fstream import WorkerDied, pmap
    from multiprocessing import util

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    spawn = util.spawnv_passfds

    def stillborn(*arguments):
        pid = spawn(*arguments)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return pid

    util.spawnv_passfds = stillborn
    try:
        list(pmap(abs, [1], kind="process", workers=1))
    except WorkerDied as error:
        print(error.exitcode)
"""


def test_so_it_is_where_one_dies_before_it_is_told_what_it_is(tmp_path: Any):
    result = run_script(tmp_path, DEAD_AT_THE_START)
    assert result.returncode == 0, result
    assert result.stdout.split() == ["-9"]


def test_writing_to_an_end_that_is_gone_is_an_error_and_no_signal(wires: tuple[Wire, Wire]):
    sender, receiver = wires
    receiver.close()
    before = signal.signal(signal.SIGPIPE, lambda *_: pytest.fail("SIGPIPE"))
    try:
        sender.push(Steal())
        with pytest.raises(BrokenPipeError):
            sender.flush()
    finally:
        signal.signal(signal.SIGPIPE, before)
