"""How an alias gets from one revision to the next, as a pure machine over a deployment's row.

Rules: before the switch the alias is untouched, whatever fails; the switch itself is one transaction, made
by the shell when `SWITCH` is wanted; a deployment that has ended never changes again. A detached one switches
as soon as its image is there, and what fails after that leaves the alias where it is.
Source: fal, "Rollout Strategies".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, assert_never

from fal_backend.domain.records import Deployment
from fal_notebook.wire import DeploymentState, PhaseState, Strategy

__all__ = [
    "CLOSED",
    "OPEN",
    "PHASES",
    "BuildBegan",
    "Cancelled",
    "Effect",
    "ImageFailed",
    "ImageReady",
    "OldGone",
    "Refused",
    "RolloutEvent",
    "RunnerGone",
    "RunnerMoved",
    "RunnerReady",
    "Superseded",
    "SwitchLost",
    "Switched",
    "Tick",
    "has_led_to",
    "is_before_switch",
    "phases",
    "step",
    "wanted",
]

PHASES = ("build", "start", "setup", "ready")

CLOSED = frozenset(
    {
        DeploymentState.DONE,
        DeploymentState.ABORTED,
        DeploymentState.CANCELLED,
        DeploymentState.SUPERSEDED,
        DeploymentState.FAILED,
    }
)
OPEN = frozenset(set(DeploymentState) - CLOSED)

_BEFORE = frozenset({DeploymentState.BUILDING, DeploymentState.VERIFYING, DeploymentState.SWITCHING})

_LEFT_AS_IT_WAS = frozenset({DeploymentState.ABORTED, DeploymentState.CANCELLED, DeploymentState.SUPERSEDED})
"""Ends after which an alias is what it was before."""

_STARTING = frozenset({DeploymentState.VERIFYING, DeploymentState.ROLLING_OUT})
"""A runner of the new revision is waited for."""

_RETRIED = frozenset({"lost", "node_lost", "not_needed", "evicted", "idle", "conflict"})
"""Ends that say nothing about the revision: another runner is started."""


class Effect(StrEnum):
    """What the shell does for a deployment; each is idempotent by the deployment's id."""

    ENSURE_IMAGE = "ensure_image"
    ENSURE_RUNNER = "ensure_runner"
    SWITCH = "switch"
    DRAIN_OLD = "drain_old"


@dataclass(frozen=True, slots=True)
class BuildBegan:
    """The environment is not there and is being made."""


@dataclass(frozen=True, slots=True)
class ImageReady:
    """The environment is there."""

    cached: bool


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """The environment cannot be built."""

    error_json: str


@dataclass(frozen=True, slots=True)
class RunnerMoved:
    """A runner of the new revision is starting or in setup."""

    phase: str


@dataclass(frozen=True, slots=True)
class RunnerReady:
    """A runner of the new revision takes calls."""

    runner: str
    at: int | None = None
    """When its `setup()` had returned, by its host; until now it was checked."""


