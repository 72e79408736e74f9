"""Calls through the gateway to a runner in a process of its own: what arrives there, and what comes back."""

from __future__ import annotations

import asyncio
import hashlib
import os
from dataclasses import replace

import pytest
from fal_backend.domain.records import ApiKey
from fal_backend.services.routes import RouteInfo

from fal_notebook.wire import AuthMode
from tests.flow.gateway_rig import OWNER, STRANGER, body_of, eventually, on_uvloop, rig


@on_uvloop
async def test_a_call_reaches_the_app_as_it_was_sent_and_comes_back_with_our_headers() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call(
            "POST", "/run/me/app/sub/path?a=1&b=%20", json={"x": 1}, headers={"x-mine": "yes"}
        )
        seen = answer.json()
        assert answer.status_code == 200
        assert (seen["method"], seen["path"], seen["query"], seen["size"]) == (
            "POST",
            "/sub/path",
            "a=1&b=%20",
            7,
        )
        headers = dict(seen["headers"])
        assert headers["x-mine"] == "yes"
        assert headers["x-fal-endpoint"] == "me/app/sub/path"
        assert headers["x-fal-request-id"] == answer.headers["x-fal-request-id"]
        assert headers["x-fal-object-lifecycle-preference"] == "{}"
        assert answer.headers["x-fal-revision"] == "rev1"
        assert answer.headers["x-fal-runner-id"] == "r-1"


@on_uvloop
async def test_keys_cookies_and_our_own_headers_do_not_reach_the_app() -> None:
    async with rig() as house:
        house.route(auth=AuthMode.PRIVATE)
        await house.runner()
        given = {
            "authorization": OWNER,
            "cookie": "a=b",
            "x-fal-nb-call": "queue",
            "x-fal-request-id": "mine",
        }
        given |= {"connection": "keep-alive, x-hop", "x-hop": "1"}
        answer = await house.call("GET", "/run/me/app", headers=given)
        headers = dict(answer.json()["headers"])
        assert not {"authorization", "cookie", "x-hop", "connection"} & set(headers)
        assert headers["x-fal-nb-call"] == "sync"
        assert headers["x-fal-request-id"] != "mine"


@on_uvloop
async def test_any_answer_but_503_is_returned_unchanged_and_keeps_the_runner() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        for status in (200, 201, 204, 304, 400, 404, 422, 429, 500, 501, 502, 504, 507):
            for _ in range(2):
                answer = await house.call("POST", f"/run/me/app/status/{status}?x-other=kept", content=b"{}")
                assert answer.status_code == status
                assert answer.headers["x-other"] == "kept"
        await eventually("no call in flight", lambda: house.load.running == 0)
        assert house.verdicts == []


@on_uvloop
async def test_an_answer_503_is_returned_and_ends_the_runner() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("POST", "/run/me/app/status/503", content=b"{}")
        assert (answer.status_code, answer.json()) == (503, {"detail": "status 503"})
        await eventually("the verdict", lambda: house.verdicts == [("r-1", "answer_503")])


@on_uvloop
async def test_the_app_may_decide_about_its_runner_and_the_caller_does_not_see_it() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        kept = await house.call("POST", "/run/me/app/status/503?x-fal-stop-runner=false&x-fal-needs-retry=0")
        assert kept.status_code == 503
        assert not {"x-fal-stop-runner", "x-fal-needs-retry"} & set(kept.headers)
        await eventually("no call in flight", lambda: house.load.running == 0)
        assert house.verdicts == []
        await house.call("POST", "/run/me/app/status/200?x-fal-stop-runner=true")
        await eventually("the verdict", lambda: house.verdicts == [("r-1", "stop_requested")])


@on_uvloop
async def test_a_hint_leads_to_the_runner_that_said_it_in_an_answer() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        told = await house.call("POST", "/run/me/app/status/200?x-fal-runner-hints=sdxl,%20lora")
        assert told.headers["x-fal-runner-hints"] == "sdxl, lora"
        await house.runner()

        async def runner(**headers: str) -> str:
            answer = await house.call("POST", "/run/me/app/status/200", headers=headers)
            await eventually("no call in flight", lambda: house.load.running == 0)
            return answer.headers["x-fal-runner-id"]

        assert await runner() == "r-2", "the youngest of equals"
        assert await runner(**{"x-fal-runner-hint": "lora"}) == "r-1"
        assert await runner(**{"x-fal-runner-hint": "flux"}) == "r-2"


@on_uvloop
async def test_a_head_request_has_the_headers_and_no_body() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("HEAD", "/run/me/app/x")
        assert answer.content == b""
        assert int(answer.headers["content-length"]) > 100
        assert (await house.call("GET", "/run/me/app/x")).status_code == 200


@on_uvloop
async def test_chunks_of_a_stream_come_as_they_are_made() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        # the generator would take a minute; its first chunk is here long before
        async with (
            house.client() as client,
            client.stream("GET", "/run/me/app/stream?n=600&pause=0.1") as answer,
        ):
            chunks = answer.aiter_bytes()
            assert await asyncio.wait_for(anext(chunks), 10) == b"data: 0\n\n"
            assert answer.headers["content-type"] == "text/event-stream"
        house.runners["r-1"].control.may_answer.set()


@on_uvloop
async def test_a_whole_stream_arrives_in_order() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("GET", "/run/me/app/stream?n=200")
        assert answer.text == "".join(f"data: {n}\n\n" for n in range(200))


