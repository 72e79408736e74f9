"""A backend with TLS and one App with an endpoint of each kind; fal's own clients run in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack import Stack, stack

HERE = Path(__file__).parent

APP = """
import asyncio
import fal
from fal.exceptions import RequestCancelledException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

class In(BaseModel):
    x: int = 1

class Out(BaseModel):
    y: int

class Clients(fal.App):
    machine_type = "XS"
    max_multiplexing = 8
    keep_alive = 600

    @fal.endpoint("/")
    async def double(self, inp: In) -> Out:
        print(f"working on {inp.x}")
        await asyncio.sleep(0.3)
        return Out(y=2 * inp.x)

    @fal.endpoint("/sub/path")
    async def triple(self, inp: In) -> Out:
        return Out(y=3 * inp.x)

    def setup(self):
        self.tasks = {}

    @fal.endpoint("/slow")
    async def slow(self, inp: In) -> Out:
        task = self.tasks[self.current_request.request_id] = asyncio.create_task(asyncio.sleep(60))
        print("slow begins")
        try:
            await task
        except asyncio.CancelledError:
            raise RequestCancelledException("stopped")
        return Out(y=0)

    @fal.endpoint("/slow/cancel")
    async def stop(self) -> dict:
        self.tasks[self.current_request.request_id].cancel()
        return {}

    @fal.endpoint("/stream")
    async def stream(self, inp: In) -> StreamingResponse:
        async def events():
            for i in range(inp.x):
                yield f"data: {{\\"i\\": {i}}}\\n\\n"
                await asyncio.sleep(0.05)
        return StreamingResponse(events(), media_type="text/event-stream")

    @fal.realtime("/realtime")
    def live(self, inp: In) -> Out:
        return Out(y=4 * inp.x)

class Held(fal.App):
    machine_type = "XS"
    max_concurrency = 1
    keep_alive = 600

    @fal.endpoint("/")
    async def hold(self, inp: In) -> Out:
        await asyncio.sleep(inp.x)
        return Out(y=inp.x)
"""

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def served() -> Iterator[Stack]:
    """The backend that all clients call."""
    with stack("--tls", "--tls-port", "0", "--port", "0") as made:
        for name in ("Clients", "Held"):
            made.deploy(APP, ref=name, name=f"{name.lower()}.py")
        yield made


@pytest.fixture(scope="session")
def exports(served: Stack) -> dict[str, str]:
    """What `fal-nb env` prints."""
    return {name: str(value) for name, value in served.cli_json("env").items()}


def _told(command: list[str], env: dict[str, str], timeout_s: float = 40) -> dict[str, Any]:
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.fixture
def python(served: Stack, exports: dict[str, str]) -> Call:
    """Run one case of `python_calls.py` with the exports and nothing else of ours."""

    def call(case: str, *args: str) -> dict[str, Any]:
        env = {"PATH": os.environ["PATH"], "HOME": str(served.root), "OWNER": served.owner} | exports
        return _told([sys.executable, str(HERE / "python_calls.py"), case, *args], env)

    return call


def find_node() -> str:
    """Return Node: what make linked, else the machine's. Skips, or fails where `CI` is set, without one."""
    linked = HERE.parents[1] / ".artifacts" / "node" / "node"
    found = str(linked) if linked.exists() else shutil.which("node")
    if found is None or not (HERE / "js" / "node_modules").is_dir():
        reason = "fal's JavaScript client is not installed: run `make clients`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture
def javascript(served: Stack, exports: dict[str, str]) -> Call:
    """Run one case of `calls.mjs`; way: how the client is pointed here."""
    node = find_node()

    def call(way: str, case: str) -> dict[str, Any]:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(served.root),
            "OWNER": served.owner,
            "WAY": way,
        } | exports
        return _told(
            [node, "--experimental-websocket", "--no-warnings", str(HERE / "js" / "calls.mjs"), case], env
        )

    return call
