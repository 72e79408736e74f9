"""The edge: who may knock, and where a request goes; one server over the TCP and the unix socket.

Rules: Host must be a name of ours (a rebound DNS name is refused with 421); a request that may change something
and shows no key must not come from a foreign page (403). Both are judged on the head, before anything runs.
The unix socket is exempt from the Host rule: a browser cannot reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import resource
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from fal_backend.api import metrics
from fal_backend.api.access import Authority, Presented, presented
from fal_backend.api.caller import Caller, problem
from fal_backend.api.connection import EdgeProtocol, Limits
from fal_backend.api.gateway import Gateway
from fal_backend.api.messages import MessageDoor
from fal_backend.api.programs import ProgramDoor
from fal_backend.api.queue import QueueDoor
from fal_backend.api.rates import Rates
from fal_backend.api.spans import SpanDoor
from fal_backend.api.tokens import Tokens
from fal_backend.domain.access import Operation, Target, Verdict, may
from fal_backend.domain.request import Refusal

__all__ = ["Edge", "Limits", "serve"]

_LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS"})
_HOST = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")
_JSON = b"application/json"
_KNOWN_HOSTS = 64
_OPEN_FILES = 65_536


class Edge:
    """The root application: checks at the door, then each path to its room."""

    def __init__(
        self,
        gateway: Gateway,
        control: Any,
        pages: Any,
        *,
        queue: QueueDoor | None = None,
        storage: Any = None,
        tokens: Tokens | None = None,
        spans: SpanDoor | None = None,
        messages: MessageDoor | None = None,
        programs: ProgramDoor | None = None,
        rates: Rates | None = None,
        auth: Authority | None = None,
        webhook_keys: Callable[[], bytes] | None = None,
        url: str,
        allow_hosts: Sequence[str] = (),
        allow_origins: Sequence[str] = (),
        ready: Callable[[], bool],
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.addresses: dict[str, int] = {}
        self._gateway = gateway
        self._call: Callable[[Caller], None] = gateway.begin
        self._queue = queue
        self._storage = storage
        self._tokens = tokens
        self._spans = spans
        self._messages = messages
        self._programs = programs
        self._rates = rates or Rates()
        self._auth = auth
        self._webhook_keys = webhook_keys
        self._control = control
        self._pages = pages
        self._ready = ready
        self._hosts = _LOCAL_HOSTS | {host.lower() for host in allow_hosts}
        hostname = urlsplit(url).hostname
        if hostname:
            self._hosts |= {f"[{hostname}]" if ":" in hostname else hostname}
        self._good_hosts: set[bytes] = set()
        self._origins = frozenset(origin.rstrip("/").encode() for origin in allow_origins)

    def begin(self, caller: Caller) -> None:
        """Serve a request of the data plane."""
        if caller.target.startswith(b"/run/"):
            self._call(caller)
        elif caller.target.startswith(b"/ws/"):
            if self._messages is not None:
                self._messages.begin(caller)
            else:
                caller.answer(404, b"", problem("There are no websockets here"))
        elif caller.target.startswith(b"/api/"):
            if self._programs is not None:
                self._programs.begin(caller)
            else:
                caller.answer(404, b"", problem("There are no websockets here"))
        elif self._queue is not None:
            self._queue.begin(caller)
        else:
            caller.answer(404, b"", problem("There is no queue here"))

    def end(self) -> None:
        """End what would go on for as long as its reader stays."""
        if self._queue is not None:
            self._queue.end()

    # Checks, called by the connection on each head

    def refusal(self, method: bytes, found: dict[bytes, bytes], *, is_local: bool) -> tuple[int, str] | None:
        """Return status and reason where a request must go no further."""
        host = found.get(b"host")
        if host not in self._good_hosts and not is_local:
            if host is None:
                return 400, "A Host header is needed"
            if not self._is_ours(host):
                return (
                    421,
                    f"This backend does not answer for {host.decode('latin-1')!r}; add it with --allow-host",
                )
        if method not in _SAFE_METHODS and b"authorization" not in found and self._is_foreign(found, host):
            return 403, "A page of another origin may not do this without a key"
        return None

    def judge_wrong_key(self, address: str | None, now: float) -> Refusal | None:
        """Count a wrong key, and return what is answered instead of 401 when there were too many."""
        return self._rates.wrong_key(address, now)

    def extra_headers(self, found: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Let a page of an allowed origin read the answer."""
        origin = found[b"origin"]
        if origin not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (
                b"access-control-expose-headers",
                b"etag, server-timing, x-fal-error-type, x-fal-request-id, x-fal-request-timeout-type, x-fal-revision",
            ),
            (b"vary", b"origin"),
        ]

    def answers_for(self, host: str) -> bool:
        """Return whether a Host header, with its port, names this backend."""
        return self._is_ours(host.encode("latin-1", "replace"))

    def _is_ours(self, host: bytes) -> bool:
        matched = _HOST.fullmatch(host)
        if matched is None or matched[1].decode("latin-1").lower().rstrip(".") not in self._hosts:
            return False
        if len(self._good_hosts) < _KNOWN_HOSTS:
            self._good_hosts.add(host)
        return True

    def _is_foreign(self, found: dict[bytes, bytes], host: bytes | None) -> bool:
        origin = found.get(b"origin")
        if origin is None:
            return found.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
        is_same = host is not None and origin in (b"http://" + host, b"https://" + host)
        return not is_same and origin not in self._origins

    # The application

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request that is not a call of an app."""
        assert scope["type"] == "http"
        path = scope["path"]
        if path.startswith(("/api/", "/rest/", "/files/", "/metrics")):
            send = self._patient(scope, send)
        if scope["method"] == "OPTIONS" and self._is_preflight(scope["headers"]):
            await _answer(send, 204, _PREFLIGHT, b"")
        elif path.startswith(("/api/", "/rest/users/")):
            await self._control(scope, receive, send)
        elif path.startswith(("/files/", "/rest/storage/")) and self._storage is not None:
            await self._storage(scope, receive, send)
        elif path in ("/rest/tokens/", "/rest/tokens") and self._tokens is not None:
            await self._tokens(scope, receive, send)
        elif path == "/rest/spans" and self._spans is not None:
            await self._spans(scope, receive, send)
        elif (said := self._said(path)) is not None:
            await _answer(send, said[0], [(b"content-type", _JSON)], said[1])
        elif path == "/metrics":
            await self._answer_counts(scope, send)
        elif path == "/run":
            await _answer(
                send,
                404,
                [(b"content-type", _JSON)],
                problem("The address of an app is /run/{owner}/{alias}"),
            )
        else:
            await self._pages(scope, receive, send)

    async def _answer_counts(self, scope: Any, send: ASGISendCallable) -> None:
        """Answer with the counts of the house, which name everybody's apps: from elsewhere to its admins only."""
        client = scope["client"]
        if client is None or ip_address(client[0]).is_loopback:
            refusal = None
        else:
            refusal = self._refusal_of_counts(dict(scope["headers"]).get(b"authorization"))
        if refusal is None:
            await _answer(send, 200, [(b"content-type", metrics.CONTENT_TYPE)], self._gateway.metrics())
            return
        body = problem(refusal.detail, refusal.error_type)
        await _answer(send, refusal.status, [(b"content-type", _JSON)], body)

    def _refusal_of_counts(self, authorization: bytes | None) -> Refusal | None:
        asker = presented(self._auth, authorization) if self._auth is not None else Presented(None)
        who = asker.principal
        if who is None:
            needed = "From another machine a key is needed: send `Authorization: Key <id>:<secret>`"
            return Refusal(401, asker.fault or needed)
        if who.is_admin and may(who, Operation.READ, Target(who.account)) is Verdict.OK:
            return None
        return Refusal(403, "Only a key of an admin of this backend, which may read, sees its counts")

    def _said(self, path: str) -> tuple[int, bytes] | None:
        """Return status and JSON of what the house says to everybody."""
        if path == "/healthz":
            return 200, b'{"status":"ok"}'
        if path == "/readyz":
            return (200, b'{"ready":true}') if self._ready() else (503, b'{"ready":false}')
        if path == "/rest/.well-known/jwks.json" and self._webhook_keys is not None:
            return 200, self._webhook_keys()
        return None

    def _patient(self, scope: Any, send: ASGISendCallable) -> ASGISendCallable:
        """Answer 429 instead of 401 to an address that has shown too many wrong keys."""
        if scope["client"] is None or b"authorization" not in dict(scope["headers"]):
            return send
        refused: list[Refusal] = []

        async def judge(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                now = asyncio.get_running_loop().time()
                refusal = self._rates.wrong_key(scope["client"][0], now)
                if refusal is not None:
                    refused.append(refusal)
                    body = problem(refusal.detail, refusal.error_type)
                    await _answer(send, refusal.status, [(b"content-type", _JSON), *refusal.headers], body)
            if not refused:
                await send(message)

        return judge

    def _is_preflight(self, headers: Any) -> bool:
        found = dict(headers)
        return b"access-control-request-method" in found and found.get(b"origin") in self._origins


_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
    (
        b"access-control-allow-headers",
        b", ".join(
            (
                b"authorization",
                b"content-type",
                b"idempotency-key",
                b"x-fal-file-name",
                b"x-fal-no-retry",
                b"x-fal-object-lifecycle",
                b"x-fal-object-lifecycle-preference",
                b"x-fal-queue-priority",
                b"x-fal-request-timeout",
                b"x-fal-runner-hint",
                b"x-fal-store-io",
                b"x-fal-target-url",
            )
        ),
    ),
    (b"access-control-max-age", b"600"),
]


