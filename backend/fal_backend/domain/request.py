"""What an answer, or a failure, means for a direct call and for the runner that gave it.

Rules: a direct call is never retried; only the runner's fate is decided here. The table is the whole truth:
nothing else in the house looks at a status code to judge a runner.
Source: fal core concepts, "Readiness & Liveness"; fal documentation, "Request Error Types".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Failure", "Refusal", "RunnerAct", "Verdict", "refusal_of", "unknown_app", "verdict"]


class RunnerAct(StrEnum):
    """What happens to the runner after a call."""

    KEEP = "keep"
    """It stays."""
    CHECK = "check"
    """It stays if its socket still accepts a connection."""
    END = "end"
    """It takes no more calls and is ended."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The runner's fate, and why when it is ended."""

    act: RunnerAct
    reason: str | None = None


_KEEP = Verdict(RunnerAct.KEEP)
_CHECK = Verdict(RunnerAct.CHECK)
_UNHEALTHY = Verdict(RunnerAct.END, "answer_503")
_ASKED = Verdict(RunnerAct.END, "stop_requested")


def verdict(status: int, stop_runner: bytes | None = None) -> Verdict:
    """Decide what a runner's answer means for the runner.

    stop_runner is the value of the answer's `x-fal-stop-runner` header: `true` ends the runner whatever the
    status, `false` keeps it. Without it: 2XX and 4XX (429 too) keep; a single 503 ends; any other 5XX keeps a
    runner whose socket still accepts connections. `x-fal-needs-retry` says nothing about the runner.
    Source: fal core concepts, "Readiness & Liveness".
    """
    if stop_runner is not None:
        asked = stop_runner.strip().lower()
        if asked == b"true":
            return _ASKED
        if asked == b"false":
            return _KEEP
    if status < 500:
        return _KEEP
    return _UNHEALTHY if status == 503 else _CHECK


class Failure(StrEnum):
    """Why a call has no answer of the App; the value is the published error type where there is one."""

    REQUEST_TIMEOUT = "request_timeout"
    """It ran longer than the App's `request_timeout`."""
    STARTUP_TIMEOUT = "startup_timeout"
    """No runner took it in time."""
    USER_TIMEOUT = "user_timeout"
    """No runner took it within the time that the caller gave."""
    DISCONNECTED = "runner_disconnected"
    """The connection to the runner broke before its answer began."""
    INCOMPLETE = "runner_incomplete_response"
    """The runner's answer broke off, or was not HTTP."""
    CALLER_GONE = "client_disconnected"
    """The caller left."""
    LANE_FULL = "runner_scheduling_failure"
    """Too many calls wait for this app."""


class Refusal(Exception):
    """An answer that the data plane gives in the App's place."""

    def __init__(
        self,
        status: int,
        detail: str,
        error_type: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.error_type = error_type
        self.headers = headers


_FAILURES: dict[Failure, tuple[int, str, str | None, tuple[tuple[bytes, bytes], ...]]] = {
    Failure.REQUEST_TIMEOUT: (504, "request_timeout", "request_timeout", ()),
    Failure.STARTUP_TIMEOUT: (504, "startup_timeout", None, ()),
    Failure.USER_TIMEOUT: (504, "request_timeout", None, ((b"x-fal-request-timeout-type", b"user"),)),
    Failure.DISCONNECTED: (503, "runner_disconnected", "connection_broken", ()),
    Failure.INCOMPLETE: (502, "runner_incomplete_response", "connection_broken", ()),
    Failure.CALLER_GONE: (499, "client_disconnected", None, ()),
    Failure.LANE_FULL: (503, "runner_scheduling_failure", None, ((b"retry-after", b"5"),)),
}
_DETAILS: dict[Failure, str] = {
    Failure.REQUEST_TIMEOUT: "Request timed out",
    Failure.STARTUP_TIMEOUT: "No runner became ready in time",
    Failure.USER_TIMEOUT: "Request was not started within the time that its caller gave",
    Failure.DISCONNECTED: "The runner disconnected before it answered",
    Failure.INCOMPLETE: "The runner's answer was incomplete",
    Failure.CALLER_GONE: "The caller disconnected",
    Failure.LANE_FULL: "Too many requests are waiting for this app",
}


def refusal_of(failure: Failure) -> tuple[Refusal, Verdict]:
    """Return what the caller is told about a failure, and the fate of the runner that had the call."""
    status, error_type, reason, headers = _FAILURES[failure]
    fate = Verdict(RunnerAct.END, reason) if reason else _KEEP
    return Refusal(status, _DETAILS[failure], error_type, headers), fate


def unknown_app(alias: str) -> Refusal:
    """Return the answer for an alias that does not exist."""
    return Refusal(404, f"Application '{alias}' not found")
