"""A call through the gateway beside the same server called directly: rate, latency, CPU, large bodies.

Every variant runs in each round, so that a noisy machine disturbs all alike; figures are medians of the paired
ratios. Server and runner are one process that listens on TCP and on a unix socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.figures import Figure, median_of

SCRIPT = """
wrk.method = "POST"
wrk.body = '{"prompt": "a cat", "steps": 4}'
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Key fk_bench:secret"
"""
DOWNLOAD = 10 * 1024 * 1024
KEY = b"Key fk_bench:secret"


@dataclass(frozen=True)
class Sample:
    """One run of wrk."""

    rate: float
    p50_ms: float
    requests: int


def run(rounds: int = 5) -> list[Figure]:
    """Measure all variants, interleaved."""
    if shutil.which("wrk") is None:
        raise SystemExit("this bench needs wrk: `apt-get install wrk` (Debian and Ubuntu)")
    with tempfile.TemporaryDirectory(prefix="fal-", dir="/tmp") as folder, contextlib.ExitStack() as stack:
        script = Path(folder, "post.lua")
        script.write_text(SCRIPT)
        fastapi = stack.enter_context(_process("fastapi", folder))
        raw = stack.enter_context(_process("raw", folder))
        gateway = stack.enter_context(_process("gateway", folder))
        bench = _Bench(script, fastapi, raw, gateway)
        for url in bench.urls.values():
            _wrk(url, script, connections=16, seconds=1)
        for _ in range(rounds):
            bench.round()
        return bench.figures()


class _Bench:
    def __init__(self, script: Path, fastapi: _Process, raw: _Process, gateway: _Process) -> None:
        edge = f"http://127.0.0.1:{gateway.port}/run/bench"
        self._script = script
        self._gateway = gateway
        self._measured = {"fastapi": fastapi.pid, "raw": raw.pid, "gateway+raw": gateway.pid}
        self.urls = {
            "fastapi": f"http://127.0.0.1:{fastapi.port}/",
            "gateway+fastapi": f"{edge}/fastapi/",
            "raw": f"http://127.0.0.1:{raw.port}/",
            "gateway+raw": f"{edge}/raw/",
        }
        self._download = (f"http://127.0.0.1:{raw.port}/large", f"{edge}/raw/large")
        self.fastapi_ratio: list[float] = []
        self.raw_ratio: list[float] = []
        self.added: list[float] = []
        self.added_fastapi: list[float] = []
        self.cpu: dict[str, list[float]] = {name: [] for name in self._measured}
        self.download: list[float] = []
        self.download_cpu: list[float] = []
        self.growth: list[float] = []
        self._stream = (f"http://127.0.0.1:{raw.port}/events", f"{edge}/raw/events")
        self.first_event: dict[str, list[float]] = {"direct": [], "gateway": []}
        self.rates: dict[str, list[float]] = {name: [] for name in self.urls}

    def round(self) -> None:
        many = {}
        for name, url in self.urls.items():
            pid = self._measured.get(name)
            before = _cpu_s(pid) if pid else 0.0
            many[name] = sample = _wrk(url, self._script, connections=16, seconds=2)
            self.rates[name].append(sample.rate)
            if pid:
                self.cpu[name].append((_cpu_s(pid) - before) / sample.requests * 1e6)
        one = {
            name: _wrk(url, self._script, connections=1, seconds=2).p50_ms for name, url in self.urls.items()
        }
        self.fastapi_ratio.append(many["gateway+fastapi"].rate / many["fastapi"].rate)
        self.raw_ratio.append(many["gateway+raw"].rate / many["raw"].rate)
        self.added.append(one["gateway+raw"] - one["raw"])
        self.added_fastapi.append(one["gateway+fastapi"] - one["fastapi"])
        direct = _wrk(self._download[0], self._script, connections=2, seconds=2)
        before = _cpu_s(self._gateway.pid)
        through = _wrk(self._download[1], self._script, connections=2, seconds=2)
        self.download_cpu.append((_cpu_s(self._gateway.pid) - before) / through.requests * 1e3)
        self.download.append(through.rate / direct.rate)
        for name, url in zip(self.first_event, self._stream, strict=True):
            self.first_event[name] += _first_events(url)
        self.growth.append(_slow_readers(self._download[1], self._gateway.pid))

    def figures(self) -> list[Figure]:
        least = {"at_most": False}
        return [
            median_of(
                "through gateway / FastAPI direct, c=16",
                self.fastapi_ratio,
                "x",
                needed=0.8,
                goal=0.9,
                **least,
            ),
            median_of("through gateway / raw ASGI direct, c=16", self.raw_ratio, "x", needed=0.25, **least),
            median_of("added p50, raw ASGI, c=1", self.added, "ms", needed=0.15, goal=0.10),
            median_of("added p50, FastAPI, c=1", self.added_fastapi, "ms", needed=0.15, goal=0.10),
            median_of("gateway's CPU for a call, c=16", self.cpu["gateway+raw"], "us", needed=60, goal=60),
            median_of("gateway's CPU / raw ASGI server's", _paired(self.cpu, "raw"), "x"),
            median_of("gateway's CPU / FastAPI server's", _paired(self.cpu, "fastapi"), "x"),
            median_of("10 MB download / direct, c=2", self.download, "x", needed=0.65, goal=0.65, **least),
            median_of("gateway's CPU for 10 MB", self.download_cpu, "ms"),
            median_of(
                "first SSE byte after the runner's, gateway", self.first_event["gateway"], "ms", needed=2.0
            ),
            median_of("first SSE byte after the runner's, direct", self.first_event["direct"], "ms"),
            median_of("memory growth, 20 readers that stall", self.growth, "MB", needed=32, goal=32),
            *(median_of(f"calls a second, {name}", rates, "/s") for name, rates in self.rates.items()),
        ]


def _paired(cpu: dict[str, list[float]], other: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(cpu["gateway+raw"], cpu[other], strict=True)]


def _wrk(url: str, script: Path, *, connections: int, seconds: int) -> Sample:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 30).stdout
    rate, p50 = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"50%\s+([\d.]+)(us|ms|s)", text)
    requests = re.search(r"(\d+) requests in", text)
    if "Non-2xx" in text or "Socket errors" in text or not (rate and p50 and requests):
        raise RuntimeError(f"wrk against {url}:\n{text}")
    return Sample(float(rate[1]), float(p50[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[p50[2]], int(requests[1]))


def _first_events(url: str, count: int = 40) -> list[float]:
    """Return how many ms after the server wrote it the first event of a stream was here, for several streams.

    The event holds the server's own clock, which is ours: both are on this machine.
    """
    _, _, rest = url.partition("//")
    address, _, path = rest.partition("/")
    host, _, port = address.partition(":")
    request = f"GET /{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: {KEY.decode()}\r\nconnection: close\r\n\r\n"
    found = []
    for _ in range(count):
        with socket.create_connection((host, int(port))) as reader:
            reader.sendall(request.encode())
            text = b""
            while not (event := re.search(rb"data: (\d+)\n", text)):
                part = reader.recv(65536)
                if not part:
                    raise RuntimeError(f"{url} ended before its first event: {text[:200]!r}")
                text += part
            found.append((time.monotonic_ns() - int(event[1])) / 1e6)
    return found


def _slow_readers(url: str, pid: int) -> float:
    """Return by how many MB the gateway grows while 20 callers ask for 10 MB and read nothing."""
    _, _, rest = url.partition("//")
    address, _, path = rest.partition("/")
    host, _, port = address.partition(":")
    before = _rss_mb(pid)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            reader = stack.enter_context(socket.create_connection((host, int(port))))
            reader.sendall(
                f"GET /{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: {KEY.decode()}\r\n\r\n".encode()
            )
        time.sleep(1.0)
        return max(0.0, _rss_mb(pid) - before)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


# The servers: this file again, as a program


@dataclass(frozen=True)
class _Process:
    pid: int
    port: int


@contextlib.contextmanager
def _process(role: str, folder: str) -> Iterator[_Process]:
    house = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": f"{house}:{house / 'backend'}"}
    command = [sys.executable, "-m", "benchmarks.bench_gateway", role, folder]
    process = subprocess.Popen(command, env=env, cwd=house, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.strip():
            raise RuntimeError(f"the {role} server of the bench did not start")
        yield _Process(process.pid, int(line))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _tcp() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    return listener


def _unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(1024)
    return listener


def _serve_app(app: Any, path: str) -> None:
    import uvicorn

    tcp = _tcp()
    config = uvicorn.Config(
        app, log_level="critical", access_log=False, loop="uvloop", http="httptools", timeout_keep_alive=600
    )
    print(tcp.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[tcp, _unix(path)])


class Question(BaseModel):
    """The job's input."""

    prompt: str
    steps: int = 1


