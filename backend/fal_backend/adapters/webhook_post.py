"""Sends one webhook: resolves once, judges every address, connects to one of those that were judged.

Rules: no proxies, no redirects, one connection for each delivery; the whole delivery has one time-out. Of the answer
only the status counts: at most 1 KiB of its body is taken, so that an honest receiver sees an orderly end.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address

from fal_backend.domain.webhook import Tried
from fal_backend.domain.webhook_guard import (
    Allowed,
    HookTarget,
    UnsafeAddress,
    check_addresses,
    parse_hook,
)

__all__ = ["TIMEOUT_S", "WebhookPost", "resolve"]

TIMEOUT_S = 15.0
"""Source: fal documentation, "Webhooks"."""

_HEAD = 16 * 1024
_BODY = 1024
_BODY_S = 0.5
_RESOLVING = 16
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])( [^\r\n]*)?\r?\n")

Resolve = Callable[[str, int], Sequence[str]]


def resolve(host: str, port: int) -> list[str]:
    """Return a host's addresses; blocks. Raises: OSError."""
    # As bytes: Python would import a codec for text, and names here are in DNS's own letters already.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


class WebhookPost:
    """See the module and `ports.WebhookSender`. tls: what receivers' certificates are judged by."""

    def __init__(
        self,
        allowed: Allowed,
        *,
        resolve: Resolve = resolve,
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._tls = tls
        self._resolving = asyncio.Semaphore(_RESOLVING)

    def check(self, url: str) -> HookTarget:
        """Judge an address as far as that is possible without asking DNS. Raises: UnsafeAddress."""
        return parse_hook(url, self._allowed)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Tried:
        """Deliver and return what came of it; nothing is raised but cancellation."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return Tried(status=await self._post(parse_hook(url, self._allowed), headers, body))
        except UnsafeAddress as error:
            return Tried(error=f"The address is refused: {error}", is_final=True)
        except TimeoutError:
            return Tried(error=f"There was no answer within {self._timeout_s:g} s")
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            return Tried(error=f"It could not be delivered: {_words(error)}")

    async def _post(self, target: HookTarget, headers: Mapping[str, str], body: bytes) -> int:
        found = [str(target.address)] if target.address is not None else await self._addresses(target)
        reader, writer = await self._connect(target, check_addresses(target, found, self._allowed))
        try:
            writer.write(_head(target, headers, len(body)) + body)
            # A receiver may answer before it has read all: then its answer counts.
            sending = asyncio.ensure_future(writer.drain())
            try:
                status = await _status(reader)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(_BODY_S):
                    await reader.read(_BODY)
            return status
        finally:
            writer.transport.abort()

    async def _connect(
        self, target: HookTarget, addresses: Sequence[IPv4Address | IPv6Address]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the first address that answers. Raises: OSError of the last one."""
        tls = self._context() if target.is_tls else None
        name = target.host if target.is_tls else None
        failure: OSError | None = None
        share_s = self._timeout_s / (len(addresses) + 1)
        for address in addresses:
            try:
                async with asyncio.timeout(share_s if len(addresses) > 1 else None):
                    return await asyncio.open_connection(
                        str(address), target.port, ssl=tls, server_hostname=name, limit=_HEAD
                    )
            except OSError as error:
                failure = error
        raise failure or OSError("there is no address")

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def _addresses(self, target: HookTarget) -> Sequence[str]:
        """Ask DNS in a thread of its own: a name server that hangs holds up nobody else, nor the end."""
        await self._resolving.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def told(found: Sequence[str], error: OSError | None) -> None:
            self._resolving.release()
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found)

        def ask() -> None:
            found: Sequence[str] = ()
            failure: OSError | None = None
            try:
                found = self._resolve(target.host, target.port)
            except (OSError, UnicodeError) as error:
                failure = error if isinstance(error, OSError) else OSError(str(error))
            # The loop may have been closed meanwhile: then nobody waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(told, found, failure)

        threading.Thread(target=ask, name=f"resolve {target.host}", daemon=True).start()
        return await answer


def _head(target: HookTarget, headers: Mapping[str, str], length: int) -> bytes:
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {target.host_header}",
        "User-Agent: fal-notebook-webhook/1",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _status(reader: asyncio.StreamReader) -> int:
    """Return the status of the first final answer. Raises: ValueError for what is not HTTP/1, EOFError."""
    while True:
        matched = _STATUS.fullmatch(await reader.readline())
        if matched is None:
            raise ValueError("the receiver does not speak HTTP/1")
        status, left = int(matched[1]), _HEAD
        if status >= 200:
            return status
        while (line := await reader.readline()) not in (b"\r\n", b"\n"):
            left -= len(line)
            if not line or left < 0:
                raise ValueError("the receiver does not speak HTTP/1")


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
