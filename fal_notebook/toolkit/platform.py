"""The way from a runner to the storage of the backend that runs it.

Rules: standard library only, because an image need not have more. A runner finds its way in its environment: a token
that is good for uploads of its account while it lives, a socket, and an address for where the socket is not. A body
is a file or bytes, so that it can be sent again when the backend is started anew meanwhile.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fal_notebook.app import current_request
from fal_notebook.places import Places, default_home
from fal_notebook.toolkit.exceptions import FileUploadException

__all__ = ["Platform"]

_TRIES = 7
_FIRST_PAUSE_S = 0.1
_TIMEOUT_S = 300.0
_BLOCK = 1 << 20
_PASSING = {502, 503, 504}
_OWN_FILE = re.compile(r"/files/[0-9a-f]{32}/[^/]+")
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("backend", timeout=timeout, blocksize=_BLOCK)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass(frozen=True)
class Platform:
    """The backend, as code of an App reaches it."""

    url: str
    socket: str | None = None
    token: str | None = None
    """None: files can be fetched, not uploaded."""

    @classmethod
    def here(cls) -> Platform | None:
        """Return this runner's backend; elsewhere that of this user's home, if one runs."""
        env = os.environ
        if "FAL_NB_UPLOAD_TOKEN" in env:
            return cls(env["FAL_NB_CDN_URL"], env.get("FAL_NB_UPLOAD_SOCKET"), env["FAL_NB_UPLOAD_TOKEN"])
        record = Places(default_home()).read_backend_file()
        return cls(str(record["url"]).rstrip("/")) if record else None

    # Uploads

    def upload(
        self, body: bytes | Path, name: str, content_type: str, lifecycle: Mapping[str, Any] | None = None
    ) -> str:
        """Store a file and return its URL. Raises: FileUploadException."""
        headers = {"Content-Type": content_type, "X-Fal-File-Name": name, **_lifecycle(lifecycle)}
        return str(self._ask("POST", "/files/upload", headers, body)["access_url"])

    def reserve(
        self, name: str, content_type: str, lifecycle: Mapping[str, Any] | None = None
    ) -> tuple[str, str]:
        """Return a file's URL before its bytes exist, and the one to send them to. Raises: FileUploadException."""
        body = json.dumps({"file_name": name, "content_type": content_type}).encode()
        headers = {"Content-Type": "application/json", **_lifecycle(lifecycle)}
        found = self._ask("POST", "/rest/storage/upload/initiate?storage_type=fal-cdn-v3", headers, body)
        return str(found["file_url"]), str(found["upload_url"])

    def send(self, upload_url: str, body: bytes | Path, content_type: str) -> None:
        """Send the bytes of a reserved file. Raises: FileUploadException."""
        parts = urlsplit(upload_url)
        self._ask("PUT", f"{parts.path}?{parts.query}", {"Content-Type": content_type}, body)

    def delete(self, file_url: str) -> None:
        """Remove a file. Raises: FileUploadException."""
        self._ask("DELETE", urlsplit(file_url).path, {}, b"")

    def _ask(self, method: str, target: str, headers: dict[str, str], body: bytes | Path) -> dict[str, Any]:
        if self.token is None:
            raise FileUploadException("Files are uploaded from a runner; here nothing may be uploaded.")
        headers = {"Authorization": f"Bearer {self.token}", **_callers_address(), **headers}
        for attempt in range(1, _TRIES + 1):
            try:
                status, answer = self._try(method, target, headers, body)
            except (OSError, http.client.HTTPException) as error:
                if attempt == _TRIES:
                    raise FileUploadException(f"The backend's storage does not answer: {error}") from error
            else:
                if status < 300:
                    return json.loads(answer) if answer else {}
                if status not in _PASSING or attempt == _TRIES:
                    raise FileUploadException(f"Error uploading file. Status {status}: {_detail(answer)}")
            time.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("the last try raises or returns")

    def _try(
        self, method: str, target: str, headers: dict[str, str], body: bytes | Path
    ) -> tuple[int, bytes]:
        connection = self.connect()
        try:
            with _opened(body) as (content, length):
                named = {name: value.encode() for name, value in headers.items()}
                connection.request(method, target, content, {**named, "Content-Length": str(length)})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    # Downloads

    def own_target(self, url: str) -> str | None:
        """Return the path of a URL that is a file of this backend, None for any other.

        It is fetched from us and not from the host that the URL names: so a URL can never lead elsewhere.
        """
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            return None
        if parts.scheme not in ("http", "https") or host is None or not _OWN_FILE.fullmatch(parts.path):
            return None
        names = _LOOPBACK | {urlsplit(self.url).hostname, urlsplit(f"//{_callers_host()}").hostname}
        return parts.path if host in names else None

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the backend, not open yet."""
        if self.socket is not None and Path(self.socket).exists():
            return _UnixConnection(self.socket, _TIMEOUT_S)
        parts = urlsplit(self.url)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(parts.netloc, timeout=_TIMEOUT_S, blocksize=_BLOCK)
        return http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT_S, blocksize=_BLOCK)


def _callers_host() -> str:
    request = current_request.get()
    return request.headers.get("host", "") if request is not None else ""


def _callers_address() -> dict[str, str]:
    """Say which address the caller knows the backend by: URLs in the answer shall stand on it."""
    host, request = _callers_host(), current_request.get()
    if not host or request is None:
        return {}
    scheme = request.headers.get("x-forwarded-proto")
    return {"X-Forwarded-Host": host, **({"X-Forwarded-Proto": scheme} if scheme else {})}


def _lifecycle(preference: Mapping[str, Any] | None) -> dict[str, str]:
    return {"X-Fal-Object-Lifecycle": json.dumps(preference)} if preference else {}


def _detail(answer: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(answer)["detail"])
    return answer[:500].decode("utf-8", "replace")


@contextlib.contextmanager
def _opened(body: bytes | Path) -> Iterator[tuple[bytes | BinaryIO, int]]:
    if isinstance(body, bytes):
        yield body, len(body)
        return
    with body.open("rb") as file:
        yield file, os.fstat(file.fileno()).st_size
