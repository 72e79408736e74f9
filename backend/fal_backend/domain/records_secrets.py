"""Rows of environments and secrets, as frozen values; see `records`."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DataKey", "Environment", "Secret"]


@dataclass(frozen=True, slots=True)
class Environment:
    """A set of apps and secrets beside `main`, which is always there and has no row; id is `account/name`."""

    id: str
    account: str
    name: str
    created_at: int
    description: str | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class DataKey:
    """The key under which secrets are encrypted, itself encrypted under the master key."""

    id: str
    master: str
    """Fingerprint of the master key that opens it."""
    wrapped: str = field(repr=False)
    """base64 of nonce and ciphertext."""
    created_at: int
    version: int = 0


@dataclass(frozen=True, slots=True)
class Secret:
    """A named value of an environment, encrypted; id is `account/environment/name`."""

    id: str
    account: str
    environment: str
    name: str
    number: int
    """How often its value was set; part of what the ciphertext is bound to."""
    data_key: str
    sealed: str = field(repr=False)
    """base64 of nonce and ciphertext."""
    created_at: int
    updated_at: int
    """When its value was set last: never the same twice, so that it tells one value from the next."""
    default_exposed: int = 1
    version: int = 0
