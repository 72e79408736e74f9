"""From an App class to a deployment: check, freeze, send; shared by `run`, `deploy` and `%%fal_app`.

Rules: every mistake that can be known here is told before anything is sent; an interrupt before that
leaves nothing; each step is reported, so that a card can show it.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

from fal_notebook import bundle, lint, schema
from fal_notebook.app import check_built
from fal_notebook.client import Client
from fal_notebook.commands.check import REQUIRED, confirmed
from fal_notebook.commands.context import Context, Target
from fal_notebook.commands.follow import Follower
from fal_notebook.commands.reference import as_main
from fal_notebook.commands.registry import nearest
from fal_notebook.commands.results import Checked, Planned, Progress, Shipped, Stage
from fal_notebook.errors import AuthError, DeployError, FalError, MachineError, NotFoundError, Where
from fal_notebook.leaks import local_names
from fal_notebook.origin import attribute_where
from fal_notebook.survey import Survey, survey
from fal_notebook.wire import AppSpec, AuthMode, Deployment, DeployRequest, ErrorBody, Strategy
from fal_notebook.wire_secrets import MAIN

__all__ = ["Order", "ship"]

ANSWER_S = 10.0
"""Longest wait, after an interrupt, for the answer that says what has begun."""


@dataclass(frozen=True)
class Order:
    """What to ship and how."""

    target: Target
    kind: str
    """run (temporary) or deploy."""
    app_name: str | None = None
    auth: AuthMode | None = None
    machine_type: str | None = None
    no_cache: bool = False
    allow_large: bool = False
    dry: bool = False
    strategy: Strategy = Strategy.ROLLING
    message: str | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    detach: bool = False
    reset_scale: bool = False
    force: bool = False
    check: str | None = None
    """flag or env: what asks that the plan is shown and confirmed first."""
    yes: bool = False
    """The plan is shown and not asked for."""
    environment: str = MAIN


def ship(order: Order, ctx: Context) -> Shipped | Checked | Planned:
    """Check the class, send it and wait until it is ready; reports each step to `ctx.report`.

    An interrupt cancels a temporary app and leaves a deployment running.
    Raises: FalError, after the card was told.
    """
    return _Shipment(order, ctx).go()


class _Shipment:
    def __init__(self, order: Order, ctx: Context) -> None:
        self.order = order
        self.ctx = ctx
        cls = order.target.cls
        title = order.app_name or getattr(cls, "app_name", None) or cls.__name__
        self.progress = Progress(title=str(title), kind=order.kind)
        self.warnings: list[ErrorBody] = []
        self.planned: Planned | None = None
        self.act: futures.Future[Deployment] | None = None
        """What was asked of the backend last: an interrupt leaves it under way."""

    def go(self) -> Shipped | Checked | Planned:
        client: Client | None = None
        try:
            with as_main(self.order.target.module):
                frozen, spec = self._check()
            if self.order.dry:
                self._show(stage=Stage.CHECKED)
                return Checked(spec, frozen.manifest, tuple(self.warnings))
            client = self.ctx.connect()
            self._check_machines(client, spec)
            self._check_secrets(client, spec, frozen.manifest.source)
            deployment = self._send(client, frozen, spec)
            if deployment is None:
                assert self.planned is not None, "only a plan keeps a shipment here"
                return self.planned
        except MachineError as error:
            # The backend knows what its nodes have, and not where it was asked for.
            error.where = error.where or self._machine_where()
            self._fail(error)
            raise
        except FalError as error:
            self._fail(error)
            raise
        except KeyboardInterrupt:
            raise self._interrupted(client) from None
        final, progress = self._follower(client, deployment).until_final()
        if final.ephemeral:
            self.ctx.aliases[self.order.target.cls.__name__] = final.app_name
        plan = self.planned.plan if self.planned is not None else None
        return Shipped(final, progress, tuple(warning.message for warning in self.warnings), plan)

    def _check(self) -> tuple[bundle.Frozen, AppSpec]:
        started = time.monotonic()
        self._show()
        target = self.order.target
        spec = schema.describe(target.cls, source=target.source, provenance=target.provenance)
        if self.order.machine_type:
            wanted = [name.strip() for name in self.order.machine_type.split(",") if name.strip()]
            spec = spec.model_copy(update={"machine_types": wanted})
        self._show(title=self.order.app_name or spec.app_name, spec=spec)
        check_built(target.cls, provenance=target.provenance)
        found = survey(target.cls, provenance=target.provenance)
        self._lint(spec, found)
        frozen = bundle.freeze(
            target.cls, provenance=target.provenance, allow_large=self.order.allow_large, found=found
        )
        self._show(manifest=frozen.manifest, check_s=time.monotonic() - started)
        return frozen, spec

    def _check_secrets(self, client: Client, spec: AppSpec, source: str) -> None:
        """Say which secrets the App's runners would lack: those it names, and variables that are set only here."""
        local = local_names(source)
        if not spec.secrets and not local:
            return
        environment = self.order.environment
        try:
            known = {one.name for one in client.secrets(environment)}
        except AuthError:
            # A key that may deploy need not be one that may see secrets.
            return
        command = f"{self.ctx.prefix} secrets set"
        tail = f" --env {environment}`." if environment != MAIN else "`."
        for name in [name for name in spec.secrets or () if name not in known]:
            self.ctx.say(f"Secret `{name}` is not set in environment {environment}: `{command} {name}{tail}")
        for name in [name for name in local if name not in known and name not in (spec.secrets or ())]:
            self.ctx.say(
                f"`{name}` is set here, but is no secret of environment {environment}: runners do not have it. "
                f"`{command} {name} --from-env{tail}"
            )

    def _lint(self, spec: AppSpec, found: Survey) -> None:
        findings = lint.lint(
            self.order.target.cls, spec, provenance=self.order.target.provenance, found=found
        )
        errors = [finding.error for finding in findings if finding.severity == "error"]
        for finding in findings:
            if finding.severity == "warn":
                self.warnings.append(ErrorBody.model_validate(finding.error.to_dict()))
            if finding.severity != "error":
                self.ctx.say(str(finding.error))
        if errors:
            raise _joined(errors)

    def _check_machines(self, client: Client, spec: AppSpec) -> None:
        machines = {machine.name: machine for machine in client.machines()}
        unknown = [name for name in spec.machine_types if name not in machines]
        here = [name for name, machine in machines.items() if machine.available]
        where = self._machine_where()
        if unknown:
            like = nearest(unknown[0], list(machines))
            fix = f"Did you mean `{like[0]}`? " if like else ""
            raise MachineError(
                f"There is no machine type `{unknown[0]}`.",
                fix=f"{fix}Available: {', '.join(here)}.",
                where=where,
            )

    def _machine_where(self) -> Where:
        if self.order.machine_type:
            return Where(name="--machine-type")
        target = self.order.target
        return attribute_where(target.cls, "machine_type", source=target.source, provenance=target.provenance)

    def _send(self, client: Client, frozen: bundle.Frozen, spec: AppSpec) -> Deployment | None:
        """Return the deployment that has begun; None: its plan waits for a word."""
        uploaded = client.upload_all([frozen.payload, *frozen.buffers])
        self._show(upload=uploaded, instance=client.identity.instance_id)
        request = self._request(client, frozen, spec)
        if self.order.check is not None:
            return self._confirmed(client, request, self.order.check)
        try:
            return self._post(client, client.core.deploy(request))
        except NotFoundError as error:
            if not error.code.startswith("session"):
                raise
            client.forget_session()
            return self._post(client, client.core.deploy(self._request(client, frozen, spec)))
        except FalError as error:
            if error.code != REQUIRED:
                raise
            return self._confirmed(client, request, "admin")

    def _confirmed(self, client: Client, request: DeployRequest, triggered_by: str) -> Deployment | None:
        self.planned, plan_id = confirmed(
            client, request, self.ctx, self.progress, triggered_by=triggered_by, yes=self.order.yes
        )
        return None if plan_id is None else self._post(client, client.core.confirm_plan(plan_id))

    def _post(self, client: Client, asked: Coroutine[Any, Any, Deployment]) -> Deployment:
        self.act = client.loop.start(asked)
        return client.loop.wait(self.act)

    def _follower(self, client: Client, deployment: Deployment) -> Follower:
        return Follower(client, self.ctx, self.progress, deployment, detach=self.order.detach)

    def _request(self, client: Client, frozen: bundle.Frozen, spec: AppSpec) -> DeployRequest:
        order = self.order
        is_run = order.kind == "run"
        return DeployRequest(
            spec=spec,
            manifest=frozen.manifest,
            app_name=order.app_name,
            environment=order.environment,
            auth=order.auth,
            strategy=order.strategy,
            ephemeral=is_run,
            session_id=client.session(self.ctx.session()) if is_run else None,
            dev_suffix=self.ctx.dev_suffix(order.target.cls.__name__) if is_run else None,
            no_cache=order.no_cache,
            force=order.force,
            message=order.message,
            annotations=order.annotations,
            detach=order.detach,
            reset_scale=order.reset_scale,
            notebook=self.ctx.notebook,
        )

    def _show(self, **changes: Any) -> None:
        self.progress = self.progress.with_(**changes)
        self.ctx.report(self.progress)

    def _interrupted(self, client: Client | None) -> FalError:
        # It may have been accepted already: then it goes on, or, a temporary app, must leave nothing.
        deployment = _answered(self.act)
        if client is not None and deployment is not None:
            return self._follower(client, deployment).interrupted()
        self._show(stage=Stage.STOPPED)
        title = self.progress.title
        if self.order.kind == "run":
            message, fix = (
                f"Interrupted before `{title}` was sent; nothing of it is left.",
                "Run it again when you want it.",
            )
        else:
            message, fix = (
                f"Interrupted while `{title}` was sent.",
                f"See whether it arrived: `{self.ctx.prefix} apps list`.",
            )
        return DeployError(message, fix=fix, code="deploy.cancelled")

    def _fail(self, error: FalError) -> None:
        bodies = [ErrorBody.model_validate(error.to_dict())]
        bodies += [ErrorBody.model_validate(other) for other in error.details.get("also", [])]
        self._show(stage=Stage.NEEDS_FIX, problems=tuple(bodies))


def _joined(errors: Sequence[FalError]) -> FalError:
    """Return the first error, which carries the others as facts."""
    first = errors[0]
    if len(errors) > 1:
        first.details = first.details | {"also": [other.to_dict() for other in errors[1:]]}
    return first


def _answered(act: futures.Future[Deployment] | None) -> Deployment | None:
    """Return the deployment that the backend began, if it says so in time."""
    if act is None:
        return None
    try:
        return act.result(timeout=ANSWER_S)
    except (FalError, futures.CancelledError, TimeoutError):
        return None
