"""What earlier runners left on disk and in the process table, and how the host is rid of it.

Standard library only. Rule: removing never blocks the host; it is done by a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Container
from pathlib import Path

from fal_notebook.runtime.process import find_leftovers

__all__ = ["RUNNER_ID", "clear_runs", "remove_folder", "trim_logs"]

RUNNER_ID = re.compile(r"r-[0-9a-f]{12}")
_MAX_LOG_FOLDERS = 500


def clear_runs(runs: Path) -> None:
    """Remove what a host that was killed left: runners' folders, and processes that the runners had started."""
    runs.mkdir(mode=0o700, exist_ok=True)
    for folder in list(runs.iterdir()):
        for pid in find_leftovers(None, f"FAL_RUNNER_ID=r-{folder.name}"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        remove_folder(folder)


def trim_logs(logs: Path, *, keep: Container[str]) -> None:
    """Keep the logs of the last runners only, and of those whose ids are in `keep`."""
    folders = [path for path in logs.iterdir() if RUNNER_ID.fullmatch(path.name) and path.name not in keep]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime)[:-_MAX_LOG_FOLDERS]:
        remove_folder(path)


def remove_folder(folder: Path) -> None:
    """Remove a folder without waiting for it: what `setup()` installed may take seconds to unlink.

    What cannot be removed now (no process to be had, a busy mount) stays for the next start, and is said.
    """
    try:
        _remove(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(
                f"{time.strftime('%Y-%m-%dT%H:%M:%S')} host.folder_left {folder} error={error}\n"
            )


def _remove(folder: Path) -> None:
    if not folder.exists():
        return
    doomed = folder if folder.name.startswith(".gone-") else folder.with_name(f".gone-{folder.name}")
    if doomed != folder:
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            shutil.rmtree(doomed, ignore_errors=True)
        os._exit(0)
