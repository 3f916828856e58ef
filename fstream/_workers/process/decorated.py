"""How to pickle what decorators make of functions of a script or notebook, as far as cloudpickle does not know.

What a worker can import goes by its name, as ever. Anything else goes by what it was made of, and is made anew in the
worker. Caches start empty there, and last for as long as the stage is loaded.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, Final, NewType
from weakref import WeakKeyDictionary

from cloudpickle import cloudpickle

__all__ = ["Reducers", "clear_dispatched"]


Reduced = str | tuple[Any, ...]


def _is_importable(value: Any) -> bool:
    """Tell whether a worker finds *value* in a module."""
    found = cloudpickle._lookup_module_and_qualname(value) if hasattr(value, "__qualname__") else None
    return found is not None and not cloudpickle._is_registered_pickle_by_value(found[0])


def _without(value: Any, *names: str) -> dict[str, Any] | None:
    """Give the attributes of *value* but those *names*; None if it has none."""
    attributes = getattr(value, "__dict__", {})
    return {name: piece for name, piece in attributes.items() if name not in names} or None


def _reduced_cached(function: Any) -> Reduced:
    """``lru_cache`` and ``cache``."""
    if _is_importable(function):
        return str(function.__qualname__)
    wrapped, parameters = function.__wrapped__, function.cache_parameters()
    # Others may have said, by `functools.wraps`, that it wraps something else than what it calls.
    if not any(wrapped is piece for piece in gc.get_referents(function)):
        raise TypeError(f"cannot pickle {function!r}: its __wrapped__ is not the function that it caches")
    return _cached, (wrapped, *parameters.values()), _without(function, "cache_parameters")


def _cached(wrapped: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(wrapped)


def _reduced_property(value: Any) -> Reduced:
    return functools.cached_property, (value.func,), _without(value, "lock")


def _reduced_partial(value: Any) -> Reduced:
    """``partialmethod``, which from Python 3.14 on is not made without its arguments."""
    return (
        functools.partial(functools.partialmethod, value.func, *value.args, **value.keywords),
        (),
        vars(value),
    )


def _reduced_method(value: Any) -> Reduced:
    return functools.singledispatchmethod, (value.func,), _without(value, "_method_cache")


def _reduced_weak(value: WeakKeyDictionary[Any, Any]) -> Reduced:
    return WeakKeyDictionary, (dict(value),)


def _reduced_type(value: Any) -> Reduced:
    if _is_importable(value):
        return str(value.__qualname__)
    return NewType, (value.__qualname__, value.__supertype__), vars(value)


def _reduced_curry(value: Any) -> Reduced:
    """``toolz.curry``. It would name a function of the main module, which no worker imports."""
    function = value.func
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    in_main = module is None or module.__name__ == "__main__"
    if not in_main and not cloudpickle._is_registered_pickle_by_value(module):
        return value.__reduce__()  # type: ignore[no-any-return]
    made_of = type(value), function, value.args, value.keywords
    return _curried, made_of, _without(value, "_partial", "_sigspec")


def _curried(cls: Any, function: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    return cls(function, *args, **keywords)


def clear_dispatched(function: FunctionType) -> None:
    """Empty the cache of the classes that a ``singledispatch`` function has met: they are nothing to a worker.

    *function* is one, or one of the functions that it is made of.
    """
    if function.__module__ == "functools" and "dispatch_cache" in function.__code__.co_freevars:
        place = function.__code__.co_freevars.index("dispatch_cache")
        (function.__closure__ or ())[place].cell_contents.clear()


_REDUCERS: Final[dict[type, Callable[[Any], Reduced]]] = {
    functools._lru_cache_wrapper: _reduced_cached,
    functools.cached_property: _reduced_property,
    functools.partialmethod: _reduced_partial,
    functools.singledispatchmethod: _reduced_method,
    WeakKeyDictionary: _reduced_weak,
    NewType: _reduced_type,
}


class Reducers(dict[type, Callable[[Any], Reduced]]):
    """How to pickle an object of a class: as *tables* say, or as this module does.

    Invariant: it is empty, so what is registered later in *tables* is found. No `ChainMap`, which takes 4 us to find
    out that it knows nothing of a class, for each object of that.
    """

    def __init__(self, *tables: Mapping[type, Callable[[Any], Any]]) -> None:
        self.tables = *tables, _REDUCERS

    def __missing__(self, cls: type) -> Callable[[Any], Reduced]:
        for table in self.tables:
            if (reducer := table.get(cls)) is not None:
                return reducer
        # By its name: whoever curries has imported toolz, or cytoolz, and nobody else needs them.
        if cls.__name__ == "curry" and cls.__module__.endswith("toolz.functoolz"):
            return _reduced_curry
        raise KeyError(cls)
