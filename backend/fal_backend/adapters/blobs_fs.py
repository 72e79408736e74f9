"""Content-addressed files: `blobs/ab/<sha256>`, whole or not there, and never changed.

Rules: written beside, synced, renamed, and the folder synced, before anybody may name it in a row; the
stream goes to the disk as it comes, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fal_backend.adapters.durable import settle, told_of_a_full_disk
from fal_notebook.errors import BundleError, LimitError
from fal_notebook.places import Places

__all__ = ["BlobFolder", "write_stream"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BATCH = 1 << 20


class BlobFolder:
    """See `ports.Blobs`."""

    def __init__(self, places: Places) -> None:
        self._folder = places.blobs

    @property
    def folder(self) -> Path:
        """Where they all lie."""
        return self._folder

    def has(self, sha256: str) -> bool:
        """Return whether the blob is there; one that is asked for is young again."""
        try:
            os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        return True

    def path(self, sha256: str) -> Path:
        """Return where the blob is, or would be.

        Raises: BundleError when this is not a sha256 in hex.
        """
        if not _SHA256.fullmatch(sha256):
            raise BundleError(f'"{sha256[:80]}" is not a sha256.', code="bundle.bad_hash")
        return self._folder / sha256[:2] / sha256

    async def old(self, age_s: float) -> list[str]:
        """Return the blobs, and what uploads left unfinished, that nobody wrote or asked for since."""
        return await asyncio.to_thread(self._old, time.time() - age_s)

    def _old(self, before: float) -> list[str]:
        found: list[str] = []
        for file in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):  # an upload that has ended meanwhile
                if file.stat().st_mtime < before:
                    found.append(file.name)
        return found

    def drop_old(self, name: str, age_s: float) -> bool:
        """Remove one of them unless it has become young, and return whether it went."""
        # A dot before it: it was never finished.
        path = self._folder / name.removeprefix(".")[:2] / name
        try:
            if path.stat().st_mtime >= time.time() - age_s:
                return False
            path.unlink()
        except FileNotFoundError:
            return False
        return True

    async def put(self, sha256: str, chunks: AsyncIterator[bytes], limit: int) -> int:
        """Store the stream under its hash and return its size; a blob that is there is left as it is.

        Raises: LimitError over `limit` bytes, or when the disk is full; BundleError when the hash does
        not match.
        """
        target = self.path(sha256)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".{sha256}.{secrets.token_hex(4)}")
        try:
            with told_of_a_full_disk("The upload"), temporary.open("wb") as file:
                size, found = await write_stream(file, chunks, limit)
                if found != sha256:
                    raise BundleError(
                        f"The upload's content has sha256 {found}, not {sha256}.",
                        code="bundle.hash_mismatch",
                        fix="Try again; it was damaged on the way.",
                    )
                await asyncio.to_thread(settle, file, temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return size


async def write_stream(file: BinaryIO, chunks: AsyncIterator[bytes], limit: int) -> tuple[int, str]:
    """Write all chunks and return (size, sha256), a thread's hop for each megabyte.

    Raises: LimitError `limit.blob_size` over `limit` bytes.
    """
    digest = hashlib.sha256()
    size, batch, waiting = 0, list[bytes](), 0

    def write(parts: list[bytes]) -> None:
        for part in parts:
            digest.update(part)
            file.write(part)

    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise LimitError(
                f"The upload is larger than {limit / 1e6:.0f} MB.",
                code="limit.blob_size",
                fix="Load large data in setup(), from a file or a URL, instead of capturing it.",
            )
        batch.append(chunk)
        waiting += len(chunk)
        if waiting >= _BATCH:
            await asyncio.to_thread(write, batch)
            batch, waiting = [], 0
    await asyncio.to_thread(write, batch)
    return size, digest.hexdigest()
