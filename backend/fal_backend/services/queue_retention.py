"""How long requests are kept, and files that no request names: both go in small steps, beside everything else.

Rules: a request goes a day after its end, with its bodies; a file that was left by a crash goes an hour after it was
written. A full disk or a locked database puts it off, no more.
"""

from __future__ import annotations

import asyncio

import structlog

from fal_backend.ports import OpClass, Payloads, Reader, Store
from fal_backend.services import queue_rows as rows
from fal_notebook.errors import FalError

__all__ = ["KEEP_US", "Retention"]

log = structlog.get_logger()

KEEP_US = 24 * 3600 * 1_000_000
_STEP = 500
_EVERY_S = 600.0
_SHELVES = 16
"""Folders of files that are looked through each time; there are 256."""


class Retention:
    """See the module."""

    def __init__(self, store: Store, payloads: Payloads) -> None:
        self._store = store
        self._payloads = payloads
        self._shelf = 0

    async def run(self) -> None:
        """Remove what is old now and then, until cancelled."""
        while True:
            try:
                await self.trim()
                for _ in range(_SHELVES):
                    await self.sweep(self._shelf)
                    self._shelf = (self._shelf + 1) % 256
            except FalError as error:
                log.warning("queue.retention_put_off", code=error.code)
            await asyncio.sleep(_EVERY_S)

    async def trim(self, keep_us: int = KEEP_US) -> int:
        """Remove what ended long ago, in small steps, and return how many files went."""
        gone = 0
        while True:
            before = rows.now_us() - keep_us
            refs = await self._store.write(lambda tx: rows.trim(tx, before, _STEP), OpClass.LAZY)  # noqa: B023
            names = [ref for ref in refs if ref is not None]
            await self._payloads.drop(names)
            gone += len(names)
            if len(refs) < 2 * _STEP:
                return gone

    async def sweep(self, shelf: int) -> int:
        """Remove the old files of one folder (0 to 255) that no request names, and return how many went."""
        found, gone = await self._payloads.old(shelf), 0
        for at in range(0, len(found), _STEP):
            names = found[at : at + _STEP]

            def unnamed(reader: Reader, names: list[str] = names) -> list[str]:
                return [name for name in names if not reader.requests.names_file(rows.file_ref(name))]

            lost = await self._store.read(unnamed)
            await self._payloads.drop(lost)
            gone += len(lost)
        if gone:
            log.info("queue.left_files_removed", files=gone)
        return gone
