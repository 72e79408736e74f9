"""What an answer, or a failure, means for a call and for the runner that gave it.

Rules: a direct call is never repeated; a queued one is, by the table of `queued_verdict`, whose overrides are in this
order: the caller's wish for no retry, the answer's `X-Fal-Needs-Retry`, the App's `skip_retry_conditions`. The tables
are the whole truth: nothing else in the house looks at a status code to judge a runner or a request.
Source: fal core concepts, "Readiness & Liveness"; fal documentation, "Request Error Types".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "NOT_FORWARDED",
    "Condition",
    "Failure",
    "QueuedVerdict",
    "Refusal",
    "RunnerAct",
    "Verdict",
    "is_yes",
    "queued_failure",
    "queued_verdict",
    "refusal_of",
    "unknown_app",
    "verdict",
]


NOT_FORWARDED = frozenset(
    {
        b"authorization",  # the caller's key is no business of the App
        b"connection",
        b"cookie",  # cookies know no ports: these belong to JupyterLab
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-fal-endpoint",
        b"x-fal-request-id",
        b"x-fal-team",  # for whom the control API acts is no business of the App
    }
)
"""Headers of a caller that no App gets, of a direct call or of a queued request."""


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


class Condition(StrEnum):
    """Why a queued request is tried again. Source: fal, "Retries and Error Handling"."""

    TIMEOUT = "timeout"
    """It ran longer than `request_timeout`, or the App answered 504."""
    SERVER_ERROR = "server_error"
    """The App answered 503, or asked for it."""
    CONNECTION_ERROR = "connection_error"
    """The runner was lost."""


@dataclass(frozen=True, slots=True)
class QueuedVerdict:
    """Whether a queued request is tried again, why, and the fate of the runner that had it."""

    again: Condition | None
    runner: Verdict


_NO_CONDITIONS: frozenset[Condition] = frozenset()
_RETRIED = {503: Condition.SERVER_ERROR, 504: Condition.TIMEOUT}
_LOST = frozenset({Failure.DISCONNECTED, Failure.INCOMPLETE})


def is_yes(value: bytes | None) -> bool | None:
    """Return what a header's value says: 1, true, yes; 0, false, no; None for anything else and for none."""
    said = (value or b"").strip().lower()
    if said in (b"1", b"true", b"yes"):
        return True
    return False if said in (b"0", b"false", b"no") else None


def queued_verdict(
    status: int,
    *,
    stop_runner: bytes | None = None,
    needs_retry: bytes | None = None,
    skip: frozenset[Condition] = _NO_CONDITIONS,
    no_retry: bool = False,
) -> QueuedVerdict:
    """Decide what a runner's answer means for a queued request and for the runner.

    503 and 504 are tried again, nothing else. needs_retry is the answer's `X-Fal-Needs-Retry`, which successes
    ignore; skip is the App's `skip_retry_conditions`; no_retry the caller's `x-fal-no-retry`.
    Source: fal, "Retries and Error Handling".
    """
    fate = verdict(status, stop_runner)
    if no_retry or 200 <= status < 300:
        return QueuedVerdict(None, fate)
    condition = _RETRIED.get(status)
    asked = is_yes(needs_retry)
    if asked is not None:
        return QueuedVerdict((condition or Condition.SERVER_ERROR) if asked else None, fate)
    return QueuedVerdict(None if condition in skip else condition, fate)


def queued_failure(
    failure: Failure, *, skip: frozenset[Condition] = _NO_CONDITIONS, no_retry: bool = False
) -> QueuedVerdict:
    """Decide what a try without an answer means: a lost runner and a timeout are tried again."""
    _, fate = refusal_of(failure)
    condition = Condition.CONNECTION_ERROR if failure in _LOST else None
    if failure is Failure.REQUEST_TIMEOUT:
        condition = Condition.TIMEOUT
    return QueuedVerdict(None if no_retry or condition in skip else condition, fate)
