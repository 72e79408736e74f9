"""Watches the supervisor that this host belongs to, and allows it some time to be replaced.

Standard library only. Rule: a guardian is watched by pidfd, so neither a busy nor a reused process is taken
for a dead or a living one.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from fal_notebook.runtime.loop import Loop, Timer
from fal_notebook.runtime.process import open_pidfd

__all__ = ["ORPHAN_GRACE_S", "Guardian"]

ORPHAN_GRACE_S = 60.0


class Guardian:
    """The process without which the host ends after a grace."""

    def __init__(self, loop: Loop, grace_s: float, on_abandoned: Callable[[], None]) -> None:
        self._loop = loop
        self._grace_s = grace_s
        self._on_abandoned = on_abandoned
        self._pidfd: int | None = None
        self._timer: Timer | None = None

    def watch(self, pid: int) -> None:
        """Belong to this process from now on."""
        self._let_go()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pidfd = open_pidfd(pid)
        if self._pidfd is None:
            self._orphaned()
        else:
            self._loop.watch(self._pidfd, read=self._orphaned)

    def _orphaned(self) -> None:
        self._let_go()
        self._timer = self._loop.after(self._grace_s, self._on_abandoned)

    def _let_go(self) -> None:
        if self._pidfd is not None:
            self._loop.forget(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
