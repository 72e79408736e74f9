"""`auth whoami` and `account`: whose key is used, and for which account. Source: fal SDK, `fal auth`, `fal account`."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, nearest, value
from fal_notebook.commands.results_access import Chosen, Greeted, TeamsListed
from fal_notebook.errors import NotFoundError
from fal_notebook.profiles import choose_team
from fal_notebook.wire_access import WhoAmI

__all__ = ["COMMANDS", "NoArguments", "SetArguments"]


@dataclass(frozen=True, kw_only=True)
class NoArguments:
    """Nothing to say."""


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """Arguments of `account set`."""

    account: str = value("Name of a team of yours, or of your own account")


def whoami(args: NoArguments, ctx: Context) -> Greeted:
    """Say whose key is used."""
    profile = ctx.profile
    return Greeted(_who(ctx), profile.label, profile.address, profile.key_source)


def list_accounts(args: NoArguments, ctx: Context) -> TeamsListed:
    """List the key's own account and its teams."""
    return TeamsListed(_who(ctx))


def choose(args: SetArguments, ctx: Context) -> Chosen:
    """Act for a team from now on, in every notebook and terminal of this user. Raises: NotFoundError."""
    who = _who(ctx)
    names = [team.nickname for team in who.teams]
    if args.account not in (*names, who.nickname):
        like = nearest(args.account, [*names, who.nickname])
        raise NotFoundError(
            f"You are in no team `{args.account}`.",
            fix=f"Did you mean `{like[0]}`?" if like else f"Your teams: {', '.join(names) or 'none'}.",
            code="account.not_found",
        )
    is_team = args.account in names
    choose_team(ctx.profile.places, ctx.profile.url, args.account if is_team else None)
    return Chosen(args.account, is_team)


def unset(args: NoArguments, ctx: Context) -> Chosen:
    """Act for the key's own account again."""
    choose_team(ctx.profile.places, ctx.profile.url, None)
    return Chosen(_who(ctx).nickname, is_team=False)


def _who(ctx: Context) -> WhoAmI:
    return ctx.connect().ask("GET", "/api/v1/account", WhoAmI)


COMMANDS: dict[str, Command] = {
    "auth whoami": Command(NoArguments, whoami),
    "account list": Command(NoArguments, list_accounts),
    "account set": Command(SetArguments, choose),
    "account unset": Command(NoArguments, unset),
}
