"""The connections to one runner, and the word on its control socket.

Rules: the connection used last is used first, so that the others go stale and close; at most the runner's width and
two more stay open. Whoever takes a connection gives it back, whatever became of it.
"""

from __future__ import annotations

import asyncio
import logging

from fal_backend.api.tunnel import SessionConn, Upgraded
from fal_backend.api.upstream import UpConn

__all__ = ["Pool", "cancel_call", "end_session"]

log = logging.getLogger(__name__)

CONNECT_S = 5.0
SESSION_GRACE_S = 30.0
"""So long the sessions of a runner that is to end may take to close; longer where its App's own grace is longer."""
_BY_ITSELF_S = 5.0
_LOOKS_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Pool:
    """The connections to one runner; the one used last is used first."""

    def __init__(self, path: str, width: int, control: str, grace_s: float = 0.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.all: set[UpConn] = set()
        self._path = path
        self._idle: list[UpConn] = []
        self._keep = width + 2
        self._is_closed = self._is_aborted = False
        self._control = control
        self._grace_s = max(grace_s, SESSION_GRACE_S)
        self._draining: asyncio.Task[None] | None = None

    def take(self) -> UpConn | None:
        """Return an idle connection, or None."""
        idle = self._idle
        while idle:
            conn = idle.pop()
            if not conn.is_lost and not conn.transport.is_closing():
                return conn
        return None

    async def open(self) -> UpConn:
        """Return a new connection. Raises: OSError, TimeoutError when the runner does not accept."""
        async with asyncio.timeout(CONNECT_S):
            _, conn = await self.loop.create_unix_connection(self._make, self._path)
        return conn

    async def open_session(self, caller: Upgraded) -> SessionConn:
        """Return a connection for one websocket. Raises: OSError, TimeoutError as `open`."""
        async with asyncio.timeout(CONNECT_S):
            _, conn = await self.loop.create_unix_connection(
                lambda: SessionConn(self.forget, self.adopt, caller), self._path
            )
        return conn

    def adopt(self, conn: UpConn) -> None:
        """Note a connection that was opened; after `abort` it is broken at once."""
        self.all.add(conn)
        if self._is_aborted:
            conn.transport.abort()

    def _make(self) -> UpConn:
        return UpConn(self.forget, self.adopt)

    def give(self, conn: UpConn) -> None:
        """Take a connection back, or close it where it cannot be used again."""
        if conn.is_lost:
            return
        if conn.is_reusable and not self._is_closed and len(self._idle) < self._keep:
            # The last write of an answer may have filled its caller's buffer, and held this end back once more.
            conn.resume()
            self._idle.append(conn)
        else:
            conn.close()

    def forget(self, conn: UpConn) -> None:
        """Drop a connection that is closed."""
        self.all.discard(conn)
        if conn in self._idle:
            self._idle.remove(conn)

    def close(self) -> None:
        """Close what is idle now, and the rest after its call; sessions are asked to come to their end."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()
        if self._draining is None and self._sessions():
            self._draining = self.loop.create_task(self._drain())

    @property
    def can_reopen(self) -> bool:
        """False once sessions were asked to come to their end: the runner takes no new ones."""
        return self._draining is None

    def reopen(self) -> None:
        """Keep connections again; undoes `close`."""
        self._is_closed = False

    def _sessions(self) -> list[SessionConn]:
        return [conn for conn in self.all if isinstance(conn, SessionConn)]

    async def _drain(self) -> None:
        """Have the runner close its sessions (1012, so that callers come again), then cut what is left."""
        if await _ask(self._control, "POST", "/drain", CONNECT_S) is None:
            log.info("gateway.drain_unanswered", extra={"control": self._control})
        await asyncio.sleep(self._grace_s)
        for conn in self._sessions():
            conn.transport.abort()

    def abort(self) -> None:
        """Break every connection."""
        self.close()
        self._is_aborted = True
        if self._draining is not None:
            self._draining.cancel()
        for conn in list(self.all):
            conn.transport.abort()


async def cancel_call(control: str, request_id: str, timeout_s: float) -> bool:
    """Cancel a call on its runner and return whether its work has truly ended; False when nobody can say."""
    return await _ask(control, "POST", f"/calls/{request_id}/cancel", timeout_s) is not None


async def end_session(control: str, request_id: str, timeout_s: float) -> bool:
    """Wait until a session whose connection is closed has ended, and return whether it has.

    The App notices the closed connection and may tidy up; only what has not ended by itself then is cancelled.
    """
    loop = asyncio.get_running_loop()
    began, looks = loop.time(), iter(_LOOKS_S)
    while loop.time() - began < _BY_ITSELF_S:
        answer = await _ask(control, "GET", "/calls", timeout_s)
        if answer is None:
            return False
        if request_id.encode() not in answer:
            return True
        await asyncio.sleep(next(looks, _LOOKS_S[-1]))
    return await cancel_call(control, request_id, timeout_s)


async def _ask(control: str, method: str, path: str, timeout_s: float) -> bytes | None:
    """Return what a runner's control socket answers, None when it does not; "not known" is an answer."""
    writer: asyncio.StreamWriter | None = None
    request = f"{method} {path} HTTP/1.1\r\nhost: runner\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(control)
            writer.write(request.encode())
            status_line = await reader.readline()
            body = await reader.read() if method == "GET" else b""
    except (OSError, TimeoutError, ValueError):
        return None
    finally:
        if writer is not None:
            writer.close()
    return body if status_line.split(b" ")[1:2] in ([b"200"], [b"404"]) else None
