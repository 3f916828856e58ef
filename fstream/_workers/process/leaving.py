"""How workers leave a stage: used up, when the stage is over, or stopped; and how each comes to run its ``on_done``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fstream._flow.span import Failure
from fstream._workers.process.messages import Finish, Stop
from fstream._workers.process.workers import Steps, Workers

__all__ = ["Leaving"]

#: How long workers that are stopped in the middle of f have for their ``on_done``, in seconds.
STOP_SECONDS: Final = 0.8


class Leaving:
    """Sees to the leave of one stage's workers. *listen* and *heed* are the pump's."""

    def __init__(
        self, crew: Workers, listen: Callable[[float | None], Steps], heed: Callable[[], None]
    ) -> None:
        self.crew = crew
        self.listen = listen
        self.heed = heed
        self.stop_seconds = STOP_SECONDS

    def retire_used_up(self) -> None:
        """End the workers that have had their last item, as soon as their ``on_done`` has run, and stale ones."""
        crew = self.crew
        for worker in [w for w in crew.workers if w.idle and crew.used_up(w)]:
            if worker.active and crew.stage.on_done is not None:
                crew.ask_to_finish(worker)
                continue
            worker.link.worn = True
            crew.retire(worker)

    def wind_up(self) -> Steps:
        """End the workers: idle ones stay warm, those in f are killed, or stopped if there is an ``on_done`` to run.

        Those that have resources of other stages are stopped, too, and killed only if that does not help.
        """
        crew, stage = self.crew, self.crew.stage
        crew.ending = True
        crew.stop_waiting()
        self.heed()
        stopped = crew.stopped
        if crew.pool.closed and not crew.exhausted():
            problem = f"stage {stage.name!r} (process): its Processes was closed while it was at work"
            crew.fail(Failure(-1, None, RuntimeError(problem)))
        for worker in list(crew.workers):
            if not worker.opened:  # it is still starting: the next stage may use it
                crew.retire(worker)
            elif worker.flight and not (worker.active and stage.on_done) and worker.link.homes <= {crew}:
                crew.leave_out(worker)
                crew.kill(worker)
        yield from self.dismiss(stopped)
        for worker in list(crew.workers):
            if worker.finishing or (worker.flight and worker.link.homes <= {crew}):
                crew.leave_out(worker)
                crew.kill(worker)
            else:
                worker.link.worn |= crew.used_up(worker)
                crew.retire(worker)
        if stage.on_done is not None:
            yield from self.dismiss_elsewhere(stopped)
        if stage.max_items_per_worker is not None:
            crew.pool.warm.bury()

    def dismiss(self, stopped: bool) -> Steps:
        """Have the workers run ``on_done``, one after the other, so that the last one knows that it is the last.

        A stage that was *stopped* gives all of them `stop_seconds` for that. A worker that has given nothing may have
        begun nothing, because others took its items over. It would be the last one, and run no ``on_done``.
        """
        crew = self.crew
        deadline = crew.clock() + self.stop_seconds if stopped else None
        for worker in sorted(crew.workers, key=lambda worker: (len(worker.flight), worker.answered)):
            begun = worker.active and crew.stage.on_done is not None
            if not (worker.flight or worker.finishing or begun):
                continue
            if worker in crew.workers and not worker.finishing:
                crew.ask_to_finish(worker, Stop if stopped else Finish)
            while worker.finishing and worker in crew.workers:
                left = None if deadline is None else deadline - crew.clock()
                if left is not None and left <= 0:
                    break
                yield from self.listen(left)
                if deadline is None and crew.run.stopped:
                    deadline = crew.clock() + self.stop_seconds

    def dismiss_elsewhere(self, stopped: bool) -> Steps:
        """The same with those that others have: as soon as they are given back, however long that takes.

        Whoever closes the stream does not wait for what is somebody else's work.
        """
        crew = self.crew
        self.heed()  # the bell may have rung while the others ran theirs
        while left := len(crew.begun_in):
            crew.busy = stopped or crew.run.stopped
            if not crew.workers and crew.waiting is None:
                crew.hire()
            for worker in list(crew.workers):
                if worker.opened and worker.active and not worker.finishing:
                    crew.ask_to_finish(worker)
                elif worker.opened and worker.idle:
                    crew.retire(worker)
            if crew.workers or crew.waiting is not None:
                yield from self.listen(None)
                self.heed()
            elif len(crew.begun_in) == left:  # none can be had: the stage has failed for that
                return

    def leave_pool(self) -> None:
        """Give all back that is left."""
        crew = self.crew
        for worker in crew.workers:  # there was an error of ours
            worker.link.homes.discard(crew)
            crew.kill(worker)
        for link in crew.begun_in:
            link.homes.discard(crew)
        crew.pool.leave(crew, crew.key, set(crew.loaded_in))
        while crew.granted:
            worker = crew.granted.popleft()
            if worker.new:
                crew.pool.gone(worker)
            else:
                crew.pool.release(worker)
