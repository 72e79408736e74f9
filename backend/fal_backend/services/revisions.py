"""The revisions of apps: kept, shown, compared, chosen again, given a part of the callers, removed.

Rules: a revision never changes but for what became of it; what an alias, an open deployment or a live runner
names stays; reading one from the store and deciding about it is one act, so that none is removed in between.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from fal_backend.domain import rollout
from fal_backend.domain.access import checked_mode
from fal_backend.domain.comparison import Side, compare
from fal_backend.domain.records import (
    Account,
    Alias,
    Bundle,
    Deployment,
    DeploymentKind,
    Revision,
    Runner,
    RunnerPhase,
)
from fal_backend.domain.revision import DEFAULTS, effective_auth, rolled_back_scale
from fal_backend.ports import Reader, Store
from fal_backend.services.deploy import Author, Outcome, settled
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import AppKey, Draft, Ledger, app_key, revisions_of
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.rollouts import Rollouts
from fal_backend.services.views import error_of, moment
from fal_notebook.errors import DeployError, NotFoundError, UsageError
from fal_notebook.wire import BundleManifest, DeploymentState, ErrorBody, ScaleSpec, Strategy
from fal_notebook.wire_deploy import RevisionDiff, RevisionInfo, SetRevision, Traffic

__all__ = ["KEPT", "Revisions"]

log = structlog.get_logger()

KEPT = 100
"""Revisions kept of each app, unless the operator says otherwise."""

ALL = 100


class Revisions:
    """See the module."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        reconcile: Reconcile,
        rollouts: Rollouts,
        fleet: Fleet,
        traffic_of: Callable[[str], Awaitable[Mapping[str, Traffic]]],
        kept: int = KEPT,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._reconcile = reconcile
        self._rollouts = rollouts
        self._fleet = fleet
        self._traffic_of = traffic_of
        self.kept = max(1, kept)
        self._lock = asyncio.Lock()
        self.on_removed: Callable[[], None] = lambda: None
        """Told that a revision is no more."""
        self._counts: dict[AppKey, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- what there is -------------------------------------------------------------------------------------
    async def page(self, account: str, app: str) -> list[RevisionInfo]:
        """Return an app's revisions, newest first, also of one whose first deployment failed.

        Raises: NotFoundError when there never was such an app.
        """
        rows = await self._store.read(lambda reader: reader.find(Revision, account=account, app=app))
        if not rows:
            raise NotFoundError(f'There is no app "{app}".', fix="`apps list` shows what there is.")
        alias = self._ledger.alias((account, app))
        rows.sort(key=lambda row: row.created_at, reverse=True)
        traffic = await self._traffic_of(self._ledger.alias_id((account, app)))
        return [RevisionInfo.model_validate(self._fields(row, alias, traffic)) for row in rows]

    async def detail(self, account: str, ref: str) -> tuple[dict[str, Any], list[Deployment]]:
        """Return (fields of a `RevisionDetail`, the acts that had to do with it).

        Raises: NotFoundError, UsageError when several begin like this.
        """
        row = await self._find(account, ref)
        bundle, acts = await self._store.read(
            lambda reader: (reader.get(Bundle, row.bundle), reader.find(Deployment, revision=row.id))
        )
        spec, manifest = self._fleet.spec_once(row), _manifest(bundle)
        traffic = await self._traffic_of(self._ledger.alias_id(app_key(row)))
        fields = self._fields(row, self._ledger.alias(app_key(row)), traffic) | {
            "source": manifest.source if manifest is not None else "",
            "captures": manifest.captures if manifest is not None else [],
            "endpoints": spec.endpoints,
            "openapi": spec.openapi,
            "error": _why(row, acts),
        }
        return fields, acts

    async def diff(self, account: str, before: str, after: str) -> RevisionDiff:
        """Return what differs between two revisions. Raises: NotFoundError, UsageError as `detail`."""
        sides = [await self._side(account, ref) for ref in (before, after)]
        return compare(*sides)

    async def _side(self, account: str, ref: str) -> Side:
        row = await self._find(account, ref)
        bundle = await self._store.read(lambda reader: reader.get(Bundle, row.bundle))
        manifest = _manifest(bundle)
        if manifest is None:
            raise NotFoundError(f"The code of revision {row.id} is gone.", code="revision.not_found")
        return Side(row.id, self._fleet.spec_once(row), manifest, self._scale(row), row.auth)

    def _fields(self, row: Revision, alias: Alias | None, traffic: Mapping[str, Traffic]) -> dict[str, Any]:
        spec = self._fleet.spec_once(row)
        scale = self._scale(row)
        live = self._ledger.live_of(row.id)
        return {
            "revision": row.id,
            "app": row.app,
            "status": row.status,
            "percent": share(alias, row.id),
            "is_current": alias is not None and alias.revision == row.id,
            "created_at": moment(row.created_at),
            "author": row.author,
            "author_key": row.author_key,
            "message": row.message,
            "annotations": json.loads(row.annotations_json) if row.annotations_json else {},
            "notebook": row.notebook,
            "cell": json.loads(row.cell_json) if row.cell_json else None,
            "class_name": spec.class_name,
            "python_version": spec.python_version,
            "image": row.image,
            "requirements": spec.requirements,
            "machine_types": spec.machine_types,
            "auth": row.auth,
            "scale": scale,
            "runners": len([one for one in live if one.phase != RunnerPhase.GONE]),
            "traffic": traffic.get(row.id),
        }

    def _scale(self, row: Revision) -> ScaleSpec:
        if row.scale_json is not None:
            return ScaleSpec.model_validate_json(row.scale_json)
        given = self._fleet.spec_once(row).scale.model_dump(exclude_none=True)
        return ScaleSpec.model_validate(DEFAULTS.model_dump() | given)

    async def _find(self, account: str, ref: str, app: str | None = None) -> Revision:
        """Return the one revision whose id begins like this. Raises: NotFoundError, UsageError."""
        rows = await self._store.read(lambda reader: _starting(reader, ref))
        mine = [row for row in rows if row.account == account and app in (None, row.app)]
        if len(mine) > 1:
            ids = ", ".join(row.id for row in mine[:3])
            raise UsageError(f"Several revisions begin with {ref}: {ids}.", fix="Write more of it.")
        if not mine:
            raise NotFoundError(
                f"There is no revision {ref[:64]}" + (f" of {app}." if app else "."),
                fix="`apps list-rev` shows what there is.",
                code="revision.not_found",
            )
        return mine[0]

    # ---- what is done with them ----------------------------------------------------------------------------
    async def choose(self, account: str, app: str, order: SetRevision, author: Author) -> Outcome:
        """Point an alias to a revision, or give it a part of the callers; nothing is built.

        Raises: NotFoundError, UsageError.
        """
        if order.detach and order.strategy != Strategy.ROLLING:
            raise UsageError("Only a rolling change can be detached.", fix="Leave out `--detach`.")
        async with self._lock:
            row = await self._find(account, order.revision, app)
            outcome = await self._reconcile.submit(lambda draft: self._choose(draft, row, order, author))
        now = self._ledger.get(Deployment, outcome.deployment.id) or outcome.deployment
        log.info("revision.chosen", app=app, revision=row.id, percent=order.percent, state=now.state)
        return Outcome(now, outcome.changed)

    def _choose(self, draft: Draft, row: Revision, order: SetRevision, author: Author) -> Outcome:
        alias = draft.alias(app_key(row))
        if alias is None:
            raise NotFoundError(f'There is no app "{row.app}".', fix="Deploy it first.")
        percent = ALL if order.percent is None else order.percent
        if percent == ALL:
            return self._move(draft, alias, row, order, author)
        if order.auth is not None or order.strategy != Strategy.ROLLING:
            raise UsageError("A split has the app's own auth and is rolling.", fix="Leave out the flags.")
        if percent == 0:
            return self._withdraw(draft, alias, row)
        if row.id == alias.revision:
            raise UsageError(
                f"Revision {row.id} is the one that the others are split from.",
                fix=f"Name the other one; it gets {ALL - percent} %.",
            )
        if alias.split_revision == row.id:
            is_new = alias.split_percent != percent
            if is_new:
                self._rollouts.split(draft, alias, row.id, percent)
            return Outcome(self._present(draft, alias, row.id), changed=is_new)
        return self._begin(draft, alias, row, DeploymentKind.SPLIT, author, percent=percent)

    def _move(self, draft: Draft, alias: Alias, row: Revision, order: SetRevision, author: Author) -> Outcome:
        scale = rolled_back_scale(self._fleet.spec_once(row).scale, alias)
        asked = effective_auth(order.auth, None, alias, ephemeral=False)
        auth = checked_mode(asked, draft.need(Account, alias.account))
        is_moving = any(rollout.is_before_switch(one) for one in draft.open_of_app(app_key(row)))
        same = alias.revision == row.id and alias.split_revision is None and alias.auth == auth
        if same and not is_moving:
            return Outcome(self._present(draft, alias, row.id), changed=False)
        return self._begin(
            draft,
            alias,
            row,
            DeploymentKind.SET_REV,
            author,
            scale=scale,
            auth=auth.value,
            strategy=order.strategy,
            detach=order.detach,
        )

    def _withdraw(self, draft: Draft, alias: Alias, row: Revision) -> Outcome:
        """Take a revision's part of the callers back, or what is under way to give it one."""
        coming = [
            one
            for one in draft.open_of_app(app_key(row))
            if one.kind == DeploymentKind.SPLIT and one.revision == row.id and rollout.is_before_switch(one)
        ]
        for one in coming:
            self._rollouts.apply(draft, one, rollout.Cancelled())
        if alias.split_revision == row.id:
            self._rollouts.split(draft, alias, None, 0)
        elif not coming:
            raise UsageError(f"Revision {row.id} gets no part of the callers.", code="usage.no_split")
        return Outcome(self._present(draft, alias, alias.revision), changed=True)

    def _begin(
        self,
        draft: Draft,
        alias: Alias,
        row: Revision,
        kind: DeploymentKind,
        author: Author,
        *,
        percent: int | None = None,
        scale: ScaleSpec | None = None,
        auth: str | None = None,
        strategy: Strategy = Strategy.ROLLING,
        detach: bool = False,
    ) -> Outcome:
        deployment = Deployment(
            id=f"d-{secrets.token_hex(8)}",
            account=alias.account,
            app=alias.name,
            revision=row.id,
            state=DeploymentState.BUILDING.value,
            strategy=strategy.value,
            auth=auth or alias.auth,
            scale_json=scale.model_dump_json() if scale is not None else alias.scale_json,
            created_at=draft.next_at((alias.account, alias.name)),
            session=alias.session,
            kind=kind.value,
            previous=alias.revision,
            percent=percent,
            detach=1 if detach else None,
            author=author.nickname,
        )
        if draft.get(Revision, row.id) is None:
            self._ledger.remember(row)
        draft.change(deployment)
        return Outcome(deployment, changed=True)

    def _present(self, draft: Draft, alias: Alias, revision: str) -> Deployment:
        latest = self._ledger.latest_of_app((alias.account, alias.name))
        if latest is not None and rollout.has_led_to(latest, revision):
            return draft.need(Deployment, latest.id)
        return settled(alias, revision)

    async def delete(self, account: str, ref: str) -> str:
        """Remove a revision with the acts that made it, and return its id.

        Raises: NotFoundError, DeployError while it is in use.
        """
        async with self._lock:
            row = await self._find(account, ref)
            doomed = await self._store.read(lambda reader: _dependents(reader, row.id))
            await self._reconcile.submit(lambda draft: self._remove(draft, row, doomed, is_asked=True))
        return row.id

    def _remove(self, draft: Draft, row: Revision, doomed: list[Any], *, is_asked: bool) -> None:
        use = self._use(draft, row)
        if use is not None:
            if not is_asked:
                return
            raise DeployError(
                f"Revision {row.id} {use}.",
                fix="Let the app use another one first: `apps set-rev`.",
                code="revision.in_use",
            )
        draft.erase(Revision, row.id)
        for one in doomed:
            known = draft.get(type(one), one.id)
            if known is None:
                draft.erase(type(one), one.id)
            else:
                draft.delete(known)
        data = {"revision": row.id}
        draft.emit(f"app/{row.app}", "revision.deleted", data, app=row.app, account=row.account)
        draft.then(self.on_removed)
        self._counts.pop(app_key(row), None)

    def _use(self, draft: Draft, row: Revision) -> str | None:
        alias = draft.alias(app_key(row))
        if alias is not None and row.id in revisions_of(alias):
            return "serves callers"
        if any(one.revision == row.id for one in draft.open_of_app(app_key(row))):
            return "is being deployed"
        return "still has a runner" if draft.live_of(row.id) else None

    # ---- retention -----------------------------------------------------------------------------------------
    def note(self, key: AppKey) -> None:
        """A revision was added to an app: the oldest go where there are too many."""
        if key in self._counts:
            self._counts[key] += 1
            if self._counts[key] <= self.kept:
                return
        task = asyncio.get_running_loop().create_task(self._trim(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _trim(self, key: AppKey) -> None:
        try:
            async with self._lock:
                await self._trim_now(key)
        except Exception:
            log.exception("revisions.trim_failed", app=key[1])

    async def _trim_now(self, key: AppKey) -> None:
        account, app = key
        rows = await self._store.read(lambda reader: reader.find(Revision, account=account, app=app))
        self._counts[key] = len(rows)
        for row in rows[: max(0, len(rows) - self.kept)]:
            await self._trim_one(row)

    async def _trim_one(self, row: Revision) -> None:
        doomed = await self._store.read(lambda reader: _dependents(reader, row.id))
        await self._reconcile.submit(lambda draft: self._remove(draft, row, doomed, is_asked=False))

    async def close(self) -> None:
        """Let go of what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def share(alias: Alias | None, revision: str) -> int:
    """Return how many of a hundred callers of an app a revision gets."""
    if alias is None:
        return 0
    split = alias.split_percent or 0
    if alias.split_revision == revision:
        return split
    return ALL - split if alias.revision == revision else 0


def _starting(reader: Reader, ref: str) -> list[Revision]:
    if not ref or not ref.isascii():
        return []
    exact = reader.get(Revision, ref)
    return [exact] if exact is not None else reader.starting(Revision, ref, 50)


def _dependents(reader: Reader, revision: str) -> list[Deployment | Runner]:
    """Return the rows that have no meaning without a revision."""
    return [*reader.find(Deployment, revision=revision), *reader.find(Runner, revision=revision)]


def _manifest(bundle: Bundle | None) -> BundleManifest | None:
    return BundleManifest.model_validate_json(bundle.manifest_json) if bundle is not None else None


def _why(row: Revision, acts: list[Deployment]) -> ErrorBody | None:
    if row.status != "failed":
        return None
    return next((error_of(one.error_json) for one in acts if one.error_json), None)
