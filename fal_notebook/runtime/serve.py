"""The App's HTTP server: a thin ASGI layer with gate and calls table before FastAPI, on uvicorn.

Rules: the layer makes no task and reads no body; a call that finds no slot is answered at the head, so that it can
be sent again elsewhere; a caller who leaves cancels its call; GET, HEAD and OPTIONS (health, openapi.json, docs) pass
beside the gate. The server's loop only waits: no tick, no date, no access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import fastapi.routing
import starlette.responses
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fal_notebook import sessions
from fal_notebook.runtime.calls import Call, Calls, Receive, Scope, Send
from fal_notebook.runtime.context import enter_call
from fal_notebook.runtime.detached import Detached, refuse
from fal_notebook.runtime.kept import CANCELLED, Answers
from fal_notebook.runtime.slots import SlotThreads
from fal_notebook.runtime.spans import OpenSpan, Spans
from fal_notebook.sessions import ON_DRAIN

__all__ = ["CALL", "Front", "Protocol", "Server", "configure", "use_slot_threads"]

_BESIDE_THE_GATE = frozenset({"GET", "HEAD", "OPTIONS"})
CALL = "fal_nb.call"
"""Key of the scope under which servers find the call."""
_BUSY_BODY = b'{"detail":"Runner is busy"}'
_KEEP_ALIVE_S = 3600
_GOING_AWAY, _RESTART = 1001, 1012
_RESEND_S = 10.0
"""How long the answer of a call whose connection broke is kept for the same call, sent again."""

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)


class Front:
    """ASGI application before the App's own."""

    def __init__(
        self,
        app: Asgi,
        calls: Calls,
        *,
        answers: Answers | None = None,
        cancel_paths: frozenset[str] = frozenset(),
        on_end: Callable[[str], None] = lambda request_id: None,
    ) -> None:
        self.app = app
        self.calls = calls
        self.answers = answers or Answers()
        self.lifespan_error: BaseException | None = None
        """What the App's lifespan raised, if it did."""
        self.has_sockets = False
        """True when the App has websocket endpoints."""
        self.spans: Spans | None = None
        self._cancel_paths = cancel_paths
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._cancelling: set[asyncio.Task[None]] = set()
        self.detached = Detached(calls, self.answers, self._run)
        calls.on_cancel = self._ask_app_to_cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._pass_lifespan(scope, receive, send)
            return
        request_id, is_queued = self._recognise(scope)
        call = Call(request_id, scope, send, asyncio.current_task())
        scope[CALL] = call
        try:
            if scope["type"] == "websocket":
                await self._hold_session(call, receive)
            elif is_queued or self.answers.knows(request_id):
                await self._serve_kept(call, receive, send)
            else:
                await self._serve(call, receive, send)
        finally:
            del scope[CALL]

    async def _serve(self, call: Call, receive: Receive, send: Send) -> None:
        scope = call.scope
        # With 2.4 a stream needs no task of its own that listens for the caller's leaving: we cancel it.
        scope["asgi"]["spec_version"] = "2.4"
        if scope["method"] in _BESIDE_THE_GATE or self.calls.admit(call) or self._is_cancel_of_another(call):
            await self._run(call, receive)
        else:
            await refuse(call, send, 429, b"x-fal-nb-busy", _BUSY_BODY)

    async def _serve_kept(self, call: Call, receive: Receive, send: Send) -> None:
        """Serve a call of the queue, or one that was sent before."""
        if call.scope["method"] in _BESIDE_THE_GATE or self._is_cancel_of_another(call):
            await self._serve(call, receive, send)
            return
        call.scope["asgi"]["spec_version"] = "2.4"
        call.is_detached = True
        if not await self.detached.serve(call, receive, send):
            await refuse(call, send, 429, b"x-fal-nb-busy", _BUSY_BODY)

    async def _hold_session(self, call: Call, receive: Receive) -> None:
        """Serve a websocket, which takes one slot; one that finds none is refused in plain HTTP."""
        if not self.calls.admit(call):
            await refuse(call, call.refuse_handshake, 429, b"x-fal-nb-busy", _BUSY_BODY)
            return
        call.scope[ON_DRAIN] = functools.partial(setattr, call, "on_drain")
        try:
            await self._run(call, receive)
        finally:
            del call.scope[ON_DRAIN]

    def end_sessions(self) -> None:
        """End the sessions that have not come to their end by themselves."""
        for call in self.calls.running():
            if call.scope["type"] == "websocket":
                call.interrupt()

    def leave(self, call: Call) -> None:
        """Learn that a call's caller has left: its work ends, unless it is the queue's."""
        call.is_abandoned = True
        if call.is_detached:
            return
        if call.holds_slot and not call.has_started_answer:
            # The gateway sends a call again when its connection broke before a byte of the answer came.
            call.answer = self.answers.open(call.request_id, call.attempt, is_listed=False)
            call.send_to(call.answer.record)
        self.calls.cancel(call)

    async def _run(self, call: Call, receive: Receive) -> None:
        if self.spans is not None:
            self._begin_span(self.spans, call)
        enter_call(call)
        try:
            await self.app(call.scope, receive, call.send)
        except asyncio.CancelledError:
            if not call.is_cancelled or call.task is None:
                raise
            call.task.uncancel()
            await _answer_cancelled(call, close_code=_RESTART if self.calls.is_draining else _GOING_AWAY)
        finally:
            call.task = None  # or each call would be garbage in a circle: task, context, call, task
            self.calls.end(call)
            self._on_end(call.request_id)
            if call.span is not None:
                self._end_span(call, call.span)
            if call.answer is not None:
                self.answers.finish(call.answer, keep_s=_RESEND_S)

    def _begin_span(self, spans: Spans, call: Call) -> None:
        name = f"{call.scope.get('method', 'WEBSOCKET')} {call.scope['path']}"
        call.span = spans.begin(name, call.header(b"traceparent"))

    def _end_span(self, call: Call, span: OpenSpan) -> None:
        assert self.spans is not None
        error = f"answered {call.status}" if call.status >= 500 else None if call.status else "no answer"
        facts = {
            "http.response.status_code": call.status,
            "url.path": call.scope["path"],
            "fal.request_id": call.request_id,
            "fal.attempt": call.attempt,
        }
        self.spans.end(span, facts, error=error)

    def _recognise(self, scope: Scope) -> tuple[str, bool]:
        """Return a call's id and whether the queue makes it, in one pass over its headers."""
        request_id, is_queued = "", False
        for name, value in scope["headers"]:
            if name == b"x-fal-request-id":
                request_id = value.decode("latin-1")
            elif name == b"x-fal-nb-call":
                is_queued = value == b"queue"
                if request_id:
                    break
        return request_id or f"local-{next(self._numbers)}", is_queued

    def _is_cancel_of_another(self, call: Call) -> bool:
        """Tell whether this is fal's `POST <path>/cancel` for a call in flight."""
        return call.scope["path"].endswith("/cancel") and self.calls.find(call.request_id) is not None

    async def _pass_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as exc:
            self.lifespan_error = exc
            raise

    def _ask_app_to_cancel(self, call: Call, must_end: bool) -> bool:
        path = str(call.scope["path"]).rstrip("/") + "/cancel"
        if path not in self._cancel_paths:
            return False
        task = asyncio.get_running_loop().create_task(self._post_cancel(call, path, must_end=must_end))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)
        return True

    async def _post_cancel(self, call: Call, path: str, *, must_end: bool) -> None:
        """Call the App's own cancel endpoint; where it refuses, cancel the call ourselves if it must end."""
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {key: value for key, value in call.scope.items() if key != CALL}
        skipped = (b"content-length", b"transfer-encoding", b"content-type")
        scope |= {
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [pair for pair in call.scope["headers"] if pair[0] not in skipped],
        }
        enter_call(call)
        try:
            await self.app(scope, receive, send)
        except Exception:
            log.exception("the app's cancel endpoint raised")
        if statuses and statuses[0] < 300:
            return
        if must_end:
            call.interrupt()
        else:
            call.is_cancelled = False


