"""`admin` and `audit`: the accounts of a backend, what they may do, and what was done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results_access import AccountChanged, AccountMade, AccountsListed, ActsListed
from fal_notebook.errors import UsageError
from fal_notebook.wire_access import (
    AccountInfo,
    AccountPage,
    AccountRequest,
    AccountSetting,
    ActPage,
    NewAccount,
)

__all__ = ["COMMANDS", "AuditArguments", "CreateArguments", "ListArguments", "SetArguments", "Switch"]


class Switch(StrEnum):
    """Allowed or not."""

    ON = "on"
    OFF = "off"


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """`admin list` takes no arguments."""


@dataclass(frozen=True, kw_only=True)
class CreateArguments:
    """Arguments of `admin create`."""

    name: str = value("Name of the account, which its apps' addresses begin with")
    full_name: str | None = flag("Name for people", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """Arguments of `admin set`."""

    name: str = value("Name of the person's or team's account")
    shared: Switch | None = flag("May it deploy shared apps, whose callers are charged?")
    admin: Switch | None = flag("May it manage this backend?")
    deploy_check: Switch | None = flag("Must each of its deployments be shown and confirmed first?")
    full_name: str | None = flag("Name for people", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class AuditArguments:
    """Arguments of `audit`."""

    all: bool = flag("Acts on all accounts of the backend", default=False)
    limit: int = flag("Newest ones at most", default=50, metavar="COUNT", short="-n")


def list_accounts(args: ListArguments, ctx: Context) -> AccountsListed:
    """List all accounts. Raises: AuthError."""
    return AccountsListed(tuple(ctx.connect().ask("GET", "/api/v1/accounts", AccountPage).accounts))


def create(args: CreateArguments, ctx: Context) -> AccountMade:
    """Make a person's account. Raises: AuthError, ConflictError."""
    wish = AccountRequest(nickname=args.name, full_name=args.full_name)
    return AccountMade(ctx.connect().ask("POST", "/api/v1/accounts", NewAccount, body=wish))


def change(args: SetArguments, ctx: Context) -> AccountChanged:
    """Say what an account may do. Raises: AuthError, NotFoundError, UsageError."""
    wish = AccountSetting(
        shared=_is_on(args.shared),
        admin=_is_on(args.admin),
        deploy_check=_is_on(args.deploy_check),
        full_name=args.full_name,
    )
    if wish == AccountSetting():
        raise UsageError("Say what is to change.", fix="For example `--shared on`.")
    return AccountChanged(
        ctx.connect().ask("PATCH", f"/api/v1/accounts/{quote(args.name, safe='')}", AccountInfo, body=wish)
    )


def audit(args: AuditArguments, ctx: Context) -> ActsListed:
    """List the newest acts. Raises: AuthError."""
    params = {"limit": str(args.limit)} | ({"all": "1"} if args.all else {})
    return ActsListed(tuple(ctx.connect().ask("GET", "/api/v1/audit", ActPage, params=params).acts))


def _is_on(switch: Switch | None) -> bool | None:
    return None if switch is None else switch is Switch.ON


COMMANDS: dict[str, Command] = {
    "admin list": Command(ListArguments, list_accounts),
    "admin create": Command(CreateArguments, create),
    "admin set": Command(SetArguments, change),
    "audit": Command(AuditArguments, audit),
}
