"""What a worker process sees of the world: what its parent sees, also when it was started long before."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import cloudpickle
import pytest

from fstream import pmap
from fstream._workers.process import arena, child, surroundings
from fstream._workers.process.messages import Close
from fstream._workers.process.warm import WARM
from fstream._workers.process.wire import Wire
from tests.scripts import Script, printed, run_python, write_script

pytestmark = pytest.mark.slow

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")


@pytest.fixture
def new_workers() -> Iterator[None]:
    """Workers that start in the test, and end with it."""
    WARM.clear()
    yield
    WARM.clear()


def seen(f: Callable[[Any], Any], item: Any = None) -> tuple[int, Any]:
    """The worker that ran f, and what it gave."""
    [output] = pmap(lambda item: (os.getpid(), f(item)), [item], kind="process", workers=1)
    return output  # type: ignore[no-any-return]


def changed(change: Callable[[], object], f: Callable[[Any], Any]) -> tuple[bool, Any, Any]:
    """Whether the same worker is taken after a change, and what it sees before and after."""
    first, before = seen(f)
    change()
    second, after = seen(f)
    return first == second, before, after


# What a warm worker adopts


@only_linux
@pytest.mark.usefixtures("new_workers")
def test_a_warm_worker_has_the_umask_of_now(tmp_path: Path):
    def mode(_: object) -> int:
        path = tmp_path / str(time.monotonic_ns())
        path.touch()
        return path.stat().st_mode & 0o777

    before = os.umask(0o022)
    try:
        assert changed(lambda: os.umask(0o077), mode) == (True, 0o644, 0o600)
    finally:
        os.umask(before)


@pytest.mark.usefixtures("new_workers")
def test_a_warm_worker_has_the_time_zone_of_now(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "UTC")
    same, *hours = changed(lambda: monkeypatch.setenv("TZ", "JST-9"), lambda _: time.localtime(0).tm_hour)
    assert (same, hours) == (True, [0, 9])


@pytest.mark.usefixtures("new_workers")
def test_a_warm_worker_has_the_folder_of_now_also_if_its_own_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def leave() -> None:
        os.chdir(tmp_path)
        (tmp_path / "gone").rmdir()

    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    same, *folders = changed(leave, lambda _: os.getcwd())
    assert (same, folders) == (True, [str(tmp_path / "gone"), str(tmp_path)])


@pytest.mark.usefixtures("new_workers")
def test_a_worker_whose_parent_s_folder_cannot_be_reached_is_in_no_other(tmp_path: Path):
    before = os.getcwd()
    try:
        surroundings.adopt(surroundings.surroundings()._replace(folder=str(tmp_path / "never there")))
        assert os.getcwd() == os.sep
    finally:
        os.chdir(before)


def deep(depth: int) -> int:
    return deep(depth - 1) if depth else sys.getrecursionlimit()


@pytest.mark.usefixtures("new_workers")
def test_the_recursion_limit_reaches_workers():
    limit = sys.getrecursionlimit()
    try:
        assert changed(lambda: sys.setrecursionlimit(limit + 3000), lambda _: sys.getrecursionlimit()) == (
            True,
            limit,
            limit + 3000,
        )
        assert seen(deep, limit + 1000)[1] == limit + 3000
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("new_workers")
def test_the_longest_int_that_may_be_printed_reaches_workers():
    digits = sys.get_int_max_str_digits()
    try:
        change = lambda: sys.set_int_max_str_digits(digits + 1000)  # noqa: E731
        assert changed(change, lambda _: sys.get_int_max_str_digits()) == (True, digits, digits + 1000)
    finally:
        sys.set_int_max_str_digits(digits)


class OwnWarning(UserWarning):
    pass


@pytest.mark.usefixtures("new_workers")
def test_filters_of_warnings_reach_workers():
    class LocalWarning(UserWarning):
        pass

    def warned(category: type[Warning]) -> bool:
        try:
            warnings.warn("careful", category, stacklevel=1)
        except category:
            return True
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="care")
        first, raised = seen(warned, UserWarning)
        assert raised
        warnings.simplefilter("ignore")
        assert seen(warned, UserWarning) == (first, False)
        warnings.simplefilter("error", LocalWarning)
        warnings.simplefilter("error", OwnWarning)
        for category, expected in ((UserWarning, False), (OwnWarning, True), (LocalWarning, True)):
            assert seen(warned, category) == (first, expected)


def test_a_filter_that_cannot_travel_is_left_out():
    class Nowhere(UserWarning):
        pass

    Nowhere.__reduce_ex__ = None  # type: ignore[assignment,method-assign]
    lost = cloudpickle.dumps(OwnWarning).replace(b"OwnWarning", b"NoWarnings")
    kept = surroundings._packed(
        (("error", threading.Lock(), UserWarning, None, 0), ("ignore", None, UserWarning, None, 0))
    )
    assert surroundings._unpacked((lost, *kept)) == [("ignore", None, UserWarning, None, 0)]


# What a worker has for good: a warm one that has something else is not taken


CHANGES: dict[str, tuple[str, str]] = {
    "nice": ("os.nice(1)", "os.nice(0)"),
    "limit": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))",
        "resource.getrlimit(resource.RLIMIT_NOFILE)",
    ),
    "cpus": ("os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})", "os.sched_getaffinity(0)"),
    "groups": ("os.setgroups([12345])", "os.getgroups()"),
    "group": ("os.setegid(12345)", "os.getegid()"),
}


@only_linux
@pytest.mark.parametrize("what", CHANGES)
def test_new_workers_are_started_where_a_process_cannot_be_changed(script: Script, what: str):
    if what in ("groups", "group") and os.getuid() != 0:
        pytest.skip("only root may change it")
    if what == "cpus" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    source = """
        import os, resource, sys
        from fstream import pmap

        change, look = sys.argv[1:]

        def seen():
            def f(_):
                import resource
                return os.getpid(), eval(look, {"os": os, "resource": resource})
            [output] = pmap(f, [0], kind="process", workers=1)
            return output

        first, before = seen()
        assert seen() == (first, before) == (first, eval(look))
        exec(change)
        second, after = seen()
        print(first == second, after == eval(look))
    """
    assert printed(script(source, *CHANGES[what])) == "False True"


def test_what_is_unchanged_is_compared_as_such():
    assert surroundings.inherited() == surroundings.inherited()


def test_without_proc_the_rights_are_compared_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(surroundings, "_status", lambda: b"")
    before = surroundings.inherited()
    assert before == surroundings.inherited()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert before != surroundings.inherited()
    assert surroundings.surroundings().umask is None


# Where modules come from


def test_at_the_prompt_modules_of_the_folder_of_the_start_are_found_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "neighbour.py").write_text("def double(number):\n    return 2 * number\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.py").write_text("def triple(number):\n    return 3 * number\n")
    monkeypatch.chdir(tmp_path)
    source = """
        import os, neighbour
        from fstream import pmap

        os.chdir("elsewhere")
        print(*pmap(neighbour.double, [1], kind="process", workers=1))
        import other
        print(*pmap(other.triple, [1], kind="process", workers=1))
    """
    assert printed(run_python("-c", dedent(source))) == "2\n3"


@pytest.mark.parametrize("path", ["", ":/nowhere"], ids=["plain", "PYTHONPATH"])
@pytest.mark.parametrize("way", ["script", "command"])
def test_no_file_of_the_current_folder_stands_for_one_of_the_standard_library(
    way: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = """
        import os, subprocess, sys
        from fstream import pmap
        from fstream._workers.process.warm import WARM

        list(pmap(abs, [1], kind="process", workers=1))
        WARM.clear()
        os.mkdir("trap")
        at_its_start = subprocess.check_output([sys.executable, "-c", "import sys; print(*sys.modules)"], text=True)
        for name in (sys.stdlib_module_names & sys.modules.keys()) - set(at_its_start.split()):
            with open(f"trap/{name}.py", "w") as file:
                file.write("import os; os.write(2, __name__.encode())")
        os.chdir("trap")
        print(*pmap(abs, [1], kind="process", workers=1))
    """
    monkeypatch.chdir(tmp_path)
    command = ["-c", dedent(source)] if way == "command" else [str(write_script(tmp_path, source))]
    assert printed(run_python(*command, PYTHONPATH=path)) == "1"


def test_no_file_beside_a_script_stands_for_one_of_the_standard_library(script: Script, tmp_path: Path):
    """The script itself has what is already there."""
    source = """
        import os, sys
        from fstream import pmap
        from fstream._workers.process.warm import WARM

        list(pmap(abs, [1], kind="process", workers=1))
        WARM.clear()
        for name in sys.stdlib_module_names & sys.modules.keys():
            with open(f"{sys.path[0]}/{name}.py", "w") as file:
                file.write("import os; os.write(2, __name__.encode())")
        print(*pmap(abs, [1], kind="process", workers=1))
    """
    assert printed(script(source)) == "1"


PLUGIN = """
    import cloudpickle, importlib.util, sys
    from fstream import NotPicklable, pmap

    with open("plugin.py", "w") as file:
        file.write("class Item:\\n    x = 1\\ndef f(x):\\n    return x + 1\\n")
    spec = importlib.util.spec_from_file_location("my_plugin", "plugin.py")
    plugin = sys.modules["my_plugin"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)

    cases = [(plugin.f, [1]), (lambda x: plugin.f(x), [1]), (lambda item: item.x, [plugin.Item()])]
    for f, source in cases:
        try:
            list(pmap(f, source, kind="process", workers=1))
        except NotPicklable as error:
            assert "cannot import the module 'my_plugin'" in str(error), error
            assert "cloudpickle.register_pickle_by_value(sys.modules['my_plugin'])" in str(error), error
        else:
            raise AssertionError
    cloudpickle.register_pickle_by_value(sys.modules["my_plugin"])
    print(*(list(pmap(f, source, kind="process", workers=1)) for f, source in cases))
