"""The client of a backend: the async core's methods for plain code, and the backend found or started.

Rules: each method is written once, in `control`; here it is only waited for, on a loop of our own, so that it
works inside a running kernel and an interrupt ends the wait at once.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Coroutine
from concurrent import futures
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pydantic import BaseModel

from fal_notebook.config import Profile, resolve
from fal_notebook.control import AsyncClient
from fal_notebook.embedded import Say, ensure_backend
from fal_notebook.errors import BackendError
from fal_notebook.loop import Feed, Loop, private_loop
from fal_notebook.wire import API_VERSION, Event, Instance, LogLine, SessionRequest

if TYPE_CHECKING:
    from fal_notebook.wire_access import WhoAmI

__all__ = ["Client", "connect"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
P = ParamSpec("P")

CLOSE_S = 1.0
"""Longest wait for connections to close at a process's end."""


def _synced(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    @wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.loop.run(method(self.core, *args, **kwargs))

    return call


class Client:
    """The sync face: the same methods, each waiting for its answer; safe inside a running kernel."""

    def __init__(self, core: AsyncClient, *, loop: Loop | None = None) -> None:
        self.core = core
        self.loop = loop or private_loop()
        self._session: _HeldSession | None = None
        self._identity: Instance | None = None
        self._owner: str | None = None

    instance = _synced(AsyncClient.instance)
    upload_all = _synced(AsyncClient.upload_all)
    deploy = _synced(AsyncClient.deploy)
    plan = _synced(AsyncClient.plan)
    drop_plan = _synced(AsyncClient.drop_plan)
    deployment = _synced(AsyncClient.deployment)
    cancel_deployment = _synced(AsyncClient.cancel_deployment)
    apps = _synced(AsyncClient.apps)
    app = _synced(AsyncClient.app)
    delete_app = _synced(AsyncClient.delete_app)
    runners = _synced(AsyncClient.runners)
    requests = _synced(AsyncClient.requests)
    end_runner = _synced(AsyncClient.end_runner)
    revisions = _synced(AsyncClient.revisions)
    revision = _synced(AsyncClient.revision)
    diff_revisions = _synced(AsyncClient.diff_revisions)
    delete_revision = _synced(AsyncClient.delete_revision)
    set_revision = _synced(AsyncClient.set_revision)
    scale = _synced(AsyncClient.scale)
    rollout = _synced(AsyncClient.rollout)
    queue_size = _synced(AsyncClient.queue_size)
    flush_queue = _synced(AsyncClient.flush_queue)
    machines = _synced(AsyncClient.machines)
    nodes = _synced(AsyncClient.nodes)
    simulate = _synced(AsyncClient.simulate)
    environments = _synced(AsyncClient.environments)
    create_environment = _synced(AsyncClient.create_environment)
    delete_environment = _synced(AsyncClient.delete_environment)
    secrets = _synced(AsyncClient.secrets)
    set_secret = _synced(AsyncClient.set_secret)
    unset_secret = _synced(AsyncClient.unset_secret)
    rotate_secrets = _synced(AsyncClient.rotate_secrets)
    close_session = _synced(AsyncClient.close_session)
    call = _synced(AsyncClient.call)
    read_logs = _synced(AsyncClient.read_logs)
    close = _synced(AsyncClient.close)

    def ask(
        self,
        method: str,
        path: str,
        model: type[M],
        *,
        body: BaseModel | None = None,
        params: dict[str, str] | None = None,
    ) -> M:
        """Ask for what has no method of its own."""
        return self.loop.run(self.core.ask(method, path, model, body=body, params=params))

    tell = _synced(AsyncClient.tell)

    @property
    def owner(self) -> str:
        """Nickname of the account that is acted for: what its apps' addresses begin with."""
        profile = self.core.profile
        if profile.team is not None:
            return profile.team
        if profile.is_embedded and profile.given_key is None:
            return self.identity.owner
        if self._owner is None:
            self._owner = _whoami(self).acting_for
        return self._owner

    @property
    def identity(self) -> Instance:
        """Who the backend is, asked once; for what a restart does not change."""
        if self._identity is None:
            self._identity = self.instance()
        return self._identity

    def feed(self) -> Feed[Event | LogLine]:
        """Return a feed to which streams of the core can be added."""
        return Feed(self.loop)

    def session(self, request: SessionRequest) -> str:
        """Return the id of this process's session, opened at first use and held for the process's life."""
        held = self._session
        if held is None or held.pid != os.getpid():
            info = self.loop.run(self.core.open_session(request))
            keeper: Feed[None] = Feed(self.loop)
            if info.pid is None:
                keeper.follow("hold", self.core.hold_session(info.session_id))
            held = self._session = _HeldSession(info.session_id, os.getpid(), keeper)
        return held.session_id

    def forget_session(self) -> None:
        """Open a new session at the next use: the backend does not know the old one any more."""
        self._session = None


@dataclass(frozen=True)
class _HeldSession:
    session_id: str
    pid: int
    keeper: Feed[None]


_clients: dict[tuple[Profile, int], Client] = {}


def connect(profile: Profile | None = None, *, say: Say = lambda _: None) -> Client:
    """Return a client of a backend that answers; the embedded one is started when needed.

    Raises: BackendError (not running, wrong address), AuthError (bad key).
    """
    chosen = profile or resolve()
    if chosen.is_embedded:
        ensure_backend(chosen.places, say=say)
    place = (chosen, os.getpid())
    client = _clients.get(place)
    if client is None:
        if not _clients:
            atexit.register(_close_all)
        client = Client(AsyncClient(chosen))
        if not chosen.is_embedded:
            _checked_remote(client)
        _clients[place] = client
    return client


def _close_all() -> None:
    """Close this process's connections in order, so that neither side finds them broken off."""
    closing = [
        client.loop.start(client.core.close())
        for (_, pid), client in _clients.items()
        if pid == client.loop.pid == os.getpid()
    ]
    # A connection that hangs does not keep a process from its end.
    futures.wait(closing, timeout=CLOSE_S)


def _checked_remote(client: Client) -> None:
    instance = client.instance()
    if instance.api_version != API_VERSION:
        raise BackendError(
            f"The backend at {client.core.address} is version {instance.version}; this client cannot speak with it.",
            fix="Install the same version of fal-notebook on both sides.",
            code="backend.version",
        )
    # Whatever its key is good for: a key that only calls apps is a good one.
    _whoami(client)


def _whoami(client: Client) -> WhoAmI:
    # Imported here: only the backend of another machine is asked, and a start need not load it.
    from fal_notebook.wire_access import WhoAmI

    return client.ask("GET", "/api/v1/account", WhoAmI)
