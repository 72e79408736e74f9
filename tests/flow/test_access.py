"""Authorisation on a real backend: the 264 cells, and keys and members that take effect at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import fal_notebook as fal
from fal_notebook import bundle, schema
from tests.access_cells import CALLERS, MODES, OPERATIONS, expected
from tests.flow.backend_kit import FINAL, Backend, running_backend, wait_for
from tests.stack import CALLER, NOTED


class Open(fal.App):
    machine_type = "XS"
    keep_alive = 600

    @fal.endpoint("/")
    def run(self) -> dict[str, int]:
        return {"x": 1}

    @fal.endpoint("/stream")
    def stream(self) -> dict[str, int]:
        return {"x": 2}


_hosts = itertools.count()


def _next_address() -> str:
    """Return another address of this machine each time: one that shows many wrong keys is put off."""
    return f"127.0.1.{next(_hosts) % 250 + 1}"


@dataclass(frozen=True)
class Person:
    """Somebody with a key, or without one, who speaks to the backend from outside."""

    url: str
    key: str | None
    team: str | None = None

    def ask(
        self, method: str, path: str, body: Any = None, *, content: bytes | None = None
    ) -> httpx.Response:
        transport = httpx.HTTPTransport(local_address=_next_address(), verify=False)  # no TLS here
        with httpx.Client(transport=transport, timeout=60, event_hooks=NOTED) as client:
            return client.request(method, self.url + path, json=body, content=content, headers=self.headers)

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.key is None else {"authorization": f"Key {self.key}"}
        return headers | ({"x-fal-team": self.team} if self.team else {})

    def websocket(self, path: str) -> int:
        """Open a websocket, and return the status of the handshake."""
        place = urlsplit(self.url)
        lines = [f"GET {path} HTTP/1.1", f"Host: {place.netloc}", "Connection: Upgrade", "Upgrade: websocket"]
        lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        here = (_next_address(), 0)
        with socket.create_connection((place.hostname, place.port or 80), 30, here) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            return int(connection.recv(4096).split()[1])

    def upload(self) -> dict[str, Any]:
        """Upload the App and return what a deployment of it asks for."""
        spec, frozen = schema.describe(Open), bundle.freeze(Open)
        for part in [frozen.payload, *frozen.buffers]:
            digest = hashlib.sha256(part).hexdigest()
            answer = self.ask("PUT", f"/api/v1/blobs/{digest}", content=part)
            assert answer.status_code in (200, 201), answer.text
        return {"spec": spec.model_dump(mode="json"), "manifest": frozen.manifest.model_dump(mode="json")}

    def deploy(self, body: dict[str, Any]) -> None:
        answer = self.ask("POST", "/api/v1/deployments", body)
        assert answer.status_code == 201, answer.text
        path = f"/api/v1/deployments/{answer.json()['deployment_id']}"
        found = wait_for(
            "the deployment", lambda: (d := self.ask("GET", path).json())["state"] in FINAL and d
        )
        assert found["state"] in ("done", "draining"), found

    def new_key(self, **wish: Any) -> str:
        made = self.ask("POST", "/api/v1/keys", wish)
        assert made.status_code == 201, made.text
        return f"{made.json()['key_id']}:{made.json()['key_secret']}"


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running_backend() as running:
        yield running


@pytest.fixture(scope="module")
def root(backend: Backend) -> Person:
    return Person(
        str(backend.record["url"]).rstrip("/"), backend.headers["authorization"].removeprefix("Key ")
    )


@pytest.fixture(scope="module")
def people(root: Person) -> dict[str, Person]:
    """The eight kinds of caller: `crew` owns the apps, `mate` is a member of it, `stranger` is not."""

    def made(nickname: str) -> Person:
        key = root.ask("POST", "/api/v1/accounts", {"nickname": nickname}).json()["key"]
        return Person(root.url, f"{key['key_id']}:{key['key_secret']}")

    mate, stranger = made("mate"), made("stranger")
    assert root.ask("POST", "/api/v1/teams", {"nickname": "crew"}).status_code == 201
    assert root.ask("POST", "/api/v1/teams/crew/members", {"nickname": "mate"}).status_code == 201
    lead = Person(root.url, root.key, "crew")
    revoked = lead.new_key(preset="FULL")
    assert lead.ask("DELETE", f"/api/v1/keys/{revoked.partition(':')[0]}").status_code == 200
    admin = Person(root.url, lead.new_key(preset="FULL"))
    expired = Person(root.url, lead.new_key(preset="FULL", expires_at=_in_a_second()))
    wait_for("the key to expire", lambda: expired.ask("GET", "/api/v1/account").status_code == 401)
    return {
        "no key": Person(root.url, None),
        "bad": Person(root.url, "fk_nobody:wrong"),
        "revoked": Person(root.url, revoked),
        "expired": expired,
        "API other": Person(root.url, stranger.new_key(preset="API")),
        "API team": Person(root.url, mate.new_key(preset="API")),
        "API owner": Person(root.url, admin.new_key(preset="API")),
        "ADMIN": admin,
    }


def _in_a_second() -> str:
    return (datetime.now(UTC) + timedelta(seconds=1)).isoformat()


def _request_of(owner: Person, alias: str) -> str:
    """Return a request that the owner submitted, and that has ended."""
    request = str(owner.ask("POST", f"/queue/crew/{alias}", {}).json()["request_id"])
    path = f"/queue/crew/{alias}/requests/{request}/status"
    wait_for("the request's end", lambda: owner.ask("GET", path).json()["status"] == "COMPLETED")
    return request


@pytest.fixture(scope="module")
def seen(root: Person, people: dict[str, Person]) -> dict[tuple[str, str, str], int]:
    """What came of every cell; deletions last, the one that succeeds very last."""
    admin = people["ADMIN"]
    assert root.ask("PATCH", "/api/v1/accounts/crew", {"shared": True}).status_code == 200
    parts = admin.upload()
    bodies = {mode: parts | {"app_name": f"app-{mode}", "auth": mode} for mode in MODES}
    for body in bodies.values():
        admin.deploy(body)
    requests = {mode: _request_of(people["API owner"], f"app-{mode}") for mode in MODES}
    found = {}
    for operation, mode, caller in product((o for o in OPERATIONS if o != "delete"), MODES, CALLERS):
        found[caller, mode, operation] = _outcome(people[caller], operation, bodies[mode], requests[mode])
    for mode, caller in product(MODES, CALLERS):
        found[caller, mode, "delete"] = _outcome(people[caller], "delete", bodies[mode], "")
    return found


def _outcome(who: Person, operation: str, body: dict[str, Any], request: str) -> int:
    """Do it, and return 200 where it was let through, else the refusal's status."""
    alias = body["app_name"]
    queue = f"/queue/crew/{alias}"
    if operation == "ws":
        return _let_through(who.websocket(f"/ws/crew/{alias}"), 101)
    if operation == "cancel":
        # The request has ended: who may cancel it is told so.
        return _let_through(who.ask("PUT", f"{queue}/requests/{request}/cancel").status_code, 400)
    asked: dict[str, tuple[str, str, Any]] = {
        "run": ("POST", f"/run/crew/{alias}", {}),
        "queue": ("POST", queue, {}),
        "stream": ("POST", f"/run/crew/{alias}/stream", {}),
        "status": ("GET", f"{queue}/requests/{request}/status", None),
        "result": ("GET", f"{queue}/requests/{request}", None),
        "logs": ("GET", f"/api/v1/logs?app={alias}", None),
        "deploy": ("POST", "/api/v1/deployments", body),
        "delete": ("DELETE", f"/api/v1/apps/{alias}", None),
        "secrets": ("PUT", "/api/v1/secrets/CELL", {"value": "a long enough value"}),
    }
    method, path, content = asked[operation]
    return _let_through(who.ask(method, path, content).status_code, 200, 201)


