"""Where the laws are checked: on real workers of each kind, and on simulated ones under schedules that are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fstream._workers.simulated.schedule import Simulation
from fstream.testing import Schedule, schedules, simulated
from property_tests.strategies import KINDS

Strategy = st.SearchStrategy[Any]


@dataclass(frozen=True)
class World:
    """Some kinds of workers, real or simulated; *pace* is how many examples it has for each of the profile."""

    name: str
    kinds: tuple[Any, ...]
    pace: float
    is_simulated: bool = False

    @property
    def examples(self) -> int:
        return max(1, int(settings.default.max_examples * self.pace))  # type: ignore[union-attr]

    @contextmanager
    def opened(self, schedule: Schedule | None) -> Iterator[Simulation | None]:
        """Run the streams of the block in this world."""
        if schedule is None:
            yield None
        else:
            with simulated(schedule) as simulation:
                yield simulation


def simulation_of(*kinds: str) -> World:
    return World(f"simulated {kinds[0] if len(kinds) == 1 else 'mixed'}", kinds, 2, is_simulated=True)


SYNC, THREAD, TASK = (World(kind, (kind,), 0.5) for kind in ("sync", "thread", "task"))
PROCESS = World("process", ("process",), 0.2)
#: Executors, opened for each stream.
THREAD_POOL = World("thread pool", (partial(ThreadPoolExecutor, 3),), 0.3)
PROCESS_POOL = World("process pool", (partial(ProcessPoolExecutor, 2),), 0.1)
POOLS = (THREAD_POOL, PROCESS_POOL)
MIXED = World("mixed", KINDS, 0.5)
SIMULATED_THREAD, SIMULATED_PROCESS, SIMULATED_TASK = map(simulation_of, ("thread", "process", "task"))
SIMULATED = (SIMULATED_THREAD, SIMULATED_PROCESS, SIMULATED_TASK)
SIMULATED_MIXED = simulation_of(*KINDS)

WORLDS = (SYNC, THREAD, PROCESS, TASK, *SIMULATED)
MIXED_WORLDS = (MIXED, SIMULATED_MIXED)


def law(*worlds: World, faults: bool = False, **drawn: Strategy | Callable[..., Strategy]) -> Any:
    """Make a test of a property: once in each of *worlds*, with what is *drawn* as arguments.

    What is drawn is a strategy, or a function that makes one for the kinds of the world. With *faults* the simulated
    schedules have some, which retries overcome. The test may have arguments of its own beside them: *kind*, the
    world's only one, and *simulation*, None in the real worlds.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]

        def checked(world: World) -> Callable[[], None]:
            def check(schedule: Schedule | None, **arguments: Any) -> None:
                with world.opened(schedule and replace(schedule, transient=faults)) as simulation:
                    known = {"kind": world.kinds[0], "simulation": simulation}
                    test(**arguments, **{name: known[name] for name in known if name in wanted})

            functools.update_wrapper(check, test)
            del check.__wrapped__  # type: ignore[attr-defined]  # its signature is its own
            strategies = {
                name: each if isinstance(each, st.SearchStrategy) else each(world.kinds)
                for name, each in drawn.items()
            }
            schedule = schedules(faults=faults) if world.is_simulated else st.none()
            return settings(max_examples=world.examples)(given(schedule=schedule, **strategies)(check))

        checks = {world: checked(world) for world in worlds}

        def in_each(world: World) -> None:
            checks[world]()

        in_each.__name__, in_each.__doc__ = test.__name__, test.__doc__
        in_each.__module__, in_each.__qualname__ = test.__module__, test.__qualname__
        return pytest.mark.parametrize("world", worlds, ids=lambda world: world.name)(in_each)

    return decorate
