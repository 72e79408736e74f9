"""Which zygote is asked for before anybody needs one, and when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fal_backend.services.warmth import Warmth

from fal_notebook.errors import BackendError


class World:
    """A builder, a fleet and a place for events at once."""

    def __init__(self) -> None:
        self.image: str | None = "i-1"
        self.is_new = True
        self.error: Exception | None = None
        self.asked: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.adopted = asyncio.Event()

    def last_used(self) -> str | None:
        return self.image

    async def warm_image(self, hash: str, owner: str) -> bool:
        self.asked.put_nowait((hash, owner))
        if self.error is not None:
            raise self.error
        return self.is_new

    def emit(self, subject: str, kind: str, data: dict[str, Any]) -> None:
        self.events.append((subject, kind, data))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Warmth]:
        warmth = Warmth(self, self, lambda run: run(self), "me")  # type: ignore[arg-type]
        task = asyncio.create_task(warmth.run(self.adopted))
        try:
            yield warmth
        finally:
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(10):
            return await self.asked.get()


async def test_the_image_used_last_is_warmed_once_the_hosts_are_known_and_told() -> None:
    world = World()
    async with world.running():
        await asyncio.sleep(0)
        assert world.asked.empty()
        world.adopted.set()
        assert await world.next() == ("i-1", "me")
    assert world.events == [("image/i-1", "image.warming", {"hash": "i-1"})]


async def test_each_session_asks_again_and_one_that_is_warm_is_not_told() -> None:
    world = World()
    world.adopted.set()
    async with world.running() as warmth:
        await world.next()
        world.image, world.is_new = "i-2", False
        warmth.ring()
        assert await world.next() == ("i-2", "me")
    assert [subject for subject, _, _ in world.events] == ["image/i-1"]


@pytest.mark.parametrize("error", [BackendError("no"), FileNotFoundError("gone"), ConnectionError("away")])
async def test_what_cannot_be_warmed_harms_nobody(error: Exception) -> None:
    world = World()
    world.adopted.set()
    world.error = error
    async with world.running() as warmth:
        await world.next()
        world.error = None
        warmth.ring()
        await world.next()
    assert len(world.events) == 1


async def test_nothing_is_warmed_where_nothing_was_ever_used() -> None:
    world = World()
    world.adopted.set()
    world.image = None
    async with world.running() as warmth:
        await asyncio.sleep(0)
        warmth.ring()
        await asyncio.sleep(0)
    assert world.asked.empty()
