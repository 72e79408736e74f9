"""Revisions, splits, scaling and queues as text and rows; pure."""

from __future__ import annotations

from fal_notebook.commands.results import (
    AppRestarted,
    AppScaled,
    QueueFlushed,
    QueueSized,
    RevisionDeleted,
    RevisionDiffed,
    RevisionSet,
    RevisionShown,
)
from fal_notebook.render.words import age, count, short
from fal_notebook.wire import DeploymentState
from fal_notebook.wire_deploy import RevisionDetail, RevisionInfo, Traffic

__all__ = ["HEAD", "RevisionResult", "row", "said"]

RevisionResult = (
    RevisionShown
    | RevisionDiffed
    | RevisionSet
    | RevisionDeleted
    | AppScaled
    | AppRestarted
    | QueueSized
    | QueueFlushed
)

HEAD = (
    "Revision",
    "State",
    "Callers",
    "Runners",
    "Min/Max",
    "Multiplex",
    "Keep alive",
    "Machine",
    "Calls",
    "Errors",
    "p95",
    "By",
    "Created",
    "Message",
)


def row(info: RevisionInfo) -> tuple[str, ...]:
    """Return a revision as a row under `HEAD`."""
    scale, traffic = info.scale, info.traffic or Traffic()
    return (
        short(info.revision),
        _state(info),
        f"{info.percent} %" if info.percent else "",
        str(info.runners),
        f"{scale.min_concurrency}/{scale.max_concurrency}",
        str(scale.max_multiplexing),
        f"{scale.keep_alive} s",
        ",".join(info.machine_types),
        str(traffic.calls or ""),
        f"{traffic.error_rate * 100:.1f} %" if traffic.calls else "",
        f"{traffic.p95_ms:g} ms" if traffic.p95_ms is not None else "",
        info.author or "",
        age(info.created_at),
        (info.message or "").partition("\n")[0][:40],
    )


def said(result: RevisionResult) -> str:
    """Return a result as text."""
    match result:
        case RevisionShown():
            return _shown(result.revision)
        case RevisionDiffed():
            return _diffed(result)
        case RevisionSet():
            return _set(result)
        case RevisionDeleted():
            return f"Deleted revision {result.revision}."
        case AppScaled():
            return _scaled(result)
        case AppRestarted():
            return _restarted(result)
        case QueueSized():
            users = sorted((result.size.by_user or {}).items())
            return "\n".join(
                [f"{result.app}: {count(result.size.size, 'request')} waiting"]
                + [f"  {user}: {waiting}" for user, waiting in users]
            )
        case QueueFlushed():
            return f"{result.app}: {count(result.cancelled, 'request')} cancelled."


def _state(info: RevisionInfo) -> str:
    if info.is_current:
        return "current"
    return "canary" if info.percent else info.status


def _shown(found: RevisionDetail) -> str:
    lines = [
        f"Revision {found.revision} of {found.app}: {_state(found)}",
        f"Created: {found.created_at.astimezone():%Y-%m-%d %H:%M:%S}"
        + (f" by {found.author}" if found.author else ""),
        f"Class: {found.class_name}" + (f" in {found.notebook}" if found.notebook else "") + _cell(found),
        f"Image: {found.image}",
        f"Requirements: {', '.join(line for layer in found.requirements for line in layer) or 'none'}",
        f"Machine: {', '.join(found.machine_types)}",
    ]
    lines += [f"Message: {found.message}"] if found.message else []
    lines += [f"  {name}={value}" for name, value in found.annotations.items()]
    if found.traffic is not None:
        traffic = found.traffic
        lines.append(
            f"Calls: {traffic.calls}{_since(traffic)}, {traffic.error_rate * 100:.1f} % errors, "
            f"p50 {traffic.p50_ms} ms, p95 {traffic.p95_ms} ms"
        )
    if found.error is not None:
        lines += ["", f"Failed: {found.error.message}", *_log(found)]
    return "\n".join([*lines, "", found.source.rstrip()])


def _since(traffic: Traffic) -> str:
    return f" since {traffic.since.astimezone():%Y-%m-%d %H:%M}" if traffic.since is not None else ""


def _cell(found: RevisionDetail) -> str:
    number = found.cell.execution_count if found.cell is not None else None
    return f", In [{number}]" if number is not None else ""


def _log(found: RevisionDetail) -> list[str]:
    log = found.error.details.get("log") if found.error is not None else None
    return [f"  {line}" for line in log] if isinstance(log, list) else []


def _diffed(result: RevisionDiffed) -> str:
    diff = result.diff
    lines = [f"{short(diff.before)} -> {short(diff.after)}"]
    lines += ["", "Code:", diff.code] if diff.code else ["", "Code: the same"]
    if diff.requirements_added or diff.requirements_removed:
        lines += ["", "Requirements:"]
        lines += [f"- {line}" for line in diff.requirements_removed]
        lines += [f"+ {line}" for line in diff.requirements_added]
    if diff.settings:
        lines += ["", "Settings:"]
        lines += [f"  {one.name}: {one.before or 'none'} -> {one.after or 'none'}" for one in diff.settings]
    if diff.captures:
        lines += ["", "Captured:"]
        lines += [f"  {one.name}: {one.before or 'none'} -> {one.after or 'none'}" for one in diff.captures]
    return "\n".join(lines)


def _set(result: RevisionSet) -> str:
    deployment = result.deployment
    name, revision = deployment.app_name, deployment.revision
    if result.percent == 0:
        return f"{name}: all callers go to revision {revision}."
    if result.percent is not None and result.percent < 100:
        return f"{name}: {result.percent} % of the callers go to revision {revision}."
    if deployment.state is DeploymentState.ROLLING_OUT:
        return f"{name} points to revision {revision}; its first runner is starting."
    tail = "" if deployment.changed else " already"
    return f"{name} points to revision {revision}{tail}."


def _scaled(result: AppScaled) -> str:
    app = result.app
    shown = {
        "Keep alive": f"{app.keep_alive} s",
        "Min/Max concurrency": f"{app.min_concurrency}/{app.max_concurrency}",
        "Concurrency buffer": f"{app.concurrency_buffer}, {app.concurrency_buffer_perc} %",
        "Scaling delay": f"{app.scaling_delay} s",
        "Max multiplexing": str(app.max_multiplexing),
        "Request timeout": f"{app.request_timeout} s",
        "Request start timeout": f"{app.request_start_timeout} s" if app.request_start_timeout else "none",
        "Startup timeout": f"{app.startup_timeout} s",
        "Machine types": ", ".join(app.machine_types),
        "Regions": ", ".join(app.valid_regions) or "any",
    }
    return "\n".join([f"{app.alias}:", *(f"  {name}: {text}" for name, text in shown.items())])


def _restarted(result: AppRestarted) -> str:
    found = result.restarted
    if not found.runners:
        return f"{found.app} has no runner; the next request starts a new one."
    what = count(found.runners, "runner")
    done = found.deployment is None or found.deployment.is_success
    return f"{found.app}: {what} {'replaced' if done else 'being replaced'}."
