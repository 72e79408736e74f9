"""The acts of an owner on apps: deploy, cancel, delete, stop a runner; each becomes one decision of the loop.

Rules: everything that can be refused is refused before anything is written; the bundle is stored first,
so that a full disk is told to the caller; a revision and its deployment begin in the same transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from fal_backend.domain import rollout
from fal_backend.domain.access import checked_mode
from fal_backend.domain.environments import unknown_environment
from fal_backend.domain.records import (
    Account,
    Alias,
    Deployment,
    Environment,
    Image,
    Revision,
    Session,
)
from fal_backend.domain.revision import (
    checked_annotations,
    checked_name,
    dev_alias,
    effective_auth,
    effective_scale,
    is_same,
)
from fal_backend.ports import Blobs, Builder, BuildSpec, OpClass, Store
from fal_backend.services.bundles import keep
from fal_backend.services.fleet import Fleet
from fal_backend.services.forecast import Agreed, Forecast, stale_plan
from fal_backend.services.images import image_row
from fal_backend.services.ledger import AppKey, Draft, Ledger
from fal_backend.services.nodes import Nodes
from fal_backend.services.reconcile import Reconcile
from fal_backend.services.rollouts import Rollouts
from fal_notebook.errors import AppError, BundleError, DeployError, NotFoundError, UsageError
from fal_notebook.wire import (
    AuthMode,
    BundleManifest,
    DeploymentState,
    DeployRequest,
    ScaleSpec,
    Strategy,
)
from fal_notebook.wire_secrets import MAIN, full_alias

__all__ = [
    "NOBODY",
    "Asker",
    "Author",
    "Deploy",
    "Outcome",
    "settled",
]

log = structlog.get_logger()

_ENDING_S = 2.0


@dataclass(frozen=True, slots=True)
class Author:
    """Whose key asked for something."""

    nickname: str | None = None
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request to deploy led to."""

    deployment: Deployment
    changed: bool


class Asker(Protocol):
    """Who asks, by key."""

    @property
    def key_account(self) -> str: ...
    @property
    def key_id(self) -> str: ...


NOBODY = Author()


@dataclass(frozen=True, slots=True)
class _Plan:
    """A checked request, ready to become rows."""

    request: DeployRequest
    account: str
    author: Author
    app: str
    session: str | None
    build: BuildSpec
    bundle: str
    annotations_json: str | None
    may_wait: bool
    """It may succeed before any runner has a place, or is only shown."""

    @property
    def key(self) -> AppKey:
        return (self.account, self.app)


