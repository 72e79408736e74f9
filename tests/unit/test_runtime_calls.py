"""The gate and the ASGI layer before an App, without sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fal_notebook.app import current_request
from fal_notebook.runtime.calls import Call, Calls
from fal_notebook.runtime.serve import Front


def a_scope(method: str = "POST", path: str = "/", request_id: str = "r1", **headers: str) -> dict[str, Any]:
    named = {
        "x-fal-request-id": request_id,
        **{key.replace("_", "-"): value for key, value in headers.items()},
    }
    raw = [(name.encode(), value.encode()) for name, value in named.items()]
    asgi = {"version": "3.0", "spec_version": "2.3"}
    return {"type": "http", "method": method, "path": path, "headers": raw, "asgi": asgi, "query_string": b""}


class Exchange:
    """One call of an ASGI application."""

    def __init__(self, app: Any, **scope: str) -> None:
        self.sent: list[Any] = []
        self.received = 0
        self.task = asyncio.ensure_future(app(a_scope(**scope), self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        self.received += 1
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


class Held:
    """An App that answers when it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.seen: list[Any] = []
        self.headers: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(current_request.get())
        if scope["path"] == "/hold":
            await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": b""})


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_call_over_the_limit_is_refused_without_reading_its_body() -> None:
    front = Front(Held(), Calls(1))
    first = Exchange(front, path="/hold")
    await settle()
    second = Exchange(front, path="/", request_id="r2")
    await second.task
    assert (second.status, second.headers[b"x-fal-nb-busy"], second.received) == (429, b"1", 0)
    front.app.go.set()  # type: ignore[attr-defined]
    await first.task
    assert first.status == 200
    assert len(front.calls) == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_reading_takes_no_slot(method: str) -> None:
    front = Front(Held(), Calls(0))
    seen = Exchange(front, method=method)
    await seen.task
    assert seen.status == 200


async def test_a_draining_runner_takes_no_calls() -> None:
    calls = Calls(1)
    calls.drain()
    refused = Exchange(Front(Held(), calls))
    await refused.task
    assert refused.status == 429


async def test_a_refused_call_that_waits_for_100_closes_its_connection() -> None:
    refused = Exchange(Front(Held(), Calls(0)), expect="100-continue")
    await refused.task
    assert refused.headers[b"connection"] == b"close"


async def test_headers_of_the_runtime_are_taken_from_an_apps_answer() -> None:
    app = Held()
    app.headers = [(b"X-Fal-NB-Busy", b"1"), (b"x-mine", b"1"), (b"x-fal-stop-runner", b"1")]
    answered = Exchange(Front(app, Calls(1)))
    await answered.task
    assert answered.sent[0]["headers"] == app.headers[1:]


async def test_a_cancelled_call_answers_499_and_frees_its_slot_then() -> None:
    calls = Calls(1)
    cancelled = Exchange(Front(Held(), calls), path="/hold")
    await settle()
    told: list[str] = []
    calls.cancel_by_id("r1", lambda: told.append("ended"))
    assert (calls.listing()[0]["state"], told) == ("cancelling", [])
    await cancelled.task
    assert (cancelled.status, told, len(calls)) == (499, ["ended"], 0)


async def test_cancelling_an_unknown_call_is_told_at_once() -> None:
    told: list[str] = []
    Calls(1).cancel_by_id("nobody", lambda: told.append("ended"))
    assert told == ["ended"]


async def test_a_foreign_cancellation_is_passed_on() -> None:
    held = Exchange(Front(Held(), Calls(1)), path="/hold")
    await settle()
    held.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held.task


async def test_the_apps_cancel_route_passes_the_full_gate() -> None:
    calls = Calls(1)
    front = Front(Held(), calls)
    held = Exchange(front, path="/hold")
    await settle()
    for request_id, status in (("r1", 200), ("other", 429)):
        asked = Exchange(front, path="/hold/cancel", request_id=request_id)
        await asked.task
        assert asked.status == status
    front.app.go.set()  # type: ignore[attr-defined]
    await held.task


async def test_a_call_whose_cancel_route_refuses_is_cancelled_by_the_runtime() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("/cancel"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
        else:
            await asyncio.Event().wait()

    calls = Calls(1)
    held = Exchange(Front(app, calls, cancel_paths=frozenset({"/hold/cancel"})), path="/hold")
    await settle()
    calls.cancel_by_id("r1", lambda: None)
    await held.task
    assert held.status == 499


async def test_the_context_of_a_call_is_read_from_its_headers() -> None:
    app = Held()
    preference = {"x_fal_object_lifecycle_preference": '{"expiration_duration_seconds": 5}'}
    await Exchange(Front(app, Calls(1)), x_fal_endpoint="me/app/b", **preference).task
    context = app.seen[0]
    assert (context.request_id, context.endpoint) == ("r1", "me/app/b")
    assert context.lifecycle_preference == {"expiration_duration_seconds": 5}
    assert context.headers["X-Fal-Endpoint"] == "me/app/b"
    assert set(context.headers) >= {"x-fal-request-id", "x-fal-endpoint"}
    assert "request_id='r1'" in repr(context)


@pytest.mark.parametrize("text", ["{}", "nonsense", "[1]", "null"])
async def test_a_preference_that_says_nothing_is_none(text: str) -> None:
    app = Held()
    await Exchange(Front(app, Calls(1)), x_fal_object_lifecycle_preference=text).task
    assert app.seen[0].lifecycle_preference is None


def test_a_call_knows_kind_and_attempt() -> None:
    scope = a_scope(x_fal_nb_call="stream", x_fal_nb_attempt="3")
    call = Call("r1", scope, lambda message: asyncio.sleep(0))
    assert (call.kind, call.attempt, call.state) == ("stream", 3, "running")
    plain = Call("r1", a_scope(x_fal_nb_attempt="many"), lambda message: asyncio.sleep(0))
    assert (plain.kind, plain.attempt) == ("sync", 1)
