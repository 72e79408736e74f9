from __future__ import annotations

import json
from pathlib import Path

import pytest

from fal_notebook.config import Key, Profile, choose_team, resolve
from fal_notebook.control import AsyncClient
from fal_notebook.errors import AuthError, UsageError
from fal_notebook.places import Places, process_start_time


def with_key(home: Path, key_id: str = "fk_own", secret: str = "hidden-own") -> None:
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "local.json").write_text(
        json.dumps({"owner": "ada", "key_id": key_id, "key_secret": secret})
    )


def running(home: Path, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    places = Places(home)
    places.ensure_run()
    import os

    record = {"pid": os.getpid(), "start_time": process_start_time(os.getpid()), "url": url}
    places.backend_file.write_text(json.dumps(record))


def test_the_stored_key_wins_over_fal_key_for_the_embedded_backend(tmp_path: Path) -> None:
    with_key(tmp_path)
    profile = resolve(environ={"FAL_NB_HOME": str(tmp_path), "FAL_KEY": "fal-ai:theirs"})
    assert profile.is_embedded
    assert profile.key == Key("fk_own", "hidden-own")


def test_without_a_stored_key_fal_key_is_still_not_used(tmp_path: Path) -> None:
    profile = resolve(environ={"FAL_NB_HOME": str(tmp_path), "FAL_KEY": "fal-ai:theirs"})
    assert profile.key is None


def test_fal_key_belongs_to_a_named_url(tmp_path: Path) -> None:
    env = {"FAL_NB_HOME": str(tmp_path), "FAL_KEY": "k:s", "FAL_NB_URL": "http://there:8780/"}
    profile = resolve(environ=env)
    assert profile.url == "http://there:8780"
    assert profile.key == Key("k", "s")
    assert profile.source == "FAL_NB_URL"


def test_the_host_flag_wins_over_the_environment(tmp_path: Path) -> None:
    env = {"FAL_NB_HOME": str(tmp_path), "FAL_NB_URL": "http://there:8780"}
    profile = resolve(host="other:9000", environ=env)
    assert profile.url == "http://other:9000"
    assert profile.source == "--host"


def test_a_named_url_that_is_this_machines_backend_is_the_embedded_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "h"
    with_key(home)
    running(home, "http://127.0.0.1:8780", monkeypatch, tmp_path)
    env = {"FAL_NB_HOME": str(home), "FAL_NB_URL": "http://127.0.0.1:8780/", "FAL_KEY": "x:y"}
    profile = resolve(environ=env)
    assert profile.is_embedded
    assert profile.key == Key("fk_own", "hidden-own")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://id:secret@host:1"])
def test_what_is_no_address_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(host=url, environ={"FAL_NB_HOME": str(tmp_path)})
    assert "secret" not in str(caught.value).replace("'http://id:secret@host:1'", "")


def test_a_key_of_the_wrong_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="id:secret"):
        resolve(host="http://x:1", environ={"FAL_NB_HOME": str(tmp_path), "FAL_KEY": "only-one-part"})


def test_no_text_of_a_profile_shows_the_secret(tmp_path: Path) -> None:
    key = Key("fk_1", "very-hidden")
    profile = Profile(Places(tmp_path), "http://x:1", key, "--host")
    assert "very-hidden" not in f"{key} {key!r} {profile!r}"
    assert key.authorization() == "Key fk_1:very-hidden"


def test_a_key_file_that_is_no_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "local.json").write_text("nothing")
    with pytest.raises(AuthError, match="cannot be read"):
        _ = resolve(environ={"FAL_NB_HOME": str(tmp_path)}).key


@pytest.mark.parametrize(
    "url",
    [
        "http://fal.example.org:8780",
        "http://10.0.0.7:8780",
        "http://127.0.0.1.example.org",
        "http://[2001:db8::1]:8780",
    ],
)
def test_a_key_is_not_sent_to_another_machine_over_plain_http(url: str, tmp_path: Path) -> None:
    env = {"FAL_NB_URL": url, "FAL_KEY": "id:secret"}
    with pytest.raises(AuthError, match="anyone could read it") as caught:
        AsyncClient(resolve(home=tmp_path, environ=env))
    assert caught.value.code == "auth.unencrypted"
    assert "https" in str(caught.value.fix)
    assert "secret" not in str(caught.value)
    assert resolve(home=tmp_path, environ=env | {"FAL_NB_PLAIN_HTTP": "1"}).authorization() == "Key id:secret"


@pytest.mark.parametrize(
    "url", ["https://fal.example.org", "http://localhost:8780", "http://127.0.0.2:8780", "http://[::1]:8780"]
)
def test_a_key_is_sent_over_https_and_to_this_machine(url: str, tmp_path: Path) -> None:
    profile = resolve(home=tmp_path, environ={"FAL_NB_URL": url, "FAL_KEY": "id:secret"})
    assert profile.authorization() == "Key id:secret"


def test_an_address_without_a_key_may_be_any(tmp_path: Path) -> None:
    assert resolve(home=tmp_path, environ={"FAL_NB_URL": "http://fal.example.org"}).authorization() is None


def test_the_team_of_flag_environment_and_choice(tmp_path: Path) -> None:
    def team(**given: str) -> str | None:
        return resolve(home=tmp_path, team=given.pop("flag", None), environ=given).team

    assert team() is None
    choose_team(Places(tmp_path), None, "crew")
    assert team() == "crew"
    assert team(FAL_TEAM="others") == "others"
    assert team(FAL_TEAM="others", flag="mine") == "mine"
    assert team(FAL_NB_URL="http://127.0.0.1:1") is None, "a choice belongs to a backend"
    choose_team(Places(tmp_path), "http://127.0.0.1:1", "there")
    assert team(FAL_NB_URL="http://127.0.0.1:1") == "there"
    choose_team(Places(tmp_path), None, None)
    assert team() is None
    assert team(FAL_NB_URL="http://127.0.0.1:1") == "there"


def test_another_persons_key_for_this_machines_backend_counts_and_fal_ais_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fal_notebook.config._is_own", lambda url, places: True)
    places = Places(tmp_path)
    places.keys.mkdir(parents=True)
    places.local_key.write_text('{"owner": "ada", "key_id": "fk_local_1", "key_secret": "s"}')

    def key_id(key: str | None) -> str | None:
        environ = {"FAL_NB_URL": "http://127.0.0.1:1"} | ({"FAL_KEY": key} if key else {})
        profile = resolve(home=tmp_path, environ=environ)
        assert profile.is_embedded
        return profile.key.key_id if profile.key else None

    assert key_id(None) == "fk_local_1"
    assert key_id("fk_mate:secret") == "fk_mate"
    assert key_id("5a3c0f0e-0000:secret") == "fk_local_1"