async def _answer(
    send: ASGISendCallable, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    if status != 204:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Server(uvicorn.Server):
    """uvicorn's server without its hold on signals: the process that we are part of owns them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def inspect(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at every connection once a second."""
        now = loop.time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, EdgeProtocol):
                connection.inspect(now)
        if not self.should_exit:
            loop.call_later(1.0, self.inspect, loop)


async def serve(
    app: Edge,
    *,
    tcp: socket.socket,
    api: socket.socket | None,
    tls: tuple[socket.socket, ssl.SSLContext] | None = None,
    grace_s: float = 5.0,
) -> None:
    """Serve until cancelled; then open calls get `grace_s` seconds to end."""
    _raise_open_files()
    async with asyncio.TaskGroup() as group:
        group.create_task(_serve(_config(app, grace_s), [tcp] if api is None else [tcp, api]))
        if tls is not None:
            config = _config(app, grace_s)
            config.load()
            config.ssl = tls[1]
            group.create_task(_serve(config, [tls[0]]))


def _config(app: Edge, grace_s: float) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=functools.partial(EdgeProtocol, house=app),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )


async def _serve(config: uvicorn.Config, sockets: list[socket.socket]) -> None:
    server = _Server(config)
    loop = asyncio.get_running_loop()
    loop.call_soon(server.inspect, loop)
    try:
        await server.serve(sockets=sockets)
    except asyncio.CancelledError:
        server.should_exit = True
        await server.shutdown(sockets=sockets)
        raise


def _raise_open_files() -> None:
    """Let this process hold as many connections as the system allows: the default of 1,024 files is few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
