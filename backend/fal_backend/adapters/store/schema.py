"""The tables: one for each record, made from its fields, plus `body`, `event` and `meta`.

Rules: only text, integers, floats and bytes, because statements run on the driver's own connection where no
type conversion happens; times are integer microseconds, booleans 0 or 1, JSON is text. No foreign keys:
records are judged by the domain, and old revisions outlive what they name. A table changes only by a
migration; a test holds both descriptions against each other.
"""

from __future__ import annotations

import re
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_type_hints

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    literal_column,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import TypeEngine

from fal_backend.domain.records import (
    Account,
    Alias,
    ApiKey,
    Attempt,
    AuditEntry,
    Bundle,
    DataKey,
    Deployment,
    Environment,
    EventRow,
    File,
    Image,
    Lease,
    Membership,
    Node,
    Request,
    Revision,
    Runner,
    Secret,
    Session,
    Usage,
    Webhook,
)

__all__ = [
    "BODY",
    "EVENT",
    "KINDS",
    "LOOKUPS",
    "META",
    "SCHEMA",
    "SCHEMA_NUMBER",
    "TABLES",
    "definitions",
    "names_file",
    "shape_of",
]

SCHEMA_NUMBER = "0013"
"""Name of the newest migration, kept in `alembic_version`."""

LOOKUPS: dict[type[Any], tuple[tuple[str, ...], ...]] = {
    Account: (("nickname",),),
    ApiKey: (("account",),),
    Image: (("state",),),
    Bundle: (("account",),),
    Revision: (("account", "app"), ("account",), ("app",), ("image",)),
    Alias: (("account", "name"), ("account",), ("name",), ("session",), ("revision",)),
    Deployment: (
        ("account", "app"),
        ("account",),
        ("app", "state"),
        ("app",),
        ("state",),
        ("revision",),
        ("session",),
    ),
    Node: (),
    Lease: (("node",), ("runner",)),
    Runner: (
        ("account", "app"),
        ("account",),
        ("app", "phase"),
        ("app",),
        ("revision", "phase"),
        ("revision",),
        ("phase",),
        ("node", "phase"),
        ("node",),
    ),
    Session: (("ended_at",), ("account", "ended_at"), ("account",)),
    File: (("account",), ("state",), ("sha256",)),
    Request: (("request_id",),),
    Attempt: (("request",),),
    Webhook: (("account", "created_at"), ("account",)),
    Environment: (("account",),),
    DataKey: (),
    Secret: (("account", "environment"), ("account",)),
    Membership: (("team",), ("account",)),
    Usage: (("account", "minute"), ("minute",)),
    AuditEntry: (("account", "created_at"), ("created_at",)),
}
"""The sets of columns that `Reader.find` may compare, each served by an index."""

KINDS: tuple[type[Any], ...] = tuple(LOOKUPS)

SCHEMA = MetaData()


def _table_name(kind: type[Any]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def _column_type(hint: Any) -> TypeEngine[Any]:
    if hint is str:
        return Text()
    if hint is int:
        return BigInteger().with_variant(Integer(), "sqlite")
    if hint is float:
        return Float()
    raise TypeError(f"a record's field cannot be a {hint}")


def _columns(kind: type[Any], key: str) -> list[Column[Any]]:
    hints = get_type_hints(kind)
    columns: list[Column[Any]] = []
    for field in fields(kind):
        hint = hints[field.name]
        is_optional = isinstance(hint, UnionType)
        plain = next(arg for arg in get_args(hint) if arg is not type(None)) if is_optional else hint
        is_key = field.name == key
        columns.append(
            Column(
                field.name,
                _column_type(plain),
                primary_key=is_key,
                nullable=is_optional,
                autoincrement=False if is_key else "auto",
            )
        )
    return columns


def _indexes(name: str, lookups: tuple[tuple[str, ...], ...]) -> list[Index]:
    """Return an index for each lookup that is not the beginning of another one."""
    needed = [
        lookup
        for lookup in lookups
        if not any(other != lookup and other[: len(lookup)] == lookup for other in lookups)
    ]
    return [Index(f"{name}_by_{'_'.join(lookup)}", *lookup) for lookup in needed]


def _table(kind: type[Any]) -> Table:
    name = _table_name(kind)
    return Table(name, SCHEMA, *_columns(kind, "id"), *_indexes(name, LOOKUPS[kind]))


def _partial(name: str, condition: ColumnElement[bool], *columns: Column[Any]) -> None:
    """Index only the rows that match; `for_dialect` tells other databases than SQLite."""
    _PARTIAL.append((Index(name, *columns, sqlite_where=condition), condition))


_PARTIAL: list[tuple[Index, ColumnElement[bool]]] = []


def names_file(ref: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition of the indexes of files, which whoever wants them used must repeat: `file:…` < `inline`."""
    return ref < literal_column("'inline'")


def _for_dialect(name: str) -> None:
    """Prepare the schema for a database; naming PostgreSQL earlier would cost each start 0.15 s of imports."""
    if name == "postgresql":
        for index, condition in _PARTIAL:
            index.dialect_options[name]["where"] = condition


TABLES: dict[type[Any], Table] = {kind: _table(kind) for kind in KINDS}

_REQUEST = TABLES[Request].c
# Of a million finished requests none is in the first, of a million waiting ones none in the second.
_partial("request_live", _REQUEST.ended_at.is_(None), _REQUEST.app, _REQUEST.lane, _REQUEST.id)
_partial("request_ended", _REQUEST.ended_at.is_not(None), _REQUEST.ended_at)
_partial("request_by_idempotency", _REQUEST.idempotency.is_not(None), _REQUEST.idempotency)
# Bodies that are files; those in the store, and none at all, are not looked for.
_partial("request_input_file", names_file(_REQUEST.input_ref), _REQUEST.input_ref)
_partial("request_answer_file", names_file(_REQUEST.answer_ref), _REQUEST.answer_ref)

_WEBHOOK = TABLES[Webhook].c
_partial("webhook_due", _WEBHOOK.due_at.is_not(None), _WEBHOOK.due_at, _WEBHOOK.id, _WEBHOOK.url)
_partial("webhook_ended", _WEBHOOK.ended_at.is_not(None), _WEBHOOK.ended_at)

BODY = Table(
    "body",
    SCHEMA,
    Column(
        "ref",
        BigInteger().with_variant(Integer(), "sqlite"),
        primary_key=True,
        nullable=False,
        autoincrement=False,
    ),
    Column("data", LargeBinary(), nullable=False),
)
"""Small bodies of requests and answers; large ones are files."""

EVENT = Table(
    "event",
    SCHEMA,
    *_columns(EventRow, "n"),
    Index("event_by_app", "app", "n"),
    Index("event_by_subject", "subject", "n"),
)

META = Table(
    "meta",
    SCHEMA,
    Column("key", Text(), primary_key=True, nullable=False),
    Column("n", BigInteger().with_variant(Integer(), "sqlite"), nullable=False),
    Column("text", Text(), nullable=False),
)
"""Numbers of the whole store: `leader`, `events` (the last event's number); text: `release`."""


def definitions(dialect: Dialect) -> list[str]:
    """Return the statements that make an empty store, for a database without Alembic at hand."""
    _for_dialect(dialect.name)
    made: list[str] = []
    for table in SCHEMA.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=dialect)))
        made.extend(
            str(CreateIndex(index).compile(dialect=dialect))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        )
    return made


def shape_of(where: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    """Return what distinguishes one `find` statement from another: its columns, and which are NULL."""
    return tuple(sorted((name, value is None) for name, value in where.items()))