@pytest.mark.parametrize("is_chunked", [False, True])
@on_uvloop
async def test_a_large_body_arrives_whole(is_chunked: bool) -> None:
    body = os.urandom(3_000_001)

    async def parts() -> object:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("POST", "/run/me/app/up", content=parts() if is_chunked else body)
        assert answer.json()["size"] == len(body)
        assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()


@on_uvloop
async def test_a_large_answer_arrives_whole() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("GET", "/run/me/app/large?size=20000003")
        assert answer.content == b"x" * 20_000_003


@on_uvloop
async def test_an_answer_that_comes_before_the_body_was_sent_is_passed_on() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        head = b"POST /run/me/app/early HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50000000\r\n\r\n"
        answer = await house.talk(head, b"x" * 300_000)
        assert answer.startswith(b"HTTP/1.1 403")
        assert body_of(answer) == {"detail": "not read"}
        assert b"connection: close" in answer
        assert (await house.call("GET", "/run/me/app")).status_code == 200


@on_uvloop
async def test_a_wish_for_http2_does_not_lose_the_body() -> None:
    head = (
        b"POST /run/me/app HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: 11\r\n\r\n"
    )
    closing = b"GET /run/me/app HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with rig() as house:
        house.route()
        await house.runner()
        for parts in ([head + b"hello world"], [head[:40], head[40:120], head[120:] + b"hello", b" world"]):
            answer = await house.talk(*parts, closing)
            assert b'"size": 11' in answer
            assert b"101" not in answer.partition(b"\r\n")[0]
            assert b'"upgrade"' not in answer


@on_uvloop
async def test_a_wrong_wish_for_a_websocket_is_refused_in_plain_http() -> None:
    wish = (
        b"/run/me/app/realtime HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    )
    async with rig() as house:
        house.route()
        await house.runner()
        refused = await house.talk(b"GET " + wish + b"Sec-WebSocket-Version: 13\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 400")
        assert b"missing Sec-WebSocket-Key" in refused
        assert (await house.talk(b"POST " + wish + b"content-length: 2\r\n\r\n{}")).startswith(
            b"HTTP/1.1 400"
        )


WHO_MAY_CALL = [
    (AuthMode.PRIVATE, None, 401),
    (AuthMode.PRIVATE, "Key fk_owner:wrong", 401),
    (AuthMode.PRIVATE, STRANGER, 403),
    (AuthMode.PRIVATE, OWNER, 200),
    (AuthMode.SHARED, None, 401),
    (AuthMode.SHARED, "nonsense", 401),
    (AuthMode.SHARED, STRANGER, 200),
    (AuthMode.PUBLIC, None, 200),
    (AuthMode.PUBLIC, "Key fk_owner:wrong", 200),
]


@on_uvloop
async def test_who_may_call() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        for auth, key, status in WHO_MAY_CALL:
            house.route(auth=auth)
            answer = await house.call("POST", "/run/me/app", headers={"authorization": key} if key else {})
            assert answer.status_code == status, (auth, key)
            assert "x-fal-request-id" in answer.headers


@on_uvloop
async def test_a_connection_that_was_let_in_is_judged_anew_when_its_key_or_the_app_changes() -> None:
    key = ApiKey("fk_owner", "acc-owner", hashlib.sha256(b"secret").hexdigest(), "ADMIN", 0)
    async with rig() as house:
        await house.runner()
        async with house.client() as client:

            async def statuses() -> set[int]:
                answers = [
                    await client.post("/run/me/app", headers={"authorization": OWNER}) for _ in range(4)
                ]
                return {answer.status_code for answer in answers}

            for account, status in (("acc-owner", 200), ("acc-other", 403), ("acc-owner", 200)):
                house.dispatch.set_route(RouteInfo("me", "app", account, AuthMode.PRIVATE, "rev1"))
                assert await statuses() == {status}
            for changed, status in (
                (replace(key, revoked_at=1), 401),
                (key, 200),
                (replace(key, scope="READONLY"), 403),
                (key, 200),
                (replace(key, expires_at=1), 401),
                (key, 200),
            ):
                house.auth.replace([changed])
                assert await statuses() == {status}


@on_uvloop
async def test_an_unknown_app_is_named() -> None:
    async with rig() as house:
        answer = await house.call("POST", "/run/me/nope/x")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Application 'nope' not found"})
        assert (await house.call("POST", "/run/me")).status_code == 404
        assert (await house.call("POST", "/run//x")).status_code == 404


@on_uvloop
async def test_a_path_that_climbs_is_not_forwarded() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        for path in ("/../x", "/a/%2e%2e/b", "/%2E%2e", "/a/./b", "/a\\..\\b", "/%00", "/a/..%2fb"):
            head = f"GET /run/me/app{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            assert (await house.talk(head.encode())).startswith(b"HTTP/1.1 400"), path


@on_uvloop
async def test_pipelined_calls_are_answered_in_order() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        one = b"POST /run/me/app/%d HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx"
        last = b"GET /run/me/app/9 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        answer = await house.talk(b"".join(one % n for n in range(5)) + last)
        paths = [part.split(b'"')[0] for part in answer.split(b'"path": "')[1:]]
        assert paths == [b"/0", b"/1", b"/2", b"/3", b"/4", b"/9"]


@on_uvloop
async def test_a_caller_of_http10_gets_a_stream_that_ends_with_the_connection() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.talk(b"GET /run/me/app/stream?n=3 HTTP/1.0\r\nhost: localhost\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
