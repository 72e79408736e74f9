"""Results as one JSON document each, the shapes that programs rely on; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from fal_notebook.commands.results import (
    AppDeleted,
    AppRestarted,
    AppScaled,
    AppSimulated,
    AppsListed,
    Checked,
    Diagnosed,
    EnvironmentsListed,
    Exports,
    LinesShown,
    MachinesListed,
    Planned,
    ProfilesListed,
    ProgramEnded,
    QueueFlushed,
    QueueSized,
    RequestsListed,
    Result,
    RevisionDeleted,
    RevisionDiffed,
    RevisionSet,
    RevisionShown,
    RevisionsListed,
    RunnersListed,
    RunnerStopped,
    SecretsListed,
    Served,
    Shipped,
    Stopped,
    Told,
    Versions,
)
from fal_notebook.commands.results_access import AccessResult
from fal_notebook.errors import FalError
from fal_notebook.profiles import Saved
from fal_notebook.render import access
from fal_notebook.wire import Deployment, ErrorBody

__all__ = ["document", "error_document"]


def document(result: Result) -> dict[str, Any]:
    """Return a result as a JSON-compatible object."""
    if isinstance(result, AccessResult):
        return access.document(result)
    return _SHAPES[type(result)](result)


def error_document(caught: FalError) -> dict[str, Any]:
    """Return an error as the one document of a command that failed."""
    return {"error": _listed([ErrorBody.model_validate(caught.to_dict())])[0]}


def _listed(models: Sequence[BaseModel]) -> list[dict[str, Any]]:
    return [model.model_dump(mode="json") for model in models]


def _shipped(result: Shipped) -> dict[str, Any]:
    deployment = result.deployment
    image = deployment.image
    found: dict[str, Any] = {
        "revision": deployment.revision,
        "app_name": deployment.app_name,
        "status": _status(deployment),
        "changed": deployment.changed,
        "endpoint_id": deployment.endpoint_id,
        "environment": deployment.environment,
        "urls": deployment.urls.model_dump(),
        "image": {"hash": image.hash, "cached": image.cached} if image else None,
    }
    if deployment.ephemeral:
        found["ephemeral"] = True
    if result.warnings:
        found["warnings"] = list(result.warnings)
    if result.plan is not None:
        found["plan"] = result.plan.model_dump(mode="json")
    return found


def _status(deployment: Deployment) -> str:
    """Return fal's word for how a deployment ended."""
    if deployment.is_success:
        return "deployed"
    return str(deployment.state)


def _set(result: RevisionSet) -> dict[str, Any]:
    deployment = result.deployment
    return {
        "revision": deployment.revision,
        "app_name": deployment.app_name,
        "status": _status(deployment),
        "changed": deployment.changed,
        "percent": result.percent,
    }


def _checked(result: Checked) -> dict[str, Any]:
    return {
        "app_name": result.spec.app_name,
        "spec": result.spec.model_dump(mode="json"),
        "bundle": result.manifest.model_dump(mode="json", exclude={"source", "sources"}),
        "warnings": _listed(result.warnings),
    }


def _profile(one: Saved, used: str) -> dict[str, Any]:
    """Return a profile as fal lists it, with where it leads."""
    settings = [name for name, is_there in (("host", one.host), ("key", one.key)) if is_there]
    key_id = one.key.key_id if one.key is not None else None
    return {
        "profile": one.name,
        "is_set": one.name == used,
        "settings": settings,
        "host": one.host,
        "key_id": key_id,
    }


def _served(result: Served) -> dict[str, Any]:
    return {
        "url": result.url,
        "tls_url": result.tls_url,
        "home": result.home,
        "pid": result.pid,
        "backend_pid": result.backend_pid,
    }


_SHAPES: dict[type, Callable[[Any], dict[str, Any]]] = {
    Shipped: _shipped,
    Planned: lambda result: {
        "plan": result.plan.model_dump(mode="json"),
        "triggered_by": result.triggered_by,
    },
    Checked: _checked,
    Served: _served,
    Exports: lambda result: dict(result.values),
    AppsListed: lambda result: {"apps": _listed(result.apps)},
    RequestsListed: lambda result: {"requests": _listed(result.requests)},
    RunnersListed: lambda result: {"runners": _listed(result.runners)},
    MachinesListed: lambda result: {"machines": _listed(result.machines)},
    LinesShown: lambda result: {"logs": _listed(result.lines)},
    Stopped: lambda result: {"app": result.app, "stopped": True},
    AppDeleted: lambda result: {"app": result.app, "revision": result.revision, "deleted": True},
    RunnerStopped: lambda result: {
        "runner_id": result.runner_id,
        "stopping": True,
        "killed": result.killed,
        "replaced": result.replaced,
    },
    ProgramEnded: asdict,
    RevisionsListed: lambda result: result.page.model_dump(mode="json"),
    RevisionShown: lambda result: result.revision.model_dump(mode="json"),
    RevisionDiffed: lambda result: result.diff.model_dump(mode="json"),
    RevisionSet: _set,
    RevisionDeleted: lambda result: {"revision": result.revision, "deleted": True},
    AppSimulated: lambda result: result.result.model_dump(mode="json"),
    AppScaled: lambda result: result.app.model_dump(
        mode="json", exclude={"openapi", "captures", "runners", "deployment", "endpoints"}
    ),
    AppRestarted: lambda result: result.restarted.model_dump(mode="json"),
    QueueSized: lambda result: result.size.model_dump(mode="json", exclude_none=True),
    QueueFlushed: lambda result: {"app": result.app, "cancelled": result.cancelled},
    Diagnosed: lambda result: {
        "healthy": result.is_healthy,
        "checks": [asdict(check) for check in result.checks],
    },
    Versions: asdict,
    EnvironmentsListed: lambda result: {"environments": _listed(result.environments)},
    SecretsListed: lambda result: {"secrets": _listed(result.secrets)},
    ProfilesListed: lambda result: {"profiles": [_profile(one, result.used) for one in result.profiles]},
    Told: lambda result: dict(result.facts),
}
