"""Fetch a URL into a file without being led astray: `http`, `https`, `data`, and files of our own backend.

Rules: each hop of a redirect is judged anew; the address that was judged is the one connected to; proxies of the
environment are not used, because what they reach cannot be judged; a body is never in memory.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import os
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote_to_bytes, urljoin, urlsplit

from fal_notebook.toolkit.addresses import resolve
from fal_notebook.toolkit.exceptions import DownloadError
from fal_notebook.toolkit.platform import Platform

__all__ = ["Fetched", "fetch"]

_TIMEOUT_S = 30.0
_HOPS = 5
_BLOCK = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ONLY_SAME_ORIGIN = frozenset({"authorization", "cookie", "proxy-authorization"})
Resolver = Callable[[str, int], list[str]]
"""Returns the addresses of a host, all of them good to connect to; raises DownloadError."""

_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"


@dataclass(frozen=True)
class Fetched:
    """What came, besides the body."""

    url: str
    """The last one, behind all redirects."""
    headers: Mapping[str, str]
    size: int


def fetch(
    url: str,
    target: Path,
    *,
    headers: Mapping[str, str] | None = None,
    limit: int | None = None,
    on_headers: Callable[[Mapping[str, str]], None] | None = None,
    resolver: Resolver = resolve,
    timeout_s: float = _TIMEOUT_S,
) -> Fetched:
    """Fetch a URL into a file, whole or not at all.

    limit: bytes; on_headers may raise before the body comes; resolver judges names. Raises: DownloadError.
    """
    if url.lower().startswith("data:"):
        data = _decoded(url)
        if limit is not None and len(data) > limit:
            raise _too_large(limit)
        with _whole(target) as path:
            path.write_bytes(data)
        return Fetched(url, {"content-length": str(len(data))}, len(data))
    origin, current = None, url
    for _ in range(_HOPS + 1):
        parts = _parsed(current)
        here = (parts.scheme, parts.hostname, parts.port)
        origin = origin or here
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **(headers or {})}
        if here != origin:
            sent = {name: value for name, value in sent.items() if name.lower() not in _ONLY_SAME_ORIGIN}
        with _response(current, parts, sent, resolver, timeout_s) as response:
            found = {name.lower(): value for name, value in response.getheaders()}
            if response.status in _REDIRECTS and "location" in found:
                current = urljoin(current, found["location"])
                continue
            if not 200 <= response.status < 300:
                raise DownloadError(f"Failed to get {url[:200]}: status {response.status}")
            if on_headers is not None:
                on_headers(found)
            return Fetched(current, found, _receive(response, found, target, limit))
    raise DownloadError(f"Too many redirects from {url[:200]}")


def _parsed(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise DownloadError(f"Invalid URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"URL scheme {parts.scheme!r} is not allowed, or the URL has no host")
    return parts


@contextlib.contextmanager
def _response(
    url: str, parts: SplitResult, headers: Mapping[str, str], resolver: Resolver, timeout_s: float
) -> Iterator[http.client.HTTPResponse]:
    connection, target, host = _connection(url, parts, resolver, timeout_s)
    try:
        sent = {**{name: value for name, value in headers.items() if name.lower() != "host"}, "Host": host}
        connection.request("GET", target, headers=sent)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"Failed to download {url[:200]}: {error}") from error
    finally:
        connection.close()


def _connection(
    url: str, parts: SplitResult, resolver: Resolver, timeout_s: float
) -> tuple[http.client.HTTPConnection, str, str]:
    platform = Platform.here()
    own = platform.own_target(url) if platform is not None else None
    if platform is not None and own is not None:
        return platform.connect(), own, urlsplit(platform.url).netloc
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    name = f"[{host}]" if ":" in host else host
    named = name if parts.port is None else f"{name}:{parts.port}"
    return _Pinned(host, port, resolver(host, port), parts.scheme == "https", timeout_s), target, named


class _Pinned(http.client.HTTPConnection):
    """A connection to addresses that were judged, whatever the name resolves to by now."""

    def __init__(self, host: str, port: int, addresses: list[str], is_tls: bool, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._addresses = addresses
        self._is_tls = is_tls

    def connect(self) -> None:
        failure: OSError | None = None
        for address in self._addresses:
            try:
                plain = socket.create_connection((address, self.port), self.timeout)
            except OSError as error:
                failure = error
                continue
            if self._is_tls:
                context = ssl.create_default_context()
                self.sock = context.wrap_socket(plain, server_hostname=self.host)
            else:
                self.sock = plain
            return
        raise failure or OSError("no address")


def _receive(
    response: http.client.HTTPResponse, headers: Mapping[str, str], target: Path, limit: int | None
) -> int:
    announced = headers.get("content-length", "")
    if limit is not None and announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    size = 0
    with _whole(target) as path, path.open("wb") as file:
        while block := response.read(_BLOCK):
            size += len(block)
            if limit is not None and size > limit:
                raise _too_large(limit)
            file.write(block)
        if announced.isdigit() and size < int(announced):
            raise DownloadError("Received less data than expected from the server.")
    return size


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Give a path beside the target, and put it in its place when all went well."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".fal_download.tmp.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _decoded(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma:
        raise DownloadError("Invalid data URI")
    raw = unquote_to_bytes(data)
    if not head.lower().endswith(";base64"):
        return raw
    try:
        return base64.b64decode(raw, validate=False)
    except binascii.Error as error:
        raise DownloadError("Invalid data URI") from error


def _too_large(limit: int) -> DownloadError:
    return DownloadError(f"The file is larger than {limit} bytes.")
