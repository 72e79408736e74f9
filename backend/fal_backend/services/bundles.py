"""Bundles of revisions: a bundle and its parts are kept while a revision has it, and go some time after the last one.

Rules: what was uploaded, asked for or deployed in the last hour stays, since somebody may be about to name it. A bundle
that is deployed again becomes young in the transaction that says so, before its revision is made; whether a part is
young is looked at last, on the loop's thread, where it is also said that a part is there. So nothing goes that a
deployment counts on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace

import structlog

from fal_backend.domain.records import Bundle, Revision
from fal_backend.ports import Blobs, Reader, Store, Tx
from fal_notebook.errors import FalError
from fal_notebook.wire import BundleManifest

__all__ = ["BundleSweep", "keep"]

log = structlog.get_logger()

YOUNG_S = 3600.0
_FIRST_S = 600.0
_EVERY_S = 6 * 3600.0
_ALL = 1_000_000
_PREFIXES = [f"{number:02x}" for number in range(256)]
"""With which ids begin: what there is, is read in small parts."""


def keep(tx: Tx, id: str, account: str, manifest: BundleManifest) -> None:
    """Store a bundle; of one that is there what was first stored is kept, and it is young again."""
    now, known = time.time_ns() // 1000, tx.get(Bundle, id)
    if known is None:
        tx.insert(Bundle(id, account, manifest.payload_sha256, manifest.model_dump_json(), now))
        return
    tx.delete(Bundle, id)
    tx.insert(replace(known, created_at=now))


class BundleSweep:
    """See the module."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """A revision was removed: look soon."""
        self._bell.set()

    async def run(self) -> None:
        """Sweep when revisions were removed, some minutes after the start, and a few times a day, until cancelled."""
        pause_s = _FIRST_S
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), pause_s)
            self._bell.clear()
            pause_s = _EVERY_S
            try:
                await self.sweep()
            except (FalError, OSError) as error:
                # The next round comes.
                log.warning("bundle.sweep_failed", error=repr(error))

    async def sweep(self) -> list[str]:
        """Remove what no revision needs any more and return the parts that went."""
        old = await self._blobs.old(YOUNG_S)
        if not old:
            return []
        named = await self._named()
        gone = []
        for name in old:
            if name not in named and self._blobs.drop_old(name, YOUNG_S):
                gone.append(name)
            await asyncio.sleep(0)
        if gone:
            log.info("bundle.parts_removed", count=len(gone))
        return gone

    async def _named(self) -> set[str]:
        """Return the parts of all bundles that stay, and remove the others."""
        in_use: set[str] = set()
        for prefix in _PREFIXES:
            in_use |= await self._store.read(lambda reader: _bundles_in_use(reader, prefix))  # noqa: B023
        named: set[str] = set()
        for prefix in _PREFIXES:
            before = time.time_ns() // 1000 - int(YOUNG_S * 1e6)
            bundles = await self._store.read(lambda reader: dict(_parts(reader, prefix)))  # noqa: B023
            doomed = [id for id in bundles if id not in in_use]
            if doomed:
                left = await self._store.write(lambda tx: _remove(tx, doomed, before))  # noqa: B023
                for id in set(doomed) - left:
                    del bundles[id]
            named.update(*bundles.values())
        return named


def _bundles_in_use(reader: Reader, prefix: str) -> set[str]:
    return {row.bundle for row in reader.starting(Revision, prefix, _ALL)}


def _parts(reader: Reader, prefix: str) -> Iterator[tuple[str, set[str]]]:
    """Yield (bundle, its parts)."""
    for row in reader.starting(Bundle, prefix, _ALL):
        yield row.id, {row.payload_sha256, *json.loads(row.manifest_json).get("buffers", ())}


def _remove(tx: Tx, ids: list[str], before: int) -> set[str]:
    """Remove these bundles and return those that stay, because they have become young."""
    stay: set[str] = set()
    for id in ids:
        row = tx.get(Bundle, id)
        if row is not None and row.created_at < before:
            tx.delete(Bundle, id)
        elif row is not None:
            stay.add(id)
    return stay
