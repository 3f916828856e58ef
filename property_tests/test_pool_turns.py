"""The pool of processes, driven step by step by stages that are none: whatever they ask for, in whatever order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fstream._workers.process.pool import Pool, Worker
from tests.test_pool import FakeLink, Tenant

WHICH = st.integers(0, 30)


class NoProcess(FakeLink):
    class process:
        @staticmethod
        def is_alive() -> bool:
            return False


class Stage(Tenant):
    """A stage that does what a pump does: it takes what is granted, and hears what it is told."""

    def __init__(self, pool: Pool, most: int, has_resources: bool) -> None:
        super().__init__(most)
        self.pool = pool
        self.has_resources = has_resources
        self.homes: set[Any] = set()
        self.workers: list[Worker] = []

    def takes(self, link: Any) -> bool:
        if link in self.homes:
            return True
        return (not self.has_resources or len(self.homes) < self.most) and not (link and link.worn)

    def employ(self, worker: Worker) -> None:
        if worker.new:
            worker.link, worker.new = NoProcess(), False  # type: ignore[assignment]
        worker.opened = True
        if self.has_resources:
            self.homes.add(worker.link)
            worker.link.homes.add(self)
        self.workers.append(worker)
        self.pool.look_again()

    def heed(self) -> None:
        """As `Pump.heed` does."""
        if self.mourned:
            while self.mourned:
                self.homes.discard(self.mourned.popleft())
            self.pool.look_again()
        while self.granted:
            self.employ(self.granted.popleft())


class PoolMachine(RuleBasedStateMachine):
    @initialize(
        size=st.integers(1, 3),
        stages=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=2, max_size=5),
    )
    def make(self, size: int, stages: list[tuple[int, bool]]) -> None:
        """All stages ask for a worker at once."""
        self.pool = Pool(size)
        self.stages: list[Stage] = []
        for number, (most, has_resources) in enumerate(stages):
            self.enter(most=most, has_resources=has_resources)
            self.hire(which=number)

    def stage(self, which: int) -> Stage | None:
        return self.stages[which % len(self.stages)] if self.stages else None

    def worker(self, which: int) -> tuple[Stage, Worker] | None:
        found = [(stage, worker) for stage in self.stages for worker in stage.workers]
        return found[which % len(found)] if found else None

    @rule(most=st.integers(1, 3), has_resources=st.booleans())
    def enter(self, most: int, has_resources: bool) -> None:
        if len(self.stages) < 5:
            self.stages.append(stage := Stage(self.pool, most, has_resources))
            self.pool.enter(stage)

    @rule(which=WHICH)
    def hire(self, which: int) -> None:
        stage = self.stage(which)
        if stage is None or stage in self.pool.waiting or stage.granted or len(stage.workers) >= stage.most:
            return
        if (worker := self.pool.hire(stage)) is not None:
            stage.employ(worker)

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        if (stage := self.stage(which)) is not None:
            self.pool.cancel(stage)

    @rule(which=WHICH, is_busy=st.booleans())
    def work(self, which: int, is_busy: bool) -> None:
        if (found := self.worker(which)) is not None:
            found[1].flight = [...] if is_busy else []  # type: ignore[list-item]

    @rule(which=WHICH, is_worn=st.booleans())
    def release(self, which: int, is_worn: bool) -> None:
        if (found := self.worker(which)) is None:
            return
        stage, worker = found
        stage.workers.remove(worker)
        worker.link.worn |= is_worn
        if is_worn:
            stage.homes.discard(worker.link)
            worker.link.homes.discard(stage)
        self.pool.release(worker)

    @rule(which=WHICH)
    def die(self, which: int) -> None:
        if (found := self.worker(which)) is None:
            return
        stage, worker = found
        stage.workers.remove(worker)
        stage.homes.discard(worker.link)
        worker.link.homes.discard(stage)
        self.pool.gone(worker)

    @rule(which=WHICH)
    def heed(self, which: int) -> None:
        """Of what the pool tells them, stages hear sooner or later."""
        if (stage := self.stage(which)) is not None:
            stage.heed()

    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        if (stage := self.stage(which)) is None:
            return
        self.pool.cancel(stage)
        stage.heed()
        while stage.workers:
            self.pool.release(stage.workers.pop())
        for link in stage.homes:
            link.homes.discard(stage)
        self.stages.remove(stage)
        self.pool.leave(stage, 0, set(stage.homes))

    @invariant()
    def there_are_no_more_leases_than_there_may_be(self) -> None:
        if self.stages:
            assert len(self.pool.leases) <= self.pool.limit
            held = [w for stage in self.stages for w in (*stage.workers, *stage.granted)]
            assert sorted(map(id, held)) == sorted(map(id, self.pool.leases))
            links = [w.link for w in self.pool.leases if not w.new] + list(self.pool.warm._links)
            assert len(links) == len(set(links)), "two have one process"

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        """Once all have heard what they were told."""
        for stage in self.stages:
            if any(each.mourned for each in self.stages) or len(self.pool.leases) >= self.pool.limit:
                return
            if stage in self.pool.waiting:
                assert not stage.takes(None)
                assert not any(map(stage.takes, self.pool.warm._links))

    @invariant()
    def one_who_waits_without_a_worker_waits_for_a_recalled_one(self) -> None:
        for stage in self.pool.waiting:
            assert isinstance(stage, Stage)
            if stage.workers or stage.mourned or stage.granted:
                continue
            lacks_room = stage.takes(None) or any(map(stage.takes, self.pool.warm._links))
            others = [
                worker
                for worker in self.pool.leases
                if worker.opened and worker.crew is not stage and (lacks_room or stage.takes(worker.link))
            ]
            assert not others or any(worker.recalled for worker in others)

    def teardown(self) -> None:
        """All are served in the end, if each gives its workers back."""
        for _ in range(20 * len(getattr(self, "stages", []))):
            for stage in self.stages:
                stage.heed()
                while stage.workers:
                    self.pool.release(stage.workers.pop())
        if hasattr(self, "pool"):
            self.pool.end_idle()
            assert not self.pool.waiting and not self.pool.leases


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=2 * settings.default.max_examples, stateful_step_count=30)  # type: ignore[union-attr]
