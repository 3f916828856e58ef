"""Worker tasks: they take from an `asyncio.Queue` on one event loop, and await f there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from fstream._flow.buffers import Work
from fstream._flow.sizing import SPAN_SECONDS
from fstream._flow.span import CLOSED, Closed, Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage, StageStatus
from fstream._workers.call import Call, handled, handler_failed, is_failure, replaced
from fstream._workers.crew import Crew
from fstream._workers.task.host import Cancellable, host_of
from fstream._workers.task.queues import TaskQueue

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["AsyncCall", "Workers"]


#: How many lone items are drawn at once, at most: for as many tasks that wait side by side.
SIDE_BY_SIDE: Final = 128


class Workers(Crew):
    """The tasks of one stage, started one by one while there is more than they can take."""

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.worker = Worker
        self.queue = TaskQueue(Work(window, run.clock), run.lock, self.settle_beside)
        self.host = host_of(run)
        self.ending = asyncio.Lock()
        #: The worker that took up or finished an item last. If that is still the one at work, its item has not waited.
        self.latest: Worker | None = None
        #: `end_of_turn` will be called at the end of the loop's turn.
        self.settling = False
        #: The lone items that were done in this turn of the loop, if somebody observes.
        self.told: list[int] = []
        #: There will never be another span. Some workers may still have something in hand.
        self.over = False
        #: It calls `watch` when the next item could be over its time.
        self.timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        with self.run.lock:
            worker = self.enlist(self.place())
        self.host.call(self.launch, worker)

    def launch(self, worker: Worker) -> None:
        """Start a worker that `enlist` made. On the loop: all workers but the first are started there anyway."""
        worker.task = self.host.spawn(worker, worker.main(), f"fstream-{self.stage.name}-{worker.index}")

    def stop(self) -> None:
        self.host.call(self.cancel)

    def cancel(self) -> None:
        """Cancel the workers that are in f. The others see that the stage is over."""
        for worker in self.members:
            if worker.span is not None:
                worker.cancel()
        self.unwatch()

    def arrived(self) -> Span | Closed | None:
        """Give a worker that has started its first span; None if it is to wait, or to take lone items.

        The worker has its turn on the loop, so the workers that have something in hand wait. It, and those that it
        starts, probably will, too: lone items are drawn for all of them.
        """
        window, taken = self.window, None
        with self.run.lock:
            self.coming -= 1
            places = window.workers - self._places
            more = 0 if self.coming else max(0, min(len(self.members), window.backlog - 1, places))
            missing = 1 + more - len(window.ledger.lone_items)
            if missing > 0:
                if window.ledger.busy:
                    window.draw_lone(missing)
                if not window.ledger.lone_items:
                    taken = self.poll()
                self.settle_beside()
        self.recruit(more)
        return taken

    def next_waiting(self, span: Span, seconds: float) -> Span | Closed | None:
        """Close *span*, whose items have waited; give its worker its next span, None if there are lone items."""
        with self.run.lock:
            self.window.done(span, seconds)
            return self.next_lone()

    def next_lone(self, waited: bool = True) -> Span | Closed | None:
        """Give a worker that has worked off lone items its next span; None if it is to wait, or to take more of them.

        If its last item has not *waited*, it gets a span, so that the cost of an item is measured.
        """
        window = self.window
        with self.run.lock:
            if waited and not window.ledger.lone_items:
                window.draw_lone(SIDE_BY_SIDE)
            taken = None if waited and window.ledger.lone_items else self.poll()
            self.settle()
            return taken

    def poll(self) -> Span | Closed | None:
        """Take the next span without waiting; None if there is none now. Under the lock."""
        taken: Span | Closed | None = self.queue.buffer.poll()
        self.over = type(taken) is Closed
        return taken

    def tell(self, index: int) -> None:
        """Let the takers know that the lone item at *index* is done.

        Many such items are done in one turn of the loop, when what they waited for has come. A taker downstream that
        may wait for just this one is woken at once, and finds the others, too. Items that give no output are looked
        after at the end of the turn, because no taker comes for them.
        """
        if self.window.outbox.next_out(index):
            self.end_of_turn()
        elif not (self.window.outbox.one_each or self.settling):
            self.settling = True
            self.host.loop.call_soon(self.end_of_turn)

    def done_lone(self, index: int) -> None:
        """A worker is through with the lone item at *index*: the observer is told once a turn of the loop."""
        if not self.told:
            self.host.loop.call_soon(self.tell_lone)
        self.told.append(index)

    def tell_lone(self) -> None:
        if self.told and self.observer is not None:
            told, self.told = self.told, []
            self.observer.done(self.window.info, min(told), len(told), None, None)

    def end_of_turn(self) -> None:
        self.settling = False
        with self.run.lock:
            self.settle()

    def settle(self) -> None:
        """Wake the takers beside this stage, because lone items were done. Under the lock."""
        if not self.window.outbox.one_each:
            self.window.outbox.harvest()
        self.settle_beside()

    def make_good(self, failure: Failure, victim: Span) -> None:
        if isinstance(self.stage.on_error, str):
            super().make_good(failure, victim)
            return
        with self.run.lock:
            handler = self.take_in(Handler(self, failure, victim))
        self.launch(handler)

    def unwatch(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def expect(self) -> None:
        """Have `watch` called when an item that is begun now could be over its time."""
        assert self.stage.timeout is not None
        self.timer = self.host.loop.call_later(self.stage.timeout, self.watch)

    def watch(self) -> None:
        """Abandon the workers whose item is over its time; call this again when the next item could be."""
        late, wait = self.overdue(self.run.clock())
        for worker in late:
            worker.abandoned = True
            self.members.discard(worker)
            worker.cancel()
            self.ended(worker, "timed out")
            self.lost(worker.span, self.too_late)
            with self.run.lock:
                if not self.window.exhausted:
                    self.add(worker.index)
        self.timer = None if wait is None or self.run.stopped else self.host.loop.call_later(wait, self.watch)


class AsyncCall(Call):
    """One worker's f on an event loop. What f, ``on_start`` and ``on_done`` return may be awaitable."""

    takes_coroutines = True

    async def abegin(self) -> None:
        if self.stage.on_start is not None:
            resources = self._start()
            self.step = self.bind(await resources if isawaitable(resources) else resources)
        self.started = True

    async def aend(self, status: StageStatus) -> None:
        if self.stage.on_done is not None:
            self.started = False
            done = self._done(status)
            if isawaitable(done):
                await done

    def wrap(self, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
        kernel = self.stage.kernel
        # A function that gives coroutines and nothing else is awaited as it is.
        step = bound if kernel.finish is None and self.stage.asynchronous else kernel.async_step(bound)
        if self.keep is None:
            return step

        async def kept(item: Any) -> Any:
            return self.kept(await step(item))

        return kept

    def named(self, error: BaseException) -> BaseException:
        if error.args == ("coroutine raised StopIteration",) and isinstance(error.__cause__, StopIteration):
            error = error.__cause__  # Python makes a RuntimeError of it that does not name f
        return super().named(error)

    async def ahandled(self, failure: Failure) -> Any:
        """`handled`, with a handler that may be a coroutine function."""
        error, handler = failure.error, self.stage.on_error
        if isinstance(handler, str) or failure.final or not isinstance(error, Exception):
            return handled(self.stage, failure)
        try:
            result = handler(error, failure.item)
            return replaced(self.stage, failure.item, await result if isawaitable(result) else result)
        except BaseException as raised:
            return handler_failed(self.stage, failure, raised)


class Worker(Cancellable):
    """One task."""

    def __init__(self, crew: Workers, index: int) -> None:
        self.crew = crew
        self.run = crew.run
        self.clock = crew.run.clock
        self.index = index
        self.call = AsyncCall(crew.stage, index, crew.keep)
        #: What it has in hand.
        self.span: Span | None = None
        #: When its present item was begun, in seconds of the run's clock, if the stage has a time-out.
        self.begun: float | None = None
        self.abandoned = False

    @property
    def busy(self) -> bool:
        """`Run.close` does not wait long for an abandoned task, which may have swallowed its cancellation."""
        return self.abandoned

    def join(self, timeout: float) -> None:
        """Do nothing: a task has ended on its loop before it leaves the run."""

    def vanished(self, error: BaseException) -> None:
        """Leave for a task that was cancelled before its first step."""
        crew = self.crew
        crew.coming -= 1
        crew.members.discard(self)
        self.broke_off(error)
        with self.run.lock:
            crew.ended(self)
            self.run.leave(self)

    async def main(self) -> None:
        """Work off spans and lone items, up to the end."""
        crew = self.crew
        try:
            crew.started(self)
            taken = crew.arrived()
            while not isinstance(taken, Closed):
                if taken is not None:
                    taken = await self.work_off(taken)
                elif crew.window.ledger.lone_items:
                    taken = await self.work_off_lone()
                else:
                    taken = await crew.queue.get()
        except BaseException as error:
            self.broke_off(error)
        finally:
            self.span = None
            await self.end()

    def broke_off(self, error: BaseException) -> None:
        """Fail the stage, because this task ends with *error*; do not if it was cancelled because it is to end."""
        stopped = self.run.stopped or self.crew.window.stopped or self.abandoned
        if not (stopped and isinstance(error, asyncio.CancelledError)):
            self.crew.break_down(error)

    async def work_off(self, span: Span) -> Span | Closed | None:
        """Fill *span*, and those that can be had at once; give what comes then."""
        crew, call, clock = self.crew, self.call, self.clock
        streak = 0.0
        taken: Span | Closed | None = span
        while type(taken) is Span:
            span = taken
            crew.recruit()
            self.span = call.place = span
            if crew.observer is not None:
                crew.taken(span, self)
            self.came_back()
            crew.latest = self
            begun = clock()
            if call.started or (await self.begin(span) and not crew.gives_back(span)):
                await self.fill(span)
            elapsed = clock() - begun
            if self.abandoned:
                return CLOSED
            self.span = None
            if crew.latest is not self:
                # Another worker had its turn: this item has waited. Items that wait are to wait side by side, each with
                # a worker of its own. So a waiting item counts as one that lasts as long as a span.
                crew.latest, streak = self, 0.0
                taken = crew.next_waiting(span, max(elapsed, SPAN_SECONDS * len(span.slots)))
            elif (streak := streak + elapsed) <= SPAN_SECONDS:
                taken = crew.next_for(span, elapsed)
            else:  # f has not waited for SPAN_SECONDS: let the others on the loop have their turn
                crew.next_for(span, elapsed, wanted=False)
                await asyncio.sleep(0)
                taken = None
        call.place = None
        del span  # see `fill`
        return taken

    async def work_off_lone(self) -> Span | Closed | None:
        """Work off lone items as long as each of them waits; give what comes then."""
        crew, call, outbox = self.crew, self.call, self.crew.window.outbox
        items, slots = outbox.ledger.lone_items, outbox.ledger.lone_slots
        step = call.step if call.started else None
        observed = crew.observer is not None
        # If ordered, the only item a taker can be waiting for is `outbox.head`.
        heads_only = outbox.ordered and outbox.one_each
        waited = True
        crew.recruit()
        self.span = call.place = place = Span(0, ())
        self.came_back()
        begun, count = self.clock(), 0
        tally = crew.window.tally
        tally.begin_lone(begun)
        while items:
            try:
                index, item = items.popleft()
            except IndexError:  # the stage was stopped just now, by another thread
                break
            crew.latest = self
            place.start = index
            if step is None:
                if not await self.begin(place):
                    break
                step = call.step
            try:
                slots[index] = await step(item)
            except BaseException as error:
                slot = await self.failed(error, item, place)
                if is_failure(slot):
                    break
                slots[index], slot = slot, None  # the slot must not be kept alive while the next item waits
            count += 1
            if observed:
                crew.done_lone(index)
            # If none are left, `next_lone` is about to settle, unless the stage is over.
            if (items or crew.over) and (index == outbox.head or not heads_only):
                crew.tell(index)
            if crew.latest is self:
                waited = False
                break
        tally.end_lone(begun, self.clock(), count)
        crew.latest = self
        self.span = call.place = None
        return CLOSED if crew.over else crew.next_lone(waited)

    async def end(self) -> None:
        """Run ``on_done``, and leave."""
        crew = self.crew
        try:
            if self.call.started and crew.stage.on_done is not None:
                async with crew.ending:
                    await self.call.aend(crew.status())
        except BaseException as error:
            crew.complain(self.call.named(error))
        finally:
            crew.members.discard(self)
            if not crew.members:
                crew.unwatch()
            with self.run.lock:
                crew.tell_lone()
                crew.ended(self)
                self.run.leave(self)

    async def begin(self, span: Span) -> bool:
        """Run ``on_start``; False if it failed, and the stage with it."""
        try:
            self.crew.active += 1
            await self.call.abegin()
        except BaseException as error:
            self.crew.not_begun()
            if self.is_stopped(error):
                raise
            self.crew.break_down(self.call.named(error), span)
        return self.call.started

    async def fill(self, span: Span) -> None:
        """Append the slots of *span*, up to its end or to an item that is tried again or has failed for good."""
        step, slots = self.call.step, span.slots
        if self.crew.stage.timeout is not None:
            step = self.timed
        todo = self.crew.claim(span)
        while todo is not None:
            try:
                for item in todo:
                    slots.append(await step(item))
            except BaseException as error:
                slot = await self.failed(error, item, span)
                if is_failure(slot):
                    break
                slots.append(slot)
                slot = None  # it must not be kept alive while the next item is at work
            else:
                todo = self.crew.claim(span)
        # The traceback of an error of f has this frame. What the error is part of would keep it alive, and so itself.
        item = slot = None
        del span, slots, step, todo

    async def timed(self, item: Any) -> Any:
        """Run f on *item*, and note when it was begun."""
        self.begun = self.clock()
        if self.crew.timer is None:
            self.crew.expect()
        slot = await self.call.step(item)
        self.begun = None
        return slot

    async def failed(self, error: BaseException, item: Any, span: Span) -> Any:
        """Give the slot that stands for a failed item; a failure if *span* ends there."""
        index, tries = span.start + len(span.slots), 1 if span.slots else span.tries + 1
        if self.is_stopped(error):
            raise error
        if self.abandoned:
            # The item ran over its time, and f raised an error of its own when it was cancelled. By now the item is
            # tried again elsewhere, or has failed.
            return Failure(index, item, error)
        self.begun = None
        slot: Any = self.call.failure(error, item, index, tries)
        if self.crew.retry(span, slot):
            return slot
        slot = await self.call.ahandled(self.crew.failed(slot))
        if is_failure(slot):
            if self.is_stopped(slot.error):
                raise slot.error
            self.crew.fail(slot)
        return slot

    def is_stopped(self, error: BaseException) -> bool:
        """Tell whether *error* is a cancellation of this task, and not a `CancelledError` that f raised of its own."""
        return isinstance(error, asyncio.CancelledError) and self.is_cancelled


class Handler(Worker):
    """The task that runs ``on_error`` on an item whose own task was cancelled, as ``on_error`` may be a coroutine."""

    def __init__(self, crew: Workers, failure: Failure, victim: Span) -> None:
        super().__init__(crew, -1)
        self.failure = failure
        self.span = self.victim = victim  # with a span in hand it is cancelled when the stage is stopped

    async def main(self) -> None:
        self.crew.coming -= 1
        try:
            slot = await self.call.ahandled(self.failure)
            if is_failure(slot) and self.is_stopped(slot.error):
                raise slot.error
            self.crew.stand_in(self.victim, slot)
        except BaseException as error:
            self.broke_off(error)
        finally:
            self.span = None
            await self.end()
