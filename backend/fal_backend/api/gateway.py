"""Calls of apps: auth, route, admission, the way to a runner and back, and what the answer means for the runner.

Rules: one coroutine for each call and no further task; a timer only for a call that waits. The answer goes from
the runner's socket to the caller's in the parser's callbacks; the coroutine sleeps meanwhile. A slot is given back
when the work has truly ended: for a caller that left, that is when the runner says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
from enum import Enum, auto
from typing import Protocol
from urllib.parse import unquote_to_bytes

from fal_backend.api.caller import Caller, problem
from fal_backend.api.metrics import render
from fal_backend.api.upstream import Answer, End, Pool, UpConn, cancel_call
from fal_backend.domain.request import Failure, Refusal, RunnerAct, Verdict, refusal_of, unknown_app, verdict
from fal_backend.services.dispatch import START_LIMIT_S, Dispatch, Door, Route
from fal_notebook.errors import AuthError
from fal_notebook.wire import AuthMode

__all__ = ["Authority", "Call", "Gateway", "Known"]

log = logging.getLogger(__name__)

IN_HAND = 64 * 1024
"""A body up to this size is complete before a slot is taken, and is kept so that the call can be replayed."""
_CANCEL_S = 600.0
_TICK_S = 0.1
_SHORTEST_START_S = 0.1
_PREFIX = len(b"/run/")

_HOP = frozenset(
    {
        b"authorization",
        b"connection",
        b"cookie",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-fal-endpoint",
        b"x-fal-request-id",
    }
)
_LIFECYCLE = b"x-fal-object-lifecycle-preference"


class Known(Protocol):
    """A caller whose key is good."""

    @property
    def account(self) -> str: ...


class Authority(Protocol):
    """Says whose key it is."""

    def principal(self, authorization: bytes | None) -> Known | None:
        """Return the key's owner, None without a key. Raises: AuthError when the key is no good."""
        ...


class _Turn(Enum):
    """What follows an attempt."""

    DONE = auto()
    AGAIN = auto()


class _RequestIds:
    """Random UUIDs of version 4, made from one read of the system's randomness for many."""

    def __init__(self) -> None:
        self._pool = ""
        self._at = 0

    def next(self) -> str:
        at = self._at
        if at >= len(self._pool):
            self._pool, at = os.urandom(4096).hex(), 0
        self._at = at + 32
        h = self._pool[at : at + 32]
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"


class Call:
    """One call on its way; the `Sink` of its runner's answer."""

    __slots__ = (
        "answer",
        "began",
        "caller",
        "conn",
        "deadline",
        "door",
        "failure",
        "is_busy",
        "request",
        "request_id",
        "route",
        "sent_back",
        "start_by",
        "start_failure",
        "status",
        "was_served",
    )

    def __init__(self, caller: Caller, request_id: str, began: float) -> None:
        self.caller = caller
        self.request_id = request_id
        self.began = began
        self.route: Route
        self.door: Door | None = None
        self.conn: UpConn | None = None
        self.answer: Answer | None = None
        self.failure: Failure | None = None
        self.status = 0
        self.is_busy = False
        self.sent_back = 0
        self.was_served = False
        self.deadline = 0.0
        self.start_by = 0.0
        self.start_failure = Failure.STARTUP_TIMEOUT
        self.request = b""
        """Head and body in hand, as sent to a runner."""

    # Sink: the runner's answer goes straight to the caller

    def interim(self, answer: Answer) -> None:
        self.caller.write_interim(answer.status, b"".join(answer.lines))

    def stamp(self) -> bytes:
        """Return the headers that every answer of the gateway carries."""
        stamp = self.door.stamp if self.door is not None else b""
        return b"x-fal-request-id: %b\r\n%b" % (self.request_id.encode(), stamp)

    def head(self, answer: Answer) -> None:
        self.answer = answer
        status = answer.status
        if status == 429 and b"x-fal-nb-busy" in answer.noted:
            self.is_busy = True
            return
        self.status = status
        answer.lines.append(self.stamp())
        has_body = status not in (204, 304) and self.caller.method != b"HEAD"
        self.caller.write_head(status, b"".join(answer.lines), answer.length, has_body=has_body)

    def body(self, data: bytes) -> None:
        if not self.is_busy:
            self.caller.write_body(data)

    def end(self) -> None:
        if not self.is_busy:
            self.caller.write_end()

    def wake(self) -> None:
        self.caller.message_event.set()

    # What may happen meanwhile

    def fail(self, failure: Failure) -> None:
        """Break the call off, unless it has ended."""
        if self.failure is None:
            self.failure = failure
        if self.conn is not None:
            self.conn.stop()

    def leave(self) -> None:
        """Note that the caller has left."""
        self.fail(Failure.CALLER_GONE)

    def make_room(self, has_room: bool) -> None:
        """Read from the runner as fast as the caller reads from us."""
        if self.conn is not None:
            self.conn.resume() if has_room else self.conn.pause()

    def refuse(self, refusal: Refusal) -> None:
        """Answer in the App's place, or break the answer off where it has begun."""
        self.status = refusal.status
        caller = self.caller
        if caller.disconnected or caller.response_complete:
            return
        if caller.response_started:
            caller.abort()
            return
        lines = [b"content-type: application/json\r\n", self.stamp()]
        lines += [b"%b: %b\r\n" % header for header in refusal.headers]
        if refusal.error_type is not None:
            lines.append(b"x-fal-error-type: %b\r\n" % refusal.error_type.encode())
        caller.answer(refusal.status, b"".join(lines), problem(refusal.detail, refusal.error_type))


