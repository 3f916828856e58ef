"""Seed bugs into fstream, one at a time, and see that the tests find every one.

    python tests/mutants.py                       # all of them; the last lines say which survived
    python tests/mutants.py --only span process   # those with one of these words in their name or file
    python tests/mutants.py --list

A mutant is fstream with one piece of its source replaced, by what a programmer might have written. It is run in a
folder of its own, on the tests that are nearest to what was changed first, until one fails or hangs. Each piece must be
there exactly once: where the code has changed, the list here has to follow. What changes nothing that a user can rely
on (speed, say) is no mutant.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).parent.parent

COPIED = ("fstream", "tests", "property_tests", "pyproject.toml")

#: All tests that mutants are run on, those first that are fast and find much.
SELECTION = (
    "tests/test_windows.py",
    "tests/test_calls.py",
    "tests/test_queues.py",
    "tests/test_children.py",
    "tests/test_arena.py",
    "tests/test_order.py",
    "tests/test_currying.py",
    "tests/test_options.py",
    "fstream/testing.py",
    "tests/test_workers.py",
    "tests/test_errors_basic.py",
    "tests/test_resources.py",
    "tests/test_stream.py",
    "tests/test_combinators.py",
    "tests/test_live.py",
    "tests/test_async_callables.py",
    "tests/test_async_errors.py",
    "tests/test_async_sources.py",
    "tests/test_async_iteration.py::test_what_next_has_left_comes_in_a_loop",
    "tests/test_async_iteration.py::test_cheap_outputs_do_not_keep_the_loop_to_themselves",
    "tests/test_async_loop.py",
    "tests/test_async_cancel.py::test_a_stream_that_is_collected_in_a_cycle_is_closed_by_its_tasks",
    "tests/test_bounds.py::test_a_chain_holds_what_its_stages_may_hold",
    "tests/test_bounds.py::test_idle_workers_keep_nothing_of_what_they_had",
    "tests/test_bounds.py::test_workers_at_work_keep_no_output_of_before",
    "tests/test_ends.py::test_a_generator_that_others_hold_is_closed",
    "tests/test_ends.py::test_a_stream_that_a_source_starts_when_all_is_over_ends_at_once",
    "tests/test_processes.py",
    "tests/test_interrupts.py",
    "tests/faults/test_fault_cases.py::test_everything_is_released_when_the_consumer_leaves",
    "tests/faults/test_fault_cases.py::test_the_cause_chain_keeps_the_error_of_f_first",
    "tests/faults/test_fault_cases.py::test_more_than_a_pipe_holds_in_both_directions_at_once",
    "tests/faults/test_fault_cases.py::test_a_worker_is_replaced_after_so_many_items[5-ordered]",
    "tests/faults/test_fault_cases.py::test_an_output_that_cannot_be_pickled_is_tried_again_while_its_worker_is_at_the_next_item",
    "tests/test_fusion.py",
    "property_tests/test_laws.py",
    "property_tests/test_model.py",
)

#: Which of them come first, for the mutants of a file, by the beginning of their names.
NEAREST = {
    "_fusion.py": ("tests/test_fusion",),
    "_queues.py": ("tests/test_windows", "tests/test_queues", "tests/test_live"),
    "_run.py": (
        "tests/test_order",
        "tests/test_errors",
        "tests/test_ends",
        "tests/test_bounds",
        "tests/test_res",
    ),
    "stream.py": ("tests/test_stream", "tests/test_combinators", "tests/test_async_callables"),
    "combinators.py": ("tests/test_combinators",),
    "_workers/arena.py": ("tests/test_arena",),
    "_workers/call.py": ("tests/test_calls", "tests/test_errors"),
    "_workers/crew.py": ("tests/test_workers", "tests/test_resources", "tests/test_errors"),
    "_workers/loop.py": ("tests/test_queues", "tests/test_async", "tests/test_live"),
    "_workers/task.py": (
        "tests/test_workers",
        "tests/test_errors",
        "tests/test_async",
        "tests/test_live",
        "tests/test_bounds",
    ),
    "_workers/private_loop.py": ("tests/test_async_loop",),
    "_workers/sync.py": ("tests/test_ends", "tests/test_errors", "tests/test_resources"),
    "_workers/thread.py": ("tests/test_errors", "tests/test_bounds"),
    "_workers/process.py": ("tests/test_children", "tests/test_workers", "tests/test_errors", "tests/faults"),
    "_workers/child.py": ("tests/test_children",),
    "_workers/link.py": ("tests/test_processes",),
    "_workers/wire.py": ("tests/test_errors", "tests/faults", "tests/test_processes"),
}

#: Seconds after which a test counts as hung, and after which it is given up that one fails.
EACH, WHOLE = 25, 600

#: By file: what the bug is, the piece of source, and what stands in its place.
SEEDS: dict[str, list[tuple[str, str, str]]] = {
    "_spans.py": [
        (
            "what is taken back is numbered one too high",
            "Span(self.start + kept, items,",
            "Span(self.start + kept + 1, items,",
        ),
        ("what was taken back stays in its span, too", "        self.items = self.items[:kept]\n", ""),
        (
            "a span that is given out in parts skips an item",
            "Span(self.start + count, self.items[count:])",
            "Span(self.start + count, self.items[count + 1 :])",
        ),
        ("the window holds one item too many", "self.limit - self.held,", "self.limit - self.held + 1,"),
        (
            "a window grows though nothing goes through it",
            "self.gone < self.growable_at",
            "False",
        ),
        (
            "small spans leave the window upstream as it is",
            "            self.upstream.grow(self.room.limit)\n",
            "",
        ),
        (
            "a strict bound grows",
            "if self.maxsize is not None or self.limit >= most",
            "if self.limit >= most",
        ),
        ("maxsize=0 is taken for none given", "sys.maxsize if maxsize == 0 else maxsize", "maxsize"),
        ("items that are pulled are not counted", "        self.room.held += count\n", ""),
        (
            "one of several feeders has all the room",
            "max(1, self.room.free // self.feeders)",
            "max(1, self.room.free)",
        ),
        ("a source that ends keeps the room it did not use", "        self.room.held -= unused\n", ""),
        (
            "one source that fails does not end the others",
            "            self.feeders = 0\n",
            "",
        ),
        ("the room of what was pulled is given back twice", "most if self.alone else 0", "most"),
        (
            "the end of a source comes before what it gave last",
            "if self.feeders <= 0 and not self.pending else",
            "if self.feeders <= 0 else",
        ),
        (
            "the first of several sources to end ends all",
            "if self.feeders <= 0 and",
            "if self.feeders <= 1 and",
        ),
        ("a list that ended may go on", "left > 0 and not self.over", "left > 0"),
        (
            "a stage takes one more than it has room for",
            "min(available, room.limit - room.held)",
            "min(available, room.limit - room.held + 1)",
        ),
        (
            "the rest of a returned span is forgotten",
            "self.returned.append(span.split(size))",
            "span.split(size)",
        ),
        ("a span counts as one item", "self.room.held += len(items)", "self.room.held += 1"),
        (
            "the stage upstream never gets its room back",
            "        if credits:\n            upstream.release(credits)\n",
            "",
        ),
        (
            "lone items are drawn past those that came back",
            "self.failure is not None or self.returned or self.divisible:",
            "self.failure is not None or self.divisible:",
        ),
        (
            "lone items are drawn before those that wait behind a slow one",
            "self.failure is not None or self.returned or self.divisible:",
            "self.failure is not None or self.returned:",
        ),
        (
            "lone items are drawn where their worker may be lost",
            "if self.loses or self.stopped or self.failure",
            "if self.stopped or self.failure",
        ),
        (
            "what comes after lone items has their indices",
            "            self.next_index += len(items)\n            self.lone +=",
            "            self.lone +=",
        ),
        (
            "lone items do not count as busy until somebody takes them",
            "return self.open + self.lone - len(self.lone_slots)",
            "return self.open + self.lone - len(self.lone_slots) - len(self.lone_items)",
        ),
        (
            "lone items that are done count as busy",
            "return self.open + self.lone - len(self.lone_slots)",
            "return self.open + self.lone",
        ),
        (
            "what lone items take is not known",
            "            self.cost = seconds + ((self.cost or seconds) - seconds) * 0.5 ** len(items)\n",
            "",
        ),
        (
            "lone items are started after a failure",
            "s.start < failure.index]\n        self.lone_items.clear()\n",
            "s.start < failure.index]\n",
        ),
        (
            "lone items are started when all is over",
            "        self.returned.clear()\n        self.lone_items.clear()\n",
            "        self.returned.clear()\n",
        ),
        (
            "a stage ends before its lone items",
            "if not (self.spans or self.lone) and",
            "if not self.spans and",
        ),
        (
            "workers go home though there are lone items",
            "        if self.returned or self.lone_items:\n            return False\n",
            "        if self.returned:\n            return False\n",
        ),
        (
            "takers do not see lone items",
            "        if self.returned or self.lone_items:\n            return True\n",
            "        if self.returned:\n            return True\n",
        ),
        (
            "what waits behind a slow item stays there for seconds",
            "now - span.begun >= patience",
            "now - span.begun >= 1000 * patience",
        ),
        (
            "a span that keeps its taker waiting goes on",
            "            self.give_back(span)\n\n    def grow",
            "            pass\n\n    def grow",
        ),
        (
            "the taker asks for what cannot go out before something else",
            "self.spans.get(self.head) in self.divisible if self.ordered else bool(self.divisible)",
            "bool(self.divisible)",
        ),
        (
            "the taker asks for the first span, though any might have something",
            "[self.spans[self.head]] if self.ordered else list(self.divisible)",
            "list(self.divisible)[:1]",
        ),
        (
            "who minds remote workers is not told that the taker waits",
            "            self.hungry = True\n            return\n",
            "            return\n",
        ),
        (
            "a worker gives back one item too few",
            "len(span.items) - count\n",
            "len(span.items) - count + 1\n",
        ),
        (
            "the first suspect is not tried",
            "for number in range(position, len",
            "for number in range(position + 1, len",
        ),
        ("an item whose worker died has one try too few", "if tries <= retries:", "if tries < retries:"),
        ("deaths are not counted as tries", "if at == 0 else 0) + 1\n", "if at == 0 else 0)\n"),
        (
            "the item that killed its worker runs twice",
            "self.take_back(span, len(span.items) - at - 1)",
            "self.take_back(span, len(span.items) - at)",
        ),
        (
            "slots that were lost with their worker are not made again",
            "if at > position:",
            "if at < position:",
        ),
        (
            "a later failure takes the place of an earlier one",
            "self.failure.index <= failure.index",
            "self.failure.index >= failure.index",
        ),
        (
            "what is finished when a stage fails is lost",
            "        self.harvest()\n        self.failure = f",
            "        self.failure = f",
        ),
        (
            "a failure stops the items before it",
            "not self.ordered or span.start > failure.index",
            "not self.ordered or span.start < failure.index",
        ),
        (
            "what is to be tried again before a failure is dropped",
            "[s for s in self.returned if self.ordered and s.start < failure.index]",
            "[]",
        ),
        (
            "a span is worked off though the stage was stopped",
            "                span.rest()\n        self.returned.clear()",
            "                pass\n        self.returned.clear()",
        ),
        (
            "workers go home though a span is to be run again",
            "        if self.returned or self.lone_items:\n            return False\n",
            "        if self.lone_items:\n            return False\n",
        ),
        (
            "workers go home at a failure though an earlier span may come back",
            "return not any(span.start < self.failure.index for span in self.spans.values() if not span.closed)",
            "return True",
        ),
        (
            "workers go home though the last span may come back",
            "not (self.divisible or self.loses) or all(span.closed for span in self.spans.values())",
            "True",
        ),
        (
            "workers go home though the rest of a span may be taken over",
            "not (self.divisible or self.loses)",
            "not self.loses",
        ),
        (
            "workers go home though an item may be lost with its worker",
            "not (self.divisible or self.loses)",
            "not self.divisible",
        ),
        (
            "what is finished after a failure opens the end again",
            "elif self.failure is None:  # else",
            "else:  #",
        ),
        (
            "what is finished late after a failure opens the end again",
            "if self.failure is None and self.spans.get(span.start) is span:",
            "if self.spans.get(span.start) is span:",
        ),
        (
            "a span of which nothing is left takes the place of what was taken back",
            "if self.failure is None and self.spans.get(span.start) is span:",
            "if self.failure is None:",
        ),
        (
            "the order is that in which spans were handed out",
            "span := spans.get(self.head)",
            "span := next(iter(spans.values()), None)",
        ),
        (
            "only one finished span is looked at",
            "                self.head += span.given\n",
            "                self.head += span.given\n                break\n",
        ),
        (
            "what left a span early leaves it again",
            "slots if span.closed and not given else",
            "slots if span.closed else",
        ),
        (
            "outputs share their list with a span that is not closed",
            "slots if span.closed and not given else",
            "slots if count == len(span.items) and not given else",
        ),
        (
            "items without outputs are held for ever",
            "            self.release(credits)\n            return\n",
            "            return\n",
        ),
        (
            "finished slots wait for the end of their span",
            "span.given = count = len(slots)",
            "span.given = count = len(slots) if span.closed else given",
        ),
        (
            "all slots of a span are there, and the next one waits for its worker's word",
            "if span.closed or count == len(span.items):",
            "if span.closed:",
        ),
        ("outputs that are joined give no room back", "self.entries[-1][2] += credits", "pass"),
        ("outputs are joined to the slots of a span", "outputs = [*outputs]", "pass"),
        (
            "an item's outputs are joined to those of others",
            "and owed == len(last) - position:",
            "and True:",
        ),
        ("the room of an output is given back twice", "                    entry[2] -= len(part)\n", ""),
        (
            "each of an item's outputs gives the item's room back",
            "if owed >= left:",
            "if owed:",
        ),
        (
            "the end comes before the last outputs",
            "        if self.ready_count or self.entries:\n            return None\n",
            "",
        ),
        (
            "an error comes before the outputs of earlier items",
            "            if self.ordered and self.head < self.failure.index:\n                return None\n",
            "",
        ),
    ],
    "_fusion.py": [
        ("neighbours run as one though one is of another kind", 'stage.kind == "process"', "True"),
        ("neighbours run as one though one has workers of its own", "and stage.workers is None\n", ""),
        ("neighbours run as one though one has a bound of its own", "and stage.maxsize is None\n", ""),
        ("neighbours run as one though one has a time-out", "and stage.timeout is None\n", ""),
        ("neighbours run as one though one has retries", "and stage.retries == 0\n", ""),
        ("neighbours run as one though one handles errors", 'and stage.on_error == "raise"\n', ""),
        ("neighbours run as one though one retires workers", "and stage.max_items_per_worker is None\n", ""),
        ("neighbours run as one though one is ordered", "and before.ordered == after.ordered\n", ""),
        ("neighbours run as one whatever a flat map gives", "part.kernel in (MAP, FILTER)", "True"),
        (
            "neighbours run as one though the second may not start",
            "not (before.on_done and after.on_start)",
            "True",
        ),
        ("neighbours run as one with wrong positions", '"element_index" not in after.names', "True"),
        (
            "the last of many neighbours is left out",
            "(before.parts or (before,)) + (after,)",
            "before.parts or (before, after)",
        ),
        (
            "neighbours run the wrong way round",
            "(before.parts or (before,)) + (after,)",
            "(after,) + (before.parts or (before,))",
        ),
        ("an on_done of neighbours is forgotten", "before.on_done or after.on_done", "before.on_done"),
        ("neighbours drop nothing", "before.kernel.drops or after.kernel.drops", "False"),
    ],
    "_queues.py": [
        (
            "workers wait for room while the consumer waits for its turn",
            "        if self.had and self.came - self.left < AT_ONCE:\n            self.upstream.grow()\n",
            "",
        ),
        (
            "a window grows for a consumer that has just come",
            "if self.had and self.came - self.left < AT_ONCE:",
            "if self.came - self.left < AT_ONCE:",
        ),
        (
            "a window grows for a slow consumer that finds workers without room",
            "if self.had and self.came - self.left < AT_ONCE:",
            "if self.had:",
        ),
        (
            "who has enough to do leaves what waits behind a slow item",
            "            window.reclaim(now, OVERDUE)\n",
            "            pass\n",
        ),
        (
            "workers are not told of the end",
            "self.window.takable() or self.window.exhausted",
            "self.window.takable()",
        ),
        (
            "a slow consumer lets all stages but the last grow",
            "if wanted and not self.window.upstream.available()",
            "if not self.window.upstream.available()",
        ),
        (
            "a stage never asks for what is finished upstream",
            "        self.window.upstream.press()\n",
            "",
        ),
        (
            "nobody takes over what waits behind a slow item",
            "        self.window.reclaim(self.clock(), self.window.patience)\n",
            "",
        ),
        (
            "the consumer's room is given back twice",
            "        self.owed = 0\n        self.came",
            "        self.came",
        ),
        ("the consumer's room is never given back", "        self.upstream.release(self.owed)\n", ""),
        ("a slow consumer lets the last stage grow", "        if wanted:\n", "        if True:\n"),
        (
            "the consumer never asks for what is finished",
            "        self.upstream.press()\n",
            "",
        ),
        (
            "a feeder that waits for room is not told of the end",
            "self.feed.stopped or self.feed.room",
            "self.feed.room",
        ),
        (
            "who was woken in vain is not woken again",
            "        self.signalled = False\n        return int(self.buffer.ready())",
            "        return int(self.buffer.ready())",
        ),
        (
            "who takes does not wake the next",
            "        self.settle()\n        self.takers += 1\n",
            "        self.takers += 1\n",
        ),
        ("threads that wait long never insist", "        if not woken:\n", "        if woken:\n"),
    ],
    "_run.py": [
        (
            "a stream that a source starts when all is over runs on",
            "if outer is not None and outer.run.feed.stopped:",
            "if False:",
        ),
        ("an interrupt leaves a run half stopped", "with Uninterrupted(), self.lock:", "with self.lock:"),
        (
            "an interrupt in the middle of a wake-up leaves a taker asleep",
            "queue.takers + 1 if",
            "queue.takers if",
        ),
        ("settle forgets the first stage", "in reversed(self.crews)]", "in reversed(self.crews[1:])]"),
        ("a failure leaves what is upstream at work", "in self.crews[:position]:", "in self.crews[:0]:"),
        (
            "close stops the last stage only",
            "            for window in self.windows:\n",
            "            for window in self.windows[-1:]:\n",
        ),
        (
            "close leaves the workers in f",
            "for part in (*self.feeders, *self.crews):",
            "for part in self.feeders:",
        ),
        (
            "close wakes nobody",
            "                    queue.signal()\n\n    def wait",
            "                    pass\n\n    def wait",
        ),
        (
            "close does not stop",
            "        self.stop()\n        self.wait(self.GRACE)\n",
            "        self.wait(self.GRACE)\n",
        ),
        ("close does not wait", "        self.wait(self.GRACE)\n", ""),
        (
            "the end does not wait for on_done",
            "                self.wait(None)  # for on_done\n",
            "                pass\n",
        ),
        (
            "the end waits for a thread that was abandoned",
            "all(m.abandoned or m in kept for m in self.members), timeout",
            "all(m in kept for m in self.members), timeout",
        ),
        (
            "the end of a source wakes nobody",
            "            feed.ended(credits, error)\n            run.settle()\n",
            "            feed.ended(credits, error)\n",
        ),
        ("who leaves does not tell those who wait for it", "        self.left.notify_all()\n", ""),
        (
            "the feeder tells of what it pulled when it has no room left",
            "taker is None or (taker.takers and not taker.signalled)",
            "False",
        ),
        (
            "an error of the source is taken for its end",
            "feed.ended(credits, error)",
            "feed.ended(credits, None)",
        ),
        (
            "the source is not closed",
            "                items.close()\n            items = None\n",
            "                pass\n            items = None\n",
        ),
        ("maxsize holds for the first stage only", "Room(stage.maxsize, 2 * count)", "Room(None, 2 * count)"),
        ("unordered stages are ordered", "ordered=stage.ordered,", "ordered=True,"),
        (
            "an error of f is raised without closing the run",
            "        self.close(complain=taken.error is None)\n",
            "",
        ),
    ],
    "_kernels.py": [
        ("a filter keeps f's result", "return item if result else DROP", "return result if result else DROP"),
        ("a flat map runs generators downstream", "return list(result)", "return result"),
        (
            "a flat map spreads the first item of a span only",
            "from_iterable(slots))",
            "from_iterable(slots[:1]))",
        ),
        ("what was skipped comes out as a mark", "if skips or self.drops:", "if self.drops:"),
        ("a skipped item of a flat map is no empty one", "return () if self.spread else DROP", "return DROP"),
        (
            "a filter does not await f",
            "                result = await result\n",
            "                result.close()\n",
        ),
    ],
    "_workers/call.py": [
        ("one retry too few", "tries <= self.stage.retries and", "tries < self.stage.retries and"),
        ("one retry too many", "tries <= self.stage.retries and", "tries <= self.stage.retries + 1 and"),
        (
            "an exit is tried again",
            " and isinstance(error, Exception)\n\n    def named",
            "\n\n    def named",
        ),
        (
            "an exit is skipped",
            'if stage.on_error == "raise" or not isinstance(error, Exception):',
            'if stage.on_error == "raise":',
        ),
        (
            "a StopIteration of f ends the stream",
            "isinstance(error, StopIteration | StopAsyncIteration)",
            "isinstance(error, StopAsyncIteration)",
        ),
        ("errors have no note", '    BaseException.__setattr__(error, "__notes__", notes)', "    pass"),
        ("our note takes the place of others", '[*getattr(error, "__notes__", ()), note]', "[note]"),
        (
            "on_done runs where nothing started",
            "if self.started and self.stage.on_done is",
            "if self.stage.on_done is",
        ),
        ("element_index starts anew in each span", "place.start + len(place.slots)", "len(place.slots)"),
        (
            "a handler's SKIP is an output",
            "return stage.kernel.nothing if result is SKIP else stage",
            "return stage",
        ),
    ],
    "_workers/crew.py": [
        ("who runs over its time forgets the tries before", "            worker.span.tried = tries\n", ""),
        (
            "all tries of an item share its time",
            "                worker.begun = monotonic()\n            return True",
            "                pass\n            return True",
        ),
        (
            "who was abandoned tries again",
            "if worker.abandoned or self.window.stopped:",
            "if self.window.stopped:",
        ),
        (
            "an item is tried again though all is over",
            "if worker.abandoned or self.window.stopped:",
            "if worker.abandoned:",
        ),
        (
            "an item that was lost for good is passed over",
            "        if is_failure(slot):\n            self.fail(slot)\n        else:\n",
            "        if not is_failure(slot):\n",
        ),
        (
            "who ends counts itself among the others",
            "            self.begun -= 1\n            return",
            "            return",
        ),
        (
            "one worker too many",
            "min(count, self.window.workers - self._places)",
            "min(count, self.window.workers - self._places + 1)",
        ),
        ("only one worker ever starts", "if self.coming or self.queue", "if True or self.queue"),
        ("who has come is still expected", "            self.coming -= 1\n", ""),
        (
            "who hands in a span does not tell",
            "poll() if wanted else None\n            self.run.settle()\n",
            "poll() if wanted else None\n",
        ),
        (
            "an error of on_done is swallowed",
            "            self.run.complaints.append(error)\n",
            "            pass\n",
        ),
    ],
    "_workers/thread.py": [
        ("a failure has the place of its span", "index = span.start + len(span.slots)", "index = span.start"),
        (
            "what succeeded when tried again has no slot",
            "slot = self.failed(error, item, span)\n                if is_failure(slot):\n                    return\n",
            "if is_failure(self.failed(error, item, span)):\n                    return\n                continue\n",
        ),
        (
            "a thread that waits for work is over its time",
            "                    self.begun = None\n                    span.tried = 0",
            "                    span.tried = 0",
        ),
        ("an abandoned thread is not replaced", "self.crew.add(worker.index)", "pass"),
        ("an abandoned thread still fills its span", "worker.abandoned = True", "pass"),
        (
            "an abandoned thread goes on to other spans",
            "                if self.abandoned:\n                    break\n",
            "",
        ),
        ("threads do not run on_done", "                crew.finish(self.call)\n", "                pass\n"),
        ("idle threads keep their last span", "self.call.set_place(None)", "pass"),
    ],
    "_workers/task.py": [
        (
            "idle tasks keep their last span",
            "        call.place = None\n        return taken\n",
            "        return taken\n",
        ),
        (
            "what has waited goes out at the end of the loop's turn",
            "if self.window.next_out(index):",
            "if False:",
        ),
        (
            "what has waited is not told of at the end of the loop's turn",
            "            self.host.loop.call_soon(self.end_of_turn)\n",
            "            pass\n",
        ),
        (
            "lone items hold their room for ever where they give nothing",
            "        if not self.window.one_each:\n            self.window.harvest()\n",
            "",
        ),
        (
            "nobody is told of the last lone items",
            "if (items or crew.over) and (index",
            "if items and (index",
        ),
        (
            "only the next one in order is told of where there is no order",
            "(index == window.head or not heads_only)",
            "index == window.head",
        ),
        (
            "nobody is told of an item before there are none left",
            "if (items or crew.over) and (index",
            "if crew.over and (index",
        ),
        (
            "an item that does not wait is followed by lone ones",
            "taken = None if waited and window.lone_items else self.poll()",
            "taken = None if window.lone_items else self.poll()",
        ),
        (
            "lone items are drawn while nobody waits",
            "                if window.busy:\n                    window.draw_lone(missing)",
            "                if True:\n                    window.draw_lone(missing)",
        ),
        (
            "who comes draws no item for those that it starts",
            "missing = 1 + more - len(window.lone_items)",
            "missing = 1 - len(window.lone_items)",
        ),
        (
            "a task that has worked off lone items starts nobody",
            "        waited = True\n        crew.recruit()\n",
            "        waited = True\n",
        ),
        (
            "a task keeps its last output while it waits",
            "slots[index], slot = slot, None",
            "slots[index] = slot",
        ),
        (
            "what f makes of its time-out is a failure",
            "if self.abandoned:\n            #",
            "if False:\n            #",
        ),
        (
            "a StopIteration out of a coroutine names nobody",
            "            error = error.__cause__  #",
            "            pass  #",
        ),
        (
            "a coroutine that handles an error of one over its time is an output",
            "        if isinstance(self.stage.on_error, str):\n            super()",
            "        if True:\n            super()",
        ),
        (
            "tasks that are closed are not cancelled",
            "if worker.span is not None and worker.task is not None:",
            "if worker.span is None and worker.task is not None:",
        ),
        (
            "a task over its time is not cancelled",
            "            cancel(worker.task)\n            self.lost",
            "            self.lost",
        ),
        (
            "tasks that find nothing go home for good",
            "self.over = type(taken) is Closed",
            "self.over = taken is None",
        ),
        (
            "a failure on tasks has the place of its span",
            "index, tries = span.start + len(span.slots),",
            "index, tries = span.start,",
        ),
    ],
    "_workers/loop.py": [
        ("nobody keeps the tasks of a loop", "kept_by(self.loop).add(self)", "pass"),
        (
            "the end of an async source wakes nobody",
            "            feed.ended(credits, error)\n            run.settle()\n",
            "            feed.ended(credits, error)\n",
        ),
        (
            "an async consumer that has outputs at once never pauses",
            "    if pausing:\n        await asyncio.sleep(0)\n",
            "",
        ),
        (
            "a consumer waits for the end of the loop's turn, however long that is",
            "self.not_empty.wait(SPAN_SECONDS) or",
            "self.not_empty.wait() or",
        ),
        (
            "a task's deadline runs once",
            "            self.timer = None\n            self.watched = False\n            if self.takers",
            "            self.timer = None\n            if self.takers",
        ),
        (
            "a task that was woken in vain is not woken again",
            "            self.signalled = False\n            return not self.buffer.ready()",
            "            return not self.buffer.ready()",
        ),
        ("an async source is not closed", "            await aclose(items)\n", "            pass\n"),
        ("an async source is cancelled while it closes", "        self.closing = True\n", ""),
        (
            "aclose does not stop",
            "        members = list(run.members)\n    run.stop()\n",
            "        members = list(run.members)\n",
        ),
    ],
    "_workers/process.py": [
        (
            "a second process is never started",
            "if self.may_hire() and not any(worker.idle",
            "if not self.workers and not any(worker.idle",
        ),
        (
            "an item that workers die of before they begin it is sent for ever",
            "self.unbegun[start] > MAX_STILLBORN",
            "False",
        ),
        (
            "the span after that of a dead worker is lost",
            "self.window.take_back(span, len(span.items) - len(span.slots))",
            "pass",
        ),
        (
            "a death is blamed on the next item",
            "at = len(span.slots), doing - span.start",
            "at = len(span.slots), doing - span.start + 1",
        ),
        (
            "a dead worker's last item is tried for ever",
            "if moving and (len(span.items) - first == 1 or",
            "if moving and (len(span.items) - first == 0 or",
        ),
        (
            "who dies with an item that has failed before is not known",
            " or tried.get(span.start + first)):",
            "):",
        ),
        (
            "a dead worker's item forgets the tries before",
            "            span.tried = tried.get(span.start + at, 0)\n",
            "",
        ),
        (
            "a span is in flight for ever",
            "        if span is not None and closed:\n            worker.flight.remove(span)\n",
            "",
        ),
        (
            "a worker's answers about a span that others have are taken for those about another",
            "            if not self.put_all(span, slots, failed):\n                return\n",
            "            if not self.put_all(span, slots, failed):\n"
            "                worker.flight = [s for s in worker.flight if s is not span]\n                return\n",
        ),
        (
            "what others have is run once more when its worker dies",
            "            elif not span.closed:\n                self.hand_on(span)",
            "            else:\n                self.hand_on(span)",
        ),
        ("close waits for processes in f", "return self.window.stopped or (", "return ("),
        ("a used-up process is not replaced", "        worker.items += len(span.items)\n", ""),
        ("a dead worker's place stays empty", "        self.free_indexes.append(worker.index)\n", ""),
        (
            "a failure is named after another item of its span",
            "span.items[position], error",
            "span.items[number], error",
        ),
        (
            "a late answer is taken for one of this run",
            "elif what != child.READY and not worker.heeded:",
            "elif False:",
        ),
        ("time-outs of processes are deaths", "worker.link.kill(), self.too_late)", "worker.link.kill())"),
        (
            "workers are stopped without on_done",
            "if worker.begun and worker in self.workers and not worker.finishing:",
            "if False:",
        ),
        ("a worker that retires is thrown out", "            worker.link.close()\n", ""),
        (
            "who has nothing left to do waits for the others to be late",
            "if not late and self.at_the_end():",
            "if False:",
        ),
        ("no pump asks for what is finished", "            self.recall(late)\n", "            pass\n"),
        (
            "large items travel together on their way there",
            '        self.weigh("there", body, len(span.items))\n',
            "",
        ),
        (
            "large items travel together on their way back",
            '        self.weigh("back", body, count - position)\n',
            "",
        ),
        (
            "who has enough to do leaves what waits behind a slow item",
            "now - worker.heard >= OVERTIME * patience]",
            "now - worker.heard >= 60]",
        ),
        (
            "what a slow item has kept waiting goes behind it again",
            "ahead if w.heard > early else 1",
            "ahead",
        ),
    ],
    "_workers/child.py": [
        (
            "a stop is lost between two items",
            "            if self.stopping:  # the signal came before\n                raise Stopped\n",
            "",
        ),
        ("a stop interrupts on_start", "call.begin()  # never", "self.run(call.begin)  # never"),
        (
            "the time-out of a process is of a span",
            "            if timed:\n",
            "            if timed and index == self.start:\n",
        ),
        (
            "what a span has sent counts for the next",
            "start, items, [], 0\n",
            "start, items, [], self.sent\n",
        ),
        (
            "what a process is asked for is lost",
            "                back.append((self.start, len(rest)))\n",
            "                pass\n",
        ),
        (
            "a process forgets the spans that it has not begun",
            "                    back.append((message[0][1], None))\n",
            "                    pass\n",
        ),
        (
            "failures are counted from the wrong end of a message",
            "{position - self.sent: tried",
            "{position: tried",
        ),
        (
            "a process that dies takes its tries with it",
            "self.cell[4], self.cell[5] = tries, self.cell[0]",
            "self.cell[5] = self.cell[0]",
        ),
        (
            "nobody knows whose tries they are",
            "self.cell[4], self.cell[5] = tries, self.cell[0]",
            "self.cell[4] = tries",
        ),
        (
            "what was tried again may wait",
            "                    self.hungry = True\n                self.failure",
            "                    pass\n                self.failure",
        ),
        (
            "all tries in a process share its time",
            "        self.cell[1] = monotonic_ns()\n        self.cell[4]",
            "        self.cell[4]",
        ),
        (
            "an item is charged with the tries of another",
            "                cell[4] = 0\n",
            "",
        ),
        ("the cell is one item behind", "            index += 1\n", ""),
        (
            "an error in a process is an output",
            "            self.failed[index - self.start] = None\n",
            "            pass\n",
        ),
    ],
    "_workers/link.py": [
        (
            "workers of another start method are reused",
            "for link in reversed(self._links) if link.method == method]",
            "for link in reversed(self._links)]",
        ),
    ],
    "_workers/wire.py": [
        ("functions that are sent by value forget their file", ".replace(co_filename=file)", ""),
        (
            "a message is sent from its start again",
            "                out[0] = out[0][sent:]\n",
            "                pass\n",
        ),
        ("a large message is cut", "        while self._missing:\n", "        if self._missing:\n"),
        ("buffers are looked for where none is", "            position += -position % ALIGN\n", ""),
        (
            "the worker's traceback is lost",
            '            _set(first, "__cause__", WorkerTraceback(text))\n',
            "            pass\n",
        ),
        (
            "an error's own cause is lost",
            "encode_error(cause, depth + 1) if cause is not None and deeper else None,",
            "None,",
        ),
    ],
    "_workers/arena.py": [
        ("an arena is put into before it is empty", "if self._full[0] or not", "if not"),
        ("small buffers go through the arena", "not LEAST <= sum(", "not 0 < sum("),
        ("huge buffers are put into the arena", "for buffer in buffers) <= MOST:", "for buffer in buffers):"),
        ("an arena is never empty again", "        self._full[0] = 0\n", ""),
        ("an arena says that it is full before it is", "        self._full[0] = 1\n", ""),
        (
            "buffers are views of the arena",
            "memoryview(bytearray(self._room[position : position + size]))",
            "self._room[position : position + size]",
        ),
        (
            "both directions share one arena",
            "Arena(memory[PAGE + MOST :])",
            "Arena(memory[: PAGE + MOST])",
        ),
    ],
    "_workers/private_loop.py": [
        (
            "our own loop waits for whole milliseconds",
            "            if timeout is not None and timeout > 0:",
            "            if False:",
        ),
        (
            "our own loop stands still where many files are open",
            "if selector.fileno() >= FD_SETSIZE:",
            "if False:",
        ),
        (
            "our own loop is not the one that was chosen",
            "if type(loop) is not asyncio.SelectorEventLoop:",
            "if False:",
        ),
        ("our own loop does not wait", "                select.select([self], (), (), timeout)\n", ""),
    ],
    "_workers/sync.py": [
        (
            "the source is not closed on sync",
            "            if isinstance(given, Generator):\n                given.close()\n",
            "            pass\n",
        ),
        ("on_done does not run on sync", "            self.call.end(StageStatus(0))\n", "            pass\n"),
        (
            "failures have no note on sync",
            '            annotate(slot.error, f"in {describe(self.stage, self.start, item)}")\n',
            "",
        ),
    ],
    "_stage.py": [
        (
            "steps of other options are equal",
            "return (self.kernel, self.f, self.options)",
            "return (self.kernel, self.f)",
        ),
        (
            "two transformers are joined the wrong way round",
            "self.steps + after.steps",
            "after.steps + self.steps",
        ),
        ("the least value of an option is refused", "    if value < least:\n", "    if value <= least:\n"),
        ("later options do not override", "{**self.options, **options})", "{**options, **self.options})"),
    ],
    "stream.py": [
        ("a stream that is dropped runs on", "            self.run.stop()\n\n\n", "            pass\n\n\n"),
        ("an interrupt leaves a run half started", "with Uninterrupted():", "if True:"),
        (
            "a run is not stopped that an interrupt met",
            "            self.run.stop()\n        self.run =",
            "            pass\n        self.run =",
        ),
        ("close does not close the run", "            run.close()\n", "            pass\n"),
        ("aclose does not close the run", "            await loop.close(run)\n", "            pass\n"),
        (
            "two threads lose outputs to each other",
            "                if length_hint(self.current) > 0:\n                    return self.current\n",
            "",
        ),
        (
            "ordered orders the last stage only",
            "self.stage.ordered and source is self.source",
            "self.stage.ordered",
        ),
        (
            "a stream can be taken twice",
            "                if self._taker is not None:\n                    self.taken()\n",
            "                if self._taker is not None:\n",
        ),
        ("what next has left is lost to async for", "if self._current is outputs.current:", "if True:"),
        ("close of the source of a row closes nothing", "            taker.close()\n", "            pass\n"),
        (
            "the source is pulled before the first next",
            "        self._parts = None\n",
            "        self._parts = None\n        outputs.start()\n",
        ),
    ],
    "combinators.py": [
        (
            "ordered does nothing",
            "return stream.in_order() if isinstance(stream, Stream) else",
            "return stream if isinstance(stream, Stream) else",
        ),
        (
            "merge leaves its last source out",
            "return Stream(tuple(sources), None)",
            "return Stream(tuple(sources)[: -1 or None], None)",
        ),
    ],
}


@dataclass(frozen=True)
class Mutant:
    """fstream with one bug."""

    name: str
    file: str
    old: str
    new: str

    def source(self) -> str:
        """The file with the bug in it."""
        source = (ROOT / "fstream" / self.file).read_text()
        if (found := source.count(self.old)) != 1:
            raise LookupError(f"{self.file} has this piece {found} times, not once:\n{self.old}")
        source = source.replace(self.old, self.new)
        compile(source, f"{self.file} ({self.name})", "exec")
        return source

    def tests(self) -> list[str]:
        nearest = [test for near in NEAREST.get(self.file, ()) for test in SELECTION if test.startswith(near)]
        return list(dict.fromkeys([*nearest, *SELECTION]))


MUTANTS = [Mutant(name, file, old, new) for file, seeds in SEEDS.items() for name, old, new in seeds]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the test that found it, None if it survived."""

    killer: str | None
    seconds: float


