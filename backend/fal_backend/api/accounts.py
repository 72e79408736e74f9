"""Accounts over HTTP: who asks, keys, teams, persons, and the record of acts.

Rules: what a key may do is judged by method and path before anything here runs; a secret is in one answer and nowhere
else; fal's own two questions about users are answered under `/rest/users/`.
Source: fal SDK, `/users/current` and `/users/teams`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response

from fal_backend.api.control import PREFIX, Who
from fal_backend.domain.access import Principal
from fal_backend.domain.records import Account, ApiKey, AuditEntry
from fal_backend.services.accounts import Accounts, Act, KeyWish, NewKey
from fal_backend.services.views import moment
from fal_notebook.wire_access import (
    AccountInfo,
    AccountRequest,
    AccountSetting,
    ActInfo,
    KeyInfo,
    KeyPreset,
    KeyRequest,
    MemberInfo,
    MemberRequest,
    NewKeyInfo,
    Role,
    WhoAmI,
)

__all__ = ["account_routes", "preset_of"]

_SCOPES = {KeyPreset.FULL: "ADMIN"}
"""Scopes that are not called like their preset."""
_PRESETS = {"ADMIN": KeyPreset.FULL}


def preset_of(scope: str) -> KeyPreset:
    """Return the preset that made a scope."""
    return _PRESETS.get(scope) or KeyPreset(scope)


class _Routes:
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    # ---- who asks ------------------------------------------------------------------------------------------
    async def whoami(self, who: Who) -> WhoAmI:
        """Say whose key it is."""
        own = self._accounts.account(who.key_account)
        key = self._accounts.tables.keys[who.key_id]
        return WhoAmI(
            user_id=f"fal-nb|{own.id}",
            nickname=own.nickname,
            full_name=own.full_name or own.nickname,
            key_id=key.id,
            preset=preset_of(key.scope),
            expires_at=_moment(key.expires_at),
            is_admin=who.is_admin,
            acting_for=who.nickname,
            teams=[_account(row, role) for row, role in self._accounts.teams_of(own.id)],
        )

    async def current_user(self, who: Who) -> dict[str, Any]:
        """Answer as fal does."""
        return _fal_user(self._accounts.account(who.account))

    async def user_teams(self, who: Who) -> list[dict[str, Any]]:
        """Answer as fal does: the person's own account, then the teams."""
        own = self._accounts.account(who.key_account)
        return [_fal_user(row) for row in (own, *(row for row, _ in self._accounts.teams_of(own.id)))]

    # ---- keys ----------------------------------------------------------------------------------------------
    async def keys(self, who: Who) -> dict[str, list[KeyInfo]]:
        """List keys that were not revoked."""
        return {"keys": [_key(row) for row in self._accounts.keys_of(who.account)]}

    async def create_key(
        self, body: KeyRequest, request: Request, response: Response, who: Who
    ) -> NewKeyInfo:
        """Make a key; the answer is the only place of its secret."""
        wish = KeyWish(
            _SCOPES.get(body.preset, body.preset.value), body.description, _micros(body.expires_at)
        )
        made = await self._accounts.create_key(_act(who, request), wish)
        response.headers["cache-control"] = "no-store"
        return _new_key(made)

    async def revoke_key(self, id: str, request: Request, who: Who) -> dict[str, str]:
        """End a key at once."""
        await self._accounts.revoke_key(_act(who, request), id)
        return {"key_id": id}

    # ---- teams ---------------------------------------------------------------------------------------------
    async def teams(self, who: Who) -> dict[str, list[AccountInfo]]:
        """List the teams of who asks."""
        return {"teams": [_account(*pair) for pair in self._accounts.teams_of(who.key_account)]}

    async def create_team(self, body: AccountRequest, request: Request, who: Who) -> AccountInfo:
        """Make a team that who asks manages."""
        row = await self._accounts.create_team(_act(who, request), body.nickname, body.full_name)
        return _account(row, Role.ADMIN)

    async def members(self, team: str, who: Who) -> dict[str, list[MemberInfo]]:
        """List a team's members."""
        found = self._accounts.members_seen_by(who, team)
        return {
            "members": [
                MemberInfo(nickname=row.nickname, full_name=row.full_name, role=Role(role))
                for row, role in found
            ]
        }

    async def add_member(self, team: str, body: MemberRequest, request: Request, who: Who) -> MemberInfo:
        """Put somebody into a team, or change a role."""
        await self._accounts.add_member(_act(who, request), team, body.nickname, body.role.value)
        return MemberInfo(nickname=body.nickname, role=body.role)

    async def remove_member(self, team: str, member: str, request: Request, who: Who) -> Response:
        """Take somebody out of a team."""
        await self._accounts.remove_member(_act(who, request), team, member)
        return Response(status_code=204)

    # ---- the backend's accounts ----------------------------------------------------------------------------
    async def accounts(self, who: Who) -> dict[str, list[AccountInfo]]:
        """List all accounts."""
        return {"accounts": [_account(row) for row in self._accounts.all()]}

    async def create_user(
        self, body: AccountRequest, request: Request, response: Response, who: Who
    ) -> dict[str, Any]:
        """Make a person's account with a first key."""
        row, key = await self._accounts.create_user(_act(who, request), body.nickname, body.full_name)
        response.headers["cache-control"] = "no-store"
        return {"account": _account(row), "key": _new_key(key)}

    async def set_account(self, name: str, body: AccountSetting, request: Request, who: Who) -> AccountInfo:
        """Change what an account may do."""
        row = await self._accounts.set_account(
            _act(who, request),
            name,
            shared=body.shared,
            admin=body.admin,
            deploy_check=body.deploy_check,
            full_name=body.full_name,
        )
        return _account(row)

    async def acts(
        self, who: Who, everybodys: Annotated[bool, Query(alias="all")] = False,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> dict[str, list[ActInfo]]:  # fmt: skip
        """List the newest acts."""
        rows = await self._accounts.acts(who, limit, everybodys=everybodys)
        return {"acts": [self._shown(row) for row in rows]}

    def _shown(self, row: AuditEntry) -> ActInfo:
        return ActInfo(
            at=moment(row.created_at),
            account=self._accounts.nickname(row.account),
            actor=self._accounts.nickname(row.actor),
            key_id=row.key_id,
            address=row.address,
            action=row.action,
            subject=row.subject,
            before=None if row.before_json is None else json.loads(row.before_json),
            after=None if row.after_json is None else json.loads(row.after_json),
        )


_ROUTES: tuple[tuple[str, str, str, int], ...] = (
    ("GET", f"{PREFIX}/account", "whoami", 200),
    ("GET", f"{PREFIX}/keys", "keys", 200),
    ("POST", f"{PREFIX}/keys", "create_key", 201),
    ("DELETE", f"{PREFIX}/keys/{{id}}", "revoke_key", 200),
    ("GET", f"{PREFIX}/teams", "teams", 200),
    ("POST", f"{PREFIX}/teams", "create_team", 201),
    ("GET", f"{PREFIX}/teams/{{team}}/members", "members", 200),
    ("POST", f"{PREFIX}/teams/{{team}}/members", "add_member", 201),
    ("DELETE", f"{PREFIX}/teams/{{team}}/members/{{member}}", "remove_member", 204),
    ("GET", f"{PREFIX}/accounts", "accounts", 200),
    ("POST", f"{PREFIX}/accounts", "create_user", 201),
    ("PATCH", f"{PREFIX}/accounts/{{name}}", "set_account", 200),
    ("GET", f"{PREFIX}/audit", "acts", 200),
    ("GET", "/rest/users/current", "current_user", 200),
    ("GET", "/rest/users/teams", "user_teams", 200),
)


def account_routes(accounts: Accounts) -> Callable[[FastAPI], None]:
    """Return what adds the routes to the control API."""
    routes = _Routes(accounts)

    def install(app: FastAPI) -> None:
        for method, path, name, status in _ROUTES:
            handler: Callable[..., Any] = getattr(routes, name)
            app.add_api_route(path, handler, methods=[method], status_code=status, name=name)

    return install


def _act(who: Principal, request: Request) -> Act:
    return Act(who, None if request.client is None else request.client.host)


def _key(row: ApiKey) -> KeyInfo:
    return KeyInfo(
        key_id=row.id,
        created_at=moment(row.created_at),
        scope=row.scope if row.scope in ("ADMIN", "API") else None,
        description=row.description,
        preset=preset_of(row.scope),
        expires_at=_moment(row.expires_at),
        last_used_at=_moment(row.last_used_at),
    )


def _new_key(made: NewKey) -> NewKeyInfo:
    return NewKeyInfo(**_key(made.row).model_dump(), key_secret=made.secret)


def _account(row: Account, role: str | None = None) -> AccountInfo:
    return AccountInfo(
        nickname=row.nickname,
        full_name=row.full_name,
        kind=row.kind,
        is_admin=bool(row.is_admin),
        shared_enabled=bool(row.shared_enabled),
        deploy_check=bool(row.deploy_check),
        role=None if role is None else Role(role),
        created_at=moment(row.created_at),
    )


def _fal_user(row: Account) -> dict[str, Any]:
    return {
        "full_name": row.full_name or row.nickname,
        "nickname": row.nickname,
        "user_id": f"fal-nb|{row.id}",
        "is_personal": row.kind == "user",
        "is_org": False,
        "is_locked": False,
        "is_paying": False,
    }


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else moment(micros)


def _micros(at: datetime | None) -> int | None:
    if at is None:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1e6)
