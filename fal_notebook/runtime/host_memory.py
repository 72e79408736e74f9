"""Memory as the host sees it: what the machine has left, and what a runner with all its children uses.

Standard library only.
Rules: the kernel holds a runner to its limit where it can, the host looks by itself elsewhere; then a runner is measured by PSS, so that pages shared with its zygote count by share; RSS is read first, because
it costs a hundredth and is never less. Address space is never limited: libraries reserve far more than they use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fal_notebook.runtime.host_groups import MemoryGroup, MemoryGroups
from fal_notebook.runtime.loop import Loop, Timer

__all__ = ["MemoryWatch", "available_part", "tree_bytes"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVERY_S = (0.25, 2.0)
_ASK_S = 1.0
"""How often the kernel is asked whether it ended a part of a runner at its limit."""
_FILLS_S = 2 << 30
"""How many bytes a runner may well fill in a second: one that is far from its limit is looked at less often."""
_FAR_OVER = 1.1
"""The part of the limit beyond which a runner has no second look to come down again."""


class MemoryWatch:
    """Holds one runner to its limit, and says once that it went over it."""

    def __init__(
        self,
        loop: Loop,
        limit: int,
        exceeded: Callable[[], None],
        groups: MemoryGroups | None = None,
        name: str = "",
    ) -> None:
        """limit: bytes; 0 for none. groups: where the kernel holds it; name: of its group there."""
        self._loop = loop
        self._exceeded = exceeded
        self._groups = groups
        self._name = name
        self._group: MemoryGroup | None = None
        self.limit = limit
        self.peak = 0
        """The most that was seen, in bytes."""
        self.is_over = False
        """It went over its limit, and was or is to be ended."""
        self._was_over = False
        self._timer: Timer | None = None

    def begin(self, pid: int) -> None:
        """Hold this process and its descendants to it from now on."""
        if not self.limit:
            return
        group = self._groups.make(self._name, self.limit) if self._groups is not None else None
        if group is not None:
            self._group = group
            try:
                group.take(pid)
            except OSError:
                self._leave_group()
        self._after(_EVERY_S[0], pid)

    def end(self) -> None:
        """Look no more; the processes have ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._group is not None:
            self._ask(self._group)
            self._leave_group()

    def _look(self, pid: int) -> None:
        if self._group is not None:
            self._ask(self._group)
            delay_s = _ASK_S
        else:
            delay_s = self._measure(pid)
        self._timer = None
        if self.is_over:
            self._exceeded()
        else:
            self._after(delay_s, pid)

    def _ask(self, group: MemoryGroup) -> None:
        """Ask the kernel, which ends one process of a group at its limit: the rest of it is of no use then."""
        self.peak = max(self.peak, group.peak)
        self.is_over = self.is_over or group.has_killed

    def _measure(self, pid: int) -> float:
        """Look at its memory, and return after how many seconds to look again."""
        used = tree_bytes(pid, over=self.limit)
        self.peak = max(self.peak, used)
        self.is_over = used > self.limit * _FAR_OVER or (used > self.limit and self._was_over)
        self._was_over = used > self.limit
        least, most = _EVERY_S
        return min(most, max(least, (self.limit - used) / _FILLS_S))

    def _leave_group(self) -> None:
        group, self._group = self._group, None
        if group is not None and self._groups is not None:
            self._groups.remove(group)

    def _after(self, delay_s: float, pid: int) -> None:
        self._timer = self._loop.after(delay_s, lambda: self._look(pid))


def available_part() -> float:
    """Return the part of the machine's memory that processes could still have, 1.0 where nobody says."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 1.0
    rows = {
        name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in text.splitlines())
    }
    return rows.get("MemAvailable", 1) / rows.get("MemTotal", 1)


def tree_bytes(pid: int, *, over: int) -> int:
    """Return the memory of a process and its descendants: PSS where their RSS is more than `over`, else RSS."""
    pids = _tree(pid)
    resident = sum(_resident(one) for one in pids)
    return resident if resident <= over else sum(_proportional(one) for one in pids)


def _tree(pid: int) -> list[int]:
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        threads = _names(f"/proc/{one}/task")
        waiting.extend(int(id) for thread in threads for id in _words(f"/proc/{one}/task/{thread}/children"))
    return found


def _resident(pid: int) -> int:
    words = _words(f"/proc/{pid}/statm")
    return int(words[1]) * _PAGE if words else 0


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except OSError:
        return []  # it has ended


def _words(path: str) -> list[bytes]:
    # Plain descriptors: this is done several times a second for each runner.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []  # it has ended
    try:
        return os.read(descriptor, 65536).split()
    except OSError:
        return []
    finally:
        os.close(descriptor)


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
