"""Messages between a worker process and its parent: framing, pickling, and exceptions that keep what they are.

A message is a few parts: a header (plain data, always loadable), and perhaps a body: a pickle, and the large buffers
in it, which travel beside it (pickle protocol 5), in an arena where there is one, and room in it.
"""

from __future__ import annotations

import io
import pickle
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, ClassVar, Final

import cloudpickle

from fstream._workers.process.arena import Arena
from fstream._workers.process.decorated import Reducers, clear_dispatched
from fstream._workers.process.messages import Message, plain, read

__all__ = [
    "MOST_ERRORS",
    "NO_SIGPIPE",
    "Packed",
    "Wire",
    "_pickled",
    "dumps",
    "loads",
    "raise_no_sigpipe",
    "send_by_value_what_is_being_imported",
]


#: A pickle, and the buffers that go beside it.
Packed = list[Any]

#: A buffer below this many bytes stays in the pickle.
IN_BAND: Final = 1 << 14

#: Of exceptions that led to one another so many travel.
MOST_ERRORS: Final = 100

#: A flag for whatever sends: no SIGPIPE, which ends a program that has not ignored it, where the other end is gone.
NO_SIGPIPE: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)

_PREFIX: Final = struct.Struct("<QQQ")  # total size, number of parts, how many of them are in the arena
_SIZE: Final = struct.Struct("<Q")

_READ: Final = 1 << 18


def raise_no_sigpipe(sock: socket.socket) -> None:
    """The same for all that *sock* sends, on macOS, which has no such flag. Python has no name for its option."""
    if sys.platform == "darwin":
        sock.setsockopt(socket.SOL_SOCKET, 0x1022, 1)  # SO_NOSIGPIPE


#: Modules that are sent by value until they have been imported.
_BY_VALUE: Final[list[ModuleType]] = []
_BY_VALUE_LOCK: Final = threading.Lock()


def _code_of(file: str, arguments: tuple[Any, ...]) -> CodeType:
    return CodeType(*arguments).replace(co_filename=file)