def copy_to(folder: str) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, Path(folder, name))
        else:
            shutil.copy2(ROOT / name, folder)


#: What is to be killed if we are.
RUNNING: set[subprocess.Popen[str]] = set()


def pytest(folder: str, *arguments: str) -> subprocess.Popen[str]:
    """Start pytest in a copy, in a session of its own, so that what hangs can be killed with all its children."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"--timeout={EACH}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": folder},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    RUNNING.add(process)
    return process


def kill(process: subprocess.Popen[str]) -> None:
    RUNNING.discard(process)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


#: A line of ``pytest -v``: the test, and what became of it. One that crashes or hangs has no verdict.
VERDICT = re.compile(r"(?P<test>\S+::.*?) (?P<verdict>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS|$)")


def outcome(mutant: Mutant) -> Outcome:
    """Run a mutant until a test fails, hangs or crashes."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant", ignore_cleanup_errors=True) as folder:
        copy_to(folder)
        Path(folder, "fstream", mutant.file).write_text(mutant.source())
        process = pytest(folder, "-v", "--tb=no", "--color=no", "--hypothesis-seed=0", *mutant.tests())
        limit = Timer(WHOLE, kill, [process])
        limit.start()
        killer, last = None, time.monotonic()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := VERDICT.match(line):
                    test, verdict, now = found["test"], found["verdict"], time.monotonic()
                    if verdict in ("FAILED", "ERROR", ""):
                        killer = test if now - last < EACH else f"{test} (hung)"
                        break
                    last = now
            else:
                if process.wait() not in (0, -signal.SIGKILL):
                    killer = f"pytest, which ended with status {process.returncode}"
        finally:
            limit.cancel()
            kill(process)
            process.wait()
    seconds = time.monotonic() - begun
    return Outcome(killer if seconds < WHOLE else None, seconds)


