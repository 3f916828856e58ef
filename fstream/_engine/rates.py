"""`Rate`: one limit for all who share it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from inspect import iscoroutinefunction
from numbers import Real
from typing import Any

from fstream._flow.pacing import Limit

__all__ = ["Rate", "rate_of"]


class Rate:
    """At most *n* tries may start in any *per* seconds: what the option ``rate`` may be.

    Give one to several stages or streams, in any threads, and it is one limit for all of them.

        >>> from fstream import pmap
        >>> api = Rate(1000, per=60)
        >>> pmap(str.upper, ["a", "b"], rate=api) | list
        ['A', 'B']

    The starts are spread: no more than a twentieth of *n* come in one burst. For an *n* below 1, one try starts in
    ``per/n`` seconds. *cost* is a function: a start counts for ``cost(item)``, a number of at least 0, instead of 1. A
    cost over *n* is an error. It is called in the thread that iterates the source of the stage.

    A `Rate` that is pickled, and so one that is sent to another process, becomes another limit.
    """

    def __init__(self, n: float, per: float = 1.0, cost: Callable[[Any], float] | None = None) -> None:
        numbers: dict[str, Any] = {"n": n, "per": per}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not 0 < value <= sys.float_info.max:  # type: ignore[operator]  # nor is what is not a number
                raise ValueError(f"{name} must be greater than 0 and finite, got {value!r:.50}")
        given: Any = cost
        if given is not None and (not callable(given) or iscoroutinefunction(given)):
            raise TypeError(f"cost must be a function of an item or None, got {cost!r}")
        self.n = n
        self.per = per
        self.cost = cost
        self._limit = Limit(n, per)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        per = "" if self.per == 1.0 else f", per={self.per!r}"
        return f"Rate({self.n!r}{per}{'' if self.cost is None else f', cost={self.cost!r}'})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Rate, (self.n, self.per, self.cost)

    # ------------------------------------------------------------------------- as a limit, for several at once

    def grant(self, now: float, most: int, cost: float = 1.0) -> int:
        with self._lock:
            return self._limit.grant(now, most, cost)

    def start(self, now: float, cost: float) -> None:
        with self._lock:
            self._limit.start(now, cost)

    def give_back(self, cost: float, when: float | None = None) -> None:
        with self._lock:
            self._limit.give_back(cost, when)

    def began(self, cost: float, counted: float, began: float) -> None:
        with self._lock:
            self._limit.began(cost, counted, began)

    def opens(self, now: float, cost: float = 1.0) -> float:
        with self._lock:
            return self._limit.opens(now, cost)


def rate_of(rate: Any) -> Rate | None:
    """The limit that the option is: the `Rate` that was given, or one of its own for a number."""
    return rate if rate is None or isinstance(rate, Rate) else Rate(rate)
