"""The request log as a SQLite file of its own, `store/obs.db`: written without fsync, thrown away when unreadable.

Rules: it is no truth, so nothing of it may hold up or damage what is; one connection behind a lock, used from worker
threads only; what is asked for most, the newest calls of an app, follows one index. Many lines are one statement:
sqlite3 gives up the GIL at each, and a thread that took it back for every line would cost the loop as much again.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from fal_backend.domain.call_record import CallFilter, CallOutcome, CallRecord

__all__ = ["DATABASE", "RequestLogFile"]

log = structlog.get_logger()

DATABASE = "obs.db"
KEEP_DAYS = 7.0
KEEP_ROWS = 500_000
_SCHEMA = 1
_TRIM_STEP = 5_000
_DAY_US = 86_400_000_000
_FIELDS = CallRecord._fields
_TABLE = f"CREATE TABLE call (seq INTEGER PRIMARY KEY, {', '.join(_FIELDS)})"
_INDEX = "CREATE INDEX call_app ON call (app, seq)"
_TOGETHER = (250, 25)
"""Lines in one statement, as many as there are."""
_ROW = f"({', '.join('?' * len(_FIELDS))})"
_INSERT = f"INSERT INTO call ({', '.join(_FIELDS)}) VALUES {_ROW}"
_INSERT_TOGETHER = {size: _INSERT + f", {_ROW}" * (size - 1) for size in _TOGETHER}
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM call WHERE "
_TOOK = """CASE kind WHEN 'queue' THEN inference_ms WHEN 'realtime' THEN NULL
    ELSE (ended_at - started_at) / 1e3 END"""
_LATEST = f"SELECT revision, status, started_at, {_TOOK} FROM call WHERE app = ? ORDER BY seq DESC LIMIT ?"


class RequestLogFile:
    """See `services.request_log.CallLog`. 0 days or rows: no limit of that kind."""

    def __init__(self, folder: Path, *, keep_days: float = KEEP_DAYS, keep_rows: int = KEEP_ROWS) -> None:
        self._path = folder / DATABASE
        self._keep_us = int(keep_days * _DAY_US)
        self._keep_rows = keep_rows
        self._lock = threading.Lock()
        self._connection = self._open()

    def append(self, batch: Sequence[CallRecord]) -> None:
        """Write lines in one transaction. Raises: OSError when they cannot be written."""
        with self._lock:
            try:
                with self._connection:
                    self._connection.execute("BEGIN")
                    self._insert(batch)
            except sqlite3.Error as error:
                raise OSError(str(error)) from error

    def page(self, wanted: CallFilter) -> list[CallRecord]:
        """Return the newest lines that match."""
        terms, values = ["account = ?", "status BETWEEN ? AND ?"], [wanted.account, *wanted.statuses]
        for term, value in (
            ("app = ?", wanted.app),
            ("request_id = ?", wanted.request_id),
            ("ended_at >= ?", wanted.since or None),
        ):
            if value is not None:
                terms.append(term)
                values.append(value)
        statement = f"{_SELECT}{' AND '.join(terms)} ORDER BY seq DESC LIMIT ?"
        with self._lock:
            return [CallRecord(*row) for row in self._connection.execute(statement, (*values, wanted.limit))]

    def latest(self, app: str, limit: int) -> list[CallOutcome]:
        """Return what came of an app's newest calls that a revision had."""
        with self._lock:
            rows = self._connection.execute(_LATEST, (app, limit))
            return [CallOutcome(*row) for row in rows if row[0] is not None]

    def trim(self) -> None:
        """Remove what is older, or more, than is kept, in steps between which lines can be written."""
        while self._trim_step():
            pass

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _insert(self, batch: Sequence[CallRecord]) -> None:
        at = 0
        for size, statement in _INSERT_TOGETHER.items():
            while len(batch) - at >= size:
                values = list(itertools.chain.from_iterable(batch[at : at + size]))
                self._connection.execute(statement, values)
                at += size
        self._connection.executemany(_INSERT, batch[at:])

    def _trim_step(self) -> bool:
        bounds = []
        if self._keep_rows:
            bounds.append(f"seq <= (SELECT max(seq) FROM call) - {self._keep_rows}")
        if self._keep_us:
            bounds.append(f"ended_at < {time.time_ns() // 1000 - self._keep_us}")
        if not bounds:
            return False
        # Lines lie in the order in which calls ended, so that old ones are the first: only those are looked at.
        oldest = f"SELECT seq, ended_at FROM call ORDER BY seq LIMIT {_TRIM_STEP}"
        statement = f"DELETE FROM call WHERE seq IN (SELECT seq FROM ({oldest}) WHERE {' OR '.join(bounds)})"
        with self._lock, self._connection:
            return self._connection.execute(statement).rowcount == _TRIM_STEP

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return self._opened()
        except sqlite3.DatabaseError as error:
            log.warning("request_log.begun_anew", error=repr(error))
            for ending in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
            return self._opened()

    def _opened(self) -> sqlite3.Connection:
        """Open the file, made where it is missing. Raises: sqlite3.DatabaseError where it is not ours to read."""
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=5.0)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_size_limit = 16000000")
            found = connection.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _SCHEMA):
                raise sqlite3.DatabaseError(f"it was written by another release (schema {found})")
            if not found:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(_TABLE)
                connection.execute(_INDEX)
                connection.execute(f"PRAGMA user_version = {_SCHEMA}")
                connection.execute("COMMIT")
            self._path.chmod(0o600)
        except BaseException:
            connection.close()
            raise
        return connection
