"""Watches that runners with a part of a GPU keep to it: who uses more than its part for five seconds is ended.

Standard library only. Rules: only real devices that are shared are looked at; a part may be exceeded by a tenth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from fal_notebook.runtime.host_holdings import Holdings
from fal_notebook.runtime.loop import Loop, Timer

__all__ = ["GpuWatch", "Sharer"]

_EVERY_S = 2.5
_LOOKS = 2
"""Looks in a row, after the first, in which a runner is over its part."""
_SLACK = 1.1
_WHOLE = 100


class Sharer(Protocol):
    """A runner, as far as this is concerned."""

    id: str

    def parts(self) -> dict[str, int]:
        """Return hundredths of each device that it holds."""
        ...

    def exceed_gpu(self, used_mb: int, limit_mb: int) -> None:
        """End it, and say why."""
        ...


class GpuWatch:
    """Looks while somebody has a part of a real device."""

    def __init__(
        self,
        loop: Loop,
        holdings: Callable[[], Holdings],
        living: Callable[[], Iterable[Sharer]],
        runner_of: Callable[[int], str | None],
    ) -> None:
        self._loop = loop
        self._holdings = holdings
        self._living = living
        self._runner_of = runner_of
        self._over: dict[str, int] = {}
        self._timer: Timer | None = None

    def wake(self) -> None:
        """Begin to look, if there is somebody to look at."""
        if self._timer is None and self._sharers():
            self._timer = self._loop.after(_EVERY_S, self.look)

    def look(self) -> None:
        """Look once, and end who is over its part for too long."""
        self._timer = None
        sharers, holdings = self._sharers(), self._holdings()
        uuids = {uuid for parts in sharers.values() for uuid in parts[1]}
        uses = holdings.use(sorted(uuids), self._runner_of) if uuids else {}
        over: dict[str, int] = {}
        for id, (runner, parts) in sharers.items():
            for uuid, percent in parts.items():
                limit_mb = holdings.memory_mb(uuid) * percent // _WHOLE
                rows = uses.get(uuid, {}).get("pids", {}).values()
                used_mb = sum(used for owner, used in rows if owner == id)
                if not limit_mb or used_mb <= limit_mb * _SLACK:
                    continue
                over[id] = self._over.get(id, 0) + 1
                if over[id] > _LOOKS:
                    runner.exceed_gpu(used_mb, limit_mb)
        self._over = over
        self.wake()

    def _sharers(self) -> dict[str, tuple[Sharer, dict[str, int]]]:
        real = self._holdings().real
        found = {}
        for runner in self._living():
            parts = {one: share for one, share in runner.parts().items() if share < _WHOLE and one in real}
            if parts:
                found[runner.id] = (runner, parts)
        return found
