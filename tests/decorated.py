"""What decorators make of the functions of a module that workers can import."""

from __future__ import annotations

from functools import cache, singledispatch
from typing import NewType

from toolz import curry

Name = NewType("Name", str)


@cache
def cached(x: int) -> int:
    return x + 1


@singledispatch
def dispatched(x: object) -> object:
    return x


@curry
def curried(factor: int, x: int) -> int:
    return factor * x


class Cached:
    @cache  # noqa: B019 (its objects live as long as the tests)
    def method(self, x: int) -> int:
        return x
