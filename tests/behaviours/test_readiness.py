"""S-25 to S-40 as far as direct calls go: when a runner is ready, and what its answers say of it."""

from __future__ import annotations

import re
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.stack import Stack, alive, wait_for


def moments(shared: Stack, app: str) -> list[tuple[str, str, float]]:
    """Return (runner, state, time) of an app's runner events, in order."""
    return [
        (e["data"]["runner_id"], e["data"]["state"], datetime.fromisoformat(e["at"]).timestamp())
        for e in shared.events(app=app)
        if e["kind"] == "runner.state"
    ]


def test_s025_ready_immediately_after_setup_returned(shared: Stack) -> None:
    shared.deploy("""
        import time
        import fal

        class SlowSetup(fal.App):
            machine_type = "XS"

            def setup(self):
                time.sleep(1)
                self.done = time.time()

            @fal.endpoint("/")
            def run(self) -> dict:
                return {"done": self.done, "now": time.time()}
    """, name="slowsetup.py")  # fmt: skip
    answer = shared.call("slow-setup", {}).json()
    states = moments(shared, "slow-setup")
    names = [state for _, state, _ in states]
    assert names.index("SETUP") < names.index("IDLE")
    ready = next(at for _, state, at in states if state == "IDLE")
    setup = next(at for _, state, at in states if state == "SETUP")
    assert ready >= answer["done"] - 0.05, "not ready before setup returned"
    assert ready - answer["done"] < 5 * 0.5
    assert answer["now"] >= answer["done"]
    assert ready - setup >= 0.9


def test_s026_without_setup_ready_when_the_server_is_up(shared: Stack) -> None:
    shared.deploy("""
        import fal

        class NoSetup(fal.App):
            machine_type = "XS"
            @fal.endpoint("/")
            def run(self) -> dict:
                return {}
    """, name="nosetup.py")  # fmt: skip
    assert shared.call("no-setup", {}).status_code == 200
    states = moments(shared, "no-setup")
    runner = states[0][0]
    mine = [(state, at) for r, state, at in states if r == runner]
    assert next(at for state, at in mine if state == "IDLE") - mine[0][1] < 5 * 2


def test_s028_a_failing_dummy_evaluation_blocks_readiness(shared: Stack) -> None:
    shown = shared.deploy("""
        import fal

        class Dummy(fal.App):
            machine_type = "XS"

            def evaluate(self, x: int) -> dict:
                return {"y": 1 / x}

            def setup(self):
                self.evaluate(0)

            @fal.endpoint("/")
            def run(self, x: int) -> dict:
                return self.evaluate(x)
    """, name="dummy.py", ok=False)  # fmt: skip
    assert "ZeroDivisionError" in str(shown["error"])
    assert "IDLE" not in [state for _, state, _ in moments(shared, "dummy")]
    assert shared.call("dummy", {"x": 1}).status_code == 404, "a first deploy that fails makes no alias"


FAILS_LATER = """
import os
import fal

class FailsLater(fal.App):
    machine_type = "XS"
    keep_alive = 60

    def setup(self):
        open({marks!r}, "a").write(f"{{os.getpid()}}\\n")
        if os.path.exists({flag!r}):
            raise RuntimeError("boom")

    @fal.endpoint("/")
    def run(self) -> dict:
        open({requests!r}, "a").write("x")
        return {{"pid": os.getpid()}}
"""


def crash_after_deploy(shared: Stack, source: str, app: str, name: str) -> tuple[dict[str, Any], str, str]:
    """Deploy an app that works, end its runner, and let the next start fail; return a failed runner's row."""
    flag, marks, requests = (
        str(shared.open_folder / f"{app}.{part}") for part in ("flag", "marks", "requests")
    )
    shared.deploy(source.format(flag=flag, marks=marks, requests=requests), name=name)
    (runner,) = shared.runners(app)
    Path(flag).touch()
    shared.cli("runners", "stop", runner["runner_id"])
    wait_for("the good runner to end", lambda: not alive(runner["pid"]))
    return runner, marks, requests


