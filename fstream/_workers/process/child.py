"""What runs in a worker process: the main thread runs f, a second one reads from the parent.

The reader thread is there so that f never keeps the parent waiting. It takes spans in while f is busy. When the parent
asks, it gives unstarted items back and sends finished slots. It interrupts f when the stage is stopped, and ends the
process when the parent is gone.
"""

from __future__ import annotations

import fcntl
import io
import logging
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from time import perf_counter, perf_counter_ns
from typing import Any, Final

from fstream._flow.sizing import stride_length
from fstream._flow.span import Failure, Progress, Span
from fstream._flow.weight import Gauge
from fstream._plan.stages import Stage, StageStatus
from fstream._workers.call import PART, SINCE, Call, FusedCall, call_of, which
from fstream._workers.process.arena import arenas
from fstream._workers.process.blame import blame_output
from fstream._workers.process.errors import decode_error, encode_error
from fstream._workers.process.fresh import FOR_THE_PARENT
from fstream._workers.process.imported import Imported
from fstream._workers.process.messages import (
    Broken,
    Close,
    Counted,
    Finish,
    Finished,
    Forget,
    Items,
    Message,
    Open,
    Opened,
    Ready,
    Slots,
    Stale,
    Steal,
    Stolen,
    Stop,
    Unloadable,
)
from fstream._workers.process.relay import Relay
from fstream._workers.process.surroundings import Surroundings, adopt, surroundings
from fstream._workers.process.wire import Packed, Wire, _pickled, dumps, loads
from fstream.errors import NotPicklable

__all__ = [
    "CELL_SIZE",
    "DOING",
    "FLUSHING",
    "IDLE",
    "IDLE_SECONDS",
    "LEFT",
    "LOADING",
    "OPENING",
    "PART",
    "SENDING",
    "SINCE",
    "SPAN_START",
    "START_FORMAT",
    "main",
]


#: The cell is a page of memory that the child shares with its parent. There the parent reads which item a dead worker
#: was busy with, and since when a live one is; the rest is the relay's. Below are its size in bytes and the positions
#: of its 8-byte words.
#: Invariant: the child writes a word before it does what the word says. SPAN_START may lag: for a moment it still tells
#: of a span whose slots the parent has.
CELL_SIZE: Final = 4096
DOING: Final = 0  # the index of the item in f, or one of the five numbers below
# SINCE, 1: when the item in f was begun, if there is a time-out: nanoseconds of `perf_counter`, the same everywhere
FLUSHING: Final = 2  # 1 while the reader thread pickles finished slots, else 0
SPAN_START: Final = 3  # the start of the span at work
#: Word 7, PART, is which part of the stage has the item in f, if it stands for several and they differ in what becomes
#: of an item. Where each has a time-out of its own, SINCE is when that part was begun. `FusedCall` writes both.

#: What DOING says where no item is in f. An index is never negative.
IDLE: Final = -1
OPENING: Final = -2  # it loads the stage, or runs on_start
LOADING: Final = -3  # it unpickles items
SENDING: Final = -4  # it pickles slots
LEFT: Final = -5  # it has ended by itself, because no stage came: one that is sent now is not to blame

#: A worker that no stage needs ends by itself after this many seconds, if its pool says nothing else. It waits for its
#: first stage as long at least, because the parent sends that only after `Ready`.
IDLE_SECONDS: Final = 10.0

#: What is longer than this, in seconds, is without end: `poll` counts milliseconds in an int of C, to 24 days.
LONGEST_IDLE: Final = 2e6

#: How its pool says so, and whether it relays.
START_FORMAT: Final = "d?"


class Stopped(BaseException):
    """Raised in f when the stage is stopped."""


class Deaf(Exception):
    """Raised when there is no memory for what the parent sends."""


class Loaded:
    """A stage in a worker: what it does with an item, and the world as the stage has left it.

    What f and ``on_start`` set in a context variable, the precision of decimal numbers above all, is the stage's own;
    so are the current folder, the environment and the other `Surroundings`.
    """

    def __init__(self) -> None:
        self.call: Call | FusedCall | None = None
        self.context = copy_context()
        self.surroundings: Surroundings | None = None


