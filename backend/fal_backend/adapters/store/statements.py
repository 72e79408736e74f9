"""Every SQL statement, as named SQLAlchemy Core expressions, compiled once at start.

Rules: each value is bound by name, `<column>_`; constants get generated names and travel with the
statement. Nothing that cannot be compiled once (`IN` with a list), no Python-side defaults, no bare
`insert(table)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import Integer

from fal_backend.adapters.store.book_statements import BookStatements
from fal_backend.adapters.store.request_statements import RequestStatements
from fal_backend.adapters.store.schema import EVENT, LOOKUPS, META, TABLES
from fal_backend.adapters.store.webhook_statements import WebhookStatements
from fal_backend.domain.records import Record

__all__ = ["RecordStatements", "Statement", "Statements", "sqlite_dialect"]

Shape = tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL text and the constants that it was written with."""

    sql: str
    constants: dict[str, Any]

    def bind(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return all parameters of one execution."""
        return {**self.constants, **args} if self.constants else args


@dataclass(frozen=True, slots=True)
class RecordStatements:
    """What can be done with one kind of record."""

    names: tuple[tuple[str, str], ...]
    """(field, its bound name), in field order."""
    get: Statement
    insert: Statement
    put: Statement
    delete: Statement
    update: Statement | None
    """None: the record is immutable."""
    find: dict[Shape, Statement]
    starts: Statement
    """Those whose name begins with a text, at most `limit_`."""

    def values(self, record: Record) -> dict[str, Any]:
        """Return a record's fields under their bound names."""
        return {bound: getattr(record, name) for name, bound in self.names}


def sqlite_dialect() -> Dialect:
    """Return the dialect of Python's own sqlite3 module, values bound by name."""
    return sqlite.dialect(paramstyle="named")


def _bound(column: Any) -> Any:
    return bindparam(f"{column.name}_", type_=column.type)


def _all_bound(table: Table) -> dict[str, Any]:
    return {column.name: _bound(column) for column in table.columns}


def _unless_there(made: Statement) -> Statement:
    # Core has this only as a construct of each dialect, and importing PostgreSQL's costs 0.2 s at each
    # start; the words are the same in both.
    return Statement(f"{made.sql} ON CONFLICT DO NOTHING", made.constants)


def _oldest_first(table: Table) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in ("created_at", "id") if name in table.c]


def _find(table: Table, shape: Shape) -> Executable:
    conditions = [
        table.c[name].is_(None) if is_null else table.c[name] == _bound(table.c[name])
        for name, is_null in shape
    ]
    return select(table).where(*conditions).order_by(*_oldest_first(table))


def _starting(table: Table) -> Executable:
    ends = table.c.id < bindparam("end_", type_=table.c.id.type)
    asked = select(table).where(table.c.id >= _bound(table.c.id), ends).order_by(table.c.id)
    return asked.limit(bindparam("limit_", type_=Integer()))


def _shapes(table: Table, lookups: tuple[tuple[str, ...], ...]) -> Iterator[Shape]:
    """Yield every way to ask: each lookup, with NULL or a value where a column may be NULL."""
    yield ()
    for lookup in lookups:
        names = sorted(lookup)
        for nulls in product(*((False, True) if table.c[name].nullable else (False,) for name in names)):
            yield tuple(zip(names, nulls, strict=True))


def _update(table: Table) -> Executable:
    changed = {name: value for name, value in _all_bound(table).items() if name not in {"id", "version"}}
    return (
        update(table)
        .where(table.c.id == _bound(table.c.id), table.c.version == _bound(table.c.version))
        .values({**changed, "version": table.c.version + 1})
    )


