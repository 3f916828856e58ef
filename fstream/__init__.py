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
_seen           shows: the numbers of a stream, its bottleneck, a live view, a timeline
_workers        works: what runs f, and feeds it, by kind
_engine         owns and waits: the run of a row of stages, the queues of threads, interrupts
_flow           decides: what to take, how much, what is next, whether there is room
_plan           describes: options, stages, what an operation means for one item
errors          the exceptions of fstream's own
journal         `Journal`, a memo in one file
"""

from fstream._engine.rates import Rate
from fstream._flow.observer import Observer, RunInfo, StageInfo, observe
from fstream._plan.kernels import SKIP
from fstream._plan.stages import StageStatus, WorkerInfo
from fstream._seen.bottleneck import Bottleneck
from fstream._seen.stats import StageStats, Stats
from fstream._seen.trace import trace
from fstream._seen.watch import watch
from fstream._workers.failed import Failed
from fstream._workers.inline import inline
from fstream._workers.processes import Processes, shutdown
from fstream.combinators import batch, divert, merge, ordered, peach, pfilter, pflat_map, pmap, run, star
from fstream.errors import NotPicklable, RemoteError, TooManyFailures, WorkerDied, WorkerTraceback
from fstream.journal import Journal
from fstream.stream import Stream
from fstream.transformer import Transformer

__all__ = [
    "Bottleneck",
    "Failed",
    "Journal",
    "NotPicklable",
    "Observer",
    "Processes",
    "Rate",
    "RemoteError",
    "RunInfo",
    "SKIP",
    "StageInfo",
    "StageStats",
    "StageStatus",
    "Stats",
    "Stream",
    "TooManyFailures",
    "Transformer",
    "WorkerDied",
    "WorkerInfo",
    "WorkerTraceback",
    "batch",
    "divert",
    "inline",
    "merge",
    "observe",
    "ordered",
    "peach",
    "pfilter",
    "pflat_map",
    "pmap",
    "run",
    "shutdown",
    "star",
    "trace",
    "watch",
]
