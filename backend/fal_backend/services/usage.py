"""The usage ledger: what calls took of which machine type, for whom, in which minute.

Rules: noting a call costs one look-up and two additions; what was noted is written every few seconds and when the
backend ends, so that a killed one loses at most those; nothing is decided from it. Time is the runner's, from the
moment that it was sent the call; a call that no runner had costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import structlog

from fal_backend.domain.call_record import CallRecord
from fal_backend.domain.records import Usage
from fal_backend.domain.usage import MINUTE_US, billed, spread
from fal_backend.ports import OpClass, Store, UsageSum
from fal_notebook.errors import FalError
from fal_notebook.wire import AuthMode

__all__ = ["UsageLedger"]

log = structlog.get_logger()

FLUSH_S = 5.0
KEEP_MINUTES = 400 * 24 * 60
_TRIM_STEP = 1_000
_TRIM_EVERY = 720
"""Flushes between two trims: an hour."""

Cell = list[int]
"""[calls, microseconds] of one row that is not written yet."""


class UsageLedger:
    """See the module; used from one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        auth_of: Callable[[str], AuthMode],
        machine_of: Callable[[str], str],
    ) -> None:
        """auth_of: the mode of `owner/alias`; machine_of: a runner's machine type."""
        self._store = store
        self._auth_of = auth_of
        self._machine_of = machine_of
        self._quick: dict[tuple[str, str | None, str | None, int], Cell] = {}
        self._cells: dict[tuple[str, str, str, str, int], Cell] = {}

    def note(self, record: CallRecord) -> None:
        """Add a call that has ended."""
        if record.runner is None or not record.attempts:
            return
        micros = int(record.inference_ms * 1000)
        began, minute = record.ended_at - micros, record.ended_at // MINUTE_US
        if began // MINUTE_US == minute:
            place = (record.app, record.caller, record.runner, minute)
            cell = self._quick.get(place)
            if cell is None:
                cell = self._quick[place] = self._cell(record, minute)
            cell[0] += 1
            cell[1] += micros
            return
        for at, part in spread(began, record.ended_at):
            cell = self._cell(record, at)
            cell[0] += at == minute
            cell[1] += part

    async def sums(
        self, since: int, until: int, *, account: str | None, app: str | None = None, by_minute: bool = False
    ) -> list[UsageSum]:
        """Return what was used from minute `since` to before minute `until`, all that was noted included."""
        await self.flush()
        return await self._store.read(
            lambda reader: reader.books.sums(since, until, account=account, app=app, by_minute=by_minute)
        )

    async def flush(self) -> None:
        """Write what was noted."""
        cells, self._cells, self._quick = self._cells, {}, {}
        rows = [_row(place, cell) for place, cell in cells.items()]
        if not rows:
            return
        try:
            await self._store.write(lambda tx: tx.books.add(rows), OpClass.STATE)
        except FalError as error:
            log.warning("usage.not_written", code=error.code, rows=len(rows))
            for place, cell in cells.items():
                known = self._cells.setdefault(place, [0, 0])
                known[0] += cell[0]
                known[1] += cell[1]

    async def run(self) -> None:
        """Write every few seconds until cancelled."""
        turns = 0
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            turns += 1
            if turns % _TRIM_EVERY == 0:
                with contextlib.suppress(FalError):  # disk full or locked: retention is what may wait
                    await self._trim()

    async def _trim(self) -> None:
        before = time.time_ns() // 1000 // MINUTE_US - KEEP_MINUTES
        while await self._store.write(lambda tx: tx.books.trim(before, _TRIM_STEP), OpClass.LAZY):
            pass

    def _cell(self, record: CallRecord, minute: int) -> Cell:
        auth, owner = self._auth_of(record.app), record.account
        account, runner = billed(auth, owner, record.caller), record.runner or ""
        place = (account, record.app, record.caller or "", self._machine_of(runner), minute)
        return self._cells.setdefault(place, [0, 0])


def _row(place: tuple[str, str, str, str, int], cell: Sequence[int]) -> Usage:
    account, app, caller, machine_type, minute = place
    return Usage(
        id="/".join((str(minute), account, app, caller, machine_type)),
        account=account,
        app=app,
        caller=caller,
        machine_type=machine_type,
        minute=minute,
        calls=cell[0],
        micros=cell[1],
    )
