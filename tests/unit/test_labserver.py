"""The Jupyter server extension in front of a small backend on a unix socket; all of it in this process."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from jupyter_server.serverapp import ServerApp
from tornado import ioloop

from fal_notebook import labbackends, labserver
from fal_notebook.errors import BackendError
from fal_notebook.places import Places

INSTANCE = "00112233445566aa"
SECRET = "s3cret-of-the-local-key"
TOKEN = "the-token-of-this-test"


class Behind:
    """A backend that says what it was asked."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.left = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while scope["method"] in ("POST", "PUT"):
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["raw_path"].decode()
        query = scope["query_string"].decode()
        self.seen.append({"path": path, "query": query, "headers": headers})
        if path.endswith("/forever"):
            await self._forever(receive, send)
            return
        status = 404 if path.endswith("/missing") else 200
        answer = [
            (b"content-type", b"text/plain; charset=x-odd"),
            (b"set-cookie", b"a=b"),
            (b"access-control-allow-origin", b"*"),
            (b"x-fal-request-id", b"r1"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": f"{scope['method']} {path} {len(body)}".encode()})

    async def _forever(self, receive: Any, send: Any) -> None:
        stream = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": stream})
        await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.set()


class Jupyter(ServerApp):  # type: ignore[misc]  # Jupyter says no types here
    """A Jupyter server in a thread of the test: it takes no signals."""

    def init_signal(self) -> None:
        """Leave the signals to pytest."""


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
    """The address of a Jupyter server with the extension."""
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
    yield f"http://127.0.0.1:{port}/sub"
    running["stop"]()
    thread.join(10)


@pytest.fixture
def behind(home: Places) -> Iterator[Behind]:
    app = Behind()
    door = socket.socket(socket.AF_UNIX)
    home.api_socket.unlink(missing_ok=True)
    door.bind(str(home.api_socket))
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run([door]), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.005)
    yield app
    server.should_exit = True
    thread.join(10)
    home.api_socket.unlink(missing_ok=True)


@pytest.fixture
def http(jupyter: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"token {TOKEN}"}
    with httpx.Client(base_url=jupyter, headers=headers, timeout=20) as client:
        yield client


def test_key_is_added_on_the_way_and_nothing_dangerous_comes_back(http: httpx.Client, behind: Behind) -> None:
    answer = http.post(
        f"/fal/i/{INSTANCE}/run/ada/digits/x",
        content=b"{}",
        params={"q": "1"},
        headers={"x-mine": "1", "content-type": "application/json", "x-fal-nb-call": "x", "cookie": "c=d"},
    )
    assert answer.status_code == 200
    assert answer.content == b"POST /run/ada/digits/x 2"
    seen = behind.seen[-1]
    assert seen["headers"]["authorization"] == f"Key k1:{SECRET}"
    assert seen["headers"]["content-type"] == "application/json"
    assert not {"x-mine", "x-fal-nb-call", "cookie"} & set(seen["headers"])
    assert seen["query"] == "q=1"
    assert SECRET not in str(answer.headers) + answer.text
    assert "a=b" not in str(answer.headers.get_list("set-cookie"))
    # Jupyter says its own; the one from behind is gone.
    assert answer.headers.get("access-control-allow-origin") != "*"
    assert answer.headers["x-fal-request-id"] == "r1"
    assert answer.headers["content-type"] == "text/plain; charset=x-odd"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_large_bodies_pass_whole(http: httpx.Client, behind: Behind) -> None:
    answer = http.post(f"/fal/i/{INSTANCE}/run/ada/digits", content=b"x" * 3_000_000)
    assert answer.content == b"POST /run/ada/digits 3000000"


def test_answers_keep_their_status(http: httpx.Client, behind: Behind) -> None:
    assert http.get(f"/fal/i/{INSTANCE}/run/ada/digits/missing").status_code == 404


def test_refused_paths_never_reach_the_backend(http: httpx.Client, behind: Behind) -> None:
    answer = http.get(f"/fal/i/{INSTANCE}/api/v1/keys")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "backend.path_refused"
    assert not behind.seen


def test_unknown_instances_are_not_found(http: httpx.Client, behind: Behind) -> None:
    early = http.get("/fal/i/ffff/api/v1/apps")
    assert early.status_code == 404
    assert early.headers["connection"] == "close", "answered before its body was read"
    assert http.get("/fal/instances/ffff").status_code == 404
    assert http.get(f"/fal/instances/{INSTANCE}").json()["instance_id"] == INSTANCE
    assert http.get("/fal/instances/local").json()["instance_id"] == INSTANCE


def test_nobody_gets_in_without_signing_in(jupyter: str, behind: Behind) -> None:
    for path in (f"fal/i/{INSTANCE}/api/v1/apps", "fal/instances", "fal/static/fal-ui.js"):
        assert httpx.get(f"{jupyter}/{path}").status_code in (302, 403), path
    assert not behind.seen


def test_a_browser_without_the_xsrf_header_may_not_act(jupyter: str, behind: Behind) -> None:
    with httpx.Client(base_url=jupyter, timeout=20) as browser:
        browser.get(f"/api/status?token={TOKEN}")
        browser.get(f"/lab?token={TOKEN}")
        path = f"/fal/i/{INSTANCE}/run/ada/digits"
        assert browser.post(path, content=b"{}").status_code == 403
        assert not behind.seen


def test_a_reader_who_leaves_ends_the_call_behind(http: httpx.Client, behind: Behind) -> None:
    with http.stream("GET", f"/fal/i/{INSTANCE}/run/ada/digits/forever") as answer:
        assert next(answer.iter_bytes()) == b"data: one\n\n"
    assert behind.left.wait(20)


def test_a_missing_backend_is_said_with_the_command_that_starts_it(
    http: httpx.Client, home: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def fail(places: Places) -> None:
        starts.append(places)
        raise BackendError("It ended at its start.", fix="Read the log.", code="backend.not_started")

    monkeypatch.setattr(labbackends, "ensure_backend", fail)
    http.get(f"/fal/i/{INSTANCE}/api/v1/apps")
    starts.clear()
    answer = http.get(f"/fal/i/{INSTANCE}/api/v1/apps")
    assert answer.status_code == 502
    assert answer.headers["x-fal-offline"] == "1"
    problem = answer.json()["error"]
    assert problem["details"]["command"] == "fal-nb serve"
    assert "fal-nb serve" in problem["fix"]
    assert not starts, "reading again must not start it"
    act = http.post(f"/fal/instances/{INSTANCE}/start")
    assert (act.status_code, act.json()["error"]["code"]) == (502, "backend.not_started")
    assert len(starts) == 1
    assert http.post(f"/fal/i/{INSTANCE}/run/ada/digits", content=b"{}").status_code == 502
    assert len(starts) == 2


def test_bundle_is_served_by_its_hash(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labserver.StaticHandler, "folder", tmp_path)
    assert http.get("/fal/static/fal-ui.js").status_code == 404
    (tmp_path / "fal-ui.js").write_text("export {};")
    digest = hashlib.sha256(b"export {};").hexdigest()[:12]
    answer = http.get("/fal/static/fal-ui.js", params={"v": digest})
    assert answer.headers["content-type"].startswith("text/javascript")
    assert "immutable" in answer.headers["cache-control"]
    assert http.get("/fal/static/fal-ui.js").headers["cache-control"] == "no-cache"
