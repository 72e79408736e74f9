"""`env`: the variables that point other programs, fal's own clients among them, at the backend of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command
from fal_notebook.commands.results import Exports
from fal_notebook.embedded import find_backend
from fal_notebook.errors import BackendError, UsageError
from fal_notebook.places import Places
from fal_notebook.profiles import Key
from fal_notebook.trust import files_url, write_bundle

__all__ = ["COMMANDS", "EnvArguments"]


@dataclass(frozen=True, kw_only=True)
class EnvArguments:
    """`env` takes no arguments."""


def env(args: EnvArguments, ctx: Context) -> Exports:
    """Return the exports of the backend that answers; without TLS, those that need none."""
    profile = ctx.profile
    if not profile.is_embedded:
        raise UsageError(
            f"`env` is for the backend of this machine, and {profile.label} names {profile.url}.",
            fix=f"Run it where the backend runs; here, {profile.way_home}.",
        )
    record, key = find_backend(profile.places), profile.key
    if record is None or key is None:
        raise BackendError(
            "No backend runs here.",
            fix="Start it with `fal-nb serve --tls --background`.",
            code="backend.not_running",
        )
    ctx.say(f"The backend of this machine, profile {profile.label}; key from {profile.key_source}.")
    if not record.get("tls_url"):
        ctx.say(
            "The backend has no TLS, which fal's own Python client insists on: start it with `fal-nb serve --tls`."
        )
    return Exports(_values(profile.places, record, key))


def _values(places: Places, record: dict[str, Any], key: Key) -> dict[str, str]:
    url = str(record["url"]).rstrip("/")
    values = {"FAL_KEY": f"{key.key_id}:{key.secret}", "FAL_NB_URL": url}
    tls_url = str(record.get("tls_url") or "").rstrip("/")
    if tls_url:
        host = tls_url.removeprefix("https://")
        files = files_url(record)
        values |= {
            "FAL_RUN_HOST": f"{host}/run",
            "FAL_QUEUE_RUN_HOST": f"{host}/queue",
            "SSL_CERT_FILE": str(write_bundle(places)),
            "FAL_NB_REST_URL": f"{files}/rest",
            "FAL_NB_CDN_URL": files,
        }
    return values


COMMANDS: dict[str, Command] = {"env": Command(EnvArguments, env)}
