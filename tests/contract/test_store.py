"""What every store does; run on each adapter there is (SQLite)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fal_backend.adapters.bus import EventBus
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.records import Account, Alias, Bundle, Runner, Session
from fal_backend.ports import Conflict, OpClass, Reader, Tx

from fal_notebook.places import Places


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[SqliteStore, EventBus]]:
    store, bus = open_store(Places(tmp_path / "home"), asyncio.get_running_loop())
    yield store, bus
    await store.close()


@pytest.fixture
def store(opened: tuple[SqliteStore, EventBus]) -> SqliteStore:
    return opened[0]


@pytest.fixture
def bus(opened: tuple[SqliteStore, EventBus]) -> EventBus:
    return opened[1]


def account(id: str = "a-1", nickname: str = "ada") -> Account:
    return Account(id=id, nickname=nickname, created_at=1)


def runner(id: str, phase: str = "ready", **more: Any) -> Runner:
    base = Runner(
        id=id,
        account="a-1",
        app="digits",
        revision="rev-1",
        node="local",
        epoch=1,
        phase=phase,
        machine_type="S",
        created_at=1,
        deadline=2,
    )
    return replace(base, **more)


def add(record: Any, tx: Tx) -> None:
    tx.insert(record)


def get(record: Any, reader: Reader) -> Any:
    return reader.get(type(record), record.id)


async def test_what_was_inserted_is_read_back_equal(store: SqliteStore) -> None:
    records: list[Any] = [
        account(),
        runner("r-1", pid=7, reason="idle"),
        Bundle(id="b", account="a-1", payload_sha256="00", manifest_json='{"ä":1}', created_at=3),
        Session(id="s", account="a-1", kind="kernel", label="x.ipynb", pid=None, start_time=0, created_at=4),
    ]

    def insert(tx: Tx) -> None:
        for record in records:
            tx.insert(record)

    await store.write(insert)
    for record in records:
        assert await store.read(partial(get, record)) == record


async def test_an_unknown_id_is_none(store: SqliteStore) -> None:
    assert await store.read(lambda r: r.get(Account, "nobody")) is None


async def test_insert_of_a_taken_id_conflicts_and_put_leaves_the_first(store: SqliteStore) -> None:
    await store.write(lambda tx: tx.insert(account()))
    with pytest.raises(Conflict):
        await store.write(lambda tx: tx.insert(account(nickname="eve")))
    await store.write(lambda tx: tx.put(account(nickname="eve")))
    found = await store.read(lambda r: r.get(Account, "a-1"))
    assert found is not None
    assert found.nickname == "ada"


async def test_update_raises_the_version_and_a_stale_one_conflicts(store: SqliteStore) -> None:
    first = account()
    await store.write(lambda tx: tx.insert(first))
    second = await store.write(lambda tx: tx.update(replace(first, nickname="bea")))
    assert second == replace(first, nickname="bea", version=1)
    assert await store.read(lambda r: r.get(Account, "a-1")) == second
    with pytest.raises(Conflict):
        await store.write(lambda tx: tx.update(replace(first, nickname="eve")))


async def test_update_of_an_immutable_record_is_a_type_error(store: SqliteStore) -> None:
    bundle = Bundle(id="b", account="a-1", payload_sha256="00", manifest_json="{}", created_at=3)
    await store.write(lambda tx: tx.insert(bundle))
    with pytest.raises(TypeError, match="never changes"):
        await store.write(lambda tx: tx.update(bundle))


async def test_find_compares_columns_and_none_means_null(store: SqliteStore) -> None:
    def insert(tx: Tx) -> None:
        for i, phase in enumerate(["ready", "gone", "ready"]):
            tx.insert(runner(f"r-{i}", phase, created_at=10 - i))
        tx.insert(Session("s1", "a-1", "kernel", "", 1, 1, 1))
        tx.insert(Session("s2", "a-1", "kernel", "", 1, 1, 2, ended_at=9))

    await store.write(insert)
    ready = await store.read(lambda r: r.find(Runner, app="digits", phase="ready"))
    assert [found.id for found in ready] == ["r-2", "r-0"], "oldest first"
    assert [s.id for s in await store.read(lambda r: r.find(Session, ended_at=None))] == ["s1"]
    assert [s.id for s in await store.read(lambda r: r.find(Session, ended_at=9))] == ["s2"]
    assert len(await store.read(lambda r: r.find(Runner))) == 3


async def test_find_without_an_index_says_which_there_are(store: SqliteStore) -> None:
    with pytest.raises(TypeError, match=r"Alias has no index for auth; there is: account\+name, account"):
        await store.read(lambda r: r.find(Alias, auth="public"))


async def test_delete_is_idempotent(store: SqliteStore) -> None:
    await store.write(lambda tx: tx.insert(account()))
    for _ in range(2):
        await store.write(lambda tx: tx.delete(Account, "a-1"))
    assert await store.read(lambda r: r.find(Account)) == []


async def test_an_operation_reads_its_own_writes(store: SqliteStore) -> None:
    def insert_and_look(tx: Tx) -> Account | None:
        tx.insert(account())
        return tx.get(Account, "a-1")

    assert await store.write(insert_and_look) == account()


async def test_a_failing_operation_writes_nothing_and_does_not_sink_its_neighbours(
    store: SqliteStore,
) -> None:
    def good(i: int) -> Any:
        def insert(tx: Tx) -> int:
            tx.insert(account(f"a-{i}"))
            tx.emit(f"account/{i}", "account.made", {"i": i})
            return i

        return insert

    def bad(tx: Tx) -> None:
        tx.insert(account("a-bad"))
        tx.emit("account/bad", "account.made", {})
        raise ValueError("no")

    outcomes = await asyncio.gather(
        *(store.write(bad if i % 7 == 3 else good(i)) for i in range(100)), return_exceptions=True
    )
    for i, outcome in enumerate(outcomes):
        assert (isinstance(outcome, ValueError)) if i % 7 == 3 else outcome == i
    kept = {a.id for a in await store.read(lambda r: r.find(Account))}
    assert kept == {f"a-{i}" for i in range(100) if i % 7 != 3}
    events = await store.read(lambda r: r.events(0, 1000))
    assert [event.n for event in events] == list(range(1, len(kept) + 1))
    assert "account/bad" not in {event.subject for event in events}


async def test_every_class_of_operation_is_run(store: SqliteStore) -> None:
    for klass in OpClass:
        assert await store.write(lambda tx: 5, klass) == 5


async def test_a_cancelled_caller_does_not_disturb_the_writer(store: SqliteStore) -> None:
    tasks = [asyncio.ensure_future(store.write(partial(add, account(f"a-{i}")))) for i in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await store.write(lambda tx: 1) == 1


async def test_events_are_gapless_and_in_commit_order(store: SqliteStore, bus: EventBus) -> None:
    def emit(i: int) -> Any:
        def op(tx: Tx) -> None:
            for k in range(3):
                tx.emit(f"app/{i}", "x", {"i": i, "k": k}, app="even" if i % 2 == 0 else "odd")

        return op

    await asyncio.gather(*(store.write(emit(i)) for i in range(200)))
    events = await store.read(lambda r: r.events(0, 10_000))
    assert [event.n for event in events] == list(range(1, 601))
    assert bus.last == 600
    assert await store.read(lambda r: r.last_event()) == 600
    odd = await store.read(lambda r: r.events(0, 10_000, app="odd"))
    assert len(odd) == 300
    assert len(await store.read(lambda r: r.events(300, 10_000, app="odd", subject=odd[-1].subject))) <= 3
    assert [e.n for e in await store.read(lambda r: r.events(10, 2))] == [11, 12]


async def test_a_writer_finds_its_events_on_the_bus(store: SqliteStore, bus: EventBus) -> None:
    await store.write(lambda tx: tx.emit("app/x", "x", {}))
    assert bus.last == 1


async def test_a_read_is_of_one_moment(store: SqliteStore) -> None:
    loop = asyncio.get_running_loop()

    def look_twice(reader: Reader) -> tuple[int, int]:
        before = reader.last_event()
        asyncio.run_coroutine_threadsafe(store.write(lambda tx: tx.emit("a", "b", {})), loop).result(10)
        return before, reader.last_event()

    assert await store.read(look_twice) == (0, 0)
    assert await store.read(lambda r: r.last_event()) == 1


async def test_a_read_cannot_write(store: SqliteStore) -> None:
    with pytest.raises(AttributeError):
        await store.read(lambda r: r.insert(account()))  # type: ignore[attr-defined]


async def test_close_finishes_what_was_asked_and_refuses_more(tmp_path: Path) -> None:
    places = Places(tmp_path / "h")
    store, _ = open_store(places, asyncio.get_running_loop())
    writes = [asyncio.ensure_future(store.write(partial(add, account(f"a-{i}")))) for i in range(50)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    again, _ = open_store(places, asyncio.get_running_loop())
    assert len(await again.read(lambda r: r.find(Account))) == 50
    assert again.leader == store.leader + 1
    await again.close()
