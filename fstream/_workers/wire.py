"""Messages between a worker process and its parent: framing, pickling, and exceptions that keep what they are.

A message is a few parts: a header (plain data, always loadable), and perhaps a body: a pickle, and the large buffers
in it, which travel beside it (pickle protocol 5), in an arena where there is one, and room in it.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
import traceback
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, ClassVar, Final

import cloudpickle

from fstream._workers.arena import Arena
from fstream.errors import RemoteError, WorkerTraceback

__all__ = ["Packed", "Wire", "decode_error", "dumps", "encode_error", "loads"]

#: A pickle, and the buffers that go beside it.
Packed = list[Any]

#: A buffer below this many bytes stays in the pickle.
IN_BAND: Final = 1 << 14

#: Parts start at multiples of this, so that arrays in them are aligned.
ALIGN: Final = 16

_PREFIX: Final = struct.Struct("<QQQ")  # total size, number of parts, how many of them are in the arena
_SIZE: Final = struct.Struct("<Q")

_READ: Final = 1 << 18


def _code_of(file: str, arguments: tuple[Any, ...]) -> CodeType:
    return CodeType(*arguments).replace(co_filename=file)


def _reduced(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    _, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _code_of, (code.co_filename, arguments)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's; but a function that it sends by value keeps the file that it is from, for tracebacks to show."""

    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduced}, cloudpickle.Pickler.dispatch_table)


def _pickled(value: Any, beside: Callable[[pickle.PickleBuffer], bool] | None = None) -> bytes:
    file = io.BytesIO()
    Pickler(file, protocol=5, buffer_callback=beside).dump(value)
    return file.getvalue()


