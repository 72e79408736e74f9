"""`requests`: the request log, which has one line for each call that has ended."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased
from fal_notebook.commands.moments import moment_of
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import RequestsListed

__all__ = ["COMMANDS", "RequestsArguments"]


@dataclass(frozen=True, kw_only=True)
class RequestsArguments:
    """Arguments of `requests`."""

    app: str | None = value("Name of the app, or a class run in this notebook", default=None)
    env: str | None = flag(ENV_HELP, metavar="NAME")
    request: str | None = flag("Only this request", metavar="ID")
    status: str | None = flag("Only this status, or class of statuses: 503, 5xx", metavar="STATUS")
    since: str | None = flag("Only newer ones: 90s, 10m, 2h, 1d, or an ISO time", metavar="TIME")
    limit: int = flag("Newest ones at most", default=50, metavar="COUNT", short="-n")


def requests(args: RequestsArguments, ctx: Context) -> RequestsListed:
    """List calls and queued requests that have ended, newest first."""
    since = moment_of(args.since, "--since")
    given = {
        "app": None if args.app is None else _app(args.app, args.env, ctx),
        "request": args.request,
        "status": args.status,
        "since": None if since is None else since.isoformat(),
        "limit": str(args.limit),
    }
    params = {name: text for name, text in given.items() if text is not None}
    return RequestsListed(tuple(ctx.connect().requests(params)))


def _app(app: str, env: str | None, ctx: Context) -> str:
    owner, slash, _ = app.rpartition("/")
    return ctx.aliases.get(app) or f"{owner}{slash}{aliased(app, env, ctx)}"


COMMANDS: dict[str, Command] = {"requests": Command(RequestsArguments, requests)}
