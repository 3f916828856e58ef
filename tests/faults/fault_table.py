"""The faults: one row each, with the one thing that must happen, whatever the kind, order, window, source.

`test_fault_matrix` makes a test of each combination. What makes no sense is left out by its row,
which says why.
"""

from __future__ import annotations

import asyncio
import os
import random
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fstream import SKIP, WorkerDied
from fstream.errors import NotPicklable, RemoteError, WorkerTraceback
from tests.faults import faulty
from tests.faults.faulty import KINDS, Boom, Done, Handler, Start, Tally, chain, said

STAGE = "the-stage"
SOURCES = ("list", "generator", "infinite", "slow")
SIZES = (1, 4, None, 0)
ITEMS = 12

FOREVER = 1_000_000
TIMEOUT = 1.0


@dataclass(frozen=True)
class Raises:
    """Outputs come first, then an error that passes *check*.

    Which outputs, *after* says: those before the bad item (if unordered, some of the others), or "nothing",
    or all that the "source" gave before it failed, or "everything". *tries* is how often f began on the item.
    """

    check: Callable[[BaseException, Case], None]
    after: Literal["item", "nothing", "source", "everything"] = "item"
    tries: int | None = None


@dataclass(frozen=True)
class Gives:
    """Every output comes, once; that of the bad item is *instead*, or is dropped."""

    instead: Callable[[int], Any] | None = faulty.ten
    tries: int | None = None


@dataclass(frozen=True)
class Fault:
    name: str
    expect: Raises | Gives
    act: Callable[[Any], Any] = faulty.ten
    """What f does with the bad item, on the first *times* tries."""
    task_act: Callable[[Any], Any] | None = None
    """The same for the kind "task", where it differs."""
    times: int = FOREVER
    parcel: Callable[[int], Any] | None = None
    """What stands in the source for the bad item."""
    source_act: Callable[[Any], Any] | None = None
    """What the source does in place of yielding the bad item."""
    function: Callable[..., Any] | None = None
    """What stands for f altogether."""
    options: Callable[[Tally], Mapping[str, Any]] = lambda tally: {}
    dear: bool = False
    """Takes its time (a timeout), so pairs of options are tried rather than all combinations."""
    takes: float = 0.0
    """Seconds that must pass before the error can come."""
    without_kinds: Mapping[str, str] = field(default_factory=dict)
    """The kinds left out, and why."""
    without_sources: Mapping[str, str] = field(default_factory=dict)
    """The sources left out, and why."""


@dataclass(frozen=True)
class Case:
    """One combination: a cell of the matrix."""

    fault: Fault
    kind: str
    ordered: bool
    maxsize: int | None
    source: str
    at: int

    @property
    def id(self) -> str:
        order = "ordered" if self.ordered else "unordered"
        return f"{self.fault.name}-{self.kind}-{order}-{self.maxsize}-{self.source}-at{self.at}"

    @property
    def bad_item(self) -> Any:
        return self.fault.parcel(self.at) if self.fault.parcel else self.at


# Checks of errors


def names(*words: object) -> Callable[[BaseException, Case], None]:
    """The caller can read all *words*, the stage and the item."""

    def check(error: BaseException, case: Case) -> None:
        for word in (*words, STAGE, case.bad_item):
            assert str(word) in said(error), f"{word!r} is not named in {said(error)!r}"

    return check


def is_a(*types: type[BaseException]) -> Callable[[BaseException, Case], None]:
    def check(error: BaseException, case: Case) -> None:
        assert isinstance(error, types), repr(error)

    return check


def every(*checks: Callable[[BaseException, Case], None]) -> Callable[[BaseException, Case], None]:
    def check(error: BaseException, case: Case) -> None:
        for each in checks:
            each(error, case)

    return check


def noted(error: BaseException, case: Case) -> None:
    """A note says in which stage, on what kind, at which item."""
    assert any(
        f"in stage {STAGE!r} ({case.kind}), item {case.at}" in note
        for note in getattr(error, "__notes__", ())
    ), getattr(error, "__notes__", "no notes")


