"""Followers of one log: each sees every line once, in order, whenever it came and however slowly it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fal_backend.ports import LogRecord
from fal_backend.services.log_taps import Taps


class Source:
    """A runner's log in memory."""

    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self.moved = asyncio.Event()
        self.has_ended = False
        self.readers = 0

    def write(self, count: int) -> None:
        for _ in range(count):
            n = len(self.records) + 1
            self.records.append(LogRecord(n * 10, n, "stdout", None, f"line {n}"))
        self.moved.set()

    async def logs(self, runner_id: str, *, after: int = 0, follow: bool = False) -> AsyncIterator[LogRecord]:
        self.readers += follow
        try:
            at = next((i for i, one in enumerate(self.records) if one.offset > after), len(self.records))
            while True:
                while at < len(self.records):
                    at += 1
                    yield self.records[at - 1]
                if not follow or self.has_ended:
                    return
                self.moved.clear()
                await self.moved.wait()
        finally:
            self.readers -= follow

    def end(self) -> None:
        self.has_ended = True
        self.moved.set()


async def read(taps: Taps, after: int = 0, *, slow: bool = False) -> list[int]:
    seen: list[int] = []
    async for piece in taps.follow("r-1", after):
        seen += [one.offset for one in piece.records]
        if slow:
            await asyncio.sleep(0.03)
    return seen


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_every_follower_sees_every_line_once_and_the_log_is_read_once() -> None:
    source = Source()
    taps: Any = Taps(source)  # type: ignore[arg-type]
    source.write(5)
    readers = [asyncio.create_task(read(taps, slow=bool(n % 2))) for n in range(4)]
    for _ in range(50):
        source.write(7)
        await asyncio.sleep(0.002)
    assert source.readers == 1
    late = asyncio.create_task(read(taps, after=100))
    await some_turns()
    source.write(300)
    await some_turns()
    source.end()
    whole = [one.offset for one in source.records]
    for reader in readers:
        assert await reader == whole
    assert await late == whole[10:]
    assert source.readers == 0
    assert taps._taps == {}


async def test_one_that_fell_out_of_the_pieces_reads_what_it_missed() -> None:
    source = Source()
    taps: Any = Taps(source)  # type: ignore[arg-type]
    seen: list[int] = []
    pieces = taps.follow("r-1", 0)
    source.write(1)
    seen += [one.offset for one in (await anext(pieces)).records]
    tap = taps._taps["r-1"]
    for _ in range(300):
        source.write(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tap._publish()
    assert tap.pieces[0].number > 1
    source.end()
    async for piece in pieces:
        seen += [one.offset for one in piece.records]
    assert seen == [one.offset for one in source.records]


async def test_the_last_one_that_leaves_ends_the_reading() -> None:
    source = Source()
    taps: Any = Taps(source)  # type: ignore[arg-type]
    reader = asyncio.create_task(read(taps))
    await some_turns()
    assert source.readers == 1
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    await some_turns()
    assert source.readers == 0
