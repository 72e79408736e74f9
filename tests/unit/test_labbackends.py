"""What may pass to which backend, and when one is given the key: addresses answered by a fake of HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from fal_notebook import labbackends
from fal_notebook.config import Profile, resolve
from fal_notebook.errors import AuthError
from fal_notebook.places import Places
from fal_notebook.profiles import Key, Saved, change, choose_team

OWN_ID = "00112233445566aa"
SECRET = b"s" * 32
Answer = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def home(tmp_path: Path) -> Places:
    places = Places(tmp_path)
    places.keys.mkdir()
    places.instance_secret.write_bytes(SECRET)
    (places.home / "instance_id").write_text(OWN_ID)
    return places


def named(home: Places, url: str, answer: Answer) -> labbackends.Backend:
    profile = Profile(home, url, Key("k1", "hidden"), "FAL_NB_URL")
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=url)
    return labbackends.Backend(profile, http)


def says(instance_id: str, url: str, secret: bytes = b"other") -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        assert "authorization" not in request.headers, "who answers is asked without the key"
        proof = hmac.new(secret, (request.url.params["nonce"] + url).encode(), hashlib.sha256).hexdigest()
        return httpx.Response(200, json={"instance_id": instance_id, "url": url, "proof": proof})

    return answer


async def test_a_named_address_gets_its_key_over_https_and_on_this_machine(home: Places) -> None:
    for url in (
        "https://fal.example.org",
        "http://127.0.0.1:8780",
        "http://localhost:1",
        "http://[::1]:8780",
    ):
        header = await named(home, url, says("ffff", url)).key_header()
        assert header == {"authorization": "Key k1:hidden"}, url


async def test_a_key_is_never_sent_where_others_can_read_it(home: Places) -> None:
    for url in ("http://fal.example.org", "http://10.0.0.7:8780", "http://127.0.0.1.example.org"):
        backend = named(home, url, says("ffff", url))
        with pytest.raises(AuthError, match="anyone could read it") as caught:
            await backend.key_header()
        assert caught.value.code == "auth.unencrypted"
        assert url in caught.value.message
        assert "hidden" not in json.dumps(caught.value.to_dict())


async def test_what_is_no_backend_gets_no_key(home: Places) -> None:
    answers = [httpx.Response(404), httpx.Response(200, text="<html>"), httpx.Response(200, json=[1])]
    for answer in answers:
        with pytest.raises(AuthError) as caught:
            await named(home, "https://x.example.org", lambda _, answer=answer: answer).key_header()  # type: ignore[misc]
        assert caught.value.code == "auth.foreign"


async def test_who_says_to_be_this_homes_backend_must_prove_it(home: Places) -> None:
    url = "http://127.0.0.1:8780"
    assert await named(home, url, says(OWN_ID, url, SECRET)).key_header()
    assert await named(home, "http://localhost:8780", says(OWN_ID, url, SECRET)).key_header()
    with pytest.raises(AuthError) as caught:
        await named(home, url, says(OWN_ID, url)).key_header()
    assert caught.value.code == "auth.impostor"


async def test_a_proof_that_was_passed_on_counts_for_nothing(home: Places) -> None:
    true_one = says(OWN_ID, "http://127.0.0.1:8780", SECRET)
    with pytest.raises(AuthError, match="cannot prove it"):
        await named(home, "http://127.0.0.1:9999", true_one).key_header()


async def test_a_home_whose_secret_is_gone_trusts_nobody_of_its_name(home: Places) -> None:
    url = "http://127.0.0.1:8780"
    home.instance_secret.unlink()
    with pytest.raises(AuthError, match="cannot prove it"):
        await named(home, url, says(OWN_ID, url, SECRET)).key_header()


async def test_a_check_is_believed_for_a_while_only(home: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    url = "https://fal.example.org"

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return says("ffff", url)(request)

    backend = named(home, url, answer)
    await backend.key_header()
    await backend.key_header()
    assert len(asked) == 1
    now = labbackends.time.monotonic() + labbackends.PROOF_S + 1
    monkeypatch.setattr(labbackends.time, "monotonic", lambda: now)
    await backend.key_header()
    assert len(asked) == 2


async def test_an_address_without_a_key_is_asked_nothing(home: Places) -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    url = "http://fal.example.org"
    backend = labbackends.Backend(
        Profile(home, url), httpx.AsyncClient(transport=httpx.MockTransport(never), base_url=url)
    )
    assert await backend.key_header() == {}


def test_only_listed_paths_may_pass() -> None:
    assert labbackends.is_allowed("GET", "api/v1/apps/digits")
    assert labbackends.is_allowed("DELETE", "api/v1/apps/digits-dev-0a1b2c")
    assert labbackends.is_allowed("POST", "run/ada/digits/sub/path")
    assert labbackends.is_allowed("POST", "api/v1/deployments/d-1/leave")
    assert labbackends.is_allowed("POST", "api/v1/apps/digits/revision")
    assert labbackends.is_allowed("GET", "api/v1/watch")
    assert labbackends.is_allowed("GET", "api/v1/plans/p-1/deployment")
    assert labbackends.is_allowed("GET", "run/ada/digits/openapi.json")
    for method, path in (
        ("POST", "api/v1/deployments"),
        ("PUT", "api/v1/blobs/" + "0" * 64),
        ("GET", "api/v1/keys"),
        ("GET", "api/v1/secrets/x"),
        ("POST", "api/v1/sessions"),
        ("GET", "metrics"),
        ("GET", "api/v1/apps/../keys"),
        ("GET", "api/v1/apps/%2e%2e/keys"),
        ("GET", "run/ada//keys"),
        ("GET", "run/ada/digits/%2F%2Fevil"),
        ("GET", "http://evil/run/a/b"),
        ("POST", "api/v1/apps/digits"),
        ("POST", "api/v1/apps/digits/rollout"),
        ("DELETE", "api/v1/apps/digits/queue"),
        ("GET", "run/ada/di gits"),
    ):
        assert not labbackends.is_allowed(method, path), path


def test_files_may_pass_by_the_addresses_of_storage_only() -> None:
    id = "0" * 32
    assert labbackends.is_allowed("POST", "rest/storage/upload/initiate")
    assert labbackends.is_allowed("POST", "rest/storage/upload/initiate-multipart")
    assert labbackends.is_allowed("GET", f"files/{id}/a%20b.png")
    assert labbackends.is_allowed("PUT", f"files/{id}/big.npy/multipart/{id}/12")
    assert labbackends.is_allowed("POST", f"files/{id}/big.npy/multipart/{id}/complete")
    for method, path in (
        ("POST", "rest/storage/auth/token"),
        ("POST", "rest/tokens/"),
        ("DELETE", f"files/{id}/a.png"),
        ("POST", "files/upload"),
        ("GET", f"files/{id}/..%2fkeys"),
        ("GET", f"files/{id}/a/b"),
        ("GET", "files/x/a.png"),
    ):
        assert not labbackends.is_allowed(method, path), path


def test_websockets_lead_to_apps_only() -> None:
    assert labbackends.is_socket("run/ada/digits/realtime")
    for path in ("api/v1/events", "ws/ada/digits", "run/ada", "run/ada/digits/../x", "files/x"):
        assert not labbackends.is_socket(path), path


def used(backends: labbackends.Backends) -> labbackends.Backend:
    (found,) = backends
    return found


async def test_a_login_holds_at_once_and_a_logout_ends_what_had_the_key(home: Places) -> None:
    backends = labbackends.Backends(lambda: resolve(home=home.home, environ={}))
    own = used(backends)
    assert own.profile.is_embedded
    work = Saved("work", "https://fal.example.org", Key("fk_w", "s"))
    change(home, lambda kept: kept.with_(work).using("work"))
    there = await backends.find(labbackends.LOCAL)
    assert there is not None
    assert (there.profile.url, there.profile.key) == (work.host, work.key)
    await asyncio.sleep(0)
    assert own.http.is_closed
    change(home, lambda kept: kept.with_(Saved("work", work.host)))
    assert used(backends).profile.key is None
    await asyncio.sleep(0)
    assert there.http.is_closed
    await backends.close()


async def test_a_team_or_an_unreadable_file_leave_the_backend_as_it_is(home: Places) -> None:
    backends = labbackends.Backends(lambda: resolve(home=home.home, environ={}))
    own = used(backends)
    choose_team(home, None, "crew")
    assert used(backends) is own
    home.profile.write_text("{")
    assert used(backends) is own
    assert not own.http.is_closed
    await backends.close()
