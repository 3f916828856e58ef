"""The exceptions that fstream raises of its own; what f raises reaches the caller as it is."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

__all__ = ["NotPicklable", "RemoteError", "TooManyFailures", "WorkerDied", "WorkerTraceback"]


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of its work (segfault, ``os._exit``, out of memory, a signal).

    *exitcode* is the exit status as `multiprocessing` gives it (``-9`` for SIGKILL), *item* what the worker
    was busy with, or None if it was starting.
    """

    def __init__(self, message: str, exitcode: int | None = None, item: object = None) -> None:
        super().__init__(message)
        self.exitcode = exitcode
        self.item = item

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.exitcode, self.item)


class NotPicklable(pickle.PicklingError):
    """A function, an item or an output could not be sent to a worker process or back; the message says which."""


class RemoteError(RuntimeError):
    """Stands for an exception that cannot leave its worker process; the message holds its type, text and traceback."""


class TooManyFailures(ExceptionGroup[Exception]):
    """More items of a stage failed than *max_failures* allows; *exceptions* are the errors of the last ten.

    >>> from fstream import pmap
    >>> try:
    ...     list(pmap(int, "12abc", on_error="skip", max_failures=1))
    ... except TooManyFailures as error:
    ...     len(error.exceptions)
    2
    """

    def derive(self, errors: Sequence[Exception], /) -> TooManyFailures:  # type: ignore[override]  # it is one again
        return TooManyFailures(self.message, errors)


class WorkerTraceback(Exception):
    """The cause of an exception that was raised in another process: its traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'
