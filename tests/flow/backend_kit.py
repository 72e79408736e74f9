"""A backend of real processes in a private home, driven over HTTP as the client does it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fal_notebook import bundle, schema
from fal_notebook.app import App
from fal_notebook.places import Places
from tests import images
from tests.stack import CALLER, NOTED

__all__ = ["FINAL", "Backend", "running_backend", "wait_for"]

FINAL = frozenset({"draining", "done", "aborted", "cancelled", "superseded", "failed"})


def wait_for(what: str, condition: Callable[[], Any], deadline_s: float = 60) -> Any:
    """Return the condition's first true value."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {deadline_s} s for: {what}"
        time.sleep(0.02)
    return value


class Backend:
    """One home and its processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        os.environ["XDG_RUNTIME_DIR"] = str(root / "x")
        (root / "x").mkdir(mode=0o700, exist_ok=True)
        self.places = Places(root / "h")
        self.run_folder = self.places.run
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, waits: bool = True) -> Backend:
        """Start the supervisor and wait until the backend is ready for callers."""
        command = [sys.executable, "-m", "fal_backend", "supervise", "--home", str(self.places.home), *flags]
        house = Path(__file__).parents[2]
        path = os.pathsep.join([str(house / "backend"), str(house)])
        with (self.root / "out.log").open("ab") as out:
            env = os.environ | {"PYTHONPATH": path, "XDG_RUNTIME_DIR": str(self.root / "x")}
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
        if waits:
            wait_for("the backend to be ready", self.is_ready)
        return self

    def is_ready(self) -> bool:
        # By hand: httpx leaves a socket open whose connection was refused.
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self.run_folder / "api.sock"))
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
                return b" 200 " in connection.recv(64)
            except OSError:
                return False

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_folder / "backend.json").read_text())
        return found

    @property
    def headers(self) -> dict[str, str]:
        if not self.places.local_key.exists():
            return {}
        key = json.loads(self.places.local_key.read_text())
        return {"authorization": f"Key {key['key_id']}:{key['key_secret']}"}

    @property
    def owner(self) -> str:
        return str(json.loads(self.places.local_key.read_text())["owner"])

    def local(self) -> httpx.Client:
        """Return a client of the private socket."""
        transport = httpx.HTTPTransport(uds=str(self.run_folder / "api.sock"), verify=False)
        return httpx.Client(
            transport=transport, base_url="http://b", headers=self.headers, timeout=60, event_hooks=NOTED
        )

    def api(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with self.local() as client:
            return client.request(method, f"/api/v1{path}", **kwargs)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self.api("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def session(self) -> str:
        return str(self.api("POST", "/sessions", json={"kind": "terminal"}).json()["session_id"])

    def ship(self, cls: type[App], **asked: Any) -> httpx.Response:
        """Upload a class and ask for its deployment."""
        spec, frozen = schema.describe(cls), bundle.freeze(cls)
        for part in [frozen.payload, *frozen.buffers]:
            digest = hashlib.sha256(part).hexdigest()
            if self.api("HEAD", f"/blobs/{digest}").status_code == 404:
                assert self.api("PUT", f"/blobs/{digest}", content=part).status_code == 201
        body = {"spec": spec.model_dump(mode="json"), "manifest": frozen.manifest.model_dump(mode="json")}
        return self.api("POST", "/deployments", json=body | asked)

    def begin(self, cls: type[App], **asked: Any) -> str:
        """Begin a deployment of a class and return its id."""
        answer = self.ship(cls, **asked)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["deployment_id"])

    def deploy(self, cls: type[App], **asked: Any) -> dict[str, Any]:
        """Deploy a class and return the deployment when its outcome is decided."""
        return self.decided(self.begin(cls, **asked))

    def decided(self, deployment_id: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            try:
                found = self.get(f"/deployments/{deployment_id}")
            except httpx.TransportError:
                return None
            return found if found["state"] in FINAL else None

        decided: dict[str, Any] = wait_for(f"the outcome of {deployment_id}", look)
        return decided

    def call(self, app: str, body: Any = None, *, key: bool = True, path: str = "") -> httpx.Response:
        url = f"{self.record['url']}/run/{self.owner}/{app}{path}"
        return CALLER.post(url, json=body or {}, headers=self.headers if key else {}, timeout=60)

    def runners(self, app: str) -> list[dict[str, Any]]:
        """Return an app's runners that have not ended."""
        rows = self.get("/runners", app=app)["runners"]
        return [row for row in rows if row["state"] not in ("TERMINATED", "CRASH_BACKOFF")]

    def events(self, until: Callable[[dict[str, Any]], bool], **where: Any) -> list[dict[str, Any]]:
        """Return the events that match, up to the one that `until` accepts."""
        found: list[dict[str, Any]] = []
        with self.local() as client, client.stream("GET", "/api/v1/events", params=where) as answer:
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    found.append(json.loads(line[5:]))
                    if until(found[-1]):
                        break
        return found

    def lines(self, path: str, **params: Any) -> list[str]:
        """Return the texts of a log that ends."""
        answer = self.api("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        data = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
        return [str(one["text"]) for one in data if "text" in one]

    def kill_backend(self) -> None:
        os.kill(int(self.record["backend_pid"]), signal.SIGKILL)

    def stop(self) -> int:
        """End everything in order and return the supervisor's exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


@contextmanager
def running_backend(*flags: str, waits: bool = True, bare: bool = False) -> Iterator[Backend]:
    """Yield a backend whose processes and folder end with it; bare: its first deployment builds an image."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    root = Path(tempfile.mkdtemp(prefix="fal-", dir="/tmp"))
    backend = Backend(root)
    if not bare:
        images.link_into(backend.places.home)
    try:
        yield backend.start(*flags, waits=waits)
    finally:
        if backend.process is not None:
            backend.stop()
        if before is None:
            os.environ.pop("XDG_RUNTIME_DIR", None)
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(root, ignore_errors=True)
