"""The control API: what owners do with apps, under `/api/v1`; FastAPI, and nothing decided here.

Rules: a key is needed for all but `GET /instance`, and what it is good for is judged by `domain.access` from method
and path alone, so that no route can forget it; `X-Fal-Team` names the team that is acted for; bodies are bounded before they are read; URLs in answers
stand on the address that the asker used.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import platform
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic.dataclasses  # noqa: F401 - `openapi.json` needs it; nothing is imported after ready
from fastapi import Depends, FastAPI, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fal_backend.api import problems
from fal_backend.api.auth import Auth, Principal
from fal_backend.api.events import Streams, encode_event, encode_line
from fal_backend.domain.access import Operation, Target, Verdict, may, operation_of
from fal_backend.domain.records import EventRow
from fal_backend.ports import Blobs, Bus
from fal_backend.services.catalog import Catalog
from fal_backend.services.deploy import Deploy
from fal_backend.services.idleness import Idleness
from fal_backend.services.images import Images
from fal_backend.services.logs import LogQuery, Logs
from fal_backend.services.sessions import Sessions
from fal_notebook.errors import AuthError, NotFoundError, UsageError
from fal_notebook.sse import PING
from fal_notebook.wire import (
    AppDetail,
    Deployment,
    DeployRequest,
    Instance,
    MachineType,
    RunnerInfo,
    SessionInfo,
    SessionRequest,
)

__all__ = ["PREFIX", "Control", "Identity", "Who", "control_app"]

PREFIX = "/api/v1"
JSON_LIMIT = 16 * 1024 * 1024
BLOB_LIMIT = 16 * 1024 * 1024 * 1024

_SHA256 = re.compile("[0-9a-f]{64}")
_HASH = re.compile("[0-9a-zA-Z_-]{6,128}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this backend is."""

    instance_id: str
    version: str
    owner: str
    url: str
    secret: bytes


async def _own(events: AsyncGenerator[EventRow], account: str) -> AsyncGenerator[EventRow]:
    """Yield an account's events, and those that are everybody's."""
    async with aclosing(events):
        async for event in events:
            if event.account is None or event.account == account:
                yield event


async def _principal(request: Request) -> Principal:
    control: Control = request.app.state.control
    return control.principal(request)


Who = Annotated[Principal, Depends(_principal)]


