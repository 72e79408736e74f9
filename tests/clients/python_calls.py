"""What people write with fal's Python client, one function a case; prints one JSON document. Knows nothing of us."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import fal_client

APP = f"{os.environ['OWNER']}/clients"
HELD = f"{os.environ['OWNER']}/held"


def kind(status: Any) -> str:
    return type(status).__name__


def failure(error: fal_client.FalClientHTTPError) -> dict[str, Any]:
    return {
        "status": error.status_code,
        "detail": error.response.json()["detail"],
        "request_id": error.response_headers.get("x-fal-request-id"),
        "timeout_type": error.response_headers.get("x-fal-request-timeout-type"),
    }


# Each case once for the sync client and once for the async one


def run() -> Any:
    return {
        "root": fal_client.run(APP, arguments={"x": 2}),
        "path": fal_client.run(APP, arguments={"x": 2}, path="/sub/path"),
        "id": fal_client.run(f"{APP}/sub/path", arguments={"x": 4}),
    }


async def run_async() -> Any:
    return {
        "root": await fal_client.run_async(APP, arguments={"x": 2}),
        "path": await fal_client.run_async(APP, arguments={"x": 2}, path="/sub/path"),
        "id": await fal_client.run_async(f"{APP}/sub/path", arguments={"x": 4}),
    }


def submit() -> Any:
    handle = fal_client.submit(APP, arguments={"x": 3}, priority="low", hint="here")
    seen = list(handle.iter_events(with_logs=True))
    again = fal_client.SyncClient().get_handle(APP, handle.request_id)
    return {
        "same_urls": [handle.response_url, handle.status_url, handle.cancel_url]
        == [again.response_url, again.status_url, again.cancel_url],
        "kinds": [kind(status) for status in seen],
        "logs": [line["message"] for line in seen[-1].logs],
        "metrics": seen[-1].metrics,
        "status": kind(fal_client.status(APP, handle.request_id, with_logs=True)),
        "result": handle.get(),
        "by_id": fal_client.result(APP, handle.request_id),
    }


async def submit_async() -> Any:
    handle = await fal_client.submit_async(APP, arguments={"x": 3}, priority="low", hint="here")
    seen = [status async for status in handle.iter_events(with_logs=True)]
    again = await fal_client.AsyncClient().get_handle(APP, handle.request_id)
    return {
        "same_urls": [handle.response_url, handle.status_url, handle.cancel_url]
        == [again.response_url, again.status_url, again.cancel_url],
        "kinds": [kind(status) for status in seen],
        "logs": [line["message"] for line in seen[-1].logs],
        "metrics": seen[-1].metrics,
        "status": kind(await fal_client.status_async(APP, handle.request_id, with_logs=True)),
        "result": await handle.get(),
        "by_id": await fal_client.result_async(APP, handle.request_id),
    }


def subscribe() -> Any:
    ids: list[str] = []
    updates: list[str] = []
    result = fal_client.subscribe(
        f"{APP}/sub/path",
        arguments={"x": 5},
        with_logs=True,
        on_enqueue=ids.append,
        on_queue_update=lambda status: updates.append(kind(status)),
    )
    return {"result": result, "enqueued": len(ids), "last": updates[-1]}


async def subscribe_async() -> Any:
    ids: list[str] = []
    updates: list[str] = []
    result = await fal_client.subscribe_async(
        f"{APP}/sub/path",
        arguments={"x": 5},
        with_logs=True,
        on_enqueue=ids.append,
        on_queue_update=lambda status: updates.append(kind(status)),
    )
    return {"result": result, "enqueued": len(ids), "last": updates[-1]}


def cancel() -> Any:
    handle = fal_client.submit(APP, arguments={}, path="/slow")
    for status in handle.iter_events(with_logs=True):
        if isinstance(status, fal_client.InProgress) and status.logs:
            break
    handle.cancel()
    try:
        return handle.get()
    except fal_client.FalClientHTTPError as error:
        return failure(error) | {"last": kind(handle.status())}


async def cancel_async() -> Any:
    handle = await fal_client.submit_async(APP, arguments={}, path="/slow")
    async for status in handle.iter_events(with_logs=True):
        if isinstance(status, fal_client.InProgress) and status.logs:
            break
    await handle.cancel()
    try:
        return await handle.get()
    except fal_client.FalClientHTTPError as error:
        return failure(error) | {"last": kind(await handle.status())}


def stream() -> Any:
    return {"events": list(fal_client.stream(APP, arguments={"x": 3}))}


async def stream_async() -> Any:
    return {"events": [event async for event in fal_client.stream_async(APP, arguments={"x": 3})]}


def invalid() -> Any:
    handle = fal_client.submit(APP, arguments={"x": "two"})
    try:
        return handle.get()
    except fal_client.FalClientHTTPError as error:
        return failure(error) | {"mine": error.response_headers.get("x-fal-request-id") == handle.request_id}


async def invalid_async() -> Any:
    handle = await fal_client.submit_async(APP, arguments={"x": "two"})
    try:
        return await handle.get()
    except fal_client.FalClientHTTPError as error:
        return failure(error) | {"mine": error.response_headers.get("x-fal-request-id") == handle.request_id}


def waits_too_long() -> Any:
    """The one runner is held; the second request may wait 1.5 s, the third 2 s by the client's own clock."""
    held = fal_client.submit(HELD, arguments={"x": 5})
    for status in held.iter_events():
        if isinstance(status, fal_client.InProgress):
            break
    late = fal_client.submit(HELD, arguments={"x": 0}, start_timeout=1.5)
    queued = late.status()
    position = queued.position if isinstance(queued, fal_client.Queued) else None
    try:
        late.get()
    except fal_client.FalClientHTTPError as error:
        told = failure(error)
    try:
        fal_client.subscribe(HELD, arguments={"x": 0}, client_timeout=2)
    except fal_client.FalClientTimeoutError as error:
        own = kind(error)
    except fal_client.FalClientHTTPError as error:
        own = str(error.response_headers.get("x-fal-request-timeout-type"))
    held.cancel()
    return told | {"position": position, "own": own}


def unknown() -> Any:
    found = {}
    for name, client in {
        "app": (fal_client.SyncClient(), f"{os.environ['OWNER']}/nothing"),
        "key": (fal_client.SyncClient(key="fk_no:key"), APP),
    }.items():
        try:
            client[0].submit(client[1], arguments={})
        except fal_client.FalClientHTTPError as error:
            found[name] = failure(error)
    return found


def main(case: str) -> None:
    chosen: Callable[[], Any] = globals()[case]
    told = chosen()
    print(json.dumps(asyncio.run(told) if asyncio.iscoroutine(told) else told))


if __name__ == "__main__":
    main(sys.argv[1])
