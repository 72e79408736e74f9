"""Websockets through the Jupyter server, in front of a small backend on a unix socket; all of it in this process."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jupyter_server.serverapp import ServerApp
from tornado import ioloop
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.sync.client import connect
from websockets.typing import Origin

from fal_notebook import labbackends
from fal_notebook.errors import BackendError
from fal_notebook.places import Places

INSTANCE = "00112233445566aa"
SECRET = "s3cret-of-the-local-key"
TOKEN = "the-token-of-this-test"


class Jupyter(ServerApp):  # type: ignore[misc]  # Jupyter says no types here
    """A Jupyter server in a thread of the test: it takes no signals."""

    def init_signal(self) -> None:
        """Leave the signals to pytest."""


class Behind:
    """An App that echoes frames as they are, and says who came how."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.ended: list[int | None] = []
        self.left = threading.Event()

    def refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what the gateway answers for an app that is not there."""
        self.seen.append(request)
        if "/missing/" in request.path:
            return connection.respond(404, json.dumps({"detail": "Application 'missing' not found"}))
        return None

    async def __call__(self, connection: ServerConnection) -> None:
        try:
            async for message in connection:
                if message == "end":
                    await connection.close(1012, "the runner is replaced")
                    return
                await connection.send(message)
        finally:
            self.ended.append(connection.close_code)
            self.left.set()


@pytest.fixture(scope="module")
def home() -> Iterator[Places]:
    base = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
    (base / "run").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(base / "run"))
        patch.setenv("FAL_NB_HOME", str(base / "home"))
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            patch.setenv(f"JUPYTER_{name}", str(base / name.lower()))
        patch.setenv("JUPYTER_NO_CONFIG", "1")
        patch.delenv("FAL_NB_URL", raising=False)
        places = Places(base / "home")
        places.keys.mkdir(parents=True)
        (places.home / "instance_id").write_text(INSTANCE)
        places.local_key.write_text(json.dumps({"owner": "ada", "key_id": "k1", "key_secret": SECRET}))
        places.local_key.chmod(0o600)
        places.ensure_run()
        yield places
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def jupyter(home: Places) -> Iterator[str]:
    """The websocket address of a Jupyter server with the extension."""
    started = threading.Event()
    running: dict[str, Any] = {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def serve() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())
        server = Jupyter(
            port=port,
            port_retries=0,
            open_browser=False,
            allow_root=True,
            base_url="/sub/",
            root_dir=str(home.home),
            jpserver_extensions={"fal_notebook.labserver": True, "jupyter_server_terminals": False},
            log_level="ERROR",
        )
        server.initialize(argv=[f"--IdentityProvider.token={TOKEN}"])
        loop = ioloop.IOLoop.current()
        running["stop"] = lambda: loop.add_callback(loop.stop)
        loop.add_callback(started.set)
        loop.start()
        loop.run_sync(server.web_app.settings["fal_backends"].close)
        loop.run_sync(server._cleanup)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(30)
    yield f"ws://127.0.0.1:{port}/sub/fal/ws"
    running["stop"]()
    thread.join(10)


@pytest.fixture
def behind(home: Places) -> Iterator[Behind]:
    app = Behind()
    home.api_socket.unlink(missing_ok=True)
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with unix_serve(app, str(home.api_socket), process_request=app.refuse, max_size=None):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield app
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
    home.api_socket.unlink(missing_ok=True)


def test_frames_pass_both_ways_as_they_are_and_the_key_is_added(jupyter: str, behind: Behind) -> None:
    with connect(
        f"{jupyter}/{INSTANCE}/run/ada/digits/live?max_buffering=2&token={TOKEN}", max_size=None
    ) as session:
        for message in (b"\x00\xff" * 10, "text", b"", b"x" * 3_000_000):
            session.send(message)
            assert session.recv(timeout=20) == message
    request = behind.seen[-1]
    assert request.path == "/run/ada/digits/live?max_buffering=2", "Jupyter's token goes no further"
    assert request.headers["authorization"] == f"Key k1:{SECRET}"
    assert behind.left.wait(20)
    assert behind.ended == [1000]


def test_how_a_session_ended_is_told(jupyter: str, behind: Behind) -> None:
    with connect(f"{jupyter}/{INSTANCE}/run/ada/digits/live?token={TOKEN}") as session:
        session.send("end")
        with pytest.raises(ConnectionClosed) as closed:
            session.recv(timeout=20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "the runner is replaced")


def test_a_refusal_is_said_in_a_frame(jupyter: str, behind: Behind) -> None:
    for path, reason in (
        (f"{INSTANCE}/run/ada/missing/live", "Application 'missing' not found"),
        ("ffff/run/ada/digits/live", "This Jupyter server knows no backend ffff."),
    ):
        with connect(f"{jupyter}/{path}?token={TOKEN}") as session:
            said = json.loads(session.recv(timeout=20))
            assert (said["type"], said["reason"]) == ("x-fal-error", reason)
            with pytest.raises(ConnectionClosed):
                session.recv(timeout=20)


def test_nobody_gets_in_without_signing_in_or_to_other_paths(jupyter: str, behind: Behind) -> None:
    for path in (f"{INSTANCE}/run/ada/digits/live", f"{INSTANCE}/api/v1/events?token={TOKEN}"):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"{jupyter}/{path}")
        assert refused.value.response.status_code == 403
    assert not behind.seen


def test_a_foreign_page_in_the_same_browser_gets_no_session(jupyter: str, behind: Behind) -> None:
    base = jupyter.replace("ws://", "http://").removesuffix("/fal/ws")
    with httpx.Client(timeout=20) as browser:
        browser.get(f"{base}/tree?token={TOKEN}")
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    url, own = f"{jupyter}/{INSTANCE}/run/ada/digits/live", base.removesuffix("/sub")
    with connect(url, additional_headers={"Cookie": cookies}, origin=Origin(own)) as session:
        session.send("mine")
        assert session.recv(timeout=20) == "mine"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, additional_headers={"Cookie": cookies}, origin=Origin("http://evil.example"))
    assert refused.value.response.status_code == 403


def test_a_backend_that_is_down_is_started_by_a_session(
    jupyter: str, home: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def fail(places: Places) -> None:
        starts.append(places)
        raise BackendError("It ended at its start.", code="backend.not_started")

    monkeypatch.setattr(labbackends, "ensure_backend", fail)
    with connect(f"{jupyter}/{INSTANCE}/run/ada/digits/live?token={TOKEN}") as session:
        assert json.loads(session.recv(timeout=20))["reason"] == "It ended at its start."
    assert len(starts) == 1
