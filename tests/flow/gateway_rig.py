"""A gateway in this process, runners in processes of their own, and plain sockets to speak to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvloop
from fal_backend.api.auth import Auth
from fal_backend.api.edge import Edge, Limits, serve
from fal_backend.api.gateway import Gateway
from fal_backend.api.messages import MessageDoor
from fal_backend.api.rates import RateLimits, Rates
from fal_backend.api.tokens import Tokens
from fal_backend.domain.records import Account, ApiKey
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.routes import RouteInfo

from fal_notebook.wire import AuthMode

OWNER, STRANGER = "Key fk_owner:secret", "Key fk_stranger:secret"
RUNNER = Path(__file__).with_name("gateway_runner.py")
DEADLINE_S = 20.0


async def eventually(what: str, is_so: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait until something is true and return it."""
    end = time.monotonic() + deadline_s
    while not (found := is_so()):
        assert time.monotonic() < end, f"not in time: {what}"
        await asyncio.sleep(0.01)
    return found


def on_uvloop(test: Callable[..., Any]) -> Callable[..., None]:
    """Run a test on the loop that the backend runs on; an exception that only the loop saw fails it too."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        unseen: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
            await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(watched())
        assert unseen == []

    return run


@dataclass
class Control:
    """A runner's control socket: remembers who was cancelled, and answers when told to."""

    path: str
    cancelled: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    """What it says that runs."""
    drains: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith(("GET /calls ", "POST /drain ")):
            self.drains += head.startswith("POST")
            body = json.dumps([{"request_id": request_id} for request_id in self.running]).encode()
            answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            writer.write(answer % (len(body), body))
            writer.close()
            return
        self.cancelled.append(head.split(" ")[1].split("/")[2])
        await self.may_answer.wait()
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{"ended":true}')
        writer.close()


@dataclass
class Runner:
    """A raw ASGI app under uvicorn on a unix socket."""

    id: str
    socket: str
    process: asyncio.subprocess.Process
    control: Control
    control_server: asyncio.Server

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)


class Rig:
    """The gateway and what it was told and told us."""

    def __init__(self, folder: str, limits: Limits | None, rates: RateLimits | None) -> None:
        self.folder = folder
        self.demands: list[str] = []
        self.verdicts: list[tuple[str, str]] = []
        self.drained: list[str] = []
        self.runners: dict[str, Runner] = {}
        self.seen_by_pages: list[Any] = []
        self.dispatch = Dispatch(
            self.demands.append,
            lambda runner, reason: self.verdicts.append((runner, reason)),
            self.drained.append,
        )
        self.tcp = socket.socket()
        self.tcp.bind(("127.0.0.1", 0))
        self.tcp.listen(2048)
        self.port = self.tcp.getsockname()[1]
        self.api = socket.socket(socket.AF_UNIX)
        self.api_path = f"{folder}/api.sock"
        self.api.bind(self.api_path)
        self.api.listen(64)
        self.url = f"http://127.0.0.1:{self.port}"
        self.is_ready = False
        self.auth = _auth()
        self.tokens = Tokens(b"secret", self.auth)
        self.rates = Rates(rates)
        gateway = Gateway(self.dispatch, self.auth, tokens=self.tokens, rates=self.rates)
        self.edge = Edge(
            gateway,
            self.pages,
            self.pages,
            tokens=self.tokens,
            messages=MessageDoor(gateway.admits, gateway.begin),
            rates=self.rates,
            url=self.url,
            allow_origins=["http://good.example"],
            ready=lambda: self.is_ready,
            limits=limits,
        )

    async def pages(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.seen_by_pages.append((scope, body))
        headers = [(b"content-length", b"4"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"page"})

    def route(self, alias: str = "app", revision: str = "rev1", **kwargs: Any) -> None:
        defaults: dict[str, Any] = {"auth": AuthMode.PUBLIC, "max_multiplexing": 1}
        self.dispatch.set_route(RouteInfo("me", alias, "acc-owner", revision=revision, **(defaults | kwargs)))

    async def runner(self, width: int = 1, revision: str = "rev1") -> Runner:
        """Start a runner and let it take calls."""
        number = len(self.runners) + 1
        path, control = f"{self.folder}/{number}.sock", Control(f"{self.folder}/{number}.ctl")
        control_server = await asyncio.start_unix_server(control.serve, control.path)
        process = await asyncio.create_subprocess_exec(sys.executable, str(RUNNER), path)
        runner = self.runners[f"r-{number}"] = Runner(f"r-{number}", path, process, control, control_server)
        await eventually("the runner's socket", lambda: _accepts(path))
        self.dispatch.open_runner(revision, runner.id, path, control.path, width)
        return runner

    @property
    def load(self) -> Any:
        return self.dispatch.load("rev1")

    async def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async with self.client() as client:
            return await client.request(method, path, **kwargs)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=DEADLINE_S, trust_env=False, verify=False)

    async def talk(self, *parts: bytes, read_to_end: bool = True) -> bytes:
        """Send raw bytes, part by part, and return all that comes until the connection closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.01)
            return await asyncio.wait_for(reader.read() if read_to_end else reader.read(65536), DEADLINE_S)
        finally:
            writer.close()

    async def facts(self, runner: Runner) -> dict[str, Any]:
        """Ask a runner itself."""
        transport = httpx.AsyncHTTPTransport(uds=runner.socket, verify=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
            return dict((await client.get("/facts")).json())


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _auth() -> Auth:
    accounts = [Account(f"acc-{name}", name, 0) for name in ("owner", "stranger")]
    secret = hashlib.sha256(b"secret").hexdigest()
    return Auth(accounts, [ApiKey(f"fk_{a.nickname}", a.id, secret, "ADMIN", 0) for a in accounts])


@contextlib.asynccontextmanager
async def rig(limits: Limits | None = None, rates: RateLimits | None = None) -> AsyncIterator[Rig]:
    """Run a gateway until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="fal-", dir="/tmp") as folder:
        running = Rig(folder, limits, rates)
        server = asyncio.create_task(serve(running.edge, tcp=running.tcp, api=running.api, grace_s=1))
        await asyncio.sleep(0)
        try:
            yield running
        finally:
            for runner in running.runners.values():
                runner.kill()
                await runner.process.wait()
                runner.control.may_answer.set()
                runner.control_server.close()
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server
            for info in running.dispatch.routes():
                for runner_id in running.dispatch.load(info.revision).runners:
                    running.dispatch.cut_runner(runner_id)
            await asyncio.sleep(0.01)  # uvloop cannot close while a transport is open


def body_of(answer: bytes) -> Any:
    """Return the JSON body of a raw answer."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def own_rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
