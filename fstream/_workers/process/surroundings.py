"""What a worker process sees of the world beside its stage: what the parent sees now, not when the worker was started.

Most of it is sent with each stage, and the worker adopts it. What a process has from the one that starts it, and nobody
can give it later, is compared instead: a warm worker that has something else is not taken.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import resource
import sys
import time
import warnings
from functools import lru_cache
from multiprocessing import resource_tracker
from typing import Any, Final, NamedTuple

import cloudpickle

from fstream._workers import STARTED_IN, current_folder

__all__ = ["Surroundings", "adopt", "inherited", "search_path", "surroundings"]


class Surroundings(NamedTuple):
    """What a worker adopts."""

    folder: str
    path: list[str]
    variables: dict[str, str]
    umask: int | None
    recursion_limit: int
    int_digits: int
    filters: tuple[bytes, ...]
    #: The levels of loggers by their names, that of the root by "", and the level up to which all are disabled.
    levels: dict[str, int]
    disabled: int


def surroundings() -> Surroundings:
    """Those of this process."""
    umask = re.search(rb"\nUmask:\s*(\d+)", _status())
    return Surroundings(
        current_folder(),
        search_path(),
        dict(os.environ),
        # From the kernel's text alone: `os.umask` would have to change it for a moment, for all threads.
        int(umask[1], 8) if umask else None,
        sys.getrecursionlimit(),
        sys.get_int_max_str_digits(),
        _packed(_filters()),
        _levels(),
        logging.root.manager.disable,
    )


def adopt(theirs: Surroundings) -> None:
    """Make them those of this process."""
    if current_folder() != theirs.folder:
        try:
            os.chdir(theirs.folder)
        except OSError:  # it is gone; but in any other the same paths would be other files
            os.chdir(os.sep)
    sys.path[:] = theirs.path
    if dict(os.environ) != theirs.variables:
        zone = os.environ.get("TZ")
        os.environ.clear()
        os.environ.update(theirs.variables)
        if os.environ.get("TZ") != zone:
            time.tzset()
    if theirs.umask is not None:
        os.umask(theirs.umask)
    sys.setrecursionlimit(theirs.recursion_limit)
    sys.set_int_max_str_digits(theirs.int_digits)
    if _packed(_filters()) != theirs.filters:
        warnings.resetwarnings()
        warnings.filters.extend(_unpacked(theirs.filters))  # type: ignore[attr-defined]
    # A level that the parent has not set may be that of a module which it has not imported.
    levels = _levels()
    for name, level in theirs.levels.items():
        if levels.get(name) != level:
            logging.getLogger(name).setLevel(level)
    if logging.root.manager.disable != theirs.disabled:
        logging.disable(theirs.disabled)


def search_path() -> list[str]:
    """Give ``sys.path`` for a worker.

    At the prompt, in a notebook and with ``python -c`` it begins with the current folder. What was imported from there
    before the program went to another one has to be found again.
    """
    path = []
    for entry in sys.path:
        if entry == "":
            path.append(STARTED_IN)
        path.append(entry)
    return path


#: What the kernel says of a process that a new one has from it for good: rights, and the CPUs that it may use.
_FOR_GOOD: Final = re.compile(
    rb"\n(?:Uid|Gid|Groups|CapPrm|CapEff|CapBnd|NoNewPrivs|Seccomp|Cpus_allowed):.*"
)

_LIMITS: Final = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})


def inherited() -> tuple[Any, ...]:
    """Give what a worker that is started now, by this thread, has from it for good.

    It takes 0.03 ms, for each worker and stage. Where there is no /proc only the most important is compared.
    """
    root = os.stat(os.sep)
    tracker: Any = resource_tracker._resource_tracker
    return (
        _FOR_GOOD.findall(_status())
        or (os.getuid(), os.geteuid(), os.getgid(), os.getegid(), os.getgroups()),
        os.getpriority(os.PRIO_PROCESS, 0),
        list(map(resource.getrlimit, _LIMITS)),
        (root.st_dev, root.st_ino),
        (tracker._fd, tracker._pid),
    )


def _status() -> bytes:
    """Give what Linux says of this thread, nothing elsewhere."""
    try:
        fd = os.open("/proc/thread-self/status", os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 14)
    finally:
        os.close(fd)


def _filters() -> tuple[Any, ...]:
    """Give the filters of warnings, which may be those of a context from Python 3.14 on."""
    filters: Any = getattr(warnings, "_get_filters", lambda: warnings.filters)()
    return tuple(filters)


def _levels() -> dict[str, int]:
    loggers = list(logging.root.manager.loggerDict.items())
    named = {name: each.level for name, each in loggers if isinstance(each, logging.Logger) and each.level}
    return {"": logging.root.level} | named


@lru_cache(maxsize=1)
def _packed(filters: tuple[Any, ...]) -> tuple[bytes, ...]:
    """Pickle each of the filters, but for those that cannot be pickled."""
    packed = []
    for each in filters:
        try:
            packed.append(cloudpickle.dumps(each))
        except Exception:
            continue
    return tuple(packed)


def _unpacked(packed: tuple[bytes, ...]) -> list[Any]:
    """The same the other way: one may be about a class of a module that is not here."""
    filters = []
    for each in packed:
        try:
            filters.append(pickle.loads(each))
        except Exception:
            continue
    return filters
