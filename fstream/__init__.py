"""Functional streams: map, filter and flat_map over workers that never hang and never lose an item.

    >>> from toolz import pipe
    >>> from fstream import pfilter, pmap
    >>> pipe(range(10), pmap(lambda x: x * x, kind="thread"), pfilter(lambda x: x % 2), list)
    [1, 9, 25, 49, 81]

Layout
------
Each floor imports those below it; `tests/floors.py` holds the rule.

combinators     the verbs: signatures and documentation
transformer     a pipeline before it has a source: curried, composed, a value
stream          `Stream`, what a pipeline gives: for a ``for`` loop and an ``async for``
testing         pipelines under interleavings that hypothesis draws
_workers        works: what runs f, and feeds it, by kind
_engine         owns and waits: the run of a row of stages, the queues of threads, interrupts
_flow           decides: what to take, how much, what is next, whether there is room
_plan           describes: options, stages, what an operation means for one item
errors          the exceptions of fstream's own
"""

from fstream._engine.rates import Rate
from fstream._flow.observer import Observer, RunInfo, StageInfo, observe
from fstream._plan.kernels import SKIP
from fstream._plan.stages import StageStatus, WorkerInfo
from fstream.combinators import batch, merge, ordered, peach, pfilter, pflat_map, pmap, run, star
from fstream.errors import NotPicklable, RemoteError, WorkerDied, WorkerTraceback
from fstream.stream import Stream
from fstream.transformer import Transformer

__all__ = [
    "NotPicklable",
    "Observer",
    "Rate",
    "RemoteError",
    "RunInfo",
    "SKIP",
    "StageInfo",
    "StageStatus",
    "Stream",
    "Transformer",
    "WorkerDied",
    "WorkerInfo",
    "WorkerTraceback",
    "batch",
    "merge",
    "observe",
    "ordered",
    "peach",
    "pfilter",
    "pflat_map",
    "pmap",
    "run",
    "star",
]
