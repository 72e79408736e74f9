"""A hundred thousand queued requests while backend and runners are killed again and again: each is answered once.

Counted by three who do not know of each other: the callers (what was accepted), the App (what ran, in one file for
each runner) and a trigger in the database (how often an outcome was written).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.faults.crowd import Crowd
from tests.stack import Stack, alive, wait_for

REQUESTS = 100_000
CALLERS = 24
BACKEND_KILLS, RUNNER_KILLS = 10, 50
EXTRA = 0.03
"""Executions beyond one for each request, at most."""

SOURCE = """
import asyncio, hashlib, os
from pathlib import Path
import fal
from pydantic import BaseModel

class In(BaseModel):
    n: int

class Chaos(fal.App):
    machine_type = "XS"
    keep_alive = 600
    min_concurrency = 3
    max_concurrency = 3
    max_multiplexing = 8

    def setup(self):
        path = Path(os.environ["FAL_PERSISTENT_DIR"]) / f"ran-{os.getpid()}"
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @fal.endpoint("/")
    async def work(self, inp: In) -> dict:
        os.write(self.file, b"%08d\\n" % inp.n)
        await asyncio.sleep(inp.n % 20 / 1000)
        return {"n": inp.n, "mark": hashlib.sha256(b"salt %d" % inp.n).hexdigest()[:16]}
"""

LEDGER = """
CREATE TABLE outcome_written (id INTEGER, was TEXT);
CREATE TRIGGER note_outcome AFTER UPDATE ON request WHEN NEW.state = 'done' OR OLD.state = 'done'
BEGIN INSERT INTO outcome_written VALUES (NEW.id, OLD.state); END;
"""


def expected(n: int) -> dict[str, object]:
    """Return what the App answers."""
    return {"n": n, "mark": hashlib.sha256(b"salt %d" % n).hexdigest()[:16]}


class Store:
    """The backend's database, read by somebody else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(sqlite3.connect(path, timeout=30)) as db:
            db.executescript(LEDGER)

    def rows(self, query: str) -> list[tuple[object, ...]]:
        """Return what a query finds."""
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            return db.execute(query).fetchall()

    def count(self, query: str) -> int:
        """Return the number that a query finds."""
        return int(str(self.rows(query)[0][0]))


@dataclass
class Killer:
    """Kills the backend or a runner at each of many moments, spread evenly over the work."""

    live: Stack
    progress: Callable[[], float]
    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    down_s: list[float] = field(default_factory=list)
    """How long after each kill the backend's next process was there."""
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Kill until all kills are done, or the work is."""
        victims = ["backend"] * BACKEND_KILLS + ["runner"] * RUNNER_KILLS
        random.Random(self.seed).shuffle(victims)
        for number, victim in enumerate(victims):
            while self.progress() < 0.95 * (number + 0.5) / len(victims):
                if self._over.wait(0.02):
                    return
            if victim == "backend":
                self._kill_backend()
            else:
                self._kill_runner()
            self.killed[victim] += 1

    def stop(self) -> None:
        """Kill no more."""
        self._over.set()

    def _kill_backend(self) -> None:
        old = wait_for("a backend", lambda: (pid := self.live.backend_pid) and alive(pid) and pid)
        os.kill(old, signal.SIGKILL)
        began = time.monotonic()
        wait_for("the next backend", lambda: self.live.backend_pid not in (0, old))
        self.down_s.append(time.monotonic() - began)

    def _kill_runner(self) -> None:
        pids = wait_for("a runner that serves", self._serving, 60)
        os.kill(random.choice(pids), signal.SIGKILL)

    def _serving(self) -> list[int]:
        with suppress(httpx.HTTPError, KeyError, ValueError):
            found = [r["pid"] for r in self.live.runners("chaos") if r["state"] in ("IDLE", "RUNNING")]
            return [pid for pid in found if alive(pid)]
        return []


@pytest.fixture
def chaos(fresh: Stack) -> Stack:
    """A backend with the App, its runners up."""
    fresh.deploy(SOURCE)
    wait_for("runners", lambda: [r for r in fresh.runners("chaos") if r["state"] == "IDLE"])
    return fresh


def ran(live: Stack) -> list[Path]:
    """Return the files in which runners note what they run."""
    return list((live.home / "data").rglob("ran-*"))


def numbers(total: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield the inputs."""
    for n in range(total):
        yield n, {"n": n}


