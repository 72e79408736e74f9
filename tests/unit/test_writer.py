"""What the writer does when the disk, another process or an operation fails."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.statements import Statements, sqlite_dialect
from fal_backend.adapters.store.store import SqliteStore, connect
from fal_backend.adapters.store.writer import FAIL_STOP_CODE, Operation, Writer
from fal_backend.domain.records import Account
from fal_backend.ports import OpClass, Tx

from fal_notebook.errors import BackendError, LimitError
from fal_notebook.places import Places

DEADLINE_S = 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    yield store
    await store.close()


def pragma(name: str, value: int) -> Any:
    """An operation that sets a limit of the writer's own connection."""

    def run(tx: Any) -> int:
        return int(tx._connection.execute(f"PRAGMA {name}={value}").fetchone()[0])

    return run


def large(i: int) -> Any:
    return lambda tx: tx.insert(Account(f"a-{i}", "x" * 1_000_000, 1))


async def test_a_full_disk_is_told_to_callers_and_nothing_is_half_written(store: SqliteStore) -> None:
    await store.write(lambda tx: tx.insert(Account("first", "x", 1)))
    await store.write(pragma("max_page_count", 120))
    with pytest.raises(LimitError) as caught:
        await store.write(large(1), OpClass.ACCEPT)
    assert caught.value.code == "limit.disk_full"
    assert [a.id for a in await store.read(lambda r: r.find(Account))] == ["first"], "reads go on"


async def test_a_change_of_state_waits_for_space_and_is_then_written(store: SqliteStore) -> None:
    await store.write(pragma("max_page_count", 120))
    refused = asyncio.ensure_future(store.write(large(1), OpClass.ACCEPT))
    waiting = asyncio.ensure_future(store.write(large(2), OpClass.STATE))
    with pytest.raises(LimitError):
        await refused
    assert not waiting.done()
    await store.write(pragma("max_page_count", 1_000_000), OpClass.ACCEPT)
    await asyncio.wait_for(waiting, DEADLINE_S)
    assert [a.id for a in await store.read(lambda r: r.find(Account))] == ["a-2"]


async def test_a_lock_held_by_another_process_is_a_bounded_wait_with_a_reason(store: SqliteStore) -> None:
    await store.write(pragma("busy_timeout", 50))
    code = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert await asyncio.to_thread(other.stdout.readline) == b"held\n"
    with pytest.raises(BackendError) as caught:
        await store.write(lambda tx: tx.insert(Account("a", "x", 1)), OpClass.ACCEPT)
    assert caught.value.code == "backend.store_locked"
    assert f"({other.pid})" in caught.value.message
    later = asyncio.ensure_future(store.write(lambda tx: tx.insert(Account("b", "x", 1))))
    await asyncio.sleep(0)
    other.communicate()
    await asyncio.wait_for(later, DEADLINE_S)
    assert [a.id for a in await store.read(lambda r: r.find(Account))] == ["b"]


class FailingConnection:
    """A connection whose COMMIT fails as when the disk's write fails."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return self._connection.execute(sql, *args)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_after_a_failed_commit_nobody_is_told_of_success_and_the_process_ends(tmp_path: Path) -> None:
    store, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    await store.close()
    stopped = threading.Event()

    def fail_stop(reason: str) -> NoReturn:
        stopped.set()
        raise SystemExit(reason)

    connection: Any = FailingConnection(connect(store.path))
    loop = asyncio.get_running_loop()
    writer = Writer(connection, Statements(sqlite_dialect()), loop, lambda events: None, fail_stop=fail_stop)
    futures = [loop.create_future() for _ in range(3)]
    for i, future in enumerate(futures):
        writer.submit(Operation(large(i), OpClass.ACCEPT, future))
    assert await asyncio.to_thread(stopped.wait, DEADLINE_S)
    await asyncio.to_thread(writer.close)
    assert not any(future.done() for future in futures)
    connection.close()


async def test_failing_to_stop_is_not_possible(tmp_path: Path) -> None:
    code = (
        "from fal_backend.adapters.store.writer import end_process\n"
        "import atexit; atexit.register(lambda: print('cleaned up'))\n"
        "end_process('test')\n"
    )
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env={"PYTHONPATH": "backend:."},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == FAIL_STOP_CODE
    assert "cleaned up" not in finished.stdout


async def test_an_operation_with_a_wrong_statement_fails_alone(store: SqliteStore) -> None:
    def wrong(tx: Any) -> None:
        tx._connection.execute("SELECT * FROM nothing")

    def good(tx: Tx) -> int:
        return 1

    outcomes = await asyncio.gather(
        store.write(good), store.write(wrong), store.write(good), return_exceptions=True
    )
    assert outcomes[0] == outcomes[2] == 1
    assert isinstance(outcomes[1], sqlite3.OperationalError)


async def test_writes_after_close_are_refused(tmp_path: Path) -> None:
    store, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    await store.close()
    with pytest.raises(BackendError, match="stopping"):
        await store.write(lambda tx: None)
