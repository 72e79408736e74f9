"""Streams of the control API: numbered events and log lines as server-sent events.

Rules: what is there at once is sent in one piece; a silent stream is pinged, so that both ends notice a dead
one; a source is ended with its reader, and a stream with its reader's leave to read it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
from fastapi.responses import StreamingResponse

from fal_backend.domain.access import Principal
from fal_backend.domain.records import EventRow
from fal_backend.services.views import moment
from fal_notebook.errors import FalError
from fal_notebook.sse import PING, encode
from fal_notebook.wire import Event, LogLine

__all__ = ["PING_S", "RESET", "Opening", "Streams", "encode_event", "encode_line"]

log = structlog.get_logger()

T = TypeVar("T")

Opening = Callable[[], Awaitable[AsyncIterator[bytes]]]
"""Opens a source of encoded pieces; what is not there is told by a FalError."""

_Queue = asyncio.Queue[bytes | None]

PING_S = 10.0
RESET = "reset"
_OF = "of"
"""Says whose the next items are, in a stream of several sources."""

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
        self._queues: dict[_Queue, Principal] = {}
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
        return self._answer([partial(_pump, source, encoder)], _WAITING, ends=ends, who=who)

    def respond_pieces(self, source: AsyncIterator[bytes], *, who: Principal) -> StreamingResponse:
        """Return the answer that streams what is encoded already, many items at once."""
        return self._answer([partial(_pump, source, bytes)], _PIECES_WAITING, ends=True, who=who)

    def respond_many(self, openings: Sequence[Opening], *, who: Principal) -> StreamingResponse:
        """Return the answer that streams several sources: each piece behind the number of its source.

        A source that ends, or is not there, says so; the stream goes on until its reader leaves.
        """
        pumps = [partial(_pump_one, number, opening) for number, opening in enumerate(openings)]
        return self._answer(pumps, _PIECES_WAITING, ends=False, who=who)

    def _answer(
        self,
        pumps: Sequence[Callable[[_Queue], Coroutine[Any, Any, None]]],
        waiting: int,
        *,
        ends: bool,
        who: Principal,
    ) -> StreamingResponse:
        content = self._content(pumps, waiting, ends=ends, who=who)
        return StreamingResponse(content, media_type="text/event-stream", headers=_HEADERS)

    async def _content(
        self,
        pumps: Sequence[Callable[[_Queue], Coroutine[Any, Any, None]]],
        waiting: int,
        *,
        ends: bool,
        who: Principal,
    ) -> AsyncIterator[bytes]:
        queue: _Queue = asyncio.Queue(waiting)
        pumping = [asyncio.create_task(pump(queue), name="stream") for pump in pumps]
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
            for task in pumping:
                task.cancel()
            await asyncio.gather(*pumping, return_exceptions=True)


def _cut(queue: _Queue) -> None:
    """Make the end the next thing that is read: what waits is for somebody who may not read it."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)


async def _pump(source: AsyncIterator[T], encoder: Callable[[T], bytes], queue: _Queue) -> None:
    try:
        async for item in source:
            await queue.put(encoder(item))
    except FalError as error:
        await queue.put(_refusal(error))
    except Exception:
        log.exception("stream.broken")
    finally:
        await _close(source)
    await queue.put(None)


async def _pump_one(number: int, opening: Opening, queue: _Queue) -> None:
    """Pass one source of several on; its end is not that of the stream."""
    head, last = encode(str(number), event=_OF), encode("{}", event="end")
    try:
        source = await opening()
        try:
            async for piece in source:
                await queue.put(head + piece)
        finally:
            await _close(source)
    except FalError as error:
        last = _refusal(error)
    except Exception:
        log.exception("stream.broken")
    await queue.put(head + last)


def _refusal(error: FalError) -> bytes:
    return encode(json.dumps({"error": error.to_dict()}), event="error")


async def _close(source: AsyncIterator[Any]) -> None:
    closing = getattr(source, "aclose", None)
    if closing is not None:
        await closing()


async def _take(queue: _Queue) -> tuple[bytes, bool]:
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
