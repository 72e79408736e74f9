"""`KVStore`: text by key, shared by all runners of an account.

Rules: one SQLite file in the persistent folder; values end by themselves, after 30 days unless said otherwise.
Source: fal SDK, `fal.toolkit.kv`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from fal_notebook.toolkit.data import data_dir
from fal_notebook.toolkit.exceptions import KVStoreException

__all__ = ["KVStore"]

T = TypeVar("T")

_SHORTEST_S = 60
_LONGEST_S = 30 * 24 * 3600
_BUSY_S = 10.0
_TABLE = """CREATE TABLE IF NOT EXISTS kv (db TEXT, key TEXT, value TEXT, expires REAL,
            PRIMARY KEY (db, key)) WITHOUT ROWID"""


class KVStore:
    """A named store."""

    def __init__(self, db_name: str) -> None:
        self.db_name = db_name

    def get(self, key: str) -> str | None:
        """Return a value, None where there is none."""
        row = self._do(
            lambda db: db.execute(
                "SELECT value FROM kv WHERE db = ? AND key = ? AND expires > ?",
                (self.db_name, key, time.time()),
            ).fetchone()
        )
        return None if row is None else str(row[0])

    def set(self, key: str, value: str, ttl: int | None = None) -> None:
        """Store a value. ttl: seconds, 60 to 2592000. Raises: KVStoreException."""
        if ttl is not None and not _SHORTEST_S <= ttl <= _LONGEST_S:
            raise KVStoreException(f"ttl must be between {_SHORTEST_S} and {_LONGEST_S} seconds, not {ttl}.")
        now = time.time()

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM kv WHERE expires <= ?", (now,))
            db.execute(
                "INSERT OR REPLACE INTO kv VALUES (?, ?, ?, ?)",
                (self.db_name, key, value, now + (ttl or _LONGEST_S)),
            )

        self._do(write)

    def delete(self, key: str) -> None:
        """Remove a value; nothing happens where there is none."""
        self._do(lambda db: db.execute("DELETE FROM kv WHERE db = ? AND key = ?", (self.db_name, key)))

    def _do(self, act: Callable[[sqlite3.Connection], T]) -> T:
        folder = data_dir() / ".fal"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(folder / "kv.db", timeout=_BUSY_S)) as db, db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute(_TABLE)
                return act(db)
        except (sqlite3.Error, OSError) as error:
            raise KVStoreException(f"The store {self.db_name!r} cannot be used: {error}") from error
