"""Test pipelines under interleavings that a real run meets once in a million.

A test of concurrent code tries one order of events, and mostly the same one. Here a *schedule* decides it: who goes on
when, and what goes wrong. `simulated` runs pipelines by a schedule, in one thread, without real workers; `schedules`
lets hypothesis draw it, find a bad one and shrink it; `assert_lawful` does all of that for a pipeline and what it
should equal. What decides (spans, windows, order, retries, time-outs, the pool of processes) and what waits (queues,
watches, feeders, workers) is the very code that runs in production.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fstream._workers.opening import OPEN
from fstream._workers.simulated.schedule import Fault, Schedule, SimulatedError, Simulation

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["Schedule", "SimulatedError", "assert_lawful", "schedules", "simulated"]


@contextmanager
def simulated(schedule: Schedule = Schedule()) -> Iterator[Simulation]:  # noqa: B008  (it is immutable)
    """Run the pipelines of a ``with`` block in this thread alone, interleaved as *schedule* says.

        >>> from fstream import pmap
        >>> with simulated(Schedule(stalls=[0])):
        ...     list(pmap(abs, [-1, 2, -3], kind="process"))
        [1, 2, 3]

    Every stage with workers, of any kind, is simulated: no thread, process or event loop is started. The same schedule
    gives the same run, so a failure can be debugged. Stages of kind ``"process"`` get copies of f and of the items, as
    in real life, and all of them share one pool of workers, or that of the `Processes` which they name. Those of kind
    ``"task"`` run on a loop whose time is the simulation's: `asyncio.sleep` takes none. A *timeout* runs out where the
    schedule says so, and nowhere else.

    It gives the simulation; its ``story()`` tells what happened, and is added to an exception that leaves the block, or
    printed with hypothesis's example. Streams that are still open are closed at the end of the block.

    An `AssertionError` is raised where a real run would hang. Streams may be iterated by ``for`` and ``async for``, and
    awaited. The event loop of real life that this is done on stands still while the simulation goes on: async sources,
    and coroutines of f, have the simulation's loop, and cannot wait for what tasks outside do.
    """
    from fstream._workers.simulated.workers import open_run

    simulation = Simulation(schedule)
    token = OPEN.set(partial(open_run, simulation))
    try:
        yield simulation
        # It may have hung in a stream that f or a source iterates, and that took it for an error.
        if simulation.hang is not None:
            raise simulation.hang
    except BaseException as error:
        if not _noted(simulation):
            error.add_note(simulation.story())
        raise
    else:
        _noted(simulation)
    finally:
        OPEN.reset(token)
        with ExitStack() as at_end:
            for run in simulation.runs:
                at_end.callback(run.close, complain=False)


def _noted(simulation: Simulation) -> bool:
    """Tell the story with hypothesis's example, if it is hypothesis that runs the test."""
    import sys

    hypothesis = sys.modules.get("hypothesis")
    if hypothesis is None or not hypothesis.currently_in_test_context():
        return False
    hypothesis.note(simulation.story())
    return True


def schedules(*, faults: bool = False) -> SearchStrategy[Schedule]:
    """Make a hypothesis strategy of schedules; with *faults* (default False) also of what goes wrong.

        >>> from hypothesis import given
        >>> from fstream import pmap
        >>> @given(schedules())
        ... def test_order_is_kept(schedule):
        ...     with simulated(schedule):
        ...         assert list(pmap(abs, range(9), workers=3)) == list(range(9))
        >>> test_order_is_kept()

    It shrinks toward "everything in order, nothing goes wrong". The faults are deaths of process workers, items that
    run over their stage's *timeout*, and errors that f raises (`SimulatedError`).
    """
    from hypothesis import strategies as st

    kinds: list[Fault] = ["raises", "dies", "times out"]
    stalls = st.lists(st.integers(0, 8), max_size=20).map(tuple)
    drawn = st.lists(st.tuples(st.integers(0, 10), st.sampled_from(kinds)), max_size=5).map(tuple)
    return st.builds(
        Schedule,
        stalls=stalls,
        faults=drawn if faults else st.just(()),
        ahead=st.booleans(),
        cheap=st.booleans(),
    )


def assert_lawful(
    transformer: Callable[[Any], Iterable[Any]],
    reference: Callable[[Any], Iterable[Any]],
    *,
    sources: SearchStrategy[list[Any]],
) -> None:
    """Check that a pipeline equals *reference* under all schedules that hypothesis draws.

        >>> from hypothesis import strategies as st
        >>> from fstream import pmap
        >>> assert_lawful(pmap(abs, retries=1), lambda items: [abs(item) for item in items],
        ...               sources=st.lists(st.integers()))

    Call it in any test function. *transformer* is what ``pmap(f) | pfilter(g)`` gives, or any function of a source
    that is made of such. *reference* is a function from an iterable to an iterable, ``partial(map, f)`` say. *sources*
    is a strategy of lists; the pipeline gets each both as a list and as an iterator.

    Outputs are compared one by one, or as multisets if a stage is unordered. Where *reference* raises, the pipeline
    has to raise an exception of the same type, and not before it has given the outputs that *reference* gave. Then
    all is checked once more with faults: f of an item that has *retries* left raises, its worker dies, its time runs
    out; all outputs have to be there nevertheless.

    Raises `AssertionError`, or what the pipeline raises and should not, with the smallest source and schedule that
    hypothesis finds, and the story of that run.
    """
    from hypothesis import HealthCheck, given, settings

    # One failure, the simplest: several would come as a group, which is no AssertionError. No database: to hypothesis
    # all pipelines are one test, and it takes what it kept of another, or of a run that was cut off, for the simplest.
    quietly = settings(
        deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False, database=None
    )

    @settings(quietly, max_examples=2 * quietly.max_examples)
    @given(source=sources, schedule=schedules())
    def check_in_any_order(source: list[Any], schedule: Schedule) -> None:
        _check(transformer, reference, source, schedule)

    @quietly
    @given(source=sources, schedule=schedules(faults=True))
    def check_with_faults(source: list[Any], schedule: Schedule) -> None:
        _check(transformer, reference, source, replace(schedule, transient=True))

    check_in_any_order()
    check_with_faults()


def _check(transformer: Any, reference: Any, source: list[Any], schedule: Schedule) -> None:
    expected, expected_error = _outcome(lambda: reference(source))
    for given in (source, iter(source)):
        with simulated(schedule) as simulation:
            outputs, error = _outcome(lambda: transformer(given))  # noqa: B023  (called at once)
            unordered = any(run.unordered for run in simulation.runs)
            if error is not None and (expected_error is None or type(error) is not type(expected_error)):
                raise error
            what = f"{_shown(transformer)} gave {outputs!r}, the reference {expected!r}"
            assert error is not None or expected_error is None, f"{what}, and then raised {expected_error!r}"
            if error is None:
                assert outputs == expected or (unordered and _same_multiset(outputs, expected)), what
            elif not unordered:
                assert outputs[: len(expected)] == expected, f"{what} before the error"


def _shown(transformer: Any) -> str:
    return str(getattr(transformer, "__name__", transformer))


def _outcome(outputs: Callable[[], Iterable[Any]]) -> tuple[list[Any], Exception | None]:
    """The outputs, and the error that they end with."""
    given: list[Any] = []
    try:
        given.extend(outputs())
    except Exception as error:
        return given, error
    return given, None


def _same_multiset(left: list[Any], right: list[Any]) -> bool:
    left = list(left)
    for item in right:
        if item not in left:
            return False
        left.remove(item)
    return not left
