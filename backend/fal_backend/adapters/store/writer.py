"""The one writer: a thread with the only read-write connection, which commits operations in groups.

Rules: a group is all that waits, at most 512, committed at once: no timer, so a lone operation is not
delayed and groups form under load. A group runs first without savepoints; if one operation raises, all
is rolled back and run again with a savepoint each, so that it does not sink its neighbours. A failed
COMMIT ends the process: after a failed fsync nobody can say what is on the disk, and retrying it may
report a success that is none. Only "disk full" and "locked" are survived, because SQLite then wrote
nothing.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import structlog

from fal_backend.adapters.store.location import holders_of
from fal_backend.adapters.store.statements import Statements
from fal_backend.adapters.store.transaction import SqliteTx
from fal_backend.domain.records import EventRow
from fal_backend.ports import OpClass
from fal_notebook.errors import BackendError, LimitError

__all__ = ["Operation", "Writer", "end_process", "locked_error"]

log = structlog.get_logger()

GROUP = 512
RETRY_S = 0.5
IDLE_S = 30.0
FAIL_STOP_CODE = 70

_WAITABLE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY}
_FATAL = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY}


@dataclass(slots=True, eq=False)
class Operation:
    """A function of a transaction, and where its result goes."""

    run: Callable[[Any], Any]
    klass: OpClass
    future: asyncio.Future[Any]


class _Full(Exception):
    """The group could not be written now, and nothing of it was: disk full, or locked by another process."""

    def __init__(self, cause: sqlite3.Error) -> None:
        super().__init__(str(cause))
        self.is_locked = _code(cause) == sqlite3.SQLITE_BUSY


Outcome = tuple[Operation, Any, BaseException | None]


def _code(error: BaseException) -> int:
    """Return SQLite's primary result code."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def end_process(reason: str) -> NoReturn:
    """End this process at once, without any clean-up: the supervisor starts it again."""
    log.critical("store.fail_stop", reason=reason)
    os._exit(FAIL_STOP_CODE)


