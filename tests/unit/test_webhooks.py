"""Webhooks: what is sent and signed, when it is tried again, whose turn it is."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fal_backend.adapters.tls import LocalAuthority
from fal_backend.adapters.webhook_keys import KEEP_S, LIFE_S, NOTICE_S, load_webhook_keys
from fal_backend.adapters.webhook_post import WebhookPost
from fal_backend.domain.records import Request, Webhook, WebhookState
from fal_backend.domain.webhook import (
    REPEATS,
    Tried,
    hook_body,
    hook_of,
    hook_step,
    redelivered,
    repeat_pause_us,
    signed_text,
)
from fal_backend.domain.webhook_guard import Allowed
from fal_backend.services.webhook_turns import Turns

from fal_notebook.errors import BackendError

DONE = Request(
    id=7,
    request_id="id-7",
    account="a",
    app="me/sketch",
    method="POST",
    path="/",
    headers_json="[]",
    lane="normal",
    state="done",
    submitted_at=1,
    webhook="https://hook.example/",
    status_code=200,
    ended_at=1_000_000,
)
TWO_HOURS_US = 2 * 3600 * 1_000_000


def row() -> Webhook:
    made = hook_of(DONE)
    assert made is not None
    return made


# What is sent


def test_a_result_is_sent_as_its_app_wrote_it() -> None:
    body = hook_body(DONE, b'{"b":1.10,"a":1e400}')
    assert body.endswith(b'"payload": {"b":1.10,"a":1e400}}')
    assert json.loads(body)["status"] == "OK"
    assert json.loads(body)["request_id"] == json.loads(body)["gateway_request_id"] == "id-7"


def test_a_refusal_of_the_app_is_an_error_with_its_words() -> None:
    said = json.loads(hook_body(replace(DONE, status_code=422), b'{"detail":[{"loc":["x"]}]}'))
    assert said["status"] == "ERROR"
    assert said["error"] == "Invalid status code: 422"
    assert said["payload"] == {"detail": [{"loc": ["x"]}]}


@pytest.mark.parametrize("answer", [b"\xff\xd8", b"", b'{"x":NaN}', "{}".encode("utf-16"), b"[" * 200_000])
def test_what_is_not_json_is_said_not_to_be_sent(answer: bytes) -> None:
    said = json.loads(hook_body(DONE, answer))
    assert said["payload"] is None
    assert said["payload_error"]


# When


def test_ten_repeats_lie_within_two_hours_and_then_it_is_dead() -> None:
    for chance in (0.0, 0.5, 1.0):
        hook, now, tries = row(), 1_000_000, 0
        while hook.due_at is not None:
            now = hook.due_at + 15_000_000
            tries += 1
            hook = hook_step(hook, Tried(error="no answer"), now, chance)
        assert tries == 1 + REPEATS
        assert hook.state == WebhookState.DEAD
        assert now - 1_000_000 <= TWO_HOURS_US
        assert now - 1_000_000 >= TWO_HOURS_US * 0.75


def test_pauses_grow_and_are_jittered() -> None:
    pauses = [repeat_pause_us(one, 0.5) for one in range(1, REPEATS + 1)]
    assert pauses == sorted(pauses)
    assert repeat_pause_us(3, 0.0) < repeat_pause_us(3, 1.0)


def test_any_2xx_is_a_delivery_and_nothing_else_is() -> None:
    for status in (200, 202, 204, 299):
        assert hook_step(row(), Tried(status), 2, 0.5).state == WebhookState.DELIVERED
    for status in (301, 302, 307, 400, 404, 410, 429, 500):
        after = hook_step(row(), Tried(status), 2, 0.5)
        assert (after.state, after.status_code) == (WebhookState.PENDING, status)
        assert after.error == f"The receiver answered {status}"


def test_an_address_that_may_not_be_reached_is_dead_at_once_and_can_be_asked_for_again() -> None:
    dead = hook_step(row(), Tried(error="refused", is_final=True), 2, 0.5)
    assert (dead.state, dead.due_at, dead.ended_at) == (WebhookState.DEAD, None, 2)
    again = redelivered(dead, 3)
    assert (again.state, again.due_at, again.attempts, again.ended_at) == (WebhookState.PENDING, 3, 0, None)


# Who signs


def verified(keys: dict[str, Any], body: bytes, headers: dict[str, str]) -> bool:
    """Judge a delivery as fal's documentation tells receivers to."""
    text = signed_text(headers["id"], headers["user"], headers["timestamp"], body)
    for key in keys["keys"]:
        x = key["x"]
        public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4)))
        try:
            public.verify(bytes.fromhex(headers["signature"]), text)
        except InvalidSignature:
            continue
        return True
    return False


