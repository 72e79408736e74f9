"""Websockets of apps through the Jupyter server: a browser's realtime session, joined with one at the backend.

Rules: who connects is signed in and allowed to execute; the address names a path of the data plane and nothing
else; the key is added here. What cannot be opened is said in a text frame in fal's own words, because a browser
cannot read why a handshake was refused. Neither side is read faster than the other one takes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import ensure_async
from tornado import web
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.netutil import Resolver
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    WebSocketHandler,
    websocket_connect,
)

from fal_notebook.errors import FalError
from fal_notebook.labbackends import Backend, Backends, is_socket

__all__ = ["SocketHandler"]

_MAX_MESSAGE = 64 * 1024 * 1024
_OPEN_S = 120.0
"""A cold start may come before the handshake's answer."""

_FAILED = 1011
_UNSENT = frozenset({1005, 1006, 1015})
"""Codes that say how a connection ended and are never sent. Source: RFC 6455, 7.4.1."""

_OWN_QUERY = "token"


class _ToSocket(Resolver):
    """Every host is one unix socket."""

    def initialize(self, path: str) -> None:
        """path: of the socket."""
        self._path = path

    async def resolve(self, host: str, port: int, family: Any = socket.AF_UNSPEC) -> list[tuple[int, Any]]:
        """Return the socket's address."""
        return [(socket.AF_UNIX, self._path)]


class SocketHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """One session of a browser."""

    auth_resource = "fal"
    _upstream: WebSocketClientConnection | None = None
    _pump: asyncio.Task[None] | None = None

    @property
    def max_message_size(self) -> int:
        """The largest frame that passes."""
        return _MAX_MESSAGE

    async def get(self, instance: str, path: str) -> None:
        """Let in who is signed in and allowed."""
        if not self.current_user:
            raise web.HTTPError(403)
        allowed = self.authorizer.is_authorized(self, self.current_user, "execute", self.auth_resource)
        if not await ensure_async(allowed) or not is_socket(self._raw_path(instance)):
            raise web.HTTPError(403)
        await super().get(instance, path)

    def _raw_path(self, instance: str) -> str:
        return str(self.request.path).partition(f"/fal/ws/{instance}/")[2]

    async def open(self, instance: str, path: str) -> None:
        """Open the session behind; frames that come meanwhile wait."""
        super().open(instance, path)
        backends: Backends = self.settings["fal_backends"]
        target = await backends.find(instance)
        if target is None:
            self._refuse(f"This Jupyter server knows no backend {instance[:40]}.")
            return
        query = urlencode([pair for pair in parse_qsl(self.request.query, True) if pair[0] != _OWN_QUERY])
        try:
            self._upstream = await _connect(target, f"/{self._raw_path(instance)}?{query}".rstrip("?"))
        except HTTPClientError as error:
            self._refuse(_reason(error))
        except FalError as error:
            self._refuse(error.message)
        except (OSError, WebSocketError) as error:
            self._refuse(target.problem(str(error)).message)
        else:
            self._pump = asyncio.create_task(self._answer(self._upstream))

    def _refuse(self, reason: str) -> None:
        said = {"type": "x-fal-error", "error": "NOT_CONNECTED", "reason": reason}
        self.write_message(json.dumps(said))
        self.close(_FAILED)

    async def on_message(self, message: str | bytes) -> None:
        """Pass a frame on, as fast as it is taken."""
        if self._upstream is not None:
            try:
                await self._upstream.write_message(message, binary=isinstance(message, bytes))
            except WebSocketClosedError:
                return  # its end is on the way to the browser

    async def _answer(self, upstream: WebSocketClientConnection) -> None:
        try:
            while (message := await upstream.read_message()) is not None:
                await self.write_message(message, binary=isinstance(message, bytes))
        except WebSocketClosedError:
            return  # the browser left first
        code = upstream.close_code or _FAILED
        self.close(_FAILED if code in _UNSENT else code, upstream.close_reason)

    def on_close(self) -> None:
        """End the session behind a browser that left."""
        if self._upstream is not None:
            self._upstream.close(self.close_code if self.close_code not in _UNSENT else None)
        super().on_close()


async def _connect(target: Backend, url: str) -> WebSocketClientConnection:
    """Open a websocket at the backend; an embedded one that is down is started once.

    Raises: HTTPClientError when it refuses, OSError when nobody answers, FalError.
    """
    try:
        return await _open(target, url)
    except (ConnectionError, FileNotFoundError):
        if not target.profile.is_embedded:
            raise
        await target.start()
        return await _open(target, url)


async def _open(target: Backend, url: str) -> WebSocketClientConnection:
    profile = target.profile
    base = urlsplit(profile.url or "http://localhost")
    scheme = "wss" if base.scheme == "https" else "ws"
    request = HTTPRequest(
        f"{scheme}://{base.netloc}{base.path.rstrip('/')}{url}",
        headers=await target.key_header(),
        connect_timeout=_OPEN_S,
        request_timeout=_OPEN_S,
    )
    resolver = _ToSocket(path=str(profile.places.api_socket)) if profile.is_embedded else None
    return await websocket_connect(request, resolver=resolver, max_message_size=_MAX_MESSAGE)


def _reason(error: HTTPClientError) -> str:
    """Return what the backend said when it refused."""
    try:
        said = json.loads(error.response.body if error.response else b"")
        return str(said["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The backend answered {error.code} {error.message}."
