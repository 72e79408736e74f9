"""Keys are judged in memory: right, wrong, revoked, expired, and how they may be written."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import pytest
from fal_backend.api.auth import Auth
from fal_backend.domain.records import Account, ApiKey, Membership

from fal_notebook.errors import AuthError

OWNER = Account("local", "ada", 0)
KEY = ApiKey("fk_1", "local", hashlib.sha256(b"s3cret").hexdigest(), "ADMIN", 0)


def auth(key: ApiKey = KEY) -> Auth:
    return Auth([OWNER], [key])


@pytest.mark.parametrize("header", [b"Key fk_1:s3cret", b"key fk_1:s3cret", b"Bearer fk_1:s3cret"])
def test_a_good_key_names_its_owner(header: bytes) -> None:
    judge = auth()
    for _ in range(2):
        principal = judge.principal(header)
        assert principal is not None
        assert (principal.nickname, principal.account, principal.scope) == ("ada", "local", "ADMIN")


def test_no_header_is_nobody() -> None:
    assert auth().principal(None) is None


@pytest.mark.parametrize("header", [b"", b"Key", b"Key fk_1", b"Key fk_1:wrong", b"Key fk_2:s3cret", b"Basic fk_1:s3cret", b"Key fk_2:"])  # fmt: skip
def test_a_wrong_key_is_refused_without_being_repeated(header: bytes) -> None:
    with pytest.raises(AuthError) as caught:
        auth().principal(header)
    assert caught.value.code == "auth.invalid"
    assert "s3cret" not in str(caught.value)
    assert "wrong" not in str(caught.value)


def test_revoked_and_expired_keys_are_refused() -> None:
    for key in (replace(KEY, revoked_at=1), replace(KEY, expires_at=1)):
        with pytest.raises(AuthError):
            auth(key).principal(b"Key fk_1:s3cret")


def test_a_remembered_key_is_forgotten_when_keys_change_and_when_it_expires() -> None:
    judge = auth(replace(KEY, expires_at=int((time.time() + 3600) * 1e6)))
    assert judge.principal(b"Key fk_1:s3cret") is not None
    judge.replace([replace(KEY, revoked_at=1)])
    with pytest.raises(AuthError):
        judge.principal(b"Key fk_1:s3cret")


def test_a_pass_that_a_door_keeps_ends_with_its_key_and_tells_of_its_use() -> None:
    judge = auth(replace(KEY, expires_at=int((time.time() + 3600) * 1e6)))
    kept = judge.admit(b"Key fk_1:s3cret")
    assert time.time() < kept.expires < time.time() + 3601
    judge.used()
    kept.used = 7.0
    assert judge.used() == {"fk_1": 7_000_000}
    judge.replace([KEY])
    assert time.time() >= kept.expires
    assert time.time() < judge.admit(b"Key fk_1:s3cret").expires


CREW = Account("crew", "crew", 0, kind="team")
MEMBER = Membership("crew/local", "crew", "local", "admin", 0)


def test_who_is_in_a_team_may_act_for_it_and_nobody_else() -> None:
    judge = Auth([OWNER, CREW, Account("other", "other", 0, kind="team")], [KEY], [MEMBER])
    own = judge.holder("fk_1")
    assert own is not None
    assert (own.teams, own.leads) == ({"crew"}, {"crew"})
    acting = judge.acting(own, "crew")
    assert (acting.account, acting.nickname, acting.key_account) == ("crew", "crew", "local")
    assert judge.acting(acting, "ada").account == "local"
    said = set()
    for nickname in ("other", "nobody"):
        with pytest.raises(AuthError) as caught:
            judge.acting(own, nickname)
        said.add(str(caught.value).replace(nickname, "X"))
    assert len(said) == 1, "whether a team is there is not told"


def test_who_left_the_team_or_lost_the_key_is_good_no_more() -> None:
    judge = Auth([OWNER, CREW], [KEY], [MEMBER])
    own = judge.holder("fk_1")
    assert own is not None
    acting = judge.acting(own, "crew")
    assert judge.is_good(acting)
    judge.take([OWNER, CREW], [KEY], [])
    assert judge.is_good(own)
    assert not judge.is_good(acting)
    judge.take([OWNER, CREW], [replace(KEY, scope="API")], [MEMBER])
    assert not judge.is_good(own), "another scope is another leave"
    judge.take([OWNER, CREW], [replace(KEY, revoked_at=1)], [MEMBER])
    assert not judge.is_good(own)


def test_a_keys_last_use_is_told_once() -> None:
    judge = auth()
    assert judge.used() == {}
    judge.principal(b"Key fk_1:s3cret")
    before = time.time() * 1e6
    judge.principal(b"Key fk_1:s3cret")
    used = judge.used()
    assert set(used) == {"fk_1"}
    assert used["fk_1"] >= before - 1e6
    assert judge.used() == {}
    judge.principal(b"Key fk_1:s3cret")
    judge.replace([KEY])
    assert set(judge.used()) == {"fk_1"}, "also when what was remembered is forgotten"
