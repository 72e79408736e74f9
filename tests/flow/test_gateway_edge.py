"""The edge: what is refused before anything runs, and what is answered without a runner."""

from __future__ import annotations

import asyncio
import os

import httpx
from fal_backend.api.edge import Limits

from fal_notebook.wire import AuthMode
from tests.flow.gateway_rig import OWNER, body_of, eventually, on_uvloop, rig

HEAD = b"POST /run/me/app HTTP/1.1\r\nhost: localhost\r\n"


@on_uvloop
async def test_only_our_own_host_names_are_answered() -> None:
    async with rig() as house:
        for host in ("localhost", "127.0.0.1:1234", "[::1]:80", "LOCALHOST"):
            assert (await house.call("GET", "/healthz", headers={"host": host})).status_code == 200, host
        for host in (
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost:80:80",
            "user@localhost",
            "10.0.0.1",
        ):
            assert (await house.call("GET", "/healthz", headers={"host": host})).status_code == 421, host
        assert (await house.talk(b"GET /healthz HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400")
        twice = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nHost: evil.example\r\n\r\n"
        assert (await house.talk(twice)).startswith(b"HTTP/1.1 400")


@on_uvloop
async def test_the_unix_socket_takes_any_host_and_knows_its_peer() -> None:
    async with rig() as house:
        transport = httpx.AsyncHTTPTransport(uds=house.api_path)
        async with httpx.AsyncClient(transport=transport, base_url="http://anything") as client:
            assert (await client.post("/api/v1/x", content=b"1234")).text == "page"
        scope, body = house.seen_by_pages[0]
        assert scope["state"]["peer_pid"] == os.getpid()
        assert (scope["path"], body) == ("/api/v1/x", b"1234")
        assert dict(scope["headers"])[b"content-length"] == b"4"


@on_uvloop
async def test_a_foreign_page_may_change_nothing_without_a_key() -> None:
    async with rig() as house:
        house.route(auth=AuthMode.SHARED)
        await house.runner()
        origin = {"origin": "http://evil.example"}
        for given in (origin, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            assert (await house.call("POST", "/run/me/app", headers=given)).status_code == 403
            assert (await house.call("PUT", "/api/v1/x", headers=given)).status_code == 403
        assert (await house.call("GET", "/api/v1/x", headers=origin)).status_code == 200
        assert (
            await house.call("POST", "/run/me/app", headers={**origin, "authorization": OWNER})
        ).status_code == 200
        assert (await house.call("PUT", "/api/v1/x", headers={"origin": house.url})).status_code == 200


@on_uvloop
async def test_a_page_of_an_allowed_origin_may_read_answers_and_no_other_may() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        good, bad = {"origin": "http://good.example"}, {"origin": "http://evil.example"}
        answer = await house.call("POST", "/run/me/app", headers=good)
        assert answer.headers["access-control-allow-origin"] == "http://good.example"
        ask = {"access-control-request-method": "POST"}
        assert (await house.call("OPTIONS", "/run/me/app", headers=good | ask)).status_code == 204
        refused = await house.call("OPTIONS", "/run/me/app", headers=bad | ask)
        assert "access-control-allow-origin" not in refused.headers


@on_uvloop
async def test_health_readiness_and_counts_are_told_without_a_runner() -> None:
    async with rig() as house:
        house.route()
        assert (await house.call("GET", "/healthz")).json() == {"status": "ok"}
        assert (await house.call("GET", "/readyz")).status_code == 503
        house.is_ready = True
        assert (await house.call("GET", "/readyz")).json() == {"ready": True}
        await house.runner()
        for _ in range(3):
            await house.call("POST", "/run/me/app/status/422")
        text = (await house.call("GET", "/metrics")).text
        assert 'fal_nb_requests_total{app="me/app",revision="rev1",code="422"} 3' in text
        assert 'fal_nb_request_duration_seconds_count{app="me/app",code="4xx"} 3' in text
        assert 'fal_nb_runners{app="me/app",revision="rev1"} 1' in text


@on_uvloop
async def test_a_body_over_its_size_is_refused_by_length_and_by_count() -> None:
    async with rig(Limits(body_bytes=1_000_000)) as house:
        house.route()
        (await house.runner()).control.may_answer.set()
        by_length = await house.talk(HEAD + b"content-length: 1000001\r\n\r\n")
        assert by_length.startswith(b"HTTP/1.1 413")
        chunk = b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000)
        by_count = await house.talk(HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 11)
        assert by_count.startswith(b"HTTP/1.1 413")
        for path in (b"/api/v1/x", b"/page"):
            refused = await house.talk(
                HEAD.replace(b"/run/me/app", path) + b"content-length: 1000001\r\n\r\n"
            )
            assert refused.startswith(b"HTTP/1.1 413")
        await eventually("no call in flight", lambda: house.load.running == 0)
        assert (await house.call("POST", "/run/me/app", content=b"x" * 1_000_000)).status_code == 200


@on_uvloop
async def test_heads_that_are_too_large_or_ambiguous_are_refused() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        many = b"".join(b"x-%d: 1\r\n" % n for n in range(101))
        refused = await house.talk(HEAD + many + b"\r\n")
        assert refused.startswith(b"HTTP/1.1 431")
        assert b"\r\nx-fal-request-id: " in refused
        assert (await house.talk(HEAD + b"x: " + b"a" * 70_000 + b"\r\n\r\n")).startswith(b"HTTP/1.1 431")
        assert (await house.talk(HEAD + b"x: " + b"a" * 200_000)).startswith(b"HTTP/1.1 431")
        both = b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        assert (await house.talk(HEAD + both)).startswith(b"HTTP/1.1 400")
        assert (await house.talk(b"NONSENSE /run/me/app HTTP/1.1\r\nhost: localhost\r\n\r\n")).startswith(
            b"HTTP/1.1 400"
        )
        assert (await house.talk(b"CONNECT localhost:1 HTTP/1.1\r\nhost: localhost\r\n\r\n")).startswith(
            b"HTTP/1.1 400"
        )


@on_uvloop
async def test_a_trailer_adds_nothing_to_the_head() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        sent = b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nok\r\n0\r\nx-late: 1\r\n\r\n"
        seen = body_of(await house.talk(HEAD + sent))
        assert seen["size"] == 2
        assert "x-late" not in dict(seen["headers"])


@on_uvloop
async def test_slow_heads_and_slow_bodies_are_cut_and_others_are_served_meanwhile() -> None:
    async with rig(Limits(head_s=0.5, body_slow_s=1)) as house:
        house.route()
        await house.runner()
        slow = [asyncio.create_task(house.talk(HEAD[:20])) for _ in range(50)]
        slow += [asyncio.create_task(house.talk(HEAD + b"content-length: 5000\r\n\r\nx")) for _ in range(50)]
        for _ in range(20):
            assert (await house.call("POST", "/run/me/app")).status_code == 200
        answers = await asyncio.gather(*slow)
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
        assert house.load.running == 0


@on_uvloop
async def test_one_address_gets_so_many_connections_and_no_more() -> None:
    async with rig(Limits(address_connections=3)) as house:
        opened = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(3)]
        await eventually("three connections", lambda: house.edge.addresses == {"127.0.0.1": 3})
        refused = await house.talk(b"")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1\r\n" in refused
        for _, writer in opened:
            writer.close()
        await eventually("none left", lambda: house.edge.addresses == {})
        assert (await house.call("GET", "/healthz")).status_code == 200