class Control:
    """The routes and what they need."""

    def __init__(
        self,
        *,
        identity: Identity,
        auth: Auth,
        blobs: Blobs,
        bus: Bus,
        catalog: Catalog,
        deploy: Deploy,
        sessions: Sessions,
        images: Images,
        logs: Logs,
        streams: Streams,
        idleness: Idleness,
    ) -> None:
        self._identity = identity
        self._auth = auth
        self._blobs = blobs
        self._bus = bus
        self._catalog = catalog
        self._deploy = deploy
        self._sessions = sessions
        self._images = images
        self._logs = logs
        self._streams = streams
        self._idleness = idleness

    def principal(self, request: Request) -> Principal:
        """Return who asks, acting for the account that is named, and allowed to do what is asked.

        Raises: AuthError.
        """
        header = request.headers.get("authorization")
        principal = self._auth.principal(header.encode("latin-1") if header is not None else None)
        if principal is None:
            raise AuthError("A key is needed.", fix="Send `Authorization: Key <id>:<secret>`.")
        team = request.headers.get("x-fal-team")
        if team:
            principal = self._auth.acting(principal, team)
        path = request.url.path.removeprefix(PREFIX).removeprefix("/rest")
        operation = operation_of(request.method, path)
        if may(principal, operation, Target(principal.account)) is not Verdict.OK:
            raise _forbidden(principal, operation)
        self._idleness.touch()
        return principal

    # ---- the backend itself --------------------------------------------------------------------------------
    async def instance(self, nonce: Annotated[str | None, Query(max_length=200)] = None) -> Instance:
        """Say who this is, and prove it where a nonce is given."""
        me = self._identity
        proof = None
        if nonce is not None:
            proof = hmac.new(me.secret, (nonce + me.url).encode(), hashlib.sha256).hexdigest()
        self._idleness.touch()
        return Instance(
            instance_id=me.instance_id,
            version=me.version,
            owner=me.owner,
            url=me.url,
            python=".".join(platform.python_version_tuple()[:2]),
            pid=os.getpid(),
            proof=proof,
        )

    async def machines(self, who: Who) -> dict[str, list[MachineType]]:
        """List the machine catalogue."""
        return {"machines": self._catalog.machines}

    # ---- blobs ---------------------------------------------------------------------------------------------
    async def has_blob(self, sha256: str, who: Who) -> Response:
        """Say whether a part of a bundle is here."""
        return Response(status_code=200 if self._blobs.has(_checked_sha(sha256)) else 404)

    async def put_blob(self, sha256: str, request: Request, who: Who) -> Response:
        """Store a part of a bundle under its hash."""
        digest = _checked_sha(sha256)
        length = request.headers.get("content-length")
        if length is not None and int(length) > BLOB_LIMIT:
            raise HTTPException(413, "The blob is too large.")
        if not self._blobs.has(digest):
            await self._blobs.put(digest, request.stream(), BLOB_LIMIT)
            return Response(status_code=201)
        return Response(status_code=200)

    # ---- deployments ---------------------------------------------------------------------------------------
    async def begin(self, body: DeployRequest, request: Request, who: Who) -> Deployment:
        """Begin a deployment; the answer does not wait for it."""
        outcome = await self._deploy.deploy(body, who.account, self._catalog.author(who))
        return await self._catalog.deployment_view(
            outcome.deployment, self.base_url(request), changed=outcome.changed
        )

    async def deployment(self, id: str, request: Request, who: Who) -> Deployment:
        """Say how far a deployment is."""
        return await self._catalog.deployment(id, who.account, self.base_url(request))

    async def cancel(self, id: str, request: Request, who: Who) -> Deployment:
        """Drop a deployment that has not switched."""
        found = await self._catalog.deployment(id, who.account, self.base_url(request))
        if not found.is_final:
            await self._deploy.cancel(id, who.account)
            found = await self._catalog.deployment(id, who.account, self.base_url(request))
        return found

    async def leave(self, id: str, request: Request, who: Who) -> Deployment:
        """Tell whoever waits for a deployment, such as a cell, that they need not; it goes on."""
        await self._deploy.leave(id, who.account)
        return await self._catalog.deployment(id, who.account, self.base_url(request))

    # ---- apps and runners ----------------------------------------------------------------------------------
    async def apps(
        self, request: Request, who: Who, ephemeral: bool = False, environment: str | None = None
    ) -> Response:
        """List apps, of one environment or of all; temporary ones if asked for."""
        self._catalog.check_environment(who.account, environment)
        base = self.base_url(request)
        found = self._catalog.apps(who.account, base, ephemeral=ephemeral, environment=environment)
        return Response(b'{"apps":' + found + b"}", media_type="application/json")

    async def app(self, alias: str, request: Request, who: Who) -> AppDetail:
        """Show one app."""
        return await self._catalog.app(who.account, alias, self.base_url(request))

    async def delete_app(self, alias: str, who: Who) -> dict[str, str]:
        """Delete an app, or stop a temporary one."""
        return {"revision": await self._deploy.delete(alias, who.account)}

    async def runners(
        self, who: Who, app: str | None = None, environment: str | None = None
    ) -> dict[str, list[RunnerInfo]]:
        """List runners: live ones, then the last few that ended."""
        self._catalog.check_environment(who.account, environment)
        return {"runners": self._catalog.runners(who.account, app, environment)}

    # ---- streams -------------------------------------------------------------------------------------------
    async def events(
        self,
        request: Request,
        who: Who,
        after: int | None = None,
        app: str | None = None,
        subject: str | None = None,
    ) -> Response:
        """Stream events after a number, without a gap."""
        last_seen = request.headers.get("last-event-id")
        if last_seen is not None and last_seen.isdigit():
            after = int(last_seen)
        start = self._bus.last if after is None else after
        source = _own(self._bus.follow(start, app=app, subject=subject), who.account)
        return self._streams.respond(source, encode_event, ends=False, who=who)

    async def logs(
        self,
        who: Who,
        app: str | None = None,
        runner: str | None = None,
        request: str | None = None,
        after: int = 0,
        follow: bool = False,
        limit: Annotated[int | None, Query(ge=1, le=100_000)] = None,
    ) -> Response:
        """Stream what a runner, or all runners of an app, wrote."""
        query = LogQuery(after=after, follow=follow, request=request, limit=limit)
        if runner is not None:
            lines = await self.runner_lines(who.account, runner, query)
        elif app is not None:
            lines = await self.app_lines(who.account, app, query)
        else:
            raise UsageError("Name an app or a runner.", code="usage.invalid_request")
        return self._streams.respond_pieces(lines, who=who)

    async def runner_lines(self, account: str, id: str, query: LogQuery) -> AsyncIterator[bytes]:
        """Return the encoded lines of a runner. Raises: NotFoundError."""
        return self._logs.of_runner(await self._catalog.runner(account, id), query)

    async def app_lines(self, account: str, alias: str, query: LogQuery) -> AsyncIterator[bytes]:
        """Return the encoded lines of an app's runners. Raises: NotFoundError."""
        key = (account, alias)
        return self._logs.of_app(key, await self._catalog.runner_history(key), query)

    async def build_log(self, hash: str, who: Who, after: int = 0, follow: bool = False) -> Response:
        """Stream the log of an image's build."""
        lines = await self.build_lines(who.account, hash, LogQuery(after=after, follow=follow))
        return self._streams.respond_pieces(lines, who=who)

    async def build_lines(self, account: str, hash: str, query: LogQuery) -> AsyncIterator[bytes]:
        """Return the encoded lines of an image's build. Raises: NotFoundError."""
        is_theirs = _HASH.fullmatch(hash) and await self._catalog.uses_image(account, hash)
        if not is_theirs or not self._images.has_log(hash):
            raise NotFoundError(f"There is no build log of image {hash[:80]}.", code="image.not_found")
        lines = self._images.lines(hash, after=query.after, follow=query.follow)
        return (encode_line(line) async for line in lines)

    # ---- sessions ------------------------------------------------------------------------------------------
    async def open_session(self, body: SessionRequest, request: Request, who: Who) -> SessionInfo:
        """Open the session of the asking process."""
        pid = request.scope.get("state", {}).get("peer_pid")
        row = await self._sessions.open(body, who.account, pid)
        return SessionInfo(session_id=row.id, pid=row.pid)

    async def close_session(self, id: str, who: Who) -> Response:
        """End a session and its temporary apps."""
        await self._sessions.close(id, who.account)
        return Response(status_code=204)

    async def hold_session(self, id: str, who: Who) -> Response:
        """Keep a session for as long as this answer is read."""
        self._sessions.hold(id, who.account)
        return self._streams.respond(self._held(id), bytes, ends=False, who=who)

    async def _held(self, session_id: str) -> AsyncIterator[bytes]:
        try:
            yield PING
            await asyncio.Event().wait()
        finally:
            self._sessions.release(session_id)

    def base_url(self, request: Request) -> str:
        """Return the address that the asker used."""
        host = request.headers.get("host")
        if host is None or "peer_pid" in request.scope.get("state", {}):
            return self._identity.url
        return f"{request.url.scheme}://{host}"


