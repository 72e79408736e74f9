"""`apps`: the apps of an account."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased, chosen_environment
from fal_notebook.commands.registry import Command, flag, nearest, value
from fal_notebook.commands.results import AppDeleted, AppsListed
from fal_notebook.errors import NotFoundError

__all__ = ["COMMANDS", "DeleteArguments", "ListArguments"]


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Arguments of `apps list`."""

    temporary: bool = flag("List temporary apps too", default=False)
    filter: str | None = flag("Only apps whose name has this in it", metavar="TEXT")
    sort_by_runners: bool = flag("Those with the fewest runners first", default=False)
    regions: str | None = flag("Only apps that may run in one of these: us-east,eu", metavar="REGIONS")
    env: str | None = flag("Environment, else FAL_ENV; without either, of all", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class DeleteArguments:
    """Arguments of `apps delete`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")


def list_apps(args: ListArguments, ctx: Context) -> AppsListed:
    """List deployed apps."""
    listed = ctx.connect().apps(ephemeral=args.temporary, environment=chosen_environment(args.env))
    wanted = {name.strip() for name in (args.regions or "").split(",")} - {""}
    apps = [
        app
        for app in listed
        if (args.filter or "") in app.alias
        and (not wanted or not app.valid_regions or wanted & set(app.valid_regions))
    ]
    return AppsListed(
        tuple(sorted(apps, key=lambda app: app.active_runners) if args.sort_by_runners else apps)
    )


def delete(args: DeleteArguments, ctx: Context) -> AppDeleted:
    """Delete an app. Raises: NotFoundError with the nearest names."""
    client = ctx.connect()
    name = aliased(args.app, args.env, ctx)
    try:
        return AppDeleted(name, client.delete_app(name))
    except NotFoundError as error:
        names = [app.alias for app in client.apps()]
        like = nearest(name, names)
        fix = f"Did you mean `{like[0]}`?" if like else f"Apps: {', '.join(names) or 'none'}."
        raise NotFoundError(f"There is no app `{name}`.", fix=fix) from error


COMMANDS: dict[str, Command] = {
    "apps list": Command(ListArguments, list_apps),
    "apps delete": Command(DeleteArguments, delete),
}