class Answer(BaseModel):
    """The job's output."""

    text: str
    steps: int


async def _answer(question: Question) -> Answer:
    return Answer(text=question.prompt, steps=question.steps)


def _serve_fastapi(folder: str) -> None:
    from fastapi import FastAPI

    app = FastAPI()
    app.post("/")(_answer)

    _serve_app(app, f"{folder}/fastapi.sock")


async def _raw(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/events":
        await _events(send)
        return
    body = _LARGE if scope["path"] == "/large" else b'{"text": "a cat", "steps": 4}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _events(send: Any) -> None:
    """Answer with a stream whose first event tells when it was written, and whose end comes later."""
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await asyncio.sleep(0.005)
    event = b"data: %d\n\n" % time.monotonic_ns()
    await send({"type": "http.response.body", "body": event, "more_body": True})
    await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b"data: end\n\n"})


_LARGE = b"x" * DOWNLOAD


def _auth() -> Any:
    """Return the backend's own judge of keys, with one key."""
    from fal_backend.api.auth import Auth
    from fal_backend.domain.records import Account, ApiKey

    secret = hashlib.sha256(b"secret").hexdigest()
    return Auth([Account("bench", "bench", 0)], [ApiKey("fk_bench", "bench", secret, "ADMIN", 0)])


async def _serve_gateway(folder: str) -> None:
    from fal_backend.adapters.request_log_sqlite import RequestLogFile
    from fal_backend.api.edge import Edge, serve
    from fal_backend.api.gateway import Gateway
    from fal_backend.services.dispatch import Dispatch
    from fal_backend.services.request_log import RequestLog
    from fal_backend.services.routes import RouteInfo

    from fal_notebook.wire import AuthMode

    dispatch = Dispatch(lambda _: None, lambda _, __: None, lambda _: None)
    for alias in ("fastapi", "raw"):
        dispatch.set_route(
            RouteInfo("bench", alias, "bench", AuthMode.PRIVATE, f"rev-{alias}", 32, 3600, 600)
        )
        dispatch.open_runner(f"rev-{alias}", f"r-{alias}", f"{folder}/{alias}.sock", f"{folder}/none", 32)
    tcp = _tcp()
    port = tcp.getsockname()[1]
    log = RequestLog(RequestLogFile(Path(folder)))
    gateway = Gateway(dispatch, _auth(), note=log.note)
    edge = Edge(gateway, _raw, _raw, url=f"http://127.0.0.1:{port}", ready=lambda: True)
    print(port, flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(log.run())
        group.create_task(serve(edge, tcp=tcp, api=None))


def main(role: str, folder: str) -> None:
    """Be one of the servers."""
    import uvloop

    if role == "gateway":
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_gateway(folder))
    elif role == "fastapi":
        _serve_fastapi(folder)
    else:
        _serve_app(_raw, f"{folder}/raw.sock")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
