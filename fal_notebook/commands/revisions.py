"""`revisions …`, `apps list-rev`, `apps set-rev`, `apps delete-rev`: what was deployed before, and back to it."""

from __future__ import annotations

from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased
from fal_notebook.commands.follow import Follower
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results import (
    Progress,
    RevisionDeleted,
    RevisionDiffed,
    RevisionSet,
    RevisionShown,
    RevisionsListed,
    Stage,
)
from fal_notebook.errors import UsageError
from fal_notebook.wire import AuthMode, Strategy
from fal_notebook.wire_deploy import SetRevision

__all__ = [
    "COMMANDS",
    "DeleteArguments",
    "DiffArguments",
    "ListArguments",
    "SetArguments",
    "ShowArguments",
]

_REVISION = "Id of the revision, or the beginning of it"


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Arguments of `apps list-rev`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class ShowArguments:
    """Arguments of `revisions show`."""

    revision: str = value(_REVISION)


@dataclass(frozen=True, kw_only=True)
class DiffArguments:
    """Arguments of `revisions diff`."""

    before: str = value(_REVISION)
    after: str = value("The other one")


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """Arguments of `apps set-rev`."""

    app: str = value("Name of the app")
    env: str | None = flag(ENV_HELP, metavar="NAME")
    revision: str = value(_REVISION)
    percent: int | None = flag(
        "Give it this part of the callers only; 100: all, 0: none any more", metavar="PERCENT"
    )
    strategy: Strategy = flag(
        "rolling: a runner of it is ready before it takes over", default=Strategy.ROLLING
    )
    auth: AuthMode | None = flag("Who may call the app from then on")
    attach: bool = flag("Wait for the end (as without it)", default=False)
    detach: bool = flag("Let it take over at once and do not wait for its runner", default=False)


@dataclass(frozen=True, kw_only=True)
class DeleteArguments:
    """Arguments of `apps delete-rev`."""

    revision: str = value(_REVISION)


def list_revisions(args: ListArguments, ctx: Context) -> RevisionsListed:
    """List an app's revisions, newest first. Raises: NotFoundError."""
    alias = aliased(args.app, args.env, ctx)
    return RevisionsListed(alias, ctx.connect().revisions(alias))


def show(args: ShowArguments, ctx: Context) -> RevisionShown:
    """Show what a revision was made from, by whom, and what became of it. Raises: NotFoundError."""
    return RevisionShown(ctx.connect().revision(args.revision))


def diff(args: DiffArguments, ctx: Context) -> RevisionDiffed:
    """Compare two revisions: code, requirements, settings, captured variables. Raises: NotFoundError."""
    return RevisionDiffed(ctx.connect().diff_revisions(args.before, args.after))


def set_revision(args: SetArguments, ctx: Context) -> RevisionSet:
    """Point an app to a revision, or give it a part of the callers. Raises: FalError when its runner fails."""
    if args.percent is not None and not 0 <= args.percent <= 100:
        raise UsageError(f"--percent is a number from 0 to 100, not {args.percent}.")
    if args.attach and args.detach:
        raise UsageError("--attach and --detach do not go together.")
    client = ctx.connect()
    order = SetRevision(
        revision=args.revision,
        strategy=args.strategy,
        auth=args.auth,
        percent=args.percent,
        detach=args.detach,
    )
    deployment = client.set_revision(aliased(args.app, args.env, ctx), order)
    progress = Progress(title=deployment.app_name, kind="deploy", stage=Stage.SENT)
    follower = Follower(client, ctx, progress, deployment, detach=args.detach)
    return RevisionSet(follower.until_final()[0], args.percent)


def delete(args: DeleteArguments, ctx: Context) -> RevisionDeleted:
    """Remove a revision that nothing uses. Raises: NotFoundError, DeployError."""
    return RevisionDeleted(ctx.connect().delete_revision(args.revision))


COMMANDS: dict[str, Command] = {
    "apps list-rev": Command(ListArguments, list_revisions),
    "apps set-rev": Command(SetArguments, set_revision),
    "apps delete-rev": Command(DeleteArguments, delete),
    "revisions list": Command(ListArguments, list_revisions),
    "revisions show": Command(ShowArguments, show),
    "revisions diff": Command(DiffArguments, diff),
}