def the_very(error: BaseException, case: Case) -> None:
    """The object that was raised; from another process one with a cause that shows where it was raised."""
    if case.kind == "process":
        last = chain(error)[-1]
        assert isinstance(last, WorkerTraceback)
        assert case.fault.act.__name__ in str(last), "the worker's traceback does not show where f raised"
    else:
        assert error is faulty.RAISED[-1]
        assert "throw" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def the_boom(error: BaseException, case: Case) -> None:
    """`raise_boom`'s error, whole."""
    assert type(error) is Boom
    assert error.args == ("no good", 42)
    assert error.code == 7
    first = chain(error)[0]
    assert type(first) is KeyError and first.args == ("root",)
    the_very(error, case)


def travelled(kind: type[BaseException], *words: str) -> Callable[[BaseException, Case], None]:
    """An error of *kind*; from a process a stand-in that says so, with its message and traceback."""

    def check(error: BaseException, case: Case) -> None:
        if case.kind != "process" or type(error) is kind:
            assert type(error) is kind
            the_very(error, case)
        else:
            assert isinstance(error, RemoteError)
            for word in (kind.__name__, case.fault.act.__name__, *words):
                assert word in said(error), f"{word!r} is not in {said(error)!r}"

    return check


def not_picklable(*words: str) -> Callable[[BaseException, Case], None]:
    def check(error: BaseException, case: Case) -> None:
        assert isinstance(error, NotPicklable), repr(error)
        names(*words)(error, case)

    return check


def cannot_ship(word: str) -> Callable[[BaseException, Case], None]:
    """A function of the stage cannot be pickled: no item is to blame."""

    def check(error: BaseException, case: Case) -> None:
        assert isinstance(error, NotPicklable), repr(error)
        assert STAGE in said(error) and word in said(error), said(error)

    return check


def died(exitcode: int) -> Callable[[BaseException, Case], None]:
    def check(error: BaseException, case: Case) -> None:
        assert isinstance(error, WorkerDied), repr(error)
        assert (error.exitcode, error.item) == (exitcode, case.bad_item)
        names(abs(exitcode))(error, case)

    return check


def died_starting(error: BaseException, case: Case) -> None:
    assert isinstance(error, WorkerDied), repr(error)
    assert (error.exitcode, error.item) == (7, None)
    assert STAGE in said(error)


def stopped(error: BaseException, case: Case) -> None:
    """PEP 479: an error that names f, and no shorter stream."""
    assert type(error) is RuntimeError
    assert any(isinstance(cause, StopIteration) for cause in chain(error))
    assert STAGE in said(error)


def exits_3(error: BaseException, case: Case) -> None:
    assert type(error) is SystemExit and error.code == 3


def source_boom(error: BaseException, case: Case) -> None:
    """The source runs in this process, so its error is the very object."""
    assert error is faulty.RAISED[-1]


def start_boom(error: BaseException, case: Case) -> None:
    assert type(error) is Boom and error.code == 7


# Handlers for on_error


def answer_item(error: BaseException, item: Any) -> Any:
    assert isinstance(error, Boom)
    return -item - 1


def answer_death(error: BaseException, item: Any) -> Any:
    assert isinstance(error, WorkerDied)
    return -item - 1


def answer_skip(error: BaseException, item: Any) -> Any:
    return SKIP


def answer_none(error: BaseException, item: Any) -> None:
    return None


def answer_badly(error: BaseException, item: Any) -> Any:
    faulty.throw(LookupError("no answer"), error)


def handler_failed(error: BaseException, case: Case) -> None:
    assert error is faulty.RAISED[-1], "the handler runs in the parent, so its error is the very object"
    assert isinstance(error, LookupError)


# Reasons

