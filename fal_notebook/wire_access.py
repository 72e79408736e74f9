"""Models of accounts, keys, usage and the record of acts, as they cross processes; pydantic and `wire` only."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

__all__ = [
    "AccountInfo",
    "AccountPage",
    "AccountRequest",
    "AccountSetting",
    "ActInfo",
    "ActPage",
    "KeyInfo",
    "KeyPage",
    "KeyPreset",
    "KeyRequest",
    "KeyRevoked",
    "MemberInfo",
    "MemberPage",
    "MemberRequest",
    "NewAccount",
    "NewKeyInfo",
    "Role",
    "TeamPage",
    "UsageReport",
    "UsageRow",
    "WhoAmI",
]


class KeyPreset(StrEnum):
    """What a key is good for. Source: fal SDK, `KeyPreset`."""

    FULL = "FULL"
    """Everything in the account."""
    API = "API"
    """Call apps and upload files."""
    DEPLOY = "DEPLOY"
    """Deploy apps and upload files."""
    READONLY = "READONLY"
    """Read apps, runners and logs."""


class Role(StrEnum):
    """A member's place in a team."""

    ADMIN = "admin"
    """Manages members and keys."""
    MEMBER = "member"


class KeyInfo(BaseModel):
    """A key without its secret; the first four fields are fal's."""

    key_id: str
    created_at: datetime
    scope: str | None
    """ADMIN, API; None for the other presets, as with fal."""
    description: str | None
    preset: KeyPreset
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """Written every half minute."""


class KeyRequest(BaseModel):
    """The key that is wanted."""

    preset: KeyPreset = KeyPreset.API
    description: str | None = Field(None, max_length=200)
    expires_at: datetime | None = None


class NewKeyInfo(KeyInfo):
    """A key that was just made: the one time that its secret is told."""

    key_secret: str = Field(repr=False)


class AccountInfo(BaseModel):
    """A person or a team."""

    nickname: str
    full_name: str | None = None
    kind: str
    """user, team."""
    is_admin: bool = False
    """Manages this backend."""
    shared_enabled: bool = False
    """May deploy apps whose callers are charged."""
    deploy_check: bool = False
    """Each deployment is shown and confirmed first."""
    role: Role | None = None
    """The asker's place in it."""
    created_at: datetime


class AccountRequest(BaseModel):
    """The account that is wanted."""

    nickname: str
    full_name: str | None = Field(None, max_length=200)


class AccountSetting(BaseModel):
    """What is to be changed of an account."""

    shared: bool | None = None
    admin: bool | None = None
    deploy_check: bool | None = None
    full_name: str | None = Field(None, max_length=200)


class MemberInfo(BaseModel):
    """A member of a team."""

    nickname: str
    full_name: str | None = None
    role: Role


class MemberRequest(BaseModel):
    """Who is to be a member."""

    nickname: str
    role: Role = Role.MEMBER


class WhoAmI(BaseModel):
    """Whose key it is, and for whom it acts."""

    user_id: str
    nickname: str
    full_name: str
    key_id: str
    preset: KeyPreset
    expires_at: datetime | None = None
    is_admin: bool
    acting_for: str
    """Nickname of the account that is acted for."""
    teams: list[AccountInfo] = []


class UsageRow(BaseModel):
    """What one caller's calls of one app took of one machine type."""

    account: str
    """Who is charged."""
    app: str
    """`owner/alias`."""
    caller: str | None
    """None: without a key."""
    machine_type: str
    minute: datetime | None = None
    """None: over the whole span."""
    calls: int
    seconds: float
    cost: float


class UsageReport(BaseModel):
    """What was used in a span of time."""

    since: datetime
    until: datetime
    currency: str
    rows: list[UsageRow]
    calls: int
    seconds: float
    cost: float


class ActInfo(BaseModel):
    """One act of somebody who manages an account or the backend."""

    at: datetime
    account: str
    """What it was about."""
    actor: str
    """Whose key was used."""
    key_id: str
    address: str | None
    """Where it came from; None: this machine's private socket."""
    action: str
    subject: str
    before: Any = None
    after: Any = None


class KeyPage(BaseModel):
    """Keys of an account."""

    keys: list[KeyInfo]


class KeyRevoked(BaseModel):
    """A key that is no good any more."""

    key_id: str


class TeamPage(BaseModel):
    """Teams of who asks."""

    teams: list[AccountInfo]


class MemberPage(BaseModel):
    """Members of a team."""

    members: list[MemberInfo]


class AccountPage(BaseModel):
    """All accounts of a backend."""

    accounts: list[AccountInfo]


class NewAccount(BaseModel):
    """A person's account that was just made, with its first key."""

    account: AccountInfo
    key: NewKeyInfo


class ActPage(BaseModel):
    """The newest acts."""

    acts: list[ActInfo]
