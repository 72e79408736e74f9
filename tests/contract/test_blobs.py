"""Content-addressed files: whole or not there."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.adapters.blobs_fs import BlobFolder

from fal_notebook.errors import BundleError, LimitError
from fal_notebook.places import Places

CONTENT = random.Random(1).randbytes(3_000_000)
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


@pytest.fixture
def blobs(places: Places) -> BlobFolder:
    return BlobFolder(places)


async def stream(content: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for i in range(0, len(content), size):
        yield content[i : i + size]


def files(places: Places) -> list[Path]:
    return [path for path in places.blobs.rglob("*") if path.is_file()]


async def test_a_stream_is_stored_under_its_hash(blobs: BlobFolder, places: Places) -> None:
    assert not blobs.has(NAME)
    assert await blobs.put(NAME, stream(CONTENT), 10_000_000) == len(CONTENT)
    assert blobs.has(NAME)
    assert blobs.path(NAME).read_bytes() == CONTENT
    assert blobs.path(NAME) == places.blobs / NAME[:2] / NAME
    assert files(places) == [blobs.path(NAME)]


async def test_an_empty_blob_is_a_blob(blobs: BlobFolder) -> None:
    name = hashlib.sha256(b"").hexdigest()
    assert await blobs.put(name, stream(b""), 10) == 0
    assert blobs.path(name).read_bytes() == b""


async def test_content_that_does_not_match_is_refused_and_leaves_nothing(
    blobs: BlobFolder, places: Places
) -> None:
    with pytest.raises(BundleError) as caught:
        await blobs.put(NAME, stream(CONTENT[:-1]), 10_000_000)
    assert caught.value.code == "bundle.hash_mismatch"
    assert files(places) == []


async def test_too_much_is_refused_and_leaves_nothing(blobs: BlobFolder, places: Places) -> None:
    with pytest.raises(LimitError) as caught:
        await blobs.put(NAME, stream(CONTENT), len(CONTENT) - 1)
    assert caught.value.code == "limit.blob_size"
    assert files(places) == []


async def test_a_broken_upload_leaves_nothing(blobs: BlobFolder, places: Places) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT[:2_000_000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(NAME, broken(), 10_000_000)
    assert files(places) == []


async def test_a_full_disk_is_a_limit_and_leaves_nothing(blobs: BlobFolder, places: Places) -> None:
    async def full() -> AsyncIterator[bytes]:
        yield CONTENT
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LimitError) as caught:
        await blobs.put(NAME, full(), 10_000_000)
    assert caught.value.code == "limit.disk_full"
    assert files(places) == []


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "A" * 64, NAME[:-1], NAME + "0"])
def test_a_name_that_is_no_hash_is_refused(blobs: BlobFolder, name: str) -> None:
    with pytest.raises(BundleError):
        blobs.path(name)


async def test_two_uploads_of_one_blob_at_once_both_succeed(blobs: BlobFolder, places: Places) -> None:
    await asyncio.gather(*(blobs.put(NAME, stream(CONTENT), 10_000_000) for _ in range(4)))
    assert files(places) == [blobs.path(NAME)]