@pytest.mark.timeout(1500)
def test_every_accepted_request_is_answered_once_whatever_is_killed(
    chaos: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    total = int(os.environ.get("FAL_NB_TEST_REQUESTS", REQUESTS))
    crowd = Crowd(chaos.url, f"/queue/{chaos.owner}/chaos", chaos.key)
    store = Store(chaos.home / "store" / "main.db")

    def progress() -> float:
        executed = sum(file.stat().st_size for file in ran(chaos)) / 9
        return (crowd.accepted + executed) / (2 * total)

    killer = Killer(chaos, progress, seed=random.randrange(2**32))
    thread = threading.Thread(target=killer.run, name="killer")
    began = time.monotonic()
    thread.start()
    try:
        asyncio.run(crowd.submit_all(numbers(total), CALLERS))
        submitted_s = time.monotonic() - began
        done = "SELECT count(*) FROM request WHERE state = 'done'"
        wait_for("every request's end", lambda: store.count(done) >= crowd.accepted, 600)
        whole_s = time.monotonic() - began
    finally:
        killer.stop()
        thread.join(90)
    found = judge(chaos, crowd, store, total)
    with capsys.disabled():
        print(
            f"\n{total:,} requests, kill -9 of backends {killer.killed['backend']}, of runners"
            f" {killer.killed['runner']} (seed {killer.seed}): accepted {crowd.accepted:,}, completed"
            f" {found.completed:,}, lost {found.lost}, wrong {found.wrong}, results written twice"
            f" {found.twice}, extra executions {found.extra} ({found.extra / total:.2%}), most for one"
            f" request {found.most}; {crowd.resent} submissions sent again, refused {crowd.refused};"
            f" submitted in {submitted_s:.0f} s, all done in {whole_s:.0f} s ({total / whole_s:.0f}/s);"
            f" next backend after {sorted(killer.down_s)[len(killer.down_s) // 2]:.2f} s (median),"
            f" {max(killer.down_s):.2f} s (longest)"
        )
    assert (killer.killed["backend"], killer.killed["runner"]) == (BACKEND_KILLS, RUNNER_KILLS)
    assert crowd.accepted == found.completed == total
    assert (found.lost, found.wrong, found.twice, found.doubled) == (0, 0, 0, 0)
    assert found.extra <= EXTRA * total


@dataclass(frozen=True)
class Found:
    """What became of all requests."""

    completed: int
    lost: int
    wrong: int
    twice: int
    doubled: int
    """Inputs that became more than one request."""
    extra: int
    most: int


def judge(live: Stack, crowd: Crowd, store: Store, total: int) -> Found:
    """Read every result over HTTP, every row from the store, every execution from the runners' files."""
    number_of = {id: n for n, ids in crowd.ids.items() for id in ids}
    results = asyncio.run(crowd.results(list(number_of), CALLERS))
    right = {
        number_of[id]
        for id, (status, body) in results.items()
        if status == 200 and json.loads(body) == expected(number_of[id])
    }
    executions = Counter(int(line) for file in ran(live) for line in file.read_text().split())
    return Found(
        completed=store.count("SELECT count(*) FROM request WHERE state = 'done' AND status_code = 200"),
        lost=total - len({number_of[id] for id in results}),
        wrong=len(results) - len(right),
        twice=store.count("SELECT count(*) - count(DISTINCT id) FROM outcome_written"),
        doubled=len(number_of) - total + store.count("SELECT count(*) FROM request") - len(number_of),
        extra=sum(executions.values()) - len(executions),
        most=max(executions.values()),
    )