def test_a_receiver_verifies_by_the_published_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "webhooks.json"
    keys = load_webhook_keys(path)
    headers = {"id": "id-7", "user": "local", "timestamp": "1"}
    body = b'{"x":1}'
    headers["signature"] = keys.sign(signed_text("id-7", "local", "1", body), time.time()).hex()
    published = load_webhook_keys(path).published()
    assert all(key["kty"] == "OKP" and key["crv"] == "Ed25519" for key in published["keys"])
    assert verified(published, body, headers)
    assert not verified(published, body + b" ", headers)
    assert not verified(published, body, headers | {"user": "other"})
    assert not verified(published, body, headers | {"timestamp": "2"})
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_is_published_before_it_signs_and_after(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.json"

    def at(now: float) -> tuple[list[str], str]:
        keys = load_webhook_keys(path, now=now)
        signature = keys.sign(b"x", now)
        published = keys.published()["keys"]
        signer = [key["kid"] for key in published if verified_by(key, signature)]
        return [key["kid"] for key in published], signer[0]

    ids, first = at(1_000_000)
    assert ids[0] == first
    assert len(ids) == 2
    later, second = at(1_000_000 + LIFE_S + 1)
    assert second == ids[1]
    assert later[:2] == ids
    after, third = at(1_000_000 + LIFE_S + KEEP_S + 2)
    assert first not in after
    assert third == second
    # Years without a start: the next key still gets its notice.
    newest, signer = at(1_000_000 + 10 * LIFE_S)
    assert signer in after
    assert len(newest) >= 2
    assert NOTICE_S > 24 * 3600


def test_keys_are_renewed_without_a_restart_and_a_restart_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.json"
    keys = load_webhook_keys(path, now=1_000_000)
    first = keys.published()
    keys.renew(1_000_000 + LIFE_S - 1)
    assert keys.published() == first
    keys.renew(1_000_000 + LIFE_S + 1)
    ids = [key["kid"] for key in keys.published()["keys"]]
    assert ids[:2] == [key["kid"] for key in first["keys"]]
    assert len(ids) == 3, "the next one is published before it signs"
    assert load_webhook_keys(path, now=1_000_000 + LIFE_S + 2).published() == keys.published()
    signature = keys.sign(b"x", 1_000_000 + LIFE_S + 3)
    assert verified_by(keys.published()["keys"][1], signature)


def verified_by(key: dict[str, str], signature: bytes) -> bool:
    x = key["x"]
    try:
        Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x + "=" * (-len(x) % 4))).verify(
            signature, b"x"
        )
    except InvalidSignature:
        return False
    return True


def test_a_key_file_that_others_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "webhooks.json"
    load_webhook_keys(path)
    path.chmod(0o640)
    with pytest.raises(BackendError) as refused:
        load_webhook_keys(path)
    assert refused.value.code == "backend.keys_exposed"


# Where to


