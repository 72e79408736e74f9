"""Calls of apps: auth, route, admission, the way to a runner and back, and what the answer means for the runner.

Rules: a call whose body is there, whose runner has a free slot and an open connection is carried without a task, a
future or a timer, from the caller's last byte to the answer's; everything slower (waiting, connecting, a large body,
trouble) is one coroutine for that call. A slot is given back when the work has truly ended: for a caller that left,
that is when the runner says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from time import monotonic, time
from urllib.parse import unquote_to_bytes

from fal_backend.api.access import Authority, Presented, check_call, may_call
from fal_backend.api.call import Call, Target, send_body
from fal_backend.api.caller import Caller, sticky_name
from fal_backend.api.connection import IN_HAND
from fal_backend.api.head import Head
from fal_backend.api.metrics import Sources, render
from fal_backend.api.pool import Pool, cancel_call, end_session
from fal_backend.api.rates import Rates
from fal_backend.api.tokens import Tokens
from fal_backend.api.traces import begin_span, end_span
from fal_backend.api.upstream import End, UpConn
from fal_backend.domain.access import Operation, Principal
from fal_backend.domain.call_record import CallRecord
from fal_backend.domain.request import Failure, Refusal, RunnerAct, Verdict, refusal_of, unknown_app, verdict
from fal_backend.services.dispatch import START_LIMIT_S, Dispatch
from fal_backend.services.lanes import Door
from fal_backend.services.request_ids import RequestIds
from fal_backend.services.routes import Route, RouteInfo
from fal_backend.services.tracing import Tracer

__all__ = ["Gateway"]

log = logging.getLogger(__name__)

_CANCEL_S = 600.0
_TICK_S = 0.1
_SHORTEST_START_S = 0.1
_PREFIX = len(b"/run/")
_KNOWN_TARGETS = 1_024
# Members of an Enum are looked up by a function each time; these are asked for on every call.
_COMPLETE, _KEEP = End.COMPLETE, RunnerAct.KEEP


class _Turn(Enum):
    """What follows an attempt."""

    DONE = auto()
    AGAIN = auto()


class Gateway:
    """The data plane's one way in; used from one event loop."""

    def __init__(
        self,
        dispatch: Dispatch,
        auth: Authority,
        *,
        tokens: Tokens | None = None,
        rates: Rates | None = None,
        note: Callable[[CallRecord], None] | None = None,
        sources: Sources | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """note is told of each call that has ended; sources have the figures that are not the dispatch's."""
        self._note = note
        self._sources = sources
        self._tracer = tracer
        self._dispatch = dispatch
        self._auth = auth
        self._tokens = tokens
        self._rates = rates or Rates()
        self._ids = RequestIds()
        self._targets: dict[bytes, Target] = {}
        self._running: dict[Call, None] = {}
        self._is_ticking = False

    def metrics(self) -> bytes:
        """Return the counts of the house as Prometheus text."""
        return render(self._dispatch, self._sources)

    # The quick way

    def begin(self, caller: Caller) -> None:
        """Carry a call; its answer goes to the caller by itself."""
        call = Call(caller, _NOWHERE, self._ids.next(), monotonic())
        caller.served = call
        try:
            self._admit(call)
        except Refusal as refusal:
            call.refuse(refusal)
            self._count(call)
        except Exception as error:  # noqa: BLE001  the call's root: whatever it was, the caller gets an answer
            self._give_up(call, error)

    def admits(self, caller: Caller) -> bool:
        """Return whether a caller may call the app that its target names; one that may not is answered."""
        call = Call(caller, _NOWHERE, self._ids.next(), 0.0)
        try:
            self._known(self._route(self._target(caller.target)), caller)
        except Refusal as refusal:
            call.refuse(refusal)
            return False
        return True

    def _admit(self, call: Call) -> None:
        caller, head = call.caller, call.caller.head
        call.target = target = self._target(caller.target)
        call.route = route = self._route(target)
        if self._tracer is not None:
            call.span = begin_span(self._tracer, call, route)
        call.known = known = self._known(route, caller)
        if route.branch is not None:
            call.route = route = route.of(sticky_name(caller, known))
        self._rates.count(None if known is None else known.key_id, caller.connection.address, call.began)
        if head.start_timeout is not None:
            self._set_start_limit(call)
        door = None
        if not caller.more_body and not head.is_websocket:
            door = route.lane.take(head.hint)
            if door is not None and isinstance(door.link, Pool):
                conn = door.link.take()
                if conn is not None:
                    call.door = door
                    call.on_end = self._finish
                    self._watch(call)
                    call.send(conn)
                    return
        caller.connection.spawn(self._carry(call, door, None))

    def _finish(self, call: Call, end: End) -> None:
        """End a call that went the quick way; whatever is not plain goes on as a coroutine."""
        door = call.door
        assert door is not None
        answer = call.answer
        if end is _COMPLETE and answer is not None and not answer.is_busy:
            fate = verdict(answer.status, answer.stop_runner)
            if fate.act is _KEEP:
                self._take_back(call, door)
                self._dispatch.release(door)
                self._count(call)
                call.caller.served = None  # no cycle is left: both go now, not when garbage is looked for
                return
        call.on_end = None
        call.caller.connection.spawn(self._carry(call, door, end))

    def _take_back(self, call: Call, door: Door) -> None:
        self._running.pop(call, None)
        conn, call.conn = call.conn, None
        if conn is not None and isinstance(door.link, Pool):
            door.link.give(conn)

    def _count(self, call: Call) -> None:
        """Count a call that has ended, and note it; one of an unknown app is nobody's."""
        route = call.route
        if route is None:
            return
        now, status = monotonic(), call.status or 499
        split = call.split(now)
        route.tally.count(status, now - call.began)
        if split.cold_start:
            route.tally.app.cold_starts.observe(split.cold_start)
        if self._note is not None:
            self._note(call.record(status, now, split))
        if call.span is not None:
            end_span(call.span, call.record(status, now, split))

    def _give_up(self, call: Call, error: Exception) -> None:
        log.error("gateway.call_failed", exc_info=error, extra={"request_id": call.request_id})
        call.refuse(Refusal(500, "Internal Server Error", "internal_error"))
        self._count(call)

    # What every call is asked

    def _target(self, raw: bytes) -> Target:
        found = self._targets.get(raw)
        if found is None:
            found = _parse_target(raw)
            if len(self._targets) >= _KNOWN_TARGETS:
                self._targets.clear()
            self._targets[raw] = found
        return found

    def _route(self, target: Target) -> Route:
        route = self._dispatch.find(target.key)
        if route is None:
            raise unknown_app(target.key.partition(b"/")[2].decode("ascii", "replace"))
        return route

    def _known(self, route: Route, caller: Caller) -> Principal | None:
        """Return who calls, None where nobody needs to know. Raises: Refusal 401, 403."""
        if caller.token is None:
            return self._with_leave(route.info, caller.head)
        if self._tokens is None:
            raise Refusal(401, "Tokens are not accepted here")
        known = self._tokens.open(caller.token, route.key)
        check_call(Presented(known), route.info, Operation.WS)
        return known

    def _with_leave(self, info: RouteInfo, head: Head) -> Principal | None:
        """Return who may call; what was found holds until the key or the app is another. Raises: Refusal 401, 403."""
        leave, now = head.leave, time()
        if leave is not None and leave[0] is info and now < leave[1].expires:
            leave[1].used = now
            return leave[1].principal
        known = may_call(self._auth, info, head.authorization)
        if known is not None and head.authorization is not None:
            head.leave = info, self._auth.admit(head.authorization)
        return known

    def _set_start_limit(self, call: Call) -> None:
        """Set by when a runner must have begun: the App's limit, or the caller's where that is shorter."""
        assert call.route is not None
        limit_s = min(call.route.info.start_timeout_s or START_LIMIT_S, START_LIMIT_S)
        given = call.caller.head.start_timeout
        if given is not None:
            given_s = _seconds(given)
            if given_s <= limit_s:
                limit_s = given_s
                call.start_failure = Failure.USER_TIMEOUT
        call.start_by = call.began + limit_s

    # The slow way

    async def _carry(self, call: Call, door: Door | None, end: End | None) -> None:
        """Carry a call from wherever the quick way left it: without a slot, with one, or with its end."""
        try:
            if door is None and call.caller.more_body:
                await _read_in_hand(call.caller)
            while True:
                if door is None:
                    door = await self._wait(call)
                if await self._serve(call, door, end) is _Turn.DONE:
                    break
                door = end = None
            self._count(call)
        except Refusal as refusal:
            call.refuse(refusal)
            self._count(call)
        except Exception as error:  # noqa: BLE001  the call's root, as in `begin`
            self._give_up(call, error)

    async def _wait(self, call: Call) -> Door:
        """Stand in line; the place is left when the caller leaves. Raises: Refusal."""
        assert call.route is not None
        if call.failure is not None:
            raise refusal_of(call.failure)[0]
        if not call.start_by:
            self._set_start_limit(call)
        waiter = self._dispatch.wait(call.route, call.start_by, call.start_failure, at_head=call.was_served)
        call.waits = lambda: self._dispatch.leave(waiter)
        try:
            door = await waiter.turn
        except asyncio.CancelledError:
            self._dispatch.leave(waiter)
            if not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._dispatch.release(waiter.turn.result())
            raise
        finally:
            call.waits = None
        call.route = self._dispatch.way(call.route, door)
        return door

    async def _serve(self, call: Call, door: Door, end: End | None) -> _Turn:
        """Use a slot for one attempt, or conclude one that has ended, and give the slot back."""
        call.door = door
        call.was_served = is_held = True
        try:
            end = await self._exchange(call, door, end)
            if call.is_busy:
                is_held = False
                call.sent_back += 1
                call.door = call.answer = None
                self._dispatch.send_back(door, call.sent_back)
                return _Turn.AGAIN
            if end is None:
                call.door = None
                return _Turn.AGAIN
            await self._conclude(call, door, end)
            return _Turn.DONE
        finally:
            self._take_back(call, door)
            if is_held:
                self._dispatch.release(door)

    async def _exchange(self, call: Call, door: Door, end: End | None) -> End | None:
        """Send the call and pass the answer on; None when no runner has seen it, so that another may."""
        pool = self._pool(door)
        if end is None:
            conn = await self._connection(call, door, pool)
            if conn is None:
                return None if call.failure is None else End.STOPPED
            end = await self._exchange_on(call, conn)
        if call.may_resend and call.failure is None:
            # A connection that the runner closed as we wrote: no byte came back and the whole call is in hand.
            self._take_back(call, door)
            conn = await self._connect(door, pool)
            end = End.SILENT if conn is None else await self._exchange_on(call, conn)
        return end

    def _pool(self, door: Door) -> Pool:
        if not isinstance(door.link, Pool):
            door.link = Pool(door.socket, door.width, door.control, door.grace_s)
        return door.link

    async def _connection(self, call: Call, door: Door, pool: Pool) -> UpConn | None:
        """Return a connection for a call; a session has one of its own."""
        upgraded = call.caller.upgraded
        if upgraded is None:
            return pool.take() or await self._connect(door, pool)
        try:
            return await pool.open_session(upgraded)
        except (OSError, TimeoutError):
            self._dispatch.condemn(door, "connection_broken")
            return None

    async def _connect(self, door: Door, pool: Pool) -> UpConn | None:
        """Open a connection; a runner that does not accept one gets no further call."""
        try:
            return await pool.open()
        except (OSError, TimeoutError):
            self._dispatch.condemn(door, "connection_broken")
            return None

    async def _exchange_on(self, call: Call, conn: UpConn) -> End:
        if call.failure is not None or conn.is_lost:
            call.conn = conn
            return End.SILENT if call.failure is None else End.STOPPED
        self._watch(call)
        done: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        call.ended_at = done
        try:
            call.send(conn)
            if call.caller.more_body or call.caller.body:
                await send_body(call, conn, done)
            return await done
        except asyncio.CancelledError:
            conn.stop()
            raise
        finally:
            call.ended_at = None

    async def _conclude(self, call: Call, door: Door, end: End) -> None:
        """Answer where the runner did not, and decide the runner's fate."""
        if call.is_open_session:
            call.caller.transport.close()
            if not await end_session(door.control, call.request_id, _CANCEL_S):
                log.info("gateway.session_end_unknown", extra={"runner_id": door.runner_id})
            return
        if end is End.COMPLETE and call.answer is not None:
            await self._judge(door, verdict(call.answer.status, call.answer.stop_runner))
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
        elif fate.act is RunnerAct.CHECK:
            conn = await self._connect(door, self._pool(door))
            if conn is not None:
                conn.close()

    async def _end_work(self, call: Call, door: Door) -> None:
        """Have the runner end the work of a caller that left, within what the call had left to run."""
        left_s = call.deadline - asyncio.get_running_loop().time() if call.deadline else _CANCEL_S
        if not await cancel_call(door.control, call.request_id, max(left_s, 1.0)):
            log.info("gateway.cancel_unanswered", extra={"runner_id": door.runner_id})

    # Time limits: one coarse timer over all running calls

    def _watch(self, call: Call) -> None:
        assert call.route is not None
        limit_s = call.route.info.request_timeout_s
        if not limit_s:
            return
        call.deadline = monotonic() + limit_s
        self._running[call] = None
        if not self._is_ticking:
            self._is_ticking = True
            loop = asyncio.get_running_loop()
            loop.call_later(_TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for call in [call for call in self._running if now >= call.deadline]:
            if call.is_open_session:
                del self._running[call]  # the edge watches over it, by limits of its own
            else:
                call.fail(Failure.REQUEST_TIMEOUT)
        self._is_ticking = bool(self._running)
        if self._is_ticking:
            loop.call_later(_TICK_S, self._tick, loop)


def _parse_target(raw: bytes) -> Target:
    """Split `/run/{owner}/{alias}{/path}{?query}`.

    Raises: Refusal 404 without owner and alias, 400 for a path that climbs.
    """
    path, mark, query = raw.partition(b"?")
    owner_end = path.find(b"/", _PREFIX)
    if owner_end <= _PREFIX or owner_end + 1 == len(path):
        raise Refusal(404, "The address of an app is /run/{owner}/{alias}")
    alias_end = path.find(b"/", owner_end + 1)
    if alias_end < 0:
        return Target(path[_PREFIX:], b"/", mark + query)
    rest = path[alias_end:]
    if (b"%" in rest or b"/." in rest or b"\\" in rest) and _is_climbing(rest):
        raise Refusal(400, "The path is not acceptable", "bad_request")
    return Target(path[_PREFIX:alias_end], rest, mark + query)


def _is_climbing(path: bytes) -> bool:
    plain = unquote_to_bytes(path)
    return any(part in (b".", b"..") for part in plain.replace(b"\\", b"/").split(b"/")) or b"\x00" in plain


def _seconds(given: bytes) -> float:
    try:
        given_s = float(given)
    except ValueError:
        given_s = 0.0
    if not given_s > _SHORTEST_START_S:
        raise Refusal(400, "X-Fal-Request-Timeout must be a number of seconds above 0.1", "bad_request")
    return given_s


async def _read_in_hand(caller: Caller) -> None:
    """Wait for a small body of unknown length to be complete; a large one is left unread."""
    if caller.length is not None and caller.length > IN_HAND:
        return
    while caller.more_body and not caller.disconnected and len(caller.body) <= IN_HAND:
        caller.read_on()
        caller.message_event.clear()
        await caller.message_event.wait()


_NOWHERE = Target(b"", b"/", b"")
