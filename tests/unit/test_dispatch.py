from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fal_backend.domain.request import Failure, Refusal
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.lanes import Door, Waiter
from fal_backend.services.routes import Route, RouteInfo

from fal_notebook.wire import AuthMode


class House:
    """A dispatch and what it was heard to say."""

    def __init__(self) -> None:
        self.demands: list[str] = []
        self.verdicts: list[tuple[str, str]] = []
        self.drained: list[str] = []
        self.dispatch = Dispatch(
            self.demands.append,
            lambda runner, reason: self.verdicts.append((runner, reason)),
            self.drained.append,
        )

    def route(self, alias: str = "app", revision: str = "rev") -> Route:
        self.dispatch.set_route(RouteInfo("me", alias, "acc", AuthMode.PUBLIC, revision))
        found = self.dispatch.find(f"me/{alias}".encode())
        assert found is not None
        return found

    def open(self, runner: str = "r-1", revision: str = "rev", width: int = 1) -> None:
        self.dispatch.open_runner(revision, runner, "/none", "/none", width)

    def wait(self, route: Route, timeout_s: float = 30.0, **kwargs: Any) -> Waiter:
        start_by = asyncio.get_running_loop().time() + timeout_s
        return self.dispatch.wait(route, start_by, Failure.STARTUP_TIMEOUT, **kwargs)

    def admit(self, route: Route) -> Door:
        door = route.lane.take()
        assert door is not None
        return door


async def test_a_slot_is_given_at_once_unless_somebody_waits() -> None:
    house = House()
    route = house.route()
    house.open()
    door = house.admit(route)
    waiter = house.wait(route)
    assert house.demands == ["rev"]
    house.open("r-2")
    assert (await waiter.turn).runner_id == "r-2"
    assert route.lane.take() is None
    house.dispatch.release(door)
    assert house.admit(route) is door


async def test_those_that_wait_are_not_asked_for_again_at_each_release() -> None:
    house = House()
    route = house.route()
    house.open()
    door = house.admit(route)
    waiters = [house.wait(route) for _ in range(3)]
    assert len(house.demands) == 3
    house.dispatch.release(door)
    assert waiters[0].turn.done()
    assert len(house.demands) == 3


async def test_a_waiter_fails_when_its_time_is_up() -> None:
    house = House()
    waiter = house.wait(house.route(), timeout_s=0.01)
    with pytest.raises(Refusal) as refused:
        await waiter.turn
    assert refused.value.error_type == "startup_timeout"
    assert house.dispatch.load("rev").waiting == 0


async def test_one_that_was_sent_back_stands_before_the_others() -> None:
    house = House()
    route = house.route()
    first, returner = house.wait(route), house.wait(route, at_head=True)
    house.open()
    assert returner.turn.done()
    assert not first.turn.done()
    house.dispatch.release(await returner.turn)
    assert first.turn.done()


async def test_leaving_after_ones_turn_has_come_keeps_the_slot() -> None:
    house = House()
    route = house.route()
    waiter = house.wait(route)
    house.open()
    house.dispatch.leave(waiter)
    assert house.dispatch.load("rev").running == 1
    house.dispatch.release(await waiter.turn)


async def test_a_closed_runner_is_drained_when_its_last_call_ends() -> None:
    house = House()
    route = house.route()
    house.open(width=2)
    one, two = house.admit(route), house.admit(route)
    house.dispatch.close_runner("r-1")
    house.dispatch.release(one)
    await asyncio.sleep(0)
    assert house.drained == []
    house.dispatch.release(two)
    await asyncio.sleep(0)
    assert house.drained == ["r-1"]
    assert route.lane.take() is None
    assert house.dispatch.load("rev").runners == {}


async def test_an_idle_runner_is_drained_at_once_and_only_once() -> None:
    house = House()
    house.route()
    house.open()
    house.dispatch.close_runner("r-1")
    house.dispatch.close_runner("r-1")
    await asyncio.sleep(0)
    assert house.drained == ["r-1"]


async def test_a_condemned_runner_takes_no_more_calls_and_others_are_asked_for() -> None:
    house = House()
    route = house.route()
    house.open()
    door = house.admit(route)
    waiter = house.wait(route)
    house.dispatch.condemn(door, "answer_503")
    house.dispatch.condemn(door, "answer_503")
    house.dispatch.release(door)
    assert house.verdicts == [("r-1", "answer_503")]
    assert house.demands == ["rev", "rev"]
    assert not waiter.turn.done()
    house.dispatch.cut_runner("r-1")
    house.open("r-2")
    assert (await waiter.turn).runner_id == "r-2"


