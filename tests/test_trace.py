"""The timeline: what is in the file, that it is bounded, and that a browser shows it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fstream import merge, pfilter, pmap, trace
from fstream._flow.observer import StageInfo
from fstream._seen.trace import File, Tracer
from tests.faults.faulty import Tally
from tests.functions import identity, is_odd
from tests.gates import Gate, holding

Event = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Give the trace in the file, a page or not, checked by what the format says."""
    text = path.read_text()
    if path.suffix == ".html":
        (text,) = re.findall(r'<script type="application/json" id="trace">\n(.*?)</script>', text, re.DOTALL)
    found: dict[str, Any] = json.loads(text)
    for event in found["traceEvents"]:
        check(event)
    return found


def check(event: Event) -> None:
    """Assert that this is an event of the Trace Event Format."""
    assert isinstance(event["name"], str)
    assert event["ph"] in ("X", "i", "C", "M")
    assert type(event["pid"]) is int
    assert type(event["tid"]) is int
    assert isinstance(event["args"], dict)
    if event["ph"] != "M":
        assert event["ts"] >= 0
    if event["ph"] == "X":
        assert event["dur"] >= 0
        assert type(event["args"]["items"]) is int
    if event["ph"] == "i":
        assert event["s"] in ("t", "p", "g")
    if event["ph"] == "C":
        assert all(isinstance(value, int | float) for value in event["args"].values())
    if event["ph"] == "M":
        assert event["name"] in ("process_name", "thread_name", "process_sort_index")


def blocks(events: list[Event], name: str = "") -> list[Event]:
    return [event for event in events if event["ph"] == "X" and name in ("", event["name"])]


def items(events: list[Event], name: str = "") -> int:
    return sum(event["args"]["items"] for event in blocks(events, name))


def check_rows(events: list[Event]) -> None:
    """Assert that no two blocks of one row overlap, and that each row has a name."""
    rows = defaultdict(list)
    for event in blocks(events):
        rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for row in rows.values():
        row.sort()
        assert all(end <= begin + 0.3 for (_, end), (begin, _) in pairwise(row))
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert set(rows) <= named


