"""Functional streams: map, filter and flat_map over workers that never hang and never lose an item.

    >>> from toolz import pipe
    >>> from fstream import pfilter, pmap
    >>> pipe(range(10), pmap(lambda x: x * x, kind="thread"), pfilter(lambda x: x % 2), list)
    [1, 9, 25, 49, 81]

Layout
------
combinators     the verbs: signatures and documentation
stream          `Stream`, what a pipeline gives: for a ``for`` loop and an ``async for``
errors          the exceptions of fstream's own
testing         pipelines under interleavings that hypothesis draws
_stage          options, stages, transformers: they describe, and never run
_fusion         process stages that can run as one
_cpus           how many CPUs there are to use
_kernels        what an operation means for one item
_run            opens a row of stages and closes it: the picture of an item's way is there
_spans          the decisions: what to take, how much, what is next, whether there is room
_queues         where takers wait
_workers        what runs f: sync, thread, task, process; or simulated
_simulation     one thread that does what many would, for `fstream.testing`
"""

from fstream._kernels import SKIP
from fstream._stage import StageStatus, Transformer, WorkerInfo
from fstream.combinators import merge, ordered, peach, pfilter, pflat_map, pmap, run, star
from fstream.errors import NotPicklable, RemoteError, WorkerDied, WorkerTraceback
from fstream.stream import Stream

__all__ = [
    "NotPicklable",
    "RemoteError",
    "SKIP",
    "StageStatus",
    "Stream",
    "Transformer",
    "WorkerDied",
    "WorkerInfo",
    "WorkerTraceback",
    "merge",
    "ordered",
    "peach",
    "pfilter",
    "pflat_map",
    "pmap",
    "run",
    "star",
]
