"""Connections to runners: pooled HTTP/1.1 over unix sockets, parsed by httptools, one call at a time each.

Rules: nothing is buffered here; what is parsed goes to the call's `Sink` in the same loop turn, and a sink that
cannot take more pauses the socket. A connection goes back to its pool only after an answer that ended by its own
framing, with nothing behind it; all else closes it, so that a runner cannot smuggle bytes into another call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

import httptools

from fal_backend.api.head import Headers
from fal_backend.api.repeats import Form

__all__ = ["Answer", "End", "Sink", "UpConn"]

HEAD_LIMIT = 64 * 1024

log = logging.getLogger(__name__)

_DROPPED = frozenset(
    {
        b"alt-svc",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-fal-needs-retry",
        b"x-fal-request-id",
        b"x-fal-revision",
        b"x-fal-runner-id",
        b"x-fal-stop-runner",
    }
)
_LONG = 64 * 1024
"""So much of a body is worth a new parser."""
_BODILESS = (204, 304)
"""What has no body, whatever its `content-length` says."""


class End(Enum):
    """How an exchange with a runner ended."""

    COMPLETE = auto()
    SILENT = auto()
    """The connection broke before any byte of the answer."""
    INCOMPLETE = auto()
    """The answer broke off, or was not HTTP."""
    STOPPED = auto()
    """Our side broke it off."""


_COMPLETE = End.COMPLETE
"""Looking up a member of an Enum is a call each time, and every call of an app ends like this."""


class Answer:
    """The head of an answer: what is forwarded, and what is only for us."""

    __slots__ = (
        "error_type",
        "found",
        "hints",
        "is_busy",
        "is_chunked",
        "length",
        "lines",
        "raw",
        "status",
        "stop_runner",
    )

    def __init__(self, status: int, length: int | None, raw: Headers) -> None:
        self.status = status
        self.length = length
        """Value of `content-length`, None without one."""
        self.raw = raw
        self.found = found = {name.lower(): value for name, value in raw}
        """Headers by name; of a repeated one the last."""
        self.error_type = found.get(b"x-fal-error-type")
        self.hints = found.get(b"x-fal-runner-hints")
        self.stop_runner = found.get(b"x-fal-stop-runner")
        self.is_busy = status == 429 and b"x-fal-nb-busy" in found
        self.is_chunked = b"transfer-encoding" in found
        if self.is_chunked and found[b"transfer-encoding"].lower() != b"chunked":
            raise ValueError("unknown transfer-encoding")
        self.lines = _forwarded(raw, found.get(b"connection", b""))
        """Header lines to forward; no framing, nothing hop-by-hop, nothing that is only for us."""
        if len(self.lines) > HEAD_LIMIT:
            raise ValueError("head of the answer is too large")

    def again(self, length: int | None) -> Answer:
        """Return the same head for another answer with the same status and headers."""
        if length == self.length:
            return self
        other = object.__new__(Answer)
        other.status, other.length, other.raw, other.found = self.status, length, self.raw, self.found
        other.error_type, other.hints, other.stop_runner = self.error_type, self.hints, self.stop_runner
        other.is_busy, other.is_chunked, other.lines = self.is_busy, self.is_chunked, self.lines
        return other


class Sink(Protocol):
    """Takes the answer of one call as it comes."""

    def interim(self, answer: Answer) -> None: ...
    def head(self, answer: Answer) -> None: ...
    def body(self, data: bytes) -> None: ...
    def flush(self) -> None:
        """All that has come so far was passed."""
        ...

    def wake(self) -> None:
        """Something changed for whoever sends the body: 100, or room to write."""
        ...

    def ended(self, end: End) -> None:
        """The exchange is over; the connection may be used for another one."""
        ...


class UpConn(asyncio.Protocol):
    """One connection to a runner."""

    def __init__(self, on_lost: Callable[[UpConn], None], on_made: Callable[[UpConn], None]) -> None:
        self._on_lost = on_lost
        self._on_made = on_made
        self._parser = httptools.HttpResponseParser(self)
        self._sink: Sink | None = None
        self._raw: Headers = []
        self._length: bytes | None = None
        self._answer: Answer | None = None
        self._form: Form | None = None
        """How the last answer looked, where more like it may follow."""
        self._is_again = False
        """Whether the last head had the same lines as the one before."""
        self._is_begun = False
        """Whether bytes came since the request was sent."""
        self._left = 0
        """Bytes of a body that are still to come past the parser."""
        self._body_bytes = 0
        """Those that came through it."""
        self._keeps_alive = False
        """Whether the connection stays open after that body."""
        self._end: End | None = None
        self._is_head_call = False
        self._is_interim = False
        self._head_done = False
        self._head_bytes = 0
        self._is_paused = False
        self.transport: asyncio.Transport
        self.is_lost = False
        self.is_fresh = True
        """No answer was received on it yet."""
        self.is_reusable = False
        self.can_write = True
        self.may_continue = False
        """The runner asked for the body."""

    # One exchange

    def begin(self, sink: Sink, data: bytes, *, is_head_call: bool) -> None:
        """Send the first bytes of a request; `sink.ended` tells how it went."""
        self._sink = sink
        self._is_head_call = is_head_call
        self._head_done = self._is_interim = self.is_reusable = self.may_continue = False
        self._is_begun = False
        self._head_bytes = self._left = 0
        self.transport.write(data)

    def stop(self) -> None:
        """Break the exchange off from our side."""
        self.is_reusable = False
        self.transport.abort()
        self._deliver(End.STOPPED)

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

    def _deliver(self, end: End) -> None:
        sink = self._sink
        if sink is not None:
            self._sink = None
            self.resume()
            sink.ended(end)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.is_reusable = False
        self._on_lost(self)
        answer = self._answer
        if not self._head_done or answer is None:
            self._deliver(End.INCOMPLETE if self._head_bytes else End.SILENT)
        elif exc is None and answer.length is None and not answer.is_chunked:
            self._deliver(End.COMPLETE)
        else:
            self._deliver(End.INCOMPLETE)

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self.is_reusable = False
            self.transport.abort()
        elif self._left:
            self._pass(sink, data)
        else:
            is_begin, self._is_begun = not self._is_begun, True
            if not (is_begin and self._form is not None and self._repeat(self._form, sink, data)):
                self._parse(sink, data, is_begin=is_begin)

    def _parse(self, sink: Sink, data: bytes, *, is_begin: bool) -> None:
        """Read bytes of an answer; is_begin: they are its first."""
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._fail(error)
            return
        end = self._end
        if end is not None:
            # Only now, with all bytes parsed, may the connection serve another call: see the module's rules.
            self._end = None
            if is_begin and self._is_again and self.is_reusable:
                self._learn(data)
            self._deliver(end)
        elif self._head_done:
            sink.flush()
            self._bypass()
        elif self._head_bytes > HEAD_LIMIT:
            self._fail(None)

    def _bypass(self) -> None:
        """Let the rest of a long body go past the parser, which would copy it; the next answer has a new one."""
        answer = self._answer
        if answer is None or answer.length is None or answer.is_chunked or answer.status in _BODILESS:
            return
        left = answer.length - self._body_bytes
        if left >= _LONG:
            self._left, self._keeps_alive = left, self._parser.should_keep_alive()
            self._parser = httptools.HttpResponseParser(self)

    def _pass(self, sink: Sink, data: bytes) -> None:
        """Pass a part of a long body on."""
        self._left = left = self._left - len(data)
        sink.body(data if left >= 0 else data[:left])
        if left > 0:
            sink.flush()
            return
        self._left = 0
        if left < 0:  # bytes behind the answer
            self._end = End.COMPLETE
            self._fail(None)
            return
        self.is_reusable = self._keeps_alive and not self.transport.is_closing()
        self._deliver(End.COMPLETE)

    def _learn(self, data: bytes) -> None:
        """Remember how an answer looked that came in one piece."""
        answer = self._answer
        if answer is not None and answer.length is not None and answer.status not in _BODILESS:
            self._form = Form.of(data, answer.length)

    def _repeat(self, form: Form, sink: Sink, data: bytes) -> bool:
        """Pass on an answer like the last one without reading its head again; return whether it was one."""
        body, answer = form.body(data), self._answer
        if body is None or answer is None or self._is_head_call:
            return False
        self._answer = answer = answer.again(len(body))
        self._head_done = True
        self.is_reusable = not self.transport.is_closing()
        sink.head(answer)
        if body:
            sink.body(body)
        self._deliver(_COMPLETE)
        return True

    def _upgrade(self, rest: bytes) -> None:
        """Go on after an answer that changed the protocol; nobody asked for one here."""
        self._fail(None)

    def _fail(self, error: Exception | None) -> None:
        if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(
            error.__context__, ValueError
        ):
            log.error("upstream.parser", exc_info=error.__context__)
        end, self._end = self._end, None
        self.is_reusable = False
        self.transport.abort()
        self._deliver(end or End.INCOMPLETE)

    def pause_writing(self) -> None:
        self.can_write = False

    def resume_writing(self) -> None:
        self.can_write = True
        if self._sink is not None:
            self._sink.wake()

    # httptools

    def on_message_begin(self) -> None:
        if self._end is not None:
            raise ValueError("bytes after the end of an answer")
        self._raw = []
        self._length = None

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        if size == 14 and name.lower() == b"content-length":
            self._length = value
        elif size != 4 or name.lower() != b"date":  # the edge says the date
            self._raw.append((name, value))

    def on_headers_complete(self) -> None:
        sink = self._sink
        if sink is None:
            return
        raw, self._raw = self._raw, []
        status, answer = self._parser.get_status_code(), self._answer
        length = None if self._length is None else int(self._length)
        self._form = None
        self._is_again = answer is not None and status == answer.status and raw == answer.raw
        answer = (
            answer.again(length) if answer is not None and self._is_again else Answer(status, length, raw)
        )
        if status < 200:
            self._interim(answer, sink)
            return
        self._answer = answer
        self._head_done = True
        self._body_bytes = 0
        self.is_fresh = False
        sink.head(answer)
        if self._is_head_call:
            self._end = End.COMPLETE

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
        if self._end is None and self._sink is not None:
            self._body_bytes += len(body)
            self._sink.body(body)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
            self._head_bytes = 0
        elif self._end is None and self._sink is not None:
            self.is_reusable = self._parser.should_keep_alive() and not self.transport.is_closing()
            self._end = End.COMPLETE


def _forwarded(raw: Headers, connection: bytes) -> bytes:
    named = frozenset(token.strip() for token in connection.lower().split(b","))
    lines = []
    for name, value in raw:
        name = name.lower()
        if name not in _DROPPED and name not in named and not name.startswith(b"x-fal-nb-"):
            lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)
