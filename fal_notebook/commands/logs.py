"""`logs`: what runners wrote, now or as it comes."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from datetime import datetime

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased
from fal_notebook.commands.moments import moment_of
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import LinesShown
from fal_notebook.errors import UsageError
from fal_notebook.wire import LogLine

__all__ = ["COMMANDS", "LogsArguments", "RunnerLogsArguments"]

TICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class LogsArguments:
    """Arguments of `logs`."""

    app: str | None = value("Name of the app, or a class run in this notebook", default=None)
    runner: str | None = flag("Only lines of this runner", metavar="ID")
    request: str | None = flag("Only lines of this request", metavar="ID")
    follow: bool = flag("Go on as lines come, until interrupted", default=False, short="-f")
    lines: int = flag("Newest lines at first", default=100, metavar="COUNT", short="-n")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    search: str | None = flag("Only lines with this text", metavar="TEXT")
    since: str | None = flag("Only newer lines: 90s, 10m, 2h, 1d, or an ISO time", metavar="TIME")
    until: str | None = flag("Only lines up to then, in the same words", metavar="TIME")


@dataclass(frozen=True, kw_only=True)
class RunnerLogsArguments:
    """Arguments of `runners logs`."""

    runner: str = value("Id of the runner")
    follow: bool = flag("Go on as lines come, until interrupted", default=False, short="-f")
    lines: int = flag("Newest lines at first", default=100, metavar="COUNT", short="-n")
    search: str | None = flag("Only lines with this text", metavar="TEXT")
    since: str | None = flag("Only newer lines: 90s, 10m, 2h, 1d, or an ISO time", metavar="TIME")
    until: str | None = flag("Only lines up to then, in the same words", metavar="TIME")


def runner_logs(args: RunnerLogsArguments, ctx: Context) -> LinesShown:
    """Show what one runner wrote: `logs --runner`. Raises: NotFoundError, UsageError."""
    return logs(LogsArguments(**asdict(args)), ctx)


def logs(args: LogsArguments, ctx: Context) -> LinesShown:
    """Show log lines; with `--follow` each is shown as it comes, until the person interrupts."""
    if args.app is None and args.runner is None:
        raise UsageError("Which logs?", fix="Name an app, or a runner by --runner.")
    if args.lines < 0:
        raise UsageError(f"--lines is a number from 0 on, not {args.lines}.")
    since, until = moment_of(args.since, "--since"), moment_of(args.until, "--until")
    params = _params(args, ctx)
    client = ctx.connect()
    found = [line for line in client.read_logs(params) if _fits(line, args, since, until)]
    shown = found[-args.lines :] if args.lines > 0 else []
    if not args.follow:
        return LinesShown(tuple(shown))
    for line in shown:
        ctx.emit(line)
    with client.feed() as feed:
        after = found[-1].offset if found else 0
        feed.follow("logs", client.core.logs(params, follow=True, after=after))
        # Ctrl-C is the only way out of following, and the wanted one.
        with contextlib.suppress(KeyboardInterrupt):
            is_open, item = True, None
            while is_open or item is not None:
                # What a stream said before its end is in the feed after it.
                is_open = feed.follows("logs")
                item = feed.take(TICK_S if is_open else 0)
                if isinstance(item, LogLine) and _fits(item, args, since, until):
                    ctx.emit(item)
    return LinesShown((), is_shown=True)


def _params(args: LogsArguments, ctx: Context) -> dict[str, str]:
    params: dict[str, str] = {}
    if args.runner is not None:
        params["runner"] = args.runner
    elif args.app is not None:
        params["app"] = ctx.aliases.get(args.app) or aliased(args.app, args.env, ctx)
    if args.request is not None:
        params["request"] = args.request
    if args.search is None and args.since is None and args.until is None:
        params["limit"] = str(max(args.lines, 1))
    return params


def _fits(line: LogLine, args: LogsArguments, since: datetime | None, until: datetime | None) -> bool:
    if (since is not None and line.at < since) or (until is not None and line.at > until):
        return False
    return args.search is None or args.search in line.text


COMMANDS: dict[str, Command] = {
    "logs": Command(LogsArguments, logs),
    "runners logs": Command(RunnerLogsArguments, runner_logs),
}
