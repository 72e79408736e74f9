"""Large bodies of queued requests and answers: `store/payloads/ab/<name>`, whole or not there.

Rules: written beside, synced, renamed and the folder synced before a row may name it; each file belongs to one
request, so that it goes when its request goes; what no row names after an hour was left by a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from fal_backend.adapters.blobs_fs import write_stream
from fal_backend.adapters.durable import settle, told_of_a_full_disk
from fal_backend.ports import Payload
from fal_notebook.places import Places

__all__ = ["PayloadFolder"]

_NAME = re.compile(r"[0-9a-f]{32}")
_LEFT_S = 3600.0


class PayloadFolder:
    """See `ports.Payloads`."""

    def __init__(self, places: Places) -> None:
        self._folder = places.store / "payloads"

    def path(self, name: str) -> Path:
        """Return where a payload lies. Raises: ValueError for what is no name of ours."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a payload's name: {name[:80]!r}")
        return self._folder / name[:2] / name

    async def save(self, chunks: AsyncIterator[bytes], limit: int) -> Payload:
        """Write a stream to a new file; it is on the disk when this returns.

        Raises: LimitError `limit.blob_size` over `limit` bytes, `limit.disk_full`.
        """
        name = secrets.token_hex(16)
        target = self.path(name)
        temporary = target.with_name(f".{name}")
        try:
            with told_of_a_full_disk("The body"):
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with temporary.open("wb") as file:
                    os.fchmod(file.fileno(), 0o600)
                    size, sha256 = await write_stream(file, chunks, limit)
                    await asyncio.to_thread(settle, file, temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return Payload(name, size, sha256)

    async def drop(self, names: Sequence[str]) -> None:
        """Remove files; missing ones are ignored."""
        if names:
            await asyncio.to_thread(self._drop, names)

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            # A dot before it: it was never finished.
            path = self.path(name.removeprefix("."))
            path.with_name(name).unlink(missing_ok=True)

    async def old(self, shelf: int) -> list[str]:
        """Return the files in one of the 256 folders that were written over an hour ago."""
        return await asyncio.to_thread(self._old, self._folder / f"{shelf:02x}")

    def _old(self, folder: Path) -> list[str]:
        before = time.time() - _LEFT_S
        found: list[str] = []
        for file in folder.glob("*") if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # its request has gone meanwhile
                if file.stat().st_mtime < before:
                    found.append(file.name)
        return found
