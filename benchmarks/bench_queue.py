"""The queue: durable submissions a second beside calls, and claim, completion and position as the queue grows.

Depth is measured on the store and the line as the queue uses them; the rows are made beforehand. The rate of
submissions through the door is taken beside that of calls in the same run by `bench_gateway`'s server.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import httpx
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.queue import Outcome
from fal_backend.ports import Tx
from fal_backend.services import queue_rows as rows
from fal_backend.services.queue_lines import Line

from benchmarks.bench_gateway import SCRIPT
from benchmarks.bench_gateway import _wrk as wrk
from benchmarks.figures import Figure, median_of
from benchmarks.queue_rows import BODY, HEADERS, request
from benchmarks.queue_writer import writer_figures
from fal_notebook.places import Places
from tests.faults.crowd import Crowd
from tests.stack import Stack, stack, wait_for

DEPTHS = (1_000, 10_000, 100_000, 1_000_000)
SAMPLES = 200
TURNS = 3


async def fill(store: SqliteStore, line: Line, first: int, last: int) -> None:
    """Queue requests first..last."""

    def insert(tx: Tx, start: int, end: int) -> None:
        for number in range(start, end):
            rows.accept(tx, request(number), BODY)

    for start in range(first, last, 10_000):
        end = min(start + 10_000, last)
        await store.write(lambda tx, start=start, end=end: insert(tx, start, end))  # type: ignore[misc]
        for number in range(start, end):
            line.join(number, is_low=False, hint=None)


async def sample(store: SqliteStore, line: Line, depth: int) -> dict[str, float]:
    """Return median microseconds of each act at this depth, the writer's thread included where it writes."""
    times: dict[str, list[float]] = {"claim": [], "complete": [], "position": []}
    head = line._waiting.next()
    assert head is not None
    for n in range(SAMPLES):
        id = line._waiting.take()
        assert id is not None

        def act(tx: Tx, id: int = id) -> None:
            began = time.perf_counter_ns()
            claimed = rows.claim(tx, id, "r-1", 30_000_000)
            middle = time.perf_counter_ns()
            assert claimed is not None
            rows.finish(
                tx, claimed[0], Outcome(200, headers_json=HEADERS, answer_ref=rows.INLINE_REF), BODY, None
            )
            times["claim"].append(middle - began)
            times["complete"].append(time.perf_counter_ns() - middle)

        await store.write(act)
        asked = head + SAMPLES + (n * 7919) % max(1, depth - SAMPLES - 1)
        find = functools.partial(rows.find, app="ada/digits", request_id=request(asked).request_id)
        began = time.perf_counter_ns()
        row = await store.read(find)
        line.position(row.id, is_low=False)
        times["position"].append(time.perf_counter_ns() - began)
    return {name: statistics.median(values) / 1000 for name, values in times.items()}


class Depth:
    """A store with so many requests waiting."""

    def __init__(self, home: Path) -> None:
        self.store, _ = open_store(Places(home), asyncio.get_running_loop())
        self.line = Line("ada/digits", lambda key, id, door: None)
        self._made = 1

    async def fill(self, depth: int) -> None:
        """Have so many wait, and those that a sample takes."""
        first, last = self._made, self._made + depth + SAMPLES - self.line.waiting()
        self._made = max(first, last)
        await fill(self.store, self.line, first, last)


async def depth_ratios(folder: Path, depths: tuple[int, ...]) -> dict[int, dict[str, list[float]]]:
    """Fill a store step by step; at each depth take turns with a small one, so that both see the same machine."""
    small, large = Depth(folder / "small"), Depth(folder / "large")
    found: dict[int, dict[str, list[float]]] = {}
    for depth in depths:
        await large.fill(depth)
        found[depth] = {}
        for _ in range(TURNS):
            await small.fill(depths[0])
            reference = await sample(small.store, small.line, depths[0])
            await large.fill(depth)
            measured = await sample(large.store, large.line, depth)
            for act, value in measured.items():
                found[depth].setdefault(act, []).append(value / reference[act])
        told = ", ".join(f"{act} {value:.0f} us" for act, value in measured.items())
        print(f"  {depth:>9,} waiting: {told}", flush=True)
    await small.store.close()
    await large.store.close()
    return found


def depth_figures(depths: tuple[int, ...] = DEPTHS) -> list[Figure]:
    """Measure the curve, each point beside the smallest depth at the same time."""
    with tempfile.TemporaryDirectory(prefix="fal-") as folder:
        curve = asyncio.run(depth_ratios(Path(folder), depths))
    return [
        median_of(f"{act} at {depth:.0e} / at {depths[0]:.0e}", ratios, "x", needed=1.2, goal=1.2)
        for depth, acts in curve.items()
        for act, ratios in acts.items()
    ]


