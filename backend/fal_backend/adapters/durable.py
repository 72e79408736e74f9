"""Files that are there for good, or not at all: written beside, synced, renamed, and their folder synced.

Rules: everything here blocks; a file never exists with a wider mode than it is given.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fal_notebook.errors import LimitError

__all__ = ["replace_file", "settle", "sync_folder", "told_of_a_full_disk"]

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def told_of_a_full_disk(what: str) -> Iterator[None]:
    """Tell people that something cannot be stored: LimitError `limit.disk_full` where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise LimitError(
            f"{what} cannot be stored: {error.strerror}.",
            code="limit.disk_full",
            fix="Free some space on the disk of the data folder.",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(file: BinaryIO, temporary: Path, target: Path) -> None:
    """Make a written file's name and content durable."""
    file.flush()
    os.fsync(file.fileno())
    temporary.rename(target)
    sync_folder(target.parent)


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a small file in the place of what was there, in one step."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        settle(file, temporary, path)
