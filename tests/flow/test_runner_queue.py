"""Calls of the queue in a real runner: detached, attached, fenced by their attempt, kept until stored."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.flow.tiny_host import DEADLINE_S, Connection, Runner, TinyHost, short_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="zygotes exist on Linux only")

SOURCE = """
import asyncio, os, time
import fal_notebook as fal
from fastapi import BackgroundTasks
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

class In(BaseModel):
    gate: str = ""
    size: int = 0

def wait_for(path):
    while path and not os.path.exists(path):
        time.sleep(0.005)

class Demo(fal.App):
    def setup(self):
        self.runs = 0
        self.cancelled = asyncio.Event()

    @fal.endpoint("/")
    def run(self, i: In) -> dict:
        self.runs += 1
        print("running")
        wait_for(i.gate)
        return {"runs": self.runs, "pad": "x" * i.size}

    @fal.endpoint("/async")
    async def run_async(self, i: In) -> dict:
        self.runs += 1
        print("running")
        while i.gate and not os.path.exists(i.gate):
            await asyncio.sleep(0.005)
        return {"runs": self.runs}

    @fal.endpoint("/model")
    async def model(self, i: In) -> dict:
        print("running")
        await self.cancelled.wait()
        raise fal.RequestCancelledException("stopped by the app")

    @fal.endpoint("/model/cancel")
    async def model_cancel(self) -> dict:
        self.cancelled.set()
        return {}

    @fal.endpoint("/teapot")
    async def teapot(self) -> dict:
        raise fal.AppException("short and stout", status_code=418)

    @fal.endpoint("/half")
    async def half(self) -> StreamingResponse:
        async def parts():
            yield b"half"
            raise ValueError("no more")
        return StreamingResponse(parts())

    @fal.endpoint("/after")
    async def after(self, i: In, background: BackgroundTasks) -> dict:
        background.add_task(wait_for, i.gate)
        return {"answered": True}

    @fal.endpoint("/runs")
    async def count(self) -> int:
        return self.runs
