"""Reads and writes of one transaction on a plain sqlite3 connection.

Rules: a `SqliteReader` sees one moment; a `SqliteTx` collects events, which the writer numbers when the
group commits. Neither begins nor ends a transaction.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import astuple, replace
from typing import Any, TypeVar, cast

from fal_backend.adapters.store.books import SqliteBooks
from fal_backend.adapters.store.requests import SqliteRequests
from fal_backend.adapters.store.schema import LOOKUPS, shape_of
from fal_backend.adapters.store.statements import RecordStatements, Statement, Statements
from fal_backend.adapters.store.webhooks import SqliteWebhooks
from fal_backend.domain.records import EventRow, Record, Usage
from fal_backend.ports import Conflict

__all__ = ["SqliteReader", "SqliteTx", "encode_json"]

R = TypeVar("R", bound=Record)


def encode_json(value: Any) -> str:
    """Return JSON text as the store keeps it: no spaces, not escaped."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class SqliteReader:
    """Reads; see `ports.Reader`."""

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        self._connection = connection
        self._statements = statements

    @property
    def requests(self) -> SqliteRequests:
        """The queue's rows."""
        return SqliteRequests(self._connection, self._statements.requests)

    @property
    def webhooks(self) -> SqliteWebhooks:
        """Webhooks' rows."""
        return SqliteWebhooks(self._connection, self._statements.webhooks)

    @property
    def books(self) -> SqliteBooks:
        """Usage and the record of acts."""
        return SqliteBooks(self._connection, self._statements.books, self._statements.records[Usage])

    def run(self, statement: Statement, args: dict[str, Any]) -> sqlite3.Cursor:
        """Execute one statement of `statements.py`."""
        return self._connection.execute(statement.sql, statement.bind(args))

    def _of(self, kind: type[Any]) -> RecordStatements:
        return self._statements.records[kind]

    def get(self, kind: type[R], id: str | int) -> R | None:
        """Return the record with this id."""
        row = self.run(self._of(kind).get, {"id_": id}).fetchone()
        return kind(*row) if row else None

    def find(self, kind: type[R], **where: Any) -> list[R]:
        """Return the records whose columns equal these values (None: is NULL), oldest first.

        The columns must be one of `schema.LOOKUPS[kind]`; none at all gives every record.
        """
        statement = self._of(kind).find.get(shape_of(where))
        if statement is None:
            known = ", ".join("+".join(names) for names in LOOKUPS[kind]) or "none"
            raise TypeError(f"{kind.__name__} has no index for {'+'.join(where)}; there is: {known}")
        rows = self.run(statement, {f"{name}_": value for name, value in where.items() if value is not None})
        return [kind(*row) for row in rows]

    def starting(self, kind: type[R], prefix: str, limit: int) -> list[R]:
        """Return at most `limit` records whose id begins with these ASCII characters."""
        args = {"id_": prefix, "end_": prefix + "\x7f", "limit_": limit}
        return [kind(*row) for row in self.run(self._of(kind).starts, args)]

    def events(
        self, after: int, limit: int, *, app: str | None = None, subject: str | None = None
    ) -> list[EventRow]:
        """Return at most `limit` events with larger numbers, in order."""
        statement = self._statements.events[app is not None, subject is not None]
        args = {"n_": after, "limit_": limit, "app_": app, "subject_": subject}
        return [EventRow(*row) for row in self.run(statement, args)]

    def last_event(self) -> int:
        """Return the number of the newest event, 0 before the first."""
        return self.meta("events")[0]

    def first_event(self) -> int:
        """Return the number of the oldest event kept; when none is kept, the number of the next one."""
        first: int | None = self.run(self._statements.first_event, {}).fetchone()[0]
        return self.last_event() + 1 if first is None else first

    def meta(self, key: str) -> tuple[int, str]:
        """Return a number and a text about the store itself."""
        return cast("tuple[int, str]", self.run(self._statements.read_meta, {"key_": key}).fetchone())


class SqliteTx(SqliteReader):
    """Reads and writes; see `ports.Tx`."""

    def __init__(self, connection: sqlite3.Connection, statements: Statements) -> None:
        super().__init__(connection, statements)
        self._emitted: list[tuple[int, str, str, str | None, str, str | None]] = []

    def insert(self, record: Record) -> None:
        """Add a record.

        Raises: Conflict when one with this id exists.
        """
        made = self._of(type(record))
        try:
            self.run(made.insert, made.values(record))
        except sqlite3.IntegrityError as error:
            raise Conflict(f"{type(record).__name__} {record.id}: {error}") from error

    def put(self, record: Record) -> None:
        """Insert unless a record with this id exists; then leave that one."""
        made = self._of(type(record))
        self.run(made.put, made.values(record))

    def update(self, record: R) -> R:
        """Write all fields where id and version match and return it with version + 1.

        Raises: Conflict when no row matched.
        """
        made = self._of(type(record))
        if made.update is None:
            raise TypeError(f"{type(record).__name__} never changes")
        if self.run(made.update, made.values(record)).rowcount != 1:
            raise Conflict(f"{type(record).__name__} {record.id} was changed or deleted meanwhile")
        changed: Any = record
        return cast("R", replace(changed, version=changed.version + 1))

    def delete(self, kind: type[Record], id: str | int) -> None:
        """Remove a record; nothing happens when it is not there."""
        self.run(self._of(kind).delete, {"id_": id})

    def emit(
        self,
        subject: str,
        kind: str,
        data: dict[str, Any],
        *,
        app: str | None = None,
        account: str | None = None,
    ) -> None:
        """Append an event; its number is given when the group commits."""
        self._emitted.append((time.time_ns() // 1000, subject, kind, app, encode_json(data), account))

    def trim_events(self, *, before: int, keep: int, limit: int) -> int:
        """Delete up to `limit` of the oldest events that are older than `before` or more than `keep` ago.

        Returns how many went.
        """
        args = {"at_": before, "n_": self.last_event() - keep, "limit_": limit}
        last: int | None = self.run(self._statements.last_to_trim, args).fetchone()[0]
        return 0 if last is None else self.run(self._statements.trim_events, {"n_": last}).rowcount

    def mark(self) -> int:
        """Return how many events were emitted so far."""
        return len(self._emitted)

    def forget(self, mark: int) -> None:
        """Drop the events emitted since `mark`: their operation was rolled back."""
        del self._emitted[mark:]

    def number_events(self) -> list[EventRow]:
        """Give the group's events their numbers and insert them; the last act before COMMIT."""
        if not self._emitted:
            return []
        last = self.raise_meta("events", len(self._emitted))
        first = last - len(self._emitted) + 1
        events = [EventRow(first + i, *emitted) for i, emitted in enumerate(self._emitted)]
        names = ("n_", "at_", "subject_", "kind_", "app_", "data_json_", "account_")
        self._connection.executemany(
            self._statements.insert_event.sql,
            [dict(zip(names, astuple(event), strict=True)) for event in events],
        )
        return events

    def raise_meta(self, key: str, by: int) -> int:
        """Add to a number about the store itself and return it."""
        row = self.run(self._statements.raise_meta, {"key_": key, "k_": by}).fetchone()
        return cast("int", row[0])

    def set_meta(self, key: str, n: int, text: str) -> None:
        """Add a number about the store itself."""
        self.run(self._statements.insert_meta, {"key_": key, "n_": n, "text_": text})
