from __future__ import annotations

import base64
import hashlib
import json

import pytest
from fal_backend.api.auth import Auth
from fal_backend.api.tokens import Tokens, split_token
from fal_backend.domain.records import Account, ApiKey
from fal_backend.domain.request import Refusal

HASH = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def auth() -> Auth:
    return Auth([Account("acc", "me", 0)], [ApiKey("fk_me", "acc", HASH, "API", 0)])


def refused(tokens: Tokens, token: str, app: str = "me/app") -> int:
    with pytest.raises(Refusal) as caught:
        tokens.open(token.encode(), app)
    return caught.value.status


def made(tokens: Tokens, auth: Auth, *apps: str, seconds: int = 60) -> str:
    holder = auth.holder("fk_me")
    assert holder is not None
    return tokens.make(holder, list(apps), seconds)


def test_a_token_is_good_for_what_it_names(auth: Auth) -> None:
    tokens = Tokens(b"s", auth)
    assert tokens.open(made(tokens, auth, "app").encode(), "me/app").account == "acc"
    assert tokens.open(made(tokens, auth, "me/app").encode(), "me/app").account == "acc"
    assert refused(tokens, made(tokens, auth, "you/app", "ap")) == 403
    assert refused(tokens, made(tokens, auth, "app", seconds=0)) == 401


def test_nothing_but_our_own_signature_counts(auth: Auth) -> None:
    tokens = Tokens(b"s", auth)
    token = made(tokens, auth, "app")
    head, body, signature = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = (
        base64.urlsafe_b64encode(json.dumps(claims | {"exp": claims["exp"] + 1}).encode())
        .decode()
        .rstrip("=")
    )
    for wrong in (
        "", ".", "..", "a.b.c", f"{none}.{body}.{signature}", f"{none}.{body}.", f"{head}.{other}.{signature}",
        f"{head}.{body}.", f"{head}.{body}.****", token + "A" * 40_000, made(Tokens(b"t", auth), auth, "app"),
    ):  # fmt: skip
        assert refused(tokens, wrong) == 401, wrong
    assert Tokens(b"s", auth).open(token.encode(), "me/app").key_id == "fk_me", "it outlives a restart"


def test_a_token_is_worth_no_more_than_its_key(auth: Auth) -> None:
    tokens = Tokens(b"s", auth)
    token = made(tokens, auth, "app")
    auth.replace([ApiKey("fk_me", "acc", HASH, "API", 0, revoked_at=1)])
    assert refused(tokens, token) == 401
    auth.replace([ApiKey("fk_me", "acc", HASH, "API", 0, expires_at=1)])
    assert refused(tokens, token) == 401
    auth.replace([])
    assert refused(tokens, token) == 401


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"/run/a/b", (b"/run/a/b", None)),
        (b"/run/a/b?x=1", (b"/run/a/b?x=1", None)),
        (b"/run/a/b?fal_jwt_token=t.t", (b"/run/a/b", b"t.t")),
        (b"/run/a/b?x=1&fal_jwt_token=t%2Et&y=2", (b"/run/a/b?x=1&y=2", b"t.t")),
        (b"/run/a/b?fal_jwt_token=", (b"/run/a/b", b"")),
    ],
)
def test_the_token_is_taken_out_of_the_address(raw: bytes, expected: tuple[bytes, bytes | None]) -> None:
    assert split_token(raw) == expected
