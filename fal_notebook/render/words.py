"""Numbers, times and states in the words of the interface; pure."""

from __future__ import annotations

from datetime import UTC, datetime

from fal_notebook.wire import AppState, RunnerState

__all__ = ["age", "app_state", "count", "runner_state", "seconds", "short", "size"]

_RUNNER = {
    RunnerState.PENDING: "Pending",
    RunnerState.DOCKER_PULL: "Pulling",
    RunnerState.SETUP: "Setup",
    RunnerState.IDLE: "Idle",
    RunnerState.RUNNING: "Running",
    RunnerState.DRAINING: "Draining",
    RunnerState.TERMINATING: "Stopping",
    RunnerState.TERMINATED: "Stopped",
    RunnerState.CRASH_BACKOFF: "Crash loop",
}
_APP = {
    AppState.DEPLOYING: "Deploying",
    AppState.IDLE: "Idle",
    AppState.STARTING: "Starting",
    AppState.SERVING: "Serving",
    AppState.FAILING: "Failing",
}


def seconds(value: float) -> str:
    """Return a duration: 6.4 ms, 76 ms, 0.4 s, 12 s, 3 min, 2 h."""
    if value < 0.1:
        return f"{value * 1000:.1f} ms" if value < 0.01 else f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 3600 else f"{value / 3600:.0f} h"


def size(value: int) -> str:
    """Return a size: 987 B, 3.8 kB, 9.5 MB."""
    if value < 1000:
        return f"{value} B"
    for unit, factor in (("kB", 10**3), ("MB", 10**6), ("GB", 10**9)):
        if value < factor * 1000:
            return f"{value / factor:.1f} {unit}"
    return f"{value / 10**12:.1f} TB"


def short(revision: str) -> str:
    """Return the part of a revision's id that a person compares; JSON keeps the whole."""
    return revision[:8]


def count(number: int, noun: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def age(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago, under a day; then the date."""
    passed = ((now or datetime.now(UTC)) - moment).total_seconds()
    if passed >= 86400:
        return f"{moment:%Y-%m-%d}"
    return "now" if passed < 1 else f"{seconds(round(passed))} ago"


def runner_state(state: RunnerState) -> str:
    """Return a runner's state for people."""
    return _RUNNER[state]


def app_state(state: AppState) -> str:
    """Return an app's state for people."""
    return _APP[state]
