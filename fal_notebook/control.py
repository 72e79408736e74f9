"""The async core of the client: a backend's control API and calls of apps.

Rules: what may be repeated is repeated through a restart of the backend (reads, uploads by hash), what may
not is not; streams go on by number; foreign errors become ours here, with the address that was tried.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from fal_notebook import sse
from fal_notebook.answers import failure, refused, unreachable
from fal_notebook.app import current_request
from fal_notebook.config import Profile
from fal_notebook.errors import AuthError, BackendError, NotFoundError, error_from_dict
from fal_notebook.wire import (
    AppDetail,
    AppSummary,
    CallInfo,
    Deployment,
    DeployRequest,
    Event,
    Instance,
    LogLine,
    MachineType,
    RunnerInfo,
    SessionInfo,
    SessionRequest,
)
from fal_notebook.wire_deploy import (
    QueueSize,
    Restarted,
    RevisionDetail,
    RevisionDiff,
    RevisionPage,
    SetRevision,
)
from fal_notebook.wire_machines import NodeInfo, Simulated, SimulateRequest
from fal_notebook.wire_plan import DeployPlan, Uploaded
from fal_notebook.wire_secrets import (
    EnvironmentDeleted,
    EnvironmentInfo,
    EnvironmentRequest,
    SecretInfo,
    SecretRequest,
    SecretSet,
    SecretsRotated,
)

__all__ = ["AsyncClient"]

M = TypeVar("M", bound=BaseModel)

RETRY_S = (0.1, 0.3, 0.6, 1.0, 2.0)
"""Pauses before a repeatable call is tried again; a restarted backend answers within two seconds."""
SILENCE_S = 25.0
"""A stream is pinged every 10 s; after this silence it is opened again."""


class AsyncClient:
    """The async core. `transport` is for tests."""

    def __init__(self, profile: Profile, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.profile = profile
        self.address = profile.url or str(profile.places.api_socket)
        proof = profile.authorization()
        headers = {"authorization": proof} if proof else {}
        if profile.team is not None:
            headers["x-fal-team"] = profile.team
        if transport is None and profile.is_embedded:
            # No TLS on a unix socket; loading the authorities would cost more than all else here.
            transport = httpx.AsyncHTTPTransport(uds=str(profile.places.api_socket), verify=False)
        self._http = httpx.AsyncClient(
            transport=transport,
            base_url=profile.url or "http://localhost",
            headers=headers,
            timeout=httpx.Timeout(30.0, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=10),
        )

    async def instance(self) -> Instance:
        """Return who the backend is; the only question that needs no key."""
        try:
            return await self._get("/api/v1/instance", Instance)
        except (NotFoundError, AuthError) as error:
            raise BackendError(
                f"{self.address} answers, but it is no fal-notebook backend.",
                fix=f"Check {self.profile.source or 'the address'}.",
                code="backend.foreign",
            ) from error

    async def upload(self, data: bytes) -> str:
        """Store the bytes under their sha256, unless they are there, and return it."""
        return (await self._stored(data))[0]

    async def upload_all(self, parts: Sequence[bytes]) -> Uploaded:
        """Store several parts, one after the other, and say how much of it was new."""
        began = time.monotonic()
        new = [len(part) for part in parts if (await self._stored(part))[1]]
        took = round(time.monotonic() - began, 3)
        return Uploaded(parts=len(parts), new_parts=len(new), new_bytes=sum(new), duration_s=took)

    async def _stored(self, data: bytes) -> tuple[str, bool]:
        """Return (sha256, whether it was new to the backend)."""
        digest = hashlib.sha256(data).hexdigest()
        head = await self._send("HEAD", f"/api/v1/blobs/{digest}")
        if head.status_code != 404:
            self._checked(head)
            return digest, False
        self._checked(await self._send("PUT", f"/api/v1/blobs/{digest}", content=data, timeout=600.0))
        return digest, True

    async def deploy(self, request: DeployRequest) -> Deployment:
        """Begin a deployment; returns at once. Never repeated: a second one would be another act."""
        answer = await self._send("POST", "/api/v1/deployments", body=request, repeatable=False)
        return self._parsed(answer, Deployment)

    async def plan(self, request: DeployRequest) -> DeployPlan:
        """Return what a deployment would do; nothing happens until the plan is confirmed."""
        return self._parsed(await self._send("POST", "/api/v1/plans", body=request), DeployPlan)

    async def confirm_plan(self, plan_id: str) -> Deployment:
        """Begin the deployment that a plan showed. Raises: NotFoundError; DeployError when it is out of date."""
        path = f"/api/v1/plans/{plan_id}/confirm"
        return self._parsed(await self._send("POST", path, repeatable=False), Deployment)

    async def drop_plan(self, plan_id: str) -> None:
        """Forget a plan. Raises: NotFoundError."""
        self._checked(await self._send("DELETE", f"/api/v1/plans/{plan_id}"))

    async def deployment(self, deployment_id: str) -> Deployment:
        """Return how far a deployment has come."""
        return await self._get(f"/api/v1/deployments/{deployment_id}", Deployment)

    async def cancel_deployment(self, deployment_id: str) -> Deployment:
        """Cancel a deployment, and return what became of it: one that has ended stays as it is."""
        answer = await self._send("POST", f"/api/v1/deployments/{deployment_id}/cancel")
        return self._parsed(answer, Deployment)

    async def apps(self, *, ephemeral: bool = False, environment: str | None = None) -> list[AppSummary]:
        """Return the apps of this account, of one environment or of all; temporary ones only when asked for."""
        params = ({"ephemeral": "1"} if ephemeral else {}) | _given(environment=environment)
        return await self._list("/api/v1/apps", "apps", AppSummary, params)

    async def app(self, alias: str) -> AppDetail:
        """Return all that is known of one app. Raises: NotFoundError."""
        return await self._get(_app(alias), AppDetail)

    async def delete_app(self, alias: str) -> str | None:
        """Delete an app, or stop a temporary one; returns its last revision. Raises: NotFoundError."""
        answer = self._checked(await self._send("DELETE", _app(alias), repeatable=False))
        revision = self._json(answer).get("revision")
        return None if revision is None else str(revision)

    async def runners(self, app: str | None = None, environment: str | None = None) -> list[RunnerInfo]:
        """Return live runners and the last few that ended."""
        params = _given(app=app, environment=environment)
        return await self._list("/api/v1/runners", "runners", RunnerInfo, params)

    async def end_runner(self, runner_id: str, *, kill: bool = False, replace: bool = False) -> bool:
        """End a runner in order, or at once; returns whether another was started for it. Raises: NotFoundError."""
        path = f"/api/v1/runners/{_part(runner_id)}/{'kill' if kill else 'stop'}"
        params = {"replace": "1"} if replace else {}
        answer = await self._send("POST", path, params=params, repeatable=not replace)
        return bool(self._json(self._checked(answer)).get("replaced"))

    async def revisions(self, alias: str) -> RevisionPage:
        """Return an app's revisions, newest first. Raises: NotFoundError."""
        return await self._get(_app(alias, "/revisions"), RevisionPage)

    async def revision(self, revision: str) -> RevisionDetail:
        """Return all of one revision, named by the beginning of its id. Raises: NotFoundError."""
        return await self._get(f"/api/v1/revisions/{_part(revision)}", RevisionDetail)

    async def diff_revisions(self, before: str, after: str) -> RevisionDiff:
        """Return what differs between two revisions. Raises: NotFoundError."""
        return await self._get(f"/api/v1/revisions/{_part(before)}/diff/{_part(after)}", RevisionDiff)

    async def delete_revision(self, revision: str) -> str:
        """Remove a revision and return its id. Raises: NotFoundError, DeployError while it is in use."""
        answer = await self._send("DELETE", f"/api/v1/revisions/{_part(revision)}", repeatable=False)
        return str(self._json(self._checked(answer))["revision"])

    async def set_revision(self, alias: str, order: SetRevision) -> Deployment:
        """Point an app to a revision, or give it a part of the callers; returns at once."""
        answer = await self._send("POST", _app(alias, "/revision"), body=order, repeatable=False)
        return self._parsed(answer, Deployment)

    async def scale(self, alias: str, changes: dict[str, Any]) -> AppDetail:
        """Change settings of an app. Raises: NotFoundError, UsageError, MachineError."""
        data = json.dumps(changes).encode()
        return self._parsed(await self._send("PATCH", _app(alias, "/scale"), content=data), AppDetail)

    async def rollout(self, alias: str, *, force: bool = False) -> Restarted:
        """Replace an app's runners by new ones; returns at once. Raises: NotFoundError, DeployError."""
        params = {"force": "1"} if force else {}
        answer = await self._send("POST", _app(alias, "/rollout"), params=params, repeatable=False)
        return self._parsed(answer, Restarted)

    async def queue_size(self, alias: str, *, by_user: bool = False) -> QueueSize:
        """Return how many requests of an app wait. Raises: NotFoundError."""
        params = {"by_user": "1"} if by_user else {}
        return await self._get(_app(alias, "/queue"), QueueSize, params)

    async def flush_queue(self, alias: str, *, caller: str | None = None) -> int:
        """Cancel the requests of an app that wait; returns how many. Raises: NotFoundError."""
        params = {"caller_user_id": caller} if caller is not None else {}
        answer = await self._send("DELETE", _app(alias, "/queue"), params=params)
        return int(self._json(self._checked(answer))["cancelled"])

    async def requests(self, params: dict[str, str]) -> list[CallInfo]:
        """Return lines of the request log, newest first (params: app, status, since, request, limit)."""
        return await self._list("/api/v1/requests", "requests", CallInfo, params)

    async def simulate(self, alias: str, request: SimulateRequest) -> Simulated:
        """Replay an app's traffic under its settings and under others. Raises: NotFoundError, UsageError."""
        data = request.model_dump_json(exclude_unset=True).encode()
        path, media = _app(alias, "/simulate"), "application/json"
        answer = await self._send("POST", path, content=data, media=media, timeout=120.0)
        return self._parsed(answer, Simulated)

    async def nodes(self) -> list[NodeInfo]:
        """Return the nodes, their devices and who holds them."""
        return await self._list("/api/v1/nodes", "nodes", NodeInfo, {})

    async def machines(self) -> list[MachineType]:
        """Return the machine catalogue."""
        return await self._list("/api/v1/machines", "machines", MachineType, {})

    async def environments(self) -> list[EnvironmentInfo]:
        """Return the environments, `main` first."""
        return await self._list("/api/v1/environments", "environments", EnvironmentInfo, {})

    async def create_environment(self, request: EnvironmentRequest) -> EnvironmentInfo:
        """Make an environment. Raises: UsageError, ConflictError."""
        answer = await self._send("POST", "/api/v1/environments", body=request, repeatable=False)
        return self._parsed(answer, EnvironmentInfo)

    async def delete_environment(self, name: str, *, with_all: bool = False) -> EnvironmentDeleted:
        """Delete an environment. Raises: NotFoundError; ConflictError unless it is empty or with_all."""
        params = {"with_all": "1"} if with_all else {}
        path = f"/api/v1/environments/{_part(name)}"
        answer = await self._send("DELETE", path, params=params, repeatable=False)
        return self._parsed(answer, EnvironmentDeleted)

    async def secrets(self, environment: str | None = None) -> list[SecretInfo]:
        """Return secrets of one environment or of all; no values."""
        return await self._list("/api/v1/secrets", "secrets", SecretInfo, _given(environment=environment))

    async def set_secret(self, name: str, request: SecretRequest) -> SecretSet:
        """Set a secret. Raises: UsageError, LimitError, NotFoundError."""
        path = f"/api/v1/secrets/{_part(name)}"
        answer = await self._send("PUT", path, content=request.opened(), media="application/json")
        return self._parsed(answer, SecretSet)

    async def unset_secret(self, name: str, environment: str) -> SecretSet:
        """Unset a secret. Raises: NotFoundError."""
        path, params = f"/api/v1/secrets/{_part(name)}", {"environment": environment}
        return self._parsed(await self._send("DELETE", path, params=params, repeatable=False), SecretSet)

    async def rotate_secrets(self) -> SecretsRotated:
        """Encrypt all secrets anew under new keys."""
        answer = await self._send("POST", "/api/v1/secrets/rotate", repeatable=False)
        return self._parsed(answer, SecretsRotated)

    async def open_session(self, request: SessionRequest) -> SessionInfo:
        """Open the session of this process; on the private socket the backend watches the process itself."""
        return self._parsed(
            await self._send("POST", "/api/v1/sessions", body=request, repeatable=False), SessionInfo
        )

    async def close_session(self, session_id: str) -> None:
        """End a session and the temporary apps that it owns."""
        self._checked(await self._send("DELETE", f"/api/v1/sessions/{session_id}"))

    async def hold_session(self, session_id: str) -> AsyncIterator[None]:
        """Keep a session over TCP, where the backend cannot watch the process; yields at each ping."""
        async for _ in self._stream(f"/api/v1/sessions/{session_id}/hold", {}):
            yield None

    async def call(
        self,
        endpoint_id: str,
        arguments: Any,
        *,
        path: str = "/",
        method: str = "POST",
        timeout_s: float = 600.0,
    ) -> httpx.Response:
        """Call an endpoint of an app (`owner/alias`) and return the app's own answer, whatever its status."""
        try:
            return await self._http.request(
                method,
                _call_path(endpoint_id, path),
                json=arguments,
                headers=_trace(),
                timeout=httpx.Timeout(timeout_s, connect=5.0),
            )
        except httpx.TransportError as error:
            raise unreachable(error, self.profile, self.address) from error

    @asynccontextmanager
    async def open_call(
        self, endpoint_id: str, arguments: Any, *, path: str
    ) -> AsyncIterator[httpx.Response]:
        """Call an endpoint and give its answer unread; leaving ends the call."""
        timeout = httpx.Timeout(600.0, connect=5.0)
        try:
            async with self._http.stream(
                "POST", _call_path(endpoint_id, path), json=arguments, headers=_trace(), timeout=timeout
            ) as answer:
                yield answer
        except httpx.TransportError as error:
            raise unreachable(error, self.profile, self.address) from error

    async def events(self, after: int, *, app: str | None = None) -> AsyncIterator[Event]:
        """Yield events after that number as they come, for ever, through restarts of the backend.

        An event of kind `reset` says that numbers were missed: load the state again.
        """
        last = after
        while True:
            params = {"after": str(last)} | ({"app": app} if app else {})
            async for message in self._stream("/api/v1/events", params):
                event = Event.model_validate_json(message.data)
                last = max(last, event.n)
                yield event
            await asyncio.sleep(RETRY_S[0])

    async def logs(self, params: dict[str, str], *, follow: bool, after: int = 0) -> AsyncIterator[LogLine]:
        """Yield log lines of an app or a runner (params: app, runner, request, limit)."""
        async for line in self._lines("/api/v1/logs", params, follow=follow, after=after):
            yield line

    async def read_logs(self, params: dict[str, str]) -> list[LogLine]:
        """Return the log lines that there are now."""
        return [line async for line in self.logs(params, follow=False)]

    async def build_log(self, image_hash: str, *, follow: bool, after: int = 0) -> AsyncIterator[LogLine]:
        """Yield the lines of an image's build."""
        async for line in self._lines(f"/api/v1/images/{image_hash}/log", {}, follow=follow, after=after):
            yield line

    async def ask(
        self,
        method: str,
        path: str,
        model: type[M],
        *,
        body: BaseModel | None = None,
        params: dict[str, str] | None = None,
    ) -> M:
        """Ask for what has no method of its own; only what reads is repeated."""
        answer = await self._send(method, path, body=body, params=params, repeatable=method == "GET")
        return self._parsed(answer, model)

    async def tell(self, method: str, path: str) -> None:
        """Do what is answered with nothing."""
        self._checked(await self._send(method, path, repeatable=False))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _lines(
        self, path: str, params: dict[str, str], *, follow: bool, after: int
    ) -> AsyncIterator[LogLine]:
        offset = after
        while True:
            query = params | {"after": str(offset), "follow": "1" if follow else "0"}
            async for message in self._stream(path, query):
                if message.event == "end":
                    return
                line = LogLine.model_validate_json(message.data)
                offset = line.offset
                yield line
            if not follow:
                return
            await asyncio.sleep(RETRY_S[1])

    async def _stream(self, path: str, params: dict[str, str]) -> AsyncIterator[sse.ServerEvent]:
        """Yield one connection's events to its end; a cut connection ends it, a refusal raises."""
        decoder = sse.Decoder()
        timeout = httpx.Timeout(5.0, read=SILENCE_S)
        try:
            async with self._http.stream("GET", path, params=params, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    self._checked(answer)
                async for chunk in answer.aiter_bytes():
                    for message in decoder.feed(chunk):
                        if message.event == "error":
                            raise error_from_dict(json.loads(message.data)["error"])
                        yield message
        except httpx.TransportError:
            # The caller opens it again from its last number; a backend that stays away shows in plain calls.
            return

    async def _get(self, path: str, model: type[M], params: dict[str, str] | None = None) -> M:
        return self._parsed(await self._send("GET", path, params=params), model)

    async def _list(self, path: str, name: str, model: type[M], params: dict[str, str]) -> list[M]:
        answer = self._checked(await self._send("GET", path, params=params))
        try:
            return [model.model_validate(item) for item in self._json(answer)[name]]
        except (KeyError, TypeError, ValidationError) as error:
            raise failure(self.address, f"an unexpected answer to {path}") from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        content: bytes | None = None,
        media: str | None = None,
        params: dict[str, str] | None = None,
        timeout: float | None = None,
        repeatable: bool = True,
    ) -> httpx.Response:
        data = body.model_dump_json().encode() if body is not None else content
        media = "application/json" if body is not None or method == "PATCH" else media
        headers = {"content-type": media} if media is not None else {}
        pauses = iter(RETRY_S)
        while True:
            try:
                return await self._http.request(
                    method,
                    path,
                    content=data,
                    params=params,
                    headers=headers,
                    timeout=httpx.Timeout(timeout, connect=5.0) if timeout else httpx.USE_CLIENT_DEFAULT,
                )
            except httpx.TransportError as error:
                pause = next(pauses, None)
                # Refused at the door is final: the supervisor holds the door open while a backend restarts.
                if not repeatable or pause is None or isinstance(error, httpx.ConnectError):
                    raise unreachable(error, self.profile, self.address) from error
                await asyncio.sleep(pause)

    def _parsed(self, answer: httpx.Response, model: type[M]) -> M:
        checked = self._checked(answer)
        try:
            return model.model_validate_json(checked.content)
        except ValidationError as error:
            raise failure(self.address, f"an unexpected answer to {answer.request.url.path}") from error

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code >= 300:
            raise refused(answer, self.profile, self.address)
        return answer

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError as error:
            raise failure(self.address, "an answer that is not JSON") from error
        if not isinstance(found, dict):
            raise failure(self.address, "an answer that is not an object")
        return found


def _part(name: str) -> str:
    return quote(name, safe="")  # whatever a person wrote, it is one part of the path


def _app(alias: str, rest: str = "") -> str:
    return f"/api/v1/apps/{_part(alias)}{rest}"


def _given(**params: str | None) -> dict[str, str]:
    return {name: value for name, value in params.items() if value is not None}


def _trace() -> dict[str, str]:
    """Return the headers that make a call part of the trace that this code works for, if there is one."""
    carrier: dict[str, str] = {}
    propagate: Any = sys.modules.get("opentelemetry.propagate")
    if propagate is not None:
        propagate.inject(carrier)
    context = current_request.get()
    if "traceparent" not in carrier and context is not None and context.traceparent is not None:
        carrier["traceparent"] = context.traceparent
    return carrier


def _call_path(endpoint_id: str, path: str) -> str:
    return f"/run/{endpoint_id}" + ("" if path == "/" else "/" + path.lstrip("/"))
