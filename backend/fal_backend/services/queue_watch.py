"""Doorbells of requests: whoever follows one is woken when it changes.

Rules: event-loop thread only; a bell is rung after the commit, and says nothing but "look again".
"""

from __future__ import annotations

import asyncio

__all__ = ["Watch"]


class Watch:
    """See the module."""

    def __init__(self) -> None:
        self._bells: dict[str, set[asyncio.Event]] = {}

    def watch(self, request_id: str) -> asyncio.Event:
        """Return a bell; give it back with `leave`."""
        bell = asyncio.Event()
        self._bells.setdefault(request_id, set()).add(bell)
        return bell

    def leave(self, request_id: str, bell: asyncio.Event) -> None:
        """Give a bell back."""
        bells = self._bells.get(request_id)
        if bells is not None:
            bells.discard(bell)
            if not bells:
                del self._bells[request_id]

    def ring(self, request_id: str) -> None:
        """Wake whoever follows a request."""
        for bell in self._bells.get(request_id, ()):
            bell.set()
