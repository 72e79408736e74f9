"""Calls of one runner: gate, threads, cancelling, leaving, and the lines that belong to them."""

from __future__ import annotations

import json
import sys
import time

import pytest

from tests.flow.runner_kit import background, facts, leave_during, listing, ready, wait_until
from tests.flow.tiny_host import Connection, TinyHost

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="zygotes exist on Linux only")


def test_def_endpoints_run_on_slot_threads_and_async_ones_on_the_loop(host: TinyHost) -> None:
    runner = ready(host)
    assert json.loads(runner.call("/", {})[2])["thread"].startswith("slot-")
    assert json.loads(runner.call("/async", {})[2])["thread"] == "MainThread"


def test_a_call_sees_its_own_context(host: TinyHost) -> None:
    runner = ready(host)
    _, _, body = runner.call("/facts", {}, request_id="abc", **{"x-mine": "yes"})
    found = json.loads(body)
    assert (found["request_id"], found["endpoint"], found["header"]) == ("abc", "me/app", "yes")


def test_over_the_limit_the_gate_answers_at_the_head_and_get_passes_beside_it(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=1)
    thread, answers = background(lambda: runner.call("/", {"wait_s": 1.0}, request_id="first"))
    runner.wait_for_line("begin")
    connection = Connection(runner.app)
    connection.connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nx-fal-request-id: second\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n"
    connection.sock.sendall(head)
    answer = connection.sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 429")
    assert b"x-fal-nb-busy: 1" in answer
    assert b"connection: close" in answer
    assert runner.call("/health", method="GET")[0] == 200
    assert runner.call("/", {}, request_id="third")[1]["x-fal-nb-busy"] == "1"
    thread.join()
    assert answers[0][0] == 200
    assert runner.call("/", {}, request_id="fourth")[0] == 200
    connection.close()


def test_as_many_calls_as_slots_run_at_once(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=3)
    calls = [
        background(lambda n=n: runner.call("/", {"wait_s": 0.8, "x": n}, request_id=f"n{n}"))
        for n in range(3)
    ]
    for number in range(3):
        runner.wait_for_line(f"begin {number}")
    listing = json.loads(runner.call("/calls", method="GET", ctl=True)[2])
    assert {row["request_id"] for row in listing} == {"n0", "n1", "n2"}
    assert {(row["attempt"], row["kind"], row["state"]) for row in listing} == {(1, "sync", "running")}
    assert runner.call("/", {}, request_id="more")[0] == 429
    for thread, answers in calls:
        thread.join()
        assert answers[0][0] == 200


def test_a_request_id_that_runs_already_is_not_run_twice(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=2)
    thread, _ = background(lambda: runner.call("/", {"wait_s": 0.5}, request_id="same"))
    runner.wait_for_line("begin")
    assert runner.call("/", {}, request_id="same")[0] == 429
    thread.join()


def test_a_caller_who_leaves_cancels_an_async_endpoint(host: TinyHost) -> None:
    runner = ready(host)
    leave_during(runner, "/async", b'{"wait_s": 600}')
    wait_until(lambda: runner.call("/facts", {}, request_id="f")[0] == 200, "the slot was not freed")
    assert facts(runner)["ended"] == 1


def test_a_def_endpoint_keeps_its_slot_until_its_work_has_ended(host: TinyHost) -> None:
    runner = ready(host)
    leave_during(runner, "/", b'{"wait_s": 1.0}')
    wait_until(lambda: listing(runner) == [("gone", "cancelling")], "the call was not marked")
    assert runner.call("/", {}, request_id="next")[0] == 429
    status, _, body = runner.call("/calls/gone/cancel", method="POST", ctl=True)
    assert (status, json.loads(body)) == (200, {"ended": True})
    assert listing(runner) == []
    assert json.loads(runner.call("/", {})[2])["count"] == 2


def test_a_caller_who_leaves_stops_a_streaming_generator_and_frees_the_slot(host: TinyHost) -> None:
    runner = ready(host)
    connection = Connection(runner.app)
    connection.request("POST", "/count", body="{}", headers={"x-fal-request-id": "stream"})
    answer = connection.getresponse()
    assert answer.read1(10)
    answer.close()
    connection.close()
    wait_until(lambda: listing(runner) == [], "the slot was not freed")
    first = facts(runner)
    assert first["ended"] == 1
    time.sleep(0.1)
    assert facts(runner)["steps"] == first["steps"]


