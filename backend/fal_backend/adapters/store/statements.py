"""Every SQL statement, as named SQLAlchemy Core expressions, compiled once, at its first use.

Rules: each value is bound by name, `<column>_`; constants get generated names and travel with the
statement. Nothing that cannot be compiled once (`IN` with a list), no Python-side defaults, no bare
`insert(table)`. A start uses a few of the two hundred and waits for these only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import product
from typing import Any

from sqlalchemy import Table, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Compiled, Dialect
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import Integer

from fal_backend.adapters.store.book_statements import BookStatements
from fal_backend.adapters.store.request_statements import RequestStatements
from fal_backend.adapters.store.schema import EVENT, LOOKUPS, META, TABLES
from fal_backend.adapters.store.webhook_statements import WebhookStatements
from fal_backend.domain.records import Record

__all__ = ["RecordStatements", "Statement", "Statements", "sqlite_dialect", "sqlite_statements"]

Shape = tuple[tuple[str, bool], ...]


class Statement:
    """SQL text and the constants that it was written with."""

    def __init__(self, expression: Executable, dialect: Dialect, ending: str = "") -> None:
        self._expression, self._dialect, self._ending = expression, dialect, ending

    @cached_property
    def _compiled(self) -> Compiled:
        return self._expression.compile(dialect=self._dialect)  # type: ignore[attr-defined, no-any-return]

    @cached_property
    def sql(self) -> str:
        """What the database is told."""
        return f"{self._compiled}{self._ending}"

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Values that were written into the expression, by their generated names."""
        return {name: value for name, value in self._compiled.params.items() if not name.endswith("_")}

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


# Core has this only as a construct of each dialect, and importing PostgreSQL's costs 0.2 s at each start; the words
# are the same in both.
_UNLESS_THERE = " ON CONFLICT DO NOTHING"


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
        self.read_meta = self._statement(
            select(META.c.n, META.c.text).where(META.c.key == _bound(META.c.key))
        )
        self.insert_meta = self._statement(insert(META).values(_all_bound(META)))
        # Numbers for k events at once; on PostgreSQL the row lock puts commits in order.
        self.raise_meta = self._statement(
            update(META)
            .where(META.c.key == _bound(META.c.key))
            .values(n=META.c.n + bindparam("k_", type_=META.c.n.type))
            .returning(META.c.n)
        )
        self.insert_event = self._statement(insert(EVENT).values(_all_bound(EVENT)))
        self.first_event = self._statement(select(func.min(EVENT.c.n)))
        # A page of the backlog, by (app given, subject given).
        self.events = {
            (by_app, by_subject): self._statement(self._events(by_app, by_subject))
            for by_app in (False, True)
            for by_subject in (False, True)
        }
        self.last_to_trim = self._statement(self._last_to_trim())
        self.trim_events = self._statement(delete(EVENT).where(EVENT.c.n <= _bound(EVENT.c.n)))
        self.requests = RequestStatements(self._statement)
        self.webhooks = WebhookStatements(self._statement)
        self.books = BookStatements(self._statement)
        self.records: dict[type[Any], RecordStatements] = {
            kind: self._record(kind, table) for kind, table in TABLES.items()
        }

    def _statement(self, expression: Executable, ending: str = "") -> Statement:
        return Statement(expression, self._dialect, ending)

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
            get=self._statement(select(table).where(by_id)),
            insert=self._statement(insert(table).values(_all_bound(table))),
            put=self._statement(insert(table).values(_all_bound(table)), _UNLESS_THERE),
            delete=self._statement(delete(table).where(by_id)),
            update=self._statement(_update(table)) if "version" in table.c else None,
            find={shape: self._statement(_find(table, shape)) for shape in _shapes(table, LOOKUPS[kind])},
            starts=self._statement(_starting(table)),
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
            for name in ("get", "insert", "put", "delete", "update", "starts"):
                if getattr(made, name) is not None:
                    yield f"{kind.__name__}.{name}", getattr(made, name)
            for shape, statement in made.find.items():
                yield f"{kind.__name__}.find{shape}", statement


@cache
def sqlite_statements() -> Statements:
    """Return those for SQLite; they know nothing of any one database."""
    return Statements(sqlite_dialect())
