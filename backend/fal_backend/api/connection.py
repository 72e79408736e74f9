"""One connection at the edge: uvicorn's httptools protocol, with the limits that it lacks.

Rules: what does not get past here never reaches an app: heads over their size, count or time, bodies over their
size or under their rate, readers that stall, methods and upgrades that we do not speak. One coarse timer of the
edge looks at every connection; a request arms none. Calls of apps go straight to the gateway, all else by ASGI.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
import uuid
from collections.abc import Coroutine
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from fal_backend.api.caller import Caller, Cycle, problem
from fal_backend.api.head import Head, Headers, header_lines
from fal_backend.api.house import House, Limits
from fal_backend.api.readdress import PROXY, TARGET, readdress
from fal_backend.api.repeats import Form
from fal_backend.api.tokens import TOKEN_QUERY, split_token
from fal_backend.api.tunnel import Upgraded
from fal_backend.domain.request import Refusal

__all__ = ["EdgeProtocol", "House", "Limits"]

log = logging.getLogger(__name__)

_DATA_PLANE = (b"/run/", b"/queue/", b"/ws/")
"""What is served without ASGI."""
_PROGRAMS = b"/api/v1/runners/"
"""Where a websocket leads to a program."""

IN_HAND = HIGH_WATER_LIMIT
"""A body up to this size is complete before its call takes a slot."""


class EdgeProtocol(HttpToolsProtocol):
    """A guarded connection; see the module's rules."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        house: House,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._house = house
        self._limits = house.limits
        self._raw: Headers = []
        self._head: Head | None = None
        self._length: bytes | None = None
        self._in_head = True
        self._head_fed = 0
        self._waiting_since = self.loop.time()
        self._form: Form | None = None
        """How the last request looked, where more like it may follow."""
        self._is_again = False
        """Whether the request that was parsed last is for the same as the one before, with the same head."""
        self._active: Caller | Cycle | None = None
        self._waiting: list[Caller | Cycle] = []
        """Pipelined requests, the next one first."""
        self._is_replayed = False
        self._is_lingering = False
        self._is_counted = False
        self._upgraded: Upgraded | None = None
        self.address: str | None = None
        self._refused: tuple[int, str] | None = None
        self._got = self._got_before = self._slow_s = 0
        self._body_size = 0
        self._unsent_before = self._stalled_s = 0
        self._lines_of: Headers | None = None
        self._lines = b""
        self.cycle: Caller | Cycle | None = None  # type: ignore[assignment]
        """The request whose bytes come in."""

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self._limits.unread_bytes)
        if self.client is None:
            self.app_state = {**self.app_state, "peer_pid": _peer_pid(transport)}
            return
        addresses = self._house.addresses
        self.address = address = self.client[0]
        addresses[address] = addresses.get(address, 0) + 1
        self._is_counted = True
        if addresses[address] > self._limits.address_connections:
            self._refuse(503, "Too many connections from this address")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_counted and self.client is not None:
            addresses, address = self._house.addresses, self.client[0]
            addresses[address] -= 1
            if not addresses[address]:
                del addresses[address]
        self._waiting.clear()
        self.connections.discard(self)
        self.flow.resume_writing()
        if self._active is not None:
            self._active.leave()
        if exc is None:
            self.transport.close()
        self.parser = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._active is not None:
            self._active.make_room(has_room=False)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._active is not None:
            self._active.make_room(has_room=True)
        if self._active is None or self._active.response_complete:
            self._go_on()

    def linger(self) -> None:
        if self._is_lingering or self.transport.is_closing():
            return
        self._is_lingering = True
        self.flow.resume_reading()
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self.loop.call_later(self._limits.linger_s, self.transport.close)

    def inspect(self, now: float) -> None:
        """Look once a second whether a limit of time is passed."""
        limits, active = self._limits, self._active
        if self._is_lingering or self.transport is None:
            return
        if active is None or active.response_complete:
            waited_s = now - self._waiting_since
            if self._in_head and waited_s > limits.head_s:
                self._refuse(408, "The request's head took too long")
            elif waited_s > limits.idle_s:
                # Closing waits for what is unsent, and its reader may be gone.
                self.transport.abort() if self.transport.is_closing() else self.transport.close()
            return
        self._inspect_body(active)
        self._inspect_answer(active)
        if self._upgraded is not None and self._upgraded.opened_at is not None:
            is_old = now - self._upgraded.opened_at > limits.session_s
            if is_old or now - self._upgraded.used_at > limits.session_idle_s:
                self.transport.close()

    def _inspect_body(self, active: Caller | Cycle) -> None:
        got, self._got_before = self._got - self._got_before, self._got
        is_expected = active.more_body and not self.flow.read_paused and not active.waiting_for_100_continue
        if not is_expected or got >= self._limits.body_bytes_per_s:
            self._slow_s = 0
            return
        self._slow_s += 1
        if self._slow_s > self._limits.body_slow_s:
            self._refuse(408, "The request's body came too slowly")

    def _inspect_answer(self, active: Caller | Cycle) -> None:
        unsent = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        is_stalled = unsent > 0 and unsent >= self._unsent_before > 0
        self._stalled_s = self._stalled_s + 1 if is_stalled else 0
        self._unsent_before = unsent
        if self._stalled_s > self._limits.stall_s:
            self.transport.abort()

    # Bytes in

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        self._got += len(data)
        cycle = self.cycle
        # Whether the last request is answered and nothing of the next one has come.
        is_begin = cycle is not None and cycle.response_complete and not (cycle.more_body or self._in_head)
        if is_begin and self._form is not None and self._repeat(self._form, data):
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._after_error(error)
        else:
            if self._in_head:
                # A piece may hold the ends of requests before: what of it is this head's is not known.
                self._head_fed += 0 if self.cycle is not cycle else len(data)
                if self._head_fed > 2 * self._limits.head_bytes:
                    self._refuse(431, "The request's head is too large")
            elif is_begin and self._is_again:
                self._is_again = False
                self._learn(data)

    def _learn(self, data: bytes) -> None:
        """Remember how a plain call looked that came in one piece."""
        head, cycle = self._head, self.cycle
        if head is None or not isinstance(cycle, Caller) or cycle.more_body or not cycle.keep_alive:
            return
        if not (head.is_chunked or head.needs_continue or head.is_websocket):
            self._form = Form.of(data, cycle.length)

    def _repeat(self, form: Form, data: bytes) -> bool:
        """Serve a request like the last one without reading its head again; return whether it was one."""
        body, head = form.body(data), self._head
        if body is None or head is None or len(body) > self._limits.body_bytes:
            return False
        length = len(body) if form.has_length else None
        self.cycle = caller = Caller(self, head, self.url, length, is_http10=False, keep_alive=True)
        caller.body, caller.more_body, caller.has_begun = body, False, True
        self._active = caller
        self._house.begin(caller)
        return True

    def _after_error(self, error: httptools.HttpParserError) -> None:
        if self._refused is not None:
            self._refuse(*self._refused)
            return
        if isinstance(error, httptools.HttpParserCallbackError):
            log.error("edge.parser", exc_info=error.__context__)
        self._refuse(400, "Invalid HTTP request received.")

    def _after_upgrade(self, rest: bytes) -> None:
        """Go on after a head that asked for another protocol.

        httptools skips the body of such a request. HTTP says that an upgrade which is not wanted is ignored, so
        the head is read again without it: curl's and Java's `Upgrade: h2c` would else arrive with an empty body.
        """
        if not self._is_replayed:
            self._hand_over(rest)
            return
        self._is_replayed = False
        dropped = (b"upgrade", b"http2-settings", b"connection")
        wish = self._wish
        head = [wish.method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in wish.headers:
            if name not in dropped:
                head += (name, b": ", value, b"\r\n")
        if self._length is not None:
            head += (b"content-length: ", self._length, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join((*head, b"\r\n", rest)))

    def _hand_over(self, rest: bytes) -> None:
        """Let what comes from now on go to whoever serves the websocket; answers and limits stay here."""
        caller = self.cycle
        if isinstance(caller, Caller) and not caller.response_complete:
            caller.upgraded = self._upgraded = Upgraded(self, rest)
            self.transport.set_protocol(self._upgraded)

    def judge_wrong_key(self) -> Refusal | None:
        return self._house.judge_wrong_key(self.address, self.loop.time())

    def _refuse(self, status: int, detail: str) -> None:
        """Answer at the edge and close; a caller that is already being answered is cut."""
        active = self._active
        if active is not None and not active.response_complete:
            is_started = active.response_started
            active.leave()
            active.response_complete = True
            if is_started:
                self.transport.abort()
                return
        elif self.transport.is_closing():
            return
        body = problem(detail)
        lines = self.default_lines([(b"x-fal-request-id", str(uuid.uuid4()).encode())])
        if status == 503:
            lines += b"retry-after: 1\r\n"
        head = b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINE[status], lines, len(body)) + body)
        self.linger()

    @property
    def is_local(self) -> bool:
        return self.client is None

    def default_lines(self, extra: Headers) -> bytes:
        headers = self.server_state.default_headers
        if headers is not self._lines_of:
            self._lines_of = headers
            self._lines = header_lines(headers)
        return self._lines + header_lines(extra) if extra else self._lines

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self._raw = []
        self._length = None
        self._in_head = True
        self._head_fed = self._body_size = 0
        self._waiting_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 14 and name.lower() == b"content-length":
            self._length = value
        else:
            self._raw.append((name, value))

    def _stop_parsing(self, status: int, detail: str) -> None:
        self._refused = (status, detail)
        raise ValueError(detail)

    def on_headers_complete(self) -> None:
        parser, head = self.parser, self._head
        known = head
        # Trailers go nowhere: nobody may add a header once the head was judged.
        raw, self._raw = self._raw, []
        self._in_head = False
        method = parser.get_method()
        if head is None or raw != head.raw or method != head.method:
            self._head = head = self._judge(Head(method, raw))
            if head is None:
                self._is_replayed = True
                return
        length = None
        if self._length is not None:
            length = int(self._length)
            if length > self._body_limit():
                self._stop_parsing(413, "The request's body is too large")
        cycle = self._cycle(head, length)
        before, self.cycle = self.cycle, cycle
        is_same = head is known and isinstance(before, Caller) and before.target == self.url
        self._is_again, self._form = is_same, None
        if before is None or (before.response_complete and not self.flow.write_paused):
            self._start(cycle)
        else:
            self.flow.pause_reading()
            self._waiting.append(cycle)

    def _judge(self, head: Head) -> Head | None:
        """Let a head pass, or stop; None means that it is to be read again without a wish for another protocol."""
        limits, found = self._limits, head.found
        size = sum(len(name) + len(value) for name, value in head.raw) + len(self.url)
        if size > limits.head_bytes or len(head.raw) > limits.head_count:
            self._stop_parsing(431, "The request's head is too large")
        if self.parser.should_upgrade():
            if head.method == b"CONNECT":
                self._stop_parsing(400, "CONNECT is not spoken here")
            if not head.is_websocket:
                self._wish = head
                return None
            has_body = head.is_chunked or self._length not in (None, b"0")
            if head.method != b"GET" or self.parser.get_http_version() != "1.1" or has_body:
                self._stop_parsing(400, "A websocket begins with a GET of HTTP/1.1, without a body")
        else:
            head.is_websocket = False
        if len(found) != len(head.raw) and head.count(b"host") > 1:
            self._stop_parsing(400, "More than one Host header")
        # A websocket asks no leave of the browser's origin rules: it is judged as something that changes things.
        is_unsafe = head.is_websocket and TOKEN_QUERY not in self.url
        method = b"WEBSOCKET" if is_unsafe else head.method
        refused = self._house.refusal(method, found, is_local=self.client is None)
        if refused is not None:
            self._stop_parsing(*refused)
        if b"origin" in found:
            head.extra = self._house.extra_headers(found)
        return head

    def _cycle(self, head: Head, length: int | None) -> Caller | Cycle:
        is_http10 = self.parser.get_http_version() == "1.0"
        keep_alive = not is_http10 and self.parser.should_keep_alive() and not head.is_websocket
        if TARGET in head.found and self.url.partition(b"?")[0] == PROXY:
            self.url = readdress(head.found[TARGET]) or b"/api/fal/proxy/refused"
        is_preflight = head.method == b"OPTIONS" and b"access-control-request-method" in head.found
        is_ours = self.url.startswith(_DATA_PLANE) or (head.is_websocket and self.url.startswith(_PROGRAMS))
        if is_ours and not is_preflight:
            caller = Caller(self, head, self.url, length, is_http10=is_http10, keep_alive=keep_alive)
            if head.is_websocket:
                caller.target, caller.token = split_token(self.url)
            return caller
        cycle = Cycle(
            scope=self._scope(head, length, is_http10=is_http10),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers + head.extra,
            message_event=asyncio.Event(),
            expect_100_continue=head.needs_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.app = self.app
        return cycle

    def _scope(self, head: Head, length: int | None, *, is_http10: bool) -> Any:
        """Return the ASGI scope, as uvicorn would make it."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        size = [] if length is None else [(b"content-length", str(length).encode())]
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.0" if is_http10 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": head.headers + size,
            "state": self.app_state.copy(),
            "method": head.method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
        }

    def _start(self, cycle: Caller | Cycle) -> None:
        """Serve a request, a call with a small body only once that is there: so long it holds no slot."""
        self._active = cycle
        if isinstance(cycle, Cycle):
            self.spawn(cycle.run_asgi(cycle.app))
        elif not cycle.more_body or cycle.head.needs_continue or cycle.head.is_chunked or _is_large(cycle):
            cycle.has_begun = True
            self._house.begin(cycle)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if self._is_replayed or cycle is None:
            return
        self._body_size += len(body)
        if self._body_size > self._limits.body_bytes and self._body_size > self._body_limit():
            self._stop_parsing(413, "The request's body is too large")
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _body_limit(self) -> int:
        return self._limits.upload_bytes if self.url.startswith(b"/files/") else self._limits.body_bytes

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if self._is_replayed or cycle is None:
            return
        cycle.more_body = False
        if cycle.has_begun:
            cycle.message_event.set()
        elif cycle is self._active and not cycle.response_complete:
            self._start(cycle)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._waiting_since = self.loop.time()
        self._go_on()

    def _go_on(self) -> None:
        """Serve the next request, once the caller has read enough of the answers before."""
        if self._is_lingering or self.transport.is_closing():
            return
        if self.flow.write_paused:
            self.flow.pause_reading()
            return
        self.flow.resume_reading()
        if self._waiting:
            self._start(self._waiting.pop(0))

    def shutdown(self) -> None:
        if self._active is None or self._active.response_complete:
            self.transport.close()
        elif self._upgraded is not None and self._upgraded.on_shutdown is not None:
            self._upgraded.on_shutdown()
        else:
            self._active.keep_alive = False


def _is_large(caller: Caller) -> bool:
    return caller.length is not None and caller.length > IN_HAND


def _peer_pid(transport: asyncio.Transport) -> int | None:
    """Return the process at the other end of a unix socket, None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    peer: socket.socket = transport.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0]) or None
