"""What a card says, worked out once for text and HTML: headline, steps, facts, what went wrong; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fal_notebook.commands.results import Progress, Stage
from fal_notebook.render.words import count, seconds, size
from fal_notebook.wire import AuthMode, Capture, Deployment, DeploymentPhase, DeploymentState, PhaseState

__all__ = ["Face", "Kind", "Step", "curl", "face", "fact_lines", "steps"]


class Kind(StrEnum):
    """Status kinds of the interface."""

    OK = "ok"
    BUSY = "busy"
    WARN = "warn"
    ERR = "err"
    IDLE = "idle"
    OFF = "off"
    OFFLINE = "offline"


_DOING = {"build": "Building", "start": "Starting", "setup": "Setup", "ready": "Starting"}


@dataclass(frozen=True)
class Face:
    """The head of a card."""

    kind: Kind
    word: str
    """State in one or two words."""
    remark: str = ""


@dataclass(frozen=True)
class Step:
    """One mark of the track."""

    name: str
    state: PhaseState
    note: str = ""


_DENIED = frozenset({"auth.forbidden", "auth.shared_disabled"})
"""The backend knows who asks, and refuses."""


def face(progress: Progress) -> Face:
    """Return state and remark of the card."""
    match progress.stage:
        case Stage.CHECKING:
            return Face(Kind.BUSY, "Checking", "before anything is sent")
        case Stage.NEEDS_FIX if progress.problems and progress.problems[0].code in _DENIED:
            return Face(Kind.WARN, "Not allowed", "nothing was deployed")
        case Stage.NEEDS_FIX if progress.problems and progress.problems[0].code.startswith(
            ("backend.", "auth.")
        ):
            return Face(Kind.OFFLINE, "Not connected", "nothing was sent")
        case Stage.NEEDS_FIX:
            return Face(Kind.WARN, "Needs a fix", "nothing was deployed")
        case Stage.CHECKED:
            return Face(Kind.OK, "Checked", "nothing was sent (--dry)")
        case Stage.STOPPED:
            return Face(Kind.OFF, "Stopped", "interrupted; nothing is left of it")
        case Stage.SENT:
            return _sent_face(progress)


def _sent_face(progress: Progress) -> Face:
    deployment = progress.deployment
    if deployment is None:
        return Face(Kind.BUSY, "Sending")
    if progress.problems:
        return _failed_face(progress, deployment)
    if deployment.is_success:
        return _ready_face(deployment)
    if deployment.state is DeploymentState.CANCELLED:
        return Face(Kind.OFF, "Cancelled")
    if deployment.is_final:
        return Face(Kind.ERR, "Failed")
    if deployment.state is DeploymentState.ROLLING_OUT:
        return Face(Kind.BUSY, "Rolling out", f"revision {deployment.revision} takes over as it starts")
    if progress.is_left:
        return Face(Kind.BUSY, "Deploying", "detached: it goes on without this cell")
    now = next((phase for phase in progress.phases() if phase.state is PhaseState.NOW), None)
    word = _DOING[now.name] if now else "Starting"
    image = f"image {deployment.image.hash[:8]}" if deployment.image and word == "Building" else ""
    return Face(Kind.BUSY, word, image or seconds(progress.elapsed_s))


def _ready_face(deployment: Deployment) -> Face:
    if deployment.ephemeral:
        return Face(Kind.OK, "Ready", "temporary, ends with this session")
    if not deployment.changed:
        return Face(Kind.OK, "Already deployed", f"revision {deployment.revision}")
    return Face(Kind.OK, "Deployed", f"revision {deployment.revision}")


def _failed_face(progress: Progress, deployment: Deployment) -> Face:
    failed = next((phase for phase in deployment.phases if phase.state is PhaseState.FAILED), None)
    if deployment.state is DeploymentState.CANCELLED:
        return Face(Kind.OFF, "Cancelled")
    if failed is None:
        return Face(Kind.ERR, "Failed")
    runner = progress.problems[0].details.get("runner_id")
    after = f"after {seconds(failed.duration_s)}" if failed.duration_s is not None else ""
    return Face(
        Kind.ERR,
        f"{failed.name.capitalize()} failed",
        " ".join(p for p in (after, f"on runner {runner}" if runner else "") if p),
    )


def steps(progress: Progress) -> list[Step]:
    """Return the track: Check, Build, Start, Setup."""
    checked = PhaseState.DONE if progress.check_s is not None else PhaseState.NOW
    if progress.stage is Stage.NEEDS_FIX and progress.check_s is None:
        checked = PhaseState.FAILED
    note = seconds(progress.check_s) if progress.check_s is not None else ""
    return [
        Step("Check", checked, note),
        *(_step(phase) for phase in progress.phases() if phase.name != "ready"),
    ]


def _step(phase: DeploymentPhase) -> Step:
    if phase.state is PhaseState.CACHED:
        return Step(phase.name.capitalize(), phase.state, "cached")
    took = seconds(phase.duration_s) if phase.duration_s is not None else ""
    return Step(phase.name.capitalize(), phase.state, took)


def fact_lines(progress: Progress) -> list[tuple[str, str]]:
    """Return what is known of the app: endpoints, machine, requirements, what is sent along."""
    lines: list[tuple[str, str]] = []
    spec, manifest = progress.spec, progress.manifest
    if spec is not None:
        lines.append(
            (
                "Endpoints" if len(spec.endpoints) > 1 else "Endpoint",
                ", ".join(f"{'POST' if e.protocol == 'http' else 'WS'} {e.path}" for e in spec.endpoints),
            )
        )
        lines.append(("Machine", ", ".join(spec.machine_types)))
        required = [line for layer in spec.requirements for line in layer]
        if required:
            lines.append(("Requires", " ".join(required)))
    if manifest is not None:
        # Constants of a few bytes are not news; what is big, or came from another cell, is.
        shown = [c for c in manifest.captures if c.size_bytes >= 1000 or c.cell is not None]
        if shown:
            lines.append(("Captured", "; ".join(_capture(c) for c in shown)))
        if manifest.local_modules:
            sent = [
                f"{m.name} ({count(m.files, 'file')}, {size(m.size_bytes)})" for m in manifest.local_modules
            ]
            lines.append(("Sent along", ", ".join(sent)))
    return lines


def _capture(capture: Capture) -> str:
    kind = capture.kind.rpartition(".")[2]
    count_ = capture.cell.execution_count if capture.cell else None
    source = f", from In [{count_}]" if count_ is not None else ""
    return f"{capture.name} {kind}, {size(capture.size_bytes)}{source}"


def curl(progress: Progress, deployment: Deployment) -> str:
    """Return a call of the first endpoint as curl; the key stays in a variable of the shell."""
    path = progress.spec.endpoints[0].path if progress.spec and progress.spec.endpoints else "/"
    url = deployment.urls.run + ("" if path == "/" else path)
    body = json.dumps(_example(progress.spec.openapi if progress.spec else "{}", path))
    key = "" if deployment.auth is AuthMode.PUBLIC else ' -H "Authorization: Key $FAL_KEY"'
    return f"curl -X POST {url}{key} -H 'Content-Type: application/json' -d '{body}'"


def _example(openapi: str, path: str) -> dict[str, Any]:
    document = json.loads(openapi)
    operation = document.get("paths", {}).get(path, {}).get("post", {})
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = _resolved(content.get("schema", {}), document)
    required = schema.get("required", [])
    fields = {name: _resolved(part, document) for name, part in schema.get("properties", {}).items()}
    return {name: _value(part) for name, part in fields.items() if name in required or "default" in part}


def _resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    found: Any = schema
    ref = schema.get("$ref")
    if isinstance(ref, str):
        found = document
        for part in ref.removeprefix("#/").split("/"):
            found = found.get(part, {})
    return found if isinstance(found, dict) else {}


def _value(schema: dict[str, Any]) -> Any:
    if "default" in schema:
        return schema["default"]
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("enum"):
        return schema["enum"][0]
    kinds: dict[str, Any] = {
        "integer": schema.get("minimum", 0),
        "number": schema.get("minimum", 0),
        "boolean": False,
        "array": [],
        "object": {},
    }
    return kinds.get(str(schema.get("type")), "")
