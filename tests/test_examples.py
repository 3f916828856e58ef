"""The examples run as scripts, and print what they should."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *arguments: str, shows: bool = False) -> str:
    command = [sys.executable, EXAMPLES / script, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert all(shows and line.startswith("fstream: ") for line in done.stderr.splitlines()), done.stderr
    assert done.returncode == 0
    return done.stdout


def test_stdlib_names_counts_the_same_as_map():
    output = run("stdlib_names.py", "--limit", "60", shows=True)
    assert output.startswith("60 files in ")
    assert " self " in output
    assert "the bottleneck is " in output
    assert "a timeline is in " in output
    assert output.endswith("both counts are equal\n")


def test_stdlib_names_counts_the_same_on_a_cluster():
    pytest.importorskip("distributed")
    output = run("stdlib_names.py", "--limit", "60", "--cluster", shows=True)
    assert "the bottleneck is " in output
    assert output.endswith("both counts are equal\n")


def test_fetch_pages_gets_every_page_in_order():
    pytest.importorskip("aiohttp")
    output = run("fetch_pages.py", "--pages", "120")
    assert output.startswith("120 pages in ")
    assert output.endswith("all as written, in order\n")


def test_the_overnight_job_goes_on_after_a_kill():
    pytest.importorskip("aiohttp")
    output = run("overnight.py", "--pages", "200", shows=True)
    assert "197 pages in the database, 3 dead letters" in output
    assert output.endswith("nothing lost, nothing done again but what the job held\n")


def test_the_overnight_job_of_the_readme_is_that_of_the_example():
    blocks = (EXAMPLES.parent / "README.md").read_text().split("```python\n")
    [job] = [block.split("```")[0] for block in blocks if "def run_job(" in block]
    assert job in (EXAMPLES / "overnight.py").read_text().replace("  # fmt: skip", "")


def test_pipelines_are_made_faster_by_what_they_say(tmp_path: Path):
    output = run("made_faster.py", "--count", "40", "--traces", str(tmp_path))
    assert output.endswith("each step gave the same\n")
    assert output.count(" s\n  ") == 8  # each has said what holds it up
    assert len(list(tmp_path.iterdir())) == 8


def test_every_example_is_in_the_index():
    scripts = {script.name for script in EXAMPLES.glob("*.py")}
    index = (EXAMPLES / "README.md").read_text()
    assert {name for name in scripts if f"({name})" in index} == scripts