def _reduced(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    _, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _code_of, (code.co_filename, arguments)


def _variable(name: str, *default: Any) -> ContextVar[Any]:
    return ContextVar(name, default=default[0]) if default else ContextVar(name)


def _reduced_variable(variable: ContextVar[Any]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A context variable of a module is that of the module there; another one is made anew, once in a message."""
    for name, module in list(sys.modules.items()):
        if name in ("__main__", "__mp_main__") or module in _BY_VALUE:
            continue
        for attribute, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return getattr, (module, attribute)
    try:
        return _variable, (variable.name, Context().run(variable.get))
    except LookupError:
        return _variable, (variable.name,)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's; but a function that it sends by value keeps the file that it is from, for tracebacks to show."""

    dispatch_table: ClassVar[Any] = Reducers(
        {CodeType: _reduced, ContextVar: _reduced_variable}, *cloudpickle.Pickler.dispatch_table.maps
    )

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        clear_dispatched(func)
        return super()._dynamic_function_reduce(func)


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


def send_by_value_what_is_being_imported() -> None:
    """Have functions and classes travel with their code that are in a module whose code this thread is running.

    Until it has been imported, other threads of this process cannot look anything up in it. And a worker would import
    it as well, and come upon the pipeline that is run here.
    """
    modules = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = sys.modules.get(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_name == "<module>" and module is not None and _is_being_imported(module):
            modules.append(module)
        frame = frame.f_back
    with _BY_VALUE_LOCK:
        for module in [module for module in _BY_VALUE if not _is_being_imported(module)]:
            _BY_VALUE.remove(module)
            cloudpickle.unregister_pickle_by_value(module)
        for module in modules:
            if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                _BY_VALUE.append(module)
                cloudpickle.register_pickle_by_value(module)


def _is_being_imported(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class Wire:
    """One end of a socket pair; with a blocking socket each call does all of its work, else what it can."""

    def __init__(
        self, sock: socket.socket, outward: Arena | None = None, inward: Arena | None = None
    ) -> None:
        raise_no_sigpipe(sock)
        self.sock = sock
        self.outward, self.inward = outward, inward
        self._out: deque[memoryview] = deque()
        #: Where what is read lands first: kept, as a new one of this size costs more than most messages.
        self._landing = memoryview(bytearray(_READ))
        self._pending = bytearray()
        #: A large message on its way in: its parts, the sizes of those that are in the arena, and what is missing.
        self._large: tuple[list[bytearray], list[int]] | None = None
        self._missing: list[memoryview] = []

    def push(self, message: Message, body: Packed | None = None) -> None:
        """Queue *message* for `flush`."""
        header = pickle.dumps(plain(message), protocol=5)
        parts = [memoryview(part).cast("B") for part in (header, *(body or ()))]
        sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
        count = len(parts)
        if self.outward is not None and self.outward.put(parts[2:]):
            del parts[2:]
        total = _PREFIX.size + len(sizes) + sum(part.nbytes for part in parts)
        self._out.append(memoryview(_PREFIX.pack(total, count, count - len(parts)) + sizes))
        self._out.extend(parts)

    def flush(self) -> bool:
        """Send what is queued; False if the socket took only part of it."""
        out = self._out
        while out:
            try:
                sent = self.sock.sendmsg([out[n] for n in range(min(len(out), 16))], (), NO_SIGPIPE)
            except BlockingIOError:
                return False
            while out and sent >= out[0].nbytes:
                sent -= out.popleft().nbytes
            if sent:
                out[0] = out[0][sent:]
        return True

    def receive(self) -> Iterator[tuple[Message, Packed]]:
        """Read once what is there, and give the messages that are complete; EOFError at the end."""
        if self._large is not None:
            yield from self._receive_large()
            return
        try:
            received = self.sock.recv_into(self._landing)
        except BlockingIOError:
            return
        if not received:
            raise EOFError
        pending = self._pending
        pending += self._landing[:received]
        while len(pending) >= _PREFIX.size:
            total, count, beside = _PREFIX.unpack_from(pending)
            position = _PREFIX.size + count * _SIZE.size
            if len(pending) < (total if total <= _READ else position):
                return
            sizes = [size for (size,) in _SIZE.iter_unpack(pending[_PREFIX.size : position])]
            here, there = sizes[: count - beside], sizes[count - beside :]
            # Each part has memory of its own: who keeps one array keeps nothing of what came with it.
            if len(pending) < total:
                self._large = [bytearray(size) for size in here], there
                for part in self._large[0]:
                    arrived = pending[position : position + len(part)]
                    part[: len(arrived)] = arrived
                    position += len(arrived)
                    if len(arrived) < len(part):
                        self._missing.append(memoryview(part)[len(arrived) :])
                pending.clear()
                yield from self._receive_large()
                return
            parts = []
            for size in here:
                parts.append(pending[position : position + size])
                position += size
            del pending[:total]
            yield self._message(parts, there)

    def _receive_large(self) -> Iterator[tuple[Message, Packed]]:
        assert self._large is not None
        missing = self._missing
        while missing:
            try:
                count, *_ = self.sock.recvmsg_into(missing[:16])
            except BlockingIOError:
                return
            if not count:
                raise EOFError
            while missing and count >= missing[0].nbytes:
                count -= missing.pop(0).nbytes
            if count:
                missing[0] = missing[0][count:]
        large, self._large = self._large, None
        yield self._message(*large)

    def _message(self, parts: list[bytearray], beside: list[int]) -> tuple[Message, Packed]:
        body: Packed = [memoryview(part) for part in parts[1:]]
        if beside:
            assert self.inward is not None
            body += self.inward.get(beside)
        return read(*pickle.loads(parts[0])), body

    def close(self) -> None:
        self.sock.close()