@pytest.fixture(params=["run.json", "run.html"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def reciprocal(item: int) -> float:
    return 1 / item


# ------------------------------------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("count", [1, 3000])
def test_each_item_is_in_one_block(kind: str, is_ordered: bool, path: Path, count: int):
    with trace(path):
        list(pmap(identity, iter(range(count)), kind=kind, workers=2, ordered=is_ordered))
    events = read(path)["traceEvents"]
    assert items(events, "identity") == count
    check_rows(events)
    firsts = [event["args"]["first"] for event in blocks(events)]
    assert min(firsts) == 0
    assert len(firsts) == len(set(firsts))
    (name,) = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert name == f"identity ({kind})"


def test_an_async_consumer_is_traced(kind: str, tmp_path: Path):
    async def consume() -> None:
        with trace(tmp_path / "run.json"):
            async for _ in pmap(identity, range(100), kind=kind):
                pass

    asyncio.run(consume())
    assert items(read(tmp_path / "run.json")["traceEvents"]) == 100


def test_items_that_wait_in_tasks_are_in_blocks(tmp_path: Path):
    async def turn(item: int) -> int:
        await asyncio.sleep(0.001)
        return item

    with trace(tmp_path / "run.json"):
        list(pmap(turn, range(500), workers=50))
    events = read(tmp_path / "run.json")["traceEvents"]
    assert items(events) == 500
    check_rows(events)


def test_an_executor_has_as_many_rows_as_it_worked_on_at_once(tmp_path: Path):
    with ThreadPoolExecutor(2) as pool, trace(tmp_path / "run.json"):
        list(pmap(identity, range(3000), kind=pool))
    events = read(tmp_path / "run.json")["traceEvents"]
    assert items(events) == 3000
    check_rows(events)
    assert len({event["tid"] for event in blocks(events)}) <= 3


def test_each_stage_is_a_group_of_rows_in_their_order(tmp_path: Path):
    with trace(tmp_path / "run.json"):
        list(
            pmap(identity, range(300), kind="thread")
            | pfilter(is_odd, kind="sync")
            | pmap(float, kind="task")
        )
    events = read(tmp_path / "run.json")["traceEvents"]
    groups = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sorted(groups.values()) == ["float (task)", "identity (thread)", "is_odd (sync)"]
    assert items(events, "identity") == items(events, "is_odd") == 300
    assert items(events, "float") == 150


def test_failures_are_marked(kind: str, path: Path):
    with trace(path):
        list(pmap(reciprocal, [1, 0, 2], kind=kind, retries=1, on_error="skip"))
    marks = [event for event in read(path)["traceEvents"] if event["ph"] == "i"]
    assert [(mark["name"], mark["args"]["item"], mark["args"]["tries"]) for mark in marks] == [
        ("tried again", 1, 1), ("failed", 1, 2),
    ]  # fmt: skip
    assert "ZeroDivisionError" in marks[0]["args"]["error"]


def test_workers_that_die_or_run_over_their_time_are_marked(folder: Path, gate: Gate):
    tally = Tally(str(folder / "tally"))

    def die(item: int) -> int:
        import os

        if item == 1 and tally.turn("run") <= 1:
            os._exit(3)
        return item

    with trace(folder / "run.json"):
        list(pmap(die, range(3), kind="process", workers=1, retries=1))
        list(
            pmap(holding("thread", {0: gate}), [0, 1], kind="thread", workers=1, timeout=0.2, on_error="skip")
        )
        gate.open()
    names = [event["name"] for event in read(folder / "run.json")["traceEvents"] if event["ph"] == "i"]
    assert "worker died" in names
    assert "worker timed out" in names


def test_what_a_stage_holds_is_a_curve(tmp_path: Path, concurrent_kind: str):
    with trace(tmp_path / "run.json"):
        list(pmap(identity, iter(range(3000)), kind=concurrent_kind, workers=2))
    held = [event for event in read(tmp_path / "run.json")["traceEvents"] if event["ph"] == "C"]
    assert held
    assert all(event["args"]["items"] >= 0 for event in held)


def test_an_error_ends_the_file_well(kind: str, path: Path):
    def source() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more")

    with pytest.raises(LookupError), trace(path):
        list(pmap(identity, source(), kind=kind))
    events = read(path)["traceEvents"]
    assert items(events) == 5
    assert [event["args"]["error"] for event in events if event["name"] == "the run ends"] == [
        "LookupError: no more"
    ]


def test_names_and_errors_of_any_text_are_in_it(path: Path):
    def broken(item: int) -> int:
        raise ValueError('</script> " \\ \n \ud800 é <!-- ')

    with trace(path):
        list(pmap(broken, [1], kind="thread", on_error="skip", name='</script>"\\é'))
    found = read(path)
    assert [event["name"] for event in blocks(found["traceEvents"])] == ['</script>"\\é']
    assert path.read_text().count("</script>") == (
        2 if path.suffix == ".html" else path.read_text().count("</script>")
    )


def test_a_stream_that_goes_on_after_the_block_is_in_the_trace_up_to_its_end(tmp_path: Path):
    with trace(tmp_path / "run.json"):
        stream = pmap(identity, range(10_000), kind="thread", workers=1, maxsize=10)
        next(stream)
    assert list(stream) == list(range(1, 10_000))
    assert items(read(tmp_path / "run.json")["traceEvents"]) < 10_000


# ------------------------------------------------------------------------------------------------ that it is bounded


@pytest.mark.parametrize("max_bytes", [60_000, 100_000])
def test_a_file_has_at_most_so_many_bytes_and_says_what_is_left_out(path: Path, max_bytes: int):
    with trace(path, max_bytes=max_bytes):
        list(pmap(identity, range(3000), kind="thread", workers=1, maxsize=1))
    assert path.stat().st_size <= max_bytes
    found = read(path)
    assert re.search(r"max_bytes was reached: \d+ events are left out", found["otherData"]["cut"])
    assert 0 < items(found["traceEvents"]) < 3000


def test_a_file_that_is_whole_says_nothing_of_a_cut(path: Path):
    with trace(path):
        list(pmap(identity, range(10), kind="thread"))
    assert "cut" not in read(path)["otherData"]


def test_events_are_written_while_they_happen(tmp_path: Path):
    with trace(tmp_path / "run.json"):
        stream = pmap(identity, iter(range(5000)), kind="thread", workers=1, maxsize=1)
        sizes = set()
        for _ in stream:
            sizes.add((tmp_path / "run.json").stat().st_size)
    assert len(sizes) > 3


def test_a_thousand_runs_are_kept_in_few_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tracers: list[Tracer] = []
    opened = Tracer.__init__

    def note(self: Tracer, *args: Any) -> None:
        opened(self, *args)
        tracers.append(self)

    monkeypatch.setattr(Tracer, "__init__", note)
    with trace(tmp_path / "run.json"):
        for _ in range(300):
            list(pmap(identity, [1], kind="sync") | pmap(float, kind="sync"))
        (tracer,) = tracers
        assert len(tracer.runs) < 100
        assert len(tracer.stages) == 0
        assert len(tracer.rows) == 2
    events = read(tmp_path / "run.json")["traceEvents"]
    assert items(events) == 600
    assert len([event for event in events if event["name"] == "process_name"]) == 2


def test_a_span_that_is_given_back_whole_is_no_block(tmp_path: Path):
    path = tmp_path / "run.json"
    tracer, stage = Tracer(File(path, 10_000)), StageInfo(0, 0, "identity", "process", 2)
    tracer.done(stage, 5, 0, None, 1)
    tracer.done(stage, 5, 3, 0.1, 1)
    tracer.close()
    assert [event["args"] for event in blocks(read(path)["traceEvents"])] == [{"items": 3, "first": 5}]


@pytest.mark.parametrize(
    ("path", "max_bytes", "error", "message"),
    [
        ("run.txt", 10**6, ValueError, r"path must end in .json or .html, got 'run.txt'"),
        ("run.json", 10, ValueError, r"max_bytes must be at least \d+, got 10"),
        ("run.html", 9_000, ValueError, r"max_bytes must be at least \d+, got 9000"),
        ("run.json", 1.5, TypeError, r"max_bytes must be an int, got 1.5"),
    ],
)
def test_what_cannot_be_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, max_bytes: Any, error: Any, message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message), trace(path, max_bytes=max_bytes):
        pass
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- the page


def test_a_page_needs_nothing_else(tmp_path: Path):
    with trace(tmp_path / "run.html"):
        list(pmap(identity, range(10), kind="thread", name="<b>"))
        list(merge(pmap(float, [1], kind="thread")))
    page = (tmp_path / "run.html").read_text()
    assert not re.findall(r"https?://|src=|<link|@import", page)
    assert page.count('<table class="fstream">') == 2
    assert "<td" in page and "&lt;b&gt;" in page


BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)

