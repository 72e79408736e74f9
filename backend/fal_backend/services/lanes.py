"""A lane: the runners of one revision, the calls that wait for their slots, and whose turn it is.

Rules: event-loop thread only, so no locks; no store, no sockets, no I/O. The runner's own gate is the truth about
how many calls it takes; the count here makes a refusal by it rare. What a place in the line is given to is told by a
future, which is resolved exactly once. Queued requests stand in lines of their own (`Feed`): a free slot goes to a
direct call, after four of those in a row to a queued one.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

from fal_backend.domain.admission import Line, Slots
from fal_backend.domain.request import Refusal

__all__ = ["Door", "Feed", "Lane", "Link", "Load", "RunnerLoad", "Waiter"]

DIRECT_IN_A_ROW = 4
"""Slots that go to direct calls before one goes to the queue, if both wait."""


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


class Waiter:
    """A call that waits for a slot; `turn` gives the door, or raises Refusal."""

    __slots__ = ("app", "lane", "since", "timer", "turn")

    def __init__(self, app: str, lane: Lane, turn: asyncio.Future[Door]) -> None:
        self.app = app
        self.lane = lane
        self.turn = turn
        self.since = time.monotonic()
        self.timer: asyncio.TimerHandle | None = None

    def settle(self, result: Door | Refusal) -> None:
        """Tell it what came of its waiting, once it stands in line no more."""
        if self.timer is not None:
            self.timer.cancel()
        if isinstance(result, Refusal):
            self.turn.set_exception(result)
        else:
            self.turn.set_result(result)

    def fail(self, refusal: Refusal) -> None:
        """Take it out of its line, if it still stands there, with a refusal."""
        if self.lane.direct.leave(self):
            self.settle(refusal)


class Lane:
    """The runners of one revision and what waits for them."""

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
        """Nothing leads here, is here or waits here."""
        return not (self.routes or self.doors or len(self.direct) or self.feeds or self.inflight)

    @property
    def has_waiting(self) -> bool:
        """Somebody waits; a queue that has run empty may still be counted."""
        return bool(len(self.direct) or self.feeds)

    # Slots

    def take(self, hint: bytes | None = None) -> Door | None:
        """Take a slot for a call that has just come; None when none is free, or others came before."""
        if self.direct:
            return None
        door = None if hint is None else self._hinted(hint.decode("latin-1").strip())
        if door is None:
            door = self.slots.take()
        if door is not None:
            self.inflight += 1
            door.idle_since = None
        return door

    def occupy(self, door: Door) -> None:
        """Count a call that a runner has, whether a slot was free or not."""
        self.slots.occupy(door, is_open=door.is_open)
        self.inflight += 1
        door.idle_since = None

    def give(self, door: Door) -> None:
        """Take a slot back after a call, and give it to who waits."""
        self.slots.give(door, is_open=door.is_open)
        self.inflight -= 1
        self.served += 1
        door.served += 1
        door.busy_streak = 0
        if door.taken == 0:
            door.idle_since = time.monotonic()
        if self.direct or self.feeds:
            self.pump()

    def give_unserved(self, door: Door) -> None:
        """Take a slot back of a call that the runner's gate refused; the refusals in a row go on."""
        streak = door.busy_streak
        self.served -= 1
        door.served -= 1
        self.give(door)
        door.busy_streak = streak

    def _hinted(self, hint: str) -> Door | None:
        """Take a slot of a runner that said it has at hand what a request wants."""
        for door in self.doors.values():
            if door.is_open and hint in door.hints and self.slots.take_of(door):
                return door
        return None

    # Who waits

    def of_app(self, app: str) -> list[Waiter]:
        """Return the calls of an app that wait."""
        return [waiter for waiter in self.direct if waiter.app == app]

    def move(self, app: str, to: Lane) -> None:
        """Let those who wait for an app here wait in another lane instead."""
        if to is self:
            return
        for waiter in self.of_app(app):
            self.direct.leave(waiter)
            waiter.lane = to
            to.direct.join(waiter)
        feed = self.feeds.pop(app, None)
        if feed is not None:
            to.feeds[app] = feed

    def pump(self) -> None:
        """Give free slots to those that wait: to direct calls in order, after some of them to a queued one."""
        while True:
            waiter = self.direct.head()
            if waiter is None or (self.feeds and self.direct_in_a_row >= DIRECT_IN_A_ROW):
                queue = self._next_feed()
                if queue is not None:
                    if not self._start_queued(*queue):
                        return
                    continue
                if waiter is None:
                    return
            door = self.slots.take()
            if door is None:
                return
            self.direct.leave(waiter)
            self.direct_in_a_row += 1
            self.inflight += 1
            door.idle_since = None
            waiter.settle(door)

    def _next_feed(self) -> tuple[str, Feed] | None:
        """Return the queue whose turn it is; empty ones go."""
        while self.feeds:
            app, feed = next(iter(self.feeds.items()))
            if feed.waiting():
                return app, feed
            del self.feeds[app]
        return None

    def _start_queued(self, app: str, feed: Feed) -> bool:
        """Give a slot to the next queued request, if there is one; apps of one revision take turns."""
        hint = feed.hint()
        door = self._hinted(hint) if hint is not None else None
        if door is None:
            door = self.slots.take()
        if door is None:
            return False
        del self.feeds[app]
        self.feeds[app] = feed
        self.direct_in_a_row = 0
        self.inflight += 1
        door.idle_since = None
        feed.start(door)
        return True

    def load(self) -> Load:
        """Return what there is to do now."""
        now = time.monotonic()
        head = self.direct.head()
        queues = [feed for feed in self.feeds.values() if feed.waiting()]
        oldest = min([head.since if head else now, *(feed.oldest_since() for feed in queues)])
        waiting = len(self.direct) + sum(feed.waiting() for feed in queues)
        runners = {
            door.runner_id: RunnerLoad(door.runner_id, door.taken, door.idle_since, door.served)
            for door in self.doors.values()
        }
        return Load(self.inflight, waiting, now - oldest, self.served, runners)
