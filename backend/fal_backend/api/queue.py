"""The queue's face: submit, status, status stream, result and cancel under `/queue/{owner}/{alias}`.

Rules: an accepted request is on the disk before its caller is told; a large body goes to the disk as it comes. Every
answer carries `x-fal-request-id`. A status stream is woken by events, says something at least each 10 s, and ends
after the completed status. It speaks to the connection directly, as calls of apps do: a submission is as cheap.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

from fal_backend.api.access import Authority, Presented, check, may_call, presented
from fal_backend.api.caller import Caller, problem, sticky_name
from fal_backend.api.connection import IN_HAND
from fal_backend.api.queue_answers import accepted_body, cancel_answer, status_answer, status_body
from fal_backend.api.queue_target import Ask, QueueTarget, parse_queue_target
from fal_backend.api.rates import Rates
from fal_backend.api.traces import with_trace
from fal_backend.domain.access import Operation, Target
from fal_backend.domain.request import Refusal, is_yes, unknown_app
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.queue_values import (
    Accepted,
    CancelOutcome,
    Phase,
    QueueFace,
    SavedBody,
    StatusView,
    StoredAnswer,
    Submission,
)
from fal_backend.services.tracing import Tracer
from fal_notebook.errors import FalError
from fal_notebook.sse import PING, encode
from fal_notebook.wire import AuthMode

__all__ = ["PING_S", "QueueDoor"]

log = logging.getLogger(__name__)

PING_S = 10.0

_BODY_LIMIT = 512 * 1024 * 1024
_SHORTEST_START_S = 0.1
_PIECE = 256 * 1024
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection", b"x-fal-request-id"})
_EVENTS = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\nx-accel-buffering: no\r\n"
)


class _Left(Exception):
    """The caller has left before its request was whole."""


class QueueDoor:
    """Answers what comes in under `/queue/`; used from one event loop.

    url: base of the addresses for callers on the unix socket, who have no host of their own.
    """

    def __init__(
        self,
        queue: QueueFace,
        dispatch: Dispatch,
        auth: Authority,
        *,
        url: str,
        rates: Rates | None = None,
        check_webhook: Callable[[str], None] = lambda url: None,
        tracer: Tracer | None = None,
    ) -> None:
        """check_webhook raises Refusal where an address is not to be called."""
        self._check_webhook = check_webhook
        self._tracer = tracer
        self._queue = queue
        self._dispatch = dispatch
        self._auth = auth
        self._url = url.rstrip("/")
        self._rates = rates or Rates()
        self._streams: set[_Reader] = set()

    def begin(self, caller: Caller) -> None:
        """Serve a request; its answer goes to the caller by itself."""
        caller.connection.spawn(self._serve(caller))

    def end(self) -> None:
        """End all status streams, so that a backend that stops need not wait for their readers."""
        for reader in list(self._streams):
            reader.leave()

    async def _serve(self, caller: Caller) -> None:
        request_id = ""
        try:
            target = parse_queue_target(caller.target, caller.head.method)
            request_id = target.request_id
            if target.ask is Ask.SUBMIT:
                await self._submit(caller, target)
            else:
                await self._ask(caller, target)
        except _Left:
            caller.abort()
        except Refusal as refusal:
            _refuse(caller, request_id or str(uuid.uuid4()), refusal)
        except FalError as error:
            _refuse(caller, request_id or str(uuid.uuid4()), Refusal(503, str(error), "queue_unavailable"))
        except Exception:
            log.exception("queue.answer_failed")
            _refuse(
                caller,
                request_id or str(uuid.uuid4()),
                Refusal(500, "Internal Server Error", "internal_error"),
            )

    # Submit

    async def _submit(self, caller: Caller, target: QueueTarget) -> None:
        route = self._dispatch.find(target.key)
        if route is None:
            raise unknown_app(target.alias)
        found = caller.head.found
        authorization = found.get(b"authorization")
        asked = may_call(self._auth, route.info, authorization, Operation.QUEUE)
        # A public app asks nobody, but who shows a key owns the request.
        known = presented(self._auth, authorization).principal if asked is None else asked
        now = asyncio.get_running_loop().time()
        self._rates.count(None if known is None else known.key_id, caller.connection.address, now)
        start_timeout_s = _start_timeout(found.get(b"x-fal-request-timeout"))
        if target.webhook is not None:
            self._check_webhook(target.webhook)
        body = await self._body(caller)
        submission = Submission(
            route=route,
            path=target.path,
            query=target.query,
            method=caller.head.method.decode("ascii"),
            headers=tuple(caller.head.headers),
            body=body,
            is_low=found.get(b"x-fal-queue-priority", b"").strip().lower() == b"low",
            start_timeout_s=start_timeout_s,
            no_retry=is_yes(found.get(b"x-fal-no-retry")) is True,
            store_io=is_yes(found.get(b"x-fal-store-io")) is not False,
            hint=_text(found.get(b"x-fal-runner-hint")),
            idempotency_key=_text(found.get(b"idempotency-key")),
            webhook=target.webhook,
            caller=None if known is None else known.account,
            sticky=sticky_name(caller, asked),
        )
        accepted = await self._accepted(submission)
        body_ = accepted_body(self._base(caller, target), accepted.request_id, accepted.position)
        lines = f"x-fal-revision: {accepted.revision or route.info.revision}\r\n".encode()
        _answer(caller, accepted.request_id, 200, body_, lines)

    async def _accepted(self, submission: Submission) -> Accepted:
        """Queue a request; where calls are traced, its tries are children of this act."""
        if self._tracer is None:
            return await self._queue.submit(submission)
        found = dict(submission.headers)
        name = f"submit {submission.route.key}"
        span = self._tracer.begin(name, found.get(b"traceparent"), found.get(b"tracestate"))
        facts: dict[str, str | int | float | bool] = {"fal.app": submission.route.key, "fal.kind": "submit"}
        error: str | None = "refused"
        try:
            traced = replace(submission, headers=with_trace(submission.headers, span.traceparent))
            accepted = await self._queue.submit(traced)
            facts["fal.request_id"] = accepted.request_id
            error = None
        finally:
            span.end(facts, error)
        return accepted

    async def _body(self, caller: Caller) -> bytes | SavedBody:
        if caller.more_body and (caller.length is None or caller.length <= IN_HAND):
            await _read_in_hand(caller)
        if caller.more_body or len(caller.body) > IN_HAND:
            return await self._queue.save_body(_parts(caller), _BODY_LIMIT)
        return caller.take_body()

    # What became of it

    async def _ask(self, caller: Caller, target: QueueTarget) -> None:
        asker, auth = self._asking(caller, target)
        owner, alias, request_id = target.owner, target.alias, target.request_id
        match target.ask:
            case Ask.STATUS:
                view = await self._queue.status(owner, alias, request_id, logs=target.logs)
                check(asker, Operation.STATUS, Target(view.account, auth), submitter=view.caller)
                status, body = status_answer(self._base(caller, target), view)
                _answer(caller, request_id, status, body, _runner_line(view))
            case Ask.FOLLOW:
                views = self._queue.follow(owner, alias, request_id, logs=target.logs)
                await self._follow(caller, target, (asker, auth), views)
            case Ask.RESULT:
                stored = await self._queue.answer(owner, alias, request_id)
                check(asker, Operation.RESULT, Target(stored.account, auth), submitter=stored.caller)
                await _send_stored(caller, request_id, stored)
            case _:
                status, body = cancel_answer(await self._cancel(target, asker, auth))
                _answer(caller, request_id, status, body)

    def _asking(self, caller: Caller, target: QueueTarget) -> tuple[Presented, AuthMode]:
        """Return who asks, and the app's mode. Raises: Refusal 401 without a good key where the app is not public."""
        asker = presented(self._auth, caller.head.found.get(b"authorization"))
        route = self._dispatch.find(target.key)
        # Of an app that is gone, what a request was submitted with is all that counts.
        auth = AuthMode.PUBLIC if route is None else route.info.auth
        if asker.principal is None and auth is not AuthMode.PUBLIC:
            # Before anything is looked up: without a key nobody learns which requests there are.
            raise Refusal(401, asker.fault or "A key is needed: send `Authorization: Key <id>:<secret>`")
        return asker, auth

    async def _cancel(self, target: QueueTarget, asker: Presented, auth: AuthMode) -> CancelOutcome:
        try:
            owner, submitter = await self._queue.caller_of(target.owner, target.alias, target.request_id)
        except Refusal as refusal:
            if refusal.status == 404:
                return CancelOutcome.NOT_FOUND
            raise
        check(asker, Operation.CANCEL, Target(owner, auth), submitter=submitter)
        return await self._queue.cancel(target.owner, target.alias, target.request_id)

    async def _follow(
        self,
        caller: Caller,
        target: QueueTarget,
        asking: tuple[Presented, AuthMode],
        views: AsyncIterator[StatusView],
    ) -> None:
        reader, (asker, auth) = _Reader(caller), asking
        try:
            first = await anext(views)
            check(asker, Operation.STATUS, Target(first.account, auth), submitter=first.caller)
            if caller.disconnected:
                return
            caller.served = reader
            self._streams.add(reader)
            caller.write_head(200, _EVENTS + _id_line(target.request_id) + _runner_line(first), None)
            await reader.write(self._event(caller, target, first))
            if first.phase is not Phase.COMPLETED:
                await self._pass_on(caller, target, views, reader)
            caller.write_end()
        except _Left:
            caller.abort()
        finally:
            self._streams.discard(reader)
            if isinstance(views, AsyncGenerator):
                await views.aclose()

    async def _pass_on(
        self, caller: Caller, target: QueueTarget, views: AsyncIterator[StatusView], reader: _Reader
    ) -> None:
        """Write each change as it comes, and a comment where none comes. Raises: _Left."""
        while True:
            following = asyncio.ensure_future(_next(views))
            try:
                while not await reader.wait(following, PING_S):
                    await reader.write(PING)
                view = following.result()
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            if view is None:
                return
            await reader.write(self._event(caller, target, view))
            if view.phase is Phase.COMPLETED:
                return

    def _event(self, caller: Caller, target: QueueTarget, view: StatusView) -> bytes:
        return encode(status_body(self._base(caller, target), view).decode())

    def _base(self, caller: Caller, target: QueueTarget) -> str:
        """Return the app's queue address as this caller would write it."""
        connection = caller.connection
        host = caller.head.found.get(b"host")
        here = self._url
        if host is not None and not connection.is_local:
            here = f"{connection.scheme}://{host.decode('latin-1')}"
        return f"{here}/queue/{target.owner}/{target.alias}"


