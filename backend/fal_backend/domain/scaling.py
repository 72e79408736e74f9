"""How many runners a revision should have, which may go, and when a crashing one may try again; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fal_notebook.wire import ScaleSpec

__all__ = ["CRASH_LIMIT", "Crashes", "Idle", "after_crash", "branch_scale", "desired", "spare"]

CRASH_LIMIT = 3
"""Failed starts in a row after which callers are told at once."""

_BACKOFF_MAX_S = 60.0


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

    The next start is at min(60, 2^k) s after the crash, plus or minus a fifth.
    """
    count = (before.count if before else 0) + 1
    pause = min(_BACKOFF_MAX_S, 2.0 ** min(count, 10)) * (1 + 0.2 * jitter)
    return Crashes(count, now + pause, error, reason)
