"""How many workers there are by default: the CPUs that the process may use, by its binding and its quota."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from fstream._workers import cpus as _cpus
from fstream._workers.cpus import cpu_count, quota
from fstream._workers.kinds import _BACKENDS
from tests.scripts import printed, run_script


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        pytest.param({}, math.inf, id="no Linux"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, math.inf, id="no limits"),
        pytest.param({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5, id="a container, version 2"),
        pytest.param({"sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf, id="a container without a limit"),
        pytest.param(
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            3.0,
            id="a container, version 1",
        ),
        pytest.param(
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
            id="version 1 without a limit",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/job.service\n",
                "sys/fs/cgroup/system.slice/job.service/cpu.max": "200000 100000\n",
            },
            2.0,
            id="a service",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/system.slice/job.service\n",
                "sys/fs/cgroup/system.slice/job.service/cpu.max": "max 100000\n",
                "sys/fs/cgroup/system.slice/cpu.max": "400000 100000\n",
            },
            4.0,
            id="a group above it",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/docker/a\n3:cpu,cpuacct:/docker/b\n0::/\n",
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/docker/b/cpu.cfs_quota_us": "700000\n",
                "sys/fs/cgroup/cpu/docker/b/cpu.cfs_period_us": "100000\n",
            },
            7.0,
            id="a group of version 1",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/../elsewhere\n", "sys/fs/elsewhere/cpu.max": "100000 100000\n"},
            math.inf,
            id="a group out of sight",
        ),
        pytest.param({"sys/fs/cgroup/cpu.max": "\n"}, math.inf, id="an empty file"),
    ],
)
def test_the_quota_of_control_groups(tmp_path: Path, files: dict[str, str], cpus: float):
    assert quota(str(write(tmp_path, files))) == cpus


@pytest.mark.parametrize(("limit", "cpus"), [(math.inf, 8), (0.5, 1), (2.0, 2), (2.5, 3), (64.0, 8)])
def test_the_quota_rounded_up_is_the_most(monkeypatch: pytest.MonkeyPatch, limit: float, cpus: int):
    monkeypatch.setattr(_cpus, "_bound_to", lambda: 8)
    monkeypatch.setattr(_cpus, "quota", lambda: limit)
    assert cpu_count() == cpus
    assert (_BACKENDS["process"].default_workers(), _BACKENDS["thread"].default_workers()) == (cpus, cpus + 4)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be bound here")
def test_a_process_that_is_bound_to_one_cpu_has_one_worker(tmp_path: Path):
    source = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        from fstream._workers.kinds import _BACKENDS
        print(_BACKENDS["process"].default_workers())
    """
    assert printed(run_script(tmp_path, source)) == "1"


IN_ATEXIT = """
    import atexit, sys

    import fstream

    @atexit.register
    def upload():
        try:
            print(list(fstream.pmap(abs, [-1, -2], kind=sys.argv[1])))
        except RuntimeError as error:
            print(error)
"""


def test_the_first_pipeline_of_a_program_may_be_at_its_end(tmp_path: Path, kind: str):
    # Since 3.12 Python starts no threads any more by then.
    result = run_script(tmp_path, IN_ATEXIT, kind)
    assert result.stdout.strip() in ("[1, 2]", "can't create new thread at interpreter shutdown")
