"""The queue's statements do what the pure machine says, and change nothing where it says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain import queue as machine
from fal_backend.domain.queue import Outcome
from fal_backend.domain.records import Request
from fal_backend.ports import Tx
from fal_backend.services import queue_rows as rows

from fal_notebook.places import Places

OUTCOME = Outcome(200, None, None, "[]", rows.INLINE_REF)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store, _ = open_store(Places(tmp_path / "home"), asyncio.get_running_loop())
    yield store
    await store.close()


def row(id: int = 1, **more: object) -> Request:
    base = Request(
        id=id, request_id=f"id-{id}", account="a", app="ada/digits", method="POST", path="/", headers_json="[]",
        lane="normal", state="queued", submitted_at=5, input_ref="inline",
    )  # fmt: skip
    return replace(base, **more)  # type: ignore[arg-type]


async def get(store: SqliteStore, id: int = 1) -> Request:
    found = await store.read(lambda r: r.get(Request, id))
    assert found is not None
    return found


async def test_a_claim_is_the_machines_claim(store: SqliteStore) -> None:
    first = row(not_before=3)
    await store.write(lambda tx: tx.insert(first))
    got = await store.write(lambda tx: tx.requests.claim(1, "r-1", 100, 200))
    assert got == replace(machine.step(first, machine.Claim("r-1", 200), 100), version=1)
    assert await get(store) == got
    assert await store.write(lambda tx: tx.requests.claim(1, "r-2", 100, 200)) is None
    assert await get(store) == got


async def test_an_outcome_is_the_machines_and_is_written_once(store: SqliteStore) -> None:
    await store.write(lambda tx: tx.insert(row()))
    leased = await store.write(lambda tx: tx.requests.claim(1, "r-1", 100, 200))
    assert leased is not None
    assert not await store.write(lambda tx: tx.requests.finish(1, 2, OUTCOME, 300))
    assert not await store.write(lambda tx: tx.requests.finish(1, 0, OUTCOME, 300))
    assert await get(store) == leased
    assert await store.write(lambda tx: tx.requests.finish(1, 1, OUTCOME, 300))
    done = await get(store)
    assert done == replace(machine.step(leased, machine.Ended(1, OUTCOME), 300), version=2)
    assert not await store.write(lambda tx: tx.requests.finish(1, 1, Outcome(500), 400))
    assert await get(store) == done


async def test_what_is_accepted_is_read_back_equal(store: SqliteStore) -> None:
    full = row(
        3, caller="c", start_deadline=9, deadline_by_caller=1, no_retry=1, store_io=0, hint="h", webhook="w",
        idempotency="k", input_hash="x",
    )  # fmt: skip
    await store.write(lambda tx: rows.accept(tx, full, b"body"))
    assert await get(store, 3) == full
    assert await store.read(lambda r: r.requests.body(3)) == b"body"
    assert await store.read(lambda r: r.requests.by_idempotency("k")) == full


async def test_a_beat_moves_the_lease_of_the_present_try_only(store: SqliteStore) -> None:
    await store.write(lambda tx: tx.insert(row()))
    leased = await store.write(lambda tx: tx.requests.claim(1, "r-1", 100, 200))
    assert leased is not None
    await store.write(lambda tx: tx.requests.beat([(1, 1, 900), (1, 2, 5), (77, 1, 5)]))
    assert await get(store) == replace(machine.step(leased, machine.Beat(1, 900), 150), version=1 + 1)


async def test_what_a_row_is_told_of_in_the_same_transaction(store: SqliteStore) -> None:
    told: list[tuple[str, int | None]] = []

    def hook(tx: Tx, done: Request) -> None:
        told.append((done.request_id, done.status_code))

    await store.write(lambda tx: tx.insert(row(1)))
    await store.write(lambda tx: tx.insert(row(2)))
    claimed = await store.write(lambda tx: rows.claim(tx, 1, "r-1", 1000))
    assert claimed is not None
    assert await store.write(lambda tx: rows.finish(tx, claimed[0], OUTCOME, b"x", hook))
    await store.write(lambda tx: rows.apply(tx, 2, machine.Cancel(), hook=hook))
    assert told == [("id-1", 200), ("id-2", 499)]
    assert await store.read(lambda r: r.requests.body(1, answer=True)) == b"x"


async def test_live_rows_come_by_app_lane_and_number(store: SqliteStore) -> None:
    def insert(tx: Tx) -> None:
        for id, app, lane in [
            (3, "b/x", "low"),
            (4, "a/x", "normal"),
            (2, "b/x", "normal"),
            (1, "a/x", "normal"),
        ]:
            tx.insert(row(id, app=app, lane=lane))
        tx.insert(row(9, state="done", ended_at=4))

    await store.write(insert)
    live = await store.read(lambda r: list(r.requests.live()))
    assert [one.id for one in live] == [1, 4, 3, 2]
    assert await store.read(lambda r: r.requests.last_id()) == 9


async def test_old_requests_go_with_their_bodies_and_tries(store: SqliteStore) -> None:
    def insert(tx: Tx) -> None:
        for id in (1, 2, 3):
            ended = None if id == 3 else id * 100
            tx.insert(row(id, ended_at=ended, answer_ref="file:" + "a" * 32))
            tx.requests.put_body(id, b"in")

    await store.write(insert)
    assert await store.write(lambda tx: rows.trim(tx, 200, 10)) == [None, "a" * 32]
    assert await store.read(lambda r: r.get(Request, 1)) is None
    assert await store.read(lambda r: r.requests.body(1)) is None
    assert await store.read(lambda r: r.requests.body(2)) == b"in"
