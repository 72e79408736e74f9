"""The persistent folder of an account, which fal calls `/data`.

Rules: it is looked up where it is used, because a class is written in a notebook and runs in a runner; a path below
it that travels with a class means the runner's folder there.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = ["DataPath", "data_dir", "persistent_path"]

_DATA = "/data"


def data_dir() -> Path:
    """Return the persistent folder: that of the runner, else `/data`."""
    return Path(os.environ.get("FAL_PERSISTENT_DIR") or _DATA)


class DataPath(PurePosixPath):
    """A path below the persistent folder; it is pickled as what lies below."""

    def __reduce__(self) -> Any:
        try:
            below = PurePosixPath(*self.parts).relative_to(data_dir())
        except ValueError:
            return DataPath, self.parts
        return _below_data, below.parts


def _below_data(*parts: str) -> DataPath:
    return DataPath(data_dir(), *parts)


def persistent_path(path: str | os.PathLike[str]) -> Path:
    """Return where a path of fal's convention lies here: relative ones and those in `/data` are below the folder."""
    given, root = Path(path), data_dir()
    if not given.is_absolute():
        return root / given
    is_data = given == Path(_DATA) or Path(_DATA) in given.parents
    return root / given.relative_to(_DATA) if is_data and root != Path(_DATA) else given
