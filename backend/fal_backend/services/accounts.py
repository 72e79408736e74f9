"""Accounts: persons, teams, their keys, and what an admin lets them do; each act is recorded.

Rules: what is asked for on every call is in memory and changes with the commit, so that a revoked key is refused by
the next call and its open streams end; a secret is returned once and never kept; an act and its record are one
transaction.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fal_backend.domain.access import Operation, Principal, Target, may
from fal_backend.domain.records import Account, ApiKey, AuditEntry, Membership
from fal_backend.ports import Conflict, OpClass, Store, Tx
from fal_notebook.errors import AuthError, ConflictError, NotFoundError, UsageError

__all__ = ["Accounts", "Act", "KeyWish", "NewKey", "Tables", "recorded"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_MOST_KEYS = 1_000
_MOST_TEXT = 200


@dataclass(frozen=True, slots=True)
class Act:
    """Who acts, and from where; None: this machine's private socket."""

    who: Principal
    address: str | None = None


@dataclass(frozen=True, slots=True)
class KeyWish:
    """The key that somebody wants."""

    scope: str
    description: str | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; nothing but this value knows its secret."""

    row: ApiKey
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Tables:
    """What is known of accounts."""

    accounts: Mapping[str, Account]
    keys: Mapping[str, ApiKey]
    members: Mapping[str, Membership]


def recorded(
    act: Act, action: str, subject: str, *, account: str, before: Any = None, after: Any = None
) -> AuditEntry:
    """Return the record of an act, to be inserted in the act's own transaction."""
    now = _now()
    return AuditEntry(
        id=f"{now:016x}-{secrets.token_hex(4)}",
        created_at=now,
        account=account,
        actor=act.who.key_account,
        key_id=act.who.key_id,
        address=act.address,
        action=action,
        subject=subject,
        before_json=None if before is None else json.dumps(before),
        after_json=None if after is None else json.dumps(after),
    )


