"""Realtime and websocket endpoints in a real runner, over its own socket."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.flow.tiny_host import DEADLINE_S, Runner, TinyHost, short_folder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="zygotes exist on Linux only")

SOURCE = """
import asyncio, os, time
from collections.abc import AsyncIterator, Iterator
import fal_notebook as fal
from fastapi import WebSocket
from pydantic import BaseModel

class In(BaseModel):
    n: int
    gate: str = ""
    def can_batch(self, other, size):
        return other.n % 2 == self.n % 2

class Out(BaseModel):
    total: int
    size: int = 1

class Demo(fal.App):
    def setup(self):
        self.ended = 0

    @fal.endpoint("/ended")
    async def count(self) -> int:
        return self.ended

    @fal.realtime("/unary", session_timeout=20)
    def unary(self, i: In) -> Out:
        while i.gate and not os.path.exists(i.gate):
            time.sleep(0.005)
        if i.n < 0:
            raise ValueError("no negative numbers")
        return Out(total=i.n * 2)

    @fal.realtime("/plain")
    async def plain(self, i: dict) -> dict:
        return {"given": i}

    @fal.realtime("/short", session_timeout=0.05)
    async def short(self, i: In) -> Out:
        return Out(total=i.n)

    @fal.realtime("/batched", max_batch_size=3)
    def batched(self, i: In, *more: In) -> Out:
        while i.gate and not os.path.exists(i.gate):
            time.sleep(0.005)
        return Out(total=sum(each.n for each in (i, *more)), size=1 + len(more))

    @fal.realtime("/newest", buffering=2)
    def newest(self, i: In) -> Out:
        print("at work")
        while i.gate and not os.path.exists(i.gate):
            time.sleep(0.005)
        return Out(total=i.n)

    @fal.realtime("/count")
    def up_to(self, i: In) -> Iterator[Out]:
        for number in range(i.n):
            yield Out(total=number)

    @fal.realtime("/forever")
    async def forever(self, i: In) -> AsyncIterator[Out]:
        try:
            while True:
                yield Out(total=1)
                await asyncio.sleep(0.001)
        finally:
            self.ended += 1

    @fal.realtime("/sum", session_timeout=0.3)
    async def sum_up(self, inputs: AsyncIterator[In]) -> Out:
        total = 0
        async for i in inputs:
            total += i.n
        return Out(total=total)

    @fal.realtime("/running")
    async def running(self, inputs: AsyncIterator[In]) -> AsyncIterator[Out]:
        total = 0
        async for i in inputs:
            total += i.n
            yield Out(total=total)
        self.ended += 1

    @fal.realtime("/text", encode_message=lambda value: "text:" + str(value["n"]), decode_message=lambda data: {"n": int(data)})
    def text(self, i: dict) -> dict:
        return i

    @fal.endpoint("/raw", is_websocket=True)
    async def raw(self, websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            message = await websocket.receive_text()
            if message == "raise":
                raise ValueError("as told")
            await websocket.send_text(message.upper())
"""


@pytest.fixture(scope="module")
def host() -> Iterator[TinyHost]:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
    for folder in short_folder():
        host = TinyHost(folder)
        yield host
        host.close()


@pytest.fixture
def start(host: TinyHost) -> Callable[..., Runner]:
    def begin(**more: Any) -> Runner:
        runner = host.start(SOURCE, **more)
        runner.wait_for("ready")
        return runner

    return begin


@contextlib.asynccontextmanager
async def session(runner: Runner, path: str) -> AsyncIterator[ClientConnection]:
    headers = {"x-fal-request-id": "s1", "x-fal-nb-call": "realtime"}
    async with asyncio.timeout(DEADLINE_S):
        async with unix_connect(
            str(runner.app), uri=f"ws://runner{path}", additional_headers=headers
        ) as connection:
            yield connection


async def say(connection: ClientConnection, **message: Any) -> None:
    await connection.send(msgpack.packb(message, use_bin_type=True))


async def hear(connection: ClientConnection) -> Any:
    """Return the next message; errors are text frames."""
    frame = await connection.recv()
    return json.loads(frame) if isinstance(frame, str) else msgpack.unpackb(frame)


async def close_code(connection: ClientConnection) -> int | None:
    with contextlib.suppress(ConnectionClosed):
        async for _ in connection:
            continue
    return connection.close_code


async def until_free(runner: Runner) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while json.loads(runner.call("/calls", method="GET", ctl=True)[2]):
            await asyncio.sleep(0.005)


async def test_a_hundred_inputs_get_a_hundred_outputs_in_order(start: Callable[..., Runner]) -> None:
    runner = start()
    async with session(runner, "/unary") as connection:
        for number in range(100):
            await say(connection, n=number)
        assert [(await hear(connection))["total"] for _ in range(100)] == [2 * n for n in range(100)]
        listed = json.loads(runner.call("/calls", method="GET", ctl=True)[2])
        assert listed == [{"request_id": "s1", "attempt": 1, "kind": "realtime", "state": "running"}]
    await until_free(runner)


async def test_dicts_go_through_as_they_are(start: Callable[..., Runner]) -> None:
    async with session(start(), "/plain") as connection:
        await say(connection, data=b"\x00\xff", text="ü", items=[1, None, 2.5])
        assert await hear(connection) == {
            "given": {"data": b"\x00\xff", "text": "ü", "items": [1, None, 2.5]}
        }


async def test_a_wrong_input_ends_the_session_with_an_error_frame(start: Callable[..., Runner]) -> None:
    async with session(start(), "/unary") as connection:
        await say(connection, n=1)
        await say(connection, n="many")
        assert (await hear(connection))["total"] == 2
        error = await hear(connection)
        assert (error["type"], error["error"]) == ("x-fal-error", "INTERNAL_ERROR")
        assert error["reason"].startswith("1 validation error for In")
        assert await close_code(connection) == 1000


async def test_what_the_endpoint_raises_ends_the_session_with_an_error_frame(
    start: Callable[..., Runner],
) -> None:
    runner = start()
    async with session(runner, "/unary") as connection:
        await say(connection, n=-1)
        assert await hear(connection) == {
            "type": "x-fal-error",
            "error": "INTERNAL_ERROR",
            "reason": "no negative numbers",
        }
        assert await close_code(connection) == 1000
    runner.wait_for_line("ValueError: no negative numbers")


async def test_a_text_frame_is_answered_by_an_error_and_the_session_goes_on(
    start: Callable[..., Runner],
) -> None:
    async with session(start(), "/unary") as connection:
        await connection.send(json.dumps({"type": "x-fal-message", "action": "hello"}))
        await connection.send(json.dumps({"n": 1}))
        error = await hear(connection)
        assert (error["type"], error["error"]) == ("x-fal-error", "INTERNAL_ERROR")
        assert "binary" in error["reason"]
        await say(connection, n=2)
        assert (await hear(connection))["total"] == 4


async def test_no_input_for_the_session_timeout_ends_it(start: Callable[..., Runner]) -> None:
    async with session(start(), "/short") as connection:
        await say(connection, n=1)
        assert (await hear(connection))["total"] == 1
        assert await hear(connection) == {
            "type": "x-fal-error",
            "error": "TIMEOUT",
            "reason": "no inputs, reconnect when needed!",
        }
        assert await close_code(connection) == 1000


async def test_inputs_that_wait_go_together_as_far_as_they_can(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    async with session(start(), "/batched") as connection:
        await say(connection, n=100, gate=str(gate))
        for number in (1, 3, 5, 7, 2, 4):
            await say(connection, n=number)
        await (await connection.ping())
        gate.touch()
        found = [await hear(connection) for _ in range(4)]
    assert [(each["total"], each["size"]) for each in found] == [(100, 1), (9, 3), (7, 1), (6, 2)]


async def test_a_wrong_input_behind_a_batch_leaves_the_batch_its_answer(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    async with session(start(), "/batched") as connection:
        await say(connection, n=100, gate=str(gate))
        await say(connection, n=1)
        await say(connection, n="many")
        await (await connection.ping())
        gate.touch()
        assert [(await hear(connection))["total"] for _ in range(2)] == [100, 1]
        assert (await hear(connection))["error"] == "INTERNAL_ERROR"


@pytest.mark.parametrize(("path", "kept"), [("/newest", [3, 4]), ("/newest?max_buffering=1", [4])])
async def test_of_too_many_inputs_the_newest_are_kept(
    start: Callable[..., Runner], tmp_path: Path, path: str, kept: list[int]
) -> None:
    gate = tmp_path / "go"
    runner = start()
    async with session(runner, path) as connection:
        await say(connection, n=0, gate=str(gate))
        runner.wait_for_line("at work")
        for number in (1, 2, 3, 4):
            await say(connection, n=number)
        await (await connection.ping())
        gate.touch()
        assert [(await hear(connection))["total"] for _ in range(1 + len(kept))] == [0, *kept]


async def test_an_iterator_streams_its_outputs_for_one_input(start: Callable[..., Runner]) -> None:
    async with session(start(), "/count") as connection:
        await say(connection, n=5)
        assert [(await hear(connection))["total"] for _ in range(5)] == [0, 1, 2, 3, 4]
        assert (await hear(connection))["error"] == "TIMEOUT"


async def test_an_async_iterator_of_inputs_gives_one_output(start: Callable[..., Runner]) -> None:
    async with session(start(), "/sum") as connection:
        for number in range(10):
            await say(connection, n=number)
        assert (await hear(connection))["total"] == 45


async def test_both_sides_may_stream(start: Callable[..., Runner]) -> None:
    runner = start()
    async with session(runner, "/running") as connection:
        for number, total in ((1, 1), (2, 3), (3, 6)):
            await say(connection, n=number)
            assert (await hear(connection))["total"] == total
    await until_free(runner)
    assert runner.call("/ended", {})[2] == b"1"


async def test_messages_may_have_a_form_of_their_own(start: Callable[..., Runner]) -> None:
    async with session(start(), "/text") as connection:
        await connection.send(b"7")
        assert await connection.recv() == "text:7"


async def test_a_caller_who_leaves_ends_the_work_and_frees_the_slot(start: Callable[..., Runner]) -> None:
    runner = start()
    async with session(runner, "/forever") as connection:
        await say(connection, n=1)
        await hear(connection)
    await until_free(runner)
    assert runner.call("/ended", {})[2] == b"1"


async def test_a_session_takes_a_slot_until_its_thread_has_ended(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    gate = tmp_path / "go"
    async with session(runner, "/unary") as connection:
        await say(connection, n=1, gate=str(gate))
        with pytest.raises(InvalidStatus) as caught:
            async with session(runner, "/unary"):
                pass
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["x-fal-nb-busy"] == "1"
        assert runner.call("/ended", {}, request_id="other")[0] == 429
    assert runner.call("/ended", {}, request_id="other")[0] == 429
    gate.touch()
    await until_free(runner)
    assert runner.call("/ended", {}, request_id="other")[0] == 200


async def test_at_the_runners_end_what_was_sent_is_answered_and_the_session_closed(
    start: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = start()
    gate = tmp_path / "go"
    async with session(runner, "/unary") as connection:
        await say(connection, n=1, gate=str(gate))
        await say(connection, n=2)
        await (await connection.ping())
        runner.send(signal.SIGTERM)
        gate.touch()
        assert [(await hear(connection))["total"] for _ in range(2)] == [2, 4]
        assert await close_code(connection) == 1012
    assert runner.wait_end() == 0


async def test_a_cancelled_session_is_closed(start: Callable[..., Runner]) -> None:
    runner = start()
    async with session(runner, "/running") as connection:
        await say(connection, n=1)
        await hear(connection)
        ended = await asyncio.to_thread(runner.call, "/calls/s1/cancel", {}, ctl=True)
        assert ended[2] == b'{"ended": true}'
        assert await close_code(connection) == 1001


async def test_raw_websockets_are_the_apps_own(start: Callable[..., Runner]) -> None:
    runner = start()
    async with session(runner, "/raw") as connection:
        await connection.send("hello")
        assert await connection.recv() == "HELLO"
        await connection.send("raise")
        assert await close_code(connection) == 1011
    runner.wait_for_line("ValueError: as told")
    async with session(runner, "/raw") as connection:
        await connection.send("again")
        assert await connection.recv() == "AGAIN"
        runner.send(signal.SIGTERM)
        assert await close_code(connection) == 1012
    assert runner.wait_end() == 0


async def test_a_path_that_does_not_exist_is_404(start: Callable[..., Runner]) -> None:
    runner = start()
    with pytest.raises(InvalidStatus) as caught:
        async with session(runner, "/nowhere"):
            pass
    assert caught.value.response.status_code == 404
    assert caught.value.response.body == b'{"detail":"Path /nowhere not found"}'
    await until_free(runner)


async def test_a_stream_without_end_is_ended_before_the_grace_is_over(start: Callable[..., Runner]) -> None:
    runner = start(grace_s=1.0)
    async with session(runner, "/forever") as connection:
        await say(connection, n=1)
        await hear(connection)
        runner.send(signal.SIGTERM)
        assert await close_code(connection) == 1012
    assert runner.wait_end() == 0
