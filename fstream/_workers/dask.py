"""A dask cluster as workers: a span is a task of a `distributed.Client`.

    window --take--> pump --Client.map--> scheduler --> [a thread of a dask worker] f
    window <--slots-- pump <--gather-- the client's loop <-- the task's future

It differs from an executor (`executor.py`) in this:

- What is handed over at once goes to the scheduler in one message, and what is finished at once is fetched in one.
- The task calls `pickle.loads` with an order, which becomes the answer when it is unpickled. So the scheduler needs
  none of the program's modules, and a worker that has no fstream, or another Python, gives an error, where a function
  that it cannot import would leave the task pending for ever.
- Large buffers travel beside the pickles (`Beside`).
- A cluster does not say that it is gone: futures may stay pending. So `Workers.look_after` asks, while any are.
- Dask runs the task of a worker that has died again, elsewhere, and gives up after some. What was at work then may be
  innocent: halves of it are run, and halves of the half that kills again, with nothing else of the stage at work, until
  one item is left to blame.
"""

from __future__ import annotations

import asyncio
import operator
import pickle
import sys
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import count
from os import urandom
from pickle import PickleBuffer
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from fstream._flow.span import Failure, Span
from fstream._flow.window import Window
from fstream._plan.stages import Stage, StageStatus, declared
from fstream._workers import executor
from fstream._workers.notes import annotate, describe
from fstream._workers.parcels import INSIDE, Order, Parcels, forget, serve, take_out, to_finish
from fstream._workers.process.errors import decode_error, encode_error
from fstream._workers.process.wire import Packed, loads
from fstream.errors import WorkerDied

if TYPE_CHECKING:
    from fstream._engine.run import Run

__all__ = ["Workers", "check", "prepare"]

#: How many spans a thread of the cluster has: one at work, one behind it.
AHEAD: Final = 2

#: A task costs the scheduler and the client 1 to 2.5 ms of their time each. So for each thread of the cluster a span is
#: this many seconds longer.
THREAD_SECONDS: Final = 0.002

#: The most cheap items that a window holds for each thread; for a few threads as many as for sixteen. The cheapest take
#: longer on their way than in f: so several spans are to be under way, though each has 100,000 of them. Large clusters
#: need two long spans for each thread. What items weigh bounds the window, too.
CHEAP: Final = 1 << 14
FEW: Final = 16

#: What is handed over in one message has no more than this many bytes, as far as it can be divided: dask warns of more
#: than 10 MB.
MESSAGE_BYTES: Final = 1 << 23

#: How many spans that are back at once are answered by one message, with as many new ones. To send one costs half a
#: millisecond, and then the same for each two spans. With no limit, client and scheduler would wait for one another.
AT_ONCE: Final = 32

#: While there are tasks, the scheduler is asked so often, in seconds, whether it is there, and how many threads there
#: are. It has so many seconds to answer; and is gone if it has not answered twice.
PULSE: Final = 2.0
PATIENCE: Final = 5.0

#: How often a task may be cancelled by somebody else before that is an error.
MOST_CANCELS: Final = 3


def check(stage: Stage) -> None:
    """Refuse what a cluster cannot give."""
    client = stage.engine
    if client is None:
        if find_spec("distributed") is None:
            raise ModuleNotFoundError(
                "kind='dask' needs distributed: pip install 'fstream[dask]'", name="distributed"
            )
    elif isinstance(client, type):
        raise TypeError("kind must be a Client object, got the class: write kind=Client(address)")
    elif client.status == "closed":
        raise ValueError(f"kind must be a client that is open, got {client!r}")
    if stage.max_items_per_worker is not None:
        raise ValueError(
            "max_items_per_worker is for kind='process': start dask's workers with --lifetime, for libraries that leak"
        )


def prepare(stage: Stage) -> Stage:
    """Find the client, and see how many threads it has."""
    client: Any = stage.engine
    if client is None:
        from distributed import Client

        try:
            client = Client.current()
        except ValueError:
            raise RuntimeError(
                "kind='dask' needs a client: write client = distributed.Client(...) before the stream starts"
            ) from None
    cluster = Cluster(client, stage)
    if not cluster.is_there():
        raise cluster.gone()
    if cluster.address in INSIDE.get():
        raise RuntimeError(
            "a stream inside f on the cluster that runs f may wait for ever for its own worker: give it another kind"
        )
    known = client._scheduler_identity  # what it has heard last: to ask would block an event loop
    cluster.threads = known.get("total_threads") or sum(
        worker["nthreads"] for worker in known.get("workers", {}).values()
    )
    return replace(stage, engine=cluster, workers=stage.workers or max(1, cluster.threads))


