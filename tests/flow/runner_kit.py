"""An App that tells of its runner, and what tests of one runner need."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.flow.tiny_host import DEADLINE_S, Connection, Runner, TinyHost

__all__ = ["ECHO", "background", "facts", "is_alive", "leave_during", "listing", "ready", "wait_until"]

ECHO = """
import asyncio, os, sys, threading, time
import fal_notebook as fal
from pydantic import BaseModel
from fastapi.responses import StreamingResponse

def links():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    return found

class In(BaseModel):
    x: int = 1
    wait_s: float = 0

class Demo(fal.App):
    def setup(self):
        print("setting up")
        self.count = 0
        self.ended = 0
        self.steps = 0

    def teardown(self):
        print("torn down")

    def handle_exit(self):
        print("told to end")

    @fal.endpoint("/")
    def run(self, i: In) -> dict:
        print("begin", i.x)
        time.sleep(i.wait_s)
        self.count += 1
        return {"x": i.x, "count": self.count, "thread": threading.current_thread().name}

    @fal.endpoint("/async")
    async def run_async(self, i: In) -> dict:
        print("begin", i.x)
        try:
            await asyncio.sleep(i.wait_s)
        finally:
            self.ended += 1
        return {"x": i.x, "thread": threading.current_thread().name}

    @fal.endpoint("/block")
    async def block(self, i: In) -> dict:
        print("begin", i.x)
        time.sleep(i.wait_s)
        return {}

    @fal.endpoint("/facts")
    async def facts(self) -> dict:
        request = self.current_request
        return {
            "ended": self.ended, "steps": self.steps, "pid": os.getpid(), "env": dict(os.environ),
            "fds": links(), "cwd": os.getcwd(), "path": sys.path,
            "request_id": request.request_id, "endpoint": request.endpoint, "header": request.headers.get("X-Mine"),
        }

    @fal.endpoint("/count")
    def counter(self) -> StreamingResponse:
        def steps():
            try:
                while True:
                    self.steps += 1
                    yield f"{self.steps}\\n"
                    time.sleep(0.01)
            finally:
                self.ended += 1
        return StreamingResponse(steps())

    @fal.endpoint("/forge")
    async def forge(self) -> StreamingResponse:
        return StreamingResponse(iter([b"x"]), headers={"x-fal-nb-busy": "1", "x-mine": "yes"})

    @fal.endpoint("/print")
    def print_lines(self, i: In) -> dict:
        for number in range(20):
            print("line", i.x, number, end="")
            time.sleep(0.001)
            print()
        print("error", i.x, file=sys.stderr)
        print("no end", i.x, end="")
        return {}
"""


def wait_until(check: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.005)


def ready(host: TinyHost, source: str = ECHO, **settings: Any) -> Runner:
    runner = host.start(source, **settings)
    runner.wait_for("ready")
    return runner


def facts(runner: Runner) -> dict[str, Any]:
    status, _, body = runner.call("/facts", {}, request_id="facts")
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def background(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(act()))
    thread.start()
    return thread, answers


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def listing(runner: Runner) -> list[tuple[str, str]]:
    rows = json.loads(runner.call("/calls", method="GET", ctl=True)[2])
    return [(row["request_id"], row["state"]) for row in rows]


def leave_during(runner: Runner, path: str, body: bytes) -> None:
    """Send a call named `gone` and close the connection once it runs."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-fal-request-id: gone\r\n"
    with closing(Connection(runner.app)) as connection:
        connection.connect()
        connection.sock.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
        runner.wait_for_line("begin")
