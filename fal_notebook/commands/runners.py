"""`runners`: the processes that serve revisions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import aliased, chosen_environment
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import RunnersListed, RunnerStopped, Told
from fal_notebook.commands.scaling import chosen

__all__ = ["COMMANDS", "GpusArguments", "ListArguments", "StopArguments"]


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


@dataclass(frozen=True, kw_only=True)
class GpusArguments:
    """Arguments of `apps gpus` and `runners gpus`."""

    app: str | None = value("Only GPUs of this app", default=None)
    env: str | None = flag("Environment, else FAL_ENV; without either, of all", metavar="NAME")


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


def gpus(args: GpusArguments, ctx: Context) -> Told:
    """Count the GPUs of each model that runners hold, a part of one as a part. Raises: NotFoundError."""
    client = ctx.connect()
    alias = None if args.app is None else aliased(args.app, args.env, ctx)
    if alias is not None:
        client.app(alias)
    chosen_ids = {
        one.runner_id
        for one in client.runners(alias, chosen_environment(args.env) if alias is None else None)
    }
    found: Counter[str] = Counter()
    for node in client.nodes():
        for device in node.devices:
            found[device.model] += sum(h.percent for h in device.holders if h.runner_id in chosen_ids)
    counted = {model: _whole(percent) for model, percent in sorted(found.items()) if percent}
    total = _whole(sum(found.values()))
    text = ", ".join(f"{count:g} {model}" for model, count in counted.items())
    return Told(text or "No GPUs are held.", {"gpus": counted, "total": total})


def _whole(percent: int) -> float:
    """Return hundredths as GPUs, a whole number where it is one."""
    return percent // 100 if percent % 100 == 0 else percent / 100


COMMANDS: dict[str, Command] = {
    "runners gpus": Command(GpusArguments, gpus),
    "apps gpus": Command(GpusArguments, gpus),
    "runners list": Command(ListArguments, list_runners),
    "runners stop": Command(StopArguments, stop),
    "runners kill": Command(StopArguments, kill),
}
