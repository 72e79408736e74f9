"""Websockets through the gateway to a runner in a process of its own: joined, counted, refused, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import websockets
from fal_backend.api import pool
from fal_backend.api.edge import Limits
from fal_backend.api.rates import RateLimits
from websockets.asyncio.client import ClientConnection, connect

from fal_notebook.wire import AuthMode
from tests.flow.gateway_rig import OWNER, STRANGER, Rig, eventually, on_uvloop, rig


@contextlib.asynccontextmanager
async def opened(house: Rig, path: str = "/run/me/app/ws", **kwargs: Any) -> AsyncIterator[ClientConnection]:
    kwargs = {"max_size": None, "compression": None, "open_timeout": 20} | kwargs
    async with connect(f"ws://127.0.0.1:{house.port}{path}", proxy=None, **kwargs) as socket:
        yield socket


async def refused(house: Rig, path: str = "/run/me/app/ws", **kwargs: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with opened(house, path, **kwargs):
            pass
    response = caught.value.response
    assert response.body is not None
    return response.status_code, json.loads(response.body)


@on_uvloop
async def test_bytes_pass_both_ways_and_the_session_takes_a_slot_until_it_ends() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        async with opened(house) as socket:
            assert socket.response is not None
            request_id = socket.response.headers["x-fal-request-id"]
            assert socket.response.headers["x-fal-runner-id"] == runner.id
            assert house.load.running == 1
            await socket.send("text")
            assert await socket.recv() == "text"
            for size in (0, 1, 125, 65_536, 3_000_000):
                await socket.send(b"\x00\xff" * size)
                assert await socket.recv() == b"\x00\xff" * size
        await eventually("the slot is free", lambda: house.load.running == 0)
        facts = await house.facts(runner)
        assert (facts["started"], facts["gone"]) == ([request_id], [request_id])
        assert runner.control.cancelled == []
        assert b'code="101"} 1' in (await house.call("GET", "/metrics")).content


@on_uvloop
async def test_the_runner_sees_path_query_and_protocol_but_no_key_and_no_token() -> None:
    async with rig() as house:
        house.route(auth=AuthMode.PRIVATE)
        await house.runner()
        token = (
            await house.call("POST", "/rest/tokens/", json={"allowed_apps": ["app"]}, headers=_key())
        ).json()
        path = f"/run/me/app/sub/path?a=1&fal_jwt_token={token}&max_buffering=5"
        async with opened(house, path, subprotocols=["mine"]) as socket:
            assert socket.subprotocol == "mine"
            await socket.send("head")
            seen = json.loads(await socket.recv())
        assert (seen["path"], seen["query"]) == ("/sub/path", "a=1&max_buffering=5")
        assert seen["headers"]["x-fal-nb-call"] == "realtime"
        assert seen["headers"]["x-fal-endpoint"] == "me/app/sub/path"
        async with opened(house, additional_headers=_key()) as socket:
            await socket.send("head")
            assert "authorization" not in json.loads(await socket.recv())["headers"]


@on_uvloop
async def test_refusals_are_plain_answers_of_http() -> None:
    async with rig() as house:
        house.route()
        house.route("mine", auth=AuthMode.PRIVATE)
        await house.runner()
        assert (await refused(house, "/run/me/nobody"))[0] == 404
        assert (await refused(house, "/run/me/mine"))[0] == 401
        assert (await refused(house, "/run/me/mine", additional_headers=_key("Key a:b")))[0] == 401
        assert (await refused(house, "/run/me/mine", additional_headers=_key(STRANGER)))[0] == 403
        assert (await refused(house, "/run/me/app?fal_jwt_token=a.b.c"))[0] == 401
        status, body = await refused(house, "/run/me/app", origin="http://evil.example")
        assert (status, body["detail"]) == (403, "A page of another origin may not do this without a key")
        with pytest.raises(websockets.InvalidStatus, match="403"):
            async with opened(house, "/run/me/app/refuse"):
                pass
        async with opened(house, "/run/me/app", origin="http://good.example"):
            pass
        await eventually("no slot is taken", lambda: house.load.running == 0)


@on_uvloop
async def test_a_token_opens_what_it_names_until_it_ends_or_its_key_does() -> None:
    async with rig() as house:
        house.route(auth=AuthMode.PRIVATE)
        house.route("other", auth=AuthMode.PRIVATE)
        await house.runner()

        async def ask(body: Any, key: str | None = OWNER) -> httpx.Response:
            return await house.call("POST", "/rest/tokens", json=body, headers=_key(key) if key else {})

        token = (await ask({"allowed_apps": ["me/app"], "token_expiration": 60})).json()
        async with opened(house, f"/run/me/app?fal_jwt_token={token}") as socket:
            await socket.send("x")
            assert await socket.recv() == "x"
        assert (await refused(house, f"/run/me/other?fal_jwt_token={token}"))[0] == 403
        assert (await refused(house, f"/run/me/app?fal_jwt_token={token[:-2]}"))[0] == 401
        foreign = (await ask({"allowed_apps": ["app"]}, STRANGER)).json()
        assert (await refused(house, f"/run/me/app?fal_jwt_token={foreign}"))[0] == 403
        short = (await ask({"allowed_apps": ["app"], "token_expiration": 1})).json()
        await eventually("its end", lambda: _expires(short) <= time.time())
        assert (await refused(house, f"/run/me/app?fal_jwt_token={short}"))[0] == 401
        assert (await ask({"allowed_apps": ["app"]}, None)).status_code == 401
        for body in (
            {},
            {"allowed_apps": []},
            {"allowed_apps": [1]},
            {"allowed_apps": ["a"], "token_expiration": 0},
        ):
            assert (await ask(body)).status_code == 422, body
        house.auth.replace([])
        assert (await refused(house, f"/run/me/app?fal_jwt_token={token}"))[0] == 401


@on_uvloop
async def test_a_session_waits_for_a_cold_runner_and_for_a_slot() -> None:
    async with rig() as house:
        house.route()
        waiting = asyncio.ensure_future(
            connect(f"ws://127.0.0.1:{house.port}/run/me/app", proxy=None).__aenter__()
        )
        await eventually("the demand", lambda: house.demands == ["rev1"])
        await house.runner()
        first = await asyncio.wait_for(waiting, 20)
        second = asyncio.ensure_future(
            connect(f"ws://127.0.0.1:{house.port}/run/me/app", proxy=None).__aenter__()
        )
        await eventually("the second stands in line", lambda: house.load.waiting == 1)
        await first.close()
        socket = await asyncio.wait_for(second, 20)
        await socket.send("mine")
        assert await socket.recv() == "mine"
        await socket.close()


@on_uvloop
async def test_a_session_that_never_got_its_slot_leaves_the_line() -> None:
    async with rig() as house:
        house.route()
        assert (await refused(house, additional_headers={"x-fal-request-timeout": "0.3"}))[0] == 504
        with pytest.raises(TimeoutError):
            async with opened(house, open_timeout=0.2):
                pass
        await eventually("nobody waits", lambda: house.load.waiting == 0)


@on_uvloop
async def test_a_caller_that_vanishes_frees_the_slot_when_the_work_has_ended() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        async with opened(house) as socket:
            assert socket.response is not None
            runner.control.running.append(socket.response.headers["x-fal-request-id"])
            socket.transport.abort()
        await eventually("the runner is asked", lambda: house.load.running == 1)
        await asyncio.sleep(0.1)
        assert house.load.running == 1
        runner.control.running.clear()
        await eventually("the slot is free", lambda: house.load.running == 0)
        assert runner.control.cancelled == []


@on_uvloop
async def test_a_runner_closes_or_dies_and_the_caller_is_told() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        async with opened(house) as socket:
            await socket.send("close")
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "asked")
        async with opened(house) as socket:
            await socket.send("die")
            with pytest.raises(websockets.ConnectionClosedError) as closed:
                await socket.recv()
            assert closed.value.rcvd is None
        await eventually("the slot is free", lambda: house.load.running == 0)


@on_uvloop
async def test_neither_end_is_read_faster_than_the_other_takes() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        async with opened(house, max_queue=1) as socket:
            await socket.send("flood")
            await eventually("the caller's connection is full", lambda: _is_full(house))
            for _ in range(200):
                assert len(await socket.recv()) == 100_000


@on_uvloop
async def test_what_was_sent_before_and_behind_a_head_is_not_lost() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        frame = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"ab"
        writer.write(_upgrade(b"/run/me/app/hello") + frame)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert head.startswith(b"HTTP/1.1 101 ")
        expected = b"\x81\x05hello\x81\x02ab"
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 20) == expected
        writer.close()


@on_uvloop
async def test_an_upgrade_behind_another_request_waits_for_its_answer() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
        first = b"POST /run/me/app HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}"
        writer.write(first + _upgrade(b"/run/me/app/hello"))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert head.startswith(b"HTTP/1.1 200 ")
        rest = await asyncio.wait_for(reader.readuntil(b"\x05hello"), 20)
        assert rest.count(b"HTTP/1.1 101 ") == 1
        writer.close()


@on_uvloop
async def test_what_is_no_upgrade_of_http_1_1_without_a_body_is_refused() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        good = _upgrade(b"/run/me/app")
        for wrong in (
            good.replace(b"HTTP/1.1", b"HTTP/1.0"),
            good.replace(b"host:", b"content-length: 2\r\nhost:") + b"{}",
            good.replace(b"host:", b"transfer-encoding: chunked\r\nhost:") + b"0\r\n\r\n",
        ):
            assert (await house.talk(wrong)).startswith(b"HTTP/1.1 400 "), wrong
        plain = await house.talk(good.replace(b"connection: Upgrade", b"connection: close"))
        assert plain.startswith(b"HTTP/1.1 200 "), "a wish that is not named in Connection is none"
        assert house.load.running == 0


@on_uvloop
async def test_idle_sessions_and_too_long_ones_are_closed() -> None:
    for limits in (Limits(session_idle_s=0.5), Limits(session_s=0.5)):
        async with rig(limits) as house:
            house.route()
            await house.runner()
            async with opened(house) as socket:
                with pytest.raises(websockets.ConnectionClosedError):
                    await asyncio.wait_for(socket.recv(), 20)
            await eventually("the slot is free", lambda: house.load.running == 0)


@on_uvloop
async def test_a_runner_that_drains_is_told_and_its_sessions_are_cut_when_it_is_gone() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        async with opened(house) as socket:
            house.dispatch.close_runner(runner.id)
            await eventually("the runner is told", lambda: runner.control.drains == 1)
            await socket.send("still here")
            assert await socket.recv() == "still here"
            assert house.drained == []
            house.dispatch.cut_runner(runner.id)
            with pytest.raises(websockets.ConnectionClosedError):
                await socket.recv()


@on_uvloop
async def test_sessions_of_a_runner_that_drains_are_cut_after_its_apps_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "SESSION_GRACE_S", 0.05)
    async with rig() as house:
        house.route()
        runner = await house.runner()
        door = house.dispatch.door(runner.id)
        assert door is not None
        door.grace_s = 0.5
        async with opened(house) as socket:
            began = asyncio.get_running_loop().time()
            house.dispatch.close_runner(runner.id)
            with pytest.raises(websockets.ConnectionClosedError):
                await asyncio.wait_for(socket.recv(), 20)
            assert asyncio.get_running_loop().time() - began >= 0.5, "never before"


@on_uvloop
async def test_calls_over_a_websocket_are_answered_in_order() -> None:
    async with rig() as house:
        house.route(auth=AuthMode.PRIVATE)
        await house.runner()
        assert (await refused(house, "/ws/me/app"))[0] == 401
        assert (await house.call("GET", "/ws/me/app", headers=_key())).status_code == 426
        async with opened(house, "/ws/me/app/echo", additional_headers=_key()) as socket:
            for n in range(50):
                await socket.send(json.dumps({"n": "x" * n}))
            for n in range(50):
                start = json.loads(await socket.recv())
                assert (start["type"], start["status"]) == ("start", 200)
                seen = json.loads(await socket.recv())
                assert (seen["method"], seen["path"]) == ("POST", "/echo")
                assert seen["size"] == len(json.dumps({"n": "x" * n}))
                assert json.loads(await socket.recv()) == {"type": "end", "request_id": start["request_id"]}
        async with opened(house, "/ws/me/app/status/404", additional_headers=_key()) as socket:
            await socket.send("{}")
            assert json.loads(await socket.recv())["status"] == 404
            assert json.loads(await socket.recv()) == {"detail": "status 404"}
            assert json.loads(await socket.recv())["type"] == "end"
            await socket.send(b"binary")
            with pytest.raises(websockets.ConnectionClosedError, match="1003"):
                await socket.recv()


@on_uvloop
async def test_a_stream_over_a_websocket_comes_as_it_is_made_and_ends_with_its_caller() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        async with opened(house, "/ws/me/app/stream?n=3&pause=0.05") as socket:
            await socket.send("{}")
            assert json.loads(await socket.recv())["type"] == "start"
            assert [await socket.recv() for _ in range(3)] == [f"data: {n}\n\n" for n in range(3)]
            assert json.loads(await socket.recv())["type"] == "end"
        async with opened(house, "/ws/me/app/slow") as socket:
            await socket.send("{}")
            await eventually("the call runs", lambda: house.load.running == 1)
        await eventually("the runner is told", lambda: runner.control.cancelled)
        runner.control.may_answer.set()
        await eventually("the slot is free", lambda: house.load.running == 0)


@on_uvloop
async def test_parts_are_text_where_they_can_be_and_never_look_like_words_of_ours() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        false_end = b'{"type": "end", "request_id": "x"}'
        cases: list[tuple[bytes, list[str | bytes]]] = [
            (b"c3-a4", ["\u00e4"]),
            (false_end.hex().encode(), [false_end]),
            (b"61-c3-ff-62", ["a", b"\xc3\xff", b"b"]),
            (b"61-c3", ["a", b"\xc3"]),
        ]
        for parts, expected in cases:
            async with opened(house, f"/ws/me/app/words?parts={parts.decode()}") as socket:
                await socket.send("{}")
                assert json.loads(await socket.recv())["type"] == "start"
                got = [await socket.recv() for _ in expected]
                assert got == expected, parts
                assert json.loads(await socket.recv())["type"] == "end"


@on_uvloop
async def test_an_answer_that_breaks_off_closes_the_websocket() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        async with opened(house, "/ws/me/app/die-mid-answer") as socket:
            await socket.send("{}")
            assert json.loads(await socket.recv())["type"] == "start"
            assert await socket.recv() == b"half"
            with pytest.raises(websockets.ConnectionClosedError, match="1011"):
                await socket.recv()


@on_uvloop
async def test_calls_beyond_the_rate_of_a_key_or_an_address_get_429() -> None:
    async with rig(
        rates=RateLimits(key_per_s=0.1, address_per_s=0.1, is_loopback_counted=True, burst_s=20)
    ) as house:
        house.route()
        house.route("mine", auth=AuthMode.SHARED)
        await house.runner(width=4)
        for path, headers in (
            ("/run/me/app", {}),
            ("/run/me/mine", _key()),
            ("/run/me/mine", _key(STRANGER)),
        ):
            answers = [await house.call("POST", path, headers=headers) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429], path
            assert 0 < int(answers[2].headers["retry-after"]) <= 10
            assert answers[2].json()["error_type"] == "rate_limited"
        assert (await refused(house, "/run/me/app"))[0] == 429


@on_uvloop
async def test_wrong_keys_are_answered_429_after_some_and_good_ones_pass() -> None:
    async with rig(rates=RateLimits(wrong_keys=3, wrong_key_s=60)) as house:
        house.route(auth=AuthMode.PRIVATE)
        await house.runner()
        wrong = _key("Key fk_owner:guess")
        answers = [
            await house.call("POST", path, headers=wrong) for path in ("/run/me/app", "/rest/tokens/") * 2
        ]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
        assert int(answers[3].headers["retry-after"]) > 0
        assert (await house.call("POST", "/run/me/app", headers=wrong)).status_code == 429
        assert (await house.call("POST", "/run/me/app", headers=_key())).status_code == 200
        assert (await house.call("POST", "/run/me/app")).status_code == 401


def _key(authorization: str = OWNER) -> dict[str, str]:
    return {"authorization": authorization}


def _expires(token: str) -> float:
    import base64

    return float(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["exp"])


def _is_full(house: Rig) -> bool:
    lane = next(iter(house.dispatch._lanes.values()))
    door = next(iter(lane.doors.values()))
    return any(conn._is_paused for conn in door.link.all)  # type: ignore[union-attr]


def _upgrade(path: bytes) -> bytes:
    return (
        b"GET %b HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" % path
    )
