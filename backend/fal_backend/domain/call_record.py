"""What is noted of each call that has ended, and how its time is split into phases; pure.

Rules: times of a record are microseconds since the epoch, phases are milliseconds; what a call waited for a runner
that was still being started is its cold start, all other time before a runner had it is queueing.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CallFilter", "CallOutcome", "CallRecord", "Phases", "phases", "server_timing"]


class CallRecord(NamedTuple):
    """One line of the request log."""

    request_id: str
    account: str
    """Owner of the app."""
    app: str
    """`owner/alias`."""
    path: str
    """With its query left out: it may hold what is nobody's business."""
    method: str
    caller: str | None
    """Account of the key, None where no key was asked for."""
    key_id: str | None
    kind: str
    """sync, stream, realtime, queue."""
    revision: str | None
    runner: str | None
    """The last one that had it."""
    attempts: int
    """Times that a runner was asked; 0: none ever was."""
    status: int
    error_type: str | None
    started_at: int
    ended_at: int
    queued_ms: float
    cold_start_ms: float
    inference_ms: float
    bytes_in: int
    bytes_out: int


class CallFilter(NamedTuple):
    """Which lines of the request log are wanted; the newest come first."""

    account: str
    app: str | None = None
    """`owner/alias`."""
    request_id: str | None = None
    statuses: tuple[int, int] = (0, 999)
    """The lowest and the highest."""
    since: int = 0
    """Ended at this moment or later."""
    limit: int = 100


class CallOutcome(NamedTuple):
    """What came of a call, and how long it took."""

    revision: str
    status: int
    started_at: int
    took_ms: float | None
    """Of a queued request its last try; None of a session, which lasts as long as its caller likes."""


class Phases(NamedTuple):
    """How a call spent its time, in seconds."""

    queued: float
    cold_start: float
    run: float


def phases(began: float, opened: float, sent: float, now: float) -> Phases:
    """Split a call's time.

    began: when it came; opened: when its runner began to take calls; sent: when that runner was sent it, 0 if none was.
    """
    if not sent:
        return Phases(now - began, 0.0, 0.0)
    if opened <= began:
        return Phases(sent - began, 0.0, now - sent)
    cold = opened - began if began < opened <= sent else 0.0
    return Phases(sent - began - cold, cold, now - sent)


def server_timing(split: Phases) -> bytes:
    """Return the header line that tells a caller how its time was spent, in milliseconds."""
    if not split.cold_start:
        return b"server-timing: queue;dur=%.1f, start;dur=0.0, run;dur=%.1f\r\n" % (
            split.queued * 1e3,
            split.run * 1e3,
        )
    return b"server-timing: queue;dur=%.1f, start;dur=%.1f, run;dur=%.1f\r\n" % (
        split.queued * 1e3,
        split.cold_start * 1e3,
        split.run * 1e3,
    )