def _let_through(status: int, *good: int) -> int:
    return 200 if status in good else status


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("caller", "mode", "operation"), list(product(CALLERS, MODES, OPERATIONS)))
def test_every_cell_on_the_real_backend(
    caller: str, mode: str, operation: str, seen: dict[tuple[str, str, str], int]
) -> None:
    assert seen[caller, mode, operation] == expected(caller, mode, operation)


def test_another_accounts_apps_are_not_there_and_its_team_cannot_be_named(
    root: Person, people: dict[str, Person]
) -> None:
    key = root.ask("POST", "/api/v1/accounts", {"nickname": "outsider"}).json()["key"]
    outsider = Person(root.url, f"{key['key_id']}:{key['key_secret']}")
    people["ADMIN"].deploy(people["ADMIN"].upload() | {"app_name": "hidden"})
    assert outsider.ask("GET", "/api/v1/apps/hidden").status_code == 404
    assert outsider.ask("DELETE", "/api/v1/apps/hidden").status_code == 404
    assert outsider.ask("GET", "/api/v1/apps").json()["apps"] == []
    for team in ("crew", "no-such-team"):
        acting = Person(root.url, outsider.key, team)
        assert acting.ask("GET", "/api/v1/apps/hidden").status_code == 403
    assert outsider.ask("GET", "/api/v1/accounts").status_code == 403
    assert outsider.ask("POST", "/api/v1/secrets/rotate").status_code == 403
    assert outsider.ask("POST", "/api/v1/teams/crew/members", {"nickname": "outsider"}).status_code == 404


