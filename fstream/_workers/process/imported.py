"""Whether the files have changed since, from which this process has imported modules."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Final

__all__ = ["Imported"]


#: What lies here is not looked at: the standard library and this package, and whatever is installed.
_FIXED: Final = tuple(f"{folder}{os.sep}" for folder in (Path(os.__file__).parent, Path(__file__).parents[2]))
_INSTALLED: Final = tuple(f"{os.sep}{name}-packages{os.sep}" for name in ("site", "dist"))

#: What a file is known by: what is written into a file within one tick of the kernel's clock, some 4 ms, is not seen.
_State = tuple[int, int, int]


class Imported:
    """The source files from which this process has modules, with their states when they were read.

    Files that are gone are as they were: there is no other code. What is installed is left out, and so is what has no
    source file (a zip file, C code): this process could not import another version of it either.
    """

    def __init__(self) -> None:
        self.files: dict[str, _State | None] = {}

    def watch(self) -> None:
        """Note what was imported, and from now on whatever is."""
        for module in list(sys.modules.values()):
            spec: Any = getattr(module, "__spec__", None)
            if isinstance(getattr(spec, "loader", None), SourceFileLoader):
                self.note(spec.origin)
        stats = SourceFileLoader.path_stats

        def noted(loader: SourceFileLoader, path: str) -> Mapping[str, Any]:
            # It is called before the file is read. So what is written meanwhile is newer than what was noted.
            self.note(path)
            return stats(loader, path)

        SourceFileLoader.path_stats = noted  # type: ignore[method-assign, assignment]

    def note(self, path: str) -> None:
        if not (path.startswith(_FIXED) or any(folder in path for folder in _INSTALLED)):
            self.files[path] = _state(path)

    def changed(self) -> bool:
        """Tell whether one of the files has. This takes 2 to 5 us for each of them."""
        return any(_state(path) not in (state, None) for path, state in list(self.files.items()))


def _state(path: str) -> _State | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
