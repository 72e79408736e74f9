"""Memory as the host sees it: what the machine has left, and what a runner with all its children uses.

Standard library only.
Rules: a runner is measured by PSS, so that pages shared with its zygote count by share; RSS is read first, because
it costs a hundredth and is never less. Address space is never limited: libraries reserve far more than they use.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from fal_notebook.runtime.loop import Loop, Timer

__all__ = ["MemoryWatch", "available_part", "tree_bytes"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVERY_S = (0.25, 2.0)
_FILLS_S = 2 << 30
"""How many bytes a runner may well fill in a second: one that is far from its limit is looked at less often."""
_FAR_OVER = 1.1
"""The part of the limit beyond which a runner has no second look to come down again."""


class MemoryWatch:
    """Looks at a runner's memory again and again, and says once that it is over its limit."""

    def __init__(self, loop: Loop, limit: int, exceeded: Callable[[], None]) -> None:
        """limit: bytes; 0 for none."""
        self._loop = loop
        self._exceeded = exceeded
        self.limit = limit
        self.peak = 0
        """The most that was seen, in bytes."""
        self._was_over = False
        self._timer: Timer | None = None

    def begin(self, pid: int) -> None:
        """Watch this process and its descendants from now on."""
        if self.limit:
            self._after(_EVERY_S[0], pid)

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, pid: int) -> None:
        used = tree_bytes(pid, over=self.limit)
        self.peak = max(self.peak, used)
        if used > self.limit * _FAR_OVER or (used > self.limit and self._was_over):
            self._timer = None
            self._exceeded()
            return
        self._was_over = used > self.limit
        least, most = _EVERY_S
        self._after(min(most, max(least, (self.limit - used) / _FILLS_S)), pid)

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
