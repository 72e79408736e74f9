"""A zygote that is ready before anybody asks, so that the first cell of a kernel need not wait for one.

Rules: one image only, the one that was used last, and only while it is on the disk; its zygote is asked for when
the runners of before are adopted and when a session opens, and told as an event. When one that nobody used goes
again is the host's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from fal_backend.ports import Builder
from fal_backend.services.fleet import Fleet
from fal_backend.services.ledger import Draft
from fal_notebook.errors import FalError

__all__ = ["Warmth"]

log = structlog.get_logger()


class Warmth:
    """See the module."""

    def __init__(
        self, builder: Builder, fleet: Fleet, post: Callable[[Callable[[Draft], None]], None], owner: str
    ) -> None:
        """post: has an event written; owner: whose runners the zygote is for."""
        self._builder = builder
        self._fleet = fleet
        self._post = post
        self._owner = owner
        self._bell = asyncio.Event()

    def ring(self) -> None:
        """Somebody is about to need a runner."""
        self._bell.set()

    async def run(self, adopted: asyncio.Event) -> None:
        """Warm when the hosts are known, then each time somebody rings, until cancelled."""
        await adopted.wait()
        while True:
            hash = await asyncio.to_thread(self._builder.last_used)
            if hash is not None:
                await self._warm(hash)
            await self._bell.wait()
            self._bell.clear()

    async def _warm(self, hash: str) -> None:
        try:
            is_new = await self._fleet.warm_image(hash, self._owner)
        except (FalError, OSError) as error:
            # Nobody waits for it: whoever needs a runner next makes a zygote of his own.
            log.info("warmth.failed", image=hash, error=str(error))
            return
        if is_new:
            log.info("warmth.begun", image=hash)
            self._post(lambda draft: draft.emit(f"image/{hash}", "image.warming", {"hash": hash}))