class _Reader:
    """Who reads a status stream: whether it is still there, and whether it keeps up."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._left = asyncio.get_running_loop().create_future()
        self._room = asyncio.Event()
        self._room.set()

    def leave(self) -> None:
        """Note that the reader has left, or is to be left."""
        if not self._left.done():
            self._left.set_result(None)
        self._room.set()

    def make_room(self, *, has_room: bool) -> None:
        """Note how fast the reader reads."""
        if has_room:
            self._room.set()
        else:
            self._room.clear()

    async def write(self, data: bytes) -> None:
        """Send an event once the reader has taken the ones before. Raises: _Left."""
        await self._room.wait()
        if self._left.done():
            raise _Left
        self._caller.write_body(data)
        self._caller.flush()

    async def wait(self, following: asyncio.Future[StatusView | None], timeout_s: float) -> bool:
        """Return whether there is news, False when the time is over. Raises: _Left."""
        done, _ = await asyncio.wait(
            (following, self._left), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if self._left in done:
            raise _Left
        return bool(done)


async def _next(views: AsyncIterator[StatusView]) -> StatusView | None:
    return await anext(views, None)


async def _send_stored(caller: Caller, request_id: str, stored: StoredAnswer) -> None:
    lines = [_id_line(request_id)]
    for name, value in ((b"x-fal-revision", stored.revision), (b"x-fal-runner-id", stored.runner)):
        if value is not None:
            lines.append(b"%b: %b\r\n" % (name, value.encode()))
    lines += (b"%b: %b\r\n" % header for header in stored.headers if header[0] not in _FRAMING)
    if stored.error_type is not None and not any(name == b"x-fal-error-type" for name, _ in stored.headers):
        lines.append(b"x-fal-error-type: %b\r\n" % stored.error_type.encode())
    body = stored.body
    size = body.stat().st_size if isinstance(body, Path) else len(body)
    has_body = stored.status not in (204, 304)
    caller.write_head(stored.status, b"".join(lines), size if has_body else None, has_body=has_body)
    if has_body and caller.head.method != b"HEAD":
        if isinstance(body, Path):
            await _send_file(caller, body)
        else:
            caller.write_body(body)
    caller.write_end()


async def _send_file(caller: Caller, path: Path) -> None:
    reader = _Reader(caller)
    caller.served = reader
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            await reader.write(piece)


async def _read_in_hand(caller: Caller) -> None:
    """Wait until a small body is whole, or has turned out to be large. Raises: _Left."""
    while caller.more_body and len(caller.body) <= IN_HAND:
        await _read_more(caller)


async def _parts(caller: Caller) -> AsyncIterator[bytes]:
    """Yield a body as it comes. Raises: _Left."""
    while True:
        if caller.body:
            yield caller.take_body()
        elif not caller.more_body:
            return
        else:
            await _read_more(caller)


async def _read_more(caller: Caller) -> None:
    caller.message_event.clear()
    if caller.disconnected:
        raise _Left
    caller.read_on()
    await caller.message_event.wait()
    if caller.disconnected:
        raise _Left


def _start_timeout(given: bytes | None) -> float | None:
    if given is None:
        return None
    with contextlib.suppress(ValueError):
        if _SHORTEST_START_S < float(given) < math.inf:
            return float(given)
    raise Refusal(400, "X-Fal-Request-Timeout must be a number of seconds above 0.1", "bad_request")


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None


def _id_line(request_id: str) -> bytes:
    return b"x-fal-request-id: %b\r\n" % request_id.encode("latin-1")


def _runner_line(view: StatusView) -> bytes:
    return f"x-fal-runner-id: {view.runner}\r\n".encode() if view.runner else b""


def _answer(caller: Caller, request_id: str, status: int, body: bytes, lines: bytes = b"") -> None:
    if not caller.disconnected and not caller.response_complete:
        caller.answer(status, _id_line(request_id) + lines, body)


def _refuse(caller: Caller, request_id: str, refusal: Refusal) -> None:
    if caller.response_started and not caller.response_complete:
        caller.abort()
        return
    lines = [b"%b: %b\r\n" % header for header in refusal.headers]
    if refusal.status == 401:
        lines.append(b"www-authenticate: Key\r\n")
    if refusal.error_type is not None:
        lines.append(b"x-fal-error-type: %b\r\n" % refusal.error_type.encode())
    _answer(caller, request_id, refusal.status, problem(refusal.detail, refusal.error_type), b"".join(lines))
