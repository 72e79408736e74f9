"""Queued requests of an app whose callers are split: given to a side once, and never left behind by it."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fal_backend.domain.records import Request
from fal_backend.services.couriers import Parcel, Reply

from tests.contract.queue_kit import Rig, ok


async def says_where(parcel: Parcel, runner: str) -> Reply:
    return ok(runner.encode())


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = await Rig.make(tmp_path / "home", says_where)
    await rig.start()
    yield rig
    await rig.stop()


def split(rig: Rig, percent: int, base: str = "base", branch: str = "branch") -> None:
    rig.serve(revision=base, split_revision=branch, split_percent=percent)


async def runner_of(rig: Rig, request_id: str) -> str:
    assert (await rig.done(request_id)).status_code == 200
    return (await rig.view(request_id)).runner or ""


async def given_to(rig: Rig, request_id: str) -> str | None:
    (row,) = await rig.store.read(lambda reader: reader.find(Request, request_id=request_id))
    return row.branch


async def test_each_caller_has_its_side_as_in_direct_calls(rig: Rig) -> None:
    split(rig, 10)
    callers = [f"fk_{n % 100}" for n in range(300)]
    ids = [await rig.submit(sticky=one) for one in callers]
    rig.open("on-base", "base", width=4)
    rig.open("on-branch", "branch", width=4)
    sides: dict[str, set[str]] = defaultdict(set)
    for caller, id in zip(callers, ids, strict=True):
        sides[caller].add(await runner_of(rig, id))
    route = rig.dispatch.find(b"ada/digits")
    assert route is not None
    assert sides == {one: {f"on-{route.of(one).info.revision}"} for one in set(callers)}
    assert 3 <= Counter(min(side) for side in sides.values())["on-branch"] <= 20


async def test_both_sides_ask_for_runners_and_count_as_one_queue(rig: Rig) -> None:
    split(rig, 100)
    first = await rig.submit(sticky="one")
    split(rig, 0)
    second = await rig.submit(sticky="one")
    assert {"base", "branch"} <= set(rig.demands)
    assert rig.queue.size("ada", "digits").normal == 2
    assert [(await rig.view(id)).position for id in (first, second)] == [0, 0]
    assert await rig.queue.flush("ada", "digits") == 2
    assert rig.queue.size("ada", "digits").normal == 0


async def test_who_waits_for_a_withdrawn_branch_goes_to_the_base_in_the_order_of_acceptance(rig: Rig) -> None:
    split(rig, 100)
    early = [await rig.submit(sticky="a") for _ in range(2)]
    split(rig, 0)
    late = [await rig.submit(sticky="a") for _ in range(2)]
    split(rig, 100)
    last = await rig.submit(sticky="a", is_low=True)
    followed = rig.queue.follow("ada", "digits", last)
    assert (await anext(followed)).position == 2
    rig.serve(revision="base")
    assert (await asyncio.wait_for(anext(followed), 10)).position == 4
    await followed.aclose()
    assert [(await rig.view(id)).position for id in (*early, *late)] == [0, 1, 2, 3]
    rig.open("on-branch", "branch", width=4)
    rig.open("on-base", "base")
    assert {await runner_of(rig, id) for id in (*early, *late, last)} == {"on-base"}
    assert [one[0] for one in rig.runners.executions] == [*early, *late, last]


async def test_a_promoted_branch_takes_all_who_wait(rig: Rig) -> None:
    split(rig, 100)
    given = [await rig.submit(sticky="a") for _ in range(3)]
    split(rig, 0)
    others = [await rig.submit(sticky="a") for _ in range(3)]
    rig.serve(revision="branch")
    rig.open("on-base", "base", width=4)
    rig.open("on-branch", "branch", width=4)
    assert {await runner_of(rig, id) for id in (*given, *others)} == {"on-branch"}


async def test_another_branch_is_not_given_those_of_the_one_before(rig: Rig) -> None:
    split(rig, 100)
    id = await rig.submit(sticky="a")
    split(rig, 100, branch="third")
    rig.open("on-third", "third")
    assert rig.queue.size("ada", "digits").running == 0
    rig.open("on-base", "base")
    assert await runner_of(rig, id) == "on-base"


async def test_a_branch_that_ends_while_a_request_is_written_leaves_nobody_behind(rig: Rig) -> None:
    split(rig, 100)
    coming = asyncio.ensure_future(rig.submit(sticky="a"))
    await asyncio.sleep(0)
    rig.serve(revision="base")
    id = await coming
    assert await given_to(rig, id) == "branch"
    rig.open("on-base", "base")
    assert await runner_of(rig, id) == "on-base"


async def test_a_repeated_request_keeps_its_side_while_there_is_one(rig: Rig) -> None:
    tries: list[str] = []

    async def fails_first(parcel: Parcel, runner: str) -> Reply:
        tries.append(runner)
        return ok(b"{}", 503 if len(tries) < 3 else 200)

    rig.runners.act = fails_first
    split(rig, 100)
    rig.open("on-base", "base")
    rig.open("on-branch", "branch")
    first = await rig.submit(sticky="a")
    while len(tries) < 1:
        await asyncio.sleep(0.01)
    split(rig, 0)
    while len(tries) < 2:
        rig.open("on-branch-2", "branch")
        await asyncio.sleep(0.01)
    rig.serve(revision="base")
    assert await runner_of(rig, first) == "on-base"
    assert tries[0] == "on-branch"
    assert tries[1].startswith("on-branch")


@pytest.mark.parametrize("is_withdrawn", [False, True])
async def test_a_side_outlives_the_backend(tmp_path: Path, is_withdrawn: bool) -> None:
    rig = await Rig.make(tmp_path / "home", says_where)
    split(rig, 100)
    await rig.start()
    ids = [await rig.submit(sticky="a") for _ in range(3)]
    await rig.crash()
    again = await Rig.make(tmp_path / "home", says_where, runners=rig.runners)
    split(again, 0)
    await again.queue.load()
    if is_withdrawn:
        again.serve(revision="base")
    await again.start_loaded()
    again.open("on-base", "base")
    again.open("on-branch", "branch")
    side = "on-base" if is_withdrawn else "on-branch"
    assert {await runner_of(again, id) for id in ids} == {side}
    await again.stop()