class Accounts:
    """See the module; used from one event loop."""

    def __init__(self, store: Store, *, on_account: Callable[[Account], None] = lambda row: None) -> None:
        """on_account is told of each account that is new or changed."""
        self._store = store
        self._on_account = on_account
        self._accounts: dict[str, Account] = {}
        self._keys: dict[str, ApiKey] = {}
        self._members: dict[str, Membership] = {}
        self.on_change: Callable[[Tables], None] = lambda tables: None
        """Told after each commit what holds now."""

    async def load(self) -> Tables:
        """Read everything."""
        accounts, keys, members = await self._store.read(
            lambda reader: (reader.find(Account), reader.find(ApiKey), reader.find(Membership))
        )
        self._accounts = {row.id: row for row in accounts}
        self._keys = {row.id: row for row in keys}
        self._members = {row.id: row for row in members}
        return self.tables

    @property
    def tables(self) -> Tables:
        """What holds now."""
        return Tables(self._accounts, self._keys, self._members)

    # ---- reading -------------------------------------------------------------------------------------------
    def account(self, id: str) -> Account:
        """Return an account that is there."""
        return self._accounts[id]

    def nickname(self, id: str) -> str:
        """Return an account's name; its id where it is not known any more."""
        row = self._accounts.get(id)
        return id if row is None else row.nickname

    def named(self, nickname: str) -> Account:
        """Return the account of a name. Raises: NotFoundError."""
        for row in self._accounts.values():
            if row.nickname == nickname:
                return row
        raise NotFoundError(
            f'There is no account "{nickname[:60]}".',
            fix="`fal-nb teams list` shows yours.",
            code="account.not_found",
        )

    def all(self) -> list[Account]:
        """Return every account by name."""
        return sorted(self._accounts.values(), key=lambda row: row.nickname)

    def keys_of(self, account: str) -> list[ApiKey]:
        """Return an account's keys that were not revoked, oldest first."""
        rows = [row for row in self._keys.values() if row.account == account and row.revoked_at is None]
        return sorted(rows, key=lambda row: row.created_at)

    def teams_of(self, account: str) -> list[tuple[Account, str]]:
        """Return an account's teams with its role in each."""
        rows = [row for row in self._members.values() if row.account == account]
        found = [(self._accounts[row.team], row.role) for row in rows]
        return sorted(found, key=lambda pair: pair[0].nickname)

    def members_of(self, team: str) -> list[tuple[Account, str]]:
        """Return a team's members with their roles."""
        rows = [row for row in self._members.values() if row.team == team]
        found = [(self._accounts[row.account], row.role) for row in rows]
        return sorted(found, key=lambda pair: pair[0].nickname)

    def members_seen_by(self, who: Principal, team: str) -> list[tuple[Account, str]]:
        """Return the members of a team that who asks is in, or manages. Raises: NotFoundError."""
        row = self.named(team)
        if row.id not in who.teams and row.id != who.key_account and not may_govern(who):
            raise NotFoundError(f'There is no account "{team[:60]}".', code="account.not_found")
        return self.members_of(row.id)

    async def acts(self, who: Principal, limit: int, *, everybodys: bool) -> list[AuditEntry]:
        """Return the newest acts of the account, or of the whole backend. Raises: AuthError."""
        if everybodys:
            _govern(who)
        account = None if everybodys else who.account
        return await self._store.read(lambda reader: reader.books.acts(limit, account=account))

    # ---- keys ----------------------------------------------------------------------------------------------
    async def create_key(self, act: Act, wish: KeyWish) -> NewKey:
        """Make a key for the account that is acted for. Raises: UsageError."""
        _check_text(wish.description)
        if wish.expires_at is not None and wish.expires_at <= _now():
            raise UsageError("The key would have expired already.", code="usage.expiry")
        if len(self.keys_of(act.who.account)) >= _MOST_KEYS:
            raise UsageError(f"An account has at most {_MOST_KEYS} keys.", fix="Revoke some.")
        made = _new_key(act.who.account, wish)
        entry = recorded(act, "key.create", made.row.id, account=made.row.account, after=_key_facts(made.row))

        def write(tx: Tx) -> None:
            tx.insert(made.row)
            tx.insert(entry)

        await self._store.write(write, OpClass.ACCEPT)
        self._keep(keys=[made.row])
        return made

    async def revoke_key(self, act: Act, key_id: str) -> None:
        """End a key at once; its open streams end with it. Raises: NotFoundError."""

        def write(tx: Tx) -> ApiKey:
            row = tx.get(ApiKey, key_id)
            if row is None or row.account != act.who.account or row.revoked_at is not None:
                raise NotFoundError(
                    f"There is no key {key_id[:80]}.",
                    fix="`fal-nb keys list` shows what there is.",
                    code="key.not_found",
                )
            tx.insert(recorded(act, "key.revoke", row.id, account=row.account, before=_key_facts(row)))
            return tx.update(replace(row, revoked_at=_now()))

        self._keep(keys=[await self._store.write(write, OpClass.ACCEPT)])

    async def note_used(self, used: Mapping[str, int]) -> None:
        """Write when keys were used last; {key id: microseconds}."""

        def write(tx: Tx) -> list[ApiKey]:
            rows = [row for id in used if (row := tx.get(ApiKey, id)) is not None]
            return [
                tx.update(replace(row, last_used_at=used[row.id]))
                for row in rows
                if (row.last_used_at or 0) < used[row.id]
            ]

        for row in await self._store.write(write, OpClass.LAZY):
            # Nobody's rights have changed: what is remembered of keys stays.
            if row.id in self._keys and self._keys[row.id].version < row.version:
                self._keys[row.id] = row

    # ---- persons and teams ---------------------------------------------------------------------------------
    async def create_user(self, act: Act, nickname: str, full_name: str | None) -> tuple[Account, NewKey]:
        """Make a person's account and its first key. Raises: AuthError, UsageError, ConflictError."""
        _govern(act.who)
        row = _new_account(nickname, "user", full_name)
        key = _new_key(row.id, KeyWish("ADMIN", "first key"))
        entry = recorded(act, "account.create", nickname, account=row.id, after=_account_facts(row))
        await self._insert(row, key.row, entry)
        self._keep(accounts=[row], keys=[key.row])
        return row, key

    async def create_team(self, act: Act, nickname: str, full_name: str | None) -> Account:
        """Make a team, which who asks manages. Raises: UsageError, ConflictError."""
        founder = act.who.key_account
        if self._accounts[founder].kind == "team":
            raise UsageError("A team's key cannot make another team.", fix="Use a person's key.")
        row = _new_account(nickname, "team", full_name)
        member = Membership(f"{row.id}/{founder}", row.id, founder, "admin", _now())
        entry = recorded(act, "account.create", nickname, account=row.id, after=_account_facts(row))
        await self._insert(row, member, entry)
        self._keep(accounts=[row], members=[member])
        return row

    async def set_account(
        self,
        act: Act,
        nickname: str,
        *,
        shared: bool | None,
        admin: bool | None,
        deploy_check: bool | None,
        full_name: str | None,
    ) -> Account:
        """Change what an account may do. Raises: AuthError, NotFoundError, UsageError."""
        _govern(act.who)
        _check_text(full_name)
        id = self.named(nickname).id

        def write(tx: Tx) -> Account:
            before = _needed(tx.get(Account, id))
            after = replace(
                before,
                shared_enabled=before.shared_enabled if shared is None else int(shared),
                is_admin=before.is_admin if admin is None else int(admin),
                deploy_check=before.deploy_check if deploy_check is None else int(deploy_check),
                full_name=before.full_name if full_name is None else full_name,
            )
            if after.is_admin and after.kind == "team":
                raise UsageError("A team cannot manage this backend: only a person can.")
            if before.is_admin and not after.is_admin and _count_admins(tx) == 1:
                raise UsageError("This backend would have no admin left.", fix="Make another one first.")
            facts = (_account_facts(before), _account_facts(after))
            tx.insert(recorded(act, "account.set", nickname, account=id, before=facts[0], after=facts[1]))
            return tx.update(after)

        row = await self._store.write(write, OpClass.ACCEPT)
        self._keep(accounts=[row])
        return row

    async def add_member(self, act: Act, team: str, nickname: str, role: str) -> None:
        """Put a person into a team, or give one another role. Raises: AuthError, NotFoundError, UsageError."""
        team_row, person = self._led(act, team), self.named(nickname)
        if person.kind != "user":
            raise UsageError("Only persons can be members of a team.")
        id = f"{team_row.id}/{person.id}"

        def write(tx: Tx) -> Membership:
            row = tx.get(Membership, id)
            self._check_leaders(tx, row, role)
            before = None if row is None else row.role
            tx.insert(
                recorded(
                    act, "team.add", f"{team}/{nickname}", account=team_row.id, before=before, after=role
                )
            )
            if row is not None:
                return tx.update(replace(row, role=role))
            made = Membership(id, team_row.id, person.id, role, _now())
            tx.insert(made)
            return made

        self._keep(members=[await self._store.write(write, OpClass.ACCEPT)])

    async def remove_member(self, act: Act, team: str, nickname: str) -> None:
        """Take a person out of a team; calls and streams end with it. Raises: AuthError, NotFoundError."""
        person = self.named(nickname)
        # Anybody may leave.
        is_own = person.id == act.who.key_account
        team_row = self.named(team) if is_own else self._led(act, team)
        id = f"{team_row.id}/{person.id}"

        def write(tx: Tx) -> None:
            row = tx.get(Membership, id)
            if row is None:
                raise NotFoundError(f"{nickname} is no member of {team}.", code="account.not_found")
            self._check_leaders(tx, row, None)
            tx.insert(
                recorded(act, "team.remove", f"{team}/{nickname}", account=team_row.id, before=row.role)
            )
            tx.delete(Membership, id)

        await self._store.write(write, OpClass.ACCEPT)
        del self._members[id]
        self._keep()

    # ---- parts ---------------------------------------------------------------------------------------------
    def _led(self, act: Act, team: str) -> Account:
        """Return a team that who asks manages. Raises: AuthError, NotFoundError."""
        row = self.named(team)
        who = act.who
        if row.kind != "team":
            raise UsageError(f"{team} is a person's account.", fix="`fal-nb teams list` shows your teams.")
        if who.key_account == row.id or row.id in who.leads or may_govern(who):
            return row
        if row.id in who.teams:
            raise AuthError(f"You do not manage the team {team}.", code="auth.forbidden")
        raise NotFoundError(f'There is no account "{team[:60]}".', code="account.not_found")

    @staticmethod
    def _check_leaders(tx: Tx, row: Membership | None, role: str | None) -> None:
        if row is None or row.role != "admin" or role == "admin":
            return
        others = [one for one in tx.find(Membership, team=row.team) if one.role == "admin" and one != row]
        if not others:
            raise UsageError(
                "The team would have nobody who manages it.", fix="Make somebody else admin first."
            )

    async def _insert(self, account: Account, *rows: ApiKey | Membership | AuditEntry) -> None:
        def write(tx: Tx) -> None:
            if tx.find(Account, nickname=account.nickname):
                raise ConflictError(f'There is an account "{account.nickname}" already.')
            tx.insert(account)
            for row in rows:
                tx.insert(row)

        try:
            await self._store.write(write, OpClass.ACCEPT)
        except Conflict as error:
            raise ConflictError(f'There is an account "{account.nickname}" already.') from error

    def _keep(
        self,
        *,
        accounts: list[Account] | None = None,
        keys: list[ApiKey] | None = None,
        members: list[Membership] | None = None,
    ) -> None:
        for account in accounts or []:
            self._accounts[account.id] = account
            self._on_account(account)
        self._keys.update({row.id: row for row in keys or []})
        self._members.update({row.id: row for row in members or []})
        self.on_change(self.tables)