@dataclass(frozen=True, slots=True)
class RunnerGone:
    """The runner of the new revision has ended."""

    reason: str
    error_json: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No runner of the new revision can be started here."""

    error_json: str


@dataclass(frozen=True, slots=True)
class Switched:
    """The alias points to the new revision."""

    previous: str | None


@dataclass(frozen=True, slots=True)
class SwitchLost:
    """The alias was changed by someone else, or the runner is no longer ready."""


@dataclass(frozen=True, slots=True)
class OldGone:
    """No runner of another revision is left."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A newer deployment of the same alias has begun."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Its owner does not want it any more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a runner must be ready `limit` microseconds after the first start."""

    limit: int
    error_json: str


RolloutEvent = (
    BuildBegan
    | ImageReady
    | ImageFailed
    | RunnerMoved
    | RunnerReady
    | RunnerGone
    | Refused
    | Switched
    | SwitchLost
    | OldGone
    | Superseded
    | Cancelled
    | Tick
)


def step(row: Deployment, event: RolloutEvent, now: int) -> Deployment:
    """Return the row after the event; the same object when it changes nothing."""
    if row.state in CLOSED:
        return row
    match event:
        case BuildBegan() | ImageReady() | ImageFailed():
            return _image(row, event, now) if row.state == DeploymentState.BUILDING else row
        case RunnerMoved() | RunnerReady() | RunnerGone() | Refused() | Tick():
            return _runner(row, event, now) if row.state in _STARTING else row
        case Switched() | SwitchLost():
            return _switch(row, event, now) if row.state == DeploymentState.SWITCHING else row
        case OldGone():
            return _end(row, DeploymentState.DONE, now) if row.state == DeploymentState.DRAINING else row
        case Superseded():
            is_open = is_before_switch(row) or row.state == DeploymentState.ROLLING_OUT
            return _end(row, DeploymentState.SUPERSEDED, now) if is_open else row
        case Cancelled():
            return _end(row, DeploymentState.CANCELLED, now) if is_before_switch(row) else row
        case _:
            assert_never(event)


def wanted(row: Deployment) -> frozenset[Effect]:
    """Return what should be done for this row."""
    match DeploymentState(row.state):
        case DeploymentState.BUILDING:
            return frozenset({Effect.ENSURE_IMAGE})
        case DeploymentState.VERIFYING:
            return frozenset({Effect.ENSURE_RUNNER})
        case DeploymentState.SWITCHING:
            return frozenset({Effect.SWITCH})
        case DeploymentState.ROLLING_OUT:
            return frozenset({Effect.ENSURE_RUNNER, Effect.DRAIN_OLD})
        case DeploymentState.DRAINING:
            return frozenset({Effect.DRAIN_OLD})
        case _:
            return frozenset()


def is_before_switch(row: Deployment) -> bool:
    """True while the alias is untouched and the outcome is open."""
    return row.state in _BEFORE


def has_led_to(row: Deployment, revision: str) -> bool:
    """True when a deployment is the one by which an app uses a revision; a restart that failed is not."""
    return row.revision == revision and row.state not in _LEFT_AS_IT_WAS


def phases(row: Deployment) -> dict[str, list[Any]]:
    """Return {phase: [began_us, ended_us | None, state]} of the phases that have begun."""
    found: dict[str, list[Any]] = json.loads(row.phases_json)
    return found


def _image(row: Deployment, event: BuildBegan | ImageReady | ImageFailed, now: int) -> Deployment:
    if isinstance(event, BuildBegan):
        return row if "build" in phases(row) else _mark(row, "build", PhaseState.NOW, now)
    if isinstance(event, ImageFailed):
        return _fail(row, event.error_json, now)
    row = _mark(row, "build", PhaseState.CACHED if event.cached else PhaseState.DONE, now)
    if row.strategy == Strategy.RECREATE or row.detach:
        return replace(row, state=DeploymentState.SWITCHING.value)
    return _mark(replace(row, state=DeploymentState.VERIFYING.value), "start", PhaseState.NOW, now)


def _runner(
    row: Deployment, event: RunnerMoved | RunnerReady | RunnerGone | Refused | Tick, now: int
) -> Deployment:
    match event:
        case RunnerMoved():
            if event.phase != "setup" or phases(row).get("setup", [0, 0, ""])[2] == PhaseState.NOW:
                return row
            return _mark(_mark(row, "start", PhaseState.DONE, now), "setup", PhaseState.NOW, now)
        case RunnerReady():
            # One that was up before this deployment has nothing left to be waited for.
            began = phases(row).get("setup", phases(row).get("start", [now]))[0]
            up = event.at if event.at is not None and began <= event.at <= now else now
            for phase in ("start", "setup"):
                row = _mark(row, phase, PhaseState.DONE, up)
            row = _mark(_mark(row, "ready", PhaseState.NOW, up), "ready", PhaseState.DONE, now)
            has_moved = row.state == DeploymentState.ROLLING_OUT
            state = DeploymentState.DRAINING if has_moved else DeploymentState.SWITCHING
            return replace(row, state=state.value, runner=event.runner)
        case RunnerGone():
            return row if event.reason in _RETRIED else _fail(row, event.error_json, now)
        case Refused():
            return _fail(row, event.error_json, now)
        case Tick():
            began = phases(row).get("start", [now])[0]
            return _fail(row, event.error_json, now) if now - began > event.limit else row


def _switch(row: Deployment, event: Switched | SwitchLost, now: int) -> Deployment:
    if isinstance(event, SwitchLost):
        return row if row.detach else replace(row, state=DeploymentState.VERIFYING.value, runner=None)
    row = replace(row, previous=event.previous, switched_at=now)
    if row.detach:
        return _mark(replace(row, state=DeploymentState.ROLLING_OUT.value), "start", PhaseState.NOW, now)
    return replace(row, state=DeploymentState.DRAINING.value)


def _fail(row: Deployment, error_json: str, now: int) -> Deployment:
    for phase, (_, ended, _) in phases(row).items():
        if ended is None:
            row = _mark(row, phase, PhaseState.FAILED, now)
    end = DeploymentState.FAILED if row.state == DeploymentState.ROLLING_OUT else DeploymentState.ABORTED
    return _end(replace(row, error_json=error_json), end, now)


def _end(row: Deployment, state: DeploymentState, now: int) -> Deployment:
    return replace(row, state=state.value, ended_at=now)


def _mark(row: Deployment, phase: str, state: PhaseState, now: int) -> Deployment:
    track = phases(row)
    began, ended, before = track.get(phase, [now, None, PhaseState.NEXT])
    if before in (PhaseState.DONE, PhaseState.CACHED):
        return row
    ended = ended if state == PhaseState.NOW else now
    track[phase] = [began, ended, state.value]
    return replace(row, phases_json=json.dumps(track))
