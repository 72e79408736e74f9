"""Bring a store to this release's schema: `python -m fal_backend migrate`, in a process of its own.

Rules: forward only; a copy of the database is made first; each migration is one transaction, so one that
was interrupted is begun again. Imports Alembic, so the backend never imports this.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event, pool
from sqlalchemy.engine import Connection

from fal_backend.adapters.store.opening import DATABASE
from fal_backend.adapters.store.schema import SCHEMA_NUMBER
from fal_backend.adapters.store.store import connect
from fal_notebook import __version__
from fal_notebook.places import Places

__all__ = ["migrate"]


def migrate(home: Path) -> Path | None:
    """Migrate the store of a home and return the copy made before, None where nothing was there."""
    places = Places(home)
    places.store.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = places.store / DATABASE
    backup = _back_up(path, places.store / "backups") if path.exists() else None
    engine = create_engine("sqlite://", creator=lambda: connect(path), poolclass=pool.NullPool)

    # The driver never begins a transaction by itself here; without this, DDL would commit step by step.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, SCHEMA_NUMBER)
            connection.exec_driver_sql("UPDATE meta SET text = ? WHERE key = 'release'", (__version__,))
    finally:
        engine.dispose()
    return backup


def _back_up(path: Path, folder: Path) -> Path:
    """Copy the database with SQLite's own backup, which is right also while the log is not empty."""
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"main-{datetime.now(UTC):%Y%m%dT%H%M%S}.db"
    with closing(connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    target.chmod(0o600)
    return target
