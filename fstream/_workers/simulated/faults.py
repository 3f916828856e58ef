"""What goes wrong in f where a schedule says so."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from fstream._plan.stages import Stage
from fstream._workers.call import Call
from fstream._workers.simulated.schedule import Fault, SimulatedError, Simulation

__all__ = ["Faults", "FaultyCall", "Lost"]


class Lost(BaseException):
    """Stands for a call of f from which nothing came back."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class Faults:
    """What the items of one stage meet with."""

    def __init__(self, simulation: Simulation, stage: Stage) -> None:
        self.simulation = simulation
        #: F of no other part meets with any.
        self.first = stage.parts[0] if stage.parts else stage
        #: How often the item of an index has met with a fault.
        self.counts: Counter[int] = Counter()

    def meet(self, index: int, item: Any, log: Callable[[str], None]) -> None:
        """Log that f is called on *item*, and fail in the place of f if the schedule says so."""
        fault = self.next(index)
        what = f"item {index}: {reprlib.repr(item)}"
        log(f"calls f on {what}" if fault is None else f"calls f on {what}, which {fault}")
        if fault == "raises":
            raise SimulatedError(f"f raises at item {index}, as the schedule says")
        if fault is not None:
            raise Lost(fault)

    def next(self, index: int) -> Fault | None:
        first = self.first
        fault = self.simulation.fault(self.counts[index] >= first.retries)
        if fault is None:
            return None
        self.counts[index] += 1
        if (fault == "dies" and first.kind != "process") or (fault == "times out" and first.timeout is None):
            return "raises"
        return fault


class FaultyCall(Call):
    """One worker's f. It calls *meet_fault* with each item before f, which may raise in the place of f."""

    def __init__(
        self,
        stage: Stage,
        index: int,
        meet_fault: Callable[[Any], None],
        keep: Callable[[int, Any], object] | None = None,
    ) -> None:
        self.meet_fault = meet_fault
        super().__init__(stage, index, keep)

    def wrap(self, bound: Callable[[Any], Any]) -> Callable[[Any], Any]:
        step, meet_fault = super().wrap(bound), self.meet_fault

        def faulty(item: Any) -> Any:
            meet_fault(item)
            return step(item)

        return faulty
