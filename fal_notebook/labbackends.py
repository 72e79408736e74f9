"""The backends that a Jupyter server may reach: what may pass to them, and when one is given the key.

Rules: the backend of this home answers on a socket that only this user can open, and gets the home's key. A
named address gets the key that was named with it, and only where nobody can listen: over https or on this
machine. An address that says it is this home's backend proves it with the home's secret first. Which profile is used
is looked up again when the file of profiles has changed, so that the panel follows a login.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from fal_notebook.config import Profile, is_loopback
from fal_notebook.embedded import ensure_backend
from fal_notebook.errors import AuthError, BackendError, FalError
from fal_notebook.profiles import acting_team

__all__ = ["Backend", "Backends", "is_allowed", "is_socket"]

LOCAL = "local"
"""Names the profile of this server whatever its instance id is."""

START_COMMAND = "fal-nb serve"
PROOF_S = 10.0
"""How long a check of who answers is believed: on this machine another process may take over a port."""

_NAME = r"[A-Za-z0-9._-]+"
_FILE = r"files/[0-9a-f]{32}/[A-Za-z0-9._~%-]+"
_ALLOWED: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = tuple(
    (frozenset(methods.split()), re.compile(path))
    for methods, path in (
        ("GET POST PUT PATCH DELETE", rf"run/{_NAME}/{_NAME}(/[^?]*)?"),
        ("GET", r"api/v1/(instance|apps|runners|machines|events|logs|watch)"),
        ("GET DELETE", rf"api/v1/apps/{_NAME}"),
        ("GET", rf"api/v1/deployments/{_NAME}"),
        ("POST", rf"api/v1/(deployments/{_NAME}/(cancel|leave)|runners/{_NAME}/stop)"),
        ("POST", rf"api/v1/apps/{_NAME}/revision"),
        ("GET DELETE", rf"api/v1/plans/{_NAME}"),
        ("GET", rf"api/v1/plans/{_NAME}/deployment"),
        ("POST", rf"api/v1/plans/{_NAME}/(confirm|again)"),
        ("GET", rf"api/v1/images/{_NAME}/log"),
        ("POST", r"rest/storage/upload/initiate(-multipart)?"),
        ("GET PUT", _FILE),
        ("PUT", rf"{_FILE}/multipart/[0-9a-f]{{32}}/\d+"),
        ("POST", rf"{_FILE}/multipart/[0-9a-f]{{32}}/complete"),
    )
)
"""What may pass. Keys, secrets, blobs and sessions are not in it."""

_TRICKS = re.compile(r"\.\.|//|\\|%2e|%2f|%5c|%00|[\x00-\x20\x7f]", re.IGNORECASE)


def is_allowed(method: str, path: str) -> bool:
    """Say whether a request for this raw path, without query, may pass."""
    if _TRICKS.search(path):
        return False
    return any(method in methods and pattern.fullmatch(path) for methods, pattern in _ALLOWED)


def is_socket(path: str) -> bool:
    """Say whether a websocket to this raw path may pass."""
    return path.startswith("run/") and is_allowed("GET", path)


@dataclass
class Backend:
    """One backend that this server may reach."""

    profile: Profile
    http: httpx.AsyncClient
    was_reached: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _checked_until: float = 0.0

    @property
    def instance_id(self) -> str | None:
        """Its id as far as it is known without asking."""
        return self._home_id() if self.profile.is_embedded else None

    @property
    def address(self) -> str:
        """The address that people know it by."""
        if self.profile.url:
            return self.profile.url
        record = self.profile.places.read_backend_file()
        return str(record["url"]) if record else str(self.profile.places.api_socket)

    async def key_header(self) -> dict[str, str]:
        """Return the header that proves who we are; empty where there is no key.

        Raises: AuthError where the key must not be sent there; httpx.HTTPError when nobody answers.
        """
        proof = self.profile.authorization()
        if proof is None:
            return {}
        if self.profile.url is not None and time.monotonic() > self._checked_until:
            await self._check(self.profile.url)
            self._checked_until = time.monotonic() + PROOF_S
        # Asked each time: `account set` in a notebook holds for the panel beside it too.
        team = acting_team(self.profile.places, self.profile.url)
        return {"authorization": proof} | ({"x-fal-team": team} if team else {})

    async def ask_instance(self, nonce: str | None = None) -> dict[str, Any]:
        """Return who answers there. Raises: httpx.HTTPError, ValueError."""
        params = {} if nonce is None else {"nonce": nonce}
        answer = await self.http.get("/api/v1/instance", params=params, timeout=5.0)
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict):
            raise ValueError("the answer is no object")
        return found

    async def start(self) -> None:
        """Start the embedded backend if it does not run. Raises: BackendError."""
        if not self.profile.is_embedded:
            raise BackendError(f"{self.address} is on another machine.", fix="Start it there.")
        async with self.lock:
            await asyncio.to_thread(ensure_backend, self.profile.places)

    def problem(self, reason: str) -> FalError:
        """Return what to say when it does not answer."""
        return BackendError(
            f"No answer from the backend at {self.address}.",
            fix=f"Start it with `{START_COMMAND}`.",
            details={"address": self.address, "command": START_COMMAND, "reason": reason},
        )

    async def _check(self, url: str) -> None:
        """Raise AuthError unless the key may go to this address."""
        nonce = secrets.token_hex(16)
        try:
            found = await self.ask_instance(nonce)
        except (httpx.HTTPStatusError, ValueError) as error:
            raise AuthError(
                f"The key is not sent to {url}: no fal-notebook backend answers there.",
                fix=f"Check {self.profile.source or 'the address'}.",
                code="auth.foreign",
            ) from error
        own_id = self._home_id()
        if own_id is not None and found.get("instance_id") == own_id and not self._proves(found, nonce, url):
            raise AuthError(
                f"The key is not sent to {url}: what answers there says that it is the backend of "
                f"{self.profile.places.home}, and cannot prove it.",
                fix="End what listens there, then start the backend again.",
                code="auth.impostor",
            )

    def _proves(self, found: dict[str, Any], nonce: str, url: str) -> bool:
        """Say whether the answer was made with this home's secret, for the address that was called."""
        try:
            secret = self.profile.places.instance_secret.read_bytes()
        except OSError:
            return False
        said = str(found.get("url") or "")
        expected = hmac.new(secret, (nonce + said).encode(), hashlib.sha256).hexdigest()
        # A proof for another address may be the true backend's, passed on.
        return _is_same_place(said, url) and hmac.compare_digest(expected, str(found.get("proof") or ""))

    def _home_id(self) -> str | None:
        try:
            return (self.profile.places.home / "instance_id").read_text().strip() or None
        except OSError:
            return None