class Statements:
    """All statements for one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # The newest event's number, and the leader number, live in `meta`.
        self.read_meta = self._compile(select(META.c.n, META.c.text).where(META.c.key == _bound(META.c.key)))
        self.insert_meta = self._compile(insert(META).values(_all_bound(META)))
        # Numbers for k events at once; on PostgreSQL the row lock puts commits in order.
        self.raise_meta = self._compile(
            update(META)
            .where(META.c.key == _bound(META.c.key))
            .values(n=META.c.n + bindparam("k_", type_=META.c.n.type))
            .returning(META.c.n)
        )
        self.insert_event = self._compile(insert(EVENT).values(_all_bound(EVENT)))
        self.first_event = self._compile(select(func.min(EVENT.c.n)))
        # A page of the backlog, by (app given, subject given).
        self.events = {
            (by_app, by_subject): self._compile(self._events(by_app, by_subject))
            for by_app in (False, True)
            for by_subject in (False, True)
        }
        self.last_to_trim = self._compile(self._last_to_trim())
        self.trim_events = self._compile(delete(EVENT).where(EVENT.c.n <= _bound(EVENT.c.n)))
        self.requests = RequestStatements(self._compile)
        self.webhooks = WebhookStatements(self._compile)
        self.books = BookStatements(self._compile)
        self.records: dict[type[Any], RecordStatements] = {
            kind: self._record(kind, table) for kind, table in TABLES.items()
        }

    def _compile(self, expression: Executable) -> Statement:
        compiled = expression.compile(dialect=self._dialect)  # type: ignore[attr-defined]
        constants = {name: value for name, value in compiled.params.items() if not name.endswith("_")}
        return Statement(str(compiled), constants)

    @staticmethod
    def _events(by_app: bool, by_subject: bool) -> Executable:
        asked = select(EVENT).where(EVENT.c.n > _bound(EVENT.c.n))
        if by_app:
            asked = asked.where(EVENT.c.app == _bound(EVENT.c.app))
        if by_subject:
            asked = asked.where(EVENT.c.subject == _bound(EVENT.c.subject))
        return asked.order_by(EVENT.c.n).limit(bindparam("limit_", type_=Integer()))

    @staticmethod
    def _last_to_trim() -> Executable:
        """The last of the oldest `limit_` events that is too old, or too many events ago."""
        oldest = (
            select(EVENT.c.n, EVENT.c.at)
            .order_by(EVENT.c.n)
            .limit(bindparam("limit_", type_=Integer()))
            .subquery()
        )
        is_old = (oldest.c.at < _bound(EVENT.c.at)) | (oldest.c.n <= _bound(EVENT.c.n))
        return select(func.max(oldest.c.n)).where(is_old)

    def _record(self, kind: type[Any], table: Table) -> RecordStatements:
        by_id = table.c.id == _bound(table.c.id)
        return RecordStatements(
            names=tuple((field.name, f"{field.name}_") for field in fields(kind)),
            get=self._compile(select(table).where(by_id)),
            insert=self._compile(insert(table).values(_all_bound(table))),
            put=_unless_there(self._compile(insert(table).values(_all_bound(table)))),
            delete=self._compile(delete(table).where(by_id)),
            update=self._compile(_update(table)) if "version" in table.c else None,
            find={shape: self._compile(_find(table, shape)) for shape in _shapes(table, LOOKUPS[kind])},
            starts=self._compile(_starting(table)),
        )

    def all(self) -> Iterator[tuple[str, Statement]]:
        """Yield every statement with a name, for tests and for `EXPLAIN`."""
        for name in (
            "read_meta",
            "insert_meta",
            "raise_meta",
            "insert_event",
            "first_event",
            "last_to_trim",
            "trim_events",
        ):
            yield name, getattr(self, name)
        for key, statement in self.events.items():
            yield f"events{key}", statement
        yield from self.requests.all()
        yield from self.webhooks.all()
        yield from self.books.all()
        for kind, made in self.records.items():
            for name in ("get", "insert", "put", "delete", "update"):
                if getattr(made, name) is not None:
                    yield f"{kind.__name__}.{name}", getattr(made, name)
            for shape, statement in made.find.items():
                yield f"{kind.__name__}.find{shape}", statement
