"""`keys`: make, list and revoke the keys of an account.

Rules: a secret is shown by one command, once, and never in a notebook, whose outputs are saved.
Source: fal SDK, `fal keys`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from fal_notebook import wire_access
from fal_notebook.commands.context import Context
from fal_notebook.commands.moments import moment_of
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results_access import KeyMade, KeyRevoked, KeysListed
from fal_notebook.errors import UsageError
from fal_notebook.wire_access import KeyPage, KeyPreset, KeyRequest, NewKeyInfo

__all__ = ["COMMANDS", "CreateArguments", "ListArguments", "RevokeArguments", "Scope"]


class Scope(StrEnum):
    """fal's older word for a preset."""

    ADMIN = "ADMIN"
    API = "API"


@dataclass(frozen=True, kw_only=True)
class CreateArguments:
    """Arguments of `keys create`."""

    preset: KeyPreset | None = flag(
        "What it is good for: FULL everything; API call apps, upload; DEPLOY deploy, upload; READONLY read (default API)"
    )
    scope: Scope | None = flag("As --preset: ADMIN is FULL")
    desc: str | None = flag("What it is for", metavar="TEXT", short="--alias")
    expires: str | None = flag("When it ends: 12h, 30d, 8w, or an ISO time", metavar="TIME")


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """`keys list` takes no arguments."""


@dataclass(frozen=True, kw_only=True)
class RevokeArguments:
    """Arguments of `keys revoke`."""

    key_id: str = value("Id of the key")


def create(args: CreateArguments, ctx: Context) -> KeyMade:
    """Make a key. Raises: UsageError, AuthError."""
    if args.preset is not None and args.scope is not None:
        raise UsageError("--preset and --scope say the same thing.", fix="Use --preset.")
    of_scope = {Scope.ADMIN: KeyPreset.FULL, Scope.API: KeyPreset.API, None: KeyPreset.API}
    wish = KeyRequest(
        preset=args.preset or of_scope[args.scope],
        description=args.desc,
        expires_at=moment_of(args.expires, "--expires", is_ahead=True),
    )
    return KeyMade(ctx.connect().ask("POST", "/api/v1/keys", NewKeyInfo, body=wish))


def list_keys(args: ListArguments, ctx: Context) -> KeysListed:
    """List keys."""
    return KeysListed(tuple(ctx.connect().ask("GET", "/api/v1/keys", KeyPage).keys))


def revoke(args: RevokeArguments, ctx: Context) -> KeyRevoked:
    """End a key at once. Raises: NotFoundError."""
    # Who holds the whole key may paste it; only its id leaves.
    key_id = args.key_id.partition(":")[0]
    ctx.connect().ask("DELETE", f"/api/v1/keys/{quote(key_id, safe='')}", wire_access.KeyRevoked)
    return KeyRevoked(key_id)


COMMANDS: dict[str, Command] = {
    "keys create": Command(CreateArguments, create),
    "keys list": Command(ListArguments, list_keys),
    "keys revoke": Command(RevokeArguments, revoke),
}
