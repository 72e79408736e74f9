"""Takes what runners tell of their calls, `POST /rest/spans`, and passes it on to where traces go; plain ASGI.

Rules: only a runner that lives may tell, by its own token; whose spans they are is taken from the token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fal_backend.domain.signature import SigningKeys, read_words
from fal_backend.domain.spans import read_spans
from fal_backend.services.tracing import Tracer

__all__ = ["SpanDoor"]

_MOST_BYTES = 1 << 20


class SpanDoor:
    """See the module."""

    def __init__(self, tracer: Tracer, keys: SigningKeys, app_of: Callable[[str], str | None]) -> None:
        """app_of: `owner/alias` of a runner that lives."""
        self._tracer = tracer
        self._keys = keys
        self._app_of = app_of

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        status = await self._take(dict(scope["headers"]).get(b"authorization", b""), receive)
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _take(self, authorization: bytes, receive: Any) -> int:
        words = read_words(self._keys, authorization.decode("latin-1").removeprefix("Bearer ").strip())
        app = self._app_of(words[1]) if words is not None and words[0] == "runner" else None
        if words is None or app is None:
            return 401
        body = bytearray()
        is_more = True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
            if len(body) > _MOST_BYTES:
                return 413
        try:
            spans = read_spans(json.loads(body))
        except (ValueError, RecursionError):
            return 400
        self._tracer.relay(app, words[1], spans)
        return 204
