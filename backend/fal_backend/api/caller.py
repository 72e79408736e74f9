"""One request at the edge and its answer: a lean form for the data plane, and uvicorn's for everything else.

Rules: nothing is buffered here beyond one answer's head, which waits for the first bytes of its body so that both
leave in one write; whoever writes more watches `is_full`. An answer that ends before its request's body closes the
connection, slowly enough for the caller to read it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, Literal, Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from fal_backend.api.head import Head, Headers, header_lines
from fal_backend.api.tunnel import Upgraded
from fal_backend.domain.access import Principal
from fal_backend.domain.request import Refusal

__all__ = ["Caller", "Connection", "Cycle", "Served", "Wake", "problem", "sticky_name"]

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SWITCH = b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n"
_JSON = b"content-type: application/json\r\n"


def problem(detail: str, error_type: str | None = None) -> bytes:
    """Return the body of an error that the data plane or the edge answers."""
    return json.dumps(
        {"detail": detail, "error_type": error_type} if error_type else {"detail": detail}
    ).encode()


def sticky_name(caller: Caller, known: Principal | None) -> str:
    """Return what tells one caller from another where callers are split: the key, else the address."""
    if known is not None:
        return known.key_id
    given = caller.head.authorization
    return given.decode("latin-1") if given is not None else str(caller.connection.address)


class Wake:
    """An event for one waiter that costs nothing until somebody waits."""

    __slots__ = ("_is_set", "_waiter")

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Wake whoever waits."""
        self._is_set = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def clear(self) -> None:
        """Forget that it was set."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait until it is set."""
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None


class Served(Protocol):
    """Who answers a caller, as far as the caller's connection must tell it something."""

    def leave(self) -> None:
        """The caller has left before the answer was complete."""
        ...

    def make_room(self, *, has_room: bool) -> None:
        """The caller reads too slowly, or has caught up."""
        ...


class Connection(Protocol):
    """What a request needs of the connection that it came on."""

    @property
    def transport(self) -> asyncio.Transport: ...
    @property
    def flow(self) -> FlowControl: ...
    @property
    def scheme(self) -> Literal["http", "https"] | None:
        """How the caller reached us."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether it came by the unix socket, whose callers name any host."""
        ...

    @property
    def address(self) -> str | None:
        """Where it came from, None for the unix socket."""
        ...

    def judge_wrong_key(self) -> Refusal | None:
        """Count a wrong key, and return what is answered instead of 401 when there were too many."""
        ...

    def default_lines(self, extra: Headers) -> bytes:
        """Return the header lines that every answer carries, and the extra ones."""
        ...

    def on_response_complete(self) -> None: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that the server waits for when it ends."""
        ...

    def linger(self) -> None:
        """Say that nothing more comes, read and forget what the caller still sends, then close."""
        ...


class Cycle(RequestResponseCycle):
    """uvicorn's request, for ASGI applications."""

    has_begun = True
    app: Any

    def leave(self) -> None:
        """Note that the caller has left."""
        if not self.response_complete:
            self.disconnected = True
            self.message_event.set()

    def make_room(self, *, has_room: bool) -> None:
        """Leave that to uvicorn's flow control."""