SOURCE = """
import time
import fal_notebook as fal
from pydantic import BaseModel

class Question(BaseModel):
    prompt: str
    steps: int = 1

class NAME(fal.App):
    keep_alive = 600
    max_multiplexing = 16

    def setup(self):
        time.sleep(SETUP)

    @fal.endpoint("/")
    async def work(self, question: Question) -> dict:
        return {"n": question.steps}
"""


def door_figures(rounds: int) -> list[Figure]:
    """Submissions, runners held back, beside calls of the same backend; whole jobs; single requests' whole way."""
    ratio: list[float] = []
    rates: dict[str, list[float]] = {"calls": [], "submissions": [], "whole jobs": []}
    ways: dict[str, list[float]] = {"call": [], "submit to result": []}
    with stack() as live:
        live.deploy(SOURCE.replace("NAME", "Quick").replace("SETUP", "0"))
        held = SOURCE.replace("NAME", "Held").replace("SETUP", "500")
        live.deploy(held, "--strategy", "recreate", name="held.py")
        script = live.file("post.lua", SCRIPT.replace("fk_bench:secret", live.key))
        for _ in range(rounds):
            call = wrk(f"{live.url}/run/{live.owner}/quick", script, connections=16, seconds=3)
            queued = wrk(f"{live.url}/queue/{live.owner}/held", script, connections=16, seconds=3)
            rates["calls"].append(call.rate)
            rates["submissions"].append(queued.rate)
            ratio.append(queued.rate / call.rate)
            rates["whole jobs"].append(_jobs_a_second(live))
            for name, found in _ways(live).items():
                ways[name] += found
    held_back = "durable submit / sync call, c=16, runners held back"
    medians = {name: statistics.median(found) for name, found in ways.items()}
    return [
        median_of(held_back, ratio, "x", needed=0.5, goal=0.5, at_most=False),
        *(median_of(f"{name} a second, c=16", found, "/s") for name, found in rates.items()),
        median_of("submit to result in hand", ways["submit to result"], "ms", needed=8, goal=8),
        median_of("a sync call of the same client", ways["call"], "ms"),
        median_of("submit to result / sync call", [medians["submit to result"] / medians["call"]], "x"),
    ]


def _jobs_a_second(live: Stack, jobs: int = 1500) -> float:
    """Return whole jobs a second: submitted by 16 callers, run by one runner with 16 slots, all answered."""
    crowd = Crowd(live.url, f"/queue/{live.owner}/quick", live.key)
    salt = time.time_ns()
    inputs = ((salt + n, {"prompt": "a cat", "steps": n}) for n in range(jobs))
    began = time.perf_counter()
    asyncio.run(crowd.submit_all(inputs, 16))
    ids = [id for found in crowd.ids.values() for id in found]
    wait_for("all answers", lambda: _waiting(live) == 0, 120)
    rate = jobs / (time.perf_counter() - began)
    answers = asyncio.run(crowd.results(ids, 16))
    assert {status for status, _ in answers.values()} == {200}
    return rate


def _waiting(live: Stack) -> int:
    """Return how many requests have not ended."""
    path = live.home / "store" / "main.db"
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=30)) as db:
        query = "SELECT count(*) FROM request WHERE ended_at IS NULL AND app = ?"
        return int(db.execute(query, (f"{live.owner}/quick",)).fetchone()[0])


def _ways(live: Stack) -> dict[str, list[float]]:
    """Return milliseconds of a call, and from submission to result of a caller that the status stream wakes."""
    url, run = f"{live.url}/queue/{live.owner}/quick", f"{live.url}/run/{live.owner}/quick"
    found: dict[str, list[float]] = {"call": [], "submit to result": []}
    # One client for all, as callers have: to make one reads certificates for longer than a request takes.
    with httpx.Client(headers={"authorization": f"Key {live.key}"}, timeout=30) as client:
        for _ in range(50):
            began = time.perf_counter()
            client.post(run, json={"prompt": "a cat"}).raise_for_status()
            found["call"].append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            id = client.post(url, json={"prompt": "a cat"}).json()["request_id"]
            with client.stream("GET", f"{url}/requests/{id}/status/stream") as told:
                for _line in told.iter_lines():
                    pass
            client.get(f"{url}/requests/{id}").raise_for_status()
            found["submit to result"].append((time.perf_counter() - began) * 1000)
    return found


def run(rounds: int = 3) -> list[Figure]:
    """Measure all of it."""
    return [*door_figures(rounds), *writer_figures(rounds), *depth_figures()]
