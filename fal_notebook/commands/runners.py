"""`runners`: the processes that serve revisions."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import RunnersListed, RunnerStopped

__all__ = ["COMMANDS", "ListArguments", "StopArguments"]


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Arguments of `runners list`."""

    app: str | None = flag("Only runners of this app", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class StopArguments:
    """Arguments of `runners stop`."""

    runner: str = value("Id of the runner")


def list_runners(args: ListArguments, ctx: Context) -> RunnersListed:
    """List runners."""
    return RunnersListed(tuple(ctx.connect().runners(args.app)))


def stop(args: StopArguments, ctx: Context) -> RunnerStopped:
    """Stop a runner in order: it finishes its calls. Raises: NotFoundError."""
    ctx.connect().end_runner(args.runner)
    return RunnerStopped(args.runner)


COMMANDS: dict[str, Command] = {
    "runners list": Command(ListArguments, list_runners),
    "runners stop": Command(StopArguments, stop),
}
