"""Rows as people see them: pure functions from records to the models of the wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_jsonable_python

from fal_backend.domain.records import Deployment as DeploymentRow
from fal_backend.domain.records import Image, Runner, RunnerPhase
from fal_backend.domain.rollout import PHASES, phases
from fal_notebook.wire import (
    Deployment,
    DeploymentPhase,
    ErrorBody,
    ImageInfo,
    PhaseState,
    RunnerInfo,
    RunnerState,
    Urls,
)
from fal_notebook.wire_secrets import split_alias

__all__ = ["deployment_data", "deployment_view", "error_of", "moment", "runner_data", "runner_view", "urls"]

_SHOWN = {
    RunnerPhase.PENDING: RunnerState.PENDING,
    RunnerPhase.STARTING: RunnerState.PENDING,
    RunnerPhase.SETUP: RunnerState.SETUP,
    RunnerPhase.READY: RunnerState.IDLE,
    RunnerPhase.DRAINING: RunnerState.DRAINING,
    RunnerPhase.STOPPING: RunnerState.TERMINATING,
    RunnerPhase.GONE: RunnerState.TERMINATED,
}


def moment(micros: int) -> datetime:
    """Return microseconds since the epoch as an aware time."""
    return datetime.fromtimestamp(micros / 1e6, UTC)


def error_of(error_json: str | None) -> ErrorBody | None:
    """Return a stored error."""
    return ErrorBody.model_validate_json(error_json) if error_json else None


def urls(base: str, owner: str, alias: str) -> Urls:
    """Return where an app is called, on this base URL."""
    base = base.rstrip("/")
    return Urls(
        run=f"{base}/run/{owner}/{alias}",
        queue=f"{base}/queue/{owner}/{alias}",
        playground=f"{base}/playground/{owner}/{alias}",
    )


def runner_state(row: Runner, *, inflight: int = 0, is_backing_off: bool = False) -> RunnerState:
    """Return a runner's state in fal's words."""
    phase = RunnerPhase(row.phase)
    if phase == RunnerPhase.READY and inflight:
        return RunnerState.RUNNING
    if phase == RunnerPhase.GONE and is_backing_off:
        return RunnerState.CRASH_BACKOFF
    return _SHOWN[phase]


def runner_data(row: Runner) -> dict[str, Any]:
    """Return what an event says of a runner."""
    data: dict[str, Any] = {
        "runner_id": row.id,
        "revision": row.revision,
        "state": runner_state(row).value,
        "machine_type": row.machine_type,
        "pid": row.pid,
        "start_kind": row.start_kind,
        "phases": _runner_phases(row),
    }
    if row.reason:
        data["reason"] = row.reason
    if row.error_json:
        data["error"] = json.loads(row.error_json)
    return data


def runner_view(
    row: Runner,
    now: int,
    *,
    inflight: int = 0,
    is_backing_off: bool = False,
    expires_s: float | None = None,
    stale: Sequence[str] = (),
) -> RunnerInfo:
    """Return a runner as `runners list` shows it."""
    end = row.ended_at or now
    return RunnerInfo(
        runner_id=row.id,
        alias=row.app,
        revision=row.revision,
        state=runner_state(row, inflight=inflight, is_backing_off=is_backing_off),
        machine_type=row.machine_type,
        in_flight_requests=inflight,
        uptime_seconds=round((end - row.ready_at) / 1e6, 3) if row.ready_at else 0,
        expiration_countdown=expires_s,
        replacement="DID_REPLACE" if row.replaced else "NO_REPLACE",
        node=row.node,
        pid=row.pid,
        start_kind="fork" if row.start_kind == "fork" else "spawn" if row.start_kind else None,
        start_reason=row.start_reason,
        sandbox=row.tier or "",
        phases=_runner_phases(row),
        started_at=moment(row.created_at),
        ended_at=moment(row.ended_at) if row.ended_at else None,
        reason=row.reason,
        error=error_of(row.error_json),
        stale_secrets=list(stale),
    )


def deployment_phases(row: DeploymentRow) -> list[DeploymentPhase]:
    """Return a deployment's track, all four steps in order."""
    track = phases(row)
    steps = []
    for name in PHASES:
        began, ended, state = track.get(name, [0, None, PhaseState.NEXT])
        seconds = None if ended is None else round((ended - began) / 1e6, 3)
        at = moment(began) if name in track else None
        fields = {"name": name, "state": state, "began_at": at, "duration_s": seconds}
        steps.append(DeploymentPhase.model_validate(fields))
    return steps


def _course(row: DeploymentRow) -> dict[str, Any]:
    """Return how far a deployment is, as view and event both say it."""
    return {
        "deployment_id": row.id,
        "revision": row.revision,
        "state": row.state,
        "kind": row.kind or "deploy",
        "strategy": row.strategy,
        "detach": bool(row.detach),
        "phases": deployment_phases(row),
        "previous": row.previous,
        "runner_id": row.runner,
        "calls": row.calls,
        "failed_calls": row.failed_calls,
        "created_at": moment(row.created_at),
        "switched_at": moment(row.switched_at) if row.switched_at else None,
        "ended_at": moment(row.ended_at) if row.ended_at else None,
    }


def deployment_data(row: DeploymentRow) -> dict[str, Any]:
    """Return what an event says of a deployment."""
    data: dict[str, Any] = to_jsonable_python(_course(row))
    if row.error_json:
        data["error"] = json.loads(row.error_json)
    return data


def deployment_view(
    row: DeploymentRow, *, owner: str, base: str, image: Image | None, event: int, changed: bool = True
) -> Deployment:
    """Return a deployment as its owner sees it."""
    build = phases(row).get("build", [0, None, ""])[2]
    info = None
    if image is not None:
        info = ImageInfo(hash=image.id, cached=build == PhaseState.CACHED, size_bytes=image.size_bytes)
    return Deployment.model_validate(
        _course(row)
        | {
            "app_name": row.app,
            "endpoint_id": f"{owner}/{row.app}",
            "environment": split_alias(row.app)[1],
            "changed": changed,
            "ephemeral": row.session is not None,
            "auth": row.auth,
            "image": info,
            "error": error_of(row.error_json),
            "urls": urls(base, owner, row.app),
            "event": event,
        }
    )


def _runner_phases(row: Runner) -> dict[str, float]:
    spans = {"pull": 0.0}
    if row.setup_at:
        spans["start"] = round((row.setup_at - row.created_at) / 1e6, 3)
    if row.setup_at and row.ready_at:
        spans["setup"] = round((row.ready_at - row.setup_at) / 1e6, 3)
    return spans
