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
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from fal_backend.api.caller import Caller, problem

__all__ = ["EdgeProtocol", "House", "Limits"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take."""

    head_s: float = 10.0
    """From the first byte (of a new connection: from its opening) to the blank line."""
    head_bytes: int = 64 * 1024
    head_count: int = 100
    body_bytes: int = 512 * 1024 * 1024
    body_bytes_per_s: int = 1024
    body_slow_s: int = 10
    """So long a body may come more slowly than that."""
    stall_s: int = 60
    """So long a caller may leave an answer unread."""
    idle_s: float = 75.0
    linger_s: float = 2.0
    address_connections: int = 2_048
    """Connections from one address; the unix socket has no limit."""
    unread_bytes: int = 256 * 1024
    """More than this unread makes whoever writes wait."""


class House(Protocol):
    """Who stands behind the door: the checks of the edge, and the gateway."""

    limits: Limits
    addresses: dict[str, int]

    def refusal(self, method: bytes, found: dict[bytes, bytes], *, is_local: bool) -> tuple[int, str] | None:
        """Return status and reason where a request must go no further."""
        ...

    def extra_headers(self, found: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Return headers that the answer carries because of where the request came from."""
        ...

    def call(self, caller: Caller) -> Coroutine[Any, Any, None]:
        """Carry a call to its app and answer it."""
        ...


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
        self._found: dict[bytes, bytes] = {}
        self._in_head = True
        self._head_fed = 0
        self._head_size = 0
        self._waiting_since = self.loop.time()
        self._active: Caller | None = None
        self._is_replayed = False
        self._is_lingering = False
        self._is_counted = False
        self._refused: tuple[int, str] | None = None
        self._got = self._got_before = self._slow_s = 0
        self._body_size = 0
        self._unsent_before = self._stalled_s = 0
        self._lines_of: list[tuple[bytes, bytes]] | None = None
        self._lines = b""

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self._limits.unread_bytes)
        if self.client is None:
            self.app_state = {**self.app_state, "peer_pid": _peer_pid(transport)}
            return
        addresses, address = self._house.addresses, self.client[0]
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
        for cycle, _ in self.pipeline:
            cycle.disconnected = True
        self.pipeline.clear()
        if self._active is not None:
            self._active.leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._active is not None and self._active.on_room is not None:
            self._active.on_room(False)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._active is not None and self._active.on_room is not None:
            self._active.on_room(True)

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
                self.transport.close()
            return
        self._inspect_body(active)
        self._inspect_answer(active)

    def _inspect_body(self, active: Caller) -> None:
        got, self._got_before = self._got - self._got_before, self._got
        is_expected = active.more_body and not self.flow.read_paused and not active.waiting_for_100_continue
        if not is_expected or got >= self._limits.body_bytes_per_s:
            self._slow_s = 0
            return
        self._slow_s += 1
        if self._slow_s > self._limits.body_slow_s:
            self._refuse(408, "The request's body came too slowly")

    def _inspect_answer(self, active: Caller) -> None:
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
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._after_error(error)
        else:
            if self._in_head:
                self._head_fed += len(data)
                if self._head_fed > 2 * self._limits.head_bytes:
                    self._refuse(431, "The request's head is too large")

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
            return
        self._is_replayed = False
        dropped = (b"upgrade", b"http2-settings", b"connection")
        head = [self._method, b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name not in dropped:
                head += (name, b": ", value, b"\r\n")
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join((*head, b"\r\n", rest)))

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
        lines = self.default_lines(self.server_state.default_headers)
        head = b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (STATUS_LINE[status], lines, len(body)) + body)
        self.linger()

    def default_lines(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        if headers is not self._lines_of:
            self._lines_of = headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._lines

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._found = {}
        self._in_head = True
        self._head_fed = self._head_size = self._body_size = 0
        self._waiting_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer: nobody may add a header once the head was judged
        name = name.lower()
        self.headers.append((name, value))
        self._found[name] = value
        self._head_size += len(name) + len(value)
        if self._head_size > self._limits.head_bytes or len(self.headers) > self._limits.head_count:
            self._stop_parsing(431, "The request's head is too large")

    def _stop_parsing(self, status: int, detail: str) -> None:
        self._refused = (status, detail)
        raise ValueError(detail)

    def on_headers_complete(self) -> None:
        parser, found = self.parser, self._found
        self._in_head = False
        self._method = method = parser.get_method()
        if parser.should_upgrade() and self._must_replay(method, found):
            self._is_replayed = True
            return
        self._judge_head(method, found)
        is_http10 = parser.get_http_version() == "1.0"
        defaults = self.server_state.default_headers
        if b"origin" in found:
            defaults = defaults + self._house.extra_headers(found)
        caller = Caller(
            self,
            method=method,
            target=self.url,
            headers=self.headers,
            found=found,
            default_headers=defaults,
            is_http10=is_http10,
            keep_alive=not is_http10 and parser.should_keep_alive() and b"upgrade" not in found,
        )
        before, self.cycle = self.cycle, caller
        app = None
        is_preflight = method == b"OPTIONS" and b"access-control-request-method" in found
        if is_preflight or not self.url.startswith(b"/run/"):
            app = self.app
            caller.scope = self._scope(method, is_http10=is_http10)
        if before is None or before.response_complete:
            self._start_asgi_task(caller, app)  # type: ignore[arg-type]
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((caller, app))  # type: ignore[arg-type]

    def _must_replay(self, method: bytes, found: dict[bytes, bytes]) -> bool:
        """Decide about a request for another protocol: refuse it, let it pass, or read it without the wish."""
        if method == b"CONNECT":
            self._stop_parsing(400, "CONNECT is not spoken here")
        if found.get(b"upgrade", b"").strip().lower() != b"websocket":
            return True
        if method != b"GET":
            self._stop_parsing(400, "A websocket begins with GET")
        return False

    def _judge_head(self, method: bytes, found: dict[bytes, bytes]) -> None:
        if len(found) != len(self.headers) and sum(name == b"host" for name, _ in self.headers) > 1:
            self._stop_parsing(400, "More than one Host header")
        refused = self._house.refusal(method, found, is_local=self.client is None)
        if refused is not None:
            self._stop_parsing(*refused)
        length = found.get(b"content-length")
        if length is not None and int(length) > self._limits.body_bytes:
            self._stop_parsing(413, "The request's body is too large")

    def _scope(self, method: bytes, *, is_http10: bool) -> Any:
        """Return the ASGI scope, as uvicorn would make it."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.0" if is_http10 else "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
        }

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        assert isinstance(cycle, Caller)
        self._active = cycle
        task = self.loop.create_task(self._house.call(cycle) if app is None else cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_body(self, body: bytes) -> None:
        if self._is_replayed:
            return
        cycle = self.cycle
        self._body_size += len(body)
        if self._body_size > self._limits.body_bytes:
            self._stop_parsing(413, "The request's body is too large")
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if not self._is_replayed:
            self.cycle.more_body = False
            if not self.cycle.response_complete:
                self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._waiting_since = self.loop.time()
        if self._is_lingering or self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())


def _peer_pid(transport: asyncio.Transport) -> int | None:
    """Return the process at the other end of a unix socket, None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    peer: socket.socket = transport.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0]) or None
