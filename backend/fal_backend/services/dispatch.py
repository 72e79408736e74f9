"""Who gets the next call: routes, runners with free slots, and the lines of those that wait.

Rules: event-loop thread only, so no locks; no store, no sockets, no I/O. The runner's own gate is the truth
about how many calls it takes; the count here makes a refusal by it rare. What a slot or a place in the line is
given to is told by a future, which is resolved exactly once. A caller of `admit` or of a waiter's `turn`
owns one slot of the door it got, and gives it back with `release`. Queued requests stand in lines of their own
(`Feed`): a free slot goes to a direct call, after four of those in a row to a queued one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from zlib import crc32

from fal_backend.domain.admission import Line, Slots
from fal_backend.domain.request import Failure, Refusal, refusal_of, unknown_app
from fal_backend.services.tally import Tallies
from fal_notebook.wire import AuthMode

__all__ = ["Dispatch", "Door", "Feed", "Link", "Load", "Route", "RouteInfo", "RunnerLoad", "Waiter"]

LANE_LIMIT = 1_000
START_LIMIT_S = 600.0
BRANCH = "#branch"
"""Ends the name of the queue of those who go to the branch of a split."""
DIRECT_IN_A_ROW = 4
"""Slots that go to direct calls before one goes to the queue, if both wait."""
_BUSY_LIMIT = 20
_MARKS = 10_000
_DEMAND_S = 0.05
_BUSY_FIRST_S, _BUSY_MOST_S = 0.001, 2.0


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """Where calls of one alias go, and what holds for them."""

    owner: str
    alias: str
    account: str
    auth: AuthMode
    revision: str
    max_multiplexing: int = 1
    request_timeout_s: float | None = None
    """None or 0: unlimited."""
    start_timeout_s: float | None = None
    """None or 0: 600 s."""
    split_revision: str | None = None
    """A second revision that gets a part of the callers."""
    split_percent: int = 0


@dataclass(frozen=True, slots=True)
class RunnerLoad:
    """What one runner does now."""

    runner_id: str
    inflight: int
    idle_since: float | None
    """`time.monotonic()` of when it became idle, None while it is busy."""
    served: int


@dataclass(frozen=True, slots=True)
class Load:
    """What one revision has to do now."""

    running: int
    """Calls in flight."""
    waiting: int
    """Direct calls and queued requests that could start."""
    oldest_wait_s: float
    served: int
    """Calls finished since this process began."""
    runners: dict[str, RunnerLoad]


class Link(Protocol):
    """The connections to one runner, kept by whoever speaks to it."""

    def close(self) -> None:
        """Close those that carry no call."""
        ...

    def abort(self) -> None:
        """Break all of them."""
        ...

    @property
    def can_reopen(self) -> bool: ...
    def reopen(self) -> None:
        """Keep connections again; undoes `close`."""
        ...


class Feed(Protocol):
    """The queued requests of one app that could start now."""

    def waiting(self) -> int: ...
    def oldest_since(self) -> float:
        """`time.monotonic()` of when the oldest came."""
        ...

    def hint(self) -> str | None:
        """The runner hint of the next one."""
        ...

    def start(self, door: Door) -> None:
        """Start the next one; it owns a slot of the door now."""
        ...


class Door:
    """A runner as the data plane sees it."""

    __slots__ = (
        "born",
        "busy_streak",
        "control",
        "grace_s",
        "hints",
        "hints_said",
        "idle_since",
        "is_closing",
        "is_open",
        "lane",
        "link",
        "opened_at",
        "runner_id",
        "served",
        "socket",
        "stamp",
        "taken",
        "width",
    )

    def __init__(self, lane: Lane, runner_id: str, socket: str, control: str, width: int, born: int) -> None:
        self.lane = lane
        self.runner_id = runner_id
        self.socket = socket
        self.control = control
        self.grace_s = 0.0
        """How long its App wants to be given when it has to end."""
        self.width = max(1, width)
        self.born = born
        self.opened_at = time.monotonic()
        self.taken = 0
        self.served = 0
        self.is_open = True
        self.is_closing = False
        self.idle_since: float | None = time.monotonic()
        self.busy_streak = 0
        self.link: Link | None = None
        self.hints: frozenset[str] = frozenset()
        """What the runner said last of what it has at hand (`X-Fal-Runner-Hints`)."""
        self.hints_said: bytes | None = None
        self.stamp = b"x-fal-revision: %b\r\nx-fal-runner-id: %b\r\n" % (
            lane.revision.encode(),
            runner_id.encode(),
        )
        """The headers by which an answer tells where it comes from."""

    def note_hints(self, said: bytes | None) -> None:
        """Note what the runner says that it has at hand; an answer that says nothing changes nothing."""
        if said is not None and said != self.hints_said:
            self.hints_said = said
            self.hints = frozenset(one.strip() for one in said.decode("latin-1").split(",") if one.strip())


class Lane:
    """The runners of one revision and the calls that wait for them."""

    __slots__ = (
        "asked_at",
        "direct",
        "direct_in_a_row",
        "doors",
        "feeds",
        "inflight",
        "revision",
        "routes",
        "served",
        "slots",
    )

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.doors: dict[str, Door] = {}
        self.slots: Slots[Door] = Slots()
        self.direct: Line[Waiter] = Line()
        self.direct_in_a_row = 0
        self.feeds: dict[str, Feed] = {}
        """Queues with something to start, by app."""
        self.asked_at = 0.0
        self.inflight = 0
        self.served = 0
        self.routes = 0
        """Routes that lead here."""

    @property
    def is_unused(self) -> bool:
        return not (self.routes or self.doors or len(self.direct) or self.feeds or self.inflight)

    def next_feed(self) -> tuple[str, Feed] | None:
        """Return the queue whose turn it is; empty ones go."""
        while self.feeds:
            key, feed = next(iter(self.feeds.items()))
            if feed.waiting():
                return key, feed
            del self.feeds[key]
        return None


class Route:
    """A live alias: its info, its lane and its counts."""

    __slots__ = ("bar", "branch", "info", "is_branch", "key", "lane", "tally")

    def __init__(self, info: RouteInfo, lane: Lane, tallies: Tallies, *, is_branch: bool = False) -> None:
        self.info = info
        self.key = f"{info.owner}/{info.alias}"
        self.lane = lane
        self.tally = tallies.of(self.key, info.revision)
        self.is_branch = is_branch
        self.branch: Route | None = None
        """The way to the revision that gets a part of the callers."""
        self.bar = info.split_percent * _MARKS // 100

    def of(self, caller: str) -> Route:
        """Return the way of a caller, named by key or address: the same one each time.

        Callers of the branch stay there while its part grows.
        """
        if self.branch is None:
            return self
        return self.branch if crc32(f"{self.key} {caller}".encode()) % _MARKS < self.bar else self


class Waiter:
    """A call that waits for a slot; `turn` gives the door, or raises Refusal."""

    __slots__ = ("route", "since", "timer", "turn")

    def __init__(self, route: Route, turn: asyncio.Future[Door], since: float) -> None:
        self.route = route
        self.turn = turn
        self.since = since
        self.timer: asyncio.TimerHandle | None = None


class Dispatch:
    """Admission of direct calls over all apps.

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

    # Routes

    def set_route(self, info: RouteInfo) -> None:
        """Create or move an alias; its waiting calls move along to the new revision."""
        key = f"{info.owner}/{info.alias}".encode()
        before = self._routes.get(key)
        route = self._routes[key] = self._made_route(info)
        for old in _ways(before):
            old.lane.routes -= 1
            new = route.branch if old.is_branch and _same_branch(old, route) else route
            self._move(old.lane, new or route)
        for old in _ways(before):
            self._forget_unused(old.lane)
        for way in _ways(route):
            self._serve(way.lane)

    def _made_route(self, info: RouteInfo) -> Route:
        route = Route(info, self._lane(info.revision), self.tallies)
        route.lane.routes += 1
        if info.split_revision is not None:
            lane = self._lane(info.split_revision)
            lane.routes += 1
            branch = replace(info, revision=info.split_revision, split_revision=None, split_percent=0)
            route.branch = Route(branch, lane, self.tallies, is_branch=True)
        return route

    def _move(self, lane: Lane, route: Route) -> None:
        """Let those who wait for an app in a lane wait in its route's instead."""
        for waiter in [waiter for waiter in lane.direct if waiter.route.key == route.key]:
            waiter.route = route
            if route.lane is not lane:
                lane.direct.leave(waiter)
                route.lane.direct.join(waiter)
        if route.lane is lane:
            return
        for name in _feeds(route.key):
            feed = lane.feeds.pop(name, None)
            if feed is not None:
                route.lane.feeds[name] = feed

    def drop_route(self, owner: str, alias: str) -> None:
        """Remove an alias; its waiting calls get 404."""
        route = self._routes.pop(f"{owner}/{alias}".encode(), None)
        if route is None:
            return
        self.tallies.drop(route.key)
        for way in _ways(route):
            waiting = [waiter for waiter in way.lane.direct if waiter.route.key == route.key]
            self._fail(waiting, unknown_app(alias))
            for name in _feeds(route.key):
                way.lane.feeds.pop(name, None)
            way.lane.routes -= 1
        self.on_dropped(route.key)
        for way in _ways(route):
            self._forget_unused(way.lane)

    def routes(self) -> list[RouteInfo]:
        """Return every live alias."""
        return [route.info for route in self._routes.values()]

    def find(self, key: bytes) -> Route | None:
        """Return the route of `owner/alias`."""
        return self._routes.get(key)

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
        self._pump(lane)

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
            self._pump(door.lane)

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

    def offer(self, key: str, feed: Feed) -> None:
        """Note that a queue has something to start; it is asked for it as slots become free.

        key: `owner/alias`, with `BRANCH` behind it for those who go to the branch of a split.
        """
        route = self._routes.get(key.removesuffix(BRANCH).encode())
        if route is None:
            return
        if route.branch is not None and key.endswith(BRANCH):
            route = route.branch
        lane = route.lane
        lane.feeds[key] = feed
        self._pump(lane)
        if lane.feeds and time.monotonic() - lane.asked_at >= _DEMAND_S:
            # A flood of submissions is not a flood of questions: the next tick sees the rest.
            lane.asked_at = time.monotonic()
            self._on_demand(lane.revision)

    def occupy(self, runner_id: str) -> Door | None:
        """Take a slot of a runner that has a call already; None when it takes no calls."""
        door = self._doors.get(runner_id)
        if door is None:
            return None
        door.lane.slots.occupy(door, is_open=door.is_open)
        door.lane.inflight += 1
        door.idle_since = None
        return door

    def door(self, runner_id: str) -> Door | None:
        """Return a runner that takes calls, or still has some."""
        return self._doors.get(runner_id)

    # Calls

    def admit(self, route: Route, hint: bytes | None = None) -> Door | None:
        """Take a slot at once, of the runner that has what is hinted at if there is one; None when one has to wait."""
        lane = route.lane
        if len(lane.direct):
            return None
        door = None if hint is None else self._hinted(lane, hint.decode("latin-1").strip())
        if door is None:
            door = lane.slots.take()
        if door is not None:
            lane.inflight += 1
            door.idle_since = None
        return door

    def wait(self, route: Route, start_by: float, failure: Failure, *, at_head: bool = False) -> Waiter:
        """Stand in line until `start_by` (loop time), then fail with `failure`.

        at_head is for a call that had a slot and was sent back. Raises: Refusal when the line is full, or the
        app is no more.
        """
        current = self._routes.get(route.key.encode())
        if current is None:
            raise unknown_app(route.info.alias)
        if route.is_branch and current.branch is not None and _same_branch(route, current):
            current = current.branch
        lane = current.lane
        if len(lane.direct) >= LANE_LIMIT and not at_head:
            raise refusal_of(Failure.LANE_FULL)[0]
        loop = asyncio.get_running_loop()
        waiter = Waiter(current, loop.create_future(), time.monotonic())
        waiter.timer = loop.call_at(start_by, self._expire, waiter, failure)
        lane.direct.join(waiter, at_head=at_head)
        self._serve(lane)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Leave the line without a slot; a waiter whose turn has come keeps it."""
        if not waiter.turn.done():
            waiter.route.lane.direct.leave(waiter)
            self._settle(waiter, refusal_of(Failure.CALLER_GONE)[0])

    def release(self, door: Door) -> None:
        """Give a slot back after a call."""
        lane = door.lane
        lane.slots.give(door, is_open=door.is_open)
        lane.inflight -= 1
        lane.served += 1
        door.served += 1
        door.busy_streak = 0
        if door.taken == 0:
            door.idle_since = time.monotonic()
            if door.is_closing:
                self._drained(door)
        if len(lane.direct) or lane.feeds:
            self._pump(lane)
        elif not door.is_open:
            self._forget_unused(lane)

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
            self._fail(list(lane.direct), Refusal(status, detail, error_type))

    def explain(self, short: Mapping[str, str]) -> None:
        """Note why runners of these revisions, and of no others, find no place: whoever waits too long is told."""
        self._short = dict(short)

    def short_of(self, revision: str) -> str | None:
        """Return why no runner of a revision finds a place; None when none looks for one."""
        return self._short.get(revision)

    def short_apps(self) -> dict[str, str]:
        """Return why runners find no place, by app."""
        routes = self._routes.values() if self._short else ()
        return {
            route.key: self._short[route.info.revision]
            for route in routes
            if route.info.revision in self._short
        }

    # Views

    def load(self, revision: str) -> Load:
        """Return what a revision has to do; an unknown one has nothing to do."""
        lane = self._lanes.get(revision)
        if lane is None:
            return Load(0, 0, 0.0, 0, {})
        now = time.monotonic()
        head = lane.direct.head()
        queues = [feed for feed in lane.feeds.values() if feed.waiting()]
        oldest = min([head.since if head else now, *(feed.oldest_since() for feed in queues)])
        waiting = len(lane.direct) + sum(feed.waiting() for feed in queues)
        runners = {
            door.runner_id: RunnerLoad(door.runner_id, door.taken, door.idle_since, door.served)
            for door in lane.doors.values()
        }
        return Load(lane.inflight, waiting, now - oldest, lane.served, runners)

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
        self._pump(lane)
        if len(lane.direct) or lane.feeds:
            self._on_demand(lane.revision)

    def _pump(self, lane: Lane) -> None:
        """Give free slots to those that wait: to direct calls in order, after some of them to a queued one."""
        while True:
            waiter = lane.direct.head()
            if waiter is None or (lane.feeds and lane.direct_in_a_row >= DIRECT_IN_A_ROW):
                queue = lane.next_feed()
                if queue is not None:
                    if not self._start_queued(lane, *queue):
                        return
                    continue
                if waiter is None:
                    return
            door = lane.slots.take()
            if door is None:
                return
            lane.direct.leave(waiter)
            lane.direct_in_a_row += 1
            lane.inflight += 1
            door.idle_since = None
            self._settle(waiter, door)

    def _start_queued(self, lane: Lane, key: str, feed: Feed) -> bool:
        """Give a slot to the next queued request, if there is one; apps of one revision take turns."""
        hint = feed.hint()
        door = self._hinted(lane, hint) if hint is not None else None
        if door is None:
            door = lane.slots.take()
        if door is None:
            return False
        del lane.feeds[key]
        lane.feeds[key] = feed
        lane.direct_in_a_row = 0
        lane.inflight += 1
        door.idle_since = None
        feed.start(door)
        return True

    def _hinted(self, lane: Lane, hint: str) -> Door | None:
        """Take a slot of a runner that said it has at hand what a request wants."""
        for door in lane.doors.values():
            if door.is_open and hint in door.hints and lane.slots.take_of(door):
                return door
        return None

    def _settle(self, waiter: Waiter, result: Door | Refusal) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
        if isinstance(result, Refusal):
            waiter.turn.set_exception(result)
        else:
            waiter.turn.set_result(result)

    def _expire(self, waiter: Waiter, failure: Failure) -> None:
        short = self._short.get(waiter.route.lane.revision)
        if failure == Failure.STARTUP_TIMEOUT and short is not None:
            self._fail(
                [waiter], Refusal(503, f"No runner could be started: {short}", "runner_scheduling_failure")
            )
            return
        self._fail([waiter], refusal_of(failure)[0])

    def _fail(self, waiters: list[Waiter], refusal: Refusal) -> None:
        for waiter in waiters:
            if waiter.route.lane.direct.leave(waiter):
                self._settle(waiter, refusal)

    def _unpause(self, door: Door) -> None:
        streak = door.busy_streak
        door.lane.served -= 1
        door.served -= 1
        self.release(door)
        door.busy_streak = streak

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


def _ways(route: Route | None) -> list[Route]:
    """Return a route and its branch."""
    if route is None:
        return []
    return [route] if route.branch is None else [route, route.branch]


def _same_branch(old: Route, route: Route) -> bool:
    return route.branch is not None and route.branch.info.revision == old.info.revision


def _feeds(key: str) -> tuple[str, str]:
    """Return the names of an app's queues: of its own revision, of the branch."""
    return key, key + BRANCH
