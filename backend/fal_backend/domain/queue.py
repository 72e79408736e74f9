"""A queued request's life as a pure machine: accepted once, tried up to ten times, ended exactly once.

Rules: whatever comes of a try carries its number, and an older number changes nothing; `done` never changes.
A runner that could not be reached, or refused at its gate, was no try. Waiting ends at an absolute time over all
tries, which no longer counts while a runner has the request. Times are integer microseconds; chance is passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

from fal_backend.domain.records import Request, RequestState
from fal_backend.domain.request import Condition
from fal_backend.domain.request_rows import replace

__all__ = [
    "ATTEMPTS",
    "LOST_LIMIT",
    "Again",
    "Beat",
    "Cancel",
    "Claim",
    "Dropped",
    "Effect",
    "Ended",
    "Outcome",
    "RequestEvent",
    "Returned",
    "Tick",
    "pause_us",
    "step",
    "wanted",
]

ATTEMPTS = 10
"""Tries at most. Source: fal, "Retries and Error Handling"."""

LOST_LIMIT = 2
"""Repeats after a runner ended by itself: at the third such end the request is set aside."""

_FIRST_PAUSE_US = 100_000
_LONGEST_PAUSE_US = 10_000_000


class Effect(StrEnum):
    """What the shell does for a request; each is idempotent by request id and attempt."""

    RING = "ring"
    """It stands in its app's line."""
    DISPATCH = "dispatch"
    """Its runner has it, or is asked for what came of it."""
    CANCEL_ON_RUNNER = "cancel_on_runner"
    FORGET_ANSWER = "forget_answer"
    """The runner need not keep the answer any longer."""
    WEBHOOK = "webhook"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended, as it will be told if it was the last."""

    status: int
    error_type: str | None = None
    error: str | None = None
    headers_json: str | None = None
    answer_ref: str | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """The try is to be repeated, if the limits allow."""

    condition: Condition
    pause: int
    """Microseconds to wait, see `pause_us`."""
    limit: int | None = None
    """Repeats for this condition at most; None: only the limit of all tries."""
    is_counted: bool = True
    """False: the runner was asked to end, which says nothing of the request."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A runner with a free slot takes it."""

    runner: str
    lease_until: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A try ended: with an answer, or without."""

    attempt: int
    outcome: Outcome
    again: Again | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """The runner has certainly not begun it: no try."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The runner's process lives."""

    attempt: int
    lease_until: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller does not want it any more."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Its app is no more."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""

    short: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    """Why runners find no place now, by app and branch."""


RequestEvent = Claim | Ended | Returned | Beat | Cancel | Dropped | Tick

_TOO_LATE_USER = Outcome(504, None, "The request was not started within the time that its caller gave")
_TOO_LATE_APP = Outcome(504, "startup_timeout", "No runner took the request in time")
_CANCELLED = Outcome(499, "client_cancelled", "The request was cancelled")


def step(row: Request, event: RequestEvent, now: int) -> Request:
    """Return the row after the event; the same object when it changes nothing."""
    if row.state == RequestState.DONE:
        return row
    match event:
        case Claim():
            return _claim(row, event, now)
        case Ended():
            return _ended(row, event, now)
        case Returned():
            return _returned(row, event, now)
        case Beat():
            return replace(row, lease_until=event.lease_until) if _is_present(row, event.attempt) else row
        case Cancel():
            return _cancel(row, now)
        case Dropped():
            return _dropped(row, now)
        case Tick():
            return _tick(row, now, event.short.get((row.app, row.branch)))
        case _:
            assert_never(event)


def wanted(row: Request) -> frozenset[Effect]:
    """Return what should be true of the world for this row."""
    match RequestState(row.state):
        case RequestState.QUEUED:
            return frozenset({Effect.RING})
        case RequestState.DELAYED:
            return frozenset()
        case RequestState.LEASED:
            own = {Effect.DISPATCH}
            return frozenset(own | {Effect.CANCEL_ON_RUNNER} if row.cancel_asked else own)
        case RequestState.DONE:
            told = {Effect.WEBHOOK} if row.webhook is not None else set()
            return frozenset(told | {Effect.FORGET_ANSWER} if row.runner is not None else told)