#: Looks at the page as a user would, and leaves what it saw in the document.
LOOK = """
<script>
window.addEventListener("load", () => {
  const said = {}, canvas = document.getElementById("picture");
  const colors = () => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const seen = new Set();
    for (let n = 0; n < data.length; n += 4) seen.add(data[n] + "," + data[n + 1] + "," + data[n + 2]);
    return seen.size;
  };
  said.rows = view.lines.filter((line) => line.row).map((line) => line.group.name + "/" + line.row.name);
  said.tables = document.querySelectorAll("#tables table.fstream tbody tr").length;
  said.colors = colors();
  const line = view.lines.find((each) => each.row && each.row.blocks.length);
  const block = line.row.blocks[0];
  const x = 150 + (block.ts + block.dur / 2 - view.from) / (view.to - view.from) * (canvas.clientWidth - 150);
  const at = {offsetX: x, offsetY: line.y + 8};
  const mouse = (type, more) => {
    const event = new WheelEvent(type, {bubbles: true, cancelable: true, ...more});
    for (const [name, value] of Object.entries(at)) Object.defineProperty(event, name, {value});
    canvas.dispatchEvent(event);
  };
  mouse("mousemove", {});
  const tip = document.getElementById("tip");
  said.tip = tip.style.display + "|" + tip.textContent;
  const whole = view.to - view.from;
  mouse("wheel", {deltaY: -100});
  said.zoomed = (view.to - view.from) / whole;
  canvas.dispatchEvent(new MouseEvent("dblclick"));
  said.back = (view.to - view.from) / whole;
  const found = document.createElement("pre");
  found.id = "said";
  found.textContent = JSON.stringify(said);
  document.body.append(found);
});
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.slow
def test_a_browser_shows_the_page(tmp_path: Path):
    assert BROWSER is not None
    page = tmp_path / "run.html"
    with trace(page):
        list(
            pmap(identity, range(20_000), kind="thread", workers=2)
            | pmap(reciprocal, kind="process", on_error="skip")
        )
    page.write_text(page.read_text() + LOOK)
    result = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,800", "--virtual-time-budget=5000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    (text,) = re.findall(r'<pre id="said">(.*?)</pre>', result.stdout, re.DOTALL)
    said = json.loads(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert "identity (thread)/worker 0" in said["rows"]
    assert "reciprocal (process)/worker 0" in said["rows"]
    assert said["tables"] == 2
    assert said["colors"] > 5
    assert said["tip"].startswith("block|identity (thread), worker")
    assert "item" in said["tip"]
    assert said["zoomed"] == pytest.approx(0.8, abs=0.01)
    assert said["back"] == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no file that is always full")
def test_a_full_disk_is_an_error_at_the_end_of_the_block_and_the_stream_goes_on(tmp_path: Path):
    path = tmp_path / "run.json"
    path.symlink_to("/dev/full")
    outputs = []
    with pytest.raises(OSError, match="No space left"), trace(path):
        outputs += pmap(identity, range(5_000), kind="thread", maxsize=1)
    assert outputs == list(range(5_000))
