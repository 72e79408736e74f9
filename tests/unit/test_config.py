from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fal_notebook.config import Profile, resolve
from fal_notebook.control import AsyncClient
from fal_notebook.errors import AuthError, NotFoundError, UsageError
from fal_notebook.places import Places, process_start_time
from fal_notebook.profiles import Kept, Key, Saved, change, choose_team, read, write


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


ELSEWHERE = "https://fal.example.org"


def kept(home: Path, *saved: Saved, used: str | None = None) -> None:
    found = Kept()
    for one in saved:
        found = found.with_(one)
    write(Places(home), found.using(used))


def test_the_profile_in_use_names_backend_and_key(tmp_path: Path) -> None:
    kept(tmp_path, Saved("work", ELSEWHERE, Key("fk_w", "s")), Saved("bare", ELSEWHERE), used="work")
    profile = resolve(home=tmp_path, environ={})
    assert (profile.url, profile.key, profile.name) == (ELSEWHERE, Key("fk_w", "s"), "work")
    assert profile.key_source == "profile `work`"
    assert resolve(home=tmp_path, environ={"FAL_PROFILE": "bare"}).key is None
    assert resolve(home=tmp_path, environ={"FAL_PROFILE": "local"}).is_embedded
    with pytest.raises(NotFoundError, match="Did you mean `work`"):
        resolve(home=tmp_path, environ={"FAL_PROFILE": "wrok"})


def test_flags_win_over_the_environment_and_that_over_profiles(tmp_path: Path) -> None:
    kept(tmp_path, Saved("work", ELSEWHERE, Key("fk_w", "s")), used="work")

    def found(host: str | None = None, **environ: str) -> tuple[str | None, str | None]:
        profile = resolve(home=tmp_path, host=host, environ=environ)
        return profile.url, profile.key and profile.key.key_id

    assert found() == (ELSEWHERE, "fk_w")
    assert found(FAL_KEY="fk_mine:s") == (ELSEWHERE, "fk_mine")
    assert found(FAL_KEY="5a3c0f0e-0000:fal-ai") == (ELSEWHERE, "fk_w"), "fal.ai's key goes nowhere unasked"
    assert found(FAL_NB_URL="https://b", FAL_KEY="k:s") == ("https://b", "k")
    assert found(FAL_NB_URL="https://b") == ("https://b", None), "a key is for its address only"
    assert found("https://c", FAL_NB_URL="https://b", FAL_PROFILE="work") == ("https://c", None)
    assert found(ELSEWHERE) == (ELSEWHERE, "fk_w"), "the key that was kept for this address"


def test_a_profiles_key_is_not_sent_in_plain_http_either(tmp_path: Path) -> None:
    kept(tmp_path, Saved("plain", "http://fal.example.org", Key("fk_w", "secret")), used="plain")
    with pytest.raises(AuthError, match="anyone could read it"):
        resolve(home=tmp_path, environ={}).authorization()


def test_the_file_of_profiles_is_private_and_keeps_the_teams(tmp_path: Path) -> None:
    choose_team(Places(tmp_path), None, "crew")
    kept_then = read(Places(tmp_path)).with_(Saved("work", ELSEWHERE, Key("fk_w", "s"))).using("work")
    write(Places(tmp_path), kept_then)
    choose_team(Places(tmp_path), ELSEWHERE, "there")
    assert Places(tmp_path).profile.stat().st_mode & 0o777 == 0o600
    found = read(Places(tmp_path))
    assert found.profiles["work"].key == Key("fk_w", "s")
    assert found.teams == {"": "crew", ELSEWHERE: "there"}
    assert resolve(home=tmp_path, environ={}).team == "there"
    assert found.without("work").current is None


_CHANGING = """
import sys
from pathlib import Path
from fal_notebook.places import Places
from fal_notebook.profiles import Saved, change, choose_team
for number in range(20):
    name = f"{sys.argv[2]}-{number}"
    change(Places(Path(sys.argv[1])), lambda kept: kept.with_(Saved(name)))
    choose_team(Places(Path(sys.argv[1])), f"http://{name}", "crew")
"""


def test_logins_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _CHANGING, str(tmp_path)]
    processes = [subprocess.Popen([*words, str(number)]) for number in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    kept = read(Places(tmp_path))
    names = {f"{process}-{number}" for process in range(3) for number in range(20)}
    assert set(kept.profiles) == names
    assert set(kept.teams) == {f"http://{name}" for name in names}


def test_a_change_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    change(Places(tmp_path), lambda kept: kept.with_(Saved("work")).using("work"))
    with pytest.raises(UsageError):
        change(Places(tmp_path), lambda kept: kept.using(None).with_(Saved("no name")))
    assert read(Places(tmp_path)).current == "work"


@pytest.mark.parametrize("text", ["{", "[]", '{"current": "gone"}', '{"profiles": {"a": {"key": "k:s"}}}'])
def test_a_file_of_profiles_that_cannot_be_read_is_no_empty_one(tmp_path: Path, text: str) -> None:
    Places(tmp_path).profile.write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        resolve(home=tmp_path, environ={})


def test_a_key_goes_when_its_profile_gets_another_address() -> None:
    saved = Saved("work", ELSEWHERE, Key("fk_w", "s"))
    assert saved.at(ELSEWHERE) == saved
    assert saved.at("https://other").key is None


@pytest.mark.parametrize("name", ["local", "", "a b", "../x", "-x"])
def test_what_cannot_be_a_profiles_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        Kept().with_(Saved(name))