def test_cancel_on_ctl_ends_an_async_call_with_499(host: TinyHost) -> None:
    runner = ready(host)
    thread, answers = background(lambda: runner.call("/async", {"wait_s": 600}, request_id="long"))
    runner.wait_for_line("begin")
    assert json.loads(runner.call("/calls/long/cancel", method="POST", ctl=True)[2]) == {"ended": True}
    thread.join()
    assert answers[0][0] == 499
    assert json.loads(runner.call("/calls/unknown/cancel", method="POST", ctl=True)[2]) == {"ended": True}


CANCELLABLE = """
import asyncio
import fal_notebook as fal
from fal_notebook import RequestCancelledException

class Demo(fal.App):
    def setup(self):
        self.tasks = {}

    @fal.endpoint("/long")
    async def run(self) -> dict:
        self.tasks[self.current_request.request_id] = asyncio.create_task(asyncio.sleep(600))
        print("begin")
        try:
            await self.tasks[self.current_request.request_id]
        except asyncio.CancelledError:
            raise RequestCancelledException("stopped by the app")
        return {}

    @fal.endpoint("/long/cancel")
    async def cancel(self) -> dict:
        print("asked to cancel")
        self.tasks[self.current_request.request_id].cancel()
        return {}
"""


@pytest.mark.parametrize("way", ["ctl", "path"])
def test_the_apps_own_cancel_endpoint_is_asked_first(host: TinyHost, way: str) -> None:
    runner = ready(host, CANCELLABLE)
    thread, answers = background(lambda: runner.call("/long", {}, request_id="long"))
    runner.wait_for_line("begin")
    if way == "ctl":
        assert runner.call("/calls/long/cancel", method="POST", ctl=True)[0] == 200
    else:
        assert runner.call("/long/cancel", {}, request_id="long")[0] == 200
    thread.join()
    assert (answers[0][0], json.loads(answers[0][2])) == (499, {"detail": "stopped by the app"})
    assert runner.wait_for_line("asked to cancel")["r"] == "long"


def test_ctl_answers_while_the_loop_is_blocked(host: TinyHost) -> None:
    runner = ready(host)
    thread, _ = background(lambda: runner.call("/block", {"wait_s": 1.5}, request_id="blocked"))
    runner.wait_for_line("begin")
    assert listing(runner) == [("blocked", "running")]
    stacks = runner.call("/stacks", method="GET", ctl=True)[2].decode()
    assert "MainThread" in stacks
    assert "in block" in stacks
    assert thread.is_alive()
    thread.join()


def test_drain_refuses_new_calls(host: TinyHost) -> None:
    runner = ready(host)
    assert runner.call("/drain", method="POST", ctl=True)[0] == 200
    wait_until(lambda: runner.call("/", {})[0] == 429, "calls are still taken")


def test_an_app_cannot_send_the_runtimes_headers(host: TinyHost) -> None:
    runner = ready(host)
    status, headers, _ = runner.call("/forge", {})
    assert status == 200
    assert headers["x-mine"] == "yes"
    assert "x-fal-nb-busy" not in headers


def test_lines_belong_to_the_call_that_printed_them(host: TinyHost) -> None:
    runner = ready(host, max_multiplexing=4)
    calls = [background(lambda n=n: runner.call("/print", {"x": n}, request_id=f"p{n}")) for n in range(4)]
    for thread, _ in calls:
        thread.join()
    runner.wait_for_line("no end 3")
    wait_until(lambda: runner.pump() or len(runner.lines()) >= 1 + 4 * 22, "lines are missing")
    for number in range(4):
        mine = [(row["s"], row["x"]) for row in runner.lines() if row["r"] == f"p{number}"]
        expected = [("stdout", f"line {number} {index}") for index in range(20)]
        expected += [("stderr", f"error {number}"), ("stdout", f"no end {number}")]
        assert mine == expected
    assert runner.lines()[0] == {**runner.lines()[0], "r": None, "x": "setting up"}