class Writer:
    """Takes operations from the event loop, runs them in its thread and resolves their futures."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        statements: Statements,
        loop: asyncio.AbstractEventLoop,
        on_commit: Callable[[Sequence[EventRow]], None],
        *,
        fail_stop: Callable[[str], NoReturn] = end_process,
    ) -> None:
        self._connection = connection
        self._path = Path(connection.execute("PRAGMA database_list").fetchone()[2])
        self._statements = statements
        self._loop = loop
        self._on_commit = on_commit
        self._fail_stop = fail_stop
        self._waiting: deque[Operation] = deque()
        self._lazy: deque[Operation] = deque()
        self._bell = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation) -> None:
        """Put an operation in line. Any thread may call it."""
        with self._bell:
            if self._is_closing:
                raise BackendError("The backend is stopping.", code="backend.stopping")
            line = self._lazy if operation.klass is OpClass.LAZY else self._waiting
            line.append(operation)
            self._bell.notify()

    def close(self) -> None:
        """Run what waits, then end the thread; blocks."""
        with self._bell:
            self._is_closing = True
            self._bell.notify()
        self._thread.join()

    # Everything below runs in the writer's thread.

    def _work(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001  # root of the thread: a store without writer must not look alive
            self._fail_stop(f"the writer failed: {error!r}")

    def _serve(self) -> None:
        is_checkpointed = True
        while (group := self._take(None if is_checkpointed else IDLE_S)) is not None:
            is_checkpointed = not group
            if not group:
                self._checkpoint()
                continue
            later = self._handle(group)
            if later:
                self._wait_for_space(later)
        self._checkpoint()
        self._connection.close()

    def _handle(self, group: list[Operation]) -> list[Operation]:
        """Commit a group and return what must be tried again."""
        try:
            outcomes, events = self._commit(group)
        except _Full as full:
            if full.is_locked or len(group) == 1:
                return self._put_off(group, full)
            # A small change may still fit where a large one does not.
            return [operation for one in group for operation in self._handle([one])]
        self._tell(outcomes, events)
        return []

    def _checkpoint(self) -> None:
        """Move the log into the database while nobody waits; failing changes nothing."""
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.OperationalError as error:
            log.warning("store.checkpoint_failed", reason=str(error))

    def _take(self, idle_s: float | None) -> list[Operation] | None:
        """Wait for operations; [] after idle_s without any, None when all is done and closing."""
        with self._bell:
            while not self._waiting and not self._lazy:
                if self._is_closing:
                    return None
                if not self._bell.wait(idle_s):
                    return []
            group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
            if self._lazy:
                group.append(self._lazy.popleft())
            return group

    def _commit(self, group: list[Operation]) -> tuple[list[Outcome], list[EventRow]]:
        try:
            return self._run_group(group, self._run_bare)
        except _Full:
            raise
        except Exception as error:  # noqa: BLE001  # the operation's own error, told to its caller
            if len(group) == 1:
                return [(group[0], None, error)], []
        return self._run_group(group, self._run_saved)

    def _run_group(
        self, group: list[Operation], run: Callable[[SqliteTx, Operation], Outcome]
    ) -> tuple[list[Outcome], list[EventRow]]:
        tx = SqliteTx(self._connection, self._statements)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [run(tx, operation) for operation in group]
            events = tx.number_events()
            self._end_group()
        except BaseException as error:
            self._roll_back(error)
            raise
        return outcomes, events

    def _end_group(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if _code(error) not in _WAITABLE:
                self._fail_stop(f"COMMIT failed: {error}")
            raise

    def _roll_back(self, error: BaseException) -> None:
        """Undo the group; translate what may pass with time, end the process where the disk fails."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        if not isinstance(error, sqlite3.Error):
            return
        if _code(error) in _WAITABLE:
            raise _Full(error) from error
        if _code(error) in _FATAL:
            self._fail_stop(f"the database cannot be written: {error}")

    @staticmethod
    def _run_bare(tx: SqliteTx, operation: Operation) -> Outcome:
        return operation, operation.run(tx), None

    def _run_saved(self, tx: SqliteTx, operation: Operation) -> Outcome:
        mark = tx.mark()
        self._connection.execute("SAVEPOINT op")
        try:
            result = operation.run(tx)
        except Exception as error:  # the operation's own error, told to its caller
            if _code(error) in _WAITABLE | _FATAL:
                raise
            self._connection.execute("ROLLBACK TO op")
            self._connection.execute("RELEASE op")
            tx.forget(mark)
            return operation, None, error
        self._connection.execute("RELEASE op")
        return operation, result, None

    def _put_off(self, group: list[Operation], full: _Full) -> list[Operation]:
        """Tell those who wait for an answer; return the changes of state, which are tried again."""
        error = locked_error(self._path) if full.is_locked else _disk_full_error()
        is_closing = self._is_closing
        later = [operation for operation in group if operation.klass is OpClass.STATE and not is_closing]
        told = [operation for operation in group if operation not in later]
        self._tell([(operation, None, error) for operation in told], [])
        log.warning("store.put_off", reason=str(full), refused=len(told), later=len(later))
        return later

    def _wait_for_space(self, later: list[Operation]) -> None:
        with self._bell:
            self._waiting.extendleft(reversed(later))
            self._bell.wait_for(lambda: self._is_closing, RETRY_S)

    def _tell(self, outcomes: list[Outcome], events: list[EventRow]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resolve, outcomes, events)
        except RuntimeError:
            # The loop is closed: nobody is left to be told, and the rows are safe.
            log.warning("store.nobody_to_tell", operations=len(outcomes))

    def _resolve(self, outcomes: list[Outcome], events: list[EventRow]) -> None:
        """On the loop: ring first, so that whoever awaited a write finds its events on the bus."""
        if events:
            self._on_commit(events)
        for operation, result, error in outcomes:
            if operation.future.done():
                continue
            if error is None:
                operation.future.set_result(result)
            else:
                operation.future.set_exception(error)


def _disk_full_error() -> LimitError:
    return LimitError(
        "The disk of the data folder is full.",
        code="limit.disk_full",
        fix="Free some space; nothing was lost.",
    )


def locked_error(path: Path) -> BackendError:
    """Return the error for a database that another process keeps locked, naming who has it open."""
    holders = holders_of(path)
    by = ", ".join(holders) if holders else "another process"
    return BackendError(
        f"The database {path} is locked by {by}.",
        code="backend.store_locked",
        fix="End that program; only the backend may write to its store.",
        details={"holders": holders},
    )
