"""The shelf: whole or not there, whatever ends a stream."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.adapters.shelf_fs import FileShelf
from fal_backend.ports import Shelf

from fal_notebook.errors import LimitError, NotFoundError
from fal_notebook.places import Places

UPLOAD = "0" * 32


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return FileShelf(Places(tmp_path))


def entries(tmp_path: Path, folder: str) -> list[str]:
    return sorted(p.name for p in (tmp_path / "files" / folder).rglob("*") if p.is_file())


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def freely(count: int) -> None: ...


async def whole(shelf: Shelf, sha256: str, start: int = 0, length: int = 1 << 40) -> bytes:
    return b"".join([block async for block in shelf.read(sha256, start, length)])


async def test_what_came_is_read_back_in_any_part(shelf: Shelf, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    counted: list[int] = []
    arrived = await shelf.receive(stream(data[:10], data[10:2_000_000], data[2_000_000:]), counted.append)
    assert (arrived.sha256, arrived.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert sum(counted) == len(data)
    await shelf.keep(arrived)
    assert await whole(shelf, arrived.sha256) == data
    assert await whole(shelf, arrived.sha256, 5, 1_000_000) == data[5:1_000_005]
    assert entries(tmp_path, "incoming") == []


async def test_equal_contents_are_kept_once(shelf: Shelf, tmp_path: Path) -> None:
    for _ in range(2):
        await shelf.keep(await shelf.receive(stream(b"same"), freely))
    assert len(entries(tmp_path, "objects")) == 1
    assert entries(tmp_path, "incoming") == []


@pytest.mark.parametrize("reason", ["limit", "broken", "cancelled"])
async def test_a_stream_that_ends_early_leaves_nothing(shelf: Shelf, tmp_path: Path, reason: str) -> None:
    stuck = asyncio.Event()

    async def early() -> AsyncIterator[bytes]:
        yield bytes(2_000_000)
        if reason == "broken":
            raise ConnectionResetError
        stuck.set()
        if reason == "cancelled":
            await asyncio.Event().wait()
        yield bytes(2_000_000)

    def grow(count: int) -> None:
        if reason == "limit" and stuck.is_set():
            raise LimitError("enough", code="limit.quota")

    task = asyncio.ensure_future(shelf.receive(early(), grow))
    if reason == "cancelled":
        await stuck.wait()
        task.cancel()
    with pytest.raises((LimitError, ConnectionResetError, asyncio.CancelledError)):
        await task
    assert entries(tmp_path, "incoming") == []


async def test_parts_are_joined_in_the_named_order_and_replaced(shelf: Shelf, tmp_path: Path) -> None:
    for number, text in ((2, b"world"), (1, b"HELLO "), (1, b"hello ")):
        before = await shelf.keep_part(UPLOAD, number, await shelf.receive(stream(text), freely))
    assert before == 6
    there = shelf.parts(UPLOAD)
    assert {number: size for number, (_, size) in there.items()} == {1: 6, 2: 5}
    arrived = await shelf.join(UPLOAD, [(n, there[n][0]) for n in (1, 2)])
    await shelf.keep(arrived)
    assert await whole(shelf, arrived.sha256) == b"hello world"
    await shelf.drop_parts(UPLOAD)
    assert shelf.parts(UPLOAD) == {}
    with pytest.raises(NotFoundError):
        await shelf.join(UPLOAD, [(1, there[1][0])])
    assert entries(tmp_path, "incoming") == []


async def test_a_reader_reads_on_when_the_content_is_removed(shelf: Shelf) -> None:
    arrived = await shelf.receive(stream(bytes(1_000_000)), freely)
    await shelf.keep(arrived)
    blocks = shelf.read(arrived.sha256, 0, 1_000_000)
    size = len(await anext(blocks))
    await shelf.remove(arrived.sha256)
    await shelf.remove(arrived.sha256)
    async for block in blocks:
        size += len(block)
    assert size == 1_000_000
    with pytest.raises(NotFoundError):
        await whole(shelf, arrived.sha256)


async def test_clear_keeps_what_is_named(shelf: Shelf, tmp_path: Path) -> None:
    kept, other, half = [await shelf.receive(stream(text), freely) for text in (b"a", b"b", b"c")]
    await shelf.keep(kept)
    await shelf.keep(other)
    await shelf.keep_part(UPLOAD, 1, await shelf.receive(stream(b"p"), freely))
    await shelf.keep_part("1" * 32, 1, await shelf.receive(stream(b"p"), freely))
    assert half.path.exists()
    assert await shelf.clear({kept.sha256}, {UPLOAD}) == 3
    assert entries(tmp_path, "objects") == [kept.sha256]
    assert entries(tmp_path, "incoming") == []
    assert shelf.parts(UPLOAD)
    assert not shelf.parts("1" * 32)


@pytest.mark.parametrize("name", ["..", "../x", "", "a/b", "A" * 64, "0" * 31])
async def test_names_that_are_no_hashes_lead_nowhere(shelf: Shelf, name: str) -> None:
    with pytest.raises(NotFoundError):
        shelf.parts(name)
    with pytest.raises(NotFoundError):
        await whole(shelf, name)