ONLY_PROCESS = dict.fromkeys(("sync", "thread", "task"), "nothing is pickled")
ONLY_MORTAL = dict.fromkeys(("sync", "thread", "task"), "the worker is this very process")
NO_TIMEOUT = {"sync": "there is nobody to stop it"}
CANNOT_RAISE = {"list": "a list does not raise", "infinite": "it would not be infinite"}
NEVER_DONE = {"infinite": "on_done runs when the stage ends; for close() see test_fault_cases"}


def with_handler(
    answer: Callable[[BaseException, Any], Any], **options: Any
) -> Callable[[Tally], dict[str, Any]]:
    return lambda tally: {"on_error": Handler(tally, answer), **options}


def fixed(**options: Any) -> Callable[[Tally], dict[str, Any]]:
    return lambda tally: options


def deaths() -> list[Fault]:
    """Each way to die, without and with a remedy."""
    ways: list[tuple[str, int, Mapping[str, Any]]] = [
        ("exit_7", 7, {"act": faulty.exit_7}),
        ("exit_0", 0, {"act": faulty.exit_0}),
        ("killed", -9, {"act": faulty.kill_self}),
        ("segfault", -11, {"act": faulty.segfault}),
        ("dies_unpickling_item", 7, {"parcel": faulty.KillsUnpickler}),
        ("dies_pickling_output", 7, {"act": faulty.give_killer}),
    ]
    return [
        Fault(name, Raises(died(exitcode)), without_kinds=ONLY_MORTAL, **how) for name, exitcode, how in ways
    ] + [
        Fault(
            f"{name}_skipped", Gives(None), options=fixed(on_error="skip"), without_kinds=ONLY_MORTAL, **how
        )
        for name, _, how in ways
        if name in ("exit_7", "segfault", "dies_unpickling_item", "dies_pickling_output")
    ]