class Child:
    """The worker's end.

    It has more attributes than most, because it is one end of a conversation: what it knows of the span in hand is what
    the parent has to be told.
    """

    #: The clock by which it says how long spans take, in seconds.
    clock = staticmethod(perf_counter)

    def __init__(
        self, sock: socket.socket, cell: memoryview, arena: int | None = None, idle: float = IDLE_SECONDS
    ) -> None:
        self.wire = self.wire_over(sock, arena)
        self.cell = cell
        self.inbox: SimpleQueue[tuple[Message, Packed] | None] = SimpleQueue()
        #: Held while a thread sends, and while it finds out what to send.
        #: Invariant: both threads change `failed`, `sent` and `wire`, so these are touched with this lock held. A span
        #: is begun, claimed from, stolen from and sent with it held. The main thread alone appends to `slots`, without
        #: it: an append is atomic. The reader alone sets `opened`, `heard`, `stopped` and `waits`. A thread looks at a
        #: flag again before it waits. A lock that knows its owner, because user code that runs in a thread while it
        #: sends may print.
        self.sending = threading.RLock()
        #: What is printed, logged and warned goes to the parent.
        self.relay: Relay | None = None
        #: The stages that it has, by their keys; and the call and the context of the one that it works for.
        self.stages: dict[int, Loaded] = {}
        self.call: Call | FusedCall | None = None
        self.context = copy_context()
        self.imported = Imported()
        #: It has had no stage yet. It takes the first one even if files have changed: where one changes all the time,
        #: no worker would ever do.
        self.fresh = True
        #: Seconds until it ends by itself, if no stage needs it.
        self.idle = idle
        #: The same for the wait that is now: for its first stage a new worker waits longer.
        self.waits = max(idle, IDLE_SECONDS)
        #: It works for a stage.
        self.opened = False
        #: No stage has come for as long as it waits for one.
        self.left = False
        #: The stages that have resources here.
        self.homes: set[int] = set()
        #: How often a stage was opened or closed, as the reader has heard, and as the main thread has got to; and where
        #: the reader was when it heard that a stage is stopped. The main thread may still be at the one before.
        self.heard = self.done = 0
        self.stopped = -1
        self.in_f = self.leads_a_group = False
        #: The span in hand.
        self.span = Span(0, [])
        #: How many of its slots were sent.
        self.sent = 0
        #: The positions of the slots that are failures and were not sent yet.
        self.failed: set[int] = set()
        #: When the span in hand was begun, in seconds of the clock.
        self.begun = 0.0
        #: Tells when the span in hand has to end because its slots are heavy.
        self.gauge = Gauge(0.0)
        #: The parent waits for slots: send those that there are after the item at work.
        self.flush_requested = False

    def wire_over(self, sock: socket.socket, arena: int | None) -> Wire:
        inward, outward = arenas(arena)
        return Wire(sock, outward, inward)

    @property
    def start(self) -> int:
        return self.span.start

    @property
    def slots(self) -> list[Any]:
        return self.span.slots

    @property
    def tries(self) -> int:
        return self.span.tries

    @property
    def progress(self) -> Progress | None:
        return self.span.progress

    # --------------------------------------------------------------------------------------- the reader thread

    def read(self) -> None:
        """Take messages in until the parent is gone, or no stage has come for `idle` seconds."""
        try:
            poll = select.poll()  # not `select`, which takes no file number from 1,024 on
            poll.register(self.wire.sock, select.POLLIN)
            while True:
                milliseconds = None if self.waits > LONGEST_IDLE else self.waits * 1000
                if not (self.opened or self.homes) and not poll.poll(milliseconds):
                    self.left = True
                    break
                # Not a loop: its variable would keep the last message alive while this thread waits for the next one.
                deque(map(self.sort, self.receive()), 0)
        except (EOFError, OSError):
            if self.opened:  # the parent has died or thrown us out: there is nobody left to work for
                if self.leads_a_group:  # the kernel does this, too (`die_with`), but this thread may be first
                    os.killpg(0, signal.SIGKILL)
                os._exit(1)
        except Deaf:  # the items that came before are not to blame, so they are finished first
            traceback.print_exc()
            self.flush_requested = True
        except BaseException:
            # Perhaps in the middle of giving items back: what the parent would be told is not true.
            traceback.print_exc()
            os._exit(1)
        self.inbox.put(None)

    def receive(self) -> Iterator[tuple[Message, Packed]]:
        try:
            yield from self.wire.receive()
        except MemoryError as error:
            raise Deaf from error

    def sort(self, message: tuple[Message, Packed]) -> None:
        """Do what cannot wait for f; leave the rest to the main thread, in the inbox."""
        asked = message[0]
        match asked:
            case Steal():
                self.steal()
                return
            case Open():
                self.opened = True
                self.heard += 1
                self.waits = self.idle
                if asked.stays:
                    self.homes.add(asked.key)
                # Said by this thread, because it may give spans of the stage back before the main one opens the stage.
                self.say(Opened())
            case Close():
                self.opened = False
                self.heard += 1
                if asked.over:
                    self.homes.discard(asked.key)
            case Forget():
                self.homes.discard(asked.key)
        self.inbox.put(message)
        if isinstance(asked, Stop):
            self.stopped = self.heard
            self.interrupt_f()

    @property
    def stopping(self) -> bool:
        """The stage that the main thread works for is stopped."""
        return self.stopped == self.done

    def interrupt_f(self) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def steal(self) -> None:
        """Give the parent all items that are not started, and send the finished slots."""
        with self.sending:
            back: list[Stolen] = []
            if rest := self.span.steal():
                back.append(Stolen(self.start, len(rest.items)))
            queued = []
            try:
                while True:
                    queued.append(self.inbox.get_nowait())
            except Empty:
                pass
            for message in queued:
                if message is not None and isinstance(message[0], Items):
                    back.append(Stolen(message[0].start, None))
                else:
                    self.inbox.put(message)
            self.flush_requested = True
            self.cell[FLUSHING] = 1
            self.send_slots(closed=False)
            self.cell[FLUSHING] = 0
            for stolen in back:
                self.wire.push(stolen)
            self.wire.flush()

    # ----------------------------------------------------------------------------------------- the main thread

    def serve(self) -> None:
        while self.heed(self.inbox.get()):
            pass  # no variable here: see `read`

    def heed(self, message: tuple[Message, Packed] | None) -> bool:
        """Do what the parent asks; False if it has no more to ask."""
        if message is None:
            if self.opened:  # the reader could not take a message in, and all items before it are done
                os._exit(1)
            return False
        asked, body = message
        match asked:
            case Open():
                self.open(asked, body)
            case Items():
                self.context.run(self.work, asked, body)
            case Finish() | Stop():
                self.context.run(self.finish, asked)
            case Close():
                self.close(asked)
            case Forget():
                self.stages.pop(asked.key, None)
        return True

    def say(self, message: Message) -> None:
        with self.sending:
            self.flush_prints()
            self.wire.push(message)
            self.wire.flush()

    def open(self, asked: Open, body: Packed) -> None:
        """Work for a stage: load it from *body*, or go on where it is loaded. Decline a new one if this is stale.

        One that was declined comes without *body*, if its lease was over before the parent had read that.
        """
        key = asked.key
        self.done += 1
        if key not in self.stages and not (body and (self.fresh or not self.imported.changed())):
            self.call = None
            self.say(Stale())
            return
        self.fresh = False
        self.cell[DOING] = OPENING
        self.cell[PART] = 0
        stage = self.stages.setdefault(key, Loaded())
        self.context = stage.context
        try:
            self.context.run(self.load, stage, asked, body)
        except BaseException as error:
            stage.call = None
            self.say(Broken("load", encode_error(error)))
        self.call = stage.call
        self.cell[DOING] = IDLE

    def load(self, stage: Loaded, asked: Open, body: Packed) -> None:
        index = asked.worker
        self.enter(stage, asked.surroundings)
        if body:
            shape, variables = self.loaded(body)
            for variable, value in variables:
                variable.set(value)
            self.call_for(stage, shape, index)
        elif (
            stage.call is not None and index != stage.call.index
        ):  # it has no resources: any worker's will do
            self.call_for(stage, stage.call.stage, index)

    def enter(self, stage: Loaded, surroundings: Surroundings | None) -> None:
        """Make the world as the stage has left it, or as it is where the stream was started."""
        stage.surroundings = surroundings or stage.surroundings
        assert stage.surroundings is not None
        adopt(stage.surroundings)

    def leave(self, stage: Loaded) -> None:
        with suppress(OSError):  # the system does not say
            stage.surroundings = surroundings()

    def make_call(self, shape: Stage, index: int) -> Call | FusedCall:
        return call_of(shape, index)

    def call_for(self, stage: Loaded, shape: Stage, index: int) -> None:
        stage.call = call = self.make_call(shape, index)
        call.set_place(self)
        if isinstance(call, FusedCall):
            call.cell = self.cell

    def loaded(self, body: Packed) -> Any:
        """Unpickle a stage.

        A module that is imported for it may log by itself. So it does in the parent, which then has the handlers.
        """
        handlers = logging.root.handlers[:]
        try:
            return loads(body)
        finally:
            if self.relay is not None:
                logging.root.handlers[:] = handlers

    def close(self, asked: Close) -> None:
        """Leave the stage; forget it if it is over."""
        stage = self.stages.pop(asked.key, None)
        if stage is not None and not asked.over:
            self.stages[asked.key] = stage
            self.leave(stage)
        self.call = None
        self.context = copy_context()
        self.done += 1
        self.flush_requested = False

    def work(self, asked: Items, body: Packed) -> None:
        """Run the items in *body* and send their slots; run ``on_start`` before the first ones."""
        call = self.begin(asked, body)
        if call is None:
            return
        try:
            self.run(lambda: self.fill(call, asked.tries))
        except Stopped:
            return
        self.conclude()

    def begin(self, asked: Items, body: Packed) -> Call | FusedCall | None:
        """Have the items in *body* in hand as a span, and give what is done with each; None if nothing is."""
        call, (start, tries, progress) = self.call, asked
        if call is None or self.stopping:
            return None
        self.cell[SPAN_START] = start
        if not call.started:
            self.cell[DOING] = OPENING
            try:
                call.begin()  # never interrupted: nobody could close what it had opened by then
            except BaseException as error:
                self.call = None
                self.say(Broken("on_start", encode_error(call.named(error))))
                return None
            if call.stage.rate is not None and call.stage.on_start is not None:
                # A try counts when f begins, and time has gone by since this one was counted.
                self.cell[DOING] = IDLE
                self.say(Stolen(start, None))
                return None
        self.cell[DOING] = LOADING
        try:
            items = loads(body)
        except BaseException as error:
            self.say(Unloadable(start, encode_error(error)))
            self.cell[DOING] = IDLE
            return None
        with self.sending:
            self.span, self.sent = Span(start, items, tries), 0
            self.span.progress = progress
            self.failed = set()
        self.begun = self.clock()
        self.gauge = Gauge(self.begun)
        return call

    def conclude(self) -> None:
        """Send the slots of the span in hand, which is done with."""
        self.cell[DOING] = SENDING
        with self.sending:
            self.send_slots(closed=True)
            self.span, self.sent = Span(self.start, []), 0
            self.flush_requested = False
        self.cell[DOING] = IDLE

    def run(self, f: Any) -> None:
        """Run user code, which `Stopped` may interrupt."""
        try:
            self.in_f = True
            if self.stopping:  # the signal came before
                raise Stopped
            f()
        finally:
            self.in_f = False

    def uninterrupted(self, do: Callable[[], None]) -> None:
        """Run *do*; where this is user code, `Stopped` interrupts it no earlier than afterwards."""
        if not (self.in_f and threading.current_thread() is threading.main_thread()):
            do()
            return
        self.in_f = False
        try:
            do()
        finally:
            self.in_f = True
        if self.stopping:
            raise Stopped

    def at_work(self) -> str | None:
        """Give the name of the stage whose code runs."""
        call = self.call
        if call is None:
            return None
        return (call.at if isinstance(call, FusedCall) else call).stage.name

    def fill(self, call: Call | FusedCall, tries: int) -> None:
        """Append the slots of the span in hand, up to its end or to a failure that others have to see to first."""
        cell, doing, step, slots = self.cell, DOING, call.step, self.slots
        timed = call.stage.timeout is not None
        index = self.start
        while (todo := self.claim()) is not None:
            for item in todo:
                if timed:
                    # The time before the index: the parent must not see this item with the time of the last one. A CPU
                    # that is not x86 may show the two the other way round for a moment, so the parent looks twice.
                    cell[SINCE] = perf_counter_ns()
                cell[doing] = index
                try:
                    slot = step(item)
                except Stopped:
                    raise
                except BaseException as error:
                    failure = self.failed_with(call, error, item, tries)
                    slot = self.failure(failure)
                    if call.ends_span(failure):
                        slots.append(slot)
                        return
                slots.append(slot)
                index += 1
                if self.flush_requested:
                    cell[DOING] = SENDING
                    self.uninterrupted(self.send_finished)

    def failed_with(self, call: Call | FusedCall, error: BaseException, item: Any, tries: int) -> Failure:
        """Say that the next item of the span in hand has failed; the first one was tried *tries* times before."""
        done = len(self.slots)
        return call.failure(error, item, self.start + done, 1 if done else tries + 1)

    def send_finished(self) -> None:
        """Send the finished slots that the parent waits for."""
        with self.sending:
            self.flush_requested = False
            self.send_slots(closed=False)

    def claim(self) -> Iterator[Any] | None:
        """Give the next items of the span in hand; None at its end, or if it is heavy: the parent requeues the rest."""
        span, done, now = self.span, len(self.slots), self.clock()
        if done >= len(span.items) or self.gauge.is_full(self.slots, now):
            return None
        with self.sending:
            return span.claim(stride_length((now - self.begun) / done if done else None))

    def failure(self, failure: Any) -> Failure:
        """Make *failure* a slot that can be sent."""
        if isinstance(self.call, FusedCall) and self.call.sends_item(failure):
            self.pack_item(failure)
        else:
            failure.item = None  # the parent has it, or has no use for it
        failure.error = encode_error(failure.error)
        with self.sending:
            self.failed.add(failure.index - self.start)
        return failure  # type: ignore[no-any-return]

    def pack_item(self, failure: Any) -> None:
        """Make the item of *failure*, which one part has given to the next, what can be sent; or fail with that."""
        assert self.call is not None
        try:
            failure.item = _pickled(failure.item)
        except Exception as error:
            where = which(self.call.stage, failure)
            problem = NotPicklable(f"{where}: it failed, and its item cannot be pickled: {error}")
            problem.__cause__ = failure.error
            failure.item, failure.error, failure.tries, failure.final = None, problem, 0, True

    def send_slots(self, *, closed: bool) -> None:
        """Send the slots that were not sent yet; *closed* says that there are no more. With `sending` held."""
        count = len(self.slots)
        if count == self.sent and not closed:
            return
        slots = self.slots[self.sent : count]
        try:
            body = dumps(slots)
        except Exception:
            slots = [self.sendable(slot, n) for n, slot in enumerate(slots, self.sent)]
            body = dumps(slots)
        failed = [position - self.sent for position in self.failed if position < count]
        self.failed = {position for position in self.failed if position >= count}
        self.sent = count
        self.flush_prints()
        if isinstance(self.call, FusedCall) and (parts := self.call.counted()):
            self.wire.push(Counted(parts))
        self.wire.push(Slots(self.start, count, failed, closed, self.clock() - self.begun), body)
        self.wire.flush()

    def sendable(self, slot: Any, position: int) -> Any:
        """Give *slot* if it can be pickled, else the failure that stands for it."""
        try:
            dumps(slot)
        except Exception as error:
            assert self.call is not None
            index, item = self.start + position, self.span.items[position]
            problem = blame_output(self.call.stage, index, item, slot, error)
            self.failed.add(position)
            failure: Any = Failure(self.start + position, None, None, part=-1)
            failure.error = encode_error(problem)
            return failure
        return slot

    def flush_prints(self) -> None:
        """Send all that was printed, before the next message. With `sending` held.

        This takes 0.2 microseconds if nothing was printed.
        """
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # it is closed, or there is none
                pass
        if self.relay is not None:
            self.relay.flush()

    def finish(self, asked: Finish | Stop) -> None:
        call = self.call
        error = None
        if call is not None:
            try:
                ended_by = None if asked.error is None else decode_error(asked.error)
                call.end(StageStatus(asked.active, ended_by))
            except BaseException as raised:
                error = encode_error(call.named(raised))
        self.call = None
        self.say(Finished(error))

    def interrupt(self, _number: int, _frame: Any) -> None:
        """Handle SIGINT: from the reader thread it ends f; from a terminal it is the parent's business."""
        if self.stopping and self.in_f:
            self.in_f = False
            raise Stopped


