"""Connections to runners: pooled HTTP/1.1 over unix sockets, parsed by httptools, one call at a time each.

Rules: nothing is buffered here; what is parsed goes to the call's `Sink` in the same loop turn, and a sink that
cannot take more pauses the socket. A connection goes back to its pool only after an answer that ended by its own
framing, with nothing behind it; all else closes it, so that a runner cannot smuggle bytes into another call.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum, auto
from typing import Protocol

import httptools

__all__ = ["Answer", "End", "Pool", "Sink", "UpConn", "cancel_call"]

HEAD_LIMIT = 64 * 1024
CONNECT_S = 5.0
_READ_LIMIT = 64 * 1024

log = logging.getLogger(__name__)

_DROPPED = frozenset(
    {
        b"alt-svc",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"x-fal-needs-retry",
        b"x-fal-request-id",
        b"x-fal-revision",
        b"x-fal-runner-id",
    }
)
_NOTED = frozenset(
    {b"connection", b"content-length", b"transfer-encoding", b"x-fal-stop-runner", b"x-fal-nb-busy"}
)
_PLAIN_CONNECTION = frozenset({b"close", b"keep-alive", b"keep-alive, close"})


class End(Enum):
    """How an exchange with a runner ended."""

    COMPLETE = auto()
    SILENT = auto()
    """The connection broke before any byte of the answer."""
    INCOMPLETE = auto()
    """The answer broke off, or was not HTTP."""
    STOPPED = auto()
    """Our side broke it off."""


class Answer:
    """The head of an answer: what is forwarded, and what is only for us."""

    __slots__ = ("is_chunked", "length", "lines", "noted", "status")

    def __init__(self) -> None:
        self.status = 0
        self.lines: list[bytes] = []
        """Header lines to forward, each with its line end; no framing, nothing hop-by-hop."""
        self.noted: dict[bytes, bytes] = {}
        self.length: int | None = None
        """Value of `content-length`, None without one."""
        self.is_chunked = False


class Sink(Protocol):
    """Takes the answer of one call as it comes."""

    def interim(self, answer: Answer) -> None: ...
    def head(self, answer: Answer) -> None: ...
    def body(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def wake(self) -> None:
        """Something changed for whoever sends the body: 100, room to write, or the end."""
        ...


class UpConn(asyncio.Protocol):
    """One connection to a runner."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpResponseParser(self)
        self._sink: Sink | None = None
        self._answer = Answer()
        self._is_head_call = False
        self._is_interim = False
        self._head_done = False
        self._head_bytes = 0
        self._is_paused = False
        self.transport: asyncio.Transport
        self.done: asyncio.Future[End]
        self.is_lost = False
        self.is_fresh = True
        """No answer was received on it yet."""
        self.is_reusable = False
        self.can_write = True
        self.may_continue = False
        """The runner asked for the body."""

    # One exchange

    def begin(self, sink: Sink, data: bytes, *, is_head_call: bool) -> asyncio.Future[End]:
        """Send the first bytes of a request and return the future of how it ends."""
        self._sink = sink
        self._is_head_call = is_head_call
        self._head_done = self._is_interim = self.is_reusable = self.may_continue = False
        self._head_bytes = 0
        self.done = self._pool.loop.create_future()
        if self.is_lost:
            self._finish(End.SILENT)
        else:
            self.transport.write(data)
        return self.done

    def stop(self) -> None:
        """Break the exchange off from our side."""
        self._finish(End.STOPPED)
        self.transport.abort()

    def close(self) -> None:
        """Close an idle connection."""
        self.transport.close()

    def pause(self) -> None:
        """Read no more until `resume`."""
        if not self._is_paused and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused:
            self._is_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def _finish(self, end: End) -> None:
        sink = self._sink
        if sink is not None:
            self._sink = None
            self.resume()
            self.done.set_result(end)
            sink.wake()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._pool.adopt(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.is_reusable = False
        self._pool.forget(self)
        sink = self._sink
        if sink is None:
            return
        if not self._head_done:
            self._finish(End.INCOMPLETE if self._head_bytes else End.SILENT)
        elif exc is None and self._answer.length is None and not self._answer.is_chunked:
            sink.end()
            self._finish(End.COMPLETE)
        else:
            self._finish(End.INCOMPLETE)

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self.is_reusable = False
            self.transport.abort()
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
                error.__context__, ValueError
            ):
                log.error("upstream.parser", exc_info=error.__context__)
            self.is_reusable = False
            self._finish(End.INCOMPLETE)
            self.transport.abort()
            return
        if not self._head_done and self._head_bytes > HEAD_LIMIT:
            self._finish(End.INCOMPLETE)
            self.transport.abort()

    def pause_writing(self) -> None:
        self.can_write = False

    def resume_writing(self) -> None:
        self.can_write = True
        if self._sink is not None:
            self._sink.wake()

    # httptools

    def on_message_begin(self) -> None:
        if self._sink is None:
            self.is_reusable = False
            raise ValueError("bytes after the end of an answer")
        self._answer = Answer()

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        answer = self._answer
        if name in _NOTED:
            answer.noted[name] = value
        elif name not in _DROPPED and not name.startswith(b"x-fal-nb-"):
            answer.lines.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        answer, sink = self._answer, self._sink
        if sink is None:
            return
        answer.status = status = self._parser.get_status_code()
        if status < 200:
            self._interim(answer, sink)
            return
        noted = answer.noted
        if b"transfer-encoding" in noted:
            if noted[b"transfer-encoding"].lower() != b"chunked":
                raise ValueError("unknown transfer-encoding")
            answer.is_chunked = True
        elif b"content-length" in noted:
            answer.length = int(noted[b"content-length"])
        if b"connection" in noted:
            _drop_named(answer, noted[b"connection"])
        _check_head(answer)
        self._head_done = True
        self.is_fresh = False
        sink.head(answer)
        if self._is_head_call:
            sink.end()
            self._finish(End.COMPLETE)

    def _interim(self, answer: Answer, sink: Sink) -> None:
        if answer.status == 101:
            raise ValueError("upgrade that nobody asked for")
        self._is_interim = True
        if answer.status == 100:
            self.may_continue = True
            sink.wake()
        else:
            sink.interim(answer)

    def on_body(self, body: bytes) -> None:
        if self._sink is not None:
            self._sink.body(body)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
            self._head_bytes = 0
            return
        sink = self._sink
        if sink is None:
            return
        self.is_reusable = self._parser.should_keep_alive() and not self.transport.is_closing()
        sink.end()
        self._finish(End.COMPLETE)


