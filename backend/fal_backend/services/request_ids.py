"""Request ids: random UUIDs of version 4, made from one read of the system's randomness for many."""

from __future__ import annotations

import os

__all__ = ["RequestIds"]

_BYTES = 4096


class RequestIds:
    """Event-loop thread only."""

    def __init__(self) -> None:
        self._pool = ""
        self._at = 0

    def next(self) -> str:
        """Return a new id."""
        at = self._at
        if at >= len(self._pool):
            self._pool, at = os.urandom(_BYTES).hex(), 0
        self._at = at + 32
        h = self._pool[at : at + 32]
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"
