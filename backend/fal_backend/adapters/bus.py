"""The doorbell: committed events in order, to everyone in this process who listens.

Rules: events are rows of the store; the bus keeps the last 65,536 in memory. A follower reads the
backlog from the store in pages, then the ring; one that falls out of the ring goes back to the store.
Nobody polls, and nobody's slowness costs another. Lives on the event loop's thread alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from fal_backend.domain.records import EventRow
from fal_backend.ports import Reader, Store

__all__ = ["RESET", "EventBus"]

RING = 65_536
PAGE = 500
TURN = 1000

RESET = "reset"
"""Kind of the event that a follower gets first when events it asked for are no longer kept."""


class EventBus:
    """See `ports.Bus`."""

    def __init__(self, store: Store, last: int, *, size: int = RING) -> None:
        self._store = store
        self._size = size
        self._ring: list[EventRow | None] = [None] * size
        self._last = last
        self._oldest = last + 1
        """The first number that the ring holds, or would hold next."""
        self._bell = asyncio.Event()

    @property
    def last(self) -> int:
        """Number of the newest event."""
        return self._last

    def publish(self, events: Sequence[EventRow]) -> None:
        """Add events, numbered on from `last`, and wake all followers once."""
        for event in events:
            self._ring[event.n % self._size] = event
            self._last = event.n
        self._oldest = max(self._oldest, self._last - self._size + 1)
        # A new bell instead of clear(): whoever waits on the old one is woken exactly once.
        rung, self._bell = self._bell, asyncio.Event()
        rung.set()

    async def follow(
        self, after: int, *, app: str | None = None, subject: str | None = None
    ) -> AsyncGenerator[EventRow]:
        """Yield events after number `after`: first from the store, then as they come; never a gap.

        Where events between are no longer kept, or `after` is of another store, the first one has kind
        `reset`: the follower's picture is stale, and what follows goes on from the number given there.
        """
        at = after
        is_strange = after > self._last
        while True:
            if is_strange or at + 1 < self._oldest:
                is_strange = False
                found, at = await self._page(at, app, subject)
                for event in found:
                    yield event
            elif at >= self._last:
                # The store may be a moment ahead of the ring: then this waits for the ring to pass it.
                await self._bell.wait()
            else:
                for event in self._slice(at):
                    at = event.n
                    if (app is None or event.app == app) and (subject is None or event.subject == subject):
                        yield event
                await asyncio.sleep(0)

    def _slice(self, at: int) -> list[EventRow]:
        until = min(self._last, at + TURN)
        return [event for n in range(at + 1, until + 1) if (event := self._ring[n % self._size]) is not None]

    async def _page(self, at: int, app: str | None, subject: str | None) -> tuple[list[EventRow], int]:
        """Return the next events from the store and the number up to which that is everything."""

        def read(reader: Reader) -> tuple[list[EventRow], int, int]:
            return (
                reader.events(at, PAGE, app=app, subject=subject),
                reader.first_event(),
                reader.last_event(),
            )

        found, first, last = await self._store.read(read)
        if at > last:
            return [_reset(last)], last
        reset = [_reset(first - 1)] if at + 1 < first else []
        return reset + found, found[-1].n if len(found) == PAGE else last


def _reset(n: int) -> EventRow:
    return EventRow(n, time.time_ns() // 1000, "events", RESET, None, "{}")
