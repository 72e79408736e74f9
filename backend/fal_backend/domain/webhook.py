"""A webhook's life as a pure machine, and the words that are sent and signed.

Rules: ten repeats within two hours; then it is dead until somebody asks for it again. Any answer of 2XX is a delivery;
a redirect is not followed and counts as a failure. An address that may not be reached is dead at once: no repeat would
change it. Times are integer microseconds; chance is passed in.
Source: fal documentation, "Webhooks".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from fal_backend.domain.records import Request, Webhook, WebhookState

__all__ = [
    "REPEATS",
    "Tried",
    "hook_body",
    "hook_of",
    "hook_step",
    "redelivered",
    "repeat_pause_us",
    "signed_text",
]

REPEATS = 10
"""Source: fal documentation, "Webhooks": 10 retries in 2 hours."""

_FIRST_PAUSE_US = 1_000_000
_GROWTH = 2.5


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one delivery."""

    status: int | None = None
    """The receiver's answer; None: there was none."""
    error: str | None = None
    """Why there was none."""
    is_final: bool = False
    """No repeat will change it."""


def hook_of(done: Request) -> Webhook | None:
    """Return the webhook's row of a request that has ended, None where it wants none."""
    if done.webhook is None:
        return None
    ended_at = done.ended_at or done.submitted_at
    return Webhook(
        id=done.request_id,
        request=done.id,
        account=done.account,
        app=done.app.partition("/")[2],
        url=done.webhook,
        state=WebhookState.PENDING.value,
        created_at=ended_at,
        due_at=ended_at,
    )


def hook_step(row: Webhook, tried: Tried, now: int, chance: float) -> Webhook:
    """Return the row after a delivery was tried; chance is a number from 0 to 1."""
    attempts = row.attempts + 1
    after = replace(row, attempts=attempts, status_code=tried.status, error=tried.error)
    if tried.status is not None and 200 <= tried.status < 300:
        return replace(after, state=WebhookState.DELIVERED.value, due_at=None, ended_at=now, error=None)
    if tried.error is None:
        after = replace(after, error=f"The receiver answered {tried.status}")
    if tried.is_final or attempts > REPEATS:
        return replace(after, state=WebhookState.DEAD.value, due_at=None, ended_at=now)
    return replace(
        after, state=WebhookState.PENDING.value, due_at=now + repeat_pause_us(attempts, chance), ended_at=None
    )


def redelivered(row: Webhook, now: int) -> Webhook:
    """Return the row as if it had never been tried."""
    return replace(row, state=WebhookState.PENDING.value, due_at=now, attempts=0, ended_at=None)


def repeat_pause_us(attempts: int, chance: float) -> int:
    """Return the microseconds before the next try; attempts counts the tries so far, from 1.

    From one second on, 2.5 times as long after each, give or take a tenth: with every try at its time-out, all lie
    within two hours.
    """
    full = _FIRST_PAUSE_US * _GROWTH ** (min(max(attempts, 1), REPEATS) - 1)
    return int(full * (0.9 + 0.2 * chance))


def hook_body(done: Request, answer: bytes | None, why_none: str | None = None) -> bytes:
    """Return the JSON that the receiver reads.

    answer is what the App, or the platform in its place, answered; None: it cannot be sent, and why_none says why.
    """
    status = done.status_code or 500
    said: dict[str, Any] = {"request_id": done.request_id, "gateway_request_id": done.request_id}
    if status < 400:
        said["status"] = "OK"
    else:
        said |= {"status": "ERROR", "error": f"Invalid status code: {status}"}
    payload = None if answer is None else _json_text(answer)
    if payload is None:
        said |= {"payload": None, "payload_error": why_none or "The answer is not JSON"}
        return json.dumps(said).encode()
    # The answer's own text goes in: read and written again, its numbers and its order could change.
    return json.dumps(said).encode()[:-1] + b', "payload": ' + payload + b"}"


def signed_text(request_id: str, user_id: str, timestamp: str, body: bytes) -> bytes:
    """Return what is signed. Source: fal documentation, "Webhooks", verification."""
    return "\n".join((request_id, user_id, timestamp, hashlib.sha256(body).hexdigest())).encode()


def _json_text(answer: bytes) -> bytes | None:
    """Return an answer if it is JSON by the letter: no NaN, no other encoding."""
    try:
        json.loads(answer.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return answer


def _refuse(constant: str) -> None:
    raise ValueError(constant)
