"""What goes when: files that no request names, files of submissions that became no request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.domain.request import Refusal
from fal_backend.ports import Payload
from fal_backend.services.couriers import Parcel, Reply

from tests.contract.queue_kit import Rig, ok


async def large() -> AsyncIterator[bytes]:
    yield b"x" * 100_000


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async def act(parcel: Parcel, runner: str) -> Reply:
        return ok(await made.queue._payloads.save(large(), 1_000_000))  # type: ignore[arg-type]

    made = await Rig.make(tmp_path / "home", act)
    made.serve()
    await made.start()
    yield made
    await made.stop()


def files(rig: Rig) -> list[Path]:
    return sorted((rig.home / "store" / "payloads").glob("*/*"))


async def saved(rig: Rig) -> Payload:
    return await rig.queue.save_body(large(), 1_000_000)


def make_old(rig: Rig) -> None:
    for file in files(rig):
        os.utime(file, (time.time() - 7200,) * 2)


async def sweep(rig: Rig) -> int:
    return sum([await rig.queue.retention.sweep(shelf) for shelf in range(256)])


async def test_old_files_that_no_request_names_are_removed_and_all_others_stay(rig: Rig) -> None:
    rig.open()
    await rig.done(await rig.submit(await saved(rig)))  # type: ignore[arg-type]
    named = files(rig)
    assert len(named) == 2, "its body and its answer"
    left = await saved(rig)
    half = rig.queue._payloads.path("ab" * 16).with_name("." + "ab" * 16)
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    make_old(rig)
    young = await saved(rig)
    assert await sweep(rig) == 2
    assert files(rig) == sorted([*named, rig.queue._payloads.path(young.name)])
    assert left.name not in {file.name for file in files(rig)}
    assert await sweep(rig) == 0


async def test_the_body_of_a_submission_that_became_no_request_goes_at_once(rig: Rig) -> None:
    await rig.submit(b"1", idempotency_key="k")
    with pytest.raises(Refusal):
        await rig.submit(await saved(rig), idempotency_key="k")  # type: ignore[arg-type]
    assert files(rig) == []
    first = await rig.submit(await saved(rig), idempotency_key="l")  # type: ignore[arg-type]
    assert await rig.submit(await saved(rig), idempotency_key="l") == first  # type: ignore[arg-type]
    assert len(files(rig)) == 1


async def test_a_full_disk_puts_retention_off_and_ends_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fal_backend.services import queue_retention

    from fal_notebook.errors import LimitError

    tries: list[int] = []

    async def full(keep_us: int = 0) -> int:
        tries.append(1)
        raise LimitError("full", code="limit.disk_full", fix="")

    monkeypatch.setattr(queue_retention, "_EVERY_S", 0.01)
    monkeypatch.setattr(rig.queue.retention, "trim", full)
    running = asyncio.ensure_future(rig.queue.retention.run())
    async with asyncio.timeout(10):
        while len(tries) < 3:
            await asyncio.sleep(0.01)
    assert not running.done()
    running.cancel()
