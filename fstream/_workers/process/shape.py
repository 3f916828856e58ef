"""A stage as workers in other processes get it: without what is the parent's alone."""

from __future__ import annotations

import sys
from contextvars import Context

import cloudpickle

from fstream._plan.stages import Stage, carried
from fstream._workers.process.blame import blame
from fstream._workers.process.wire import Packed, dumps
from fstream.errors import NotPicklable

__all__ = ["packed_stage", "shape_of"]


def shape_of(stage: Stage) -> Stage:
    """What workers have to know of *stage*: handlers (``on_error``) run in the parent, and need not be picklable."""
    return Stage(
        stage.kernel, stage.f, stage.kind, timeout=stage.timeout, retries=stage.retries, on_start=stage.on_start,
        on_error=stage.on_error if isinstance(stage.on_error, str) else "handler", on_done=stage.on_done,
        name=stage.name, parts=tuple(map(shape_of, stage.parts)), rate=None if stage.rate is None else 1.0,
    )  # fmt: skip


def packed_stage(stage: Stage, context: Context) -> Packed:
    """Give *stage* as its workers get it, with its variables as they are in *context*; raise NotPicklable."""
    shape = shape_of(stage)
    main = sys.modules["__main__"]
    if main.__name__ == "__mp_main__":  # a child of multiprocessing has the script under another name
        cloudpickle.register_pickle_by_value(main)
    variables = carried(stage, context)
    try:
        return dumps((shape, variables))
    except Exception as error:
        raise NotPicklable(blame(shape, error, variables)) from error