class Caller:
    """A call of an app: its head, its body as it comes, and the way its answer goes."""

    __slots__ = (
        "_held",
        "_is_chunked_answer",
        "_wake",
        "body",
        "connection",
        "disconnected",
        "has_begun",
        "head",
        "is_http10",
        "keep_alive",
        "length",
        "more_body",
        "response_complete",
        "response_started",
        "served",
        "target",
        "token",
        "transport",
        "upgraded",
        "waiting_for_100_continue",
    )

    def __init__(
        self,
        connection: Connection,
        head: Head,
        target: bytes,
        length: int | None,
        *,
        is_http10: bool,
        keep_alive: bool,
    ) -> None:
        self.connection = connection
        self.transport = connection.transport
        self.head = head
        self.target = target
        """Raw path and query, as on the wire."""
        self.length = length
        """Announced length of the body, None when it is not announced."""
        self.is_http10 = is_http10
        self.keep_alive = keep_alive
        self.token: bytes | None = None
        """The token in the URL of a websocket."""
        self.upgraded: Upgraded | None = None
        """The connection from here on, of a websocket."""
        self.served: Served | None = None
        self.has_begun = False
        self.body = b""
        """What has come of the body and nobody has taken."""
        self.more_body = True
        self._wake: Wake | None = None
        self.waiting_for_100_continue = head.needs_continue
        self.disconnected = False
        self.response_started = False
        self.response_complete = False
        self._is_chunked_answer = False
        self._held: list[bytes] = []

    @property
    def message_event(self) -> Wake:
        """Set when more of the body has come, and when anything else changes for whoever serves this."""
        if self._wake is None:
            self._wake = Wake()
        return self._wake

    # The body

    def read_on(self) -> None:
        """Let more of the body come."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(_CONTINUE)
            self.waiting_for_100_continue = False
        self.connection.flow.resume_reading()

    def take_body(self) -> bytes:
        """Return what has come of the body since the last time."""
        body, self.body = self.body, b""
        return body

    # The answer

    @property
    def is_full(self) -> bool:
        """Whether the caller reads more slowly than we write."""
        return self.connection.flow.write_paused

    def write_interim(self, status: int, lines: bytes) -> None:
        """Forward an answer that announces another one, such as 103."""
        if not self.disconnected and not self.is_http10:
            self.transport.write(b"%b%b\r\n" % (STATUS_LINE[status], lines))

    def write_switch(self, lines: bytes) -> None:
        """Send 101: what follows is a websocket."""
        self.response_started = True
        defaults = self.connection.default_lines(self.head.extra)
        self.transport.write(b"".join((STATUS_LINE[101], defaults, lines, _SWITCH)))

    def write_head(self, status: int, lines: bytes, length: int | None, *, has_body: bool = True) -> None:
        """Begin the answer; without a length it is chunked, or ends with the connection for HTTP/1.0.

        lines are complete header lines; framing and connection headers are added here. It is sent by `flush`.
        """
        self.response_started = True
        self.waiting_for_100_continue = False
        framing = b""
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif has_body:
            if self.is_http10:
                self.keep_alive = False
            else:
                self._is_chunked_answer = True
                framing = b"transfer-encoding: chunked\r\n"
        if self.more_body:
            self.keep_alive = False
        defaults = self.connection.default_lines(self.head.extra)
        tail = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._held += (STATUS_LINE[status], defaults, lines, framing, tail)

    def write_body(self, data: bytes) -> None:
        """Add a part of the answer's body; it is sent by `flush`."""
        self._held.append(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked_answer else data)

    def flush(self) -> None:
        """Send what was written."""
        if self._held:
            if not self.disconnected:
                self.transport.write(b"".join(self._held))
            self._held.clear()

    def write_end(self) -> None:
        """End the answer."""
        self.response_complete = True
        if self._is_chunked_answer:
            self._held.append(b"0\r\n\r\n")
        self.flush()
        if self.disconnected:
            return
        if self.more_body:
            self.connection.linger()
        elif not self.keep_alive:
            self.transport.close()
        self.connection.on_response_complete()

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer of our own, in JSON."""
        if status == 401 and (self.token is not None or b"authorization" in self.head.found):
            refusal = self.connection.judge_wrong_key()
            if refusal is not None:
                status, body = refusal.status, problem(refusal.detail, refusal.error_type)
                lines += header_lines(refusal.headers)
        self.write_head(status, _JSON + lines, len(body))
        if self.head.method != b"HEAD":
            self.write_body(body)
        self.write_end()

    def abort(self) -> None:
        """Break the connection, so that the caller knows that the answer is not whole."""
        self.response_complete = True
        self.transport.abort()

    def leave(self) -> None:
        """Note that the caller has left."""
        if self.response_complete or self.disconnected:
            return
        self.disconnected = True
        self.message_event.set()
        if self.served is not None:
            self.served.leave()

    def make_room(self, *, has_room: bool) -> None:
        """Pass on how fast the caller reads."""
        if self.served is not None:
            self.served.make_room(has_room=has_room)
