"""Secrets of environments: set, listed without their values, unset, and handed to the runners that are started.

Rules: a value is encrypted before it becomes a row, and decrypted only for the order that starts a runner; no answer,
event or log line holds one. A change reaches runners that start afterwards; those that run are told apart as stale.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import structlog

from fal_backend.domain.environments import unknown_environment
from fal_backend.domain.records import Environment, Runner
from fal_backend.domain.records_secrets import DataKey, Secret
from fal_backend.domain.secrets import (
    MAX_SECRETS,
    bound_to,
    checked_secret_name,
    checked_value,
    exposed,
    stale_names,
    stamps_json,
)
from fal_backend.ports import SecretBox
from fal_backend.services.accounts import Act, recorded
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import Draft, Ledger
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.views import moment
from fal_notebook.errors import LimitError, NotFoundError
from fal_notebook.wire_secrets import MAIN, SecretInfo, SecretSet, SecretsRotated, is_telling, split_alias

__all__ = ["Secrets"]

log = structlog.get_logger()

_LOOKED_AT = 64 * 1024 * 1024
"""Bytes of a bundle that are searched."""


class Secrets:
    """See the module."""

    def __init__(self, ledger: Ledger, reconcile: Reconcile, fleet: Fleet, box: SecretBox) -> None:
        self._ledger = ledger
        self._reconcile = reconcile
        self._fleet = fleet
        self._box = box
        self._rotating = asyncio.Lock()

    # ---- what owners do --------------------------------------------------------------------------------------
    def listed(self, account: str, environment: str | None) -> list[SecretInfo]:
        """Return the secrets of one environment, or of all. Raises: NotFoundError for an unknown environment."""
        if environment is not None:
            self.check_environment(account, environment)
        rows = [row for row in self._ledger.all(Secret) if row.account == account]
        return [
            _info(row)
            for row in sorted(rows, key=lambda row: (row.environment, row.name))
            if environment in (None, row.environment)
        ]

    async def set(
        self, act: Act, name: str, value: str, environment: str, default_exposed: bool | None
    ) -> SecretSet:
        """Keep a value under a name. Raises: UsageError, LimitError, NotFoundError, BackendError."""
        account = act.who.account
        checked_value(checked_secret_name(name), value)
        row = await self._reconcile.submit(
            lambda draft: self._set(draft, act, environment, name, value, default_exposed)
        )
        log.info("secret.set", account=account, environment=environment, name=name, number=row.number)
        return SecretSet(secret=_info(row), stale=self._stale_apps(account, environment))

    async def unset(self, act: Act, name: str, environment: str) -> SecretSet:
        """Remove a secret. Raises: NotFoundError."""
        account = act.who.account
        await self._reconcile.submit(lambda draft: self._unset(draft, act, environment, name))
        log.info("secret.unset", account=account, environment=environment, name=name)
        return SecretSet(stale=self._stale_apps(account, environment))

    async def rotate(self, act: Act) -> SecretsRotated:
        """Encrypt every secret anew: under a new data key, wrapped with a new master key where the file is ours.

        Raises: BackendError when a secret cannot be opened; then nothing has changed.
        """
        async with self._rotating:
            if self._box.is_ours:
                await asyncio.to_thread(self._box.make_master)
            count = await self._reconcile.submit(lambda draft: self._reseal(draft, act))
            await asyncio.to_thread(self._box.forget_masters)
        log.info("secret.rotated", secrets=count, is_master_new=self._box.is_ours)
        return SecretsRotated(secrets=count, is_master_new=self._box.is_ours)

    def tidy(self) -> None:
        """Finish a rotation that was cut off: let go of master keys that open nothing any more."""
        used = {key.master for key in self._ledger.all(DataKey)}
        if self._box.master is not None and used <= {self._box.master}:
            self._box.forget_masters()

    # ---- what runners get ------------------------------------------------------------------------------------
    def values_for(self, row: Runner) -> dict[str, str]:
        """Return what a runner finds in its environment. Raises: BackendError when it cannot be decrypted."""
        return {one.name: self._open(one) for one in self.rows_for(row.account, row.app, row.revision)}

    def rows_for(self, account: str, app: str, revision: str) -> list[Secret]:
        """Return the secrets that a revision's runners get now."""
        found = self._of(account, split_alias(app)[1])
        return exposed(self._fleet.spec(revision).secrets, found) if found else []

    def stamps_for(self, account: str, app: str, allowed: list[str] | None) -> str:
        """Return what tells the present values from later ones, for a class that names these secrets."""
        return stamps_json(exposed(allowed, self._of(account, split_alias(app)[1])))

    def stale_of(self, row: Runner) -> list[str]:
        """Return the names of secrets that a runner does not have as they are now."""
        return stale_names(row.secrets_json or "{}", self.rows_for(row.account, row.app, row.revision))

    async def named_in(self, account: str, path: Path) -> str | None:
        """Return the name of a secret of an account whose value stands in a file, None when none does."""
        values: dict[str, bytes] = {}
        for row in self._ledger.all(Secret):
            if row.account == account and self._box.knows(self._ledger.need(DataKey, row.data_key).master):
                value = self._open(row)
                if is_telling(value):
                    values[row.name] = value.encode("utf-8", "surrogatepass")
        return await asyncio.to_thread(_first_in, path, values) if values else None

    def check_environment(self, account: str, name: str) -> str:
        """Return the name of an environment that is there. Raises: NotFoundError with the nearest names."""
        known = self._ledger.environments(account)
        if name not in known:
            raise unknown_environment(name, known)
        return name

    # ---- decisions -------------------------------------------------------------------------------------------
    def _set(
        self,
        draft: Draft,
        act: Act,
        environment: str,
        name: str,
        value: str,
        default_exposed: bool | None,
    ) -> Secret:
        account = act.who.account
        self._check_in(draft, account, environment)
        before = draft.get(Secret, f"{account}/{environment}/{name}")
        if before is None and len(_in(draft.all(Secret), account, environment)) >= MAX_SECRETS:
            raise LimitError(
                f"Environment '{environment}' has {MAX_SECRETS} secrets.",
                fix="`secrets unset` those that nobody needs.",
                code="limit.secrets",
            )
        key = self._data_key(draft)
        row = _next(before, account, environment, name, draft.now, default_exposed)
        row = replace(row, data_key=key.id)
        sealed = replace(row, sealed=self._box.seal(key, value, bound_to(row)))
        draft.change(sealed)
        facts = {"number": row.number, "default_exposed": bool(row.default_exposed)}
        draft.change(recorded(act, "secret.set", f"{environment}/{name}", account=account, after=facts))
        data = {"environment": environment, "name": name}
        draft.emit(f"secret/{environment}/{name}", "secret.set", data, account=account)
        return sealed

    def _unset(self, draft: Draft, act: Act, environment: str, name: str) -> None:
        account = act.who.account
        self._check_in(draft, account, environment)
        row = draft.get(Secret, f"{account}/{environment}/{name}")
        if row is None:
            names = [one.name for one in _in(draft.all(Secret), account, environment)]
            raise NotFoundError(
                f"There is no secret `{name[:80]}` in environment '{environment}'.",
                fix=f"Secrets: {', '.join(names) or 'none'}.",
                code="secret.not_found",
            )
        draft.delete(row)
        draft.change(recorded(act, "secret.unset", f"{environment}/{name}", account=account))
        data = {"environment": environment, "name": name}
        draft.emit(f"secret/{environment}/{name}", "secret.unset", data, account=account)

    def _reseal(self, draft: Draft, act: Act) -> int:
        rows = draft.all(Secret)
        old = draft.all(DataKey)
        keys = {key.id: key for key in old}
        plain = {row.id: self._box.open(keys[row.data_key], row.sealed, bound_to(row)) for row in rows}
        key = self._box.make_data_key(draft.now)
        draft.change(key)
        for row in rows:
            draft.change(
                replace(row, data_key=key.id, sealed=self._box.seal(key, plain[row.id], bound_to(row)))
            )
        for one in old:
            draft.delete(one)
        draft.change(recorded(act, "secret.rotate", key.id, account=act.who.account))
        return len(rows)

    def _data_key(self, draft: Draft) -> DataKey:
        """Return the data key; make one where there is none, or where nothing is left that a lost one would open."""
        known = draft.all(DataKey)
        usable = [key for key in known if self._box.knows(key.master)]
        has_secrets = bool(draft.all(Secret))
        if usable or (known and has_secrets):
            return (usable or known)[-1]
        for key in known:
            draft.delete(key)
        if self._box.master is None and self._box.is_ours:
            self._box.make_master()
        made = self._box.make_data_key(draft.now)
        draft.change(made)
        return made

    def _check_in(self, draft: Draft, account: str, environment: str) -> None:
        if environment != MAIN and draft.get(Environment, f"{account}/{environment}") is None:
            raise unknown_environment(environment, self._ledger.environments(account))

    # ---- parts -----------------------------------------------------------------------------------------------
    def _of(self, account: str, environment: str) -> list[Secret]:
        return _in(self._ledger.all(Secret), account, environment)

    def _open(self, row: Secret) -> str:
        return self._box.open(self._ledger.need(DataKey, row.data_key), row.sealed, bound_to(row))

    def _stale_apps(self, account: str, environment: str) -> dict[str, int]:
        rows: Iterable[Runner] = (
            row
            for row in self._ledger.live()
            if row.account == account and split_alias(row.app)[1] == environment
        )
        return dict(sorted(Counter(row.app for row in rows if self.stale_of(row)).items()))


def _first_in(path: Path, values: dict[str, bytes]) -> str | None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return next((name for name, value in values.items() if data.find(value, 0, _LOOKED_AT) >= 0), None)


def _in(rows: Iterable[Secret], account: str, environment: str) -> list[Secret]:
    return [row for row in rows if (row.account, row.environment) == (account, environment)]


def _next(
    before: Secret | None, account: str, environment: str, name: str, now: int, default_exposed: bool | None
) -> Secret:
    if before is None:
        id = f"{account}/{environment}/{name}"
        is_exposed = int(default_exposed is not False)
        return Secret(id, account, environment, name, 1, "", "", now, now, is_exposed)
    is_exposed = before.default_exposed if default_exposed is None else int(default_exposed)
    return replace(
        before,
        number=before.number + 1,
        updated_at=max(now, before.updated_at + 1),
        default_exposed=is_exposed,
    )


def _info(row: Secret) -> SecretInfo:
    return SecretInfo(
        name=row.name,
        environment=row.environment,
        created_at=moment(row.created_at),
        default_exposed=bool(row.default_exposed),
        updated_at=moment(row.updated_at),
        number=row.number,
    )
