"""Results as text, HTML, JSON and notebook data; nothing else formats output. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from shlex import quote
from typing import Any

from fal_notebook.commands.results import (
    AppDeleted,
    AppRestarted,
    AppScaled,
    AppSimulated,
    Checked,
    Exports,
    LinesShown,
    Planned,
    ProgramEnded,
    Progress,
    QueueFlushed,
    QueueSized,
    Result,
    RevisionDeleted,
    RevisionDiffed,
    RevisionSet,
    RevisionShown,
    RunnerStopped,
    Served,
    Shipped,
    Stage,
    Stopped,
    Told,
    Versions,
)
from fal_notebook.commands.results_access import AccessResult
from fal_notebook.render import access as _access
from fal_notebook.render import html as _html
from fal_notebook.render import plan as _plan
from fal_notebook.render import revisions as _revisions
from fal_notebook.render import simulation as _simulation
from fal_notebook.render import text as _text
from fal_notebook.render.document import document, error_document
from fal_notebook.render.tables import SPARE, rows_of
from fal_notebook.render.words import size
from fal_notebook.wire import MIME_TYPE

__all__ = [
    "bundle",
    "card_bundle",
    "document",
    "error_document",
    "error_text",
    "html",
    "log_line",
    "plan_bundle",
    "status_line",
    "text",
]

log_line = _text.log_line
status_line = _text.status_line
error_text = _text.error


def text(result: Result, width: int | None = None) -> str:
    """Return a result for a terminal; tables are folded, and lose columns, where they are wider than it."""
    say = _WORDS.get(type(result))
    if say is not None:
        return say(result)
    listed = _listed(result)
    if listed is None:
        return _access.said(result) if isinstance(result, AccessResult) else ""
    head, rows, empty = listed
    return _text.table(head, rows, width, SPARE) if rows else empty


def _listed(result: Any) -> tuple[Sequence[str], list[tuple[str, ...]], str] | None:
    """Return head, rows, and what to say without any; None for what is no list."""
    return _access.rows_of(result) if isinstance(result, AccessResult) else rows_of(result)


def html(result: Result) -> str:
    """Return a result as static HTML."""
    match result:
        case Shipped():
            return _html.card(result.progress)
        case Planned():
            return _plan.html(result)
        case _:
            listed = None if type(result) in _WORDS else _listed(result)
            if listed is None or not listed[1]:
                return _html.pre(text(result))
            return _html.table(listed[0], listed[1])


def bundle(result: Result) -> dict[str, Any]:
    """Return a result for a notebook's output."""
    return {"text/plain": text(result), "text/html": html(result)}


def plan_bundle(
    planned: Planned, saved_at: datetime | None = None, *, command: str = "", goes_on: bool = False
) -> dict[str, Any]:
    """Return a plan for a notebook's output; our front end gives it its buttons.

    command: what does the same without them, in a script. goes_on: its deployment has a card of its own.
    """
    plan = planned.plan
    return {
        MIME_TYPE: {
            "v": 1,
            "kind": "plan",
            "instance": planned.instance,
            "app": plan.app_name,
            "title": plan.app_name,
            "triggered_by": planned.triggered_by,
            "plan": plan.model_dump(mode="json"),
            "command": command,
            "goes_on": goes_on,
            "checked_s": planned.checked_s,
            "upload": planned.upload.model_dump(mode="json") if planned.upload else None,
            "saved_at": (saved_at or datetime.now(UTC)).isoformat(timespec="seconds"),
        },
        "text/html": _plan.html(planned),
        "text/plain": _plan.text(planned),
    }


def card_bundle(progress: Progress, saved_at: datetime | None = None) -> dict[str, Any]:
    """Return a card for a notebook's output: our own type first, then HTML, then text.

    Our own type holds neither URL nor key; its front end finds the backend by the instance's id.
    """
    return {
        MIME_TYPE: _card_data(progress, saved_at),
        "text/html": _html.card(progress),
        "text/plain": _text.card(progress),
    }


