"""A pytest plugin of `make unit`: what tests write goes to memory, where the machine has it.

Rules: for tests of one process, which prove nothing of the disk and would wait for it: each commit of the store is an
fsync. Whoever runs a test by hand finds its files on the disk, as pytest keeps them.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

__all__ = ["pytest_configure", "pytest_unconfigure"]

_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 2 << 30
_MADE = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give pytest a folder in memory, unless it was given one: so are xdist's processes."""
    if config.option.basetemp is None and (folder := _folder()) is not None:
        config.stash[_MADE] = folder
        config.option.basetemp = str(folder / "t")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the memory back."""
    if (folder := config.stash.get(_MADE, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path | None:
    """Return a new folder; None where memory is no place for files, or for programs: containers often forbid these."""
    try:
        if shutil.disk_usage(_MEMORY).free < _ROOM_BYTES:
            return None
        folder = Path(tempfile.mkdtemp(prefix="fal-", dir=_MEMORY))
        program = folder / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o700)
        subprocess.run([program], check=True)
    except OSError:
        return None
    return folder
