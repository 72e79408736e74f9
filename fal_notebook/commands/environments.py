"""`environments`: sets of apps and secrets beside `main`; and how every command finds the app that `--env` means."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, flag, nearest, value
from fal_notebook.commands.results import EnvironmentsListed, Told
from fal_notebook.errors import ConflictError, NotFoundError, UsageError
from fal_notebook.wire_secrets import MAIN, EnvironmentRequest, full_alias, split_alias

__all__ = ["COMMANDS", "ENV_HELP", "aliased", "chosen_environment"]

ENV_HELP = "Environment; else FAL_ENV, else `main`"


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Arguments of `environments list`."""


@dataclass(frozen=True, kw_only=True)
class CreateArguments:
    """Arguments of `environments create`."""

    name: str = value("Name of the environment")
    description: str | None = flag("What it is for", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class DeleteArguments:
    """Arguments of `environments delete`."""

    name: str = value("Name of the environment")
    yes: bool = flag("Delete the apps and secrets in it too", default=False)


def chosen_environment(env: str | None) -> str | None:
    """Return the environment that a flag or FAL_ENV names, None where neither does."""
    return env or os.environ.get("FAL_ENV") or None


def aliased(app: str, env: str | None, ctx: Context) -> str:
    """Return the alias of an app in the environment that a flag or FAL_ENV names.

    app: its name, `owner/name`, or an alias with its environment's ending, which then counts alone.
    Raises: UsageError for another account's app; NotFoundError for an unknown environment, with the nearest names.
    """
    owner, slash, name = app.rpartition("/")
    if slash:
        _check_owner(owner, app, ctx)
    environment = chosen_environment(env) or MAIN
    if environment == MAIN or (env is None and split_alias(name)[1] != MAIN):
        return name
    check_environment(environment, ctx)
    return full_alias(name, environment)


def _check_owner(owner: str, app: str, ctx: Context) -> None:
    """Never take an app of the same name for the one that is meant."""
    acting_for = ctx.connect().owner
    if owner != acting_for:
        raise UsageError(
            f"`{app}` belongs to another account: this acts for `{acting_for}`.",
            fix=f"`--team {owner}` acts for that one, if it is a team of yours.",
            code="usage.other_account",
        )


def check_environment(name: str, ctx: Context) -> None:
    """Raises: NotFoundError with the nearest names when there is no such environment."""
    if name == MAIN:
        return
    known = [one.name for one in ctx.connect().environments()]
    if name not in known:
        like = nearest(name, known)
        meant = f"Did you mean '{like[0]}'? " if like else ""
        raise NotFoundError(
            f"There is no environment '{name}'.",
            fix=f"{meant}Environments: {', '.join(known)}.",
            code="environment.not_found",
        )


def list_environments(args: ListArguments, ctx: Context) -> EnvironmentsListed:
    """List environments."""
    return EnvironmentsListed(tuple(ctx.connect().environments()))


def create(args: CreateArguments, ctx: Context) -> Told:
    """Make an environment. Raises: UsageError, ConflictError."""
    request = EnvironmentRequest(name=args.name, description=args.description)
    made = ctx.connect().create_environment(request)
    deploy = f"`{ctx.prefix} deploy ... --env {made.name}`"
    return Told(f"Made environment '{made.name}'. {deploy} deploys to it.", made.model_dump(mode="json"))


def delete(args: DeleteArguments, ctx: Context) -> Told:
    """Delete an environment; with --yes with all that is in it. Raises: NotFoundError, ConflictError."""
    try:
        gone = ctx.connect().delete_environment(args.name, with_all=args.yes)
    except ConflictError as error:
        error.fix = f"`{ctx.prefix} environments delete {args.name} --yes` deletes it with all that is in it."
        raise
    parts = [
        f"{label} {', '.join(names)}"
        for label, names in (("apps", gone.apps), ("secrets", gone.secrets))
        if names
    ]
    more = f", with {' and '.join(parts)}" if parts else ""
    return Told(f"Deleted environment '{gone.name}'{more}.", gone.model_dump(mode="json") | {"deleted": True})


COMMANDS: dict[str, Command] = {
    "environments list": Command(ListArguments, list_environments),
    "environments create": Command(CreateArguments, create),
    "environments delete": Command(DeleteArguments, delete),
}
