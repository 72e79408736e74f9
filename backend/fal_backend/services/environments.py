"""Environments of accounts: made, listed, and deleted with what is in them when that is asked for.

Rules: `main` is always there and has no row; an environment's apps are ended like any deleted app, in the same
transaction in which it goes.
"""

from __future__ import annotations

import structlog

from fal_backend.domain import rollout
from fal_backend.domain.environments import checked_environment, not_empty, unknown_environment
from fal_backend.domain.records import Account, Alias, Environment
from fal_backend.domain.records_secrets import Secret
from fal_backend.services.accounts import Act, recorded
from fal_backend.services.deploy import Deploy
from fal_backend.services.ledger import Draft, Ledger
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.views import moment
from fal_notebook.errors import ConflictError, UsageError
from fal_notebook.wire_secrets import MAIN, EnvironmentDeleted, EnvironmentInfo, split_alias

__all__ = ["Environments"]

log = structlog.get_logger()


class Environments:
    """See the module."""

    def __init__(self, ledger: Ledger, reconcile: Reconcile, deploy: Deploy) -> None:
        self._ledger = ledger
        self._reconcile = reconcile
        self._deploy = deploy

    def listed(self, account: str) -> list[EnvironmentInfo]:
        """Return an account's environments, `main` first."""
        owner = self._ledger.need(Account, account)
        rows = sorted(
            (row for row in self._ledger.all(Environment) if row.account == account), key=lambda row: row.name
        )
        main = EnvironmentInfo(name=MAIN, is_default=True, created_at=moment(owner.created_at))
        return [main, *(_info(row) for row in rows)]

    async def create(self, act: Act, name: str, description: str | None) -> EnvironmentInfo:
        """Make an environment. Raises: UsageError, ConflictError when it is there."""
        checked_environment(name)
        row = await self._reconcile.submit(lambda draft: _create(draft, act, name, description))
        log.info("environment.created", account=act.who.account, name=name)
        return _info(row)

    async def delete(self, act: Act, name: str, *, with_all: bool) -> EnvironmentDeleted:
        """Delete an environment; with_all: with its apps and secrets.

        Raises: NotFoundError, UsageError for `main`, ConflictError that says what is in it.
        """
        if name == MAIN:
            raise UsageError(f"The environment `{MAIN}` cannot be deleted.", code="usage.environment_name")
        gone = await self._reconcile.submit(lambda draft: self._delete(draft, act, name, with_all=with_all))
        log.info("environment.deleted", account=act.who.account, name=name, apps=len(gone.apps))
        return gone

    def _delete(self, draft: Draft, act: Act, name: str, *, with_all: bool) -> EnvironmentDeleted:
        account = act.who.account
        row = draft.get(Environment, f"{account}/{name}")
        if row is None:
            raise unknown_environment(name, self._ledger.environments(account))
        apps = self._apps(draft, account, name)
        secrets = [one for one in draft.all(Secret) if (one.account, one.environment) == (account, name)]
        names = sorted(one.name for one in secrets)
        if (apps or names) and not with_all:
            raise not_empty(name, apps, names)
        for app in apps:
            self._deploy.delete_in(draft, (account, app), reason="environment_deleted")
        for one in secrets:
            draft.delete(one)
        draft.delete(row)
        facts = {"apps": apps, "secrets": names}
        draft.change(recorded(act, "environment.delete", name, account=account, before=facts))
        return EnvironmentDeleted(name=name, apps=apps, secrets=names)

    def _apps(self, draft: Draft, account: str, environment: str) -> list[str]:
        """Return the aliases of an environment, and those that a deployment is about to make."""
        there = {alias.name for alias in draft.all(Alias) if alias.account == account}
        coming = {
            app
            for owner, app in draft.apps_with_open_deployment()
            if owner == account
            and any(rollout.is_before_switch(row) for row in draft.open_of_app((owner, app)))
        }
        return sorted(app for app in there | coming if split_alias(app)[1] == environment)


def _create(draft: Draft, act: Act, name: str, description: str | None) -> Environment:
    account = act.who.account
    id = f"{account}/{name}"
    if draft.get(Environment, id) is not None:
        raise ConflictError(f"There is an environment '{name}' already.", code="conflict.environment")
    row = Environment(id, account, name, draft.now, description)
    draft.change(row)
    draft.change(recorded(act, "environment.create", name, account=account))
    return row


def _info(row: Environment) -> EnvironmentInfo:
    return EnvironmentInfo(name=row.name, description=row.description, created_at=moment(row.created_at))
