"""One build of an image at a time, over tasks and processes.

Rules: the lock is a `flock` whose descriptor every command of the build inherits, so it is free only when
the last descendant has ended. A build whose backend was killed is recognised by the record in the lock
file, and what is left of it is ended before another begins.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fal_notebook.places import process_start_time

__all__ = ["BuildLock", "take_lock"]

RETRY_S = 0.1


class BuildLock:
    """A held lock."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        """To be inherited by the build's commands."""

    def name_group(self, group: int) -> None:
        """Record the process group that works under this lock."""
        record = {"pid": os.getpid(), "start_time": process_start_time(os.getpid()), "group": group}
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps(record).encode(), 0)


@asynccontextmanager
async def take_lock(path: Path) -> AsyncIterator[BuildLock]:
    """Wait for the lock and hold it; the caller bounds the wait."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _is_taken(descriptor):
            _end_orphans(descriptor)
            # flock has no waiting form that can be cancelled, and two backends on one image are rare.
            await asyncio.sleep(RETRY_S)
        os.ftruncate(descriptor, 0)
        yield BuildLock(descriptor)
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _end_orphans(descriptor: int) -> None:
    """Kill the group that holds the lock when the backend that started it is gone.

    The group's id cannot have been reused: a group exists as long as it has a member.
    """
    try:
        record = json.loads(os.pread(descriptor, 1000, 0))
        builder, start_time, group = int(record["pid"]), int(record["start_time"]), int(record["group"])
    except (ValueError, KeyError):
        return
    if process_start_time(builder) != start_time:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