class Gateway:
    """The data plane's one way in."""

    def __init__(self, dispatch: Dispatch, auth: Authority) -> None:
        self._dispatch = dispatch
        self._auth = auth
        self._ids = _RequestIds()
        self._running: dict[Call, None] = {}
        self._is_ticking = False

    def metrics(self) -> bytes:
        """Return the counts of all calls as Prometheus text."""
        return render(self._dispatch)

    async def handle(self, caller: Caller) -> None:
        """Carry one call; it is answered, or its connection is broken, when this returns."""
        loop = asyncio.get_running_loop()
        call = Call(caller, self._ids.next(), loop.time())
        try:
            await self._carry(call)
        except Refusal as refusal:
            call.refuse(refusal)
        except Exception:  # the call's root: whatever it was, the caller gets an answer
            log.exception("gateway.call_failed", extra={"request_id": call.request_id})
            call.refuse(Refusal(500, "Internal Server Error", "internal_error"))
        finally:
            caller.on_gone = caller.on_room = None
            if hasattr(call, "route"):
                call.route.tally.count(call.status or 499, loop.time() - call.began)

    async def _carry(self, call: Call) -> None:
        caller = call.caller
        key, target = _parse_target(caller.target)
        self._route(call, key)
        self._authorize(call.route, caller)
        if b"upgrade" in caller.found and caller.found[b"upgrade"].strip().lower() == b"websocket":
            raise Refusal(501, "Realtime and websocket endpoints come with a later release of fal-notebook")
        if caller.more_body and await _read_in_hand(caller):
            self._route(call, key)
        if caller.disconnected:
            raise refusal_of(Failure.CALLER_GONE)[0]
        caller.on_gone, caller.on_room = call.leave, call.make_room
        _set_start_limit(call)
        while True:
            door = None if call.was_served else self._dispatch.admit(call.route)
            if door is None:
                door = await self._wait(call)
            if await self._serve(call, door, target) is _Turn.DONE:
                return

    def _route(self, call: Call, key: bytes) -> None:
        route = self._dispatch.find(key)
        if route is None:
            raise unknown_app(key.partition(b"/")[2].decode("ascii", "replace"))
        call.route = route

    def _authorize(self, route: Route, caller: Caller) -> None:
        """Let pass who may call the app. Raises: Refusal 401, 403."""
        info = route.info
        if info.auth is AuthMode.PUBLIC:
            return
        try:
            known = self._auth.principal(caller.found.get(b"authorization"))
        except AuthError as error:
            raise Refusal(401, error.message) from error
        if known is None:
            raise Refusal(
                401, f"A key is needed to call '{info.alias}': send `Authorization: Key <id>:<secret>`"
            )
        if info.auth is AuthMode.PRIVATE and known.account != info.account:
            raise Refusal(403, f"This key may not call '{info.alias}'")

    async def _wait(self, call: Call) -> Door:
        """Stand in line; the place is left when the caller leaves. Raises: Refusal."""
        waiter = self._dispatch.wait(call.route, call.start_by, call.start_failure, at_head=call.was_served)

        def leave() -> None:
            call.leave()
            self._dispatch.leave(waiter)

        call.caller.on_gone = leave
        try:
            door = await waiter.turn
        except asyncio.CancelledError:
            self._dispatch.leave(waiter)
            if waiter.turn.done() and not waiter.turn.exception():
                self._dispatch.release(waiter.turn.result())
            raise
        call.caller.on_gone = call.leave
        call.route = waiter.route
        return door

    async def _serve(self, call: Call, door: Door, target: bytes) -> _Turn:
        """Use a slot for one attempt, and give it back."""
        call.door = door
        call.was_served = is_held = True
        try:
            end = await self._exchange(call, door, target)
            if call.is_busy:
                call.sent_back += 1
                self._dispatch.send_back(door, call.sent_back)
                is_held = False
                call.is_busy = False
                call.door = call.answer = None
                return _Turn.AGAIN
            if end is None:
                return _Turn.AGAIN
            await self._conclude(call, door, end)
            return _Turn.DONE
        finally:
            self._running.pop(call, None)
            if is_held:
                self._dispatch.release(door)

    async def _exchange(self, call: Call, door: Door, target: bytes) -> End | None:
        """Send the call and pass the answer on; None when no runner has seen it, so that another may."""
        if call.failure is not None:
            return End.STOPPED
        pool = door.link
        if not isinstance(pool, Pool):
            door.link = pool = Pool(door.socket, door.width)
        call.request = call.request or _request_head(call, target)
        conn = pool.take()
        is_first = True
        while True:
            if conn is None:
                conn = await self._connect(door, pool)
                if conn is None:
                    return None if is_first and call.failure is None else End.SILENT
            end = await self._exchange_on(call, conn, pool)
            is_stale = end is End.SILENT and not conn.is_fresh and not conn.may_continue
            if not is_stale or not is_first or call.failure is not None:
                return end
            is_first = False
            conn = None

    async def _connect(self, door: Door, pool: Pool) -> UpConn | None:
        """Open a connection; a runner that does not accept one gets no further call."""
        try:
            return await pool.open()
        except (OSError, TimeoutError):
            self._dispatch.condemn(door, "connection_broken")
            return None

    async def _exchange_on(self, call: Call, conn: UpConn, pool: Pool) -> End:
        caller = call.caller
        if call.failure is not None:
            pool.give(conn)
            return End.STOPPED
        call.conn = conn
        self._watch(call)
        try:
            done = conn.begin(call, call.request, is_head_call=caller.method == b"HEAD")
            if caller.more_body or caller.body:
                await _send_body(call, conn)
            return await done
        except asyncio.CancelledError:
            conn.stop()
            raise
        finally:
            call.conn = None
            pool.give(conn)

    async def _conclude(self, call: Call, door: Door, end: End) -> None:
        """Answer where the runner did not, and decide the runner's fate."""
        if end is End.COMPLETE and call.answer is not None:
            fate = verdict(call.answer.status, call.answer.noted.get(b"x-fal-stop-runner"))
            if fate.act is RunnerAct.KEEP:
                return
            await self._judge(door, fate)
            return
        failure = call.failure
        if failure is None:
            failure = Failure.DISCONNECTED if end is End.SILENT else Failure.INCOMPLETE
        refusal, fate = refusal_of(failure)
        call.refuse(refusal)
        if failure is Failure.CALLER_GONE and call.request:
            await self._end_work(call, door)
        await self._judge(door, fate)

    async def _judge(self, door: Door, fate: Verdict) -> None:
        if fate.act is RunnerAct.END:
            self._dispatch.condemn(door, fate.reason or "broken")
        elif fate.act is RunnerAct.CHECK and isinstance(door.link, Pool):
            conn = await self._connect(door, door.link)
            if conn is not None:
                conn.close()

    async def _end_work(self, call: Call, door: Door) -> None:
        """Have the runner end the work of a caller that left, within what the call had left to run."""
        left_s = call.deadline - asyncio.get_running_loop().time() if call.deadline else _CANCEL_S
        if not await cancel_call(door.control, call.request_id, max(left_s, 1.0)) and call.deadline:
            log.warning("gateway.cancel_unanswered", extra={"runner_id": door.runner_id})

    # Time limits: one coarse timer over all running calls

    def _watch(self, call: Call) -> None:
        limit_s = call.route.info.request_timeout_s
        if not limit_s or call in self._running:
            return
        loop = asyncio.get_running_loop()
        call.deadline = loop.time() + limit_s
        self._running[call] = None
        if not self._is_ticking:
            self._is_ticking = True
            loop.call_later(_TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for call in [call for call in self._running if now >= call.deadline]:
            call.fail(Failure.REQUEST_TIMEOUT)
        self._is_ticking = bool(self._running)
        if self._is_ticking:
            loop.call_later(_TICK_S, self._tick, loop)


def _parse_target(target: bytes) -> tuple[bytes, bytes]:
    """Split `/run/{owner}/{alias}{/path}{?query}` into `owner/alias` and what the runner is asked for.

    Raises: Refusal 404 without owner and alias, 400 for a path that climbs.
    """
    path, mark, query = target.partition(b"?")
    owner_end = path.find(b"/", _PREFIX)
    if owner_end <= _PREFIX or owner_end + 1 == len(path):
        raise Refusal(404, "The address of an app is /run/{owner}/{alias}")
    alias_end = path.find(b"/", owner_end + 1)
    if alias_end < 0:
        return path[_PREFIX:], b"/" + mark + query
    rest = path[alias_end:]
    if (b"%" in rest or b".." in rest or b"/." in rest) and _is_climbing(rest):
        raise Refusal(400, "The path is not acceptable", "bad_request")
    return path[_PREFIX:alias_end], rest + mark + query


def _is_climbing(path: bytes) -> bool:
    plain = unquote_to_bytes(path)
    return any(part in (b".", b"..") for part in plain.replace(b"\\", b"/").split(b"/")) or b"\x00" in plain


async def _read_in_hand(caller: Caller) -> bool:
    """Wait for a small body to be complete, and return whether there was a wait; a large one is left unread."""
    length = caller.body_length
    if length is not None and length > IN_HAND:
        return False
    while caller.more_body and not caller.disconnected and len(caller.body) <= IN_HAND:
        caller.read_on()
        caller.message_event.clear()
        await caller.message_event.wait()
    return True


def _set_start_limit(call: Call) -> None:
    """Set by when a runner must have begun: the App's limit, or the caller's where that is shorter."""
    limit_s = min(call.route.info.start_timeout_s or START_LIMIT_S, START_LIMIT_S)
    given = call.caller.found.get(b"x-fal-request-timeout")
    if given is not None:
        try:
            given_s = float(given)
        except ValueError:
            given_s = 0.0
        if not given_s > _SHORTEST_START_S:
            raise Refusal(400, "X-Fal-Request-Timeout must be a number of seconds above 0.1", "bad_request")
        if given_s <= limit_s:
            limit_s = given_s
            call.start_failure = Failure.USER_TIMEOUT
    call.start_by = call.began + limit_s


def _request_head(call: Call, target: bytes) -> bytes:
    """Return the head of the request to a runner, with the body behind it when that is in hand."""
    caller, info = call.caller, call.route.info
    named = _named_by_connection(caller.found)
    parts = [b"%b %b HTTP/1.1\r\n" % (caller.method, target)]
    for name, value in caller.headers:
        if name not in _HOP and not name.startswith(b"x-fal-nb-") and name not in named:
            parts.append(b"%b: %b\r\n" % (name, value))
    is_in_hand = not caller.more_body
    if b"transfer-encoding" in caller.found:
        parts.append(
            b"content-length: %d\r\n" % len(caller.body) if is_in_hand else b"transfer-encoding: chunked\r\n"
        )
    if not is_in_hand:
        parts.append(b"expect: 100-continue\r\n")
    if _LIFECYCLE not in caller.found:
        parts.append(_LIFECYCLE + b": {}\r\n")
    path = target.partition(b"?")[0]
    kind = (
        b"stream"
        if path.endswith(b"/stream") or caller.found.get(b"accept") == b"text/event-stream"
        else b"sync"
    )
    parts.append(
        b"x-fal-request-id: %b\r\nx-fal-endpoint: %b/%b%b\r\n"
        b"x-fal-nb-call: %b\r\nx-fal-nb-attempt: 1\r\nx-fal-nb-epoch: 0\r\n\r\n"
        % (
            call.request_id.encode(),
            info.owner.encode(),
            info.alias.encode(),
            path if path != b"/" else b"",
            kind,
        )
    )
    if is_in_hand and caller.body:
        parts.append(bytes(caller.take_body()))
    return b"".join(parts)


def _named_by_connection(found: dict[bytes, bytes]) -> frozenset[bytes]:
    value = found.get(b"connection")
    if value is None or value in (b"keep-alive", b"close"):
        return frozenset()
    return frozenset(token.strip().lower() for token in value.split(b","))


async def _send_body(call: Call, conn: UpConn) -> None:
    """Send a large body as it comes, once the runner's gate has asked for it, until the answer ends the call."""
    caller, wake = call.caller, call.caller.message_event
    is_chunked = b"transfer-encoding" in caller.found
    while not conn.done.done():
        wake.clear()
        if call.answer is not None or not (conn.may_continue and conn.can_write):
            await wake.wait()  # an answer before the body's end: nobody reads the rest
        elif caller.body:
            data = bytes(caller.take_body())
            conn.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if is_chunked else data)
        elif not caller.more_body:
            if is_chunked:
                conn.transport.write(b"0\r\n\r\n")
            return
        else:
            caller.read_on()
            await wake.wait()
    conn.is_reusable = False
