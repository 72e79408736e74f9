"""Who gets the next call: admission over all apps, the runners that are open, and the routes that lead to them.

Rules: event-loop thread only, so no locks; no store, no sockets, no I/O. Who gets a door, from a lane's `take` or a
waiter's `turn`, owns one slot of it, and gives it back with `release`. An alias that moves takes those who wait along;
a runner that is closed has drained when its last call has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from fal_backend.domain.request import Failure, Refusal, refusal_of, unknown_app
from fal_backend.services.lanes import Door, Feed, Lane, Load, Waiter
from fal_backend.services.routes import Route, RouteInfo
from fal_backend.services.tally import Tallies

__all__ = ["START_LIMIT_S", "Dispatch"]

LANE_LIMIT = 1_000
START_LIMIT_S = 600.0
_BUSY_LIMIT = 20
_DEMAND_S = 0.05
_BUSY_FIRST_S, _BUSY_MOST_S = 0.001, 2.0


class Dispatch:
    """Admission of calls over all apps.

    on_demand(revision): a call waits and no slot is free. on_verdict(runner_id, reason): the runner takes no more
    calls and is to be ended. on_drained(runner_id): a closed runner has finished its last call.
    """

    def __init__(
        self,
        on_demand: Callable[[str], None],
        on_verdict: Callable[[str, str], None],
        on_drained: Callable[[str], None],
    ) -> None:
        self._on_demand = on_demand
        self._on_verdict = on_verdict
        self._on_drained = on_drained
        self._routes: dict[bytes, Route] = {}
        self._lanes: dict[str, Lane] = {}
        self._doors: dict[str, Door] = {}
        self._short: dict[str, str] = {}
        self._born = 0
        self.tallies = Tallies()
        self.on_dropped: Callable[[str], None] = lambda key: None
        """Told of an app (`owner/alias`) that is no more."""
        self.on_rejoined: Callable[[str], None] = lambda key: None
        """Told of an app whose split has ended: who was given to its branch goes with the alias again."""

    # Routes

    def set_route(self, info: RouteInfo) -> None:
        """Create or move an alias; its waiting calls move along to the new revision."""
        key = f"{info.owner}/{info.alias}"
        before = self._routes.get(key.encode())
        route = self._routes[key.encode()] = self._made_route(info)
        if before is not None:
            self._replace(before, route)
        for way in route.ways:
            self._serve(way.lane)

    def _replace(self, before: Route, route: Route) -> None:
        ended = (
            before.branch if before.branch is not None and route.instead_of(before.branch) is route else None
        )
        if ended is not None:
            ended.lane.feeds.pop(route.key, None)
        for old in before.ways:
            old.lane.routes -= 1
            old.lane.move(route.key, route.instead_of(old).lane)
        if ended is not None:
            self.on_rejoined(route.key)
        for old in before.ways:
            self._forget_unused(old.lane)

    def _made_route(self, info: RouteInfo) -> Route:
        branch = None
        if info.branch is not None:
            branch = Route(info.branch, self._lane(info.branch.revision), self.tallies, is_branch=True)
        route = Route(info, self._lane(info.revision), self.tallies, branch)
        for way in route.ways:
            way.lane.routes += 1
        return route

    def drop_route(self, owner: str, alias: str) -> None:
        """Remove an alias; its waiting calls get 404."""
        route = self._routes.pop(f"{owner}/{alias}".encode(), None)
        if route is None:
            return
        self.tallies.drop(route.key)
        for way in route.ways:
            for waiter in way.lane.of_app(route.key):
                waiter.fail(unknown_app(alias))
            way.lane.feeds.pop(route.key, None)
            way.lane.routes -= 1
        self.on_dropped(route.key)
        for way in route.ways:
            self._forget_unused(way.lane)

    def routes(self) -> list[RouteInfo]:
        """Return every live alias."""
        return [route.info for route in self._routes.values()]

    def find(self, key: bytes) -> Route | None:
        """Return the route of `owner/alias`."""
        return self._routes.get(key)

    def way(self, route: Route, door: Door) -> Route:
        """Return by which way of an alias a call has come to a runner: the alias may have moved as it waited."""
        current = self._routes.get(route.key.encode())
        ways = current.ways if current is not None else ()
        return next((way for way in ways if way.lane is door.lane), route)

    # Runners

    def open_runner(
        self,
        revision: str,
        runner_id: str,
        socket: str,
        control: str,
        max_multiplexing: int,
        *,
        grace_s: float = 0.0,
    ) -> None:
        """Let a runner take calls; one that was closed and has calls still takes new ones again."""
        known = self._doors.get(runner_id)
        if known is not None:
            self._reopen(known)
            return
        lane = self._lane(revision)
        self._born += 1
        door = Door(lane, runner_id, socket, control, max_multiplexing, self._born)
        door.grace_s = grace_s
        self._doors[runner_id] = lane.doors[runner_id] = door
        lane.slots.add(door)
        lane.pump()

    def can_reopen(self, runner_id: str) -> bool:
        """Return whether a runner that was closed may take calls again: while it has some."""
        door = self._doors.get(runner_id)
        if door is None or not door.is_closing or not door.taken:
            return False
        return door.link is None or door.link.can_reopen

    def _reopen(self, door: Door) -> None:
        if self.can_reopen(door.runner_id):
            door.is_open, door.is_closing = True, False
            if door.link is not None:
                door.link.reopen()
            door.lane.slots.add(door)
            door.lane.pump()

    def close_runner(self, runner_id: str) -> None:
        """Let a runner take no new calls; `on_drained` is called when its last one has ended."""
        door = self._doors.get(runner_id)
        if door is None or door.is_closing:
            return
        self._shut(door)
        door.is_closing = True
        if door.taken == 0:
            self._drained(door)

    def hold_runner(
        self,
        revision: str,
        runner_id: str,
        socket: str,
        control: str,
        max_multiplexing: int,
        *,
        grace_s: float = 0.0,
    ) -> None:
        """Know a runner that was closed before this process began, and may still have calls of the queue.

        It takes no new ones, and has drained at the earliest when `let_go` says that those it has are counted.
        """
        if runner_id in self._doors:
            return
        lane = self._lane(revision)
        self._born += 1
        door = Door(lane, runner_id, socket, control, max_multiplexing, self._born)
        door.grace_s = grace_s
        door.is_open, door.is_closing = False, True
        self._doors[runner_id] = lane.doors[runner_id] = door

    def let_go(self, runner_id: str) -> None:
        """Note that every call of a runner is counted: a closed one without any has drained."""
        door = self._doors.get(runner_id)
        if door is not None and door.is_closing and door.taken == 0:
            self._drained(door)

    def cut_runner(self, runner_id: str) -> None:
        """Break every connection to a runner that is gone; its calls fail."""
        door = self._doors.pop(runner_id, None)
        if door is None:
            return
        self._shut(door)
        door.is_closing = False
        del door.lane.doors[runner_id]
        if door.link is not None:
            door.link.abort()
        self._forget_unused(door.lane)

    def condemn(self, door: Door, reason: str) -> None:
        """Let a runner take no new calls and have it ended."""
        if door.is_open:
            self._shut(door)
            self._on_verdict(door.runner_id, reason)

    # Queued requests

    def offer(self, app: str, feed: Feed, branch: str | None = None) -> None:
        """Note that a queue of an app has something to start; it is asked for it as slots become free.

        branch: the revision that those in it were given to by a split.
        """
        route = self._routes.get(app.encode())
        if route is None:
            return
        lane = route.way(branch).lane
        lane.feeds[app] = feed
        lane.pump()
        if lane.feeds and time.monotonic() - lane.asked_at >= _DEMAND_S:
            # A flood of submissions is not a flood of questions: the next tick sees the rest.
            lane.asked_at = time.monotonic()
            self._on_demand(lane.revision)

    def occupy(self, runner_id: str) -> Door | None:
        """Take a slot of a runner that has a call already; None when it takes no calls."""
        door = self._doors.get(runner_id)
        if door is None:
            return None
        door.lane.occupy(door)
        return door

    def door(self, runner_id: str) -> Door | None:
        """Return a runner that takes calls, or still has some."""
        return self._doors.get(runner_id)

    # Calls

    def wait(self, route: Route, start_by: float, failure: Failure, *, at_head: bool = False) -> Waiter:
        """Stand in line until `start_by` (loop time), then fail with `failure`.

        at_head is for a call that had a slot and was sent back. Raises: Refusal when the line is full, or the
        app is no more.
        """
        current = self._routes.get(route.key.encode())
        if current is None:
            raise unknown_app(route.info.alias)
        lane = current.instead_of(route).lane
        if len(lane.direct) >= LANE_LIMIT and not at_head:
            raise refusal_of(Failure.LANE_FULL)[0]
        loop = asyncio.get_running_loop()
        waiter = Waiter(current.key, lane, loop.create_future())
        waiter.timer = loop.call_at(start_by, self._expire, waiter, failure)
        lane.direct.join(waiter, at_head=at_head)
        self._serve(lane)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leave the line without a slot; a waiter whose turn has come keeps it."""
        if not waiter.turn.done():
            waiter.lane.direct.leave(waiter)
            waiter.settle(refusal_of(Failure.CALLER_GONE)[0])

    def release(self, door: Door) -> None:
        """Give a slot back after a call."""
        door.lane.give(door)
        if not door.is_open:
            self._take_leave(door)

    def send_back(self, door: Door, times: int) -> None:
        """Note that a runner's gate refused a call: its slot stays taken for a moment, longer each time.

        After 20 refusals of one call the runner is treated as broken.
        """
        if times >= _BUSY_LIMIT:
            self.condemn(door, "broken")
        pause_s = min(_BUSY_FIRST_S * 2**door.busy_streak, _BUSY_MOST_S)
        door.busy_streak = min(door.busy_streak + 1, 16)
        asyncio.get_running_loop().call_later(pause_s, self._unpause, door)

    def fail_waiters(self, revision: str, status: int, error_type: str, detail: str) -> None:
        """Answer every waiting call of a revision with an error."""
        lane = self._lanes.get(revision)
        if lane is not None:
            for waiter in list(lane.direct):
                waiter.fail(Refusal(status, detail, error_type))

    def explain(self, short: Mapping[str, str]) -> None:
        """Note why runners of these revisions, and of no others, find no place: whoever waits too long is told."""
        self._short = dict(short)

    def short_of(self, revision: str) -> str | None:
        """Return why no runner of a revision finds a place; None when none looks for one."""
        return self._short.get(revision)

    def short_apps(self) -> dict[tuple[str, str | None], str]:
        """Return why runners find no place, by app and branch (None: the alias's own revision)."""
        routes = self._routes.values() if self._short else ()
        return {
            (way.key, way.branched_to): self._short[way.info.revision]
            for route in routes
            for way in route.ways
            if way.info.revision in self._short
        }

    # Views

    def load(self, revision: str) -> Load:
        """Return what a revision has to do; an unknown one has nothing to do."""
        lane = self._lanes.get(revision)
        return Load(0, 0, 0.0, 0, {}) if lane is None else lane.load()

    def served(self, owner: str, alias: str) -> int:
        """Return how many calls of an app have finished since this process began."""
        return self.tallies.served(f"{owner}/{alias}")

    # Inside

    def _lane(self, revision: str) -> Lane:
        found = self._lanes.get(revision)
        if found is None:
            found = self._lanes[revision] = Lane(revision)
        return found

    def _forget_unused(self, lane: Lane) -> None:
        if lane.is_unused and self._lanes.get(lane.revision) is lane:
            del self._lanes[lane.revision]

    def _serve(self, lane: Lane) -> None:
        """Give free slots to those that wait, and ask for a runner when some are left."""
        lane.pump()
        if lane.has_waiting:
            self._on_demand(lane.revision)

    def _expire(self, waiter: Waiter, failure: Failure) -> None:
        short = self._short.get(waiter.lane.revision)
        refusal = refusal_of(failure)[0]
        if failure == Failure.STARTUP_TIMEOUT and short is not None:
            refusal = Refusal(503, f"No runner could be started: {short}", "runner_scheduling_failure")
        waiter.fail(refusal)

    def _unpause(self, door: Door) -> None:
        door.lane.give_unserved(door)
        if not door.is_open:
            self._take_leave(door)

    def _take_leave(self, door: Door) -> None:
        """See whether a runner that takes no new calls has had its last one, and its lane its last runner."""
        if door.is_closing and door.taken == 0:
            self._drained(door)
        self._forget_unused(door.lane)

    def _shut(self, door: Door) -> None:
        """Take a runner out of the choice; those that wait may need another one."""
        if not door.is_open:
            return
        door.lane.slots.discard(door)
        door.is_open = False
        if door.link is not None:
            door.link.close()
        self._serve(door.lane)

    def _drained(self, door: Door) -> None:
        door.is_closing = False
        if self._doors.pop(door.runner_id, None) is not None:
            del door.lane.doors[door.runner_id]
            self._forget_unused(door.lane)
        asyncio.get_running_loop().call_soon(self._on_drained, door.runner_id)
