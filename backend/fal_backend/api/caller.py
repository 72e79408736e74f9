"""One request at the edge and its answer: the ASGI cycle of uvicorn, and a lean way past it for the gateway.

Rules: an answer is written either through ASGI's `send` or through `write_*`, never both. Nothing is buffered
here beyond what the transport holds; whoever writes watches `is_full`. An answer that ends before its request's
body closes the connection, slowly enough for the caller to read it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

__all__ = ["Caller", "Connection", "Wake", "problem"]

log = logging.getLogger(__name__)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def problem(detail: str, error_type: str | None = None) -> bytes:
    """Return the body of an error that the data plane or the edge answers."""
    body = {"detail": detail, "error_type": error_type} if error_type else {"detail": detail}
    return json.dumps(body).encode()


class Wake(asyncio.Event):
    """An event that costs nothing until somebody waits for it.

    uvicorn makes an `asyncio.Event` for each request; most gateway calls never wait on it.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> bool:  # type: ignore[override]
        """Wait until it is set; one waiter at a time."""
        if not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return True


class Connection(Protocol):
    """What a request needs of the connection that it came on."""

    @property
    def transport(self) -> asyncio.Transport: ...
    @property
    def flow(self) -> FlowControl: ...
    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """Return the header lines that every answer carries."""
        ...

    def on_response_complete(self) -> None: ...
    def linger(self) -> None:
        """Say that nothing more comes, read and forget what the caller still sends, then close."""
        ...


class Caller(RequestResponseCycle):
    """A request with its headers, its body as it comes, and the way its answer goes."""

    def __init__(
        self,
        connection: Connection,
        *,
        method: bytes,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        found: dict[bytes, bytes],
        default_headers: list[tuple[bytes, bytes]],
        is_http10: bool,
        keep_alive: bool,
    ) -> None:
        super().__init__(
            scope=None,  # type: ignore[arg-type]
            transport=connection.transport,
            flow=connection.flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=default_headers,
            message_event=Wake(),
            expect_100_continue=b"expect" in found and found[b"expect"].lower() == b"100-continue",
            keep_alive=keep_alive,
            on_response=connection.on_response_complete,
        )
        self.connection = connection
        self.method = method
        self.target = target
        """Raw path and query, as on the wire."""
        self.headers = headers
        self.found = found
        """The same headers by name; of a repeated one the last."""
        self.is_http10 = is_http10
        self.on_gone: Callable[[], None] | None = None
        """Called once when the caller leaves before the answer is complete."""
        self.on_room: Callable[[bool], None] | None = None
        """Called with False when the caller reads too slowly, with True when it has caught up."""

    # The body

    @property
    def body_length(self) -> int | None:
        """The announced length of the body, None when it is not announced."""
        value = self.found.get(b"content-length")
        return int(value) if value is not None else None

    def read_on(self) -> None:
        """Let more of the body come."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(_CONTINUE)
            self.waiting_for_100_continue = False
        self.flow.resume_reading()

    def take_body(self) -> bytearray:
        """Return what has come of the body since the last time."""
        body, self.body = self.body, bytearray()
        return body

    # The answer

    @property
    def is_full(self) -> bool:
        """Whether the caller reads more slowly than we write."""
        return self.flow.write_paused

    def write_interim(self, status: int, lines: bytes) -> None:
        """Forward an answer that announces another one, such as 103."""
        if not self.disconnected and not self.is_http10:
            self.transport.write(b"%b%b\r\n" % (STATUS_LINE[status], lines))

    def write_head(self, status: int, lines: bytes, length: int | None, *, has_body: bool = True) -> None:
        """Begin the answer; without a length it is chunked, or ends with the connection for HTTP/1.0.

        lines are complete header lines; framing and connection headers are added here.
        """
        self.response_started = True
        self.waiting_for_100_continue = False
        if self.disconnected:
            return
        framing = b""
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif has_body:
            if self.is_http10:
                self.keep_alive = False
            else:
                self.chunked_encoding = True
                framing = b"transfer-encoding: chunked\r\n"
        if self.more_body:
            self.keep_alive = False
        self.transport.write(
            b"".join(
                (
                    STATUS_LINE[status],
                    self.connection.default_lines(self.default_headers),
                    lines,
                    framing,
                    b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n",
                )
            )
        )

    def write_body(self, data: bytes) -> None:
        """Send a part of the answer's body."""
        if self.disconnected:
            return
        if self.chunked_encoding:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self.transport.write(data)

    def write_end(self) -> None:
        """End the answer."""
        self.response_complete = True
        if self.disconnected:
            return
        if self.chunked_encoding:
            self.transport.write(b"0\r\n\r\n")
        if self.more_body:
            self.connection.linger()
        elif not self.keep_alive:
            self.transport.close()
        self.message_event.set()
        self.on_response()

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send a whole answer of our own."""
        self.write_head(status, lines, len(body))
        if self.method != b"HEAD" and body:
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
        if self.on_gone is not None:
            self.on_gone()
