"""Which parts of bundles go from the disk, on a real store and real files."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fal_backend.adapters.blobs_fs import BlobFolder
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.records import Bundle, Revision
from fal_backend.services.bundles import YOUNG_S, BundleSweep, keep

from fal_notebook.places import Places
from fal_notebook.wire import BundleManifest

OLD_S = YOUNG_S + 60


@dataclass
class Shop:
    """A store, its blobs and who sweeps them."""

    store: SqliteStore
    blobs: BlobFolder
    sweep: BundleSweep

    async def upload(self, text: str) -> str:
        name = hashlib.sha256(text.encode()).hexdigest()

        async def content() -> AsyncIterator[bytes]:
            yield text.encode()

        await self.blobs.put(name, content(), 1_000_000)
        return name

    async def bundle(self, id: str, *parts: str) -> list[str]:
        """Store a bundle of these parts and return their names."""
        names = [await self.upload(part) for part in parts]
        manifest = BundleManifest(
            identity=id, payload_sha256=names[0], payload_bytes=1, buffers=names[1:], python_version="3.11"
        )
        await self.store.write(lambda tx: keep(tx, id, "ada", manifest))
        return names

    async def revise(self, id: str, bundle: str) -> None:
        row = Revision(id, "ada", "app", bundle, "image", "{}", 1, "good")
        await self.store.write(lambda tx: tx.insert(row))

    async def age(self, *names: str) -> None:
        """Make parts, and all bundles, older than what is young."""
        for name in names:
            os.utime(self.blobs.path(name), (time.time() - OLD_S,) * 2)

        def age(tx: object) -> None:
            for row in tx.find(Bundle):  # type: ignore[attr-defined]
                tx.delete(Bundle, row.id)  # type: ignore[attr-defined]
                tx.insert(replace(row, created_at=row.created_at - int(OLD_S * 1e6)))  # type: ignore[attr-defined]

        await self.store.write(age)

    async def bundles(self) -> set[str]:
        return {row.id for row in await self.store.read(lambda reader: reader.find(Bundle))}


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    places = Places(tmp_path / "home")
    store, _ = open_store(places, asyncio.get_running_loop())
    blobs = BlobFolder(places)
    yield Shop(store, blobs, BundleSweep(store, blobs))
    await store.close()


async def test_only_parts_that_no_revision_has_go(shop: Shop) -> None:
    one = await shop.bundle("aa1", "own", "shared")
    two = await shop.bundle("bb2", "other", "shared")
    await shop.revise("0f", "bb2")
    lost = await shop.upload("nobody's")
    await shop.age(*one, *two, lost)
    assert set(await shop.sweep.sweep()) == {one[0], lost}
    assert await shop.bundles() == {"bb2"}
    assert all(shop.blobs.path(name).is_file() for name in two)
    assert await shop.sweep.sweep() == []


async def test_what_is_young_or_was_asked_for_stays(shop: Shop) -> None:
    young = await shop.upload("young")
    asked = await shop.upload("asked for")
    await shop.age(asked)
    assert shop.blobs.has(asked)
    assert await shop.sweep.sweep() == []
    assert shop.blobs.has(young)


async def test_a_bundle_that_is_deployed_again_keeps_what_was_first_stored(shop: Shop) -> None:
    first = await shop.bundle("aa1", "first pickle")
    await shop.age(*first)
    second = await shop.bundle("aa1", "second pickle")
    os.utime(shop.blobs.path(second[0]), (time.time() - OLD_S,) * 2)
    assert await shop.sweep.sweep() == second, "the first one is what the bundle is made of"
    assert await shop.bundles() == {"aa1"}


async def test_a_part_that_becomes_young_while_it_is_judged_stays(shop: Shop) -> None:
    names = await shop.bundle("aa1", "payload")
    await shop.age(*names)
    sweeping = asyncio.ensure_future(shop.sweep.sweep())
    await asyncio.sleep(0)
    await shop.bundle("aa1", "payload")
    assert shop.blobs.has(names[0])
    await shop.revise("0f", "aa1")
    await sweeping
    assert shop.blobs.path(names[0]).is_file()
    assert await shop.bundles() == {"aa1"}


async def test_what_a_broken_upload_left_goes(shop: Shop) -> None:
    name = await shop.upload("whole")
    left = shop.blobs.path(name).with_name(f".{name}.0a0b")
    left.write_bytes(b"part")
    os.utime(left, (time.time() - OLD_S,) * 2)
    assert await shop.sweep.sweep() == [left.name]
    assert shop.blobs.has(name)
