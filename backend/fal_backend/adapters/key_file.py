"""Keys in a file that only this user may read: how they are read, written, and refused.

Rules: a file that others could read is refused, not mended; a new one is written beside, synced and renamed.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fal_backend.adapters.durable import replace_file
from fal_notebook.errors import BackendError

__all__ = ["read_keys", "write_keys"]


def read_keys(path: Path, by: str, check: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    """Return the keys in the order of their field `by`; none where there is no file. check raises ValueError.

    Raises: BackendError `backend.keys_exposed` when others may read the file, or it cannot be understood.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return []
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & ~0o600:
        raise _refused(path, "can be read by others")
    try:
        keys: list[dict[str, Any]] = json.loads(path.read_text())["keys"]
        for key in keys:
            check(key)
        return sorted(keys, key=lambda key: int(key[by]))
    except (KeyError, TypeError, ValueError) as error:
        raise _refused(path, "cannot be understood") from error


def write_keys(path: Path, keys: list[dict[str, Any]]) -> None:
    """Put these keys in the place of those before."""
    replace_file(path, json.dumps({"keys": keys}).encode())


def _refused(path: Path, what: str) -> BackendError:
    return BackendError(
        f"{path} {what}.",
        code="backend.keys_exposed",
        fix=f"Remove {path}; it is made anew at the next start.",
    )
