"""Log lines to 100 readers of server-sent events: deliveries a second, and how late a line is at 1,000 a second.

The lines come from a source in the server's process, so that what is measured is the fan-out: reading once, encoding
once, and a write for each reader. The readers are a process of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.figures import Figure, median_of

READERS = 100
BURST = 20_000
STEADY_S = 3.0
STEADY = 1_000
"""Lines a second."""
_SENT = re.compile(rb"sent=(\d+)")


def run(rounds: int = 3) -> list[Figure]:
    """Measure bursts and a steady stream."""
    rates, cpu, late = [], [], []
    for _ in range(rounds):
        with _server() as (port, pid):
            before = _cpu_s(pid)
            rates.append(asyncio.run(_read_burst(port)))
            cpu.append((_cpu_s(pid) - before) / (READERS * BURST) * 1e6)
            late.append(asyncio.run(_read_steady(port)))
    least = {"at_most": False}
    return [
        median_of("deliveries a second, 100 readers", rates, "/s", needed=1e6, goal=1e6, **least),
        median_of("server's CPU for a delivery", cpu, "us"),
        median_of("p99 from line to reader, 1,000 lines/s", late, "ms", needed=100, goal=100),
    ]


# The readers


async def _open(port: int, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    writer.write(f"GET /{name} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def _read_burst(port: int) -> float:
    """Return deliveries a second, from the first line of a burst to the last reader's last line."""
    readers = [await _open(port, "burst") for _ in range(READERS)]
    began = time.monotonic()
    await _go(port)
    await asyncio.gather(*(_count_to(reader, BURST) for reader, _ in readers))
    took_s = time.monotonic() - began
    for _, writer in readers:
        writer.close()
    return READERS * BURST / took_s


async def _count_to(reader: asyncio.StreamReader, count: int) -> None:
    seen, tail = 0, b""
    while seen < count:
        data = await reader.read(1 << 20)
        assert data, "the stream ended early"
        data, tail = tail + data, data[-4:]  # a read may end within the word
        seen += data.count(b"sent=")


async def _read_steady(port: int) -> float:
    """Return the p99 of how late lines are: of each piece that comes, its first line, which waited longest."""
    readers = [await _open(port, "steady") for _ in range(READERS)]
    await _go(port)
    found = await asyncio.gather(*(_lateness(reader, int(STEADY * STEADY_S)) for reader, _ in readers))
    for _, writer in readers:
        writer.close()
    return statistics.quantiles([one for each in found for one in each], n=100)[98]


async def _lateness(reader: asyncio.StreamReader, count: int) -> list[float]:
    seen, tail = 0, b""
    late = []
    while seen < count:
        data = await reader.read(1 << 20)
        assert data, "the stream ended early"
        data, tail = tail + data, data[-4:]
        first = _SENT.search(data)
        if first is not None:
            late.append((time.monotonic_ns() - int(first[1])) / 1e6)
        seen += data.count(b"sent=")
    return late


async def _go(port: int) -> None:
    _, writer = await _open(port, "go")
    writer.close()


# The server: this file again, as a program


@contextlib.contextmanager
def _server() -> Iterator[tuple[int, int]]:
    house = Path(__file__).resolve().parents[1]
    env = {**os.environ, "PYTHONPATH": f"{house}:{house / 'backend'}"}
    command = [sys.executable, "-m", "benchmarks.bench_fanout"]
    process = subprocess.Popen(command, env=env, cwd=house, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Source:
    """Runners' logs that begin when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def logs(self, runner_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[Any]:
        from fal_backend.ports import LogRecord

        if not follow:
            return
        await self.gone.wait()
        self.gone.clear()
        is_steady = runner_id == "steady"
        began = time.monotonic()
        for n in range(int(STEADY * STEADY_S) if is_steady else BURST):
            if is_steady:
                await asyncio.sleep(max(0.0, began + n / STEADY - time.monotonic()))
            now = time.time_ns() // 1000
            yield LogRecord(n + 1, now, "stdout", None, f"line {n} sent={time.monotonic_ns()}")
        await asyncio.Event().wait()


async def _serve() -> None:
    import uvicorn
    from fal_backend.api.events import Streams, encode_line
    from fal_backend.services.logs import LogQuery, Logs
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    source, streams, nothing = _Source(), Streams(), SimpleNamespace()
    logs = Logs(source, nothing, nothing, encode_line)  # type: ignore[arg-type]

    async def follow(request: Request) -> Response:
        row: Any = SimpleNamespace(id=request.url.path[1:])
        return streams.respond_pieces(logs.of_runner(row, LogQuery(follow=True)), who=nothing)  # type: ignore[arg-type]

    async def go(request: Request) -> Response:
        source.gone.set()
        return PlainTextResponse("")

    routes = [Route("/burst", follow), Route("/steady", follow), Route("/go", go)]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", access_log=False)
    await uvicorn.Server(config).serve(sockets=[listener])


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