async def test_a_runner_that_sends_a_call_back_rests_and_is_broken_after_twenty_times() -> None:
    house = House()
    route = house.route()
    house.open()
    for times in range(1, 20):
        door = house.admit(route)
        door.busy_streak = 0
        house.dispatch.send_back(door, times)
        assert route.lane.take() is None
        await asyncio.sleep(0.005)
    assert house.verdicts == []
    assert house.dispatch.load("rev").served == 0
    house.dispatch.send_back(house.admit(route), 20)
    assert house.verdicts == [("r-1", "broken")]


async def test_dropping_an_app_leaves_the_others_of_its_revision_in_line() -> None:
    house = House()
    one, two = house.route("one"), house.route("two")
    gone, stays = house.wait(one), house.wait(two)
    house.dispatch.drop_route("me", "one")
    with pytest.raises(Refusal, match="'one' not found"):
        await gone.turn
    assert not stays.turn.done()
    assert [info.alias for info in house.dispatch.routes()] == ["two"]
    with pytest.raises(Refusal):
        house.wait(one)
    house.dispatch.drop_route("me", "two")
    with pytest.raises(Refusal):
        await stays.turn


async def test_lanes_that_nothing_needs_are_forgotten() -> None:
    house = House()
    for n in range(50):
        house.route(revision=f"rev{n}")
        house.open(f"r-{n}", f"rev{n}")
        house.dispatch.cut_runner(f"r-{n}")
    assert list(house.dispatch._lanes) == ["rev49"]


def parted(house: House, revision: str = "rev", branch: str | None = "new", percent: int = 30) -> Route:
    """An app of which a part goes to another revision."""
    info = RouteInfo(
        "me", "app", "acc", AuthMode.PUBLIC, revision, split_revision=branch, split_percent=percent
    )
    house.dispatch.set_route(info)
    found = house.dispatch.find(b"me/app")
    assert found is not None
    return found


async def test_a_callers_side_stays_and_a_growing_part_takes_nobody_back() -> None:
    house = House()
    callers = [f"fk_{number}" for number in range(2_000)]
    sides: dict[int, set[str]] = {}
    for percent in (0, 10, 30, 90, 100):
        route = parted(house, percent=percent)
        sides[percent] = {one for one in callers if route.of(one).info.revision == "new"}
        assert sides[percent] == {one for one in callers if route.of(one).is_branch}
    assert not sides[0]
    assert sides[0] <= sides[10] <= sides[30] <= sides[90] <= sides[100] == set(callers)
    assert 0.07 <= len(sides[10]) / len(callers) <= 0.13
    assert parted(house, branch=None, percent=0).of("fk_1").info.revision == "rev"


async def test_who_waits_for_the_branch_gets_its_runner_and_moves_when_the_split_ends() -> None:
    house = House()
    route = parted(house)
    assert route.branch is not None
    plain, other = house.wait(route), house.wait(route.branch)
    assert house.demands == ["rev", "new"]
    house.open("r-new", revision="new")
    assert (await other.turn).runner_id == "r-new"
    assert not plain.turn.done()
    late = house.wait(route.branch)
    parted(house, branch=None, percent=0)
    assert late.lane.revision == "rev"
    house.open("r-old", width=2)
    assert {(await plain.turn).runner_id, (await late.turn).runner_id} == {"r-old"}


async def test_promoting_the_branch_keeps_its_line_and_moves_the_rest_there() -> None:
    house = House()
    route = parted(house)
    assert route.branch is not None
    first, second = house.wait(route.branch), house.wait(route)
    parted(house, revision="new", branch=None, percent=0)
    house.open("r-new", revision="new", width=2)
    assert {(await first.turn).runner_id, (await second.turn).runner_id} == {"r-new"}
    assert house.dispatch.load("rev").waiting == 0


async def test_a_closed_runner_with_a_call_can_take_calls_again() -> None:
    house = House()
    route = house.route()
    house.open(width=2)
    door = house.admit(route)
    house.dispatch.close_runner("r-1")
    assert route.lane.take() is None
    assert house.dispatch.can_reopen("r-1")
    house.open(width=2)
    assert house.admit(route) is door
    house.dispatch.release(door)
    house.dispatch.release(door)
    await asyncio.sleep(0)
    assert house.drained == []
    house.dispatch.close_runner("r-1")
    assert not house.dispatch.can_reopen("r-1")


async def test_a_branch_goes_with_its_app() -> None:
    house = House()
    route = parted(house)
    assert route.branch is not None
    waiters = [house.wait(route), house.wait(route.branch)]
    house.dispatch.drop_route("me", "app")
    for waiter in waiters:
        with pytest.raises(Refusal) as caught:
            await waiter.turn
        assert caught.value.status == 404
    assert house.dispatch._lanes == {}
