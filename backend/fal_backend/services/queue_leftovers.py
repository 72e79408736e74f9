"""Answers that runners still keep though they are stored here: the runners are told so, many at a time.

Rules: nobody waits for it, and it may be lost: a runner drops an answer by itself in time. For one connection to a
runner costs as much as the rest of a small request, answers wait a moment for one another.
"""

from __future__ import annotations

import asyncio

from fal_backend.services.couriers import Courier

__all__ = ["Leftovers"]

_WAIT_S = 0.1
_GROUP = 256


class Leftovers:
    """See the module; event-loop thread only."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._pairs: dict[str, list[tuple[str, int]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, control: str, request_id: str, attempt: int) -> None:
        """Note that the runner with this control socket may drop an answer."""
        pairs = self._pairs.setdefault(control, [])
        pairs.append((request_id, attempt))
        if len(pairs) >= _GROUP:
            self._tell(control)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAIT_S, self._tell_all)

    async def close(self) -> None:
        """Tell nobody any more; the next backend finds what is left in the runners' lists."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell_all(self) -> None:
        self._timer = None
        for control in list(self._pairs):
            self._tell(control)

    def _tell(self, control: str) -> None:
        telling = self._courier.forget(control, self._pairs.pop(control))
        task = asyncio.get_running_loop().create_task(telling, name="leftovers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
