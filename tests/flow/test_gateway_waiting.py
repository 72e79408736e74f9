"""Calls that find no free slot: they ask for a runner, wait in order, and leave the line for good reasons."""

from __future__ import annotations

import asyncio

import pytest
from fal_backend.services import dispatch

from tests.flow.gateway_rig import Rig, eventually, on_uvloop, rig


async def waiting(house: Rig, count: int) -> None:
    await eventually(f"{count} calls in line", lambda: house.load.waiting == count)


@on_uvloop
async def test_a_call_that_finds_no_runner_asks_for_one_and_is_served_when_it_comes() -> None:
    async with rig() as house:
        house.route()
        call = asyncio.create_task(house.call("POST", "/run/me/app", json={}))
        await waiting(house, 1)
        assert house.demands == ["rev1"]
        assert house.load.oldest_wait_s > 0
        await house.runner()
        assert (await call).status_code == 200
        await eventually("an idle runner", lambda: house.load.runners["r-1"].idle_since is not None)
        assert (house.load.served, house.dispatch.served("me", "app")) == (1, 1)


@on_uvloop
async def test_calls_are_served_in_the_order_in_which_they_came() -> None:
    async with rig() as house:
        house.route()
        order: list[int] = []

        async def call(n: int) -> None:
            await house.call("POST", "/run/me/app", json={})
            order.append(n)

        calls = []
        for n in range(6):
            calls.append(asyncio.create_task(call(n)))
            await waiting(house, n + 1)
        await house.runner()
        await asyncio.gather(*calls)
        assert order == [0, 1, 2, 3, 4, 5]


@on_uvloop
async def test_no_more_calls_run_at_a_time_than_the_runner_takes() -> None:
    async with rig() as house:
        house.route(max_multiplexing=2)
        runner = await house.runner(width=2)
        calls = [asyncio.create_task(house.call("POST", "/run/me/app/slow?s=0.3")) for _ in range(3)]
        await waiting(house, 1)
        assert house.load.running == 2
        assert house.load.runners["r-1"].inflight == 2
        assert [(await call).status_code for call in calls] == [200, 200, 200]
        assert len((await house.facts(runner))["started"]) == 3


@on_uvloop
async def test_the_callers_own_time_limit_is_told_apart_from_the_apps() -> None:
    async with rig() as house:
        house.route(start_timeout_s=0.5)
        mine = await house.call("POST", "/run/me/app", headers={"x-fal-request-timeout": "0.2"})
        assert (mine.status_code, mine.headers["x-fal-request-timeout-type"]) == (504, "user")
        theirs = await house.call("POST", "/run/me/app", headers={"x-fal-request-timeout": "90"})
        assert (theirs.status_code, theirs.json()["error_type"]) == (504, "startup_timeout")
        assert "x-fal-request-timeout-type" not in theirs.headers
        assert theirs.headers["x-fal-error-type"] == "startup_timeout"
        wrong = await house.call("POST", "/run/me/app", headers={"x-fal-request-timeout": "soon"})
        assert wrong.status_code == 400
        assert house.load.waiting == 0


@on_uvloop
async def test_a_line_that_is_full_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LANE_LIMIT", 2)
    async with rig() as house:
        house.route()
        calls = [asyncio.create_task(house.call("POST", "/run/me/app")) for _ in range(2)]
        await waiting(house, 2)
        refused = await house.call("POST", "/run/me/app")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "x-fal-request-id" in refused.headers
        house.dispatch.drop_route("me", "app")
        assert [(await call).status_code for call in calls] == [404, 404]


@on_uvloop
async def test_a_caller_that_leaves_gives_up_its_place() -> None:
    async with rig() as house:
        house.route()
        call = asyncio.create_task(house.call("POST", "/run/me/app", json={}))
        await waiting(house, 1)
        call.cancel()
        await waiting(house, 0)
        runner = await house.runner()
        assert (await house.call("POST", "/run/me/app/status/200")).status_code == 200
        assert runner.control.cancelled == []


@on_uvloop
async def test_waiting_calls_move_along_when_the_alias_moves() -> None:
    async with rig() as house:
        house.route(revision="rev0")
        call = asyncio.create_task(house.call("POST", "/run/me/app", json={}))
        await eventually("a call in line", lambda: house.dispatch.load("rev0").waiting == 1)
        house.route(revision="rev1")
        assert house.demands[-1] == "rev1"
        await house.runner(revision="rev1")
        assert (await call).headers["x-fal-revision"] == "rev1"


@on_uvloop
async def test_a_revision_that_cannot_start_fails_those_that_wait_for_it() -> None:
    async with rig() as house:
        house.route()
        call = asyncio.create_task(house.call("POST", "/run/me/app", json={}))
        await waiting(house, 1)
        house.dispatch.fail_waiters("rev1", 503, "runner_scheduling_failure", "setup() raised ValueError")
        answer = await call
        assert answer.status_code == 503
        assert answer.json() == {
            "detail": "setup() raised ValueError",
            "error_type": "runner_scheduling_failure",
        }


@on_uvloop
async def test_a_call_that_the_runners_gate_sends_back_is_served_later() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("POST", "/run/me/app/busy?times=5", content=b"the body")
        assert (answer.status_code, answer.json()["size"]) == (200, 8)
        await eventually("no call in flight", lambda: house.load.running == 0)
        assert house.verdicts == []


@on_uvloop
async def test_a_large_body_is_not_sent_to_a_gate_that_refuses() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        answer = await house.call("POST", "/run/me/app/busy?times=3", content=b"x" * 1_000_000)
        assert (answer.status_code, answer.json()["size"]) == (200, 1_000_000)


@on_uvloop
async def test_a_runner_that_is_closed_finishes_its_calls_first() -> None:
    async with rig() as house:
        house.route()
        await house.runner()
        call = asyncio.create_task(house.call("POST", "/run/me/app/slow?s=0.3"))
        await eventually("a call in flight", lambda: house.load.running == 1)
        house.dispatch.close_runner("r-1")
        other = asyncio.create_task(house.call("POST", "/run/me/app"))
        await waiting(house, 1)
        assert house.drained == []
        assert (await call).status_code == 200
        await eventually("the runner to be drained", lambda: house.drained == ["r-1"])
        await house.runner()
        assert (await other).headers["x-fal-runner-id"] == "r-2"
