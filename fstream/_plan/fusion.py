"""Neighbouring stages that may as well be one: rewrites descriptions, runs nothing.

Two process stages would send each item through the parent between them, and compete for the same CPUs. One stage that
runs f after f does neither. Of which kinds that is so, the caller says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fstream._plan.kernels import FILTER, MAP, Kernel
from fstream._plan.stages import Batch, Stage, gives_one_for_one

__all__ = ["fuse"]


def fuse(stages: list[Stage | Batch], can_fuse: Callable[[Stage], bool]) -> list[Stage | Batch]:
    """Join each run of stages that can be one; *can_fuse* says of which stages its kind allows that.

    >>> from fstream import pfilter, pmap
    >>> t = pmap(abs, kind="process") | pfilter(bool, kind="process") | pmap(float, kind="process", workers=2)
    >>> [stage.name for stage in fuse([step.stage for step in t.steps], lambda stage: stage.kind == "process")]
    ['abs | bool', 'float']
    """
    fused: list[Stage | Batch] = []
    for stage in stages:
        before = fused[-1] if fused else None
        if (
            isinstance(before, Stage)
            and isinstance(stage, Stage)
            and can_fuse(before)
            and can_fuse(stage)
            and _fits(before, stage)
        ):
            fused[-1] = _join(before, stage)
        else:
            fused.append(stage)
    return fused


def _fits(before: Stage, after: Stage) -> bool:
    """Tell whether nobody could see the difference: in workers, bounds, order, or what becomes of a failure."""
    parts = before.parts or (before,)
    return (
        before.kind == after.kind
        and before.engine is after.engine
        and _alone(before)
        and _alone(after)
        and before.ordered == after.ordered
        and before.workers == after.workers
        and before.max_items_per_worker == after.max_items_per_worker
        # More than one output of an item: a failure later on would have to come between them.
        and all(part.kernel in (MAP, FILTER) for part in parts)
        # What a handler gives would go back to a worker, alone, for the parts behind: slower than all of them.
        and not callable(parts[-1].on_error)
        # Where the second on_start fails, the first stage has an on_done to run.
        and not (before.on_done and after.on_start)
        # Where items were left out nobody in a worker knows the position of another one. Any f may leave some out, by
        # `SKIP`. Who asks for positions is to have the right ones; in a failure, that f of an earlier stage does so is
        # too rare to have all stages with "keep" run by themselves.
        and "element_index" not in after.names
        and (all(map(gives_one_for_one, parts)) or after.on_error != "keep")
    )


def _alone(stage: Stage) -> bool:
    """Tell whether *stage* looks at its items alone: no room, rate, keys, memo or count of failures is its own."""
    return (
        stage.maxsize is None
        and stage.rate is None
        and stage.ticket is None
        and stage.memo is None
        and stage.max_failures is None
    )


def _join(before: Stage, after: Stage) -> Stage:
    parts = (before.parts or (before,)) + (after,)
    timeouts = [part.timeout for part in parts if part.timeout is not None]
    kernel = Kernel(
        f"{before.kernel.verb} | {after.kernel.verb}",
        None,
        spread=after.kernel.spread,
        drops=before.kernel.drops or after.kernel.drops,
    )
    return replace(
        before,
        kernel=kernel,
        name=f"{before.name} | {after.name}",
        # True if any part has an on_done. Each part runs its own: `FusedCall`.
        on_done=before.on_done or after.on_done,
        parts=parts,
        # Each part has its own of the following, too. These are for who asks what may happen in any of them.
        timeout=min(timeouts, default=None),
        retries=max(part.retries for part in parts),
        on_error=_strictest([part.on_error for part in parts]),
    )


def _strictest(policies: list[Any]) -> str:
    """What may become of an item that fails in any part: nothing else, or a `Failed` in its place, or anything."""
    for known in (["raise"], ["raise", "keep"]):
        if all(policy in known for policy in policies):
            return known[-1]
    return "skip"
