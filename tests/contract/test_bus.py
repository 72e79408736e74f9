"""Followers get every event once and in order, from wherever they begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from fal_backend.adapters.bus import RESET, EventBus
from fal_backend.adapters.store.opening import open_store
from fal_backend.adapters.store.retention import trim_events
from fal_backend.adapters.store.store import SqliteStore
from fal_backend.domain.records import EventRow
from fal_backend.ports import Tx

from fal_notebook.places import Places

DEADLINE_S = 20


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[SqliteStore, EventBus]]:
    store, bus = open_store(Places(tmp_path), asyncio.get_running_loop())
    yield store, bus
    await store.close()


async def emit(store: SqliteStore, count: int, app: str = "a") -> None:
    def op(tx: Tx) -> None:
        for i in range(count):
            tx.emit(f"app/{app}", "x", {"i": i}, app=app)

    await store.write(op)


async def take(events: AsyncIterator[EventRow], count: int) -> list[EventRow]:
    found: list[EventRow] = []
    async with asyncio.timeout(DEADLINE_S), aclosing(events) as stream:  # type: ignore[type-var]
        async for event in stream:
            found.append(event)
            if len(found) == count:
                break
    return found


def numbers(events: list[EventRow]) -> list[int]:
    return [event.n for event in events]


async def test_a_follower_gets_what_comes_later(opened: tuple[SqliteStore, EventBus]) -> None:
    store, bus = opened
    following = asyncio.ensure_future(take(bus.follow(bus.last), 3))
    await asyncio.sleep(0)
    for _ in range(3):
        await emit(store, 1)
    assert numbers(await following) == [1, 2, 3]


async def test_backlog_of_an_earlier_life_then_live_without_a_gap(tmp_path: Path) -> None:
    first, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    await emit(first, 1234)
    await first.close()
    store, bus = open_store(Places(tmp_path), asyncio.get_running_loop())
    assert bus.last == 1234
    following = asyncio.ensure_future(take(bus.follow(0), 2000))
    for _ in range(766):
        await emit(store, 1)
    assert numbers(await following) == list(range(1, 2001))
    await store.close()


async def test_filters_apply_to_backlog_and_to_live_events(tmp_path: Path) -> None:
    first, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    for app in ("a", "b", "a"):
        await emit(first, 1, app)
    await first.close()
    store, bus = open_store(Places(tmp_path), asyncio.get_running_loop())
    following = asyncio.ensure_future(take(bus.follow(0, app="a", subject="app/a"), 4))
    for app in ("b", "a", "b", "a"):
        await emit(store, 1, app)
    assert numbers(await following) == [1, 3, 5, 7]
    await store.close()


async def test_a_slow_follower_that_falls_out_of_the_ring_goes_back_to_the_store(
    opened: tuple[SqliteStore, EventBus],
) -> None:
    store, _ = opened
    small = EventBus(store, 0, size=16)
    stream = small.follow(0)
    await emit(store, 2)
    small.publish(await store.read(lambda r: r.events(0, 1000)))
    found = [await anext(stream)]
    await emit(store, 500)
    small.publish(await store.read(lambda r: r.events(2, 1000)))
    found += await take(stream, 501)
    assert numbers(found) == list(range(1, 503))


async def test_a_follower_waits_when_the_store_is_ahead_of_the_ring(
    opened: tuple[SqliteStore, EventBus],
) -> None:
    store, _ = opened
    await emit(store, 3)
    late = EventBus(store, 2, size=16)
    following = asyncio.ensure_future(take(late.follow(0), 4))
    await emit(store, 1)
    late.publish(await store.read(lambda r: r.events(2, 10)))
    assert numbers(await following) == [1, 2, 3, 4]


async def test_past_retention_the_first_event_is_a_reset(tmp_path: Path) -> None:
    first, _ = open_store(Places(tmp_path), asyncio.get_running_loop())
    await emit(first, 2500)
    assert await trim_events(first, now_us=0, keep=100) == 2400
    assert await first.read(lambda r: r.first_event()) == 2401
    await first.close()
    store, bus = open_store(Places(tmp_path), asyncio.get_running_loop())
    found = await take(bus.follow(5), 101)
    assert (found[0].kind, found[0].n) == (RESET, 2400)
    assert numbers(found[1:]) == list(range(2401, 2501))
    await store.close()


async def test_events_too_old_are_trimmed_and_numbers_go_on(opened: tuple[SqliteStore, EventBus]) -> None:
    store, bus = opened
    await emit(store, 10)
    assert await trim_events(store, now_us=2**60) == 10
    assert await store.read(lambda r: (r.first_event(), r.last_event())) == (11, 10)
    await emit(store, 1)
    assert bus.last == 11


async def test_a_number_from_another_store_gives_a_reset(opened: tuple[SqliteStore, EventBus]) -> None:
    store, bus = opened
    await emit(store, 2)
    stream = bus.follow(99)
    first = await anext(stream)
    assert (first.kind, first.n) == (RESET, 2)
    await emit(store, 1)
    assert numbers(await take(stream, 1)) == [3]


async def test_many_followers_each_get_everything(opened: tuple[SqliteStore, EventBus]) -> None:
    store, bus = opened
    following = [asyncio.ensure_future(take(bus.follow(0), 300)) for _ in range(50)]
    await asyncio.gather(*(emit(store, 1) for _ in range(300)))
    for found in await asyncio.gather(*following):
        assert numbers(found) == list(range(1, 301))