class Cluster:
    """The client of a stage."""

    make = None

    def __init__(self, client: Any, stage: Stage) -> None:
        self.client = client
        self.stage = stage
        self.executor = self
        #: How many items are at work at once at most, if the stage says so.
        self.limit = stage.workers
        self.threads = 0
        self.address: str = getattr(client.scheduler, "address", "")
        #: The connection. Another one knows none of the tasks.
        self.comm = client.scheduler_comm

    def is_there(self) -> bool:
        return self.client.status == "running" and self.client.scheduler_comm is self.comm

    def gone(self, why: BaseException | None = None) -> ConnectionError:
        what = (
            "client is closed" if self.client.status == "closed" else f"scheduler, at {self.address}, is gone"
        )
        error = ConnectionError(f"stage {self.stage.name!r} (dask): its {what}")
        error.__cause__ = why
        return error

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Have the client's loop run *coroutine*."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.client.loop.asyncio_loop)
        except BaseException:  # the loop is closed
            coroutine.close()
            raise

    async def run(self, f: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call f in each worker, on its event loop."""
        return await self.client.run(f, *args, on_error="ignore", asynchronous=True, **options)


class Beside:
    """A large buffer of a task: dask sends it beside the pickle that it is in, and copies nothing.

    The scheduler unpickles what it hands on, and pickles it again: it has a `PickleBuffer` meanwhile, because a view of
    memory, which that becomes in the end, cannot be pickled.
    """

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (
            (PickleBuffer, (PickleBuffer(self.buffer),))
            if protocol > 4
            else (bytearray, (bytes(self.buffer),))
        )


class Errand:
    """An order that is carried out where it is unpickled."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __reduce__(self) -> Any:
        return answered, tuple(self.order)


class Answered:
    """An `Answer` on its way through dask: a pickle, and the large buffers beside it."""

    def __init__(self, parts: Packed) -> None:
        self.parts = parts

    def __sizeof__(self) -> int:  # dask wants to know what it takes
        return sum(memoryview(part).nbytes for part in self.parts)


@cache
def teach_dask() -> None:
    """Have dask send the parts of an `Answered` as they are.

    It pickles what goes through the scheduler by a protocol that has no buffers beside the pickle.
    """
    from distributed.protocol.serialize import register_serialization

    register_serialization(
        Answered, lambda answered: ({}, answered.parts), lambda _, parts: Answered([*parts])
    )


def answered(*fields: Any) -> Answered:
    """In a worker: carry out an order."""
    teach_dask()
    order, buffers = Order(*fields), list[PickleBuffer]()
    if isinstance(order.seats, dict):
        from distributed import get_worker

        order = order._replace(seats=order.seats.get(get_worker().address, ()))
    answer = serve(*order)
    answer = answer._replace(slots=[*answer.slots[:1], *map(PickleBuffer, answer.slots[1:])])
    packed = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    return Answered([packed, *(buffer.raw() for buffer in buffers)])


class Flight:
    """One span as a task."""

    abandoned = False
    index = None  # dask says which worker has it, to those who look there
    begun = None
    #: The task, from when it is handed over until its answer is here.
    task: Any = None
    #: What kept it from being pickled.
    problem: Exception | None = None
    #: Which workers may have the task; None for all. They are gone, and so it was cancelled.
    homes: list[str] | None = None
    homeless = False

    def __init__(self, crew: Workers, span: Span) -> None:
        self.span = span
        self.executor = crew.cluster
        #: Nothing else of the stage is at work.
        self.alone = span.start in crew.suspects
        self.future: Future[Any] = Future()
        self.future.add_done_callback(lambda _: crew.queue.news.put(self))


class Workers(executor.Workers):
    """What one stage has in its cluster."""

    flight = Flight
    singly = False

    def __init__(self, run: Run, stage: Stage, window: Window) -> None:
        super().__init__(run, stage, window)
        teach_dask()
        self.watch = None  # time-outs are seen to in the workers
        self.cluster: Cluster = stage.engine
        if not self.cluster.address.startswith(
            "inproc"
        ):  # there nothing is pickled, and f would change the caller's
            self.parcels = Parcels(stage, run.context, PickleBuffer)
        client = self.cluster.client
        if client.asynchronous and run.loop is None:
            raise RuntimeError(
                "an asynchronous client is for async code: write `async for output in stream`, or `await stream`"
            )
        #: Tasks have names of their own, of one group for each stage.
        self.keys = map(f"fstream_{stage.name.replace('-', '_')}-{urandom(16).hex()}-{{}}".format, count())
        #: Flights whose tasks are finished, and not fetched yet.
        self.finished: deque[Flight] = deque()
        #: How often which item was in a task that somebody has cancelled.
        self.cancelled: Counter[int] = Counter()
        self.pulse: Future[None] | None = None
        calls = [
            call
            for each in (stage.parts or [stage])
            for call in (each.f, each.on_start, each.on_done)
            if call
        ]
        if any("worker_info" in declared(call) for call in calls):
            self.parcels.seats = {}
        self.resize(self.cluster.threads)

    def resize(self, threads: int) -> None:
        """The cluster has so many *threads*."""
        cluster, window = self.cluster, self.window
        cluster.threads = max(1, threads)
        ahead = 1 if self.stage.rate is not None else AHEAD  # a try counts when f begins
        with self.run.lock:
            if cluster.limit is None:
                window.resize(cluster.threads)
            limit = cluster.limit or cluster.threads
            self.most = limit if limit < cluster.threads else ahead * cluster.threads
            sizing = window.sizing
            sizing.longest_span = max(sizing.span_seconds, THREAD_SECONDS * cluster.threads)
            sizing.most_cheap = CHEAP * max(FEW, cluster.threads)
            self.settle_beside()

    def seat(self, threads: dict[str, int]) -> None:
        """Give each worker as many indexes as it has *threads*, while there are some.

        What a worker has it keeps until it is gone, and its first one stays the first. A worker that has none gets no
        task.
        """
        with self.run.lock:  # the pump comes first, then the client's loop
            seats = {home: held for home, held in (self.parcels.seats or {}).items() if home in threads}
            limit = self.cluster.limit or sum(threads.values())
            free = sorted({*range(limit)}.difference(*seats.values()))
            # Those that have none come first.
            for home, number in sorted(threads.items(), key=lambda each: each[0] in seats):
                held = seats.get(home, ())
                lacking = max(0, number - len(held))
                if lacking and free:
                    seats[home], free = (*held, *free[:lacking]), free[lacking:]
            self.parcels.seats = seats

    def homeless(self, threads: dict[str, int]) -> list[Any]:
        """Give the tasks for which there is no worker: all that may have them are gone."""
        flights = [
            flight
            for flight in list(self.flights)
            if flight.task is not None and flight.homes and threads.keys().isdisjoint(flight.homes)
        ]
        for flight in flights:
            flight.homeless = True
        return [flight.task for flight in flights]

    # ------------------------------------------------------------------------------------------------- handing over

    def dispatch(self) -> None:
        """Hand over as many spans as there are and may be: few messages."""
        with suppress(Empty):  # what is back at once is answered by one message
            for _ in range(AT_ONCE):
                if (back := self.queue.news.get_nowait()) is not None:
                    self.landed(back)
        if self.parcels.seats == {}:
            try:
                self.seat(self.cluster.call(self.cluster.client.scheduler.ncores()).result(2 * PATIENCE))
            except Exception as error:
                self.fail(Failure(-1, None, self.cluster.gone(error)))
                return
        message: list[tuple[Flight, partial[Any]]] = []
        size = 0
        while (flight := self.next_flight()) is not None:
            if (packed := self.packed(flight)) is None:
                continue
            load, nbytes = packed
            if message and size + nbytes > MESSAGE_BYTES:
                self.send(message)
                message, size = [], 0
            message.append((flight, load))
            size += nbytes
        if message:
            self.send(message)

    def packed(self, flight: Flight) -> tuple[partial[Any], int] | None:
        """Give the call that has the span worked off, and how many bytes it has."""
        span = flight.span
        with self.run.lock:  # from here on nobody takes anything of it
            span.sent = True
        seconds = executor.OVERTIME * self.window.sizing.span_seconds
        try:
            order = self.parcels.pack(span, seconds, frozenset({self.cluster.address}))
            buffers: list[PickleBuffer] = []
            packed = pickle.dumps(Errand(order), protocol=5, buffer_callback=buffers.append)
            nbytes = len(packed) + sum(buffer.raw().nbytes for buffer in buffers)
            return partial(pickle.loads, packed, buffers=[*map(Beside, buffers)]), nbytes
        except Exception as error:
            flight.problem = error
            flight.future.set_exception(error)
            return None

    def send(self, message: list[tuple[Flight, partial[Any]]]) -> None:
        flights, calls = map(list, zip(*message))
        cluster = self.cluster
        try:
            if not cluster.is_there():  # it would keep them until it is again
                raise cluster.gone()
            keys = [next(self.keys) for _ in flights]
            homes = [*self.parcels.seats] if self.parcels.seats else None
            tasks = cluster.client.map(operator.call, calls, key=keys, pure=False, workers=homes)
            if self.pulse is None:
                self.pulse = cluster.call(self.look_after())
        except BaseException as error:
            for flight in flights:
                self.put_down(flight, error)
            return
        for flight, task in zip(flights, tasks):
            flight.task, flight.homes = task, homes
            task.add_done_callback(partial(self.arrived_at, flight))

    # -------------------------------------------------------------------- in the client's threads, without the lock

    def arrived_at(self, flight: Flight, _task: Any) -> None:
        """A task has ended. In the thread of all callbacks of this process: others wait for it."""
        if not self.cluster.is_there():  # a loop that is closed would call nothing back
            self.put_down(flight, self.cluster.gone())
            return
        self.finished.append(flight)
        self.cluster.client.loop.add_callback(self.fetch)

    async def fetch(self) -> None:
        """Fetch the answers of all tasks that have ended by now. On the client's loop."""
        flights: list[Flight] = []
        while self.finished:
            flights.append(self.finished.popleft())
        if flights and not await self.fetched(flights):
            for flight in flights:
                await self.fetched([flight])

    async def fetched(self, flights: list[Flight]) -> bool:
        """Fetch the answers of these; False if there are several and not all of them have one."""
        try:
            tasks = [flight.task for flight in flights]
            answers = await self.cluster.client.gather(tasks, asynchronous=True)
        except BaseException as error:
            if len(flights) > 1:
                return False
            self.put_down(flights[0], error)
            return True
        for flight, answer in zip(flights, answers):
            flight.task = None
            if not flight.future.done():
                flight.future.set_result(answer)
        return True

    def put_down(self, flight: Flight, error: BaseException) -> None:
        flight.task = None
        with suppress(InvalidStateError):  # it has an answer, or `look_after` was here
            flight.future.set_exception(error)

    async def look_after(self) -> None:
        """While there are tasks, see that the scheduler is there, and how many threads there are."""
        cluster = self.cluster
        silent = 0
        while True:  # `wind_up` cancels it
            await asyncio.sleep(PULSE)
            if not self.flights:
                silent = 0
                continue
            why: BaseException | None = None
            try:
                async with asyncio.timeout(PATIENCE):  # `wait_for` of 3.11 may swallow that it is cancelled
                    threads = await cluster.client.scheduler.ncores()
                    if self.parcels.seats is not None:
                        self.seat(threads)
                        if homeless := self.homeless(threads):
                            await cluster.client.cancel(homeless, asynchronous=True)
            except Exception as error:
                silent, why = silent + 1, error
            else:
                silent = 0
                if (count := sum(threads.values())) != cluster.threads:
                    self.resize(count)
            if silent > 1 or not cluster.is_there():
                for flight in list(self.flights):
                    self.put_down(flight, cluster.gone(why))

    # ------------------------------------------------------------------------------------------------- what comes back

    def receive(self, span: Span, answer: Answered) -> float:
        return super().receive(span, loads(answer.parts))

    def refused(self, flight: Flight, error: BaseException) -> None:
        """There is no answer."""
        distributed = sys.modules["distributed"]
        span, window = flight.span, self.window
        if window.stopped or self.parcels.problem is not None or flight.problem is not None:
            super().refused(flight, error)
        elif isinstance(error, distributed.scheduler.KilledWorker):
            self.killed(flight, error)
        elif isinstance(error, CancelledError | asyncio.CancelledError | OSError):
            if flight.homeless:  # it was cancelled here
                self.cancelled[span.start] -= 1
            self.interrupted(span, error)
        else:
            if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "fstream":
                annotate(error, "a worker of the cluster has no fstream: install it there, too")
            annotate(error, f"in the cluster of {describe(self.stage, span.start, span.items[0])}")
            self.fail(Failure(span.start, span.items[0], error))

    def interrupted(self, span: Span, error: BaseException) -> None:
        """The task was cancelled, or its answer could not be fetched: begin anew, if the cluster is still there."""
        start, item = span.start, span.items[0]
        if type(error) is ConnectionError:  # `Cluster.gone`
            self.fail(Failure(start, item, error))
        elif getattr(error, "reason", "") == "scheduler-connection-lost" or not self.cluster.is_there():
            self.fail(Failure(start, item, self.cluster.gone(error)))
        elif self.cancelled[start] >= MOST_CANCELS:
            problem = RuntimeError(
                f"{describe(self.stage, start, item)}: its task was cancelled again and again"
            )
            problem.__cause__ = error
            self.fail(Failure(start, item, problem))
        else:  # the cluster was restarted
            self.cancelled[start] += 1
            with self.run.lock:
                self.window.requeue_tail(span, len(span.items))

    def killed(self, flight: Flight, error: Any) -> None:
        """Workers have died with it: blame its only item, if nothing else was at work, or run each half of it alone.

        One death more takes seconds, as the scheduler loses several workers before it gives up; and an item that is run
        by itself takes ten milliseconds. So neither are thousands of items run one by one, nor is one death enough.
        """
        span = flight.span
        if flight.alone and len(span.items) == 1:
            self.lost(span, partial(self.killed_by, error))
            return
        with self.run.lock:
            self.suspects.update(range(span.start, span.start + len(span.items)))
            self.window.requeue_apart(span, -(-len(span.items) // 2))

    def killed_by(self, error: Any, failure: Failure) -> WorkerDied:
        where = describe(self.stage, failure.index, failure.item)
        died = WorkerDied(f"{where}: its worker died: {error}", None, failure.item)
        died.__cause__ = error
        return died

    # ----------------------------------------------------------------------------------------------------- the end

    def wind_up(self) -> None:
        """Leave nothing in the cluster. What is at work there goes on to its end, which nobody waits for."""
        self.parcels.close()
        if self.pulse is not None:
            self.pulse.cancel()
        tasks = [task for flight in self.flights if (task := flight.task) is not None]
        try:
            errors = self.cluster.call(self.leave(tasks))
            if self.stage.on_done is not None:
                for error in errors.result():
                    self.complain(error)
        except Exception:  # the cluster is gone, or its loop
            pass

    async def leave(self, tasks: list[Any]) -> list[BaseException]:
        """Cancel *tasks*, run ``on_done`` wherever the stage has begun, and have all workers forget it."""
        cluster, key = self.cluster, self.parcels.key
        try:
            await cluster.client.cancel(tasks, asynchronous=True)
            if self.stage.on_done is not None:
                ending = asyncio.ensure_future(self.end())
                while not (await asyncio.wait({ending}, timeout=PULSE))[0]:
                    try:
                        async with asyncio.timeout(2 * PATIENCE):
                            await cluster.client.scheduler.ncores()
                    except Exception:
                        ending.cancel()
                        raise
                return ending.result()
            if self.pulse is not None:  # else no worker knows it
                async with asyncio.timeout(2 * PATIENCE):
                    await cluster.run(forget, key)
        except Exception:  # it is gone
            pass
        return []

    async def end(self) -> list[BaseException]:
        """Run ``on_done``: in all workers at once, but in the last one when the others are through."""
        cluster, key = self.cluster, self.parcels.key
        with self.run.lock:
            error = self.run.error
        found: dict[str, tuple[str, int]] = await cluster.run(to_finish, key)
        # Workers that are threads of one process have their stages in common.
        homes = [
            (address, number)
            for address, number in {home: (a, n) for a, (home, n) in found.items()}.values()
            if number
        ]
        left = sum(number for _, number in homes)
        firsts = {}
        for address, number in homes:
            firsts[address] = left = left - number
        errors: list[BaseException] = []
        for addresses in [*firsts][:-1], [*firsts][-1:]:
            if addresses:
                encoded = None if error is None else encode_error(error)
                told = await cluster.run(finish, key, firsts, encoded, workers=addresses)
                errors += [decode_error(each) for ended in told.values() for each in ended]
        return errors


async def finish(
    key: str, firsts: dict[str, int], error: tuple[Any, ...] | None, dask_worker: Any
) -> list[tuple[Any, ...]]:
    """In a worker, on its loop: run ``on_done`` in each thread that has begun the stage *key*; give the errors."""
    statuses = map(
        partial(StageStatus, error=None if error is None else decode_error(error)),
        count(firsts[dask_worker.address]),
    )
    ended = await asyncio.gather(
        *(asyncio.wrap_future(aside.end(status)) for aside, status in zip(take_out(key), statuses))
    )
    return [error for error in ended if error is not None]