"""


@pytest.fixture(scope="module")
def host() -> Iterator[TinyHost]:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    for folder in short_folder():
        host = TinyHost(folder)
        yield host
        host.close()


@pytest.fixture
def start(host: TinyHost) -> Callable[..., Runner]:
    def begin(**more: Any) -> Runner:
        runner = host.start(SOURCE, **more)
        runner.wait_for("ready")
        return runner

    return begin


def queue(
    runner: Runner, path: str = "/", body: Any = None, *, request_id: str = "q1", attempt: int = 1
) -> Any:
    """Make a call as the queue does."""
    marks = {"x-fal-nb-call": "queue", "x-fal-nb-attempt": str(attempt)}
    return runner.call(path, body or {}, request_id=request_id, **marks)


def leave(runner: Runner, path: str, body: Any, *, kind: str = "queue", request_id: str = "q1") -> None:
    """Send a call and break the connection once the App works on it."""
    connection = Connection(runner.app)
    marks = {"x-fal-request-id": request_id, "x-fal-nb-call": kind, "content-type": "application/json"}
    connection.request("POST", path, body=json.dumps(body), headers=marks)
    runner.wait_for_line("running")
    connection.close()


def kept(runner: Runner, attempt: int = 1, request_id: str = "q1", method: str = "GET") -> Any:
    """Ask ctl.sock for an answer."""
    return runner.call(f"/calls/{request_id}/{attempt}/answer", method=method, ctl=True)


def calls(runner: Runner) -> Any:
    return json.loads(runner.call("/calls", method="GET", ctl=True)[2])


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.005)


def test_a_queued_call_goes_on_when_its_connection_breaks(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    gate = tmp_path / "go"
    leave(runner, "/", {"gate": str(gate)})
    assert calls(runner) == [{"request_id": "q1", "attempt": 1, "kind": "queue", "state": "running"}]
    busy = runner.call("/", {}, request_id="other")
    assert (busy[0], busy[1]["x-fal-nb-busy"]) == (429, "1")
    with ThreadPoolExecutor() as pool:
        attached = pool.submit(kept, runner)
        gate.touch()
        status, headers, body = attached.result(DEADLINE_S)
    assert (status, json.loads(body)["runs"]) == (200, 1)
    assert headers["content-type"] == "application/json"
    assert headers["x-fal-nb-answer"] == "kept"
    assert calls(runner) == [{"request_id": "q1", "attempt": 1, "kind": "queue", "state": "done"}]
    assert json.loads(runner.call("/runs", {}, request_id="other")[2]) == 1


def test_a_known_attempt_is_attached_and_not_run_again(start: Callable[..., Runner], tmp_path: Path) -> None:
    runner = start()
    gate = tmp_path / "go"
    leave(runner, "/", {"gate": str(gate)})
    with ThreadPoolExecutor() as pool:
        again = [pool.submit(queue, runner) for _ in range(3)]
        gate.touch()
        answers = [item.result(DEADLINE_S) for item in again]
    assert {(status, json.loads(body)["runs"]) for status, _, body in answers} == {(200, 1)}
    assert json.loads(queue(runner)[2])["runs"] == 1


def test_an_older_attempt_is_refused_and_a_newer_one_ends_it(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    leave(runner, "/async", {"gate": str(tmp_path / "never")})
    status, _, body = queue(runner, "/async", attempt=3)
    assert (status, json.loads(body)["runs"]) == (200, 2)
    status, headers, _ = queue(runner, "/async", attempt=2)
    assert (status, headers["x-fal-nb-stale"]) == (409, "1")
    assert (kept(runner, 1)[0], kept(runner, 1)[1]["x-fal-nb-stale"]) == (409, "1")
    assert kept(runner, 3)[0] == 200
    assert (kept(runner, 4)[0], kept(runner, 4)[1]["x-fal-nb-unknown"]) == (404, "1")


def test_a_newer_attempt_waits_for_the_end_of_a_thread(start: Callable[..., Runner], tmp_path: Path) -> None:
    runner = start()
    gate = tmp_path / "go"
    leave(runner, "/", {"gate": str(gate)})
    with ThreadPoolExecutor() as pool:
        newer = pool.submit(queue, runner, "/", {}, attempt=2)
        wait_until(lambda: calls(runner)[0]["state"] == "cancelling")
        assert not newer.done()
        gate.touch()
        assert json.loads(newer.result(DEADLINE_S)[2])["runs"] == 2


def test_a_dropped_answer_is_forgotten(start: Callable[..., Runner]) -> None:
    runner = start()
    queue(runner)
    assert kept(runner, method="DELETE")[2] == b'{"dropped": true}'
    assert kept(runner, method="DELETE")[2] == b'{"dropped": false}'
    assert calls(runner) == []
    assert kept(runner)[0] == 404


def test_many_answers_are_forgotten_at_once(start: Callable[..., Runner]) -> None:
    runner = start()
    for request_id in ("q1", "q2", "q3"):
        queue(runner, request_id=request_id)
    pairs = [["q1", 1], ["q2", 1], ["q3", 2], ["never", 1]]
    assert runner.call("/calls/forget", pairs, ctl=True)[2] == b'{"dropped": 2}'
    assert [call["request_id"] for call in calls(runner)] == ["q3"]


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_answers_keep_their_bodies_of_any_size(start: Callable[..., Runner], size: int) -> None:
    runner = start()
    first = queue(runner, "/", {"size": size})
    second = kept(runner)
    assert len(first[2]) > size
    assert first[2] == second[2]
    assert list(runner.own.glob("answer-*")) == []


def test_failures_are_kept_as_they_were_answered(start: Callable[..., Runner]) -> None:
    runner = start()
    assert queue(runner, "/teapot")[0] == 418
    assert kept(runner)[2] == b'{"detail":"short and stout"}'
    assert queue(runner, "/", {"size": "many"}, request_id="q2")[0] == 422
    assert kept(runner, request_id="q2")[1]["x-fal-billable-units"] == "0"
    assert queue(runner, "/half", request_id="q3")[0] == 500
    assert kept(runner, request_id="q3")[2] == b'{"detail":"Internal Server Error"}'


def test_the_apps_own_cancel_endpoint_ends_a_queued_call_with_499(start: Callable[..., Runner]) -> None:
    runner = start()
    leave(runner, "/model", {})
    assert runner.call("/calls/q1/cancel", {}, ctl=True)[2] == b'{"ended": true}'
    assert kept(runner)[0] == 499
    assert kept(runner)[2] == b'{"detail":"stopped by the app"}'


def test_cancelling_goes_unheard_where_the_app_has_no_such_endpoint(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    gate = tmp_path / "go"
    leave(runner, "/async", {"gate": str(gate)})
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(runner.call, "/calls/q1/cancel", {}, ctl=True)
        assert calls(runner)[0]["state"] == "running"
        gate.touch()
        ended.result(DEADLINE_S)
    assert kept(runner)[0] == 200


def test_force_ends_a_queued_call(start: Callable[..., Runner], tmp_path: Path) -> None:
    runner = start()
    leave(runner, "/async", {"gate": str(tmp_path / "never")})
    runner.call("/calls/q1/cancel?force=1", {}, ctl=True)
    assert kept(runner)[0] == 499
    assert queue(runner, request_id="q2")[0] == 200


def test_half_a_body_is_no_request(start: Callable[..., Runner]) -> None:
    runner = start()
    connection = Connection(runner.app)
    connection.putrequest("POST", "/")
    for name, value in {"x-fal-request-id": "q1", "x-fal-nb-call": "queue", "content-length": "10"}.items():
        connection.putheader(name, value)
    connection.endheaders(b'{"ga')
    wait_until(lambda: calls(runner) != [])
    connection.close()
    wait_until(lambda: calls(runner) == [])
    assert kept(runner)[0] == 404
    assert json.loads(queue(runner)[2])["runs"] == 1


def test_a_sync_call_sent_again_gets_the_answer_of_the_first(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    gate = tmp_path / "go"
    leave(runner, "/", {"gate": str(gate)}, kind="sync")
    wait_until(lambda: calls(runner)[0]["state"] == "cancelling")
    with ThreadPoolExecutor() as pool:
        again = pool.submit(runner.call, "/", {}, request_id="q1")
        gate.touch()
        assert again.result(DEADLINE_S)[0] == 499
    assert json.loads(runner.call("/runs", {}, request_id="other")[2]) == 1


def test_a_runner_told_to_end_waits_for_detached_work_and_for_its_reader(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start(grace_s=30.0)
    gate = tmp_path / "go"
    leave(runner, "/", {"gate": str(gate)})
    runner.send(signal.SIGTERM)
    gate.touch()
    status, _, body = kept(runner)
    assert (status, json.loads(body)["runs"]) == (200, 1)
    assert runner.wait_end() == 0


def test_an_answer_does_not_wait_for_what_the_app_does_afterwards(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    gate = tmp_path / "go"
    assert queue(runner, "/after", {"gate": str(gate)})[2] == b'{"answered":true}'
    assert calls(runner) == [{"request_id": "q1", "attempt": 1, "kind": "queue", "state": "done"}]
    assert runner.call("/", {}, request_id="other")[0] == 429, "its slot is taken until the work has ended"
    gate.touch()
    wait_until(lambda: runner.call("/", {}, request_id="other")[0] == 200)
