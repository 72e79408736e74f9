"""`apps scale`, `apps rollout`, `apps runners`, `queue …`: an app that serves, changed while it does."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased
from fal_notebook.commands.follow import Follower
from fal_notebook.commands.moments import moment_of
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import (
    AppRestarted,
    AppScaled,
    Progress,
    QueueFlushed,
    QueueSized,
    RunnersListed,
)
from fal_notebook.errors import UsageError
from fal_notebook.wire import RunnerInfo, RunnerState

__all__ = [
    "COMMANDS",
    "FlushArguments",
    "RolloutArguments",
    "RunnersArguments",
    "ScaleArguments",
    "SizeArguments",
    "chosen",
]


@dataclass(frozen=True, kw_only=True)
class ScaleArguments:
    """Arguments of `apps scale`; what is not given stays as it is."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    keep_alive: int | None = flag("Idle seconds before a runner is shut down", metavar="SECONDS")
    max_multiplexing: int | None = flag("Calls at once on one runner (of new ones)", metavar="COUNT")
    max_concurrency: int | None = flag("Runners at most", metavar="COUNT")
    min_concurrency: int | None = flag("Runners kept up", metavar="COUNT")
    concurrency_buffer: int | None = flag("Runners kept free beyond need", metavar="COUNT")
    concurrency_buffer_perc: int | None = flag("The same as a part of need", metavar="PERCENT")
    scaling_delay: int | None = flag("Seconds a call waits before it starts a runner", metavar="SECONDS")
    request_timeout: int | None = flag("Seconds of processing before 504", metavar="SECONDS")
    request_start_timeout: int | None = flag("Seconds a call may wait for a runner", metavar="SECONDS")
    startup_timeout: int | None = flag("Seconds until `setup()` must have returned", metavar="SECONDS")
    machine_types: str | None = flag(
        "Machine types of new runners in order of preference, until the next deployment: M,L", metavar="TYPES"
    )
    regions: str | None = flag("Regions that new runners may be in: us-east,eu; `any`", metavar="REGIONS")


@dataclass(frozen=True, kw_only=True)
class RolloutArguments:
    """Arguments of `apps rollout`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    force: bool = flag("End its runners at once, calls and all", default=False)
    detach: bool = flag("Do not wait for the end", default=False)


@dataclass(frozen=True, kw_only=True)
class RunnersArguments:
    """Arguments of `apps runners`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    since: str | None = flag("Ended ones too, if they ended since: 90s, 10m, 2h, 1d", metavar="TIME")
    state: tuple[str, ...] = flag("Only this state, such as RUNNING (repeatable)", metavar="STATE", many=True)


@dataclass(frozen=True, kw_only=True)
class SizeArguments:
    """Arguments of `queue size`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    by_user: bool = flag("Say whose they are too", default=False)


@dataclass(frozen=True, kw_only=True)
class FlushArguments:
    """Arguments of `queue flush`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    caller_user_id: str | None = flag("Only requests of this account", metavar="ACCOUNT")


def scale(args: ScaleArguments, ctx: Context) -> AppScaled:
    """Change settings of an app; they hold at once and for later deployments. Raises: NotFoundError, UsageError."""
    changes: dict[str, object] = {
        field.name: given
        for field in fields(args)
        if field.name not in ("app", "machine_types", "regions")
        and (given := getattr(args, field.name)) is not None
    }
    if args.machine_types is not None:
        changes["machine_types"] = _names(args.machine_types)
    if args.regions is not None:
        changes["valid_regions"] = [] if args.regions == "any" else _names(args.regions)
    if not changes:
        raise UsageError("Nothing to change.", fix=f"See `{ctx.prefix} apps scale --help`.")
    return AppScaled(ctx.connect().scale(aliased(args.app, args.env, ctx), changes))


def rollout(args: RolloutArguments, ctx: Context) -> AppRestarted:
    """Replace an app's runners by new ones of the same revision. Raises: NotFoundError, FalError when it fails."""
    client = ctx.connect()
    found = client.rollout(aliased(args.app, args.env, ctx), force=args.force)
    if found.deployment is None or args.detach:
        return AppRestarted(found)
    progress = Progress(title=found.app, kind="deploy")
    final, _ = Follower(client, ctx, progress, found.deployment).until_final()
    return AppRestarted(found.model_copy(update={"deployment": final}))


def runners(args: RunnersArguments, ctx: Context) -> RunnersListed:
    """List an app's runners."""
    client = ctx.connect()
    alias = aliased(args.app, args.env, ctx)
    client.app(alias)
    return RunnersListed(tuple(chosen(client.runners(alias), args.since, args.state)))


def size(args: SizeArguments, ctx: Context) -> QueueSized:
    """Say how many requests of an app wait. Raises: NotFoundError."""
    alias = aliased(args.app, args.env, ctx)
    return QueueSized(alias, ctx.connect().queue_size(alias, by_user=args.by_user))


def flush(args: FlushArguments, ctx: Context) -> QueueFlushed:
    """Cancel the requests of an app that wait. Raises: NotFoundError."""
    alias = aliased(args.app, args.env, ctx)
    return QueueFlushed(alias, ctx.connect().flush_queue(alias, caller=args.caller_user_id))


def chosen(found: list[RunnerInfo], since: str | None, states: tuple[str, ...]) -> list[RunnerInfo]:
    """Return the runners of some states; ended ones only where a time is given. Raises: UsageError."""
    wanted = {state.upper().replace("-", "_") for state in states}
    unknown = wanted - set(RunnerState) - {"ALL"}
    if unknown:
        raise UsageError(f"No runner state `{unknown.pop()}`.", fix=f"States: {', '.join(RunnerState)}.")
    moment = moment_of(since, "--since")
    return [
        one
        for one in found
        if (not wanted or "ALL" in wanted or one.state in wanted)
        and (moment is None or (one.ended_at or datetime.now(UTC)) >= moment)
    ]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


COMMANDS: dict[str, Command] = {
    "apps scale": Command(ScaleArguments, scale),
    "apps rollout": Command(RolloutArguments, rollout),
    "apps runners": Command(RunnersArguments, runners),
    "queue size": Command(SizeArguments, size),
    "queue flush": Command(FlushArguments, flush),
}
