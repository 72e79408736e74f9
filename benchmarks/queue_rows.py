"""Requests as rows, for the benches that speak to the store itself."""

from __future__ import annotations

from fal_backend.domain.records import Request
from fal_backend.services import queue_rows as rows

__all__ = ["BODY", "HEADERS", "request"]

BODY = b'{"prompt": "a cat", "steps": 4}' * 8
HEADERS = '[["content-type","application/json"],["user-agent","fal-client/1.0.3 (python)"]]'


def request(number: int) -> Request:
    """A request as a caller's submission makes it."""
    return Request(
        id=number,
        request_id=f"{number * 2654435761 % 2**32:08x}-0000-4000-8000-{number:012x}",
        account="a-1",
        app="ada/digits",
        method="POST",
        path="/",
        headers_json=HEADERS,
        lane="normal",
        state="queued",
        submitted_at=1_700_000_000_000_000 + number,
        caller="a-1",
        input_ref=rows.INLINE_REF,
    )
