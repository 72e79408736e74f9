"""The connections to one runner, and the word on its control socket.

Rules: the connection used last is used first, so that the others go stale and close; at most the runner's width and
two more stay open. Whoever takes a connection gives it back, whatever became of it.
"""

from __future__ import annotations

import asyncio

from fal_backend.api.upstream import UpConn

__all__ = ["Pool", "cancel_call"]

CONNECT_S = 5.0


class Pool:
    """The connections to one runner; the one used last is used first."""

    def __init__(self, path: str, width: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.all: set[UpConn] = set()
        self._path = path
        self._idle: list[UpConn] = []
        self._keep = width + 2
        self._is_closed = self._is_aborted = False

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
            self._idle.append(conn)
        else:
            conn.close()

    def forget(self, conn: UpConn) -> None:
        """Drop a connection that is closed."""
        self.all.discard(conn)
        if conn in self._idle:
            self._idle.remove(conn)

    def close(self) -> None:
        """Close what is idle now, and the rest after its call."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.close()

    def abort(self) -> None:
        """Break every connection."""
        self.close()
        self._is_aborted = True
        for conn in list(self.all):
            conn.transport.abort()


async def cancel_call(control: str, request_id: str, timeout_s: float) -> bool:
    """Cancel a call on its runner and return whether its work has truly ended; False when nobody can say."""
    writer: asyncio.StreamWriter | None = None
    request = f"POST /calls/{request_id}/cancel HTTP/1.1\r\nhost: runner\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(control)
            writer.write(request.encode())
            status_line = await reader.readline()
    except (OSError, TimeoutError, ValueError):
        return False
    finally:
        if writer is not None:
            writer.close()
    return status_line.split(b" ")[1:2] in ([b"200"], [b"404"])