@asynccontextmanager
async def receiver(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            # The sender has heard enough.
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


LOCAL = Allowed.parse(["127.0.0.1"])


async def test_a_delivery_is_one_plain_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        seen.append(await reader.readexactly(4))
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:1")
    async with receiver(answer) as port:
        tried = await WebhookPost(LOCAL).post(f"http://127.0.0.1:{port}/a?b=c", {"X-One": "1"}, b"{  }")
    assert tried == Tried(204)
    lines = seen[0].decode().split("\r\n")
    assert lines[0] == "POST /a?b=c HTTP/1.1"
    assert {f"Host: 127.0.0.1:{port}", "X-One: 1", "Content-Length: 4"} <= set(lines)
    assert seen[1] == b"{  }"


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    calls: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls.append(await reader.readline())
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")

    async with receiver(answer) as port:
        tried = await WebhookPost(LOCAL).post(f"http://127.0.0.1:{port}/", {}, b"{}")
    assert tried == Tried(302)
    assert len(calls) == 1


async def test_an_endless_answer_is_cut_after_its_head() -> None:
    cut = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        finally:
            cut.set()

    async with receiver(answer) as port:
        tried = await WebhookPost(LOCAL).post(f"http://127.0.0.1:{port}/", {}, b"{}")
        await asyncio.wait_for(cut.wait(), 10)
    assert tried == Tried(200)


@pytest.mark.parametrize(
    "said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 100 x\r\n" + b"a: b\r\n" * 9000, b"x" * 99999]
)
async def test_what_is_not_http_is_a_failure(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await writer.drain()

    async with receiver(answer) as port:
        tried = await WebhookPost(LOCAL, timeout_s=5).post(f"http://127.0.0.1:{port}/", {}, b"{}")
    assert tried.status is None
    assert tried.error
    assert not tried.is_final


async def test_a_receiver_that_says_nothing_is_left_after_the_timeout() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with receiver(answer) as port:
        tried = await WebhookPost(LOCAL, timeout_s=0.2).post(f"http://127.0.0.1:{port}/", {}, b"{}")
    assert tried == Tried(error="There was no answer within 0.2 s")


async def test_a_name_server_that_says_nothing_holds_up_one_delivery_only() -> None:
    over = threading.Event()

    def hang(host: str, port: int) -> Sequence[str]:
        over.wait()
        return []

    tried = await WebhookPost(Allowed(), resolve=hang, timeout_s=0.1).post("https://hook.example/", {}, b"{}")
    over.set()
    assert tried.error is not None
    assert "no answer" in tried.error


async def test_a_name_is_resolved_once_and_its_second_answer_is_never_used() -> None:
    """A name server that says a harmless address first and a harmful one next gets nothing of it."""
    asked: list[str] = []

    def rebind(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    allowed = Allowed.parse(["127.0.0.0/8", "hook.example"])
    strict = Allowed.parse(["127.0.0.0/8"])
    async with receiver(answer) as port:
        post = WebhookPost(allowed, resolve=rebind)
        assert await post.post(f"http://hook.example:{port}/", {}, b"{}") == Tried(200)
        assert asked == ["hook.example"]
        assert f"Host: hook.example:{port}".encode() in seen[0]
    second = await WebhookPost(strict, resolve=rebind).post("http://hook.example/", {}, b"{}")
    assert second.is_final
    assert "169.254.169.254" in str(second.error)


@pytest.mark.parametrize(("name", "is_theirs"), [("hooks.internal", True), ("other.internal", False)])
async def test_a_certificate_is_judged_by_the_name_not_by_the_address(
    tmp_path: Path, name: str, is_theirs: bool
) -> None:
    authority = LocalAuthority(tmp_path / "tls", {"hooks.internal"})
    served = authority.context()
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    trusted = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem"))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=served)
    port = server.sockets[0].getsockname()[1]
    post = WebhookPost(Allowed.parse([name]), resolve=lambda host, port: ["127.0.0.1"], tls=trusted)
    tried = await post.post(f"https://{name}:{port}/", {}, b"{}")
    server.close()
    assert (tried.status == 200, len(seen)) == (is_theirs, int(is_theirs))
    assert is_theirs or "certificate" in str(tried.error).lower()


# Whose turn


class Begun:
    def __init__(self, **limits: int) -> None:
        self.ids: list[str] = []
        self.turns = Turns(lambda id, host: self.ids.append(id), **limits)


async def test_hosts_take_turns_and_a_slow_one_holds_up_only_itself() -> None:
    begun = Begun(at_once=4, for_each_host=2)
    for number in range(100):
        begun.turns.add(f"slow-{number}", "slow", 0)
    begun.turns.add("quick-0", "quick", 1)
    begun.turns.add("other-0", "other", 2)
    assert begun.ids == []
    begun.turns.open()
    assert sorted(begun.ids) == ["other-0", "quick-0", "slow-0", "slow-1"]
    begun.turns.end("quick-0", "quick", None)
    assert len(begun.ids) == 4
    begun.turns.add("quick-1", "quick", 0)
    assert begun.ids[-1] == "quick-1"
    begun.turns.end("slow-0", "slow", None)
    assert begun.ids[-1] == "slow-10"  # of the same moment, the first by name
    begun.turns.close()


async def test_what_is_due_later_is_rung_by_the_timer() -> None:
    begun = Begun()
    begun.turns.open()
    begun.turns.add("soon", "h", time.time_ns() // 1000 + 50_000)
    begun.turns.add("late", "h", time.time_ns() // 1000 + 3_600_000_000)
    assert begun.ids == []
    async with asyncio.timeout(10):
        while not begun.ids:
            await asyncio.sleep(0.01)
    assert begun.ids == ["soon"]
    assert len(begun.turns) == 2
    begun.turns.close()


async def test_what_is_asked_for_again_while_under_way_is_made_again_behind_it() -> None:
    begun = Begun()
    begun.turns.open()
    begun.turns.add("one", "h", 0)
    begun.turns.add("one", "h", 0)
    assert begun.ids == ["one"]
    begun.turns.end("one", "h", None)
    assert begun.ids == ["one", "one"]
    begun.turns.end("one", "h", None)
    assert len(begun.turns) == 0
    begun.turns.close()
