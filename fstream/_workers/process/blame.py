"""What of a stage cannot be pickled, and why, in words for an error: no pickler says where in a function it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from fstream._plan.stages import Stage
from fstream._workers.notes import describe
from fstream._workers.process.wire import dumps
from fstream.errors import NotPicklable

__all__ = ["blame", "blame_output"]


#: How deep to look: a variable of a function that is a variable, and so on.
DEEPEST: Final = 6


def blame(stage: Stage, error: Exception, variables: Sequence[tuple[ContextVar[Any], Any]] = ()) -> str:
    """Say what of *stage* has led to *error*: which function, and which variable, argument or attribute of it.

    Or which of its context *variables*.
    """
    for part in stage.parts or (stage,):
        for role, function in ("f", part.f), ("on_start", part.on_start), ("on_done", part.on_done):
            if (problem := _problem(function)) is not None:
                return f"stage {part.name!r} ({part.kind}): {role} cannot be pickled: {_traced(function, problem)}"
    where = f"stage {stage.name!r} ({stage.kind})"
    for variable, value in variables:
        if (problem := _problem(value)) is not None:
            return f"{where}: context variable {variable.name!r} cannot be pickled: {_traced(value, problem)}"
    return f"{where} cannot be pickled: {error}"


def blame_output(stage: Stage, index: int, item: Any, output: Any, error: Exception) -> NotPicklable:
    """Make of *error* that of an item whose *output* cannot be pickled."""
    problem = NotPicklable(
        f"{describe(stage, index, item)}: its output, of type {type(output).__name__}, cannot be pickled: {error}"
    )
    problem.__cause__ = error
    return problem


def _problem(value: Any) -> Exception | None:
    try:
        dumps(value)
    except Exception as error:
        return error
    return None


def _traced(value: Any, problem: Exception) -> str:
    """The way to the innermost piece of *value* that has its *problem*, and that."""
    way: list[str] = []
    seen = {id(value)}
    while len(way) < DEEPEST and (found := _culprit(value, problem, seen)):
        what, value = found
        seen.add(id(value))
        way.append(f"its {what}")
    if not way:
        return str(problem)
    cls = type(value)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"{', '.join(way)} ({name}): {problem}"


def _culprit(value: Any, problem: Exception, seen: set[int]) -> tuple[str, Any] | None:
    """The piece of *value*, not yet seen, that has the same *problem*; what has one of its own may do no harm."""
    for what, piece in _pieces(value):
        if id(piece) not in seen and str(_problem(piece)) == str(problem):
            return what, piece
    return None


def _pieces(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, partial):
        yield from ((f"argument {number}", piece) for number, piece in enumerate(value.args))
        yield from ((f"argument {name!r}", piece) for name, piece in value.keywords.items())
        yield "function", value.func
    elif isinstance(value, MethodType):
        yield "object", value.__self__
        yield "function", value.__func__
    elif isinstance(value, FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"variable {name!r}", cell.cell_contents
            except ValueError:  # it has no value yet
                pass
        for name in _names(value.__code__):
            if name in value.__globals__:
                yield f"global {name!r}", value.__globals__[name]
        yield from ((f"default {number}", piece) for number, piece in enumerate(value.__defaults__ or ()))
        yield from ((f"default {name!r}", piece) for name, piece in (value.__kwdefaults__ or {}).items())
    elif isinstance(value, dict):
        yield from ((f"value at {key!r}", piece) for key, piece in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"element {number}", piece) for number, piece in enumerate(value))
    yield from ((f"attribute {name!r}", piece) for name, piece in getattr(value, "__dict__", {}).items())


def _names(code: CodeType) -> Iterator[str]:
    """The globals that *code* may use, and the functions in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