def test_s029_setup_that_raises_ends_the_runner_at_once(shared: Stack) -> None:
    good, marks, _ = crash_after_deploy(shared, FAILS_LATER, "fails-later", "failslater.py")
    answer = shared.call("fails-later", {}, timeout_s=90)
    assert answer.status_code in (503, 504)
    detail = shared.api("GET", "/apps/fails-later").json()
    failed = [r for r in detail["runners"] if r["reason"] == "setup_failed"]
    assert failed
    assert {r["state"] for r in failed} <= {"TERMINATED", "CRASH_BACKOFF"}
    assert "RuntimeError: boom" in failed[0]["error"]["traceback"]
    assert detail["state"] == "failing"
    pids = [int(line) for line in Path(marks).read_text().split()]
    wait_for("failed runners to be gone", lambda: not any(alive(pid) for pid in pids))
    assert good["pid"] in pids
    begun = [
        at
        for runner, state, at in moments(shared, "fails-later")
        if state == "SETUP" and runner != good["runner_id"]
    ]
    gaps = [b - a for a, b in pairwise(begun)]
    assert all(gap > 0.5 for gap in gaps), "starts back off"


def test_s030_a_server_that_never_opens_ends_at_the_startup_timeout(shared: Stack) -> None:
    shown = shared.deploy("""
        import asyncio
        from contextlib import asynccontextmanager
        import fal

        class NeverOpens(fal.App):
            machine_type = "XS"
            startup_timeout = 3

            @asynccontextmanager
            async def lifespan(self, app):
                await asyncio.sleep(3600)
                yield

            @fal.endpoint("/")
            def run(self) -> dict:
                return {}
    """, name="neveropens.py", ok=False)  # fmt: skip
    error = shown["error"]
    assert "startup_timeout" in error["code"]
    assert re.search(r"web server|lifespan|socket|server", error["message"])
    assert not shared.runners("never-opens")


def test_s031_no_request_reaches_a_runner_that_never_became_ready(shared: Stack) -> None:
    source = FAILS_LATER.replace("FailsLater", "NoTraffic")
    _, _, requests = crash_after_deploy(shared, source, "no-traffic", "notraffic.py")
    assert shared.call("no-traffic", {}, timeout_s=90).status_code in (503, 504)
    assert not Path(requests).exists()


CHOSEN = """
import os
import fal
from fastapi import Response
from pydantic import BaseModel

class In(BaseModel):
    status: int

class Chosen(fal.App):
    machine_type = "XS"

    @fal.endpoint("/")
    def run(self, inp: In, response: Response) -> dict:
        response.status_code = inp.status
        response.headers["x-pid"] = str(os.getpid())
        return {"status": inp.status}

    @fal.endpoint("/raise")
    def fails(self) -> dict:
        raise ValueError("as it happens")

    @fal.endpoint("/gone")
    def gone(self) -> dict:
        os._exit(1)
"""


def test_s033_2xx_is_success_and_keeps_the_runner(shared: Stack) -> None:
    shared.deploy(CHOSEN.replace("Chosen", "ChosenTwo"), name="chosentwo.py")
    pids = set()
    for status in (200, 201, 204):
        answer = shared.call("chosen-two", {"status": status})
        assert answer.status_code == status
        pids.add(answer.headers["x-pid"])
    assert len(pids) == 1


def test_s037_other_5xx_is_returned_and_keeps_the_runner(shared: Stack) -> None:
    shared.deploy(CHOSEN.replace("Chosen", "ChosenFive"), name="chosenfive.py")
    (runner,) = shared.runners("chosen-five")
    for status in (500, 501, 502, 507):
        answer = shared.call("chosen-five", {"status": status})
        assert answer.status_code == status
        assert answer.json() == {"status": status}
        assert answer.headers["x-pid"] == str(runner["pid"])
    unhandled = shared.call("chosen-five", {}, path="/raise")
    assert unhandled.status_code == 500
    assert unhandled.json() == {"detail": "Internal Server Error"}
    assert [r["pid"] for r in shared.runners("chosen-five")] == [runner["pid"]]


def test_s040_a_direct_call_lost_with_its_runner_is_an_error_not_a_hang(shared: Stack) -> None:
    shared.deploy(CHOSEN.replace("Chosen", "ChosenGone"), name="chosengone.py")
    began = time.monotonic()
    answer = shared.call("chosen-gone", {}, path="/gone")
    assert answer.status_code in (502, 503)
    assert answer.json()["error_type"] == "runner_disconnected"
    assert time.monotonic() - began < 5 * 2
    assert shared.call("chosen-gone", {"status": 200}).status_code == 200, "the next call gets a new runner"
