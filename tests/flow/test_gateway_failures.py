"""Calls that go wrong: runners that die or hang, callers that leave or do not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import httpx
import pytest

from tests.flow.gateway_rig import Rig, body_of, eventually, on_uvloop, own_rss_mb, rig


async def in_flight(house: Rig, count: int = 1) -> None:
    await eventually(f"{count} calls in flight", lambda: house.load.running == count)


@on_uvloop
async def test_a_runner_killed_in_a_call_is_told_to_the_caller_and_gets_no_other_call() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        assert (await house.call("POST", "/run/me/app")).status_code == 200  # a connection is kept
        call = asyncio.create_task(house.call("POST", "/run/me/app/slow"))
        await in_flight(house)
        runner.kill()
        answer = await asyncio.wait_for(call, 5)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
        assert answer.headers["x-fal-error-type"] == "runner_disconnected"
        assert "x-fal-request-id" in answer.headers
        await eventually("the verdict", lambda: house.verdicts == [("r-1", "connection_broken")])
        await in_flight(house, 0)


@on_uvloop
async def test_an_app_that_ends_its_process_is_an_error_and_not_a_hang() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("POST", "/run/me/app/die")
        assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")


@on_uvloop
async def test_an_answer_that_breaks_off_breaks_the_callers_connection() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        with pytest.raises(httpx.RemoteProtocolError):
            await house.call("POST", "/run/me/app/die-mid-answer")
        await eventually("the verdict", lambda: house.verdicts == [("r-1", "connection_broken")])


@on_uvloop
async def test_a_call_whose_runner_was_gone_before_it_was_sent_goes_to_another() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        runner.kill()
        await runner.process.wait()
        call = asyncio.create_task(house.call("POST", "/run/me/app"))
        await eventually("a call in line", lambda: house.load.waiting == 1)
        assert house.verdicts == [("r-1", "connection_broken")]
        assert house.demands == ["rev1"]
        await house.runner()
        assert (await call).headers["x-fal-runner-id"] == "r-2"


@on_uvloop
async def test_a_call_over_its_time_ends_with_504_and_ends_the_runner() -> None:
    async with rig() as house:
        house.route(request_timeout_s=0.5)
        await house.runner()
        answer = await house.call("POST", "/run/me/app/slow")
        assert (answer.status_code, answer.json()["error_type"]) == (504, "request_timeout")
        assert "x-fal-request-timeout-type" not in answer.headers
        await eventually("the verdict", lambda: house.verdicts == [("r-1", "request_timeout")])


@on_uvloop
async def test_a_caller_that_leaves_frees_the_slot_only_when_the_work_has_ended() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        call = asyncio.create_task(house.call("POST", "/run/me/app/slow"))
        await in_flight(house)
        await eventually("the call at the runner", lambda: bool(house.load.running))
        facts = await house.facts(runner)
        while not facts["started"]:
            facts = await house.facts(runner)
        call.cancel()
        await eventually("the cancel", lambda: runner.control.cancelled == facts["started"])
        assert house.load.running == 1
        while not (await house.facts(runner))["gone"]:
            await asyncio.sleep(0.01)
        runner.control.may_answer.set()
        await in_flight(house, 0)
        assert house.verdicts == []


@on_uvloop
async def test_a_caller_that_leaves_a_stream_stops_it() -> None:
    async with rig() as house:
        house.route()
        runner = await house.runner()
        runner.control.may_answer.set()
        url = "/run/me/app/stream?n=100000&pause=0.01"
        async with house.client() as client, client.stream("GET", url) as answer:
            await anext(answer.aiter_bytes())
        await eventually("the cancel", lambda: len(runner.control.cancelled) == 1)
        await in_flight(house, 0)


@on_uvloop
async def test_a_runner_that_is_cut_fails_its_calls() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        call = asyncio.create_task(house.call("POST", "/run/me/app/slow"))
        await in_flight(house)
        house.dispatch.cut_runner("r-1")
        answer = await asyncio.wait_for(call, 5)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "runner_disconnected")
        assert house.load.runners == {}


@on_uvloop
async def test_a_caller_that_asks_again_without_reading_is_held_back_and_loses_nothing() -> None:
    many, size = 3000, 20_000
    async with rig() as house:
        house.route(max_multiplexing=2)
        await house.runner(width=2)
        request = b"GET /run/me/app/large?size=%d HTTP/1.1\r\nhost: localhost\r\n" % size
        with socket.socket() as narrow:
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            narrow.connect(("127.0.0.1", house.port))
            reader, writer = await asyncio.open_connection(sock=narrow, limit=65536)
            writer.write((request + b"\r\n") * (many - 1) + request + b"connection: close\r\n\r\n")
            seen = [0]

            def has_stopped() -> bool:
                seen.append(house.load.served)
                return seen[-1] > 2 and len(seen) > 50 and seen[-50] == seen[-1]

            await eventually("its calls to be held back", has_stopped)
            assert seen[-1] < many / 2
            assert (await house.call("POST", "/run/me/app")).status_code == 200
            answers = await asyncio.wait_for(reader.read(), 30)
            writer.close()
        assert answers.count(b"HTTP/1.1 200 OK") == many
        assert len(answers) > many * size


@on_uvloop
async def test_callers_that_do_not_read_hold_little_memory_and_nobody_else_up() -> None:
    async with rig() as house:
        house.route(max_multiplexing=64)
        runner = await house.runner(width=64)
        runner.control.may_answer.set()
        await house.call("GET", "/run/me/app/large?size=3000000")
        before = own_rss_mb()
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                reader = stack.enter_context(socket.create_connection(("127.0.0.1", house.port)))
                reader.sendall(b"GET /run/me/app/large?size=20000000 HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await in_flight(house, 20)
            for _ in range(20):
                assert (await house.call("POST", "/run/me/app")).status_code == 200
            assert own_rss_mb() - before < 32
        await in_flight(house, 0)


async def canned(folder: str, answer: bytes, *, close: bool = True) -> asyncio.Server:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
                if close:
                    break
        writer.close()

    return await asyncio.start_unix_server(serve, f"{folder}/canned.sock")


@pytest.mark.parametrize(
    ("sent", "status", "error_type"),
    [
        (b"", 503, "runner_disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-", 502, "runner_incomplete_response"),
        (b"nonsense\r\n\r\n", 502, "runner_incomplete_response"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 502, "runner_incomplete_response"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            502,
            "runner_incomplete_response",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 502, "runner_incomplete_response"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", 200, None),
        (
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            103,
            None,
        ),
    ],
)
@on_uvloop
async def test_answers_that_are_not_plain(sent: bytes, status: int, error_type: str | None) -> None:
    async with rig() as house:
        house.route()
        server = await canned(house.folder, sent)
        house.dispatch.open_runner("rev1", "r-x", f"{house.folder}/canned.sock", f"{house.folder}/none", 1)
        answer = await house.talk(b"GET /run/me/app HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert int(answer.split(b" ")[1]) == status
        if error_type:
            assert body_of(answer)["error_type"] == error_type
        server.close()


@on_uvloop
async def test_bytes_behind_an_answer_reach_nobody() -> None:
    sent = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"
    async with rig() as house:
        house.route()
        server = await canned(house.folder, sent, close=False)
        house.dispatch.open_runner("rev1", "r-x", f"{house.folder}/canned.sock", f"{house.folder}/none", 1)
        for _ in range(3):
            assert (await house.call("GET", "/run/me/app")).text == "ok"
        server.close()


@on_uvloop
async def test_a_connection_that_went_stale_is_replaced_once() -> None:
    calls: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the first call of a connection; close, silently, when a second one comes."""
        calls.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with rig() as house:
        house.route()
        server = await asyncio.start_unix_server(serve, f"{house.folder}/stale.sock")
        house.dispatch.open_runner("rev1", "r-x", f"{house.folder}/stale.sock", f"{house.folder}/none", 1)
        for _ in range(3):
            assert (await house.call("POST", "/run/me/app", content=b"")).text == "ok"
        assert len(calls) == 3
        assert house.verdicts == []
        server.close()
