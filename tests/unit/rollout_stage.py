"""What stands around the rooms that decide over rollouts: a clock, chance, rows without a disk, a data plane that counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from fal_backend.ports import Conflict
from fal_backend.services.lanes import Load, RunnerLoad
from fal_backend.services.routes import RouteInfo

S = 1_000_000


def now_done(work: Coroutine[Any, Any, Any]) -> Any:
    """Drive a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class Clock:
    """Time as the rooms read it."""

    def __init__(self) -> None:
        self.us = 1_000 * S

    def time_ns(self) -> int:
        return self.us * 1000

    def monotonic(self) -> float:
        return self.us / S


class Rows:
    """A store without a disk; a version that does not fit is a conflict."""

    def __init__(self) -> None:
        self.rows: dict[tuple[type, str], Any] = {}
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.last = 0
        self.writes = 0

    async def write(self, op: Callable[[Any], Any], klass: Any = None) -> Any:
        self.writes += 1
        return op(self)

    async def read(self, query: Callable[[Any], Any]) -> Any:
        return query(self)

    def insert(self, row: Any) -> None:
        if (type(row), row.id) in self.rows:
            raise Conflict(row.id)
        self.rows[type(row), row.id] = row

    def update(self, row: Any) -> Any:
        known = self.rows.get((type(row), row.id))
        if known is None or known.version != row.version:
            raise Conflict(row.id)
        self.rows[type(row), row.id] = replace(row, version=row.version + 1)
        return self.rows[type(row), row.id]

    def delete(self, kind: type, id: str) -> None:
        self.rows.pop((kind, id), None)

    def emit(self, subject: str, kind: str, data: dict[str, Any], **_: Any) -> None:
        self.last += 1
        self.events.append((kind, data))


@dataclass
class Plane:
    """The data plane as a count of calls."""

    opened: dict[str, str] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    closing: set[str] = field(default_factory=set)
    waiting: dict[str, int] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    routes: dict[str, RouteInfo] = field(default_factory=dict)
    effect: Callable[[Callable[[], Any]], None] = lambda run: None

    async def traffic_of(self, app: str) -> dict[str, Any]:
        return {}

    def load(self, revision: str) -> Load:
        mine = [id for id, one in self.opened.items() if one == revision]
        running = sum(self.calls.get(id, 0) for id in mine)
        now = self.clock.monotonic()
        loads = {
            id: RunnerLoad(id, self.calls.get(id, 0), None if self.calls.get(id) else now - 100, 0)
            for id in mine
            if id not in self.closing
        }
        return Load(running, self.waiting.get(revision, 0), 0.0, 0, loads)

    def set_route(self, info: RouteInfo) -> None:
        self.routes[info.alias] = info

    def serve(self) -> None:
        """Give those who wait to the runners that have no call."""
        for id, revision in self.opened.items():
            if self.waiting.get(revision) and id not in self.closing and id not in self.calls:
                self.calls[id] = 1
                self.waiting[revision] -= 1

    def drop_route(self, owner: str, alias: str) -> None:
        self.routes.pop(alias, None)

    def can_reopen(self, id: str) -> bool:
        return id in self.closing and bool(self.calls.get(id))

    def fail_waiters(self, revision: str, status: int, error_type: str, detail: str) -> None:
        self.effect(lambda: self.waiting.pop(revision, None))


class Now:
    """The clock of the world that is being lived through."""

    clock = Clock()

    def time_ns(self) -> int:
        return self.clock.time_ns()

    def monotonic(self) -> float:
        return self.clock.monotonic()


class Chance:
    """What the rooms take for chance: the same in each life of a history, so that a seed tells all of it."""

    dice = random.Random()

    def uniform(self, low: float, high: float) -> float:
        return self.dice.uniform(low, high)

    def token_hex(self, size: int) -> str:
        return self.dice.randbytes(size).hex()


TIME, CHANCE = Now(), Chance()
