"""One call on its way to a runner and back: the sink of the runner's answer, and what may happen meanwhile.

Rules: the answer goes from the runner's socket to the caller's within the parser's callbacks. `ended` is told once
for each attempt; whether that wakes a coroutine or finishes the call on the spot is the gateway's choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fal_backend.api.caller import Caller, problem
from fal_backend.api.upstream import Answer, End, UpConn
from fal_backend.domain.access import Principal
from fal_backend.domain.call_record import CallRecord, Phases, phases, server_timing
from fal_backend.domain.request import Failure, Refusal
from fal_backend.services.lanes import Door
from fal_backend.services.routes import Route
from fal_backend.services.tracing import Span

__all__ = ["Call", "Target", "send_body"]


# Members of an Enum are looked up by a function each time; these are asked for on every call.
_COMPLETE, _SILENT, _LATE = End.COMPLETE, End.SILENT, Failure.STARTUP_TIMEOUT
_new = tuple.__new__
"""Makes a named tuple without its own constructor, a function of as many arguments as it has fields."""
_UPGRADE = b"upgrade: websocket\r\nconnection: upgrade\r\n"
_TAILS = {
    kind: b"x-fal-nb-call: %b\r\nx-fal-nb-attempt: 1\r\nx-fal-nb-epoch: 0\r\n\r\n" % kind.encode()
    for kind in ("sync", "stream", "realtime")
}
"""The last lines of a head, by the kind of the call."""


class Target:
    """What a path under `/run/` asks for, with the parts of a request that follow from it."""

    __slots__ = ("endpoint", "is_stream", "key", "line", "path", "rest")

    def __init__(self, key: bytes, path: bytes, query: bytes) -> None:
        self.key = key
        """`owner/alias`."""
        self.rest = path + query
        """What the runner is asked for."""
        self.line = b" %b HTTP/1.1\r\n" % self.rest
        """The first line, behind the method."""
        self.path = path.decode("latin-1")
        self.is_stream = path.endswith(b"/stream")
        self.endpoint = b"x-fal-endpoint: %b%b\r\n" % (key, path if path != b"/" else b"")


class Call:
    """A call of an app."""

    __slots__ = (
        "answer",
        "began",
        "bytes_in",
        "bytes_out",
        "caller",
        "conn",
        "deadline",
        "door",
        "ended_at",
        "error_type",
        "failure",
        "id_line",
        "kind",
        "known",
        "may_resend",
        "on_end",
        "request",
        "request_id",
        "route",
        "sent_at",
        "sent_back",
        "span",
        "start_by",
        "start_failure",
        "status",
        "target",
        "waits",
        "was_served",
    )

    def __init__(self, caller: Caller, target: Target, request_id: str, began: float) -> None:
        self.caller = caller
        self.target = target
        self.request_id = request_id
        self.id_line = b"x-fal-request-id: %b\r\n" % request_id.encode()
        self.began = began
        self.route: Route | None = None
        self.door: Door | None = None
        self.conn: UpConn | None = None
        self.answer: Answer | None = None
        self.failure: Failure | None = None
        self.on_end: Callable[[Call, End], None] | None = None
        self.ended_at: asyncio.Future[End] | None = None
        self.request = b""
        """Head, and body where that was in hand, as sent to a runner."""
        self.status = 0
        self.error_type: str | None = None
        """Of an answer in the App's place."""
        self.known: Principal | None = None
        """Whose key it came with, where one was asked for."""
        self.span: Span | None = None
        self.kind = "sync"
        self.sent_at = 0.0
        self.bytes_in = self.bytes_out = 0
        self.sent_back = 0
        self.was_served = False
        self.waits: Callable[[], None] | None = None
        """Leaves the line, while it stands in one."""
        self.may_resend = False
        self.deadline = 0.0
        self.start_by = 0.0
        self.start_failure = _LATE

    def send(self, conn: UpConn) -> None:
        """Send the call on a connection."""
        caller = self.caller
        if not self.request:
            self.request = self._encode()
        self.conn = conn
        self.sent_at = time.monotonic()
        self.may_resend = not conn.is_fresh
        conn.begin(self, self.request, is_head_call=caller.head.method == b"HEAD")

    def _encode(self) -> bytes:
        caller, target, head = self.caller, self.target, self.caller.head
        if head.is_websocket:
            self.kind = "realtime"
            return self._join(framing=_UPGRADE, body=b"")
        if target.is_stream or head.is_stream:
            self.kind = "stream"
        body = b""
        if caller.more_body:
            self.bytes_in = caller.length or 0
            length = (
                b"transfer-encoding: chunked\r\n"
                if caller.length is None
                else b"content-length: %d\r\n" % caller.length
            )
            framing = length + b"expect: 100-continue\r\n"
        elif caller.length is None and not head.is_chunked:
            framing = b""
        else:
            body = caller.take_body()
            self.bytes_in = len(body)
            framing = b"content-length: %d\r\n" % len(body)
        return self._join(framing=framing, body=body)

    def _join(self, *, framing: bytes, body: bytes) -> bytes:
        target, head = self.target, self.caller.head
        span = self.span
        return b"".join(
            (
                head.method,
                target.line,
                head.forwarded if span is None else head.forwarded_in(span.traceparent),
                target.endpoint,
                framing,
                self.id_line,
                _TAILS[self.kind],
                body,
            )
        )

    def stamp(self) -> bytes:
        """Return the headers that every answer of the gateway carries."""
        timing = server_timing(self.split(time.monotonic()))
        return self.id_line + timing if self.door is None else self.id_line + self.door.stamp + timing

    def split(self, now: float) -> Phases:
        """Return how its time was spent so far."""
        return phases(self.began, self.door.opened_at if self.door is not None else 0.0, self.sent_at, now)

    def record(self, status: int, now: float, split: Phases) -> CallRecord:
        """Return its line of the request log, when it has ended."""
        route, door, known, answer = self.route, self.door, self.known, self.answer
        assert route is not None
        said = answer.error_type if answer is not None else None
        ended_at = time.time_ns() // 1000
        fields = (
            self.request_id,
            route.info.account,
            route.key,
            self.target.path,
            self.caller.head.verb,
            None if known is None else known.account,
            None if known is None else known.key_id,
            self.kind,
            route.info.revision if door is None else door.lane.revision,
            None if door is None else door.runner_id,
            1 if self.sent_at else 0,
            status,
            said.decode("latin-1") if said is not None else self.error_type,
            ended_at - int((now - self.began) * 1e6),
            ended_at,
            split.queued * 1e3,
            split.cold_start * 1e3,
            split.run * 1e3,
            self.bytes_in,
            self.bytes_out,
        )
        return _new(CallRecord, fields)

    # Sink

    def interim(self, answer: Answer) -> None:
        self.caller.write_interim(answer.status, answer.lines)

    def head(self, answer: Answer) -> None:
        self.answer = answer
        if answer.is_busy:
            return
        if self.door is not None:
            self.door.note_hints(answer.hints)
        self.status = status = answer.status
        if status == 101:
            self.caller.write_switch(answer.lines + self.stamp())
            return
        has_body = status not in (204, 304) and self.caller.head.method != b"HEAD"
        self.caller.write_head(status, answer.lines + self.stamp(), answer.length, has_body=has_body)

    def body(self, data: bytes) -> None:
        if not self.is_busy:
            self.bytes_out += len(data)
            self.caller.write_body(data)

    def flush(self) -> None:
        self.caller.flush()

    def wake(self) -> None:
        self.caller.message_event.set()

    def ended(self, end: End) -> None:
        conn = self.conn
        if conn is not None:
            self.may_resend = self.may_resend and end is _SILENT and not conn.may_continue
        if end is _COMPLETE and not self.is_busy:
            self.caller.write_end()
        if self.ended_at is not None:
            if not self.ended_at.done():
                self.ended_at.set_result(end)
            self.caller.message_event.set()
        elif self.on_end is not None:
            self.on_end(self, end)

    @property
    def is_open_session(self) -> bool:
        """Whether it is a websocket that a runner has taken."""
        return self.status == 101

    @property
    def is_busy(self) -> bool:
        """Whether the runner's gate sent the call back."""
        return self.answer is not None and self.answer.is_busy

    # What may happen meanwhile

    def fail(self, failure: Failure) -> None:
        """Break the call off, unless it has ended."""
        if self.failure is None:
            self.failure = failure
        if self.waits is not None:
            self.waits()
        elif self.conn is not None:
            self.conn.stop()

    def leave(self) -> None:
        """Note that the caller has left."""
        self.fail(Failure.CALLER_GONE)

    def make_room(self, *, has_room: bool) -> None:
        """Read from the runner as fast as the caller reads from us."""
        if self.conn is not None:
            self.conn.resume() if has_room else self.conn.pause()

    def refuse(self, refusal: Refusal) -> None:
        """Answer in the App's place, or break the answer off where it has begun."""
        caller = self.caller
        if self.is_open_session:
            caller.transport.close()
            return
        self.status = refusal.status
        self.error_type = refusal.error_type
        if caller.disconnected or caller.response_complete:
            return
        if caller.response_started:
            caller.abort()
            return
        lines = [self.stamp(), *(b"%b: %b\r\n" % header for header in refusal.headers)]
        if refusal.error_type is not None:
            lines.append(b"x-fal-error-type: %b\r\n" % refusal.error_type.encode())
        caller.answer(refusal.status, b"".join(lines), problem(refusal.detail, refusal.error_type))


async def send_body(call: Call, conn: UpConn, done: asyncio.Future[End]) -> None:
    """Send a large body as it comes, once the runner's gate has asked for it, until the answer ends the call."""
    caller, wake = call.caller, call.caller.message_event
    is_chunked = caller.length is None
    while not done.done():
        wake.clear()
        if call.answer is not None or not (conn.may_continue and conn.can_write):
            await wake.wait()  # an answer before the body's end: nobody reads the rest
        elif caller.body:
            data = caller.take_body()
            if is_chunked:
                call.bytes_in += len(data)
            conn.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)
        elif not caller.more_body:
            if is_chunked:
                conn.transport.write(b"0\r\n\r\n")
            return
        else:
            caller.read_on()
            await wake.wait()
    conn.is_reusable = False
