"""What a scaling policy would do with given traffic: the same decisions as in life, over an imagined clock; pure.

Rules: calls are served in order by ready runners; a runner takes calls `start_s` after its start; runners are decided
on by `scaling.decide` alone, at each arrival, end and deadline. Crashes and deployments are left out.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fal_backend.domain.scaling import Idle, Snapshot, decide
from fal_notebook.wire import ScaleSpec

__all__ = ["Outcome", "simulate"]

_START_LIMIT_S = 600.0
_SOON = 1e-6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened."""

    waits: tuple[float, ...]
    """Seconds that each served call waited, in the order of their coming."""
    unserved: int
    """Calls that no runner took within the start timeout."""
    starts: int
    runners_max: int
    runner_s: float
    """Seconds of all runners, from start to end."""
    busy_s: float
    """Of these, seconds with a call."""
    span_s: float
    """From the first call to the end of the last runner, or of the last call."""


@dataclass(slots=True)
class _Runner:
    began: float
    is_ready: bool = False
    calls: int = 0
    idle_since: float = 0.0
    busy_since: float = 0.0


@dataclass(slots=True)
class _World:
    """The imagined house."""

    scale: ScaleSpec
    start_s: float
    room: int
    """Runners that there is a place for."""
    now: float = 0.0
    runners: dict[str, _Runner] = field(default_factory=dict)
    pending: list[str] = field(default_factory=list)
    waiting: deque[tuple[float, float]] = field(default_factory=deque)
    """(came at, work) of each call that waits."""
    events: list[tuple[float, int, str, str]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    unserved: int = 0
    starts: int = 0
    most: int = 0
    runner_s: float = 0.0
    busy_s: float = 0.0
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    tick_at: float = float("inf")

    def at(self, when: float, kind: str, about: str = "") -> None:
        heapq.heappush(self.events, (when, next(self.numbers), kind, about))

    def happen(self, kind: str, about: str) -> None:
        if kind == "ready" and about in self.runners:
            self.runners[about].is_ready = True
            self.runners[about].idle_since = self.now
        elif kind == "done":
            runner = self.runners[about]
            runner.calls -= 1
            if not runner.calls:
                runner.idle_since = self.now
                self.busy_s += self.now - runner.busy_since
        elif kind == "tick":
            self.tick_at = float("inf")

    def serve(self) -> None:
        limit_s = float(self.scale.request_start_timeout or _START_LIMIT_S)
        width = self.scale.max_multiplexing or 1
        while self.waiting and self.now - self.waiting[0][0] > limit_s:
            self.waiting.popleft()
            self.unserved += 1
        for id, runner in self.runners.items():
            while self.waiting and runner.is_ready and runner.calls < width:
                came, work = self.waiting.popleft()
                self.waits.append(self.now - came)
                if not runner.calls:
                    runner.busy_since = self.now
                runner.calls += 1
                self.at(self.now + work, "done", id)

    def settle(self) -> None:
        """Do what is decided, then serve; look again when time alone may change it."""
        self.serve()
        idle = tuple(
            Idle(id, runner.idle_since)
            for id, runner in self.runners.items()
            if runner.is_ready and not runner.calls
        )
        ready = sum(runner.is_ready for runner in self.runners.values())
        seen = Snapshot(
            running=sum(runner.calls for runner in self.runners.values()),
            waiting=len(self.waiting),
            oldest_wait_s=self.now - self.waiting[0][0] if self.waiting else 0.0,
            pending=tuple(self.pending),
            coming=len(self.runners) - ready,
            ready=ready,
            idle=idle,
        )
        found = decide(self.scale, seen, self.now)
        for id in found.withdraw:
            self.pending.remove(id)
        for id in found.drain:
            self.runner_s += self.now - self.runners.pop(id).began
        self.pending += [f"r{next(self.numbers)}" for _ in range(found.start)]
        while self.pending and len(self.runners) < self.room:
            self._begin(self.pending.pop(0))
        if found.start and not self.pending:
            # Those that were asked for have a place: more may be asked for.
            self.settle()
        else:
            self._look_again(found.again_s, idle)

    def _begin(self, id: str) -> None:
        self.runners[id] = _Runner(self.now)
        self.starts += 1
        self.most = max(self.most, len(self.runners))
        self.at(self.now + self.start_s, "ready", id)

    def _look_again(self, again_s: float | None, idle: Sequence[Idle]) -> None:
        due = [self.now + again_s] if again_s is not None else []
        if idle:
            # Those whose time has passed stay because they are needed: no clock changes that.
            keep_alive = float(self.scale.keep_alive or 0)
            due += [one.since + keep_alive for one in idle if one.since + keep_alive > self.now]
        soonest = min(due, default=None)
        if soonest is not None and soonest + _SOON < self.tick_at:
            self.tick_at = soonest + _SOON
            self.at(self.tick_at, "tick")


def simulate(calls: Sequence[tuple[float, float]], scale: ScaleSpec, *, start_s: float, room: int) -> Outcome:
    """Live through the calls, (when it comes, seconds of work) each; all times in seconds."""
    world = _World(scale, start_s, max(1, room))
    first = min((at for at, _ in calls), default=0.0)
    last = max((at + work for at, work in calls), default=0.0)
    arrivals = deque(sorted(calls))
    world.now = first
    world.settle()
    while arrivals or (world.events and not _is_over(world, last)):
        arrives = arrivals[0][0] if arrivals else float("inf")
        if world.events and world.events[0][0] <= arrives:
            world.now, _, kind, about = heapq.heappop(world.events)
            world.happen(kind, about)
        else:
            world.now, work = arrivals.popleft()
            world.waiting.append((world.now, work))
        world.settle()
    end = max(last, world.now)
    world.runner_s += sum(end - runner.began for runner in world.runners.values())
    unserved = world.unserved + len(world.waiting)
    return Outcome(
        tuple(world.waits), unserved, world.starts, world.most, world.runner_s, world.busy_s, end - first
    )


def _is_over(world: _World, last: float) -> bool:
    """True when nothing is left that a caller would notice: what is kept up for nobody is counted to the end."""
    is_quiet = not world.waiting and all(not runner.calls for runner in world.runners.values())
    return is_quiet and world.now >= last and len(world.runners) <= (world.scale.min_concurrency or 0)
