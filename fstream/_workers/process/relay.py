"""What workers print, log and warn, on its way to the parent, where it comes out.

    print --> sys.stdout of the worker --> the cell --Said--> [socket] --> Relayed --> sys.stdout of the parent
    logging, warnings ------------------Logged, Warned------> [socket] --> Relayed --> its loggers, its warnings

All of it goes through the socket of the answers, so it comes out in order, and before the answers that follow. Who
says more than the parent can write waits for the socket to have room, so nothing fills up.

A message for each line would cost 9 us of CPU, three times as much as a write to a pipe. So lines are collected, in the
cell, for a hundredth of a second: memory that the parent reads when the worker has died. What has been said before a
death is then complete, however the process died.

While no stage has the worker, the parent does not read. What threads of f say then goes to the files that the worker
has inherited. What they have said at the very end of a stage, and the parent has not read, it reads in the next stage.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from time import perf_counter, sleep
from typing import Any, Final, Protocol, TextIO

from fstream._workers.process.messages import Logged, Message, Said, Warned
from fstream._workers.process.wire import Packed, Wire, dumps, loads

__all__ = ["Relay", "Relayed"]


OUT: Final = 1
ERR: Final = 2

#: Where a worker collects what is printed: positions of words in its cell, and of the first byte.
#: Invariant: COUNT is written when the bytes are there, and is 0 before NUMBER changes.
COUNT: Final = 4  # how many bytes there are
WHICH: Final = 5  # OUT or ERR
NUMBER: Final = 6  # that of the message that they will be
AREA: Final = 64

#: How long a line is kept, in seconds, if another one has been sent within the same time before.
DELAY: Final = 0.01

_ENCODING: Final = "utf-8"
#: Whatever bytes are written to ``sys.stdout.buffer``, the same come out.
_ERRORS: Final = "surrogateescape"


def come_out(stream: TextIO | None, text: str) -> None:
    """Write *text*; nothing where that cannot be, because the stream is closed, say."""
    try:
        if stream is None:
            return
        try:
            stream.write(text)
        except UnicodeEncodeError:  # then as bytes, behind what it has
            stream.flush()
            stream.buffer.write(text.encode(_ENCODING, _ERRORS))
        stream.flush()
    except Exception:
        pass


# -------------------------------------------------------------------------------------------------- in the worker


class Speaker(Protocol):
    """The worker's end of the socket, as the relay needs it."""

    #: Held by who sends.
    sending: threading.RLock
    wire: Wire
    #: A stage has the worker, so the parent reads.
    opened: bool

    def uninterrupted(self, do: Callable[[], None]) -> None:
        """Run *do*; the end of the stage interrupts it no earlier than afterwards."""
        ...

    def at_work(self) -> str | None:
        """Give the name of the stage at work."""
        ...


class Output(io.BufferedIOBase):
    """The binary stream below ``sys.stdout`` or ``sys.stderr``."""

    def __init__(self, relay: Relay, which: int, original: TextIO | None) -> None:
        self.relay = relay
        self.which = which
        self.original = original
        self.name = "<stdout>" if which == OUT else "<stderr>"
        self.mode = "wb"

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = memoryview(data).tobytes()
        self.relay.say(self.which, data)
        return len(data)

    def fileno(self) -> int:
        return super().fileno() if self.original is None else self.original.fileno()

    def isatty(self) -> bool:
        return self.original is not None and self.original.isatty()


