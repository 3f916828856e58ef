"""How far kind="dask" scales: the library's own decisions, on a clock that only events move.

    python -m benchmarks.scale                   # the table, for docs/distributed.md
    python -m benchmarks.scale --plot            # and benchmarks/scale.svg

No machine here has a thousand cores. So the cluster is a model: a client, a scheduler and workers, each of which does
one thing after another, and takes for it what was measured on a cluster of two (`Costs`). What is *not* a model is
everything that decides: `dask.Workers`, its pump, `Window`, `Sizing` and `Room` are the library's, and run here as
they ship. They see another clock, another client, and nobody pickles their items.

Efficiency is the time that all workers spend in f, as a share of the second half of a minute: until then spans have
grown as long as they will be.
"""

from __future__ import annotations

import argparse
import io
import pickle
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from pathlib import Path
from queue import Empty
from random import Random
from types import SimpleNamespace
from typing import Any

from benchmarks.plot import chart
from fstream._engine.run import Run
from fstream._flow.span import Closed, Span
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from fstream._plan.stages import Stage
from fstream._workers import dask, parcels
from fstream._workers.dask import Answered
from fstream._workers.opening import lay
from fstream._workers.parcels import Answer

SVG = Path(__file__).with_name("scale.svg")
ITEM_COSTS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
WORKERS = (10, 100, 1_000)
MINUTE = 60.0

#: More than the clock's rounding, in seconds.
TICK = 1e-9


@dataclass(frozen=True)
class Costs:
    """Seconds of CPU, measured with a process for each part, and no-op items (distributed 2026.8, Python 3.11)."""

    #: The scheduler, and the client, for a task: 1.5 ms where each comes alone, 0.6 ms where many come at once. So two
    #: thirds are paid once for what comes at once: in going there (a graph), and in coming back (a turn of the loop).
    call: float = 0.00045
    each: float = 0.0003
    #: A worker for a task: 1.2 ms where it has many, 2 ms where it has few. It takes them from f.
    worker: float = 0.0015
    #: The client for an item: its output is unpickled, put in order and iterated.
    item: float = 0.15e-6
    #: From one process to another, in seconds; and how long messages are collected for: `BatchedSend` of each part.
    latency: float = 0.0003
    client_batch: float = 0.010
    scheduler_batch: float = 0.005
    worker_batch: float = 0.002


