"""Webhooks' rows: what is due, pages, retention; run on each adapter there is (SQLite)."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.schema import definitions
from fal_backend.adapters.store.statements import Statements, sqlite_dialect
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.records import Request, Webhook, WebhookState
from fal_backend.domain.webhook import Tried, hook_of, hook_step
from fal_backend.ports import Tx

from fal_notebook.places import Places


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened, _ = open_store(Places(tmp_path / "home"), asyncio.get_running_loop())
    yield opened
    await opened.close()


def done(number: int, app: str = "me/sketch") -> Request:
    return Request(
        id=number,
        request_id=f"id-{number}",
        account="a",
        app=app,
        method="POST",
        path="/",
        headers_json="[]",
        lane="normal",
        state="done",
        submitted_at=1,
        webhook="https://hook.example/",
        status_code=200,
        ended_at=1000 - number,
    )


def hook(number: int, app: str = "me/sketch") -> Webhook:
    made = hook_of(done(number, app))
    assert made is not None
    return made


async def test_what_is_due_comes_earliest_first_and_without_what_has_ended(store: SqliteStore) -> None:
    def fill(tx: Tx) -> None:
        for number in (1, 2, 3):
            tx.put(hook(number))
        tx.put(hook(3))
        tx.update(hook_step(hook(2), Tried(200), 5, 0.5))

    await store.write(fill)
    live = await store.read(lambda reader: list(reader.webhooks.live()))
    assert [(one.id, one.due_at) for one in live] == [("id-3", 997), ("id-1", 999)]


async def test_a_page_has_the_newest_and_obeys_its_filters(store: SqliteStore) -> None:
    def fill(tx: Tx) -> None:
        tx.put(hook(1))
        tx.put(hook(2, "me/other"))
        tx.put(replace(hook(3), account="b"))
        tx.update(hook_step(hook(2, "me/other"), Tried(error="no", is_final=True), 5, 0.5))

    await store.write(fill)

    async def ids(account: str = "a", limit: int = 9, **where: str) -> list[str]:
        found = await store.read(lambda reader: reader.webhooks.page(account, limit, **where))
        return [one.id for one in found]

    assert await ids() == ["id-1", "id-2"]
    assert await ids(limit=1) == ["id-1"]
    assert await ids(app="other") == ["id-2"]
    assert await ids(state=WebhookState.DEAD) == ["id-2"]
    assert await ids(app="sketch", state=WebhookState.DEAD) == []
    assert await ids("b") == ["id-3"]


async def test_a_request_is_kept_until_word_of_it_is_delivered(store: SqliteStore) -> None:
    def fill(tx: Tx) -> None:
        for number in (1, 2):
            tx.insert(done(number))
        tx.put(hook(1))

    await store.write(fill)
    assert [one.id for one in await store.read(lambda r: r.requests.old(5000, 9))] == [2]
    await store.write(lambda tx: tx.update(hook_step(hook(1), Tried(200), 5, 0.5)))
    assert [one.id for one in await store.read(lambda r: r.requests.old(5000, 9))] == [2, 1]


async def test_only_what_ended_long_ago_is_removed_in_steps(store: SqliteStore) -> None:
    def fill(tx: Tx) -> None:
        for number in (1, 2, 3):
            tx.put(hook(number))
        for number in (1, 2):
            tx.update(hook_step(hook(number), Tried(200), number * 10, 0.5))

    await store.write(fill)
    assert await store.write(lambda tx: tx.webhooks.trim(15, 9)) == 1
    assert await store.write(lambda tx: tx.webhooks.trim(5000, 1)) == 1
    assert await store.write(lambda tx: tx.webhooks.trim(5000, 9)) == 0
    assert await store.read(lambda r: r.get(Webhook, "id-3")) == hook(3)


def test_each_question_is_answered_by_an_index() -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        for definition in definitions(sqlite_dialect()):
            db.execute(definition)
        for name, statement in Statements(sqlite_dialect()).webhooks.all():
            plan = " ".join(
                row[3]
                for row in db.execute(
                    f"EXPLAIN QUERY PLAN {statement.sql}",
                    statement.bind(dict.fromkeys(("account_", "app_", "state_", "limit_", "ended_at_"), 1)),
                )
            )
            assert "INDEX" in plan, (name, plan)
            assert "TEMP B-TREE FOR ORDER BY" not in plan or "LAST TERM" in plan, (name, plan)
