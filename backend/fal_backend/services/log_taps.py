"""One reader of a runner's growing log for all that follow it: lines are read and encoded once, and shared.

Rules: lines that come within a moment are one piece, so that a hundred followers cost a hundred writes for each
moment and not for each line; a follower has a place in the row of pieces and no queue; one that fell out of it reads
what it missed from the host. The last follower that leaves ends the reader.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from fal_backend.ports import LogRecord, RunnerProvider

__all__ = ["Piece", "Taps"]

log = structlog.get_logger()

MOMENT_S = 0.04
_MOST_LINES = 2_000
"""A piece of so many is not waited for any longer."""
_PIECES = 256


class Piece:
    """Some lines in order, with what was made of them already."""

    __slots__ = ("_encoded", "number", "records")

    def __init__(self, number: int, records: Sequence[LogRecord]) -> None:
        self.number = number
        self.records = records
        self._encoded: dict[str, bytes] = {}

    def encoded(self, kind: str, encode: Callable[[Sequence[LogRecord]], bytes]) -> bytes:
        """Return the lines as `encode` makes them, made once for each kind."""
        found = self._encoded.get(kind)
        if found is None:
            found = self._encoded[kind] = encode(self.records)
        return found


class _Tap:
    """A runner's log from some offset on."""

    def __init__(self, provider: RunnerProvider, runner_id: str, after: int) -> None:
        self._provider = provider
        self._runner_id = runner_id
        self._numbers = itertools.count()
        self._coming: list[LogRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._moved = asyncio.Event()
        self.pieces: deque[Piece] = deque(maxlen=_PIECES)
        self.next = 0
        """Number of the piece that comes next."""
        self.followers = 0
        self.has_ended = False
        self._task = asyncio.create_task(self._read(after), name=f"log of {runner_id}")

    async def wait(self) -> None:
        """Wait until there is a piece more, or the end."""
        await self._moved.wait()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()

    async def _read(self, after: int) -> None:
        try:
            async for record in self._provider.logs(self._runner_id, after=after, follow=True):
                self._coming.append(record)
                if len(self._coming) >= _MOST_LINES:
                    self._publish()
                    await asyncio.sleep(0)  # whoever follows takes it before the next one
                elif self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(MOMENT_S, self._publish)
        except (OSError, TimeoutError) as error:
            # The host is away for a moment: what it has is read again by whoever asks again.
            log.warning("logs.unreachable", runner_id=self._runner_id, error=repr(error))
        self.has_ended = True
        self._publish()

    def _publish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._coming:
            self.next = next(self._numbers) + 1
            self.pieces.append(Piece(self.next - 1, self._coming))
            self._coming = []
        # Who waits holds the old event; who comes next waits for a new one.
        self._moved.set()
        self._moved = asyncio.Event()


class Taps:
    """The readers of all logs that somebody follows."""

    def __init__(self, provider: RunnerProvider) -> None:
        self._provider = provider
        self._taps: dict[str, _Tap] = {}

    async def follow(self, runner_id: str, after: int) -> AsyncIterator[Piece]:
        """Yield the lines behind an offset, those that are there first, until the runner has ended."""
        tap = self._taps.get(runner_id)
        if tap is None or tap.has_ended:
            tap = self._taps[runner_id] = _Tap(self._provider, runner_id, after)
            place = 0
        else:
            # What was written so far is read from the host, what comes from now on is in the pieces.
            place = tap.next
        tap.followers += 1
        try:
            if place or tap.followers > 1:
                missed = await self._missed(runner_id, after)
                if missed:
                    after = missed[-1].offset
                    yield Piece(-1, missed)
            async for piece in self._pieces(tap, runner_id, place, after):
                yield piece
        finally:
            tap.followers -= 1
            if not tap.followers:
                if self._taps.get(runner_id) is tap:
                    del self._taps[runner_id]
                await tap.close()

    async def _pieces(self, tap: _Tap, runner_id: str, place: int, after: int) -> AsyncIterator[Piece]:
        while True:
            if place < tap.next:
                first = tap.pieces[0].number
                if place < first:
                    place = tap.next
                    piece = Piece(-1, await self._missed(runner_id, after))
                else:
                    piece = tap.pieces[place - first]
                    place += 1
                piece = _behind(piece, after)
                if piece.records:
                    after = piece.records[-1].offset
                    yield piece
            elif tap.has_ended:
                return
            else:
                await tap.wait()

    async def _missed(self, runner_id: str, after: int) -> list[LogRecord]:
        try:
            return [one async for one in self._provider.logs(runner_id, after=after, follow=False)]
        except (OSError, TimeoutError) as error:
            log.warning("logs.unreachable", runner_id=runner_id, error=repr(error))
            return []


def _behind(piece: Piece, after: int) -> Piece:
    """Return a piece without lines that were seen."""
    if not piece.records or piece.records[0].offset > after:
        return piece
    return Piece(-1, [one for one in piece.records if one.offset > after])
