"""How long events are kept: 7 days, and never more than a million.

Rules: trimming goes in small steps of class `lazy`, one at the end of a group, so that it delays nobody.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from fal_backend.adapters.store.store import SqliteStore
from fal_notebook.errors import FalError

__all__ = ["KEEP_EVENTS", "KEEP_US", "keep_trimming", "trim_events"]

log = structlog.get_logger()

KEEP_US = 7 * 24 * 3600 * 1_000_000
KEEP_EVENTS = 1_000_000
STEP = 1000
EVERY_S = 3600.0


async def trim_events(store: SqliteStore, *, now_us: int, keep: int = KEEP_EVENTS) -> int:
    """Delete all events past retention, step by step, and return how many went."""
    gone = 0
    while step := await store.trim_events(before=now_us - KEEP_US, keep=keep, limit=STEP):
        gone += step
    return gone


async def keep_trimming(store: SqliteStore, every_s: float = EVERY_S) -> None:
    """Trim now and then until cancelled."""
    while True:
        try:
            gone = await trim_events(store, now_us=time.time_ns() // 1000)
        except FalError as error:
            # Disk full or locked: retention is what may wait.
            log.warning("store.trim_failed", code=error.code)
        else:
            if gone:
                log.info("store.trimmed", events=gone)
        await asyncio.sleep(every_s)
