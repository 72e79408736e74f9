"""Doorbells of requests: whoever follows one is woken when it changes, and handed what it has become.

Rules: event-loop thread only; a bell is rung after the commit, in the order of commits, so that the row it brought last
is the newest.
"""

from __future__ import annotations

import asyncio

from fal_backend.domain.records import Request

__all__ = ["Bell", "Watch"]


class Bell:
    """Set when there is news; `row` is the request as it was committed last, if it changed since it was asked."""

    __slots__ = ("_event", "row")

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.row: Request | None = None

    def ring(self, row: Request | None = None) -> None:
        """Tell of news; without a row it is not the request that changed."""
        if row is not None:
            self.row = row
        self._event.set()

    @property
    def is_rung(self) -> bool:
        """Whether there is news."""
        return self._event.is_set()

    def clear(self) -> None:
        """Listen anew."""
        self._event.clear()

    async def wait(self) -> None:
        """Wait for news."""
        await self._event.wait()


class Watch:
    """See the module."""

    def __init__(self) -> None:
        self._bells: dict[str, set[Bell]] = {}

    def watch(self, request_id: str) -> Bell:
        """Return a bell; give it back with `leave`."""
        bell = Bell()
        self._bells.setdefault(request_id, set()).add(bell)
        return bell

    def leave(self, request_id: str, bell: Bell) -> None:
        """Give a bell back."""
        bells = self._bells.get(request_id)
        if bells is not None:
            bells.discard(bell)
            if not bells:
                del self._bells[request_id]

    def ring(self, row: Request) -> None:
        """Wake whoever follows a request that has changed."""
        for bell in self._bells.get(row.request_id, ()):
            bell.ring(row)
