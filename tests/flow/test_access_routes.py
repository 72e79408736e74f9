"""Every route of the control API, as the running backend tells them, and what comes of wrong keys at each door."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fal_backend.api.rates import RateLimits

from tests.access_cells import SCOPES, scopes_for
from tests.flow.backend_kit import Backend, running_backend
from tests.stack import CALLER


def _status(url: str, key: str | None, method: str, path: str) -> int:
    """Return how an empty request is answered; an answer may have no end."""
    headers = {} if key is None else {"authorization": f"Key {key}"}
    with CALLER.stream(method, url + path, headers=headers, timeout=30) as answer:
        return answer.status_code


def _keys(url: str, authorization: str) -> dict[str, str]:
    """Make somebody who does not manage the backend, and a key of each scope."""

    def asked(path: str, proof: str, body: dict[str, str]) -> dict[str, Any]:
        answer: httpx.Response = CALLER.post(url + path, json=body, headers={"authorization": proof})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    first = asked("/api/v1/accounts", authorization, {"nickname": "tenant"})["key"]
    own = f"Key {first['key_id']}:{first['key_secret']}"
    presets = {scope: "FULL" if scope == "ADMIN" else scope for scope in SCOPES}
    made = {scope: asked("/api/v1/keys", own, {"preset": preset}) for scope, preset in presets.items()}
    return {scope: f"{key['key_id']}:{key['key_secret']}" for scope, key in made.items()}


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running_backend() as running:
        yield running


def test_every_route_asks_for_the_right_that_is_written_down(backend: Backend) -> None:
    url = str(backend.record["url"]).rstrip("/")
    keys = _keys(url, backend.headers["authorization"])
    paths = CALLER.get(f"{url}/api/v1/openapi.json", timeout=30).json()["paths"]
    routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
    assert len(routes) > 60
    for method, path in routes:
        good = scopes_for(method, path)
        place = re.sub(r"\{\w+\}", "0" * 64 if "sha256" in path else "nobody", path)
        nobody = _status(url, None, method, place)
        assert (nobody == 401) == (good is not None), (method, path, nobody)
        if good is None:
            continue
        for scope in SCOPES:
            # What comes of a request that says nothing is not asked here, only whether it is let in.
            if method == "GET" or scope not in good:
                found = _status(url, keys[scope], method, place)
                assert (found not in (401, 403)) == (scope in good), (method, path, scope, found)


@pytest.mark.parametrize(
    ("address", "method", "path", "good"),
    [
        ("127.0.2.1", "POST", "/files/upload", 200),
        ("127.0.2.2", "POST", "/rest/storage/upload/initiate", 400),
        ("127.0.2.3", "GET", "/api/v1/apps", 200),
    ],
)
def test_an_address_with_too_many_wrong_keys_is_put_off_and_its_good_key_is_not(
    backend: Backend, address: str, method: str, path: str, good: int
) -> None:
    url = str(backend.record["url"]).rstrip("/") + path
    transport = httpx.HTTPTransport(local_address=address, verify=False)  # no TLS here
    with httpx.Client(transport=transport, timeout=30) as caller:

        def ask(authorization: str) -> httpx.Response:
            return caller.request(method, url, content=b"x", headers={"authorization": authorization})

        wrong = [ask("Key fk_nobody:guess") for _ in range(RateLimits().wrong_keys + 20)]
        statuses = [answer.status_code for answer in wrong]
        assert set(statuses) == {401, 429}
        put_off = wrong[statuses.index(429)]
        assert statuses.index(429) >= RateLimits().wrong_keys
        assert int(put_off.headers["retry-after"]) > 0
        assert put_off.json()["error_type"] == "rate_limited"
        assert ask(backend.headers["authorization"]).status_code == good
