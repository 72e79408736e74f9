"""Spans of a runner: its `setup()` and each call, told to the backend, which sends them to where traces go.

Standard library only: an image need not have OpenTelemetry, and no key of a collector gets near an App.
Rules: made only where the backend asked for it and only for calls that are traced; telling is a thread's work and never
waits for the backend; what cannot be told in time is dropped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

__all__ = ["OpenSpan", "Spans"]

_PARENT = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_PATH = "/rest/spans"
_BATCH = 256
_WAITING = 4096
_PAUSE_S = 0.5
_TIMEOUT_S = 2.0
_SOON_NS = 1_000_000_000


@dataclass(slots=True)
class OpenSpan:
    """Something that goes on."""

    name: str
    trace: str
    parent: str | None
    start: int
    span: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        """What a call made meanwhile says of where it comes from."""
        return f"00-{self.trace}-{self.span}-01"


class Spans:
    """Collects spans on the loop and in hooks; a thread of its own sends them."""

    def __init__(self, socket_path: str, url: str, token: str) -> None:
        """url: where the backend answers a runner in a cage, from which its socket cannot be reached."""
        self._socket_path = socket_path
        self._url = url
        self._token = token
        self._ended: deque[dict[str, Any]] = deque(maxlen=_WAITING)
        self._has_some = threading.Event()
        self._is_closing = threading.Event()
        self._setup: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def wanted(cls) -> Spans | None:
        """Return what the environment of this runner asks for."""
        env = os.environ
        if "FAL_NB_SPANS" not in env or "FAL_NB_UPLOAD_TOKEN" not in env:
            return None
        return cls(env["FAL_NB_UPLOAD_SOCKET"], env["FAL_NB_CDN_URL"], env["FAL_NB_UPLOAD_TOKEN"])

    def note_setup(self, start_ns: int, end_ns: int) -> None:
        """Remember when `setup()` ran: it belongs to the call that it was made for, which is still to come."""
        self._setup = (start_ns, end_ns)

    def begin(self, name: str, traceparent: str | None) -> OpenSpan | None:
        """Begin a call's span; None where its caller is not traced."""
        matched = _PARENT.fullmatch(traceparent) if traceparent is not None else None
        if matched is None or not int(matched[3], 16) & 1:
            return None
        trace, parent, now = matched[1], matched[2], time.time_ns()
        if self._setup is not None:
            start, end = self._setup
            self._setup = None
            # A call that comes long after it did not wait for it: then it is a trace of its own.
            is_ours = now - end < _SOON_NS
            setup = OpenSpan(
                "setup", trace if is_ours else secrets.token_hex(16), parent if is_ours else None, start
            )
            self.end(setup, {}, end_ns=end)
        return OpenSpan(name, trace, parent, now)

    def end(
        self,
        span: OpenSpan,
        attributes: dict[str, Any],
        *,
        error: str | None = None,
        end_ns: int | None = None,
    ) -> None:
        """Have a span told."""
        self._ended.append(
            {
                "name": span.name,
                "trace": span.trace,
                "span": span.span,
                "parent": span.parent,
                "start": span.start,
                "end": end_ns or time.time_ns(),
                "attributes": attributes,
                "error": error,
            }
        )
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="spans", daemon=True)
            self._thread.start()
        self._has_some.set()

    def close(self) -> None:
        """Tell what is left, within the time that one message may take."""
        if self._thread is not None:
            self._is_closing.set()
            self._has_some.set()
            self._thread.join(_TIMEOUT_S)

    def _work(self) -> None:
        while not (self._is_closing.is_set() and not self._ended):
            self._has_some.wait()
            self._is_closing.wait(_PAUSE_S)
            self._has_some.clear()
            while self._ended:
                self._tell([self._ended.popleft() for _ in range(min(_BATCH, len(self._ended)))])

    def _connection(self) -> http.client.HTTPConnection:
        if not os.access(self._socket_path, os.W_OK):
            return http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=_TIMEOUT_S)
        connection = http.client.HTTPConnection("backend", timeout=_TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(_TIMEOUT_S)
        connection.sock.connect(self._socket_path)
        return connection

    def _tell(self, batch: list[dict[str, Any]]) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        try:
            with contextlib.closing(self._connection()) as connection:
                connection.request("POST", _PATH, json.dumps(batch), headers)
                connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return  # a backend that is away for a moment: traces are no truth
