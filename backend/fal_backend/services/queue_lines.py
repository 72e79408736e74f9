"""Who waits, for each app, in memory; and the moments at which a waiting request changes by itself.

Rules: event-loop thread only; what is here follows from rows and is made again from them at each start; a line is
only numbers, so that a million of them fit.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator

from fal_backend.domain.waiting import Waiting
from fal_backend.services.lanes import Door

__all__ = ["Alarms", "Line", "Lines"]

_MARK_S = 0.1


class Line:
    """The requests of one app that could start now on one revision; a `lanes.Feed`."""

    def __init__(
        self, key: str, on_start: Callable[[str, int, Door], None], branch: str | None = None
    ) -> None:
        self.key = key
        self.branch = branch
        """The revision that a split gave them to; None: they go with the alias."""
        self.moved = asyncio.Event()
        """Set at each start; whoever waits for it clears it."""
        self._on_start = on_start
        self._waiting = Waiting()
        self._hints: dict[int, str] = {}
        self._marks: deque[tuple[int, float]] = deque()
        """(number, monotonic time of its coming), not for each one."""

    def join(self, id: int, *, is_low: bool, hint: str | None, since: float | None = None) -> None:
        """Stand in line."""
        if hint is not None:
            self._hints[id] = hint
        self._waiting.join(id, is_low=is_low)
        now = time.monotonic() if since is None else since
        if not self._marks or (now - self._marks[-1][1] >= _MARK_S and id > self._marks[-1][0]):
            self._marks.append((id, now))

    def leave(self, id: int) -> bool:
        """Leave the line and return whether it stood there."""
        self._hints.pop(id, None)
        return self._waiting.leave(id)

    def position(self, id: int, *, is_low: bool) -> int:
        """Return how many start before it; of one that waits to be repeated, how many are older."""
        found = self._waiting.position(id)
        if found is not None:
            return found
        lane = self._waiting.low if is_low else self._waiting.normal
        return lane.rank(id)

    def counts(self) -> tuple[int, int]:
        """Return how many wait in the normal and the low lane."""
        return len(self._waiting.normal), len(self._waiting.low)

    def numbers(self) -> list[int]:
        """Return who waits."""
        return [*self._waiting.normal, *self._waiting.low]

    def absorb(self, other: Line) -> None:
        """Take over all who wait in another line; everybody stands in the order of acceptance."""
        self._hints.update(other._hints)
        for lane, is_low in ((other._waiting.normal, False), (other._waiting.low, True)):
            for id in lane:
                self._waiting.join(id, is_low=is_low)
        self._marks = deque(heapq.merge(self._marks, other._marks))
        self.moved.set()
        other.moved.set()

    def drain(self) -> Iterator[int]:
        """Take out everybody."""
        while (id := self._waiting.take()) is not None:
            self._hints.pop(id, None)
            yield id

    # Feed

    def waiting(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def oldest_since(self) -> float:
        """Return `time.monotonic()` of about when the oldest came."""
        firsts = (self._waiting.normal.first(), self._waiting.low.first())
        oldest = min((first for first in firsts if first is not None), default=None)
        if oldest is None or not self._marks:
            return time.monotonic()
        while len(self._marks) > 1 and self._marks[1][0] <= oldest:
            self._marks.popleft()
        return self._marks[0][1]

    def hint(self) -> str | None:
        """Return the runner hint of who is next."""
        if not self._hints:
            return None
        first = self._waiting.next()
        return None if first is None else self._hints.get(first)

    def start(self, door: Door) -> None:
        """Start who is next; it owns a slot of the door now."""
        id = self._waiting.take()
        assert id is not None, "a slot is given only where somebody waits"
        self._hints.pop(id, None)
        if not len(self._waiting):
            self._marks.clear()
        self.moved.set()
        self._on_start(self.key, id, door)


class Lines:
    """All who wait for one app: those that go with its alias, and those that a split gave to its branch."""

    def __init__(self, key: str, on_start: Callable[[str, int, Door], None]) -> None:
        self.running = 0
        self._on_start = on_start
        self._main = Line(key, on_start)
        self._branch: Line | None = None

    def of(self, branch: str | None) -> Line:
        """Return the line of the alias, or of the one branch that there is."""
        if branch is None:
            return self._main
        if self._branch is None:
            self._branch = Line(self._main.key, self._on_start, branch)
        assert self._branch.branch == branch, (
            "a split that ends lets its branch rejoin before another one begins"
        )
        return self._branch

    def rejoin(self) -> Line:
        """Let those of the branch stand in the alias's line again, and return it."""
        branch, self._branch = self._branch, None
        if branch is not None:
            self._main.absorb(branch)
        return self._main

    def all(self) -> list[Line]:
        """Return every line that there is."""
        return [self._main] if self._branch is None else [self._main, self._branch]

    def waiting(self) -> int:
        """Return how many wait."""
        return sum(line.waiting() for line in self.all())

    def counts(self) -> tuple[int, int]:
        """Return how many wait in the normal and the low lane."""
        counts = [line.counts() for line in self.all()]
        return sum(normal for normal, _ in counts), sum(low for _, low in counts)

    def numbers(self) -> list[int]:
        """Return who waits."""
        return [number for line in self.all() for number in line.numbers()]


class Alarms:
    """Many moments, one timer. Moments are wall-clock microseconds, measured off on the monotonic clock."""

    def __init__(self, ring: Callable[[list[tuple[int, int]]], None]) -> None:
        """ring is told (number, moment) of all that are due."""
        self._ring = ring
        self._heap: list[tuple[float, int, int]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, id: int, at: int) -> None:
        """Ring for a number at a moment."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, (at - time.time_ns() / 1000) / 1e6)
        heapq.heappush(self._heap, (when, id, at))
        if self._heap[0][1:] == (id, at):
            self._set(loop)

    def close(self) -> None:
        """Ring no more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(self._heap[0][0], self._due, loop) if self._heap else None

    def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        due: list[tuple[int, int]] = []
        while self._heap and self._heap[0][0] <= loop.time() + 0.001:
            _, id, at = heapq.heappop(self._heap)
            due.append((id, at))
        self._set(loop)
        if due:
            self._ring(due)