def _forbidden(who: Principal, operation: Operation) -> AuthError:
    if operation is Operation.GOVERN and who.scope == "ADMIN":
        return AuthError("Only an admin of this backend may do this.", code="auth.forbidden")
    if operation is Operation.KEYS and who.scope == "ADMIN":
        return AuthError(f"You do not manage the team {who.nickname}.", code="auth.forbidden")
    if who.scope == "API":
        return AuthError("This key may call apps only.", fix="Use an ADMIN key.", code="auth.forbidden")
    return AuthError(
        f"A key of scope {who.scope} may not do this.", fix="Use an ADMIN key.", code="auth.forbidden"
    )


def _checked_sha(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise UsageError("A blob is named by its sha256 in hex.", code="usage.invalid_request")
    return sha256


_ROUTES: tuple[tuple[str, str, str, int], ...] = (
    ("GET", "/instance", "instance", 200),
    ("GET", "/machines", "machines", 200),
    ("HEAD", "/blobs/{sha256}", "has_blob", 200),
    ("PUT", "/blobs/{sha256}", "put_blob", 201),
    ("POST", "/deployments", "begin", 201),
    ("GET", "/deployments/{id}", "deployment", 200),
    ("POST", "/deployments/{id}/cancel", "cancel", 200),
    ("POST", "/deployments/{id}/leave", "leave", 200),
    ("GET", "/apps", "apps", 200),
    ("GET", "/apps/{alias}", "app", 200),
    ("DELETE", "/apps/{alias}", "delete_app", 200),
    ("GET", "/runners", "runners", 200),
    ("GET", "/events", "events", 200),
    ("GET", "/logs", "logs", 200),
    ("GET", "/images/{hash}/log", "build_log", 200),
    ("POST", "/sessions", "open_session", 201),
    ("DELETE", "/sessions/{id}", "close_session", 204),
    ("GET", "/sessions/{id}/hold", "hold_session", 200),
)


def control_app(control: Control, *rooms: Callable[[FastAPI], None]) -> ASGIApp:
    """Return the application for `/api/`; rooms add routes of their own."""
    app = FastAPI(
        title="fal-notebook control API",
        version="1",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.control = control
    problems.install(app)
    for method, path, name, status in _ROUTES:
        handler: Callable[..., Any] = getattr(control, name)
        app.add_api_route(PREFIX + path, handler, methods=[method], status_code=status, name=name)
    for room in rooms:
        room(app)
    app.add_route(f"{PREFIX}/openapi.json", _document, include_in_schema=False)
    return _BodyLimit(app)


def _document(request: Request) -> JSONResponse:
    """Answer the description of this API; Starlette runs this on a thread.

    Built when it is asked for: it takes the better part of a second, which each start would wait for.
    """
    app: FastAPI = request.app
    return JSONResponse(app.openapi())


class _BodyLimit:
    """Refuses bodies over the limit, by their length and by their count; blobs have a limit of their own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(f"{PREFIX}/blobs/"):
            await self._app(scope, receive, send)
            return
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        limit = -1 if int(length or 0) > JSON_LIMIT else JSON_LIMIT
        await self._app(scope, _counted(receive, limit), send)


def _counted(receive: Receive, limit: int) -> Receive:
    left = limit

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, f"The body is larger than {JSON_LIMIT} bytes.")
        return message

    return counted