def dumps(value: Any) -> Packed:
    """Pickle *value*, local functions and classes included."""
    buffers: list[memoryview] = []

    def beside(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < IN_BAND:
            return True
        buffers.append(view)
        return False

    return [_pickled(value, beside), *buffers]


def loads(packed: Packed) -> Any:
    return pickle.loads(packed[0], buffers=packed[1:])


class Wire:
    """One end of a socket pair; with a blocking socket each call does all of its work, else what it can."""

    def __init__(
        self, sock: socket.socket, outward: Arena | None = None, inward: Arena | None = None
    ) -> None:
        self.sock = sock
        self.outward, self.inward = outward, inward
        self._out: deque[memoryview] = deque()
        #: Where what is read lands first: kept, as a new one of this size costs more than most messages.
        self._landing = memoryview(bytearray(_READ))
        self._pending = bytearray()
        #: A large message on its way in, and the part of it that is missing.
        self._large: bytearray | None = None
        self._missing: memoryview | None = None

    def push(self, header: tuple[Any, ...], body: Packed | None = None) -> None:
        """Queue a message for `flush`."""
        parts = [memoryview(part).cast("B") for part in (pickle.dumps(header, protocol=5), *(body or ()))]
        sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
        count = len(parts)
        if self.outward is not None and self.outward.put(parts[2:]):
            del parts[2:]
        start = _PREFIX.size + len(sizes)
        views = [memoryview(sizes)]
        total = start
        for part in parts:
            gap = -total % ALIGN
            if gap:
                views.append(memoryview(bytes(gap)))
            views.append(part)
            total += gap + part.nbytes
        self._out.append(memoryview(_PREFIX.pack(total, count, count - len(parts))))
        self._out.extend(views)

    def flush(self) -> bool:
        """Send what is queued; False if the socket took only part of it."""
        out = self._out
        while out:
            try:
                sent = self.sock.sendmsg([out[n] for n in range(min(len(out), 16))])
            except BlockingIOError:
                return False
            while out and sent >= out[0].nbytes:
                sent -= out.popleft().nbytes
            if sent:
                out[0] = out[0][sent:]
        return True

    def receive(self) -> Iterator[tuple[tuple[Any, ...], Packed]]:
        """Read once what is there, and give the messages that are complete; EOFError at the end."""
        if self._large is not None:
            yield from self._receive_large()
            return
        try:
            count = self.sock.recv_into(self._landing)
        except BlockingIOError:
            return
        if not count:
            raise EOFError
        pending = self._pending
        pending += self._landing[:count]
        while len(pending) >= _PREFIX.size:
            total, _, _ = _PREFIX.unpack_from(pending)
            if len(pending) < total:
                if total > _READ:
                    self._large = bytearray(total)
                    self._large[: len(pending)] = pending
                    self._missing = memoryview(self._large)[len(pending) :]
                    pending.clear()
                    yield from self._receive_large()
                return
            message = pending[:total]
            del pending[:total]
            yield self._parse(message)

    def _receive_large(self) -> Iterator[tuple[tuple[Any, ...], Packed]]:
        assert self._large is not None
        while self._missing:
            try:
                count = self.sock.recv_into(self._missing)
            except BlockingIOError:
                return
            if not count:
                raise EOFError
            self._missing = self._missing[count:]
        message, self._large, self._missing = self._large, None, None
        yield self._parse(message)

    def _parse(self, message: bytearray) -> tuple[tuple[Any, ...], Packed]:
        _, count, beside = _PREFIX.unpack_from(message)
        position = _PREFIX.size + count * _SIZE.size
        parts = []
        view = memoryview(message)
        sizes = [size for (size,) in _SIZE.iter_unpack(view[_PREFIX.size : position])]
        for size in sizes[: count - beside]:
            position += -position % ALIGN
            parts.append(view[position : position + size])
            position += size
        if beside:
            assert self.inward is not None
            parts += self.inward.get(sizes[-beside:])
        return pickle.loads(parts[0]), parts[1:]

    def close(self) -> None:
        self.sock.close()


# ------------------------------------------------------------------------------------------------- exceptions


def encode_error(error: BaseException, depth: int = 0) -> tuple[Any, ...]:
    """Make plain data of an exception: itself, what led to it, and its traceback as text."""
    cause, context = error.__cause__, error.__context__
    deeper = depth < 8
    return (
        _packed_error(error),
        encode_error(cause, depth + 1) if cause is not None and deeper else None,
        encode_error(context, depth + 1) if context is not None and context is not cause and deeper else None,
        error.__suppress_context__,
        _formatted(error) if not depth else "",
    )


def decode_error(record: tuple[Any, ...]) -> BaseException:
    """Make the exception again; its worker's traceback is the first of its causes."""
    packed, cause, context, suppress, text = record
    error = _unpacked_error(packed)
    if context is not None:
        _set(error, "__context__", decode_error(context))
    if cause is not None:
        _set(error, "__cause__", decode_error(cause))
    _set(error, "__suppress_context__", suppress)
    if text:
        first: BaseException = error
        seen = {id(error)}
        while first.__cause__ is not None and id(first.__cause__) not in seen:
            first = first.__cause__
            seen.add(id(first))
        if first.__cause__ is None:
            _set(first, "__cause__", WorkerTraceback(text))
    return error


def _set(error: BaseException, name: str, value: object) -> None:
    BaseException.__setattr__(error, name, value)  # some exceptions are frozen dataclasses


def _formatted(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return f"{type(error).__name__}, which cannot be shown\n"


def _packed_error(error: BaseException) -> tuple[str, Any]:
    try:
        packed = _pickled(error)
        if _same(pickle.loads(packed), error):
            return "whole", packed
    except Exception:
        pass
    try:  # an __init__ that takes other arguments than it passes on: make it without
        packed = _pickled((type(error), error.args, error.__dict__))
        if _same(_rebuilt(packed), error):
            return "parts", packed
    except Exception:
        pass
    return "text", _formatted(error)


def _same(copy: BaseException, error: BaseException) -> bool:
    return (
        type(copy).__qualname__ == type(error).__qualname__
        and len(copy.args) == len(error.args)
        and str(copy) == str(error)
    )


def _rebuilt(packed: bytes) -> BaseException:
    cls, args, attributes = pickle.loads(packed)
    error: BaseException = cls.__new__(cls, *args)
    error.__dict__.update(attributes)
    return error


def _unpacked_error(packed: tuple[str, Any]) -> BaseException:
    way, content = packed
    try:
        if way == "whole":
            whole: BaseException = pickle.loads(content)
            return whole
        if way == "parts":
            return _rebuilt(content)
    except Exception as broken:
        return RemoteError(
            f"an exception of the worker cannot be loaded here: {type(broken).__name__}: {broken}"
        )
    return RemoteError(f"an exception that cannot be pickled was raised in the worker:\n{content}")