def _drop_named(answer: Answer, connection: bytes) -> None:
    """Drop the headers that `Connection` names: they were meant for this hop alone."""
    value = connection.lower()
    if value in _PLAIN_CONNECTION:
        return
    named = tuple(token.strip() + b":" for token in value.split(b",") if token.strip())
    answer.lines = [line for line in answer.lines if not line.startswith(named)]


def _check_head(answer: Answer) -> None:
    """Refuse a head that is too large, or a folded line that would split into two for the caller."""
    size = 0
    for line in answer.lines:
        size += len(line)
    if size > HEAD_LIMIT:
        raise ValueError("head of the answer is too large")


class Pool:
    """The connections to one runner; the one used last is used first."""

    def __init__(self, path: str, width: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.all: set[UpConn] = set()
        self._path = path
        self._idle: list[UpConn] = []
        self._keep = width + 2
        self._is_closed = self._is_aborted = False

    def take(self) -> UpConn | None:
        """Return an idle connection, or None."""
        idle = self._idle
        while idle:
            conn = idle.pop()
            if not conn.is_lost and not conn.transport.is_closing():
                return conn
        return None

    async def open(self) -> UpConn:
        """Return a new connection. Raises: OSError, TimeoutError when the runner does not accept."""
        async with asyncio.timeout(CONNECT_S):
            _, conn = await self.loop.create_unix_connection(self._make, self._path)
        return conn

    def adopt(self, conn: UpConn) -> None:
        """Note a connection that was opened; after `abort` it is broken at once."""
        self.all.add(conn)
        if self._is_aborted:
            conn.transport.abort()

    def _make(self) -> UpConn:
        return UpConn(self)

    def give(self, conn: UpConn) -> None:
        """Take a connection back, or close it where it cannot be used again."""
        if conn.is_lost:
            return
        if conn.is_reusable and not self._is_closed and len(self._idle) < self._keep:
            self._idle.append(conn)
        else:
            conn.close()

    def forget(self, conn: UpConn) -> None:
        """Drop a connection that is closed."""
        self.all.discard(conn)
        if conn in self._idle:
            self._idle.remove(conn)

    def close(self) -> None:
        """Close what is idle now, and the rest after its call."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()

    def abort(self) -> None:
        """Break every connection."""
        self.close()
        self._is_aborted = True
        for conn in list(self.all):
            conn.transport.abort()


async def cancel_call(control: str, request_id: str, timeout_s: float) -> bool:
    """Cancel a call on its runner and return whether its work has truly ended; False when nobody can say."""
    writer: asyncio.StreamWriter | None = None
    request = f"POST /calls/{request_id}/cancel HTTP/1.1\r\nhost: runner\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(control, limit=_READ_LIMIT)
            writer.write(request.encode())
            status_line = await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return False
    finally:
        if writer is not None:
            writer.close()
    return status_line.split(b" ")[1:2] in ([b"200"], [b"404"])
