"""Usage and the record of acts on a plain sqlite3 connection; see `ports.BookReads` and `ports.BookWrites`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from fal_backend.adapters.store.book_statements import BookStatements
from fal_backend.domain.records import AuditEntry, Usage
from fal_backend.ports import UsageSum

__all__ = ["SqliteBooks"]


class SqliteBooks:
    """Reads and writes in one transaction; `usage` are the statements that every row of usage has."""

    def __init__(self, connection: sqlite3.Connection, statements: BookStatements, usage: Any) -> None:
        self._connection = connection
        self._statements = statements
        self._usage = usage

    def _run(self, statement: Any, args: dict[str, Any]) -> sqlite3.Cursor:
        return self._connection.execute(statement.sql, statement.bind(args))

    def sums(
        self,
        since: int,
        until: int,
        *,
        account: str | None = None,
        app: str | None = None,
        by_minute: bool = False,
        limit: int = 10_000,
    ) -> list[UsageSum]:
        """Return what was used from minute `since` to before minute `until`."""
        statement = self._statements.sums[account is not None, app is not None, by_minute]
        given = {"since_": since, "until_": until, "account_": account, "app_": app, "limit_": limit}
        args = {name: value for name, value in given.items() if value is not None}
        return [UsageSum(*row) for row in self._run(statement, args)]

    def acts(self, limit: int, *, account: str | None = None) -> list[AuditEntry]:
        """Return the newest acts."""
        args: dict[str, Any] = {"limit_": limit} | ({"account_": account} if account is not None else {})
        statement = self._statements.acts[account is not None]
        return [AuditEntry(*row) for row in self._run(statement, args)]

    def add(self, rows: Sequence[Usage]) -> None:
        """Add to what is there of the same id."""
        for row in rows:
            change = {"id_": row.id, "calls_": row.calls, "micros_": row.micros}
            if self._run(self._statements.add, change).rowcount == 0:
                self._run(self._usage.insert, self._usage.values(row))

    def trim(self, before: int, limit: int) -> int:
        """Remove usage of before a minute, and return how many rows went."""
        return self._run(self._statements.trim, {"minute_": before, "limit_": limit}).rowcount
