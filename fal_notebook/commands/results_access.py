"""What the commands of accounts, keys and usage give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fal_notebook.wire_access import (
        AccountInfo,
        ActInfo,
        KeyInfo,
        MemberInfo,
        NewAccount,
        NewKeyInfo,
        UsageReport,
        WhoAmI,
    )

__all__ = [
    "AccessResult",
    "AccountChanged",
    "AccountMade",
    "AccountsListed",
    "ActsListed",
    "Chosen",
    "Greeted",
    "KeyMade",
    "KeyRevoked",
    "KeysListed",
    "MemberChanged",
    "MembersListed",
    "TeamMade",
    "TeamsListed",
    "UsageShown",
]


@dataclass(frozen=True)
class AccessResult:
    """Any of them."""


@dataclass(frozen=True)
class Greeted(AccessResult):
    """Whose key is used."""

    who: WhoAmI
    profile: str
    """Name of the saved profile, or what named the address."""
    address: str
    key_source: str


@dataclass(frozen=True)
class TeamsListed(AccessResult):
    """The account of the key and its teams; one of them is acted for."""

    who: WhoAmI
    has_own: bool = True
    """List the key's own account too."""


@dataclass(frozen=True)
class Chosen(AccessResult):
    """For whom is acted from now on."""

    nickname: str
    is_team: bool


@dataclass(frozen=True)
class MembersListed(AccessResult):
    """A team's members."""

    team: str
    members: tuple[MemberInfo, ...]


@dataclass(frozen=True)
class TeamMade(AccessResult):
    """A new team."""

    team: AccountInfo


@dataclass(frozen=True)
class MemberChanged(AccessResult):
    """Somebody's place in a team; role None: not in it any more."""

    team: str
    nickname: str
    role: str | None


@dataclass(frozen=True)
class KeysListed(AccessResult):
    """Keys without their secrets."""

    keys: tuple[KeyInfo, ...]


@dataclass(frozen=True)
class KeyMade(AccessResult):
    """A new key with its secret."""

    key: NewKeyInfo


@dataclass(frozen=True)
class KeyRevoked(AccessResult):
    """A key that is no good any more."""

    key_id: str


@dataclass(frozen=True)
class AccountsListed(AccessResult):
    """All accounts of a backend."""

    accounts: tuple[AccountInfo, ...]


@dataclass(frozen=True)
class AccountMade(AccessResult):
    """A person's new account with its first key."""

    made: NewAccount


@dataclass(frozen=True)
class AccountChanged(AccessResult):
    """What an account may do now."""

    account: AccountInfo


@dataclass(frozen=True)
class ActsListed(AccessResult):
    """The newest acts."""

    acts: tuple[ActInfo, ...]


@dataclass(frozen=True)
class UsageShown(AccessResult):
    """What was used."""

    report: UsageReport