def _card_data(progress: Progress, saved_at: datetime | None) -> dict[str, Any]:
    spec, manifest, deployment = progress.spec, progress.manifest, progress.deployment
    return {
        "v": 1,
        "kind": progress.kind,
        "instance": progress.instance,
        "app": deployment.app_name if deployment else None,
        "revision": deployment.revision if deployment else None,
        **_rollout_data(progress),
        "title": progress.title,
        "schema": spec.openapi if spec else "{}",
        "stage": str(_STAGES.get(progress.stage, progress.stage)),
        "problem": progress.problems[0].model_dump(mode="json") if progress.problems else None,
        "facts": {
            "endpoints": [endpoint.model_dump(mode="json") for endpoint in spec.endpoints] if spec else [],
            "machine": ", ".join(spec.machine_types) if spec else "",
            "requirements": [line for layer in spec.requirements for line in layer] if spec else [],
            "captures": [c.model_dump(mode="json", exclude={"digest"}) for c in manifest.captures]
            if manifest
            else [],
        },
        "saved_at": (saved_at or datetime.now(UTC)).isoformat(timespec="seconds"),
    }


_COURSE = {
    "deployment_id", "revision", "changed", "state", "kind", "strategy", "detach", "phases", "previous", "runner_id",
    "calls", "failed_calls", "created_at", "switched_at", "ended_at",
}  # fmt: skip


def _rollout_data(progress: Progress) -> dict[str, Any]:
    """Return what the card of a deployment shows of it where no backend can be asked."""
    if progress.kind != "deploy" or progress.deployment is None:
        return {}
    return {
        "rollout": progress.deployment.model_dump(mode="json", include=_COURSE),
        "upload": progress.upload.model_dump(mode="json") if progress.upload else None,
        "is_waiting": progress.is_waiting,
        "is_left": progress.is_left,
    }


_STAGES = {Stage.CHECKED: "checking", Stage.STOPPED: "sent"}
"""Stages that the saved data does not tell apart."""


def _checked(result: Checked) -> str:
    manifest = result.manifest
    total = manifest.payload_bytes
    sent = ", ".join(f"{c.name} {size(c.size_bytes)}" for c in manifest.captures)
    lines = [
        f"{result.spec.app_name}: checked; nothing was sent.",
        f"Bundle: {size(total)}" + (f"; captured: {sent}" if sent else ""),
    ]
    return "\n".join([*lines, *(warning.message for warning in result.warnings)])


def _ended(result: Stopped | AppDeleted | RunnerStopped | Told) -> str:
    match result:
        case Told():
            return result.text
        case Stopped():
            return f"Stopped {result.app}; its URL is gone."
        case AppDeleted():
            return f"Deleted {result.app}; its URL is gone."
        case RunnerStopped():
            act = "Killed" if result.killed else "Stopping"
            rest = "." if result.killed else "; it finishes its calls first."
            return f"{act} {result.runner_id}{rest}" + (
                " Another one is started in its place." if result.replaced else ""
            )


def _served(result: Served) -> str:
    cpu = [machine.name for machine in result.machines if not machine.gpus]
    gpu = [machine.name for machine in result.machines if machine.gpus and machine.available]
    lines = [
        f"{'Already serving' if result.was_running else 'Serving'} at {result.url} (process {result.pid})",
        *(
            [f"TLS: {result.tls_url} (`fal-nb env` prints what fal's own clients need)"]
            if result.tls_url
            else []
        ),
        f"Key: {result.key_file} (only your user can read it)",
        f"Data: {result.home}",
        f"Runners: local, machines {' '.join(cpu)} (CPU), GPUs: {' '.join(gpu) or 'none found'}",
    ]
    return "\n".join(lines)


def _lines(result: LinesShown) -> str:
    return "\n".join(map(_text.log_line, result.lines)) or ("" if result.is_shown else "No lines yet.")


def _exports(result: Exports) -> str:
    return "\n".join(f"export {name}={quote(value)}" for name, value in result.values.items())


def _versions(result: Versions) -> str:
    named = "\n".join(f"{name} {found}" for name, found in result.packages.items())
    return f"fal-notebook {result.version}\nPython {result.python}\n{named}"


_REVISIONS = (
    RevisionShown, RevisionDiffed, RevisionSet, RevisionDeleted, AppScaled, AppRestarted, QueueSized, QueueFlushed,
)  # fmt: skip
_WORDS: dict[type, Callable[[Any], str]] = {
    Shipped: lambda result: _text.card(result.progress),
    Planned: _plan.text,
    Checked: _checked,
    AppSimulated: _simulation.said,
    Stopped: _ended,
    AppDeleted: _ended,
    RunnerStopped: _ended,
    LinesShown: _lines,
    Served: _served,
    Exports: _exports,
    Versions: _versions,
    Told: _ended,
    ProgramEnded: lambda _result: "",
    **dict.fromkeys(_REVISIONS, _revisions.said),
}
"""Results that are said in words; all others are tables."""
