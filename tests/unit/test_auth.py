"""Keys are judged in memory: right, wrong, revoked, expired, and how they may be written."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace

import pytest
from fal_backend.api.auth import Auth
from fal_backend.domain.records import Account, ApiKey

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
