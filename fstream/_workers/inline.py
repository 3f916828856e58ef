"""Every stage in the caller's thread, one item after the other, for a debugger: as if it were of kind "sync".

No worker, no queue and no window take part, so a traceback goes from the caller through all stages to the source, and
`pdb` stops where f is. What is awaitable is awaited on the running event loop under ``async for``, and under a plain
``for`` on a loop that runs for as long as that takes, in the same thread.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import wraps
from time import monotonic
from typing import Any, Final

from fstream._plan.stages import Batch, Stage
from fstream._workers.kinds import IN_PLACE, backend_of
from fstream._workers.sync import Account, Owner, Tap, each, is_stream, iterate

__all__ = ["in_place", "inline", "is_inline", "iterate_inline", "iterate_inline_async"]

INLINE: Final = ContextVar("INLINE", default=False)


@contextmanager
def inline() -> Iterator[None]:
    """Run every stage in the caller's thread, of the streams that start in a ``with`` block.

        >>> import threading
        >>> from fstream import pmap
        >>> with inline():
        ...     threads = set(pmap(lambda _: threading.current_thread().name, range(3), kind="thread"))
        >>> threads == {threading.current_thread().name}
        True

    So a debugger stops in f, and a traceback shows all there is: each stage is run as one of kind ``"sync"``, whatever
    its kind is, and so is the source. Time-outs have no effect. The environment variable ``FSTREAM_INLINE=1`` does the
    same for a whole program.
    """
    token = INLINE.set(True)
    try:
        yield
    finally:
        INLINE.reset(token)


def is_inline() -> bool:
    """Tell whether a stream that starts now is to run so."""
    return INLINE.get() or os.environ.get("FSTREAM_INLINE", "0") not in ("", "0")


def in_place(stage: Stage | Batch | None) -> Stage | Batch | None:
    """Give what stands for *stage*."""
    if not isinstance(stage, Stage) or backend_of(stage) is IN_PLACE:
        return stage
    return replace(stage, kind=IN_PLACE.name, engine=None, max_items_per_worker=None)


def iterate_inline(
    stage: Stage | Batch | None, awaits: bool, source: Any, tap: Tap, account: Account
) -> Generator[Any, None, None]:
    """Give the outputs of a stage that stands for another one, over *source*; for no stage, of several sources."""
    if stage is None:
        return _by_turns([_plain(each) for each in source])
    if isinstance(stage, Batch):
        return _batches(stage, _plain(source))
    handing_on = is_stream(source)
    if not awaits:
        return iterate(stage, _plain(source), tap, handing_on, account)
    from fstream._workers.task.inline import with_loop

    return with_loop(iterate(_settled(stage), _plain(source), tap, handing_on, account))


def _plain(source: Any) -> Iterable[Any]:
    """Give *source* as a plain iterable."""
    if isinstance(source, Iterable) or not isinstance(source, AsyncIterable):
        return source
    from fstream._workers.task.inline import iterate_here

    return iterate_here(source)


def _settled(stage: Stage) -> Stage:
    """Give *stage* with functions that wait for what is awaitable."""
    from fstream._workers.task.inline import settle

    def settled(f: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(f)
        def call(*args: Any, **named: Any) -> Any:
            return settle(f(*args, **named))

        return call

    hooks: dict[str, Any] = {
        name: settled(hook)
        for name in ("on_start", "on_done", "on_error")
        if callable(hook := getattr(stage, name))
    }
    return replace(stage, f=settled(stage.f), **hooks)


def _by_turns(sources: Sequence[Iterable[Any]]) -> Generator[Any, None, None]:
    """One item of each source after the other, as `merge` has it where nothing runs at the same time."""
    left = []
    try:
        left += [iter(source) for source in sources]
        while left:
            for items in left[:]:
                try:
                    item = next(items)
                except StopIteration:
                    left.remove(items)
                    continue
                yield item
    finally:
        for items in left:
            if isinstance(items, Generator):
                items.close()


class _Open:
    """The open batch of a stage: `add` gives the batches that are full by then."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.items: list[Any] = []
        self.weight: Any = 0
        self.due = 0.0

    def add(self, item: Any) -> Iterator[list[Any]]:
        batch, weight = self.batch, 1
        if batch.weigh is not None:
            item, weight = item
        late = batch.within is not None and monotonic() >= self.due
        if self.items and (late or self.weight + weight > batch.n):
            yield self.close()
        if not self.items and batch.within is not None:
            self.due = monotonic() + batch.within
        self.items.append(item)
        self.weight += weight
        if self.weight >= batch.n:
            yield self.close()

    def close(self) -> list[Any]:
        items, self.items, self.weight = self.items, [], 0
        return items


def _batches(batch: Batch, source: Iterable[Any]) -> Generator[Any, None, None]:
    items = iter(source)
    opened = _Open(batch)
    try:
        try:
            for item in items:
                yield from opened.add(item)
        except Exception:  # of the source: what is open goes out before it
            if opened.items:
                yield opened.close()
            raise
        if opened.items:
            yield opened.close()
    finally:
        if isinstance(items, Generator):
            items.close()


# --------------------------------------------------------------------------------------- under ``async for``


async def iterate_inline_async(
    stage: Stage | Batch | None, source: Any, owner: Owner, account: Account
) -> AsyncGenerator[Iterable[Any], None]:
    """The same for an ``async for``, some at a time, on behalf of *owner*."""
    outputs = _parts_async(stage, source, owner.tap, account)
    try:
        async for part in outputs:
            yield part
    finally:
        owner.end()
        await outputs.aclose()


async def _parts_async(
    stage: Stage | Batch | None, source: Any, tap: Tap, account: Account
) -> AsyncGenerator[Iterable[Any], None]:
    if stage is None:
        left = [each(one) for one in source]
        try:
            while left:
                for items in left[:]:
                    try:
                        yield (await anext(items),)
                    except StopAsyncIteration:
                        left.remove(items)
        finally:
            for items in left:
                await items.aclose()
        return
    items = each(source)
    try:
        if isinstance(stage, Batch):
            opened = _Open(stage)
            try:
                async for item in items:
                    for full in opened.add(item):
                        yield (full,)
            except Exception:
                if opened.items:
                    yield (opened.close(),)
                raise
            if opened.items:
                yield (opened.close(),)
            return
        from fstream._workers.task.inline import outputs_of

        stage_outputs = outputs_of(stage, source, items, tap, account)
        try:
            async for part in stage_outputs:
                yield part
        finally:
            await stage_outputs.aclose()
    finally:
        await items.aclose()