def may_govern(who: Principal) -> bool:
    """True for who manages this backend."""
    return may(who, Operation.GOVERN, Target(who.account)).status == 200


def _govern(who: Principal) -> None:
    if not may_govern(who):
        raise AuthError("Only an admin of this backend may do this.", code="auth.forbidden")


def _new_key(account: str, wish: KeyWish) -> NewKey:
    secret = secrets.token_hex(32)
    row = ApiKey(
        id=f"fk_{secrets.token_hex(8)}",
        account=account,
        secret_sha256=hashlib.sha256(secret.encode()).hexdigest(),
        scope=wish.scope,
        created_at=_now(),
        expires_at=wish.expires_at,
        description=wish.description,
    )
    return NewKey(row, secret)


def _new_account(nickname: str, kind: str, full_name: str | None) -> Account:
    if not _NAME.fullmatch(nickname):
        raise UsageError(
            f'"{nickname[:60]}" cannot be an account\'s name: use lower-case letters, digits and `-` (at most 40).',
            code="usage.account_name",
        )
    _check_text(full_name)
    return Account(f"a-{secrets.token_hex(8)}", nickname, _now(), kind=kind, full_name=full_name)


def _check_text(text: str | None) -> None:
    if text is not None and len(text) > _MOST_TEXT:
        raise UsageError(f"A name or description has at most {_MOST_TEXT} characters.")


def _needed(row: Account | None) -> Account:
    if row is None:
        raise NotFoundError("There is no such account.", code="account.not_found")
    return row


def _count_admins(tx: Tx) -> int:
    return sum(row.is_admin for row in tx.find(Account))


def _key_facts(row: ApiKey) -> dict[str, Any]:
    return {"scope": row.scope, "description": row.description, "expires_at": row.expires_at}


def _account_facts(row: Account) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "full_name": row.full_name,
        "admin": bool(row.is_admin),
        "shared": bool(row.shared_enabled),
        "deploy_check": bool(row.deploy_check),
    }


def _now() -> int:
    return time.time_ns() // 1000
