"""What a window counts for a rate, holds back and has worked off, step by step, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

import pytest

from fstream._flow.known import Known, Knowns
from fstream._flow.pacing import Again, Keys, Limit, Pacing, Ticket
from fstream._flow.room import Room
from fstream._flow.sizing import Numbers
from fstream._flow.sources import Slices
from fstream._flow.span import Failure, Span
from fstream._flow.window import Window
from fstream._plan.kernels import MAP
from tests.gates import Clock


class Paced:
    """A window over *items*, so cheap that a span takes all that it may have, and its clock and limit."""

    def __init__(
        self,
        items: Sequence[Any],
        *,
        n: float | None = 1000,
        per_key: int | None = None,
        may_come: Callable[[], bool] | None = None,
        loses: bool = True,
        remote: bool = False,
        cost: float = 1.0,
    ) -> None:
        self.clock = Clock(100.0)
        self.limit = None if n is None else Limit(n, 1.0)
        keys = None if per_key is None else Keys(per_key)
        ticketed = per_key is not None or cost != 1.0

        def ticket(item: Any) -> Any:
            return item if isinstance(item, Known) else Ticket(item, item if per_key else None, cost)

        pacing = Pacing(self.clock, self.limit, keys, ticketed=ticketed)
        self.window = Window(
            Slices([ticket(item) for item in items] if ticketed else items),
            Room(0, 2),
            workers=len(items),
            ordered=True,
            outputs=lambda slots: MAP.outputs(slots, skips=False),
            one_each=True,
            numbers=Numbers(shares=lambda workers: 1, remote=remote),
            loses=loses,
            knowns=None if may_come is None else Knowns({}, may_come),
            pacing=None if n is None and per_key is None and not loses else pacing,
        )
        self.window.sizing.cost, self.window.sizing.last_size = 0.0, len(items)

    def failing(self, most: int = 1) -> Span:
        """Take a span whose worker has started its first item."""
        span = self.taken(most)
        begin(span, 0)
        return span

    @property
    def used(self) -> float:
        """What the limit counts now, of starts that have begun and of those that may yet."""
        assert self.limit is not None
        self.limit.look(self.clock.now)
        return self.limit.used

    @property
    def worked_off(self) -> int:
        return self.window.ledger.worked_off

    def taken(self, most: int = 999) -> Span:
        span = self.window.take(self.clock.now, most)
        assert span is not None
        return span

    def finish(self, span: Span) -> None:
        begin(span, len(span.items) - len(span.slots))
        self.window.done(span, 0.0)


def begin(span: Span, count: int) -> None:
    """Finish *count* more items of *span*."""
    claimed = span.claim()
    assert claimed is not None or not count
    span.slots.extend(item for item, _ in zip(claimed or (), range(count)))


def racing(answers: Iterable[bool]) -> Callable[[], bool]:
    """Say one after the other of *answers*, and then the last one: a feeder has brought something meanwhile."""
    said = iter(answers)
    last = False

    def may_come() -> bool:
        nonlocal last
        last = next(said, last)
        return last

    return may_come


# ---------------------------------------------------------------------------------------------- what a rate counts


def test_a_single_item_counts_from_when_it_is_taken_for_the_time_of_the_limit():
    paced = Paced("ab")
    paced.finish(paced.taken(1))
    assert paced.used == 1
    paced.clock.now += 1.0
    assert paced.used == 1  # the window is longer by a hundredth
    paced.clock.now += 0.02
    assert paced.used == 0


def test_the_last_items_of_a_span_begin_later_so_all_count_until_a_limit_s_time_after_its_end():
    paced = Paced("abc")
    span = paced.taken()
    paced.clock.now += 5.0
    assert len(span.items) == paced.used == 3
    paced.finish(span)
    paced.clock.now += 1.0
    assert paced.used == 3
    paced.clock.now += 0.02
    assert paced.used == 0


def test_what_turns_out_to_need_no_worker_gives_its_starts_back():
    paced = Paced([Known(item, item) for item in "abc"], may_come=racing([False, True]))
    assert paced.window.take(paced.clock.now) is None
    assert paced.used == 0
    assert paced.limit is not None and paced.limit.bucket == paced.limit.burst
    assert paced.window.available() == 3
    assert paced.window.draw(9)[0] == ["a", "b", "c"]


def test_where_some_need_no_worker_the_starts_of_the_others_stay_counted():
    paced = Paced(["a", Known("b", "B"), Known("c", "C"), "d"], may_come=racing([False, True]))
    first = paced.taken()
    assert (first.items, paced.used) == (["a"], 1)
    second = paced.taken()
    assert (second.items, paced.used) == (["d"], 2)
    paced.finish(first)
    paced.finish(second)
    assert paced.window.available() == 4
    assert paced.window.draw(9)[0] == ["a", "B", "C", "d"]


def test_what_needs_no_worker_and_comes_among_tickets_is_given_out_as_it_is():
    paced = Paced(["a", Known("b", "B"), "c"], per_key=1, may_come=racing([False, True]))
    first = paced.taken()
    paced.finish(first)
    paced.finish(paced.taken())
    assert first.items == ["a"]
    assert paced.window.available() == 3
    assert paced.window.draw(9)[0] == ["a", "B", "c"]


def test_no_more_is_taken_than_may_start():
    paced = Paced("abcdefgh", n=60)
    assert [len(paced.taken().items), paced.window.take(paced.clock.now)] == [3, None]  # a twentieth
    assert paced.window.backlog == 0 and not paced.window.takable()
    due = paced.window.due
    assert paced.clock.now < due < paced.clock.now + 1 / 60
    paced.clock.now = due
    assert paced.window.takable() and len(paced.taken().items) == 1


def test_what_waits_for_room_is_due_when_there_is_room_whatever_the_rate_allows():
    """Else whoever waits for that time would ask again and again."""
    paced = Paced("abcdefgh")
    first = paced.taken(4)
    paced.window.requeue_tail(paced.taken(4), 4)
    paced.finish(first)
    paced.window.room.limit = 4
    assert (paced.window.due, paced.window.take(paced.clock.now)) == (inf, None)
    _, credits = paced.window.draw(4)
    paced.window.release(credits)
    assert paced.window.due <= paced.clock.now
    assert len(paced.taken().items) == 4


def test_what_waits_for_room_uses_up_nothing_of_a_rate_whatever_it_costs():
    paced = Paced("abcdefgh", cost=10.0)
    spans = [paced.taken(1) for _ in range(5)]
    paced.window.requeue_tail(spans.pop(), 1)
    for span in spans:
        paced.finish(span)
    used = paced.used
    paced.window.room.limit = 4
    for _ in range(50):
        assert paced.window.take(paced.clock.now) is None
    assert paced.used == used


def test_a_further_try_is_due_though_others_wait_for_room():
    paced = Paced("abcdefgh", n=None)
    head = paced.failing()
    paced.failing()
    paced.finish(paced.taken(2))
    paced.window.requeue_tail(paced.taken(4), 4)
    paced.window.retry(head, 1, Again(5.0))
    paced.window.room.limit = 3
    assert (paced.window.takable(), paced.window.due) == (False, paced.clock.now + 5.0)
    paced.window.room.limit = 4  # what waits for its time or its turn is not at work
    assert paced.window.backlog == 1


def test_an_item_that_its_worker_gives_up_unbegun_gives_its_start_back():
    paced = Paced("ab")
    span = paced.taken(1)
    paced.window.requeue_tail(span, 1)
    assert paced.used == 0
    assert paced.taken(1).items == "a"


def test_a_start_is_given_back_with_its_cost():
    paced = Paced("ab", n=50, cost=2.0)
    span = paced.taken()
    assert (span.items, paced.used) == (["a"], 2)
    paced.window.requeue_tail(span, 1)
    assert paced.used == 0


def test_what_a_worker_gives_up_of_a_span_or_loses_with_itself_counts_no_more():
    paced = Paced("abcdef")
    span = paced.taken()
    begin(span, 2)
    paced.window.requeue_tail(span, 3)
    paced.finish(span)
    assert paced.used == 3
    lost = paced.taken()
    assert paced.used == 6
    begin(lost, 1)
    victim = paced.window.lose(lost)  # one is through, one is lost, one has not begun
    assert victim is not None and victim.items == "e"
    assert paced.used == 5


def test_what_a_stopped_stage_had_in_hand_counts_as_begun_and_is_over_in_time():
    paced = Paced("abc")
    paced.taken()
    paced.window.stop()
    assert paced.used == 3
    paced.clock.now += 1.02
    assert paced.used == 0


def test_a_worker_that_was_away_began_later_than_it_was_counted():
    paced = Paced("ab")
    span = paced.taken(1)
    span.slots.append("a")
    paced.clock.now += 3.0
    paced.window.done(span, 0.5)  # f took half a second, so it began two and a half after it was counted
    paced.clock.now += 0.4
    assert paced.used == 1
    paced.clock.now += 0.2
    assert paced.used == 0


def test_a_failed_try_of_a_worker_that_was_away_counts_from_when_it_began():
    paced = Paced("ab")
    span = paced.failing()
    paced.clock.now += 3.0
    paced.window.began(span, 0.5)
    paced.window.began(span, 0.5)  # it is said twice of one that failed for good
    paced.window.retry(span, 1, Again(0.0))
    paced.clock.now += 0.4
    assert paced.used == 1
    paced.clock.now += 0.2
    assert paced.used == 0


# --------------------------------------------------------------------------------------------- what is held back


def test_an_item_waits_for_its_next_try_and_others_go_on():
    paced = Paced("abc", n=None)
    span = paced.failing()
    paced.window.retry(span, 1, Again(7.0))
    assert paced.taken(1).items == "b"
    paced.clock.now += 6.9
    assert paced.taken(1).items == "c"
    assert paced.window.due == 107.0 and not paced.window.takable() and not paced.window.exhausted
    paced.clock.now = 107.0
    again = paced.taken(1)
    assert (again.items, again.tries, again.start) == ("a", 1, 0)


@pytest.mark.parametrize("remote", [False, True])
def test_a_hold_is_for_all_items_and_takes_back_what_nobody_has_begun(remote: bool):
    paced = Paced("abcdef", n=None, remote=remote)
    other, failing = paced.taken(3), paced.failing()
    begin(other, 1)
    paced.window.retry(failing, 1, Again(9.0, 9.0))
    assert paced.window.take(paced.clock.now) is None
    assert paced.window.due == 109.0
    paced.clock.now = 108.9
    assert not paced.window.takable()
    paced.clock.now = 109.0
    # Another process is asked for it by a message.
    assert other.items == ("abc" if remote else "ab")
    assert paced.taken(1).start == (3 if remote else 2)


def test_of_several_holds_the_latest_end_counts():
    paced = Paced("abc", n=None)
    first, second = paced.failing(), paced.failing()
    paced.window.retry(first, 1, Again(20.0, 20.0))
    paced.window.retry(second, 1, Again(5.0, 5.0))
    paced.clock.now += 19.9
    assert paced.window.due == 120.0 and paced.window.take(paced.clock.now) is None
    paced.clock.now = 120.0
    assert paced.taken(1).items == "a"


def test_a_place_of_a_key_is_free_while_its_item_waits_for_its_next_try():
    paced = Paced(["x", "x", "y"], n=None, per_key=1)
    first = paced.failing()
    assert first.start == 0 and paced.taken().start == 2 and paced.window.take(paced.clock.now) is None
    paced.window.retry(first, 1, Again(5.0))
    second = paced.taken()
    assert second.start == 1
    paced.clock.now += 5.0
    assert paced.window.take(paced.clock.now) is None  # its place is taken
    paced.finish(second)
    assert (paced.taken().start, paced.worked_off) == (0, 1)


# ------------------------------------------------------------------------------- of how many items a share is


def test_what_is_worked_off_are_the_items_with_a_slot_wherever_the_others_are():
    paced = Paced("abcdefghij", n=None)
    assert paced.worked_off == 0
    span = paced.taken(5)
    assert paced.worked_off == 0
    begin(span, 2)
    assert paced.worked_off == 2
    paced.window.ledger.steal_from(span)  # d and e are requeued
    assert paced.worked_off == 2
    paced.window.retry(span, 1, Again(9.0))  # c is delayed
    assert paced.worked_off == 2
    stolen = paced.taken(1)
    assert stolen.items == "d" and paced.worked_off == 2
    paced.finish(stolen)
    assert paced.worked_off == 3
    assert paced.window.available() == 2 and len(paced.window.draw(9)[0]) == 2
    assert paced.worked_off == 3
    lost = paced.failing()
    assert lost.items == "e"
    victim = paced.window.lose(lost)
    assert victim is not None
    paced.window.keep_place(victim)  # until it is decided what becomes of it
    assert paced.worked_off == 3
    victim.slots.append("E")
    paced.window.done(victim)
    assert paced.worked_off == 4
    paced.clock.now += 9.0
    while paced.window.takable():
        paced.finish(paced.taken())
    assert paced.worked_off == 10


def test_what_is_parked_with_its_key_is_not_worked_off():
    paced = Paced(["x", "x", "x", "y"], n=None, per_key=1)
    for count in range(1, 5):
        paced.finish(paced.taken())
        assert paced.worked_off == count


def test_what_needs_no_worker_is_not_worked_off():
    waiting = Known("c")
    paced = Paced(["a", Known("b", "B"), waiting, "d"], may_come=lambda: True)
    first = paced.taken(1)
    assert paced.worked_off == 0
    paced.finish(first)
    assert paced.worked_off == 1
    paced.finish(paced.taken(1))
    assert paced.worked_off == 2


def test_lone_items_are_worked_off_when_they_have_a_slot():
    paced = Paced("abcd", n=None, loses=False)
    window, ledger = paced.window, paced.window.ledger
    window.draw_lone(3)
    assert paced.worked_off == 0
    index, item = ledger.lone_items.popleft()
    ledger.lone_slots[index] = item
    assert paced.worked_off == 1
    span = paced.taken(1)
    assert (span.items, paced.worked_off) == (["b"], 1)
    paced.finish(span)
    assert paced.worked_off == 2
    assert window.available() == 2
    assert paced.worked_off == 2


def test_a_failure_before_others_are_worked_off_cuts_what_waits():
    paced = Paced("abcd", n=None)
    first, second, third = paced.failing(), paced.failing(), paced.failing()
    paced.window.retry(third, 1, Again(5.0))
    paced.window.retry(first, 1, Again(5.0))
    paced.window.fail(Failure(second.start, "b", ValueError()))
    paced.clock.now += 5.0
    assert paced.taken(9).items == "a"
    assert paced.window.take(paced.clock.now) is None


@pytest.mark.parametrize("per_key", [None, 1], ids=["no keys", "keys"])
def test_who_asks_a_window_changes_nothing(per_key: int | None):
    paced = Paced("abcd", per_key=per_key, may_come=lambda: True)
    window, ledger, drawn = paced.window, paced.window.ledger, paced.window.upstream.available()

    def ask() -> list[Any]:
        return [window.due, window.takable(), window.backlog, window.held_by(2), window.exhausted]

    assert ask() == ask()
    assert (window.upstream.available(), ledger.requeued) == (drawn, [])
    paced.window.retry(paced.failing(), 1, Again(5.0))
    paced.clock.now += 9.0
    ask()
    assert len(ledger.delayed) == 1
    window.look()
    assert (ledger.delayed, window.takable()) == ([], True)
