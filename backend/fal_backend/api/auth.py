"""Whose key a request carries: judged in memory, without a wait.

Rules: secrets are compared as hashes in constant time; what was found good is remembered by the hash of the
header, so that a hot path costs one lookup; a key is never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass

from fal_backend.domain.records import Account, ApiKey
from fal_backend.ports import Store
from fal_notebook.errors import AuthError

__all__ = ["ADMIN", "Auth", "Principal"]

ADMIN = "ADMIN"

_KNOWN = 1024
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    account: str
    nickname: str
    key_id: str
    scope: str


class Auth:
    """The keys of this backend."""

    def __init__(self, accounts: Iterable[Account], keys: Iterable[ApiKey]) -> None:
        self._accounts = {account.id: account for account in accounts}
        self._keys = {key.id: key for key in keys}
        self._known: dict[bytes, tuple[Principal, float]] = {}

    @classmethod
    async def load(cls, store: Store) -> Auth:
        """Read accounts and keys."""
        accounts, keys = await store.read(lambda reader: (reader.find(Account), reader.find(ApiKey)))
        return cls(accounts, keys)

    def principal(self, authorization: bytes | None) -> Principal | None:
        """Return the owner of the key in an `Authorization` header, None without one.

        Raises: AuthError `auth.invalid` when the key is unknown, wrong, revoked or expired.
        """
        if authorization is None:
            return None
        mark = hashlib.sha256(authorization).digest()
        known = self._known.get(mark)
        if known is not None and time.time() < known[1]:
            return known[0]
        principal, expires = self._check(authorization)
        if len(self._known) >= _KNOWN:
            self._known.clear()
        self._known[mark] = (principal, expires)
        return principal

    def holder(self, key_id: str) -> Principal | None:
        """Return the owner of a key that is good now, None otherwise."""
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return None
        if key.expires_at is not None and time.time() >= key.expires_at / 1e6:
            return None
        return Principal(key.account, self._accounts[key.account].nickname, key.id, key.scope)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Take other keys; what was remembered is forgotten."""
        self._keys = {key.id: key for key in keys}
        self._known.clear()

    def _check(self, authorization: bytes) -> tuple[Principal, float]:
        key_id, secret = _parse(authorization)
        key = self._keys.get(key_id)
        given = hashlib.sha256(secret.encode()).hexdigest()
        expected = key.secret_sha256 if key is not None else hashlib.sha256(b"").hexdigest()
        is_right = hmac.compare_digest(given, expected)
        if key is None or not is_right or key.revoked_at is not None:
            raise _invalid()
        expires = key.expires_at / 1e6 if key.expires_at is not None else float("inf")
        if time.time() >= expires:
            raise AuthError("The key has expired.", fix="Use another one.", code="auth.invalid")
        nickname = self._accounts[key.account].nickname
        return Principal(key.account, nickname, key.id, key.scope), expires


def _parse(authorization: bytes) -> tuple[str, str]:
    text = authorization[:_LONGEST].decode("latin-1")
    scheme, _, value = text.partition(" ")
    key_id, colon, secret = value.strip().partition(":")
    if scheme.lower() not in ("key", "bearer") or not colon:
        raise AuthError(
            "The Authorization header holds no key.",
            fix="Send `Authorization: Key <id>:<secret>`.",
            code="auth.invalid",
        )
    return key_id, secret


def _invalid() -> AuthError:
    return AuthError(
        "The key is not valid here.",
        fix="A key belongs to one backend; `fal-nb doctor` shows which.",
        code="auth.invalid",
    )
