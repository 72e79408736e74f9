"""The queue's line beside the direct calls: turns, moves, demand."""

from __future__ import annotations

import asyncio
from collections import deque

from fal_backend.domain.request import Failure
from fal_backend.services.dispatch import Dispatch
from fal_backend.services.lanes import Door
from fal_backend.services.routes import RouteInfo

from fal_notebook.wire import AuthMode


class Feed:
    def __init__(self, count: int, hint: str | None = None) -> None:
        self.left = deque(range(count))
        self.doors: list[Door] = []
        self.given_hint = hint

    def waiting(self) -> int:
        return len(self.left)

    def oldest_since(self) -> float:
        return 0.0

    def hint(self) -> str | None:
        return self.given_hint

    def start(self, door: Door) -> None:
        self.left.popleft()
        self.doors.append(door)


def make(width: int = 1, alias: str = "digits") -> tuple[Dispatch, list[str]]:
    asked: list[str] = []
    dispatch = Dispatch(asked.append, lambda id, why: None, lambda id: None)
    dispatch.set_route(RouteInfo("ada", alias, "a", AuthMode.PUBLIC, "rev"))
    return dispatch, asked


async def test_after_four_direct_calls_a_queued_one_starts() -> None:
    dispatch, _ = make()
    route = dispatch.find(b"ada/digits")
    assert route is not None
    feed = Feed(3)
    order: list[str] = []
    waiters = [
        dispatch.wait(route, asyncio.get_running_loop().time() + 60, Failure.STARTUP_TIMEOUT)
        for _ in range(12)
    ]
    dispatch.offer("ada/digits", feed)
    dispatch.open_runner("rev", "r", "/s", "/c", 1)
    door = dispatch.door("r")
    assert door is not None
    for _ in range(15):
        done = [waiter for waiter in waiters if waiter.turn.done()]
        order.append("direct" if len(done) > order.count("direct") else "queued")
        dispatch.release(door)
    assert order == [*["direct"] * 4, "queued", *["direct"] * 4, "queued", *["direct"] * 4, "queued"]
    assert len(feed.doors) == 3


async def test_a_queue_asks_for_runners_but_not_for_each_request() -> None:
    dispatch, asked = make()
    feed = Feed(100)
    for _ in range(100):
        dispatch.offer("ada/digits", feed)
    assert asked == ["rev"]
    load = dispatch.load("rev")
    assert load.waiting == 100
    assert load.oldest_wait_s > 0


async def test_a_queue_moves_with_its_alias_and_is_told_of_its_end() -> None:
    dispatch, _ = make()
    dropped: list[str] = []
    dispatch.on_dropped = dropped.append
    feed = Feed(2)
    dispatch.offer("ada/digits", feed)
    dispatch.set_route(RouteInfo("ada", "digits", "a", AuthMode.PUBLIC, "next"))
    assert (dispatch.load("rev").waiting, dispatch.load("next").waiting) == (0, 2)
    dispatch.open_runner("rev", "old", "/s", "/c", 4)
    assert feed.doors == []
    dispatch.open_runner("next", "new", "/s", "/c", 1)
    assert [door.runner_id for door in feed.doors] == ["new"]
    dispatch.drop_route("ada", "digits")
    assert dropped == ["ada/digits"]
    dispatch.release(feed.doors[0])
    assert len(feed.doors) == 1


async def test_apps_of_one_revision_take_turns() -> None:
    dispatch, _ = make()
    dispatch.set_route(RouteInfo("ada", "other", "a", AuthMode.PUBLIC, "rev"))
    one, two = Feed(3), Feed(3)
    dispatch.offer("ada/digits", one)
    dispatch.offer("ada/other", two)
    dispatch.open_runner("rev", "r", "/s", "/c", 4)
    assert (len(one.doors), len(two.doors)) == (2, 2)


async def test_a_call_of_before_takes_a_slot_whether_one_is_free_or_not() -> None:
    dispatch, _ = make()
    dispatch.open_runner("rev", "r", "/s", "/c", 1)
    first, second = dispatch.occupy("r"), dispatch.occupy("r")
    assert first is second
    assert first is not None
    assert dispatch.load("rev").runners["r"].inflight == 2
    feed = Feed(1)
    dispatch.offer("ada/digits", feed)
    dispatch.release(first)
    assert feed.doors == []
    dispatch.release(first)
    assert feed.doors == [first]
    assert dispatch.occupy("nobody") is None


async def test_a_hint_chooses_the_runner_that_has_it() -> None:
    dispatch, _ = make()
    for name in ("a", "b", "c"):
        dispatch.open_runner("rev", name, "/s", "/c", 1)
    door = dispatch.door("a")
    assert door is not None
    door.hints = frozenset({"model-x"})
    feed = Feed(2, "model-x")
    dispatch.offer("ada/digits", feed)
    assert [one.runner_id for one in feed.doors] == ["a", "c"]


async def test_a_runner_that_was_closed_before_drains_only_when_its_calls_are_counted_and_ended() -> None:
    drained: list[str] = []
    dispatch = Dispatch(lambda revision: None, lambda id, why: None, drained.append)
    dispatch.set_route(RouteInfo("ada", "digits", "a", AuthMode.PUBLIC, "rev"))
    feed = Feed(1)
    dispatch.hold_runner("rev", "busy", "/s", "/c", 2)
    dispatch.hold_runner("rev", "idle", "/s", "/c", 2)
    dispatch.offer("ada/digits", feed)
    door = dispatch.occupy("busy")
    assert door is not None
    for runner_id in ("busy", "idle", "unknown"):
        dispatch.let_go(runner_id)
    await asyncio.sleep(0)
    assert (drained, feed.doors) == (["idle"], [])
    dispatch.release(door)
    await asyncio.sleep(0)
    assert drained == ["idle", "busy"]
    assert dispatch.load("rev").runners == {}
