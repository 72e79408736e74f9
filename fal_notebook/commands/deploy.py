"""`run`, `stop`, `deploy`: an App under a temporary URL, its end, and an App under a URL that stays."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from fal_notebook.commands.context import Context, Target
from fal_notebook.commands.environments import ENV_HELP, chosen_environment
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import Checked, Planned, Shipped, Stopped
from fal_notebook.errors import NotFoundError, UsageError
from fal_notebook.wire import (
    ANNOTATIONS_BYTES,
    ANNOTATIONS_LIMIT,
    DEV_SUFFIX,
    MESSAGE_LIMIT,
    AuthMode,
    Strategy,
)
from fal_notebook.wire_secrets import MAIN, split_alias

__all__ = ["COMMANDS", "AppArguments", "DeployArguments", "RunArguments", "StopArguments", "run_target"]

_DEV = re.compile(DEV_SUFFIX)
_REF = "An App: `Class` in the notebook; `path.py`, `path.py::Class`, a name in pyproject.toml anywhere"


@dataclass(frozen=True, kw_only=True)
class _ShipArguments:
    app_name: str | None = flag("Name in the URL; wins over the code", metavar="NAME")
    machine_type: str | None = flag("Machine type, or several in order of preference: XS,S", metavar="TYPE")
    auth: AuthMode | None = flag(
        "Who may call it: private (your keys and your team's), public (anyone), shared (any key, which is charged)"
    )
    no_cache: bool = flag("Build the image anew", default=False)
    allow_large: bool = flag("Send captured values over 100 MB", default=False)
    env: str | None = flag(ENV_HELP, metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class AppArguments(_ShipArguments):
    """Flags of the cell magic."""

    dry: bool = flag("Check only; send nothing", default=False)


@dataclass(frozen=True, kw_only=True)
class RunArguments(_ShipArguments):
    """Arguments of `run`."""

    ref: str = value(_REF)
    wait: bool = flag("Stay until interrupted, then stop it (always so in a terminal)", default=False)


@dataclass(frozen=True, kw_only=True)
class StopArguments:
    """Arguments of `stop`."""

    app: str = value("Class or name of a temporary app")


@dataclass(frozen=True, kw_only=True)
class DeployArguments(_ShipArguments):
    """Arguments of `deploy`."""

    ref: str = value(_REF)
    strategy: Strategy | None = flag(
        "rolling (the default): the new revision is ready before it takes over; recreate: it takes over at once"
    )
    attach: bool = flag("Stay until it serves or failed (as without it)", default=False)
    detach: bool = flag(
        "Rolling: return once the app has moved, before its first runner is ready; no way back if that fails",
        default=False,
    )
    reset_scale: bool = flag("Take scaling from the code, not from what the app has", default=False)
    no_scale: bool = flag("Keep the app's scaling (as without it)", default=False)
    check: bool = flag("Show what would change and ask before it happens", default=False)
    yes: bool = flag("Do not ask: the check is shown, and the deployment goes on", default=False)
    message: str | None = flag("A note kept with the revision (at most 2048 characters)", metavar="TEXT")
    annotation: tuple[str, ...] = flag(
        "A fact kept with the revision, such as commit=4f1c9a2 (repeatable)", metavar="NAME=TEXT", many=True
    )
    force: bool = flag("Make a revision though nothing changed", default=False)


def run_target(target: Target, args: AppArguments | RunArguments, ctx: Context) -> Shipped | Checked:
    """Run one App as a temporary app and return when it is ready. Raises: FalError when it is not."""
    # What freezes an App is most of a second on a slow machine: not for whoever asks for help.
    from fal_notebook.commands.ship import Order, ship

    ctx.act_for(target.project.team if target.project else None)
    in_code = getattr(target.cls, "app_auth", None)
    if in_code in (AuthMode.PRIVATE, "private") and args.auth is None:
        ctx.say(
            f'`app_auth = "private"` in {target.cls.__name__} is not used by a temporary run: anyone who has the URL '
            "may call it. Use `--auth private` to ask for your key."
        )
    order = Order(
        target=target,
        kind="run",
        app_name=args.app_name or (target.project.app_name if target.project else None),
        auth=args.auth or AuthMode.PUBLIC,
        machine_type=args.machine_type,
        no_cache=args.no_cache,
        allow_large=args.allow_large,
        dry=isinstance(args, AppArguments) and args.dry,
        environment=chosen_environment(args.env) or MAIN,
    )
    shipped = ship(order, ctx)
    assert not isinstance(shipped, Planned), "a temporary app is not planned"
    return shipped


def run(args: RunArguments, ctx: Context) -> Shipped | Checked | Stopped:
    """Run an App under a temporary URL; with `--wait` until the person interrupts."""
    shipped = run_target(ctx.find_app(args.ref), args, ctx)
    if not args.wait or isinstance(shipped, Checked):
        return shipped
    alias = shipped.deployment.app_name
    try:
        ctx.ready(shipped)
        ctx.hold()
    except KeyboardInterrupt:
        # The person asked for its end; a second interrupt during the end is a real one.
        ctx.say(f"Stopping {alias}")
    _end(alias, ctx)
    return Stopped(alias)


def stop(args: StopArguments, ctx: Context) -> Stopped:
    """Stop a temporary app. Raises: NotFoundError, UsageError when several fit."""
    alias = _temporary(args.app, ctx)
    ctx.connect().delete_app(alias)
    for name in [name for name, known in ctx.aliases.items() if known == alias]:
        del ctx.aliases[name]
    return Stopped(alias)


def deploy(args: DeployArguments, ctx: Context) -> Shipped | Checked | Planned:
    """Deploy an App and return when the new revision serves. Raises: FalError when it does not."""
    from fal_notebook.commands.check import trigger
    from fal_notebook.commands.ship import Order, ship

    if (args.attach and args.detach) or (args.no_scale and args.reset_scale):
        raise UsageError("These two flags say opposite things.", fix="Leave one of them out.")
    target = ctx.find_app(args.ref)
    project = target.project
    ctx.act_for(project.team if project else None)
    order = Order(
        target=target,
        kind="deploy",
        app_name=args.app_name or (project.app_name if project else None),
        auth=args.auth or (project.auth if project else None),
        machine_type=args.machine_type,
        no_cache=args.no_cache,
        allow_large=args.allow_large,
        strategy=args.strategy or (project.strategy if project else None) or Strategy.ROLLING,
        message=_message(args.message),
        annotations=_annotations(args.annotation),
        detach=args.detach,
        reset_scale=args.reset_scale or bool(project and project.resets_scale and not args.no_scale),
        force=args.force,
        check=trigger(args.check),
        yes=args.yes,
        environment=chosen_environment(args.env) or MAIN,
    )
    return ship(order, ctx)


def _message(text: str | None) -> str | None:
    if text is not None and len(text) > MESSAGE_LIMIT:
        raise UsageError(f"--message has {len(text)} characters.", fix=f"At most {MESSAGE_LIMIT}.")
    return text


def _annotations(given: tuple[str, ...]) -> dict[str, str]:
    """Return annotations by name. Raises: UsageError without `=`, or over fal's limits."""
    pairs = [one.partition("=") for one in given]
    wrong = next(
        (one for one, (name, mark, _) in zip(given, pairs, strict=True) if not (name and mark)), None
    )
    if wrong is not None:
        raise UsageError(f"--annotation {wrong} has no name.", fix="Write NAME=TEXT.")
    found = {name: text for name, _, text in pairs}
    size = len(json.dumps(found, ensure_ascii=False).encode())
    if len(found) > ANNOTATIONS_LIMIT or size > ANNOTATIONS_BYTES:
        raise UsageError(
            f"{len(found)} annotations of {size} bytes are too many.",
            fix=f"At most {ANNOTATIONS_LIMIT}, and {ANNOTATIONS_BYTES // 1024} KiB in all.",
        )
    return found


def _end(alias: str, ctx: Context) -> None:
    try:
        ctx.connect().delete_app(alias)
    except NotFoundError:
        return


def _temporary(name: str, ctx: Context) -> str:
    """Return the alias of the temporary app that the name means: a class, an app's name or an alias."""
    listed = [app.alias for app in ctx.connect().apps(ephemeral=True) if app.ephemeral]
    remembered = ctx.aliases.get(name)
    if remembered in listed:
        return remembered
    suffix = ctx.dev_suffix(name)
    fitting = [alias for alias in listed if alias == name or _DEV.sub("", alias) == name]
    if suffix is not None and not fitting:
        fitting = [alias for alias in listed if split_alias(alias)[0].endswith(f"-dev-{suffix}")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UsageError(
            f"Several temporary apps are called `{name}`.", fix=f"Name one: {', '.join(fitting)}."
        )
    running = f"Running: {', '.join(listed)}." if listed else "No temporary app is running."
    raise NotFoundError(f"There is no temporary app `{name}`.", fix=running)


COMMANDS: dict[str, Command] = {
    "run": Command(RunArguments, run),
    "stop": Command(StopArguments, stop),
    "deploy": Command(DeployArguments, deploy),
}