"""


def test_a_module_loaded_from_a_path_is_an_error_that_says_what_to_do(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert printed(script(PLUGIN)) == "[2] [2] [1]"


def test_a_module_that_is_not_here_either_is_named_as_such():
    def f(_: object) -> None:
        import no_such_module_anywhere  # noqa: F401

    class Lost:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module_anywhere",)

    with pytest.raises(Exception, match="No module named 'no_such_module_anywhere'") as caught:
        list(pmap(abs, [Lost()], kind="process", workers=1))
    assert "cloudpickle" not in str(caught.value)


# Memory of others

SHARED_MEMORY = """
    import os, sys
    from multiprocessing.shared_memory import SharedMemory
    from fstream import pmap

    def fill(i, name):
        mine = SharedMemory(name=name)
        mine.buf[i] = i + 1
        mine.close()

    def filled():
        block = SharedMemory(create=True, size=100)
        name = block.name
        list(pmap(lambda i: fill(i, name), range(8), kind="process", workers=2, max_items_per_worker=2))
        assert bytes(block.buf[:8]) == bytes(range(1, 9))
        block.close()
        block.unlink()

    def create(_):
        block = SharedMemory(create=True, size=100)
        block.buf[0] = 9
        block.close()
        return block.name

    if sys.argv[1] == "warm":
        list(pmap(abs, range(100), kind="process", workers=2))
    if sys.argv[1] == "theirs":
        names = list(pmap(create, range(4), kind="process", workers=1, max_items_per_worker=1))
        for name in names:
            block = SharedMemory(name=name)
            assert block.buf[0] == 9
            block.close()
            block.unlink()
    filled()
    filled()
    print("lives")
