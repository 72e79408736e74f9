"""Whose turn it is to be delivered: what is due, by host, with limits for each host and for all.

Rules: one timer for whatever is due next; hosts take turns, so that many deliveries to a slow one, or a slow one
itself, never hold up another host. What is under way is not begun again.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable

__all__ = ["AT_ONCE", "FOR_EACH_HOST", "Turns"]

AT_ONCE = 32
"""Deliveries under way at most."""

FOR_EACH_HOST = 4

_LONGEST_S = 3600.0


class Turns:
    """begin(id, host) is called for each whose turn has come; `end` must follow. Nothing begins before `open`."""

    def __init__(
        self,
        begin: Callable[[str, str], None],
        *,
        at_once: int = AT_ONCE,
        for_each_host: int = FOR_EACH_HOST,
    ) -> None:
        self._begin = begin
        self._at_once = at_once
        self._for_each_host = for_each_host
        self._due: dict[str, int] = {}
        """When each is due that is not under way."""
        self._later: list[tuple[int, str, str]] = []
        self._ready: dict[str, deque[str]] = {}
        """What is due now, by host; the host whose turn is next stands first."""
        self._running: dict[str, int] = {}
        self._under_way: dict[str, int | None] = {}
        """What is under way, and when it was asked for again meanwhile."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_open = False

    def __len__(self) -> int:
        return len(self._due) + len(self._under_way)

    def open(self) -> None:
        """Begin."""
        self._is_open = True
        self._rang()

    def close(self) -> None:
        """Begin nothing more."""
        self._is_open = False
        if self._timer is not None:
            self._timer.cancel()

    def add(self, id: str, host: str, due_at: int) -> None:
        """Note that something is due at a moment, in microseconds; the newest word counts."""
        if id in self._under_way:
            self._under_way[id] = due_at
            return
        self._due[id] = due_at
        heapq.heappush(self._later, (due_at, id, host))
        if self._is_open and self._later[0][1] == id:
            self._rang()

    def end(self, id: str, host: str, due_at: int | None) -> None:
        """Note that one is not under way any more, and when it is due again, if it is."""
        again = self._under_way.pop(id, None)
        left = self._running.get(host, 1) - 1
        if left:
            self._running[host] = left
        else:
            self._running.pop(host, None)
        if due_at is not None:
            self.add(id, host, due_at if again is None else min(due_at, again))
        elif again is not None:
            self.add(id, host, again)
        if self._is_open:
            self._go()

    def _rang(self) -> None:
        now = time.time_ns() // 1000
        while self._later and self._later[0][0] <= now:
            due_at, id, host = heapq.heappop(self._later)
            if self._due.get(id) == due_at:
                self._ready.setdefault(host, deque()).append(id)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            # Not longer than an hour: the clock may be set meanwhile.
            wait_s = min(_LONGEST_S, (self._later[0][0] - now) / 1e6)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._rang)
        self._go()

    def _go(self) -> None:
        """Begin as many as the limits allow, one of each host in turn."""
        for host in self._free_hosts():
            self._take(host)

    def _free_hosts(self) -> list[str]:
        """Return hosts in the order of their turns, each as often as it may begin."""
        room = self._at_once - len(self._under_way)
        turns: list[str] = []
        begun: dict[str, int] = {}
        circle = deque(self._ready)
        while room > 0 and circle:
            host = circle.popleft()
            count = begun.get(host, 0)
            if self._running.get(host, 0) + count < self._for_each_host and count < len(self._ready[host]):
                begun[host] = count + 1
                turns.append(host)
                circle.append(host)
                room -= 1
        return turns

    def _take(self, host: str) -> None:
        line = self._ready.pop(host)
        id = line.popleft()
        if line:
            # Behind the others, until its turn comes again.
            self._ready[host] = line
        if self._due.pop(id, None) is None:
            return
        self._under_way[id] = None
        self._running[host] = self._running.get(host, 0) + 1
        self._begin(id, host)
