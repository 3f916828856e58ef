"""What an option calls is the user's code, too: its error names the option, the stage and the item."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fstream import Rate, pmap
from fstream._flow.pacing import FEW_KEYS, Places
from tests.functions import square, suited
from tests.gates import PATIENCE
from tests.test_fusion import outputs_and_error


def failing(number: int) -> int:
    raise ValueError(number)


class Key:
    """All of one hash, so that each is compared with another one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Key)
        if 4 in (self.number, other.number):
            raise LookupError("it cannot be compared")
        return self.number == other.number


class NoHash(Key):
    def __hash__(self) -> int:
        if self.number == 4:
            raise LookupError("it cannot be hashed")
        return self.number


def stops(number: int) -> int:
    return next(iter(())) if number == 4 else number


@pytest.mark.parametrize("option", ["key", "memo_key"])
@pytest.mark.parametrize("key_of", [Key, NoHash, stops])
def test_an_error_of_a_key_comes_in_the_place_of_its_item_with_one_note(
    kind: str, option: str, key_of: Callable[[int], Any]
):
    more: Any = {"memo": {}} if option == "memo_key" else {}
    stream = pmap(
        suited(square, kind), range(9), kind=kind, name="f", on_error="skip", **{option: key_of}, **more
    )
    given, error = outputs_and_error(stream)
    assert given == [0, 1, 4, 9]
    assert type(error) is (RuntimeError if key_of is stops else LookupError)
    assert error.__notes__ == [f"in {option.removesuffix('_key')} of stage 'f' ({kind}), item 4: 4"]


def test_under_async_for(kind: str):
    async def main() -> list[int]:
        return await pmap(suited(square, kind), range(9), kind=kind, name="f", key=Key)

    with pytest.raises(LookupError, match="cannot be compared") as caught:
        asyncio.run(main())
    assert caught.value.__notes__ == [f"in key of stage 'f' ({kind}), item 4: 4"]


def test_an_error_of_a_cost_says_so(kind: str):
    stream = pmap(
        suited(square, kind),
        range(9),
        kind=kind,
        name="f",
        rate=Rate(1e6, cost=lambda number: 1 / (4 - number)),
    )
    given, error = outputs_and_error(stream)
    assert (given, type(error)) == ([0, 1, 4, 9], ZeroDivisionError)
    assert error.__notes__ == [f"in cost of stage 'f' ({kind}), item 4: 4"]


@pytest.mark.parametrize("option", ["on_error", "retry_on"])
def test_a_hook_that_stops_an_iteration_does_not_end_the_stream_in_silence(kind: str, option: str):
    def hook(*_: object) -> Any:
        return next(iter(()))

    more: Any = {"retries": 1} if option == "retry_on" else {}
    stream = pmap(suited(failing, kind), range(20), kind=kind, name="f", **{option: hook}, **more)
    _, error = outputs_and_error(stream)
    assert type(error) is RuntimeError
    assert str(error) == f"{option} of f raised StopIteration"
    assert f"in {option} of stage 'f' ({kind})" in error.__notes__[-1]


class Stopping(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        raise StopIteration


def test_a_memo_that_stops_an_iteration_does_not_end_the_stream_in_silence(kind: str):
    _, error = outputs_and_error(pmap(suited(square, kind), [1, 2], kind=kind, name="f", memo=Stopping()))
    assert type(error) is RuntimeError
    assert str(error) == "memo of f raised StopIteration"
    assert error.__notes__ == [f"in memo of stage 'f' ({kind}), item 0: 1"]


def test_no_lock_is_held_while_keys_are_compared(concurrent_kind: str):
    slow: list[bool] = []

    class Key:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            asking = threading.Thread(target=stream.stats, daemon=True)
            asking.start()
            asking.join(PATIENCE)  # for ever, if this thread has the run's lock
            slow.append(asking.is_alive())
            return self is other

    stream = pmap(suited(square, concurrent_kind), range(4), kind=concurrent_kind, key=lambda _: Key())
    assert list(stream) == [0, 1, 4, 9]
    assert slow and not any(slow)


# ------------------------------------------------------------------------------------------------- places of keys


def test_equal_keys_have_one_place_while_somebody_has_it():
    places = Places()
    first = places.of((1, 2))
    assert first is places.of((1, 2))
    assert first is not places.of((1, 3))
    assert places.of(None) is None


def test_keys_that_nobody_has_are_forgotten():
    places = Places()
    kept = [places.of(number) for number in range(FEW_KEYS // 2)]
    for number in range(10 * FEW_KEYS):
        places.of(-number - 1)
        assert len(places.places) <= 2 * len(kept) + 2
    assert [places.of(number) for number in range(FEW_KEYS // 2)] == kept