FAULTS: list[Fault] = [
    # f raises
    Fault("raises", Raises(every(the_boom, noted)), act=faulty.raise_boom),
    Fault(
        "raises_needs_args",
        Raises(every(travelled(faulty.NeedsTwo, "no part of 42"), names())),
        act=faulty.raise_needs_two,
    ),
    Fault(
        "raises_with_lock",
        Raises(every(travelled(Boom, "holds a lock"), names())),
        act=faulty.raise_with_lock,
    ),
    Fault(
        "raises_with_socket",
        Raises(every(travelled(Boom, "holds a socket"), names())),
        act=faulty.raise_with_socket,
    ),
    Fault(
        "raises_bad_rebuild",
        Raises(every(travelled(faulty.BadRebuild, "no way back"), names())),
        act=faulty.raise_bad_rebuild,
    ),
    Fault("raises_frozen", Raises(travelled(faulty.Frozen, "42")), act=faulty.raise_frozen),
    Fault("raises_item_without_repr", Raises(the_boom), act=faulty.raise_boom, parcel=faulty.Shy),
    Fault("stop_iteration", Raises(stopped), act=faulty.raise_stop_iteration),
    Fault(
        "stop_async_iteration",
        Raises(is_a(StopAsyncIteration, RuntimeError)),
        act=faulty.raise_stop_async_iteration,
    ),
    Fault("generator_exit", Raises(is_a(GeneratorExit, RuntimeError)), act=faulty.raise_generator_exit),
    Fault("cancelled", Raises(is_a(asyncio.CancelledError, RuntimeError)), act=faulty.raise_cancelled),
    Fault("system_exit", Raises(exits_3), act=faulty.raise_system_exit),
    Fault("keyboard_interrupt", Raises(is_a(KeyboardInterrupt)), act=faulty.raise_interrupt),
    Fault(
        "system_exit_not_skipped",
        Raises(exits_3),
        act=faulty.raise_system_exit,
        options=fixed(on_error="skip"),
    ),
    Fault(
        "keyboard_interrupt_not_retried",
        Raises(is_a(KeyboardInterrupt), tries=1),
        act=faulty.raise_interrupt,
        options=fixed(retries=2, backoff=0),
    ),
    # and what can be done about it
    Fault("retried", Gives(tries=3), act=faulty.raise_boom, times=2, options=fixed(retries=2, backoff=0)),
    Fault(
        "retried_in_vain",
        Raises(every(the_boom, noted), tries=3),
        act=faulty.raise_boom,
        options=fixed(retries=2, backoff=0),
    ),
    Fault("skipped", Gives(None, tries=1), act=faulty.raise_boom, options=fixed(on_error="skip")),
    Fault(
        "retried_then_skipped",
        Gives(None, tries=2),
        act=faulty.raise_boom,
        options=fixed(on_error="skip", retries=1, backoff=0),
    ),
    Fault(
        "answered",
        Gives(lambda item: -item - 1, tries=1),
        act=faulty.raise_boom,
        options=with_handler(answer_item),
    ),
    Fault(
        "answered_none", Gives(lambda item: None), act=faulty.raise_boom, options=with_handler(answer_none)
    ),
    Fault("answered_skip", Gives(None, tries=1), act=faulty.raise_boom, options=with_handler(answer_skip)),
    Fault(
        "retried_then_answered",
        Gives(lambda item: -item - 1, tries=2),
        act=faulty.raise_boom,
        options=with_handler(answer_item, retries=1, backoff=0),
    ),
    Fault(
        "answered_badly", Raises(handler_failed), act=faulty.raise_boom, options=with_handler(answer_badly)
    ),
    # what cannot be pickled
    Fault("output_lock", Raises(not_picklable("lock")), act=faulty.give_lock, without_kinds=ONLY_PROCESS),
    Fault(
        "output_unpicklable",
        Raises(not_picklable("does not travel")),
        act=faulty.give_unpicklable,
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "output_unrebuildable",
        Raises(names("cannot be rebuilt")),
        act=faulty.give_unrebuildable,
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "output_unpicklable_skipped",
        Gives(None),
        act=faulty.give_unpicklable,
        options=fixed(on_error="skip"),
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "item_unpicklable",
        Raises(not_picklable("does not travel")),
        parcel=faulty.Unpicklable,
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "item_unrebuildable",
        Raises(names("cannot be rebuilt")),
        parcel=faulty.Unrebuildable,
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "item_unpicklable_skipped",
        Gives(None),
        parcel=faulty.Unpicklable,
        options=fixed(on_error="skip"),
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "f_unpicklable",
        Raises(cannot_ship("lock"), after="nothing"),
        function=faulty.Clinging(),
        without_kinds=ONLY_PROCESS,
    ),
    Fault(
        "on_start_unpicklable",
        Raises(cannot_ship("lock"), after="nothing"),
        options=lambda tally: {"on_start": faulty.Clinging()},
        without_kinds=ONLY_PROCESS,
    ),
    # the worker dies
    *deaths(),
    Fault(
        "death_retried",
        Gives(),
        act=faulty.exit_7,
        times=1,
        options=fixed(retries=1, backoff=0),
        without_kinds=ONLY_MORTAL,
    ),
    Fault(
        "death_retried_in_vain",
        Raises(died(7)),
        act=faulty.exit_7,
        options=fixed(retries=2, backoff=0),
        without_kinds=ONLY_MORTAL,
    ),
    Fault(
        "death_answered",
        Gives(lambda item: -item - 1),
        act=faulty.exit_7,
        options=with_handler(answer_death),
        without_kinds=ONLY_MORTAL,
    ),
    # the source
    Fault(
        "source_raises",
        Raises(source_boom, after="source"),
        source_act=faulty.raise_boom,
        without_sources=CANNOT_RAISE,
    ),
    Fault(
        "source_raises_not_skipped",
        Raises(source_boom, after="source"),
        source_act=faulty.raise_boom,
        options=fixed(on_error="skip", retries=2, backoff=0),
        without_sources=CANNOT_RAISE,
    ),
    Fault(
        "source_exits",
        Raises(exits_3, after="source"),
        source_act=faulty.raise_system_exit,
        without_sources=CANNOT_RAISE,
    ),
    Fault(
        "source_interrupts",
        Raises(is_a(KeyboardInterrupt), after="source"),
        source_act=faulty.raise_interrupt,
        without_sources=CANNOT_RAISE,
    ),
    # time
    Fault(
        "timeout",
        Raises(every(is_a(TimeoutError), names(TIMEOUT))),
        act=faulty.hang,
        task_act=faulty.hang_task,
        options=fixed(timeout=TIMEOUT),
        takes=TIMEOUT,
        dear=True,
        without_kinds=NO_TIMEOUT,
    ),
    Fault(
        "timeout_retried",
        Gives(tries=2),
        act=faulty.hang,
        task_act=faulty.hang_task,
        times=1,
        options=fixed(timeout=TIMEOUT, retries=1, backoff=0),
        dear=True,
        without_kinds=NO_TIMEOUT,
    ),
    Fault(
        "timeout_skipped",
        Gives(None, tries=1),
        act=faulty.hang,
        task_act=faulty.hang_task,
        options=fixed(timeout=TIMEOUT, on_error="skip"),
        dear=True,
        without_kinds=NO_TIMEOUT,
    ),
    # resources
    Fault(
        "on_start_raises",
        Raises(start_boom, after="nothing"),
        options=lambda tally: {"on_start": Start(tally, faulty.raise_boom)},
    ),
    Fault(
        "on_start_raises_not_skipped",
        Raises(start_boom, after="nothing"),
        options=lambda tally: {
            "on_start": Start(tally, faulty.raise_boom),
            "on_error": "skip",
            "retries": 2,
            "backoff": 0,
        },
    ),
    Fault(
        "on_start_dies",
        Raises(died_starting, after="nothing"),
        options=lambda tally: {"on_start": Start(tally, faulty.exit_7), "retries": 2, "backoff": 0},
        without_kinds=ONLY_MORTAL,
    ),
    Fault(
        "on_start_dies_once",
        Gives(),
        options=lambda tally: {"on_start": Start(tally, faulty.exit_7, times=1), "retries": 2, "backoff": 0},
        without_kinds=ONLY_MORTAL,
    ),
    Fault(
        "on_done_raises",
        Raises(start_boom, after="everything"),
        options=lambda tally: {"on_done": Done(tally, faulty.raise_boom), "on_start": Start(tally)},
        without_sources=NEVER_DONE,
    ),
]


