"""Who may do what: one pure function that every door asks.

Rules: `may` is the whole truth; doors find out who asks and turn the verdict into their own words. A key that is no
good counts as none. Calls of an app follow its mode: public is for everybody, shared for any good key, private for its
owner and the members of an owning team. A request belongs to who submitted it and to the app's owner, whatever the
mode; where nobody said who submitted it, its id and leave to call are all that is asked for. What owners do needs
a key with the right for it, and what another account owns is not there.
Source: RELIABILITY, "Security"; fal, "Authentication Modes"; fal SDK, presets of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fal_backend.domain.records import Account
from fal_notebook.errors import AuthError
from fal_notebook.wire import AuthMode

__all__ = [
    "SCOPES",
    "Operation",
    "Owned",
    "Principal",
    "Right",
    "Target",
    "Verdict",
    "belongs",
    "checked_mode",
    "may",
    "operation_of",
]


class Operation(StrEnum):
    """What somebody wants to do."""

    RUN = "run"
    QUEUE = "queue"
    STREAM = "stream"
    WS = "ws"
    STATUS = "status"
    RESULT = "result"
    CANCEL = "cancel"
    UPLOAD = "upload"
    READ = "read"
    """See apps, runners, deployments, usage of an account."""
    LOGS = "logs"
    DEPLOY = "deploy"
    """Make or change what an account runs."""
    DELETE = "delete"
    SECRETS = "secrets"
    KEYS = "keys"
    """Manage an account: its keys, its members, its record of acts."""
    GOVERN = "govern"
    """Manage this backend: its accounts, and what they may do."""
    WHOAMI = "whoami"


class Right(StrEnum):
    """What a key can be good for."""

    CALL = "call"
    UPLOAD = "upload"
    READ = "read"
    DEPLOY = "deploy"
    MANAGE = "manage"
    NONE = "none"
    """Any good key has it."""


SCOPES: dict[str, frozenset[Right]] = {
    "ADMIN": frozenset(Right),
    "API": frozenset({Right.CALL, Right.UPLOAD, Right.NONE}),
    "DEPLOY": frozenset({Right.DEPLOY, Right.READ, Right.UPLOAD, Right.NONE}),
    "READONLY": frozenset({Right.READ, Right.NONE}),
}
"""What a key of each scope is good for. Source: fal SDK, `KeyPreset`: FULL is ADMIN."""

_RIGHTS: dict[Operation, Right] = {
    Operation.RUN: Right.CALL,
    Operation.QUEUE: Right.CALL,
    Operation.STREAM: Right.CALL,
    Operation.WS: Right.CALL,
    Operation.STATUS: Right.CALL,
    Operation.RESULT: Right.CALL,
    Operation.CANCEL: Right.CALL,
    Operation.UPLOAD: Right.UPLOAD,
    Operation.READ: Right.READ,
    Operation.LOGS: Right.READ,
    Operation.DEPLOY: Right.DEPLOY,
    Operation.DELETE: Right.DEPLOY,
    Operation.SECRETS: Right.MANAGE,
    Operation.KEYS: Right.MANAGE,
    Operation.GOVERN: Right.MANAGE,
    Operation.WHOAMI: Right.NONE,
}

_CALLS = frozenset({Operation.RUN, Operation.QUEUE, Operation.STREAM, Operation.WS})
_REQUESTS = frozenset({Operation.STATUS, Operation.RESULT, Operation.CANCEL})
_GRANTED: dict[str, frozenset[Operation]] = {
    scope: frozenset(operation for operation, right in _RIGHTS.items() if right in rights)
    for scope, rights in SCOPES.items()
}
_NOTHING: frozenset[Operation] = frozenset()


class Verdict(StrEnum):
    """Whether it may be done, and how a refusal is answered."""

    OK = "ok"
    NO_KEY = "no_key"
    """401: nobody knows who asks."""
    FORBIDDEN = "forbidden"
    """403: it is known who asks, and may not."""
    ABSENT = "absent"
    """404: for who asks there is no such thing."""

    @property
    def status(self) -> int:
        """The HTTP status of this verdict."""
        return _STATUS[self]


_STATUS = {Verdict.OK: 200, Verdict.NO_KEY: 401, Verdict.FORBIDDEN: 403, Verdict.ABSENT: 404}


class Owned(Protocol):
    """What belongs to an account and may be called."""

    @property
    def account(self) -> str: ...
    @property
    def auth(self) -> AuthMode: ...


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and for which account."""

    account: str
    """The account that is acted for: the key's own, or a team of its owner."""
    nickname: str
    key_id: str
    scope: str
    teams: frozenset[str] = frozenset()
    """Accounts of the teams that the key's owner is a member of."""
    leads: frozenset[str] = frozenset()
    """Those of them that it manages."""
    is_admin: bool = False
    """It manages this backend."""
    user: str = ""
    """The key's own account, where another one is acted for."""

    @property
    def key_account(self) -> str:
        """The account that the key belongs to."""
        return self.user or self.account


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for, where no route says it."""

    account: str
    auth: AuthMode = AuthMode.PRIVATE


def belongs(asker: Principal, account: str | None) -> bool:
    """True when an account is the asker's own, or a team of the asker's."""
    return asker.account == account or account in asker.teams


def may(
    asker: Principal | None, operation: Operation, target: Owned, *, submitter: str | None = None
) -> Verdict:
    """Say whether it may be done.

    asker: None without a key, or with one that is no good. submitter: the account that submitted the request that
    is asked about, where one is known.
    """
    is_call = operation in _CALLS or (operation in _REQUESTS and submitter is None)
    if is_call and target.auth is AuthMode.PUBLIC:
        return Verdict.OK
    if asker is None:
        return Verdict.NO_KEY
    if operation not in _GRANTED.get(asker.scope, _NOTHING):
        return Verdict.FORBIDDEN
    if is_call:
        if asker.account == target.account or target.auth is AuthMode.SHARED:
            return Verdict.OK
        return Verdict.OK if belongs(asker, target.account) else Verdict.FORBIDDEN
    if operation in _REQUESTS:
        is_theirs = belongs(asker, submitter) or belongs(asker, target.account)
        return Verdict.OK if is_theirs else Verdict.FORBIDDEN
    return _may_manage(asker, operation, target)


def _may_manage(asker: Principal, operation: Operation, target: Owned) -> Verdict:
    if operation in (Operation.WHOAMI, Operation.UPLOAD):
        return Verdict.OK
    if operation is Operation.GOVERN:
        return Verdict.OK if asker.is_admin else Verdict.FORBIDDEN
    if asker.account != target.account:
        return Verdict.ABSENT
    is_led = asker.key_account == asker.account or asker.account in asker.leads
    return Verdict.FORBIDDEN if operation is Operation.KEYS and not is_led else Verdict.OK


_BY_PLACE: tuple[tuple[str, Operation], ...] = (
    ("/account", Operation.WHOAMI),
    ("/users/current", Operation.WHOAMI),
    ("/users/teams", Operation.WHOAMI),
    ("/accounts", Operation.GOVERN),
    ("/audit", Operation.KEYS),
    ("/keys", Operation.KEYS),
    ("/teams", Operation.KEYS),
    ("/secrets/rotate", Operation.GOVERN),
    ("/secrets", Operation.SECRETS),
    ("/logs", Operation.LOGS),
)
"""What the first part of a path of the control API is about, whatever the method."""

_HOUSE = ("/machines", "/nodes")
"""What belongs to the backend: everybody may look, its admins may change it."""

_ACTING = ("/exec", "/shell")
"""Ends of paths that run programs beside a runner, which are good for whatever its user can read."""


def operation_of(method: str, path: str) -> Operation:
    """Return what a request to the control API does; path is what follows its prefix."""
    for start, operation in _BY_PLACE:
        if path == start or path.startswith(f"{start}/"):
            return operation
    if path.endswith(_ACTING):
        return Operation.SECRETS
    if method in ("GET", "HEAD"):
        return Operation.LOGS if path.endswith("/log") else Operation.READ
    if path.startswith(_HOUSE):
        return Operation.GOVERN
    if method == "DELETE" and path.startswith("/environments/"):
        return Operation.SECRETS
    return Operation.DELETE if method == "DELETE" and path.startswith("/apps/") else Operation.DEPLOY


def checked_mode(mode: AuthMode, account: Account) -> AuthMode:
    """Return the mode if the account may use it.

    Raises: AuthError `auth.shared_disabled`: others would be charged, so an admin has to agree.
    """
    if mode is AuthMode.SHARED and not account.shared_enabled:
        raise AuthError(
            f'"{account.nickname}" may not deploy shared apps: ask an admin to enable shared.',
            fix=f"An admin runs `fal-nb admin set {account.nickname} --shared on`; or use private or public.",
            code="auth.shared_disabled",
        )
    return mode
