"""The data folder as the supervisor holds it: locked, on a disk of this machine, with a name of its own.

Standard library only.
Rules: one process tree for each home. A folder on a network file system is refused: SQLite's shared memory
does not work there and `flock` lies. A lock that another machine left is never broken by us.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from fal_notebook.places import Places, process_start_time

__all__ = ["HomeLock", "HomeRefused", "file_system_of", "instance_id", "write_private"]

_NETWORK_TYPES = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb2",
        "smb3",
        "smbfs",
        "virtiofs",
    )
)


class HomeRefused(Exception):
    """This home cannot be used; the text says why and what to do."""


class HomeLock:
    """Holds a home until `release`, or until the process ends."""

    def __init__(self, places: Places) -> None:
        """Raises: HomeRefused."""
        places.home.mkdir(mode=0o755, parents=True, exist_ok=True)
        kind = file_system_of(places.home)
        if kind in _NETWORK_TYPES or kind.startswith("fuse."):
            raise HomeRefused(
                f"{places.home} is on a network file system ({kind}), where the database would be damaged; "
                "set FAL_NB_HOME to a folder on a disk of this machine"
            )
        self._fd = os.open(places.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        holder = _read_holder(self._fd)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise HomeRefused(
                f"{places.home} is in use by process {holder.get('pid', 'unknown')}; "
                "use that backend, end it, or set FAL_NB_HOME to another folder"
            ) from None
        here = socket.gethostname()
        if holder.get("host", here) != here:
            os.close(self._fd)
            raise HomeRefused(
                f"{places.home} was left locked by process {holder.get('pid')} of machine {holder['host']}; "
                f"make sure that it has ended there, then remove {places.lock}"
            )
        record = {"host": here, "pid": os.getpid(), "start_time": process_start_time(os.getpid())}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Give the home back and leave no name behind."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def file_system_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the type of the file system that holds a folder, by the longest mount point above it."""
    real = os.path.realpath(folder)
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            left, _, right = line.partition(" - ")
            mount = left.split()[4].encode().decode("unicode_escape")
            is_above = real == mount or real.startswith(mount.rstrip("/") + "/")
            if is_above and len(mount) >= len(best):
                best, kind = mount, right.split()[0]
    return kind


def instance_id(places: Places) -> str:
    """Return this home's lasting name: 16 hex digits, made once."""
    path = places.home / "instance_id"
    with contextlib.suppress(OSError):
        known = path.read_text().strip()
        if known:
            return known
    made = secrets.token_hex(8)
    write_private(path, made)
    return made


def write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by this user only."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    draft.replace(path)
