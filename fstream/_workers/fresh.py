"""Start a worker in a fresh interpreter that does not import the caller's ``__main__`` again.

It is how loky starts its workers, and why a plain script needs no main guard: what is sent is pickled by cloudpickle,
which brings along what ``__main__`` defines. Here it is done on multiprocessing's own ``spawn``, which takes a third of
the time (loky's worker imports loky first) and needs no resource tracker, a process that would outlive the pipeline.
"""

from __future__ import annotations

import atexit
import io
import os
import sys
from multiprocessing import popen_spawn_posix, reduction, spawn, util
from multiprocessing.context import set_spawning_popen
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["FreshProcess"]


class _Popen(popen_spawn_posix.Popen):
    _fds: list[int]

    def _launch(self, process: BaseProcess) -> None:
        # Not `spawn.get_preparation_data`, which would import the main module, and set the start method for good.
        preparation = {"name": process.name, "sys_path": list(sys.path), "sys_argv": sys.argv}
        packed = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, packed)
            reduction.dump(process, packed)
        finally:
            set_spawning_popen(None)
        self.sentinel, child_sentinel = os.pipe()
        try:
            child_end, ours = os.pipe()
        except OSError:
            _close(self.sentinel, child_sentinel)
            raise
        self.finalizer = util.Finalize(self, _close, (self.sentinel, ours))
        try:
            command = spawn.get_command_line(tracker_fd=None, pipe_handle=child_end)
            fds = [*self._fds, child_end, child_sentinel]
            self.pid = util.spawnv_passfds(os.fsencode(spawn.get_executable()), command, fds)
        finally:
            os.close(child_end)
            os.close(child_sentinel)
        try:
            with open(ours, "wb", closefd=False) as pipe:
                pipe.write(packed.getbuffer())
        except BrokenPipeError:  # it was killed already: its exit status will tell
            pass


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class FreshProcess(BaseProcess):
    """A `multiprocessing.Process` that is started so."""

    _start_method = "spawn"

    def _bootstrap(self, *args: Any, **kwargs: Any) -> Any:
        """Work, in the new process; then end it without taking the interpreter down: 2 ms of CPU instead of 27."""
        status = super()._bootstrap(*args, **kwargs)  # type: ignore[misc]
        atexit._run_exitfuncs()
        util._flush_std_streams()  # type: ignore[attr-defined]
        os._exit(status)

    @staticmethod
    def _Popen(process: BaseProcess) -> Any:  # the name that multiprocessing calls
        return _Popen(process)