class Reader:
    """Reads a stream of the control API until it ends."""

    def __init__(self, who: Person, path: str) -> None:
        self.lines: list[str] = []
        self.status = 0
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(who, path), daemon=True)
        self._thread.start()
        assert self._begun.wait(30)

    def _read(self, who: Person, path: str) -> None:
        with CALLER.stream("GET", who.url + path, headers=who.headers, timeout=60) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                self._begun.set()
                self.lines.append(line)

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[5:]) for line in self.lines if line.startswith("data:")]


def test_a_revoked_key_ends_its_streams_and_its_next_call(root: Person) -> None:
    keys = {name: Person(root.url, root.new_key(preset="FULL")) for name in ("kept", "revoked")}
    readers = {name: Reader(who, "/api/v1/events") for name, who in keys.items()}
    gone = str(keys["revoked"].key).partition(":")[0]
    assert root.ask("DELETE", f"/api/v1/keys/{gone}").status_code == 200
    wait_for("the stream to end", lambda: readers["revoked"].has_ended)
    assert keys["revoked"].ask("GET", "/api/v1/apps").status_code == 401
    assert not readers["kept"].has_ended
    assert keys["kept"].ask("GET", "/api/v1/apps").status_code == 200


def test_who_leaves_a_team_reads_no_more_of_it(root: Person) -> None:
    key = root.ask("POST", "/api/v1/accounts", {"nickname": "guest"}).json()["key"]
    assert root.ask("POST", "/api/v1/teams", {"nickname": "club"}).status_code == 201
    root.ask("POST", "/api/v1/teams/club/members", {"nickname": "guest"})
    own = Person(root.url, f"{key['key_id']}:{key['key_secret']}")
    guest = Person(root.url, own.key, "club")
    reader, own_reader = Reader(guest, "/api/v1/events"), Reader(own, "/api/v1/events")
    assert root.ask("DELETE", "/api/v1/teams/club/members/guest").status_code == 204
    wait_for("the stream to end", lambda: reader.has_ended)
    assert guest.ask("GET", "/api/v1/apps").status_code == 403
    assert own.ask("GET", "/api/v1/apps").status_code == 200
    assert not own_reader.has_ended


def test_events_are_their_accounts_own(root: Person, people: dict[str, Person]) -> None:
    key = root.ask("POST", "/api/v1/accounts", {"nickname": "nosy"}).json()["key"]
    nosy = Reader(Person(root.url, f"{key['key_id']}:{key['key_secret']}"), "/api/v1/events?after=0")
    own = Reader(people["ADMIN"], "/api/v1/events?after=0")
    people["ADMIN"].deploy(people["ADMIN"].upload() | {"app_name": "watched", "auth": "public"})
    wait_for("the owner's event", lambda: any(e["kind"] == "alias.switched" for e in own.events()))
    told = {event["kind"] for event in nosy.events()}
    assert not told & {"alias.switched", "deployment.state", "runner.state", "app.deleted", "secret.set"}