def cells(full: bool) -> list[Case]:
    """The combinations to try: all, or all pairs of options where a cell takes its time."""
    found = []
    for fault in FAULTS:
        for kind in KINDS:
            if kind in fault.without_kinds:
                continue
            pairs = not full and (kind == "process" or fault.dear)
            sources = [source for source in SOURCES if source not in fault.without_sources]
            for i, maxsize in enumerate(SIZES):
                for j, source in enumerate(sources):
                    for ordered in (True, False):
                        if pairs and ordered is not ((i + j) % 2 == 0):
                            continue
                        at = (0, 5, ITEMS - 1)[(i + j + ordered) % 3]
                        found.append(Case(fault, kind, ordered, maxsize, source, at))
    return found


def chosen() -> list[Case]:
    """The cells that `FSTREAM_MATRIX` asks for: "full", "drawn", or by default the pairs."""
    asked = os.environ.get("FSTREAM_MATRIX", "pairs")
    if asked not in ("full", "pairs", "drawn"):
        raise ValueError(f"FSTREAM_MATRIX must be 'full', 'pairs' or 'drawn', got {asked!r}")
    if asked == "full":
        return cells(full=True)
    found = cells(full=False)
    if asked == "pairs":
        return found
    drawn = set(random.Random(os.environ["FSTREAM_DRAW"]).sample(range(len(found)), len(found) // 10))
    return [case for number, case in enumerate(found) if number in drawn]
