from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from fal_notebook.client import Client
from fal_notebook.config import Profile
from fal_notebook.control import AsyncClient
from fal_notebook.errors import AuthError, BackendError, FalError, MachineError, NotFoundError
from fal_notebook.loop import Feed, Loop, private_loop
from fal_notebook.places import Places
from fal_notebook.profiles import Key
from fal_notebook.sse import encode
from fal_notebook.wire import Event

Answer = Callable[[httpx.Request], httpx.Response]
INSTANCE = {
    "instance_id": "i",
    "version": "0.1.0",
    "owner": "ada",
    "url": "http://x:1",
    "python": "3.11",
    "pid": 1,
}


def core(answer: Answer, *, url: str | None = "https://there:8780", key: bool = True) -> AsyncClient:
    profile = Profile(Places(Path("/nowhere")), url, Key("fk", "hidden") if key else None, "FAL_NB_URL")
    return AsyncClient(profile, transport=httpx.MockTransport(answer))


def event(n: int) -> bytes:
    made = Event.model_validate({"n": n, "at": "2026-01-01T00:00:00Z", "subject": "app/a", "kind": "k"})
    return encode(made.model_dump_json(), id=n)


def test_the_sync_face_works_inside_a_running_loop() -> None:
    async def inside() -> str:
        return Client(core(lambda _: httpx.Response(200, json=INSTANCE))).instance().owner

    assert asyncio.run(inside()) == "ada"


async def test_a_blob_that_is_there_is_not_sent_again() -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(f"{request.method} {request.url.path}")
        return httpx.Response(200)

    digest = await core(answer).upload(b"abc")
    assert digest == hashlib.sha256(b"abc").hexdigest()
    assert seen == [f"HEAD /api/v1/blobs/{digest}"]


async def test_a_missing_blob_is_put_under_its_hash() -> None:
    stored: dict[str, bytes] = {}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(404)
        stored[request.url.path.rpartition("/")[2]] = request.content
        return httpx.Response(201)

    digest = await core(answer).upload(b"abc")
    assert stored == {digest: b"abc"}


async def test_reads_are_repeated_while_a_backend_restarts() -> None:
    tries = iter([httpx.ReadError("cut"), httpx.RemoteProtocolError("cut"), None])

    def answer(request: httpx.Request) -> httpx.Response:
        error = next(tries)
        if error:
            raise error
        return httpx.Response(200, json=INSTANCE)

    assert (await core(answer).instance()).owner == "ada"


async def test_a_deletion_is_not_repeated() -> None:
    tries: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        tries.append(request.method)
        raise httpx.ReadError("cut")

    with pytest.raises(BackendError):
        await core(answer).delete_app("a")
    assert tries == ["DELETE"]


async def test_a_backend_that_is_down_is_told_with_its_address_and_how_to_start_it() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    with pytest.raises(BackendError) as caught:
        await core(answer).machines()
    assert "https://there:8780" in caught.value.message
    assert "fal-nb serve" in (caught.value.fix or "")


async def test_another_servers_404_is_told_as_the_wrong_address() -> None:
    with pytest.raises(BackendError) as caught:
        await core(lambda _: httpx.Response(404, text="nginx")).instance()
    assert "no fal-notebook backend" in caught.value.message or "gave" in caught.value.message
    assert caught.value.code.startswith("backend.")


@pytest.mark.parametrize(("key", "word"), [(True, "does not accept"), (False, "wants a key")])
async def test_a_bad_key_and_no_key_are_told_apart_and_the_key_is_not_shown(key: bool, word: str) -> None:
    body = {"error": {"code": "auth.invalid", "message": "no"}}
    with pytest.raises(AuthError, match=word) as caught:
        await core(lambda _: httpx.Response(401, json=body), key=key).machines()
    assert "hidden" not in str(caught.value)
    assert "FAL_KEY" in (caught.value.fix or "")


async def test_errors_of_the_backend_come_back_as_their_class() -> None:
    body = {
        "error": {
            "code": "machine.unknown",
            "message": "There is no `Z`.",
            "fix": "Use S.",
            "details": {"a": 1},
        }
    }
    with pytest.raises(MachineError) as caught:
        await core(lambda _: httpx.Response(400, json=body)).machines()
    assert (caught.value.fix, caught.value.details) == ("Use S.", {"a": 1})


async def test_a_missing_app_is_a_not_found_error() -> None:
    body = {"error": {"code": "app.not_found", "message": "no"}}
    with pytest.raises(NotFoundError):
        await core(lambda _: httpx.Response(404, json=body)).app("a")


async def test_events_go_on_from_the_last_number_when_the_stream_is_cut() -> None:
    asked: list[str] = []
    bodies = iter([event(1) + event(2), event(3), event(4)])

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["after"])
        return httpx.Response(200, content=next(bodies))

    numbers = []
    async for found in core(answer).events(0, app="a"):
        numbers.append(found.n)
        if len(numbers) == 4:
            break
    assert numbers == [1, 2, 3, 4]
    assert asked == ["0", "2", "3"]


async def test_a_refused_stream_raises_instead_of_trying_for_ever() -> None:
    body = {"error": {"code": "auth.invalid", "message": "no"}}
    with pytest.raises(AuthError):
        async for _ in core(lambda _: httpx.Response(401, json=body)).events(0):
            pass


async def test_an_error_inside_a_stream_is_raised() -> None:
    data = json.dumps({"error": {"code": "runner.not_found", "message": "no such runner"}})
    answer = httpx.Response(200, content=encode(data, event="error"))
    with pytest.raises(NotFoundError, match="no such runner"):
        await core(lambda _: answer).read_logs({"runner": "r"})


async def test_an_answer_of_another_shape_is_told_as_such() -> None:
    with pytest.raises(BackendError, match="unexpected answer"):
        await core(lambda _: httpx.Response(200, json={"x": 1})).machines()


def test_an_interrupt_ends_a_wait_at_once_and_cancels_it() -> None:
    loop = Loop()
    cancelled = threading.Event()

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.run(long())
    assert time.monotonic() - began < 30
    assert cancelled.wait(10)


def test_a_feed_joins_streams_and_raises_their_errors() -> None:
    async def numbers() -> object:
        yield 1
        raise FalError("broken")

    with Feed[int](private_loop()) as feed:
        feed.follow("n", numbers())  # type: ignore[arg-type]
        assert feed.take(10) == 1
        with pytest.raises(FalError, match="broken"):
            feed.take(10)
        assert feed.take(0) is None


def test_the_session_is_opened_once_for_a_process() -> None:
    opened: list[object] = []

    def answer(request: httpx.Request) -> httpx.Response:
        opened.append(json.loads(request.content))
        return httpx.Response(201, json={"session_id": f"s-{len(opened)}", "pid": os.getpid()})

    from fal_notebook.wire import SessionRequest

    client = Client(core(answer))
    request = SessionRequest(kind="kernel")
    assert client.session(request) == client.session(request) == "s-1"
    client.forget_session()
    assert client.session(request) == "s-2"
