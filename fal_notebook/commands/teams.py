"""`teams`: make teams and say who is in them; all members may call and deploy the team's apps."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from fal_notebook.commands.context import Context
from fal_notebook.commands.registry import Command, flag, value
from fal_notebook.commands.results_access import MemberChanged, MembersListed, TeamMade, TeamsListed
from fal_notebook.wire_access import (
    AccountInfo,
    AccountRequest,
    MemberInfo,
    MemberPage,
    MemberRequest,
    Role,
    WhoAmI,
)

__all__ = [
    "COMMANDS",
    "AddArguments",
    "CreateArguments",
    "ListArguments",
    "MembersArguments",
    "RemoveArguments",
]


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """`teams list` takes no arguments."""


@dataclass(frozen=True, kw_only=True)
class MembersArguments:
    """Arguments of `teams members`."""

    name: str = value("Name of the team")


@dataclass(frozen=True, kw_only=True)
class CreateArguments:
    """Arguments of `teams create`."""

    name: str = value("Name of the team, which its apps' addresses begin with")
    full_name: str | None = flag("Name for people", metavar="TEXT")


@dataclass(frozen=True, kw_only=True)
class AddArguments:
    """Arguments of `teams add`."""

    name: str = value("Name of the team")
    person: str = value("Name of the person's account")
    role: Role = flag("admin manages members and keys", default=Role.MEMBER)


@dataclass(frozen=True, kw_only=True)
class RemoveArguments:
    """Arguments of `teams remove`."""

    name: str = value("Name of the team")
    person: str = value("Name of the person's account")


def list_teams(args: ListArguments, ctx: Context) -> TeamsListed:
    """List your teams."""
    return TeamsListed(ctx.connect().ask("GET", "/api/v1/account", WhoAmI), has_own=False)


def members(args: MembersArguments, ctx: Context) -> MembersListed:
    """List a team's members. Raises: NotFoundError."""
    page = ctx.connect().ask("GET", f"/api/v1/teams/{quote(args.name, safe='')}/members", MemberPage)
    return MembersListed(args.name, tuple(page.members))


def create(args: CreateArguments, ctx: Context) -> TeamMade:
    """Make a team. Raises: UsageError, ConflictError."""
    wish = AccountRequest(nickname=args.name, full_name=args.full_name)
    return TeamMade(ctx.connect().ask("POST", "/api/v1/teams", AccountInfo, body=wish))


def add(args: AddArguments, ctx: Context) -> MemberChanged:
    """Put somebody into a team. Raises: AuthError, NotFoundError."""
    wish = MemberRequest(nickname=args.person, role=args.role)
    found = ctx.connect().ask(
        "POST", f"/api/v1/teams/{quote(args.name, safe='')}/members", MemberInfo, body=wish
    )
    return MemberChanged(args.name, found.nickname, found.role.value)


def remove(args: RemoveArguments, ctx: Context) -> MemberChanged:
    """Take somebody out of a team. Raises: AuthError, NotFoundError."""
    ctx.connect().tell(
        "DELETE", f"/api/v1/teams/{quote(args.name, safe='')}/members/{quote(args.person, safe='')}"
    )
    return MemberChanged(args.name, args.person, None)


COMMANDS: dict[str, Command] = {
    "teams list": Command(ListArguments, list_teams),
    "teams members": Command(MembersArguments, members),
    "teams create": Command(CreateArguments, create),
    "teams add": Command(AddArguments, add),
    "teams remove": Command(RemoveArguments, remove),
}
