"""What runners wrote, read from their hosts: of one runner by offset, of a whole app in order of time.

Rules: an app's lines come from several runners, so that their offsets are times in microseconds; followers
hear of new runners by events and poll nothing. A log that many follow is read and encoded once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from fal_backend.domain.records import Runner, RunnerPhase
from fal_backend.ports import Bus, LogRecord, RunnerProvider
from fal_backend.services.ledger import AppKey, Ledger
from fal_backend.services.log_taps import Piece, Taps
from fal_backend.services.views import moment
from fal_notebook.wire import LogLine

__all__ = ["LogQuery", "Logs"]

log = structlog.get_logger()

_SEVERAL = 16
_TOGETHER = 200

T = TypeVar("T")
_STREAMS = frozenset({"stdout", "stderr", "system"})


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines are wanted."""

    after: int = 0
    follow: bool = False
    request: str | None = None
    limit: int | None = None
    """Newest lines of the past at most; None: all."""


class Logs:
    """Yields lines as bytes of a stream, many at once; see the module."""

    def __init__(
        self, provider: RunnerProvider, ledger: Ledger, bus: Bus, encode: Callable[[LogLine], bytes]
    ) -> None:
        self._provider = provider
        self._ledger = ledger
        self._bus = bus
        self._encode = encode
        self._taps = Taps(provider)

    async def of_runner(self, row: Runner, query: LogQuery) -> AsyncIterator[bytes]:
        """Yield a runner's lines from a byte offset; with follow until it has ended."""
        last: deque[LogRecord] = deque(maxlen=query.limit or None)
        end = query.after
        async for record in self._records(row.id, after=query.after):
            end = record.offset
            if _fits(record, query):
                last.append(record)
        for part in _parts(list(last)):
            yield self._encoded(part, row.id)
        if query.follow:
            async for piece in self._taps.follow(row.id, end):
                data = self._piece(piece, row.id, query)
                if data:
                    yield data

    async def of_app(self, key: AppKey, rows: list[Runner], query: LogQuery) -> AsyncIterator[bytes]:
        """Yield the lines of all of an app's runners by time; with follow also of those that come."""
        began = self._ledger.event
        ends: dict[str, int] = {}
        found: list[list[LogLine]] = []
        for row in rows:
            lines: deque[LogLine] = deque(maxlen=query.limit or None)
            async for record in self._records(row.id, after=0):
                ends[row.id] = record.offset
                if record.at > query.after and _fits(record, query):
                    lines.append(_line(record, row.id, by_time=True))
            found.append(list(lines))
        merged = list(heapq.merge(*found, key=lambda line: line.offset))
        for part in _parts(merged[-query.limit :] if query.limit else merged):
            yield b"".join(map(self._encode, part))
        if query.follow:
            async for data in self._follow_app(key, rows, ends, began, query):
                yield data

    async def _follow_app(
        self, key: AppKey, rows: list[Runner], ends: dict[str, int], began: int, query: LogQuery
    ) -> AsyncIterator[bytes]:
        pieces: asyncio.Queue[bytes] = asyncio.Queue(_SEVERAL)
        tails: dict[str, asyncio.Task[None]] = {}

        def follow(runner_id: str) -> None:
            if runner_id not in tails:
                work = self._tail(runner_id, ends.get(runner_id, 0), query, pieces)
                tails[runner_id] = asyncio.create_task(work, name=f"log of {runner_id}")

        for row in rows:
            if row.phase != RunnerPhase.GONE:
                follow(row.id)
        watching = asyncio.create_task(self._watch(key, began, follow), name=f"runners of {key[1]}")
        try:
            while True:
                yield await pieces.get()
        finally:
            for task in (watching, *tails.values()):
                task.cancel()
            await asyncio.gather(watching, *tails.values(), return_exceptions=True)

    async def _watch(self, key: AppKey, began: int, follow: Callable[[str], None]) -> None:
        async for event in self._bus.follow(began, app=key[1]):
            while self._ledger.event < event.n:
                await self._ledger.changed()
            row = self._ledger.get(Runner, event.subject.removeprefix("runner/"))
            if row is not None and (row.account, row.app) == key:
                follow(row.id)

    async def _tail(self, runner_id: str, after: int, query: LogQuery, pieces: asyncio.Queue[bytes]) -> None:
        async for piece in self._taps.follow(runner_id, after):
            data = self._piece(piece, runner_id, query, by_time=True)
            if data:
                await pieces.put(data)

    def _piece(self, piece: Piece, runner_id: str, query: LogQuery, *, by_time: bool = False) -> bytes:
        """Return a piece's lines; those that all followers get are encoded once for all of them."""
        if query.request is not None:
            wanted = [record for record in piece.records if _fits(record, query)]
            return self._encoded(wanted, runner_id, by_time=by_time)
        kind = "time" if by_time else "offset"
        return piece.encoded(kind, lambda records: self._encoded(records, runner_id, by_time=by_time))

    def _encoded(self, records: Sequence[LogRecord], runner_id: str, *, by_time: bool = False) -> bytes:
        return b"".join(self._encode(_line(record, runner_id, by_time=by_time)) for record in records)

    async def _records(self, runner_id: str, *, after: int) -> AsyncIterator[LogRecord]:
        try:
            async for record in self._provider.logs(runner_id, after=after, follow=False):
                yield record
        except (OSError, TimeoutError) as error:
            # The host is away for a moment: what it has is read again by whoever asks again.
            log.warning("logs.unreachable", runner_id=runner_id, error=repr(error))


def _parts(found: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield a long list in parts, so that no other work waits for all of it."""
    for at in range(0, len(found), _TOGETHER):
        yield found[at : at + _TOGETHER]


def _fits(record: LogRecord, query: LogQuery) -> bool:
    return query.request is None or record.request_id == query.request


def _line(record: LogRecord, runner_id: str, *, by_time: bool = False) -> LogLine:
    return LogLine.model_validate(
        {
            "offset": record.at if by_time else record.offset,
            "at": moment(record.at),
            "stream": record.stream if record.stream in _STREAMS else "stdout",
            "text": record.text,
            "runner_id": runner_id,
            "request_id": record.request_id,
        }
    )
