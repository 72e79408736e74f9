"""What this user keeps about backends, in one file of the home: named profiles with their keys, teams, and which is used.

Rules: the file is 0600 and replaced whole, and changed by one process at a time; a key belongs to the address that it
was given for and goes when that changes; a file that cannot be read is an error, for without it another backend would
be used. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fal_notebook.errors import NotFoundError, UsageError
from fal_notebook.places import Places

__all__ = [
    "LOCAL",
    "PROFILE",
    "Kept",
    "Key",
    "Saved",
    "acting_team",
    "change",
    "choose_team",
    "chosen_team",
    "parse_key",
    "read",
    "write",
]

PROFILE = "FAL_PROFILE"
"""Names the profile of one process."""

LOCAL = "local"
"""The profile that is always there: the backend of this machine with the key that it made."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Key:
    """A key in two parts; its text form shows the id only."""

    key_id: str
    secret: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.key_id}:…"

    def authorization(self) -> str:
        """Return the value of the `Authorization` header."""
        return f"Key {self.key_id}:{self.secret}"


def parse_key(text: str, source: str) -> Key:
    """Return a key written as `id:secret`. Raises: UsageError, which does not repeat it."""
    key_id, colon, secret = text.strip().partition(":")
    if not (key_id and colon and secret) or any(letter.isspace() for letter in text.strip()):
        raise UsageError(f"{source} does not have the form `id:secret`.", fix="Copy the whole key.")
    return Key(key_id, secret)


@dataclass(frozen=True)
class Saved:
    """A profile: a backend that the user has named."""

    name: str
    host: str | None = None
    """Address; None: the backend of this machine."""
    key: Key | None = None

    def at(self, host: str) -> Saved:
        """Return it for another address, without the key of the one before."""
        return self if host == self.host else replace(self, host=host, key=None)


@dataclass(frozen=True)
class Kept:
    """The whole file."""

    profiles: Mapping[str, Saved] = field(default_factory=dict)
    current: str | None = None
    """Name of the profile that is used where nothing else is named."""
    teams: Mapping[str, str] = field(default_factory=dict)
    """Team that is acted for, by address; "" for the backend of this machine."""

    def used(self, environ: Mapping[str, str]) -> Saved | None:
        """Return the profile of the environment, else the chosen one; None: this machine's. Raises: NotFoundError."""
        name = environ.get(PROFILE) or self.current or LOCAL
        return None if name == LOCAL else self.named(name)

    def named(self, name: str) -> Saved:
        """Return a profile. Raises: NotFoundError with the nearest name, or all that there are."""
        if name in self.profiles:
            return self.profiles[name]
        # Imported here: only a misspelt name needs it.
        from difflib import get_close_matches

        like = get_close_matches(name, list(self.profiles), n=1)
        raise NotFoundError(
            f"There is no profile `{name}`.",
            fix=f"Did you mean `{like[0]}`?"
            if like
            else f"Profiles: {', '.join([LOCAL, *self.profiles])}. `fal-nb auth login URL` makes one.",
            code="profile.not_found",
        )

    def key_for(self, host: str) -> Saved | None:
        """Return the profile that holds a key for an address, the one in use first."""
        fitting = [one for one in self.profiles.values() if one.host == host and one.key is not None]
        return next((one for one in fitting if one.name == self.current), fitting[0] if fitting else None)

    def with_(self, saved: Saved) -> Kept:
        """Return it with a profile added or changed. Raises: UsageError for a name that cannot be one."""
        if saved.name == LOCAL or not _NAME.fullmatch(saved.name):
            raise UsageError(
                f"`{saved.name}` cannot be the name of a profile.",
                fix=f"Letters, digits, `.`, `_` and `-`; `{LOCAL}` is this machine's backend.",
            )
        return replace(self, profiles={**self.profiles, saved.name: saved})

    def without(self, name: str) -> Kept:
        """Return it without a profile."""
        left = {key: one for key, one in self.profiles.items() if key != name}
        return replace(self, profiles=left, current=None if self.current == name else self.current)

    def using(self, name: str | None) -> Kept:
        """Return it with another profile in use; None: this machine's."""
        return replace(self, current=None if name == LOCAL else name)


def read(places: Places) -> Kept:
    """Return what is kept, nothing before anything was. Raises: UsageError for a file that cannot be read."""
    try:
        found = json.loads(places.profile.read_text())
        profiles = {name: _saved(name, one) for name, one in found.get("profiles", {}).items()}
        current = found.get("current")
        if current is not None and current not in profiles:
            raise ValueError(current)
        return Kept(profiles, current, {str(url): str(team) for url, team in found.get("teams", {}).items()})
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"{places.profile}, where profiles are kept, cannot be read.",
            fix="Correct it, or remove it and log in again.",
            code="usage.profiles",
        ) from error


def change(places: Places, changed: Callable[[Kept], Kept]) -> Kept:
    """Replace what is kept by what is made of it, and return that; nobody else's change comes in between."""
    places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = places.profile.with_suffix(".lock")
    # Held for one read and one write, so a wait for it is short; Ctrl-C ends it.
    with os.fdopen(os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kept = changed(read(places))
        write(places, kept)
    return kept


def write(places: Places, kept: Kept) -> None:
    """Replace the file, whatever it holds by now; nobody else may read it."""
    places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "teams": dict(kept.teams),
        "profiles": {name: _record(one) for name, one in kept.profiles.items()},
        "current": kept.current,
    }
    temporary = places.profile.with_name(f".{places.profile.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
    temporary.replace(places.profile)


def acting_team(places: Places, url: str | None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the team that environment or `account set` name for a backend."""
    env = os.environ if environ is None else environ
    return env.get("FAL_TEAM") or chosen_team(places, url)


def chosen_team(places: Places, url: str | None) -> str | None:
    """Return the team that `account set` chose for a backend; None for the key's own account."""
    return read(places).teams.get(url or "")


def choose_team(places: Places, url: str | None, team: str | None) -> None:
    """Act for a team of this backend from now on; None: for the key's own account."""

    def changed(kept: Kept) -> Kept:
        others = {name: one for name, one in kept.teams.items() if name != (url or "")}
        return replace(kept, teams=others if team is None else {**others, url or "": team})

    change(places, changed)


def _saved(name: str, record: Mapping[str, Any]) -> Saved:
    key = record.get("key")
    return Saved(name, record.get("host"), None if key is None else Key(key["key_id"], key["key_secret"]))


def _record(saved: Saved) -> dict[str, Any]:
    key = saved.key
    return {
        "host": saved.host,
        "key": None if key is None else {"key_id": key.key_id, "key_secret": key.secret},
    }
