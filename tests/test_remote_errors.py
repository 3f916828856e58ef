"""An exception comes out of a worker process as it is: its type, what led to it, its members and its notes."""

from __future__ import annotations

import copyreg
import pickle
import traceback
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from fstream import RemoteError, WorkerTraceback, pmap
from fstream._workers.process.errors import decode_error, encode_error


def sent(error: BaseException) -> BaseException:
    """The exception as it arrives at the other end of a wire."""
    try:
        raise error
    except BaseException as raised:
        return decode_error(pickle.loads(pickle.dumps(encode_error(raised))))


def of_a_worker(f: Callable[[int], Any]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        list(pmap(f, [1], kind="process", workers=1))
    return caught.value


def causes(error: BaseException) -> list[BaseException]:
    """The error and its causes, without the worker's traceback."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert type(chain[-1]) is WorkerTraceback
    return chain[:-1]


class Request:
    """It is shown with its address."""


class Refused(OSError):
    """Of the shape of `requests.ConnectionError`: another exception is its argument."""

    def __init__(self, *args: object, response: object = None, request: object = None) -> None:
        self.response, self.request = response, request
        super().__init__(*args)


class TooManyTries(Exception):
    """Of the shape of urllib3's: what it is pickled by is less than what it was made of."""

    def __init__(self, pool: object, url: str, reason: object = None) -> None:
        self.reason = reason
        super().__init__(f"{pool}: too many tries: {url} ({reason})")
        self.pool, self.lock = pool, open
        self.generator = (x for x in ())  # cannot be pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (None, "/index", None)


class Invalid(ValueError):
    """Of the shape of `pydantic.ValidationError`: made by a function, which leaves other arguments."""

    def __new__(cls, *_: object) -> Invalid:
        error = super().__new__(cls)
        error.args = ()
        return error

    def __str__(self) -> str:
        return "1 validation error"

    def __reduce__(self) -> tuple[Any, ...]:
        return invalid, ("int", "python")


def invalid(*args: object) -> Invalid:
    error = Invalid()
    error.args = args
    return error


class Prefixed(Exception):
    """Made again from its arguments it would say its prefix twice; and it has an address in its text."""

    def __init__(self, what: object) -> None:
        super().__init__(f"refused: {what}")


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


def missing(_: int) -> None:
    raise KeyError(Request())


def bad_set(_: int) -> None:
    raise ValueError({"alpha", "beta", "gamma", "delta", "epsilon"})


def refused(_: int) -> None:
    raise Refused(TooManyTries(Request(), "/index", OSError("refused")), request=Request())


def not_valid(_: int) -> None:
    raise Invalid


def too_many(_: int) -> None:
    raise TooManyTries(Request(), "/index", OSError("refused"))


def prefixed(_: int) -> None:
    raise Prefixed(Request())


def mute(_: int) -> None:
    raise Mute("not said")


@pytest.mark.parametrize("f", [missing, bad_set, refused, not_valid, too_many, prefixed, mute])
def test_an_exception_whose_text_is_not_the_same_twice_keeps_its_type(f: Callable[[int], None]):
    with pytest.raises(Exception) as here:
        f(1)
    there = of_a_worker(f)
    assert type(there) is type(here.value)
    if f is not not_valid:
        assert len(there.args) == len(here.value.args)


def test_of_two_ways_to_make_it_again_the_one_that_says_the_same_is_taken():
    error = of_a_worker(prefixed)
    assert str(error).count("refused:") == 1
    assert "Request object at" in str(error)


def test_what_cannot_be_pickled_at_all_is_told_as_text():
    def f(_: int) -> None:
        raise LookupError(x for x in ())

    error = of_a_worker(f)
    assert type(error) is RemoteError
    assert "LookupError: <generator object" in str(error)


def chain(length: int) -> BaseException:
    error: BaseException = OSError("disk full")
    for number in range(1, length):
        outer = RuntimeError(f"layer {number}")
        outer.__cause__ = error
        error = outer
    return error


def test_a_chain_of_causes_comes_whole():
    def f(_: int) -> None:
        raise chain(100)

    errors = causes(of_a_worker(f))
    assert [str(error) for error in errors] == [*(f"layer {n}" for n in range(99, 0, -1)), "disk full"]
    assert type(errors[-1]) is OSError


def test_a_longer_chain_is_cut_and_says_so():
    errors = causes(sent(chain(101)))
    assert len(errors) == 100
    text = str(errors[-1].__cause__)
    assert "only the first 100" in text.lower()
    assert "disk full" not in text


def test_a_chain_that_is_whole_does_not_say_that_it_was_cut():
    assert "only the first" not in str(causes(sent(chain(100)))[-1].__cause__).lower()


def test_a_chain_of_contexts_comes_whole():
    def deep(n: int) -> None:
        try:
            if not n:
                raise OSError("disk full")
            deep(n - 1)
        except Exception:
            raise RuntimeError(f"layer {n}")  # noqa: B904  (that is the point)

    error: BaseException | None = of_a_worker(lambda _: deep(40))
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__context__
    assert texts == [*(f"layer {n}" for n in range(40, -1, -1)), "disk full"]


def test_an_endless_chain_does_no_harm():
    error = chain(50_000)
    try:
        assert len(causes(sent(error))) == 100
    finally:  # freed one by one: C would free them one inside the other
        while error.__cause__ is not None:
            error.__cause__, error = None, error.__cause__


def test_a_reducer_that_sends_causes_sends_none_as_they_travel_by_themselves(monkeypatch: pytest.MonkeyPatch):
    reduced = []

    class Chained(RuntimeError):
        pass

    def reduce(error: Chained) -> Any:
        reduced.append((error.__cause__, error.__context__, error.__traceback__))
        return Chained, error.args

    monkeypatch.setitem(copyreg.dispatch_table, Chained, reduce)  # as tblib does, which dask installs
    cause = Chained("cause")
    try:
        raise Chained("error") from cause
    except Chained as raised:
        error, shown = raised, raised.__traceback__
    encode_error(error)
    assert reduced
    assert set(reduced) == {(None, None, None)}
    assert (error.__cause__, error.__suppress_context__, error.__traceback__) == (cause, True, shown)


def test_causes_and_contexts_of_many_exceptions_are_sent_once_each():
    errors = [RuntimeError(str(number)) for number in range(60)]
    for before, after in pairwise(errors):
        before.__cause__ = before.__context__ = after
    for before, after in zip(errors, errors[2:], strict=False):
        before.__context__ = after  # two ways on from each: a walk of all of them would never end
    records, _ = encode_error(errors[0])
    assert len(records) == 60
    error = sent(errors[0])
    assert error.__cause__ is not None
    assert error.__context__ is error.__cause__.__cause__


def test_a_circle_of_causes_comes_to_an_end():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    error = sent(one)
    assert [str(each) for each in causes(error)] == ["one", "other"]


def test_a_cause_that_was_left_out_is_left_out():
    def f(_: int) -> None:
        try:
            raise LookupError("inner")
        except LookupError:
            raise ValueError("outer") from None

    error = of_a_worker(f)
    assert error.__suppress_context__
    assert type(error.__context__) is LookupError


class Batch(ExceptionGroup[Exception]):
    """A group with an attribute of its own, made from other arguments than it passes on."""

    def __new__(cls, code: int, errors: list[Exception]) -> Batch:
        group = super().__new__(cls, f"batch {code}", errors)
        group.code = code
        return group

    code: int


def test_the_members_of_a_group_come_with_their_causes_and_notes():
    def f(_: int) -> None:
        member = KeyError(Request())
        member.__cause__ = OSError("disk full")
        member.add_note("of the member")
        inner = ExceptionGroup("inner", [member, ValueError(x for x in ())])
        batch = Batch(7, [inner, TypeError("flat")])
        batch.add_note("of the group")
        raise batch

    error = of_a_worker(f)
    assert type(error) is Batch
    assert (error.code, error.message) == (7, "batch 7")
    assert "of the group" in error.__notes__
    inner, flat = error.exceptions
    assert type(flat) is TypeError
    assert isinstance(inner, ExceptionGroup)
    member, told = inner.exceptions
    assert type(member) is KeyError
    assert type(member.__cause__) is OSError
    assert member.__notes__ == ["of the member"]
    assert type(told) is RemoteError
    assert "disk full" in str(error.__cause__)


def test_a_group_keeps_more_members_than_a_chain_has_links():
    error = sent(ExceptionGroup("many", [ValueError(n) for n in range(500)]))
    assert isinstance(error, ExceptionGroup)
    assert [member.args for member in error.exceptions] == [(n,) for n in range(500)]


def test_groups_in_groups_need_no_recursion():
    group: Exception = ValueError("innermost")
    for _ in range(150):
        group = ExceptionGroup("one more", [group])
    error = sent(group)
    for _ in range(150):
        assert isinstance(error, ExceptionGroup)
        (error,) = error.exceptions
    assert str(error) == "innermost"


def test_a_member_that_has_its_group_for_a_context_comes_with_it():
    member = ValueError("member")
    group = ExceptionGroup("group", [member])
    member.__context__ = group
    for error in sent(group), sent(member).__context__:
        assert isinstance(error, ExceptionGroup)
        assert error.exceptions[0].__context__ is error


def test_notes_are_kept_by_exceptions_that_are_pickled_without_them():
    error = Invalid()
    error.add_note("the first")
    error.add_note("the second")
    assert sent(error).__notes__ == ["the first", "the second"]


class Unique(Exception):
    """There is one of it in a process."""

    def __reduce__(self) -> str:
        return "FAILED"


FAILED = Unique("no login")


def test_an_exception_that_is_pickled_by_its_name_does_not_gather_tracebacks():
    encoded = encode_error(FAILED)
    for number in range(3):
        FAILED.__notes__ = [f"note {number}"]
        assert decode_error(encoded) is FAILED
        assert FAILED.__notes__ == []
        assert len(causes(FAILED)) == 1


def test_the_worker_s_traceback_of_a_long_chain_is_shown():
    def f(_: int) -> None:
        try:
            raise OSError("disk full")
        except OSError as error:
            raise RuntimeError("no file") from error

    shown = "".join(traceback.format_exception(of_a_worker(f)))
    assert "in f\n" in shown
    assert shown.count("direct cause") == 3


class Disguised(Exception):
    """Pickled as another exception; and what it has cannot be pickled, which leaves no other way."""

    def __init__(self) -> None:
        super().__init__("disguised")
        self.generator = (x for x in ())

    def __reduce__(self) -> tuple[Any, ...]:
        return ValueError, ("disguised",)


class Wrapping(Exception):
    """Made again from its arguments it would wrap them once more. Its text has an address."""

    def __init__(self, what: object) -> None:
        super().__init__([what])

    def __str__(self) -> str:
        return f"{self.args[0]} at {id(self.args[0]):#x}"


class Counting(Exception):
    """Its text is never the same twice, and it is pickled by fewer arguments than it has."""

    texts = 0

    def __str__(self) -> str:
        Counting.texts += 1
        return "." * Counting.texts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def test_what_would_come_as_an_exception_of_another_type_is_told_as_text():
    error = sent(Disguised())
    assert type(error) is RemoteError
    assert "Disguised: disguised" in str(error)


def test_addresses_in_its_text_do_not_make_another_exception():
    assert sent(Wrapping("what")).args == (["what"],)


def test_where_no_copy_says_the_same_the_one_with_its_arguments_is_taken():
    assert sent(Counting("one", "two")).args == ("one", "two")
