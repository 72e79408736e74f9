"""Lists as rows of text, the same for terminal and notebook; pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fal_notebook.commands.results import (
    AppsListed,
    Check,
    Diagnosed,
    EnvironmentsListed,
    MachinesListed,
    ProfilesListed,
    RequestsListed,
    RevisionsListed,
    RunnersListed,
    SecretsListed,
)
from fal_notebook.profiles import Saved
from fal_notebook.render import revisions
from fal_notebook.render.words import age, app_state, runner_state, seconds, short
from fal_notebook.wire import AppSummary, CallInfo, MachineType, RunnerInfo, RunnerState
from fal_notebook.wire_secrets import EnvironmentInfo, SecretInfo

__all__ = ["SPARE", "rows_of"]

_APPS = ("App", "State", "Auth", "Revision", "Runners", "Machine", "Deployed", "URL")
_RUNNERS = ("Runner", "App", "State", "Machine", "Calls", "Up", "Pid", "Why")
_REQUESTS = (
    "Ended",
    "App",
    "Call",
    "Kind",
    "Status",
    "Queued",
    "Cold start",
    "Run",
    "Tries",
    "Runner",
    "Request",
)
_MACHINES = ("Machine", "CPU", "Memory", "GPU", "Count", "Free")
_ENVIRONMENTS = ("Name", "Description", "Default", "Created")
_SECRETS = ("Name", "Environment", "Set", "Times", "Exposed by default")
_PROFILES = ("Set", "Profile", "Host", "Key")
_CHECKS = ("Check", "Result", "Found", "Fix")


SPARE = (
    "Multiplex", "Keep alive", "Min/Max", "Pid", "Kind", "Tries", "By", "Errors", "p95", "Calls", "Times", "Last used",
    "Scope", "From", "Key", "Up", "Machine", "Expires", "Auth", "Deployed", "Queued", "Cold start", "Message", "Count",
    "Created", "Created At", "Runner", "URL", "Charged", "Default", "Call",
)  # fmt: skip
"""Columns of any list that a narrow terminal goes without, the first first."""

Table: TypeAlias = tuple[Sequence[str], list[tuple[str, ...]], str]
"""Head, rows, and what to say when there are none."""


def rows_of(result: object) -> Table:
    """Return the table of a list. Raises: KeyError for a result that is no list."""
    return _TABLES[type(result)](result)


def _app(app: AppSummary) -> tuple[str, ...]:
    notes = [app.state_reason] if app.state_reason else []
    notes += [f"old secrets: {', '.join(app.stale_secrets)}"] if app.stale_secrets else []
    state = app_state(app.state) + (f" ({'; '.join(notes)})" if notes else "")
    return (
        app.alias,
        state,
        str(app.auth_mode),
        short(app.revision) if app.revision else "none",
        str(app.active_runners),
        ",".join(app.machine_types),
        age(app.deployed_at),
        app.urls.run,
    )


def _runner(runner: RunnerInfo) -> tuple[str, ...]:
    stale = f"old secrets: {', '.join(runner.stale_secrets)}" if runner.stale_secrets else ""
    why = "; ".join(part for part in (runner.reason or runner.start_reason, stale) if part)
    ended = runner.state is RunnerState.TERMINATED
    return (
        runner.runner_id,
        runner.alias,
        runner_state(runner.state),
        runner.machine_type,
        str(runner.in_flight_requests),
        "" if ended else seconds(runner.uptime_seconds),
        "" if ended or runner.pid is None else str(runner.pid),
        why,
    )


def _request(one: CallInfo) -> tuple[str, ...]:
    return (
        age(one.ended_at),
        one.app,
        f"{one.method} {one.path}",
        one.kind,
        str(one.status) + (f" {one.error_type}" if one.error_type else ""),
        seconds(one.queued_ms / 1e3),
        seconds(one.cold_start_ms / 1e3) if one.cold_start_ms else "",
        seconds(one.inference_ms / 1e3) if one.attempts else "",
        str(one.attempts),
        one.runner or "",
        one.request_id,
    )


def _machine(machine: MachineType) -> tuple[str, ...]:
    memory = f"{machine.memory_mb / 1024:g} GB" if machine.memory_mb >= 1024 else f"{machine.memory_mb} MB"
    gpu = f"{machine.gpus} x {machine.gpu}" if machine.gpus else "none"
    if machine.is_share and not machine.available:
        return (machine.name, "share", "share", gpu, "0", "0")
    return (machine.name, f"{machine.cpu:g}", memory, gpu, str(machine.count), str(machine.free))


def _environment(one: EnvironmentInfo) -> tuple[str, ...]:
    return (one.name, one.description or "", "yes" if one.is_default else "", age(one.created_at))


def _secret(one: SecretInfo) -> tuple[str, ...]:
    exposed = "yes" if one.default_exposed else "no"
    return (one.name, one.environment, age(one.updated_at or one.created_at), str(one.number), exposed)


def _profile(one: Saved, used: str) -> tuple[str, ...]:
    return ("*" if one.name == used else "", one.name, one.host or "this machine", str(one.key or "none"))


def _check(check: Check) -> tuple[str, ...]:
    return (check.name, str(check.verdict), check.detail, check.fix or "")


_TABLES: dict[type, Callable[[Any], Table]] = {
    AppsListed: lambda result: (
        _APPS,
        [_app(app) for app in result.apps],
        "No apps yet. Put `%%fal_app` above an `App` class in a cell, or `deploy` a file.",
    ),
    RunnersListed: lambda result: (
        _RUNNERS,
        [_runner(runner) for runner in result.runners],
        "No runners. The next request starts one.",
    ),
    RevisionsListed: lambda result: (
        revisions.HEAD if result.app is not None else ("App", *revisions.HEAD),
        [
            (() if result.app is not None else (one.app,)) + revisions.row(one)
            for one in result.page.revisions
        ],
        "No revisions.",
    ),
    RequestsListed: lambda result: (
        _REQUESTS,
        [_request(one) for one in result.requests],
        "No requests. They are noted when they have ended.",
    ),
    MachinesListed: lambda result: (
        _MACHINES,
        [_machine(machine) for machine in result.machines],
        "No machine types.",
    ),
    EnvironmentsListed: lambda result: (
        _ENVIRONMENTS,
        [_environment(one) for one in result.environments],
        "No environments.",
    ),
    SecretsListed: lambda result: (
        _SECRETS,
        [_secret(one) for one in result.secrets],
        "No secrets. `secrets set NAME` makes one.",
    ),
    ProfilesListed: lambda result: (
        _PROFILES,
        [_profile(one, result.used) for one in result.profiles],
        "No profiles.",
    ),
    Diagnosed: lambda result: (_CHECKS, [_check(check) for check in result.checks], ""),
}
"""One line for each kind of list."""
