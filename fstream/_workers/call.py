"""What one worker does with one item: f bound to the worker's resources, its failures named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import BoundArguments, Parameter, signature
from time import perf_counter, perf_counter_ns
from types import CoroutineType
from typing import Any, Final, Protocol

from fstream._flow.pacing import Again, further_try
from fstream._flow.span import Failure, Progress
from fstream._flow.tally import PartCounts, Parts
from fstream._flow.tolerance import Tolerance
from fstream._plan import kernels
from fstream._plan.kernels import DROP
from fstream._plan.stages import MISSING, Stage, StageStatus, WorkerInfo, declared, gives_one_for_one
from fstream._workers.failed import Failed
from fstream._workers.notes import (
    OptionFailed,
    annotate,
    annotate_item,
    describe,
    named,
    notes_of,
    shown,
)
from fstream.errors import TooManyFailures

__all__ = [
    "PART",
    "SINCE",
    "Call",
    "FusedCall",
    "Place",
    "call_of",
    "further_try_of",
    "handled",
    "handler_failed",
    "is_failure",
    "judged",
    "replaced",
    "tells",
    "tolerance_of",
    "which",
]


#: The words of a worker's cell that a `FusedCall` writes, by their positions: see `process/child.py`.
SINCE: Final = 1
PART: Final = 7

#: After a span in which the time of each part of a stage is taken come so many in which it is not: it takes 0.1
#: microseconds for each part of an item.
SPANS_UNTIMED: Final = 31


class Place(Protocol):
    """Where a worker is: at the item of index ``start + len(slots)``."""

    @property
    def start(self) -> int: ...

    @property
    def slots(self) -> Sequence[Any]: ...

    @property
    def tries(self) -> int:
        """How often its first item was tried before, by workers that are gone."""
        ...


class PlaceInParts(Place, Protocol):
    """The same, of a stage that stands for several."""

    @property
    def progress(self) -> Progress | None:
        """How far its only item has come."""
        ...


def fits(f: Callable[..., Any], *args: Any, **named: Any) -> bool:
    """Tell whether *f* can be called so, as far as its signature says."""
    try:
        shape = signature(f)
    except (TypeError, ValueError):  # some built-ins have none
        return True
    try:
        shape.bind(*args, **named)
    except TypeError:
        return False
    return True


class Call:
    """One worker's f, with the resources that ``on_start`` made."""

    #: f may give coroutines: somebody awaits them, or takes them as they are.
    takes_coroutines = False

    def __init__(self, stage: Stage, index: int, keep: Callable[[int, Any], object] | None = None) -> None:
        self.stage = stage
        self.index = index
        #: Keeps the slot of the item of an index in the stage's memo, if it has one, and this is its process.
        self.keep = keep
        #: ``on_start`` has returned, so ``on_done`` has to run.
        self.started = False
        self.resources: Any = None
        #: The span that is worked on, for `element_index`. None while a worker waits: it keeps no item and no output.
        self.place: Place | None = None
        self.step: Callable[[Any], Any] = self.bind(None)

    def set_place(self, place: Place | None) -> None:
        self.place = place

    def begin(self) -> None:
        """Run ``on_start``, before the first item."""
        if self.stage.on_start is not None:
            self.step = self.bind(self._start())
        self.started = True

    def end(self, status: StageStatus) -> None:
        """Run ``on_done``, if the worker has begun."""
        if self.started and self.stage.on_done is not None:
            self.started = False
            self._done(status)

    def _start(self) -> Any:
        on_start = self.stage.on_start
        assert on_start is not None
        return on_start(**self._known(declared(on_start)))

    def _done(self, status: StageStatus) -> Any:
        """Call ``on_done``: by name, wherever they stand, with what it declares; the rest in turn.

        One that has no parameter for any of the rest is given none of it.
        """
        on_done, resources = self.stage.on_done, self.resources
        assert on_done is not None
        named = {"worker_info": WorkerInfo(self.index), "stage_status": status}
        in_turn: list[Any] = []
        if isinstance(resources, dict):
            named = resources | named
        elif resources is not None:
            in_turn += resources if type(resources) is tuple else (resources,)
        if "stage_status" not in (by_name := declared(on_done)):
            in_turn.insert(0, status)
        try:
            shape = signature(on_done)
        except (TypeError, ValueError):  # some built-ins have none
            return on_done(*in_turn)
        given: dict[str, Any] = {}
        left = in_turn.copy()
        for name, parameter in shape.parameters.items():
            if name in by_name and name in named:
                given[name] = named[name]
            elif parameter.kind is Parameter.VAR_POSITIONAL:
                given[name], left = tuple(left), []
            elif left and parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
                given[name] = left.pop(0)
        bound = BoundArguments(shape, given)
        return on_done(*bound.args, *(left if len(left) < len(in_turn) else ()), **bound.kwargs)

    def bind(self, resources: Any) -> Callable[[Any], Any]:
        """Make item -> slot of f and *resources*."""
        self.resources = resources
        f = self.stage.f
        args, named = self._arguments(self.stage.names)
        indexed = "element_index" in self.stage.names
        if "attempt" in self.stage.names:

            def bound(item: Any) -> Any:
                place = self.place
                assert place is not None
                done = len(place.slots)
                told = {"element_index": place.start + done} if indexed else {}
                return f(item, *args, attempt=0 if done else place.tries, **told, **named)

        elif indexed:

            def bound(item: Any) -> Any:
                place = self.place
                assert place is not None
                return f(item, *args, element_index=place.start + len(place.slots), **named)

        elif args or named:

            def bound(item: Any) -> Any:
                return f(item, *args, **named)

        else:
            bound = f
        return self.wrap(bound) if self.takes_coroutines else self.checking(bound)

    def checking(self, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Make item -> slot that raises if f gives a coroutine: for the items of the first span, as it costs time."""
        step = self.wrap(bound)

        def checked(item: Any) -> Any:
            result = bound(item)
            if type(result) is CoroutineType:
                result.close()
                raise TypeError(
                    f"{self.stage.name} returned a coroutine, which kind={self.stage.kind!r} cannot run: "
                    "use kind='task'"
                )
            return result

        first = self.wrap(checked)

        def begin(item: Any) -> Any:
            slot = first(item)
            self.step = step
            return slot

        return begin

    def wrap(self, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
        step = self.stage.kernel.step(bound)
        if self.keep is None:
            return step

        def kept(item: Any) -> Any:
            return self.kept(step(item))

        return kept

    def kept(self, slot: Any) -> Any:
        """Keep the slot of the item at work, and give it back."""
        assert self.place is not None
        assert self.keep is not None
        self.keep(self.place.start + len(self.place.slots), slot)
        return slot

    def _known(self, names: frozenset[str]) -> dict[str, Any]:
        return {"worker_info": WorkerInfo(self.index)} if "worker_info" in names else {}

    def _arguments(self, names: frozenset[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The resources for a function of these *names*: one or a tuple by position, a dict by the names in it."""
        resources, named = self.resources, self._known(names)
        if resources is None:
            return (), named
        if isinstance(resources, dict):
            return (), {name: value for name, value in resources.items() if name in names} | named
        return (resources if type(resources) is tuple else (resources,)), named

    def failure(self, error: BaseException, item: Any, index: int, tries: int) -> Failure:
        """What a try of *item* comes to that ended with *error*, with the *tries* so far."""
        stage, role = self.stage, ""
        if is_final := isinstance(error, OptionFailed):
            stage, role = error.stage or stage, f"{error.role} of "
            error = named(error.error, role + stage.name)
        else:
            error = self.named(error)
        self.explain(error, item)
        annotate_item(error, stage, describe(stage, index, item), role)
        return Failure(index, item, error, tries, final=is_final)

    def ends_span(self, failure: Failure) -> bool:
        """Tell whether others have to see to *failure* before the items behind it are run."""
        return failure.tries <= self.stage.retries or self.stage.on_error == "raise"

    def explain(self, error: BaseException, item: Any) -> None:
        """Note on *error* what to write, where f cannot be called as it is, or the item is none.

        Here, as it costs nothing where nothing fails; and a function that can be called may have a wrong signature.
        """
        if item is kernels.SKIP:
            self.hint(
                error,
                "SKIP is for on_error handlers to return, and for f: this item, from the source, is SKIP",
            )
        if self.stage.kind == "process" and wants_terminal(error):
            self.hint(
                error,
                "a worker process has no terminal: to stop in f, write with fstream.inline(): around the loop",
            )
        if type(error) is not TypeError or "argument" not in repr(error.args[:1]):
            return
        f, verb = self.stage.f, self.stage.kernel.verb
        args, named = self._arguments(self.stage.names)
        named = named | {name: 0 for name in ("element_index", "attempt") if name in self.stage.names}
        if fits(f, item, *args, **named):
            return
        if isinstance(item, tuple | list) and fits(f, *item, *args, **named):
            self.hint(
                error,
                "f was given one argument, the item: to spread each item over the parameters of f, "
                f"write {verb}(star(f), source)",
            )
        else:
            given = ", ".join(
                ["item", *(f"<{type(arg).__name__}>" for arg in args), *(f"{name}=..." for name in named)]
            )
            more = "" if self.stage.on_start else ": further ones are what on_start= returns"
            self.hint(error, f"f was called as f({given}), which does not fit its parameters{more}")

    def hint(self, error: BaseException, note: str) -> None:
        """Note it once on an error that is raised for many items."""
        if note not in notes_of(error):
            annotate(error, note)

    def named(self, error: BaseException) -> BaseException:
        return named(error, self.stage.name)


def wants_terminal(error: BaseException) -> bool:
    """Tell whether *error* comes from a debugger, or from `input`, that has found no terminal."""
    if type(error) is EOFError:
        return "reading a line" in str(error)
    if type(error) is not SystemExit:
        return type(error).__name__ == "BdbQuit"
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    # From Python 3.14 on, pdb ends the program.
    return place is not None and place.tb_frame.f_globals.get("__name__") == "pdb"


class Reached(Exception):
    """Raised in the place of a part that has failed already, where only its item is wanted."""


class PlaceOfPart:
    """The place of one part of a stage, for `attempt`: each part counts its own tries."""

    def __init__(self, place: PlaceInParts, part: int) -> None:
        self.place = place
        self.part = part

    @property
    def start(self) -> int:
        return self.place.start

    @property
    def slots(self) -> Sequence[Any]:
        return self.place.slots

    @property
    def tries(self) -> int:
        progress = self.place.progress
        return 0 if progress is None else progress.tries[self.part]


class FusedCall:
    """The calls of the stages that one stands for: f after f."""

    def __init__(self, stage: Stage, calls: Sequence[Call]) -> None:
        self.stage = stage
        self.calls = calls
        #: Which of them is at work, and its item.
        self.at = self.calls[0]
        self.item: Any = None
        #: What each of them counts, and for how many more spans their time is not taken.
        self.parts = Parts(len(calls))
        self.untimed = 0
        #: It writes into its worker's cell which part is at work.
        self.told = tells(stage)
        #: With which of them the time begins anew. For the first one its worker has noted it already.
        self.numbered = [
            (number, call, number > 0 and call.stage.timeout is not None) for number, call in enumerate(calls)
        ]
        self.cell: Any = [0] * (PART + 1)
        self.place: PlaceInParts | None = None

    @property
    def index(self) -> int:
        return self.calls[0].index

    @property
    def started(self) -> bool:
        return self.calls[-1].started

    def set_place(self, place: PlaceInParts | None) -> None:
        self.place = place
        for number, call in enumerate(self.calls):
            if place is not None and "attempt" in call.stage.names:
                call.set_place(PlaceOfPart(place, number))
            else:
                call.set_place(place)

    @property
    def progress(self) -> Progress | None:
        return None if self.place is None else self.place.progress

    def begin(self) -> None:
        for call in self.calls:
            self.at = call
            call.begin()

    def end(self, status: StageStatus) -> None:
        errors = []
        for call in self.calls:
            self.at = call
            try:
                call.end(status)
            except BaseException as error:
                errors.append(call.named(error))
        if errors:
            raise errors[0]

    @property
    def step(self) -> Callable[[Any], Any]:
        """Item -> slot, for the items of a span: that of one span in `SPANS_UNTIMED` takes the time of each part."""
        if self.progress is not None:
            return self.go_on
        if self.untimed:
            self.untimed -= 1
            return self.run_told if self.told else self.run
        self.untimed = SPANS_UNTIMED
        return self.run_timed

    def run(self, item: Any) -> Any:
        for call in self.calls:
            self.at, self.item = call, item
            item = call.step(item)
            if item is DROP or item is kernels.SKIP:
                return self.dropped()
            if Failed._made and self.is_handed_on(item):
                return self.stage.kernel.kept(item)
        return item

    def run_told(self, item: Any) -> Any:
        cell = self.cell
        for number, call, timed in self.numbered:
            self.at, self.item = call, item
            if timed:
                cell[SINCE] = (
                    perf_counter_ns()
                )  # before the part: its time must not be that of the part before
            cell[PART] = number
            item = call.step(item)
            if item is DROP or item is kernels.SKIP:
                return self.dropped()
            if Failed._made and self.is_handed_on(item):
                return self.stage.kernel.kept(item)
        return item

    def go_on(self, item: Any) -> Any:
        """The same for an item that some of the parts have had, up to one that has failed already, if any."""
        assert self.progress is not None
        return self.run_timed(item, self.progress.part, self.progress.until)

    def run_timed(self, item: Any, first: int = 0, until: int | None = None) -> Any:
        seconds = self.parts.seconds
        for number, call, timed in self.numbered[first:]:
            self.at, self.item = call, item
            if number == until:
                raise Reached
            if timed:
                self.cell[SINCE] = perf_counter_ns()
            if self.told:
                self.cell[PART] = number
            begun = perf_counter()
            try:
                item = call.step(item)
            finally:
                seconds[number] += perf_counter() - begun
            if item is DROP or item is kernels.SKIP:
                return self.dropped()
            if Failed._made and self.is_handed_on(item):
                return self.stage.kernel.kept(item)
        return item

    def is_handed_on(self, item: Any) -> bool:
        """Tell whether *item*, of the part at work, is not for the parts behind it."""
        return type(item) is Failed and self.at is not self.calls[-1]

    def dropped(self) -> Any:
        self.parts.dropped[self.calls.index(self.at)] += 1
        return DROP

    def counted(self) -> PartCounts | None:
        """Give what the parts have counted since the last time."""
        parts, self.parts = self.parts, Parts(len(self.calls))
        return parts.counts()

    def failure(self, error: BaseException, item: Any, index: int, tries: int) -> Failure:
        """Say at which stage it failed, and what that was given: only here that is known."""
        error, part, progress = self.named(error), self.calls.index(self.at), self.progress
        tries = 1 if progress is None else progress.tries[part] + 1
        failure = Failure(index, self.item, error, tries, part=part, given_to=part)
        self.at.explain(error, self.item)
        annotate_item(error, self.at.stage, which(self.stage, failure, MISSING if progress else item))
        return failure

    def ends_span(self, failure: Failure) -> bool:
        return self.calls[failure.part].ends_span(failure)

    def sends_item(self, failure: Failure) -> bool:
        """Tell whether the parent is to know the item of *failure*, and does not."""
        part, progress = self.calls[failure.part].stage, self.progress
        known = failure.part == (0 if progress is None else progress.part)
        return not known and (part.retries > 0 or part.on_error not in ("raise", "skip"))

    def named(self, error: BaseException) -> BaseException:
        return self.at.named(error)


def tells(stage: Stage) -> bool:
    """Tell whether what becomes of an item depends on the part of *stage* in which it is lost."""
    return any(part.on_error != "raise" or part.retries or part.timeout is not None for part in stage.parts)


def call_of(stage: Stage, index: int) -> Call | FusedCall:
    """Make what the worker *index* of *stage* does with an item."""
    return (
        FusedCall(stage, [Call(part, index) for part in stage.parts]) if stage.parts else Call(stage, index)
    )


def which(stage: Stage, failure: Failure, made_of: Any = MISSING) -> str:
    """Name the item of *failure* in a message: which part of *stage* it was given to, and, where nobody knows its
    position there, of which item of the stage it was made.
    """
    if not stage.parts:
        return describe(stage, failure.index, failure.item)
    part = stage.parts[failure.part]
    where = f"stage {part.name!r} ({part.kind})"
    if failure.part != failure.given_to:
        return f"{where}, made of item {failure.index}: {shown(failure.item)}"
    if all(map(gives_one_for_one, stage.parts[: failure.part])):
        return describe(part, failure.index, failure.item)
    of = "" if made_of is MISSING else f": {shown(made_of)}"
    return f"{where}, {shown(failure.item)}, made of item {failure.index}{of}"


def is_failure(slot: Any) -> bool:
    return type(slot) is Failure


def judged(
    stage: Stage, tolerance: Tolerance | None, failure: Failure, worked_off: Callable[[], int]
) -> Failure:
    """Give *failure*, which `handled` is to see; or, if it is one too many, the one that ends the stream in its place.

    *worked_off* tells how many items were, this one among them.
    """
    error = failure.error
    if tolerance is None or failure.final or not isinstance(error, Exception):
        return failure
    if (what := tolerance.add(error, worked_off())) is None:
        return failure
    group = TooManyFailures(
        f"stage {stage.name!r} ({stage.kind}): {what}, max_failures is {stage.max_failures}",
        [*tolerance.errors],
    )
    annotate_item(group, stage, describe(stage, failure.index, failure.item))
    return Failure(failure.index, failure.item, group, failure.tries, final=True)


def tolerance_of(stage: Stage) -> Tolerance | None:
    return None if stage.max_failures is None else Tolerance(stage.max_failures)


def further_try_of(stage: Stage, failure: Failure, draw: Callable[[], float]) -> Again | None:
    """Ask whether the item of *failure* is tried again, which may call a hook of the user's; None if not."""
    error = failure.error
    if failure.final or not 0 < failure.tries <= stage.retries or not isinstance(error, Exception):
        return None
    return further_try(stage.retry_on, stage.backoff, error, failure.tries, draw)


def handled(stage: Stage, failure: Failure) -> Any:
    """Apply ``on_error``: give the slot that stands for the failed item, or the failure that stays."""
    error = failure.error
    if stage.on_error == "raise" or failure.final or not isinstance(error, Exception):
        return failure
    if stage.on_error == "skip":
        return DROP
    if stage.on_error == "keep":
        return stage.kernel.kept(Failed(failure.item, error, failure.index, stage.name, failure.tries))
    assert callable(stage.on_error)
    try:
        return replaced(stage, failure.item, stage.on_error(error, failure.item))
    except BaseException as raised:
        return handler_failed(stage, failure, raised)


def handler_failed(stage: Stage, failure: Failure, raised: BaseException, role: str = "on_error") -> Failure:
    """The failure that stays where ``on_error`` itself has *raised*, or another hook."""
    raised = named(raised, f"{role} of {stage.name}")
    annotate_item(raised, stage, describe(stage, failure.index, failure.item), f"{role} of ")
    return Failure(failure.index, failure.item, raised, failure.tries, final=role == "memo")


def replaced(stage: Stage, item: Any, result: Any) -> Any:
    """The slot for what a handler returned."""
    return stage.kernel.slot(item, result)
