"""A pipeline may run while the module that it stands in is imported, on any kind."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import cloudpickle
import pytest

from tests.scripts import ScriptResult, printed, run_script

pytestmark = pytest.mark.slow

PLAIN = """
    import sys
    from operator import attrgetter

    from fstream import pmap

    class Point:
        def __init__(self, x):
            self.x = x

        def __repr__(self):
            return f"Point({self.x})"

    class Refused(Exception):
        pass

    def increment(x):
        return x + 1

    def moved(point):
        return Point(point.x + 1)

    def refuse(x):
        raise Refused(x)

    def results(f, items):
        try:
            return list(pmap(f, items, kind=sys.argv[1], workers=2))
        except Refused as error:
            return error

    print(results(increment, [1, 2]))
    print(results(attrgetter("x"), [Point(1), Point(2)]))
    print(results(moved, [Point(1), Point(2)]))
    print(repr(results(refuse, [1])))
"""


def imported(folder: Path, modules: dict[str, str], script: str, *arguments: str) -> ScriptResult:
    for name, source in modules.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(dedent(source))
    return run_script(folder, script, *arguments)


@pytest.mark.parametrize("kind", ["sync", "thread", "process"])
def test_a_pipeline_in_a_module_that_is_imported(tmp_path: Path, kind: str):
    result = imported(tmp_path, {"job.py": PLAIN}, "import job", kind)
    assert printed(result).splitlines() == [
        "[2, 3]",
        "[1, 2]",
        "[Point(2), Point(3)]",
        "Refused(1)",
    ]


def test_functions_of_a_package_that_is_imported(tmp_path: Path):
    modules = {
        "package/__init__.py": """
            from fstream import pmap
            from package.other import double

            print(list(pmap(double, [1, 2], kind="process", workers=2)))
        """,
        "package/other.py": """
            def double(x):
                return 2 * x
        """,
    }
    assert printed(imported(tmp_path, modules, "import package")) == "[2, 4]"


def test_tasks_in_a_module_that_is_imported(tmp_path: Path):
    job = """
        from fstream import pmap

        async def increment(x):
            return x + 1

        print(list(pmap(increment, [1, 2])))
    """
    assert printed(imported(tmp_path, {"job.py": job}, "import job")) == "[2, 3]"


def test_what_has_been_imported_is_sent_by_name_again(tmp_path: Path):
    job = """
        from fstream import pmap

        def where(_):
            import sys
            return __name__ in sys.modules

        print(list(pmap(where, [1], kind="process", workers=1)))
    """
    script = """
        import job
        from fstream import pmap
        print(list(pmap(job.where, [1], kind="process", workers=1)))
    """
    lines = printed(imported(tmp_path, {"job.py": job}, script)).splitlines()
    assert lines[0] == "[False]"
    assert lines[-1] == "[True]"


def test_what_the_user_has_sent_by_value_stays_so(tmp_path: Path):
    script = """
        import cloudpickle, job
        cloudpickle.register_pickle_by_value(job)
        from fstream import pmap
        for _ in range(2):
            print(list(pmap(job.where, [1], kind="process", workers=1)))
    """
    job = """
        def where(_):
            import sys
            return __name__ in sys.modules
    """
    assert printed(imported(tmp_path, {"job.py": job}, script)).splitlines() == ["[False]", "[False]"]


def test_nothing_is_registered_where_nothing_is_imported():
    assert not cloudpickle.list_registry_pickle_by_value()


PICKLES_HERE = """
    import threading
    from fstream import NotPicklable, pmap

    class Picky:
        def __call__(self, x):
            return x

        def __reduce__(self):
            print(threading.current_thread() is threading.main_thread())
            raise TypeError("not me")

    stream = pmap(Picky(), [1], kind="process")
    print("before")
    try:
        next(stream)
    except NotPicklable as error:
        print("not me" in str(error))
    print(list(stream))
"""


def test_a_function_is_pickled_by_who_asks_for_the_first_output(tmp_path: Path):
    lines = printed(run_script(tmp_path, PICKLES_HERE)).splitlines()
    assert lines[0] == "before"
    assert set(lines[1:-2]) == {"True"}
    assert lines[-2:] == ["True", "[]"]
