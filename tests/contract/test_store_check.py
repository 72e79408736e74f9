"""After an unclean stop the database is looked through; a damaged one is told, never repaired or deleted."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest
from fal_backend.adapters.store import check
from fal_backend.adapters.store.check import StopMark, watch_after_unclean_stop
from fal_backend.adapters.store.opening import DATABASE, open_store

from fal_notebook.errors import BackendError
from fal_notebook.places import Places


async def filled(home: Path) -> Path:
    """Make a store of some pages that ended in order, and return its database."""
    places = Places(home)
    store, _ = open_store(places, asyncio.get_running_loop())
    for n in range(200):
        await store.write(lambda tx, n=n: tx.emit(f"app/{n}", "test", {"text": "x" * 500}))  # type: ignore[misc]
    await store.close()
    return places.store / DATABASE


async def watched(database: Path) -> StopMark:
    """Watch until the look is over; raises what it raises."""
    mark = StopMark(database)
    task = asyncio.create_task(watch_after_unclean_stop(database, mark))
    try:
        async with asyncio.timeout(20):
            while not (task.done() or mark.is_trusted):
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
    if task.done():
        task.result()
    return mark


async def test_a_stop_in_order_is_known_and_one_out_of_order_too(tmp_path: Path) -> None:
    database = await filled(tmp_path)
    assert StopMark(database).is_trusted
    store, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    assert not StopMark(database).is_trusted
    await store.close()
    assert StopMark(database).is_trusted


async def test_a_whole_database_is_trusted_again_after_the_look(tmp_path: Path) -> None:
    database = await filled(tmp_path)
    database.with_name("STOPPED").unlink()
    mark = await watched(database)
    mark.put()
    assert StopMark(database).is_trusted


async def test_a_damaged_database_is_refused_with_what_to_do_and_left_as_it_is(tmp_path: Path) -> None:
    database = await filled(tmp_path)
    database.with_name("STOPPED").unlink()
    content = bytearray(database.read_bytes())
    for page in range(8, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    database.write_bytes(content)
    with pytest.raises(BackendError) as caught:
        await watched(database)
    assert caught.value.code == "backend.store_damaged"
    assert "backups" in str(caught.value.fix)
    assert database.read_bytes() == content
    assert not StopMark(database).is_trusted


async def test_the_look_is_bounded_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = await filled(tmp_path)
    monkeypatch.setattr(check, "_STEPS", 1)
    assert check._quick_check(database, 0.0) is None
    assert check._quick_check(database, 60.0) == "ok"


async def test_what_is_no_database_at_all_is_told(tmp_path: Path) -> None:
    database = await filled(tmp_path)
    shutil.copy(database, copy := tmp_path / "other.db")
    copy.write_bytes(b"this is text" * 1000)
    assert check._quick_check(copy, 60.0) == str(sqlite3.DatabaseError("file is not a database"))
