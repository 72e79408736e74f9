"""A request's headers, judged once: callers repeat themselves, so a connection keeps the last head it saw.

Rules: a head is a value; `forwarded` and its like are what was derived from it and never change. The length of the
body is not part of it, because it is what differs between otherwise equal requests.
"""

from __future__ import annotations

from collections.abc import Iterable

from fal_backend.api.access import Pass
from fal_backend.domain.request import NOT_FORWARDED
from fal_backend.services.routes import RouteInfo

__all__ = ["Head", "Headers", "header_lines"]

Headers = list[tuple[bytes, bytes]]

_LIFECYCLE = b"x-fal-object-lifecycle-preference"


class Head:
    """The headers of a request with what follows from them."""

    __slots__ = (
        "authorization",
        "extra",
        "forwarded",
        "found",
        "headers",
        "hint",
        "is_chunked",
        "is_stream",
        "is_websocket",
        "leave",
        "method",
        "needs_continue",
        "raw",
        "start_timeout",
        "verb",
    )

    def __init__(self, method: bytes, raw: Headers) -> None:
        self.method = method
        self.verb = method.decode("latin-1")
        """The same as text."""
        self.raw = raw
        """Name and value as they came."""
        self.headers = [(name.lower(), value) for name, value in raw]
        self.found = dict(self.headers)
        """The same by name; of a repeated one the last."""
        found = self.found
        self.is_chunked = b"transfer-encoding" in found
        self.needs_continue = found.get(b"expect", b"").lower() == b"100-continue"
        self.is_websocket = found.get(b"upgrade", b"").strip().lower() == b"websocket"
        self.is_stream = found.get(b"accept", b"").startswith(b"text/event-stream")
        self.authorization = found.get(b"authorization")
        self.hint = found.get(b"x-fal-runner-hint")
        self.start_timeout = found.get(b"x-fal-request-timeout")
        self.forwarded = _forwarded(self.headers, found)
        """Header lines for a runner: no key, no cookie, nothing hop-by-hop, nothing that is ours to say."""
        self.leave: tuple[RouteInfo, Pass] | None = None
        """What its key was found good for last."""
        self.extra: Headers = []
        """Headers that the answer carries because of where the request came from."""

    def forwarded_in(self, traceparent: bytes) -> bytes:
        """Return the header lines for a runner, with this `traceparent` in place of the caller's."""
        line = b"traceparent: %b\r\n" % traceparent
        if b"traceparent" not in self.found:
            return line + self.forwarded
        others = [pair for pair in self.headers if pair[0] != b"traceparent"]
        return line + _forwarded(others, self.found)

    def count(self, name: bytes) -> int:
        """Return how often a header came."""
        return sum(other == name for other, _ in self.headers)


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return headers as they are sent."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _forwarded(headers: Headers, found: dict[bytes, bytes]) -> bytes:
    named = frozenset(token.strip().lower() for token in found.get(b"connection", b"").split(b","))
    lines = [
        b"%b: %b\r\n" % (name, value)
        for name, value in headers
        if name not in NOT_FORWARDED and name not in named and not name.startswith(b"x-fal-nb-")
    ]
    if _LIFECYCLE not in found:
        lines.append(_LIFECYCLE + b": {}\r\n")
    return b"".join(lines)
