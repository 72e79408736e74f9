"""`runners`: the processes that serve revisions."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import aliased, chosen_environment
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import RunnersListed, RunnerStopped
from fal_notebook.commands.scaling import chosen

__all__ = ["COMMANDS", "ListArguments", "StopArguments"]


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Arguments of `runners list`."""

    app: str | None = flag("Only runners of this app", metavar="NAME")
    since: str | None = flag("Ended ones only if they ended since: 90s, 10m, 2h, 1d", metavar="TIME")
    state: tuple[str, ...] = flag("Only this state, such as RUNNING (repeatable)", metavar="STATE", many=True)
    env: str | None = flag("Environment, else FAL_ENV; without either, of all", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class StopArguments:
    """Arguments of `runners stop` and `runners kill`."""

    runner: str = value("Id of the runner")
    replace: bool = flag("Start another one in its place at once", default=False)


def list_runners(args: ListArguments, ctx: Context) -> RunnersListed:
    """List runners."""
    app = None if args.app is None else aliased(args.app, args.env, ctx)
    found = ctx.connect().runners(app, chosen_environment(args.env) if app is None else None)
    return RunnersListed(tuple(chosen(found, args.since, args.state)))


def stop(args: StopArguments, ctx: Context) -> RunnerStopped:
    """Stop a runner in order: it finishes its calls. Raises: NotFoundError."""
    replaced = ctx.connect().end_runner(args.runner, replace=args.replace)
    return RunnerStopped(args.runner, replaced=replaced)


def kill(args: StopArguments, ctx: Context) -> RunnerStopped:
    """End a runner at once; its calls fail. Raises: NotFoundError."""
    replaced = ctx.connect().end_runner(args.runner, kill=True, replace=args.replace)
    return RunnerStopped(args.runner, killed=True, replaced=replaced)


COMMANDS: dict[str, Command] = {
    "runners list": Command(ListArguments, list_runners),
    "runners stop": Command(StopArguments, stop),
    "runners kill": Command(StopArguments, kill),
}