class Clock:
    """Time that passes from event to event."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], object]]] = []
        self.numbers = count()

    def __call__(self) -> float:
        return self.now

    def after(self, seconds: float, f: Callable[[], object]) -> None:
        heappush(self.events, (self.now + seconds, next(self.numbers), f))

    def step(self) -> None:
        when, _, f = heappop(self.events)
        self.now = max(self.now, when)
        f()

    def spend(self, seconds: float) -> None:
        """Let time pass, and what others do meanwhile."""
        until = self.now + seconds
        while self.events and self.events[0][0] <= until:
            self.step()
        self.now = until


class Batched:
    """A connection that sends what is to be sent, but no more often than once in *interval* seconds."""

    def __init__(
        self, clock: Clock, interval: float, latency: float, receive: Callable[[list[Any]], object]
    ) -> None:
        self.clock, self.interval, self.latency, self.receive = clock, interval, latency, receive
        self.messages: list[Any] = []
        self.free_at = 0.0

    def send(self, message: Any) -> None:
        self.messages.append(message)
        if len(self.messages) == 1:
            self.clock.after(max(0.0, self.free_at - self.clock.now), self.flush)

    def flush(self) -> None:
        messages, self.messages = self.messages, []
        self.free_at = self.clock.now + self.interval
        self.clock.after(self.latency, partial(self.receive, messages))


class Task:
    """What a `distributed.Future` is to the library: one span on its way."""

    def __init__(self, load: partial[Any]) -> None:
        self.start, self.count, self.most_seconds = Order(io.BytesIO(load.args[0])).load()
        self.answer = Answered([])
        self.done = 0
        self.callbacks: list[Callable[[Task], object]] = []

    def add_done_callback(self, f: Callable[[Task], object]) -> None:
        self.callbacks.append(f)


class Order(pickle.Unpickler):
    """Reads an order, and does not carry it out."""

    def find_class(self, module: str, name: str) -> Any:
        return lambda *fields: fields


class Scheduler:
    """It sees to messages in turns; a worker has two tasks at most, others wait here."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.clock, self.costs = cluster, cluster.clock, cluster.costs
        self.inbox: deque[tuple[float, Callable[[], object]]] = deque()
        self.busy = False
        self.seconds = 0.0
        self.queued: deque[Task] = deque()
        #: The workers that have no task, and those that have one.
        self.free: tuple[deque[Worker], deque[Worker]] = deque(cluster.workers), deque()
        self.to_client = Batched(self.clock, self.costs.worker_batch, self.costs.latency, cluster.told)

    def receive_graphs(self, graphs: list[list[Task]]) -> None:
        for graph in graphs:
            seconds = self.costs.call + self.costs.each * len(graph)
            self.inbox.append((seconds, partial(self.queue, graph)))
        self.turn()

    def receive_finished(self, finished: list[tuple[Worker, Task]]) -> None:
        self.inbox.append((self.costs.each * len(finished), partial(self.finish, finished)))
        self.turn()

    def turn(self) -> None:
        """See to all that has come."""
        if self.inbox and not self.busy:
            todo, self.inbox = self.inbox, deque()
            self.busy = True
            seconds = self.costs.call + sum(seconds for seconds, _ in todo)
            self.seconds += seconds
            self.clock.after(seconds, partial(self.did, [f for _, f in todo]))

    def did(self, todo: list[Callable[[], object]]) -> None:
        for f in todo:
            f()
        self.assign()
        self.busy = False
        self.turn()

    def queue(self, tasks: list[Task]) -> None:
        self.queued.extend(tasks)

    def finish(self, finished: list[tuple[Worker, Task]]) -> None:
        for worker, task in finished:
            worker.load -= 1
            if worker.load:
                self.free[1].append(worker)
            else:
                self.free[1].remove(worker)
                self.free[0].append(worker)
            self.to_client.send(task)

    def assign(self) -> None:
        while self.queued and any(self.free):
            worker = self.free[0].popleft() if self.free[0] else self.free[1].popleft()
            worker.load += 1
            if worker.load == 1:
                self.free[1].append(worker)
            worker.inward.send(self.queued.popleft())


class Worker:
    """A process with one thread, which works one task off after the other."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.clock, self.costs = cluster, cluster.clock, cluster.costs
        self.load = 0  # how many tasks it has, as the scheduler knows
        self.tasks: deque[Task] = deque()
        self.busy = False
        self.seconds = 0.0
        self.inward = Batched(self.clock, self.costs.scheduler_batch, self.costs.latency, self.receive)
        self.outward = Batched(self.clock, self.costs.worker_batch, self.costs.latency, self.finished)

    def receive(self, tasks: list[Task]) -> None:
        self.tasks.extend(tasks)
        self.work()

    def finished(self, finished: list[tuple[Worker, Task]]) -> None:
        self.cluster.scheduler.receive_finished(finished)

    def work(self) -> None:
        if not self.tasks or self.busy:
            return
        self.busy = True
        task, cost = self.tasks.popleft(), self.cluster.item_cost * self.cluster.random.uniform(0.8, 1.2)
        task.done = max(1, min(task.count, ceil(task.most_seconds / cost)))  # it is given up there in time
        seconds = task.done * cost
        answer = Answer("", None, [range(task.start, task.start + task.done)], {}, seconds)
        task.answer = Answered([pickle.dumps(answer)])
        self.clock.after(self.costs.worker + seconds, partial(self.did, task, seconds))

    def did(self, task: Task, seconds: float) -> None:
        self.busy = False
        self.seconds += seconds
        self.outward.send((self, task))
        self.work()


class Pause:
    """What the client's loop awaits: the way to the workers and back."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Generator[float, None, None]:
        yield self.seconds


