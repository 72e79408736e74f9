"""Which backend to talk to and with which key; a key belongs to a URL and is never shown.

Rules: for the backend of this machine (the *embedded* profile) the key stored in its home wins, whatever
`FAL_KEY` says, because who knows fal has fal.ai's key exported. `FAL_KEY` counts only together with an
address that was named: `FAL_NB_URL` or `--host`. That address may be this machine's own backend; then it
is reached by its private socket all the same, with the stored key unless the given one is of our own kind. A key is sent over https, or to this machine; over plain http
to another one only where FAL_NB_PLAIN_HTTP says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fal_notebook.errors import AuthError, UsageError
from fal_notebook.places import Places, default_home

__all__ = [
    "PLAIN_HTTP",
    "Key",
    "Profile",
    "acting_team",
    "choose_team",
    "chosen_team",
    "is_loopback",
    "is_private_way",
    "resolve",
    "stored_key",
]

OURS = "fk_"
"""What the ids of a backend's keys begin with."""

PLAIN_HTTP = "FAL_NB_PLAIN_HTTP"
"""Set to 1: the way to the named address is private though it is not encrypted (a VPN, a tunnel)."""


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


@dataclass(frozen=True)
class Profile:
    """One backend: the embedded one (url is None) or a named address."""

    places: Places
    url: str | None = None
    given_key: Key | None = None
    source: str = ""
    """Who named the address, for errors: `--host` or `FAL_NB_URL`."""
    is_plain_allowed: bool = False
    """The key may go over plain http."""

    team: str | None = None
    """Nickname of the team that is acted for; None: the key's own account."""

    @property
    def is_embedded(self) -> bool:
        """True for the backend of this home on this machine, which may be started on demand."""
        return self.url is None

    @property
    def key(self) -> Key | None:
        """Return the key for this backend, None when there is none yet."""
        return stored_key(self.places) if self.is_embedded and self.given_key is None else self.given_key

    def authorization(self) -> str | None:
        """Return what proves to this backend who we are, None where there is no key.

        Raises: AuthError where anyone on the way could read it.
        """
        key = self.key
        if key is None:
            return None
        if self.url is not None and not (self.is_plain_allowed or is_private_way(self.url)):
            raise AuthError(
                f"The key is not sent to {self.url}: on the way anyone could read it.",
                fix=f"Use an https address, or set {PLAIN_HTTP}=1 where the network itself is private.",
                code="auth.unencrypted",
            )
        return key.authorization()


def resolve(
    *,
    host: str | None = None,
    home: str | Path | None = None,
    team: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Profile:
    """Return the profile that flags and environment name; the team is the one of `account set` where none does.

    Raises: UsageError when the address is not an http or https URL.
    """
    env = os.environ if environ is None else environ
    named_home = home or env.get("FAL_NB_HOME")
    places = Places(Path(named_home).expanduser() if named_home else default_home())
    named = host or env.get("FAL_NB_URL")
    if not named:
        return Profile(places, team=team or acting_team(places, None, env))
    source = "--host" if host else "FAL_NB_URL"
    url = _checked(named, source)
    given = env.get("FAL_KEY")
    if _is_own(url, places):
        # A key of ours, named together with the address, is another person's; fal.ai's own look otherwise.
        ours = _parsed(given) if given and given.strip().startswith(OURS) else None
        return Profile(places, given_key=ours, team=team or acting_team(places, None, env))
    return Profile(
        places,
        url,
        _parsed(given),
        source,
        env.get(PLAIN_HTTP) == "1",
        team=team or acting_team(places, url, env),
    )


def acting_team(places: Places, url: str | None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the team that environment or `account set` name for a backend."""
    env = os.environ if environ is None else environ
    return env.get("FAL_TEAM") or chosen_team(places, url)


def chosen_team(places: Places, url: str | None) -> str | None:
    """Return the team that `account set` chose for a backend; None for the key's own account."""
    found = _choices(places).get(url or "")
    return found if isinstance(found, str) else None


def choose_team(places: Places, url: str | None, team: str | None) -> None:
    """Act for a team of this backend from now on; None: for the key's own account."""
    choices = {name: value for name, value in _choices(places).items() if name != (url or "")}
    if team is not None:
        choices[url or ""] = team
    places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = places.profile.with_name(f".{places.profile.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"teams": choices}))
    temporary.replace(places.profile)


def _choices(places: Places) -> dict[str, Any]:
    try:
        found = json.loads(places.profile.read_text())
    except (OSError, ValueError):
        return {}
    teams = found.get("teams") if isinstance(found, dict) else None
    return teams if isinstance(teams, dict) else {}


def is_private_way(url: str) -> bool:
    """Return whether nobody on the way to this address can read along."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Return whether a host's name means this machine, whatever a resolver says."""
    if host == "localhost":
        return True
    # Imported here: a third of what this room costs, and only a named address needs it.
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def stored_key(places: Places) -> Key | None:
    """Return the key that the embedded backend made for this user, None before its first start.

    Raises: AuthError when the file is there and cannot be read.
    """
    try:
        record = json.loads(places.local_key.read_text())
        return Key(str(record["key_id"]), str(record["key_secret"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AuthError(
            f"The key file {places.local_key} cannot be read.",
            fix="Check its owner and mode (0600); the backend makes a new one when it is removed.",
            code="auth.unreadable",
        ) from error


def _checked(url: str, source: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(
            f"`{source}` is not an address: {url!r}.", fix="Write it like http://127.0.0.1:8780."
        )
    if parts.username or parts.password:
        raise UsageError(f"`{source}` must not carry a key.", fix="Put the key into FAL_KEY.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_own(url: str, places: Places) -> bool:
    record = places.read_backend_file()
    return record is not None and str(record.get("url", "")).rstrip("/") == url


def _parsed(text: str | None) -> Key | None:
    if not text:
        return None
    key_id, colon, secret = text.strip().partition(":")
    if not (key_id and colon and secret):
        raise UsageError("FAL_KEY does not have the form `id:secret`.", fix="Copy the whole key.")
    return Key(key_id, secret)
