from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fal_backend.api.auth import Auth
from fal_backend.api.edge import Edge, serve
from fal_backend.api.gateway import Gateway
from fal_backend.api.queue import QueueDoor
from fal_backend.api.queue_target import Ask, parse_queue_target
from fal_backend.api.readdress import readdress
from fal_backend.domain.records import Account, ApiKey
from fal_backend.domain.request import Refusal
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.queue_values import (
    Accepted,
    CancelOutcome,
    LogEntry,
    Phase,
    QueueSize,
    SavedBody,
    StatusView,
    StoredAnswer,
    Submission,
)
from fal_backend.services.routes import RouteInfo

from fal_notebook.wire import AuthMode

OWNER, STRANGER = {"Authorization": "Key fk_owner:secret"}, {"Authorization": "Key fk_stranger:secret"}
RID = "00000000-0000-4000-8000-000000000001"
UNKNOWN = "00000000-0000-4000-8000-00000000000f"


class FakeQueue:
    """A queue with one request, whose state the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.got: list[Submission] = []
        self.refusal: Refusal | None = None
        self.phase = Phase.IN_QUEUE
        self.caller: str | None = "acc-owner"
        self.stored = StoredAnswer(200, ((b"content-type", b"application/json"),), b'{"y":2}')
        self.views: asyncio.Queue[StatusView] = asyncio.Queue()
        self.followers = 0

    def view(self, phase: Phase, **more: Any) -> StatusView:
        return StatusView(RID, phase, self.caller, "acc-owner", **more)

    async def save_body(self, chunks: AsyncIterator[bytes], limit: int) -> SavedBody:
        data = b"".join([part async for part in chunks])
        (self.folder / "body").write_bytes(data)
        return SavedBody("body", len(data), hashlib.sha256(data).hexdigest())

    async def submit(self, submission: Submission) -> Accepted:
        if self.refusal is not None:
            raise self.refusal
        self.got.append(submission)
        return Accepted(RID, 3)

    def _known(self, request_id: str) -> None:
        if request_id != RID:
            raise Refusal(404, "Request not found")

    async def status(self, owner: str, alias: str, request_id: str, *, logs: bool = False) -> StatusView:
        self._known(request_id)
        lines = (LogEntry(1_700_000_000_000_000, "stdout", "hello"),) if logs else None
        if self.phase is Phase.IN_QUEUE:
            return self.view(self.phase, position=2)
        return self.view(self.phase, logs=lines, inference_s=1.5, runner="r1")

    async def follow(
        self, owner: str, alias: str, request_id: str, *, logs: bool = False
    ) -> AsyncIterator[StatusView]:
        self._known(request_id)
        self.followers += 1
        try:
            while True:
                view = await self.views.get()
                yield view
                if view.phase is Phase.COMPLETED:
                    return
        finally:
            self.followers -= 1

    async def answer(self, owner: str, alias: str, request_id: str) -> StoredAnswer:
        self._known(request_id)
        if self.phase is not Phase.COMPLETED:
            raise Refusal(400, "Request is still in progress")
        return replace(self.stored, caller=self.caller, account="acc-owner")

    async def cancel(self, owner: str, alias: str, request_id: str) -> CancelOutcome:
        return {
            Phase.IN_QUEUE: CancelOutcome.OK,
            Phase.IN_PROGRESS: CancelOutcome.CANCELLATION_REQUESTED,
            Phase.COMPLETED: CancelOutcome.ALREADY_COMPLETED,
        }[self.phase]

    async def caller_of(self, owner: str, alias: str, request_id: str) -> tuple[str, str | None]:
        self._known(request_id)
        return "acc-owner", self.caller

    def size(self, owner: str, alias: str) -> QueueSize:
        return QueueSize(0, 0, 0)


class Face:
    def __init__(self, folder: Path) -> None:
        self.queue = FakeQueue(folder)
        dispatch = Dispatch(lambda _: None, lambda _, __: None, lambda _: None)
        dispatch.set_route(RouteInfo("me", "app", "acc-owner", AuthMode.PRIVATE, "rev1"))
        dispatch.set_route(RouteInfo("me", "open", "acc-owner", AuthMode.PUBLIC, "rev2"))
        accounts = [Account(f"acc-{name}", name, 0) for name in ("owner", "stranger")]
        secret = hashlib.sha256(b"secret").hexdigest()
        auth = Auth(accounts, [ApiKey(f"fk_{a.nickname}", a.id, secret, "ADMIN", 0) for a in accounts])
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.tcp.getsockname()[1]}"
        self.door = QueueDoor(self.queue, dispatch, auth, url="http://far:1")
        self.edge = Edge(
            Gateway(dispatch, auth), None, None, queue=self.door, url=self.url, ready=lambda: True
        )
        self.client = httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20)

    async def ask(self, method: str, path: str, headers: Any = OWNER, **more: Any) -> httpx.Response:
        return await self.client.request(method, f"/queue/me{path}", headers=headers, **more)


@asynccontextmanager
async def face(folder: Path) -> AsyncIterator[Face]:
    made = Face(folder)
    server = asyncio.create_task(serve(made.edge, tcp=made.tcp, api=None, grace_s=1))
    await asyncio.sleep(0)
    try:
        async with made.client:
            yield made
    finally:
        server.cancel()
        with suppress(asyncio.CancelledError):
            await server


async def test_a_submission_is_accepted_with_addresses_of_the_callers_own_host(tmp_path: Path) -> None:
    async with face(tmp_path) as it:
        headers = OWNER | {
            "X-Fal-Queue-Priority": "low",
            "X-Fal-Request-Timeout": "2.5",
            "x-fal-no-retry": "true",
            "X-Fal-Store-IO": "0",
            "X-Fal-Runner-Hint": "h1",
            "Idempotency-Key": "k1",
            "Host": "localhost:99",
        }
        answer = await it.ask(
            "POST", "/app/sub/x?a=1&fal_webhook=https%3A%2F%2Fhook.example%2F&b=2", headers, json={"x": 1}
        )
    base = "http://localhost:99/queue/me/app/requests/" + RID
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "status": "IN_QUEUE",
            "request_id": RID,
            "queue_position": 3,
            "response_url": base,
            "status_url": base + "/status",
            "cancel_url": base + "/cancel",
            "gateway_request_id": RID,
        },
    )
    assert answer.headers["x-fal-request-id"] == RID
    assert answer.headers["x-fal-revision"] == "rev1"
    (got,) = it.queue.got
    assert (got.path, got.query, got.webhook) == ("/sub/x", "?a=1&b=2", "https://hook.example/")
    assert (got.is_low, got.start_timeout_s, got.no_retry, got.store_io) == (True, 2.5, True, False)
    assert (got.hint, got.idempotency_key, got.caller, got.method) == ("h1", "k1", "acc-owner", "POST")
    assert json.loads(got.body) == {"x": 1}  # type: ignore[arg-type]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_large_body_goes_to_the_disk(tmp_path: Path, is_chunked: bool) -> None:
    data = bytes(range(256)) * 4096

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    async with face(tmp_path) as it:
        answer = await it.ask("POST", "/app", content=parts() if is_chunked else data)
    assert answer.status_code == 200
    assert isinstance(it.queue.got[0].body, SavedBody)
    assert (tmp_path / "body").read_bytes() == data


async def test_a_small_body_of_unknown_length_is_kept_in_hand(tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b'{"x":'
        yield b"1}"

    async with face(tmp_path) as it:
        await it.ask("POST", "/app", content=parts())
    assert it.queue.got[0].body == b'{"x":1}'


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/app", {}, 401),
        ("/app", {"Authorization": "Key fk_owner:wrong"}, 401),
        ("/app", STRANGER, 403),
        ("/none", OWNER, 404),
        ("/open", {}, 200),
        ("/open", {"Authorization": "Key of:another"}, 200),
        ("/app", OWNER | {"X-Fal-Request-Timeout": "0.1"}, 400),
        ("/app", OWNER | {"X-Fal-Request-Timeout": "inf"}, 400),
        ("/app", OWNER | {"X-Fal-Request-Timeout": "soon"}, 400),
        ("/app/%2e%2e/x", OWNER, 400),
    ],
)
async def test_who_may_submit_what(tmp_path: Path, path: str, headers: Any, status: int) -> None:
    async with face(tmp_path) as it:
        answer = await it.ask("POST", path, headers, content=b"{}")
    assert answer.status_code == status
    assert len(answer.headers["x-fal-request-id"]) == 36
    assert len(it.queue.got) == (status == 200)
    assert status == 200 or answer.json()["detail"]


async def test_a_refusal_of_the_queue_keeps_its_headers(tmp_path: Path) -> None:
    async with face(tmp_path) as it:
        it.queue.refusal = Refusal(429, "Too many wait", "queue_full", ((b"retry-after", b"5"),))
        answer = await it.ask("POST", "/app", content=b"{}")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    assert answer.headers["x-fal-error-type"] == answer.json()["error_type"] == "queue_full"


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("logs", ["true", "1", "false", "0", None])
async def test_status_says_by_its_code_whether_it_is_done(
    tmp_path: Path, slash: str, logs: str | None
) -> None:
    path = f"/app/requests/{RID}/status{slash}" + (f"?logs={logs}" if logs else "")
    async with face(tmp_path) as it:
        queued = await it.ask("GET", path)
        it.queue.phase = Phase.IN_PROGRESS
        running = await it.ask("GET", path)
        it.queue.phase = Phase.COMPLETED
        done = await it.ask("GET", path)
    assert [a.status_code for a in (queued, running, done)] == [202, 202, 200]
    assert queued.json()["queue_position"] == 2
    line = {
        "message": "hello",
        "level": "STDOUT",
        "source": "USER",
        "timestamp": "2023-11-14T22:13:20+00:00",
    }
    assert running.json()["logs"] == ([line] if logs in ("true", "1") else None)
    assert done.json()["metrics"] == {"inference_time": 1.5}
    assert done.headers["x-fal-request-id"] == RID
    assert done.json()["response_url"] == f"{it.url}/queue/me/app/requests/{RID}"


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_result_is_the_apps_own_answer(tmp_path: Path, slash: str) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * 3_000_000)
    async with face(tmp_path) as it:
        path = f"/app/requests/{RID}{slash}"
        early = await it.ask("GET", path)
        it.queue.phase = Phase.COMPLETED
        whole = await it.ask("GET", path)
        it.queue.stored = StoredAnswer(422, ((b"x-mine", b"1"),), large, error_type="t")
        other = await it.ask("GET", path)
    assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
    assert (whole.status_code, whole.content) == (200, b'{"y":2}')
    assert other.status_code == 422
    assert (other.headers["x-mine"], other.headers["x-fal-error-type"]) == ("1", "t")
    assert other.content == large.read_bytes()
    assert {a.headers["x-fal-request-id"] for a in (early, whole, other)} == {RID}


@pytest.mark.parametrize("slash", ["", "/"])
async def test_cancel_says_what_became_of_it(tmp_path: Path, slash: str) -> None:
    said = []
    async with face(tmp_path) as it:
        for it.queue.phase in (Phase.IN_QUEUE, Phase.IN_PROGRESS, Phase.COMPLETED):
            answer = await it.ask("PUT", f"/app/requests/{RID}/cancel{slash}")
            said.append((answer.status_code, answer.json()["status"]))
        answer = await it.ask("PUT", f"/app/requests/{UNKNOWN}/cancel{slash}")
        said.append((answer.status_code, answer.json()["status"]))
    assert said == [
        (200, "OK"),
        (202, "CANCELLATION_REQUESTED"),
        (400, "ALREADY_COMPLETED"),
        (404, "NOT_FOUND"),
    ]


@pytest.mark.parametrize("action", ["", "/status", "/status/stream", "/cancel"])
async def test_only_the_submitter_and_the_owner_may_ask(tmp_path: Path, action: str) -> None:
    method = "PUT" if action == "/cancel" else "GET"
    said = {}
    async with face(tmp_path) as it:
        it.queue.phase = Phase.COMPLETED
        for alias in ("app", "open"):
            for who, headers in {"nobody": {}, "owner": OWNER, "stranger": STRANGER}.items():
                for submitter in ("acc-owner", "acc-stranger", None):
                    it.queue.caller = submitter
                    it.queue.views = asyncio.Queue()
                    it.queue.views.put_nowait(it.queue.view(Phase.COMPLETED))
                    answer = await it.ask(method, f"/{alias}/requests/{RID}{action}", headers)
                    said[alias, who, submitter] = answer.status_code
    good = 400 if action == "/cancel" else 200
    for alias in ("app", "open"):
        assert {said[alias, "owner", s] for s in ("acc-owner", "acc-stranger", None)} == {good}
        assert said[alias, "stranger", "acc-owner"] == 403
        assert said[alias, "stranger", "acc-stranger"] == good
        assert said[alias, "nobody", "acc-owner"] == 401
    assert said["open", "nobody", None] == said["open", "stranger", None] == good
    assert said["app", "nobody", None] == 401
    assert said["app", "stranger", None] == 403, "what nobody submitted is for those who may call"


async def test_the_status_stream_tells_changes_and_ends(tmp_path: Path) -> None:
    async with face(tmp_path) as it:
        put = it.queue.views.put_nowait
        put(it.queue.view(Phase.IN_QUEUE, position=0))
        events = []
        async with it.client.stream(
            "GET", f"/queue/me/app/requests/{RID}/status/stream?logs=1", headers=OWNER
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-fal-request-id"] == RID
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    assert not line or line.startswith(":")
                    continue
                events.append(json.loads(line[6:]))
                if len(events) == 1:
                    put(it.queue.view(Phase.IN_PROGRESS, logs=(LogEntry(0, "stderr", "a"),)))
                if len(events) == 2:
                    put(it.queue.view(Phase.COMPLETED, logs=()))
    assert [event["status"] for event in events] == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert [log["level"] for log in events[1]["logs"]] == ["STDERR"]
    assert it.queue.followers == 0


async def test_a_silent_stream_is_pinged_and_ends_with_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_backend.api.queue.PING_S", 0.05)
    async with face(tmp_path) as it:
        it.queue.views.put_nowait(it.queue.view(Phase.IN_QUEUE, position=0))
        async with it.client.stream(
            "GET", f"/queue/me/app/requests/{RID}/status/stream", headers=OWNER
        ) as answer:
            async for line in answer.aiter_lines():
                if line.startswith(": ping"):
                    break
            assert it.queue.followers == 1
        async with asyncio.timeout(10):
            while it.queue.followers:
                await asyncio.sleep(0.01)


async def test_streams_end_when_the_backend_stops(tmp_path: Path) -> None:
    async with face(tmp_path) as it:
        it.queue.views.put_nowait(it.queue.view(Phase.IN_QUEUE, position=0))
        path = f"/queue/me/app/requests/{RID}/status/stream"
        async with it.client.stream("GET", path, headers=OWNER) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            it.door.end()
            with pytest.raises(httpx.HTTPError):
                _ = [line async for line in lines]
        assert it.queue.followers == 0


@pytest.mark.parametrize("action", ["", "/status", "/status/stream"])
async def test_an_unknown_request_is_404(tmp_path: Path, action: str) -> None:
    async with face(tmp_path) as it:
        answer = await it.ask("GET", f"/app/requests/{UNKNOWN}{action}")
    assert (answer.status_code, answer.headers["x-fal-request-id"]) == (404, UNKNOWN)


async def test_a_wrong_method_is_told_the_right_ones(tmp_path: Path) -> None:
    async with face(tmp_path) as it:
        answer = await it.ask("DELETE", f"/app/requests/{RID}/status")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_the_proxy_address_of_the_javascript_client_is_served(tmp_path: Path) -> None:
    async with face(tmp_path) as it:
        target = {"x-fal-target-url": "https://queue.fal.run/me/app/sub?fal_webhook=x"}
        good = await it.client.post("/api/fal/proxy", headers=OWNER | target, content=b"{}")
        status = {"x-fal-target-url": f"https://queue.fal.run/me/app/requests/{RID}/status?logs=0"}
        asked = await it.client.get("/api/fal/proxy", headers=OWNER | status)
    assert (good.status_code, it.queue.got[0].path) == (200, "/sub")
    assert (asked.status_code, asked.json()["status"]) == (202, "IN_QUEUE")


@pytest.mark.parametrize(
    ("address", "here"),
    [
        (b"https://fal.run/me/app/x?a=1", b"/run/me/app/x?a=1"),
        (b"https://queue.fal.run/me/app", b"/queue/me/app"),
        (b"https://rest.fal.ai/storage/upload/initiate?x=1", b"/rest/storage/upload/initiate?x=1"),
        (b"https://v3.fal.media/files/upload", b"/files/upload"),
        (b"http://fal.run/me/app", None),
        (b"https://evil.example/me/app", None),
        (b"https://fal.run@evil.example/me", None),
        (b"https://fal.run:444/me", None),
        (b"https://fal.run", None),
        (b"https://fal.run/a b HTTP/1.1", None),
        (b"https://fal.run/\xff", None),
    ],
)
def test_only_fals_own_addresses_are_readdressed(address: bytes, here: bytes | None) -> None:
    assert readdress(address) == here


@pytest.mark.parametrize(
    ("path", "method", "ask", "app_path"),
    [
        (b"/queue/me/app", b"POST", Ask.SUBMIT, "/"),
        (b"/queue/me/app/", b"GET", Ask.SUBMIT, "/"),
        (b"/queue/me/app/a/b/", b"PUT", Ask.SUBMIT, "/a/b/"),
        (b"/queue/me/app/requests", b"POST", Ask.SUBMIT, "/requests"),
        (b"/queue/me/app/requests/x/other", b"POST", Ask.SUBMIT, "/requests/x/other"),
        (b"/queue/me/app/requests/x", b"GET", Ask.RESULT, "/"),
        (b"/queue/me/app/requests/x/status/", b"GET", Ask.STATUS, "/"),
        (b"/queue/me/app/requests/x/status/stream/", b"GET", Ask.FOLLOW, "/"),
        (b"/queue/me/app/requests/x/cancel", b"PUT", Ask.CANCEL, "/"),
    ],
)
def test_addresses(path: bytes, method: bytes, ask: Ask, app_path: str) -> None:
    target = parse_queue_target(path, method)
    assert (target.ask, target.path, target.key) == (ask, app_path, b"me/app")


@pytest.mark.parametrize("path", [b"/queue/", b"/queue/me", b"/queue/me/", b"/queue//app"])
def test_an_address_without_an_app_is_404(path: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_queue_target(path, b"POST")
    assert refused.value.status == 404
