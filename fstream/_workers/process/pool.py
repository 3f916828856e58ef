"""The pool: it owns the worker processes, and leases them to the stages that run on it.

Each stage has a pump of its own, a thread that hands spans to the workers which it has on lease. A pump asks for one
more worker when it has something for it (`Pool.hire`). It keeps a worker for as long as nobody else needs one. Where
there are as many processes as there may be, the pump waits in a line, and the pool *recalls* a lease:

    pump --hire--> Pool: an idle worker, or room for a new one? --> a lease
                   none: the pump waits in line; a lease of another pump is recalled
    the other pump: after a slice of time, or at once if its worker is idle --release--> Pool --granted--> pump

So a worker works for one stage at a time, and its messages, its cell and its death concern that stage alone. Stages
stay loaded in a worker with their resources, so a worker that comes back to a stage goes on at once.

No deadlock: a stage without anything to do gives its workers to whoever waits. And a worker that sleeps in its item,
while a stage waits whose own workers all sleep, or that has none, is not counted: what it waits for may be in that
stage. If the stage has its resources in workers that sleep so, and may have no more of them, it begins in one more.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, Protocol

from fstream._engine.interrupts import Uninterrupted, acquire
from fstream._flow.span import Span
from fstream._workers.cpus import cpu_count
from fstream._workers.process import child
from fstream._workers.process.link import Link
from fstream._workers.process.warm import WARM, Warm

__all__ = ["PATIENCE", "POOL", "SLICE", "Pool", "Tenant", "Worker", "end_idle"]

#: How long a stage has a worker, in seconds, before the worker goes to another stage that waits for one. To go over
#: costs some 1 ms.
SLICE: Final = 0.03

#: How often it is looked whether workers sleep in their items, in seconds, while a stage waits for one.
PATIENCE: Final = 0.5

#: How long a worker sleeps, in seconds, before a stage that has its resources there begins in another one. Resources
#: may be large, and slow to make, and most items that sleep wait for something else: so this is long.
HOME_PATIENCE: Final = 5.0

#: How long `Pool.close` waits for the stages that are at work, in seconds.
CLOSING: Final = 5.0


class Tenant(Protocol):
    """The workers of a stage, as the pool sees them. The pool changes its three attributes, and then rings."""

    #: Leases that the stage has waited for.
    granted: deque[Worker]
    #: Workers that have died elsewhere, and had resources of this stage.
    mourned: deque[Link]
    #: There is something to see to: one of the above, a lease that is recalled, or what a worker is to be told.
    poked: bool

    @property
    def most(self) -> int:
        """How many workers the stage may have at once."""
        ...

    def takes(self, link: Link | None) -> bool:
        """Tell whether the stage could have this worker; None is a new one."""
        ...

    def prefers(self, link: Link) -> int:
        """Say how well a worker suits the stage; the larger the better."""
        ...

    def spare_index(self, links: list[Link]) -> int | None:
        """Give the index of one of *links* in which the stage has resources; None if there is no such."""
        ...

    def ring(self) -> None: ...

    def waits_here(self) -> bool:
        """Tell whether its pump could not go on while the calling thread waits."""
        ...


class Worker:
    """One worker process while it works for a stage: a lease."""

    def __init__(self, crew: Any, link: Link | None) -> None:
        self.crew = crew
        #: Its number in the stage; -1 until the stage has chosen one.
        self.index = -1
        #: Its stage is to start a process, which is its `link` from then on.
        self.new = link is None
        self.link: Link = link  # type: ignore[assignment]
        #: The spans that it was sent, in the order in which it runs them.
        self.flight: list[Span] = []
        #: It was sent the stage.
        self.opened = False
        #: It has acknowledged the stage: its messages are about this stage, and not about the one before.
        self.heeded = False
        #: It has given an output of the stage, or its failure.
        self.answered = False
        #: It was sent a span, so its ``on_start`` was run or will be; and it has not been asked for its ``on_done``.
        self.active = False
        #: How many items of the stage it was sent, less those that it gave back.
        self.items = 0
        #: It was asked for the items that it has not started, and has made no progress since.
        self.steal_requested = False
        #: It is running ``on_done``.
        self.finishing = False
        #: It has declined the stage: a module has changed that it has imported.
        self.stale = False
        #: When it last gave a sign of work, in seconds of its run's clock: it sent something, other than items that it
        #: had not begun, or it got a span while it had none.
        self.heard = 0.0
        #: When the lease began, in seconds of the pool's clock; then when it got the stage.
        self.since = 0.0
        #: The stage that it was recalled for.
        self.recalled_for: Tenant | None = None

    @property
    def idle(self) -> bool:
        return not self.flight and not self.finishing

    @property
    def recalled(self) -> bool:
        return self.recalled_for is not None


class Pool:
    """Worker processes for any number of stages; *most* is how many, None: CPUs, or as many as a stage asks for."""

    def __init__(
        self,
        most: int | None = None,
        *,
        start: str = "fresh",
        idle: float = child.IDLE_SECONDS,
        relay: bool = True,
        warm: Warm | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._most = most
        self._start = start
        self._idle = idle
        #: What workers print, log and warn comes out here.
        self.relay = relay
        #: That of the runs whose stages it has, in seconds.
        self.clock = clock
        #: Invariant: a lock of the lowest rank. Whoever holds it takes no other but that of `warm`. The main thread
        #: takes it only where no signal handler comes, because a handler may want it, too.
        self._lock = threading.Lock()
        self.closed = False
        #: The workers that no stage has.
        self.warm = Warm() if warm is None else warm
        #: Those that a stage has, or is starting.
        self.leases: list[Worker] = []
        #: The stages at work.
        self.tenants: set[Tenant] = set()
        #: How many workers one of them has at most.
        self._widest = 0
        #: Stages that wait for a worker, first come, first served, with the lease that was recalled for each.
        self.waiting: dict[Tenant, Worker | None] = {}
        #: Locked locks of those who wait in `close` until the last lease is over. No event: the main thread may wait
        #: here, and a signal handler that closes the pool may come in the middle of its steps.
        self._closing: list[threading.Lock] = []
        POOLS.add(self)

    def start(self) -> Link:
        """Start a process."""
        return Link(self._start, self._idle, self.relay)

    @property
    def limit(self) -> int:
        """How many processes may be on lease."""
        if self._most is not None:
            return self._most
        return max(cpu_count(), self._widest)

    # ------------------------------------------------------------------------------------------ what pumps ask for

    def enter(self, tenant: Tenant) -> None:
        """A stage begins."""
        with self._lock:
            self.tenants.add(tenant)
            self._widest = max(self._widest, tenant.most)
            self._deal()

    def leave(self, tenant: Tenant, key: int, loaded: set[Link]) -> None:
        """A stage is over: the workers in *loaded* may forget what they have of it."""
        with self._lock:
            self.tenants.discard(tenant)
            self._widest = max((each.most for each in self.tenants), default=0)
            self.waiting.pop(tenant, None)
            for link in loaded:
                link.owed.append(key)
            for link in self.warm.among(loaded):
                link.tell_owed()
                self._end_if_worn(link)
            for worker in self.leases:
                if worker.link in loaded:
                    self._poke(worker.crew)
            self._deal()

    def hire(self, tenant: Tenant) -> Worker | None:
        """Lease a worker to a stage. None: the stage waits in line, until it finds one in `granted`."""
        with self._lock:
            if (worker := self._place(tenant, self.limit)) is None:
                self.waiting.setdefault(tenant, None)
                self._recall_for(tenant)
            return worker

    def cancel(self, tenant: Tenant) -> None:
        """A stage waits no more; it may have been granted a worker meanwhile."""
        with self._lock:
            self.waiting.pop(tenant, None)

    def look_again(self) -> None:
        """A worker has begun with a stage, so that it may be recalled; or a stage takes more workers than before."""
        if self.waiting:
            with self._lock:
                self._deal()

    def wanted(self, tenant: Tenant) -> bool:
        """Tell whether others than *tenant* wait for a worker. Without the lock: whoever comes later rings."""
        waiting = self.waiting
        return bool(waiting) and len(waiting) > (tenant in waiting)

    def release(self, worker: Worker) -> None:
        """A lease is over; the process goes to whoever waits first, or stays warm."""
        with self._lock:
            self.leases.remove(worker)
            self.warm.put(worker.link)
            worker.link.tell_owed()
            self._end_if_worn(worker.link)
            self._deal()

    def gone(self, worker: Worker) -> None:
        """A lease is over because its process is: those that had resources there are told."""
        with self._lock:
            self.leases.remove(worker)
            if not worker.new:
                for tenant in list(worker.link.homes):  # they discard themselves in their own time
                    tenant.mourned.append(worker.link)
                    self._poke(tenant)
            self._deal()

    def look_for_sleepers(self, tenant: Tenant) -> None:
        """Give one more process to a stage that waits, if a worker elsewhere sleeps in its item.

        It may wait for what that stage has to do. Only where nobody has said how many processes there are to be, and
        where the stage's own workers sleep, too, if it has any.
        """
        with self._lock:
            now = self.clock()
            asleep = {
                worker: now - max(worker.heard, worker.since)
                for worker in self.leases
                if worker.opened and worker.link.sleeps()
            }
            asleep = {worker: seconds for worker, seconds in asleep.items() if seconds >= 2 * PATIENCE}
            if (
                not asleep
                or self._most is not None
                or tenant not in self.waiting
                or len(self.leases) >= self.limit + len(asleep)
                or any(worker.crew is tenant and worker not in asleep for worker in self.leases)
            ):
                return
            link, index = self.warm.take(tenant.takes, tenant.prefers), None
            if link is None and not tenant.takes(None):
                homes = [worker.link for worker, seconds in asleep.items() if seconds >= HOME_PATIENCE]
                if (index := tenant.spare_index(homes)) is None:
                    return
            del self.waiting[tenant]
            worker = self._lease(tenant, link)
            if index is not None:
                worker.index = index
            self._grant(tenant, worker)

    # ------------------------------------------------------------------------------------- with the lock held

    def _lease(self, tenant: Tenant, link: Link | None) -> Worker:
        worker = Worker(tenant, link)
        worker.since = self.clock()
        self.leases.append(worker)
        return worker

    def _place(self, tenant: Tenant, limit: int) -> Worker | None:
        """Lease an idle worker, or room for a new one; None if there are as many as may be: *limit*."""
        if len(self.leases) >= limit:
            return None
        link = self.warm.take(tenant.takes, tenant.prefers)
        if link is None and not tenant.takes(None):
            return None
        if link is None and len(self.leases) + self.warm.count >= limit:
            self.warm.end_unneeded(1)  # the idle ones do not suit this stage
        return self._lease(tenant, link)

    def _grant(self, tenant: Tenant, worker: Worker) -> None:
        tenant.granted.append(worker)
        self._poke(tenant)

    def _deal(self) -> None:
        """Give what there is to those that wait, in turn. It takes no longer if a hundred do."""
        if self.closed and not self.leases:
            while self._closing:
                self._closing.pop().release()
        limit = self.limit
        for tenant in list(self.waiting):
            if (worker := self._place(tenant, limit)) is not None:
                del self.waiting[tenant]
                self._grant(tenant, worker)
            elif len(self.leases) >= limit and not any(map(self._may_be_recalled, self.leases)):
                break
            else:
                self._recall_for(tenant)

    def _recall_for(self, tenant: Tenant) -> None:
        """Recall a lease for a stage that waits: an idle worker; or the oldest lease of those who have most.

        The latter only where it leads to a more even share, or the stage has no worker at all.
        """
        before = self.waiting[tenant]
        if before is not None and any(worker is before for worker in self.leases):
            return
        # It lacks a certain worker, or only room for one.
        lacks_room = tenant.takes(None) or self.warm.has(tenant.takes)
        others = [
            worker for worker in self.leases
            if worker.crew is not tenant and self._may_be_recalled(worker)
            and (lacks_room or tenant.takes(worker.link))
        ]  # fmt: skip
        found = next((worker for worker in others if worker.idle), None)
        if found is None and others:
            shares = Counter(id(worker.crew) for worker in self.leases)
            mine, largest = shares[id(tenant)], max(shares[id(worker.crew)] for worker in others)
            if not mine or mine + 1 < largest:
                found = min(
                    (worker for worker in others if shares[id(worker.crew)] == largest),
                    key=lambda worker: worker.since,
                )
        self.waiting[tenant] = found
        if found is not None:
            found.recalled_for = tenant
            self._poke(found.crew)

    def _may_be_recalled(self, worker: Worker) -> bool:
        """Tell whether *worker* has started, and was recalled for no stage that still waits."""
        tenant = worker.recalled_for
        return worker.opened and (tenant is None or self.waiting.get(tenant) is not worker)

    def _end_if_worn(self, link: Link) -> None:
        if (self.closed or link.worn) and not link.homes:
            self.warm.end(link)

    @staticmethod
    def _poke(tenant: Tenant) -> None:
        tenant.poked = True
        tenant.ring()

    # ---------------------------------------------------------------------------------------------------- its end

    def end_idle(self) -> None:
        """End the workers that no stage needs. In a signal handler, too."""
        with Uninterrupted(), self._lock:
            self.warm.end_unneeded()
        self.warm.bury()

    def close(self) -> None:
        """End all workers; stages that are at work fail. Wait until that is done, but for user code.

        In a signal handler, too, which may have interrupted this very call.
        """
        over = threading.Lock()
        over.acquire()
        with Uninterrupted(), self._lock:
            self.closed = True
            for tenant in self.tenants:
                self._poke(tenant)
            if waits := bool(self.leases) and not any(tenant.waits_here() for tenant in self.tenants):
                self._closing.append(over)
        if waits:
            acquire(over, CLOSING)
        self.end_idle()

    def forget(self) -> None:
        """In a fork: they are the parent's, and so is its lock."""
        self._lock = threading.Lock()
        while self._closing:  # the fork was made in a signal handler that has interrupted a wait
            self._closing.pop().release()
        self.leases = []
        self.tenants = set()
        self._widest = 0
        self.waiting = {}


#: All pools of this process.
POOLS: Final[weakref.WeakSet[Pool]] = weakref.WeakSet()

#: The pool of all process stages that name no other.
POOL: Final = Pool(warm=WARM)


def end_idle() -> None:
    """End the idle workers of all pools."""
    for pool in list(POOLS):
        pool.end_idle()


def _in_fork() -> None:
    for pool in list(POOLS):
        pool.forget()


os.register_at_fork(after_in_child=_in_fork)