"""


@pytest.mark.parametrize("before", ["nothing", "warm", "theirs"])
def test_a_block_of_shared_memory_lives_on_when_a_worker_ends(script: Script, before: str):
    assert printed(script(SHARED_MEMORY, before)) == "lives"


def test_multiprocessing_in_f_finds_a_tracker_of_resources(script: Script):
    source = """
        import multiprocessing
        from fstream import pmap

        def locked(number):
            context = multiprocessing.get_context("spawn")
            with context.Lock(), context.Pool(1) as pool:
                return pool.apply(abs, [number])

        print(*pmap(locked, [-1], kind="process", workers=1, max_items_per_worker=1))
    """
    assert printed(script(source)) == "1"


@only_linux
def test_workers_start_no_process_beside_them(script: Script):
    source = """
        import psutil
        from multiprocessing.shared_memory import SharedMemory
        from fstream import pmap

        def f(name):
            mine = SharedMemory(name=name)
            mine.close()
            return len(psutil.Process().children())

        block = SharedMemory(create=True, size=10)
        print(*pmap(f, [block.name], kind="process", workers=1))
        block.close()
        block.unlink()
    """
    assert printed(script(source)) == "0"


# Where not all can be had


@pytest.mark.usefixtures("new_workers")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_memory_files_are_forbidden_workers_go_without(number: int, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", refuse, raising=False)
    assert arena.shared_file() is None
    assert list(pmap(bytes, [1 << 20], kind="process", workers=1)) == [bytes(1 << 20)]


def test_where_files_may_not_be_large_workers_go_without(script: Script):
    source = """
        import resource
        from fstream import pmap

        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        print(*map(len, pmap(bytearray, [1 << 22] * 2, kind="process", workers=1)))
    """
    assert printed(script(source)) == f"{1 << 22} {1 << 22}"


def no_map(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@only_linux
@pytest.mark.usefixtures("new_workers")
def test_where_the_parent_has_no_room_for_the_arena_workers_go_without(monkeypatch: pytest.MonkeyPatch):
    fd = arena.shared_file()
    assert fd is not None
    with open(fd, "rb"), monkeypatch.context() as patch:
        patch.setattr(arena.mmap, "mmap", no_map)
        assert arena.arenas(fd) == (None, None)
    monkeypatch.setattr("fstream._workers.process.link.arenas", lambda _: (None, None))
    assert list(pmap(len, [bytearray(1 << 20)], kind="process", workers=1)) == [1 << 20]
    assert list(pmap(bytearray, [1 << 20], kind="process", workers=1)) == [bytearray(1 << 20)]


@only_linux
def test_where_a_worker_has_no_room_for_the_arena_it_goes_without(script: Script, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(
        dedent("""
            import mmap, sys

            class Small(mmap.mmap):
                def __new__(cls, fd, size, *more):
                    if size > 1 << 20 and "--multiprocessing-fork" in sys.orig_argv:
                        raise OSError(12, "Cannot allocate memory")
                    return super().__new__(cls, fd, size, *more)

            mmap.mmap = Small
        """)
    )
    source = """
        import pickle
        from fstream import pmap

        class Block:
            # Bytes that travel beside the pickle.
            def __init__(self, content):
                self.content = content
            def __reduce_ex__(self, _):
                return bytearray, (pickle.PickleBuffer(self.content),)

        sent = [Block(bytearray([n]) * (1 << 20)) for n in range(4)]
        print([set(output) for output in pmap(Block, sent, kind="process", workers=1)])
    """
    assert printed(script(source, PYTHONPATH=str(tmp_path))) == "[{0}, {1}, {2}, {3}]"


@only_linux
def test_without_proc_workers_work_and_end_with_their_parent(script: Script, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(
        dedent("""
            import os

            def opened(path, *more, **options):
                if str(path).startswith("/proc"):
                    raise FileNotFoundError(path)
                return real(path, *more, **options)

            real, os.open = os.open, opened
        """)
    )
    source = """
        import os, signal
        from fstream import pmap

        print(sum(pmap(abs, range(100), kind="process", workers=2)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    result = script(source, PYTHONPATH=str(tmp_path))  # its output ends when no worker holds it any more
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGKILL, "4950\n", "")


def test_a_worker_listens_to_a_socket_of_any_number():
    ours, theirs = socket.socketpair()
    try:
        number = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 1024)
    except OSError:
        pytest.skip("fewer files may be open")
    theirs.close()
    with ours, socket.socket(fileno=number) as far:
        listener = child.Child(far, memoryview(bytearray(64)).cast("q"))
        thread = threading.Thread(target=listener.read)
        thread.start()
        wire = Wire(ours)
        wire.push(Close(7, over=True))
        wire.flush()
        message = listener.inbox.get()
        assert message is not None
        assert message[0] == Close(7, over=True)
        ours.close()
        thread.join()


