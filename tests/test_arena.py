"""Large buffers between a worker process and its parent, and the memory that they share for them."""

from __future__ import annotations

import os
import pickle
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from fstream import pflat_map, pmap
from fstream._workers.process.arena import LEAST, MOST, Arena, arenas, shared_file
from fstream._workers.process.messages import Forget, Steal
from fstream._workers.process.warm import WARM
from fstream._workers.process.wire import Wire, dumps, loads

pytestmark = pytest.mark.slow


class Block:
    """Bytes that travel beside the pickle, and come out as a view of the memory that they came in."""

    def __init__(self, size: int, fill: int = 0) -> None:
        self.content = bytearray([fill]) * size

    def __reduce_ex__(self, _: Any) -> Any:
        return memoryview, (pickle.PickleBuffer(self.content),)


def both_ends() -> tuple[tuple[Arena, Arena], tuple[Arena, Arena]]:
    """The two arenas as the parent sees them, and as the worker does."""
    fd = shared_file()
    assert fd is not None
    try:
        parent, worker = arenas(fd), arenas(fd)
    finally:
        os.close(fd)
    assert parent[0] is not None
    assert worker[0] is not None
    return parent, worker


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(os.urandom(size)) for size in sizes]


@pytest.mark.parametrize("way", ["there", "back"])
@pytest.mark.parametrize("sizes", [[LEAST], [LEAST - 1, 1, 0, 7], [MOST], [MOST - 3, 3]])
def test_buffers_come_out_as_they_were_put_in(sizes: list[int], way: str):
    (there, back), (there_in_worker, back_in_worker) = both_ends()
    sender, receiver = (there, there_in_worker) if way == "there" else (back_in_worker, back)
    for _ in range(2):
        sent = views(*sizes)
        assert sender.put(sent)
        assert receiver.get(sizes) == sent


def test_what_came_out_is_one_s_own():
    (sender, _), (receiver, _) = both_ends()
    first, second = views(LEAST), views(LEAST)
    assert sender.put(first)
    (mine,) = receiver.get([LEAST])
    assert not mine.readonly
    assert sender.put(second)
    assert mine == first[0]
    mine[:] = bytes(LEAST)
    assert receiver.get([LEAST]) == second


def test_an_arena_takes_nothing_before_it_is_empty():
    (sender, _), (receiver, _) = both_ends()
    first, second = views(LEAST), views(LEAST)
    assert sender.put(first)
    assert not sender.put(second)
    assert receiver.get([LEAST]) == first
    assert sender.put(second)


def test_each_direction_has_one_of_its_own():
    (there, back), (there_in_worker, back_in_worker) = both_ends()
    question, answer = views(MOST), views(MOST)
    assert there.put(question)
    assert back_in_worker.put(answer)
    assert there_in_worker.get([MOST]) == question
    assert back.get([MOST]) == answer


@pytest.mark.parametrize("sizes", [[], [LEAST - 1], [MOST + 1], [MOST, 1]])
def test_small_and_huge_buffers_stay_out(sizes: list[int]):
    (sender, _), _ = both_ends()
    assert not sender.put(views(*sizes))
    assert sender.put(views(LEAST))


@pytest.fixture
def wires() -> Iterator[tuple[Wire, Wire]]:
    """Both ends of a connection, with arenas."""
    (there, back), (there_in_worker, back_in_worker) = both_ends()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield Wire(ours, there, back), Wire(theirs, back_in_worker, there_in_worker)


def talk(sender: Wire, receiver: Wire, *messages: Any) -> list[Any]:
    """Send *messages*, and give what arrives."""
    for number, message in enumerate(messages):
        sender.push(Forget(number), dumps(message))
    heard: list[Any] = []
    while len(heard) < len(messages):
        sender.flush()
        heard += receiver.receive()
    assert [message for message, _ in heard] == [Forget(number) for number in range(len(messages))]
    return [loads(body) for _, body in heard]


def test_large_buffers_do_not_go_through_the_socket(wires: tuple[Wire, Wire]):
    parent, worker = wires
    for sender, receiver in ((parent, worker), (worker, parent)):
        sender.push(Steal(), dumps([Block(MOST // 2, 7), "and", Block(LEAST, 8)]))
        assert sender.flush()
        assert len(receiver.sock.recv(1 << 20, socket.MSG_PEEK)) < 1000
        ((_, body),) = receiver.receive()
        first, word, second = loads(body)
        assert word == "and"
        assert (first, second) == (bytes([7]) * (MOST // 2), bytes([8]) * LEAST)


@pytest.mark.parametrize("size", [1, LEAST - 1, LEAST, MOST, MOST + 1])
def test_what_finds_the_arena_full_goes_through_the_socket(wires: tuple[Wire, Wire], size: int):
    sizes = [LEAST, size, LEAST, 1]
    assert talk(*wires, *map(Block, sizes)) == [bytes(size) for size in sizes]
    assert talk(*reversed(wires), *map(Block, sizes)) == [bytes(size) for size in sizes]


def test_where_there_is_no_such_memory_all_goes_through_the_socket(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "memfd_create")
    assert shared_file() is None
    assert arenas(None) == (None, None)
    WARM.clear()
    assert list(pmap(add_one, [Block(LEAST)] * 3, kind="process", workers=1)) == [bytes([1]) * LEAST] * 3
    WARM.clear()


# Pipelines


def add_one(block: memoryview) -> Block:
    assert not block.readonly
    answer = Block(len(block), block[0] + 1)
    block[:] = bytes(len(block))  # nobody else's
    return answer


SIZES = [1 << 14, LEAST - 1, LEAST, LEAST + 1, 3_000_001, MOST, MOST + 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_large_items_and_outputs_come_through_as_they_are(workers: int, is_ordered: bool):
    blocks = [Block(size, number) for number, size in enumerate(SIZES * 3)]
    kept = list(pmap(add_one, blocks, kind="process", workers=workers, ordered=is_ordered))
    assert sorted(map(bytes, kept)) == sorted(bytes([n + 1]) * size for n, size in enumerate(SIZES * 3))
    assert not any(output.readonly for output in kept)
    if is_ordered:
        assert [output[0] - 1 for output in kept] == list(range(len(blocks)))
    assert [set(block.content) for block in blocks] == [{number} for number in range(len(blocks))]


def two_of(block: memoryview) -> list[Block]:
    return [Block(len(block), block[0]), Block(len(block), block[0] + 100)]


def test_several_large_outputs_of_one_item():
    outputs = list(pflat_map(two_of, [Block(LEAST, n) for n in range(9)], kind="process", workers=2))
    assert [set(output) for output in outputs] == [{n + more} for n in range(9) for more in (0, 100)]


def die_once(block: memoryview) -> Block:
    path = bytes(block[:256]).rstrip(b"\0")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return Block(len(block), 5)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_worker_that_dies_at_a_large_item_is_replaced(tmp_path: Any):
    blocks = [Block(LEAST) for _ in range(4)]
    for number, block in enumerate(blocks):
        name = str(tmp_path / str(number)).encode()
        block.content[: len(name)] = name
    outputs = list(pmap(die_once, blocks, kind="process", workers=2, retries=1, backoff=0))
    assert outputs == [bytes([5]) * LEAST] * 4
