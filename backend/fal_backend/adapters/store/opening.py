"""Open the store: make it when there is none, refuse what this release cannot read.

Rules: a fresh store is made from the compiled definitions in one transaction, because Alembic costs more
time than the whole opening. An older schema is left to the migration process, a newer one is refused,
a damaged one is refused, and nothing is ever deleted.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence

from fal_backend.adapters.bus import EventBus
from fal_backend.adapters.store.check import StopMark, damaged
from fal_backend.adapters.store.location import refuse_network_folder
from fal_backend.adapters.store.schema import SCHEMA_NUMBER, definitions
from fal_backend.adapters.store.statements import Statements, sqlite_dialect, sqlite_statements
from fal_backend.adapters.store.store import SqliteStore, connect
from fal_backend.adapters.store.transaction import SqliteTx
from fal_backend.adapters.store.writer import locked_error
from fal_backend.domain.records import EventRow
from fal_notebook import __version__
from fal_notebook.errors import BackendError
from fal_notebook.places import Places

__all__ = ["DATABASE", "SchemaTooOld", "open_store"]

DATABASE = "main.db"


class SchemaTooOld(Exception):
    """The store was written by an older release; run the migration (exit code 76)."""


def open_store(places: Places, loop: asyncio.AbstractEventLoop) -> tuple[SqliteStore, EventBus]:
    """Open the store of this home, raise the leader number, and return it with its bus.

    Blocks for some ten milliseconds; must be called on the loop's thread.
    Raises: SchemaTooOld; BackendError `backend.schema_newer`, `backend.store_damaged`,
    `backend.store_locked`, `backend.network_folder`.
    """
    places.store.mkdir(mode=0o700, parents=True, exist_ok=True)
    refuse_network_folder(places.store)
    path = places.store / DATABASE
    mark = StopMark(path)
    statements = sqlite_statements()
    try:
        connection = connect(path)
        try:
            leader, last = _begin(connection, statements)
        except BaseException:
            connection.close()
            raise
    except sqlite3.DatabaseError as error:
        raise _translated(error, places) from error

    buses: list[EventBus] = []

    def publish(events: Sequence[EventRow]) -> None:
        buses[0].publish(events)

    mark.take()
    store = SqliteStore(path, connection, statements, loop, leader=leader, on_commit=publish, mark=mark)
    buses.append(EventBus(store, last))
    return store, buses[0]


def _begin(connection: sqlite3.Connection, statements: Statements) -> tuple[int, int]:
    """Make or check the schema and return (leader number, last event's number)."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        _ensure_schema(connection, statements)
        tx = SqliteTx(connection, statements)
        leader, last = tx.raise_meta("leader", 1), tx.last_event()
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return leader, last


def _ensure_schema(connection: sqlite3.Connection, statements: Statements) -> None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in tables:
        if tables:
            raise SchemaTooOld("the store has no schema number")
        _make_schema(connection, statements)
        return
    (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    if found < SCHEMA_NUMBER:
        raise SchemaTooOld(f"the store has schema {found}, this release needs {SCHEMA_NUMBER}")
    if found > SCHEMA_NUMBER:
        (release,) = connection.execute("SELECT text FROM meta WHERE key = 'release'").fetchone()
        raise BackendError(
            f"The store was written by fal-notebook {release} (schema {found}); this is {__version__} "
            f"(schema {SCHEMA_NUMBER}).",
            code="backend.schema_newer",
            fix=f"Install fal-notebook {release} or newer, or name another folder with FAL_NB_HOME.",
        )


def _make_schema(connection: sqlite3.Connection, statements: Statements) -> None:
    for statement in definitions(sqlite_dialect()):
        connection.execute(statement)
    # The same table that Alembic makes, so that its migrations go on from here.
    connection.execute(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.execute("INSERT INTO alembic_version (version_num) VALUES (?)", (SCHEMA_NUMBER,))
    tx = SqliteTx(connection, statements)
    tx.set_meta("leader", 0, "")
    tx.set_meta("events", 0, "")
    tx.set_meta("release", 0, __version__)


def _translated(error: sqlite3.DatabaseError, places: Places) -> BackendError:
    path = places.store / DATABASE
    code = int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return locked_error(path)
    return damaged(path, str(error))
