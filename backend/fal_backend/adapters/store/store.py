"""The truth on SQLite: one writer, four readers, events numbered in commit order.

Rules: reads never run on the event loop and never see a half-written group; what `write` returned is on
the disk (`synchronous=FULL`).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fal_backend.adapters.store.check import StopMark, watch_after_unclean_stop
from fal_backend.adapters.store.statements import Statements
from fal_backend.adapters.store.transaction import SqliteReader, SqliteTx
from fal_backend.adapters.store.writer import Operation, Writer
from fal_backend.domain.records import EventRow
from fal_backend.ports import OpClass, Reader, Tx

__all__ = ["BUSY_TIMEOUT_MS", "SqliteStore", "connect"]

T = TypeVar("T")

READERS = 4
BUSY_TIMEOUT_MS = 5000


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection that begins and ends transactions only when told to."""
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    if not read_only:
        connection.execute("PRAGMA journal_mode=WAL").fetchone()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA wal_autocheckpoint=1000").fetchone()
    return connection


class SqliteStore:
    """See `ports.Store`; made by `opening.open_store`."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        statements: Statements,
        loop: asyncio.AbstractEventLoop,
        *,
        leader: int,
        on_commit: Callable[[Sequence[EventRow]], None],
        mark: StopMark,
    ) -> None:
        self.path = path
        self.leader = leader
        """Number of this opening of the store; every deciding backend has its own."""
        self._mark = mark
        self._statements = statements
        self._loop = loop
        self._writer = Writer(connection, statements, loop, on_commit)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []

    async def write(self, op: Callable[[Tx], T], klass: OpClass = OpClass.STATE) -> T:
        """Run an operation in the next group and return its result when it is durable.

        A caller that is cancelled while it waits does not undo its operation.
        Raises: what the operation raised; LimitError `limit.disk_full` and BackendError
        `backend.store_locked` for `accept` and `lazy`.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._writer.submit(Operation(op, klass, future))
        return await future

    async def read(self, query: Callable[[Reader], T]) -> T:
        """Run a query in a reader's thread; all that it asks is of one moment."""
        return await self._loop.run_in_executor(self._readers, self._read, query)

    def _read(self, query: Callable[[Reader], T]) -> T:
        connection = self._reader()
        connection.execute("BEGIN")
        try:
            return query(SqliteReader(connection, self._statements))
        finally:
            connection.execute("ROLLBACK")

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = connect(self.path, read_only=True)
            self._local.connection = connection
            self._opened.append(connection)
        return connection

    async def watch(self) -> None:
        """Look the database through where its last stop was not in order, then wait until cancelled.

        Raises: BackendError `backend.store_damaged`.
        """
        await watch_after_unclean_stop(self.path, self._mark)

    async def trim_events(self, *, before: int, keep: int, limit: int = 1000) -> int:
        """Delete up to `limit` events past retention and return how many went."""

        def trim(tx: Tx) -> int:
            assert isinstance(tx, SqliteTx)
            return tx.trim_events(before=before, keep=keep, limit=limit)

        return await self.write(trim, OpClass.LAZY)

    async def close(self) -> None:
        """Finish what was asked, then close every connection."""
        await asyncio.to_thread(self._close)
        # The writer's last results were posted to this loop before its thread ended; let them arrive.
        await asyncio.sleep(0)

    def _close(self) -> None:
        self._readers.shutdown(wait=True)
        self._writer.close()
        for connection in self._opened:
            connection.close()
        self._mark.put()
