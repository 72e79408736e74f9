"""Rolling deployments under steady traffic: no call fails, and nobody hears a revision that is neither new nor last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.behaviours.test_rollouts import app, revisions
from tests.stack import Stack, wait_for

RATE = 20
SECONDS = 60
DEPLOYS = 10
FAILING = {2, 5, 8}
"""Those whose `setup()` raises."""
SETTINGS = "max_multiplexing = 8; keep_alive = 120; max_concurrency = 2"


class Traffic:
    """Calls at a steady rate, each from a thread of its own when it must not wait for the one before (open loop)."""

    def __init__(self, stack: Stack, name: str, *, is_open: bool) -> None:
        self._url = f"{stack.url}/run/{stack.owner}/{name}"
        self._headers = {"Authorization": f"Key {stack.key}"}
        self._client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None))
        self._is_open = is_open
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []
        self.answers: list[tuple[float, float, int, str, str]] = []
        """(began, ended, status, version, revision)"""

    def _one(self) -> None:
        began = time.time()
        try:
            answer = self._client.post(self._url, json={}, headers=self._headers)
        except httpx.TransportError as error:
            self.answers.append((began, time.time(), 0, repr(error), ""))
            return
        version = answer.json().get("version", "") if answer.status_code == 200 else answer.text
        revision = answer.headers.get("x-fal-revision", "")
        self.answers.append((began, time.time(), answer.status_code, version, revision))

    def _closed_loop(self, pause_s: float) -> None:
        while not self._ends.is_set():
            began = time.monotonic()
            self._one()
            self._ends.wait(max(0.0, pause_s - (time.monotonic() - began)))

    def _open_loop(self) -> None:
        due = time.monotonic()
        while not self._ends.wait(max(0.0, due - time.monotonic())):
            due += 1 / RATE
            thread = threading.Thread(target=self._one)
            thread.start()
            self._threads.append(thread)

    def __enter__(self) -> Traffic:
        loops: list[Callable[[], None]]
        loops = [self._open_loop] if self._is_open else [lambda: self._closed_loop(4 / RATE)] * 4
        self._threads = [threading.Thread(target=loop) for loop in loops]
        for thread in list(self._threads):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
        self._client.close()


def check(answers: list[tuple[float, float, int, str, str]], moves: list[tuple[float, str, str]]) -> None:
    """No answer may be a failure, nor come from a revision that was not the alias's or its predecessor's.

    moves: (moment, revision, the one before it), in order.
    """
    assert [one for one in answers if one[2] != 200] == []
    for began, ended, _, version, revision in answers:
        serving = [index for index, (at, _, _) in enumerate(moves) if at <= ended]
        allowed = set(moves[serving[-1]][1:]) if serving else {moves[0][2]}
        # One that began before the move may have been begun under the revision before.
        allowed |= {pair for at, *pairs in moves if began <= at <= ended for pair in pairs}
        assert revision in allowed, (version, revision, began, moves)


@pytest.mark.slow
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_ten_rolling_deployments_of_which_three_fail_cost_no_call(fresh: Stack, is_open: bool) -> None:
    fresh.deploy(app("Steady", "v0", settings=SETTINGS), name="steady.py")
    start: dict[str, Any] = fresh.api("GET", "/apps/steady").json()
    began = time.monotonic()
    with Traffic(fresh, "steady", is_open=is_open) as traffic:
        wait_for("the first answers", lambda: len(traffic.answers) > RATE)
        for number in range(1, DEPLOYS + 1):
            setup = 'raise RuntimeError("broken")' if number in FAILING else "time.sleep(0.5)"
            source = app("Steady", f"v{number}", settings=SETTINGS, setup=setup)
            fresh.deploy(source, name="steady.py", ok=number not in FAILING)
        wait_for("a minute", lambda: time.monotonic() - began >= SECONDS, SECONDS * 4)
    failed = [one for one in revisions(fresh, "steady") if one["status"] == "failed"]
    assert len(failed) == len(FAILING)
    moves = [
        (_seconds(e["at"]), e["data"]["revision"], e["data"]["previous"])
        for e in fresh.events(after=start["event"], app="steady")
        if e["kind"] == "alias.switched"
    ]
    assert len(moves) == DEPLOYS - len(FAILING)
    assert len(traffic.answers) >= RATE * SECONDS * 0.5
    check(traffic.answers, moves)
    print(f"{len(traffic.answers)} calls, {len(moves)} moves, 0 failed")


def _seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()