async def _answer_cancelled(call: Call, *, close_code: int) -> None:
    """Answer 499 where an answer is still possible; a half-sent one is cut by the server."""
    if call.has_started_answer:
        return
    if call.scope["type"] == "websocket":
        with contextlib.suppress(OSError, RuntimeError):
            await call.send({"type": "websocket.close", "code": close_code})
        return
    status, body = CANCELLED
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    await call.send({"type": "http.response.start", "status": status, "headers": headers})
    await call.send({"type": "http.response.body", "body": body})


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which also tells a call that its caller has left."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the call that this connection was waiting for."""
        super().connection_lost(exc)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return
        call = cycle.scope.get(CALL)
        if isinstance(call, Call):
            front: Front = self.config.loaded_app
            front.leave(call)

    def on_response_complete(self) -> None:
        """Go on without a keep-alive timer: only the gateway connects here, and it keeps its connections."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()


class Server(uvicorn.Server):
    """uvicorn's server without its clock and its signal handlers."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the server and tell that it accepts."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_started()

    async def main_loop(self) -> None:
        """Wait until asked to stop."""
        await self._stop.wait()

    def stop(self) -> None:
        """Stop accepting, finish the calls in flight, then end."""
        self.should_exit = True
        self._stop.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the lifecycle."""
        yield


def use_slot_threads(threads: SlotThreads) -> None:
    """Have generators that an App streams from run on slot threads.

    Starlette would run them in anyio's pool, whose await ends at once when the call is cancelled, while the
    generator's step goes on: the slot would be free before the work has ended.
    """
    for module in (starlette.responses, fastapi.routing, sessions):
        if hasattr(module, "iterate_in_threadpool"):
            setattr(module, "iterate_in_threadpool", threads.iterate)  # noqa: B010 (mypy knows no such assignment)


def configure(front: Front, *, has_sockets: bool = False) -> uvicorn.Config:
    """Return the server's settings; only an App that has websocket endpoints needs the library for them."""
    return uvicorn.Config(
        front,
        interface="asgi3",
        http=Protocol,
        ws="fal_notebook.runtime.websocket:SessionProtocol" if has_sockets else "none",
        ws_per_message_deflate=False,
        loop="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
