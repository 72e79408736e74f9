"""`revisions …`, `apps list-rev`, `apps set-rev`, `apps delete-rev`: what was deployed before, and back to it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from fal_notebook.commands.context import Context
from fal_notebook.commands.environments import ENV_HELP, aliased, check_environment, chosen_environment
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
from fal_notebook.errors import NotFoundError, UsageError
from fal_notebook.wire import AuthMode, Strategy
from fal_notebook.wire_deploy import RevisionPage, SetRevision
from fal_notebook.wire_secrets import split_alias

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

    app: str | None = value("Name of the app, else all apps", default=None)
    env: str | None = flag(f"{ENV_HELP}; of all apps: of every environment", metavar="NAME")


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
    env: str | None = flag("Only if it is of this environment; else FAL_ENV", metavar="NAME")


def list_revisions(args: ListArguments, ctx: Context) -> RevisionsListed:
    """List revisions of an app, or of all, newest first. Raises: NotFoundError."""
    client = ctx.connect()
    if args.app is not None:
        alias = aliased(args.app, args.env, ctx)
        return RevisionsListed(alias, client.revisions(alias))
    pages = []
    for app in client.apps(environment=chosen_environment(args.env)):
        with contextlib.suppress(NotFoundError):  # deleted meanwhile
            pages.append(client.revisions(app.alias))
    found = sorted((one for page in pages for one in page.revisions), key=lambda one: one.created_at)
    kept = max((page.kept for page in pages), default=0)
    return RevisionsListed(None, RevisionPage(revisions=found[::-1], kept=kept))


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
    client, environment = ctx.connect(), chosen_environment(args.env)
    if environment is not None:
        check_environment(environment, ctx)
        app = client.revision(args.revision).app
        if split_alias(app)[1] != environment:
            raise NotFoundError(
                f"Revision {args.revision} is one of {app}, not of environment '{environment}'.",
                fix="`apps list-rev` shows what there is.",
                code="revision.not_found",
            )
    return RevisionDeleted(client.delete_revision(args.revision))


COMMANDS: dict[str, Command] = {
    "apps list-rev": Command(ListArguments, list_revisions),
    "apps set-rev": Command(SetArguments, set_revision),
    "apps delete-rev": Command(DeleteArguments, delete),
    "revisions list": Command(ListArguments, list_revisions),
    "revisions show": Command(ShowArguments, show),
    "revisions diff": Command(DiffArguments, diff),
}
