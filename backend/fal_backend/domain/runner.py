"""A runner's life as a pure machine: what happened changes the row, the row says what is wanted.

Rules: late news is ignored; only `ready` takes calls; an effect that is lost is wanted again from the same
row, an effect that is doubled changes nothing. Times are integer microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

from fal_backend.domain.records import Runner, RunnerPhase

__all__ = [
    "CRASHES",
    "LIVE",
    "OUT_OF_MEMORY",
    "Drain",
    "Drained",
    "Effect",
    "Exited",
    "Lost",
    "NoCapacity",
    "Placed",
    "Progress",
    "Resume",
    "RunnerEvent",
    "Stop",
    "Tick",
    "step",
    "wanted",
]

LIVE = frozenset(set(RunnerPhase) - {RunnerPhase.GONE})

CRASHES = frozenset({"setup_failed", "startup_timeout", "exited", "killed", "oom", "refused"})
"""Reasons of an end that nobody asked for and that speaks against the revision."""

OUT_OF_MEMORY = "oom"

_UP = (RunnerPhase.STARTING, RunnerPhase.SETUP)
_ORDER = {phase: number for number, phase in enumerate(RunnerPhase)}


class Effect(StrEnum):
    """What the shell does for a runner; each is idempotent by the runner's id."""

    START = "start"
    OPEN_TRAFFIC = "open_traffic"
    CLOSE_TRAFFIC = "close_traffic"
    STOP = "stop"
    KILL = "kill"
    CUT_TRAFFIC = "cut_traffic"


@dataclass(frozen=True, slots=True)
class Placed:
    """A node was found for it; `setup()` must have returned by `deadline`."""

    node: str
    epoch: int
    machine_type: str
    deadline: int


@dataclass(frozen=True, slots=True)
class NoCapacity:
    """No node can take it now."""

    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The host says how far it is: starting, setup or ready."""

    state: str
    at: int
    pid: int | None = None
    start_kind: str | None = None
    start_reason: str | None = None
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """Its process has ended."""

    reason: str
    at: int
    error_json: str | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    """It should finish its calls and take no new ones, until `deadline` at the latest.

    One that is still starting has no calls: it is ended, and may take `grace` microseconds for that.
    """

    reason: str
    deadline: int
    grace: int


@dataclass(frozen=True, slots=True)
class Resume:
    """It is wanted again: one that only finished its calls takes new ones."""


@dataclass(frozen=True, slots=True)
class Drained:
    """It has no calls left; its process may take until `deadline` to end."""

    deadline: int


@dataclass(frozen=True, slots=True)
class Stop:
    """It must end now; its process may take until `deadline`."""

    reason: str
    deadline: int
    error_json: str | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Nobody knows of its process any more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a runner that is told to end by it may take `grace` microseconds."""

    grace: int


RunnerEvent = Placed | NoCapacity | Progress | Exited | Drain | Resume | Drained | Stop | Lost | Tick


def step(row: Runner, event: RunnerEvent, now: int) -> Runner:
    """Return the row after the event; the same object when it changes nothing."""
    if row.phase == RunnerPhase.GONE:
        return row
    match event:
        case Placed() | NoCapacity():
            return _place(row, event)
        case Progress():
            return _progress(row, event)
        case Exited():
            return _end(row, event.reason, event.at, event.error_json)
        case Drain():
            return _drain(row, event, now)
        case Resume() | Drained():
            return _after_drain(row, event) if row.phase == RunnerPhase.DRAINING else row
        case Stop():
            return _halt(row, event, now)
        case Lost():
            return _end(row, "lost", now, None)
        case Tick():
            return _tick(row, event, now)
        case _:
            assert_never(event)


