"""Rows of accounts: who there is, with which keys, who is in which team, what calls cost whom, and what was done by those who manage."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Account", "ApiKey", "AuditEntry", "Membership", "Usage"]


@dataclass(frozen=True, slots=True)
class Account:
    """An owner of apps: a person, or a team of persons."""

    id: str
    nickname: str
    created_at: int
    version: int = 0
    kind: str = "user"
    """user, team."""
    full_name: str | None = None
    is_admin: int = 0
    """It manages this backend."""
    shared_enabled: int = 0
    """It may deploy apps whose callers are charged."""
    deploy_check: int | None = None
    """1: each deployment of a lasting app is shown and confirmed first."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, stored as a hash."""

    id: str
    """Public half, `fk_…`."""
    account: str
    secret_sha256: str
    scope: str
    """ADMIN, API, DEPLOY, READONLY; see `access.SCOPES`."""
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    version: int = 0
    description: str | None = None
    last_used_at: int | None = None
    """Written now and then, not at each use."""


@dataclass(frozen=True, slots=True)
class Membership:
    """An account's place in a team."""

    id: str
    """`<team>/<account>`, both ids."""
    team: str
    account: str
    role: str
    """admin: manages the team; member."""
    created_at: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What one caller's calls of one app took of one machine type in one minute."""

    id: str
    """`<minute>/<account>/<app>/<caller>/<machine type>`."""
    account: str
    """Who is charged."""
    app: str
    """`owner/alias`."""
    caller: str
    """Account of whoever called, empty without a key."""
    machine_type: str
    minute: int
    """Since the epoch."""
    calls: int
    micros: int
    """Time that runners spent on them."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act of somebody who manages an account or this backend; never changed."""

    id: str
    created_at: int
    account: str
    """The account that it was about."""
    actor: str
    """The account whose key was used."""
    key_id: str
    address: str | None
    """Where the request came from; None: this machine's private socket."""
    action: str
    """As `key.create`."""
    subject: str
    before_json: str | None = None
    after_json: str | None = None
