"""Two streams at once on one pool of processes, driven step by step, each against a model of its own.

The models know nothing of each other: what one stream does, and what becomes of its workers, is nothing to the other.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from property_tests.model import END, SOURCE_FAILED, Event
from property_tests.test_model import OPTIONS, WORK, StreamMachine
from property_tests.worlds import PROCESS
from tests.faults.faulty import eventually
from tests.leaks import Running

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:peach:RuntimeWarning")]

#: Seconds after which the pool looks who sleeps at a gate, and how short a time counts: a wait for a worker is often a
#: wait for that here.
PATIENCE = 0.05
SHORTEST_LOOK = 0.04


class OneOfTwo(StreamMachine):
    """A stream beside the *other* one."""

    kind = "process"
    other: OneOfTwo

    def check_released(self) -> None:
        """Look whether anything is left, if nothing of the other one may be there; else wait for the feeder to end."""
        if self.other.model.over or not self.other.model.asked:
            super().check_released()
        else:
            assert eventually(lambda: self.source.iterated_by == {self.source.closed_by} - {None}, 10.0)

    def kill_worker(self, which: int) -> None:
        """Kill a process, whichever of the two has it."""
        before = self.kills
        super().kill_worker(which)
        other = self.other
        if self.kills > before:
            other.kills += 1
            with other.change:
                if not other.options.retries:
                    other.model.kill()


STREAM = st.integers(0, 1)


class TwoMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patches = ExitStack()
        self.patches.enter_context(patch("fstream._workers.process.pool.cpu_count", lambda: 2))
        for module in "pool", "pump":
            self.patches.enter_context(patch(f"fstream._workers.process.{module}.PATIENCE", PATIENCE))
        self.patches.enter_context(patch("fstream._workers.process.link.SHORTEST_LOOK", SHORTEST_LOOK))
        self.streams = first, second = OneOfTwo(), OneOfTwo()
        first.other, second.other = second, first
        first.before = second.before = Running.now()

    @initialize(first=st.fixed_dictionaries(OPTIONS), second=st.fixed_dictionaries(OPTIONS))
    def describe(self, first: dict[str, Any], second: dict[str, Any]) -> None:
        self.streams[0].describe(options=first)
        self.streams[1].describe(options=second)

    @rule(stream=STREAM, works=st.lists(WORK, min_size=1, max_size=6))
    def yield_some(self, stream: int, works: list[dict[str, Any]]) -> None:
        self.streams[stream].yield_some(works=works)

    @rule(stream=STREAM, size=st.integers(0, 1))
    def yield_many(self, stream: int, size: int) -> None:
        self.streams[stream].yield_many(size=size)

    @rule(stream=STREAM, ending=st.sampled_from([END, END, SOURCE_FAILED]))
    def end_source(self, stream: int, ending: Event) -> None:
        self.streams[stream].end_source(ending=ending)

    @rule(stream=STREAM)
    def ask(self, stream: int) -> None:
        self.streams[stream].ask()

    @rule(stream=STREAM, most=st.integers(2, 40))
    def take_several(self, stream: int, most: int) -> None:
        self.streams[stream].take_several(most=most)

    @rule(stream=STREAM, fresh=st.sampled_from([False, False, False, True]), dropping=st.booleans())
    def leave(self, stream: int, fresh: bool, dropping: bool) -> None:
        self.streams[stream].leave(fresh=fresh, dropping=dropping)

    @rule(stream=STREAM, which=st.integers(0, 20))
    def open_gate(self, stream: int, which: int) -> None:
        self.streams[stream].open_gate(which=which)

    @rule(stream=STREAM)
    def open_gates(self, stream: int) -> None:
        self.streams[stream].open_gates()

    @precondition(lambda self: all(stream.is_killable() for stream in self.streams))
    @rule(which=st.integers(0, 20))
    def kill_worker(self, which: int) -> None:
        self.streams[0].kill_worker(which=which)

    @rule(stream=STREAM)
    def come_to_rest(self, stream: int) -> None:
        self.streams[stream].come_to_rest(garbage=False)

    @invariant()
    def each_does_what_its_model_says(self) -> None:
        for stream in self.streams:
            stream.receive()
            stream.nothing_runs_before_the_first_next()
            stream.no_more_is_held_than_may_be()
            stream.no_more_is_worked_on_than_may_be()

    def teardown(self) -> None:
        with self.patches:
            for stream in self.streams:
                stream.teardown()


TestTwo = TwoMachine.TestCase
TestTwo.settings = settings(max_examples=PROCESS.examples, stateful_step_count=40)
