"""Webhooks of a real backend, which is killed on the way, at receivers that fail, hang and mislead."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel

from fal_notebook.app import App, endpoint
from tests.flow.backend_kit import Backend, running_backend, wait_for
from tests.stack import CALLER


class Job(BaseModel):
    size: int = 1


class Hooked(App):
    keep_alive = 300

    @endpoint("/")
    def work(self, job: Job) -> dict[str, str]:
        return {"text": "x" * job.size}


def hold(release: threading.Event) -> None:
    """Let a receiver wait."""
    release.wait(30)


@dataclass
class Receiver:
    """Answers as told; keeps what it was sent."""

    port: int = 0
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """Statuses of the next answers, then 200."""
    location: str = ""
    on_call: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.seen]


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.seen.append(({name.lower(): value for name, value in self.headers.items()}, body))
            receiver.on_call()
            self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
            if receiver.location:
                self.send_header("location", receiver.location)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running_backend("--webhook-allow", "127.0.0.1", "--webhook-allow", "localhost") as made:
        made.deploy(Hooked)
        yield made


def submit(backend: Backend, webhook: str, body: Any = None) -> httpx.Response:
    url = f"{backend.record['url']}/queue/{backend.owner}/hooked"
    return CALLER.post(
        url, params={"fal_webhook": webhook}, json=body or {}, headers=backend.headers, timeout=30
    )


def accepted(backend: Backend, webhook: str, body: Any = None) -> str:
    answer = submit(backend, webhook, body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["request_id"])


def hook(backend: Backend, request_id: str) -> dict[str, Any]:
    try:
        found = backend.get("/webhooks", app="hooked")["webhooks"]
    except httpx.TransportError:
        return {}
    return next((one for one in found if one["request_id"] == request_id), {})


def state(backend: Backend, request_id: str) -> str:
    return str(hook(backend, request_id).get("state"))


def is_ours(backend: Backend, headers: dict[str, str], body: bytes) -> bool:
    """Verify a delivery as fal's documentation tells receivers to; raises where it is not ours."""
    keys = CALLER.get(f"{backend.record['url']}/rest/.well-known/jwks.json", timeout=30).json()["keys"]
    names = ("request-id", "user-id", "timestamp")
    words = [headers[f"x-fal-webhook-{name}"] for name in names]
    text = "\n".join([*words, hashlib.sha256(body).hexdigest()]).encode()
    x = keys[0]["x"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4)))
    public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), text)
    return True


def test_a_result_is_delivered_signed(backend: Backend) -> None:
    with receiving() as receiver:
        request_id = accepted(backend, receiver.url)
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        ((headers, body),) = receiver.seen
        assert json.loads(body) == {
            "request_id": request_id,
            "gateway_request_id": request_id,
            "status": "OK",
            "payload": {"text": "x"},
        }
        assert is_ours(backend, headers, body)


def test_a_failed_request_and_a_large_result_are_delivered_too(backend: Backend) -> None:
    with receiving() as receiver:
        wrong = accepted(backend, receiver.url, {"size": "many"})
        wait_for("the first delivery", lambda: state(backend, wrong) == "delivered")
        large = accepted(backend, receiver.url, {"size": 200_000})
        wait_for("the second delivery", lambda: state(backend, large) == "delivered")
        first, second = receiver.said()
    assert (first["status"], first["error"]) == ("ERROR", "Invalid status code: 422")
    assert first["payload"]["detail"][0]["loc"] == ["body", "size"]
    assert len(second["payload"]["text"]) == 200_000


def test_a_receiver_that_fails_twice_is_tried_again(backend: Backend) -> None:
    with receiving() as receiver:
        receiver.answers = [500, 500]
        request_id = accepted(backend, receiver.url)
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        assert len(receiver.seen) == 3
        found = hook(backend, request_id)
    assert (found["attempts"], found["status_code"], found["error"]) == (3, 200, None)


def test_a_backend_killed_while_it_delivers_delivers_again(backend: Backend) -> None:
    with receiving() as receiver:
        release = threading.Event()
        receiver.on_call = partial(hold, release)
        request_id = accepted(backend, receiver.url)
        wait_for("the delivery to begin", lambda: receiver.seen)
        old = backend.record["backend_pid"]
        backend.kill_backend()
        receiver.on_call = lambda: None
        release.set()
        wait_for(
            "the next backend", lambda: backend.record["backend_pid"] not in (0, old) and backend.is_ready()
        )
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        assert [one["request_id"] for one in receiver.said()] == [request_id] * 2


def test_a_backend_killed_between_two_tries_goes_on_with_the_next(backend: Backend) -> None:
    with receiving() as receiver:
        receiver.answers = [503, 503]
        request_id = accepted(backend, receiver.url)
        wait_for("the first try", lambda: hook(backend, request_id).get("attempts"))
        backend.kill_backend()
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        assert hook(backend, request_id)["attempts"] == 3


def test_a_redirect_is_not_followed(backend: Backend) -> None:
    with receiving() as elsewhere, receiving() as receiver:
        receiver.answers, receiver.location = [307, 302], elsewhere.url
        request_id = accepted(backend, receiver.url)
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        assert len(receiver.seen) == 3
        assert not elsewhere.seen


def test_a_delivered_webhook_is_delivered_again_when_asked_for(backend: Backend) -> None:
    with receiving() as receiver:
        request_id = accepted(backend, receiver.url)
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        answer = backend.api("POST", f"/webhooks/{request_id}/redeliver")
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        wait_for("the second delivery", lambda: len(receiver.seen) == 2)
        wait_for("its end", lambda: state(backend, request_id) == "delivered")
    assert backend.api("POST", "/webhooks/none/redeliver").status_code == 404
    assert backend.api("GET", "/webhooks", params={"state": "lost"}).status_code in (400, 422)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://router/",
        "file:///etc/passwd",
        "http://[::1]/",
        "x",
    ],
)
def test_an_address_that_leads_into_the_house_is_refused_at_submit(backend: Backend, url: str) -> None:
    answer = submit(backend, url)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("The webhook's address is refused: ")


def test_a_host_that_hangs_holds_up_no_other(backend: Backend) -> None:
    with receiving() as slow, receiving() as quick:
        release = threading.Event()
        slow.on_call = partial(hold, release)
        hung = [accepted(backend, slow.url) for _ in range(6)]
        wait_for("the slow ones to begin", lambda: len(slow.seen) == 4)
        other = quick.url.replace("127.0.0.1", "localhost")
        request_id = accepted(backend, other)
        wait_for("the quick one", lambda: state(backend, request_id) == "delivered")
        assert quick.seen[0][0]["host"] == f"localhost:{quick.port}"
        assert len(slow.seen) == 4
        release.set()
        wait_for("the slow ones", lambda: {state(backend, one) for one in hung} == {"delivered"})


def test_an_answer_that_is_not_to_be_kept_is_delivered_and_then_dropped(backend: Backend) -> None:
    with receiving() as receiver:
        url = f"{backend.record['url']}/queue/{backend.owner}/hooked"
        headers = backend.headers | {"x-fal-store-io": "0"}
        params = {"fal_webhook": receiver.url}
        answer = CALLER.post(url, params=params, json={}, headers=headers, timeout=30)
        request_id = answer.json()["request_id"]
        wait_for("the delivery", lambda: state(backend, request_id) == "delivered")
        assert receiver.said()[0]["payload"] == {"text": "x"}
        kept = CALLER.get(f"{url}/requests/{request_id}", headers=backend.headers, timeout=30)
        assert kept.status_code == 404
