"""Takes images from the disk that nobody needs any more.

Rules: an image stays while an app that is there has a revision of it, so that going back needs no build, while a
deployment or a runner uses it, and for some days after its last use; a generation that was replaced goes when no
runner from before is left. What went is told as an event; the same requirements build it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog

from fal_backend.domain.records import Revision, Runner
from fal_backend.ports import Builder, ImageFolder, RunnerProvider, Store
from fal_backend.services.ledger import Draft, Ledger
from fal_notebook.errors import FalError, UsageError

__all__ = ["DAYS", "ImageSweep", "image_days"]

log = structlog.get_logger()

DAYS = "FAL_NB_IMAGE_DAYS"
"""Days without use after which an image may go; 0: never."""
_DAYS = 30.0
_DAY_S = 86_400.0
_EVERY_S = 6 * 3600.0
_FIRST_S = 600.0


def image_days(environ: Mapping[str, str]) -> float:
    """Return for how many days an image that nobody uses is kept. Raises: UsageError."""
    text = environ.get(DAYS)
    try:
        days = _DAYS if text is None else float(text)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise UsageError(f"{DAYS} is not a number of days: {text!r}.", fix="Write a number, 0 for ever.")
    return days


class ImageSweep:
    """See the module."""

    def __init__(
        self,
        *,
        builder: Builder,
        store: Store,
        ledger: Ledger,
        provider: RunnerProvider,
        post: Callable[[Callable[[Draft], None]], None],
        days: float,
    ) -> None:
        self._builder = builder
        self._store = store
        self._ledger = ledger
        self._provider = provider
        self._post = post
        self._days = days

    async def run(self) -> None:
        """Sweep some minutes after the start, then a few times a day, until cancelled."""
        await asyncio.sleep(_FIRST_S)
        while True:
            await self.sweep()
            await asyncio.sleep(_EVERY_S)

    async def sweep(self) -> list[str]:
        """Remove what may go now and return the images that went."""
        gone: list[str] = []
        try:
            images = await asyncio.to_thread(self._builder.kept_images)
        except (OSError, ValueError) as error:
            log.warning("image.sweep_failed", error=str(error))
            return gone
        for image in images:
            try:
                if await self._may_go(image):
                    await self._remove(image)
                    gone.append(image.hash)
                elif image.has_old and not self._has_runner(image, before=image.built_at):
                    count = await self._builder.remove_old_generations(image.hash)
                    log.info("image.generations_removed", hash=image.hash, count=count)
            except (FalError, OSError, ValueError) as error:
                # The next round comes.
                log.warning("image.sweep_failed", hash=image.hash, error=str(error))
        return gone

    async def _may_go(self, image: ImageFolder) -> bool:
        if not self._days or time.time() - image.used_at < self._days * _DAY_S:
            return False
        if self._has_runner(image):
            return False
        hash = image.hash
        rows = await self._store.read(lambda reader: reader.find(Revision, image=hash))
        keys = {(row.account, row.app) for row in rows}
        return not any(self._ledger.alias(key) or self._ledger.open_of_app(key) for key in keys)

    def _has_runner(self, image: ImageFolder, before: float | None = None) -> bool:
        return any(
            self._ledger.need(Revision, row.revision).image == image.hash and _is_older(row, before)
            for row in self._ledger.live()
        )

    async def _remove(self, image: ImageFolder) -> None:
        await self._provider.drop(image.hash)
        await self._builder.remove(image.hash)
        log.info("image.removed", hash=image.hash, size=image.size_bytes)
        data = {"hash": image.hash, "size_bytes": image.size_bytes, "reason": "unused"}
        self._post(lambda draft: draft.emit(f"image/{image.hash}", "image.removed", data))


def _is_older(row: Runner, moment: float | None) -> bool:
    return moment is None or row.created_at < moment * 1e6
