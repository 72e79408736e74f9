"""Streams of the control API: numbered events and log lines as server-sent events.

Rules: what is there at once is sent in one piece; a silent stream is pinged, so that both ends notice a dead
one; a source is ended with its reader, and a stream with its reader's leave to read it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import structlog
from fastapi.responses import StreamingResponse

from fal_backend.domain.access import Principal
from fal_backend.domain.records import EventRow
from fal_backend.services.views import moment
from fal_notebook.errors import FalError
from fal_notebook.sse import PING, encode
from fal_notebook.wire import Event, LogLine

__all__ = ["PING_S", "RESET", "Streams", "encode_event", "encode_line"]

log = structlog.get_logger()

T = TypeVar("T")

PING_S = 10.0
RESET = "reset"

_WAITING = 1000
_PIECES_WAITING = 8
_PIECE = 64 * 1024
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def encode_event(row: EventRow) -> bytes:
    """Return an event as bytes of the stream."""
    event = Event(
        n=row.n,
        at=moment(row.at),
        subject=row.subject,
        kind=row.kind,
        app=row.app,
        data=json.loads(row.data_json),
    )
    return encode(event.model_dump_json(), id=row.n, event=RESET if row.kind == RESET else None)


def encode_line(line: LogLine) -> bytes:
    """Return a log line as bytes of the stream."""
    return encode(line.model_dump_json(exclude_none=True), id=line.offset)


class Streams:
    """Counts the streams that are open: a backend with a reader is in use."""

    def __init__(self) -> None:
        self.open = 0
        self.is_good: Callable[[Principal], bool] = lambda who: True
        """Whether somebody who was let in would still be."""
        self._queues: dict[asyncio.Queue[bytes | None], Principal] = {}
        self._is_ending = False

    def end(self) -> None:
        """End all streams, so that a backend that stops need not wait for their readers."""
        self._is_ending = True
        for queue in self._queues:
            while queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    def recheck(self) -> None:
        """End the streams of those who may not read them any more."""
        for queue, who in self._queues.items():
            if not self.is_good(who):
                _cut(queue)

    def respond(
        self, source: AsyncIterator[T], encoder: Callable[[T], bytes], *, ends: bool, who: Principal
    ) -> StreamingResponse:
        """Return the answer that streams a source to somebody; ends: say so when the source has no more."""
        content = self._content(source, encoder, _WAITING, ends=ends, who=who)
        return StreamingResponse(content, media_type="text/event-stream", headers=_HEADERS)

    def respond_pieces(self, source: AsyncIterator[bytes], *, who: Principal) -> StreamingResponse:
        """Return the answer that streams what is encoded already, many items at once."""
        content = self._content(source, bytes, _PIECES_WAITING, ends=True, who=who)
        return StreamingResponse(content, media_type="text/event-stream", headers=_HEADERS)

    async def _content(
        self,
        source: AsyncIterator[T],
        encoder: Callable[[T], bytes],
        waiting: int,
        *,
        ends: bool,
        who: Principal,
    ) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(waiting)
        pump = asyncio.create_task(_pump(source, encoder, queue), name="stream")
        self.open += 1
        self._queues[queue] = who
        try:
            # The first bytes say that the stream is open, before anything happens on it.
            yield PING
            # Asked again at each piece: a key expires without anybody saying so.
            while self.is_good(who):
                piece, is_last = await _take(queue)
                if piece and self.is_good(who):
                    yield piece
                if is_last:
                    break
            if ends and not self._is_ending and self.is_good(who):
                yield encode("{}", event="end")
        finally:
            self.open -= 1
            self._queues.pop(queue, None)
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)


def _cut(queue: asyncio.Queue[bytes | None]) -> None:
    """Make the end the next thing that is read: what waits is for somebody who may not read it."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)


async def _pump(
    source: AsyncIterator[T], encoder: Callable[[T], bytes], queue: asyncio.Queue[bytes | None]
) -> None:
    try:
        async for item in source:
            await queue.put(encoder(item))
    except FalError as error:
        await queue.put(encode(json.dumps({"error": error.to_dict()}), event="error"))
    except Exception:
        log.exception("stream.broken")
    finally:
        closing = getattr(source, "aclose", None)
        if closing is not None:
            await closing()
    await queue.put(None)


async def _take(queue: asyncio.Queue[bytes | None]) -> tuple[bytes, bool]:
    """Return all that waits as one piece, and whether it was the last."""
    try:
        async with asyncio.timeout(PING_S):
            first = await queue.get()
    except TimeoutError:
        return PING, False
    if first is None:
        return b"", True
    parts, size = [first], len(first)
    while size < _PIECE and not queue.empty():
        part = queue.get_nowait()
        if part is None:
            return b"".join(parts), True
        parts.append(part)
        size += len(part)
    return b"".join(parts), False