class Deploy:
    """See the module."""

    def __init__(
        self,
        *,
        store: Store,
        ledger: Ledger,
        blobs: Blobs,
        builder: Builder,
        reconcile: Reconcile,
        rollouts: Rollouts,
        fleet: Fleet,
        nodes: Nodes,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._blobs = blobs
        self._builder = builder
        self._reconcile = reconcile
        self._rollouts = rollouts
        self._fleet = fleet
        self._nodes = nodes
        self.on_revision: Callable[[AppKey], None] = lambda key: None
        """Told of each app that got another revision."""
        self.named_in: Callable[[str, Path], Awaitable[str | None]] = _nobody_knows
        """(account, file): asked for the name of a secret whose value stands in a file."""

    async def forecast(self, request: DeployRequest, account: str, author: Author = NOBODY) -> Forecast:
        """Return what `deploy` would do with this request now, and do nothing.

        Raises: as `deploy`.
        """
        plan = self._plan(request, account, author, is_shown=True)
        await self._check_leak(request.manifest, account)
        alias = self._ledger.alias(plan.key)
        current = self._ledger.get(Revision, alias.revision) if alias is not None else None
        return self._judge(plan, alias, current, _now(), self._ledger.open_of_app(plan.key))

    def lacking(self, found: Forecast) -> str | None:
        """Return what no node has of what a forecast revision needs."""
        return self._nodes.lacking(found.request.spec, found.scale)

    async def deploy(
        self, request: DeployRequest, account: str, author: Author = NOBODY, *, agreed: Agreed | None = None
    ) -> Outcome:
        """Begin a deployment, or find that there is nothing to do.

        Raises: AppError, UsageError, DeployError, MachineError, BundleError, RequirementsError, NotFoundError,
        ConflictError `deploy.plan_stale`.
        """
        if agreed is None and not request.ephemeral and self._ledger.need(Account, account).deploy_check:
            raise DeployError(
                "Deployments of this account are shown and confirmed first.",
                fix="Deploy with --check.",
                code="deploy.check_required",
            )
        plan = self._plan(request, account, author)
        await self._check_leak(request.manifest, account)
        await self._store.write(lambda tx: keep(tx, plan.bundle, account, request.manifest), OpClass.ACCEPT)
        outcome = await self._reconcile.submit(lambda draft: self._begin(draft, plan, agreed))
        row = self._ledger.get(Deployment, outcome.deployment.id) or outcome.deployment
        if outcome.changed:
            self.on_revision(plan.key)
        log.info("deploy.begun", app=plan.app, deployment_id=row.id, changed=outcome.changed, state=row.state)
        return Outcome(row, outcome.changed)

    async def cancel(self, deployment_id: str, account: str) -> None:
        """Drop a deployment that has not switched; an ended one stays as it is. Raises: NotFoundError."""
        await self._reconcile.submit(lambda draft: self._cancel(draft, deployment_id, account))

    async def leave(self, deployment_id: str, account: str) -> None:
        """Tell whoever waits for a deployment that they need not; it goes on. Raises: NotFoundError."""
        await self._reconcile.submit(lambda draft: self._leave(draft, deployment_id, account))

    async def delete(self, app: str, account: str) -> str:
        """Delete an app, deployed or temporary, and return the revision it had.

        Its runners are usually gone when this returns; one that is slow to end is not waited for.
        Raises: NotFoundError.
        """
        key = (account, app)
        revision = await self._reconcile.submit(lambda draft: self.delete_in(draft, key, reason="deleted"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ENDING_S):
                while self._ledger.live_of_app(key):
                    await self._ledger.changed()
        return revision

    def delete_in(self, draft: Draft, key: AppKey, *, reason: str) -> str:
        """Delete an app and what is under way for it, as part of a larger decision."""
        alias = draft.alias(key)
        under_way = [row for row in draft.open_of_app(key) if rollout.is_before_switch(row)]
        if alias is None and not under_way:
            raise NotFoundError(f'There is no app "{key[1]}".', fix="`apps list` shows what there is.")
        for row in under_way:
            self._rollouts.apply(draft, row, rollout.Cancelled())
        revision = alias.revision if alias is not None else under_way[-1].revision
        if alias is not None:
            draft.delete(alias)
            draft.reasons[key] = reason
        data = {"reason": reason, "revision": revision}
        draft.emit(f"app/{key[1]}", "app.deleted", data, app=key[1], account=key[0])
        return revision

    # ---- checks --------------------------------------------------------------------------------------------
    def _plan(self, request: DeployRequest, account: str, author: Author, *, is_shown: bool = False) -> _Plan:
        spec, manifest = request.spec, request.manifest
        if not spec.endpoints:
            raise AppError(
                f"{spec.class_name} has no endpoint.",
                fix='Add `@fal.endpoint("/")` to a method.',
                code="app.no_endpoint",
            )
        name = checked_name(request.app_name or spec.app_name)
        session = self._session(request, account)
        if request.ephemeral:
            name = dev_alias(name, request.dev_suffix or secrets.token_hex(3))
        app = full_alias(name, self._checked_environment(account, request.environment))
        may_wait = is_shown or (request.strategy == Strategy.RECREATE and not request.ephemeral)
        self._nodes.check(spec, may_wait=may_wait)
        _check_detach(request)
        annotations_json = checked_annotations(request.annotations)
        build = self._builder.plan(spec.requirements, spec.python_version, manifest.versions)
        self._check_blobs(manifest)
        bundle = _bundle_id(account, manifest)
        return _Plan(request, account, author, app, session, build, bundle, annotations_json, may_wait)

    def _checked_environment(self, account: str, name: str) -> str:
        if name != MAIN and self._ledger.get(Environment, f"{account}/{name}") is None:
            raise unknown_environment(name, self._ledger.environments(account))
        return name

    def _session(self, request: DeployRequest, account: str) -> str | None:
        if not request.ephemeral:
            return None
        if request.session_id is None:
            raise UsageError("A temporary app needs a session that it belongs to.", code="usage.no_session")
        session = self._ledger.get(Session, request.session_id)
        if session is None or session.account != account:
            raise NotFoundError("The session has ended.", fix="Open a new one.", code="session.not_found")
        return session.id

    async def _check_leak(self, manifest: BundleManifest, account: str) -> None:
        """Refuse a bundle that holds a secret which the notebook that sent it did not know."""
        name = await self.named_in(account, self._blobs.path(manifest.payload_sha256))
        if name is not None:
            raise BundleError(
                f"The bundle holds the value of the secret `{name}`: whoever has it could read it.",
                fix=f'Read it on the runner with `os.environ["{name}"]`, in `setup()`.',
                code="bundle.secret_value",
                details={"secret": name},
            )

    def _check_blobs(self, manifest: BundleManifest) -> None:
        missing = [one for one in [manifest.payload_sha256, *manifest.buffers] if not self._blobs.has(one)]
        if missing:
            raise BundleError(
                f"{len(missing)} part(s) of the bundle were not uploaded.",
                fix="Upload them with `PUT /api/v1/blobs/{sha256}` first.",
                code="bundle.missing",
                details={"missing": missing},
            )

    # ---- decisions -----------------------------------------------------------------------------------------
    def _begin(self, draft: Draft, plan: _Plan, agreed: Agreed | None) -> Outcome:
        request = plan.request
        if plan.session is not None and draft.get(Session, plan.session) is None:
            raise NotFoundError("The session has ended.", code="session.not_found")
        self._check_environment_in(draft, plan)
        begun = draft.get(Deployment, agreed.deployment_id) if agreed is not None else None
        if begun is not None:
            return Outcome(begun, changed=True)  # agreed to twice
        alias = draft.alias(plan.key)
        current = draft.get(Revision, alias.revision) if alias is not None else None
        found = self._judge(plan, alias, current, draft.now, draft.open_of_app(plan.key))
        if agreed is not None and found.mark != agreed.mark:
            raise stale_plan(plan.app, current)
        if alias is not None and not found.changed:
            return Outcome(self._current(draft, plan.key, alias), changed=False)
        image = draft.get(Image, plan.build.hash)
        if image is None:
            draft.change(image_row(plan.build, draft.now))
        draft.change(found.revision)
        # Without an app before it there is nothing that could go on meanwhile. Source: fal, "Rollout Strategies".
        detach = request.detach and alias is not None
        id = agreed.deployment_id if agreed is not None else f"d-{secrets.token_hex(8)}"
        deployment = _deployment(id, found, plan, draft.next_at(plan.key), detach=detach)
        draft.change(deployment)
        return Outcome(deployment, changed=True)

    def _judge(
        self,
        plan: _Plan,
        alias: Alias | None,
        current: Revision | None,
        now: int,
        under_way: Iterable[Deployment],
    ) -> Forecast:
        """Return what a checked request leads to, given what there is."""
        request = plan.request
        scale = effective_scale(
            request.spec.scale, alias, ephemeral=request.ephemeral, reset=request.reset_scale
        )
        asked = effective_auth(request.auth, request.spec.app_auth, alias, ephemeral=request.ephemeral)
        auth = checked_mode(asked, self._ledger.need(Account, plan.account))
        self._nodes.check(request.spec, scale, may_wait=plan.may_wait)
        revision = _revision(plan, auth, scale, now, self._stamps(plan))
        is_asked = request.force or request.no_cache or request.ephemeral
        is_moving = any(rollout.is_before_switch(row) for row in under_way)
        changed = (
            alias is None
            or current is None
            or current.status == "failed"  # it has the callers all the same: this is another try
            or is_asked
            or is_moving
            or not is_same(alias, current, revision, auth, scale)
        )
        return Forecast(request, plan.app, plan.build, alias, current, revision, auth, scale, changed)

    def _check_environment_in(self, draft: Draft, plan: _Plan) -> None:
        """Refuse an environment that was deleted since the request was checked."""
        name = plan.request.environment
        if name != MAIN and draft.get(Environment, f"{plan.account}/{name}") is None:
            raise unknown_environment(name, [MAIN])

    def _stamps(self, plan: _Plan) -> str | None:
        return self._fleet.stamps_of(plan.account, plan.app, plan.request.spec.secrets)

    def _current(self, draft: Draft, key: AppKey, alias: Alias) -> Deployment:
        """Return the alias as a deployment that has been done."""
        latest = self._ledger.latest_of_app(key)
        if latest is not None and rollout.has_led_to(latest, alias.revision):
            return latest
        return settled(alias, alias.revision)

    def _cancel(self, draft: Draft, deployment_id: str, account: str) -> None:
        self._rollouts.apply(draft, self._known(draft, deployment_id, account), rollout.Cancelled())

    def _leave(self, draft: Draft, deployment_id: str, account: str) -> None:
        row = self._known(draft, deployment_id, account)
        data = {"deployment_id": row.id}
        draft.emit(f"deployment/{row.id}", "deployment.left", data, app=row.app, account=account)

    def _known(self, draft: Draft, deployment_id: str, account: str) -> Deployment:
        row = draft.get(Deployment, deployment_id)
        if row is None or row.account != account:
            raise NotFoundError(f"There is no open deployment {deployment_id}.", code="deploy.not_found")
        return row


def settled(alias: Alias, revision: str) -> Deployment:
    """Return a deployment that has been done, for a revision that an alias uses."""
    at = alias.switched_at
    return Deployment(
        id=f"d-{revision}",
        account=alias.account,
        app=alias.name,
        revision=revision,
        state=DeploymentState.DONE.value,
        strategy=Strategy.ROLLING.value,
        auth=alias.auth,
        scale_json=alias.scale_json,
        created_at=at,
        ended_at=at,
        phases_json=json.dumps({"build": [at, at, "cached"]}),
    )


async def _nobody_knows(account: str, path: Path) -> str | None:
    return None


def _bundle_id(account: str, manifest: BundleManifest) -> str:
    # The same class for other versions is another bundle: the runner checks them before it unpickles.
    parts = [
        account,
        manifest.identity,
        manifest.python_version,
        json.dumps(manifest.versions, sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _check_detach(request: DeployRequest) -> None:
    if request.detach and (request.strategy != Strategy.ROLLING or request.ephemeral):
        raise UsageError("Only a rolling deployment can be detached.", fix="Leave out `--detach`.")


def _revision(plan: _Plan, auth: AuthMode, scale: ScaleSpec, now: int, secrets_json: str | None) -> Revision:
    request = plan.request
    cell = request.manifest.cell
    return Revision(
        id=str(uuid.uuid4()),
        account=plan.account,
        app=plan.app,
        bundle=plan.bundle,
        image=plan.build.hash,
        spec_json=request.spec.model_dump_json(),
        created_at=now,
        status="new",
        message=request.message,
        notebook=request.notebook,
        cell_json=cell.model_dump_json() if cell is not None else None,
        author=plan.author.nickname,
        author_key=plan.author.key_id,
        annotations_json=plan.annotations_json,
        scale_json=scale.model_dump_json(),
        auth=auth.value,
        secrets_json=secrets_json,
    )


def _deployment(id: str, found: Forecast, plan: _Plan, now: int, *, detach: bool) -> Deployment:
    return Deployment(
        id=id,
        account=plan.account,
        app=plan.app,
        revision=found.revision.id,
        state=DeploymentState.BUILDING.value,
        strategy=(Strategy.ROLLING if plan.request.ephemeral else plan.request.strategy).value,
        auth=found.auth.value,
        scale_json=found.scale.model_dump_json(),
        created_at=now,
        session=plan.session,
        previous=found.alias.revision if found.alias is not None else None,
        no_cache=int(plan.request.no_cache),
        detach=1 if detach else None,
        author=plan.author.nickname,
    )


def _now() -> int:
    return time.time_ns() // 1000