def print_by_the_line() -> None:
    """Write each line when it is printed, wherever it goes, because this process may be killed at any time."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)


def die_with(pipe: int, leads_a_group: bool) -> None:
    """Have the kernel kill this process when the other end of *pipe* closes: even in C code that lets no thread run.

    Its group dies with it: the programs that f has started. Where the kernel cannot do this, a worker still ends when
    its reader thread sees its socket close.
    """
    if sys.platform == "linux":
        whom = -os.getpid() if leads_a_group else os.getpid()
        try:
            # Opened anew, because whom to kill is kept with an open file, and all workers share the one of *pipe*.
            own = os.open(f"/proc/self/fd/{pipe}", os.O_RDONLY | os.O_NONBLOCK)
            fcntl.fcntl(own, fcntl.F_SETOWN, whom)
            fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(own, fcntl.F_SETFL, os.O_RDONLY | os.O_NONBLOCK | os.O_ASYNC)
        except OSError:  # a sandbox without /proc, or that forbids it
            pass
    os.close(pipe)


def lead_a_group() -> bool:
    """Make this process a process group of its own, so that the programs that f starts can be killed with it.

    The new group does not have the terminal. Ctrl-C does not reach it; that is the parent's business anyway. A program
    of f's that reads from the terminal would be stopped for ever: with SIGTTIN ignored it gets an error (EIO). With
    SIGTTOU ignored it may write to the terminal, and set it up. A session (`setsid`) would not do: Linux shares the
    CPUs out among sessions, so workers would take them from everything else, however nice the program is.
    """
    try:
        os.setpgid(0, 0)
    except OSError:
        return False
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    return True


def leave_to_the_parent(child: Child) -> None:
    """Do nothing about the signals that are the parent's business.

    A handler does nothing. To ignore the signals would not do: the programs that f starts would inherit that, and could
    not be terminated.
    """
    handled = [number for number in FOR_THE_PARENT if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, child.interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PARENT)

    # A process that f forks heeds the signals again. One that comes right after the fork waits until it does.
    mask = threading.local()

    def before() -> None:
        mask.outside = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.outside)

    def after_in_fork() -> None:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        after()

    os.register_at_fork(before=before, after_in_parent=after, after_in_child=after_in_fork)


def main(connection: Connection) -> None:
    """Serve the parent at the other end of *connection* until it has no more use for this process."""
    leads_a_group = lead_a_group()
    print_by_the_line()
    sock = socket.socket(fileno=os.dup(connection.fileno()))
    sock.setblocking(True)
    connection.close()
    settings, fds, _, _ = socket.recv_fds(sock, struct.calcsize(START_FORMAT), 3)
    if not settings:  # the parent has ended, or an error kept it from going on, such as a warning of the fork
        sock.close()
        return
    idle, relays = struct.unpack(START_FORMAT, settings)
    # A process that f forks closes its copy. One that outlives this process would else keep the parent from seeing that
    # this process has died.
    os.register_at_fork(after_in_child=sock.close)
    die_with(fds[1], leads_a_group)
    with mmap.mmap(fds[0], CELL_SIZE) as shared, memoryview(shared) as view, view.cast("q") as cell:
        os.close(fds[0])
        child = Child(sock, cell, fds[2] if fds[2:] else None, idle)
        child.leads_a_group = leads_a_group
        for fd in fds[2:]:
            os.close(fd)
        leave_to_the_parent(child)
        child.imported.watch()
        if relays:
            child.relay = Relay(child, cell)
            child.relay.install()
        cell[DOING] = IDLE
        threading.Thread(target=child.read, name="fstream-reader", daemon=True).start()
        try:
            child.say(Ready(child.wire.outward is not None or not fds[2:]))
            child.serve()
            if child.left:
                cell[DOING] = LEFT
        except BrokenPipeError:  # the parent has no use for us any more
            pass
        child.stages.clear()
        child.call = None
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # a thread of f's that prints may wait for room in it
        if child.relay is not None:
            child.relay.end()
        del child
    sock.close()
