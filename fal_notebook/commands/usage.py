"""`usage`: what calls took of which machine type, for whom, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.moments import moment_of
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results_access import UsageShown
from fal_notebook.wire_access import UsageReport

__all__ = ["COMMANDS", "UsageArguments"]


@dataclass(frozen=True, kw_only=True)
class UsageArguments:
    """Arguments of `usage`."""

    app: str | None = value("Only this app: `name` or `owner/name`", default=None)
    since: str | None = flag("From when on: 90s, 10m, 2h, 1d, or an ISO time (default 30d)", metavar="TIME")
    until: str | None = flag("Until when", metavar="TIME")
    by_minute: bool = flag("One row for each minute", default=False)
    all: bool = flag("Everybody's, for an admin of the backend", default=False)


def usage(args: UsageArguments, ctx: Context) -> UsageShown:
    """Show what was used. Raises: AuthError."""
    since, until = moment_of(args.since, "--since"), moment_of(args.until, "--until")
    given = {
        "app": args.app,
        "since": None if since is None else since.isoformat(),
        "until": None if until is None else until.isoformat(),
        "by_minute": "1" if args.by_minute else None,
        "all": "1" if args.all else None,
    }
    params = {name: text for name, text in given.items() if text is not None}
    return UsageShown(ctx.connect().ask("GET", "/api/v1/usage", UsageReport, params=params))


COMMANDS: dict[str, Command] = {"usage": Command(UsageArguments, usage)}
