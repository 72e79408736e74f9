"""A request that nobody stands before is accepted and leased by one commit; its slot is never lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.domain.records import Request
from fal_backend.domain.request import NOT_FORWARDED, Refusal
from fal_backend.services.couriers import Parcel, Reply

from tests.contract.queue_kit import Rig, ok


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    gate = asyncio.Event()

    async def act(parcel: Parcel, runner: str) -> Reply:
        await gate.wait()
        return ok()

    rig = await Rig.make(tmp_path / "home", act)
    rig.gate = gate  # type: ignore[attr-defined]
    rig.serve()
    await rig.start()
    yield rig
    await rig.stop()


async def state(rig: Rig, request_id: str) -> tuple[str, int]:
    (row,) = await rig.store.read(lambda reader: reader.find(Request, request_id=request_id))
    return row.state, row.attempt


def free(rig: Rig) -> int:
    return len(rig.dispatch._lane("rev-1").slots)


async def test_it_is_leased_when_its_caller_hears_of_it_and_others_wait(rig: Rig) -> None:
    rig.open()
    first, second = await rig.submit(), await rig.submit()
    assert await state(rig, first) == ("leased", 1)
    assert await state(rig, second) == ("queued", 0)
    assert rig.queue.size("ada", "digits").running == 1
    rig.gate.set()  # type: ignore[attr-defined]
    assert [(await rig.done(id)).attempt for id in (first, second)] == [1, 1]
    assert rig.queue.size("ada", "digits").running == 0
    assert free(rig) == 1


async def test_a_slot_taken_for_a_submission_that_becomes_no_request_is_given_back(rig: Rig) -> None:
    first = await rig.submit(b"1", idempotency_key="k")
    rig.open("r-1")
    rig.open("r-2")
    assert free(rig) == 1
    assert await rig.submit(b"1", idempotency_key="k") == first
    with pytest.raises(Refusal):
        await rig.submit(b"2", idempotency_key="k")
    assert free(rig) == 1
    assert await state(rig, await rig.submit(b"3", idempotency_key="l")) == ("leased", 1)
    assert free(rig) == 0


async def test_what_no_app_gets_of_a_direct_call_it_gets_of_no_request(tmp_path: Path) -> None:
    got: list[Parcel] = []

    async def act(parcel: Parcel, runner: str) -> Reply:
        got.append(parcel)
        return ok()

    rig = await Rig.make(tmp_path / "home", act)
    rig.serve()
    await rig.start()
    rig.open()
    own = ((b"content-type", b"application/json"), (b"x-own", b"1"))
    kept_back = tuple((name, b"x") for name in (*NOT_FORWARDED, b"idempotency-key", b"host", b"x-fal-nb-run"))
    await rig.done(await rig.submit(headers=own + kept_back))
    await rig.stop()
    assert got[0].headers == own
