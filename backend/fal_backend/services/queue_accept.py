"""Submissions as rows, and what the platform answers where the App did not.

Rules: the caller's key never gets into a row; nothing hop-by-hop, nothing that is the platform's to say.
"""

from __future__ import annotations

import functools
import hashlib
import json

from fal_backend.domain.records import Request, RequestState
from fal_backend.domain.request import NOT_FORWARDED, Refusal
from fal_backend.ports import Payload
from fal_backend.services import queue_rows as rows
from fal_backend.services.queue_runs import encode_headers
from fal_backend.services.queue_values import StoredAnswer, Submission
from fal_notebook.errors import LimitError

__all__ = ["LOW", "new_request", "no_room", "platform_answer"]

LOW = "low"
_NOT_KEPT = NOT_FORWARDED | {b"content-length", b"host", b"idempotency-key"}


def new_request(
    submission: Submission, id: int, request_id: str, branch: str | None
) -> tuple[Request, bytes | None]:
    """Return the row of a submission, and its body where that goes into the store."""
    info, now = submission.route.info, rows.now_us()
    body = submission.body if isinstance(submission.body, bytes) else None
    ref = rows.file_ref(submission.body.name) if isinstance(submission.body, Payload) else None
    idempotency = input_hash = None
    if submission.idempotency_key is not None:
        endpoint = submission.route.key + submission.path
        idempotency = rows.idempotency_of(info.account, endpoint, submission.idempotency_key)
        input_hash = (
            submission.body.sha256
            if isinstance(submission.body, Payload)
            else hashlib.sha256(submission.body).hexdigest()
        )
    limits_s = [s for s in (submission.start_timeout_s, info.start_timeout_s) if s]
    start_s = min(limits_s) if limits_s else None
    row = Request(
        id=id,
        request_id=request_id,
        account=info.account,
        app=submission.route.key,
        method=submission.method,
        path=submission.path + submission.query,
        headers_json=_kept_headers(submission.headers),
        lane=LOW if submission.is_low else "normal",
        state=RequestState.QUEUED.value,
        submitted_at=now,
        caller=submission.caller,
        input_ref=rows.INLINE_REF if body else ref,
        start_deadline=None if start_s is None else now + int(start_s * 1e6),
        deadline_by_caller=int(start_s is not None and start_s == submission.start_timeout_s),
        no_retry=int(submission.no_retry),
        store_io=int(submission.store_io),
        hint=submission.hint,
        webhook=submission.webhook,
        idempotency=idempotency,
        input_hash=input_hash,
        branch=branch,
    )
    return row, body


@functools.lru_cache(512)
def _kept_headers(headers: tuple[tuple[bytes, bytes], ...]) -> str:
    """Return the headers for the App as JSON: no key, nothing hop-by-hop, nothing that is ours to say.

    Callers repeat themselves, so that the last few are remembered.
    """
    lowered = ((name.lower(), value) for name, value in headers)
    return encode_headers(
        tuple(
            (name, value)
            for name, value in lowered
            if name not in _NOT_KEPT and not name.startswith(b"x-fal-nb-")
        )
    )


def no_room(error: LimitError) -> Refusal:
    """Return what a caller is told whose body could not be stored."""
    if error.code == "limit.disk_full":
        return Refusal(507, error.message, None, ((b"retry-after", b"30"),))
    return Refusal(413, "The body is too large")


def platform_answer(row: Request, revision: str | None = None) -> StoredAnswer:
    """Return the answer that the platform gives where the App gave none."""
    headers = [(b"content-type", b"application/json")]
    if row.error_type is not None:
        headers.append((b"x-fal-error-type", row.error_type.encode()))
    if row.status_code == 504 and row.error_type is None:
        headers.append((b"x-fal-request-timeout-type", b"user"))
    body = _problem(row.error or "", row.error_type)
    return StoredAnswer(
        row.status_code or 500,
        tuple(headers),
        body,
        row.error_type,
        row.caller,
        row.account,
        row.runner,
        revision,
    )


def _problem(detail: str, error_type: str | None) -> bytes:
    """Return the body of a platform error."""
    return json.dumps({"detail": detail} | ({"error_type": error_type} if error_type else {})).encode()
