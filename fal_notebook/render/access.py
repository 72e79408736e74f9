"""Accounts, keys and usage as text, tables and JSON, the last as fal's own commands print them where it has them; pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from fal_notebook.commands.results_access import (
    AccessResult,
    AccountChanged,
    AccountMade,
    AccountsListed,
    ActsListed,
    Chosen,
    Greeted,
    KeyMade,
    KeyRevoked,
    KeysListed,
    MemberChanged,
    MembersListed,
    TeamMade,
    TeamsListed,
    UsageShown,
)
from fal_notebook.render.words import age, count

if TYPE_CHECKING:
    from fal_notebook.wire_access import AccountInfo, ActInfo, KeyInfo, NewKeyInfo, UsageRow

__all__ = ["document", "rows_of", "said"]

Table = tuple[tuple[str, ...], list[tuple[str, ...]], str]

_KEYS = ("Key ID", "Created At", "Scope", "Description", "Preset", "Expires", "Last used")
_TEAMS = ("", "Account", "Name", "Type", "Role", "Shared")
_ACCOUNTS = ("Account", "Name", "Type", "Admin", "Shared", "Created")
_MEMBERS = ("Member", "Name", "Role")
_ACTS = ("When", "Account", "By", "Key", "From", "Act", "On")
_USAGE = ("App", "Caller", "Charged", "Machine", "Calls", "Seconds", "Cost")


def rows_of(result: AccessResult) -> Table | None:
    """Return head, rows and what to say when there are none; None for what is no list."""
    match result:
        case KeysListed():
            return _KEYS, [_key(one) for one in result.keys], "No keys."
        case TeamsListed():
            return _TEAMS, _teams(result), "No teams. `teams create NAME` makes one."
        case AccountsListed():
            return _ACCOUNTS, [_account(one) for one in result.accounts], "No accounts."
        case MembersListed():
            rows: list[tuple[str, ...]] = [
                (one.nickname, one.full_name or "", one.role.value) for one in result.members
            ]
            return _MEMBERS, rows, "No members."
        case ActsListed():
            return _ACTS, [_act(one) for one in result.acts], "Nothing was done yet."
        case UsageShown():
            return _usage(result)
        case _:
            return None


def said(result: AccessResult) -> str:
    """Return what is no list as text."""
    match result:
        case Greeted():
            return _greeting(result)
        case KeyMade():
            return _new_key(result.key)
        case KeyRevoked():
            return f"Revoked {result.key_id}; it is no good any more."
        case Chosen():
            kind = "team" if result.is_team else "personal"
            return f"Using {kind} account {result.nickname}."
        case TeamMade():
            return f"Made the team {result.team.nickname}; you manage it. `--team {result.team.nickname}` acts for it."
        case MemberChanged():
            if result.role is None:
                return f"{result.nickname} is not in {result.team} any more."
            return f"{result.nickname} is {result.role} of {result.team}."
        case AccountMade():
            return f"Made the account {result.made.account.nickname}.\n{_new_key(result.made.key)}"
        case AccountChanged():
            one = result.account
            shared, admin = _yes(one.shared_enabled), _yes(one.is_admin)
            check = _yes(one.deploy_check)
            return f"{one.nickname}: shared apps {shared}, admin of this backend {admin}, deployments checked {check}."
        case _:
            return ""


def document(result: AccessResult) -> dict[str, Any]:
    """Return a result as a JSON-compatible object."""
    match result:
        case Greeted():
            origin = {"profile": result.profile, "host": result.address, "key_source": result.key_source}
            return result.who.model_dump(mode="json") | origin
        case KeysListed():
            return {"keys": [one.model_dump(mode="json") for one in result.keys]}
        case KeyMade():
            return result.key.model_dump(mode="json")
        case KeyRevoked():
            return {"key_id": result.key_id, "revoked": True}
        case TeamsListed():
            return {"teams": _teams_document(result)}
        case Chosen():
            return {"nickname": result.nickname, "type": "team" if result.is_team else "personal"}
        case TeamMade():
            return result.team.model_dump(mode="json")
        case _:
            return _lists(result)


def _lists(result: AccessResult) -> dict[str, Any]:
    match result:
        case MembersListed():
            return {"team": result.team, "members": [one.model_dump(mode="json") for one in result.members]}
        case MemberChanged():
            return {"team": result.team, "nickname": result.nickname, "role": result.role}
        case AccountsListed():
            return {"accounts": [one.model_dump(mode="json") for one in result.accounts]}
        case AccountMade():
            return result.made.model_dump(mode="json")
        case AccountChanged():
            return result.account.model_dump(mode="json")
        case ActsListed():
            return {"acts": [one.model_dump(mode="json") for one in result.acts]}
        case UsageShown():
            return result.report.model_dump(mode="json")
        case _:
            raise TypeError(f"{type(result).__name__} has no JSON form")


def _greeting(result: Greeted) -> str:
    who = result.who
    lines = [f"Hello, {who.full_name}: {who.nickname!r} - {who.user_id!r}"]
    ends = f", ends {_date(who.expires_at)}" if who.expires_at else ""
    lines.append(f"Backend: {result.address} (profile {result.profile}).")
    lines.append(f"Key {who.key_id} from {result.key_source}, preset {who.preset}{ends}.")
    if who.acting_for != who.nickname:
        lines.append(f"Acting for the team {who.acting_for}.")
    if who.is_admin:
        lines.append("You manage this backend.")
    return "\n".join(lines)


def _new_key(key: NewKeyInfo) -> str:
    return (
        f"Generated key id and key secret, with the preset `{key.preset}`.\n"
        "This is the only time the secret will be visible.\n"
        "You will need to generate a new key pair if you lose access to this secret.\n"
        f"FAL_KEY='{key.key_id}:{key.key_secret}'"
    )


def _key(key: KeyInfo) -> tuple[str, ...]:
    return (
        key.key_id,
        _date(key.created_at),
        key.scope or "-",
        key.description or "",
        key.preset.value,
        _date(key.expires_at) if key.expires_at else "never",
        age(key.last_used_at) if key.last_used_at else "",
    )


def _shown(result: TeamsListed) -> list[tuple[str, str, str, str, bool]]:
    """Return (nickname, name, type, role, whether it may share) of each."""
    who = result.who
    own = [(who.nickname, who.full_name, "personal", "", False)] if result.has_own else []
    return own + [
        (
            one.nickname,
            one.full_name or one.nickname,
            "team",
            one.role.value if one.role else "",
            one.shared_enabled,
        )
        for one in who.teams
    ]


def _teams(result: TeamsListed) -> list[tuple[str, ...]]:
    chosen = result.who.acting_for
    return [
        (
            "*" if nickname == chosen else "",
            nickname,
            name,
            kind,
            role,
            _yes(shared) if kind == "team" else "",
        )
        for nickname, name, kind, role, shared in _shown(result)
    ]


def _teams_document(result: TeamsListed) -> list[dict[str, Any]]:
    return [
        {
            "nickname": nickname,
            "full_name": name,
            "type": kind,
            "is_selected": nickname == result.who.acting_for,
            "role": role or None,
        }
        for nickname, name, kind, role, _ in _shown(result)
    ]


def _account(one: AccountInfo) -> tuple[str, ...]:
    kind = "person" if one.kind == "user" else one.kind
    marks = (_yes(one.is_admin), _yes(one.shared_enabled))
    return (one.nickname, one.full_name or "", kind, *marks, _date(one.created_at))


def _act(one: ActInfo) -> tuple[str, ...]:
    return (
        f"{one.at.astimezone():%Y-%m-%d %H:%M:%S}",
        one.account,
        one.actor,
        one.key_id,
        one.address or "this machine",
        one.action,
        one.subject,
    )


def _usage(result: UsageShown) -> Table:
    report = result.report
    is_by_minute = any(row.minute is not None for row in report.rows)
    head = (("Minute",) if is_by_minute else ()) + _USAGE
    rows = [_usage_row(row, report.currency, is_by_minute=is_by_minute) for row in report.rows]
    if rows:
        total = (
            "Total",
            "",
            "",
            "",
            str(report.calls),
            f"{report.seconds:.3f}",
            _money(report.cost, report.currency),
        )
        rows.append((("",) if is_by_minute else ()) + total)
    span = f"{report.since.astimezone():%Y-%m-%d %H:%M} to {report.until.astimezone():%Y-%m-%d %H:%M}"
    return head, rows, f"{count(0, 'call')} from {span}."


def _usage_row(row: UsageRow, currency: str, *, is_by_minute: bool) -> tuple[str, ...]:
    minute = (f"{row.minute.astimezone():%Y-%m-%d %H:%M}",) if row.minute is not None else ("",)
    return (minute if is_by_minute else ()) + (
        row.app,
        row.caller or "no key",
        row.account,
        row.machine_type,
        str(row.calls),
        f"{row.seconds:.3f}",
        _money(row.cost, currency),
    )


def _money(amount: float, currency: str) -> str:
    return f"{amount:.4f} {currency}" if amount else "free"


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


def _date(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
