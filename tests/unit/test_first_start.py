"""Account, key and secret of a home."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.adapters.store.first_start import ensure_account, nickname_of
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.records import ApiKey

from fal_notebook.errors import BackendError
from fal_notebook.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture
async def store(places: Places) -> AsyncIterator[SqliteStore]:
    store, _ = open_store(places, asyncio.get_running_loop())
    yield store
    await store.close()


async def keys(store: SqliteStore) -> list[ApiKey]:
    return await store.read(lambda r: r.find(ApiKey, account="local"))


async def test_the_first_start_makes_account_key_and_secret_for_this_user_alone(
    store: SqliteStore, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "Ada.Lovelace")
    account = await ensure_account(store, places)
    assert account.nickname == "ada-lovelace"
    record = json.loads(places.local_key.read_text())
    (key,) = await keys(store)
    assert record["owner"] == account.nickname
    assert record["key_id"] == key.id
    assert key.id.startswith("fk_")
    assert key.scope == "ADMIN"
    assert len(record["key_secret"]) == 64
    assert key.secret_sha256 == hashlib.sha256(record["key_secret"].encode()).hexdigest()
    assert stat.S_IMODE(places.keys.stat().st_mode) == 0o700
    for path in (places.local_key, places.instance_secret):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(places.instance_secret.read_bytes()) == 32


async def test_a_second_start_changes_nothing(store: SqliteStore, places: Places) -> None:
    first = await ensure_account(store, places)
    before = places.local_key.read_bytes(), places.instance_secret.read_bytes(), await keys(store)
    assert await ensure_account(store, places) == first
    assert (places.local_key.read_bytes(), places.instance_secret.read_bytes(), await keys(store)) == before


async def test_a_lost_key_file_is_replaced_and_the_old_key_revoked(
    store: SqliteStore, places: Places
) -> None:
    await ensure_account(store, places)
    old = json.loads(places.local_key.read_text())["key_id"]
    places.local_key.unlink()
    await ensure_account(store, places)
    new = json.loads(places.local_key.read_text())["key_id"]
    revoked = {key.id: key.revoked_at is not None for key in await keys(store)}
    assert revoked == {old: True, new: False}


@pytest.mark.parametrize("name", ["", "local.json", "instance.secret"])
async def test_keys_that_others_can_read_are_refused(store: SqliteStore, places: Places, name: str) -> None:
    await ensure_account(store, places)
    (places.keys / name).chmod(0o750 if not name else 0o644)
    with pytest.raises(BackendError) as caught:
        await ensure_account(store, places)
    assert caught.value.code == "backend.keys_exposed"


@pytest.mark.parametrize(
    ("user", "nickname"),
    [("root", "root"), ("Ada", "ada"), ("a.b_c", "a-b-c"), ("j\u00f6rg", "j-rg"), ("__", "user")],
)
def test_nicknames_fit_into_urls(user: str, nickname: str) -> None:
    assert nickname_of(user) == nickname