def check_unmutated(jobs: int) -> bool:
    """Tell whether the tests pass without any bug of ours."""
    with tempfile.TemporaryDirectory(prefix="mutant") as folder:
        copy_to(folder)
        process = pytest(folder, "-q", "-n", str(jobs), "--dist", "worksteal", *SELECTION)
        try:
            output, _ = process.communicate()
        finally:
            kill(process)
    if process.returncode:
        print(output[-4000:])
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Seed bugs, and see that the tests find them.")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="mutants whose name or file has such a word"
    )
    parser.add_argument("--jobs", type=int, default=4, help="how many at once (default 4): many wait")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--unchecked", action="store_true", help="do not run the tests without a bug first")
    arguments = parser.parse_args()
    words = arguments.only or [""]
    chosen = [mutant for mutant in MUTANTS if any(word in f"{mutant.name} {mutant.file}" for word in words)]
    outdated = 0
    for mutant in MUTANTS:
        try:
            mutant.source()
        except (LookupError, SyntaxError) as error:
            outdated += 1
            print(f"{mutant.name}: {error}")
    if outdated:
        return 2
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:70} {mutant.file}")
        return 0
    if not arguments.unchecked and not check_unmutated(arguments.jobs):
        print("The tests fail without any bug of ours.")
        return 2
    survivors = []
    with ThreadPoolExecutor(arguments.jobs) as threads:
        try:
            for mutant, result in zip(chosen, threads.map(outcome, chosen), strict=True):
                killer = result.killer or "SURVIVED"
                print(f"{mutant.name:70} {mutant.file:19} {result.seconds:4.0f} s  {killer}", flush=True)
                if result.killer is None:
                    survivors.append(mutant.name)
        except BaseException:  # Ctrl-C: the sessions of the tests have not heard of it
            threads.shutdown(wait=False, cancel_futures=True)
            for process in list(RUNNING):
                kill(process)
            raise
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were killed.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
