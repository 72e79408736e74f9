"""Which backend to talk to and with which key; a key belongs to a URL and is never shown.

Rules: flags win over the environment, that over the profile in use, that over the backend of this machine. For
this machine's (the *embedded* one) the key stored in its home wins, whatever `FAL_KEY` says, because who knows fal has
fal.ai's key exported. `FAL_KEY` counts together with an address that was named, `FAL_NB_URL` or `--host`; for a
profile's address, and for this machine's own when it is named, only a key of our own kind. An own address is reached
by its private socket. A key is sent over https, or to this machine; over plain http to another one only where
FAL_NB_PLAIN_HTTP says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from fal_notebook.errors import AuthError, UsageError
from fal_notebook.places import Places, default_home
from fal_notebook.profiles import LOCAL, Kept, Key, Saved, acting_team, parse_key, read

__all__ = [
    "PLAIN_HTTP",
    "Profile",
    "checked_address",
    "is_loopback",
    "is_private_way",
    "resolve",
    "saved_profile",
    "stored_key",
]

OURS = "fk_"
"""What the ids of a backend's keys begin with."""

PLAIN_HTTP = "FAL_NB_PLAIN_HTTP"
"""Set to 1: the way to the named address is private though it is not encrypted (a VPN, a tunnel)."""


@dataclass(frozen=True)
class Profile:
    """One backend: the embedded one (url is None) or a named address."""

    places: Places
    url: str | None = None
    given_key: Key | None = None
    source: str = ""
    """Who named the address, for errors: `--host`, `FAL_NB_URL`, or a profile."""
    is_plain_allowed: bool = False
    """The key may go over plain http."""

    team: str | None = None
    """Nickname of the team that is acted for; None: the key's own account."""

    name: str | None = None
    """The saved profile that it comes from."""
    key_from: str = ""
    """Where a given key was found."""

    @property
    def is_embedded(self) -> bool:
        """True for the backend of this home on this machine, which may be started on demand."""
        return self.url is None

    @property
    def key(self) -> Key | None:
        """Return the key for this backend, None when there is none yet."""
        return stored_key(self.places) if self.is_embedded and self.given_key is None else self.given_key

    @property
    def address(self) -> str:
        """Return where the backend is, in words."""
        return self.url or "this machine"

    @property
    def label(self) -> str:
        """Return the name of the saved profile that it comes from, or what named the address."""
        return self.name or self.source or LOCAL

    @property
    def key_source(self) -> str:
        """Return where the key came from."""
        if self.key is None:
            return "nowhere"
        return self.key_from if self.given_key is not None else str(self.places.local_key)

    @property
    def way_home(self) -> str:
        """Return what leads back to the backend of this machine."""
        return "run `fal-nb profile unset`" if self.name is not None else f"remove {self.source}"

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
    kept = read(places)
    named, source = (host, "--host") if host else (env.get("FAL_NB_URL"), "FAL_NB_URL")
    saved = None if named else kept.used(env)
    if named:
        found = _named(places, named, source, kept, env)
    elif saved is not None:
        found = _with_own_key(saved_profile(places, saved, env), env)
    else:
        found = Profile(places)
    return replace(found, team=team or acting_team(places, found.url, env))


def saved_profile(places: Places, saved: Saved, environ: Mapping[str, str] | None = None) -> Profile:
    """Return a profile as it was saved, whatever keys the environment holds."""
    env = os.environ if environ is None else environ
    label = f"profile `{saved.name}`"
    found = _at(places, saved.host, label, env) if saved.host else Profile(places)
    return replace(
        found, name=saved.name, given_key=saved.key, key_from=label if saved.key is not None else ""
    )


def _named(places: Places, named: str, source: str, kept: Kept, env: Mapping[str, str]) -> Profile:
    """Return the profile of an address that flag or environment name."""
    found = _at(places, named, source, env)
    if found.url is None:
        return _with_own_key(found, env)
    if env.get("FAL_KEY"):
        return replace(found, given_key=parse_key(env["FAL_KEY"], "FAL_KEY"), key_from="FAL_KEY")
    holder = kept.key_for(found.url)
    if holder is None:
        return found
    return replace(found, given_key=holder.key, key_from=f"profile `{holder.name}`")


def _with_own_key(found: Profile, env: Mapping[str, str]) -> Profile:
    """Give it the environment's key where that is one of our kind: a person's; fal.ai's own look otherwise."""
    given = env.get("FAL_KEY", "").strip()
    if not given.startswith(OURS):
        return found
    return replace(found, given_key=parse_key(given, "FAL_KEY"), key_from="FAL_KEY")


def _at(places: Places, address: str, source: str, env: Mapping[str, str]) -> Profile:
    """Return the profile of an address without a key; this machine's own backend by its socket."""
    url = checked_address(address, source)
    if _is_own(url, places):
        return Profile(places)
    return Profile(places, url, source=source, is_plain_allowed=env.get(PLAIN_HTTP) == "1")


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


def checked_address(url: str, source: str) -> str:
    """Return an address in its one form. Raises: UsageError when it is none, or carries a key."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(
            f"`{source}` is not an address: {url!r}.", fix="Write it like http://127.0.0.1:8780."
        )
    if parts.username or parts.password:
        raise UsageError(
            f"`{source}` must not carry a key.", fix="Put the key into FAL_KEY, or use `fal-nb auth login`."
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _is_own(url: str, places: Places) -> bool:
    record = places.read_backend_file()
    return record is not None and str(record.get("url", "")).rstrip("/") == url
