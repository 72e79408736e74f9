"""What is said of a runner that failed: one error with the traceback and the last lines it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from fal_backend.domain.records import Runner, RunnerPhase
from fal_backend.domain.runner import OUT_OF_MEMORY
from fal_backend.ports import HostExited
from fal_notebook.errors import FalError, MachineError, RunnerError
from fal_notebook.wire import AppSpec, MachineType

__all__ = ["ended_early", "ending", "no_runner"]

_LINES = 50
_BY_WHOM = {
    "stopped": "`runners stop`",
    "killed_by_owner": "`runners kill`",
    "restarted": "`apps rollout --force`",
}
"""How people end runners, by the reason that is noted."""


def ending(
    row: Runner, news: HostExited, spec: AppSpec, machines: Iterable[MachineType] = ()
) -> tuple[str, str]:
    """Return the reason of an end and its error as JSON; machines: those that it could run on instead."""
    reason = _reason(row, news)
    if news.error is not None and (reason != "startup_timeout" or news.reason == reason):
        body = dict(news.error)
        details = dict(body.get("details") or {})
        if reason == OUT_OF_MEMORY:
            body["fix"] = _roomier(int(details.get("limit_mb") or 0), machines) or body.get("fix")
    else:
        error = _error(row, news, reason, spec)
        body, details = error.to_dict(), dict(error.details)
        if news.error is not None:
            body["traceback"] = news.error.get("traceback")
            details = dict(news.error.get("details") or {}) | details
    details.setdefault("log", list(news.tail[-_LINES:]))
    details["runner_id"] = row.id
    return reason, json.dumps(body | {"details": details})


def ended_early(reason: str, class_name: str) -> str:
    """Return the error of a rollout whose runner was ended by somebody before it was ready, as JSON."""
    why = _BY_WHOM.get(reason, reason)
    return _json(
        RunnerError(
            f"The runner of {class_name} was ended before it was ready: {why}.",
            fix="Deploy again, or go on with `apps set-rev`.",
            code=f"runner.{reason}",
        )
    )


def no_runner(startup_s: float, class_name: str, short: str | None = None) -> str:
    """Return the error of a rollout whose runners never became ready, as JSON; short: why none found a place."""
    if short is not None:
        return _json(
            MachineError(
                f"No runner of {class_name} found a place within {2 * startup_s:g} s: {short}.",
                fix="Free a machine, name more `machine_type`s, or deploy with `--strategy recreate`.",
                code="machine.no_capacity",
            )
        )
    return _json(
        RunnerError(
            f"No runner of {class_name} became ready within {2 * startup_s:g} s.",
            fix="See the runner's log; raise `startup_timeout` if it needs longer.",
            code="runner.startup_timeout",
        )
    )


def _roomier(limit_mb: int, machines: Iterable[MachineType]) -> str | None:
    """Return what to do about a limit that was too small: the smallest type with twice the memory."""
    found = [one for one in machines if one.available and not one.gpus and one.memory_mb >= 2 * limit_mb]
    if not found or not limit_mb:
        return None
    best = min(found, key=lambda one: one.memory_mb)
    size = f"{best.memory_mb / 1024:g} GB"
    return f'Choose a larger machine: `machine_type = "{best.name}"` has {size}; `fal-nb machines list` shows all.'


def _reason(row: Runner, news: HostExited) -> str:
    if row.phase == RunnerPhase.STOPPING and row.reason and news.reason != OUT_OF_MEMORY:
        return row.reason
    if news.reason:
        return news.reason
    return "exited" if news.signal is None else "killed"


def _error(row: Runner, news: HostExited, reason: str, spec: AppSpec) -> RunnerError:
    name = spec.class_name
    match reason:
        case "startup_timeout":
            return _overdue(row, spec)
        case _ if reason == OUT_OF_MEMORY:
            text, fix = (
                f"{name} needed more memory than its machine type has.",
                "Choose a larger `machine_type`.",
            )
        case "setup_failed":
            text, fix = f"setup() of {name} failed.", "See the last lines that it wrote."
        case _ if row.ready_at is None:
            text, fix = f"{name}'s process ended before it was ready ({_how(news)}).", "See its last lines."
        case _:
            text, fix = f"{name}'s process ended ({_how(news)}).", "See its last lines."
    return RunnerError(text, fix=fix, code=f"runner.{reason}")


def _overdue(row: Runner, spec: AppSpec) -> RunnerError:
    limit = spec.scale.startup_timeout or 600
    if row.setup_at is None:
        text = f"The process of {spec.class_name} did not come to its setup() within {limit} s"
    else:
        text = (
            f"setup() of {spec.class_name} did not return, or its web server never opened, within {limit} s"
        )
    return RunnerError(
        text + ".",
        fix="See where it stood in the log; raise `startup_timeout` if it needs longer.",
        code="runner.startup_timeout",
        details={"startup_timeout": limit},
    )


def _how(news: HostExited) -> str:
    return f"signal {news.signal}" if news.signal is not None else f"exit code {news.code}"


def _json(error: FalError) -> str:
    body: dict[str, Any] = error.to_dict()
    return json.dumps(body)
