"""`runners exec`, `runners shell`: a program beside a runner, in this terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, value
from fal_notebook.commands.results import ProgramEnded
from fal_notebook.errors import UsageError

__all__ = ["COMMANDS", "ExecArguments", "ShellArguments"]


@dataclass(frozen=True, kw_only=True)
class ExecArguments:
    """Arguments of `runners exec`."""

    runner: str = value("Id of the runner")
    command: tuple[str, ...] = value("The program and its arguments, behind `--`", default=(), rest=True)


@dataclass(frozen=True, kw_only=True)
class ShellArguments:
    """Arguments of `runners shell`."""

    runner: str = value("Id of the runner")


def execute(args: ExecArguments, ctx: Context) -> ProgramEnded:
    """Run a program beside a runner; its exit code is ours. Raises: UsageError, FalError when it is refused."""
    if not args.command:
        raise UsageError("Which program?", fix=f"`{ctx.prefix} runners exec {args.runner} -- ls -l`")
    return _run(args.runner, args.command, ctx, terminal=False)


def shell(args: ShellArguments, ctx: Context) -> ProgramEnded:
    """Open a shell beside a runner. Raises: UsageError without a terminal, FalError when it is refused."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "A shell needs a terminal.",
            fix=f"`{ctx.prefix} runners exec {args.runner} -- COMMAND` needs none.",
        )
    return _run(args.runner, (), ctx, terminal=True)


def _run(runner: str, command: tuple[str, ...], ctx: Context, *, terminal: bool) -> ProgramEnded:
    # Imported here: it loads the websocket client.
    from fal_notebook.programs import run_program

    ctx.connect()
    return ProgramEnded(run_program(ctx.profile, runner, command, terminal=terminal))


COMMANDS: dict[str, Command] = {
    "runners exec": Command(ExecArguments, execute),
    "runners shell": Command(ShellArguments, shell),
}
