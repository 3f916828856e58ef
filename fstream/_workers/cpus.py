"""How many CPUs this process may use: not those that are there, which a container or a batch system shares out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cache

__all__ = ["cpu_count", "quota"]


def cpu_count() -> int:
    """The CPUs that this process is bound to, and no more than the CPU time that it gets is worth."""
    return max(1, min(_bound_to(), math.ceil(min(quota(), 1e6))))


def _bound_to() -> int:
    if hasattr(os, "process_cpu_count"):  # since 3.13; it knows PYTHON_CPU_COUNT, too
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def quota(root: str = "/") -> float:
    """The CPUs' worth of time that the control groups of this process get; infinite where none is limited."""
    return min(map(_limit, _groups(root)))


def _groups(root: str) -> Iterator[str]:
    """The folders of the groups that this process is in, and of those above them, of both versions of the interface."""
    mount = os.path.join(root, "sys/fs/cgroup")
    yield mount
    yield os.path.join(mount, "cpu")
    try:
        lines = _read(root, "proc/self/cgroup").splitlines()
    except OSError:  # no Linux, or no /proc
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            top = mount if number == "0" else os.path.join(mount, "cpu")
            names = [name for name in path.split("/") if name]
            if ".." not in names:  # else it is out of sight
                yield from (os.path.join(top, *names[:depth]) for depth in range(1, len(names) + 1))


def _limit(group: str) -> float:
    for read in _version_2, _version_1:
        try:
            limit, period = map(int, read(group))
        except (OSError, ValueError):  # not there; or "max"
            continue
        if limit > 0 and period > 0:
            return limit / period
    return math.inf


def _version_2(group: str) -> list[str]:
    return _read(group, "cpu.max").split()


def _version_1(group: str) -> list[str]:
    return [_read(group, "cpu.cfs_quota_us"), _read(group, "cpu.cfs_period_us")]


def _read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name)) as file:
        return file.read()
