"""Environments and secrets as they cross a process, and how an environment stands in an app's name.

Rules: an app `sketch` of environment `staging` is the alias `sketch--staging`; of `main` it is `sketch`. A value
travels one way only, to the backend: no model that is answered has a place for it.
"""

from __future__ import annotations

import json
from datetime import datetime

from pydantic import Field, SecretStr

from fal_notebook.wire import Wire

__all__ = [
    "ENV_LIMIT",
    "MAIN",
    "MASKED_FROM",
    "MAX_VALUE_BYTES",
    "EnvironmentDeleted",
    "EnvironmentInfo",
    "EnvironmentRequest",
    "SecretInfo",
    "SecretRequest",
    "SecretSet",
    "SecretsRotated",
    "full_alias",
    "is_telling",
    "split_alias",
]

MAIN = "main"
"""The environment that is always there; its apps' names carry no ending."""

ENV_LIMIT = 30
"""Longest name of an environment."""

MAX_VALUE_BYTES = 32 * 1024
"""Longest value of a secret, in UTF-8."""

MASKED_FROM = 6
"""Shortest value, in characters, that is masked in logs: shorter ones would mask half of every line."""

_MARK = "--"
_TELLING = 8


def full_alias(name: str, environment: str) -> str:
    """Return the alias of an app in an environment; a name that carries the ending already is returned as it is."""
    if environment == MAIN or name.endswith(f"{_MARK}{environment}"):
        return name
    return f"{name}{_MARK}{environment}"


def split_alias(alias: str) -> tuple[str, str]:
    """Return (name, environment) of an alias."""
    name, mark, environment = alias.rpartition(_MARK)
    return (name, environment) if mark and name and environment else (alias, MAIN)


def is_telling(value: str) -> bool:
    """True for a text that is hardly anything else than this value: no word, no short number, no path."""
    if len(value) < _TELLING or value.startswith(("/", "~", "./")):
        return False
    if value.isalpha() and (value.islower() or value.istitle()):
        return False
    return not (value.isdigit() and len(value) < 2 * _TELLING)


class EnvironmentRequest(Wire):
    """Body of `POST /api/v1/environments`."""

    name: str = Field(max_length=200)
    description: str | None = Field(None, max_length=500)


class EnvironmentInfo(Wire):
    """An environment as `environments list` shows it; fal's fields."""

    name: str
    description: str | None = None
    is_default: bool = False
    created_at: datetime


class EnvironmentDeleted(Wire):
    """What went with an environment."""

    name: str
    apps: list[str] = Field(default_factory=list)
    """Aliases."""
    secrets: list[str] = Field(default_factory=list)


class SecretRequest(Wire):
    """Body of `PUT /api/v1/secrets/{name}`."""

    value: SecretStr
    environment: str = MAIN
    default_exposed: bool | None = None
    """None: as it was, and true for a new one."""

    def opened(self) -> bytes:
        """Return the JSON that is sent; every other form of this model hides the value."""
        return json.dumps(self.model_dump(mode="json") | {"value": self.value.get_secret_value()}).encode()


class SecretInfo(Wire):
    """A secret as `secrets list` shows it; fal's fields first."""

    name: str
    environment: str = MAIN
    created_at: datetime
    default_exposed: bool = True
    updated_at: datetime | None = None
    """When its value was set last."""
    number: int = 1
    """How often its value was set."""


class SecretSet(Wire):
    """Answer to a change of a secret: who still has the old value."""

    secret: SecretInfo | None = None
    """None: it was unset."""
    stale: dict[str, int] = Field(default_factory=dict)
    """Alias -> number of running runners that do not have the present values."""


class SecretsRotated(Wire):
    """Answer to a rotation of the keys under which secrets are kept."""

    secrets: int
    """How many were encrypted anew."""
    is_master_new: bool
    """False: the master key is in a file of the operator's, which is not written here."""