@pytest.mark.parametrize(
    ("preset", "good", "bad"),
    [
        ("READONLY", [("GET", "/api/v1/apps"), ("GET", "/api/v1/usage")], [("GET", "/api/v1/keys"), ("DELETE", "/api/v1/apps/x")]),
        ("DEPLOY", [("GET", "/api/v1/apps"), ("POST", "/api/v1/sessions")], [("GET", "/api/v1/secrets"), ("POST", "/rest/tokens/")]),
        ("API", [("GET", "/api/v1/account"), ("GET", "/rest/users/current")], [("GET", "/api/v1/apps")]),
    ],
)  # fmt: skip
def test_a_key_is_good_for_what_its_preset_says(
    root: Person, preset: str, good: list[tuple[str, str]], bad: list[tuple[str, str]]
) -> None:
    who = Person(root.url, root.new_key(preset=preset))
    for method, path in good:
        assert who.ask(method, path, {"kind": "terminal"} if method == "POST" else None).status_code < 300, (
            path
        )
    for method, path in bad:
        assert (
            who.ask(method, path, {"allowed_apps": ["a"]} if method == "POST" else None).status_code == 403
        ), path


def test_a_secret_is_told_once_and_kept_as_a_hash(backend: Backend, root: Person) -> None:
    key_id, _, secret = root.new_key(preset="API", description="once").partition(":")
    listed = root.ask("GET", "/api/v1/keys").text
    assert key_id in listed
    assert secret not in listed
    assert secret not in root.ask("GET", "/api/v1/audit").text
    stored = b"".join(path.read_bytes() for path in backend.places.store.iterdir() if path.is_file())
    assert key_id.encode() in stored
    assert secret.encode() not in stored


def test_acts_are_recorded_with_who_and_from_where(root: Person) -> None:
    root.ask("POST", "/api/v1/accounts", {"nickname": "recorded"})
    root.ask("PATCH", "/api/v1/accounts/recorded", {"shared": True})
    acts = root.ask("GET", "/api/v1/audit?all=1&limit=2").json()["acts"]
    assert [act["action"] for act in acts] == ["account.set", "account.create"]
    assert acts[0]["address"].startswith("127.0.1.")
    assert (acts[0]["before"]["shared"], acts[0]["after"]["shared"]) == (False, True)
    assert acts[0]["key_id"] == str(root.key).partition(":")[0]


def test_the_backend_keeps_an_admin_and_a_team_somebody_who_manages_it(root: Person) -> None:
    me = root.ask("GET", "/api/v1/account").json()["nickname"]
    assert root.ask("PATCH", f"/api/v1/accounts/{me}", {"admin": False}).status_code == 400
    root.ask("POST", "/api/v1/teams", {"nickname": "alone"})
    assert root.ask("DELETE", f"/api/v1/teams/alone/members/{me}").status_code == 400
    assert root.ask("POST", "/api/v1/teams", {"nickname": "alone"}).status_code == 409
    assert root.ask("POST", "/api/v1/teams", {"nickname": "Not a name"}).status_code == 400


def test_an_upload_token_ends_with_its_key(root: Person) -> None:
    who = Person(root.url, root.new_key(preset="API"))
    token = who.ask("POST", "/rest/storage/auth/token", {}).json()["token"]

    def upload() -> int:
        headers = {"authorization": f"Bearer {token}", "x-fal-file-name": "a.txt"}
        return CALLER.post(f"{root.url}/files/upload", content=b"a", headers=headers, timeout=30).status_code

    assert upload() == 200
    assert root.ask("DELETE", f"/api/v1/keys/{str(who.key).partition(':')[0]}").status_code == 200
    assert upload() == 401