def wanted(row: Runner, now: int) -> frozenset[Effect]:
    """Return what should be true of the world for this row."""
    match RunnerPhase(row.phase):
        case RunnerPhase.PENDING | RunnerPhase.SETUP:
            return frozenset()
        case RunnerPhase.STARTING:
            return frozenset({Effect.START})
        case RunnerPhase.READY:
            return frozenset({Effect.OPEN_TRAFFIC})
        case RunnerPhase.DRAINING:
            return frozenset({Effect.CLOSE_TRAFFIC})
        case RunnerPhase.STOPPING:
            late = now > row.deadline or row.reason == "startup_timeout"
            return frozenset({Effect.CLOSE_TRAFFIC, Effect.KILL if late else Effect.STOP})
        case RunnerPhase.GONE:
            return frozenset({Effect.CUT_TRAFFIC})


def _place(row: Runner, event: Placed | NoCapacity) -> Runner:
    if row.phase != RunnerPhase.PENDING:
        return row
    if isinstance(event, NoCapacity):
        return row if row.reason == event.reason else replace(row, reason=event.reason)
    return replace(
        row,
        phase=RunnerPhase.STARTING.value,
        node=event.node,
        epoch=event.epoch,
        machine_type=event.machine_type,
        deadline=event.deadline,
        reason=None,
    )


def _progress(row: Runner, event: Progress) -> Runner:
    known = replace(
        row,
        pid=row.pid if event.pid is None else event.pid,
        start_kind=row.start_kind or event.start_kind,
        start_reason=row.start_reason or event.start_reason,
        tier=row.tier or event.tier,
    )
    if row.phase in _UP and _ORDER[RunnerPhase(event.state)] > _ORDER[RunnerPhase(row.phase)]:
        if event.state == RunnerPhase.READY:
            began = row.setup_at if row.setup_at is not None else event.at
            known = replace(known, phase=RunnerPhase.READY.value, setup_at=began, ready_at=event.at)
        else:
            known = replace(known, phase=RunnerPhase.SETUP.value, setup_at=event.at)
    return row if known == row else known


def _end(row: Runner, reason: str, at: int, error_json: str | None) -> Runner:
    # Whoever told it to stop knows why better than its exit code does.
    asked = row.reason if row.phase in (RunnerPhase.STOPPING, RunnerPhase.DRAINING) else None
    if reason == OUT_OF_MEMORY:
        # Whoever had it stopped meanwhile saw only what came of it: a broken connection.
        asked = None
    return replace(
        row,
        phase=RunnerPhase.GONE.value,
        ended_at=at,
        reason=asked or reason,
        error_json=error_json or row.error_json,
    )


def _stop(row: Runner, reason: str | None, deadline: int, error_json: str | None = None) -> Runner:
    return replace(
        row,
        phase=RunnerPhase.STOPPING.value,
        reason=reason or row.reason,
        deadline=deadline,
        error_json=error_json or row.error_json,
    )


def _drain(row: Runner, event: Drain, now: int) -> Runner:
    if row.phase == RunnerPhase.READY:
        return replace(row, phase=RunnerPhase.DRAINING.value, reason=event.reason, deadline=event.deadline)
    if row.phase == RunnerPhase.PENDING:
        return _end(row, event.reason, now, None)
    if row.phase in _UP:
        return _stop(row, event.reason, now + event.grace)
    return row


def _after_drain(row: Runner, event: Resume | Drained) -> Runner:
    if isinstance(event, Resume):
        return replace(row, phase=RunnerPhase.READY.value, reason=None)
    return _stop(row, None, event.deadline)


def _halt(row: Runner, event: Stop, now: int) -> Runner:
    if row.phase == RunnerPhase.PENDING:
        return _end(row, event.reason, now, event.error_json)
    if row.phase == RunnerPhase.STOPPING:
        return row
    return _stop(row, event.reason, event.deadline, event.error_json)


def _tick(row: Runner, event: Tick, now: int) -> Runner:
    if now <= row.deadline:
        return row
    if row.phase in _UP:
        return _stop(row, "startup_timeout", now + event.grace)
    if row.phase == RunnerPhase.DRAINING:
        return _stop(row, None, now + event.grace)
    return row
