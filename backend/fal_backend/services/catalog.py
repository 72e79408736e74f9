"""What there is, as people see it: apps, deployments, runners, built from rows in memory and live loads.

Rules: reads memory first and the store only for what is no longer open; each view names the last event that
it includes, read before the rows, so that a follower misses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from fal_backend.domain.environments import unknown_environment
from fal_backend.domain.records import (
    Account,
    Alias,
    Bundle,
    Image,
    Revision,
    Runner,
    RunnerPhase,
)
from fal_backend.domain.records import Deployment as DeploymentRow
from fal_backend.domain.rollout import is_before_switch
from fal_backend.domain.scaling import Crashes, desired
from fal_backend.ports import Store
from fal_backend.services.capacity import Capacity, scale_of
from fal_backend.services.deploy import Asker, Author
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.fleet import Fleet
from fal_backend.services.lanes import Load
from fal_backend.services.ledger import AppKey, Ledger, revisions_of
from fal_backend.services.nodes import Nodes
from fal_backend.services.views import deployment_view, error_of, moment, runner_state, runner_view, urls
from fal_notebook.errors import NotFoundError
from fal_notebook.wire import (
    AppDetail,
    AppState,
    AppSummary,
    AuthMode,
    BundleManifest,
    CellRef,
    Deployment,
    MachineType,
    RunnerInfo,
    ScaleSpec,
)
from fal_notebook.wire_secrets import split_alias

__all__ = ["Catalog"]

_HISTORY = 20
_SERVING = frozenset({RunnerPhase.READY})
_COMING = frozenset({RunnerPhase.PENDING, RunnerPhase.STARTING, RunnerPhase.SETUP})


class Catalog:
    """See the module."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        dispatch: Dispatch,
        capacity: Capacity,
        fleet: Fleet,
        nodes: Nodes,
    ) -> None:
        self._store = store
        self._resting: dict[str, tuple[Alias, str, bytes]] = {}
        self._ledger = ledger
        self._dispatch = dispatch
        self._capacity = capacity
        self._fleet = fleet
        self._nodes = nodes
        self.stale_of: Callable[[Runner], list[str]] = lambda row: []
        """Asked for the secrets that a runner does not have as they are now."""

    @property
    def machines(self) -> list[MachineType]:
        """The machine catalogue with what of it is here now."""
        return self._nodes.types()

    # ---- apps ----------------------------------------------------------------------------------------------
    def apps(self, account: str, base_url: str, *, ephemeral: bool, environment: str | None = None) -> bytes:
        """Return an account's apps by name as a JSON list, of one environment or of all.

        Temporary ones only if asked for. As bytes, because a thousand of them are made once and sent often.
        """
        rows = [
            alias
            for alias in self._ledger.all(Alias)
            if alias.account == account
            and (ephemeral or alias.session is None)
            and environment in (None, alias.environment)
        ]
        found = (self._listed(alias, base_url) for alias in sorted(rows, key=lambda alias: alias.name))
        return b"[" + b",".join(found) + b"]"

    async def app(self, account: str, name: str, base_url: str) -> AppDetail:
        """Return all of one app, also of one whose first deployment is under way.

        Raises: NotFoundError.
        """
        key = (account, name)
        alias = self._ledger.alias(key) or self._becoming(key)
        if alias is None:
            raise NotFoundError(f'There is no app "{name}".', fix="`apps list` shows what there is.")
        return await self._detail(alias, base_url)

    def author(self, who: Asker) -> Author:
        """Return whose key asks: a member of a team acts for it, and signs with their own name."""
        account = self._ledger.get(Account, who.key_account)
        return Author(account.nickname if account is not None else None, who.key_id)

    def check_app(self, account: str, name: str) -> None:
        """Raise NotFoundError where there is no such app."""
        if self._ledger.alias((account, name)) is None:
            raise NotFoundError(f'There is no app "{name}".', fix="`apps list` shows what there is.")

    async def uses_image(self, account: str, hash: str) -> bool:
        """Return whether an account has a revision with this image."""
        known = (row for row in self._ledger.all(Revision) if row.image == hash)
        if any(row.account == account for row in known):
            return True
        rows = await self._store.read(lambda reader: reader.find(Revision, image=hash))
        return any(row.account == account for row in rows)

    async def public_app(self, owner: str, alias: str, base_url: str) -> AppDetail | None:
        """Return an app that anyone may call, without a key or with any; else None."""
        row = self._ledger.get(Alias, f"{owner}/{alias}")
        if row is None or row.auth == AuthMode.PRIVATE:
            return None
        return await self._detail(row, base_url)

    async def public_apps(self, base_url: str) -> list[AppSummary]:
        """Return the deployed apps that anyone may call: public and shared ones."""
        aliases = self._ledger.all(Alias)
        rows = [one for one in aliases if one.auth != AuthMode.PRIVATE and one.session is None]
        return [self._summary(alias, base_url) for alias in sorted(rows, key=lambda alias: alias.id)]

    def check_environment(self, account: str, name: str | None) -> None:
        """Raises: NotFoundError with the nearest names when there is no such environment."""
        known = self._ledger.environments(account)
        if name is not None and name not in known:
            raise unknown_environment(name, known)

    # ---- deployments ---------------------------------------------------------------------------------------
    async def deployment(self, id: str, account: str, base_url: str) -> Deployment:
        """Return one act of deploying.

        Raises: NotFoundError.
        """
        row = self._ledger.get(DeploymentRow, id)
        if row is None:
            row = await self._store.read(lambda reader: reader.get(DeploymentRow, id))
        if row is None or row.account != account:
            raise NotFoundError(f"There is no deployment {id}.", code="deploy.not_found")
        return await self.deployment_view(row, base_url)

    async def deployment_view(self, row: DeploymentRow, base_url: str, *, changed: bool = True) -> Deployment:
        """Return a deployment's row as its owner sees it."""
        event = self._ledger.event
        revision = await self._revision(row.revision)
        image = self._ledger.get(Image, revision.image) if revision is not None else None
        owner = self._ledger.need(Account, row.account).nickname
        return deployment_view(row, owner=owner, base=base_url, image=image, event=event, changed=changed)

    # ---- runners -------------------------------------------------------------------------------------------
    def runners(self, account: str, app: str | None, environment: str | None = None) -> list[RunnerInfo]:
        """Return live runners, newest first, then the last few that ended."""
        rows = [
            row
            for row in self._ledger.all(Runner)
            if row.account == account
            and app in (None, row.app)
            and environment in (None, split_alias(row.app)[1])
        ]
        return self._runner_views(rows)

    def runner_states(self) -> Iterator[tuple[str, str]]:
        """Yield (`owner/alias`, state) of each runner that is not gone."""
        for row in self._ledger.all(Runner):
            if row.phase != RunnerPhase.GONE:
                door = self._dispatch.door(row.id)
                state = runner_state(row, inflight=0 if door is None else door.taken)
                yield self._ledger.alias_id((row.account, row.app)), state.value.lower()

    async def runner(self, account: str, runner_id: str) -> Runner:
        """Return a runner, also one that ended long ago.

        Raises: NotFoundError.
        """
        row = self._ledger.get(Runner, runner_id)
        if row is None:
            row = await self._store.read(lambda reader: reader.get(Runner, runner_id))
        if row is None or row.account != account:
            raise NotFoundError(
                f"There is no runner {runner_id}.",
                fix="`runners list` shows what there is.",
                code="runner.not_found",
            )
        return row

    async def runner_history(self, key: AppKey) -> list[Runner]:
        """Return the newest runners of an app, oldest first, also of one that was deleted.

        Raises: NotFoundError when there never was such an app.
        """
        account, app = key
        rows = await self._store.read(lambda reader: reader.find(Runner, account=account, app=app))
        if not rows and self._ledger.alias(key) is None and not self._ledger.open_of_app(key):
            raise NotFoundError(f'There is no app "{app}".', fix="`apps list` shows what there is.")
        return rows[-_HISTORY:]

    def runner_rows(self, key: AppKey) -> list[Runner]:
        """Return an app's runners, oldest first: the last few that ended, then the live ones."""
        rows = self._ledger.ended_of_app(key) + self._ledger.live_of_app(key)
        return sorted(rows, key=lambda row: row.created_at)

    def _runner_views(self, rows: Sequence[Runner]) -> list[RunnerInfo]:
        now = time.time_ns() // 1000
        loads: dict[str, Load] = {}
        views = []
        for row in sorted(rows, key=_live_then_newest):
            if row.revision not in loads:
                loads[row.revision] = self._dispatch.load(row.revision)
            load = loads[row.revision]
            mine = load.runners.get(row.id)
            views.append(
                runner_view(
                    row,
                    now,
                    inflight=mine.inflight if mine is not None else 0,
                    is_backing_off=row.error_json is not None and self._capacity.is_backing_off(row),
                    expires_s=self._capacity.expires_s(row, load),
                    stale=self.stale_of(row) if row.phase != RunnerPhase.GONE else [],
                )
            )
        return views

    # ---- parts ---------------------------------------------------------------------------------------------
    def _becoming(self, key: AppKey) -> Alias | None:
        """Return the alias that the first deployment of an app is going to make."""
        for row in reversed(self._ledger.open_of_app(key)):
            if is_before_switch(row):
                return Alias(
                    id=self._ledger.alias_id(key),
                    account=key[0],
                    name=key[1],
                    environment=split_alias(key[1])[1],
                    revision="",
                    auth=row.auth,
                    scale_json=row.scale_json,
                    created_at=row.created_at,
                    switched_at=row.created_at,
                    session=row.session,
                )
        return None

    def _summary(self, alias: Alias, base_url: str) -> AppSummary:
        return AppSummary.model_validate(self._summary_fields(alias, base_url))

    def _listed(self, alias: Alias, base_url: str) -> bytes:
        """Return an app as it is listed; of one at rest the text of before, as long as its row is the same."""
        known = self._resting.get(alias.id)
        is_at_rest = self._is_at_rest(alias)
        if is_at_rest and known is not None and known[0] is alias and known[1] == base_url:
            return known[2]
        made = self._summary(alias, base_url).model_dump_json().encode()
        if is_at_rest:
            if len(self._resting) > 10_000:
                self._resting.clear()
            self._resting[alias.id] = (alias, base_url, made)
        else:
            self._resting.pop(alias.id, None)
        return made

    def _is_at_rest(self, alias: Alias) -> bool:
        """True when nothing but its row says anything about an app: no runner, no crash."""
        has_runners = self._ledger.has_live((alias.account, alias.name))
        return not has_runners and not any(self._capacity.crashes(one) for one in revisions_of(alias))

    def _summary_fields(self, alias: Alias, base_url: str) -> dict[str, object]:
        scale = scale_of(alias.scale_json)
        owner = alias.id.partition("/")[0]
        state, reason = self._state(alias)
        reason = reason or self._why_split(alias)
        live = self._ledger.live_of_app((alias.account, alias.name))
        types = self._fleet.spec(alias.revision).machine_types if alias.revision else []
        return _given(scale) | {
            "alias": alias.name,
            "revision": alias.revision or None,
            "auth_mode": alias.auth,
            "active_runners": len(live),
            "machine_types": scale.machine_types or types,
            "valid_regions": scale.valid_regions or [],
            "environment_name": alias.environment,
            "request_start_timeout": scale.request_start_timeout,
            "owner": owner,
            "endpoint_id": alias.id,
            "ephemeral": alias.session is not None,
            "state": state,
            "state_reason": reason,
            "split_revision": alias.split_revision,
            "split_percent": alias.split_percent or 0,
            "urls": urls(base_url, owner, alias.name),
            "deployed_at": moment(alias.switched_at),
            "stale_secrets": sorted({name for row in live for name in self.stale_of(row)}),
        }

    def _state(self, alias: Alias) -> tuple[AppState, str | None]:
        if not alias.revision:
            return AppState.DEPLOYING, None
        phases = [row.phase for row in self._ledger.live_of(alias.revision)]
        crashes = self._capacity.crashes(alias.revision)
        ready = sum(phase in _SERVING for phase in phases)
        if ready:
            need = self._need(alias)
            if crashes is None or need <= ready:
                return AppState.SERVING, None
            return AppState.SERVING, f"degraded {ready}/{need}: {_said(crashes)}"
        if crashes is not None:
            return AppState.FAILING, f"CRASH_BACKOFF: {_said(crashes)}"
        if _COMING.intersection(phases):
            waiting = [row.reason for row in self._ledger.live_of(alias.revision) if row.reason]
            return AppState.STARTING, waiting[0] if waiting else None
        return AppState.IDLE, None

    def _why_split(self, alias: Alias) -> str | None:
        """Return what keeps the revision from starting that has a part of the callers."""
        revision = alias.split_revision
        crashes = self._capacity.crashes(revision) if revision is not None else None
        if revision is None or crashes is None:
            return None
        return f"{alias.split_percent} % of the callers, revision {revision[:8]}: {_said(crashes)}"

    def _need(self, alias: Alias) -> int:
        """Return how many runners the calls of this moment ask for."""
        load = self._dispatch.load(alias.revision)
        return desired(
            scale_of(alias.scale_json),
            running=load.running,
            waiting=load.waiting,
            oldest_wait_s=load.oldest_wait_s,
        )

    async def _detail(self, alias: Alias, base_url: str) -> AppDetail:
        event = self._ledger.event
        key = (alias.account, alias.name)
        latest = await self._latest(key)
        shown = alias.revision or (latest.revision if latest is not None else "")
        revision = await self._revision(shown)
        fields = self._summary_fields(alias, base_url)
        if revision is not None:
            manifest = await self._manifest(revision.bundle)
            spec = self._fleet.spec_of(revision)
            fields |= {
                "machine_types": spec.machine_types,
                "class_name": spec.class_name,
                "endpoints": spec.endpoints,
                "openapi": spec.openapi,
                "requirements": spec.requirements,
                "captures": manifest.captures if manifest is not None else [],
                "cell": CellRef.model_validate_json(revision.cell_json) if revision.cell_json else None,
                "notebook": revision.notebook,
            }
        owner = alias.id.partition("/")[0]
        deployment = await self.deployment_view(latest, base_url) if latest is not None else None
        return AppDetail.model_validate(
            {"class_name": "", "endpoints": [], "openapi": "{}"}
            | fields
            | {
                "deployment": deployment,
                "runners": self._runner_views(self.runner_rows(key)),
                "served": self._dispatch.served(owner, alias.name),
                "event": event,
            }
        )

    async def _latest(self, key: AppKey) -> DeploymentRow | None:
        row = self._ledger.latest_of_app(key)
        if row is None:
            account, app = key
            rows = await self._store.read(lambda reader: reader.find(DeploymentRow, account=account, app=app))
            row = rows[-1] if rows else None
            if row is not None and self._ledger.latest_of_app(key) is None:
                self._ledger.remember(row)
        return row

    async def _revision(self, id: str) -> Revision | None:
        row = self._ledger.get(Revision, id)
        if row is None and id:
            row = await self._store.read(lambda reader: reader.get(Revision, id))
        return row

    async def _manifest(self, bundle: str) -> BundleManifest | None:
        row = await self._store.read(lambda reader: reader.get(Bundle, bundle))
        return BundleManifest.model_validate_json(row.manifest_json) if row is not None else None


def _given(scale: ScaleSpec) -> dict[str, object]:
    return {name: value for name, value in scale.model_dump().items() if value is not None}


def _said(crashes: Crashes) -> str:
    """Return why starts fail, how many did in a row, and when the next one is."""
    error = error_of(crashes.error_json)
    why = error.message if error is not None else crashes.reason
    pause = max(0.0, crashes.next_at - time.monotonic())
    return f"{why} ({crashes.count} failed in a row, next start in {pause:.0f} s)"


def _live_then_newest(row: Runner) -> tuple[bool, int]:
    return (row.phase == RunnerPhase.GONE, -row.created_at)