def test_pipelines_run_beside_more_than_a_thousand_open_files(script: Script):
    source = """
        import os, resource
        from fstream import pmap

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        files = [os.dup(0) for _ in range(1200)]
        for _ in range(2):
            print(sum(pmap(abs, range(100), kind="process", workers=2)))
    """
    assert printed(script(source)) == "4950\n4950"


# Sockets


@pytest.fixture
def default_timeout() -> Iterator[float]:
    """As crawlers set it; here so small that nothing comes in time."""
    socket.setdefaulttimeout(0.001)
    yield 0.001
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("new_workers", "default_timeout")
def test_the_default_timeout_of_sockets_has_no_influence():
    def blocking(_: object) -> list[bool]:
        sockets = [fd for fd in range(100) if is_socket(fd)]
        return [not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in sockets]

    def is_socket(fd: int) -> bool:
        try:
            return stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError:
            return False

    # That to the parent, and the one by which it was started: else it would wait for nobody, and ask all the time.
    assert seen(blocking)[1] == [True, True]
    outputs = list(pmap(lambda n: os.urandom(1_000_000) * 5, range(6), kind="process", workers=2))
    assert list(map(len, outputs)) == [5_000_000] * 6
    assert list(pmap(len, [b"x" * 5_000_000] * 4, kind="process", workers=2)) == [5_000_000] * 4


