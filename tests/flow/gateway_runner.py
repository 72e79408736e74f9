"""A runner of the tests: a raw ASGI app under uvicorn on the unix socket that is named on the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from typing import Any

import uvicorn

STARTED: list[str] = []
GONE: list[str] = []


async def reply(
    send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    lines = [
        (b"content-length", str(len(body)).encode()),
        (b"content-type", b"application/json"),
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await read_body(receive)
    seen = {
        "method": scope["method"],
        "path": scope["path"],
        "query": scope["query_string"].decode(),
        "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
        "size": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "pid": os.getpid(),
    }
    await reply(send, 200, json.dumps(seen).encode())


async def status(scope: Any, receive: Any, send: Any) -> None:
    await read_body(receive)
    code = int(scope["path"].rpartition("/")[2])
    headers = [(name.encode(), value.encode()) for name, value in _query(scope)]
    if code in (204, 304):
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
    else:
        await reply(send, code, json.dumps({"detail": f"status {code}"}).encode(), headers)


async def slow(scope: Any, receive: Any, send: Any) -> None:
    await read_body(receive)
    STARTED.append(dict(scope["headers"])[b"x-fal-request-id"].decode())
    seconds = float(dict(_query(scope)).get("s", "30"))
    waiter = asyncio.ensure_future(receive())
    done, _ = await asyncio.wait({waiter}, timeout=seconds)
    waiter.cancel()
    if done:
        GONE.append(STARTED[-1])
        return
    await reply(send, 200, json.dumps({"pid": os.getpid()}).encode())


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await read_body(receive)
    count = int(dict(_query(scope)).get("n", "5"))
    pause = float(dict(_query(scope)).get("pause", "0"))
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    for n in range(count):
        await send({"type": "http.response.body", "body": f"data: {n}\n\n".encode(), "more_body": True})
        await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b""})


async def large(scope: Any, receive: Any, send: Any) -> None:
    await read_body(receive)
    size = int(dict(_query(scope))["size"])
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    block = b"x" * 65536
    while size:
        part = block[:size]
        size -= len(part)
        await send({"type": "http.response.body", "body": part, "more_body": size > 0})


async def early(scope: Any, receive: Any, send: Any) -> None:
    await reply(send, 403, b'{"detail":"not read"}')


async def die(scope: Any, receive: Any, send: Any) -> None:
    await read_body(receive)
    os._exit(1)


async def die_mid_answer(scope: Any, receive: Any, send: Any) -> None:
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await asyncio.sleep(0.05)
    os._exit(1)


async def words(scope: Any, receive: Any, send: Any) -> None:
    """Send what the query says, in hexadecimal parts."""
    await read_body(receive)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for part in dict(_query(scope))["parts"].split("-"):
        await send({"type": "http.response.body", "body": bytes.fromhex(part), "more_body": True})
        await asyncio.sleep(0.02)
    await send({"type": "http.response.body", "body": b""})


async def facts(scope: Any, receive: Any, send: Any) -> None:
    answer = {"pid": os.getpid(), "started": STARTED, "gone": GONE, "now": time.time()}
    await reply(send, 200, json.dumps(answer).encode())


BUSY = [0]


async def busy(scope: Any, receive: Any, send: Any) -> None:
    """Refuse at the head as often as the query says, then answer like echo."""
    BUSY[0] += 1
    if BUSY[0] <= int(dict(_query(scope))["times"]):
        await reply(send, 429, b"{}", [(b"x-fal-nb-busy", b"1")])
    else:
        await echo(scope, receive, send)


def _query(scope: Any) -> list[tuple[str, str]]:
    from urllib.parse import parse_qsl

    return parse_qsl(scope["query_string"].decode())


ROUTES = {
    "slow": slow,
    "stream": stream,
    "large": large,
    "early": early,
    "die": die,
    "die-mid-answer": die_mid_answer,
    "facts": facts,
    "words": words,
    "busy": busy,
    "status": status,
}


async def session(scope: Any, receive: Any, send: Any) -> None:
    """A websocket: echoes; `head` tells its head, `flood` sends much, `close` closes, `die` dies."""
    await receive()
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close", "code": 1008})
        return
    STARTED.append(dict(scope["headers"])[b"x-fal-request-id"].decode())
    await send({"type": "websocket.accept", "subprotocol": next(iter(scope["subprotocols"]), None)})
    if scope["path"] == "/hello":
        await send({"type": "websocket.send", "text": "hello"})
    while (message := await receive())["type"] == "websocket.receive":
        act = ACTS.get(message.get("text") or "")
        if act is not None:
            await act(scope, send)
        elif message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})
    GONE.append(STARTED[-1])


async def tell_head(scope: Any, send: Any) -> None:
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    seen = {"path": scope["path"], "query": scope["query_string"].decode(), "headers": headers}
    await send({"type": "websocket.send", "text": json.dumps(seen)})


async def flood(scope: Any, send: Any) -> None:
    for _ in range(200):
        await send({"type": "websocket.send", "bytes": b"x" * 100_000})


async def close(scope: Any, send: Any) -> None:
    await send({"type": "websocket.close", "code": 4001, "reason": "asked"})


async def die_in_session(scope: Any, send: Any) -> None:
    os._exit(1)


ACTS = {"head": tell_head, "flood": flood, "close": close, "die": die_in_session}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await session(scope, receive, send)
        return
    await ROUTES.get(scope["path"].split("/")[1], echo)(scope, receive, send)


if __name__ == "__main__":
    uvicorn.run(
        app,
        uds=sys.argv[1],
        log_level="critical",
        lifespan="off",
        timeout_keep_alive=600,
        ws="websockets-sansio",
        ws_max_size=2**27,
    )
