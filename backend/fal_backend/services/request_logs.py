"""What an App wrote during one request, read from its runner's log as far as somebody asked.

Rules: a runner's log is read once and on from there, and its lines are sorted by request; what is kept is bounded,
and what was dropped is read again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator

import structlog

from fal_backend.ports import LogRecord, RunnerProvider
from fal_backend.services.queue_values import LogEntry

__all__ = ["RequestLogs"]

log = structlog.get_logger()

_RUNNERS = 64
_REQUESTS = 512
_LINES = 5_000


class _Known:
    """A runner's log as far as it was read."""

    def __init__(self) -> None:
        self.offset = 0
        self.lines: OrderedDict[str, deque[LogEntry]] = OrderedDict()
        self.has_dropped = False
        self.lock = asyncio.Lock()

    def note(self, record: LogRecord) -> None:
        self.offset = record.offset
        if record.request_id is None:
            return
        found = self.lines.get(record.request_id)
        if found is None:
            found = self.lines[record.request_id] = deque(maxlen=_LINES)
            if len(self.lines) > _REQUESTS:
                self.lines.popitem(last=False)
                self.has_dropped = True
        found.append(_entry(record))


class RequestLogs:
    """See the module."""

    def __init__(self, provider: RunnerProvider) -> None:
        self._provider = provider
        self._runners: OrderedDict[str, _Known] = OrderedDict()

    async def lines(self, runner_id: str, request_id: str) -> tuple[LogEntry, ...]:
        """Return a request's lines so far."""
        known = self._known(runner_id)
        async with known.lock:
            await self._read_on(runner_id, known)
            found = known.lines.get(request_id)
            if found is None and known.has_dropped:
                return await self._scan(runner_id, request_id)
        return tuple(found or ())

    async def follow(self, runner_id: str, request_id: str) -> AsyncIterator[LogEntry]:
        """Yield a request's lines: those so far, then as they come, until the runner ends."""
        known = self._known(runner_id)
        async with known.lock:
            await self._read_on(runner_id, known)
            found, offset = tuple(known.lines.get(request_id) or ()), known.offset
        for entry in found:
            yield entry
        async for record in self._records(runner_id, offset, follow=True):
            if record.request_id == request_id:
                yield _entry(record)

    def _known(self, runner_id: str) -> _Known:
        known = self._runners.get(runner_id)
        if known is None:
            known = self._runners[runner_id] = _Known()
            if len(self._runners) > _RUNNERS:
                self._runners.popitem(last=False)
        self._runners.move_to_end(runner_id)
        return known

    async def _read_on(self, runner_id: str, known: _Known) -> None:
        async for record in self._records(runner_id, known.offset, follow=False):
            known.note(record)

    async def _scan(self, runner_id: str, request_id: str) -> tuple[LogEntry, ...]:
        found: deque[LogEntry] = deque(maxlen=_LINES)
        async for record in self._records(runner_id, 0, follow=False):
            if record.request_id == request_id:
                found.append(_entry(record))
        return tuple(found)

    async def _records(self, runner_id: str, after: int, *, follow: bool) -> AsyncIterator[LogRecord]:
        try:
            async for record in self._provider.logs(runner_id, after=after, follow=follow):
                yield record
        except (OSError, TimeoutError) as error:
            # The host is away for a moment, or the log is gone with its runner: there is nothing more to say.
            log.warning("queue.logs_unreachable", runner_id=runner_id, error=repr(error))


def _entry(record: LogRecord) -> LogEntry:
    return LogEntry(record.at, record.stream, record.text)
