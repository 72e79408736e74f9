"""Streams end with their reader's leave to read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fal_backend.api.events import Streams
from fal_backend.domain.access import Principal

WHO = Principal("a", "a", "fk", "ADMIN")


async def letters(queue: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while True:
        yield await queue.get()


async def test_a_stream_ends_at_once_when_its_reader_may_not_read_it_any_more() -> None:
    streams, queue = Streams(), asyncio.Queue[bytes]()
    good = {"fk"}
    streams.is_good = lambda who: who.key_id in good
    body = aiter(streams.respond(letters(queue), bytes, ends=True, who=WHO).body_iterator)
    await anext(body)
    queue.put_nowait(b"one")
    assert await anext(body) == b"one"
    waiting = asyncio.ensure_future(anext(body, b"the end"))
    await asyncio.sleep(0)
    good.clear()
    streams.recheck()
    assert await waiting == b"the end", "no word of an end that is not one"
    assert streams.open == 0


async def test_what_comes_after_an_expiry_is_not_passed_on() -> None:
    streams, queue = Streams(), asyncio.Queue[bytes]()
    good = {"fk"}
    streams.is_good = lambda who: who.key_id in good
    body = aiter(streams.respond(letters(queue), bytes, ends=True, who=WHO).body_iterator)
    await anext(body)
    waiting = asyncio.ensure_future(anext(body, b"the end"))
    await asyncio.sleep(0)
    good.clear()
    queue.put_nowait(b"too late")
    assert await waiting == b"the end"


async def test_others_read_on() -> None:
    streams, queue = Streams(), asyncio.Queue[bytes]()
    streams.is_good = lambda who: who.key_id == "fk"
    body = aiter(streams.respond(letters(queue), bytes, ends=True, who=WHO).body_iterator)
    await anext(body)
    streams.recheck()
    queue.put_nowait(b"still")
    assert await anext(body) == b"still"
    await body.aclose()  # type: ignore[attr-defined]
