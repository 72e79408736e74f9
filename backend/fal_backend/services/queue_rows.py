"""What the queue does to its rows: pure functions of a transaction, which may run more than once.

Rules: every change is `domain.queue.step`, made in the writer's thread from the row as it is then; what follows from
an end (a webhook's job) is written in the same transaction.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from fal_backend.domain.queue import Ended, Outcome, RequestEvent, step
from fal_backend.domain.records import Attempt, Request, RequestState
from fal_backend.domain.request import Condition, Refusal
from fal_backend.domain.request_rows import replace
from fal_backend.ports import Reader, Tx

__all__ = [
    "INLINE_REF",
    "Change",
    "DoneHook",
    "accept",
    "accept_for",
    "apply",
    "claim",
    "file_of",
    "file_ref",
    "find",
    "finish",
    "idempotency_of",
    "now_us",
    "runners_of",
    "trim",
]

INLINE_REF = "inline"
_FILE = "file:"
_KEY_US = 24 * 3600 * 1_000_000

DoneHook = Callable[[Tx, Request], None]


def now_us() -> int:
    """Return the wall clock in microseconds."""
    return time.time_ns() // 1000


def file_of(ref: str | None) -> str | None:
    """Return the payload file that a reference names."""
    return ref.removeprefix(_FILE) if ref is not None and ref.startswith(_FILE) else None


def file_ref(name: str) -> str:
    """Return the reference to a payload file."""
    return _FILE + name


def idempotency_of(account: str, endpoint: str, key: str) -> str:
    """Return what an `Idempotency-Key` is kept under: it holds for one endpoint of one owner."""
    return hashlib.sha256("\0".join((account, endpoint, key)).encode()).hexdigest()


def accept(tx: Tx, row: Request, body: bytes | None) -> Request:
    """Insert a request, or return the one that came with the same key before.

    Raises: Refusal 422 when that one had another body.
    """
    if row.idempotency is not None:
        known = tx.requests.by_idempotency(row.idempotency)
        if known is not None and known.submitted_at > row.submitted_at - _KEY_US:
            if known.input_hash != row.input_hash:
                raise Refusal(422, "This Idempotency-Key came with another body before", "bad_request")
            return known
    tx.requests.accept(row)
    if body:
        tx.requests.put_body(row.id, body)
    return row


def accept_for(
    tx: Tx, row: Request, body: bytes | None, runner: str, lease_us: int
) -> tuple[Request, Request | None]:
    """Insert a request that a runner has a free slot for, leased to it; None where it came before.

    Raises: Refusal 422 as `accept`.
    """
    stored = accept(tx, row, body)
    if stored is not row:
        return stored, None
    now = now_us()
    return stored, tx.requests.claim(row.id, runner, now, now + lease_us)


def claim(tx: Tx, id: int, runner: str, lease_us: int) -> tuple[Request, bytes | None] | None:
    """Lease a queued request to a runner and return it with its small body; None: it is not queued any more."""
    now = now_us()
    row = tx.requests.claim(id, runner, now, now + lease_us)
    if row is None:
        return None
    return row, tx.requests.body(id) if row.input_ref == INLINE_REF else None


def finish(
    tx: Tx, row: Request, outcome: Outcome, body: bytes | None, hook: DoneHook | None
) -> Request | None:
    """Write a request's outcome with its small answer; None: this try is not the present one any more."""
    now = now_us()
    if not tx.requests.finish(row.id, row.attempt, outcome, now):
        return None
    leased = row if row.state == RequestState.LEASED else replace(row, state=RequestState.LEASED.value)
    done = step(leased, Ended(row.attempt, outcome), now)
    done = replace(done, version=row.version + 1)
    _conclude(tx, done, body, hook)
    return done


@dataclass(frozen=True, slots=True)
class Change:
    """A row before and after an event; the same one when it changed nothing."""

    before: Request
    after: Request

    @property
    def is_done(self) -> bool:
        """The event ended the request."""
        return self.after is not self.before and self.after.state == RequestState.DONE


def apply(
    tx: Tx,
    id: int,
    event: RequestEvent,
    *,
    hook: DoneHook | None = None,
    reason: str | None = None,
    body: bytes | None = None,
    at: int = 0,
) -> Change | None:
    """Let something happen to a request; None: there is no such request.

    reason is noted as the end of a try; body is the small answer that came with the event; at is the moment that a
    timer was set for, which counts where the clock was set back.
    """
    row = tx.get(Request, id)
    if row is None:
        return None
    now = max(now_us(), at)
    after = step(row, event, now)
    if after is row:
        return Change(row, row)
    if isinstance(event, Ended) and event.again is not None:
        after = _note_try(tx, row, after, event.again.condition, reason or "", now)
    after = tx.update(after)
    if after.state == RequestState.DONE:
        _conclude(tx, after, body if after.answer_ref == INLINE_REF else None, hook)
    return Change(row, after)


def _note_try(tx: Tx, row: Request, after: Request, why: Condition, reason: str, now: int) -> Request:
    began = row.started_at if row.started_at is not None else now
    id = f"{row.id}/{row.attempt}"
    tx.put(Attempt(id, row.id, row.attempt, row.runner or "", began, now, f"{why}: {reason}"))
    if after.state != RequestState.DONE or after.error is None or after.cancel_asked:
        return after
    tries = sorted(tx.find(Attempt, request=row.id), key=lambda one: one.attempt)
    told = "; ".join(f"attempt {one.attempt} on {one.runner}: {one.reason}" for one in tries)
    return replace(after, error=f"{after.error} ({told})")


def _conclude(tx: Tx, done: Request, body: bytes | None, hook: DoneHook | None) -> None:
    if body:
        tx.requests.put_body(done.id, body, answer=True)
    if not done.store_io:
        tx.requests.drop_body(done.id)
    if hook is not None:
        hook(tx, done)


def trim(tx: Tx, before: int, limit: int) -> list[str | None]:
    """Remove requests that ended before a moment and return the payload files, two (or None) for each."""
    gone: list[str | None] = []
    for old in tx.requests.old(before, limit):
        tx.requests.forget(old.id)
        gone += [file_of(old.input_ref), file_of(old.answer_ref)]
    return gone


def callers(reader: Reader, numbers: list[int]) -> dict[int, str | None]:
    """Return who submitted each of these requests, of those that still wait."""
    found = (reader.get(Request, number) for number in numbers)
    return {row.id: row.caller for row in found if row is not None and row.ended_at is None}


def find(reader: Reader, app: str, request_id: str) -> Request:
    """Return a request of an app. Raises: Refusal 404."""
    for row in reader.find(Request, request_id=request_id):
        if row.app == app:
            return row
    raise Refusal(404, f"Request '{request_id}' not found")


def runners_of(reader: Reader, row: Request) -> list[str]:
    """Return the runners that have had a request, in order."""
    tries = reader.find(Attempt, request=row.id) if row.attempt > 1 else []
    runners = [one.runner for one in sorted(tries, key=lambda one: one.attempt)]
    return list(dict.fromkeys(name for name in (*runners, row.runner) if name))
