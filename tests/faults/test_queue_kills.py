"""A long queued call goes on while the backend is killed, whatever its runner is doing meanwhile: it runs once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.stack import CALLER, Stack, wait_for

SOURCE = """
import asyncio, os
from pathlib import Path
import fal
from pydantic import BaseModel

class In(BaseModel):
    name: str
    seconds: float
    waits: bool = False

class Long(fal.App):
    machine_type = "XS"
    keep_alive = 600
    termination_grace_period_seconds = 1

    @fal.endpoint("/")
    async def work(self, inp: In) -> dict:
        with (Path(os.environ["FAL_PERSISTENT_DIR"]) / f"ran-{inp.name}").open("a") as file:
            file.write("x")
        while inp.waits and not (Path(os.environ["FAL_PERSISTENT_DIR"]) / f"go-{inp.name}").exists():
            await asyncio.sleep(0.05)
        await asyncio.sleep(inp.seconds)
        return {"name": inp.name, "pid": os.getpid(), "release": 1}
"""


@pytest.fixture
def live(fresh: Stack) -> Stack:
    """A backend with an App whose calls last."""
    fresh.deploy(SOURCE)
    return fresh


def ask(live: Stack, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    url = f"{live.url}/queue/{live.owner}/long{path}"
    return CALLER.request(method, url, headers={"Authorization": f"Key {live.key}"}, timeout=30, **more)


def begin(live: Stack, name: str, seconds: float, *, waits: bool = False) -> str:
    """Submit a call and return its id once it runs; one that waits needs a `go` to come to its end."""
    answer = ask(live, "", "POST", json={"name": name, "seconds": seconds, "waits": waits})
    assert answer.status_code == 200, answer.text
    wait_for("the call to run", lambda: runs(live, name) == 1)
    return str(answer.json()["request_id"])


def runs(live: Stack, name: str) -> int:
    """Return how often the App began a call."""
    return sum(len(file.read_text()) for file in Path(live.home / "data").rglob(f"ran-{name}"))


def kill_backend(live: Stack) -> None:
    """Kill the backend and wait for the next one."""
    old = live.backend_pid
    os.kill(old, signal.SIGKILL)
    wait_for("the next backend", lambda: live.backend_pid not in (0, old))


def answers(live: Stack) -> bool:
    """Return whether the backend is there."""
    try:
        return CALLER.get(f"{live.url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def result(live: Stack, request_id: str) -> dict[str, Any]:
    """Return a request's result."""

    def completed() -> bool:
        try:
            return ask(live, f"/requests/{request_id}/status").json()["status"] == "COMPLETED"  # type: ignore[no-any-return]
        except httpx.TransportError:
            return False

    wait_for("the request's end", completed, 60)
    return ask(live, f"/requests/{request_id}").json()  # type: ignore[no-any-return]


def test_a_call_of_20_seconds_through_a_kill_of_the_backend_runs_once(live: Stack) -> None:
    request_id = begin(live, "plain", 20)
    kill_backend(live)
    assert result(live, request_id)["name"] == "plain"
    assert runs(live, "plain") == 1


def test_a_call_of_a_runner_that_is_being_replaced_through_a_kill_of_the_backend_runs_once(
    live: Stack,
) -> None:
    """Its runner finishes its calls for a newer deployment; the next backend lets it, for longer than its grace."""
    request_id = begin(live, "drained", 5, waits=True)
    live.deploy(SOURCE.replace('"release": 1', '"release": 2'))
    wait_for("the old runner to drain", lambda: [r for r in live.runners("long") if r["state"] == "DRAINING"])
    kill_backend(live)
    wait_for("the next backend's word", lambda: answers(live))
    (file,) = Path(live.home / "data").rglob("ran-drained")
    file.with_name("go-drained").touch()
    answer = result(live, request_id)
    assert (answer["name"], answer["release"]) == ("drained", 1)
    assert runs(live, "drained") == 1
    wait_for("the old runner to end", lambda: len(live.runners("long")) == 1)
