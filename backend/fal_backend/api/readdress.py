"""Addresses of fal.ai, as its JavaScript client sends them to a proxy, and the same places here; pure.

Rules: `POST /api/fal/proxy` with `x-fal-target-url` is served as if the place had been asked directly, with the
caller's own key; any other host is refused, so that nothing here is a way to elsewhere.
Source: @fal-ai/client 1.10.1, `proxyUrl`; @fal-ai/server-proxy.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["PROXY", "TARGET", "readdress"]

PROXY = b"/api/fal/proxy"
"""The path at which fal's own proxy answers, and so does ours."""

TARGET = b"x-fal-target-url"

_URL = re.compile(rb"https://[a-z0-9.]+/[!-~]*")
"""It becomes a request's first line: nothing in it may end that."""

_PLACES = {
    "fal.run": "/run",
    "queue.fal.run": "/queue",
    "ws.fal.run": "/ws",
    "rest.fal.ai": "/rest",
    "rest.alpha.fal.ai": "/rest",
    "v3.fal.media": "",
}


def readdress(target: bytes) -> bytes | None:
    """Return path and query here for an address at fal, None for any other address."""
    if _URL.fullmatch(target) is None:
        return None
    parts = urlsplit(target.decode("ascii"))
    place = _PLACES.get(parts.netloc)
    if place is None:
        return None
    path = f"{place}{parts.path}"
    return f"{path}?{parts.query}".encode() if parts.query else path.encode()
