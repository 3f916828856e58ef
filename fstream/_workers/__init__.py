"""The workers: what runs f, by kind. None of them knows what its kernel means.

A kind's class of workers is opened for a stage: it starts workers as they are needed, each takes spans from the stage's
queue and fills their slots.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["STARTED_IN", "current_folder"]


def current_folder() -> str:
    """The current folder, or the root where it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return os.sep


#: Where the program was started, as far as can be told: the current folder when fstream was imported. It is noted here,
#: as the modules of process workers are imported late.
STARTED_IN: Final = current_folder()