class Backends:
    """The backend of the profile in use; a notebook's instance id selects it or none."""

    def __init__(self, resolve: Callable[[], Profile]) -> None:
        """resolve: says which profile is used now."""
        self._resolve = resolve
        profile = resolve()
        self._file = profile.places.profile
        self._seen = _mark(self._file)
        self._all = [Backend(profile, _client(profile))]
        self._ending: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Backend]:
        self._look_again()
        return iter(self._all)

    def _look_again(self) -> None:
        """Take another profile into use where the file of profiles says so."""
        mark = _mark(self._file)
        if mark == self._seen:
            return
        try:
            profile = self._resolve()
        except FalError:
            return  # a file that cannot be read changes nothing; whoever broke it is told by the next command
        self._seen, before = mark, self._all[0]
        if replace(profile, team=None) == replace(before.profile, team=None):
            return  # for which team is acted is asked for each request
        self._all = [Backend(profile, _client(profile))]
        # With a key that is out of use nothing goes on.
        ending = asyncio.ensure_future(before.http.aclose())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def find(self, instance: str) -> Backend | None:
        """Return the backend with this instance id, None when no profile leads to it."""
        for backend in self:
            if instance == LOCAL:
                return backend
            known = backend.instance_id
            if known is None:
                try:
                    known = str((await backend.ask_instance()).get("instance_id"))
                except (httpx.HTTPError, ValueError):
                    continue
            if known == instance:
                return backend
        return None

    async def close(self) -> None:
        """Close all connections."""
        for backend in self._all:
            await backend.http.aclose()


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one content of a file from the next, None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _client(profile: Profile) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(profile.places.api_socket)) if profile.is_embedded else None
    return httpx.AsyncClient(
        transport=transport,
        base_url=profile.url or "http://localhost",
        timeout=httpx.Timeout(None, connect=5.0),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        follow_redirects=False,
        trust_env=False,
    )


def _is_same_place(said: str, url: str) -> bool:
    if said.rstrip("/") == url.rstrip("/"):
        return True
    one, other = urlsplit(said), urlsplit(url)
    is_here = is_loopback(one.hostname or "") and is_loopback(other.hostname or "")
    return is_here and (one.scheme, one.port) == (other.scheme, other.port)
