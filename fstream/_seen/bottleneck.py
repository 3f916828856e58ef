"""Which part of a pipeline holds the others back, and why.

Everybody waits for the slowest part: those before it for room, those behind it for items, and it waits for nobody. So
it is the part that is at work for the largest share of the time. A part is the source, a stage, the thread that
pickles for a stage, or the consumer. The time in which a stage could neither take nor give, though its outputs were
waited for, counts as its work: its window is too small, or its outputs wait for a slow item before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from fstream._flow.tally import Hold
from fstream._flow.weight import has_gil
from fstream._seen.account import Account, Entry

__all__ = ["CONSUMER", "SOURCE", "Bottleneck", "find"]

SOURCE: Final = "the source"
CONSUMER: Final = "the consumer"

#: Threads that use at least this share of one CPU, all together, and no more than `ONE_CPU`, wait for the interpreter.
#: Not nearly all of one: others may use it, too.
MUCH_CPU: Final = 0.35
ONE_CPU: Final = 1.25

#: A thread stage that uses at least this share of one CPU keeps the threads of other stages waiting for the GIL: they
#: look busy, and are not.
MOST_CPU: Final = 0.75

#: More than this many threads at work, in the mean, are several.
SEVERAL: Final = 1.25


#: What to say of what holds a stage up.
_HOLDS: Final = {
    Hold.RATE: "its rate lets no try start for {:.0%} of the time: a higher rate",
    Hold.KEY: "items wait for others of their key for {:.0%} of the time: a larger per_key, or more different keys",
    Hold.WORKERS: "it waits for worker processes, which start or work for other stages, for {:.0%} of the time: "
    "more CPUs, or a Processes of its own",
    Hold.RETRIES: "items wait for their next try for {:.0%} of the time: fewer failures, or a shorter backoff",
}

#: Those beyond which no worker helps: where they hold up some of the workers, more of them would be held up, too.
_LIMITS: Final = {Hold.RATE, Hold.KEY}


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """What holds a pipeline back: its *name*, and *why*; the two are its ``str``.

    *name* is that of a stage, "the source" or "the consumer"; *share* is the share of the time in which it was at work
    or held up, 1 at most.
    """

    name: str
    why: str
    share: float

    def __str__(self) -> str:
        return f"{self.name}{self.why}"


@dataclass
class Part:
    """A part of the pipeline, and what share of the time it was at work."""

    name: str
    share: float
    entry: Entry | None = None
    #: What share of the time it waited for items.
    starved: float = 0.0
    #: The time, as a share, in which its own window kept it from work.
    narrow: float = 0.0
    #: How many of its workers were at work in the mean, and the CPU time of its threads, as a share of the time.
    at_once: float = 0.0
    cpu: float = 0.0
    #: Threads of other stages wait for the GIL that its threads have.
    has_gil: bool = False
    #: This is the thread that pickles what goes to its worker processes, and unpickles what they give.
    pickles: bool = False
    #: What held its workers up for the largest share of the time, if anything did, and that share.
    hold: Hold | None = None
    held_up: float = 0.0


def find(accounts: Sequence[Account]) -> Bottleneck | None:
    """Name the bottleneck of the runs of *accounts*, which are in the order of their stages."""
    if not any(entry.taken for account in accounts for entry in account.entries) and not any(
        account.away or account.waited for account in accounts
    ):
        return None
    whole = max(account.seconds for account in accounts) or 1.0
    parts = list(parts_of(accounts, whole))
    # Of equal ones the last: what is before it waits for it.
    slowest = behind_the_gil(max(reversed(parts), key=lambda part: part.share), parts)
    after = [part for part in parts[parts.index(slowest) + 1 :] if not part.pickles]
    before = parts[: parts.index(slowest)]
    return Bottleneck(slowest.name, why(slowest, before, after), min(1.0, slowest.share))


def parts_of(accounts: Sequence[Account], whole: float) -> Iterator[Part]:
    """Give the parts of a pipeline, from the source on."""
    last = accounts[-1]
    for account in accounts:
        outermost = not account.sources
        in_place = account.entries and not account.runs_row
        if outermost:
            if in_place:
                pulling = account.entries[0].starved - sum(account.entries[0].held_up.values())
            else:
                pulling = account.pulling / max(1, account.feeders)
            yield Part(SOURCE, pulling / whole)
        for number, entry in enumerate(account.entries):
            yield from stage_parts(account, number, entry, whole)
        if account is last:
            away = account.entries[-1].blocked if in_place else account.away
            waited = 0.0 if in_place else account.waited
            yield Part(CONSUMER, away / whole, starved=waited / whole)


def stage_parts(account: Account, number: int, entry: Entry, whole: float) -> Iterator[Part]:
    """Give the part that a stage is, or each of those that it stands for."""
    time = whole * (entry.workers if account.runs_row else 1) or 1.0
    hold, seconds_held = max(entry.held_up.items(), key=itemgetter(1), default=(None, 0.0))
    pickling = entry.tally.pumped / whole
    held_up = max(0.0, seconds_held / time - pickling)
    if not account.runs_row:
        share = entry.busy / whole + held_up
        yield Part(
            entry.serves or entry.names[0], share, entry, entry.starved / whole, hold=hold, held_up=held_up
        )
        return
    # So many workers can be at work at once.
    most = min(entry.workers, entry.maxsize or entry.workers) or 1
    busy = min(1.0, entry.busy / (whole * most))
    after = account.entries[number + 1] if number + 1 < len(account.entries) else None
    if after is None:
        not_waiting = 1.0 - account.waited / whole
    else:
        not_waiting = 1.0 - (after.starved - sum(after.held_up.values())) / (after.whole or 1.0)
    narrow = max(0.0, entry.blocked / time - max(0.0, not_waiting) - pickling)
    # What keeps it from work beyond what its bound says, while at least one item is at work. Where none is, nobody
    # waits for a slow item: the machine is slow to wake those behind.
    at_once = entry.busy / whole
    narrow = min(narrow, 1.0 - busy, at_once) if busy < 0.9 else 0.0
    share = busy + narrow + held_up
    starved = entry.starved / time
    name = " | ".join(entry.names)
    if entry.tally.parts is not None and any(seconds := entry.tally.parts.seconds):
        name = entry.names[max(range(len(seconds)), key=seconds.__getitem__)]
    yield Part(name, share, entry, starved, narrow, at_once, entry.cpu / whole, hold=hold, held_up=held_up)
    if pickling:
        yield Part(name, pickling, entry, pickles=True)


def why(part: Part, before: Sequence[Part], after: Sequence[Part]) -> str:
    """Say why, and what would help."""
    entry = part.entry
    if part.name == SOURCE and entry is None:
        return f": pulled from for {part.share:.0%} of the time{_waits(after)}: a faster source"
    if part.name == CONSUMER and entry is None:
        held = [
            each.name
            for each in before
            if each.entry is not None and each.entry.blocked > 0.1 * each.entry.whole
        ]
        full = f"; {held[-1]} waits for room" if held else ""
        return f": busy with outputs for {part.share:.0%} of the time{full}: a faster consumer"
    assert entry is not None
    workers = f"{entry.workers} worker{'s' * (entry.workers != 1)}"
    if part.pickles:
        return (
            f" (process): to pickle its items and outputs takes {part.share:.0%} of the time, in one thread: "
            "smaller ones, such as paths in place of contents, or kind='thread'"
        )
    if entry.serves:
        return f": its keys, costs or weights take {part.share:.0%} of the time, in one thread: cheaper ones"
    if part.hold is not None and part.held_up > part.share / (4 if part.hold in _LIMITS else 2):
        return f" ({entry.kind}): {_HOLDS[part.hold].format(part.held_up)}"
    if entry.maxsize and entry.maxsize < entry.workers:
        return (
            f" ({entry.kind}): maxsize={entry.maxsize} keeps {entry.workers - entry.maxsize} of {workers} from work"
            f"{_waits(after)}: a larger maxsize"
        )
    if part.narrow > part.share / 2:
        return f" ({entry.kind}): {_narrow(part, entry)}"
    busy = entry.busy / (entry.whole or 1.0)
    return f" ({entry.kind}): busy {busy:.0%} of the time, {workers}{_waits(after)}: {_help(part, entry)}"


def _waits(after: Sequence[Part]) -> str:
    """Who waits for it."""
    if not after or after[0].starved < 0.01:
        return ""
    return f"; {after[0].name} waits for items {after[0].starved:.0%} of its time"


def _narrow(part: Part, entry: Entry) -> str:
    room = f"maxsize={entry.maxsize}" if entry.maxsize else "its window"
    if not entry.ordered:
        return f"{room} is full for {part.narrow:.0%} of the time while it is waited for: a larger maxsize"
    return (
        f"{room} is full for {part.narrow:.0%} of the time, as what is done waits for a slow item before it: "
        "ordered=False, a larger maxsize, or an even cost of items"
    )


def _help(part: Part, entry: Entry) -> str:
    name = part.name
    if entry.kind == "process":
        return f"more CPUs, or a cheaper {name}"
    if entry.kind == "sync":
        return f"kind='thread' or kind='process', or a cheaper {name}"
    if entry.kind == "thread" and has_gil() and MUCH_CPU <= part.cpu <= ONE_CPU:
        if part.at_once > SEVERAL:
            return "its threads wait for the GIL, which lets one run at a time: kind='process'"
        if part.has_gil:
            return f"it has the GIL for {part.cpu:.0%} of the time, and others wait for that: kind='process'"
    return f"more workers, or a faster {name}"


def behind_the_gil(slowest: Part, parts: Sequence[Part]) -> Part:
    """Give the thread stage that keeps the threads of *slowest* from the GIL; or *slowest*, if there is no such."""
    if slowest.entry is None or slowest.entry.kind != "thread" or not has_gil():
        return slowest
    at_work = [part for part in parts if part.narrow + part.held_up < part.share / 2]
    holder = max(at_work, key=lambda part: part.cpu, default=slowest)
    if holder is slowest or holder.cpu < MOST_CPU:
        return slowest
    holder.has_gil = True
    return holder
