"""The migrations end at the schema that a fresh store is made with."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from fal_backend.adapters.store.migrate import migrate
from fal_backend.adapters.store.opening import SchemaTooOld, open_store
from fal_backend.domain.records import Account

from fal_notebook.errors import BackendError
from fal_notebook.places import Places


def layout(home: Path) -> dict[str, object]:
    """Everything that makes two databases the same to their users."""
    with closing(sqlite3.connect(Places(home).store / "main.db")) as db:
        tables = sorted(name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'"))
        indexes = sorted(
            (name, table, re.sub(r"\s+", " ", sql))
            for name, table, sql in db.execute(
                "SELECT name, tbl_name, sql FROM sqlite_master WHERE type='index' AND sql IS NOT NULL"
            )
        )
        columns = {table: db.execute(f"PRAGMA table_info({table})").fetchall() for table in tables}
        meta = [row for row in db.execute("SELECT key, n, text FROM meta ORDER BY key") if row[0] != "leader"]
        number = db.execute("SELECT version_num FROM alembic_version").fetchall()
    return {"indexes": indexes, "columns": columns, "meta": meta, "number": number}


async def made_directly(home: Path) -> None:
    store, _ = open_store(Places(home), asyncio.get_running_loop())
    await store.close()


async def test_the_newest_migration_gives_the_schema_of_a_fresh_store(tmp_path: Path) -> None:
    await made_directly(tmp_path / "a")
    assert migrate(tmp_path / "b") is None
    assert layout(tmp_path / "a") == layout(tmp_path / "b")


async def test_a_migrated_store_opens_and_a_backup_of_it_was_made(tmp_path: Path) -> None:
    places = Places(tmp_path)
    store, _ = open_store(places, asyncio.get_running_loop())
    await store.write(lambda tx: tx.insert(Account("a", "ada", 1)))
    await store.close()
    backup = migrate(tmp_path)
    assert backup is not None
    with closing(sqlite3.connect(backup)) as db:
        assert db.execute("SELECT nickname FROM account").fetchall() == [("ada",)]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store, _ = open_store(places, asyncio.get_running_loop())
    assert await store.read(lambda r: r.get(Account, "a")) == Account("a", "ada", 1)
    await store.close()


def set_number(home: Path, number: str) -> None:
    with closing(sqlite3.connect(Places(home).store / "main.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = ?", (number,))
        db.execute("UPDATE meta SET text = '9.9.9' WHERE key = 'release'")


async def test_an_older_schema_asks_for_the_migration(tmp_path: Path) -> None:
    await made_directly(tmp_path)
    set_number(tmp_path, "0000")
    with pytest.raises(SchemaTooOld, match="schema 0000"):
        open_store(Places(tmp_path), asyncio.get_running_loop())


async def test_a_newer_schema_is_refused_with_the_release_that_wrote_it(tmp_path: Path) -> None:
    await made_directly(tmp_path)
    set_number(tmp_path, "9999")
    with pytest.raises(BackendError, match=r"written by fal-notebook 9\.9\.9") as caught:
        open_store(Places(tmp_path), asyncio.get_running_loop())
    assert caught.value.code == "backend.schema_newer"


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.store.mkdir(parents=True)
    (places.store / "main.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(BackendError) as caught:
        open_store(places, asyncio.get_running_loop())
    assert caught.value.code == "backend.store_damaged"
    assert (places.store / "main.db").read_bytes() == b"not a database" * 1000


async def test_a_half_made_store_is_made_again(tmp_path: Path) -> None:
    """A kill in the middle of the first start leaves an empty file, since all is one transaction."""
    places = Places(tmp_path)
    places.store.mkdir(parents=True)
    (places.store / "main.db").touch()
    store, _ = open_store(places, asyncio.get_running_loop())
    assert store.leader == 1
    await store.close()
