"""The request log: one line for each call that has ended, written in batches beside the event loop.

Rules: noting a call costs an append and never waits; what comes faster than it can be written is dropped and counted;
the log is no truth: nothing else is decided from it, and a disk that is full costs lines, not calls.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import structlog

from fal_backend.domain.call_record import CallFilter, CallOutcome, CallRecord, Phases, phases
from fal_backend.domain.records import Request
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.lanes import Door
from fal_notebook.wire_deploy import Traffic

__all__ = ["CallLog", "QueuedCalls", "RequestLog"]

log = structlog.get_logger()

WAITING = 65_536
"""Lines that wait to be written at most."""
BATCH = 2_000
PAUSE_S = 0.2
_JUDGED = 10_000
"""Of so many of an app's latest calls it is told how they went."""
_TRIM_S = 60.0


class CallLog(Protocol):
    """Where the lines lie; used from any thread, one call at a time."""

    def append(self, batch: Sequence[CallRecord]) -> None:
        """Write lines. Raises: OSError when they cannot be written."""
        ...

    def page(self, wanted: CallFilter) -> list[CallRecord]:
        """Return the newest lines that match."""
        ...

    def latest(self, app: str, limit: int) -> list[CallOutcome]:
        """Return what came of an app's newest calls that a revision had."""
        ...

    def trim(self) -> None:
        """Remove what is older, or more, than is kept."""
        ...

    def close(self) -> None: ...


class RequestLog:
    """Event-loop thread only."""

    def __init__(self, store: CallLog, *, waiting: int = WAITING) -> None:
        self._store = store
        self._most = waiting
        self._lines: deque[CallRecord] = deque()
        self._has_line = asyncio.Event()
        self.written = 0
        self.dropped = 0
        """Lines that were never written: there were too many, or the disk was full."""

    def note(self, record: CallRecord) -> None:
        """Have a line written soon."""
        lines = self._lines
        if not lines:
            self._has_line.set()
        elif len(lines) >= self._most:
            self.dropped += 1
            return
        lines.append(record)

    async def page(self, wanted: CallFilter) -> list[CallRecord]:
        """Return the newest lines that match, those included that wait to be written."""
        await self._flush()
        return await asyncio.to_thread(self._store.page, wanted)

    async def traffic(self, app: str) -> dict[str, Traffic]:
        """Return how the latest calls of an app (`owner/alias`) went, by revision."""
        await self._flush()
        return await asyncio.to_thread(lambda: _by_revision(self._store.latest(app, _JUDGED)))

    async def run(self) -> None:
        """Write what is noted until cancelled; the last lines are written then."""
        loop = asyncio.get_running_loop()
        trim_at = loop.time()
        try:
            while True:
                await self._has_line.wait()
                await asyncio.sleep(PAUSE_S)
                await self._flush()
                if loop.time() >= trim_at:
                    trim_at = loop.time() + _TRIM_S
                    await asyncio.to_thread(self._store.trim)
        finally:
            self._write(list(self._lines))
            self._lines.clear()
            self._store.close()

    async def _flush(self) -> None:
        """Write all that waits now; a line leaves the waiting ones only as it is handed over."""
        while self._lines:
            lines = self._lines
            batch = [lines.popleft() for _ in range(min(BATCH, len(lines)))]
            await asyncio.to_thread(self._write, batch)
        self._has_line.clear()

    def _write(self, batch: list[CallRecord]) -> None:
        try:
            self._store.append(batch)
        except OSError as error:
            if not self.dropped:
                log.warning("request_log.not_written", error=repr(error))
            self.dropped += len(batch)
        else:
            self.written += len(batch)


class QueuedCalls:
    """Notes and counts each queued request that has ended."""

    def __init__(self, dispatch: Dispatch, note: Callable[[CallRecord], None]) -> None:
        self._dispatch = dispatch
        self._note = note

    def ended(self, row: Request) -> None:
        """Note a request that has ended; its last try is its run, all before it queueing or a cold start."""
        door = self._dispatch.door(row.runner) if row.runner is not None else None
        split = self._split(row, door)
        status = row.status_code or 500
        if self._dispatch.find(row.app.encode()) is not None:
            self._dispatch.tallies.app(row.app).end_queued(status, split)
        self._note(
            CallRecord(
                request_id=row.request_id,
                account=row.account,
                app=row.app,
                path=_path_of(row),
                method=row.method,
                caller=row.caller,
                key_id=None,
                kind="queue",
                revision=None if door is None else door.lane.revision,
                runner=row.runner,
                attempts=row.attempt,
                status=status,
                error_type=row.error_type,
                started_at=row.submitted_at,
                ended_at=row.ended_at or row.submitted_at,
                queued_ms=split.queued * 1e3,
                cold_start_ms=split.cold_start * 1e3,
                inference_ms=split.run * 1e3,
                bytes_in=0,
                bytes_out=0,
            )
        )

    def _split(self, row: Request, door: Door | None) -> Phases:
        wall_us = time.time_ns() // 1000
        ended = row.ended_at if row.ended_at is not None else wall_us
        opened = wall_us - int((time.monotonic() - door.opened_at) * 1e6) if door is not None else 0
        sent = row.started_at if row.started_at is not None and row.runner is not None else 0
        split = phases(row.submitted_at, opened, sent, ended)
        return Phases(*(max(0.0, part) / 1e6 for part in split))


def _path_of(row: Request) -> str:
    return row.path.partition("?")[0]


def _by_revision(latest: Sequence[CallOutcome]) -> dict[str, Traffic]:
    """Return how calls went, by revision."""
    found: dict[str, list[CallOutcome]] = {}
    for one in latest:
        found.setdefault(one.revision, []).append(one)
    return {revision: _traffic(calls) for revision, calls in found.items()}


def _traffic(calls: list[CallOutcome]) -> Traffic:
    errors = sum(one.status >= 500 for one in calls)
    times = sorted(one.took_ms for one in calls if one.took_ms is not None)
    return Traffic(
        calls=len(calls),
        errors=errors,
        error_rate=round(errors / len(calls), 4),
        p50_ms=_quantile(times, 0.5),
        p95_ms=_quantile(times, 0.95),
        since=datetime.fromtimestamp(min(one.started_at for one in calls) / 1e6, UTC),
    )


def _quantile(times: list[float], part: float) -> float | None:
    """Return the time that this part of all took at most."""
    return round(times[math.ceil(part * len(times)) - 1], 3) if times else None
