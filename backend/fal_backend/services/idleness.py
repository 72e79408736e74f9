"""Whether anybody still needs this backend: an embedded one ends itself when nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fal_backend.domain.records import Alias, Session
from fal_backend.services.ledger import Ledger

__all__ = ["Idleness"]

_LOOK_S = 1.0


class Idleness:
    """In use: any app, session, runner or open deployment, any stream, any question of late."""

    def __init__(self, ledger: Ledger, streams: Callable[[], int]) -> None:
        self._ledger = ledger
        self._streams = streams
        self._used_at = time.monotonic()

    def touch(self) -> None:
        """Somebody asks for something."""
        self._used_at = time.monotonic()

    async def wait(self, idle_s: float) -> None:
        """Return when nothing has needed the backend for idle_s seconds."""
        while time.monotonic() - self._used_at < idle_s:
            await asyncio.sleep(min(_LOOK_S, idle_s))
            if self._is_needed():
                self.touch()

    def _is_needed(self) -> bool:
        ledger = self._ledger
        return bool(
            ledger.all(Alias)
            or ledger.all(Session)
            or ledger.live()
            or ledger.apps_with_open_deployment()
            or self._streams()
        )
