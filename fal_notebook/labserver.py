"""The Jupyter server extension: carries the interface's traffic to the backend and adds the key on the way.

Rules: a browser names a backend by its instance id, never by an address; paths and headers pass by
allow-list; the key is added last and never comes back; body and answer are streamed; a reader that leaves
ends the call behind it. A backend that is down is started once by the first contact, and by any act.
Which backends there are, and when one is given the key, is said in `labbackends`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, ClassVar

import httpx
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.utils import ensure_async, url_path_join
from tornado import web
from tornado.iostream import StreamClosedError

from fal_notebook.config import resolve
from fal_notebook.errors import AuthError, BackendError, FalError
from fal_notebook.labbackends import Backend, Backends, is_allowed
from fal_notebook.labsockets import SocketHandler

__all__ = ["InstanceHandler", "InstanceListHandler", "ProxyHandler", "StartHandler", "StaticHandler"]

_SAFE = frozenset({"GET", "HEAD"})
_REQUEST_HEADERS = ("accept", "content-type", "content-length", "if-range", "last-event-id", "range")
_DROPPED = frozenset(
    {
        "connection",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "server",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class _Handler(APIHandler):
    """Base: signed in, allowed, errors as problems."""

    auth_resource = "fal"

    @property
    def backends(self) -> Backends:
        backends: Backends = self.settings["fal_backends"]
        return backends

    async def prepare(self) -> None:  # type: ignore[override]  # as Jupyter's own handlers override it
        """Let in who is signed in and allowed."""
        await super().prepare()
        if not self.current_user:
            raise web.HTTPError(403)
        action = "read" if self.request.method in _SAFE else "execute"
        allowed = self.authorizer.is_authorized(self, self.current_user, action, self.auth_resource)
        if not await ensure_async(allowed):
            raise web.HTTPError(403)

    async def backend(self, instance: str) -> Backend | None:
        """Return the backend, or answer 404 and return None."""
        found = await self.backends.find(instance)
        if found is None:
            error = BackendError(
                f"This Jupyter server knows no backend {instance[:40]}.", code="backend.not_found"
            )
            self.refuse(HTTPStatus.NOT_FOUND, error)
        return found

    def refuse(self, status: int, error: FalError) -> None:
        """Answer with an error; a missing backend carries a header that no app can send."""
        self.set_status(status)
        self.set_header("content-type", "application/json")
        if status == HTTPStatus.BAD_GATEWAY:
            self.set_header("x-fal-offline", "1")
        self.finish(json.dumps({"error": error.to_dict()}))


class InstanceListHandler(_Handler):
    """Which backends this server knows."""

    @web.authenticated
    async def get(self) -> None:
        """List their ids and addresses."""
        found = [{"instance_id": one.instance_id, "address": one.address} for one in self.backends]
        self.finish({"instances": found})


class InstanceHandler(_Handler):
    """Whether this server knows one backend, running or not."""

    @web.authenticated
    async def get(self, instance: str) -> None:
        """Say its id and address."""
        found = await self.backend(instance)
        if found is not None:
            self.finish({"instance_id": found.instance_id, "address": found.address})


class StartHandler(_Handler):
    """Starts the embedded backend."""

    @web.authenticated
    async def post(self, instance: str) -> None:
        """Start it and say who answers."""
        found = await self.backend(instance)
        if found is None:
            return
        try:
            await found.start()
            self.finish(await found.ask_instance())
        except FalError as error:
            self.refuse(HTTPStatus.BAD_GATEWAY, error)
        except (httpx.HTTPError, ValueError) as error:
            self.refuse(HTTPStatus.BAD_GATEWAY, found.problem(str(error)))


@web.stream_request_body
class ProxyHandler(_Handler):
    """Carries one request to a backend and its answer back."""

    _body: asyncio.Queue[bytes | None]
    _upstream: asyncio.Task[httpx.Response] | None = None
    _target: Backend | None = None
    _pump: asyncio.Task[None] | None = None

    async def prepare(self) -> None:  # type: ignore[override]  # as Jupyter's own handlers override it
        """Begin the call as soon as the head is here: the body flows through."""
        await super().prepare()
        instance, path = self.path_kwargs["instance"], self._raw_path()
        method = str(self.request.method)
        # An answer before the body was read ends the connection, and whoever would use it again must know.
        self.set_header("connection", "close")
        if not is_allowed(method, path):
            error = BackendError("This path is not open to notebooks.", code="backend.path_refused")
            self.refuse(HTTPStatus.FORBIDDEN, error)
            return
        target = await self.backend(instance)
        if target is None:
            return
        self.clear_header("connection")
        self._target = target
        self._body = asyncio.Queue(maxsize=8)
        query = f"?{self.request.query}" if self.request.query else ""
        self._upstream = asyncio.create_task(self._open(target, method, f"/{path}{query}"))

    def _raw_path(self) -> str:
        prefix = url_path_join(self.base_url, "fal", "i").rstrip("/") + "/"
        return self.request.path.removeprefix(prefix).partition("/")[2]

    async def data_received(self, chunk: bytes) -> None:
        """Pass a piece of the body on, as fast as it is taken."""
        if self._upstream is None:
            return
        put = asyncio.ensure_future(self._body.put(chunk))
        # A backend that answers early takes no more of the body.
        await asyncio.wait({put, self._upstream}, return_when=asyncio.FIRST_COMPLETED)
        put.cancel()

    def on_connection_close(self) -> None:
        """End the call behind a reader who left."""
        for task in (self._upstream, self._pump):
            if task is not None:
                task.cancel()
        super().on_connection_close()

    @web.authenticated
    async def get(self, **_: str) -> None:
        """Answer with what the backend answers."""
        await self._answer()

    post = put = patch = delete = get

    async def _open(self, target: Backend, method: str, url: str) -> httpx.Response:
        headers = {
            name: self.request.headers[name] for name in _REQUEST_HEADERS if name in self.request.headers
        }
        has_body = "content-length" in headers or "transfer-encoding" in self.request.headers
        try:
            headers |= {"accept-encoding": "identity", **await target.key_header()}
            return await self._send(target, method, url, headers, has_body=has_body)
        except httpx.ConnectError:
            if target.was_reached and method in _SAFE:
                raise
            target.was_reached = True
            await target.start()
            headers |= await target.key_header()
            return await self._send(target, method, url, headers, has_body=has_body)

    async def _send(
        self, target: Backend, method: str, url: str, headers: dict[str, str], *, has_body: bool
    ) -> httpx.Response:
        content = self._chunks() if has_body else None
        request = target.http.build_request(method, url, headers=headers, content=content)
        answer = await target.http.send(request, stream=True)
        target.was_reached = True
        return answer

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._body.get()) is not None:
            yield chunk

    async def _answer(self) -> None:
        if self._upstream is None or self._target is None:
            return
        # The end of the body; a backend that answered early may have left the queue full.
        end = asyncio.ensure_future(self._body.put(None))
        await asyncio.wait({end, self._upstream}, return_when=asyncio.FIRST_COMPLETED)
        try:
            answer = await self._upstream
        except asyncio.CancelledError:
            return
        except AuthError as error:
            # Not a missing backend: starting one would not help.
            self.refuse(HTTPStatus.FORBIDDEN, error)
            return
        except FalError as error:
            self.refuse(HTTPStatus.BAD_GATEWAY, error)
            return
        except httpx.HTTPError as error:
            self.refuse(HTTPStatus.BAD_GATEWAY, self._target.problem(f"{type(error).__name__}: {error}"))
            return
        finally:
            end.cancel()
        self._pump = asyncio.create_task(self._stream(answer))
        await asyncio.wait({self._pump})
        if not self._pump.cancelled() and self._pump.exception() is None:
            self.finish()
        elif self.request.connection is not None and not self._pump.cancelled():
            # Half an answer must not look whole.
            stream = getattr(self.request.connection, "stream", None)
            if stream is not None:
                stream.close()

    async def _stream(self, answer: httpx.Response) -> None:
        try:
            self._write_head(answer)
            async for chunk in answer.aiter_raw():
                self.write(chunk)
                await self.flush()
            # The head of an answer without a body goes out here: `finish` would give it a type of its own.
            await self.flush()
        except StreamClosedError:
            return
        finally:
            await answer.aclose()

    def _write_head(self, answer: httpx.Response) -> None:
        self.set_status(answer.status_code, answer.reason_phrase or "Unknown")
        self.clear_header("content-type")
        for name, value in answer.headers.multi_items():
            is_foreign = name == "location" and not value.startswith("/")
            if name not in _DROPPED and not name.startswith("access-control-") and not is_foreign:
                self.set_header(name, value)
        self.set_header("x-content-type-options", "nosniff")
        # What an app answers is shown by our interface, and runs no script where someone opens it alone.
        self.set_header("content-security-policy", "sandbox; default-src 'none'")
        self.set_header("x-accel-buffering", "no")


class StaticHandler(JupyterHandler):
    """The interface's bundle."""

    folder: ClassVar[Path] = Path(__file__).parent / "static"

    @web.authenticated
    async def get(self) -> None:
        """Send fal-ui.js; the extension asks for it by its hash."""
        try:
            content = (self.folder / "fal-ui.js").read_bytes()
        except OSError:
            raise web.HTTPError(404, "fal-ui.js is not built: run `make front`") from None
        digest = hashlib.sha256(content).hexdigest()[:12]
        self.set_header("content-type", "text/javascript; charset=utf-8")
        is_exact = self.get_query_argument("v", "") == digest
        self.set_header("cache-control", "private, max-age=31536000, immutable" if is_exact else "no-cache")
        self.finish(content)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "fal_notebook.labserver"}]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    app = serverapp.web_app
    app.settings["fal_backends"] = Backends(resolve)
    base = url_path_join(app.settings["base_url"], "fal")
    name = r"([^/]+)"
    app.add_handlers(
        ".*$",
        [
            (rf"{base}/instances", InstanceListHandler),
            (rf"{base}/instances/{name}", InstanceHandler),
            (rf"{base}/instances/{name}/start", StartHandler),
            (rf"{base}/i/(?P<instance>[^/]+)/.*", ProxyHandler),
            (rf"{base}/ws/{name}/(.+)", SocketHandler),
            (rf"{base}/static/fal-ui.js", StaticHandler),
        ],
    )
    serverapp.log.info("fal_notebook: interface traffic under %s", base)
