"""How a stored file is sent: ranges, validators, and headers that keep a browser from running it.

Rules: what a page could run is only ever downloaded; everything carries `nosniff` and a sandbox. A file never
changes under its address, so its content's hash is its etag.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import quote

from fal_backend.api.head import Headers
from fal_backend.domain.records import File

__all__ = ["Plan", "Unsatisfiable", "disposition", "plan"]

_SHOWN = re.compile(r"(image/(?!svg)|audio/|video/|text/plain\b|application/json\b|application/pdf\b)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_YEAR_S = 365 * 24 * 3600
_SANDBOX = b"default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; sandbox"


class Unsatisfiable(Exception):
    """No byte of the file is in the asked range."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is answered."""

    status: int
    headers: Headers
    start: int
    length: int


def plan(row: File, asked: dict[bytes, bytes]) -> Plan:
    """Return status, headers and part for a request of a ready file."""
    size, etag = row.size_bytes or 0, f'"{row.sha256}"'.encode()
    headers = _headers(row, etag)
    if _names(asked.get(b"if-none-match"), etag):
        return Plan(304, headers, 0, 0)
    wanted = asked.get(b"range")
    if wanted is not None and asked.get(b"if-range", etag) == etag:
        try:
            part = _part(wanted.decode("latin-1"), size)
        except Unsatisfiable:
            headers += [(b"content-range", b"bytes */%d" % size), (b"content-length", b"0")]
            return Plan(416, headers, 0, 0)
        if part is not None:
            start, end = part
            headers.append((b"content-range", b"bytes %d-%d/%d" % (start, end - 1, size)))
            headers.append((b"content-length", b"%d" % (end - start)))
            return Plan(206, headers, start, end - start)
    headers.append((b"content-length", b"%d" % size))
    return Plan(200, headers, 0, size)


def _part(wanted: str, size: int) -> tuple[int, int] | None:
    """Return [start, end) of a range, None for what may be answered whole: several ranges, other units."""
    matched = _RANGE.fullmatch(wanted.replace(" ", ""))
    if matched is None or matched.groups() == ("", ""):
        return None
    first, last = matched.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= end:
        raise Unsatisfiable
    return start, end


def _names(header: bytes | None, etag: bytes) -> bool:
    if header is None:
        return False
    return any(one.strip().removeprefix(b"W/") in (etag, b"*") for one in header.split(b","))


def _headers(row: File, etag: bytes) -> Headers:
    left_s = _YEAR_S if row.expires_at is None else max(0, int(row.expires_at / 1e6 - time.time()))
    return [
        (b"content-type", row.content_type.encode("latin-1", "replace")),
        (b"content-disposition", disposition(row.name, row.content_type).encode()),
        (b"etag", etag),
        (b"last-modified", formatdate(row.created_at / 1e6, usegmt=True).encode()),
        (b"accept-ranges", b"bytes"),
        (b"cache-control", b"public, max-age=%d, immutable" % min(left_s, _YEAR_S)),
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", _SANDBOX),
        (b"cross-origin-resource-policy", b"cross-origin"),
        (b"referrer-policy", b"no-referrer"),
    ]


def disposition(name: str, content_type: str) -> str:
    """Return `Content-Disposition`: shown in the page only where nothing of it can run."""
    kind = "inline" if _SHOWN.match(content_type.lower()) else "attachment"
    return f"{kind}; filename*=UTF-8''{quote(name, safe='')}"