def pause_us(attempt: int, chance: float) -> int:
    """Return the microseconds before the next try; chance is a number from 0 to 1.

    Twice as long after each try, up to 10 s; half of it is left to chance.
    """
    full = min(_LONGEST_PAUSE_US, _FIRST_PAUSE_US * 2 ** min(max(attempt - 1, 0), 16))
    return int(full * (0.5 + 0.5 * chance))


def _is_present(row: Request, attempt: int) -> bool:
    return row.state == RequestState.LEASED and row.attempt == attempt


def _claim(row: Request, event: Claim, now: int) -> Request:
    if row.state != RequestState.QUEUED:
        return row
    return replace(
        row,
        state=RequestState.LEASED.value,
        attempt=row.attempt + 1,
        runner=event.runner,
        lease_until=event.lease_until,
        started_at=now,
        not_before=None,
    )


def _ended(row: Request, event: Ended, now: int) -> Request:
    if not _is_present(row, event.attempt):
        return row
    again = event.again
    if again is None or row.no_retry:
        return _done(row, event.outcome, now)
    if row.cancel_asked:
        return _done(row, _CANCELLED, now)
    counted, count = _count(row, again.condition) if again.is_counted else (row, 0)
    if row.attempt >= ATTEMPTS or (again.limit is not None and count > again.limit):
        return _done(counted, event.outcome, now)
    return replace(
        counted,
        state=RequestState.DELAYED.value,
        not_before=now + again.pause,
        lease_until=None,
    )


def _count(row: Request, condition: Condition) -> tuple[Request, int]:
    match condition:
        case Condition.CONNECTION_ERROR:
            return replace(row, lost=row.lost + 1), row.lost + 1
        case Condition.TIMEOUT:
            return replace(row, timeouts=row.timeouts + 1), row.timeouts + 1
        case Condition.SERVER_ERROR:
            return replace(row, errors=row.errors + 1), row.errors + 1


def _returned(row: Request, event: Returned, now: int) -> Request:
    if not _is_present(row, event.attempt):
        return row
    if row.cancel_asked:
        return _done(row, _CANCELLED, now)
    return replace(
        row,
        state=RequestState.QUEUED.value,
        attempt=row.attempt - 1,
        runner=None,
        lease_until=None,
        started_at=None,
    )


def _cancel(row: Request, now: int) -> Request:
    if row.state != RequestState.LEASED:
        return _done(row, _CANCELLED, now)
    return row if row.cancel_asked else replace(row, cancel_asked=1)


def _dropped(row: Request, now: int) -> Request:
    if row.state == RequestState.LEASED:
        return row
    alias = row.app.partition("/")[2]
    return _done(row, Outcome(404, None, f"Application '{alias}' not found"), now)


def _tick(row: Request, now: int, short_of: str | None) -> Request:
    if row.state == RequestState.LEASED:
        return row
    if row.start_deadline is not None and now >= row.start_deadline:
        return _done(row, _too_late(row, short_of), now)
    if row.state == RequestState.DELAYED and (row.not_before is None or now >= row.not_before):
        return replace(row, state=RequestState.QUEUED.value, not_before=None)
    return row


def _too_late(row: Request, short_of: str | None) -> Outcome:
    if row.deadline_by_caller:
        return _TOO_LATE_USER
    if short_of is None:
        return _TOO_LATE_APP
    return Outcome(503, "runner_scheduling_failure", f"No runner could be started: {short_of}")


def _done(row: Request, outcome: Outcome, now: int) -> Request:
    return replace(
        row,
        state=RequestState.DONE.value,
        status_code=outcome.status,
        error_type=outcome.error_type,
        error=outcome.error,
        answer_headers_json=outcome.headers_json,
        answer_ref=outcome.answer_ref,
        not_before=None,
        lease_until=None,
        ended_at=now,
    )
