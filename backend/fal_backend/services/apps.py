"""What an owner does with an app that serves: other settings, runners anew, single runners ended."""

from __future__ import annotations

import secrets
from dataclasses import replace

from fal_backend.domain import rollout
from fal_backend.domain import runner as machine
from fal_backend.domain.records import Alias, Deployment, DeploymentKind, Revision, Runner, RunnerPhase
from fal_backend.domain.revision import later_scale, scaled
from fal_backend.services.capacity import UP, Capacity, scale_of
from fal_backend.services.deploy import Author
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import AppKey, Draft, Ledger, app_key, revisions_of
from fal_backend.services.nodes import Nodes
from fal_backend.services.reconcile import Reconcile
from fal_notebook.errors import DeployError, NotFoundError, UsageError
from fal_notebook.wire import DeploymentState, ScaleSpec, Strategy

__all__ = ["Apps"]


class Apps:
    """See the module."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        reconcile: Reconcile,
        capacity: Capacity,
        fleet: Fleet,
        nodes: Nodes,
    ) -> None:
        self._ledger = ledger
        self._reconcile = reconcile
        self._capacity = capacity
        self._fleet = fleet
        self._nodes = nodes

    async def scale(self, account: str, app: str, changes: ScaleSpec) -> None:
        """Change the settings that are given, of the app and so of every later revision that inherits them.

        Running runners keep their width and machine type; new ones have the new ones. Raises: NotFoundError,
        UsageError, MachineError.
        """
        given = frozenset(changes.model_fields_set)
        if not given:
            raise UsageError("Nothing to change.", fix="Give at least one setting.", code="usage.scale")
        self._nodes.check_names(changes.machine_types or [])
        await self._reconcile.submit(lambda draft: self._scale(draft, (account, app), changes, given))

    def _scale(self, draft: Draft, key: AppKey, changes: ScaleSpec, given: frozenset[str]) -> None:
        alias = _need(draft, key)
        if alias.session is not None:
            raise UsageError("A temporary app has one runner.", fix="Deploy it to scale it.")
        scale = scaled(scale_of(alias.scale_json), changes, given=given)
        draft.change(replace(alias, scale_json=scale.model_dump_json()))
        for row in draft.open_of_app(key):
            # It was begun with the settings of before, and brings them along when the alias moves.
            if rollout.is_before_switch(row):
                coming = later_scale(scale_of(row.scale_json), changes, given=given)
                draft.change(replace(row, scale_json=coming.model_dump_json()))
        data = scale.model_dump(exclude_none=True)
        draft.emit(f"app/{key[1]}", "app.scaled", data, app=key[1], account=key[0])

    async def restart(self, account: str, app: str, author: Author, *, force: bool) -> tuple[int, str | None]:
        """Replace an app's runners by new ones of the same revision; return (how many, the rollout's id).

        force: end them at once, calls and all. Raises: NotFoundError, DeployError while a deployment is under way.
        """
        return await self._reconcile.submit(
            lambda draft: self._restart(draft, (account, app), author, force=force)
        )

    def _restart(self, draft: Draft, key: AppKey, author: Author, *, force: bool) -> tuple[int, str | None]:
        alias = _need(draft, key)
        live = [one for one in draft.live_of_app(key) if one.revision in revisions_of(alias)]
        if force:
            for one in live:
                self._end(draft, one, "restarted", grace=0)
            return len(live), None
        if any(rollout.is_before_switch(one) for one in draft.open_of_app(key)):
            raise DeployError(
                f"A deployment of {key[1]} is under way.",
                fix="Wait for its end, or use `--force`.",
                code="deploy.under_way",
            )
        mine = [one for one in live if one.revision == alias.revision]
        if not mine:
            return 0, None
        row = Deployment(
            id=f"d-{secrets.token_hex(8)}",
            account=alias.account,
            app=alias.name,
            revision=alias.revision,
            state=DeploymentState.BUILDING.value,
            strategy=Strategy.ROLLING.value,
            auth=alias.auth,
            scale_json=alias.scale_json,
            created_at=draft.next_at(key),
            session=alias.session,
            kind=DeploymentKind.RESTART.value,
            previous=alias.revision,
            author=author.nickname,
        )
        draft.change(row)
        return len(mine), row.id

    async def end_runner(self, account: str, runner_id: str, *, kill: bool, replace: bool) -> bool:
        """End one runner, after its calls or at once; return whether another was started in its place.

        Raises: NotFoundError.
        """
        row = self._ledger.get(Runner, runner_id)
        if row is None or row.account != account or row.phase == RunnerPhase.GONE:
            raise _no_runner(runner_id)
        return await self._reconcile.submit(
            lambda draft: self._end_one(draft, runner_id, kill=kill, is_replaced=replace)
        )

    def _end_one(self, draft: Draft, runner_id: str, *, kill: bool, is_replaced: bool) -> bool:
        row = draft.get(Runner, runner_id)
        if row is None:
            raise _no_runner(runner_id)
        alias = draft.alias(app_key(row))
        is_wanted = alias is not None and row.revision in revisions_of(alias)
        is_replaced = is_replaced and is_wanted and row.phase in UP
        if is_replaced:
            self._capacity.start(draft, draft.need(Revision, row.revision))
            row = replace(row, replaced=1)
            draft.change(row)
        self._end(draft, row, "killed_by_owner" if kill else "stopped", grace=0 if kill else None)
        return is_replaced

    def _end(self, draft: Draft, row: Runner, reason: str, *, grace: int | None) -> None:
        if grace is None:
            grace = int(self._fleet.stop_grace_s(replace(row, reason=reason)) * 1_000_000)
        # A microsecond ago: its end is not waited for at all.
        deadline = draft.now + grace if grace else draft.now - 1
        self._capacity.apply(draft, row, machine.Stop(reason, deadline))


def _no_runner(runner_id: str) -> NotFoundError:
    return NotFoundError(
        f"There is no runner {runner_id}.",
        fix="`runners list` shows what there is.",
        code="runner.not_found",
    )


def _need(draft: Draft, key: AppKey) -> Alias:
    alias = draft.alias(key)
    if alias is None:
        raise NotFoundError(f'There is no app "{key[1]}".', fix="`apps list` shows what there is.")
    return alias
