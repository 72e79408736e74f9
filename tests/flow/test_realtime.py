"""Realtime Apps through the whole house, called with fal's own Python client over TLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.stack import Stack, wait_for

APP = """
import asyncio, os
from collections.abc import AsyncIterator
import fal
from fastapi import WebSocket
from pydantic import BaseModel

class In(BaseModel):
    n: int

class Out(BaseModel):
    n: int
    pid: int

class Live(fal.App):
    machine_type = "XS"
    keep_alive = 600
    max_multiplexing = 1
    max_concurrency = 2
    app_auth = "private"

    @fal.realtime("/realtime")
    def double(self, inp: In) -> Out:
        return Out(n=2 * inp.n, pid=os.getpid())

    @fal.realtime("/count")
    async def count(self, inp: In) -> AsyncIterator[Out]:
        for n in range(inp.n):
            yield Out(n=n, pid=os.getpid())

    @fal.endpoint("/")
    def triple(self, inp: In) -> Out:
        return Out(n=3 * inp.n, pid=os.getpid())

    @fal.endpoint("/raw", is_websocket=True)
    async def raw(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text((await websocket.receive_text()).upper())
"""

CALLER = """
import asyncio, json, os, sys
import fal_client, fal_client.client
host = os.environ["FAL_RUN_HOST"].removesuffix("/run")
fal_client.client.REST_URL = f"https://{host}/rest"
APP = os.environ["OWNER"] + "/live"

def unary(**how):
    with fal_client.realtime(APP, **how) as live:
        answers = []
        for n in range(5):
            live.send({"n": n})
            answers.append(live.recv()["n"])
        return answers

def with_token():
    return unary(max_buffering=5)

def with_key():
    return unary(use_jwt=False)

async def from_async():
    async with fal_client.realtime_async(APP) as live:
        await live.send({"n": 4})
        return (await live.recv())["n"]

def streaming():
    with fal_client.realtime(APP, path="/count") as live:
        live.send({"n": 4})
        return [live.recv()["n"] for _ in range(4)]

def raw():
    with fal_client.ws_connect(APP, path="/raw") as socket:
        socket.send("shout")
        return socket.recv()

def two_at_a_time():
    with fal_client.realtime(APP) as one, fal_client.realtime(APP) as two:
        one.send({"n": 1}); two.send({"n": 1})
        return one.recv()["pid"] != two.recv()["pid"]

def http_over_websocket():
    from websockets.sync.client import connect
    headers = {"Authorization": "Key " + os.environ["FAL_KEY"]}
    with connect(f"wss://{host}/ws/{APP}", additional_headers=headers, open_timeout=90) as socket:
        for n in (1, 2):
            socket.send(json.dumps({"n": n}))
        told = [json.loads(socket.recv()) for _ in range(6)]
    return [[told[0]["type"], told[0]["status"]], told[1]["n"], told[2]["type"], told[4]["n"]]

found = globals()[sys.argv[1]]()
print(json.dumps(asyncio.run(found) if asyncio.iscoroutine(found) else found))
"""


@pytest.fixture(scope="module")
def served(secure: Stack) -> Stack:
    secure.deploy(APP, name="live.py", ref="Live")
    secure.file("caller.py", CALLER)
    return secure


def told(served: Stack, case: str) -> Any:
    exports = {name: str(value) for name, value in served.cli_json("env").items()}
    env = {"PATH": os.environ["PATH"], "HOME": str(served.root), "OWNER": served.owner} | exports
    done = subprocess.run(
        [sys.executable, str(served.root / "src" / "caller.py"), case],
        env=env, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("with_token", [0, 2, 4, 6, 8]),
        ("with_key", [0, 2, 4, 6, 8]),
        ("from_async", 8),
        ("streaming", [0, 1, 2, 3]),
        ("raw", "SHOUT"),
        ("two_at_a_time", True),
        ("http_over_websocket", [["start", 200], 3, "end", 6]),
    ],
)
def test_fal_client_speaks_with_a_realtime_app(served: Stack, case: str, expected: Any) -> None:
    assert told(served, case) == expected
    wait_for("no session holds a slot", lambda: _in_flight(served) == 0)


def test_a_new_revision_closes_the_sessions_of_the_old_one_for_coming_again(served: Stack) -> None:
    url = f"{served.url.replace('http', 'ws')}/run/{served.owner}/live/raw"
    key = {"Authorization": f"Key {served.key}"}
    with connect(url, additional_headers=key, open_timeout=90, proxy=None) as old:
        old.send("before")
        assert old.recv() == "BEFORE"
        served.deploy(APP.replace("upper()", "title()"), name="live.py", ref="Live")
        with pytest.raises(ConnectionClosed) as closed:
            old.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    with connect(url, additional_headers=key, open_timeout=90, proxy=None) as new:
        new.send("after")
        assert new.recv() == "After"


def _in_flight(served: Stack) -> float:
    text = served.call(f"{served.url}/metrics", method="GET").text
    lines = [line for line in text.splitlines() if line.startswith("fal_nb_requests_in_flight{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
