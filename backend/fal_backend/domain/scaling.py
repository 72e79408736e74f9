"""How many runners a revision should have, which may go, and when a crashing one may try again; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fal_notebook.wire import ScaleSpec

__all__ = [
    "CRASH_LIMIT",
    "Crashes",
    "Decision",
    "Idle",
    "Snapshot",
    "after_crash",
    "branch_scale",
    "decide",
    "desired",
    "spare",
]

CRASH_LIMIT = 3
"""Failed starts in a row after which callers are told at once."""

_BACKOFF_MAX_S = 60.0

_WAITING_MOST = 32
"""Runners of one revision that wait for a place at once: more would find none either."""


@dataclass(frozen=True, slots=True)
class Crashes:
    """Failed starts of one revision in a row."""

    count: int
    next_at: float
    """Monotonic seconds before which no runner is started."""
    error_json: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """A ready runner without calls."""

    runner: str
    since: float
    """Monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What scaling is decided on: one revision at one moment."""

    running: int
    """Calls in flight."""
    waiting: int
    oldest_wait_s: float
    pending: tuple[str, ...] = ()
    """Runners that wait for a place, oldest first."""
    coming: int = 0
    """Runners that have a place and are not ready."""
    ready: int = 0
    idle: tuple[Idle, ...] = ()
    """Of the ready ones, those without calls."""
    crashes: Crashes | None = None

    @property
    def up(self) -> int:
        """Runners that take calls or will."""
        return len(self.pending) + self.coming + self.ready


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done for a revision now."""

    start: int = 0
    withdraw: tuple[str, ...] = ()
    """Runners that wait for a place and are not needed any more."""
    drain: tuple[str, ...] = ()
    """Idle runners that may go."""
    is_hopeless: bool = False
    """Its starts crash, and its callers should be told."""
    again_s: float | None = None
    """When time alone may change this."""


def decide(scale: ScaleSpec, seen: Snapshot, now: float) -> Decision:
    """Return what brings a revision's runners to what its calls need; the same snapshot, the same decision.

    now: monotonic seconds, as in the snapshot.
    """
    need = desired(scale, running=seen.running, waiting=seen.waiting, oldest_wait_s=seen.oldest_wait_s)
    delay = float(scale.scaling_delay or 0)
    again_s = delay - seen.oldest_wait_s if seen.waiting and seen.oldest_wait_s < delay else None
    if need > seen.up:
        return _grow(seen, need - seen.up, again_s, now)
    keep_alive_s = float(scale.keep_alive or 0)
    return Decision(
        withdraw=seen.pending[len(seen.pending) - min(len(seen.pending), seen.up - need) :],
        drain=tuple(spare(seen.idle, keep=need, up=seen.ready, keep_alive_s=keep_alive_s, now=now)),
        again_s=again_s,
    )


def _grow(seen: Snapshot, count: int, again_s: float | None, now: float) -> Decision:
    crashes = seen.crashes
    if crashes is None:
        return Decision(start=min(count, max(0, _WAITING_MOST - len(seen.pending))), again_s=again_s)
    if now < crashes.next_at:
        # With a ready runner its callers wait for that one.
        is_hopeless = crashes.count >= CRASH_LIMIT and seen.waiting > 0 and not seen.ready
        return Decision(is_hopeless=is_hopeless, again_s=crashes.next_at - now)
    # One at a time until a start goes well again.
    is_under_way = bool(seen.pending) or seen.coming > 0
    return Decision(start=0 if is_under_way else 1, again_s=again_s)


def desired(scale: ScaleSpec, *, running: int, waiting: int, oldest_wait_s: float) -> int:
    """Return how many runners the calls of this moment need, within the app's limits.

    Waiting calls count once they have waited `scaling_delay` seconds.
    Source: fal, "Scaling Parameters".
    """
    counted = waiting if oldest_wait_s >= (scale.scaling_delay or 0) else 0
    need = math.ceil((running + counted) / (scale.max_multiplexing or 1))
    share = math.ceil(need * (scale.concurrency_buffer_perc or 0) / 100)
    need += max(scale.concurrency_buffer or 0, share)
    lowest = scale.min_concurrency or 0
    return max(lowest, min(need, max(scale.max_concurrency or 1, lowest)))


def branch_scale(code: ScaleSpec, alias: ScaleSpec) -> ScaleSpec:
    """Return what holds for the revision that gets a part of an app's callers.

    It has the app's settings, but what belongs to the code is its own; at most one runner is kept up for it.
    """
    kept = min(alias.min_concurrency or 0, 1)
    own = {name: value for name in ("max_multiplexing", "startup_timeout") if (value := getattr(code, name))}
    return alias.model_copy(
        update={
            "machine_types": None,
            "min_concurrency": kept,
            "concurrency_buffer": 0,
            "concurrency_buffer_perc": 0,
            "max_multiplexing": 1,
            "startup_timeout": 600,
            **own,
        }
    )


def spare(idle: Iterable[Idle], *, keep: int, up: int, keep_alive_s: float, now: float) -> list[str]:
    """Return the ready runners that may be drained: idle beyond keep_alive, oldest first, leaving `keep` of `up`."""
    over = [one for one in sorted(idle, key=lambda one: one.since) if now - one.since >= keep_alive_s]
    return [one.runner for one in over[: max(0, up - keep)]]


def after_crash(
    before: Crashes | None, *, now: float, jitter: float, reason: str, error: str | None
) -> Crashes:
    """Return the revision's crashes after one more; jitter is a number from -1 to 1.

    The next start is 2, 8, 32, then 60 s after the crash, plus or minus a fifth: three starts in the first 30 s.
    """
    count = (before.count if before else 0) + 1
    pause = min(_BACKOFF_MAX_S, 2.0 * 4.0 ** min(count - 1, 10)) * (1 + 0.2 * jitter)
    return Crashes(count, now + pause, error, reason)
