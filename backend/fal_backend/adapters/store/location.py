"""Where a database may lie, and who else has it open.

Rules: SQLite's log needs shared memory and locks that hold, so a folder on a network file system is
refused before anything is written there.
"""

from __future__ import annotations

import os
from pathlib import Path

from fal_notebook.errors import BackendError

__all__ = ["file_system_of", "holders_of", "refuse_network_folder"]

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "fuse", "afs", "ceph", "beegfs"}
)
_MOUNTS = Path("/proc/self/mountinfo")


def file_system_of(folder: Path, mounts: str) -> str:
    """Return the type of the file system that a folder lies on, given the text of `mountinfo`."""
    path = os.path.realpath(folder)
    best, found = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape")
        # Later lines lie over earlier ones.
        if (path == point or path.startswith(f"{point.rstrip('/')}/")) and len(point) >= len(best):
            best, found = point, after.split(" ")[0]
    return found


def refuse_network_folder(folder: Path) -> None:
    """Raise BackendError `backend.network_folder` for a folder on a network file system."""
    if not _MOUNTS.exists():
        return
    kind = file_system_of(folder, _MOUNTS.read_text(encoding="utf-8", errors="replace"))
    if kind.partition(".")[0] in _NETWORK:
        raise BackendError(
            f"{folder} lies on a network file system ({kind}), where a SQLite database is not safe.",
            code="backend.network_folder",
            fix="Name a local folder with FAL_NB_HOME.",
        )


def holders_of(path: Path) -> list[str]:
    """Return `name (pid)` of other processes of this user that have a file or its log open."""
    wanted = {str(path), f"{path}-wal", f"{path}-shm"}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) == os.getpid():
            continue
        try:
            if any(os.readlink(link) in wanted for link in (entry / "fd").iterdir()):  # noqa: PTH115  # may dangle
                found.append(f"{(entry / 'comm').read_text().strip()} ({entry.name})")
        except OSError:
            # It ended meanwhile, or belongs to somebody else.
            continue
    return found