# Parents


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_daemonic_processes_and_those_of_a_pool_have_workers_too(script: Script, method: str):
    source = """
        import multiprocessing, sys
        from fstream import pmap

        def square(number):
            return number * number

        def squares():
            outputs = list(pmap(square, range(3), kind="process", workers=1))
            print(multiprocessing.current_process().daemon, outputs, flush=True)

        def at_second_hand(_):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                return pool.apply(abs, [-3])

        def inner(_):
            return list(pmap(at_second_hand, [0], kind="process", workers=1))

        if __name__ == "__main__":
            context = multiprocessing.get_context(sys.argv[1])
            process = context.Process(target=squares, daemon=True)
            process.start()
            process.join()
            with context.Pool(1) as pool:
                pool.apply(squares)
                print(pool.apply(inner, [0]))
            print("ends")
    """
    result = script(source, method, PYTHONWARNINGS="ignore")
    assert printed(result) == "True [0, 1, 4]\nTrue [0, 1, 4]\n[3]\nends"


def test_a_daemonic_process_that_is_terminated_leaves_no_worker(script: Script):
    source = """
        import multiprocessing, time
        from fstream import pmap

        def work(ready):
            for _ in pmap(time.sleep, [0, 60], kind="process", workers=2, ordered=False):
                ready.set()

        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            ready = context.Event()
            process = context.Process(target=work, args=(ready,), daemon=True)
            process.start()
            ready.wait()
            print("ends")
    """
    assert printed(script(source, PYTHONWARNINGS="ignore")) == "ends"  # its output ends when nobody holds it


# Prints


@pytest.mark.parametrize("end", ["\\n", " "])
def test_what_f_has_printed_is_out_before_its_output_is_given(script: Script, end: str):
    source = f"""
        import os
        from fstream import pmap

        def f(number):
            print("worked on", number, end="{end}")
            return number

        for number in pmap(f, range(20), kind="process", workers=1, maxsize=1):
            os.write(1, f"given {{number}}{end}".encode())
    """
    result = printed(script(source))
    expected = [f"{what} {number}" for number in range(20) for what in ("worked on", "given")]
    assert result.split("\n" if end == "\\n" else None) == (
        expected if end == "\\n" else " ".join(expected).split()
    )


def test_what_a_killed_worker_has_printed_is_out(script: Script):
    source = """
        import os, signal
        from fstream import WorkerDied, pmap

        def f(number):
            print("working on", number)
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            list(pmap(f, [1], kind="process", workers=1))
        except WorkerDied:
            print("died")
    """
    assert printed(script(source)) == "working on 1\ndied"


def test_without_standard_output_pipelines_run(script: Script):
    source = """
        import os, sys
        from fstream import pmap

        os.close(1)
        sys.stdout = None
        assert list(pmap(abs, range(10), kind="process", workers=1)) == list(range(10))
        os.write(2, b"done")
    """
    assert script(source).stderr == "done"
