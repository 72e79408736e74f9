from __future__ import annotations

import hashlib
from typing import Any

import pytest
from fal_backend.api.auth import Auth
from fal_backend.api.edge import Edge
from fal_backend.api.gateway import Gateway
from fal_backend.domain.records import Account, ApiKey
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.routes import RouteInfo

from fal_notebook.wire import AuthMode


@pytest.fixture
def dispatch() -> Dispatch:
    return Dispatch(lambda _: None, lambda _, __: None, lambda _: None)


@pytest.fixture
def edge(dispatch: Dispatch) -> Edge:
    return Edge(
        Gateway(dispatch, Auth([], [])),
        None,
        None,
        url="http://gpu-box:8780",
        allow_hosts=["Nodes.Example"],
        allow_origins=["https://lab.example/"],
        ready=lambda: True,
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"localhost:8780", None),
        (b"127.0.0.1", None),
        (b"[::1]:1", None),
        (b"gpu-box:8780", None),
        (b"nodes.example", None),
        (b"localhost.", None),
        (b"evil.example", 421),
        (b"localhost.evil.example", 421),
        (b"", 421),
        (b"localhost:x", 421),
        (None, 400),
    ],
)
def test_host_names(edge: Edge, host: bytes | None, status: int | None) -> None:
    found = {} if host is None else {b"host": host}
    for _ in range(2):  # a good one is remembered
        refused = edge.refusal(b"GET", found, is_local=False)
        assert (refused and refused[0]) == status
    assert edge.refusal(b"GET", found, is_local=True) is None


@pytest.mark.parametrize(
    ("origin", "may"),
    [
        (b"http://localhost:8780", True),
        (b"https://localhost:8780", True),
        (b"https://lab.example", True),
        (b"http://lab.example", False),
        (b"http://localhost:8888", False),
        (b"null", False),
    ],
)
def test_origins(edge: Edge, origin: bytes, may: bool) -> None:
    found = {b"host": b"localhost:8780", b"origin": origin}
    assert (edge.refusal(b"POST", found, is_local=False) is None) is may
    assert edge.refusal(b"GET", found, is_local=False) is None
    assert edge.refusal(b"POST", {**found, b"authorization": b"Key x"}, is_local=False) is None


def test_counts_are_rendered_for_prometheus(dispatch: Dispatch) -> None:
    dispatch.set_route(RouteInfo("me", "app", "acc", AuthMode.PUBLIC, "rev"))
    route = dispatch.find(b"me/app")
    assert route is not None
    for status, duration_s in ((200, 0.002), (200, 0.3), (503, 1000.0)):
        route.tally.count(status, duration_s)
    text = Gateway(dispatch, Auth([], [])).metrics().decode()
    assert 'fal_nb_requests_total{app="me/app",revision="rev",code="200"} 2\n' in text
    labels = 'app="me/app",code="2xx"'
    assert f'fal_nb_request_duration_seconds_bucket{{{labels},le="0.0025"}} 1\n' in text
    assert f'fal_nb_request_duration_seconds_bucket{{{labels},le="+Inf"}} 2\n' in text
    assert 'fal_nb_request_duration_seconds_bucket{app="me/app",code="5xx",le="600.0"} 0\n' in text
    assert dispatch.served("me", "app") == 3
    dispatch.drop_route("me", "app")
    assert dispatch.served("me", "app") == 0


def _key(id: str, account: str, scope: str) -> ApiKey:
    return ApiKey(id, account, hashlib.sha256(b"secret").hexdigest(), scope, created_at=0)


@pytest.mark.parametrize(
    ("address", "key", "status"),
    [
        ("127.0.0.1", None, 200),
        ("::1", None, 200),
        (None, None, 200),
        ("10.0.0.7", None, 401),
        ("::ffff:127.0.0.1", None, 401),
        ("10.0.0.7", b"Key reads:wrong", 401),
        ("10.0.0.7", b"Key theirs:secret", 403),
        ("10.0.0.7", b"Key calls:secret", 403),
        ("10.0.0.7", b"Key reads:secret", 200),
    ],
)
async def test_counts_name_everybodys_apps_and_are_for_admins_and_this_machine(
    dispatch: Dispatch, address: str | None, key: bytes | None, status: int
) -> None:
    accounts = [Account("a", "root", 0, is_admin=1), Account("b", "guest", 0)]
    keys = [_key("reads", "a", "READONLY"), _key("calls", "a", "API"), _key("theirs", "b", "ADMIN")]
    auth = Auth(accounts, keys)
    edge = Edge(Gateway(dispatch, auth), None, None, auth=auth, url="http://gpu-box:8780", ready=lambda: True)
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if key is None else [(b"authorization", key)]
    client = None if address is None else (address, 1)
    scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": headers, "client": client}
    await edge(scope, None, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == status
    assert (b"fal_nb" in sent[1]["body"]) == (status == 200)
