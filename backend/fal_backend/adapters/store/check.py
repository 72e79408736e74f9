"""After a stop that was not in order, the database is looked through once, beside the work.

Rules: an empty file says that the last stop was in order; it is taken away at the opening and put back at the close.
The look is read-only, bounded in time, and delays nobody; a damaged database ends the backend for good, with what to
do. Nothing is repaired and nothing is deleted.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

import structlog

from fal_notebook.errors import BackendError

__all__ = ["DAMAGED", "StopMark", "damaged", "watch_after_unclean_stop"]

log = structlog.get_logger()

DAMAGED = "backend.store_damaged"
_MARK = "STOPPED"
_LIMIT_S = 60.0
_STEPS = 100_000
"""Instructions of SQLite's machine between two looks at the clock: some milliseconds."""


class StopMark:
    """The file that says how the last backend of this store ended."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(_MARK)
        self.is_trusted = not database.exists() or self._path.exists()
        """True when it ended in order, when there was none, or when it has been looked through since."""

    def take(self) -> None:
        """From now on a stop is out of order."""
        self._path.unlink(missing_ok=True)

    def put(self) -> None:
        """All is written and closed; one that nobody could look through stays marked as it was."""
        if self.is_trusted:
            self._path.touch(mode=0o600)


def damaged(path: Path, reason: str) -> BackendError:
    """Return the error of a database that cannot be trusted."""
    folder = path.parent
    return BackendError(
        f"{path} cannot be read: {reason}.",
        code=DAMAGED,
        fix=f"Nothing was changed. Put a copy from {folder / 'backups'} in its place, "
        f"or move {folder} away to begin anew.",
    )


async def watch_after_unclean_stop(path: Path, mark: StopMark) -> None:
    """Look the database through where its last stop was not in order, then wait until cancelled.

    Raises: BackendError `backend.store_damaged`.
    """
    if not mark.is_trusted:
        began = time.monotonic()
        found = await asyncio.to_thread(_quick_check, path, _LIMIT_S)
        took = round(time.monotonic() - began, 3)
        if found is None:
            log.warning("store.check_given_up", after_s=took)
        elif found != "ok":
            raise damaged(path, found)
        else:
            mark.is_trusted = True
            log.info("store.checked", took_s=took)
    await asyncio.Event().wait()


def _quick_check(path: Path, limit_s: float) -> str | None:
    """Return SQLite's finding, `ok` or what is wrong first; None when there was no time for all of it."""
    deadline = time.monotonic() + limit_s
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _STEPS)
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        return " ".join(str(found).split())
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return None
        return str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()