class Cluster:
    """What a `distributed.Client` is to the library, and what is behind it."""

    status = "running"
    asynchronous = False
    scheduler_comm = None

    def __init__(self, workers: int, item_cost: float, costs: Costs = Costs()) -> None:
        self.clock, self.item_cost, self.costs = Clock(), item_cost, costs
        self.random = Random(0)
        self.workers = [Worker(self) for _ in range(workers)]
        self.scheduler = Scheduler(self)
        self.to_scheduler = Batched(
            self.clock, costs.client_batch, costs.latency, self.scheduler.receive_graphs
        )
        self._scheduler_identity = {"total_threads": workers}
        #: What the client's process has to do, and how many seconds it has worked. It has the GIL to share.
        self.todo: deque[Callable[[], object]] = deque()
        self.seconds = 0.0
        self.loop = SimpleNamespace(add_callback=self.call_soon)
        self.spans = self.graphs = 0

    def spend(self, seconds: float) -> None:
        self.seconds += seconds
        self.clock.spend(seconds)

    def call_soon(self, f: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.todo.append(lambda: self.go_on(f()))

    def go_on(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            seconds = coroutine.send(None)
        except StopIteration:
            return
        self.clock.after(seconds, lambda: self.todo.append(partial(self.go_on, coroutine)))

    def map(self, f: object, loads: list[partial[Any]], **options: Any) -> list[Task]:
        tasks = list(map(Task, loads))
        self.spans += len(tasks)
        self.graphs += 1
        self.spend(self.costs.call + self.costs.each * len(tasks))
        self.to_scheduler.send(tasks)
        return tasks

    def told(self, tasks: list[Task]) -> None:
        def call() -> None:
            for task in tasks:
                for callback in task.callbacks:
                    callback(task)

        self.todo.append(call)

    async def gather(self, tasks: list[Task], **options: Any) -> list[Answered]:
        self.spend(self.costs.call)
        await Pause(2 * self.costs.latency)
        self.spend(self.costs.each * len(tasks) + self.costs.item * sum(task.done for task in tasks))
        return [task.answer for task in tasks]


class Parcels(parcels.Parcels):
    """Nothing is pickled but which items they are."""

    def pack(self, span: Span, seconds: float, inside: frozenset[int | str]) -> Any:
        return span.start, len(span.items), seconds

    def slots_of(self, answer: Answer, span: Span) -> list[Any]:
        return list(answer.slots[0])


class News:
    """What the pump waits for. While it waits, time passes."""

    def __init__(self, cluster: Cluster, until: float) -> None:
        self.cluster, self.until = cluster, until
        self.news: deque[Any] = deque()
        self.put = self.news.append

    def get_nowait(self) -> Any:
        if not self.news:
            raise Empty
        return self.news.popleft()

    def get(self, timeout: float | None) -> Any:
        cluster, clock = self.cluster, self.cluster.clock
        deadline = inf if timeout is None else clock.now + timeout
        while not self.news:
            if clock.now >= self.until:
                raise Over
            if cluster.todo:
                cluster.todo.popleft()()
            elif clock.events and clock.events[0][0] <= deadline:
                clock.step()
            elif deadline < inf:
                clock.now = deadline + TICK  # so that it is over for who asks
                raise Empty
            else:
                raise AssertionError("nobody can go on")
        return self.news.popleft()


class Over(BaseException):
    """The time is over."""


class Workers(dask.Workers):
    """The library's own. Nobody asks whether the scheduler is there."""

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        self.parcels = Parcels(stage, run.context)
        self.pulse = Future()

    def break_down(self, error: BaseException) -> None:
        if not isinstance(error, Over):
            raise error

    def wind_up(self) -> None:
        pass


class Consumer:
    """The queue of whoever iterates the outputs, and does nothing with them."""

    def __init__(self, run: Run, cluster: Cluster) -> None:
        self.run, self.cluster, self.buffer = run, cluster, run.outlet
        self.takers, self.until = 0, 0.0
        self.signalled = self.watched = False
        self.outputs: list[Sequence[Any]] = []
        self.over = False
        cluster.todo.append(self.take)

    def signal(self) -> None:
        self.signalled = True
        self.cluster.todo.append(self.take)

    def watch(self) -> None:
        self.watched = True
        self.cluster.clock.after(self.buffer.flush_delay, lambda: self.cluster.todo.append(self.flush))

    def flush(self) -> None:
        self.watched = False
        if self.takers:
            self.buffer.request_flush()
            self.run.settle()

    def take(self) -> None:
        self.signalled, self.takers = False, 0
        self.buffer.release_taken()
        while self.buffer.ready() and not self.over:
            outputs = self.buffer.take()
            if type(outputs) is Closed:
                self.over = True
            else:
                self.outputs.append(outputs)
            self.run.settle()
            self.buffer.release_taken()
        self.takers = int(not self.over)
        self.run.settle()


class ModelRun(Run):
    """A run without threads."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.clock = cluster.clock  # type: ignore[assignment]

    def launch(self, member: Any) -> None:
        pass


@dataclass(frozen=True)
class Result:
    """What has come of a run."""

    efficiency: float
    #: Of the time, how much the scheduler and the client were busy.
    scheduler: float
    client: float
    spans: int
    graphs: int
    #: How many items the stage held at most.
    held: int
    seconds: float
    outputs: list[Sequence[int]]


def simulate(
    workers: int,
    item_cost: float,
    seconds: float = MINUTE,
    items: int = 1 << 40,
    make: Callable[[int, float], Cluster] = Cluster,
    **options: Any,
) -> Result:
    """Run so many *items* of *item_cost* seconds on so many *workers*, for *seconds* at most."""
    cluster = make(workers, item_cost)
    run = ModelRun(cluster)
    stage = Stage(MAP, abs, "dask", engine=cluster, **options)
    lay(run, [range(items)], [stage], Workers, lambda *_: None)  # type: ignore[arg-type, return-value]
    (crew,) = run.crews
    assert isinstance(crew, Workers)
    crew.queue.news = News(cluster, seconds)  # type: ignore[assignment]
    consumer = Consumer(run, cluster)
    run.queues.insert(0, consumer)
    crew.start()
    held = 0
    settle = run.settle

    def noting(*arguments: Any) -> None:
        nonlocal held
        held = max(held, crew.window.room.held)
        settle(*arguments)

    run.settle = noting  # type: ignore[method-assign]
    marks: list[tuple[float, ...]] = []

    def mark() -> None:
        at_work = sum(worker.seconds for worker in cluster.workers)
        marks.append((cluster.clock.now, at_work, cluster.scheduler.seconds, cluster.seconds))

    mark()
    cluster.clock.after(seconds / 2, mark)
    crew.pump.main()
    while cluster.todo and cluster.clock.now < seconds:
        cluster.todo.popleft()()
    mark()
    took, at_work, scheduler, client = (late - early for early, late in zip(*marks[-2:]))
    return Result(
        at_work / took / workers,
        scheduler / took,
        client / took,
        cluster.spans,
        cluster.graphs,
        held,
        cluster.clock.now,
        consumer.outputs,
    )


def name_of(cost: float) -> str:
    return f"{cost * 1e6:g} us" if cost < 1e-3 else f"{cost * 1e3:g} ms" if cost < 1 else f"{cost:g} s"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description="a model of large clusters")
    parser.add_argument("--plot", action="store_true", help=f"draw {SVG}")
    parser.add_argument("--seconds", type=float, default=MINUTE, help="of the model's time (default 60)")
    options = parser.parse_args()
    series: dict[str, list[tuple[float, float]]] = {}
    print("| workers | " + " | ".join(map(name_of, ITEM_COSTS)) + " |")
    print("|---|" + "---|" * len(ITEM_COSTS))
    for workers in WORKERS:
        cells = []
        for cost in ITEM_COSTS:
            result = simulate(workers, cost, options.seconds)
            parts = ("client", result.client), ("scheduler", result.scheduler)
            full = [part for part, busy in parts if busy > 0.9]
            cells.append(f"{result.efficiency:.2f}" + (f" ({' and '.join(full)} full)" if full else ""))
            series.setdefault(f"{workers:,} workers", []).append((cost * 1e6, 100 * result.efficiency))
        print(f"| {workers:,} | " + " | ".join(cells) + " |", flush=True)
    if options.plot:
        title = "Efficiency of a cluster by the cost of an item (a model)"
        SVG.write_text(chart(title, "CPU time of one item, log scale", series))


if __name__ == "__main__":
    main()
