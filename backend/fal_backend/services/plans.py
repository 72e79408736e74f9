"""Deployments that were checked and wait for a person's word: shown, confirmed once, or dropped.

Rules: making a plan changes nothing; what is confirmed is what was shown, or it is refused; waiting plans live
in memory, for an hour and a bounded number of them, since checking again costs a moment. A plan that is checked again
becomes another one; whoever knows the first of them, such as a notebook that kept it, finds the one that waits now,
and the deployment that came of it, however long ago: that is named after it.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from fal_backend.domain import plan as rules
from fal_backend.domain.records import Account, Bundle, Image, ImageState, Revision
from fal_backend.ports import Store
from fal_backend.services.deploy import Author, Deploy, Outcome
from fal_backend.services.forecast import Agreed, Forecast
from fal_backend.services.ledger import AppKey, Ledger
from fal_notebook.errors import NotFoundError, UsageError
from fal_notebook.wire import AppSpec, AuthMode, BundleManifest, DeployRequest, ScaleSpec
from fal_notebook.wire_plan import DeployPlan, PlannedImage, PlannedSetting, Production
from fal_notebook.wire_secrets import split_alias

__all__ = ["Plans"]

LIFE_S = 3600.0
MOST = 64
_STARTS = 10


@dataclass(frozen=True, slots=True)
class _Waiting:
    first: str
    """The plan that it came of by checking again; its own id where it is the first."""
    account: str
    request: DeployRequest
    mark: str
    until: float
    shown: DeployPlan


class Plans:
    """See the module."""

    def __init__(
        self,
        *,
        deploy: Deploy,
        store: Store,
        ledger: Ledger,
        prices: Mapping[str, float],
    ) -> None:
        """prices: of a second of each machine type."""
        self._deploy = deploy
        self._store = store
        self._ledger = ledger
        self._prices = prices
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    async def make(self, request: DeployRequest, account: str) -> DeployPlan:
        """Return what the deployment would do and keep it for a confirmation.

        Raises: as `Deploy.deploy`; UsageError for a temporary app.
        """
        if request.ephemeral:
            raise UsageError("A temporary app needs no check.", fix="Leave out `--check`.")
        return await self._make(request, account, None)

    def shown(self, plan_id: str, account: str) -> DeployPlan:
        """Return a plan that waits, as it was shown, or the one that it has become. Raises: NotFoundError."""
        later = (id for id, one in self._waiting.items() if one.first == plan_id)
        return self._find(next(later, plan_id), account).shown

    def deployment_of(self, plan_id: str) -> str:
        """Return the id of the deployment that a plan led to, if it was confirmed."""
        return f"d-{plan_id.removeprefix('p-')}"

    async def again(self, plan_id: str, account: str, *, reset_scale: bool | None = None) -> DeployPlan:
        """Check the same request against what there is now; the plan of before is dropped.

        reset_scale: changes that choice. Raises: NotFoundError; as `make`.
        """
        before = self._find(plan_id, account)
        request = before.request
        if reset_scale is not None:
            request = request.model_copy(update={"reset_scale": reset_scale})
        made = await self._make(request, account, before.first)
        self._waiting.pop(plan_id, None)
        return made

    async def confirm(self, plan_id: str, account: str, author: Author) -> Outcome:
        """Begin the deployment that the plan showed.

        Raises: NotFoundError; ConflictError `deploy.plan_stale`; as `Deploy.deploy`.
        """
        waiting = self._find(plan_id, account)
        # Taken before the wait: a second click is told that it has been done.
        del self._waiting[plan_id]
        try:
            agreed = Agreed(waiting.mark, self.deployment_of(waiting.first))
            return await self._deploy.deploy(waiting.request, account, author, agreed=agreed)
        except Exception:
            # It can be checked again without shipping the class again.
            self._waiting[plan_id] = waiting
            raise

    def drop(self, plan_id: str, account: str) -> None:
        """Forget a plan. Raises: NotFoundError."""
        self._find(plan_id, account)
        del self._waiting[plan_id]

    def _find(self, plan_id: str, account: str) -> _Waiting:
        found = self._waiting.get(plan_id)
        if found is None or found.account != account or found.until < time.time():
            raise NotFoundError(
                "This plan waits no more: it was confirmed or dropped, an hour has passed, or the backend restarted.",
                fix="Check again.",
                code="deploy.plan_not_found",
            )
        return found

    async def _make(self, request: DeployRequest, account: str, first: str | None) -> DeployPlan:
        forecast = await self._deploy.forecast(request, account)
        plan_id = f"p-{secrets.token_hex(8)}"
        until = time.time() + LIFE_S
        shown = await self._shown(plan_id, forecast, account, until)
        self._waiting[plan_id] = _Waiting(first or plan_id, account, request, forecast.mark, until, shown)
        while len(self._waiting) > MOST:
            self._waiting.popitem(last=False)
        return shown

    async def _shown(self, plan_id: str, found: Forecast, account: str, until: float) -> DeployPlan:
        request = found.request
        before = await self._manifest(found.current)
        starts = self._setup_times(found, (account, found.app))
        runners = max(found.scale.min_concurrency or 0, found.scale.concurrency_buffer or 0)
        machine = (found.scale.machine_types or request.spec.machine_types)[0]
        return DeployPlan(
            plan_id=plan_id,
            expires_at=datetime.fromtimestamp(until, UTC),
            app_name=found.app,
            endpoint_id=f"{self._ledger.need(Account, account).nickname}/{found.app}",
            environment=split_alias(found.app)[1],
            is_required=bool(self._ledger.need(Account, account).deploy_check),
            changed=found.changed,
            production=_production(found),
            source=rules.source(request.spec.class_name, request.notebook, before, request.manifest),
            auth=found.auth,
            strategy=request.strategy,
            detach=request.detach,
            reset_scale=request.reset_scale,
            message=request.message,
            image=self._image(found),
            setup_s=round(statistics.median(starts), 3) if starts else None,
            setup_starts=len(starts),
            captures=rules.captures(before.captures if before else None, request.manifest.captures),
            settings=_settings(found),
            endpoints=request.spec.endpoints,
            idle_runners=runners,
            idle_machine=machine,
            keep_alive_s=found.scale.keep_alive or 0,
            idle_price_per_hour=runners * 3600 * self._prices.get(machine, 0.0),
            lacking=self._deploy.lacking(found),
        )

    async def _manifest(self, current: Revision | None) -> BundleManifest | None:
        if current is None:
            return None
        row = await self._store.read(lambda reader: reader.get(Bundle, current.bundle))
        return BundleManifest.model_validate_json(row.manifest_json) if row is not None else None

    def _setup_times(self, found: Forecast, key: AppKey) -> list[float]:
        """Return the last measured times of `setup()` of the revision that serves, in seconds."""
        if found.current is None:
            return []
        rows = [*self._ledger.live_of_app(key), *self._ledger.ended_of_app(key)]
        rows = [row for row in rows if row.revision == found.current.id and row.setup_at and row.ready_at]
        newest = sorted(rows, key=lambda row: row.created_at)[-_STARTS:]
        return [((row.ready_at or 0) - (row.setup_at or 0)) / 1e6 for row in newest]

    def _image(self, found: Forecast) -> PlannedImage:
        row = self._ledger.get(Image, found.build.hash)
        is_ready = row is not None and row.state == ImageState.READY
        return PlannedImage(
            hash=found.build.hash,
            is_cached=is_ready and not found.request.no_cache,
            size_bytes=row.size_bytes if row is not None else None,
            layers=found.request.spec.requirements,
            uses_cache=not found.request.no_cache,
        )


def _production(found: Forecast) -> Production | None:
    if found.alias is None or found.current is None:
        return None
    return Production(
        revision=found.current.id,
        author=found.current.author,
        created_at=datetime.fromtimestamp(found.current.created_at / 1e6, UTC),
        auth=AuthMode(found.alias.auth),
    )


def _settings(found: Forecast) -> list[PlannedSetting]:
    before, machines = None, None
    if found.alias is not None and found.current is not None:
        before = ScaleSpec.model_validate_json(found.alias.scale_json)
        machines = before.machine_types or AppSpec.model_validate_json(found.current.spec_json).machine_types
    return rules.settings(
        code=found.request.spec.scale,
        machine_types=found.request.spec.machine_types,
        before=before,
        machines_before=machines,
        after=found.scale,
    )
