"""Memory as the host sees it: what the machine has left, and what a runner with all its children uses.

Standard library only.
Rules: a runner is measured by PSS, so that pages shared with its zygote count once; RSS is read first, because it
costs a hundredth and is never less.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["available_part", "tree_bytes"]

_PAGE = os.sysconf("SC_PAGE_SIZE")


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
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting.extend(int(child) for child in children.read_text().split())
            except OSError:
                continue  # the thread has ended meanwhile
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
