"""Queued requests on a real backend with real runners, which are killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.stack import CALLER, Stack, stack, wait_for

SOURCE = """
    import asyncio, os, time
    import fal_notebook as fal
    from fastapi import HTTPException
    from pydantic import BaseModel

    class Job(BaseModel):
        name: str = ""
        seconds: float = 0.0
        gate: str = ""

    class Worker(fal.App):
        keep_alive = 300
        max_concurrency = 2

        @fal.endpoint("/")
        def work(self, job: Job) -> dict:
            print(f"begin {job.name}", flush=True)
            while job.gate and not os.path.exists(job.gate):
                time.sleep(0.02)
            return {"name": job.name, "pid": os.getpid()}

        @fal.endpoint("/wait")
        async def wait(self, job: Job) -> dict:
            print(f"begin {job.name}", flush=True)
            self.tasks = {job.name: asyncio.current_task()}
            try:
                await asyncio.sleep(job.seconds)
            except asyncio.CancelledError:
                raise HTTPException(499, "stopped") from None
            return {"name": job.name, "pid": os.getpid()}

        @fal.endpoint("/wait/cancel")
        async def stop(self) -> dict:
            for task in self.tasks.values():
                task.cancel()
            return {}
"""


@pytest.fixture(scope="module")
def live() -> Iterator[Stack]:
    with stack() as made:
        made.deploy(SOURCE)
        yield made


def ask(live: Stack, path: str, method: str = "GET", **more: Any) -> httpx.Response:
    url = f"{live.url}/queue/{live.owner}/worker{path}"
    return CALLER.request(method, url, headers={"Authorization": f"Key {live.key}"}, timeout=30, **more)


def submit(live: Stack, path: str = "", **job: Any) -> str:
    answer = ask(live, path, "POST", json=job)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def status(live: Stack, request_id: str) -> dict[str, Any]:
    try:
        answer = ask(live, f"/requests/{request_id}/status", params={"logs": 1})
    except httpx.TransportError:
        return {"status": "UNREACHABLE"}
    assert answer.status_code in {200, 202}, (answer.status_code, answer.headers, answer.text)
    return answer.json()  # type: ignore[no-any-return]


def result(live: Stack, request_id: str) -> dict[str, Any]:
    wait_for("the request's end", lambda: status(live, request_id)["status"] == "COMPLETED", 60)
    answer = ask(live, f"/requests/{request_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()  # type: ignore[no-any-return]


def begun(live: Stack, name: str) -> int:
    """Return how often a job began, by what the App wrote."""
    return live.logs("worker").count(f"begin {name}")


def test_a_request_starts_a_runner_and_its_answer_is_kept(live: Stack) -> None:
    request_id = submit(live, name="first")
    assert result(live, request_id)["name"] == "first"
    assert result(live, request_id)["name"] == "first"
    wait_for("its lines", lambda: [l["message"] for l in status(live, request_id)["logs"]] == ["begin first"])  # noqa: E741


def test_a_call_through_a_kill_of_the_backend_runs_once(live: Stack) -> None:
    with live.gate() as gate:
        request_id = submit(live, name="long", gate=str(gate))
        wait_for("the call to run", lambda: begun(live, "long") == 1)
        old = live.backend_pid
        os.kill(old, signal.SIGKILL)
        wait_for("the next backend", lambda: live.backend_pid not in (0, old))
        wait_for("its answer", lambda: status(live, request_id)["status"] == "IN_PROGRESS")
    assert result(live, request_id)["name"] == "long"
    assert begun(live, "long") == 1


def test_a_call_whose_runner_is_killed_is_made_again_and_answered_once(live: Stack) -> None:
    pid = result(live, submit(live, name="who"))["pid"]
    with live.gate() as gate:
        request_id = submit(live, name="struck", gate=str(gate))
        wait_for("the call to run", lambda: begun(live, "struck") == 1)
        os.kill(int(pid), signal.SIGKILL)
        wait_for("the second try", lambda: begun(live, "struck") == 2)
    answer = result(live, request_id)
    assert answer["pid"] != pid
    assert begun(live, "struck") == 2
    lines = [line["message"] for line in status(live, request_id)["logs"]]
    assert lines == ["begin struck"] * 2, "the lines of both tries"
    stored = ask(live, f"/requests/{request_id}")
    runner = next(one for one in live.runners("worker") if one["pid"] == answer["pid"])
    assert stored.headers["x-fal-runner-id"] == runner["runner_id"]
    assert stored.headers["x-fal-revision"] == runner["revision"]


def test_a_running_call_is_cancelled(live: Stack) -> None:
    request_id = submit(live, "/wait", name="unwanted", seconds=60)
    wait_for("the call to run", lambda: begun(live, "unwanted") == 1)
    cancelled = ask(live, f"/requests/{request_id}/cancel", "PUT")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "CANCELLATION_REQUESTED")
    done = wait_for("its end", lambda: (s := status(live, request_id))["status"] == "COMPLETED" and s, 30)
    assert done.get("error_type") == "client_cancelled", done
    assert ask(live, f"/requests/{request_id}").status_code == 499
