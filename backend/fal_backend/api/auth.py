"""Whose key a request carries: judged in memory, without a wait.

Rules: secrets are compared as hashes in constant time; what was found good is remembered by the hash of the
header, and a connection that shows the same header again keeps its pass, so that a hot path costs no hash; whatever changes in accounts, keys or teams is true for the next
question; a key is never logged.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import replace

from fal_backend.api.access import Pass
from fal_backend.domain.access import Principal, belongs
from fal_backend.domain.records import Account, ApiKey, Membership
from fal_notebook.errors import AuthError

__all__ = ["Auth", "Principal"]

_KNOWN = 1024
_LONGEST = 512


class Auth:
    """The keys of this backend."""

    def __init__(
        self, accounts: Iterable[Account], keys: Iterable[ApiKey], members: Iterable[Membership] = ()
    ) -> None:
        self._known: dict[bytes, Pass] = {}
        self._used: dict[str, float] = {}
        self.take(accounts, keys, members)

    def principal(self, authorization: bytes | None) -> Principal | None:
        """Return the owner of the key in an `Authorization` header, None without one.

        Raises: AuthError `auth.invalid` when the key is unknown, wrong, revoked or expired.
        """
        return None if authorization is None else self.admit(authorization).principal

    def admit(self, authorization: bytes) -> Pass:
        """Return the pass of a key: whoever keeps it asks whether it has expired, and notes its use in it.

        Raises: AuthError `auth.invalid` as `principal`.
        """
        mark = hashlib.sha256(authorization).digest()
        now = time.time()
        known = self._known.get(mark)
        if known is not None and now < known.expires:
            known.used = now
            return known
        principal, expires = self._check(authorization)
        if len(self._known) >= _KNOWN:
            self._forget()
        found = self._known[mark] = Pass(principal, expires, now)
        return found

    def holder(self, key_id: str) -> Principal | None:
        """Return the owner of a key that is good now, None otherwise."""
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return None
        if key.expires_at is not None and time.time() >= key.expires_at / 1e6:
            return None
        return self._principal(key)

    def acting(self, principal: Principal, nickname: str) -> Principal:
        """Return the key's owner acting for an account: its own, or a team that it is a member of.

        Raises: AuthError, the same for a team of others and for none.
        """
        for account in (principal.key_account, *principal.teams):
            row = self._accounts[account]
            if row.nickname == nickname:
                return replace(principal, account=row.id, nickname=nickname, user=principal.key_account)
        raise AuthError(
            f'This key\'s owner is no member of a team "{nickname[:60]}".',
            fix="`fal-nb account list` shows the teams.",
            code="auth.forbidden",
        )

    def is_good(self, principal: Principal) -> bool:
        """Return whether somebody who was let in would still be, for the same account and with the same scope."""
        now = self.holder(principal.key_id)
        return now is not None and now.scope == principal.scope and belongs(now, principal.account)

    def take(
        self, accounts: Iterable[Account], keys: Iterable[ApiKey], members: Iterable[Membership] = ()
    ) -> None:
        """Take what holds now; what was remembered is forgotten."""
        self._accounts = {account.id: account for account in accounts}
        self._members: dict[str, list[Membership]] = {}
        for member in members:
            self._members.setdefault(member.account, []).append(member)
        self.replace(keys)

    def replace(self, keys: Iterable[ApiKey]) -> None:
        """Take other keys; what was remembered is forgotten."""
        self._keys = {key.id: key for key in keys}
        self._forget()

    def used(self) -> dict[str, int]:
        """Return when each key was used last, in microseconds, as far as it was used since this was asked for."""
        self._note_used()
        used, self._used = self._used, {}
        return {key_id: int(at * 1e6) for key_id, at in used.items()}

    def _forget(self) -> None:
        self._note_used()
        for known in self._known.values():
            known.expires = 0.0
        self._known.clear()

    def _note_used(self) -> None:
        for known in self._known.values():
            if known.used:
                key_id = known.principal.key_id
                self._used[key_id] = max(known.used, self._used.get(key_id, 0.0))
                known.used = 0.0

    def _principal(self, key: ApiKey) -> Principal:
        account = self._accounts[key.account]
        members = self._members.get(key.account, ())
        return Principal(
            account=account.id,
            nickname=account.nickname,
            key_id=key.id,
            scope=key.scope,
            teams=frozenset(member.team for member in members),
            leads=frozenset(member.team for member in members if member.role == "admin"),
            is_admin=bool(account.is_admin),
        )

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
        return self._principal(key), expires


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
