"""`Journal`: a memo in one file, for jobs that are killed in the middle and started again."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakValueDictionary, finalize

from fstream._engine.run import RLock

__all__ = ["Journal"]

#: How the first line begins.
MAGIC: Final = '{"fstream-journal": 1, "stage": '

_scan: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined]  # no stub has it


class Journal(MutableMapping[Any, Any]):
    """A mapping in one file, for the option *memo*: what is in it is not done again by the next run.

        >>> import os, tempfile
        >>> from fstream import pmap
        >>> path = os.path.join(tempfile.mkdtemp(), "squares.jsonl")
        >>> with Journal(path) as journal:
        ...     list(pmap(lambda x: x * x, [2, 3], name="square", memo=journal))
        [4, 9]
        >>> with Journal(path) as journal:
        ...     sorted(journal.items())
        [(2, 4), (3, 9)]

    The file has one line of JSON for each entry, and is only ever appended to. An entry is with the operating system
    before its output is given out: a program that is killed loses nothing of it, a machine without power may. A last
    line that was cut off by a kill is removed, with a warning.

    *dumps* and *loads* go together: ``dumps(value)`` gives a `str` of which ``loads`` makes the value again. Without
    them a value is what JSON holds, and what does not come back equal from it is an error: a tuple for one, or a dict
    with keys that are no strings. Keys are strings, numbers, bools, None, or tuples of those, and come back as what
    they were.

    A journal belongs to the stage whose name is in the file: a stage of another name is refused when it is built. It
    serves one stream at a time. It holds a lock on its file until `close`, the end of a ``with`` block, or until it is
    collected: a second one on the same file raises `BlockingIOError`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dumps: Callable[[Any], str] | None = None,
        loads: Callable[[str], Any] | None = None,
    ) -> None:
        if (dumps is None) != (loads is None):
            raise ValueError("dumps and loads go together: write Journal(path, dumps=..., loads=...)")
        for name, call in ("dumps", dumps), ("loads", loads):
            if call is not None and not callable(call):
                raise TypeError(f"{name} must be a function or None, got {call!r}")
        self.path = os.fspath(path)
        #: The name of the stage that has written the file; None if none has.
        self.stage: str | None = None
        self._dumps, self._loads = dumps, loads
        #: The values as text, by their keys; None for a key that stands alone.
        self._texts: dict[Any, str | None] = {}
        #: One thread writes at a time.
        self._lock = RLock()
        #: Who uses it.
        self._user: object = None
        self._fd = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666
        )
        self._closer = finalize(self, _let_go, self._fd)
        try:
            if not stat.S_ISREG(
                os.fstat(self._fd).st_mode
            ):  # a device may be without end, and a pipe keeps nothing
                raise ValueError(f"path must be a file, got {self.path!r}")
            _lock(self._fd, self.path)
            #: How many bytes of whole lines the file has.
            self._size = self._read()
        except BaseException:
            self._closer()
            raise
        _OPEN[self._fd] = self

    # ------------------------------------------------------------------------------------------------ as a mapping

    def __getitem__(self, key: Any) -> Any:
        text = self._texts[key]
        if text is None:
            return None
        value = json.loads(text)
        return value if self._loads is None else self._loads(value)

    def get(self, key: Any, default: Any = None) -> Any:
        # Not as `Mapping` has it: there a KeyError of *loads* says that the key is not known, and f is run once more.
        return self[key] if key in self._texts else default

    def __setitem__(self, key: Any, value: Any) -> None:
        self._write(key, self._text_of(value))

    def __delitem__(self, key: Any) -> None:
        raise TypeError("a journal is only ever appended to: nothing can be deleted from it")

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[Any]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def _fstream_keep_key(self, key: Any) -> None:
        """Keep a key that has no value: `peach` does."""
        self._write(key, None)

    # ---------------------------------------------------------------------------------------------- whose it is

    def _fstream_check_stage(self, name: str) -> None:
        """Raise if a stage of another name has written the file."""
        if self.stage not in (None, name):
            raise ValueError(f"memo: the journal {self.path!r} is of stage {self.stage!r}, not of {name!r}")

    def _fstream_begin(self, name: str, user: object) -> None:
        """The stage *name* of a stream uses it from now on, as *user*."""
        if self._user is not None:
            at_work = (
                f"another stream, or another stage {name!r} of this one"
                if name == self.stage
                else f"stage {self.stage!r}, and cannot serve stage {name!r} beside it"
            )
            raise RuntimeError(
                f"the journal {self.path!r} serves {at_work}: give each a journal of its own, "
                "by memo=Journal(path) with another path"
            )
        self._fstream_check_stage(name)
        if not self._closer.alive:
            raise ValueError(f"the journal {self.path!r} is closed")
        self._user = user
        self.stage = name

    def _fstream_end(self, user: object) -> None:
        if self._user is user:
            self._user = None

    def close(self) -> None:
        """Let go of the file, and of its lock."""
        with self._lock:
            self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Journal({self.path!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a Journal cannot be pickled or copied: it holds the lock of its file")

    # ------------------------------------------------------------------------------------------------- the file

    def _text_of(self, value: Any) -> str:
        if self._dumps is not None:
            text = self._dumps(value)
            if not isinstance(text, str):
                raise TypeError(f"dumps must give a str, got {type(text).__name__}")
            return json.dumps(text)
        try:
            text = json.dumps(value)
            if json.loads(text) == value:
                return text
            why = "it does not come back equal"
        except (TypeError, ValueError, RecursionError) as error:
            why = str(error)
        raise TypeError(f"JSON cannot hold {value!r:.200}: {why}; give the journal dumps= and loads=")

    def _write(self, key: Any, text: str | None) -> None:
        """Append an entry: all of it, or nothing."""
        line = f"[{json.dumps(_plain(key))}]\n" if text is None else f"[{json.dumps(_plain(key))},{text}]\n"
        with self._lock:
            if not self._closer.alive:
                raise ValueError(f"the journal {self.path!r} is closed")
            if not self._size:
                line = f"{MAGIC}{json.dumps(self.stage)}}}\n{line}"
            left = memoryview(line.encode("ascii"))
            size = self._size + len(left)
            try:
                while left:
                    left = left[os.write(self._fd, left) :]
            except BaseException:
                os.ftruncate(self._fd, self._size)
                raise
            self._size = size
            self._texts[key] = text

    def _read(self) -> int:
        """Read the entries; give how many bytes they are, and cut off what is behind them."""
        good = 0
        # One character for each byte, whatever it is: what we write is ASCII.
        with open(self._fd, encoding="ascii", errors="surrogateescape", newline="\n", closefd=False) as lines:
            take = self._take_head
            for number, line in enumerate(lines, 1):
                if not take(line):
                    if next(lines, None) is not None:
                        raise ValueError(f"{self.path!r} is no journal: line {number} is {line!r:.60}")
                    self._cut(good, line)
                    break
                good += len(line)
                take = self._take
        return good

    def _take_head(self, line: str) -> bool:
        """Take in the first line; False if it was cut off."""
        if line.startswith(MAGIC) and line.endswith("}\n"):
            self.stage = json.loads(line)["stage"]
            return True
        if line.endswith("\n") or not (line.startswith(MAGIC) or MAGIC.startswith(line)):
            raise ValueError(f"{self.path!r} is no journal: it begins with {line!r:.60}")
        return False

    def _take(self, line: str) -> bool:
        """Take in an entry; False if it is none."""
        if line[0] != "[" or line[-2:] != "]\n":
            return False
        try:
            key, end = _scan(line, 1)
        except (StopIteration, ValueError):
            return False
        if line[end] == ",":
            text = line[end + 1 : -2]  # made a value when it is asked for
        elif line[end:] == "]\n":
            text = None
        else:
            return False
        self._texts[_key(key) if type(key) is list else key] = text
        return True

    def _cut(self, good: int, line: str) -> None:
        warnings.warn(
            f"the last line of the journal {self.path!r} was cut off, and is removed: {line!r:.60}",
            RuntimeWarning,
            stacklevel=4,
        )
        os.ftruncate(self._fd, good)


def _plain(key: Any) -> Any:
    """Make of a key what JSON can hold; tuples are the only lists among keys."""
    if type(key) is tuple:
        return [_plain(each) for each in key]
    if (key is None or isinstance(key, str | int | float)) and key == key:
        return key
    raise TypeError(
        f"a key of a journal is a str, int, float, bool, None or a tuple of such, got {key!r:.200}: write memo_key="
    )


def _key(key: Any) -> Any:
    return tuple(map(_key, key)) if type(key) is list else key


def _lock(fd: int, path: str) -> None:
    """Lock the file, for as long as it is open."""
    from fcntl import LOCK_EX, LOCK_NB, flock  # there is none on Windows

    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            error.errno, "the journal is in use, by another run or by this one", path
        ) from None


def _let_go(fd: int) -> None:
    """Let go of the file and its lock: for forks that have just begun, too."""
    from fcntl import LOCK_UN, flock

    flock(fd, LOCK_UN)
    os.close(fd)


#: Those that may be open, by their file descriptors.
_OPEN: Final[WeakValueDictionary[int, Journal]] = WeakValueDictionary()


def _close_all() -> None:
    """In a fork: the lock is the parent's, and ends with the parent. A thread of the parent may have been writing."""
    for journal in list(_OPEN.values()):
        journal._lock = RLock()
        if journal._closer.detach() is not None:
            os.close(journal._fd)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
