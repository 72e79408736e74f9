"""The stand-in App with which a zygote is warmed: thawed, built and called through the real server.

Importing is not enough: the first unpickled class, the first pydantic model, the first request each load more and
fill caches. Done once here, a fork needs 25-30 ms instead of 155-210. Nothing stays behind: no thread, no loop,
no socket.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import cloudpickle
import uvloop

from fal_notebook import bundle
from fal_notebook.app import App, instantiate
from fal_notebook.runtime import standin
from fal_notebook.runtime.calls import Calls
from fal_notebook.runtime.lifecycle import build_front
from fal_notebook.runtime.serve import Protocol, Server, configure
from fal_notebook.runtime.slots import SlotThreads

__all__ = ["warm"]


def warm() -> None:
    """Thaw, build and call the stand-in, and leave nothing running."""
    cloudpickle.register_pickle_by_value(standin)
    try:
        payload = cloudpickle.dumps(standin.StandIn, protocol=5)
    finally:
        cloudpickle.unregister_pickle_by_value(standin)
    cls = bundle.thaw(payload, [])
    threads = SlotThreads()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            loop.run(_call_all(instantiate(cls), threads))
    finally:
        threads.close()


async def _call_all(instance: App, threads: SlotThreads) -> None:
    front = build_front(instance, Calls(1), threads, lambda request_id: None)
    config = configure(front)
    server = Server(config, lambda: None)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[])
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    with ours:
        ours.setblocking(False)
        await loop.connect_accepted_socket(lambda: Protocol(config, server.server_state, {}), theirs)
        for path in (b"/", b"/inline"):
            await _call(ours, path)
    await server.lifespan.shutdown()


async def _call(connection: socket.socket, path: bytes) -> None:
    body = b'{"number": 2}'
    head = b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n" % path
    head += b"x-fal-request-id: warm\r\nx-fal-endpoint: x/y\r\ncontent-length: %d\r\n\r\n" % len(body)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, head + body)
    answer: Any = b""
    while b"numbers" not in answer:
        chunk = await loop.sock_recv(connection, 65536)
        if not chunk:
            raise RuntimeError("the stand-in App did not answer")
        answer += chunk
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the stand-in App answered {answer[:60]!r}")
