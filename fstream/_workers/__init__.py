"""The workers: what runs f, by kind.

A kind's module has a class ``Workers`` that `fstream._run` opens for a stage: it starts workers as they are needed,
each takes spans from the stage's queue and fills their slots. None of them knows what its kernel means.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Final

from fstream._stage import Stage

if TYPE_CHECKING:
    from fstream._run import Run, StageWorkers
    from fstream._spans import Window

__all__ = ["STARTED_IN", "current_folder", "open_workers"]


def current_folder() -> str:
    """The current folder, or the root where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return os.sep


#: Where the program was started, as far as can be told: the current folder when fstream was imported. It is noted here,
#: as the modules of process workers are imported late.
STARTED_IN: Final = current_folder()


def open_workers(run: Run, stage: Stage, window: Window) -> StageWorkers:
    """Give *stage* the workers of its kind; asyncio and multiprocessing are imported here, when first needed."""
    workers: StageWorkers = import_module(f"fstream._workers.{stage.kind}").Workers(run, stage, window)
    return workers