class Relay:
    """The worker's end."""

    def __init__(self, speaker: Speaker, cell: memoryview) -> None:
        self.speaker = speaker
        self.cell = cell
        self.area = cell.cast("B")[AREA:]
        self.originals: dict[int, TextIO | None] = {OUT: sys.stdout, ERR: sys.stderr}
        #: What was said while this very thread was sending: by a finalizer, or by what pickles an output.
        self.held: deque[Callable[[], None]] = deque()
        #: When something was sent last, in seconds of `perf_counter`.
        self.sent = 0.0
        #: A thread sends what is collected, a moment from now. There is none until the first line that is kept.
        self.due = False
        self.alarm: SimpleQueue[None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        #: It is over, or this is a fork of the worker's.
        self.ended = False

    def install(self) -> None:
        """Have all of it go through here what is printed, logged and warned in this process."""
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(
                Output(self, which, original),
                encoding=_ENCODING,
                errors=getattr(original, "errors", None) or "backslashreplace",
                line_buffering=True,
            )
            for which, original in self.originals.items()
        )
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            if isinstance(logger, logging.Logger):  # by a fork
                logger.handlers.clear()
                logger.propagate = True
        call_handlers, show = logging.Logger.callHandlers, warnings.showwarning
        configure, elsewhere = logging.basicConfig, Elsewhere(self)
        logging.root.addHandler(elsewhere)

        def configure_here(**options: Any) -> None:
            logging.root.removeHandler(elsewhere)
            configure(**options)

        def call_handlers_there(logger: logging.Logger, record: logging.LogRecord) -> None:
            if self.heard:
                self.log(logger, record)
            else:
                call_handlers(logger, record)

        def show_there(
            message: Warning | str, category: type[Warning], filename: str, lineno: int,
            file: TextIO | None = None, line: str | None = None,
        ) -> None:  # fmt: skip
            if file is None and self.heard:
                with suppress(Exception):  # it cannot be pickled
                    body = dumps((message, category))
                    text = warnings.formatwarning(message, category, filename, lineno, line)
                    self.tell(Warned(filename, lineno, text), body)
                    return
            show(message, category, filename, lineno, file, line)

        logging.basicConfig = configure_here
        logging.Logger.callHandlers = call_handlers_there  # type: ignore[method-assign, assignment]
        warnings.showwarning = show_there
        os.register_at_fork(after_in_child=self.forked)

    @property
    def heard(self) -> bool:
        """Tell whether the parent reads."""
        return self.speaker.opened and not self.ended

    def forked(self) -> None:
        """In a fork of the worker, all goes to the files that it has inherited: cell and socket are not its own."""
        self.ended = True

    def end(self) -> None:
        """The same at the end of the worker, whose cell is about to go."""
        with suppress(OSError), self.speaker.sending:
            self.flush()
        with self.speaker.sending:
            self.ended = True
            self.area.release()

    # ------------------------------------------------------------------------------------ for whoever says something

    def say(self, which: int, data: bytes) -> None:
        """Have what is printed come out in the parent."""
        if self.ended:
            come_out(self.originals[which], data.decode(_ENCODING, _ERRORS))
        else:
            self.speaker.uninterrupted(partial(self._do, partial(self._collect, which, data)))

    def tell(self, message: Message, body: Packed) -> None:
        """Send a message, behind what was printed before."""
        self.speaker.uninterrupted(partial(self._do, partial(self._send, message, body)))

    def log(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Call the handlers that a record has here; the parent calls the others, those of the loggers above.

        A module that both have imported may have given its logger a handler in both.
        """
        record.__dict__.setdefault("stage", self.speaker.at_work())
        above: logging.Logger | None = logger
        at: logging.Logger | None = logger
        while at is not None:
            parent = at.parent if at.propagate else None
            for handler in at.handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)
                if not isinstance(handler, logging.NullHandler):
                    above = parent
            at = parent
        if above is None:
            return
        try:
            self.tell(Logged(above.name), packed(record))
        except Exception:
            logging.Handler().handleError(record)

    def _do(self, step: Callable[[], None]) -> None:
        sending = self.speaker.sending
        if sending._is_owned():  # type: ignore[attr-defined]
            self.held.append(step)
            self._ring()
            return
        with suppress(OSError), sending:  # the parent is gone, and this process will be
            self._catch_up()
            step()

    # ----------------------------------------------------------------------------------- with the speaker's `sending`

    def flush(self) -> None:
        """Send what was printed."""
        if not self.ended:
            self._catch_up()
            self._send_collected()

    def _catch_up(self) -> None:
        while self.held:
            self.held.popleft()()

    def _collect(self, which: int, data: bytes) -> None:
        if self.ended:
            self.say(which, data)
            return
        cell, area = self.cell, self.area
        for start in range(0, len(data), len(area)):
            piece = data[start : start + len(area)]
            if cell[COUNT] and (cell[WHICH] != which or cell[COUNT] + len(piece) > len(area)):
                self._send_collected()
            count = cell[COUNT]
            area[count : count + len(piece)] = piece
            cell[WHICH] = which
            cell[COUNT] = count + len(piece)
        if perf_counter() - self.sent >= DELAY or not self._ring():
            self._send_collected()

    def _send_collected(self) -> None:
        cell = self.cell
        if not cell[COUNT]:
            return
        data = self.area[: cell[COUNT]].tobytes()
        if self.heard:
            self.speaker.wire.push(Said(cell[NUMBER], cell[WHICH], data))
            self.speaker.wire.flush()
        else:
            come_out(self.originals[cell[WHICH]], data.decode(_ENCODING, _ERRORS))
        cell[COUNT] = 0
        cell[NUMBER] += 1
        self.sent = perf_counter()

    def _send(self, message: Message, body: Packed) -> None:
        self._send_collected()
        self.speaker.wire.push(message, body)
        self.speaker.wire.flush()

    # ------------------------------------------------------------------------------------------- what is kept so long

    def _ring(self) -> bool:
        """Have what is collected sent soon; False if there can be no thread for that."""
        if self.thread is None:
            try:
                thread = threading.Thread(target=self._flush_when_due, name="fstream-relay", daemon=True)
                thread.start()
            except (RuntimeError, MemoryError):  # too many threads, or the interpreter is about to exit
                return False
            self.thread = thread
        if not self.due:
            self.due = True
            self.alarm.put(None)
        return True

    def _flush_when_due(self) -> None:
        while True:
            self.alarm.get()
            sleep(DELAY)
            self.due = False
            with suppress(OSError), self.speaker.sending:
                self.flush()


class Elsewhere(logging.NullHandler):
    """The root logger's, so that ``logging.warning`` sets up no other one. Whoever sets one up means it.

    It does what is done without handlers, where the parent does not hear.
    """

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def handle(self, record: logging.LogRecord) -> bool:
        last = logging.lastResort
        return (
            not self.relay.heard
            and last is not None
            and record.levelno >= last.level
            and bool(last.handle(record))
        )


def packed(record: logging.LogRecord) -> Packed:
    """Pickle the attributes of *record*; what cannot be pickled goes as text."""
    values = record.__dict__ | {"msg": record.getMessage(), "args": None, "exc_info": None}
    if record.exc_info and not record.exc_text:
        values["exc_text"] = logging.Formatter().formatException(record.exc_info)
    try:
        return dumps(values)
    except Exception:
        plain = (str, int, float, type(None))
        return dumps({name: v if type(v) in plain else repr(v) for name, v in values.items()})


# -------------------------------------------------------------------------------------------------- in the parent


class Relayed:
    """What one worker says, as it comes out in this process: through what is there now, in the pump's thread."""

    def __init__(self) -> None:
        #: The number of the next message `Said`.
        self.number = 0
        decoder = getincrementaldecoder(_ENCODING)
        self.decoders = {OUT: decoder(_ERRORS), ERR: decoder(_ERRORS)}

    def take(self, message: Message, body: Packed) -> bool:
        """Have a message come out; False if it is of another sort."""
        if isinstance(message, Said):
            self.print(*message)
        elif isinstance(message, Logged | Warned):
            with suppress(Exception):  # of the user's: a filter, say
                (log if isinstance(message, Logged) else warn)(body, *message)
        else:
            return False
        return True

    def print(self, number: int, which: int, data: bytes) -> None:
        self.number = number + 1
        come_out(sys.stdout if which == OUT else sys.stderr, self.decoders[which].decode(data))

    def print_collected(self, cell: Any) -> None:
        """The same with what a dead worker has collected, and has not sent."""
        with memoryview(cell) as view, view[:AREA].cast("q") as words:
            if words[COUNT] and words[NUMBER] >= self.number:
                self.print(words[NUMBER], words[WHICH], view[AREA : AREA + words[COUNT]].tobytes())


def log(body: Packed, above: str) -> None:
    record = logging.makeLogRecord(loads(body))
    logger = logging.getLogger(record.name)
    if not logger.isEnabledFor(record.levelno):
        return
    if above == record.name:
        logger.handle(record)
    elif logger.filter(record):
        logging.getLogger(above).callHandlers(record)


def warn(body: Packed, filename: str, lineno: int, text: str) -> None:
    try:
        message, category = loads(body)
    except Exception:  # its class is not to be had here
        come_out(sys.stderr, text)
    else:
        warnings.showwarning(message, category, filename, lineno)
