"""What an address under `/queue/` asks for; pure.

Rules: `/requests/{id}` behind an app names a request, with or without a slash at its end and never with a sub-path of
the app; whatever else stands there is the path that is submitted.
Source: fal_client 1.0.3, fal.apps and @fal-ai/client 1.10.1, which build these addresses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import parse_qs, unquote_to_bytes

from fal_backend.domain.request import Refusal

__all__ = ["Ask", "QueueTarget", "parse_queue_target"]

_PREFIX = b"/queue/"
_REQUEST = re.compile(r"/requests/([^/]+)(/status/stream|/status|/cancel)?/?")
_WEBHOOK = "fal_webhook="
_TRUE = ("1", "true")


class Ask(Enum):
    """What is wanted of the queue."""

    SUBMIT = auto()
    STATUS = auto()
    FOLLOW = auto()
    RESULT = auto()
    CANCEL = auto()


_ASKS = {"": Ask.RESULT, "/status": Ask.STATUS, "/status/stream": Ask.FOLLOW, "/cancel": Ask.CANCEL}
_READS = frozenset({b"GET", b"HEAD"})
_METHODS = {
    Ask.SUBMIT: frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"}),
    Ask.STATUS: _READS,
    Ask.FOLLOW: frozenset({b"GET"}),
    Ask.RESULT: _READS,
    Ask.CANCEL: frozenset({b"PUT", b"POST"}),
}


@dataclass(frozen=True, slots=True)
class QueueTarget:
    """An address, taken apart."""

    ask: Ask
    owner: str
    alias: str
    path: str = "/"
    """What the App is asked for, still quoted; only of a submission."""
    query: str = ""
    """With its question mark, without what is the queue's."""
    webhook: str | None = None
    request_id: str = ""
    logs: bool = False

    @property
    def key(self) -> bytes:
        """Return `owner/alias`."""
        return f"{self.owner}/{self.alias}".encode("latin-1")


def parse_queue_target(raw: bytes, method: bytes) -> QueueTarget:
    """Take an address apart. Raises: Refusal 404 without owner and alias, 400 a path that climbs, 405."""
    whole, _, query = raw.partition(b"?")
    owner, slash, rest = whole[len(_PREFIX) :].decode("latin-1").partition("/")
    alias, slash, tail = rest.partition("/")
    if not owner or not alias:
        raise Refusal(404, "The address of an app's queue is /queue/{owner}/{alias}")
    path = slash + tail or "/"
    target = _target(owner, alias, path, query.decode("latin-1"))
    allowed = _METHODS[target.ask]
    if method not in allowed:
        raise Refusal(405, "Method Not Allowed", headers=((b"allow", b", ".join(sorted(allowed))),))
    return target


def _target(owner: str, alias: str, path: str, query: str) -> QueueTarget:
    matched = _REQUEST.fullmatch(path)
    if matched is None:
        if _is_climbing(path):
            raise Refusal(400, "The path is not acceptable", "bad_request")
        left, webhook = _without_webhook(query) if _WEBHOOK in query else (query, None)
        return QueueTarget(Ask.SUBMIT, owner, alias, path, f"?{left}" if left else "", webhook)
    logs = "logs=" in query and parse_qs(query).get("logs", [""])[-1].lower() in _TRUE
    return QueueTarget(_ASKS[matched[2] or ""], owner, alias, request_id=matched[1], logs=logs)


def _without_webhook(query: str) -> tuple[str, str | None]:
    left = [part for part in query.split("&") if not part.startswith(_WEBHOOK)]
    return "&".join(left), parse_qs(query).get("fal_webhook", [None])[-1]


def _is_climbing(path: str) -> bool:
    if not ("%" in path or "/." in path or "\\" in path):
        return False
    plain = unquote_to_bytes(path)
    return b"\x00" in plain or any(part in (b".", b"..") for part in plain.replace(b"\\", b"/").split(b"/"))
