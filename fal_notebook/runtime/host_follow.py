"""Sends a runner's log records over a link, as fast as the other side reads them.

Standard library only.
Rules: records come from the segment files, so a slow reader costs no memory; a batch says `end` when nothing
will follow.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fal_notebook.runtime.host_link import Link
from fal_notebook.runtime.host_logs import LogFile, read_records

__all__ = ["Follower"]

_BATCH_BYTES = 128 * 1024


class Follower:
    """One `logs.read`: what is there, then with `follow` what comes."""

    def __init__(
        self, link: Link, message: dict[str, Any], folder: Path, live: Callable[[], LogFile | None]
    ) -> None:
        self._link = link
        self.answers = message.get("n")
        """Number of the `logs.read` that this answers."""
        self._runner_id = str(message["runner_id"])
        self._offset = int(message.get("after") or 0)
        self._follow = bool(message.get("follow"))
        self._folder = folder
        self._live = live
        self._log = live() if self._follow else None
        self.done = False
        if self._log is not None:
            self._log.follow(self.pump)

    def pump(self) -> None:
        """Send what there is while the link has room."""
        while not self.done and not self._link.closed and self._link.is_roomy:
            records, self._offset = read_records(self._folder, self._offset, _BATCH_BYTES)
            # A runner's log is followed until its exit record exists; whoever does not follow has it all now.
            is_last = not records and (self._log is None or self._live() is None)
            if records or is_last:
                self._send(records, is_last)
            if not records:
                break
        if self._link.closed:
            self.stop()

    def serves(self, link: Link) -> bool:
        """Say whether it sends over this link."""
        return link is self._link

    def stop(self) -> None:
        """Send nothing more."""
        self.done = True
        if self._log is not None:
            self._log.unfollow(self.pump)
            self._log = None

    def _send(self, records: list[list[Any]], is_last: bool) -> None:
        if is_last:
            self.stop()
        self._link.send(
            {"t": "log", "re": self.answers, "runner_id": self._runner_id, "lines": records, "end": is_last}
        )
