"""Start a worker in a fresh interpreter that does not import the caller's ``__main__`` again.

It is how loky starts its workers, and why a plain script needs no main guard: what is sent is pickled by cloudpickle,
which brings along what ``__main__`` defines. Here it is done on multiprocessing's own ``spawn``, which takes a third of
the time (loky's worker imports loky first). It is done so whatever start method multiprocessing has: any library that
makes a lock fixes that, and a fork of a process with threads may hang.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import popen_spawn_posix, process, reduction, resource_tracker, spawn, util
from multiprocessing.connection import wait
from multiprocessing.context import set_spawning_popen
from multiprocessing.process import BaseProcess
from typing import Any, Final

from fstream._workers import STARTED_IN
from fstream._workers.process.surroundings import search_path
from fstream._workers.process.wire import NO_SIGPIPE, raise_no_sigpipe

__all__ = ["FOR_THE_PARENT", "FreshProcess"]


#: Signals that ask a program to end, or to do something, and that may come to all its processes at once: from systemd,
#: from a supervisor, or from a terminal while a worker starts. What they mean is the parent's business.
FOR_THE_PARENT: Final = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)

_LIBRARY: Final = os.path.dirname(os.__file__)

_TRACKER: Final[Any] = resource_tracker._resource_tracker


class _Popen(popen_spawn_posix.Popen):
    """The process as the parent holds it.

    Its number alone does not name it: where SIGCHLD is ignored, or others wait for all children, the number may be a
    stranger's as soon as it has ended. On Linux a *pidfd* does.
    """

    _fds: list[int]
    pid: int
    sentinel: int

    def __init__(self, started: BaseProcess) -> None:
        self.pidfd: int | None = None
        #: Its exit status went to others.
        self.lost = False
        self._lock = threading.Lock()
        super().__init__(started)

    def _launch(self, started: BaseProcess) -> None:
        # Not `spawn.get_preparation_data`, which would import the main module, and set the start method for good.
        preparation = {"name": started.name, "sys_path": _first_path(), "sys_argv": sys.argv}
        packed = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, packed)
            reduction.dump(started, packed)
        finally:
            set_spawning_popen(None)
        self.sentinel, child_sentinel = os.pipe()
        try:
            # Not a pipe: to write to one whose reader has died is SIGPIPE, and no flag keeps that off.
            ours, theirs = socket.socketpair()
        except OSError:
            _close(self.sentinel, child_sentinel)
            raise
        for end in (ours, theirs):
            end.setblocking(True)  # also where `socket.setdefaulttimeout` was called
        raise_no_sigpipe(ours)
        try:
            # A worker inherits the mask, and unblocks them when it has handlers of its own.
            with theirs, ExitStack() as after:
                after.callback(os.close, child_sentinel)
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
                try:
                    command, fds = _command(theirs.fileno())
                    fds += [*self._fds, theirs.fileno(), child_sentinel]
                    self.pid = util.spawnv_passfds(os.fsencode(command[0]), command, fds)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._name_for_good()
            ours.sendall(packed.getvalue(), NO_SIGPIPE)
        except ConnectionError:  # it was killed already: its exit status will tell
            pass
        except BaseException:
            if hasattr(self, "pid"):
                self.kill()
                self.poll(0)
            raise
        finally:
            self.finalizer = util.Finalize(self, _close, (self.sentinel, ours.detach()))

    def _name_for_good(self) -> None:
        """Have the pidfd, where the system gives one, in the place of the pipe that tells of its end."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            return
        try:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # it has ended already, and others have got its exit status
            pass
        except OSError:
            os.close(pidfd)
            return
        os.close(self.sentinel)
        self.sentinel = self.pidfd = pidfd

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Give its exit status, None while it runs; if *flag* is 0, wait for it."""
        if flag == 0 and self.pidfd is not None:
            wait([self.pidfd])  # without the lock
            flag = os.WNOHANG
        with self._lock:
            if self.returncode is None:
                self.returncode = self._ended(flag)
            return self.returncode

    def _ended(self, flags: int) -> int | None:
        try:
            if self.pidfd is None:
                pid, status = os.waitpid(self.pid, flags)
                return os.waitstatus_to_exitcode(status) if pid else None
            found = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | flags)
        except ChildProcessError:
            self.lost = True
            return 255  # of no meaning, but not None, which says that it runs
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def kill(self) -> None:
        """Kill it, and the programs that f has started: they are in its process group."""
        with self._lock:
            if self._has_its_number():
                _send(os.killpg, self.pid)
                if self.pidfd is None:
                    _send(os.kill, self.pid)
            if self.pidfd is not None:
                _send(signal.pidfd_send_signal, self.pidfd)

    #: It leaves SIGTERM to its parent.
    terminate = kill

    def _has_its_number(self) -> bool:
        """No other process can have it: it runs, or nobody has asked for its exit status."""
        if self.returncode is not None:
            return False
        if self.pidfd is not None:
            self._ended(os.WNOHANG | os.WNOWAIT)
            return not self.lost
        self.returncode = self._ended(os.WNOHANG)
        # The pipe tells, too: if it has ended, what runs under its number is another child of ours.
        return self.returncode is None and not wait([self.sentinel], 0)


def _send(send: Callable[[int, int], object], to: int) -> None:
    try:
        send(to, signal.SIGKILL)
    except OSError:  # it has ended, or this process has given up the right: then its closed socket ends it
        pass


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


def _command(child_end: int) -> tuple[list[str], list[int]]:
    """Give the command line of a worker, and the files that it is to have besides."""
    # Its resources are tracked by the process that does so for this one, if there is one by now. It would else start
    # one of its own, which would at its end unlink all memory that it has ever attached to.
    tracker = _TRACKER._fd
    command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_end)
    if not getattr(sys, "frozen", False):
        # Nothing is imported from the folder that happens to be the current one. PYTHONPATH may name that, too, by a
        # colon too many, and comes before the standard library.
        command.insert(1, "-P")
        command[-2] = (
            f"import sys; sys.path.sort(key=lambda path: not path.startswith({_LIBRARY!r})); {command[-2]}"
        )
    return list(map(os.fsdecode, command)), [] if tracker is None else [tracker]


def _first_path() -> list[str]:
    """The path by which a worker imports fstream: the standard library comes before any file that is called like it."""
    path = [entry or STARTED_IN for entry in search_path()]
    return sorted(path, key=lambda entry: entry != _LIBRARY and os.path.basename(entry) != "lib-dynload")


class FreshProcess(BaseProcess):
    """A `multiprocessing.Process` that is started so."""

    _start_method = "spawn"
    _popen: _Popen

    def __init__(self, **options: Any) -> None:
        super().__init__(daemon=False, **options)  # said, as a child of a daemonic process would be one

    def start(self) -> None:
        """Start it; also in a daemonic process, which multiprocessing forbids, as its children could outlive it."""
        self._popen = _Popen(self)
        self._sentinel = self._popen.sentinel
        del self._target, self._args, self._kwargs  # type: ignore[attr-defined]
        process._children.add(self)  # type: ignore[attr-defined]

    @property
    def status(self) -> int | None:
        """How it has ended, None if nobody can say."""
        return None if self._popen.lost else self._popen.returncode

    def _bootstrap(self, *args: Any, **kwargs: Any) -> Any:
        """Work, in the new process; then end it without taking the interpreter down: 2 ms of CPU instead of 27."""
        if _TRACKER._fd is None:  # then nobody tracks its resources
            _TRACKER._fd = os.open(os.devnull, os.O_WRONLY)
        status = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
        atexit._run_exitfuncs()
        util._flush_std_streams()  # type: ignore[attr-defined]
        os._exit(status)

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # the name that multiprocessing calls
        return _Popen(process)
